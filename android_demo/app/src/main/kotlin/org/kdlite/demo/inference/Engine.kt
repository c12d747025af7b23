package org.kdlite.demo.inference

import java.util.concurrent.Executors
import java.util.concurrent.RejectedExecutionException
import java.util.concurrent.atomic.AtomicBoolean

/**
 * One thread that a classifier is confined to: it is opened, run and closed there.
 *
 * @param open makes the classifier for a number of threads.
 * @param post brings results to the thread of the caller, such as Android's main thread.
 */
class Engine(private val open: (threads: Int) -> Classifier, private val post: (() -> Unit) -> Unit) : AutoCloseable {
    private val thread = Executors.newSingleThreadExecutor { Thread(it, "inference") }
    private val busy = AtomicBoolean()
    @Volatile private var closed = false
    private var classifier: Classifier? = null

    /** Opens the classifier anew; the one before is closed only after this has come about. */
    fun load(threads: Int, done: (Result<Classifier>) -> Unit) = submit(
        {
            val next = open(threads)
            classifier?.close()
            classifier = next
            next
        },
        done,
    )

    /** Runs [work] with the classifier; waits its turn. */
    fun <T> run(work: (Classifier) -> T, done: (Result<T>) -> Unit) =
        submit({ work(classifier ?: error("not loaded")) }, done)

    /** Runs [work], which needs no classifier, such as reading an image; waits its turn. */
    fun <T> async(work: () -> T, done: (Result<T>) -> Unit) = submit(work, done)

    /** As [run], unless such a work waits or runs already: camera frames are dropped, never queued. */
    fun <T> runIfIdle(work: (Classifier) -> T, done: (Result<T>) -> Unit): Boolean {
        if (!busy.compareAndSet(false, true)) return false
        val taken = submit(
            {
                try {
                    work(classifier ?: error("not loaded"))
                } finally {
                    busy.set(false)
                }
            },
            done,
        )
        if (!taken) busy.set(false)
        return taken
    }

    /** Whether [close] was called: long work looks at it. */
    val isClosed: Boolean get() = closed

    private fun <T> submit(work: () -> T, done: (Result<T>) -> Unit): Boolean = try {
        thread.execute {
            if (closed) return@execute
            val result = runCatching(work)
            post { if (!closed) done(result) }
        }
        true
    } catch (e: RejectedExecutionException) {
        false
    }

    /** Closes the classifier after the work that is running; no result comes any more. */
    override fun close() {
        if (closed) return
        closed = true
        try {
            thread.execute {
                classifier?.close()
                classifier = null
            }
        } finally {
            thread.shutdown()
        }
    }

    /** Waits for the thread to end, after [close]; true if it did. */
    fun awaitClosed(milliseconds: Long): Boolean =
        thread.awaitTermination(milliseconds, java.util.concurrent.TimeUnit.MILLISECONDS)
}
