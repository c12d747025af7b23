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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_are_no_numbers(tmp_path, bad, dtype, nested, frozen) -> None:
    stack = layers.Dense(3, name="a", dtype=dtype), layers.Dense(2, name="b")
    model = model_of(*stack, shape=(4,))
    model.trainable = not frozen
    model.layers[0].bias.assign([0.0, bad, bad])
    if nested:
        model = keras.Sequential([keras.Input((4,)), model], name="net")
    what = "2 NaN" if np.isnan(bad) else "2 times infinity"
    text = rf"must be numbers. Received: model='net' with {what} in '.*a/bias'\. Its"
    for quantization in ("float32", "int8"):
        with pytest.raises(ValueError, match=text):
            check_weights(model, recipe(quantization), ["a"])
    with pytest.raises(ValueError, match=text):
        export(model, tmp_path / "m.tflite")
    assert not any(tmp_path.iterdir())


def test_statistics_that_are_no_numbers() -> None:
    # No training moves them, but Keras's own layers have no constants that are meant.
    model = model_of(layers.BatchNormalization(name="odd"))
    model.layers[0].moving_variance.assign([np.inf] * 4)
    with pytest.raises(ValueError, match="4 times infinity in '.*odd/moving_variance'"):
        check_weights(model, recipe("float32"), [])


class Mask(layers.Layer):
    """Adds a constant: 0, or minus infinity for what is not to be chosen."""

    def build(self, shape):
        self.mask = self.add_weight(shape=(shape[-1],), trainable=False, name="mask")
        self.mask.assign([0.0, -np.inf, 0.0])

    def call(self, x):
        return x + self.mask


def test_a_mask_of_infinities_stays_in_float(tmp_path) -> None:
    mask, soft = Mask(name="hide"), layers.Softmax(name="soft")
    model = model_of(layers.Dense(3), mask, soft, layers.Dense(2), shape=(4,))
    x = np.random.default_rng(0).normal(size=(150, 4)).astype("float32")
    for quantization in ("float32", "float16", "dynamic"):
        file = tmp_path / f"{quantization}.tflite"
        report = export(model, file, quantization, verify_data=x).verification
        assert report.outputs[0].top1_agreement == 1.0
    for quantization in ("int8", "int16x8", "int4"):
        with pytest.raises(
            ConversionError,
            match="needs constants that are finite.*1 times infinity in "
            "'.*hide/mask'.*keep layer 'hide'.*or use quantization='dynamic'",
        ):
            check_weights(model, recipe(quantization), [])
    exact = {"hide": "float32", "soft": "float32"}
    file = tmp_path / "int8.tflite"
    made = export(model, file, "int8", calibration_data=x, overrides=exact)
    assert made.verification.passed
    # One that a training moves is not meant.
    moved = Mask(name="hide")
    moved.add_weight(shape=(1,), name="scale", initializer=lambda *_, **__: [np.inf])
    with pytest.raises(ValueError, match="1 times infinity in '.*hide/scale'"):
        check_weights(model_of(layers.Dense(3), moved), recipe("float32"), [])


class Root(layers.Layer):
    """NaN of what is below 100."""

    def call(self, x):
        return keras.ops.sqrt(x - 100.0)


@pytest.mark.parametrize(
    "quantization", ["float32", "dynamic", "int8", "int16x8", "int4"]
)
def test_a_model_that_gives_nan_is_told_of_whatever_converters_say(
    tmp_path, quantization
) -> None:
    model = model_of(layers.Dense(3), Root(), layers.Dense(2, name="y"), shape=(4,))
    x = np.random.default_rng(0).normal(size=(110, 4)).astype("float32")
    options = {}
    if quantization.startswith("int"):
        options = {"calibration_data": x, "allow_float_ops": ("SQRT",)}
    with pytest.raises(ValueError, match="Received: NaN in output 'y', first for samp"):
        export(model, tmp_path / "m.tflite", quantization, verify_data=x, **options)
    assert not (tmp_path / "m.tflite").exists()
