package org.kdlite.demo.ui

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Intent
import android.graphics.drawable.BitmapDrawable
import android.net.Uri
import android.os.Bundle
import android.util.TypedValue
import android.view.Menu
import android.view.MenuItem
import android.view.View
import android.widget.CheckBox
import android.widget.ImageButton
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.RadioButton
import android.widget.RadioGroup
import android.widget.TextView
import android.widget.Toast
import java.io.IOException
import java.text.NumberFormat
import org.kdlite.demo.R
import org.kdlite.demo.core.Fit
import org.kdlite.demo.inference.Classifier

/** The home screen: choose an image, see what the model takes it for. */
class MainActivity : ModelActivity() {
    private val demo by lazy { DemoAssets(assets) }
    private val photo by lazy { PickedImage(applicationContext) }
    private val classification = Classification()
    private var state: ClassifyState = ClassifyState.Loading
    private var chosen: Chosen = Chosen.Nothing

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        show(R.layout.activity_main, isHome = true)
        findViewById<View>(R.id.result_title).markHeading()
        chosen = Chosen.restored(state?.getString(CHOSEN))
        addSamples()
        addThreads()
        findViewById<View>(R.id.photo).setOnClickListener { pick(pickImageIntent(packageManager), PICK_PHOTO) }
        findViewById<View>(R.id.camera).setOnClickListener { startActivity(Intent(this, CameraActivity::class.java)) }
        findViewById<View>(R.id.draw).setOnClickListener { startActivity(Intent(this, DrawActivity::class.java)) }
        findViewById<CheckBox>(R.id.centre).apply {
            isChecked = settings.fit == Fit.CENTRE
            setOnCheckedChangeListener { _, checked ->
                settings.fit = if (checked) Fit.CENTRE else Fit.WHOLE
                classify()
            }
        }
        load()
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        out.putString(CHOSEN, chosen.saved)
    }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        menuInflater.inflate(R.menu.main, menu)
        return true
    }

    override fun onPrepareOptionsMenu(menu: Menu): Boolean {
        menu.findItem(R.id.bundled_model).isVisible = !store.isBundled
        return super.onPrepareOptionsMenu(menu)
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        when (item.itemId) {
            R.id.card -> startActivity(Intent(this, CardActivity::class.java))
            R.id.self_test -> startActivity(Intent(this, SelfTestActivity::class.java))
            R.id.benchmark -> startActivity(Intent(this, BenchmarkActivity::class.java))
            R.id.open_model -> pick(
                Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*"),
                PICK_MODEL,
            )
            R.id.bundled_model -> {
                store.useBundled()
                load()
            }
            else -> return super.onOptionsItemSelected(item)
        }
        return true
    }

    @Deprecated("The framework has no other way to get a result.")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val uri = data?.data
        if (result != Activity.RESULT_OK || uri == null) return
        when (request) {
            PICK_PHOTO -> {
                chosen = Chosen.Photo
                showImage { ShownImage(photo.take(uri), getString(R.string.picked)) }
            }
            PICK_MODEL -> open(uri)
        }
    }

    override fun onModel(classifier: Classifier) {
        state = ClassifyState.Ready(classifier.info)
        tell(null)
        render()
        restoreImage()
    }

    override fun onUnusable(sentence: String) {
        state = ClassifyState.Unusable(sentence)
        render()
    }

    private fun pick(intent: Intent, request: Int) {
        try {
            @Suppress("DEPRECATION")
            startActivityForResult(intent, request)
        } catch (e: ActivityNotFoundException) {
            tell(getString(R.string.no_picker))
        }
    }

    private fun open(uri: Uri) {
        engine.async({ store.import(uri) }) { result ->
            result.fold(
                { info ->
                    Toast.makeText(this, getString(R.string.opened, info.name), Toast.LENGTH_SHORT).show()
                    load()
                },
                // The model that runs stays.
                { tell(sentence(it)) },
            )
        }
    }

    private fun restoreImage() {
        when (val kept = chosen) {
            is Chosen.Nothing -> Unit
            is Chosen.BundledSample -> choose(kept.index)
            is Chosen.Photo -> showImage {
                ShownImage(photo.load() ?: throw IOException("gone"), getString(R.string.picked))
            }
        }
    }

    private fun choose(index: Int) {
        val sample = demo.samples.getOrNull(index) ?: return
        chosen = Chosen.BundledSample(index)
        showImage { ShownImage(demo.image(sample).toPixels(), name(sample, index)) }
    }

    private fun name(sample: Sample, index: Int) =
        sample.label?.let { getString(R.string.sample_of, it) } ?: getString(R.string.sample, index + 1)

    private var shown: ShownImage? = null

    /** Reads an image off the main thread, shows it and classifies it. */
    private fun showImage(read: () -> ShownImage) {
        engine.async(read) { result ->
            shown = result.getOrNull()
            tell(if (shown == null) getString(R.string.unreadable_image) else null)
            val view = findViewById<ImageView>(R.id.image)
            view.setImageDrawable(shown?.let { sharp(it) })
            view.contentDescription = shown?.name ?: getString(R.string.no_result)
            findViewById<TextView>(R.id.image_name).text = shown?.name ?: getString(R.string.choose)
            classify()
        }
    }

    /** Small images are shown with their pixels, not blurred. */
    private fun sharp(image: ShownImage) = BitmapDrawable(resources, image.pixels.toBitmap()).apply {
        isFilterBitmap = image.pixels.width > 128
    }

    private fun classify() {
        val image = shown ?: return
        if (state !is ClassifyState.Ready) return
        val fit = settings.fit
        engine.run({ it.info to classification.of(it, image.pixels, fit) }) { result ->
            result.onSuccess { (info, outcome) -> state = ClassifyState.Ready(info, outcome) }
            result.onFailure { state = ClassifyState.Unusable(sentence(it)) }
            render()
        }
    }

    private fun render() {
        val current = state
        val ready = current as? ClassifyState.Ready
        findViewById<TextView>(R.id.model_name).text = when (current) {
            is ClassifyState.Loading -> getString(R.string.loading)
            is ClassifyState.Unusable -> ""
            is ClassifyState.Ready -> current.info.name
        }
        findViewById<TextView>(R.id.model_facts).text = ready?.let { facts(it.info) }.orEmpty()
        if (current is ClassifyState.Unusable) tell(current.sentence)
        findViewById<View>(R.id.draw).visibility = if (ready?.info?.isDrawable == true) View.VISIBLE else View.GONE
        findViewById<ScoresView>(R.id.scores).show(ready?.outcome?.scores.orEmpty())
        findViewById<TextView>(R.id.latency).text = ready?.outcome?.let { latency(it) } ?: getString(R.string.no_result)
        invalidateOptionsMenu()
    }

    private fun tell(problem: String?) {
        findViewById<TextView>(R.id.problem).apply {
            text = problem.orEmpty()
            visibility = if (problem == null) View.GONE else View.VISIBLE
        }
    }

    private fun addSamples() {
        val demo = demo
        engine.async({ demo.samples.map { it to demo.image(it).toPixels() } }) { result ->
            result.getOrNull()?.forEachIndexed { index, (sample, pixels) ->
                addSample(index, ShownImage(pixels, name(sample, index)))
            }
        }
    }

    private fun addSample(index: Int, image: ShownImage) {
        val density = resources.displayMetrics.density
        val side = (56 * density).toInt()
        val gap = (6 * density).toInt()
        val touched = TypedValue().also { theme.resolveAttribute(android.R.attr.selectableItemBackground, it, true) }
        val button = ImageButton(this).apply {
            setImageDrawable(sharp(image))
            setBackgroundResource(touched.resourceId)
            contentDescription = image.name
            scaleType = ImageView.ScaleType.FIT_CENTER
            setPadding(gap, gap, gap, gap)
            setOnClickListener { choose(index) }
        }
        findViewById<LinearLayout>(R.id.samples).addView(button, LinearLayout.LayoutParams(side, side))
    }

    private fun addThreads() {
        val group = findViewById<RadioGroup>(R.id.threads)
        for (count in Settings.THREADS) {
            group.addView(
                RadioButton(this).apply {
                    id = count
                    text = NumberFormat.getIntegerInstance(resources.configuration.locales[0]).format(count)
                    minHeight = (48 * resources.displayMetrics.density).toInt()
                    minWidth = minHeight + minHeight / 2
                },
            )
        }
        group.check(settings.threads)
        group.setOnCheckedChangeListener { _, count ->
            settings.threads = count
            load()
        }
    }

    private companion object {
        const val CHOSEN = "chosen"
        const val PICK_PHOTO = 1
        const val PICK_MODEL = 2
    }
}
