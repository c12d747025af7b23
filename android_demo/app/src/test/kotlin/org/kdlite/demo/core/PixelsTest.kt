package org.kdlite.demo.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class PixelsTest {
    // 1 2 3
    // 4 5 6
    private val image = Pixels(3, 2, intArrayOf(1, 2, 3, 4, 5, 6))

    private fun rows(pixels: Pixels) = pixels.argb.toList().chunked(pixels.width)

    @Test
    fun turnsClockwise() {
        assertEquals(listOf(listOf(4, 1), listOf(5, 2), listOf(6, 3)), rows(image.rotated(90)))
        assertEquals(listOf(listOf(6, 5, 4), listOf(3, 2, 1)), rows(image.rotated(180)))
        assertEquals(listOf(listOf(3, 6), listOf(2, 5), listOf(1, 4)), rows(image.rotated(-90)))
        assertEquals(rows(image), rows(image.rotated(270).rotated(90)))
        assertThrows(IllegalArgumentException::class.java) { image.rotated(45) }
    }

    @Test
    fun everyExifOrientationIsMadeUpright() {
        // How a camera stores the upright image, by the EXIF standard: where row 0 and column 0 of the file are shown.
        val stored = mapOf(
            1 to listOf(listOf(1, 2, 3), listOf(4, 5, 6)), // top, left
            2 to listOf(listOf(3, 2, 1), listOf(6, 5, 4)), // top, right
            3 to listOf(listOf(6, 5, 4), listOf(3, 2, 1)), // bottom, right
            4 to listOf(listOf(4, 5, 6), listOf(1, 2, 3)), // bottom, left
            5 to listOf(listOf(1, 4), listOf(2, 5), listOf(3, 6)), // left, top
            6 to listOf(listOf(3, 6), listOf(2, 5), listOf(1, 4)), // right, top
            7 to listOf(listOf(6, 3), listOf(5, 2), listOf(4, 1)), // right, bottom
            8 to listOf(listOf(4, 1), listOf(5, 2), listOf(6, 3)), // left, bottom
        )
        for ((orientation, file) in stored) {
            val pixels = Pixels(file[0].size, file.size, file.flatten().toIntArray())
            assertEquals("orientation $orientation", rows(image), rows(pixels.upright(orientation)))
        }
        assertEquals(rows(image), rows(image.upright(0)))
    }

    @Test
    fun theCamerasPictureFollowsTheScreen() {
        // A sensor as most have it, whose picture needs a quarter on an upright phone; turned to the left, none.
        assertEquals(listOf(90, 0, 270, 180), listOf(0, 90, 180, 270).map { degreesToUpright(90, it, isFront = false) })
        // The one at the front looks the other way.
        assertEquals(listOf(270, 0, 90, 180), listOf(0, 90, 180, 270).map { degreesToUpright(270, it, isFront = true) })
    }

    @Test
    fun theMiddleHasTheAspectThatIsAskedFor() {
        val wide = Pixels(7, 2, IntArray(14) { it })
        assertEquals(listOf(listOf(2, 3), listOf(9, 10)), rows(wide.centreCrop(28, 28)))
        val tall = Pixels(2, 5, IntArray(10) { it })
        assertEquals(listOf(listOf(2, 3), listOf(4, 5)), rows(tall.centreCrop(5, 5)))
        assertEquals(1, Pixels(1, 100, IntArray(100)).centreCrop(1000, 1).height)
    }

    @Test
    fun colourComesOutOfTheCamerasPlanes() {
        // Two by two pixels of one colour; rows longer than the image, V and U interleaved, as cameras give them.
        fun colour(y: Int, u: Int, v: Int): Int {
            val luma = byteArrayOf(y.toByte(), y.toByte(), 0, 0, y.toByte(), y.toByte(), 0, 0)
            return Pixels.fromYuv(
                2, 2, listOf(luma, byteArrayOf(u.toByte(), 0), byteArrayOf(v.toByte(), 0)),
                intArrayOf(4, 2, 2), intArrayOf(1, 2, 2),
            ).argb.toSet().single()
        }
        // JPEG's own values of black, white, red, green and blue.
        assertEquals(0xff000000.toInt(), colour(0, 128, 128))
        assertEquals(0xffffffff.toInt(), colour(255, 128, 128))
        assertNear(0xff0000, colour(76, 85, 255))
        assertNear(0x00ff00, colour(150, 44, 21))
        assertNear(0x0000ff, colour(29, 255, 107))
    }

    private fun assertNear(rgb: Int, told: Int) {
        for (shift in listOf(16, 8, 0)) {
            // The planes are whole numbers: an error of half a level times 1.772, and rounding.
            assertEquals((rgb shr shift and 0xff).toDouble(), (told shr shift and 0xff).toDouble(), 2.0)
        }
    }

    @Test
    fun sizesMustFit() {
        assertThrows(IllegalArgumentException::class.java) { Pixels(2, 2, IntArray(3)) }
        assertThrows(IllegalArgumentException::class.java) { Pixels(0, 2, IntArray(0)) }
    }
}
