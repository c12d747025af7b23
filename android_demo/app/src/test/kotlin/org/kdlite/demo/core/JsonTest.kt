package org.kdlite.demo.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class JsonTest {
    @Test
    fun readsWhatPythonWrites() {
        val read = parseJson("{\"a\": [1, -2.5e-3, true, null], \"b\": {\"t\": \"\\u00e4\\n\\\"\"}, \"c\": [], \"d\": {}}\n")
        assertEquals(
            mapOf(
                "a" to listOf(1.0, -0.0025, true, null),
                "b" to mapOf("t" to "ä\n\""),
                "c" to emptyList<Any>(),
                "d" to emptyMap<String, Any>(),
            ),
            read,
        )
    }

    @Test
    fun refusesWhatIsNone() {
        val broken = listOf(
            "", "{", "[1,", "[1 2]", "{\"a\" 1}", "{a: 1}", "\"a", "tru", "1 2", "\"\\u12\"", "\"\\x\"", "-", "\"\n\"",
            "[".repeat(100_000),
        )
        for (text in broken) {
            val error = assertThrows(text.take(20), IllegalArgumentException::class.java) { parseJson(text) }
            assertEquals("no JSON", error.message!!.take(7))
        }
    }
}
