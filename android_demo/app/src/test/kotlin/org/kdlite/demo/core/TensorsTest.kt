package org.kdlite.demo.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class TensorsTest {
    private fun buffer(spec: TensorSpec) = ByteBuffer.allocateDirect(spec.sizeBytes).order(ByteOrder.nativeOrder())

    private fun levels(spec: TensorSpec, vararg values: Float): List<Int> {
        val stored = buffer(spec)
        spec.write(values, stored)
        return List(values.size) { stored.get(it).toInt() }
    }

    @Test
    fun roundsHalvesToEvenAndClips() {
        val spec = TensorSpec("x", 7, TensorType.INT8, scale = 0.5f, zeroPoint = -1)
        // 0.25 / 0.5 is half a level: to 0; 0.75 is one and a half: to 2.
        assertEquals(listOf(-1, 1, -1, -3, 127, -128, 0), levels(spec, 0.25f, 0.75f, -0.25f, -0.75f, 1e9f, -1e9f, 0.5f))
    }

    @Test
    fun bytesCountFromZeroInUint8() {
        val spec = TensorSpec("x", 3, TensorType.UINT8, scale = 1f, zeroPoint = 0)
        assertEquals(listOf(0, -1, -56), levels(spec, -3f, 255f, 200f))
        val stored = buffer(spec)
        spec.write(floatArrayOf(0f, 255f, 200f), stored)
        assertArrayEquals(floatArrayOf(0f, 255f, 200f), spec.read(stored), 0f)
    }

    @Test
    fun readsLevelsBack() {
        val spec = TensorSpec("x", 2, TensorType.INT8, scale = 0.1f, zeroPoint = 3)
        val stored = buffer(spec)
        spec.write(floatArrayOf(-0.5f, 1.2f), stored)
        // Products in float32, as LiteRT dequantizes.
        assertArrayEquals(floatArrayOf(-5 * 0.1f, 12 * 0.1f), spec.read(stored), 0f)
    }

    @Test
    fun floatsGoThroughAsTheyAre() {
        val spec = TensorSpec("x", 3, TensorType.FLOAT32)
        val stored = buffer(spec)
        val values = floatArrayOf(-1.5f, Float.MIN_VALUE, 3e38f)
        spec.write(values, stored)
        assertArrayEquals(values, spec.read(stored), 0f)
    }

    @Test
    fun aWrongNumberOfValuesIsRefused() {
        val spec = TensorSpec("x", 3, TensorType.FLOAT32)
        val error = assertThrows(IllegalArgumentException::class.java) { spec.write(FloatArray(2), buffer(spec)) }
        assertEquals("x takes 3 values. Received: 2.", error.message)
    }
}
