"""The types in which a quantization-aware file stores kernels and biases.

TensorFlow's converter finds the levels of a trained model, and stores them as it does
all others: kernels in 8 bits, biases in 32. What was trained for 4 bits is packed here,
without loss; and sums of 16-bit activations get the biases of 64 bits that the kernels
of TFLite read.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np

from kdlite.compress.recipes import Recipe
from kdlite.compress.stand_ins import SLOPES

Array = np.ndarray[Any, Any]

# Steps of 8 bits to one of 4: the largest weight of a channel is level 127 or level 7.
_FINER = 127 / 7
# Operation -> where its kernel and its bias are among the inputs, and the version that
# knows kernels of 4 bits; 0 where none does.
_WITH_KERNEL = {
    "CONV_2D": (1, 2, 7),
    "FULLY_CONNECTED": (1, 2, 0),
    "DEPTHWISE_CONV_2D": (1, 2, 0),
    "TRANSPOSE_CONV": (1, 3, 0),
}
# Operation -> the version that takes sums of 64 bits; that of 32 came later.
_WITH_WIDE_BIAS = {
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5,
    "FULLY_CONNECTED": 7,
    "TRANSPOSE_CONV": 3,
}
# What stands in for these; and the version in which all of them take 16 bits.
_OPERATIONS = {"softmax": "SOFTMAX", "sigmoid": "LOGISTIC", "tanh": "TANH"}
_VERSION_16 = 3
# Operation -> the version whose 16-bit sums take any scale, not powers of two alone.
_SUMS = {"ADD": 3, "SUB": 5}


def as_trained(blob: bytes, recipe: Recipe) -> bytes:
    """Stores the kernels and biases of a converted file as its recipe has them.

    - Kernels of 4 bits: a kernel whose levels in 8 bits are those of a 4-bit grid,
      `round(k * 127 / 7)` with `|k| <= 7` in each channel, is packed, two values to a
      byte. Others, as those of transposed convolutions, for which TFLite has no such
      operation, keep 8 bits.
    - Activations of 16 bits: biases become 64 bits wide, and sums take their scales as
      they are.

    Args:
        blob: A `.tflite` as the converter makes it of a quantization-aware model.
        recipe: What it was trained for.

    Returns:
        The bytes of the file; `blob` itself for 8 bits of both.

    Example:
        ``as_trained(converter.convert(), recipe("int4"))``
    """
    if (recipe.weight_bits, recipe.activation_bits) == (8, 8):
        return blob
    return _Rewriter(blob).rewritten(recipe)


class _Rewriter:
    def __init__(self, blob: bytes) -> None:
        # TensorFlow takes seconds to load, and is where files are converted.
        from tensorflow.lite.python import schema_py_generated as schema

        self._schema: Any = schema
        self._model: Any = schema.ModelT.InitFromPackedBuf(blob, 0)
        operators = schema.BuiltinOperator
        self._names = {
            number: name
            for name, number in vars(operators).items()
            if isinstance(number, int)
        }

    def rewritten(self, recipe: Recipe) -> bytes:
        for graph in self._model.subgraphs:
            for op in graph.operators:
                code = self._model.operatorCodes[op.opcodeIndex]
                name = self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
                if name in _WITH_KERNEL:
                    kernel_at, bias_at, version = _WITH_KERNEL[name]
                    inputs = [graph.tensors[i] if i >= 0 else None for i in op.inputs]
                    kernel = inputs[kernel_at]
                    bias = inputs[bias_at] if len(inputs) > bias_at else None
                    if recipe.weight_bits == 4 and version:
                        if self._pack(kernel, bias):
                            code.version = max(code.version, version)
                    if recipe.activation_bits == 16 and bias is not None:
                        self._widen(bias)
                        code.version = min(code.version, _WITH_WIDE_BIAS[name])
                        op.builtinOptions.quantizedBiasType = 0
                elif name == "LEAKY_RELU" and recipe.activation_bits == 16:
                    self._put_in(op)
                elif name in _SUMS and recipe.activation_bits == 16:
                    first = graph.tensors[op.inputs[0]]
                    if first.type == self._schema.TensorType.INT16:
                        op.builtinOptions.potScaleInt16 = False
                        code.version = max(code.version, _SUMS[name])
        self._drop_unused()
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _put_in(self, op: Any) -> None:
        """Puts in the operation that a leaky ReLU stands in for, if it does."""
        slope = op.builtinOptions.alpha
        names = [name for name, known in SLOPES.items() if known == slope]
        if not names:
            return
        schema, name = self._schema, _OPERATIONS[names[0]]
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = code.builtinCode
        code.version = _VERSION_16
        op.opcodeIndex = len(self._model.operatorCodes)
        self._model.operatorCodes.append(code)
        op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.NONE, None
        if name == "SOFTMAX":
            op.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
            op.builtinOptions = schema.SoftmaxOptionsT()
            op.builtinOptions.beta = 1.0

    def _pack(self, kernel: Any, bias: Any) -> bool:
        """Packs a kernel that lies on a 4-bit grid, and returns whether it does."""
        types = self._schema.TensorType
        if kernel.type == types.INT8 and len(self._data(kernel, "int8")):
            levels = self._data(kernel, "int8")
            grid = np.rint(levels / _FINER)
            if np.any(np.rint(grid * _FINER) != levels):
                return False
            nibbles = grid.astype("int8").view("uint8") & 15
            nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, "uint8"))
            self._store(kernel, nibbles[::2] | nibbles[1::2] << 4, types.INT4)
            self._coarsen(kernel)
        if kernel.type != types.INT4:
            return False
        if bias is not None:
            values = np.rint(self._data(bias, "int32") / _FINER)
            self._store(bias, values.astype("int32"), types.INT32)
            self._coarsen(bias)
        return True

    @staticmethod
    def _coarsen(tensor: Any) -> None:
        scales = np.asarray(tensor.quantization.scale, "float32")
        tensor.quantization.scale = scales * np.float32(_FINER)

    def _widen(self, bias: Any) -> None:
        types = self._schema.TensorType
        if bias.type == types.INT32:
            wide = self._data(bias, "int32").astype("int64")
            self._store(bias, wide, types.INT64)

    def _drop_unused(self) -> None:
        """Empties the buffers that nothing refers to any more."""
        used = {t.buffer for graph in self._model.subgraphs for t in graph.tensors}
        used |= {entry.buffer for entry in self._model.metadata or ()}
        for index, buffer in enumerate(self._model.buffers):
            if index not in used:
                buffer.data = None

    def _data(self, tensor: Any, dtype: str) -> Array:
        data = self._model.buffers[tensor.buffer].data
        return np.asarray(() if data is None else data, "uint8").view(dtype)

    def _store(self, tensor: Any, values: Array, dtype: int) -> None:
        buffer = self._schema.BufferT()
        buffer.data = np.ascontiguousarray(values).view("uint8")
        tensor.buffer, tensor.type = len(self._model.buffers), dtype
        self._model.buffers.append(buffer)
