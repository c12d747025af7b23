package org.kdlite.demo.inference

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.kdlite.demo.core.dataFolder
import org.kdlite.demo.core.direct
import org.kdlite.demo.core.floats
import org.kdlite.demo.core.parseJson

/** The runtime that is in the app against LiteRT in Python, see `ci/make_data.py`. */
class ParityTest {
    private class Case(
        val name: String,
        val limit: Double,
        val step: Double?,
        val unequal: Double,
        val pixels: ByteArray,
        val wanted: FloatArray,
    )

    private fun cases(): List<Case> {
        val folder = File(dataFolder, "models")
        return (parseJson(File(folder, "cases.json").readText()) as List<*>).map { it as Map<*, *> }.map {
            val name = it["name"] as String
            Case(
                name, it["tolerance"] as Double, it["step"] as Double?, it["unequal"] as Double,
                File(folder, "$name/pixels.u8").readBytes(), floats(File(folder, "$name/outputs.f32")),
            )
        }
    }

    @Test
    fun everyRecipeGivesWhatPythonGives() {
        val report = StringBuilder()
        val failed = ArrayList<String>()
        for (case in cases()) {
            for (threads in listOf(1, 4)) {
                TfliteClassifier(direct(File(dataFolder, "models/${case.name}/model.tflite")), threads).use { model ->
                    val size = model.info.input.tensor.size
                    val classes = model.info.labels.size
                    assertEquals(case.wanted.size, case.pixels.size / size * classes)
                    // More threads divide the same sums otherwise, if at all: a few images show it.
                    val count = if (threads == 1) case.pixels.size / size else 50
                    var worst = 0.0
                    var equal = 0
                    var sameClass = 0
                    for (i in 0 until count) {
                        val pixels = IntArray(size) { case.pixels[i * size + it].toInt() and 0xff }
                        val told = model.run(model.info.input.values(pixels))
                        val wanted = case.wanted.copyOfRange(i * classes, (i + 1) * classes)
                        for (k in 0 until classes) {
                            worst = maxOf(worst, Math.abs(told[k] - wanted[k]).toDouble())
                            if (told[k] == wanted[k]) equal++
                        }
                        if (best(told) == best(wanted)) sameClass++
                    }
                    report.append(
                        "${case.name}, $threads threads: $count images, $sameClass of the same class, " +
                            "${"%.2f".format(100.0 * equal / (count * classes))} % of values equal to the bit, " +
                            "off by $worst at most" + (case.step?.let { ", %.2f steps".format(worst / it) } ?: "") + "\n",
                    )
                    val unequal = count * classes - equal
                    if (worst > case.limit || unequal > case.unequal || sameClass < 0.99 * count) failed.add(case.name)
                }
            }
        }
        println(report)
        assertTrue("$failed\n$report", failed.isEmpty())
    }

    private fun best(values: FloatArray) = values.indices.maxByOrNull { values[it] }

    @Test
    fun everySelfTestPasses() {
        for (case in cases()) {
            TfliteClassifier(direct(File(dataFolder, "models/${case.name}/model.tflite")), 2).use {
                val test = it.selfTest()!!
                assertTrue("${case.name}: ${test.differences}", test.passed)
            }
        }
    }
}
