"""Batches are as large as is good for speed, and small where samples are large."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from kdlite import batches
from kdlite.batches import samples_at_once
from kdlite.distill.replay import predict
from kdlite.distill.taps import logits_model
from kdlite.reporting.entrants import Entrant
from kdlite.symptoms import case


def empty(*shape: int) -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize(
    ("x", "size"),
    [
        (empty(9, 28, 28, 1), 256),
        (empty(9, 96, 96, 3), 75),
        (empty(9, 224, 224, 3), 13),
        (empty(9, 4096, 4096, 3), 1),
        (empty(9), 256),
        ({"a": empty(9, 1000, 1000), "b": [empty(9, 500, 1000), empty(9)]}, 1),
        ({"a": empty(9, 100, 1000), "b": [empty(9, 50, 1000), empty(9)]}, 13),
    ],
)
def test_large_samples_are_taken_in_small_batches(x: Any, size: int) -> None:
    assert samples_at_once(x, 256) == size


class Seen(keras.layers.Layer):
    """Passes on what it gets, and tells how many samples it gets at once."""

    def call(self, x: Any) -> Any:
        SIZES.append(x.shape[0])
        return x


SIZES: list[int | None] = []


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> keras.Model:
    monkeypatch.setattr(batches, "_VALUES", 12)
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    made = keras.Model(x, keras.layers.Dense(3, name="y")(Seen()(x)))
    SIZES.clear()
    return made


@pytest.mark.parametrize("run", [predict, case.run])
def test_what_runs_layer_by_layer_does_so(run: Any, model: keras.Model) -> None:
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    told = run(logits_model(model), x)
    SIZES[:] = [size for size in SIZES if size]
    assert SIZES == [3, 3, 2]
    np.testing.assert_allclose(told, x @ model.get_weights()[0], rtol=1e-5, atol=1e-6)


def test_a_report_does_so(model: keras.Model) -> None:
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    steps: list[int] = []
    model.predict = spy(model.predict, steps)  # type: ignore[method-assign]
    (told,) = Entrant("student", "student", (model,)).run(x)
    assert steps == [3]
    np.testing.assert_allclose(told[""], x @ model.get_weights()[0], rtol=1e-5)


def spy(predict: Any, sizes: list[int]) -> Any:
    def told(*args: Any, batch_size: int, **kwargs: Any) -> Any:
        sizes.append(batch_size)
        return predict(*args, batch_size=batch_size, **kwargs)

    return told
