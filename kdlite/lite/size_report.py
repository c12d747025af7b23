"""What a file weighs, stored and compressed, and how its weights are: read from it.

A pruned or clustered model has as many bytes as before. What is saved shows when the
file is compressed, as an app store does it; and whether the zeros and the shared values
are still there after conversion can be seen in the file's own tensors alone.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdlite.lite.flatbuffer import Table
from kdlite.lite.tflite_file import TensorInfo
from kdlite.lite.tflite_reader import inspect_bytes
from kdlite.terminal import in_a_line

Array = np.ndarray[Any, Any]

_IDENTIFIER = b"TFL3"
# The fields' numbers in TFLite's schema, version 3.
_BUFFERS = 4
_DATA, _OFFSET, _SIZE = 0, 1, 2
# Without its time stamp, so that equal files have equal sizes.
_LEVEL = 9


@dataclass(frozen=True)
class WeightTensor:
    """The weights of one operation, as the file holds them.

    Attributes:
        op: The operation, and the tensor that it makes.
        dtype: The dtype that they are stored in.
        shape: In TFLite's layout: `(units, inputs)`, `(filters, height, width,
            channels)`.
        zeros: The part of them that is zero, 0 to 1.
        values: How many different values they have.
        values_per_channel: How many the channel with the most has, where a step belongs
            to a channel; else as `values`.
        two_of_four: Whether of each four neighbours on the last axis two are zero.
    """

    op: str
    dtype: str
    shape: tuple[int, ...]
    zeros: float
    values: int
    values_per_channel: int
    two_of_four: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class SizeReport:
    """What a `.tflite` weighs.

    Attributes:
        name: The file's name, empty where its bytes were given.
        size_bytes: Its bytes.
        compressed_bytes: Its bytes after gzip (deflate) at level 9.
        weights: Each kernel and table in it once, in the order of the operations.
    """

    name: str
    size_bytes: int
    compressed_bytes: int
    weights: tuple[WeightTensor, ...]

    @property
    def zeros(self) -> float:
        """The part of all these weights that is zero, 0 to 1."""
        sizes = [int(np.prod(tensor.shape)) for tensor in self.weights]
        zeros = sum(
            size * tensor.zeros
            for size, tensor in zip(sizes, self.weights, strict=True)
        )
        return zeros / max(1, sum(sizes))

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "compressed_bytes": self.compressed_bytes,
            "zeros": self.zeros,
            "weights": [tensor.to_dict() for tensor in self.weights],
        }

    def __str__(self) -> str:
        rows = [("weights of", "dtype", "shape", "zeros", "values", "per channel")]
        for tensor in self.weights:
            rows.append(
                (
                    in_a_line(tensor.op),
                    tensor.dtype,
                    str(list(tensor.shape)),
                    f"{tensor.zeros:.1%}" + (" 2:4" if tensor.two_of_four else ""),
                    f"{tensor.values:,}",
                    f"{tensor.values_per_channel:,}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join(
                text.ljust(width) if index < 3 else text.rjust(width)
                for index, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )
        return (
            f"{in_a_line(self.name) or 'model'}: {self.size_bytes:,} bytes, "
            f"{self.compressed_bytes:,} compressed, {self.zeros:.1%} of the weights "
            f"are zero\n{table}"
        )


def size_report(file: str | os.PathLike[str] | bytes) -> SizeReport:
    """Weighs a `.tflite`, whoever made it, and counts what its weights are made of.

    Args:
        file: The path of the file, or its bytes.

    Returns:
        Its bytes, raw and compressed, and for each kernel the zeros and the different
        values that are stored; prints as a table.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no `.tflite`, is cut short, or contradicts itself.

    Example:
        ``print(kdlite.size_report("student_int8.tflite"))``
    """
    content, blob = inspect_bytes(file)
    buffers = Table.root(blob, _IDENTIFIER).tables(_BUFFERS)
    found: list[WeightTensor] = []
    seen: set[int] = set()
    for op in content.ops:
        for tensor in content.tensors_of(op)[: len(op.inputs)]:
            if tensor is None or tensor.buffer in seen or not _is_weight(tensor):
                continue
            seen.add(tensor.buffer)
            levels = _levels(
                tensor, _stored(buffers[tensor.buffer], blob), content.name
            )
            found.append(_counted(str(op), tensor, levels))
    compressed = len(gzip.compress(blob, compresslevel=_LEVEL, mtime=0))
    return SizeReport(content.name, len(blob), compressed, tuple(found))


def _is_weight(tensor: TensorInfo) -> bool:
    # Shapes and paddings are plain integers; biases have one axis.
    number = tensor.dtype in ("float16", "float32") or bool(tensor.scales)
    return tensor.constant and number and len(tensor.shape) > 1


def _stored(buffer: Table, blob: bytes) -> bytes:
    if data := buffer.content(_DATA):
        return data
    start, size = buffer.number(_OFFSET, "Q"), buffer.number(_SIZE, "Q")
    return blob[start : start + size]


def _levels(tensor: TensorInfo, data: bytes, name: str) -> Array:
    """Returns what is stored, as integers or floats of the tensor's shape."""
    bits = {"int4": 4, "uint4": 4, "int2": 2}.get(tensor.dtype)
    if bits:
        packed = np.frombuffer(data, "uint8")
        mask, parts = 2**bits - 1, range(0, 8, bits)  # the lowest first
        levels = np.stack([(packed >> shift) & mask for shift in parts], -1)
        levels = levels.reshape(-1)[: tensor.size].astype("int16")
        if not tensor.dtype.startswith("u"):
            levels = np.where(levels >= 2 ** (bits - 1), levels - 2**bits, levels)
    else:
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        levels = np.frombuffer(
            data[: len(data) // dtype.itemsize * dtype.itemsize], dtype
        )
    if levels.size != tensor.size:
        raise ValueError(
            "A .tflite must be a whole, well-formed file. Received: "
            f"{name or 'bytes'}, where tensor {tensor.name!r} of {tensor.size} values "
            f"has {levels.size}. Fix: name a .tflite file, or make or copy it again."
        )
    return levels.reshape(tensor.shape)


def _counted(op: str, tensor: TensorInfo, levels: Array) -> WeightTensor:
    zero = _zero_points(tensor, levels.ndim)
    zeros = levels == zero
    values = len(np.unique(levels))
    per_channel = values
    if len(tensor.scales) > 1:
        channels = np.moveaxis(levels, tensor.axis, 0)
        per_channel = max(len(np.unique(channel)) for channel in channels)
    return WeightTensor(
        op=op,
        dtype=tensor.dtype,
        shape=tensor.shape,
        zeros=float(zeros.mean()) if zeros.size else 0.0,
        values=values,
        values_per_channel=per_channel,
        two_of_four=_two_of_four(zeros),
    )


def _zero_points(tensor: TensorInfo, axes: int) -> Any:
    points: Sequence[int] = tensor.zero_points
    if len(points) <= 1:
        return points[0] if points else 0
    shape = [1] * axes
    shape[tensor.axis] = -1
    return np.array(points).reshape(shape)


def _two_of_four(zeros: Array) -> bool:
    full = zeros.shape[-1] // 4 * 4
    if not full:
        return False
    groups = zeros[..., :full].reshape(*zeros.shape[:-1], -1, 4)
    return bool((groups.sum(-1) >= 2).all())
