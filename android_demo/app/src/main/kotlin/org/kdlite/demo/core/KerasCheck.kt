package org.kdlite.demo.core

/** What the outputs of a file were held to against its Keras model where it was made. */
sealed interface KerasCheck {
    /** On how many samples. */
    val samples: Int

    /** A [share] of the values within one quantization step. */
    data class WithinOneStep(override val samples: Int, val share: Double) : KerasCheck

    /** Likewise, or else an error (root mean square) of so many [steps] of 16 bits. */
    data class WithinOneStepOr(override val samples: Int, val share: Double, val steps: Double) : KerasCheck

    /** An error (root mean square) of so many [steps], or else so many [decibels] below how much the output varies. */
    data class Noise(override val samples: Int, val steps: Double, val decibels: Double) : KerasCheck

    /** No value off by more than this share of the largest. */
    data class Share(override val samples: Int, val ofLargest: Double) : KerasCheck

    companion object {
        /** Reads what Python's `Tolerance.to_dict` wrote; null where nothing is said that is known. */
        fun of(told: Any?): KerasCheck? {
            val numbers = told as? Map<*, *> ?: return null
            val samples = (numbers["samples"] as? Double)?.toInt() ?: return null
            val share = numbers["within_one_step"] as? Double
            val steps = numbers["rms_steps"] as? Double
            val decibels = numbers["snr_db"] as? Double
            val ofLargest = numbers["largest_share"] as? Double
            return when {
                share != null && steps != null -> WithinOneStepOr(samples, share, steps)
                share != null -> WithinOneStep(samples, share)
                steps != null && decibels != null -> Noise(samples, steps, decibels)
                ofLargest != null -> Share(samples, ofLargest)
                else -> null
            }
        }
    }
}
