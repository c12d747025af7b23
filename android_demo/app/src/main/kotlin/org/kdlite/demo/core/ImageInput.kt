package org.kdlite.demo.core

/** How an image that is not of the model's aspect is made so. */
enum class Fit { WHOLE, CENTRE }

/**
 * What a model's image input takes; all of it from the file's metadata.
 *
 * @property mean subtracted from 8-bit values, one or one a channel.
 * @property std divided by afterwards: `(pixel - mean) / std`.
 */
class ImageInput(
    val height: Int,
    val width: Int,
    val channels: Int,
    val mean: FloatArray,
    val std: FloatArray,
    val tensor: TensorSpec,
) {
    val isGrey: Boolean get() = channels == 1

    /** Real values `(height, width, channels)` of an image of any size: bilinear, as TensorFlow resizes. */
    fun values(image: Pixels, fit: Fit): FloatArray {
        val source = if (fit == Fit.CENTRE) image.centreCrop(width, height) else image
        val planes = channelsOf(source)
        val rows = Taps(source.height, height)
        val columns = Taps(source.width, width)
        val out = FloatArray(height * width * channels)
        var at = 0
        for (y in 0 until height) {
            for (x in 0 until width) {
                for (plane in planes) {
                    fun row(index: Int): Float {
                        val start = index * source.width
                        val left = plane[start + columns.lower[x]]
                        return left + (plane[start + columns.upper[x]] - left) * columns.share[x]
                    }
                    val top = row(rows.lower[y])
                    out[at++] = top + (row(rows.upper[y]) - top) * rows.share[y]
                }
            }
        }
        return normalised(out)
    }

    /** Real values of pixels that have the model's size: `(height, width, channels)`, 0 to 255. */
    fun values(pixels: IntArray): FloatArray = normalised(FloatArray(pixels.size) { pixels[it].toFloat() })

    private fun normalised(values: FloatArray): FloatArray {
        for (i in values.indices) {
            val channel = i % channels
            values[i] = (values[i] - mean[channel % mean.size]) / std[channel % std.size]
        }
        return values
    }

    private fun channelsOf(image: Pixels): List<FloatArray> {
        val argb = image.argb
        // The weights of libpng, rounded down: with it TensorFlow reads a colour file as grey.
        if (isGrey) {
            return listOf(
                FloatArray(argb.size) {
                    val p = argb[it]
                    val (r, g, b) = Triple(p shr 16 and 0xff, p shr 8 and 0xff, p and 0xff)
                    if (r == g && g == b) r.toFloat() else ((RED * r + GREEN * g + BLUE * b) shr 15).toFloat()
                },
            )
        }
        return listOf(16, 8, 0).map { shift -> FloatArray(argb.size) { (argb[it] shr shift and 0xff).toFloat() } }
    }

    /** Between which two source pixels each target pixel lies: half-pixel centres, no antialiasing. */
    private class Taps(source: Int, target: Int) {
        val lower = IntArray(target)
        val upper = IntArray(target)
        val share = FloatArray(target)

        init {
            val scale = source.toFloat() / target.toFloat()
            for (i in 0 until target) {
                val centre = (i + 0.5f) * scale - 0.5f
                val floor = Math.floor(centre.toDouble()).toFloat()
                lower[i] = floor.toInt().coerceAtLeast(0)
                upper[i] = (floor.toInt() + 1).coerceAtMost(source - 1)
                share[i] = centre - floor
            }
        }
    }

    private companion object {
        const val RED = 9797
        const val GREEN = 19234
        const val BLUE = 32768 - RED - GREEN
    }
}
