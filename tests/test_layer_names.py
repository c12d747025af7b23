"""Which layer an operation comes from."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from converting import converted
from keras import layers

from kdlite.lite.convert import export
from kdlite.lite.layer_names import layer_names, layers_of, matching
from kdlite.lite.tflite_reader import inspect


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Layers whose names end in numbers, one nested, one fused, one that is the end."""
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.Conv2D(4, 1, name="conv"),
            layers.ReLU(name="r"),
        ],
        name="block",
    )
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="conv_1")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu_2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(inner(x))
    outputs = layers.Dense(2, name="logits")(x)
    return keras.Model(inputs, outputs, name="net_3")


def test_names_of_nested_layers(model) -> None:
    assert layer_names(model) == (
        *("conv", "conv_1", "norm", "relu_2"),
        *("block", "block/conv", "block/r", "pool", "logits"),
    )


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_each_operation_has_its_layer(model, quantization) -> None:
    content = inspect(converted(model, quantization))
    found = layers_of(content, model)
    told = [
        (op.name, found[op][0])
        for op in content.ops
        if op.name not in ("QUANTIZE", "DEQUANTIZE")
    ]
    assert told == [
        ("CONV_2D", "conv"),
        ("CONV_2D", "relu_2"),
        ("CONV_2D", "block/r"),
        ("MEAN", "pool"),
        ("FULLY_CONNECTED", "logits"),
    ]
    fused = [layers for op, layers in found.items() if op.name == "CONV_2D"]
    assert "conv_1" in fused[1] and "block/conv" in fused[2]


def test_patterns(model) -> None:
    assert matching({"conv*": "a"}, model) == {"conv": "a", "conv_1": "a"}
    assert matching({"block": "a"}, model).keys() == {"block", "block/conv", "block/r"}
    # The last one that fits counts.
    both = matching({"*": "a", "logits": "b"}, model)
    assert both["logits"] == "b" and both["pool"] == "a"
    with pytest.raises(
        ValueError, match="must fit a layer.*'cnov'.*Its layers: 'conv'"
    ):
        matching({"cnov": "a"}, model)


@pytest.mark.parametrize("outputs", [("zz", "aa"), ("aa", "zz")])
@pytest.mark.parametrize("kept", ["head_a", "head_b"])
def test_a_head_kept_in_float16_that_is_an_output_by_another_name(
    outputs, kept, tmp_path
) -> None:
    inputs = keras.Input((40,), name="x")
    hidden = layers.Dense(40, activation="relu", name="hidden")(inputs)
    heads = [
        layers.Dense(units, name=name)(hidden)
        for name, units in (("head_a", 30), ("head_b", 4))
    ]
    model = keras.Model(inputs, dict(zip(outputs, heads, strict=True)))
    made = export(
        model,
        tmp_path / "model.tflite",
        "int8",
        engine="aeq",
        calibration_data=np.random.default_rng(0).normal(size=(110, 40)),
        overrides={kept: "float16"},
    )
    content = inspect(made.path)
    layer = layers_of(content, model)
    assert {layer[op][0] for op in content.float_ops} == {kept}
