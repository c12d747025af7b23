package org.kdlite.demo.ui

import org.kdlite.demo.core.Fit
import org.kdlite.demo.core.LatencyWindow
import org.kdlite.demo.core.Pixels
import org.kdlite.demo.core.topClasses
import org.kdlite.demo.inference.Classifier

/** Classifies images one after another and keeps their latencies. Confined to the inference thread. */
class Classification {
    private var window = LatencyWindow()
    private var model: Classifier? = null

    fun of(classifier: Classifier, image: Pixels, fit: Fit): Outcome {
        if (classifier !== model) {
            model = classifier
            window = LatencyWindow()
        }
        val info = classifier.info
        val values = info.input.values(image, fit)
        val start = System.nanoTime()
        val scores = classifier.run(values)
        val milliseconds = (System.nanoTime() - start) / 1e6
        window.add(milliseconds)
        return Outcome(
            topClasses(scores, info.labels, info.meaning, ScoresView.CLASSES),
            milliseconds,
            window.warmUp ?: milliseconds,
            window.summary(),
        )
    }
}
