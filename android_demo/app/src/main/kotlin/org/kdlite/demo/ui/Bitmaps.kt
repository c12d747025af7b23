package org.kdlite.demo.ui

import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.media.ExifInterface
import android.os.Looper
import java.io.ByteArrayInputStream
import java.io.IOException
import org.kdlite.demo.core.Pixels

/** The longest side of an image that is read: a phone's memory is small for a photo of a good camera. */
const val MOST_SIDE = 2048

/**
 * Reads an image file, upright by its EXIF orientation. Slow: not for the main thread.
 *
 * What is transparent has the colour that lies beneath, as in Python.
 *
 * @param mostSide an image with a longer side is halved until it fits.
 * @throws IOException if it is no image.
 */
fun pixelsOf(bytes: ByteArray, mostSide: Int = MOST_SIDE): Pixels {
    checkNotMain()
    val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
    BitmapFactory.decodeByteArray(bytes, 0, bytes.size, options)
    options.inSampleSize = 1
    while (maxOf(options.outWidth, options.outHeight) / options.inSampleSize > mostSide) options.inSampleSize *= 2
    options.inJustDecodeBounds = false
    options.inPreferredConfig = Bitmap.Config.ARGB_8888
    options.inPremultiplied = false
    val bitmap = BitmapFactory.decodeByteArray(bytes, 0, bytes.size, options) ?: throw IOException("no image")
    return bitmap.toPixels().upright(orientation(bytes))
}

private fun orientation(bytes: ByteArray): Int = try {
    ExifInterface(ByteArrayInputStream(bytes))
        .getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
} catch (e: IOException) {
    ExifInterface.ORIENTATION_NORMAL // no EXIF, as in a PNG
}

/** Its colours, opaque. */
fun Bitmap.toPixels(): Pixels {
    val argb = IntArray(width * height)
    getPixels(argb, 0, width, 0, 0, width, height)
    for (i in argb.indices) argb[i] = argb[i] or (0xff shl 24)
    return Pixels(width, height, argb)
}

/** Slow for a photo: not for the main thread. */
fun Pixels.toBitmap(): Bitmap {
    checkNotMain()
    return Bitmap.createBitmap(argb, width, height, Bitmap.Config.ARGB_8888)
}

/** Throws on the main thread, where what is slow stops the screen. */
fun checkNotMain() = check(Looper.myLooper() != Looper.getMainLooper()) { "This is not for the main thread." }
