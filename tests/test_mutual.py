"""Mutual learning: what each student minimises, and that it can go on."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kdlite
from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.mutual import MutualLearning

N, FEATURES, CLASSES, BATCH = 16, 4, 3, 8


def network(name, seed=0, activation=None, width=5, body=(), classes=CLASSES):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(width, activation="relu"),
            *body,
            layers.Dense(classes, activation=activation),
        ],
        name=name,
    )


def three(**kwargs):
    return [network(name, seed, **kwargs) for seed, name in enumerate("abc")]


def compiled(mutual, learning_rate=0.0, from_logits=True, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    kwargs.setdefault("metrics", ["accuracy"])
    # A few steps are sooner taken than traced; those of many, and of XLA, are.
    kwargs.setdefault("run_eagerly", True)
    mutual.compile(keras.optimizers.SGD(learning_rate), loss, **kwargs)
    return mutual


def fit(mutual, x, y=None, **kwargs):
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    return mutual.fit(x, y, **kwargs).history


def log_softmax(logits):
    shifted = np.asarray(logits, "float64")
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl(peer, student, temperature=1.0):
    log_p, log_q = (log_softmax(v / temperature) for v in (peer, student))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1) * temperature**2


def logits_of(students, x):
    return [np.asarray(student(x), "float64") for student in students]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(2).integers(0, CLASSES, N)


class TestWhatIsMinimised:
    def test_the_losses_are_those_of_the_oracle(self, x, y):
        students = three()
        mutual = compiled(MutualLearning(students, SoftTargets(2.0), 0.5, 3.0))
        weights = np.linspace(0.0, 2.0, N).astype("float32")
        logs = fit(mutual, x, y, sample_weight=weights)
        said, total = logits_of(students, x), 0.0
        for k, name in enumerate("abc"):
            peers = [said[j] for j in range(3) if j != k]
            soft = np.mean([kl(peer, said[k], 2.0) for peer in peers], axis=0)
            hard = -np.take_along_axis(log_softmax(said[k]), y[:, None], -1)[:, 0]
            hard, soft = (weights * hard).mean(), (weights * soft).mean()
            assert logs[f"{name}_soft_loss"][0] == pytest.approx(soft, rel=1e-4)
            assert logs[f"{name}_loss"][0] == pytest.approx(hard, rel=1e-4)
            accuracy = (said[k].argmax(-1) == y).mean()
            assert logs[f"{name}_accuracy"][0] == pytest.approx(accuracy)
            total += 0.5 * hard + 3.0 * soft
        assert logs["loss"][0] == pytest.approx(total, rel=1e-4)

    def test_peers_are_constants(self, x):
        # Let through, the gradient would also make a peer easier to copy.
        students = [network("a", 0), network("b", 1)]
        hidden = [np.asarray(s.layers[0](x), "float64") for s in students]
        p = [np.exp(log_softmax(v)) for v in logits_of(students, x)]
        before = [s.get_weights()[2] for s in students]
        mutual = MutualLearning(students, None, 0.0, 1.0)
        fit(compiled(mutual, 1.0), x, batch_size=N)
        for k in range(2):
            gradient = hidden[k].T @ (p[k] - p[1 - k]) / N
            step = before[k] - students[k].get_weights()[2]
            np.testing.assert_allclose(step, gradient, atol=1e-6)

    def test_without_the_soft_loss_each_learns_as_alone(self, x, y):
        students, alone = three(), three()
        fit(compiled(MutualLearning(students, None, 1.0, 0.0), 0.1), x, y, epochs=2)
        for student, single in zip(students, alone, strict=True):
            fit(compiled(single, 0.1), x, y, epochs=2)
            for mine, its in zip(
                student.get_weights(), single.get_weights(), strict=True
            ):
                np.testing.assert_allclose(mine, its, atol=1e-6)

    def test_one_forward_pass_a_student_and_step(self, x, y):
        # Some implementations run every network once for each peer.
        twice = [network(n, 0, body=(layers.BatchNormalization(),)) for n in "ab"]
        once = network("once", 0, body=(layers.BatchNormalization(),))
        fit(compiled(MutualLearning(twice)), x, y)
        fit(compiled(once), x, y)
        for student in twice:
            np.testing.assert_array_equal(
                student.layers[1].moving_mean, once.layers[1].moving_mean
            )

    def test_students_of_different_kinds_come_to_agree(self, x, y):
        students = [network("a", 0), network("b", 1, "softmax", width=9)]
        mutual = MutualLearning(students, SoftTargets(2.0), 0.0, 1.0)
        compiled(mutual, 0.3, metrics=None, run_eagerly=False)
        logs = fit(mutual, np.tile(x, (15, 1)), epochs=4)
        assert logs["soft_loss"][-1] < 0.2 * logs["soft_loss"][0]

    def test_metrics_that_are_objects_are_each_students_own(self, x, y):
        students = [network("a", 0), network("b", 1)]
        metric = keras.metrics.SparseCategoricalAccuracy(name="right")
        mutual = compiled(MutualLearning(students), metrics=[metric])
        logs = fit(mutual, x, y)
        for name, said in zip("ab", logits_of(students, x), strict=True):
            right = (said.argmax(-1) == y).mean()
            assert logs[f"{name}_right"][0] == pytest.approx(right)


class TestKeras:
    def test_evaluate_and_predict(self, x, y):
        mutual = compiled(MutualLearning(three()))
        logs = fit(mutual, x, y, validation_data=(x, y))
        assert {"val_loss", "val_a_accuracy"} <= set(logs)
        results = mutual.evaluate(x, y, verbose=0, return_dict=True)
        assert not any("soft" in name for name in results)
        said = mutual.predict(x, verbose=0)
        assert set(said) == set("abc")
        for student in mutual.students:
            np.testing.assert_allclose(said[student.name], student(x), atol=1e-6)

    def test_schedules_and_xla(self, x, y):
        weight = kdlite.schedules.Linear(0.0, 1.0, over=2, unit="epochs")
        mutual = MutualLearning(three()[:2], soft_loss_weight=weight)
        compiled(mutual, metrics=None, run_eagerly=False, jit_compile=True)
        logs = fit(mutual, x, y, epochs=3)
        assert logs["soft_loss_weight"] == pytest.approx([0.0, 0.5, 1.0])

    def test_it_goes_on_where_it_was(self, x, y, tmp_path):
        def made():
            body = (layers.Dropout(0.5, seed=3),)
            students = [network(n, s, body=body) for s, n in enumerate("ab")]
            mutual = MutualLearning(students, SoftTargets(2.0), 0.5, 2.0)
            mutual.compile(
                keras.optimizers.Adam(0.02),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
                run_eagerly=True,
            )
            return mutual

        whole, first = made(), made()
        fit(whole, x, y, epochs=2)
        fit(first, x, y)
        first.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert float(loaded.soft_loss.temperature) == 2.0
        assert [student.name for student in loaded.students] == ["a", "b"]
        logs = fit(loaded, x, y, epochs=2, initial_epoch=1)
        assert "a_accuracy" in logs
        for mine, its in zip(whole.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, its)

    def test_the_students_are_plain_models(self, x, y, tmp_path):
        students = [network("a", 0), network("b", 1)]
        mutual = compiled(MutualLearning(students), 0.1)
        assert mutual.students == students
        fit(mutual, x, y)
        students[0].save(tmp_path / "a.keras")
        loaded = keras.models.load_model(tmp_path / "a.keras")
        np.testing.assert_array_equal(loaded(x), students[0](x))
        both = kdlite.teachers.Ensemble(mutual.students)
        assert both(x).shape == (N, CLASSES)


class TestErrors:
    def test_students(self):
        a = network("a")
        with pytest.raises(
            ValueError, match=r"between two students .*Received: \['a'\]"
        ):
            MutualLearning([a])
        with pytest.raises(
            ValueError, match=r"Received: \['a', 'a'\]. Fix: keras.Model"
        ):
            MutualLearning([a, network("a")])
        with pytest.raises(
            TypeError, match="`students` must be a keras.Model. Received"
        ):
            MutualLearning([a, "b.keras"])
        unbuilt = keras.Sequential([layers.Dense(CLASSES)], name="u")
        with pytest.raises(
            ValueError, match="say what they take. Received: student 'u'"
        ):
            MutualLearning([a, unbuilt])
        other = network("b", classes=7)
        with pytest.raises(ValueError, match=r"same outputs. Received: 'a' .*'b' with"):
            MutualLearning([a, other])
        wide = keras.Sequential([keras.Input((9,)), layers.Dense(CLASSES)], name="w")
        with pytest.raises(ValueError, match=r"the same inputs. Received: 'a' .*'w'"):
            MutualLearning([a, wide])
        shared = keras.Sequential(
            [keras.Input((FEATURES,)), a.layers[0], layers.Dense(CLASSES)], name="s"
        )
        with pytest.raises(ValueError, match="'a' and 's', which share .*kernel. Fix"):
            MutualLearning([a, shared])

    def test_a_teacher(self):
        mutual = MutualLearning([network("a"), network("b")])
        with pytest.raises(ValueError, match="have no teacher. Received: teacher=<Seq"):
            mutual.teacher = network("t")
        assert mutual.teacher is None
