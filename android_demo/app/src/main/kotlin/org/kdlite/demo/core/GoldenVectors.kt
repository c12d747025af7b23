package org.kdlite.demo.core

import kotlin.math.abs

/**
 * Pixels that are a formula, and what the file made of them where it was exported.
 *
 * The formula is that of `kdlite/lite/golden.py`: squares of a linear congruential generator.
 *
 * @property outputs real values, one row a vector.
 * @property step the quantization step of the output; null for one that is computed in float.
 */
class GoldenVectors(val outputs: List<FloatArray>, val step: Float?) {

    /**
     * How an output differs from the expected one: in steps, or of float in millionths of the largest value; infinitely
     * where that is no number.
     */
    fun difference(index: Int, told: FloatArray): Double {
        val expected = outputs[index]
        require(told.size == expected.size) { "A vector has ${expected.size} values. Received: ${told.size}." }
        val largest = expected.indices.maxOf { abs(told[it] - expected[it]) }.toDouble()
        val unit = step?.toDouble() ?: (FLOAT_UNIT * expected.maxOf { abs(it) }.coerceAtLeast(Float.MIN_VALUE))
        val difference = if (largest == 0.0) 0.0 else largest / unit
        return if (difference.isFinite()) difference else Double.POSITIVE_INFINITY
    }

    companion object {
        const val PATTERN = "squares-1"
        private const val FLOAT_UNIT = 1e-6

        /** The pixels of vector [k], `(height, width, channels)`. */
        fun pixels(k: Int, height: Int, width: Int, channels: Int): IntArray {
            val side = maxOf(1, minOf(height, width) * (1 shl (k % 4)) / 32)
            val rows = (height + side - 1) / side
            val columns = (width + side - 1) / side
            var state = k + 1
            val grid = IntArray(rows * columns * channels) {
                state = 1664525 * state + 1013904223
                state ushr 24
            }
            return IntArray(height * width * channels) {
                val channel = it % channels
                val x = it / channels % width
                val y = it / channels / width
                grid[((y / side) * columns + x / side) * channels + channel]
            }
        }
    }
}

/**
 * How a self-test went.
 *
 * @property differences one a vector, see [GoldenVectors.difference].
 */
class SelfTest(val differences: List<Double>, val inSteps: Boolean) {
    /** The greatest difference that counts as agreement. */
    val limit: Double get() = if (inSteps) STEPS + SLACK else FLOAT_MILLIONTHS

    val agreeing: Int get() = differences.count { it <= limit }

    val passed: Boolean get() = agreeing == differences.size

    val worst: Double get() = differences.max()

    companion object {
        /**
         * Steps that runtimes may be apart: each layer's kernels may round a level the other way, and of the demo's 10,000
         * values between this runtime and LiteRT's the worst is two apart. A wrong kernel is tens of steps off.
         */
        const val STEPS = 3

        // Steps are products in float32.
        private const val SLACK = 0.01

        // Sums in another order, and half precision where the runtime uses it.
        private const val FLOAT_MILLIONTHS = 2_000.0
    }
}
