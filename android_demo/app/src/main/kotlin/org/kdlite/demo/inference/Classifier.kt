package org.kdlite.demo.inference

import org.kdlite.demo.core.GoldenVectors
import org.kdlite.demo.core.ModelInfo
import org.kdlite.demo.core.SelfTest

/** A loaded model. Used by one thread at a time. */
interface Classifier : AutoCloseable {
    val info: ModelInfo

    /** Threads that one run may use. */
    val threads: Int

    /** Runs one image: real values in, as [ModelInfo.input] makes them, real values of the classes out. */
    fun run(values: FloatArray): FloatArray
}

/** Runs the golden vectors of the file; null where it has none. */
fun Classifier.selfTest(): SelfTest? {
    val golden = info.golden ?: return null
    val input = info.input
    val differences = golden.outputs.indices.map {
        val pixels = GoldenVectors.pixels(it, input.height, input.width, input.channels)
        golden.difference(it, run(input.values(pixels)))
    }
    return SelfTest(differences, inSteps = golden.step != null)
}

/** Times [runs] runs of one image after [warmUps] others, in milliseconds; before each, [goesOn] is asked. */
fun Classifier.benchmark(
    runs: Int,
    warmUps: Int = 10,
    clock: () -> Long = System::nanoTime,
    goesOn: (done: Int) -> Boolean = { true },
): DoubleArray {
    val input = info.input
    val values = input.values(GoldenVectors.pixels(0, input.height, input.width, input.channels))
    repeat(warmUps) { if (goesOn(0)) run(values) }
    val times = ArrayList<Double>(runs)
    while (times.size < runs && goesOn(times.size)) {
        val start = clock()
        run(values)
        times.add((clock() - start) / 1e6)
    }
    return times.toDoubleArray()
}
