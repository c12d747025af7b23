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
import org.kdlite.demo.inference.Classifier
import org.kdlite.demo.inference.benchmark

/** Times many runs on this device. */
class BenchmarkActivity : ModelActivity() {
    private class Measured(val times: DoubleArray, val chargeMicroampereHours: Long)

    private val battery by lazy { getSystemService(BatteryManager::class.java) }
    private val result by lazy { findViewById<TextView>(R.id.summary) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        show(R.layout.activity_benchmark)
        val group = findViewById<RadioGroup>(R.id.runs)
        val whole = NumberFormat.getIntegerInstance(resources.configuration.locales[0])
        for (runs in RUNS) {
            group.addView(
                RadioButton(this).apply {
                    id = runs
                    text = whole.format(runs)
                    minHeight = (48 * resources.displayMetrics.density).toInt()
                },
            )
        }
        group.check(RUNS[1])
        findViewById<View>(R.id.start).setOnClickListener { measure(group.checkedRadioButtonId) }
        findViewById<View>(R.id.share).setOnClickListener { share() }
        state?.getString(RESULT)?.let { if (it.isNotEmpty()) show(it) }
        load()
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        val isDone = findViewById<View>(R.id.share).visibility == View.VISIBLE
        out.putString(RESULT, if (isDone) result.text.toString() else "")
    }

    override fun onModel(classifier: Classifier) {
        findViewById<Button>(R.id.start).isEnabled = true
    }

    override fun onUnusable(sentence: String) {
        result.text = sentence
    }

    private fun measure(runs: Int) {
        val start = findViewById<Button>(R.id.start)
        start.isEnabled = false
        findViewById<View>(R.id.share).visibility = View.GONE
        result.text = getString(R.string.bench_running)
        val engine = engine
        engine.run({ model ->
            val before = charge()
            val times = model.benchmark(runs, goesOn = { !engine.isClosed })
            model to Measured(times, before - charge())
        }) { outcome ->
            start.isEnabled = true
            outcome.fold({ (model, measured) -> show(text(model, measured)) }, { onUnusable(sentence(it)) })
        }
    }

    private fun text(model: Classifier, measured: Measured): String {
        val summary: LatencySummary = summaryOf(measured.times)
        val energy = energyPerRunMillijoules(measured.chargeMicroampereHours, volts(), summary.runs)
        return listOf(
            model.info.name,
            facts(model.info),
            "${Build.MANUFACTURER} ${Build.MODEL}, Android ${Build.VERSION.RELEASE}",
            getString(R.string.bench_result, summary.runs, model.threads, summary.p50, summary.p90, summary.min),
            energy?.let { getString(R.string.bench_energy, it) } ?: getString(R.string.bench_no_energy),
        ).joinToString("\n")
    }

    private fun show(text: String) {
        result.text = text
        findViewById<View>(R.id.share).visibility = View.VISIBLE
    }

    private fun share() {
        val intent = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, result.text.toString())
        startActivity(Intent.createChooser(intent, getString(R.string.bench_share)))
    }

    /** Microampere-hours that are left, or 0 where the battery does not count them. */
    private fun charge(): Long =
        battery.getLongProperty(BatteryManager.BATTERY_PROPERTY_CHARGE_COUNTER).takeIf { it > 0 } ?: 0

    private fun volts(): Double {
        val status = registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        return (status?.getIntExtra(BatteryManager.EXTRA_VOLTAGE, 0) ?: 0) / 1000.0
    }

    private companion object {
        const val RESULT = "result"
        val RUNS = listOf(100, 500, 2000)
    }
}
