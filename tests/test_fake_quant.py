"""Rounding to the levels of an integer type: golden values, gradients, ranges."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite.compress.fake_quant import FakeQuant


def rounded(x, lowest, highest, bits=8):
    """Float64 oracle: asymmetric rounding with an exact zero."""
    levels = 2**bits - 1
    scale = (highest - lowest) / levels
    zero = np.clip(np.floor(-lowest / scale + 0.5), 0, levels)
    q = np.clip(np.floor(np.float64(x) / scale + zero + 0.5), 0, levels)
    return (q - zero) * scale


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


def test_16_bits_are_symmetric(rng):
    x = rng.uniform(-3, 2, 4000).astype("float32")
    layer = FakeQuant(bits=16)
    layer(np.array([-3.0, 2.0]), training=True)
    lowest, highest = layer.frozen().fixed_range
    # 3 is level -32768, so that nothing is cut off, and the zero point is 0.
    assert (lowest, highest) == pytest.approx((-3.0, 3.0 * 32767 / 32768), rel=1e-6)
    step = 3.0 / 32768
    levels = x / step
    sure = np.abs(levels % 1 - 0.5) > 0.1
    expected = np.floor(np.float64(levels) + 0.5) * step
    np.testing.assert_allclose(layer(x)[sure], expected[sure], atol=step / 50)
    assert float(layer(x, step=True)) == pytest.approx(step, rel=1e-6)
    other = FakeQuant(bits=16, sites=0, fixed_range=(-1.0, 2.0)).frozen().fixed_range
    assert other == pytest.approx((-2.0 * 32768 / 32767, 2.0), rel=1e-6)


def test_what_is_just_below_half_a_step_is_zero_in_the_range_of_a_tanh():
    """Counted from the lowest level, 128 steps away, it is half a step."""
    layer = FakeQuant(sites=0, fixed_range=(-1.0, 127 / 128))
    values = np.tanh(np.array([-1.0, 1.0, 3.0], "float32") / 256)
    assert (layer(values).numpy() * 128).tolist() == [0.0, 0.0, 1.0]


def test_between_two_levels_it_goes_up_or_away_from_the_integer_zero():
    # Zero is level 64 of 0..255, and the integer 0 is level 128.
    layer = FakeQuant(sites=0, fixed_range=(-64.0, 191.0))
    x = np.array([-2.5, 10.5, 63.5, 64.5, 80.5])
    assert layer(x).numpy().tolist() == [-2.0, 11.0, 64.0, 65.0, 81.0]
    almost = x - 1e-4  # as float arithmetic has a mean of levels
    assert layer(almost).numpy().tolist() == [-3.0, 10.0, 63.0, 64.0, 80.0]
    assert layer(almost, half_up=True).numpy().tolist() == layer(x).numpy().tolist()
    away = layer(x, half_away=True).numpy().tolist()
    assert away == [-3.0, 10.0, 63.0, 65.0, 81.0]


def loss_of_learned(x, stretch, weights):
    """Float64 oracle: the loss whose gradients are those of learned step sizes.

    Within the range the rounding stays what it is at the start, so that it is smooth:
    y = scale * round(x / scale) moves with the scale, and not with x.
    """
    lowest, highest = -1.0 * np.exp(stretch[0]), 2.0 * np.exp(stretch[1])
    scale, scale_0 = (highest - lowest) / 15, 3.0 / 15
    inside = (x >= -1.0) & (x <= 2.0)
    # round(x / scale) - x / scale, held; and x itself, which does not depend on it.
    error = np.rint(x / scale_0) - x / scale_0
    y = np.where(inside, x + scale * error, np.where(x < -1.0, lowest, highest))
    return (weights * y).sum()


def test_learned_ranges_have_the_gradients_of_learned_step_sizes(rng):
    layer = FakeQuant(bits=4, learned=True)
    layer(np.array([-1.0, 2.0]), training=True)
    x = tf.constant(rng.uniform(-2, 3, 200).astype("float32"))
    weights = rng.normal(0, 1, 200).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * weights)
    of_x, of_stretch = tape.gradient(loss, [x, layer.stretch.value])
    plain = FakeQuant(bits=4, sites=0, fixed_range=(-1.0, 2.0))(x)
    np.testing.assert_array_equal(y, plain)
    inside = (x.numpy() >= -1.0) & (x.numpy() <= 2.0)
    np.testing.assert_allclose(of_x, np.where(inside, weights, 0), atol=1e-6)
    small = 1e-6
    for k in range(2):
        move = small * np.eye(2)[k]
        high, low = (
            loss_of_learned(x.numpy().astype("float64"), sign * move, weights)
            for sign in (1, -1)
        )
        expected = (high - low) / (2 * small)
        assert float(of_stretch[k]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_learned_range_follows_the_loss(rng):
    # One value in a thousand is far out: with 4 bits it pays to give it up.
    x = rng.normal(0, 1, (1000, 4)).astype("float32")
    x[0] = 30.0
    x[1] = -30.0
    layer = FakeQuant(bits=4, learned=True)
    layer(x, training=True)
    before = float(np.mean((layer(x).numpy() - x)[2:] ** 2))
    optimizer = keras.optimizers.Adam(0.05)
    for _ in range(60):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((layer(x, training=True) - x)[2:] ** 2)
        optimizer.apply(tape.gradient(loss, [layer.stretch.value]), [layer.stretch])
    assert float(loss) < 0.2 * before
    lowest, highest = layer.frozen().fixed_range
    assert -15 < lowest < 0 < highest < 15


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


def test_symbolic_tensors_are_like_those_it_returns():
    quantizer, x = FakeQuant(sites=0, fixed_range=(0, 1)), np.ones((2, 3), "int32")
    for arguments in ({}, {"step": True}, {"half_away": True}, {"half_up": True}):
        symbolic = quantizer(
            keras.Input(batch_shape=(2, 3), dtype="int32"), **arguments
        )
        told = quantizer(x, **arguments)
        assert (symbolic.shape, symbolic.dtype) == (told.shape, told.dtype.name)


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
        (
            {"fixed_range": (0, 1), "learned": True},
            r"fixed or learned. Received: fixed_range=\(0, 1\), learned=True. Leave",
        ),
    ],
)
def test_bad_arguments_of_fake_quant(arguments, text):
    with pytest.raises(ValueError, match=text):
        FakeQuant(**arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeQuant(bits=4, sites=2, fixed_range=(0.0, 2.0), momentum=None),
        lambda: FakeQuant(bits=16, learned=True),
    ],
)
def test_the_layer_survives_its_config(make):
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
