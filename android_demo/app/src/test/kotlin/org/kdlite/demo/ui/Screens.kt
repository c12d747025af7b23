package org.kdlite.demo.ui

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Canvas
import android.os.Looper
import android.view.MotionEvent
import android.view.View
import android.view.ViewGroup
import android.widget.TextView
import java.io.File
import java.util.concurrent.FutureTask
import kotlin.math.abs
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertTrue
import org.kdlite.demo.R
import org.kdlite.demo.core.LatencySummary
import org.kdlite.demo.core.Score
import org.robolectric.Robolectric
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController

/** A screen that is open for a test. */
inline fun <reified T : Activity> onScreen(test: (ActivityController<T>) -> Unit) {
    Robolectric.buildActivity(T::class.java).use {
        it.setup()
        test(it)
    }
}

/** Lets the main thread do what comes, until something is so. */
fun waitUntil(what: String, isSo: () -> Boolean) {
    // Long enough for a computer that has much else to do.
    val end = System.nanoTime() + 300_000_000_000
    while (true) {
        shadowOf(Looper.getMainLooper()).idle()
        if (isSo()) return
        assertTrue("$what: not within 300 s", System.nanoTime() < end)
        Thread.sleep(5)
    }
}

fun Activity.text(id: Int): String = findViewById<TextView>(id).text.toString()

fun Activity.isShown(id: Int): Boolean = findViewById<View>(id).visibility == View.VISIBLE

/** The classes on screen, best first, with their shares. */
fun Activity.scores(): List<Pair<String, String>> {
    val rows = findViewById<ViewGroup>(R.id.scores)
    return (0 until rows.childCount).map(rows::getChildAt).filter { it.visibility == View.VISIBLE }.map {
        it.findViewById<TextView>(R.id.label).text.toString() to it.findViewById<TextView>(R.id.share).text.toString()
    }
}

/** A finger goes from point to point, each a share of the width and of the height. */
fun DrawView.draw(vararg points: Pair<Float, Float>) {
    points.forEachIndexed { index, (x, y) ->
        val action = when (index) {
            0 -> MotionEvent.ACTION_DOWN
            points.size - 1 -> MotionEvent.ACTION_UP
            else -> MotionEvent.ACTION_MOVE
        }
        dispatchTouchEvent(MotionEvent.obtain(0, index * 16L, action, x * width, y * height, 0))
    }
}

/** Does what the main thread, that of the tests, must not. */
fun <T> offMain(work: () -> T): T = FutureTask(work).also { Thread(it).start() }.get()

/** All texts on screen, from top to bottom. */
fun Activity.texts(): List<String> = window.decorView.all().filterIsInstance<TextView>().map { it.text.toString() }

/** All views below and including this one. */
fun View.all(): List<View> =
    listOf(this) + if (this is ViewGroup) (0 until childCount).flatMap { getChildAt(it).all() } else emptyList()

/** Compares what is on screen with the picture of that name, and keeps it; times are made the same first. */
fun Activity.compareWithPicture(name: String) {
    findViewById<TextView?>(R.id.latency)?.let {
        val times = Outcome(listOf(Score(0, "", 1f)), 0.25, 1.0, LatencySummary(0.25, 0.5, 0.2, 50))
        if (it.text.any(Char::isDigit)) it.text = (this as ScreenActivity).latency(times)
    }
    if (this is BenchmarkActivity) {
        // The times are the last line but one.
        val lines = text(R.id.summary).lines().toMutableList()
        lines[lines.size - 2] = told(LatencySummary(0.25, 0.5, 0.2, 100), threads = 2)
        findViewById<TextView>(R.id.summary).text = lines.joinToString("\n")
    }
    shadowOf(Looper.getMainLooper()).idle()
    val view = window.decorView
    view.jumpDrawablesToCurrentState() // not on the way from one choice to another
    val told = Bitmap.createBitmap(view.width, view.height, Bitmap.Config.ARGB_8888)
    view.draw(Canvas(told))
    File(System.getProperty("kdlite.shots"), "$name.png").outputStream().use {
        assertTrue(told.compress(Bitmap.CompressFormat.PNG, 100, it))
    }
    val stored = File(System.getProperty("kdlite.pictures"), "$name.png")
    if (System.getProperty("kdlite.record") != null) return
    val wanted = BitmapFactory.decodeFile(stored.path)
    assertNotNull("there is no picture $name to compare with", wanted)
    assertTrue("$name has another size", wanted.width == told.width && wanted.height == told.height)
    val differing = pixels(wanted).zip(pixels(told)).count { (a, b) ->
        listOf(16, 8, 0).any { abs((a shr it and 0xff) - (b shr it and 0xff)) > 32 }
    }
    // The edges of letters may move by a little with another release of the fonts; a button or a line of text is more.
    assertTrue("$name: $differing pixels are others than stored", differing < told.width * told.height * 0.002)
}

private fun pixels(bitmap: Bitmap) =
    IntArray(bitmap.width * bitmap.height).also { bitmap.getPixels(it, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height) }
