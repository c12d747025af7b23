package org.kdlite.demo.ui

import android.app.Activity
import android.content.Intent
import android.graphics.Insets
import android.net.Uri
import android.os.Bundle
import android.view.View
import android.view.ViewGroup
import android.view.WindowInsets
import android.widget.ImageView
import android.widget.RadioGroup
import java.io.ByteArrayInputStream
import java.io.File
import java.io.InputStream
import java.util.concurrent.CountDownLatch
import java.util.concurrent.FutureTask
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.kdlite.demo.R
import org.kdlite.demo.core.Fit
import org.kdlite.demo.core.dataFolder
import org.kdlite.demo.core.topClasses
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [35], qualifiers = "en-rUS-w360dp-h740dp-mdpi")
class MainScreenTest {
    private fun MainActivity.awaitSamples() {
        waitUntil("samples") { findViewById<ViewGroup>(R.id.samples).childCount == 10 }
        waitUntil("a model") { text(R.id.model_facts).isNotEmpty() }
    }

    private fun MainActivity.choose(index: Int) {
        awaitSamples()
        findViewById<ViewGroup>(R.id.samples).getChildAt(index).performClick()
        val label = offMain { DemoAssets(assets).samples[index].label }
        waitUntil("a result") { scores().isNotEmpty() && text(R.id.image_name) == "Test image: $label" }
    }

    private fun MainActivity.receive(button: () -> Unit, bytes: ByteArray) =
        receive(button, "${bytes.contentHashCode()}") { ByteArrayInputStream(bytes) }

    private fun MainActivity.receive(button: () -> Unit, name: String, content: () -> InputStream) {
        val uri = Uri.parse("content://test/$name")
        shadowOf(contentResolver).registerInputStreamSupplier(uri, content)
        button()
        val asked = shadowOf(this).nextStartedActivityForResult.intent
        shadowOf(this).receiveResult(asked, Activity.RESULT_OK, Intent().setData(uri))
    }

    /** What another app may provide: a stream without an end. */
    private fun zeros() = object : InputStream() {
        override fun read() = 0

        override fun read(bytes: ByteArray, offset: Int, length: Int) = length
    }

    /** A stream that waits before its end, as of a slow provider. */
    private fun slow(bytes: ByteArray, goOn: CountDownLatch) = object : ByteArrayInputStream(bytes) {
        override fun read(into: ByteArray, offset: Int, length: Int): Int {
            if (pos > 0) goOn.await()
            return super.read(into, offset, if (pos > 0) length else minOf(length, bytes.size / 2))
        }
    }

    private fun model(name: String) = File(dataFolder, "models/$name").readBytes()

    private fun MainActivity.openSlowly(name: String, goOn: CountDownLatch) =
        receive({ shadowOf(this).clickMenuItem(R.id.open_model) }, "slow") { slow(model(name), goOn) }

    private fun MainActivity.openModel(name: String) =
        receive({ shadowOf(this).clickMenuItem(R.id.open_model) }, model(name))

    @Test
    fun aClickRunsTheModelAndShowsWhatItSays() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.awaitSamples()
        assertEquals("fashion_student", screen.text(R.id.model_name))
        assertEquals("int8 · 72 kB · 10 classes · TensorFlow Lite 2.16.1", screen.text(R.id.model_facts))
        val demo = DemoAssets(screen.assets)
        var right = 0
        offMain { demo.samples }.forEachIndexed { index, sample ->
            screen.choose(index)
            val wanted = offMain {
                ModelStore(screen).open(1).use {
                    val values = it.info.input.values(demo.image(sample), Fit.WHOLE)
                    topClasses(it.run(values), it.info.labels, it.info.meaning, 5)
                }
            }
            waitUntil("the classes of image $index") { screen.scores().map { it.first } == wanted.map { it.label } }
            if (screen.scores()[0].first == sample.label) right++
        }
        assertTrue("$right of 10 are right", right >= 8)
        val times = "This run: [0-9.]+ ms. Last 9 runs: half within [0-9.]+ ms, 90% within [0-9.]+ ms. .*warm-up: [0-9.]+ ms"
        assertTrue(screen.text(R.id.latency), screen.text(R.id.latency).matches(Regex(times)))
    }

    @Test
    fun rotationAndProcessDeathKeepTheImage() {
        val saved = Bundle()
        onScreen<MainActivity> { controller ->
            controller.get().choose(9)
            val before = controller.get().scores()
            RuntimeEnvironment.setQualifiers("+land")
            controller.recreate()
            waitUntil("the same result") { controller.get().scores() == before }
            controller.saveInstanceState(saved)
        }
        Robolectric.buildActivity(MainActivity::class.java).use { controller ->
            val screen = controller.setup(saved).get()
            waitUntil("the result") { screen.scores().isNotEmpty() }
            assertEquals("Test image: Ankle boot", screen.text(R.id.image_name))
        }
    }

    @Test
    fun threadsAreChosenAndKept() = onScreen<MainActivity> { controller ->
        controller.get().choose(1)
        controller.get().findViewById<RadioGroup>(R.id.threads).check(4)
        // One run or two, as the choice of an image and the new model meet.
        waitUntil("a run") { controller.get().scores().isNotEmpty() }
        controller.recreate()
        assertEquals(4, controller.get().findViewById<RadioGroup>(R.id.threads).checkedRadioButtonId)
    }

    @Test
    fun anotherModelIsOpenedAndLeftAgain() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.choose(0)
        screen.openModel("int8_uint8/model.tflite")
        waitUntil("the other model") { screen.text(R.id.model_name) == "tiny" }
        waitUntil("its classes") { screen.scores().map { it.first }.toSet() == setOf("circle", "square", "cross") }
        assertFalse(screen.isShown(R.id.problem))
        shadowOf(screen).clickMenuItem(R.id.bundled_model)
        waitUntil("the bundled model") { screen.text(R.id.model_name) == "fashion_student" }
    }

    @Test
    fun aColourModelHasNoCanvas() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.awaitSamples()
        assertTrue(screen.isShown(R.id.draw))
        screen.openModel("colour_softmax/model.tflite")
        waitUntil("the other model") { screen.text(R.id.model_facts).contains("float32") }
        assertFalse(screen.isShown(R.id.draw))
    }

    @Test
    fun hostileModelsAreASentenceAndTheModelStays() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.choose(2)
        val before = screen.scores()
        val sentences = mapOf(
            "no_metadata.tflite" to R.string.unusable_no_metadata,
            "features.tflite" to R.string.unusable_not_an_image_classifier,
            "no_normalisation.tflite" to R.string.unusable_no_normalisation,
            "custom_op.tflite" to R.string.unusable_cannot_run,
            "cases.json" to R.string.unusable_not_a_model,
        )
        for ((file, sentence) in sentences) {
            screen.openModel(file)
            waitUntil(file) { screen.text(R.id.problem) == screen.getString(sentence) }
            assertTrue(screen.isShown(R.id.problem))
            assertEquals("fashion_student", screen.text(R.id.model_name))
            assertEquals(before, screen.scores())
        }
        screen.choose(3)
        assertFalse(screen.isShown(R.id.problem))
    }

    @Test
    fun aModelThatDoesNotEndIsASentenceAndNotKept() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.awaitSamples()
        val before = screen.filesDir.walk().toSet() + screen.cacheDir.walk()
        screen.receive({ shadowOf(screen).clickMenuItem(R.id.open_model) }, "zeros") { zeros() }
        waitUntil("a sentence") { screen.text(R.id.problem).endsWith(" too large for a model on a phone. The limit is 256 MB.") }
        assertEquals("fashion_student", screen.text(R.id.model_name))
        assertEquals(before, screen.filesDir.walk().toSet() + screen.cacheDir.walk())
    }

    @Test
    fun aModelThatIsBeingOpenedIsNotLostAtARotation() = onScreen<MainActivity> { controller ->
        controller.get().choose(4)
        val goOn = CountDownLatch(1)
        controller.get().openSlowly("int8/model.tflite", goOn)
        controller.recreate()
        goOn.countDown()
        waitUntil("the model") { controller.get().text(R.id.model_name) == "tiny" }
        waitUntil("its result") { controller.get().scores().size == 3 }
        onScreen<CardActivity> { card -> waitUntil("its card") { card.get().text(R.id.summary) == "tiny" } }
    }

    @Test
    fun theModelThatWasChosenLastIsTheOne() = onScreen<MainActivity> { controller ->
        controller.get().awaitSamples()
        val opened = File(controller.get().filesDir, "opened.tflite")
        val store = ModelStore(controller.get())
        val goOn = CountDownLatch(1)
        val uri = Uri.parse("content://test/left behind")
        shadowOf(controller.get().contentResolver).registerInputStreamSupplier(uri) {
            slow(model("colour_softmax/model.tflite"), goOn)
        }
        // As a screen does that is gone by now.
        val before = FutureTask { runCatching { store.import(uri) } }.also { Thread(it).start() }
        waitUntil("a start") { controller.get().cacheDir.list()!!.any { it.startsWith("candidate") } }
        controller.get().openModel("float32/model.tflite")
        waitUntil("the other") { controller.get().text(R.id.model_facts).startsWith("float32") }
        goOn.countDown()
        before.get()
        assertArrayEquals(model("float32/model.tflite"), opened.readBytes())
        assertTrue(controller.get().cacheDir.list()!!.none { it.startsWith("candidate") })
        controller.recreate()
        waitUntil("the same") { controller.get().text(R.id.model_facts).startsWith("float32") }
    }

    @Test
    fun whyAFileWasRefusedIsStillSaidAfterARotation() = onScreen<MainActivity> { controller ->
        controller.get().choose(4)
        val before = controller.get().scores()
        controller.get().openModel("features.tflite")
        val sentence = controller.get().getString(R.string.unusable_not_an_image_classifier)
        waitUntil("a sentence") { controller.get().text(R.id.problem) == sentence }
        repeat(2) {
            controller.recreate()
            waitUntil("the same result") { controller.get().scores() == before }
            assertEquals(sentence, controller.get().text(R.id.problem))
            assertTrue(controller.get().isShown(R.id.problem))
        }
        controller.get().choose(5)
        assertFalse(controller.get().isShown(R.id.problem))
        controller.recreate()
        waitUntil("the image again") { controller.get().scores().isNotEmpty() }
        assertFalse(controller.get().isShown(R.id.problem))
    }

    @Test
    fun scoresThatAreNoNumbersAreASentence() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.choose(0)
        val sentence = screen.getString(R.string.no_numbers)
        // On dark images, and where pixels overflow.
        for ((file, name) in listOf("bright" to "bright", "std_tiny" to "odd")) {
            screen.openModel("$file.tflite")
            waitUntil("the model") { screen.text(R.id.model_name) == name }
            val image = if (file == "bright") "preprocessing/black.png" else "preprocessing/sideways.jpg"
            screen.receive({ screen.findViewById<View>(R.id.photo).performClick() }, File(dataFolder, image).readBytes())
            waitUntil("the sentence") { screen.text(R.id.latency).startsWith("$sentence\n") }
            assertTrue(screen.scores().isEmpty())
        }
        // The app goes on.
        shadowOf(screen).clickMenuItem(R.id.bundled_model)
        waitUntil("a result") { screen.scores().size == 5 }
        assertFalse(screen.text(R.id.latency).contains(sentence))
    }

    @Test
    fun aPhotoIsShownUpright() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.awaitSamples()
        screen.receive(
            { screen.findViewById<View>(R.id.photo).performClick() },
            File(dataFolder, "preprocessing/sideways.jpg").readBytes(),
        )
        waitUntil("a result") { screen.scores().isNotEmpty() }
        assertEquals("Your photo", screen.text(R.id.image_name))
        val kept = offMain { PickedImage(screen).load() }
        assertEquals(60 to 90, kept.width to kept.height)
        assertTrue(kept.argb[30] shr 16 and 0xff > 150) // red at the top
        assertTrue(kept.argb[89 * 60 + 30] and 0xff > 150) // blue at the bottom
        controller.recreate()
        waitUntil("the photo again") { controller.get().text(R.id.image_name) == "Your photo" }
    }

    @Test
    fun whatIsNoPhotoIsASentence() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.awaitSamples()
        screen.receive({ screen.findViewById<View>(R.id.photo).performClick() }, "no image".toByteArray())
        waitUntil("a sentence") { screen.text(R.id.problem) == screen.getString(R.string.unreadable_image) }
        assertEquals(null, screen.findViewById<ImageView>(R.id.image).drawable)
        assertTrue(screen.scores().isEmpty())
    }

    @Test
    fun aPhotoThatDoesNotEndIsASentence() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.choose(4)
        val before = screen.scores()
        screen.receive({ screen.findViewById<View>(R.id.photo).performClick() }, "endless") { zeros() }
        waitUntil("a sentence") { screen.text(R.id.problem) == screen.getString(R.string.unreadable_image) }
        assertEquals(before, screen.scores())
    }

    @Test
    fun whatIsNoPhotoLeavesTheImageAndItsResult() = onScreen<MainActivity> { controller ->
        val photo = File(dataFolder, "preprocessing/sideways.jpg").readBytes()
        controller.get().awaitSamples()
        controller.get().receive({ controller.get().findViewById<View>(R.id.photo).performClick() }, photo)
        waitUntil("a result") { controller.get().scores().isNotEmpty() }
        controller.get().choose(4)
        val before = controller.get().scores()
        for (bytes in listOf("no image".toByteArray(), photo.copyOf(200), ByteArray(0))) {
            val screen = controller.get()
            screen.receive({ screen.findViewById<View>(R.id.photo).performClick() }, bytes)
            waitUntil("a sentence") { screen.text(R.id.problem) == screen.getString(R.string.unreadable_image) }
            assertEquals("Test image: Coat", screen.text(R.id.image_name))
            assertEquals(before, screen.scores())
            // Nor does the photo before come back.
            controller.recreate()
            waitUntil("the same result") { controller.get().scores() == before }
            assertEquals("Test image: Coat", controller.get().text(R.id.image_name))
        }
    }

    @Test
    fun aPhotoThatIsBeingReadIsNotLostAtARotation() = onScreen<MainActivity> { controller ->
        controller.get().choose(4)
        val goOn = CountDownLatch(1)
        val photo = File(dataFolder, "preprocessing/sideways.jpg").readBytes()
        controller.get().receive({ controller.get().findViewById<View>(R.id.photo).performClick() }, "slow") {
            slow(photo, goOn)
        }
        controller.recreate()
        goOn.countDown()
        waitUntil("the photo") { controller.get().text(R.id.image_name) == "Your photo" }
        waitUntil("its result") { controller.get().scores().isNotEmpty() }
    }

    @Test
    fun aResultIsOfTheImageOnScreen() = onScreen<MainActivity> { controller ->
        val screen = controller.get()
        screen.awaitSamples()
        val results = (0 until 10).associate { index ->
            screen.choose(index)
            screen.text(R.id.image_name) to screen.scores()
        }
        // As quickly as nobody can: whatever is shown, belongs together.
        val samples = screen.findViewById<ViewGroup>(R.id.samples)
        repeat(5) { round ->
            for (index in 0 until 10) samples.getChildAt((index * 3 + round) % 10).performClick()
            var seen = 0
            waitUntil("the last one") {
                val shown = screen.scores()
                if (shown.isNotEmpty()) assertEquals(results[screen.text(R.id.image_name)], shown)
                seen++ > 20
            }
        }
    }

    @Test
    fun contentIsClearOfTheSystemsBars() = onScreen<MainActivity> { controller ->
        val root = controller.get().findViewById<View>(R.id.root)
        val bars = WindowInsets.Builder().setInsets(WindowInsets.Type.systemBars(), Insets.of(3, 24, 5, 48)).build()
        root.dispatchApplyWindowInsets(bars)
        assertEquals(listOf(3, 24, 5, 48), listOf(root.paddingLeft, root.paddingTop, root.paddingRight, root.paddingBottom))
    }
}
