package org.kdlite.demo.ui

import android.app.Activity
import android.os.Looper
import android.view.View
import android.view.ViewGroup
import android.widget.RadioGroup
import android.widget.TextView
import java.text.NumberFormat
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.kdlite.demo.R
import org.kdlite.demo.core.Fit
import org.robolectric.ParameterizedRobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** Each screen as people see it, compared with stored pictures; and what people who do not see it need. */
@RunWith(ParameterizedRobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [35], qualifiers = "en-rUS-w360dp-h740dp-hdpi")
class PicturesTest(private val screen: Screen, private val look: Look) {
    enum class Look(val qualifiers: String = "", val fontScale: Float = 1f) {
        LIGHT,
        DARK("+night"),
        LANDSCAPE("+w740dp-h360dp-land"),
        SMALL_FONT(fontScale = 0.85f),
        LARGE_FONT(fontScale = 1.8f),
        RIGHT_TO_LEFT("+ar-ldrtl"),
        GERMAN("+de-rDE"),
    }

    enum class Screen { MAIN, MAIN_FIRST, CARD, SELF_TEST, BENCHMARK, DRAW, CAMERA_REFUSED }

    @Test
    fun looksAsStored() {
        if (look.qualifiers.isNotEmpty()) RuntimeEnvironment.setQualifiers(look.qualifiers)
        RuntimeEnvironment.setFontScale(look.fontScale)
        when (screen) {
            Screen.MAIN -> picture<MainActivity> {
                awaitModel(it)
                it.findViewById<ViewGroup>(R.id.samples).getChildAt(look.ordinal).performClick()
                waitUntil("a result") { it.scores().isNotEmpty() }
            }
            Screen.MAIN_FIRST -> picture<MainActivity> { awaitModel(it) }
            Screen.CARD -> picture<CardActivity> {
                waitUntil("the card") { it.text(R.id.summary) == "fashion_student" }
            }
            Screen.SELF_TEST -> picture<SelfTestActivity> {
                waitUntil("an end") { it.text(R.id.summary) == it.getString(R.string.test_passed) }
            }
            Screen.BENCHMARK -> picture<BenchmarkActivity> {
                it.findViewById<RadioGroup>(R.id.runs).check(100)
                it.findViewById<View>(R.id.start).performClick()
                waitUntil("an end") { it.isShown(R.id.share) }
            }
            Screen.DRAW -> picture<DrawActivity> {
                // Trousers.
                it.findViewById<DrawView>(R.id.canvas).draw(
                    0.4f to 0.08f, 0.6f to 0.08f, 0.62f to 0.92f, 0.57f to 0.92f, 0.52f to 0.25f, 0.48f to 0.25f,
                    0.43f to 0.92f, 0.38f to 0.92f, 0.4f to 0.08f,
                )
                // The last one: an unfinished drawing has one, too.
                val pixels = it.findViewById<DrawView>(R.id.canvas).pixels()
                val last = offMain {
                    ModelStore(it).open(1).use { model -> Classification().of(model, pixels, Fit.WHOLE).scores }
                }
                val percent = NumberFormat.getPercentInstance(it.resources.configuration.locales[0])
                percent.minimumFractionDigits = 1
                val wanted = last.map { score -> score.label to percent.format(score.probability) }
                waitUntil("the last result") { it.scores() == wanted }
            }
            Screen.CAMERA_REFUSED -> picture<CameraActivity> {
                it.onRequestPermissionsResult(0, arrayOf(""), intArrayOf(-1))
            }
        }
    }

    private fun awaitModel(main: MainActivity) {
        waitUntil("samples") { main.findViewById<ViewGroup>(R.id.samples).childCount == 10 }
        waitUntil("a model") { main.text(R.id.model_facts).isNotEmpty() }
    }

    private inline fun <reified T : Activity> picture(crossinline ready: (T) -> Unit) = onScreen<T> {
        val shown = it.get()
        ready(shown)
        shadowOf(Looper.getMainLooper()).idle()
        for (view in shown.window.decorView.all()) {
            checkAccessible(view)
            checkNotCut(view)
        }
        shown.compareWithPicture(listOf(screen.name, look.name).filter { it != "LIGHT" }.joinToString("_").lowercase())
    }

    private fun checkAccessible(view: View) {
        // Text that can be selected is clickable too, and no button.
        if (!view.isClickable || !view.isShown || (view is TextView && view.isTextSelectable)) return
        val said = (view as? TextView)?.text?.takeIf { it.isNotEmpty() } ?: view.contentDescription
        assertTrue("$view is silent", !said.isNullOrEmpty())
        val least = (48 * view.resources.displayMetrics.density).toInt()
        assertTrue("$view is small", view.height >= least * 0.75 && view.width >= least * 0.75)
    }

    private fun checkNotCut(view: View) {
        val lines = (view as? TextView)?.layout ?: return
        if (!view.isShown) return
        val cut = (0 until lines.lineCount).sumOf(lines::getEllipsisCount)
        assertEquals("${view.text} is cut", 0, cut)
        val room = view.height - view.compoundPaddingTop - view.compoundPaddingBottom
        assertTrue("${view.text} is higher than its place", lines.height <= room)
    }

    companion object {
        @JvmStatic
        @ParameterizedRobolectricTestRunner.Parameters(name = "{0}, {1}")
        fun cases(): List<Array<Any>> = Screen.entries.flatMap { screen ->
            val looks = when (screen) {
                Screen.MAIN -> Look.entries
                Screen.MAIN_FIRST -> listOf(Look.LIGHT)
                else -> Look.entries - Look.GERMAN
            }
            looks.map { arrayOf<Any>(screen, it) }
        }
    }
}
