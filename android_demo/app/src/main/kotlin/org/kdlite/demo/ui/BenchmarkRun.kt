package org.kdlite.demo.ui

import android.content.Context
import android.os.BatteryManager
import android.os.Handler
import android.os.Looper
import org.kdlite.demo.core.ModelInfo
import org.kdlite.demo.inference.Engine
import org.kdlite.demo.inference.benchmark

/** What many runs took. */
class Measured(val info: ModelInfo, val threads: Int, val times: DoubleArray, val chargeMicroampereHours: Long)

/** Many runs of the current model, which go on while their screen is made anew, as at a rotation. */
class BenchmarkRun(application: Context, threads: Int, val runs: Int) : AutoCloseable {
    private val main = Handler(Looper.getMainLooper())
    private val battery = application.getSystemService(BatteryManager::class.java)
    private val engine = Engine(open = ModelStore(application)::open, post = { main.post(it) })

    /** How many are done. */
    var done = 0
        private set

    /** What came of it; null as long as it goes on. */
    var result: Result<Measured>? = null
        private set

    /** Called on the main thread when one of the two is another. */
    var onChange: () -> Unit = {}

    init {
        // Ten times on the way: the screen takes time of its own.
        val part = maxOf(1, runs / 10)
        engine.load(threads) { loaded -> loaded.onFailure { end(Result.failure(it)) } }
        engine.run({ model ->
            val before = charge()
            val times = model.benchmark(runs, goesOn = { count ->
                if (count % part == 0) main.post { onDone(count) }
                !engine.isClosed
            })
            Measured(model.info, model.threads, times, before - charge())
        }) { end(it) }
    }

    private fun onDone(count: Int) {
        done = count
        if (result == null) onChange()
    }

    private fun end(told: Result<Measured>) {
        engine.close()
        result = told
        onChange()
    }

    /** Ends it; it has no result then. */
    override fun close() = engine.close()

    /** Microampere-hours that are left, or 0 where the battery does not count them. */
    private fun charge(): Long =
        battery.getLongProperty(BatteryManager.BATTERY_PROPERTY_CHARGE_COUNTER).takeIf { it > 0 } ?: 0
}
