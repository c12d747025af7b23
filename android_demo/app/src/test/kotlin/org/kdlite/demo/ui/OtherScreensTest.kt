package org.kdlite.demo.ui

import android.Manifest
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Bundle
import android.os.Parcel
import android.view.View
import android.widget.RadioGroup
import java.io.File
import java.text.Bidi
import java.util.Random
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertSame
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.kdlite.demo.R
import org.kdlite.demo.core.Fit
import org.kdlite.demo.core.ImageInput
import org.kdlite.demo.core.LatencySummary
import org.kdlite.demo.core.Pixels
import org.kdlite.demo.core.Score
import org.kdlite.demo.core.TensorSpec
import org.kdlite.demo.core.TensorType
import org.kdlite.demo.core.dataFolder
import org.kdlite.demo.core.floats
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
    fun aTransparentImageIsWhatPythonReads() {
        val folder = File(dataFolder, "preprocessing/transparent")
        val images = folder.listFiles()!!.filter { it.extension == "png" }
        assertEquals(4, images.size)
        for (image in images) {
            val pixels = offMain { pixelsOf(image.readBytes()) }
            for (channels in listOf(1, 3)) {
                val spec = TensorSpec("x", 9 * 7 * channels, TensorType.FLOAT32, scale = 1f, zeroPoint = 0)
                val input = ImageInput(9, 7, channels, floatArrayOf(0f), floatArrayOf(1f), spec)
                val name = "${image.nameWithoutExtension}_$channels"
                assertArrayEquals(name, floats(File(folder, "$name.f32")), input.values(pixels, Fit.WHOLE), 0f)
            }
            // As it is kept, too, where it is a photo that was picked.
            val context = RuntimeEnvironment.getApplication()
            val uri = Uri.parse("content://test/${image.name}")
            shadowOf(context.contentResolver).registerInputStream(uri, image.inputStream())
            offMain { PickedImage(context).take(uri) }
            assertArrayEquals(image.name, pixels.argb, offMain { PickedImage(context).load() }.argb)
        }
    }

    @Test
    fun aDrawingTakesNoMoreRoomTheLongerItIs() = onScreen<DrawActivity> { controller ->
        val canvas = controller.get().findViewById<DrawView>(R.id.canvas)
        canvas.onChange = {} // what it is taken for is of no matter here
        val random = Random(5)
        val points = Array(50_000) { random.nextFloat() to random.nextFloat() }
        canvas.draw(*points)
        val saved = Bundle()
        controller.saveInstanceState(saved)
        val parcel = Parcel.obtain()
        saved.writeToParcel(parcel, 0)
        // Android ends an app whose screens keep much more than that.
        assertTrue("${parcel.dataSize()} bytes", parcel.dataSize() < 50_000)
        parcel.recycle()
    }

    @Test
    fun scoresOfADrawingThatAreNoNumbersAreASentence() {
        val context = RuntimeEnvironment.getApplication()
        File(dataFolder, "models/bright.tflite").copyTo(File(context.filesDir, "opened.tflite"))
        onScreen<DrawActivity> { controller ->
            val screen = controller.get()
            screen.findViewById<DrawView>(R.id.canvas).draw(0.5f to 0.5f, 0.5f to 0.5f)
            waitUntil("a sentence") { screen.text(R.id.latency).startsWith(screen.getString(R.string.no_numbers)) }
            assertTrue(screen.scores().isEmpty())
        }
    }

    @Test
    fun aSelfTestThatGivesNoNumbersHasFailed() {
        val context = RuntimeEnvironment.getApplication()
        File(dataFolder, "models/std_tiny.tflite").copyTo(File(context.filesDir, "opened.tflite"))
        onScreen<SelfTestActivity> { controller ->
            val screen = controller.get()
            waitUntil("an end") { screen.text(R.id.summary) == screen.getString(R.string.test_failed) }
            val texts = screen.texts()
            val told = "0 of 1 golden vector agrees within 0.20% of the largest value. Largest difference: not a number."
            assertTrue("$texts", told in texts)
            assertEquals("not a number", texts[texts.indexOf("Vector 1") + 1])
        }
    }

    @Test
    fun countsAgreeWithTheirNouns() {
        fun texts(language: String, runs: Int, threads: Int): Pair<String, String> {
            RuntimeEnvironment.setQualifiers(language)
            var told = "" to ""
            onScreen<BenchmarkActivity> {
                val summary = LatencySummary(0.25, 0.5, 0.2, runs)
                told = it.get().told(summary, threads) to
                    it.get().latency(Outcome(listOf(Score(0, "", 1f)), 0.25, 1.0, summary))
            }
            return told
        }
        for ((language, starts) in mapOf(
            "en-rUS" to listOf("1 run, 1 thread: ", "2 runs, 2 threads: ", "Last run: ", "Last 2 runs: "),
            "de-rDE" to listOf("1 Lauf, 1 Thread: ", "2 Läufe, 2 Threads: ", "Letzter Lauf: ", "Letzte 2 Läufe: "),
            "ar" to listOf("تشغيل واحد، خيط واحد: ", "تشغيلان، خيطان: ", "آخر تشغيل: ", "آخر تشغيلين: "),
        )) {
            for (count in 1..2) {
                val (benchmark, latency) = texts(language, count, count)
                assertTrue(benchmark, benchmark.startsWith(starts[count - 1]))
                assertTrue(latency, starts[count + 1] in latency)
            }
        }
        // Arabic has a form for three to ten, and one from eleven.
        for ((count, noun) in mapOf(4 to "خيوط", 11 to "خيطًا", 100 to "خيط")) {
            assertTrue(texts("ar", 100, count).first, " $noun: " in texts("ar", 100, count).first)
        }
    }

    @Test
    fun theFactsOfAModelGoFromRightToLeftWhereTheLanguageDoes() {
        RuntimeEnvironment.setQualifiers("ar-ldrtl")
        onScreen<BenchmarkActivity> { controller ->
            val screen = controller.get()
            screen.findViewById<View>(R.id.start).performClick()
            waitUntil("an end") { screen.isShown(R.id.share) }
            val facts = screen.text(R.id.summary).lines()[1]
            // As the shared text is read elsewhere: by the rules of Unicode alone.
            val bidi = Bidi(facts, Bidi.DIRECTION_DEFAULT_LEFT_TO_RIGHT)
            assertFalse(bidi.baseIsLeftToRight())
            val order = (0 until bidi.runCount).toList().toTypedArray()
            val levels = ByteArray(bidi.runCount) { bidi.getRunLevel(it).toByte() }
            Bidi.reorderVisually(levels, 0, order, 0, order.size)
            val seen = order.joinToString("") { facts.substring(bidi.getRunStart(it), bidi.getRunLimit(it)) }
            assertTrue(seen, seen.indexOf("TensorFlow Lite 2.16.1") < seen.indexOf("int8"))
            assertTrue(seen, seen.indexOf("int8") > seen.indexOf(screen.resources.getQuantityString(R.plurals.classes, 10, 10)))
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
