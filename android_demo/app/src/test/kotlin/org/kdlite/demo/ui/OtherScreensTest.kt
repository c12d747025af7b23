package org.kdlite.demo.ui

import android.Manifest
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Bundle
import android.view.View
import android.widget.RadioGroup
import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertSame
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.kdlite.demo.R
import org.kdlite.demo.core.Pixels
import org.kdlite.demo.core.dataFolder
import org.robolectric.Robolectric
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
        val texts = screen.texts()
        assertTrue("$texts", texts.any { it.startsWith("8 of 8 golden vectors agree within 3 quantization steps") })
    }

    @Test
    fun theCardSaysWhatTheFileSays() = onScreen<CardActivity> { controller ->
        val screen = controller.get()
        waitUntil("the card") { screen.text(R.id.summary) == "fashion_student" }
        val texts = screen.texts()
        assertTrue(texts.any { it.startsWith("T-shirt/top, Trouser") })
        assertTrue("28 × 28 pixels, grey" in texts)
        assertTrue("94.21%" in texts)
        assertTrue("2.16.1" in texts)
    }

    @Test
    fun theCardSaysWhatTheFileWasHeldTo() {
        // Fine rounding of 8 bits, and what training with the very steps gives; and a file without golden vectors.
        val cases = mapOf(
            "int8/model.tflite" to "an error of at most 2 quantization steps, or 10.8 dB below how much the output varies.",
            "int8_trained/model.tflite" to "99% of the values within one quantization step.",
            "float32/model.tflite" to "no value off by more than 0.01% of the largest.",
        )
        for ((file, rule) in cases) {
            checkedOf(file) { assertEquals("Passed when the file was made (samples: 200): $rule $AGAIN", it) }
        }
        checkedOf("no_vectors.tflite") { assertEquals("Not said in the file", it) }
        checkedOf("checked_without_vectors.tflite") {
            assertEquals("Passed when the file was made (samples: 7): 99% of the values within one quantization step.", it)
        }
    }

    private fun checkedOf(file: String, check: (String) -> Unit) {
        val context = RuntimeEnvironment.getApplication()
        val uri = Uri.parse("content://test/$file")
        shadowOf(context.contentResolver).registerInputStream(uri, File(dataFolder, "models/$file").inputStream())
        offMain { ModelStore(context).import(uri) }
        onScreen<CardActivity> { controller ->
            val screen = controller.get()
            waitUntil("the card") { "Check against Keras" in screen.texts() }
            check(screen.texts().let { it[it.indexOf("Check against Keras") + 1] })
        }
    }

    @Test
    fun theBenchmarkRunsAndIsShared() = onScreen<BenchmarkActivity> { controller ->
        val screen = controller.get()
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
    fun aBenchmarkGoesOnThroughARotation() = onScreen<BenchmarkActivity> { controller ->
        controller.get().findViewById<RadioGroup>(R.id.runs).check(2000)
        controller.get().findViewById<View>(R.id.start).performClick()
        assertEquals("Running… 0 of 2000", controller.get().text(R.id.summary))
        val run = controller.get().onRetainNonConfigurationInstance()
        RuntimeEnvironment.setQualifiers("+land")
        controller.recreate()
        val screen = controller.get()
        assertSame(run, screen.onRetainNonConfigurationInstance())
        assertTrue(screen.text(R.id.summary), screen.text(R.id.summary).startsWith("Running… "))
        assertFalse(screen.findViewById<View>(R.id.start).isEnabled)
        waitUntil("some progress") { screen.text(R.id.summary).matches(Regex("Running… [1-9]\\d* of 2000")) || screen.isShown(R.id.share) }
        waitUntil("an end") { screen.isShown(R.id.share) }
        assertTrue(screen.text(R.id.summary).contains("2000 runs, 2 threads"))
        assertTrue(screen.findViewById<View>(R.id.start).isEnabled)
    }

    @Test
    fun aBenchmarkThatDiedWithTheAppIsSaid() {
        val saved = Bundle()
        onScreen<BenchmarkActivity> { controller ->
            controller.get().findViewById<RadioGroup>(R.id.runs).check(2000)
            controller.get().findViewById<View>(R.id.start).performClick()
            controller.saveInstanceState(saved)
        }
        Robolectric.buildActivity(BenchmarkActivity::class.java).use {
            val screen = it.setup(saved).get()
            assertEquals(screen.getString(R.string.bench_interrupted), screen.text(R.id.summary))
            assertTrue(screen.findViewById<View>(R.id.start).isEnabled)
            assertFalse(screen.isShown(R.id.share))
        }
    }

    @Test
    fun whatIsSlowIsNotForTheMainThread() {
        val context = RuntimeEnvironment.getApplication()
        val slow = listOf<() -> Unit>(
            { DemoAssets(context.assets).samples },
            { DemoAssets(context.assets).measured(null) },
            { DemoAssets(context.assets).image(Sample("00.png", null)) },
            { ModelStore(context).open(1) },
            { ModelStore(context).import(Uri.EMPTY) },
            { ModelStore(context).useBundled() },
            { PickedImage(context).load() },
            { PickedImage(context).take(Uri.EMPTY) },
            { Pixels(1, 1, IntArray(1)).toBitmap() },
        )
        for (work in slow) {
            assertEquals("This is not for the main thread.", runCatching(work).exceptionOrNull()?.message)
        }
    }

    @Test
    fun anImageIsReadUprightAndNoLargerThanAsked() {
        val bytes = File(dataFolder, "preprocessing/sideways.jpg").readBytes() // 90 x 60 in the file, red on top
        for ((most, size) in listOf(2048 to (60 to 90), 90 to (60 to 90), 89 to (30 to 45), 23 to (15 to 23))) {
            val image = offMain { pixelsOf(bytes, most) }
            assertEquals("$most", size, image.width to image.height)
            assertTrue(image.argb[image.width / 2] shr 16 and 0xff > 150)
            assertTrue(image.argb[(image.height - 1) * image.width] and 0xff > 150)
        }
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
    fun anUnusableModelStaysSaidWhereTheCameraWouldBe() {
        val context = RuntimeEnvironment.getApplication()
        File(context.filesDir, "opened.tflite").writeText("broken")
        shadowOf(context).grantPermissions(Manifest.permission.CAMERA)
        onScreen<CameraActivity> { controller ->
            val screen = controller.get()
            val sentence = screen.getString(R.string.unusable_not_a_model)
            waitUntil("a sentence") { screen.text(R.id.note) == sentence }
            controller.pause().resume()
            waitUntil("nothing more") { true }
            assertEquals(sentence, screen.text(R.id.note))
            assertFalse(screen.isShown(R.id.view))
        }
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

    private companion object {
        const val AGAIN = "The self-test shows whether this device computes the same."
    }
}
