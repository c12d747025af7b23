package org.kdlite.demo.core

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** Against what TensorFlow and Keras make of the same images, see `ci/make_data.py`. */
class ImageInputTest {
    private val folder = File(System.getProperty("kdlite.data"), "preprocessing")

    @Test
    fun isWhatPythonMakesOfTheSameImages() {
        val cases = parseJson(File(folder, "cases.json").readText()) as List<*>
        assertTrue(cases.size >= 8)
        for (case in cases.map { it as Map<*, *> }) {
            fun number(key: String) = (case[key] as Double).toInt()
            val name = case["name"] as String
            val channels = number("channels")
            val pixels = Pixels(number("width"), number("height"), ints(File(folder, "$name.argb")))
            val (height, width) = number("target_height") to number("target_width")
            val input = ImageInput(
                height, width, channels, numbers(case["mean"]), numbers(case["std"]),
                TensorSpec("x", height * width * channels, TensorType.FLOAT32),
            )
            val told = input.values(pixels, if (case["crop"] == true) Fit.CENTRE else Fit.WHOLE)
            val wanted = floats(File(folder, "$name.f32"))
            assertEquals(wanted.size, told.size)
            val worst = told.indices.maxOf { Math.abs(told[it] - wanted[it]) }
            // Products of float32 in another order, on values up to 255.
            assertTrue("$name is off by $worst", worst <= 1e-4 * 255 / input.std.min())
        }
    }

    private fun numbers(list: Any?) = (list as List<*>).map { (it as Double).toFloat() }.toFloatArray()
}
