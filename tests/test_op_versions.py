"""Which runtime a file needs, whatever it says itself."""

from __future__ import annotations

import keras
import pytest
from converting import converted
from keras import layers

from kdlite.lite.op_versions import NeededRuntime, needed_runtime
from kdlite.lite.tflite_file import Op, TensorInfo, TFLiteFile
from kdlite.lite.tflite_reader import inspect


def tensor(dtype="float32", shape=(1, 4), scales=()) -> TensorInfo:
    points = (0,) * len(scales)
    return TensorInfo("t", dtype, shape, scales, points, 0, False, 0)


def file(name: str, tensors, version=1, written=1, custom=False) -> TFLiteFile:
    count = len(tensors) - written
    places = tuple(range(len(tensors)))
    op = Op(name, version, "t", places[:count], places[count:], False, 0, 0, custom)
    return TFLiteFile("f", 1, (op,), (), (), tuple(tensors), (), (), 0)


CHANNELS = (0.1, 0.2)


@pytest.mark.parametrize(
    ("name", "tensors", "version", "release"),
    [
        ("CONV_2D", [tensor()] * 3, 1, "2.3"),
        # What the file says counts where it is more than the types say.
        ("FULLY_CONNECTED", [tensor()] * 3, 12, "2.17"),
        ("FULLY_CONNECTED", [tensor()] * 3, 99, ""),
        # ai-edge-quantizer writes version 1 of these.
        (
            "FULLY_CONNECTED",
            [tensor("int8"), tensor("int4", scales=(0.1,)), tensor("int8")],
            1,
            "2.11",
        ),
        (
            "FULLY_CONNECTED",
            [tensor("int8"), tensor("int4", scales=CHANNELS), tensor("int8")],
            1,
            "2.21",
        ),
        # Early kernels have no steps by channel, and no version says so.
        (
            "FULLY_CONNECTED",
            [tensor("int8"), tensor("int8", scales=CHANNELS), tensor("int8")],
            1,
            "2.12",
        ),
        (
            "FULLY_CONNECTED",
            [tensor("int16"), tensor("int8", scales=CHANNELS), tensor("int16")],
            1,
            "2.12",
        ),
        (
            "FULLY_CONNECTED",
            [tensor("int8"), tensor("int8", scales=(0.1,)), tensor("int8")],
            1,
            "2.3",
        ),
        (
            "CONV_2D",
            [tensor("int8"), tensor("int8", scales=CHANNELS), tensor("int8")],
            1,
            "2.3",
        ),
        (
            "FULLY_CONNECTED",
            [tensor("int16"), tensor("int4"), tensor("int16")],
            1,
            "2.18",
        ),
        (
            "FULLY_CONNECTED",
            [tensor(), tensor("int8", scales=CHANNELS), tensor()],
            1,
            "2.17",
        ),
        (
            "FULLY_CONNECTED",
            [tensor(), tensor("int8", scales=(0.1,)), tensor()],
            9,
            "2.3",
        ),
        ("DEQUANTIZE", [tensor("int8", scales=CHANNELS), tensor()], 1, "2.7"),
        ("DEQUANTIZE", [tensor("int4", scales=CHANNELS), tensor()], 1, "2.18"),
        ("QUANTIZE", [tensor(), tensor("int8", scales=CHANNELS)], 1, "2.7"),
        (
            "CONV_2D",
            [tensor(shape=(1, 4, 4, 6)), tensor(shape=(6, 3, 3, 2)), tensor()],
            1,
            "2.9",
        ),
        ("TRANSPOSE", [tensor(shape=(1,) * 6), tensor("int32"), tensor()], 1, "2.12"),
        ("CAST", [tensor("float16"), tensor()], 1, "2.12"),
        ("CAST", [tensor("int32"), tensor("int8")], 1, "2.8"),
        ("EMBEDDING_LOOKUP", [tensor("int32"), tensor("int4"), tensor()], 1, "2.18"),
        ("GELU", [tensor(), tensor()], 1, "2.9"),
        ("STABLEHLO_SORT", [tensor(), tensor()], 1, ""),
    ],
)
def test_the_runtime_of_one_operation(name, tensors, version, release) -> None:
    needed = needed_runtime(file(name, tensors, version))
    assert needed.release == release
    assert (needed.op is None) == (release == "2.3")


def test_an_app_brings_custom_operations_itself() -> None:
    assert (
        needed_runtime(file("STABLEHLO_OWN", [tensor()] * 2, 9, custom=True)).op is None
    )


@pytest.mark.parametrize(
    ("release", "on", "runs"),
    [
        ("2.9", "2.16.1", True),
        ("2.16.1", "2.16", False),
        ("2.17", "2.17.0", True),
        ("", "99.0", False),
    ],
)
def test_releases_compare_by_number(release, on, runs) -> None:
    assert NeededRuntime(release, None, 1).runs_on(on) is runs


def test_a_file_of_the_converter() -> None:
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(64, 3), layers.Flatten()]
    )
    model.add(layers.Dense(64))
    needed = needed_runtime(inspect(converted(model, "dynamic")))
    # tensorflow#80736: phones with an older AAR say "Didn't find op".
    assert (needed.release, needed.version) == ("2.17", 12)
    assert needed.op.name == "FULLY_CONNECTED"
