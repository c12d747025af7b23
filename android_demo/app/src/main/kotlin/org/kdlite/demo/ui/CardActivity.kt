package org.kdlite.demo.ui

import android.text.format.Formatter
import java.text.NumberFormat
import org.kdlite.demo.R
import org.kdlite.demo.core.KerasCheck
import org.kdlite.demo.core.ModelInfo
import org.kdlite.demo.inference.Classifier
import org.kdlite.demo.inference.TfliteClassifier

/** What the model is, by its own file, and what was measured where it was made. */
class CardActivity : PageActivity() {
    override fun onModel(classifier: Classifier) {
        val info = classifier.info
        engine.async({ DemoAssets(assets).measured(info.origin["model_fingerprint"] as? String) }) {
            show(info, it.getOrDefault(emptyMap()))
        }
    }

    private fun show(info: ModelInfo, measured: Map<String, Double>) {
        val whole = NumberFormat.getIntegerInstance(locale)
        summary(info.name)
        fact(R.string.card_description, info.description)
        fact(R.string.card_classes, info.labels.joinToString(", "))
        val input = info.input
        fact(
            getString(R.string.card_input),
            getString(
                if (input.isGrey) R.string.card_input_grey else R.string.card_input_colour, input.width, input.height,
            ),
        )
        fact(R.string.card_quantization, info.quantization)
        fact(getString(R.string.card_size), Formatter.formatFileSize(this, info.sizeBytes.toLong()))
        for ((key, title) in MEASURED) measured[key]?.let { fact(getString(title), percent(it, digits = 2)) }
        measured["images"]?.let { fact(getString(R.string.card_images), whole.format(it)) }
        fact(
            getString(R.string.card_checked),
            info.check?.let { listOfNotNull(checked(it), again(info)).joinToString(" ") }
                ?: getString(R.string.card_not_said),
        )
        fact(R.string.card_author, info.author)
        fact(R.string.card_version, info.version)
        fact(R.string.card_licence, info.license)
        val made = listOf("kdlite", "keras", "tensorflow").mapNotNull { name ->
            (info.origin[name] as? String)?.let { "$name $it" }
        }
        fact(R.string.card_made_with, made.joinToString(", "))
        fact(R.string.card_fingerprint, info.origin["model_fingerprint"] as? String ?: "")
        fact(getString(R.string.runtime, ""), TfliteClassifier.runtimeVersion)
    }

    private fun checked(check: KerasCheck): String {
        val numbers = NumberFormat.getInstance(locale).apply { maximumFractionDigits = 1 }
        val percent = NumberFormat.getPercentInstance(locale)
        percent.maximumFractionDigits = 4
        val rule = when (check) {
            is KerasCheck.WithinOneStep -> getString(R.string.card_checked_step, percent.format(check.share))
            is KerasCheck.WithinOneStepOr ->
                getString(
                    R.string.card_checked_step_or,
                    percent.format(check.share), numbers.format(check.steps), numbers.format(LEVELS),
                )
            is KerasCheck.Noise ->
                getString(R.string.card_checked_noise, numbers.format(check.steps), numbers.format(check.decibels))
            is KerasCheck.Share -> getString(R.string.card_checked_share, percent.format(check.ofLargest))
        }
        return getString(R.string.card_checked_samples, numbers.format(check.samples)) + " " + rule
    }

    private fun again(info: ModelInfo): String? = info.golden?.let { getString(R.string.card_checked_again) }

    private fun fact(title: Int, value: String) =
        fact(getString(title), value.ifEmpty { getString(R.string.card_not_said) })

    private companion object {
        /** Of 16 bits. */
        const val LEVELS = 65_536

        val MEASURED = listOf(
            "teacher_top1" to R.string.card_teacher,
            "student_top1" to R.string.card_student,
            "file_top1" to R.string.card_file,
        )
    }
}
