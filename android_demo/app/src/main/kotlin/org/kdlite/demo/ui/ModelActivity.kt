package org.kdlite.demo.ui

import android.os.Bundle
import android.os.Handler
import android.os.Looper
import org.kdlite.demo.inference.Classifier
import org.kdlite.demo.inference.Engine

/** A screen with the current model behind it, open as long as the screen is. */
abstract class ModelActivity : ScreenActivity() {
    protected val store by lazy { ModelStore(applicationContext) }
    private val main = Handler(Looper.getMainLooper())

    protected lateinit var engine: Engine
        private set

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val store = store
        engine = Engine(open = store::open, post = { main.post(it) })
    }

    override fun onDestroy() {
        engine.close()
        super.onDestroy()
    }

    /** Opens the current model; then one of the two is called, on the main thread. */
    protected fun load() {
        engine.load(settings.threads) { result ->
            result.fold(::onModel) { onUnusable(sentence(it)) }
        }
    }

    protected abstract fun onModel(classifier: Classifier)

    protected abstract fun onUnusable(sentence: String)
}
