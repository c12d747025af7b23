from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdlite import Distiller

N, BATCH = 24, 8
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Counted(layers.Layer):
    """Counts how often Python runs it: once a trace."""

    runs = 0

    def call(self, x):
        Counted.runs += 1
        return x


@pytest.fixture
def data(rng) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(0, 1, (N, 4)).astype("float32"), rng.integers(0, 3, N)


def model(*inner: layers.Layer, **named: str) -> keras.Sequential:
    return keras.Sequential(
        [keras.Input((4,)), *inner, layers.Dense(3, name="head")], **named
    )


def as_dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return N // BATCH

    def __getitem__(self, index):
        place = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[place], self.y[place]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metrics": ["accuracy"]},
        {"weighted_metrics": [keras.metrics.SparseCategoricalAccuracy()]},
        {"metrics": ["accuracy"], "steps_per_execution": 2},
        {"metrics": ["accuracy"], "jit_compile": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_training_is_traced_once(options, data) -> None:
    distiller = Distiller(model(Counted()), model())
    distiller.compile(keras.optimizers.Adam(), CROSS_ENTROPY, **options)
    Counted.runs = 0
    logs = distiller.fit(*data, batch_size=BATCH, epochs=2, verbose=0).history
    assert Counted.runs == 1
    assert len(logs["loss"]) == 2


@pytest.mark.parametrize("form", [as_dataset, Batches])
def test_in_every_form_of_data_and_with_validation(form, data) -> None:
    distiller = Distiller(model(Counted()), model())
    distiller.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    Counted.runs = 0
    distiller.fit(form(*data), validation_data=form(*data), shuffle=False, verbose=0)
    assert Counted.runs == 2  # one of training, one of evaluation


def test_evaluation_is_traced_once(data) -> None:
    distiller = Distiller(model(Counted()), model())
    distiller.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    Counted.runs = 0
    distiller.evaluate(*data, batch_size=BATCH, verbose=0)
    assert Counted.runs == 1


def test_the_variables_are_those_that_keras_makes(data) -> None:
    def trained(wrap) -> keras.Model:
        keras.utils.set_random_seed(1)
        student = model(layers.Dense(5, name="hidden"), name="student")
        whole = wrap(student)
        optimizer = keras.optimizers.AdamW(use_ema=True, name="tuned")
        whole.compile(optimizer, CROSS_ENTROPY, metrics=["accuracy"])
        whole.fit(*data, batch_size=BATCH, verbose=0)
        return whole

    of_keras = trained(lambda student: student)
    ours = trained(
        lambda student: Distiller(
            student, model(), hard_loss_weight=1, soft_loss_weight=0
        )
    )
    for theirs, mine in zip(
        of_keras.optimizer.variables, ours.optimizer.variables, strict=True
    ):
        assert mine.name == theirs.name
        assert mine.path.split("/")[0] == theirs.path.split("/")[0] == "tuned"
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_outputs_by_name_train_as_ever(names, data) -> None:
    def by_name() -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, {name: layers.Dense(3, name=name)(x) for name in names})

    x, y = data
    distiller = Distiller(by_name(), by_name())
    metrics = {name: ["accuracy"] for name in names}
    distiller.compile("adam", CROSS_ENTROPY, metrics=metrics)
    logs = distiller.fit(x, dict.fromkeys(names, y), batch_size=BATCH, verbose=0)
    assert sum(name.endswith("accuracy") for name in logs.history) == len(names)


@pytest.mark.parametrize("deferred", ["student", "part"])
def test_what_is_built_in_the_first_step_trains_as_ever(deferred, data) -> None:
    class Part(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = layers.Dense(3)

        def call(self, x):
            return self.inner(x)

    student = keras.Sequential([layers.Dense(3)]) if deferred == "student" else Part()
    distiller = Distiller(student, model(), student_outputs="logits")
    distiller.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    logs = distiller.fit(*data, batch_size=BATCH, verbose=0).history
    assert {"loss", "accuracy"} <= set(logs)
    assert len(distiller.optimizer.variables) == 2 + 2 * 2


def test_labels_may_come_later(data) -> None:
    x, y = data
    distiller = Distiller(model(), model())
    distiller.compile("adam", CROSS_ENTROPY, metrics=["accuracy"])
    assert "accuracy" not in distiller.fit(x, batch_size=BATCH, verbose=0).history
    assert "accuracy" in distiller.fit(x, y, batch_size=BATCH, verbose=0).history
    assert "accuracy" not in distiller.fit(x, batch_size=BATCH, verbose=0).history
