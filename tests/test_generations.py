"""Chains of students: who teaches whom, with what budget, and what comes of it."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.distill.distiller import Distiller
from kdlite.distill.generations import assistant_chain, born_again
from kdlite.distill.losses.classes import SoftTargets

N, FEATURES, CLASSES = 90, 2, 3


def network(width, name=None, classes=CLASSES):
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(width, activation="relu"),
            layers.Dense(classes),
        ],
        name=name,
    )


class Training:
    """A `train` that keeps what it was given.

    A few steps are sooner taken than traced.
    """

    def __init__(self, x, y, epochs=1, run_eagerly=True):
        self.data, self.epochs, self.run_eagerly = (x, y), epochs, run_eagerly
        self.models, self.teachers_before = [], []

    def __call__(self, trained):
        self.models.append(trained)
        teacher = getattr(trained, "teacher", None)
        self.teachers_before.append(teacher and teacher.get_weights())
        trained.compile(
            keras.optimizers.Adam(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            run_eagerly=self.run_eagerly,
        )
        return trained.fit(*self.data, epochs=self.epochs, batch_size=30, verbose=0)


@pytest.fixture(scope="module")
def data():
    """Three clouds of points."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % CLASSES
    centres = np.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    x = centres[y] + rng.normal(0.0, 0.4, (N, FEATURES))
    return x.astype("float32"), y


class TestAssistantChain:
    def test_each_is_taught_by_the_one_before(self, data):
        teacher, assistant, student = network(16, "t"), network(8, "a"), network(3, "s")
        train, before = Training(*data), teacher.get_weights()
        options = {"hard_loss_weight": 0.0, "soft_loss": SoftTargets(2.0)}
        lineage = assistant_chain(teacher, [assistant, student], train, **options)
        assert lineage.students == (assistant, student)
        assert lineage.student is student
        assert [d.teacher for d in train.models] == [teacher, assistant]
        assert [d.student for d in train.models] == [assistant, student]
        assert all(float(d.hard_loss_weight) == 0.0 for d in train.models)
        assert all(float(d.soft_loss.temperature) == 2.0 for d in train.models)
        assert all(map(np.array_equal, before, teacher.get_weights()))
        # The assistant taught as it was when it had been trained, and stayed so.
        taught = zip(train.teachers_before[1], assistant.get_weights(), strict=True)
        assert all(np.array_equal(*pair) for pair in taught)

    def test_knowledge_arrives_at_the_end_without_labels(self, data):
        x, y = data
        # Few epochs of many steps, as to begin with an epoch takes longer than a step.
        often = np.tile(x, (8, 1)), np.tile(y, 8)
        teacher = network(16)
        Training(*often, epochs=3, run_eagerly=False)(teacher)
        train = Training(*often, epochs=3, run_eagerly=False)
        lineage = assistant_chain(
            teacher, [network(8), network(4)], train, hard_loss_weight=0.0
        )
        agree = np.asarray(lineage.student(x)).argmax(-1) == y
        assert agree.mean() > 0.95
        assert [logs["accuracy"] > 0.95 for logs in lineage.logs] == [True, True]

    def test_what_does_not_fit_is_found_before_anyone_is_trained(self, data):
        train = Training(*data)
        with pytest.raises(ValueError, match="the same number of classes. Received"):
            assistant_chain(network(9), [network(8), network(4, classes=5)], train)
        assert train.models == []

    def test_errors(self, data):
        train, teacher, student = Training(*data), network(8), network(2, "s")
        with pytest.raises(ValueError, match=r"each once. Received: \[\]. Fix: assis"):
            assistant_chain(teacher, [], train)
        with pytest.raises(ValueError, match=r"each once. Received: \['s', 's'\]. Fix"):
            assistant_chain(teacher, [student, student], train)
        for wrong in (student, None):
            with pytest.raises(TypeError, match="`train` must be a function that comp"):
                assistant_chain(teacher, [student], wrong)


class TestBornAgain:
    def test_generations_and_budgets(self, data):
        pattern, train = network(4), Training(*data, epochs=2)
        before = pattern.get_weights()
        lineage = born_again(pattern, train, generations=3, soft_loss_weight=0.5)
        first, second, third = lineage.students
        assert train.models[0] is first
        assert not isinstance(train.models[0], Distiller)
        assert [d.teacher for d in train.models[1:]] == [first, second]
        assert [d.student for d in train.models[1:]] == [second, third]
        assert all(map(np.array_equal, before, pattern.get_weights()))
        # Each from weights of its own, for as many steps.
        kernels = [student.get_weights()[0] for student in lineage.students]
        assert len({kernel.tobytes() for kernel in kernels}) == 3
        steps = [int(each.optimizer.iterations) for each in train.models]
        assert steps == [6, 6, 6]
        taught = zip(train.teachers_before[2], second.get_weights(), strict=True)
        assert all(np.array_equal(*pair) for pair in taught)
        assert [set(logs) for logs in lineage.logs] == [
            {"accuracy", "loss"},
            *[{"accuracy", "hard_loss", "loss", "soft_loss"}] * 2,
        ]

    def test_the_lineage_is_a_report_and_an_ensemble(self, data):
        x, y = data
        train = Training(np.tile(x, (4, 1)), np.tile(y, 4), epochs=2)
        lineage = born_again(network(4), train, generations=2)
        report = json.loads(json.dumps(lineage.to_dict()))["students"]
        assert [entry["params"] for entry in report] == [27, 27]
        assert report[1]["soft_loss"] >= 0.0
        assert str(lineage).startswith("1. sequential")
        assert "2. " in str(lineage) and "soft_loss" in str(lineage)
        ensemble = lineage.ensemble(average="probabilities")
        assert (np.asarray(ensemble(x)).argmax(-1) == y).mean() > 0.9

    def test_train_need_not_return_a_history(self, data):
        lineage = born_again(network(2), lambda model: None, generations=2)
        assert lineage.logs == ({}, {})

    def test_errors(self, data):
        train = Training(*data)
        for generations in (1, 2.5):
            text = f"number from 2 on. Received: generations={generations}. Fix: 3 are"
            with pytest.raises(ValueError, match=text):
                born_again(network(2), train, generations=generations)
        unbuilt = keras.Sequential([layers.Dense(3)])
        with pytest.raises(
            ValueError, match="so it must be built. Received: model 'seq"
        ):
            born_again(unbuilt, train)
        assert train.models == []
