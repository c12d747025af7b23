"""The stages' own parts; the stages as a whole are tested by the pipeline they make."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite import stages
from kdlite.distill.soft_labels import SoftLabels


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    optimizer = stages._optimizer(0.5, 1e-3, steps=10, epochs=4)
    schedule = optimizer._learning_rate
    rates = [float(schedule(step)) for step in range(41)]
    assert rates[0] == 0.0 and max(rates) == pytest.approx(0.5)
    assert int(np.argmax(rates)) == 4  # a tenth of the steps
    assert rates[40] == pytest.approx(0.0, abs=1e-9)
    assert all(np.diff(rates[4:]) <= 0)


def test_biases_and_normalization_do_not_decay() -> None:
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2),
            keras.layers.BatchNormalization(),
        ]
    )
    optimizer = stages._optimizer(0.5, 1e-3, steps=10, epochs=1)
    optimizer.build(model.trainable_variables)
    decaying = {
        variable.name
        for variable in model.trainable_variables
        if optimizer._use_weight_decay(variable)
    }
    assert decaying == {"kernel"}


def test_classes_that_no_sample_shows_are_told(caplog) -> None:
    stages.tell_of_untaught_classes(np.array([0, 2, 2, 1]), ("cat", "dog", "ox"))
    assert not caplog.records
    stages.tell_of_untaught_classes(np.array([0, 2]), ("cat", "dog", "ox"))
    assert "no training sample is of 1 of the 3 classes (dog)" in caplog.text
    caplog.clear()
    stages.tell_of_untaught_classes(np.array([3]), tuple("abcdefgh"))
    assert "7 of the 8 classes (a, b, c, e, f, ...)" in caplog.text


def test_few_samples_to_measure_on_are_told(caplog) -> None:
    def split(count):
        return np.zeros((count, 2)), np.zeros(count, int)

    for data, text in (
        ({"test": split(100), "validation": split(1)}, ""),
        (
            {"validation": split(1)},
            "on 1 `validation` sample, where one is 100 poi",
        ),
        ({"test": split(40), "validation": split(200)}, "on 40 `test` samples, where "),
    ):
        caplog.clear()
        stages.tell_of_few_samples(data)
        assert text in caplog.text and bool(text) == bool(caplog.records)


def test_training_that_diverges_leaves_nothing_to_go_on_from(
    tmp_path, step_by_step
) -> None:
    x = np.zeros((40, 2), "float32")
    y = np.zeros(40, "int64")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.layers[0].bias.assign([np.nan, 0.0])
    training = stages.Training(1, 1, 8, 0.01, 0.0, 2.0, 0.5, 0.5)
    run = stages.Stages(
        tmp_path, model, {"train": (x, y)}, ("a", "b"), training, None, 1, 0
    )
    sound = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    run.soft = SoftLabels.build(sound, x, tmp_path / "labels")
    with pytest.raises(RuntimeError, match="finite weights.*'student'.*rate=0.01"):
        run._fit(lambda: model, tmp_path / "student", 0, distill=True)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["labels"]
    assert not list(tmp_path.glob("*.keras"))


def test_the_student_that_was_given_stays_as_it_was(
    tmp_path, monkeypatch, step_by_step
) -> None:
    """Else a run of it that was stopped would be taken for another one."""
    x, y = np.eye(4, dtype="float32"), np.arange(4) % 2

    def network() -> keras.Model:
        inputs = keras.Input((4,))
        hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(8)(inputs))
        return keras.Model(inputs, keras.layers.Dense(2)(hidden))

    student, teacher, made = network(), network(), []
    training = stages.Training(1, 1, 2, 0.1, 0.0, 2.0, 0.5, 0.5)
    before = student.get_weights()

    class Stop(Exception):
        pass

    def save(model, path) -> None:
        made.append(model.get_weights())
        raise Stop

    monkeypatch.setattr(stages, "_save_whole", save)
    for folder in ("first", "again"):
        (tmp_path / folder).mkdir()
        run = stages.Stages(
            *(tmp_path / folder, teacher, {"train": (x, y)}, ("a", "b")),
            *(training, None, 1, 0),
        )
        run.label()
        with pytest.raises(Stop):
            run.train_and_export(student, seed=3, baseline=True)
    for weight, then in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, then)
    assert any((a != b).any() for a, b in zip(made[0], before, strict=True))
    for first, again in zip(*made, strict=True):  # the same masks were dropped
        np.testing.assert_array_equal(first, again)
