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
import org.kdlite.demo.core.degreesToUpright

/**
 * The frames of the camera at the back, or else any.
 *
 * The camera is opened, read and closed on one thread: nothing is closed while it is read, and a camera is closed
 * before the next is opened. The methods here are the main thread's.
 *
 * @param onFrame gets a frame to read, on the camera's thread; false lets it go unread.
 * @param onProblem gets a sentence, on the main thread; the frames have ended then.
 */
class CameraFrames(
    activity: Activity,
    private val onFrame: (() -> Pixels) -> Boolean,
    private val onProblem: (Int) -> Unit,
) : AutoCloseable {
    private val main = Handler(Looper.getMainLooper())
    private val thread = HandlerThread("camera").apply { start() }
    private val handler = Handler(thread.looper)
    private val manager = activity.getSystemService(Context.CAMERA_SERVICE) as CameraManager

    @Suppress("DEPRECATION")
    private val display = activity.windowManager.defaultDisplay
    private var session: Session? = null

    // Of the camera's thread: how many cameras have not answered yet, and whether one is wanted ever again.
    private var opening = 0
    private var isLeft = false

    /** Begins; the permission must have been given. */
    fun start() {
        if (session != null) return
        session = Session().also { handler.post(it::open) }
    }

    fun stop() {
        session?.let { handler.post(it::close) }
        session = null
    }

    /** Stops, and ends the thread as soon as each camera that was asked for has answered and is closed. */
    override fun close() {
        stop()
        handler.post {
            isLeft = true
            endIfLeft()
        }
    }

    private fun endIfLeft() {
        if (isLeft && opening == 0) thread.quitSafely()
    }

    /** From [start] to [stop], on the camera's thread. What the camera answers later finds it closed. */
    private inner class Session : CameraDevice.StateCallback() {
        private var isClosed = false
        private var isOpening = false
        private var device: CameraDevice? = null
        private var reader: ImageReader? = null
        private var sensorDegrees = 0
        private var isFront = false

        @SuppressLint("MissingPermission")
        fun open() {
            try {
                val id = backCamera() ?: return fail(R.string.camera_none)
                sensorDegrees = manager.getCameraCharacteristics(id).get(CameraCharacteristics.SENSOR_ORIENTATION) ?: 0
                isFront = facing(id) == CameraCharacteristics.LENS_FACING_FRONT
                reader = ImageReader.newInstance(WIDTH, HEIGHT, ImageFormat.YUV_420_888, 2).also {
                    it.setOnImageAvailableListener(::take, handler)
                }
                manager.openCamera(id, this, handler)
                isOpening = true
                opening++
            } catch (e: CameraAccessException) {
                fail(R.string.camera_failed)
            } catch (e: SecurityException) {
                fail(R.string.camera_refused)
            } catch (e: IllegalArgumentException) {
                fail(R.string.camera_none)
            }
        }

        fun close() {
            isClosed = true
            device?.close()
            device = null
            reader?.close()
            reader = null
        }

        private fun fail(sentence: Int) {
            if (isClosed) return
            close()
            main.post {
                if (session === this) {
                    session = null
                    onProblem(sentence)
                }
            }
        }

        override fun onOpened(camera: CameraDevice) {
            // Left while the camera was opening.
            if (isClosed) camera.close() else begin(camera)
            answered()
        }

        override fun onDisconnected(camera: CameraDevice) = lose(camera)

        override fun onError(camera: CameraDevice, error: Int) = lose(camera)

        private fun lose(camera: CameraDevice) {
            camera.close()
            fail(R.string.camera_failed)
            answered()
        }

        private fun answered() {
            if (!isOpening) return
            isOpening = false
            opening--
            endIfLeft()
        }

        private fun begin(camera: CameraDevice) {
            device = camera
            val surface = reader?.surface ?: return
            orFail {
                @Suppress("DEPRECATION")
                camera.createCaptureSession(listOf(surface), Preview(camera, surface), handler)
            }
        }

        private fun take(from: ImageReader) {
            if (isClosed) return
            val frame = from.acquireLatestImage()?.use { YuvFrame(it) } ?: return
            // The screen may have been turned since the last one, from one side to the other without being made anew.
            val degrees = degreesToUpright(sensorDegrees, screenDegrees(), isFront)
            onFrame { frame.pixels().rotated(degrees) }
        }

        private inner class Preview(private val camera: CameraDevice, private val surface: Surface) :
            CameraCaptureSession.StateCallback() {
            override fun onConfigured(configured: CameraCaptureSession) {
                if (isClosed) return
                orFail {
                    val request = camera.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW)
                    request.addTarget(surface)
                    configured.setRepeatingRequest(request.build(), null, handler)
                }
            }

            override fun onConfigureFailed(configured: CameraCaptureSession) = fail(R.string.camera_failed)
        }

        /** Asks something of a camera that may be gone by now. */
        private inline fun orFail(ask: () -> Unit) {
            try {
                ask()
            } catch (e: CameraAccessException) {
                fail(R.string.camera_failed)
            } catch (e: IllegalStateException) {
                fail(R.string.camera_failed)
            } catch (e: IllegalArgumentException) {
                fail(R.string.camera_failed)
            }
        }
    }

    private fun backCamera(): String? {
        val ids = manager.cameraIdList
        return ids.firstOrNull { facing(it) == CameraCharacteristics.LENS_FACING_BACK } ?: ids.firstOrNull()
    }

    private fun facing(id: String): Int? =
        manager.getCameraCharacteristics(id).get(CameraCharacteristics.LENS_FACING)

    private fun screenDegrees(): Int = when (display.rotation) {
        Surface.ROTATION_90 -> 90
        Surface.ROTATION_180 -> 180
        Surface.ROTATION_270 -> 270
        else -> 0
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

    private companion object {
        const val WIDTH = 640
        const val HEIGHT = 480
    }
}
