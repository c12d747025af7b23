"""Layers that are known not to convert are named before anything is converted."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.compress.recipes import recipe
from kdlite.lite._converter import ConversionError
from kdlite.lite.convert import export
from kdlite.lite.preflight import check_layers, check_weights


def model_of(*stack, shape=(8, 8, 4)) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *stack], name="net")


def check(model, quantization, engine="tflite", allowed=(), kept=()) -> None:
    check_layers(model, recipe(quantization), engine, frozenset(allowed), kept)


ODD = {
    "LayerNormalization": (layers.LayerNormalization(name="odd"), ("NEG",)),
    "GroupNormalization": (layers.GroupNormalization(2, name="odd"), ("NEG", "SQUARE")),
    "RMSNormalization": (layers.RMSNormalization(name="odd"), ("SQUARE",)),
    "UnitNormalization": (layers.UnitNormalization(name="odd"), ("SQUARE",)),
    "ELU": (layers.ELU(name="odd"), ("ELU",)),
    "elu": (layers.Dense(4, activation="elu", name="odd"), ("ELU",)),
}


@pytest.mark.parametrize("quantization", ["int8", "int16x8"])
@pytest.mark.parametrize("kind", ODD)
def test_what_has_no_integer_kernel(kind, quantization) -> None:
    layer, ops = ODD[kind]
    model = model_of(layer)
    for floats in ("float32", "float16", "dynamic"):
        check(model, floats)
    with pytest.raises(
        ConversionError, match=rf"'net' with 'odd' \({kind}\)"
    ) as caught:
        check(model, quantization)
    assert f"allow_float_ops={ops!r}" in str(caught.value)
    check(model, quantization, allowed=ops)
    check(model, quantization, kept=("odd",))
    # Of the other engine the file is looked into.
    check(model, quantization, engine="aeq")


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (layers.PReLU(name="odd"), "PRELU"),
        (layers.Activation("hard_swish", name="odd"), "HARD_SWISH"),
        (layers.Activation("selu", name="odd"), "SELECT_V2"),
        (layers.UpSampling2D(name="odd"), "TILE"),
    ],
)
def test_what_16_bits_cannot(layer, op) -> None:
    check(model_of(layer), "int8")
    with pytest.raises(ConversionError, match=f"'odd'.*no integer kernel of .*{op}"):
        check(model_of(layer), "int16x8")


def test_recurrences_have_no_ranges_by_aeq() -> None:
    model = model_of(layers.GRU(3, unroll=True, name="odd"), shape=(4, 2))
    check(model, "int8")
    check(model, "dynamic", engine="aeq")
    for quantization in ("int8", "int4", "int16x8"):
        with pytest.raises(
            ConversionError, match=r"'odd' \(GRU, unrolled\). Use engine='tflite'"
        ):
            check(model, quantization, engine="aeq")


def test_bilinear_upsampling_is_fine() -> None:
    check(model_of(layers.UpSampling2D(interpolation="bilinear")), "int16x8")


def test_ids_have_no_16_bits() -> None:
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32", name="ids"), layers.Embedding(9, 3)],
        name="net",
    )
    check(model, "int8")
    check(model, "int16x8", engine="aeq")
    with pytest.raises(ConversionError, match="inputs that are float.*input 'ids'"):
        check(model, "int16x8")


@pytest.mark.parametrize(
    "layer",
    [
        layers.LSTM(3, name="odd"),
        layers.GRU(3, name="odd"),
        layers.SimpleRNN(3, name="odd"),
        layers.Bidirectional(layers.LSTM(3, name="odd")),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_loops_crash_the_converter_and_are_named(layer) -> None:
    # tensorflow#87468 and others: a segmentation fault.
    model = model_of(layer, shape=(5, 4))
    for quantization, engine in (("int8", "tflite"), ("int4", "aeq")):
        with pytest.raises(ConversionError, match="without a loop.*odd.*unroll=True"):
            check(model, quantization, engine)
    check(model, "dynamic")
    check(model_of(layers.LSTM(3, unroll=True), shape=(5, 4)), "int8")


def test_augmentation_is_no_training_mode() -> None:
    # Keras records their default, training=True, as if it had been asked for.
    check(model_of(layers.RandomFlip(), layers.Resizing(4, 4), shape=(8, 8, 3)), "int8")


def test_layers_in_training_mode_are_named() -> None:
    inner_in = keras.Input((4,))
    inner = keras.Model(
        inner_in, layers.Dropout(0.5, name="mc")(inner_in, training=True)
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inputs), name="net")
    with pytest.warns(UserWarning, match="'mc' of model 'net' is called with training"):
        check(model, "float32")
    # The same layer in another model is called as usual there.
    dropout = inner.get_layer("mc")
    other_in = keras.Input((4,))
    other = keras.Model(other_in, dropout(other_in))
    check(other, "float32")
    assert np.isfinite(other(np.ones((1, 4)))).all()


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_that_are_no_numbers(tmp_path, dtype, nested) -> None:
    stack = layers.Dense(3, name="a", dtype=dtype), layers.Dense(2, name="b")
    model = model_of(*stack, shape=(4,))
    model.layers[0].bias.assign([0.0, np.inf, 0.0])  # may be meant
    check_weights(model)
    model.layers[0].bias.assign([0.0, np.nan, np.nan])
    if nested:
        model = keras.Sequential([keras.Input((4,)), model], name="net")
    text = r"must be numbers. Received: model='net' with 2 NaN in '.*a/bias'\. Its"
    with pytest.raises(ValueError, match=text):
        check_weights(model)
    with pytest.raises(ValueError, match=text):
        export(model, tmp_path / "m.tflite")
    assert not any(tmp_path.iterdir())
