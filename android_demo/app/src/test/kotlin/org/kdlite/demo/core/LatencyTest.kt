package org.kdlite.demo.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Test

class LatencyTest {
    @Test
    fun percentilesAreNumPys() {
        // numpy.percentile([1, 2, 4, 8, 16], [50, 90]) is 4.0 and 12.8.
        assertEquals(LatencySummary(4.0, 12.8, 1.0, 5), summaryOf(doubleArrayOf(16.0, 1.0, 8.0, 2.0, 4.0)))
        assertEquals(7.0, percentile(doubleArrayOf(7.0), 0.9), 0.0)
        assertThrows(IllegalArgumentException::class.java) { percentile(doubleArrayOf(), 0.5) }
    }

    @Test
    fun theFirstRunIsKeptApart() {
        val window = LatencyWindow(3)
        window.add(100.0)
        assertNull(window.summary())
        for (time in listOf(50.0, 1.0, 2.0, 3.0)) window.add(time)
        assertEquals(100.0, window.warmUp!!, 0.0)
        assertEquals(3.0, window.last!!, 0.0)
        // Only the last three count.
        assertEquals(LatencySummary(2.0, 2.8, 1.0, 3), window.summary())
    }

    @Test
    fun energyIsChargeTimesVoltage() {
        // 1000 µAh are 3.6 C; at 4 V 14.4 J, over 100 runs 144 mJ.
        assertEquals(144.0, energyPerRunMillijoules(1000, 4.0, 100)!!, 1e-9)
        assertNull(energyPerRunMillijoules(0, 4.0, 100))
        assertNull(energyPerRunMillijoules(10, 0.0, 100))
    }
}
