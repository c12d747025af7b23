package org.kdlite.demo.ui

import android.annotation.SuppressLint
import android.app.Activity
import android.content.Context
import android.graphics.ImageFormat
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraCaptureSession
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.media.Image
import android.media.ImageReader
import android.os.Handler
import android.os.HandlerThread
import android.os.Looper
import android.view.Surface
import org.kdlite.demo.R
import org.kdlite.demo.core.Pixels

/**
 * The frames of the camera at the back, or else any.
 *
 * @param onFrame gets a frame to read, on the camera's thread; false lets it go unread.
 * @param onProblem gets a sentence, on the main thread.
 */
class CameraFrames(
    private val activity: Activity,
    private val onFrame: (() -> Pixels) -> Boolean,
    private val onProblem: (Int) -> Unit,
) {
    private val main = Handler(Looper.getMainLooper())
    private val manager = activity.getSystemService(Context.CAMERA_SERVICE) as CameraManager
    @Volatile private var thread: HandlerThread? = null
    @Volatile private var device: CameraDevice? = null
    private var reader: ImageReader? = null

    /** Begins; the permission must have been given. */
    @SuppressLint("MissingPermission")
    fun start() {
        if (thread != null) return
        val handler = HandlerThread("camera").also { thread = it; it.start() }.let { Handler(it.looper) }
        try {
            val id = backCamera() ?: return fail(R.string.camera_none)
            val turned = turned(id)
            val reader = ImageReader.newInstance(WIDTH, HEIGHT, ImageFormat.YUV_420_888, 2).also { reader = it }
            reader.setOnImageAvailableListener({ take(it, turned) }, handler)
            manager.openCamera(id, Opened(reader, handler), handler)
        } catch (e: CameraAccessException) {
            fail(R.string.camera_failed)
        } catch (e: SecurityException) {
            fail(R.string.camera_refused)
        } catch (e: IllegalArgumentException) {
            fail(R.string.camera_none)
        }
    }

    fun stop() {
        device?.close()
        device = null
        reader?.close()
        reader = null
        thread?.quitSafely()
        thread = null
    }

    private fun fail(sentence: Int) {
        main.post {
            stop()
            onProblem(sentence)
        }
    }

    private fun backCamera(): String? {
        val ids = manager.cameraIdList
        return ids.firstOrNull { facing(it) == CameraCharacteristics.LENS_FACING_BACK } ?: ids.firstOrNull()
    }

    private fun facing(id: String): Int? =
        manager.getCameraCharacteristics(id).get(CameraCharacteristics.LENS_FACING)

    /** How far the sensor's picture must be turned clockwise to be upright on the screen as it is held. */
    private fun turned(id: String): Int {
        val sensor = manager.getCameraCharacteristics(id).get(CameraCharacteristics.SENSOR_ORIENTATION) ?: 0
        @Suppress("DEPRECATION")
        val screen = when (activity.windowManager.defaultDisplay.rotation) {
            Surface.ROTATION_90 -> 90
            Surface.ROTATION_180 -> 180
            Surface.ROTATION_270 -> 270
            else -> 0
        }
        return if (facing(id) == CameraCharacteristics.LENS_FACING_FRONT) sensor + screen else sensor - screen
    }

    private fun take(reader: ImageReader, turned: Int) {
        val image = try {
            reader.acquireLatestImage()
        } catch (e: IllegalStateException) {
            null // closed meanwhile
        } ?: return
        val frame = try {
            YuvFrame(image)
        } finally {
            image.close()
        }
        onFrame { frame.pixels().rotated(turned) }
    }

    /** A copy of the planes: the camera wants its buffers back at once. */
    private class YuvFrame(image: Image) {
        private val width = image.width
        private val height = image.height
        private val planes = image.planes.map { plane ->
            ByteArray(plane.buffer.remaining()).also { plane.buffer.get(it) }
        }
        private val rowStrides = IntArray(3) { image.planes[it].rowStride }
        private val pixelStrides = IntArray(3) { image.planes[it].pixelStride }

        fun pixels() = Pixels.fromYuv(width, height, planes, rowStrides, pixelStrides)
    }

    private inner class Opened(private val reader: ImageReader, private val handler: Handler) :
        CameraDevice.StateCallback() {
        override fun onOpened(camera: CameraDevice) {
            if (thread == null) {
                // The screen was left while the camera was opening.
                camera.close()
                return
            }
            device = camera
            try {
                @Suppress("DEPRECATION")
                camera.createCaptureSession(listOf(reader.surface), Preview(camera), handler)
            } catch (e: CameraAccessException) {
                fail(R.string.camera_failed)
            } catch (e: IllegalStateException) {
                fail(R.string.camera_failed)
            } catch (e: IllegalArgumentException) {
                // The reader was closed meanwhile.
            }
        }

        override fun onDisconnected(camera: CameraDevice) {
            camera.close()
            fail(R.string.camera_failed)
        }

        override fun onError(camera: CameraDevice, error: Int) {
            camera.close()
            fail(R.string.camera_failed)
        }

        private inner class Preview(private val camera: CameraDevice) : CameraCaptureSession.StateCallback() {
            override fun onConfigured(session: CameraCaptureSession) {
                try {
                    val request = camera.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW)
                    request.addTarget(reader.surface)
                    session.setRepeatingRequest(request.build(), null, handler)
                } catch (e: CameraAccessException) {
                    fail(R.string.camera_failed)
                } catch (e: IllegalStateException) {
                    // The screen was left meanwhile.
                } catch (e: IllegalArgumentException) {
                    // Likewise: the reader is closed.
                }
            }

            override fun onConfigureFailed(session: CameraCaptureSession) = fail(R.string.camera_failed)
        }
    }

    private companion object {
        const val WIDTH = 640
        const val HEIGHT = 480
    }
}
