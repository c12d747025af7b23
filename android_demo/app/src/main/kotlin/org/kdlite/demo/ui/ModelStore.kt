package org.kdlite.demo.ui

import android.content.ContentResolver
import android.content.Context
import android.net.Uri
import java.io.File
import java.io.FileInputStream
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.util.concurrent.atomic.AtomicLong
import org.kdlite.demo.core.GoldenVectors
import org.kdlite.demo.core.ModelInfo
import org.kdlite.demo.core.Unusable
import org.kdlite.demo.core.UnusableModel
import org.kdlite.demo.inference.Classifier
import org.kdlite.demo.inference.TfliteClassifier

/** Which model the app runs: the bundled one, or a file that the user opened, of which it keeps a copy. */
class ModelStore(private val context: Context) {
    private val opened = File(context.filesDir, "opened.tflite")

    /** Whether the model that was opened last came with the app. */
    @Volatile var isBundled = true
        private set

    /** Opens the current model. Slow, as all here: not for the main thread. */
    fun open(threads: Int): Classifier {
        checkNotMain()
        isBundled = !opened.exists()
        return TfliteClassifier(if (isBundled) bundled() else map(opened), threads)
    }

    /**
     * Makes a file the current model, after it has run once; else nothing changes. Nor does it where another choice was
     * made meanwhile, on a screen that came after.
     *
     * @throws UnusableModel if the app cannot run it, or it cannot be read.
     */
    fun import(uri: Uri): ModelInfo {
        checkNotMain()
        val choice = choices.incrementAndGet()
        // Of choices before this one, and of an app that was ended.
        context.cacheDir.listFiles { file -> file.name.startsWith(CANDIDATE) }?.forEach { it.delete() }
        // A name of its own: the screen of before a rotation may be at another file still.
        val candidate = File.createTempFile(CANDIDATE, ".tflite", context.cacheDir)
        try {
            copy(context.contentResolver, uri, candidate)
            val info = TfliteClassifier(map(candidate), 1).use {
                val input = it.info.input
                val pixels = GoldenVectors.pixels(0, input.height, input.width, input.channels)
                try {
                    it.run(input.values(pixels))
                } catch (e: RuntimeException) {
                    throw UnusableModel(Unusable.CANNOT_RUN, e)
                }
                it.info
            }
            synchronized(choices) {
                val isLast = choice == choices.get()
                if (isLast && !candidate.renameTo(opened)) throw IOException("no room for $opened")
            }
            return info
        } catch (e: IOException) {
            throw UnusableModel(Unusable.NOT_A_MODEL, e)
        } catch (e: SecurityException) {
            throw UnusableModel(Unusable.NOT_A_MODEL, e)
        } finally {
            candidate.delete()
        }
    }

    /** Goes back to the model that came with the app. */
    fun useBundled() {
        checkNotMain()
        synchronized(choices) {
            choices.incrementAndGet()
            opened.delete()
        }
    }

    private fun copy(resolver: ContentResolver, uri: Uri, target: File) {
        val source: InputStream = resolver.openInputStream(uri) ?: throw FileNotFoundException("$uri")
        source.use { from ->
            target.outputStream().use { to ->
                if (!from.copyAtMost(ModelInfo.MOST_BYTES, to)) throw UnusableModel(Unusable.TOO_LARGE)
            }
        }
    }

    private fun bundled(): ByteBuffer = context.assets.openFd(BUNDLED).use { asset ->
        FileInputStream(asset.fileDescriptor).use {
            it.channel.map(FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength)
        }
    }

    private fun map(file: File): ByteBuffer = FileInputStream(file).use {
        it.channel.map(FileChannel.MapMode.READ_ONLY, 0, file.length())
    }

    companion object {
        const val BUNDLED = "model.tflite"
        private const val CANDIDATE = "candidate"

        /** How often a model was chosen, on any screen of this process: the last choice counts. */
        private val choices = AtomicLong()
    }
}

/** Copies a stream until its end; false once it has more bytes than [most]. */
internal fun InputStream.copyAtMost(most: Long, to: OutputStream): Boolean {
    val part = ByteArray(1 shl 16)
    var total = 0L
    while (true) {
        val count = read(part)
        if (count < 0) return true
        total += count
        if (total > most) return false
        to.write(part, 0, count)
    }
}
