package org.kdlite.demo.inference

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.kdlite.demo.core.ModelInfo
import org.kdlite.demo.core.Unusable
import org.kdlite.demo.core.UnusableModel
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.TensorFlowLite

/**
 * A model in TensorFlow Lite, on the CPU.
 *
 * @param model a direct buffer in native order; must not change while this is open.
 * @throws UnusableModel if it is none that the app can run; nothing is left open then.
 */
class TfliteClassifier(model: ByteBuffer, override val threads: Int) : Classifier {
    override val info = ModelInfo.read(model)
    private val interpreter = interpreter(model, threads)
    private val input = ByteBuffer.allocateDirect(info.input.tensor.sizeBytes).order(ByteOrder.nativeOrder())
    private val outputs: Map<Int, ByteBuffer>

    init {
        outputs = try {
            (0 until interpreter.outputTensorCount).associateWith {
                ByteBuffer.allocateDirect(interpreter.getOutputTensor(it).numBytes()).order(ByteOrder.nativeOrder())
            }.also {
                val output = it[info.outputIndex]
                val sizes = interpreter.getInputTensor(0).numBytes() to output?.capacity()
                if (sizes != info.input.tensor.sizeBytes to info.output.sizeBytes) {
                    throw UnusableModel(Unusable.CANNOT_RUN)
                }
            }
        } catch (e: RuntimeException) {
            interpreter.close()
            throw UnusableModel(Unusable.CANNOT_RUN, e)
        } catch (e: UnusableModel) {
            interpreter.close()
            throw e
        }
    }

    override fun run(values: FloatArray): FloatArray {
        info.input.tensor.write(values, input)
        for (output in outputs.values) output.rewind()
        interpreter.runForMultipleInputsOutputs(arrayOf(input), outputs)
        return info.output.read(outputs.getValue(info.outputIndex))
    }

    override fun close() = interpreter.close()

    companion object {
        /** The version of the runtime that is in the app. */
        val runtimeVersion: String get() = TensorFlowLite.runtimeVersion()

        private fun interpreter(model: ByteBuffer, threads: Int): Interpreter = try {
            Interpreter(model, Interpreter.Options().setNumThreads(threads)).also {
                try {
                    it.allocateTensors()
                } catch (e: RuntimeException) {
                    it.close()
                    throw e
                }
            }
        } catch (e: RuntimeException) {
            throw UnusableModel(Unusable.CANNOT_RUN, e)
        }
    }
}
