package org.kdlite.demo.inference

import java.io.File
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test
import org.kdlite.demo.core.Unusable
import org.kdlite.demo.core.UnusableModel
import org.kdlite.demo.core.dataFolder
import org.kdlite.demo.core.direct

class TfliteClassifierTest {
    private val file = File(dataFolder, "models/int8/model.tflite")

    @Test
    fun theRuntimeIsTheOneInTheApp() {
        assertEquals("2.16.1", TfliteClassifier.runtimeVersion)
    }

    @Test
    fun anOpThatTheRuntimeLacksIsAReason() {
        val error = assertThrows(UnusableModel::class.java) {
            TfliteClassifier(direct(File(dataFolder, "models/custom_op.tflite")), 1)
        }
        assertEquals(Unusable.CANNOT_RUN, error.reason)
    }

    @Test
    fun manyThreadsOpenRunAndClose() {
        val wanted = TfliteClassifier(direct(file), 1).use { it.run(FloatArray(120) { i -> i.toFloat() }) }
        val pool = Executors.newFixedThreadPool(4)
        val work = List(4) {
            pool.submit {
                repeat(25) {
                    TfliteClassifier(direct(file), 2).use { model ->
                        assertArrayEquals(wanted, model.run(FloatArray(120) { i -> i.toFloat() }), 0f)
                    }
                }
            }
        }
        work.forEach { it.get(600, TimeUnit.SECONDS) }
        pool.shutdown()
    }

    @Test
    fun aBenchmarkTimesSoManyRuns() {
        TfliteClassifier(direct(file), 1).use { model ->
            var now = 0L
            val times = model.benchmark(runs = 7, warmUps = 2, clock = { now.also { now += 2_000_000 } })
            assertArrayEquals(DoubleArray(7) { 2.0 }, times, 0.0)
            assertEquals(3, model.benchmark(runs = 100, warmUps = 2, goesOn = { done -> done < 3 }).size)
        }
    }
}
