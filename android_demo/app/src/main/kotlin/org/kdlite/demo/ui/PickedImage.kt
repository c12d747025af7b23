package org.kdlite.demo.ui

import android.content.Context
import android.graphics.Bitmap
import android.net.Uri
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import org.kdlite.demo.core.Pixels

/** The photo that was picked last, kept upright in the app's cache, so that it outlives the picker's permission. */
class PickedImage(context: Context) {
    private val resolver = context.contentResolver
    private val file = File(context.cacheDir, "picked.png")

    /**
     * Takes over an image; the one before stays where that fails. Slow: not for the main thread.
     *
     * @throws IOException if it cannot be read, or is no image.
     */
    fun take(uri: Uri): Pixels {
        checkNotMain()
        val bytes = try {
            resolver.openInputStream(uri)?.use { from ->
                val bytes = ByteArrayOutputStream()
                if (!from.copyAtMost(MOST_BYTES, bytes)) throw IOException("more than $MOST_BYTES bytes at $uri")
                bytes.toByteArray()
            }
        } catch (e: SecurityException) {
            throw IOException(e)
        } ?: throw IOException("nothing at $uri")
        val pixels = pixelsOf(bytes)
        // A name of its own: the screen of before a rotation may be at the same photo still.
        val whole = File.createTempFile("picked", ".png", file.parentFile)
        try {
            val isWritten = whole.outputStream().use { pixels.toBitmap().compress(Bitmap.CompressFormat.PNG, 100, it) }
            if (!isWritten || !whole.renameTo(file)) throw IOException("no room for $file")
        } finally {
            whole.delete()
        }
        return pixels
    }

    /**
     * The kept image. Slow: not for the main thread.
     *
     * @throws IOException where there is none any more.
     */
    fun load(): Pixels {
        checkNotMain()
        return pixelsOf(file.readBytes())
    }

    private companion object {
        /** More than any photo has; what another app provides may have no end. */
        const val MOST_BYTES = 64L shl 20
    }
}
