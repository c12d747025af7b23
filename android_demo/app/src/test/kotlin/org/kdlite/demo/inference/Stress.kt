package org.kdlite.demo.inference

import java.io.File
import java.util.concurrent.atomic.AtomicLong
import java.util.concurrent.atomic.AtomicReference
import kotlin.concurrent.thread
import kotlin.random.Random
import kotlin.system.exitProcess
import org.kdlite.demo.core.dataFolder
import org.kdlite.demo.core.direct

private const val THREADS = 4
private const val LOOKS = 20

/**
 * Opens, runs and closes models in several threads for some minutes: each answer is the first one of that model to the
 * bit, and the process does not grow. A benchmark, not a test: `ci/chain.py stress`.
 */
fun main(arguments: Array<String>) {
    val minutes = arguments[0].toDouble()
    val files = File(dataFolder, "models").listFiles()!!.map { File(it, "model.tflite") }.filter { it.exists() }.sorted()
    val pixels = files.map { File(it.parentFile, "pixels.u8").readBytes() }
    val first = files.indices.map { answer(files[it], pixels[it], threads = 1) }
    val end = System.nanoTime() + (minutes * 60e9).toLong()
    val opened = AtomicLong()
    val fault = AtomicReference<Throwable>()
    val workers = (0 until THREADS).map { number ->
        thread {
            val random = Random(number)
            try {
                while (System.nanoTime() < end && fault.get() == null) {
                    val which = random.nextInt(files.size)
                    val told = answer(files[which], pixels[which], threads = 1)
                    check(told.contentEquals(first[which])) { "another answer of ${files[which]}" }
                    opened.incrementAndGet()
                }
            } catch (e: Throwable) {
                fault.compareAndSet(null, e)
            }
        }
    }
    val sizes = ArrayList<Long>()
    while (workers.any { it.isAlive }) {
        Thread.sleep((minutes * 60e3 / LOOKS).toLong())
        System.gc()
        sizes.add(residentKilobytes())
        println("${opened.get()} models opened, run and closed; ${sizes.last()} kB resident")
    }
    fault.get()?.let { throw it }
    // The first looks are while caches fill.
    val early = sizes.subList(LOOKS / 4, LOOKS / 2).sorted()[LOOKS / 8]
    val late = sizes.takeLast(LOOKS / 4).sorted()[LOOKS / 8]
    val growth = 100.0 * (late - early) / early
    println("%,d models in %s minutes and %d threads, no fault; %+.1f %% of memory".format(opened.get(), minutes, THREADS, growth))
    if (growth > 5) exitProcess(1)
}

private fun answer(file: File, pixels: ByteArray, threads: Int): FloatArray =
    TfliteClassifier(direct(file), threads).use { model ->
        val size = model.info.input.tensor.size
        model.run(model.info.input.values(IntArray(size) { pixels[it].toInt() and 0xff }))
    }

private fun residentKilobytes(): Long =
    File("/proc/self/status").readLines().first { it.startsWith("VmRSS") }.filter { it.isDigit() }.toLong()
