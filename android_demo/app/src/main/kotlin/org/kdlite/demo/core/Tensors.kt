package org.kdlite.demo.core

import java.nio.ByteBuffer

/** The types that a classifier's input and output can have. */
enum class TensorType(val bytes: Int) { FLOAT32(4), INT8(1), UINT8(1) }

/**
 * How real values are stored: `value = scale * (level - zeroPoint)`, or as they are in float32.
 *
 * @property size how many values.
 */
data class TensorSpec(
    val name: String,
    val size: Int,
    val type: TensorType,
    val scale: Float = 1f,
    val zeroPoint: Int = 0,
) {
    private val levels = if (type == TensorType.UINT8) 0..255 else -128..127

    val sizeBytes: Int get() = size * type.bytes

    /** Writes real values as the model takes them: `round(x / scale) + zeroPoint`, half to even, clipped. */
    fun write(values: FloatArray, into: ByteBuffer) {
        require(values.size == size) { "$name takes $size values. Received: ${values.size}." }
        into.clear()
        if (type == TensorType.FLOAT32) {
            into.asFloatBuffer().put(values)
        } else {
            for (value in values) into.put(level(value).toByte())
        }
        into.rewind()
    }

    /** Reads what the model wrote, as real values. */
    fun read(from: ByteBuffer): FloatArray {
        from.rewind()
        if (type == TensorType.FLOAT32) return FloatArray(size).also { from.asFloatBuffer().get(it) }
        return FloatArray(size) {
            val stored = from.get().toInt()
            val level = if (type == TensorType.UINT8) stored and 0xff else stored
            (level - zeroPoint).toFloat() * scale
        }
    }

    private fun level(value: Float): Int {
        // In double, as the Python side does it: a float32 quotient can fall on the other side of a half.
        val level = Math.rint(value.toDouble() / scale.toDouble()) + zeroPoint
        return level.coerceIn(levels.first.toDouble(), levels.last.toDouble()).toInt()
    }
}
