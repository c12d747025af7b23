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
    private val frames by lazy { CameraFrames(this, ::onFrame, ::onCameraProblem) }
    private val note by lazy { findViewById<TextView>(R.id.note) }
    private var wasAsked = false
    private var isLoaded = false

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        wasAsked = state?.getBoolean(WAS_ASKED) ?: false
        show(R.layout.activity_camera)
        findViewById<View>(R.id.ask).setOnClickListener { ask() }
        load()
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        out.putBoolean(WAS_ASKED, wasAsked)
    }

    override fun onModel(classifier: Classifier) {
        isLoaded = true
    }

    override fun onUnusable(sentence: String) {
        note.text = sentence
    }

    override fun onResume() {
        super.onResume()
        when {
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
        if (results.firstOrNull() == PackageManager.PERMISSION_GRANTED) start() else refused()
    }

    private fun ask() {
        wasAsked = true
        requestPermissions(arrayOf(Manifest.permission.CAMERA), 0)
    }

    private fun start() {
        note.text = getString(R.string.camera_why)
        findViewById<View>(R.id.ask).visibility = View.GONE
        findViewById<View>(R.id.view).visibility = View.VISIBLE
        frames.start()
    }

    private fun refused() {
        note.text = getString(R.string.camera_refused)
        findViewById<View>(R.id.ask).visibility = View.VISIBLE
        findViewById<View>(R.id.view).visibility = View.GONE
    }

    private fun onCameraProblem(sentence: Int) {
        note.text = getString(sentence)
        findViewById<View>(R.id.view).visibility = View.GONE
    }

    /** On the camera's thread; false where the frame is not wanted. */
    private fun onFrame(read: () -> Pixels): Boolean {
        if (!isLoaded) return false
        return engine.runIfIdle({
            val pixels = read()
            val side = minOf(pixels.width, pixels.height)
            pixels.centreCrop(side, side) to classification.of(it, pixels, Fit.CENTRE)
        }) { result ->
            result.onSuccess { (pixels, outcome) ->
                findViewById<ImageView>(R.id.view).setImageBitmap(pixels.toBitmap())
                findViewById<ScoresView>(R.id.scores).show(outcome.scores)
                findViewById<TextView>(R.id.latency).text = latency(outcome)
            }
        }
    }

    private companion object {
        const val WAS_ASKED = "was asked"
    }
}
