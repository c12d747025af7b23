package org.kdlite.demo.ui

import android.os.Bundle
import android.view.View
import android.widget.TextView
import org.kdlite.demo.R
import org.kdlite.demo.core.Fit
import org.kdlite.demo.inference.Classifier

/** Classifies what a finger draws, while it does. */
class DrawActivity : ModelActivity() {
    private val classification = Classification()
    private val canvas by lazy { findViewById<DrawView>(R.id.canvas) }
    private var isStale = false

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        show(R.layout.activity_draw)
        findViewById<View>(R.id.clear).setOnClickListener { canvas.clear() }
        load()
    }

    override fun onModel(classifier: Classifier) {
        canvas.onChange = ::classify
        if (!canvas.isBlank) classify()
    }

    override fun onUnusable(sentence: String) {
        findViewById<TextView>(R.id.note).text = sentence
    }

    private fun classify() {
        if (canvas.isBlank) {
            findViewById<ScoresView>(R.id.scores).show(emptyList())
            findViewById<TextView>(R.id.latency).text = ""
            return
        }
        val pixels = canvas.pixels()
        val taken = engine.runIfIdle({ classification.of(it, pixels, Fit.WHOLE) }) { result ->
            result.onSuccess {
                findViewById<ScoresView>(R.id.scores).show(if (canvas.isBlank) emptyList() else it.scores)
                findViewById<TextView>(R.id.latency).text = if (canvas.isBlank) "" else latency(it)
            }
            result.onFailure { onUnusable(sentence(it)) }
            // The last state of the drawing counts, whatever was dropped in between.
            if (isStale) {
                isStale = false
                classify()
            }
        }
        if (!taken) isStale = true
    }
}
