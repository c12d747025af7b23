package org.kdlite.demo.core

import kotlin.math.exp

/** One class and how likely it is, in 0 to 1. */
data class Score(val index: Int, val label: String, val probability: Float)

/** What a labelled output's values mean. */
enum class ScoreMeaning { PROBABILITIES, LOGITS }

/** The likeliest classes, best first, among equal ones the first; none where a value is not a finite number. */
fun topClasses(values: FloatArray, labels: List<String>, meaning: ScoreMeaning, count: Int): List<Score> {
    val probabilities = if (meaning == ScoreMeaning.LOGITS) softmax(values) else values
    if (!probabilities.all { it.isFinite() }) return emptyList()
    return probabilities.indices
        .sortedByDescending { probabilities[it] }
        .take(count)
        .map { Score(it, labels[it], probabilities[it]) }
}

/** `exp(z_i) / sum exp(z)`, from the largest down, so that nothing overflows. */
fun softmax(logits: FloatArray): FloatArray {
    val most = logits.max()
    val powers = DoubleArray(logits.size) { exp((logits[it] - most).toDouble()) }
    val sum = powers.sum()
    return FloatArray(logits.size) { (powers[it] / sum).toFloat() }
}
