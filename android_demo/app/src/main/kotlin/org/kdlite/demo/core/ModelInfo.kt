package org.kdlite.demo.core

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.schema.BuiltinOperator
import org.tensorflow.lite.schema.Model
import org.tensorflow.lite.schema.OperatorCode
import org.tensorflow.lite.schema.TensorType as SchemaType
import org.tensorflow.lite.support.metadata.MetadataExtractor
import org.tensorflow.lite.support.metadata.schema.AssociatedFileType
import org.tensorflow.lite.support.metadata.schema.ContentProperties
import org.tensorflow.lite.support.metadata.schema.NormalizationOptions
import org.tensorflow.lite.support.metadata.schema.ProcessUnitOptions
import org.tensorflow.lite.support.metadata.schema.TensorMetadata

/** Why a file cannot be used. */
enum class Unusable { TOO_LARGE, NOT_A_MODEL, NO_METADATA, NOT_AN_IMAGE_CLASSIFIER, NO_NORMALISATION, UNSUPPORTED_TYPE, CANNOT_RUN }

/** A file that the app cannot use, and why. */
class UnusableModel(val reason: Unusable, cause: Throwable? = null) : Exception(reason.name, cause)

/**
 * What a `.tflite` says of itself.
 *
 * @property outputIndex which of the model's outputs has the classes.
 * @property origin what `kdlite.json` holds: versions, quantization, fingerprints.
 * @property golden vectors for the self-test, null where the file has none.
 */
class ModelInfo(
    val name: String,
    val description: String,
    val version: String,
    val author: String,
    val license: String,
    val labels: List<String>,
    val meaning: ScoreMeaning,
    val input: ImageInput,
    val output: TensorSpec,
    val outputIndex: Int,
    val sizeBytes: Int,
    val origin: Map<String, Any?>,
    val golden: GoldenVectors?,
) {
    /** How the model computes, such as "int8"; empty where the file does not say. */
    val quantization: String get() = origin["quantization"] as? String ?: ""

    /** What the file was held to when it was made; null where it does not say. */
    val check: KerasCheck? get() = KerasCheck.of(origin["checked"])

    /** Whether a finger can draw what the model knows: one small grey image. */
    val isDrawable: Boolean get() = input.isGrey && maxOf(input.height, input.width) <= MOST_DRAWABLE

    companion object {
        const val MOST_BYTES = 256L shl 20
        private const val MOST_DRAWABLE = 64

        /**
         * Reads a file and trusts nothing in it.
         *
         * @throws UnusableModel if it is broken, foreign, or no image classifier.
         */
        fun read(model: ByteBuffer): ModelInfo {
            if (model.capacity() > MOST_BYTES) throw UnusableModel(Unusable.TOO_LARGE)
            val bytes = model.duplicate().order(ByteOrder.LITTLE_ENDIAN)
            if (bytes.capacity() < 8 || bytes.getInt(4) != IDENTIFIER) throw UnusableModel(Unusable.NOT_A_MODEL)
            return try {
                ModelReader(bytes).read()
            } catch (e: RuntimeException) {
                // Whatever a hostile offset makes the reader run into.
                throw UnusableModel(Unusable.NOT_A_MODEL, e)
            } catch (e: StackOverflowError) {
                throw UnusableModel(Unusable.NOT_A_MODEL, e)
            } catch (e: OutOfMemoryError) {
                throw UnusableModel(Unusable.NOT_A_MODEL, e)
            } catch (e: java.io.IOException) {
                throw UnusableModel(Unusable.NOT_A_MODEL, e)
            }
        }

        private const val IDENTIFIER = 0x334c4654 // "TFL3"
    }
}

private class ModelReader(private val bytes: ByteBuffer) {
    // The extractor moves the place in the buffer that it is given.
    private val file = MetadataExtractor(bytes.duplicate())

    fun read(): ModelInfo {
        if (!file.hasMetadata()) refuse(Unusable.NO_METADATA)
        if (file.inputTensorCount != 1 || file.outputTensorCount !in 1..MOST_ENTRIES) refuse(Unusable.NOT_AN_IMAGE_CLASSIFIER)
        val input = imageInput()
        val outputIndex = (0 until file.outputTensorCount).firstOrNull { labelFile(it) != null } ?: 0
        val about = file.modelMetadata
        val output = TensorSpec(
            name = file.getOutputTensorMetadata(outputIndex)?.name().orEmpty(),
            size = sizeOf(file.getOutputTensorShape(outputIndex)),
            type = type(file.getOutputTensorType(outputIndex)),
            scale = file.getOutputTensorQuantizationParams(outputIndex).scale,
            zeroPoint = file.getOutputTensorQuantizationParams(outputIndex).zeroPoint,
        )
        val labels = labelFile(outputIndex)?.let { text(it).trimEnd('\n').lines() }
            ?: List(output.size) { "$it" }
        if (labels.size != output.size || output.size < 2) refuse(Unusable.NOT_AN_IMAGE_CLASSIFIER)
        val origin = origin()
        return ModelInfo(
            name = about.name().orEmpty(),
            description = about.description().orEmpty(),
            version = about.version().orEmpty(),
            author = about.author().orEmpty(),
            license = about.license().orEmpty(),
            labels = labels,
            meaning = meaning(outputIndex),
            input = input,
            output = output,
            outputIndex = outputIndex,
            sizeBytes = bytes.capacity(),
            origin = origin,
            golden = golden(origin, output),
        )
    }

    private fun imageInput(): ImageInput {
        val shape = file.getInputTensorShape(0)
        val about = file.getInputTensorMetadata(0)
        val isImage = about?.content()?.contentPropertiesType() == ContentProperties.ImageProperties
        if (!isImage || shape.size != 4 || shape[0] != 1 || (shape[3] != 1 && shape[3] != 3)) {
            refuse(Unusable.NOT_AN_IMAGE_CLASSIFIER)
        }
        val size = sizeOf(shape)
        val (mean, std) = normalisation(about!!, shape[3]) ?: refuse(Unusable.NO_NORMALISATION)
        if (!(mean + std).all { it.isFinite() } || std.any { it == 0f }) refuse(Unusable.NO_NORMALISATION)
        val quantization = file.getInputTensorQuantizationParams(0)
        return ImageInput(
            height = shape[1],
            width = shape[2],
            channels = shape[3],
            mean = mean,
            std = std,
            tensor = TensorSpec(
                name = about.name().orEmpty(),
                size = size,
                type = type(file.getInputTensorType(0)),
                scale = quantization.scale,
                zeroPoint = quantization.zeroPoint,
            ),
        )
    }

    private fun sizeOf(shape: IntArray): Int {
        val size = shape.fold(1L) { product, length -> product * length }
        if (shape.any { it < 1 } || size > MOST_VALUES) refuse(Unusable.NOT_AN_IMAGE_CLASSIFIER)
        return size.toInt()
    }

    private fun type(schemaType: Byte): TensorType = when (schemaType) {
        SchemaType.FLOAT32 -> TensorType.FLOAT32
        SchemaType.INT8 -> TensorType.INT8
        SchemaType.UINT8 -> TensorType.UINT8
        else -> refuse(Unusable.UNSUPPORTED_TYPE)
    }

    private fun normalisation(about: TensorMetadata, channels: Int): Pair<FloatArray, FloatArray>? {
        for (i in 0 until minOf(about.processUnitsLength(), MOST_ENTRIES)) {
            val unit = about.processUnits(i)
            if (unit.optionsType() != ProcessUnitOptions.NormalizationOptions) continue
            val options = unit.options(NormalizationOptions()) as NormalizationOptions
            // One number for all channels, or one for each.
            if (listOf(options.meanLength(), options.stdLength()).any { it != 1 && it != channels }) return null
            return FloatArray(options.meanLength()) { options.mean(it) } to
                FloatArray(options.stdLength()) { options.std(it) }
        }
        return null
    }

    private fun labelFile(output: Int): String? {
        val about = file.getOutputTensorMetadata(output) ?: return null
        return (0 until minOf(about.associatedFilesLength(), MOST_ENTRIES)).map { about.associatedFiles(it) }
            .firstOrNull { it.type() == AssociatedFileType.TENSOR_AXIS_LABELS }?.name()
    }

    /**
     * By the graph, where it ends in probabilities: a layer's name may be older than the activation that it got. Else by
     * the words of the file, such as "Probabilities of the 1001 labels", of which the name counts least.
     */
    private fun meaning(output: Int): ScoreMeaning {
        if (endsInProbabilities(output)) return ScoreMeaning.PROBABILITIES
        val about = file.getOutputTensorMetadata(output)
        return listOfNotNull(about?.description(), about?.name()).firstNotNullOfOrNull {
            val words = it.lowercase()
            when {
                "logit" in words -> ScoreMeaning.LOGITS
                "probabilit" in words -> ScoreMeaning.PROBABILITIES
                else -> null
            }
        } ?: ScoreMeaning.LOGITS
    }

    /** Whether the output comes out of a softmax or sigmoid, of which at most type or shape are changed. */
    private fun endsInProbabilities(output: Int): Boolean {
        val model = Model.getRootAsModel(bytes)
        val graph = model.subgraphs(0)
        var tensor = graph.outputs(output)
        // In the order in which they run, so the way back is from the last.
        for (i in graph.operatorsLength() - 1 downTo 0) {
            val operator = graph.operators(i)
            if ((0 until operator.outputsLength()).none { operator.outputs(it) == tensor }) continue
            when (code(model.operatorCodes(operator.opcodeIndex().toInt()))) {
                BuiltinOperator.SOFTMAX, BuiltinOperator.LOGISTIC -> return true
                BuiltinOperator.QUANTIZE, BuiltinOperator.DEQUANTIZE, BuiltinOperator.CAST, BuiltinOperator.RESHAPE,
                BuiltinOperator.SQUEEZE,
                -> tensor = operator.inputs(0)
                else -> return false
            }
        }
        return false
    }

    /** Files of before 2020 have the one field, later ones both where the code is below 127. */
    private fun code(operator: OperatorCode): Int =
        maxOf(operator.builtinCode(), operator.deprecatedBuiltinCode().toInt())

    private fun origin(): Map<String, Any?> {
        if (PROVENANCE !in file.associatedFileNames) return emptyMap()
        val told = try {
            parseJson(text(PROVENANCE))
        } catch (e: IllegalArgumentException) {
            null // of others, or broken: the model may run all the same
        }
        @Suppress("UNCHECKED_CAST")
        return told as? Map<String, Any?> ?: emptyMap()
    }

    private fun golden(origin: Map<String, Any?>, output: TensorSpec): GoldenVectors? {
        val golden = origin["golden"] as? Map<*, *> ?: return null
        if (golden["pattern"] != GoldenVectors.PATTERN) return null
        val rows = (golden["outputs"] as? Map<*, *>)?.get(output.name) as? List<*> ?: return null
        val step = (golden["steps"] as? Map<*, *>)?.get(output.name) as? Double
        val outputs = rows.map { row -> (row as List<*>).map { (it as Double).toFloat() }.toFloatArray() }
        if (outputs.isEmpty() || outputs.any { it.size != output.size }) return null
        return GoldenVectors(outputs, step?.toFloat())
    }

    private fun text(name: String): String {
        val stream = file.getAssociatedFile(name) ?: refuse(Unusable.NOT_A_MODEL)
        val out = java.io.ByteArrayOutputStream()
        val part = ByteArray(8192)
        stream.use {
            while (true) {
                val count = it.read(part)
                if (count < 0) break
                out.write(part, 0, count)
                if (out.size() > MOST_TEXT) refuse(Unusable.TOO_LARGE)
            }
        }
        return out.toString("UTF-8").replace("\r\n", "\n")
    }

    private fun refuse(reason: Unusable): Nothing = throw UnusableModel(reason)

    private companion object {
        const val PROVENANCE = "kdlite.json"
        const val MOST_VALUES = 1L shl 24
        const val MOST_TEXT = 16 shl 20
        const val MOST_ENTRIES = 1_000
    }
}
