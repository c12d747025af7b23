package org.kdlite.demo.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test

class GoldenVectorsTest {
    @Test
    fun pixelsAreTheFormula() {
        // As `golden_pixels((2, 2, 1), 1)` in Python.
        assertEquals(listOf(60, 94, 129, 180), GoldenVectors.pixels(0, 2, 2, 1).toList())
        val squares = GoldenVectors.pixels(1, 64, 71, 3)
        val noise = GoldenVectors.pixels(1, 16, 18, 3)
        for (y in 0 until 64) for (x in 0 until 71) for (c in 0..2) {
            assertEquals(noise[(y / 4 * 18 + x / 4) * 3 + c], squares[(y * 71 + x) * 3 + c])
        }
    }

    @Test
    fun differencesAreInSteps() {
        val golden = GoldenVectors(listOf(floatArrayOf(1f, -2f)), 0.5f)
        assertEquals(3.0, golden.difference(0, floatArrayOf(1.5f, -3.5f)), 1e-6)
        assertEquals(Double.POSITIVE_INFINITY, golden.difference(0, floatArrayOf(1f, Float.NaN)), 0.0)
        val float = GoldenVectors(listOf(floatArrayOf(1f, -2f)), null)
        assertEquals(50_000.0, float.difference(0, floatArrayOf(1.1f, -2f)), 1.0)
    }

    @Test
    fun whatIsNoNumberDoesNotAgree() {
        val odd = listOf(Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY)
        for (step in listOf(0.5f, null)) {
            for (expected in odd + 1f) for (told in odd) {
                val golden = GoldenVectors(listOf(floatArrayOf(1f, expected)), step)
                val difference = golden.difference(0, floatArrayOf(1f, told))
                assertEquals("$told for $expected", Double.POSITIVE_INFINITY, difference, 0.0)
                assertFalse(SelfTest(listOf(0.0, difference), inSteps = step != null).passed)
            }
        }
        assertEquals(0.0, GoldenVectors(listOf(floatArrayOf(0f, 0f)), 0f).difference(0, floatArrayOf(0f, 0f)), 0.0)
    }

    @Test
    fun threeStepsAgreeAndFourDoNot() {
        assertTrue(SelfTest(listOf(0.0, 3.0), inSteps = true).passed)
        val failed = SelfTest(listOf(0.0, 4.0), inSteps = true)
        assertFalse(failed.passed)
        assertEquals(1, failed.agreeing)
        assertEquals(4.0, failed.worst, 0.0)
    }
}
