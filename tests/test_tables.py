"""Sigmoid, tanh and softmax of 16 bits: the Keras layer gives what LiteRT gives."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from quantizing import assert_same_within_one_step, calibrate, convert, run_lite

from kdlite.compress.qat import for_export, quantize_aware
from kdlite.compress.tables import LookedUp

LEVELS = np.arange(-(2**15), 2**15)
# From an input that is all but constant to one that is far beyond the table, and in
# between so that what is kept of a scale has other bits.
WIDEST = (1e-2, 0.7, 3.0, 9.0, 41.0, 1000.0)


def side_by_side(model, x, widest, folder):
    """The levels that the quantization-aware model gives, and those of its file."""
    qat = quantize_aware(model, "int16x8", input_range=(-widest, widest))
    content = convert(for_export(qat), str(folder), recipe="int16x8")
    ((values, scale, zero),), _ = run_lite(content, x)
    assert (scale, zero) == (2.0**-15, 0)
    return qat.predict(x, verbose=0) / scale, values / scale


@pytest.mark.parametrize("widest", WIDEST)
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_each_of_the_65536_inputs(function, widest, tmp_path) -> None:
    model = keras.Sequential([keras.Input((2**14,)), layers.Activation(function)])
    x = (LEVELS * (widest / (2**15 - 1))).astype("float32").reshape(4, -1)
    looked_up, kernel = side_by_side(model, x, widest, tmp_path)
    np.testing.assert_array_equal(looked_up, kernel)
    # It is the function, but for what the table is off by.
    exact = np.float64(model(x)) * 2**15
    assert 0.6 < np.abs(kernel - exact).max() < 4


@pytest.mark.parametrize("widest", WIDEST[1::2])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_softmax(classes, widest, rng, tmp_path) -> None:
    model = keras.Sequential([keras.Input((40, classes)), layers.Softmax()])
    # Rows of all widths, so that sums have all numbers of bits.
    levels = rng.uniform(-1, 1, (8, 40, classes)) * rng.uniform(0, 1, (8, 40, 1))
    x = np.round(levels * (2**15 - 1)) * (widest / (2**15 - 1))
    x = x.astype("float32")
    looked_up, kernel = side_by_side(model, x, widest, tmp_path)
    np.testing.assert_array_equal(looked_up, kernel)


def test_before_a_range_is_known_it_is_the_function(rng) -> None:
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), layers.Softmax(), layers.Dense(2)]
    )
    x = rng.normal(0, 3, (16, 6)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    np.testing.assert_allclose(qat(x), model(x), atol=1e-4)


def test_a_loss_sees_no_probability_that_is_rounded_to_zero() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Softmax()])
    x = np.array([[0.0, 20.0, -20.0]], "float32")
    qat = quantize_aware(model, "int16x8", input_range=(-32.0, 32.0))
    np.testing.assert_allclose(qat(x, training=True), model(x), rtol=1e-2)
    rounded = qat(x, training=False)
    assert np.min(rounded) > 1e-5
    # Losses read the logits in evaluation as well.
    table = LookedUp(layers.Softmax())
    np.testing.assert_array_equal(table(x, input_step=2.0**-10)._keras_logits, x)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_its_gradient_is_that_of_the_function(jit_compile, rng) -> None:
    x = tf.constant(rng.integers(-300, 300, (5, 4)) / 128, "float32")
    weights = tf.constant(rng.normal(size=(5, 4)), "float32")
    for layer in (
        layers.Activation("tanh"),
        layers.Activation("sigmoid"),
        layers.Softmax(),
    ):
        table = LookedUp(layer)

        @tf.function(jit_compile=jit_compile)
        def slopes(call, **step):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = call(x, **step)
            return y, tape.gradient(y, x, output_gradients=weights)

        y, found = slopes(table, input_step=1 / 128)
        exact, expected = slopes(layer)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(y, exact, atol=4 * 2.0**-15)
        np.testing.assert_array_equal(y * 2.0**15, np.round(y * 2.0**15))


def test_saved_and_loaded(tmp_path, rng) -> None:
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, activation="silu"), layers.Dense(3)]
    )
    x = rng.normal(size=(16, 6)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    qat.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(x), qat(x))
    table = LookedUp(layers.Softmax(), exact_in_training=True)
    assert LookedUp.from_config(table.get_config()).exact_in_training


def test_other_functions_have_no_table() -> None:
    with pytest.raises(ValueError, match="must be one of sigmoid, tanh, softmax.*ReLU"):
        LookedUp(layers.ReLU())


# What TFLite rounds in ways of its own: twice, and half away from zero.
MEANS = {
    "mean_of_4": ((4, 8), layers.GlobalAveragePooling1D),
    "mean_of_5": ((5, 8), layers.GlobalAveragePooling1D),
    "mean_of_6": ((2, 3, 8), layers.GlobalAveragePooling2D),
    "mean_of_49": ((7, 7, 8), layers.GlobalAveragePooling2D),
    "pooling_of_2": ((6, 8), lambda: layers.AveragePooling1D(2)),
    "pooling_of_4": ((6, 6, 8), lambda: layers.AveragePooling2D(2)),
    "pooling_of_9": ((6, 6, 8), lambda: layers.AveragePooling2D(3)),
}


@pytest.mark.parametrize("kind", MEANS)
def test_means_of_16_bits(kind, rng, tmp_path) -> None:
    shape, make = MEANS[kind]
    model = keras.Sequential([keras.Input(shape), make()])
    x = rng.normal(size=(64, *shape)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    rounded = assert_same_within_one_step(qat, content, x)[0].numpy()
    ((values, scale, _),), _ = run_lite(content, x)
    off = np.abs(values - rounded) / scale
    assert np.mean(off > 0.5) < 0.02
