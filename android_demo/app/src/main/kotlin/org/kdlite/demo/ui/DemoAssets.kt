package org.kdlite.demo.ui

import android.content.res.AssetManager
import java.io.FileNotFoundException
import org.kdlite.demo.core.Pixels
import org.kdlite.demo.core.parseJson

/** A bundled test image, with the class that people gave it, if they did. */
data class Sample(val file: String, val label: String?)

/** What lies beside the bundled model in the app's assets. Slow, all of it: not for the main thread. */
class DemoAssets(private val assets: AssetManager) {
    /** The test images; none where the app was built without. */
    val samples: List<Sample> by lazy {
        val listed = json("samples.json") as? List<*> ?: emptyList<Any>()
        listed.mapNotNull { item ->
            val fields = item as? Map<*, *> ?: return@mapNotNull null
            val file = fields["file"] as? String ?: return@mapNotNull null
            Sample(file, fields["label"] as? String)
        }
    }

    /** What was measured of the model with this fingerprint. */
    fun measured(fingerprint: String?): Map<String, Double> {
        val card = json("card.json") as? Map<*, *> ?: return emptyMap()
        if (fingerprint == null || card["model_fingerprint"] != fingerprint) return emptyMap()
        val measured = LinkedHashMap<String, Double>()
        for ((key, value) in card) if (key is String && value is Double) measured[key] = value
        return measured
    }

    /** A test image, see [pixelsOf]. */
    fun image(sample: Sample, mostSide: Int = MOST_SIDE): Pixels =
        pixelsOf(assets.open("images/${sample.file}").use { it.readBytes() }, mostSide)

    /** What a file holds; null where there is none, or no JSON in it. */
    private fun json(name: String): Any? {
        checkNotMain()
        return try {
            parseJson(assets.open(name).use { it.readBytes().toString(Charsets.UTF_8) })
        } catch (e: FileNotFoundException) {
            null
        } catch (e: IllegalArgumentException) {
            null
        }
    }
}
