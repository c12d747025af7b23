package org.kdlite.demo.core

import java.io.File
import java.util.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class ModelInfoTest {
    private val models = File(dataFolder, "models")

    private fun read(name: String) = ModelInfo.read(direct(File(models, "$name/model.tflite")))

    private fun reason(bytes: ByteArray) =
        assertThrows(UnusableModel::class.java) { ModelInfo.read(direct(bytes)) }.reason

    @Test
    fun allComesFromTheFile() {
        val info = read("int8")
        assertEquals("tiny", info.name)
        assertEquals(listOf("circle", "square", "cross"), info.labels)
        assertEquals(Triple(12, 10, 1), Triple(info.input.height, info.input.width, info.input.channels))
        assertEquals(listOf(0f), info.input.mean.toList())
        assertEquals(listOf(1f), info.input.std.toList())
        assertEquals(TensorType.FLOAT32, info.input.tensor.type)
        assertEquals("int8", info.quantization)
        assertEquals(ScoreMeaning.LOGITS, info.meaning)
        assertEquals(File(models, "int8/model.tflite").length().toInt(), info.sizeBytes)
        assertNotNull(info.origin["model_fingerprint"])
        assertEquals(8, info.golden!!.outputs.size)
        assertNotNull(info.golden!!.step)
        assertTrue(info.isDrawable)
    }

    @Test
    fun typesAndScalesOfIntegerEdgesAreRead() {
        assertEquals(TensorType.INT8, read("int8_int8").input.tensor.type)
        val edge = read("int8_uint8").input.tensor
        assertEquals(TensorType.UINT8, edge.type)
        // Raw pixels: a level is a pixel value.
        assertEquals(1f, edge.scale, 1e-6f)
        assertEquals(0, edge.zeroPoint)
    }

    @Test
    fun normalisationAndColourAreRead() {
        val info = read("colour_softmax")
        assertEquals(3, info.input.channels)
        assertEquals(ScoreMeaning.PROBABILITIES, info.meaning)
        // -1..1: (pixel - 127.5) / 127.5
        assertEquals(listOf(127.5f), info.input.mean.toList())
        assertEquals(listOf(127.5f), info.input.std.toList())
    }

    @Test
    fun filesMayHaveNoVectors() {
        for (name in listOf("no_vectors", "empty_vectors")) {
            assertNull(ModelInfo.read(direct(File(models, "$name.tflite"))).golden)
        }
    }

    @Test
    fun whetherScoresAreProbabilitiesIsSaidOrSeen() {
        fun meaning(name: String) = ModelInfo.read(direct(File(models, "$name.tflite"))).meaning
        // As MediaPipe's writer says it, of a graph that does not show it.
        assertEquals(ScoreMeaning.PROBABILITIES, meaning("said_probabilities"))
        assertEquals(ScoreMeaning.LOGITS, meaning("said_logits"))
        // By the softmax or sigmoid that the graph ends in, in float and in integers, whatever is said.
        for (end in listOf("softmax", "sigmoid")) {
            for (kind in listOf("float32", "int8")) {
                assertEquals("$end $kind", ScoreMeaning.PROBABILITIES, meaning("unsaid_${end}_$kind"))
                assertEquals("$end $kind", ScoreMeaning.PROBABILITIES, meaning("said_logits_${end}_$kind"))
            }
        }
        // A layer's name counts least.
        assertEquals(ScoreMeaning.PROBABILITIES, meaning("logits_softmax"))
        assertEquals(ScoreMeaning.LOGITS, meaning("logits_None"))
        assertEquals(ScoreMeaning.PROBABILITIES, meaning("logits_said_probabilities"))
        assertEquals(ScoreMeaning.LOGITS, meaning("no_vectors"))
    }

    @Test
    fun aBrokenOriginIsNone() {
        assertEquals(emptyMap<String, Any>(), ModelInfo.read(direct(File(models, "broken_origin.tflite"))).origin)
    }

    @Test
    fun foreignFilesAreRefusedWithAReason() {
        assertEquals(Unusable.NOT_A_MODEL, reason(ByteArray(0)))
        assertEquals(Unusable.NOT_A_MODEL, reason("not a model at all".toByteArray()))
        assertEquals(Unusable.NO_METADATA, reason(File(models, "no_metadata.tflite").readBytes()))
        assertEquals(Unusable.NOT_AN_IMAGE_CLASSIFIER, reason(File(models, "features.tflite").readBytes()))
        for (name in listOf("no_normalisation", "std_zero", "std_infinite")) {
            assertEquals(name, Unusable.NO_NORMALISATION, reason(File(models, "$name.tflite").readBytes()))
        }
    }

    @Test
    fun cutFilesAreRefusedOrRead() {
        val whole = File(models, "int8/model.tflite").readBytes()
        for (length in 0 until whole.size step 97) {
            try {
                ModelInfo.read(direct(whole.copyOf(length)))
            } catch (e: UnusableModel) {
                // A sentence for the user, and nothing else.
            }
        }
    }

    @Test
    fun changedBytesAreRefusedOrRead() {
        val whole = File(models, "int8/model.tflite").readBytes()
        val random = Random(7)
        var refused = 0
        repeat(2_000) {
            val changed = whole.clone()
            repeat(1 shl random.nextInt(5)) {
                // The metadata are at the front, the archive at the back.
                val place = if (random.nextBoolean()) random.nextInt(2_000) else changed.size - 1 - random.nextInt(2_000)
                changed[place] = random.nextInt(256).toByte()
            }
            try {
                ModelInfo.read(direct(changed))
            } catch (e: UnusableModel) {
                refused++
            }
        }
        assertTrue("$refused", refused in 100..1_999)
    }
}
