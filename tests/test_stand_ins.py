"""What is converted in the place of what the converter does not have."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.compress.fake_quant import FakeQuant
from kdlite.compress.stand_ins import (
    SLOPES,
    PaddedSum,
    PointwiseDense,
    StandIn,
    stand_in,
)


def test_slopes_tell_functions_apart_in_float32() -> None:
    exact = {name: float(np.float32(slope)) for name, slope in SLOPES.items()}
    assert exact == SLOPES
    assert len(set(SLOPES.values())) == 3


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (layers.Softmax(), "softmax"),
        (layers.Activation("sigmoid"), "sigmoid"),
        (layers.Activation("tanh"), "tanh"),
        (layers.Activation("relu"), None),
    ],
)
def test_what_needs_one(layer, name) -> None:
    found = stand_in(layer, 16)
    assert stand_in(layer, 8) is None
    assert (found and found.stands_for) == name
    if found:
        assert isinstance(found, StandIn) and found.name == layer.name
        # It tells values apart as the function does: rising, in its range.
        values = found(np.linspace(-4, 4, 9, dtype="float32")[None]).numpy()[0]
        assert (np.diff(values) >= 0).all()
        assert values.min() >= -1 and values.max() < 1


@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 3), (1, 3)),
        ((2, 1, 3), (2, 1, 3)),
        ((1, 3, 3), (1, 3, 1)),
        ((1, 4, 4, 2), (1, 1, 4, 1)),
    ],
)
def test_a_sum_is_along_its_own_axes(shapes, rng) -> None:
    first, second = (rng.normal(size=shape).astype("float32") for shape in shapes)
    for bits in (8, 16):
        total = stand_in(layers.Add(name="total"), bits)
        assert total.name == "total"
        np.testing.assert_array_equal(total([first, second]), first + second)


def test_a_concatenation_is_a_sum(rng) -> None:
    rounding = FakeQuant(bits=16, sites=0, fixed_range=(-4.0, 4.0))
    parts = [rounding(rng.normal(size=(2, 3, n)).astype("float32")) for n in (1, 4, 2)]
    whole = PaddedSum(-1, rounding)(parts)
    np.testing.assert_allclose(whole, np.concatenate(parts, -1), atol=1e-6)
    rows = PaddedSum(1, rounding)([parts[0], parts[0]])
    np.testing.assert_allclose(rows, np.concatenate([parts[0]] * 2, 1), atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (None, 6)])
def test_a_dense_layer_is_a_convolution(shape, rng) -> None:
    inputs = keras.Input(shape)
    dense = layers.Dense(3)
    plain = keras.Model(inputs, dense(inputs))
    kernel, bias = rng.normal(size=(6, 3)), rng.normal(size=3)
    plain.set_weights([kernel, bias])
    other = keras.Model(inputs, PointwiseDense(3)(inputs))
    other.set_weights([kernel[None, None], bias])
    x = rng.normal(size=(4, *(n or 7 for n in shape))).astype("float32")
    np.testing.assert_allclose(other(x), plain(x), atol=1e-5)
