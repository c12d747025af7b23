"""What `distill_to_tflite` takes, in the forms that data and numbers come in."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite import pipeline
from kdlite.gates import Gates

CLASSES = 3
X, Y = np.eye(CLASSES, dtype="float32").repeat(4, 0), np.arange(12) // 4


def network() -> keras.Model:
    """A classifier that knows the task."""
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Dense(CLASSES)])
    model.set_weights([9 * np.eye(CLASSES), np.zeros(CLASSES)])
    return model


class Batches(keras.utils.PyDataset):
    """Three batches of what `parts` makes of samples and classes."""

    count: int | None = 3

    def __init__(self, parts) -> None:
        super().__init__()
        self.parts = parts

    @property
    def num_batches(self) -> int | None:
        return self.count

    def __getitem__(self, index: int):
        rows = slice(4 * index, 4 * index + 4)
        return self.parts(X[rows], Y[rows])


class Endless(Batches):
    count = None


def mapped(parts) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).map(parts)


@pytest.mark.parametrize("make", [Batches, mapped])
@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        (lambda x, y: (x, y, tf.ones(4)), ValueError, "give .x, y.*3 parts.*weights"),
        (lambda x, y: (x,), ValueError, r"give \(x, y\).*1 parts"),
        (lambda x, y: x, ValueError, r"give \(x, y\).*no pairs"),
        (lambda x, y: ({"a": x}, y), TypeError, "one array .* dict as x. For several"),
        (lambda x, y: (x, {"a": y}), TypeError, "one array .* dict as y. For several"),
    ],
)
def test_nothing_of_a_data_set_is_lost_unsaid(make, parts, error, text) -> None:
    with pytest.raises(error, match=f"`train` must.*{text}"):
        pipeline._as_arrays(make(parts), "train")
    for part, wanted in zip(
        pipeline._as_arrays(make(lambda x, y: (x, y)), "train"), (X, Y), strict=True
    ):
        np.testing.assert_array_equal(part, wanted)


def test_arrays_by_name_and_data_without_end_are_named() -> None:
    with pytest.raises(TypeError, match="one array .*a pair with a dict as x"):
        pipeline._as_arrays(({"a": X}, Y), "train")
    with pytest.raises(ValueError, match="`test` must end.*PyDataset without end"):
        pipeline._as_arrays(Endless(lambda x, y: (x, y)), "test")


class _Stop(Exception):
    pass


def test_numbers_and_names_of_numpy_are_those_of_python(tmp_path, monkeypatch) -> None:
    """A run that was begun with one kind goes on with the other."""

    def stop(*_) -> None:
        raise _Stop

    monkeypatch.setattr(pipeline, "Stages", stop)
    # Loss and rounding of this student are tested elsewhere.
    monkeypatch.setattr(pipeline, "quantize_aware", lambda *_, **__: None)
    teacher, student = network(), network()
    plain = {
        "epochs": 3,
        "qat_epochs": 1,
        "batch_size": 4,
        "learning_rate": 0.25,
        "weight_decay": 0.5,
        "temperature": 2.0,
        "hard_loss_weight": 0.5,
        "soft_loss_weight": 0.25,
        "views": 1,
        "seeds": 1,
        "baseline": False,
    }
    of_numpy = {
        name: np.bool_(value)
        if isinstance(value, bool)
        else np.int64(value)
        if isinstance(value, int)
        else np.float32(value)
        for name, value in plain.items()
    }
    out, found = tmp_path / "out", []
    for numbers, labels in ((plain, list("abc")), (of_numpy, np.array(list("abc")))):
        with pytest.raises(_Stop):
            pipeline.distill_to_tflite(
                teacher,
                (X, Y),
                student,
                test=(2 * X, Y),
                labels=labels,
                gates=Gates(max_bytes=np.int64(9_000)),
                out=out,
                **numbers,
            )
        found.append(json.loads((tmp_path / "out.partial" / "run.json").read_text()))
    assert found[0] == found[1]
    assert {name: found[0][name] for name in plain} == plain


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (["a", "b", ""], ValueError, "must be a text that is not empty. Received: ''"),
        (["a\n", "b\n", "c\n"], ValueError, "must be one line of text"),
        (["a", "b", "b"], ValueError, "must differ from each other. Received: 'b' 2 t"),
        ({"a", "b", "c"}, TypeError, "`labels` must be a list of class names"),
        ({"a": 0, "b": 1}, TypeError, "`labels` must be a list of class names"),
        (3, TypeError, "`labels` must be a list of class names. Received: 3"),
    ],
)
def test_names_that_no_file_can_have_are_found_first(
    tmp_path, labels, error, text
) -> None:
    with pytest.raises(error, match=text):
        pipeline.distill_to_tflite(
            network(),
            (X, Y),
            network(),
            test=(2 * X, Y),
            labels=labels,
            out=tmp_path / "out",
        )
    assert not any(tmp_path.iterdir())


def test_numbers_that_are_none_are_refused(tmp_path) -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 1.0)
    for name in ("temperature", "hard_loss_weight", "soft_loss_weight"):
        with pytest.raises(TypeError, match=f"`{name}` must be a number"):
            pipeline.distill_to_tflite(
                network(),
                (X, Y),
                network(),
                test=(2 * X, Y),
                out=tmp_path / "out",
                **{name: schedule},
            )
    assert not any(tmp_path.iterdir())
