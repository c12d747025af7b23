package org.kdlite.demo.core

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

private fun littleEndian(file: File) = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN)

/** The float32 values of a file that NumPy wrote. */
fun floats(file: File): FloatArray = littleEndian(file).asFloatBuffer().let { b -> FloatArray(b.remaining()).also { b.get(it) } }

/** The int32 values of a file that NumPy wrote. */
fun ints(file: File): IntArray = littleEndian(file).asIntBuffer().let { b -> IntArray(b.remaining()).also { b.get(it) } }

/** A file as the runtime wants it: direct and in native order. */
fun direct(bytes: ByteArray): ByteBuffer =
    ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes).apply { rewind() }

fun direct(file: File): ByteBuffer = direct(file.readBytes())

/** Where `ci/make_data.py` put files. */
val dataFolder: File get() = File(System.getProperty("kdlite.data"))
