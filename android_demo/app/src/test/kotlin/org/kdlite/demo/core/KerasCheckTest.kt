package org.kdlite.demo.core

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test

class KerasCheckTest {
    private fun checkOf(name: String) = ModelInfo.read(direct(File(dataFolder, "models/$name"))).check

    @Test
    fun everyRecipesFileSaysWhatItWasHeldTo() {
        assertEquals(KerasCheck.Share(200, 1e-4), checkOf("float32/model.tflite"))
        assertEquals(KerasCheck.WithinOneStep(200, 0.99), checkOf("int8_trained/model.tflite"))
        for (name in listOf("int8", "int8_int8", "int8_uint8", "float16", "int16x8", "dynamic", "pruned", "clustered")) {
            val check = checkOf("$name/model.tflite") as KerasCheck.Noise
            assertEquals(2.0, check.steps, 0.0)
        }
        assertNull(checkOf("no_vectors.tflite"))
    }

    @Test
    fun allFormsAreRead() {
        val samples = "samples" to 7.0
        val steps = mapOf(samples, "within_one_step" to 0.99, "rms_steps" to 2.0)
        assertEquals(KerasCheck.WithinOneStepOr(7, 0.99, 2.0), KerasCheck.of(steps))
        for (other in listOf(null, "passed", mapOf(samples), mapOf("within_one_step" to 0.99), mapOf(samples, "rms_steps" to 2.0))) {
            assertNull("$other", KerasCheck.of(other))
        }
    }
}
