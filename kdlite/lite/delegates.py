"""Which operations a delegate is likely to take: an estimate from documented rules.

A phone's driver decides in the end, and may take less. What is not taken runs on the
CPU, and each change between the two costs a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdlite.lite.tflite_file import Op, TensorInfo, TFLiteFile
from kdlite.terminal import in_a_line

_FLOAT = frozenset({"float32", "float16"})
_GPU = frozenset(
    """ABS ADD ADD_N ATAN2 AVERAGE_POOL_2D BATCH_MATMUL CAST CEIL CONCATENATION
    CONV_2D COS CUMSUM DENSIFY DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU
    EMBEDDING_LOOKUP EQUAL EXP FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER
    GELU GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGISTIC LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG
    NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_MAX REDUCE_MIN
    REDUCE_PROD RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX
    SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB
    SUM TANH TILE TRANSPOSE TRANSPOSE_CONV
    """.split()
)
_XNNPACK_FLOAT = frozenset(
    """ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CEIL CONCATENATION CONV_2D
    DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU EXP FLOOR FULLY_CONNECTED
    GELU HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG
    PAD PRELU QUANTIZE RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR ROUND RSQRT
    SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SQRT SQUARE SQUARED_DIFFERENCE
    STRIDED_SLICE SUB SUM TANH TRANSPOSE TRANSPOSE_CONV
    """.split()
)
_XNNPACK_8_BIT = frozenset(
    """ADD CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE ELU
    FULLY_CONNECTED LEAKY_RELU LOGISTIC MAX_POOL_2D MEAN MUL PAD QUANTIZE RESHAPE
    RESIZE_BILINEAR SLICE SPLIT STRIDED_SLICE SUB TANH TRANSPOSE TRANSPOSE_CONV
    """.split()
)
_MOST_AXES_GPU = 4


@dataclass(frozen=True)
class DelegateEstimate:
    """What a delegate is likely to take of a file.

    Attributes:
        name: "GPU" or "XNNPACK".
        taken: How many operations.
        ops: Of how many.
        left: By reason how many operations it leaves to the CPU.
        parts: Into how many runs of operations the file falls, the delegate's and the
            CPU's: 1 is best.
    """

    name: str
    taken: int
    ops: int
    left: dict[str, int]
    parts: int

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {**vars(self), "left": dict(self.left), "estimate": True}

    def __str__(self) -> str:
        left = ", ".join(
            f"{count} x {in_a_line(reason)}" for reason, count in self.left.items()
        )
        text = f"{self.name} takes {self.taken} of {self.ops} operations (an estimate)"
        return f"{text}, in {self.parts} parts; not {left}" if left else text


def delegates(content: TFLiteFile) -> tuple[DelegateEstimate, ...]:
    """Estimates what the GPU delegate and XNNPACK take.

    Args:
        content: What is inside the file.

    Returns:
        An estimate for each, of the operations of the graph that is run.

    Example:
        ``print(*map(str, delegates(inspect("student.tflite"))))``

    Reference:
        The lists of operators of the TFLite GPU delegate (`gpu_compatibility.cc`) and
        of the XNNPACK delegate (its README).
    """
    return tuple(
        _estimate(name, content, refuses)
        for name, refuses in (("GPU", _gpu_refuses), ("XNNPACK", _xnnpack_refuses))
    )


def _estimate(name: str, content: TFLiteFile, refuses: Any) -> DelegateEstimate:
    reasons = [
        refuses(op, [tensor for tensor in content.tensors_of(op) if tensor])
        for op in content.ops
        if op.subgraph == 0
    ]
    taken = [not reason for reason in reasons]
    changes = sum(a != b for a, b in zip(taken, taken[1:], strict=False))
    return DelegateEstimate(
        name=name,
        taken=sum(taken),
        ops=len(taken),
        left=dict(Counter(filter(None, reasons)).most_common()),
        parts=changes + 1 if taken else 0,
    )


def _gpu_refuses(op: Op, tensors: Sequence[TensorInfo]) -> str:
    values = [tensor for tensor in tensors if not tensor.constant]
    if op.name not in _GPU:
        return op.name
    if any(-1 in tensor.shape for tensor in values):
        return f"{op.name} of open lengths"
    if any(len(tensor.shape) > _MOST_AXES_GPU for tensor in values):
        return f"{op.name} of more than {_MOST_AXES_GPU} axes"
    if any(tensor.dtype == "int16" for tensor in values):
        return f"{op.name} of int16"
    return ""


def _xnnpack_refuses(op: Op, tensors: Sequence[TensorInfo]) -> str:
    values = [tensor for tensor in tensors if not tensor.constant]
    kinds = {tensor.dtype for tensor in values}
    if not kinds - _FLOAT:
        return "" if op.name in _XNNPACK_FLOAT else op.name
    if kinds <= {"int8", "uint8", *_FLOAT}:
        if kinds & _FLOAT and op.name not in ("QUANTIZE", "DEQUANTIZE"):
            return f"{op.name} of mixed types"
        return "" if op.name in _XNNPACK_8_BIT else f"{op.name} of 8 bits"
    return f"{op.name} of {', '.join(sorted(kinds - _FLOAT))}"
