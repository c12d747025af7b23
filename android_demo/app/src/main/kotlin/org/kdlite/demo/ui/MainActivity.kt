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

    /** The image on screen, and which one was asked for since and is not read yet. */
    private var chosen: Chosen = Chosen.Nothing
    private var asked: Chosen = Chosen.Nothing
    private var shown: ShownImage? = null

    /** The model file that is being opened, and the last problem that was told. */
    private var opening: Uri? = null
    private var problem: String? = null

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        show(R.layout.activity_main, isHome = true)
        findViewById<View>(R.id.result_title).markHeading()
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
        tell(state?.getString(PROBLEM))
        load()
        state?.getString(OPENING)?.let { open(Uri.parse(it)) }
        choose(Chosen.restored(state?.getString(CHOSEN)), isAgain = true)
        choose(Chosen.restored(state?.getString(ASKED)))
        addSamples()
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        out.putString(CHOSEN, chosen.saved)
        out.putString(ASKED, asked.saved)
        out.putString(OPENING, opening?.toString())
        // Where there is no model to run, opening it again tells why.
        out.putString(PROBLEM, problem.takeIf { state !is ClassifyState.Unusable })
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
            R.id.bundled_model -> engine.async({ store.useBundled() }) {
                tell(null)
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
            PICK_PHOTO -> choose(Chosen.NewPhoto("$uri"))
            PICK_MODEL -> open(uri)
        }
    }

    override fun onModel(classifier: Classifier) {
        if (state is ClassifyState.Unusable) tell(null)
        state = ClassifyState.Ready(classifier.info)
        render()
        classify()
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
        opening = uri
        engine.async({ store.import(uri) }) { result ->
            if (opening == uri) opening = null
            result.fold(
                { info ->
                    tell(null)
                    Toast.makeText(this, getString(R.string.opened, info.name), Toast.LENGTH_SHORT).show()
                    load()
                },
                // The model that runs stays.
                { tell(sentence(it)) },
            )
        }
    }

    /**
     * Reads an image, shows it and classifies it; one that cannot be read leaves everything as it is.
     *
     * @param isAgain whether it was on screen before, beside the problem that is.
     */
    private fun choose(next: Chosen, isAgain: Boolean = false) {
        if (next == Chosen.Nothing) return
        asked = next
        engine.async({ read(next) }) { result ->
            if (asked == next) asked = Chosen.Nothing
            result.fold(
                {
                    chosen = if (next is Chosen.NewPhoto) Chosen.Photo else next
                    shown = it
                    // What the image before was taken for is not said of this one.
                    (state as? ClassifyState.Ready)?.let { ready -> state = ready.copy(outcome = null) }
                    if (!isAgain) tell(null)
                    render()
                    classify()
                },
                { tell(getString(R.string.unreadable_image)) },
            )
        }
    }

    private fun read(next: Chosen): ShownImage = when (next) {
        is Chosen.Nothing -> throw IOException("nothing is chosen")
        is Chosen.BundledSample -> {
            val sample = demo.samples.getOrNull(next.index) ?: throw IOException("no such sample: ${next.index}")
            ShownImage(demo.image(sample), name(sample, next.index))
        }
        is Chosen.Photo -> ShownImage(photo.load(), getString(R.string.picked))
        is Chosen.NewPhoto -> ShownImage(photo.take(Uri.parse(next.uri)), getString(R.string.picked))
    }

    private fun name(sample: Sample, index: Int) =
        sample.label?.let { getString(R.string.sample_of, it) } ?: getString(R.string.sample, index + 1)

    /** Small images are shown with their pixels, not blurred. */
    private fun sharp(image: ShownImage) = BitmapDrawable(resources, image.bitmap).apply {
        isFilterBitmap = image.pixels.width > 128
    }

    private fun classify() {
        val image = shown ?: return
        if (state !is ClassifyState.Ready) return
        val fit = settings.fit
        engine.run({ it.info to classification.of(it, image.pixels, fit) }) { result ->
            // Of another image by now: what that is taken for comes next.
            if (shown !== image) return@run
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
            is ClassifyState.Ready -> current.info.name.ifEmpty { getString(R.string.app_name) }
        }
        findViewById<TextView>(R.id.model_facts).text = ready?.let { facts(it.info) }.orEmpty()
        if (current is ClassifyState.Unusable) tell(current.sentence)
        findViewById<View>(R.id.draw).visibility = if (ready?.info?.isDrawable == true) View.VISIBLE else View.GONE
        findViewById<ScoresView>(R.id.scores).show(ready?.outcome?.scores.orEmpty())
        findViewById<TextView>(R.id.latency).text = when {
            current is ClassifyState.Unusable -> ""
            shown == null -> getString(R.string.no_result)
            else -> ready?.outcome?.let { latency(it) } ?: getString(R.string.running)
        }
        findViewById<ImageView>(R.id.image).apply {
            setImageDrawable(shown?.let { sharp(it) })
            contentDescription = shown?.name ?: getString(R.string.no_result)
        }
        findViewById<TextView>(R.id.image_name).text = shown?.name ?: getString(R.string.choose)
        invalidateOptionsMenu()
    }

    private fun tell(problem: String?) {
        this.problem = problem
        findViewById<TextView>(R.id.problem).apply {
            text = problem.orEmpty()
            visibility = if (problem == null) View.GONE else View.VISIBLE
        }
    }

    /** Reads the test images one by one, no larger than they are shown. */
    private fun addSamples() {
        val side = (56 * resources.displayMetrics.density).toInt()
        engine.async({ demo.samples }) { listed ->
            listed.getOrNull()?.forEachIndexed { index, sample ->
                engine.async({ ShownImage(demo.image(sample, mostSide = 2 * side), name(sample, index)) }) { read ->
                    read.fold({ addSample(index, it, side) }, { tell(getString(R.string.unreadable_image)) })
                }
            }
        }
    }

    private fun addSample(index: Int, image: ShownImage, side: Int) {
        val gap = (6 * resources.displayMetrics.density).toInt()
        val touched = TypedValue().also { theme.resolveAttribute(android.R.attr.selectableItemBackground, it, true) }
        val button = ImageButton(this).apply {
            setImageDrawable(sharp(image))
            setBackgroundResource(touched.resourceId)
            contentDescription = image.name
            scaleType = ImageView.ScaleType.FIT_CENTER
            setPadding(gap, gap, gap, gap)
            setOnClickListener { choose(Chosen.BundledSample(index)) }
        }
        val row = findViewById<LinearLayout>(R.id.samples)
        row.addView(button, LinearLayout.LayoutParams(side, side))
        // The first is at the right there, where a strip that grows after its first layout does not begin.
        if (row.layoutDirection == View.LAYOUT_DIRECTION_RTL) {
            findViewById<View>(R.id.strip).apply { post { scrollTo(row.width, 0) } }
        }
    }

    private fun addThreads() {
        val group = findViewById<RadioGroup>(R.id.threads)
        for (count in Settings.THREADS) {
            group.addView(
                RadioButton(this).apply {
                    id = count
                    text = NumberFormat.getIntegerInstance(locale).format(count)
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
        const val ASKED = "asked"
        const val OPENING = "opening"
        const val PROBLEM = "problem"
        const val PICK_PHOTO = 1
        const val PICK_MODEL = 2
    }
}
