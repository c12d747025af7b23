package org.kdlite.demo.core

import kotlin.math.ln
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test

class ScoresTest {
    private val labels = listOf("a", "b", "c", "d")

    @Test
    fun probabilitiesAreTakenAsTheyAre() {
        val best = topClasses(floatArrayOf(0.1f, 0.6f, 0.1f, 0.2f), labels, ScoreMeaning.PROBABILITIES, 3)
        assertEquals(listOf(Score(1, "b", 0.6f), Score(3, "d", 0.2f), Score(0, "a", 0.1f)), best)
    }

    @Test
    fun logitsBecomeProbabilities() {
        val values = FloatArray(4) { ln(it + 1.0).toFloat() + 80f }
        val best = topClasses(values, labels, ScoreMeaning.LOGITS, 9)
        assertEquals(listOf("d", "c", "b", "a"), best.map { it.label })
        // exp(ln k) over 1 + 2 + 3 + 4; float32 logits near 80 are 4e-6 apart.
        assertArrayEquals(floatArrayOf(0.4f, 0.3f, 0.2f, 0.1f), FloatArray(4) { best[it].probability }, 1e-5f)
    }

    @Test
    fun whatIsNoNumberHasNoScores() {
        val odd = listOf(Float.NaN, Float.POSITIVE_INFINITY)
        for (meaning in ScoreMeaning.entries) {
            for (value in odd) {
                assertEquals(emptyList<Score>(), topClasses(floatArrayOf(1f, 2f, value, 3f), labels, meaning, 3))
                assertEquals(emptyList<Score>(), topClasses(FloatArray(4) { value }, labels, meaning, 3))
            }
        }
        // The logarithm of zero is a logit like others.
        val certain = floatArrayOf(Float.NEGATIVE_INFINITY, 0f, Float.NEGATIVE_INFINITY, Float.NEGATIVE_INFINITY)
        assertEquals(Score(1, "b", 1f), topClasses(certain, labels, ScoreMeaning.LOGITS, 1).single())
    }

    @Test
    fun hugeLogitsDoNotOverflow() {
        assertArrayEquals(floatArrayOf(1f, 0f), softmax(floatArrayOf(3e38f, -3e38f)), 0f)
    }
}
