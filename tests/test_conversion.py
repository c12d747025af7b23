"""Each recipe, once, through `export`: what is in the file, and what is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.lite import options
from kdlite.lite.convert import ConversionError, export
from kdlite.lite.tflite_file import inspect

DATA = np.random.default_rng(0).normal(size=(120, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A net of which each kernel has more than 1024 numbers."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(40, 3, strides=2, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(32, activation="relu", name="dense"),
            layers.Dense(36, name="logits"),
        ],
        name="net",
    )


def kernel_types(result) -> dict[str, str]:
    """By operation with a kernel what the kernel is stored as."""
    content = inspect(result.path)
    found = {}
    for op in content.ops:
        tensors = content.tensors_of(op)
        if op.name in ("CONV_2D", "FULLY_CONNECTED", "DEQUANTIZE") and len(tensors) > 1:
            kernel = tensors[0 if op.name == "DEQUANTIZE" else 1]
            if kernel.constant:
                found.setdefault(op.name, kernel.dtype)
    return found


@pytest.mark.parametrize(
    ("quantization", "arguments", "kernels"),
    [
        ("dynamic", {}, {"CONV_2D": "int8", "FULLY_CONNECTED": "int8"}),
        ("weight_only", {}, {"DEQUANTIZE": "int8"}),
        (
            "int16x8",
            {"io": "int16", "batch_size": 4},
            {"CONV_2D": "int8", "FULLY_CONNECTED": "int8"},
        ),
        ("int4", {"io": "int8"}, {"CONV_2D": "int4", "FULLY_CONNECTED": "int4"}),
    ],
)
def test_each_recipe_is_what_it_says(
    model, tmp_path, quantization, arguments, kernels
) -> None:
    result = export(
        model,
        tmp_path / "m.tflite",
        quantization,
        calibration_data=DATA,
        author="A. Nobody",
        license="MIT",
        description="a net",
        **arguments,
    )
    content = inspect(result.path)
    assert content.quantization == result.quantization == quantization
    assert kernel_types(result) == kernels
    assert {t.dtype for t in (*result.inputs, *result.outputs)} == {result.io}
    assert result.inputs[0].shape[0] == arguments.get("batch_size", 1)
    # Of these types 2.16.1 knows all; a Dense layer of steps by channel would be 2.17.
    assert tuple(map(int, result.min_runtime.split("."))) <= (2, 16, 1)
    runs = {(run.kernels, run.threads) for run in result.verification.kernels}
    assert {("xnnpack", 4), ("built-in", 1), ("reference", 1)} <= runs


def test_layers_are_kept_in_float(model, tmp_path) -> None:
    result = export(
        model,
        tmp_path / "m.tflite",
        "int8",
        calibration_data=DATA,
        overrides={"logits": "float32"},
    )
    floats = [op for op in result.ops if op.float_compute]
    assert [op.name for op in floats] == ["FULLY_CONNECTED"]
    assert result.outputs[0].shape == (1, 36)
    assert inspect(result.path).tensors_of(floats[0])[1].dtype == "float32"
    assert result.verification.quantization == "mixed"


def test_layers_are_kept_in_half_precision(model, tmp_path) -> None:
    result = export(
        model,
        tmp_path / "m.tflite",
        "int8",
        calibration_data=DATA,
        engine="aeq",
        overrides={"*": "float16", "conv": "float32"},
    )
    content = inspect(result.path)
    kernels = [content.tensors_of(op)[1] for op in content.ops if op.macs]
    stored = [
        content.tensors_of(op)[0].dtype for op in content.ops if op.name == "DEQUANTIZE"
    ]
    assert kernels[0].constant and kernels[0].dtype == "float32"
    assert stored.count("float16") == 2


@pytest.mark.parametrize(
    ("quantization", "arguments", "text"),
    [
        ("weight_only", {"engine": "tflite"}, "of this model: 'aeq'.*engine='tflite'"),
        ("int4", {"io": "uint8"}, "makes no uint8.*quantization='int4'.*io='int8'"),
        ("dynamic", {"io": "int8"}, "'float32' for dynamic.*io='int8'.*or 'int4'"),
        ("int8", {"io": "int16"}, "'uint8' for int8.*quantization='int16x8'"),
        ("int8", {"io": "int7"}, "for int8.*io='int7'.*Use 'float32' for values"),
        ("int8", {"overrides": {"zz*": "float32"}}, "must fit a layer.*'zz.*'conv'"),
        (
            "int8",
            {"overrides": {"conv": "float16"}},
            "give 'float32'.*Use engine='aeq'",
        ),
        ("int8", {"overrides": {"conv": "int4"}}, "give 'float32'.*Leave the rest"),
        (
            "dynamic",
            {"overrides": {"conv": "float32"}},
            "the engine can mix.*'dynamic'",
        ),
        ("float32", {"overrides": {"conv": "float32"}}, "can mix.*'float32'"),
        ("int4", {"calibration_data": None}, "int4 needs the ranges.*quantize_aware"),
    ],
)
def test_what_does_not_fit_together(
    model, tmp_path, quantization, arguments, text
) -> None:
    arguments = {"calibration_data": DATA, **arguments}
    with pytest.raises(ValueError, match=text):
        export(model, tmp_path / "m.tflite", quantization, **arguments)
    assert not list(tmp_path.iterdir())


def test_overrides_are_a_mapping(model, tmp_path) -> None:
    with pytest.raises(TypeError, match="must be a mapping.*overrides=.'conv'"):
        export(
            model,
            tmp_path / "m.tflite",
            "int8",
            calibration_data=DATA,
            overrides=["conv"],
        )


def test_the_other_engine_may_not_be_there(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs ai-edge-quantizer.*kdlite\[aeq\]"):
        export(model, tmp_path / "m.tflite", "weight_only")


def test_memory_is_limited(model, tmp_path) -> None:
    with pytest.raises(ConversionError, match="within 1,000,000 bytes.*'net'.*Raise"):
        export(model, tmp_path / "m.tflite", memory_limit_bytes=1e6)
    assert not list(tmp_path.iterdir())
