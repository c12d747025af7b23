"""What delegates are likely to take."""

from __future__ import annotations

import json

import keras
import pytest
from converting import converted
from keras import layers

from kdlite.lite.delegates import delegates
from kdlite.lite.tflite_file import Op, TensorInfo, TFLiteFile
from kdlite.lite.tflite_reader import inspect


def file(*ops: tuple[str, str], shape=(1, 4)) -> TFLiteFile:
    """A graph of operations by name and dtype, each reading and writing one tensor."""
    tensors, made = [], []
    for k, (name, dtype) in enumerate(ops):
        tensors += [
            TensorInfo(f"t{2 * k + side}", dtype, shape, (), (), 0, False, 2 * k + side)
            for side in (0, 1)
        ]
        made.append(Op(name, 1, "t", (2 * k,), (2 * k + 1,), True, 0, 0, False))
    return TFLiteFile("f", 1, tuple(made), (), (), tuple(tensors), (), (), 0)


def by_name(content: TFLiteFile) -> dict:
    return {estimate.name: estimate for estimate in delegates(content)}


@pytest.mark.parametrize(
    ("op", "dtype", "shape", "gpu", "xnnpack"),
    [
        ("CONV_2D", "float32", (1, 4, 4, 1), "", ""),
        ("CONV_2D", "int8", (1, 4, 4, 1), "", ""),
        ("CONV_2D", "int16", (1, 4, 4, 1), "CONV_2D of int16", "CONV_2D of int16"),
        ("CONV_2D", "float32", (1, -1, 4, 1), "CONV_2D of open lengths", ""),
        ("TRANSPOSE", "float32", (1,) * 5, "TRANSPOSE of more than 4 axes", ""),
        ("TOPK_V2", "float32", (1, 4), "TOPK_V2", "TOPK_V2"),
        ("ARG_MAX", "float32", (1, 4), "ARG_MAX", "ARG_MAX"),
        ("GELU", "int8", (1, 4), "", "GELU of 8 bits"),
        ("SOFTMAX", "int8", (1, 4), "", "SOFTMAX of 8 bits"),
    ],
)
def test_single_operations(op, dtype, shape, gpu, xnnpack) -> None:
    found = by_name(file((op, dtype), shape=shape))
    assert list(found["GPU"].left) == ([gpu] if gpu else [])
    assert list(found["XNNPACK"].left) == ([xnnpack] if xnnpack else [])


def test_parts_are_runs_of_operations() -> None:
    ops = ["ADD", "TOPK_V2", "TOPK_V2", "ADD", "ADD"]
    gpu = by_name(file(*((op, "float32") for op in ops)))["GPU"]
    assert (gpu.taken, gpu.ops, gpu.parts) == (3, 5, 3)
    assert str(gpu) == (
        "GPU takes 3 of 5 operations (an estimate), in 3 parts; not 2 x TOPK_V2"
    )
    assert json.dumps(gpu.to_dict())


def test_a_converted_net_is_taken_whole() -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    for quantization in ("float32", "int8"):
        for estimate in delegates(inspect(converted(model, quantization))):
            assert estimate.taken == estimate.ops and estimate.parts == 1
