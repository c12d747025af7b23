package org.kdlite.demo.ui

import android.content.Context
import android.util.AttributeSet
import android.view.LayoutInflater
import android.view.View
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TextView
import java.text.NumberFormat
import kotlin.math.roundToInt
import org.kdlite.demo.R
import org.kdlite.demo.core.Score

/** The likeliest classes, each with a bar. */
class ScoresView(context: Context, attributes: AttributeSet?) : LinearLayout(context, attributes) {
    private val percent = NumberFormat.getPercentInstance(resources.configuration.locales[0]).apply {
        maximumFractionDigits = 1
        minimumFractionDigits = 1
    }

    init {
        orientation = VERTICAL
    }

    fun show(scores: List<Score>) {
        while (childCount < scores.size) LayoutInflater.from(context).inflate(R.layout.row_score, this)
        for (i in 0 until childCount) {
            val row = getChildAt(i)
            row.visibility = if (i < scores.size) View.VISIBLE else View.GONE
            if (i >= scores.size) continue
            val score = scores[i]
            val share = percent.format(score.probability)
            row.findViewById<TextView>(R.id.label).text = score.label
            row.findViewById<TextView>(R.id.share).text = share
            row.findViewById<ProgressBar>(R.id.bar).progress = (score.probability * BAR_MAX).roundToInt()
            row.contentDescription = context.getString(R.string.score_spoken, score.label, share)
        }
    }

    companion object {
        private const val BAR_MAX = 1000
        const val CLASSES = 5
    }
}
