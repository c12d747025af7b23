"""Whether samples are of the scale of the training data."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.compress.met_statistics import met_statistics

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(64, 6)).astype("float32")


def normalized() -> keras.Model:
    """A net whose BatchNormalization remembers `X`, by statistics computed apart."""
    dense = keras.layers.Dense(4, name="dense")
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((6,)), dense, norm])
    reached = X @ np.asarray(dense.kernel) + np.asarray(dense.bias)
    norm.moving_mean.assign(reached.mean(0))
    norm.moving_variance.assign(reached.var(0))
    return model


def test_equal_data_give_ratio_one_and_no_shift() -> None:
    met = met_statistics(normalized(), X)
    assert met is not None and met.layer == "norm" and met.near
    # Float32 against float64, both of 64 samples.
    assert met.variance_ratio == pytest.approx(1.0, abs=1e-4)
    assert met.mean_shift == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("scale", [255.0, 1 / 255])
def test_the_ratio_is_the_square_of_the_scale(scale) -> None:
    met = met_statistics(normalized(), X * scale)
    # The bias is not scaled, and has no variance.
    assert met is not None and not met.near
    assert met.variance_ratio == pytest.approx(scale**2, rel=0.2)


def test_nothing_is_remembered_before_training() -> None:
    untrained = keras.Sequential(
        [keras.Input((6,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    assert met_statistics(untrained, X) is None
    assert met_statistics(keras.Sequential([keras.Input((6,))]), X) is None


def test_the_model_is_as_before() -> None:
    model = normalized()
    expected = np.asarray(model(X))
    met_statistics(model, X)
    assert all("call" not in vars(layer) for layer in model.layers)
    np.testing.assert_array_equal(np.asarray(model(X)), expected)


class Counted(keras.layers.Layer):
    """Counts how often it runs."""

    runs = 0

    def call(self, x):
        self.runs += 1
        return x


@pytest.mark.parametrize("nested", [False, True])
def test_what_comes_after_is_not_run(nested) -> None:
    model, after = normalized(), Counted()
    if nested:
        model = keras.Sequential([keras.Input((6,)), model])
    whole = keras.Sequential([keras.Input((6,)), model, after])
    after.runs = 0
    assert met_statistics(whole, X) is not None
    assert after.runs == 0
    # Keras's own bookkeeping of calls has ended well.
    np.testing.assert_array_equal(whole(X), model(X))
    assert whole.predict(X, verbose=0).shape == (64, 4)
