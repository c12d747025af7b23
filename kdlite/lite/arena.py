"""How much memory a run of a file needs for its tensors."""

from __future__ import annotations

import bisect

from kdlite.lite.tflite_file import TFLiteFile

_ALIGNMENT = 64
_BYTES = {
    "float64": 8,
    "int64": 8,
    "uint64": 8,
    "complex64": 8,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "uint16": 2,
}
# Beyond so many tensors, where each lies is not worked out.
_MOST_TENSORS = 4000


def arena_bytes(content: TFLiteFile) -> int:
    """Returns the bytes of the arena, the memory that tensors share over a run.

    Tensors that are not needed at the same time lie in the same place. As TFLite's
    planner does: the largest first, each at the lowest place that is free from when it
    is made to when it is last read. Scratch memory of kernels, and what a delegate
    takes, come on top.

    Args:
        content: What is inside the file; an open length counts as 1.

    Returns:
        Bytes; of a file of more than 4,000 tensors those that are needed at once.

    Example:
        ``arena_bytes(inspect("student.tflite")) / 2**10``
    """
    ops = [op for op in content.ops if op.subgraph == 0]
    end = len(ops)
    first = {tensor.index: 0 for tensor in content.inputs}
    last = {tensor.index: end for tensor in content.outputs}
    for step, op in enumerate(ops):
        for index in op.outputs:
            first.setdefault(index, step)
            last[index] = max(last.get(index, step), step)
        for index in op.inputs:
            last[index] = max(last.get(index, step), step)
    lives = sorted(
        (
            (_aligned(tensor.size * _BYTES.get(tensor.dtype, 1)), first[t], last[t])
            for t, tensor in enumerate(content.tensors)
            if t in first and t in last and not tensor.constant
        ),
        reverse=True,
    )
    if len(lives) > _MOST_TENSORS:
        changes = [0] * (end + 2)
        for size, start, stop in lives:
            changes[start] += size
            changes[stop + 1] -= size
        most = now = 0
        for change in changes:
            now += change
            most = max(most, now)
        return most
    placed: list[tuple[int, int, int, int]] = []
    top = 0
    for size, start, stop in lives:
        place = 0
        for low, high, since, until in placed:
            if until < start or stop < since:
                continue
            if low - place >= size:
                break
            place = max(place, high)
        bisect.insort(placed, (place, place + size, start, stop))
        top = max(top, place + size)
    return top


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
