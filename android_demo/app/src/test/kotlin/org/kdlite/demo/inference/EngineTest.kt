package org.kdlite.demo.inference

import java.util.concurrent.CountDownLatch
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicInteger
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertSame
import org.junit.Assert.assertTrue
import org.junit.Test
import org.kdlite.demo.core.ModelInfo

class EngineTest {
    private class Counted(override val threads: Int, private val open: AtomicInteger) : Classifier {
        private val owner = Thread.currentThread()
        override val info: ModelInfo get() = error("not asked for")
        var closed = false

        init {
            open.incrementAndGet()
        }

        override fun run(values: FloatArray): FloatArray {
            assertSame(owner, Thread.currentThread())
            assertFalse(closed)
            return values
        }

        override fun close() {
            assertSame(owner, Thread.currentThread())
            closed = true
            open.decrementAndGet()
        }
    }

    private val open = AtomicInteger()
    private val posted = LinkedBlockingQueue<() -> Unit>()
    private val engine = Engine({ Counted(it, open) }, { posted.add(it) })

    private fun nextPost() = posted.poll(120, TimeUnit.SECONDS)!!()

    @Test
    fun oneClassifierIsOpenAtATimeAndNoneAfterwards() {
        val threads = ArrayList<Int>()
        for (count in listOf(1, 4)) engine.load(count) { threads.add(it.getOrThrow().threads) }
        repeat(2) { nextPost() }
        assertEquals(listOf(1, 4), threads)
        assertEquals(1, open.get())
        engine.close()
        assertTrue(engine.awaitClosed(120_000))
        assertEquals(0, open.get())
    }

    @Test
    fun framesAreDroppedWhileOneRuns() {
        engine.load(1) { it.getOrThrow() }
        nextPost()
        val goOn = CountDownLatch(1)
        val results = ArrayList<Int>()
        assertTrue(engine.runIfIdle({ goOn.await(); 1 }) { results.add(it.getOrThrow()) })
        repeat(10) { assertFalse(engine.runIfIdle({ 2 }) { results.add(it.getOrThrow()) }) }
        goOn.countDown()
        nextPost()
        assertTrue(engine.runIfIdle({ 3 }) { results.add(it.getOrThrow()) })
        nextPost()
        assertEquals(listOf(1, 3), results)
        engine.close()
    }

    @Test
    fun aFailedLoadKeepsTheModelBefore() {
        var fails = false
        val engine = Engine({ if (fails) error("broken") else Counted(it, open) }, { posted.add(it) })
        engine.load(1) { it.getOrThrow() }
        nextPost()
        fails = true
        var failure: Throwable? = null
        engine.load(2) { failure = it.exceptionOrNull() }
        nextPost()
        assertEquals("broken", failure!!.message)
        var threads = 0
        engine.run({ it.threads }) { threads = it.getOrThrow() }
        nextPost()
        assertEquals(1, threads)
        engine.close()
    }

    @Test
    fun nothingComesAfterClosing() {
        engine.load(1) { error("came") }
        engine.close()
        assertTrue(engine.awaitClosed(120_000))
        posted.poll(100, TimeUnit.MILLISECONDS)?.invoke()
        assertFalse(engine.run({ 1 }) { error("came") })
        engine.close()
        assertEquals(0, open.get())
        assertNull(posted.poll())
    }
}
