"""Which TFLite runtime a file needs: an own table, since files do not say it reliably.

A runtime looks up each operation by its name and version. Converters write versions
that are too low (ai-edge-quantizer gives a Dense layer of int4 weights version 1), and
then an old runtime loads the file and computes nonsense, or stops when it runs. So the
version that an operation needs is found from its types here, and the higher of that and
the file's own counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kdlite.lite.tflite_file import Op, TensorInfo, TFLiteFile

Release = tuple[int, ...]

# All that is not in the tables below came with this release or an older one.
_BASE: Release = (2, 3)

# Operation -> version -> the release that it came with, where that is after `_BASE`.
_RELEASES: dict[str, dict[int, str]] = {
    "ABS": {2: "2.4", 3: "2.5", 4: "2.6", 5: "2.12"},
    "ADD": {3: "2.4", 4: "2.6", 5: "2.13", 6: "2.23"},
    "ARG_MAX": {3: "2.9"},
    "ARG_MIN": {3: "2.9"},
    "ASSIGN_VARIABLE": {1: "2.6"},
    "ATAN2": {1: "2.10"},
    "BATCH_MATMUL": {3: "2.4", 4: "2.5"},
    "BATCH_TO_SPACE_ND": {4: "2.12"},
    "BITCAST": {1: "2.13"},
    "BITWISE_XOR": {1: "2.13"},
    "BROADCAST_ARGS": {1: "2.6"},
    "BROADCAST_TO": {2: "2.5", 3: "2.5"},
    "BUCKETIZE": {1: "2.8"},
    "CALL_ONCE": {1: "2.5"},
    "CAST": {
        2: "2.7",
        3: "2.8",
        4: "2.9",
        5: "2.12",
        6: "2.15",
        7: "2.17",
        8: "2.21",
    },
    "COMPLEX_ABS": {1: "2.5"},
    "CONCATENATION": {4: "2.14", 5: "2.21", 6: "2.23"},
    "CONV_2D": {5: "2.4", 6: "2.9", 7: "2.11", 8: "2.15"},
    "CONV_3D": {1: "2.5"},
    "CONV_3D_TRANSPOSE": {1: "2.6"},
    "COS": {2: "2.23"},
    "CUMSUM": {1: "2.4"},
    "DEPTHWISE_CONV_2D": {7: "2.11"},
    "DEPTH_TO_SPACE": {2: "2.5"},
    "DEQUANTIZE": {5: "2.7", 6: "2.18", 7: "2.21", 8: "2.22"},
    "DILATE": {1: "2.15"},
    "DYNAMIC_UPDATE_SLICE": {
        1: "2.9",
        2: "2.17",
        3: "2.19",
        4: "2.20",
        5: "2.21",
        6: "2.22",
    },
    "EMBEDDING_LOOKUP": {4: "2.18", 5: "2.21"},
    "EQUAL": {4: "2.13", 5: "2.21"},
    "EXP": {2: "2.12"},
    "FILL": {3: "2.5", 4: "2.12"},
    "FLOOR_DIV": {3: "2.13"},
    "FLOOR_MOD": {2: "2.13"},
    "FULLY_CONNECTED": {10: "2.11", 11: "2.15", 12: "2.17", 13: "2.18", 14: "2.21"},
    "GATHER": {4: "2.4", 5: "2.5", 6: "2.13", 7: "2.15"},
    "GATHER_ND": {3: "2.5", 4: "2.13", 5: "2.16"},
    "GELU": {1: "2.9", 2: "2.9"},
    "GREATER_EQUAL": {3: "2.13"},
    "HASHTABLE": {1: "2.5"},
    "HASHTABLE_FIND": {1: "2.5"},
    "HASHTABLE_IMPORT": {1: "2.5"},
    "HASHTABLE_SIZE": {1: "2.5"},
    "IMAG": {1: "2.5"},
    "LESS": {3: "2.13"},
    "LOG": {2: "2.15"},
    "MEAN": {3: "2.4"},
    "MIRROR_PAD": {3: "2.12"},
    "MUL": {5: "2.6", 6: "2.11", 7: "2.13", 8: "2.23"},
    "MULTINOMIAL": {1: "2.8"},
    "NOT_EQUAL": {4: "2.21"},
    "PACK": {4: "2.13"},
    "PAD": {3: "2.4", 4: "2.6", 5: "2.20"},
    "PADV2": {3: "2.4", 4: "2.6", 5: "2.20"},
    "QUANTIZE": {3: "2.7", 4: "2.21", 5: "2.21", 6: "2.21"},
    "RANDOM_STANDARD_NORMAL": {1: "2.8"},
    "RANDOM_UNIFORM": {1: "2.8"},
    "RANGE": {2: "2.14"},
    "READ_VARIABLE": {1: "2.6"},
    "REAL": {1: "2.5"},
    "REDUCE_ALL": {1: "2.6"},
    "REDUCE_MAX": {3: "2.5"},
    "REDUCE_MIN": {3: "2.5"},
    "REDUCE_PROD": {2: "2.6"},
    "REDUCE_WINDOW": {1: "2.15"},
    "RELU": {3: "2.5"},
    "RELU6": {3: "2.5"},
    "RELU_0_TO_1": {1: "2.10"},
    "RESIZE_BILINEAR": {4: "2.5"},
    "RESIZE_NEAREST_NEIGHBOR": {4: "2.4"},
    "REVERSE_V2": {3: "2.5"},
    "RFFT2D": {1: "2.5"},
    "RIGHT_SHIFT": {1: "2.13"},
    "RSQRT": {2: "2.5", 3: "2.15"},
    "SELECT": {3: "2.12", 4: "2.12"},
    "SELECT_V2": {2: "2.12"},
    "SIGN": {1: "2.11", 2: "2.12"},
    "SIN": {2: "2.23"},
    "SLICE": {4: "2.4", 5: "2.5", 6: "2.14", 7: "2.21", 8: "2.23"},
    "SOFTMAX": {4: "2.23"},
    "SPACE_TO_BATCH_ND": {4: "2.12"},
    "SQRT": {2: "2.21"},
    "SQUARED_DIFFERENCE": {2: "2.5"},
    "SQUEEZE": {2: "2.5"},
    "STRIDED_SLICE": {5: "2.5", 6: "2.6", 7: "2.14", 8: "2.14"},
    "SUB": {4: "2.4", 5: "2.4"},
    "TILE": {3: "2.8"},
    "TOPK_V2": {3: "2.13"},
    "TRANSPOSE": {5: "2.4", 6: "2.12", 7: "2.15", 8: "2.22", 9: "2.23"},
    "TRANSPOSE_CONV": {4: "2.13", 5: "2.15"},
    "UNIDIRECTIONAL_SEQUENCE_LSTM": {4: "2.12"},
    "UNPACK": {5: "2.22"},
    "UNSORTED_SEGMENT_MAX": {1: "2.10"},
    "UNSORTED_SEGMENT_MIN": {1: "2.11"},
    "UNSORTED_SEGMENT_PROD": {1: "2.10"},
    "UNSORTED_SEGMENT_SUM": {1: "2.10"},
    "VAR_HANDLE": {1: "2.6"},
    "WHERE": {2: "2.8"},
}

# Operation -> dtype of its first input -> the version that came with that dtype.
_VERSION_OF_TYPE: dict[str, dict[str, int]] = {
    "ABS": {"int8": 2, "int16": 3, "int32": 5},
    "ADD": {"int16": 3, "int64": 4, "float16": 6},
    "ARG_MAX": {"bool": 3},
    "ARG_MIN": {"bool": 3},
    "BATCH_MATMUL": {"int16": 3},
    "BATCH_TO_SPACE_ND": {"int16": 4},
    "BROADCAST_TO": {"int8": 3, "int16": 3},
    "CONCATENATION": {"uint32": 4, "int4": 5, "float16": 6},
    "DEPTH_TO_SPACE": {"int8": 2},
    "DEQUANTIZE": {"int4": 6, "int2": 7, "uint4": 8},
    "EQUAL": {"int16": 5},
    "EXP": {"int8": 2, "int16": 2},
    "FLOOR_DIV": {"int8": 3, "int16": 3},
    "FLOOR_MOD": {"int8": 2, "int16": 2},
    "GATHER": {"int16": 4, "int4": 7},
    "GATHER_ND": {"int16": 3, "bool": 5},
    "GREATER_EQUAL": {"int16": 3},
    "LESS": {"int16": 3},
    "LOG": {"int8": 2, "int16": 2},
    "MEAN": {"int16": 3},
    "MIRROR_PAD": {"int16": 3},
    "MUL": {"int64": 5, "complex64": 6, "uint32": 7, "float16": 8},
    "NOT_EQUAL": {"int16": 4},
    "PACK": {"uint32": 4},
    "PAD": {"int16": 3, "bool": 5},
    "PADV2": {"int16": 3, "bool": 5},
    "REDUCE_MAX": {"int16": 3},
    "REDUCE_MIN": {"int16": 3},
    "REDUCE_PROD": {"int8": 2, "int16": 2},
    "RELU": {"int16": 3},
    "RELU6": {"int16": 3},
    "RESIZE_BILINEAR": {"int16": 4},
    "RESIZE_NEAREST_NEIGHBOR": {"int16": 4},
    "REVERSE_V2": {"int8": 3},
    "RSQRT": {"int8": 2, "int16": 3},
    "SLICE": {"int16": 4, "uint32": 6, "int4": 7, "float16": 8},
    "SOFTMAX": {"float16": 4},
    "SPACE_TO_BATCH_ND": {"int16": 4},
    "SQRT": {"int8": 2, "int16": 2},
    "SQUARED_DIFFERENCE": {"int8": 2},
    "SUB": {"int16": 5, "int64": 4},
    "TILE": {"int8": 3},
    "TRANSPOSE": {"int16": 5, "int4": 7, "bfloat16": 8, "float16": 9},
}

# Operation -> dtypes of input and kernel -> the version that knows both.
_VERSION_OF_KERNEL: dict[str, dict[tuple[str, str], int]] = {
    "BATCH_MATMUL": {("float32", "int8"): 4},
    "CONV_2D": {("int8", "int4"): 7},
    "DEPTHWISE_CONV_2D": {("int8", "int4"): 7},
    "FULLY_CONNECTED": {("int8", "int4"): 10, ("int16", "int4"): 13},
}
# The same, for kernels whose channels have steps of their own.
_VERSION_OF_CHANNELS: dict[str, dict[tuple[str, str], int]] = {
    "CONV_2D": {("float32", "int8"): 5},
    # As tried: 2.16.1, 2.17.1 and 2.18.1 refuse them, LiteRT of 2.21 has them.
    "FULLY_CONNECTED": {("float32", "int8"): 12, ("int8", "int4"): 14},
}
# The same -> the release whose kernels are known to look at those steps, where no
# version tells of it: early kernels know one step for all. 2.12.0 was tried, with
# XNNPACK, built-in and reference kernels, and no older one could be.
_RELEASE_OF_CHANNELS: dict[str, dict[tuple[str, str], Release]] = {
    "FULLY_CONNECTED": {("int8", "int8"): (2, 12), ("int16", "int8"): (2, 12)},
}
# Operation -> axes -> the version that takes so many.
_VERSION_OF_AXES: dict[str, dict[int, int]] = {
    "PAD": {5: 4},
    "PADV2": {5: 4},
    "SLICE": {5: 5},
    "TRANSPOSE": {6: 6, 7: 8},
}
_CAST = {
    "uint32": 2,
    "int8": 3,
    "uint16": 4,
    "float16": 5,
    "float64": 5,
    "int4": 6,
    "bfloat16": 7,
    "int2": 8,
    "uint4": 8,
}


@dataclass(frozen=True)
class NeededRuntime:
    """The oldest runtime that can run a file, and what needs it.

    Attributes:
        release: Such as "2.17"; empty if it is newer than any that kdlite knows.
        op: The operation that needs it; None where any runtime will do.
        version: The version that the operation needs.
    """

    release: str
    op: Op | None
    version: int

    def runs_on(self, release: str) -> bool:
        """Whether a runtime of this release runs the file."""
        return bool(self.release) and _numbers(self.release) <= _numbers(release)


def needed_runtime(content: TFLiteFile) -> NeededRuntime:
    """Finds the oldest TFLite runtime on which every operation of a file is known.

    Custom operations are not looked at: an app brings them itself.

    Args:
        content: What is inside the file.

    Returns:
        The release, at least 2.3, and the operation that asks for it.

    Example:
        ``needed_runtime(inspect("student.tflite")).runs_on("2.16.1")``

    Reference:
        TensorFlow Lite's lists of operator versions and of the releases they came with
        (`op_version.cc`, `runtime_version.cc`).
    """
    found = NeededRuntime(".".join(map(str, _BASE)), None, 0)
    highest: tuple[float, ...] = _BASE
    for op in content.ops:
        if op.custom:
            continue
        # The file's own versions are those of all operations of a kind.
        tensors = content.tensors_of(op)
        version = max(op.version, _version(op, tensors))
        release = max(_release(op.name, version), _release_of_channels(op, tensors))
        if release > highest:
            highest = release
            text = ".".join(map(str, release)) if math.inf not in release else ""
            found = NeededRuntime(text, op, version)
    return found


def _release(name: str, version: int) -> tuple[float, ...]:
    releases = _RELEASES.get(name)
    if releases is None:
        unknown = name.startswith(("STABLEHLO_", "BUILTIN_"))
        return (math.inf,) if unknown else _BASE
    if version in releases:
        return _numbers(releases[version])
    return (math.inf,) if version > max(releases) else _BASE


def _version(op: Op, tensors: Sequence[TensorInfo | None]) -> int:
    """Returns the version that the types and shapes of an operation ask for."""
    read = [tensor for tensor in tensors[: len(op.inputs)] if tensor is not None]
    written = [tensor for tensor in tensors[len(op.inputs) :] if tensor is not None]
    if not read:
        return 1
    first = read[0]
    versions = [1, _VERSION_OF_TYPE.get(op.name, {}).get(first.dtype, 1)]
    versions += [
        version
        for axes, version in _VERSION_OF_AXES.get(op.name, {}).items()
        if len(first.shape) >= axes
    ]
    by_channel = [len(tensor.scales) > 1 for tensor in read]
    if len(read) > 1:
        pair = (first.dtype, read[1].dtype)
        versions.append(_VERSION_OF_KERNEL.get(op.name, {}).get(pair, 1))
        if by_channel[1]:
            versions.append(_VERSION_OF_CHANNELS.get(op.name, {}).get(pair, 1))
    if op.name == "CAST":
        versions += [_CAST.get(tensor.dtype, 1) for tensor in (*read, *written)]
    elif op.name == "CONV_2D" and len(read) > 1 and _is_grouped(first, read[1]):
        versions.append(6)
    elif op.name == "DEQUANTIZE" and by_channel[0]:
        versions.append(5)
    elif op.name == "QUANTIZE" and written:
        versions.append(3 if len(written[0].scales) > 1 else 1)
        versions.append(4 if "int4" in (first.dtype, written[0].dtype) else 1)
    elif op.name == "EMBEDDING_LOOKUP" and len(read) > 1:
        versions.append(4 if by_channel[1] or read[1].dtype == "int4" else 1)
        versions.append(5 if read[1].dtype == "int2" else 1)
    return max(versions)


def _release_of_channels(op: Op, tensors: Sequence[TensorInfo | None]) -> Release:
    read = tensors[: len(op.inputs)]
    if len(read) < 2 or read[0] is None or read[1] is None or len(read[1].scales) < 2:
        return _BASE
    pair = (read[0].dtype, read[1].dtype)
    return _RELEASE_OF_CHANNELS.get(op.name, {}).get(pair, _BASE)


def _is_grouped(values: TensorInfo, kernel: TensorInfo) -> bool:
    known = len(values.shape) == len(kernel.shape) == 4
    return known and 0 < kernel.shape[-1] < values.shape[-1]


def _numbers(release: str) -> Release:
    """Returns `"2.16.1"` as `(2, 16, 1)`."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])
