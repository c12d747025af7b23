package org.kdlite.demo.ui

import android.app.Activity
import android.text.BidiFormatter
import android.text.format.Formatter
import android.view.MenuItem
import android.view.View
import android.widget.Toolbar
import java.text.NumberFormat
import java.util.Locale
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
        ModelInfo.MOST_BYTES shr 20,
    )

    /** Why there are no scores, where that is so; how long the run took, and the last ones. */
    fun latency(outcome: Outcome): String {
        val times = outcome.recent?.let {
            getString(
                R.string.latency,
                outcome.milliseconds, counted(R.plurals.latest_runs, it.runs), it.p50, percent(NINETY), it.p90,
                outcome.warmUp,
            )
        } ?: getString(R.string.latency_first, outcome.warmUp)
        return if (outcome.scores.isEmpty()) "${getString(R.string.no_numbers)}\n$times" else times
    }

    /** The model in a line: how it computes, its size, its classes, the runtime. */
    protected fun facts(info: ModelInfo): String {
        val facts = listOf(
            info.quantization,
            Formatter.formatShortFileSize(this, info.sizeBytes.toLong()),
            counted(R.plurals.classes, info.labels.size),
            getString(R.string.runtime, TfliteClassifier.runtimeVersion),
        ).filter { it.isNotEmpty() }
        // From right to left one after the other, too, where most of them are from left to right.
        val bidi = BidiFormatter.getInstance(locale)
        return (if (bidi.isRtlContext) RIGHT_TO_LEFT else "") + facts.joinToString(" · ") { bidi.unicodeWrap(it) }
    }

    /** How many, with its noun. */
    protected fun counted(plurals: Int, count: Int): String = resources.getQuantityString(plurals, count, count)

    /** A share as the language writes it. */
    protected fun percent(share: Double, digits: Int = 0): String = NumberFormat.getPercentInstance(locale).apply {
        minimumFractionDigits = digits
        maximumFractionDigits = digits
    }.format(share)

    protected val locale: Locale get() = resources.configuration.locales[0]

    protected companion object {
        /** Of which percentile times are told, beside the half: see `LatencySummary`. */
        const val NINETY = 0.9

        /** A mark, by which a line goes from right to left. */
        private const val RIGHT_TO_LEFT = "\u200f"
    }
}
