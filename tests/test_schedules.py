"""Schedules: values against numpy, and that the distiller follows them, in any mode."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import SoftTargets
from kdlite.distill.schedules import Cosine, Custom, Linear, Piecewise

SAMPLES, BATCH = 16, 4  # four steps an epoch


def model(units: int, name: str) -> keras.Model:
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dense(2)], name=name
    )


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 3)).astype("float32")
    return x, rng.integers(2, size=SAMPLES)


def distiller(temperature=2.0, compiled=None, **weights):
    # A few steps are sooner taken than traced; some tests have every way to execute.
    made = Distiller(
        model(2, "student"), model(4, "teacher"), SoftTargets(temperature), **weights
    )
    made.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **(compiled or {"run_eagerly": True}),
    )
    return made


class Seen(keras.callbacks.Callback):
    """The value of a variable during each step."""

    def __init__(self, variable) -> None:
        super().__init__()
        self.variable = variable
        self.values: list[float] = []

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.values.append(float(self.variable))


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (Linear(1.0, 3.0, over=4), lambda n: np.interp(n, [0, 4], [1, 3])),
        (Linear(0.0, 1.0, 3, delay=2), lambda n: np.interp(n, [2, 5], [0, 1])),
        (Linear(0.0, 1.0, over=0, delay=2), lambda n: float(n > 2)),
        (
            Cosine(8.0, 2.0, over=6),
            lambda n: 2 + 3 * (1 + np.cos(np.pi * min(n, 6) / 6)),
        ),
        (Piecewise([2, 5], [3.0, 2.0, 1.0]), lambda n: [3, 2, 1][(n >= 2) + (n >= 5)]),
        (Custom(lambda n: 2.0 * n + 1.0), lambda n: 2.0 * n + 1.0),
    ],
)
def test_values(schedule, expected):
    values = [float(schedule(n)) for n in range(9)]
    np.testing.assert_allclose(values, [expected(n) for n in range(9)], rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        Linear(0.0, 1.0, 5, delay=1, unit="epochs"),
        Cosine(4.0, 1.0, 5),
        Piecewise([3], [1.0, 0.0], unit="epochs"),
        Custom(keras.optimizers.schedules.ExponentialDecay(1.0, 2, 0.5), "epochs"),
    ],
)
def test_configs_make_the_schedule_again(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(schedule)
    assert copy.unit == schedule.unit
    assert [float(copy(n)) for n in range(7)] == [float(schedule(n)) for n in range(7)]


@pytest.mark.parametrize(
    "compiled",
    [{"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}],
    ids=["graph", "jit", "eager"],
)
def test_steps_are_followed(compiled):
    trained = distiller(soft_loss_weight=Linear(0.0, 1.0, over=8), compiled=compiled)
    seen = Seen(trained.soft_loss_weight)
    logs = trained.fit(
        *data(), batch_size=BATCH, epochs=3, verbose=0, callbacks=[seen]
    ).history
    expected = np.interp(np.arange(12), [0, 8], [0, 1])
    np.testing.assert_allclose(seen.values, expected, rtol=1e-6)
    np.testing.assert_allclose(logs["soft_loss_weight"], expected[3::4], rtol=1e-6)


def test_the_loss_is_that_of_the_weight_of_the_moment():
    trained = distiller(
        hard_loss_weight=Piecewise([4], [0.25, 0.75]),
        soft_loss_weight=Linear(1.0, 0.0, over=4),
        temperature=Piecewise([4], [1.0, 9.0]),
    )
    trained.optimizer.learning_rate = 0.0
    x, y = data()
    logs = trained.fit(x, y, batch_size=SAMPLES, epochs=6, verbose=0).history
    soft = {
        t: float(SoftTargets(t)(trained.teacher(x), trained.student(x)))
        for t in (1.0, 9.0)
    }
    expected = [
        hard_weight * logs["hard_loss"][0] + weight * soft[temperature]
        for hard_weight, weight, temperature in zip(
            [0.25] * 4 + [0.75] * 2,
            [1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
            [1.0] * 4 + [9.0] * 2,
            strict=True,
        )
    ]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    assert logs["temperature"] == [1.0] * 4 + [9.0] * 2


def test_several_steps_in_one_execution():
    trained = distiller(
        soft_loss_weight=Linear(0.0, 1.0, over=8), compiled={"steps_per_execution": 2}
    )
    logs = trained.fit(*data(), batch_size=BATCH, epochs=2, verbose=0).history
    assert logs["soft_loss_weight"] == pytest.approx([3 / 8, 7 / 8])


@pytest.mark.parametrize(
    "form",
    [
        lambda callback, model: [callback],
        lambda callback, model: callback,
        lambda callback, model: keras.callbacks.CallbackList(
            [callback], add_history=True, model=model
        ),
    ],
    ids=["list", "one", "CallbackList"],
)
def test_epochs_are_followed(form):
    trained = distiller(temperature=Linear(1.0, 5.0, over=2, unit="epochs"))
    seen = Seen(trained.soft_loss.temperature)
    callbacks = form(seen, trained)
    trained.fit(*data(), 2 * BATCH, 4, 0, callbacks)
    assert seen.values == [1.0] * 2 + [3.0] * 2 + [5.0] * 4
    assert trained.history.history["temperature"] == [1.0, 3.0, 5.0, 5.0]
    if isinstance(callbacks, keras.callbacks.CallbackList):
        # The user's own has nothing of this training left in it.
        assert [type(c).__name__ for c in callbacks.callbacks] == ["Seen", "History"]


def test_keras_schedules_are_of_steps():
    trained = distiller(
        soft_loss_weight=keras.optimizers.schedules.PiecewiseConstantDecay(
            [3], [1.0, 0.5]
        )
    )
    seen = Seen(trained.soft_loss_weight)
    trained.fit(*data(), batch_size=BATCH, epochs=2, verbose=0, callbacks=[seen])
    assert seen.values == [1.0] * 4 + [0.5] * 4


def test_a_number_ends_a_schedule():
    trained = distiller(
        soft_loss_weight=Linear(0.0, 1.0, over=8),
        temperature=Linear(1.0, 5.0, over=2),
        compiled={"jit_compile": False},
    )
    trained.fit(*data(), batch_size=BATCH, verbose=0)
    # One by one: each of them is part of the traced step.
    trained.soft_loss.temperature = 7.0
    logs = trained.fit(*data(), batch_size=BATCH, verbose=0).history
    assert float(trained.soft_loss.temperature) == 7.0
    assert "temperature" not in logs and "soft_loss_weight" in logs
    trained.soft_loss_weight = 0.3
    x, y = data()
    trained.train_on_batch(x, y)
    assert float(trained.soft_loss_weight) == pytest.approx(0.3)
    logs = trained.fit(x, y, batch_size=BATCH, verbose=0).history
    assert "soft_loss_weight" not in logs


def test_evaluation_neither_moves_nor_logs_them():
    trained = distiller(soft_loss_weight=Linear(0.0, 1.0, over=8))
    x, y = data()
    logs = trained.fit(
        x, y, batch_size=BATCH, epochs=2, validation_data=(x, y), verbose=0
    ).history
    assert "val_soft_loss_weight" not in logs
    before = float(trained.soft_loss_weight)
    assert "soft_loss_weight" not in trained.evaluate(x, y, verbose=0, return_dict=True)
    assert float(trained.soft_loss_weight) == before


def test_without_labels_they_are_logged_too():
    trained = distiller(soft_loss_weight=Linear(0.0, 1.0, over=8))
    logs = trained.fit(data()[0], batch_size=BATCH, verbose=0).history
    assert set(logs) == {"loss", "soft_loss", "soft_loss_weight"}


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_a_run_that_is_taken_up_again_goes_on_with_its_value(tmp_path, unit):
    def made():
        keras.utils.set_random_seed(4)
        return distiller(
            temperature=Cosine(1.0, 5.0, 3, unit=unit),
            soft_loss_weight=Linear(0.0, 1.0, over=9, unit=unit),
        )

    x, y = data()
    arguments = {"batch_size": 2 * BATCH, "verbose": 0, "shuffle": False}
    whole = made()
    whole.fit(x, y, epochs=3, **arguments)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        made().fit(x, y, epochs=3, callbacks=[backup(), Stop()], **arguments)
    again = made()
    again.fit(x, y, epochs=3, callbacks=[backup()], **arguments)
    for a, b in zip(whole.student.weights, again.student.weights, strict=True):
        np.testing.assert_array_equal(a, b)

    whole.save(tmp_path / "whole.keras")
    loaded = keras.models.load_model(tmp_path / "whole.keras")
    loaded.teacher = whole.teacher
    for trained in (whole, loaded):
        trained.fit(x, y, epochs=4, initial_epoch=3, **arguments)
    for a, b in zip(whole.student.weights, loaded.student.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda: Linear(0.0, 1.0, 5, unit="batches"), ValueError, "`unit` must be"),
        (lambda: Linear(0.0, 1.0, -1), ValueError, "`over` must be 0 or more.*-1"),
        (lambda: Cosine(0.0, np.inf, 1), ValueError, "`end` must be finite.*inf"),
        (lambda: Linear("0", 1.0, 1), TypeError, "`start` must be a number.*'0'"),
        (lambda: Piecewise([1], [1.0]), ValueError, "one more than `boundaries`"),
        (lambda: Piecewise([2, 1], [1, 2, 3]), ValueError, "`boundaries` must incr"),
        (lambda: Custom(0.5), TypeError, "`function` must be callable.*0.5"),
        (
            lambda: distiller(soft_loss_weight=Linear(-1.0, 1.0, 2)),
            ValueError,
            "`soft_loss_weight` must be 0 or more",
        ),
        (
            lambda: SoftTargets(Linear(0.0, 4.0, 2)),
            ValueError,
            "`temperature` must be above 0",
        ),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()
