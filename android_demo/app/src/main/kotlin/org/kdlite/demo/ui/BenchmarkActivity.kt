package org.kdlite.demo.ui

import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.RadioButton
import android.widget.RadioGroup
import android.widget.TextView
import java.text.NumberFormat
import org.kdlite.demo.R
import org.kdlite.demo.core.LatencySummary
import org.kdlite.demo.core.energyPerRunMillijoules
import org.kdlite.demo.core.summaryOf

/** Times many runs on this device. */
class BenchmarkActivity : ScreenActivity() {
    private var run: BenchmarkRun? = null
    private val result by lazy { findViewById<TextView>(R.id.summary) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        show(R.layout.activity_benchmark)
        val group = findViewById<RadioGroup>(R.id.runs)
        val whole = NumberFormat.getIntegerInstance(locale)
        val gap = (16 * resources.displayMetrics.density).toInt()
        for (runs in RUNS) {
            group.addView(
                RadioButton(this).apply {
                    id = runs
                    text = whole.format(runs)
                    setPaddingRelative(paddingStart, paddingTop, gap, paddingBottom) // else as near to the next one's circle
                    minHeight = (48 * resources.displayMetrics.density).toInt()
                },
            )
        }
        group.check(RUNS[1])
        findViewById<View>(R.id.start).setOnClickListener {
            follow(BenchmarkRun(applicationContext, settings.threads, group.checkedRadioButtonId))
        }
        findViewById<View>(R.id.share).setOnClickListener { share() }
        val kept = lastNonConfigurationInstance as? BenchmarkRun
        when {
            kept != null -> follow(kept)
            state?.getBoolean(RUNNING) == true -> show(getString(R.string.bench_interrupted), canShare = false)
            else -> state?.getString(RESULT)?.let { show(it, canShare = true) }
        }
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        out.putBoolean(RUNNING, run != null && run?.result == null)
        val isDone = findViewById<View>(R.id.share).visibility == View.VISIBLE
        out.putString(RESULT, if (isDone) result.text.toString() else null)
    }

    override fun onRetainNonConfigurationInstance(): Any? = run

    override fun onDestroy() {
        run?.onChange = {}
        if (!isChangingConfigurations) run?.close()
        super.onDestroy()
    }

    private fun follow(next: BenchmarkRun) {
        run = next
        next.onChange = { render(next) }
        render(next)
    }

    private fun render(run: BenchmarkRun) {
        val ended = run.result
        findViewById<Button>(R.id.start).isEnabled = ended != null
        when {
            ended == null -> show(getString(R.string.bench_running, run.done, run.runs), canShare = false)
            else -> ended.fold({ show(text(it), canShare = true) }, { show(sentence(it), canShare = false) })
        }
    }

    private fun text(measured: Measured): String {
        val summary: LatencySummary = summaryOf(measured.times)
        val energy = energyPerRunMillijoules(measured.chargeMicroampereHours, volts(), summary.runs)
        return listOf(
            measured.info.name,
            facts(measured.info),
            "${Build.MANUFACTURER} ${Build.MODEL}, Android ${Build.VERSION.RELEASE}",
            told(summary, measured.threads),
            energy?.let { getString(R.string.bench_energy, it) } ?: getString(R.string.bench_no_energy),
        ).joinToString("\n")
    }

    /** How long runs took, in a sentence. */
    fun told(summary: LatencySummary, threads: Int): String = getString(
        R.string.bench_result,
        counted(R.plurals.bench_runs, summary.runs), counted(R.plurals.bench_threads, threads),
        summary.p50, percent(NINETY), summary.p90, summary.min,
    )

    private fun show(text: String, canShare: Boolean) {
        result.text = text
        findViewById<View>(R.id.share).visibility = if (canShare) View.VISIBLE else View.GONE
    }

    private fun share() {
        val intent = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, result.text.toString())
        startActivity(Intent.createChooser(intent, getString(R.string.bench_share)))
    }

    private fun volts(): Double {
        val status = registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        return (status?.getIntExtra(BatteryManager.EXTRA_VOLTAGE, 0) ?: 0) / 1000.0
    }

    private companion object {
        const val RUNNING = "running"
        const val RESULT = "result"
        val RUNS = listOf(100, 500, 2000)
    }
}
