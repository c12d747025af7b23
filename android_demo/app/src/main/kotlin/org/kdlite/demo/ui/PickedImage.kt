package org.kdlite.demo.ui

import android.content.Context
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.media.ExifInterface
import android.net.Uri
import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import org.kdlite.demo.core.Pixels

/** The photo that was picked last, kept upright in the app's cache, so that it outlives the picker's permission. */
class PickedImage(context: Context) {
    private val resolver = context.contentResolver
    private val file = File(context.cacheDir, "picked.png")

    /**
     * Takes over an image. Slow: not for the main thread.
     *
     * @throws IOException if it cannot be read, or is no image.
     */
    fun take(uri: Uri): Pixels {
        val bytes = try {
            resolver.openInputStream(uri)?.use { it.readBytes() }
        } catch (e: SecurityException) {
            throw IOException(e)
        } ?: throw IOException("nothing at $uri")
        val pixels = decode(bytes).toPixels().upright(orientation(bytes))
        file.outputStream().use { pixels.toBitmap().compress(Bitmap.CompressFormat.PNG, 100, it) }
        return pixels
    }

    /** The kept image, or null where there is none any more. */
    fun load(): Pixels? = BitmapFactory.decodeFile(file.path)?.toPixels()

    private fun decode(bytes: ByteArray): Bitmap {
        val options = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        BitmapFactory.decodeByteArray(bytes, 0, bytes.size, options)
        // A phone's memory is small for a photo of a good camera: halved until it fits.
        options.inSampleSize = 1
        while (maxOf(options.outWidth, options.outHeight) / options.inSampleSize > MOST_SIDE) options.inSampleSize *= 2
        options.inJustDecodeBounds = false
        options.inPreferredConfig = Bitmap.Config.ARGB_8888
        return BitmapFactory.decodeByteArray(bytes, 0, bytes.size, options) ?: throw IOException("no image")
    }

    private fun orientation(bytes: ByteArray): Int = try {
        ExifInterface(ByteArrayInputStream(bytes))
            .getAttributeInt(ExifInterface.TAG_ORIENTATION, ExifInterface.ORIENTATION_NORMAL)
    } catch (e: IOException) {
        ExifInterface.ORIENTATION_NORMAL // no EXIF, as in a PNG
    }

    private companion object {
        const val MOST_SIDE = 2048
    }
}
