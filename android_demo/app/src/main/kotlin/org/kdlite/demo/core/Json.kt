package org.kdlite.demo.core

/**
 * Reads JSON into maps, lists, strings, doubles, booleans and null.
 *
 * Android's own reader is no part of the JVM, and this package runs on both.
 *
 * @throws IllegalArgumentException if the text is no JSON, or nested deeper than [MOST_DEPTH].
 */
fun parseJson(text: String): Any? = JsonReader(text).document()

private const val MOST_DEPTH = 64

private class JsonReader(private val text: String) {
    private var at = 0

    fun document(): Any? {
        val value = value(0)
        skipBlanks()
        if (at != text.length) fail("something after the end")
        return value
    }

    private fun value(depth: Int): Any? {
        if (depth > MOST_DEPTH) fail("too deep")
        skipBlanks()
        return when (peek()) {
            '{' -> members(depth)
            '[' -> items(depth)
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun members(depth: Int): Map<String, Any?> {
        val members = LinkedHashMap<String, Any?>()
        at++
        skipBlanks()
        if (taken('}')) return members
        while (true) {
            skipBlanks()
            if (peek() != '"') fail("a name is missing")
            val name = string()
            skipBlanks()
            if (!taken(':')) fail("':' is missing")
            members[name] = value(depth + 1)
            skipBlanks()
            if (taken('}')) return members
            if (!taken(',')) fail("',' or '}' is missing")
        }
    }

    private fun items(depth: Int): List<Any?> {
        val items = ArrayList<Any?>()
        at++
        skipBlanks()
        if (taken(']')) return items
        while (true) {
            items.add(value(depth + 1))
            skipBlanks()
            if (taken(']')) return items
            if (!taken(',')) fail("',' or ']' is missing")
        }
    }

    private fun string(): String {
        val out = StringBuilder()
        at++
        while (true) {
            val c = peek()
            at++
            when {
                c == '"' -> return out.toString()
                c == '\\' -> out.append(escaped())
                c < ' ' -> fail("a control character in a text")
                else -> out.append(c)
            }
        }
    }

    private fun escaped(): Char {
        val c = peek()
        at++
        return when (c) {
            '"', '\\', '/' -> c
            'b' -> '\b'
            'f' -> '\u000c'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> {
                val code = if (at + 4 <= text.length) text.substring(at, at + 4).toIntOrNull(16) else null
                at += 4
                code?.toChar() ?: fail("a broken \\u")
            }
            else -> fail("an unknown escape")
        }
    }

    private fun number(): Double {
        val start = at
        while (at < text.length && text[at] in "+-.eE0123456789") at++
        return text.substring(start, at).toDoubleOrNull() ?: fail("no value")
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) fail("no value")
        at += word.length
        return value
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("the end")

    private fun taken(c: Char): Boolean = (at < text.length && text[at] == c).also { if (it) at++ }

    private fun skipBlanks() {
        while (at < text.length && text[at] in " \t\r\n") at++
    }

    private fun fail(what: String): Nothing = throw IllegalArgumentException("no JSON: $what at $at")
}
