package org.kdlite.demo.core

/** Median, 90th percentile and least of some runs, in milliseconds. */
data class LatencySummary(val p50: Double, val p90: Double, val min: Double, val runs: Int)

/** The last [capacity] runs; the first after loading is kept apart, since it warms up caches. */
class LatencyWindow(private val capacity: Int = 50) {
    private val times = ArrayDeque<Double>()

    /** The first run, or null where there was none. */
    var warmUp: Double? = null
        private set

    /** The last run that was not the first, or else the first. */
    var last: Double? = null
        private set

    fun add(milliseconds: Double) {
        last = milliseconds
        if (warmUp == null) {
            warmUp = milliseconds
            return
        }
        if (times.size == capacity) times.removeFirst()
        times.addLast(milliseconds)
    }

    fun summary(): LatencySummary? = if (times.isEmpty()) null else summaryOf(times.toDoubleArray())
}

fun summaryOf(times: DoubleArray): LatencySummary {
    val sorted = times.sortedArray()
    return LatencySummary(percentile(sorted, 0.5), percentile(sorted, 0.9), sorted.first(), sorted.size)
}

/** Of sorted values, linear between the two nearest, as NumPy has it. */
fun percentile(sorted: DoubleArray, share: Double): Double {
    require(sorted.isNotEmpty() && share in 0.0..1.0) { "A percentile needs values, and a share in 0..1." }
    val place = share * (sorted.size - 1)
    val below = place.toInt()
    val above = minOf(below + 1, sorted.size - 1)
    return sorted[below] + (sorted[above] - sorted[below]) * (place - below)
}

/** What N runs cost, where the battery counts it: charge used at a voltage, as energy a run. */
fun energyPerRunMillijoules(chargeUsedMicroampereHours: Long, volts: Double, runs: Int): Double? {
    if (chargeUsedMicroampereHours <= 0 || volts <= 0 || runs <= 0) return null
    return chargeUsedMicroampereHours * 3.6 * volts / runs
}
