package org.kdlite.demo.ui

import android.Manifest
import android.content.pm.PackageManager
import android.os.Bundle
import android.view.View
import android.widget.ImageView
import android.widget.TextView
import org.kdlite.demo.R
import org.kdlite.demo.core.Fit
import org.kdlite.demo.core.Pixels
import org.kdlite.demo.inference.Classifier

/** Classifies the middle of the camera's picture, frame by frame; frames are dropped while one is looked at. */
class CameraActivity : ModelActivity() {
    private val classification = Classification()
    private lateinit var frames: CameraFrames
    private var wasAsked = false

    /** Why there is nothing to classify with; then the camera is not needed. */
    private var unusable: String? = null

    @Volatile private var isLoaded = false

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        frames = CameraFrames(this, ::onFrame, ::onCameraProblem)
        wasAsked = state?.getBoolean(WAS_ASKED) ?: false
        show(R.layout.activity_camera)
        findViewById<View>(R.id.ask).setOnClickListener { ask() }
        load()
    }

    override fun onDestroy() {
        frames.close()
        super.onDestroy()
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        out.putBoolean(WAS_ASKED, wasAsked)
    }

    override fun onModel(classifier: Classifier) {
        isLoaded = true
    }

    override fun onUnusable(sentence: String) {
        isLoaded = false
        unusable = sentence
        frames.stop()
        tell(sentence)
    }

    override fun onResume() {
        super.onResume()
        when {
            unusable != null -> Unit
            checkSelfPermission(Manifest.permission.CAMERA) == PackageManager.PERMISSION_GRANTED -> start()
            wasAsked -> refused()
            else -> ask()
        }
    }

    override fun onPause() {
        frames.stop()
        super.onPause()
    }

    override fun onRequestPermissionsResult(request: Int, permissions: Array<out String>, results: IntArray) {
        super.onRequestPermissionsResult(request, permissions, results)
        if (unusable != null) return
        if (results.firstOrNull() == PackageManager.PERMISSION_GRANTED) start() else refused()
    }

    private fun ask() {
        wasAsked = true
        tell(getString(R.string.camera_why))
        requestPermissions(arrayOf(Manifest.permission.CAMERA), 0)
    }

    private fun start() {
        tell(getString(R.string.camera_on), isOn = true)
        frames.start()
    }

    private fun refused() = tell(getString(R.string.camera_refused), canAsk = true)

    private fun onCameraProblem(sentence: Int) = tell(getString(sentence))

    private fun tell(sentence: String, isOn: Boolean = false, canAsk: Boolean = false) {
        findViewById<TextView>(R.id.note).text = sentence
        findViewById<View>(R.id.view).visibility = if (isOn) View.VISIBLE else View.GONE
        findViewById<View>(R.id.ask).visibility = if (canAsk) View.VISIBLE else View.GONE
        if (isOn) return
        findViewById<ScoresView>(R.id.scores).show(emptyList())
        findViewById<TextView>(R.id.latency).text = ""
    }

    /** On the camera's thread; false where the frame is not wanted. */
    private fun onFrame(read: () -> Pixels): Boolean {
        if (!isLoaded) return false
        return engine.runIfIdle({
            val pixels = read()
            val side = minOf(pixels.width, pixels.height)
            pixels.centreCrop(side, side).toBitmap() to classification.of(it, pixels, Fit.CENTRE)
        }) { result ->
            result.fold(
                { (bitmap, outcome) ->
                    findViewById<ImageView>(R.id.view).setImageBitmap(bitmap)
                    findViewById<ScoresView>(R.id.scores).show(outcome.scores)
                    findViewById<TextView>(R.id.latency).text = latency(outcome)
                },
                { onUnusable(sentence(it)) },
            )
        }
    }

    private companion object {
        const val WAS_ASKED = "was asked"
    }
}
