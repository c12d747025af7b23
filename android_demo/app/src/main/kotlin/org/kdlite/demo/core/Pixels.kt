package org.kdlite.demo.core

/** An image as `0xAARRGGBB`, row by row; alpha is not looked at. */
class Pixels(val width: Int, val height: Int, val argb: IntArray) {
    init {
        require(width > 0 && height > 0 && argb.size == width * height) {
            "An image of $width x $height has as many pixels. Received: ${argb.size}."
        }
    }

    /** Turned clockwise by a multiple of 90 degrees, as a camera's sensor is mounted. */
    fun rotated(degrees: Int): Pixels {
        val (w, h) = width to height
        return when (Math.floorMod(degrees, 360)) {
            0 -> this
            90 -> made(h, w) { x, y -> argb[(h - 1 - x) * w + y] }
            180 -> made(w, h) { x, y -> argb[(h - 1 - y) * w + (w - 1 - x)] }
            270 -> made(h, w) { x, y -> argb[x * w + (w - 1 - y)] }
            else -> throw IllegalArgumentException("degrees must be a multiple of 90. Received: $degrees.")
        }
    }

    /** Left and right exchanged. */
    fun mirrored(): Pixels = made(width, height) { x, y -> argb[y * width + (width - 1 - x)] }

    /** Upright, by the orientation that EXIF tells (1 to 8; anything else means 1). */
    fun upright(exifOrientation: Int): Pixels = when (exifOrientation) {
        2 -> mirrored()
        3 -> rotated(180)
        4 -> rotated(180).mirrored()
        5 -> mirrored().rotated(270)
        6 -> rotated(90)
        7 -> mirrored().rotated(90)
        8 -> rotated(270)
        else -> this
    }

    /** The largest part in the middle that has the aspect of `width : height`. */
    fun centreCrop(targetWidth: Int, targetHeight: Int): Pixels {
        // As Keras's `crop_to_aspect_ratio`: the part is cut to whole pixels, its start rounded down.
        val cropHeight = minOf(height, (width.toFloat() * targetHeight / targetWidth).toInt()).coerceAtLeast(1)
        val cropWidth = minOf(width, (height.toFloat() * targetWidth / targetHeight).toInt()).coerceAtLeast(1)
        val top = (height - cropHeight) / 2
        val left = (width - cropWidth) / 2
        return made(cropWidth, cropHeight) { x, y -> argb[(top + y) * width + left + x] }
    }

    companion object {
        /**
         * From a camera's YUV_420_888 planes: BT.601, full range, as JPEG has it.
         *
         * @param rowStrides bytes from a row to the next, of Y, U and V.
         * @param pixelStrides bytes from a pixel to the next, likewise.
         */
        fun fromYuv(
            width: Int,
            height: Int,
            planes: List<ByteArray>,
            rowStrides: IntArray,
            pixelStrides: IntArray,
        ): Pixels {
            val (luma, blue, red) = planes
            return made(width, height) { x, y ->
                val light = luma[y * rowStrides[0] + x * pixelStrides[0]].toInt() and 0xff
                val u = (blue[(y / 2) * rowStrides[1] + (x / 2) * pixelStrides[1]].toInt() and 0xff) - 128
                val v = (red[(y / 2) * rowStrides[2] + (x / 2) * pixelStrides[2]].toInt() and 0xff) - 128
                rgb(light + 1.402f * v, light - 0.344136f * u - 0.714136f * v, light + 1.772f * u)
            }
        }

        private fun rgb(red: Float, green: Float, blue: Float): Int =
            (0xff shl 24) or (byte(red) shl 16) or (byte(green) shl 8) or byte(blue)

        private fun byte(value: Float): Int = Math.round(value).coerceIn(0, 255)
    }
}

/**
 * How far a camera's picture must be turned clockwise to be upright on the screen.
 *
 * @param sensor degrees clockwise that the sensor's picture needs on a screen that is held as the device is made.
 * @param screen degrees that the screen's content is turned from there, to the other side.
 */
fun degreesToUpright(sensor: Int, screen: Int, isFront: Boolean): Int =
    Math.floorMod(if (isFront) sensor + screen else sensor - screen, 360)

private inline fun made(width: Int, height: Int, pixel: (Int, Int) -> Int): Pixels {
    val out = IntArray(width * height)
    for (y in 0 until height) for (x in 0 until width) out[y * width + x] = pixel(x, y)
    return Pixels(width, height, out)
}
