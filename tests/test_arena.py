"""Memory of a run: against a plain search for overlaps, and TFLite's own figures."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from converting import converted
from keras import layers

from kdlite.lite import arena
from kdlite.lite.arena import arena_bytes
from kdlite.lite.tflite_file import Op, TensorInfo, TFLiteFile
from kdlite.lite.tflite_reader import inspect


def chain(*sizes: int, keep: bool = False) -> TFLiteFile:
    """A graph in which each tensor is made from the one before, of float32 values.

    `keep`: the last operation reads the first tensor too.
    """
    tensors = tuple(
        TensorInfo(f"t{k}", "float32", (size,), (), (), 0, False, k)
        for k, size in enumerate(sizes)
    )
    count = len(sizes) - 1
    ops = tuple(
        Op(
            *("ADD", 1, "t"),
            (k, 0) if keep and k == count - 1 else (k,),
            (k + 1,),
            *(True, 0, 0, False),
        )
        for k in range(count)
    )
    return TFLiteFile("f", 1, ops, tensors[:1], tensors[-1:], tensors, (), (), 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # 16 floats are 64 bytes, the alignment.
        (chain(16, 16), 128),
        (chain(1, 1), 128),
        # Two at a time.
        (chain(16, 32, 16, 32), 192),
        # The first stays to the end: three at a time.
        (chain(16, 32, 32, 16, keep=True), 320),
        (chain(16), 64),
    ],
)
def test_small_graphs(content, expected) -> None:
    assert arena_bytes(content) == expected


def test_tensors_that_live_at_once_never_overlap(rng, monkeypatch) -> None:
    for _ in range(20):
        sizes = [int(size) for size in rng.integers(1, 200, 12)]
        content = chain(*sizes, keep=bool(rng.integers(2)))
        planned = arena_bytes(content)
        with monkeypatch.context() as patched:
            # What is alive at once is the least that any plan needs.
            patched.setattr(arena, "_MOST_TENSORS", 0)
            least = arena_bytes(content)
        whole = sum(-(-4 * size // 64) * 64 for size in sizes)
        assert least <= planned <= whole
        assert planned <= 1.5 * least


def test_a_converted_model_counts_no_weights() -> None:
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv"), layers.Flatten()]
    )
    content = inspect(converted(model))
    # The image (64 floats) with the map of 6 x 6 x 4; then the map twice, which
    # RESHAPE copies here.
    biggest = 4 * 144
    assert 64 * 4 + biggest <= arena_bytes(content) <= 2 * biggest + 64 * 4
    assert np.prod(content.inputs[0].shape) == 64
