"""A layer that folds: its kernel on integer levels, and the integer operation."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite.compress.folded_layer import FoldedLayer


def rounded_kernel(kernel, axes, bits=8):
    """Float64 oracle: symmetric rounding, one scale for each output channel."""
    step = np.abs(kernel).max(axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.rint(np.float64(kernel) / step) * step


def test_only_layers_with_a_kernel_can_be_folded():
    with pytest.raises(
        TypeError, match="must be a convolution or Dense.*Received: layer=.*ReLU"
    ):
        FoldedLayer(keras.layers.ReLU())


LAYERS = {
    "conv": (lambda: keras.layers.Conv2D(6, 3, strides=2, use_bias=False), (0, 1, 2)),
    "grouped": (lambda: keras.layers.Conv2D(6, 3, groups=2), (0, 1, 2)),
    "depthwise": (
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2, dilation_rate=2),
        (0, 1),
    ),
    "dense": (lambda: keras.layers.Dense(6), (0,)),
}


def randomized(layer, rng):
    for variable in layer.variables:
        if variable.dtype == "bool":
            continue
        values = rng.normal(0, 0.5, variable.shape)
        if "variance" in variable.path:
            values = np.abs(values) + 0.1
        variable.assign(values)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_folding_is_exact(kind, norm, rng):
    make, axes = LAYERS[kind]
    layer = FoldedLayer(
        make(),
        keras.layers.BatchNormalization() if norm else None,
        input_scale=0.02 if kind == "grouped" else [0.02, 0.03, -0.01, 0.5],
        input_offset=-1.0,
    )
    x = rng.uniform(0, 255, (2, 7, 7, 4)).astype("float32")
    layer(x)
    randomized(layer, rng)
    unrounded = layer(x).numpy()
    # Unset, the layer is the float model: rescale, convolve, normalize.
    rescaled = x * np.float32(layer.input_scale) + np.float32(layer.input_offset)
    expected = layer.layer(rescaled)
    expected = layer.batch_norm(expected, training=False) if norm else expected
    np.testing.assert_allclose(unrounded, expected, atol=1e-4, rtol=1e-5)

    layer.frozen_statistics = True
    y = layer(x, training=True).numpy()
    np.testing.assert_allclose(layer(x), y, atol=1e-5)
    plain, weights = layer.plain()
    plain.build(x.shape)
    plain.set_weights(weights)
    np.testing.assert_allclose(plain(x), y, atol=2e-4, rtol=1e-4)
    # Rounding before or after batch normalization comes to the same levels.
    kernel = weights[0]
    np.testing.assert_allclose(kernel, rounded_kernel(kernel, axes), atol=1e-6)
    assert np.abs(unrounded - y).max() > 1e-4


def test_batch_statistics_are_used_in_training_unless_frozen(rng):
    layer = FoldedLayer(keras.layers.Dense(3), keras.layers.BatchNormalization())
    x = rng.normal(5, 2, (64, 4)).astype("float32")
    y = layer(x, training=True).numpy()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    moved = layer.batch_norm.moving_mean.numpy()
    assert np.abs(moved).max() > 0
    layer.frozen_statistics = True
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.batch_norm.moving_mean, moved)


def test_kernel_gradients_go_straight_through(rng):
    layer = FoldedLayer(keras.layers.Dense(3), input_scale=0.5, input_offset=1.0)
    x = tf.constant(rng.normal(size=(8, 4)).astype("float32"))
    layer(x)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(layer(x, training=True))
    gradient = tape.gradient(y, layer.layer.kernel.value)
    expected = np.repeat((0.5 * x.numpy() + 1.0).sum(0)[:, None], 3, axis=1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_a_channel_of_zeros_stays_zero():
    layer = FoldedLayer(keras.layers.Dense(2, kernel_initializer="zeros"))
    assert not layer(np.ones((1, 3)), training=True).numpy().any()
    assert not layer.folded()[0].any()


def test_the_layer_survives_its_config():
    layer = FoldedLayer(
        keras.layers.DepthwiseConv2D(3, padding="same"),
        keras.layers.BatchNormalization(),
        input_scale=[0.5, 0.1],
        bits=4,
        frozen_statistics=True,
        learned=True,
    )

    def copied():
        serialize = keras.saving.serialize_keras_object
        return keras.saving.deserialize_keras_object(serialize(layer))

    assert type(copied()) is FoldedLayer
    x = np.linspace(0, 1, 18, dtype="float32").reshape(1, 3, 3, 2)
    layer(x, training=True)
    # Once more, now that its parts are built.
    clone = copied()
    clone(x)
    clone.set_weights(layer.get_weights())
    np.testing.assert_array_equal(clone(x), layer(x))


def test_learned_steps_start_at_all_of_a_channel_and_only_shrink(rng):
    layer = FoldedLayer(keras.layers.Dense(3), bits=4, learned=True)
    plain = FoldedLayer(layer.layer, bits=4)
    x = rng.normal(size=(64, 8)).astype("float32")
    np.testing.assert_allclose(
        layer(x, training=True), plain(x, training=True), atol=1e-6
    )
    layer.shrink.assign([[0.0, 0.5, 1.0]])
    kernel = layer.layer.kernel.numpy().astype("float64")
    most = np.abs(kernel).max(0) * np.exp([0.0, -0.5, -1.0])
    expected = np.rint(np.clip(kernel, -most, most) / (most / 7)) * (most / 7)
    found, _ = layer.folded()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # The highest level is reached, by which a converter finds the steps again.
    np.testing.assert_allclose(np.abs(found).max(0), most, rtol=1e-6)
    optimizer = keras.optimizers.SGD(100.0)
    optimizer.build([layer.shrink])
    optimizer.apply([tf.ones((1, 3))], [layer.shrink])
    assert layer.shrink.numpy().tolist() == [[0.0, 0.0, 0.0]]


def test_learned_steps_follow_the_loss(rng):
    # A weight that is much larger than all others, and hardly matters.
    kernel = rng.normal(0, 0.1, (64, 4)).astype("float32")
    kernel[0] = 2.0
    x = rng.normal(0, 1, (256, 64)).astype("float32")
    x[:, 0] *= 1e-3
    losses = {}
    for learned in (False, True):
        dense = keras.layers.Dense(4, use_bias=False)
        layer = FoldedLayer(dense, bits=4, learned=learned)
        layer(x)
        dense.kernel.assign(kernel)
        optimizer = keras.optimizers.Adam(0.05)
        for _ in range(80 if learned else 1):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((layer(x, training=True) - x @ kernel) ** 2)
            if learned:
                gradient = tape.gradient(loss, [layer.shrink.value])
                optimizer.apply(gradient, [layer.shrink])
        losses[learned] = float(loss)
    assert losses[True] < 0.1 * losses[False]


def in_integers(x, kernel, bias, step_in, step_out, bits, kept=31):
    """Float64 oracle: TFLite's operation of one place on levels of its input."""
    most = 2 ** (bits - 1) - 1
    steps = np.abs(kernel).max(0) / most
    levels = np.rint(kernel / steps)
    scale = step_in * steps
    if bits == 4:  # the bias, as the converter has it in 8 bits, and then in these
        finer = 127 / 7
        bias = np.rint(np.rint(bias / scale * finer) / finer)
    else:
        bias = np.rint(bias / scale)
    total = np.rint(x / step_in) @ levels + bias
    mantissa, power = np.frexp(scale / step_out)
    if bits == 8:
        mantissa = np.minimum(np.rint(mantissa * 2**kept), 2**kept - 1) / 2**kept
        return np.floor(total * mantissa * 2.0**power + 0.5)
    assert (power <= 0).all()
    return np.floor(np.rint(total * mantissa) * 2.0**power + 0.5)


@pytest.mark.parametrize(
    ("bits", "make", "kept"),
    [
        (4, keras.layers.Dense, None),
        (8, keras.layers.Dense, 31),
        (8, lambda filters: keras.layers.Conv1D(filters, 1), 15),
    ],
)
def test_the_integer_operation_is_followed_where_it_is_coarse(bits, make, kept, rng):
    norm, wide = keras.layers.BatchNormalization(), 8 if bits == 4 else 16
    layer = FoldedLayer(make(5), norm, bits=bits, activation_bits=wide)
    levels = 128 if bits == 4 else 32768
    step_in, step_out = np.float32(2.0 / levels), np.float32(9.0 / levels)
    x = (rng.integers(-levels, levels, (20, 20, 12)) * step_in).astype("float32")
    layer(x)
    randomized(layer, rng)
    layer.frozen_statistics = True
    layer(x, training=True)
    kernel, bias = layer.folded()
    expected = in_integers(
        np.float64(x),
        np.float64(kernel).reshape(12, 5),
        np.float64(bias),
        step_in,
        step_out,
        bits,
        kept,
    )

    def off(y):
        return np.mean(np.floor(np.float64(y) / step_out + 0.5) != expected)

    steps = {"input_step": step_in, "output_step": step_out}
    followed, alone = off(layer(x, **steps)), off(layer(x))
    in_training = off(layer(x, training=True, **steps))
    # Float32 sums are exact to 1e-7 of 32768 steps, or a value in 200 on a tie;
    # in inference those of 16 bits are exact.
    assert in_training < 0.02
    assert followed <= (0.02 if bits == 4 else 0.0)
    assert alone > (2 * followed + 0.01 if kept != 31 else 0.0)
    # With the statistics of the batch there is nothing yet to follow.
    layer.frozen_statistics = False
    other = layer(x, training=True, **steps)
    np.testing.assert_array_equal(other, layer(x, training=True))
