"""The two layers that round: golden values, gradients, ranges, folding."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite.compress.fake_quant import FakeQuant, FoldedLayer


def rounded(x, lowest, highest, bits=8):
    """Float64 oracle: asymmetric rounding with an exact zero."""
    levels = 2**bits - 1
    scale = (highest - lowest) / levels
    zero = np.clip(np.floor(-lowest / scale + 0.5), 0, levels)
    q = np.clip(np.floor(np.float64(x) / scale + zero + 0.5), 0, levels)
    return (q - zero) * scale


def rounded_kernel(kernel, axes, bits=8):
    """Float64 oracle: symmetric rounding, one scale for each output channel."""
    step = np.abs(kernel).max(axes, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.rint(np.float64(kernel) / step) * step


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bounds", [(-1.3, 2.1), (0.0, 6.0), (-3.0, 0.0)])
def test_values_are_those_of_the_oracle(bits, bounds, rng):
    # Away from ties by a tenth of a step: float32 may round a tie to either side.
    steps = (bounds[1] - bounds[0]) / (2**bits - 1)
    x = rng.uniform(-4, 7, 2000)
    q = x / steps + np.floor(-bounds[0] / steps + 0.5)
    x = x[np.abs(q % 1 - 0.5) > 0.1].astype("float32")
    y = FakeQuant(bits=bits, sites=0, fixed_range=bounds)(x).numpy()
    np.testing.assert_allclose(y, rounded(x, *bounds, bits), atol=steps * 1e-2)
    assert FakeQuant(bits=bits, sites=0, fixed_range=bounds)(np.zeros(1)).numpy() == 0.0


def test_the_gradient_is_that_of_clip():
    x = tf.constant([-2.0, -0.7, 0.2, 0.9, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = FakeQuant(sites=0, fixed_range=(-1.0, 1.0))(x)
    assert tape.gradient(y, x).numpy().tolist() == [0, 1, 1, 1, 0]


def test_the_range_starts_with_the_first_batch_and_moves_by_an_exponential_mean(rng):
    layer = FakeQuant(momentum=0.9)
    batches = [rng.normal(0, k + 1, (8, 4)).astype("float32") for k in range(3)]
    lowest = highest = None
    for batch in batches:
        layer(batch, training=True)
        if lowest is None:
            lowest, highest = batch.min(), batch.max()
        lowest = 0.9 * lowest + 0.1 * batch.min()
        highest = 0.9 * highest + 0.1 * batch.max()
    np.testing.assert_allclose(layer.frozen().fixed_range, (lowest, highest), rtol=1e-5)


def test_without_momentum_the_range_is_all_that_was_seen():
    layer = FakeQuant(momentum=None)
    for batch in ([1.0, 2.0], [-3.0, 0.5], [0.0, 1.0]):
        layer(np.array(batch), training=True)
    assert layer.frozen().fixed_range == (-3.0, 2.0)


def test_unset_ranges_pass_values_on_and_inference_measures_nothing():
    layer = FakeQuant()
    x = np.array([0.1234567, -7.0], "float32")
    assert layer(x).numpy().tolist() == x.tolist()
    assert not layer.has_range
    layer(x, training=True)
    before = layer.frozen().fixed_range
    layer(100 * x, training=False)
    layer(100 * x)
    layer.trainable = False
    layer(100 * x, training=True)
    assert layer.has_range
    assert layer.frozen().fixed_range == before == (-7.0, np.float32(0.1234567))


def test_a_range_always_has_zero_and_a_dead_tensor_still_has_a_scale():
    layer = FakeQuant()
    layer(np.array([2.0, 3.0]), training=True)
    assert layer.frozen().fixed_range == (0.0, 3.0)
    dead = FakeQuant()
    assert dead(np.zeros(4), training=True).numpy().tolist() == [0.0] * 4
    assert dead.has_range
    assert dead.frozen().fixed_range == (0.0, 1.0)


def test_sites_share_the_union_of_their_ranges():
    layer = FakeQuant(sites=2, fixed_range=(0.0, 0.5))
    layer(np.array([-1.0, 1.0]), site=0, training=True)
    assert layer.frozen().fixed_range == (-1.0, 1.0)
    layer(np.array([0.0, 4.0]), site=1, training=True)
    layer(np.array([-9.0, 9.0]), site=None, training=True)
    assert layer.frozen().fixed_range == (-1.0, 4.0)


def test_the_margin_widens_the_range():
    layer = FakeQuant(margin=0.25)
    layer(np.array([-1.0, 2.0]), training=True)
    assert layer.frozen().fixed_range == (-1.25, 2.5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bits": 1}, "`bits` must be from 2 to 16. Received: bits=1"),
        ({"sites": 0}, "A range must come from .*sites=0, fixed_range=None"),
        ({"sites": -1}, "A range must come from .*sites=-1"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\) or None. .*=1.0"),
        ({"margin": -0.1}, "`margin` must not be negative. .*margin=-0.1"),
        ({"fixed_range": (1, 0)}, r"two finite numbers.*range=\(1, 0\)"),
        ({"fixed_range": (0, np.nan)}, "two finite numbers.*nan"),
        ({"fixed_range": 255}, "two finite numbers.*range=255"),
        ({"fixed_range": ("a", "b")}, "two finite numbers.*range="),
    ],
)
def test_bad_arguments_of_fake_quant(arguments, text):
    with pytest.raises(ValueError, match=text):
        FakeQuant(**arguments)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeQuant(bits=4, sites=2, fixed_range=(0.0, 2.0), momentum=None),
        lambda: FoldedLayer(
            keras.layers.DepthwiseConv2D(3, padding="same"),
            keras.layers.BatchNormalization(),
            input_scale=[0.5, 0.1],
            bits=4,
            frozen_statistics=True,
        ),
    ],
)
def test_layers_survive_their_config(make):
    layer = make()
    clone = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(clone) is type(layer)
    x = np.linspace(0, 1, 18, dtype="float32").reshape(1, 3, 3, 2)
    layer(x, training=True)
    # Once more, now that its parts are built.
    clone = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    clone(x)
    clone.set_weights(layer.get_weights())
    np.testing.assert_array_equal(clone(x), layer(x))
