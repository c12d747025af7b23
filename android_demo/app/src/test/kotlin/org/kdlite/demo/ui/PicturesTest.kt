package org.kdlite.demo.ui

import android.app.Activity
import android.os.Looper
import android.view.View
import android.view.ViewGroup
import android.widget.TextView
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.kdlite.demo.R
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** Each screen as people see it, compared with stored pictures; and what people who do not see it need. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [35], qualifiers = "en-rUS-w360dp-h740dp-hdpi")
class PicturesTest {
    private inline fun <reified T : Activity> picture(name: String, crossinline ready: (T) -> Unit) = onScreen<T> {
        val screen = it.get()
        ready(screen)
        shadowOf(Looper.getMainLooper()).idle()
        for (view in screen.window.decorView.all()) checkAccessible(name, view)
        screen.compareWithPicture(name)
    }

    private fun checkAccessible(name: String, view: View) {
        // Text that can be selected is clickable too, and no button.
        if (!view.isClickable || !view.isShown || (view is TextView && view.isTextSelectable)) return
        val said = (view as? TextView)?.text?.takeIf { it.isNotEmpty() } ?: view.contentDescription
        assertTrue("$name: $view is silent", !said.isNullOrEmpty())
        val least = (48 * view.resources.displayMetrics.density).toInt()
        assertTrue("$name: $view is small", view.height >= least * 0.75 && view.width >= least * 0.75)
    }

    private fun classified(index: Int): (MainActivity) -> Unit = { screen ->
        val samples = screen.findViewById<ViewGroup>(R.id.samples)
        waitUntil("samples") { samples.childCount == 10 && screen.text(R.id.model_facts).isNotEmpty() }
        samples.getChildAt(index).performClick()
        waitUntil("a result") { screen.scores().isNotEmpty() }
    }

    @Test
    fun main() = picture("main", classified(9))

    @Test
    fun mainAtFirst() = picture<MainActivity>("main_first") { screen ->
        waitUntil("samples") { screen.findViewById<ViewGroup>(R.id.samples).childCount == 10 }
        waitUntil("a model") { screen.text(R.id.model_facts).isNotEmpty() }
    }

    @Test
    fun mainDark() {
        RuntimeEnvironment.setQualifiers("+night")
        picture("main_dark", classified(9))
    }

    @Test
    fun mainLandscape() {
        RuntimeEnvironment.setQualifiers("+w740dp-h360dp-land")
        picture("main_landscape", classified(8))
    }

    @Test
    fun mainLargeFont() {
        RuntimeEnvironment.setFontScale(1.8f)
        picture("main_large_font", classified(0))
    }

    @Test
    fun mainSmallFont() {
        RuntimeEnvironment.setFontScale(0.85f)
        picture("main_small_font", classified(0))
    }

    @Test
    fun mainRightToLeft() {
        RuntimeEnvironment.setQualifiers("+ar-ldrtl")
        picture("main_right_to_left", classified(5))
    }

    @Test
    fun mainGerman() {
        RuntimeEnvironment.setQualifiers("+de-rDE")
        picture("main_german", classified(5))
    }

    @Test
    fun card() = picture<CardActivity>("card") { screen ->
        waitUntil("the card") { screen.text(R.id.summary) == "fashion_student" }
    }

    @Test
    fun selfTest() = picture<SelfTestActivity>("self_test") { screen ->
        waitUntil("an end") { screen.text(R.id.summary) == screen.getString(R.string.test_passed) }
    }

    @Test
    fun benchmark() = picture<BenchmarkActivity>("benchmark") { screen ->
        waitUntil("the model") { screen.findViewById<View>(R.id.start).isEnabled }
    }

    @Test
    fun drawDark() {
        RuntimeEnvironment.setQualifiers("+night")
        picture<DrawActivity>("draw_dark") { screen ->
            waitUntil("the model") { screen.text(R.id.note).isNotEmpty() }
        }
    }

    @Test
    fun cameraRefused() = picture<CameraActivity>("camera_refused") { screen ->
        screen.onRequestPermissionsResult(0, arrayOf(""), intArrayOf(-1))
    }
}
