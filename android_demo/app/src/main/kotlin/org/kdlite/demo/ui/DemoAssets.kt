package org.kdlite.demo.ui

import android.content.res.AssetManager
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import java.io.FileNotFoundException
import java.io.IOException
import org.kdlite.demo.core.Pixels
import org.kdlite.demo.core.parseJson

/** A bundled test image, with the class that people gave it, if they did. */
data class Sample(val file: String, val label: String?)

/** What lies beside the bundled model in the app's assets. */
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

    fun image(sample: Sample): Bitmap = assets.open("images/${sample.file}").use {
        BitmapFactory.decodeStream(it) ?: throw IOException("no image: ${sample.file}")
    }

    private fun json(name: String): Any? = try {
        parseJson(assets.open(name).use { it.readBytes().toString(Charsets.UTF_8) })
    } catch (e: FileNotFoundException) {
        null
    }
}

fun Bitmap.toPixels(): Pixels {
    val argb = IntArray(width * height)
    getPixels(argb, 0, width, 0, 0, width, height)
    return Pixels(width, height, argb)
}

fun Pixels.toBitmap(): Bitmap = Bitmap.createBitmap(argb, width, height, Bitmap.Config.ARGB_8888)
