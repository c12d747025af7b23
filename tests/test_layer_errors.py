"""Where the error of a file enters."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from converting import converted
from keras import layers

import kdlite
from kdlite.lite import serving
from kdlite.lite.layer_errors import layer_errors, noisiest


def spread_out() -> keras.Model:
    """A net of which one tensor has a range that 8 bits cannot fill.

    "wide" makes a channel a thousand times as large as the others, and "narrow" does
    not look at it: what it gets of the others is within one step.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, name="first", activation="relu")(inputs)
    wide, narrow = layers.Dense(8, name="wide"), layers.Dense(8, name="narrow")
    x = narrow(wide(x))
    model = keras.Model(inputs, layers.Dense(4, name="scores")(x), name="net")
    kernel, bias = wide.get_weights()
    kernel[:, 0] *= 1000
    wide.set_weights([kernel, bias])
    kernel, bias = narrow.get_weights()
    kernel[0] = 0
    narrow.set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def floats() -> bytes:
    return converted(spread_out())


@pytest.mark.parametrize("io", [tf.float32, tf.int8])
def test_the_layer_is_found(io, floats, rng) -> None:
    model = spread_out()
    samples = {"x": rng.uniform(0, 1, (40, 6)).astype("float32")}
    errors = layer_errors(converted(model, "int8", io), floats, samples, model)
    assert [error.layer for error in errors] == ["first", "wide", "narrow", "scores"]
    by_layer = {error.layer: error for error in errors}
    assert by_layer["first"].snr_db > 30 and by_layer["wide"].snr_db > 10
    assert by_layer["narrow"].snr_db < 5
    assert noisiest(errors)[:2] == ["narrow", "wide"]
    assert "first" not in noisiest(errors, least=0.25)
    assert by_layer["narrow"].reads == ("wide",) and not by_layer["first"].reads
    # What comes in noisy is not laid at the door of what comes after.
    assert by_layer["scores"].added < by_layer["narrow"].added
    assert json.dumps([error.to_dict() for error in errors])
    assert str(by_layer["narrow"]).startswith("narrow (FULLY_CONNECTED): ")


def test_results_that_are_no_floats(rng) -> None:
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, name="first")(inputs)
    above = keras.ops.cast(x > 0.1, "float32")  # booleans
    model = keras.Model(inputs, layers.Dense(3, name="scores")(above * x))
    samples = {"x": rng.uniform(-1, 1, (40, 6)).astype("float32")}
    errors = layer_errors(converted(model, "int8"), converted(model), samples, model)
    assert "GREATER" in {error.op for error in errors}
    assert all(0 <= error.added <= error.noise < np.inf for error in errors)


def test_a_file_that_rounds_nothing_adds_nothing(floats) -> None:
    samples = {"x": np.ones((3, 6), "float32")}
    errors = layer_errors(floats, floats, samples, spread_out())
    assert all(error.noise == error.added == 0 for error in errors)


def gated() -> keras.Model:
    """A net whose layers become several, are parts of others, or are called twice."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    block = keras.Model(inputs, layers.ReLU(name="relu")(x), name="block")
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(2, 1, activation="silu", name="gate")(inputs)
    x = layers.Average(name="mean")([block(x), block(inputs)])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    probabilities = layers.Dense(3, activation="softmax", name="classes")(x)
    return keras.Model(inputs, [probabilities, layers.Dense(2, name="box")(x)])


def doubled(name: str):
    """Exports other weights than were trained: twice those of one channel."""
    real = serving.for_export

    def wrong(model: keras.Model) -> keras.Model:
        exported = real(model)
        layer = exported.get_layer(name)
        kernel, bias = layer.get_weights()
        kernel[..., 0] *= 2
        layer.set_weights([kernel, bias])
        return exported

    return wrong


NORM, GATE, BOX = (
    ("norm", "norm", ["norm", "conv"]),
    ("gate_linear", "gate", ["gate"]),
    ("box_float", "box", ["box"]),
)


@pytest.mark.parametrize(
    ("recipe", "options", "wrong", "layer", "kept"),
    [
        ("int8", {}, *NORM),
        ("int16x8", {"io": "int16"}, *NORM),
        ("int8", {"io": "int8", "batch_size": 3}, *GATE),
        ("int16x8", {}, *GATE),
        ("int8", {"io": "uint8"}, *BOX),
        ("int4", {}, *BOX),
    ],
)
def test_a_quantization_aware_model_says_which_layer_its_file_has_otherwise(
    recipe, options, wrong, layer, kept, monkeypatch, rng, tmp_path
) -> None:
    x = rng.normal(0, 1, (40, 6, 6, 2)).astype("float32")
    qat = kdlite.quantize_aware(gated(), recipe)
    qat(x, training=True)
    monkeypatch.setattr(serving, "for_export", doubled(wrong))
    with pytest.raises(kdlite.VerificationError) as raised:
        kdlite.export(qat, tmp_path / "f.tflite", recipe, verify_data=x, **options)
    first = next(error for error in raised.value.layers if error.enters)
    assert first.layer == layer and first.steps > 1 > first.steps_before
    overrides = dict.fromkeys(kept, "float32")
    text = str(raised.value)
    assert f"More than a step enters in {layer}. Leave it in float" in text
    assert f"quantize_aware(student, ..., overrides={overrides!r}), and" in text
    assert ("or use recipe='int8'" in text) == (recipe != "int8")
    assert f"\n  {layer} (" in text and f" {first.steps:.2f} steps" in text
    # By names that the student has; what comes before is exact, and no part is named.
    students = {"gate", "norm", "relu", "mean", "pool", "classes", "box", "conv"}
    assert {error.layer for error in raised.value.layers} <= students
    assert json.dumps([error.to_dict() for error in raised.value.layers])
    # And the way out that it names is one.
    monkeypatch.undo()
    qat = kdlite.quantize_aware(gated(), recipe, overrides=overrides)
    qat(x, training=True)
    kdlite.export(qat, tmp_path / "f.tflite", recipe, verify_data=x)


def test_layers_in_float_are_told_where_they_are_rounded(
    monkeypatch, rng, tmp_path
) -> None:
    x = rng.normal(0, 1, (40, 6, 6, 2)).astype("float32")
    qat = kdlite.quantize_aware(gated(), "int16x8", overrides={"gate": "float32"})
    qat(x, training=True)
    monkeypatch.setattr(serving, "for_export", doubled("box_float"))
    with pytest.raises(kdlite.VerificationError) as raised:
        kdlite.export(qat, tmp_path / "f.tflite", "int16x8", verify_data=x)
    errors = raised.value.layers
    assert [error.layer for error in errors if error.enters] == ["box"]
    assert [error.op for error in errors if error.layer == "gate"] == ["QUANTIZE"]
    assert all(error.steps < 1 for error in errors if error.layer != "box")
