package org.kdlite.demo.ui

import android.Manifest
import android.content.Intent
import android.content.pm.PackageManager
import android.view.View
import android.widget.RadioGroup
import android.widget.TextView
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.kdlite.demo.R
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [35], qualifiers = "en-rUS-w360dp-h740dp-mdpi")
class OtherScreensTest {
    @Test
    fun theSelfTestPassesOnThisRuntime() = onScreen<SelfTestActivity> { controller ->
        val screen = controller.get()
        waitUntil("an end") { screen.text(R.id.summary) == screen.getString(R.string.test_passed) }
        val texts = screen.window.decorView.all().filterIsInstance<TextView>().map { it.text.toString() }
        assertTrue("$texts", texts.any { it.startsWith("8 of 8 golden vectors agree within 3 quantization steps") })
    }

    @Test
    fun theCardSaysWhatTheFileSays() = onScreen<CardActivity> { controller ->
        val screen = controller.get()
        waitUntil("the card") { screen.text(R.id.summary) == "fashion_student" }
        val texts = screen.window.decorView.all().filterIsInstance<TextView>().map { it.text.toString() }
        assertTrue(texts.any { it.startsWith("T-shirt/top, Trouser") })
        assertTrue("28 × 28 pixels, grey" in texts)
        assertTrue("94.21%" in texts)
        assertTrue("2.16.1" in texts)
    }

    @Test
    fun theBenchmarkRunsAndIsShared() = onScreen<BenchmarkActivity> { controller ->
        val screen = controller.get()
        waitUntil("the model") { screen.findViewById<View>(R.id.start).isEnabled }
        screen.findViewById<RadioGroup>(R.id.runs).check(100)
        screen.findViewById<View>(R.id.start).performClick()
        waitUntil("an end") { screen.isShown(R.id.share) }
        val text = screen.text(R.id.summary)
        assertTrue(text, Regex("fashion_student\n.*100 runs, 2 threads: half within .*", RegexOption.DOT_MATCHES_ALL).matches(text))
        screen.findViewById<View>(R.id.share).performClick()
        val chooser = shadowOf(screen).nextStartedActivity
        @Suppress("DEPRECATION")
        val shared = chooser.getParcelableExtra<Intent>(Intent.EXTRA_INTENT)!!
        assertEquals(text, shared.getStringExtra(Intent.EXTRA_TEXT))
        assertEquals("text/plain", shared.type)
        controller.recreate()
        assertEquals(text, controller.get().text(R.id.summary))
    }

    @Test
    fun aDrawingIsClassifiedAndKept() = onScreen<DrawActivity> { controller ->
        val screen = controller.get()
        val canvas = screen.findViewById<DrawView>(R.id.canvas)
        // Until the model is there nothing is lost: what is drawn before is classified then.
        canvas.draw(0.3f to 0.2f, 0.7f to 0.2f, 0.7f to 0.8f, 0.3f to 0.8f, 0.3f to 0.2f)
        waitUntil("a result") { screen.scores().size == 5 }
        val before = canvas.pixels().argb
        assertTrue(before.any { it == -1 })
        RuntimeEnvironment.setQualifiers("+land")
        controller.recreate()
        waitUntil("the result again") { controller.get().scores().size == 5 }
        val again = controller.get().findViewById<DrawView>(R.id.canvas)
        assertArrayEquals(before, again.pixels().argb)
        controller.get().findViewById<View>(R.id.clear).performClick()
        waitUntil("nothing") { controller.get().scores().isEmpty() }
        assertTrue(again.pixels().argb.all { it == 0xff000000.toInt() })
    }

    @Test
    fun aRefusedCameraIsASentenceAndCanBeAskedForAgain() = onScreen<CameraActivity> { controller ->
        val screen = controller.get()
        assertArrayEquals(arrayOf(Manifest.permission.CAMERA), shadowOf(screen).lastRequestedPermission.requestedPermissions)
        screen.onRequestPermissionsResult(0, arrayOf(Manifest.permission.CAMERA), intArrayOf(PackageManager.PERMISSION_DENIED))
        assertEquals(screen.getString(R.string.camera_refused), screen.text(R.id.note))
        assertTrue(screen.isShown(R.id.ask))
        assertFalse(screen.isShown(R.id.view))
        // Leaving and coming back does not ask again by itself.
        controller.pause().resume()
        assertTrue(screen.isShown(R.id.ask))
    }

    @Test
    fun aDeviceWithoutCameraIsASentence() {
        shadowOf(RuntimeEnvironment.getApplication()).grantPermissions(Manifest.permission.CAMERA)
        onScreen<CameraActivity> { controller ->
            val screen = controller.get()
            waitUntil("a sentence") { screen.text(R.id.note) == screen.getString(R.string.camera_none) }
            assertFalse(screen.isShown(R.id.view))
        }
    }
}
