"""How a quantization-aware file stores kernels and biases."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from converting import converted
from keras import layers
from quantizing import calibrate, randomize
from tensorflow.lite.python import schema_py_generated as schema

from kdlite.compress.qat import for_export, quantize_aware
from kdlite.compress.recipes import recipe
from kdlite.lite.convert import export
from kdlite.lite.stored_types import as_trained
from kdlite.lite.tflite_reader import inspect


def aware(name, rng, *more):
    student = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="x"),
            layers.Conv2D(5, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(3, name="scores"),
            *more,
        ]
    )
    randomize(student, rng)
    qat = quantize_aware(student, name)
    x = rng.normal(0, 1, (64, 8, 8, 3)).astype("float32")
    calibrate(qat, x)
    return qat, x


def kernels_of(blob):
    """By operation, the raw bytes and the scales of kernels and biases."""
    model = schema.ModelT.InitFromPackedBuf(blob, 0)
    (graph,) = model.subgraphs
    found = []
    for op in graph.operators:
        if len(op.inputs) == 3:
            tensors = [graph.tensors[i] for i in op.inputs[1:]]
            found.append(
                [
                    (np.asarray(model.buffers[t.buffer].data), t.quantization.scale)
                    for t in tensors
                ]
            )
    return found


def test_kernels_are_packed_without_loss(rng) -> None:
    qat, _ = aware("int4", rng)
    exported = for_export(qat)
    blob = converted(exported, "qat")
    packed = as_trained(blob, recipe("int4"))
    assert len(packed) < len(blob)
    wide, narrow = kernels_of(blob), kernels_of(packed)
    assert len(narrow) == 2
    for (kernel, scales), (bias, bias_scales) in narrow:
        halves = np.stack([kernel & 15, kernel >> 4], axis=-1).reshape(-1)
        levels = (halves.astype("int8") ^ 8) - 8
        assert levels.min() >= -7 and levels.max() <= 7
        assert len(bias) == 4 * len(scales) == 4 * len(bias_scales)
        (before, fine), _ = wide.pop(0)
        # Two to a byte, the lower half first; an odd one out is filled up.
        expected = np.rint(levels[: len(before)] * (127 / 7)).astype("int8")
        np.testing.assert_array_equal(before.view("int8"), expected)
        np.testing.assert_allclose(scales, np.multiply(fine, 127 / 7), rtol=1e-6)
    found = inspect(packed)
    assert found.quantization == "int4"
    assert {op.version for op in found.ops if op.name == "CONV_2D"} == {7}


def test_a_kernel_on_no_grid_of_4_bits_keeps_8(rng) -> None:
    blob = converted(for_export(aware("int8", rng)[0]), "qat")
    assert as_trained(blob, recipe("int8")) is blob
    kept = inspect(as_trained(blob, recipe("int4")))
    assert kept.quantization == "int8"


def test_biases_of_16_bits_are_wide_and_what_stood_in_is_gone(rng) -> None:
    qat, _ = aware("int16x8", rng, layers.Softmax(name="p"))
    blob = converted(for_export(qat), "qat")
    assert [op.name for op in inspect(blob).ops][-2] == "LEAKY_RELU"
    found = inspect(as_trained(blob, recipe("int16x8")))
    assert [op.name for op in found.ops][-2] == "SOFTMAX"
    assert found.quantization == "int16x8"
    for op in found.ops:
        tensors = [t for t in found.tensors_of(op) if t is not None]
        if op.name in ("CONV_2D", "FULLY_CONNECTED"):
            assert [t.dtype for t in tensors] == ["int16", "int8", "int64", "int16"]
            assert op.version <= 7
        if op.name == "SOFTMAX":
            assert tensors[-1].scales == (1 / 32768,)


@pytest.mark.parametrize(
    ("name", "io"),
    [("int4", "uint8"), ("int4", "float32"), ("int16x8", "int16")],
)
def test_an_export_of_each_recipe(name, io, tmp_path, rng) -> None:
    qat, x = aware(name, rng)
    result = export(qat, tmp_path / "m.tflite", name, io=io, verify_data=x)
    assert result.verification.outputs[0].within_one_step >= 0.99
    assert inspect(result.path).quantization == name
    assert not [op for op in result.ops if op.float_compute]
    # The same bytes again.
    blob = result.path.read_bytes()
    export(qat, tmp_path / "again.tflite", name, io=io, verify_data=x)
    assert (tmp_path / "again.tflite").read_bytes() == blob


def test_an_old_runtime_is_refused(tmp_path, rng) -> None:
    qat, x = aware("int4", rng)
    with pytest.raises(RuntimeError, match="must run on TFLite 2.10.*needs 2.11"):
        export(qat, tmp_path / "m.tflite", "int4", verify_data=x, min_runtime="2.10")
    assert not list(tmp_path.iterdir())


def test_dense_kernels_by_channel_on_an_old_runtime(tmp_path, rng) -> None:
    student = keras.Sequential([keras.Input((6,), name="x"), keras.layers.Dense(4)])
    x = rng.normal(size=(120, 6)).astype("float32")
    qat = quantize_aware(student)
    qat.compile("adam", "mse")
    qat.fit(x, student.predict(x, verbose=0), verbose=0)
    old, path = {"min_runtime": "2.5"}, tmp_path / "m.tflite"
    text = r"must run on TFLite 2\.5.*FULLY_CONNECTED.*pass min_runtime='2\.12'"
    with pytest.raises(RuntimeError, match=text):
        export(qat, path, "int8", verify_data=x, **old)
    assert export(qat, path, "int8", verify_data=x, min_runtime="2.12").min_runtime == (
        "2.12"
    )
    # Quantized afterwards, the kernel has one step.
    plain = export(student, path, "int8", calibration_data=x, overwrite=True, **old)
    assert plain.min_runtime == "2.3"
