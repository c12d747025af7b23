from __future__ import annotations

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdlite
from kdlite.distill.taps import LogitsModel
from kdlite.distill.update import ClassScore, _difference_weights, _Gate

CENTERS = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])


def blobs(classes: int, count: int = 240, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = CENTERS[y] + 0.4 * rng.normal(size=(count, 2))
    return x.astype("float32"), y


def oracle(classes: int, softmax: bool = False) -> keras.Model:
    """A teacher that knows where the classes are."""
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(classes, activation="softmax" if softmax else None),
        ],
        name=f"oracle{classes}",
    )
    model.set_weights([2.0 * CENTERS[:classes].T, np.zeros(classes)])
    return model


def student(classes: int, softmax: bool = False) -> keras.Model:
    """Has learned the first classes."""
    model = network(classes, softmax)
    model.set_weights(learned(classes, softmax))
    return model


def network(classes: int, softmax: bool) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(classes, activation="softmax" if softmax else None),
        ],
        name="student",
    )


@functools.cache
def learned(classes: int, softmax: bool) -> list[np.ndarray]:
    model = network(classes, softmax)
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax),
    )
    model.fit(*blobs(classes), epochs=6, verbose=0)
    return model.get_weights()


def new_class(index: int, count: int = 60):
    x, y = blobs(4, 4 * count, seed=5)
    return x[y == index], y[y == index]


OPTIONS = {"epochs": 6, "learning_rate": 0.01, "verbose": 0}


@pytest.mark.parametrize("softmax", [False, True])
def test_a_new_class_is_learned_and_the_old_ones_are_kept(softmax) -> None:
    old = student(3, softmax)
    weights = [w.copy() for w in old.get_weights()]
    replay = kdlite.ReplayBuffer.build(oracle(3, softmax), blobs(3), size=30)
    result = kdlite.update(
        old,
        oracle(4, softmax),
        new_class(3),
        replay=replay,
        validation_data=blobs(4, seed=9),
        max_forgetting_points=1.0,
        **OPTIONS,
    )
    assert result.passed and result.top1_after > 0.97
    assert (result.old_classes, result.classes) == (3, 4)
    assert result.student.output_shape == (None, 4)
    assert result.per_class[3].before == 0.0 and result.per_class[3].after > 0.95
    assert result.top1_before == pytest.approx(0.75, abs=0.02)
    assert (result.new_samples, result.replay_samples) == (60, 30)
    assert result.student_samples == 6 * 90
    # The student given is as it was, and no part of the result.
    for now, was in zip(old.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, was)
    assert old.output_shape == (None, 3)
    # The last layer is what it was in kind.
    x = blobs(4)[0][:5]
    assert np.allclose(np.asarray(result.student(x)).sum(-1), 1.0) == softmax


def test_forgetting_is_refused_with_the_figures() -> None:
    old = student(3)
    weights = [w.copy() for w in old.get_weights()]
    with pytest.raises(
        kdlite.ForgettingError,
        match=r"must not forget.*Received: \d+\.\d\d points of top-1 lost on 180 "
        r"samples of old classes, where 0.5 are allowed.*Fix: a larger replay buffer",
    ) as caught:
        kdlite.update(
            old,
            oracle(4),
            new_class(3),
            validation_data=blobs(4, seed=9),
            **{**OPTIONS, "epochs": 20},
        )
    result = caught.value.result
    assert not result.passed and result.forgotten_points > 0.5
    assert result.student.output_shape == (None, 4)
    for now, was in zip(old.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, was)
    allowed = kdlite.update(
        old,
        oracle(4),
        new_class(3),
        max_forgetting_points=None,
        **{**OPTIONS, "epochs": 1},
    )
    assert allowed.passed and allowed.forgotten_points is None
    assert allowed.per_class == () and allowed.top1_after is None
    assert str(allowed).startswith("60 new samples, 0 old ones; 60 training samples")


@pytest.mark.parametrize(("end", "share"), [(0.5, 1.0), (-0.3, 0.7), (-3.0, None)])
def test_of_the_averages_the_best_that_keeps_the_gate_is_taken(end, share) -> None:
    # At a share s the weights are the right ones times 1 + (end - 1) s: above zero the
    # student is right everywhere, below it nowhere.
    model = oracle(4)
    start = model.get_weights()
    gate = _Gate(LogitsModel(model), 4, 4, blobs(4), 0.5)
    model.set_weights([end * start[0], start[1]])
    took = dict.fromkeys(
        ("new_samples", "replay_samples", "student_samples", "teacher_samples"), 0
    )
    result = gate.best_average(model, start, seconds=0.0, **took)
    assert result.passed == (share is not None)
    assert result.student is model
    if share is not None:
        assert result.share == share and result.forgotten_points < 0.5
    factor = 1 + (end - 1) * result.share
    np.testing.assert_allclose(model.get_weights()[0], factor * start[0], rtol=1e-6)


def test_a_better_teacher_of_the_same_classes() -> None:
    old = student(4)
    # It had taken the last two classes for each other.
    kernel, bias = old.layers[-1].get_weights()
    order = [0, 1, 3, 2]
    old.layers[-1].set_weights([kernel[:, order], bias[order]])
    wrong = oracle(4)
    wrong.set_weights([wrong.get_weights()[0][:, order], np.zeros(4)])
    replay = kdlite.ReplayBuffer.build(wrong, blobs(4)[0], size=40)
    result = kdlite.update(
        old,
        oracle(4),
        blobs(4, 80, seed=4)[0],
        replay=replay,
        old_teacher=wrong,
        validation_data=blobs(4, seed=9),
        **{**OPTIONS, "epochs": 10, "learning_rate": 0.05, "batch_size": 16},
    )
    assert result.top1_before < 0.6 and result.top1_after > 0.97
    assert result.forgotten_points < 0


def test_new_data_in_every_form() -> None:
    x, y = new_class(3)
    y = y.copy()
    y[::2] = -1
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    replay = kdlite.ReplayBuffer.build(oracle(3), blobs(3), size=30)
    for data in ((x, y), dataset.batch(16)):
        result = kdlite.update(
            student(3),
            oracle(4),
            data,
            replay=replay,
            validation_data=blobs(4, seed=9),
            max_forgetting_points=2.0,
            **OPTIONS,
        )
        assert result.new_samples == 60 and result.top1_after > 0.95


def test_augmented_views(step_by_step) -> None:
    def jitter(x, seed):
        return x + 0.1 * tf.random.stateless_normal(tf.shape(x), seed)

    result = kdlite.update(
        student(3),
        oracle(4),
        new_class(3),
        replay=kdlite.ReplayBuffer.build(oracle(3), blobs(3), size=30),
        validation_data=blobs(4, seed=9),
        max_forgetting_points=2.0,
        augment=jitter,
        views=2,
        **{**OPTIONS, "epochs": 2},
    )
    assert result.top1_after > 0.95
    assert result.teacher_samples == 3 * 90


def test_equal_seeds_give_equal_students() -> None:
    replay = kdlite.ReplayBuffer.build(oracle(3), blobs(3), size=30)

    def updated() -> list[np.ndarray]:
        result = kdlite.update(
            student(3),
            oracle(4),
            new_class(3),
            replay=replay,
            max_forgetting_points=None,
            seed=1,
            **{**OPTIONS, "epochs": 1},
        )
        return result.student.get_weights()

    first, again = updated(), updated()
    assert all(map(np.array_equal, first, again))


def test_samples_weigh_more_where_the_teachers_differ() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.dirichlet(np.ones(3), 50), rng.normal(size=(50, 4)) * 3
    new[0] = [*np.log(old[0]), -1e9]
    old[1], new[1] = [1, 0, 0], [-1e9, 0, -1e9, -1e9]
    weights = _difference_weights(old, new, factor=2.0)
    # From the definition: the entropy of the mean, less the mean of the entropies.
    p = np.exp(new - np.logaddexp.reduce(new, -1, keepdims=True))
    q = np.pad(old, ((0, 0), (0, 1)))

    def entropy(a):
        return -np.where(a > 0, a * np.log(np.where(a > 0, a, 1)), 0).sum(-1)

    divergence = (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2) / np.log(2)
    assert divergence[0] == pytest.approx(0, abs=1e-9)
    assert divergence[1] == pytest.approx(1)
    expected = 1 + 2 * divergence
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)
    np.testing.assert_array_equal(_difference_weights(old, new, 0.0), np.ones(50))


def test_result_prints_and_is_json() -> None:
    scores = tuple(ClassScore(i, 50, 0.9 * (i < 3), 0.9) for i in range(4))
    result = kdlite.UpdateResult(
        student=oracle(4),
        old_classes=3,
        classes=4,
        per_class=scores,
        top1_before=0.675,
        top1_after=0.9,
        old_top1_before=0.91,
        old_top1_after=0.9,
        max_forgetting_points=1.0,
        share=0.8,
        new_samples=60,
        replay_samples=30,
        student_samples=900,
        teacher_samples=90,
        seconds=2.0,
    )
    assert result.forgotten_points == pytest.approx(1.0)
    told = json.loads(json.dumps(result.to_dict()))
    assert told["passed"] is True and "student" not in told
    assert told["forgotten_points"] == result.forgotten_points
    assert [score["index"] for score in told["per_class"]] == [0, 1, 2, 3]
    lines = str(result).splitlines()
    assert lines[0].split() == ["class", "samples", "before", "after"]
    assert lines[4].split() == ["3", "50", "0.0%", "90.0%", "new"]
    assert lines[5] == (
        "all: 67.50% before, 90.00% after; +1.00 points forgotten on old classes"
    )
    assert lines[6] == "60 new samples, 30 old ones; 900 training samples, 2 s"
    with pytest.raises(AttributeError):
        result.classes = 5


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"new_teacher": 2}, ValueError, "may know more. Received: teacher 'oracle2' "),
        ({"epochs": 0}, ValueError, "`epochs` must be a whole number from 1"),
        ({"batch_size": 1.5}, ValueError, "`batch_size` must be a whole number"),
        ({"difference_weight": -1.0}, ValueError, "difference_weight"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"max_forgetting_points": -1.0}, ValueError, "max_forgetting_points"),
        ({"validation_data": None}, ValueError, "needs labelled samples of the old"),
        (
            {"validation_data": new_class(3)},
            ValueError,
            "with none of the 3 first classes. Fix: add some",
        ),
        (
            {"validation_data": (blobs(4)[0], blobs(4)[1] + 1)},
            ValueError,
            "`validation_data` labels must lie in 0..3",
        ),
        (
            {"new_data": (blobs(4)[0], blobs(4)[1] + 1)},
            ValueError,
            "`new_data` labels must lie in 0..3",
        ),
        (
            {
                "replay": kdlite.ReplayBuffer(
                    np.ones((2, 3)), np.zeros(2, int), np.eye(2)
                )
            },
            ValueError,
            r"same shape. Received: replay with \(3,\), new_data with \(2,\)",
        ),
        (
            {
                "replay": kdlite.ReplayBuffer(
                    np.ones((5, 2)), np.zeros(5, int), np.eye(5)
                )
            },
            ValueError,
            "logits of 5 classes for a student with 3 and a teacher with 4",
        ),
        ({"replay": "r.npz"}, TypeError, "ReplayBuffer.*'r.npz'.*ReplayBuffer.load"),
        (
            {"new_data": (new_class(3)[0] * np.nan, new_class(3)[1])},
            ValueError,
            "must be finite.*clean or drop",
        ),
    ],
)
def test_wrong_use_is_told_before_any_training(change, error, text) -> None:
    given = {
        "new_teacher": 4,
        "new_data": new_class(3),
        "validation_data": blobs(4),
        **OPTIONS,
        **change,
    }
    teacher, data = oracle(given.pop("new_teacher")), given.pop("new_data")
    untrained = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    with pytest.raises(error, match=text):
        kdlite.update(untrained, teacher, data, **given)


def test_several_inputs_are_refused() -> None:
    x, _ = new_class(3)
    with pytest.raises(TypeError, match="one input. Received: x of type dict"):
        kdlite.update(
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]),
            oracle(4),
            {"a": x, "b": x},
            max_forgetting_points=None,
        )
