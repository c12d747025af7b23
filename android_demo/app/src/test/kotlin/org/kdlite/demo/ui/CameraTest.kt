package org.kdlite.demo.ui

import android.Manifest
import android.graphics.SurfaceTexture
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.media.ImageReader
import android.view.Surface
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executor
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.atomic.AtomicBoolean
import java.util.concurrent.atomic.AtomicInteger
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.kdlite.demo.R
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode
import org.robolectric.annotation.Implementation
import org.robolectric.annotation.Implements
import org.robolectric.annotation.RealObject
import org.robolectric.shadows.ShadowCameraCharacteristics
import org.robolectric.shadows.ShadowCameraDeviceImpl
import org.robolectric.shadows.ShadowCameraManager
import org.robolectric.shadows.ShadowNativeImageReader
import org.robolectric.util.ReflectionHelpers

/** When a camera is opened and closed, and on which thread. Robolectric's camera gives no frames. */
@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(
    sdk = [35],
    qualifiers = "en-rUS-w360dp-h740dp-mdpi",
    shadows = [CameraTest.WatchedCamera::class, CameraTest.WatchedReader::class],
)
class CameraTest {
    @Before
    fun aCameraIsThere() {
        opened.set(0)
        closed.clear()
        readersClosed.clear()
        val application = RuntimeEnvironment.getApplication()
        shadowOf(application).grantPermissions(Manifest.permission.CAMERA)
        val about = ShadowCameraCharacteristics.newCameraCharacteristics()
        shadowOf(about).set(CameraCharacteristics.LENS_FACING, CameraCharacteristics.LENS_FACING_BACK)
        shadowOf(about).set(CameraCharacteristics.SENSOR_ORIENTATION, 90)
        shadowOf(application.getSystemService(CameraManager::class.java)).addCamera("0", about)
    }

    private val isThreadThere: Boolean
        get() = Thread.getAllStackTraces().keys.any { it.name == "camera" && it.isAlive }

    @Test
    fun eachCameraIsClosedOnItsThreadHoweverEarlyTheScreenIsLeft() {
        onScreen<CameraActivity> { controller ->
            repeat(20) { controller.pause().resume() }
            waitUntil("the last camera") { opened.get() == 21 }
            waitUntil("the end of those before") { closed.size == 20 }
            assertEquals(controller.get().getString(R.string.camera_on), controller.get().text(R.id.note))
        }
        waitUntil("the end of the thread") { !isThreadThere }
        assertEquals(List(21) { "camera" }, closed.toList())
        assertEquals(List(21) { "camera" }, readersClosed.toList())
    }

    @Test
    fun aCameraThatWasLeftSaysNothingOfTheNext() = onScreen<CameraActivity> { controller ->
        waitUntil("a camera") { last("lastDevice") != null }
        val (device, callback, executor) = Triple(
            last("lastDevice") as CameraDevice,
            last("lastCallback") as CameraDevice.StateCallback,
            last("lastCallbackExecutor") as Executor,
        )
        controller.pause().resume()
        waitUntil("the next camera") { last("lastDevice") !== device }
        executor.execute { callback.onDisconnected(device) }
        executor.execute { callback.onOpened(device) }
        val screen = controller.get()
        val isSaid = CountDownLatch(1)
        executor.execute { isSaid.countDown() }
        waitUntil("late words") { isSaid.count == 0L }
        assertEquals(screen.getString(R.string.camera_on), screen.text(R.id.note))
        assertTrue(screen.isShown(R.id.view))
        // What the camera of now says is heard.
        shadowOf(screen.getSystemService(CameraManager::class.java)).triggerDisconnect()
        waitUntil("a sentence") { screen.text(R.id.note) == screen.getString(R.string.camera_failed) }
        assertFalse(screen.isShown(R.id.view))
    }

    private fun last(field: String): Any? = ReflectionHelpers.getStaticField<Any?>(ShadowCameraManager::class.java, field)

    /** A camera that says where it is closed. */
    @Implements(className = "android.hardware.camera2.impl.CameraDeviceImpl", isInAndroidSdk = false)
    class WatchedCamera : ShadowCameraDeviceImpl() {
        private val isClosed = AtomicBoolean()

        init {
            opened.incrementAndGet()
        }

        @Implementation
        public override fun close() {
            // A finalizer closes once more, whenever it comes.
            if (isClosed.compareAndSet(false, true)) closed.add(Thread.currentThread().name)
            super.close()
        }
    }

    /** Likewise what its frames are read from. */
    @Implements(className = "android.media.ImageReader", isInAndroidSdk = false)
    class WatchedReader : ShadowNativeImageReader() {
        @RealObject @JvmField var reader: ImageReader? = null

        @Implementation
        public override fun getSurface() = Surface(SurfaceTexture(0))

        @Implementation
        public override fun nativeClose() {
            readersClosed.add(Thread.currentThread().name)
            // Robolectric has no native code for it: nor may a finalizer try to close it.
            kept.add(reader!!)
        }
    }

    companion object {
        val opened = AtomicInteger()
        val closed = LinkedBlockingQueue<String>()
        val readersClosed = LinkedBlockingQueue<String>()
        val kept = LinkedBlockingQueue<ImageReader>()
    }
}
