package org.kdlite.demo.ui

import android.app.Activity
import android.text.format.Formatter
import android.view.MenuItem
import android.view.View
import android.widget.Toolbar
import org.kdlite.demo.R
import org.kdlite.demo.core.ModelInfo
import org.kdlite.demo.core.Unusable
import org.kdlite.demo.core.UnusableModel
import org.kdlite.demo.inference.TfliteClassifier

/** A screen with a toolbar, and what more than one says of a model. */
abstract class ScreenActivity : Activity() {
    protected val settings by lazy { Settings(this) }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        if (item.itemId != android.R.id.home) return super.onOptionsItemSelected(item)
        finish()
        return true
    }

    /** Shows a layout that has a toolbar, clear of the system's bars. */
    protected fun show(layout: Int, isHome: Boolean = false) {
        setContentView(layout)
        findViewById<View>(R.id.root).padForSystemBars()
        setActionBar(findViewById<Toolbar>(R.id.toolbar))
        actionBar?.setDisplayHomeAsUpEnabled(!isHome)
    }

    /** What to tell the user of a failure. */
    protected fun sentence(failure: Throwable): String = getString(
        when ((failure as? UnusableModel)?.reason) {
            Unusable.TOO_LARGE -> R.string.unusable_too_large
            Unusable.NOT_A_MODEL -> R.string.unusable_not_a_model
            Unusable.NO_METADATA -> R.string.unusable_no_metadata
            Unusable.NOT_AN_IMAGE_CLASSIFIER -> R.string.unusable_not_an_image_classifier
            Unusable.NO_NORMALISATION -> R.string.unusable_no_normalisation
            Unusable.UNSUPPORTED_TYPE -> R.string.unusable_type
            Unusable.CANNOT_RUN, null -> R.string.unusable_cannot_run
        },
    )

    /** How long a run took, and the last ones. */
    protected fun latency(outcome: Outcome): String {
        val recent = outcome.recent ?: return getString(R.string.latency_first, outcome.warmUp)
        return getString(
            R.string.latency, outcome.milliseconds, recent.runs, recent.p50, recent.p90, outcome.warmUp,
        )
    }

    /** The model in a line: how it computes, its size, its classes, the runtime. */
    protected fun facts(info: ModelInfo): String = listOf(
        info.quantization,
        Formatter.formatShortFileSize(this, info.sizeBytes.toLong()),
        resources.getQuantityString(R.plurals.classes, info.labels.size, info.labels.size),
        getString(R.string.runtime, TfliteClassifier.runtimeVersion),
    ).filter { it.isNotEmpty() }.joinToString(" · ")
}
