from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdlite
from kdlite.distill.targets import check_label_range, class_indices


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([2, 0, -1], [2, 0, -1]),
        ([[2], [0]], [2, 0]),
        ([2.0, np.nan, -3.0], [2, -1, -1]),
        ([[0, 0, 1], [0, 0, 0], [np.nan, 0, 1]], [2, -1, -1]),
        ([[0.2, 0.5, 0.3]], [1]),
        ([[0, 2], [1, -1]], [[0, 2], [1, -1]]),
        ([5, 1], [5, 1]),
    ],
)
def test_class_of_each_row(y, expected) -> None:
    assert class_indices(np.array(y), 3).tolist() == expected


def test_range_of_labels() -> None:
    check_label_range(np.array([0, 1, 2]), 3)
    check_label_range(np.array([0, -1]), 3, ignored=-1)
    check_label_range(np.array([], int), 3)
    with pytest.raises(
        ValueError, match=r"`y` labels must lie in 0..2, .* from 0 to 3"
    ):
        check_label_range(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match=r"from -1 to 0. Fix: Count from 0"):
        check_label_range(np.array([0, -1]), 3, ignored=255)


def distiller(loss, softmax: bool = False) -> kdlite.Distiller:
    def net() -> keras.Model:
        head = keras.layers.Dense(3, activation="softmax" if softmax else None)
        return keras.Sequential([keras.Input((2,)), head])

    model = kdlite.Distiller(net(), net())
    model.compile("sgd", loss, run_eagerly=True)
    return model


LOGITS = keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize(
    "loss", [LOGITS(from_logits=True), LOGITS(from_logits=True, ignore_class=7)]
)
def test_fit_refuses_labels_of_no_class_before_the_first_step(loss) -> None:
    x, y = np.ones((8, 2), "float32"), np.arange(8) % 4
    model = distiller(loss)
    for labels in (y, keras.ops.convert_to_tensor(y)):
        with pytest.raises(ValueError, match="labels from 0 to 3. Fix: Count from 0"):
            model.fit(x, labels, verbose=0)
    assert int(model.optimizer.iterations) == 0
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        distiller("sparse_categorical_crossentropy", True).fit(x, y, verbose=0)


def test_fit_leaves_alone_what_the_loss_ignores_or_takes() -> None:
    x, y = np.ones((8, 2), "float32"), np.arange(8) % 4
    ignoring = LOGITS(from_logits=True, ignore_class=3)
    history = distiller(ignoring).fit(x, y, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller(one_hot).fit(x, np.eye(3)[y % 3], verbose=0)


SHARES = np.eye(3, dtype="float32")[[0, 1, 2, 0]]
INDICES = np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("loss", "y", "text"),
    [
        ("sparse_categorical_crossentropy", SHARES, "rows of class shares, as Mixup"),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            SHARES,
            "one class index a sample. Received: labels (None, 3) for outputs (None,",
        ),
        ("categorical_crossentropy", INDICES, "Received: labels (None,"),
        (
            keras.losses.CategoricalCrossentropy(from_logits=True),
            INDICES[:, None],
            "labels (None, 1) for outputs (None, 3), class indices. Fix: keras.losses",
        ),
        (keras.losses.CategoricalFocalCrossentropy(), INDICES, "class indices. Fix:"),
    ],
)
@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_labels_of_another_form_are_told_of_before_the_first_step(
    loss, y, text, form
) -> None:
    distiller, x = on_three_classes(loss, run_eagerly=False)
    before = distiller.student.get_weights()
    data = (x, y)
    if form == "dataset":
        data = (tf.data.Dataset.from_tensor_slices((x, y)).batch(2),)
    with pytest.raises(ValueError, match=re.escape(text)):
        distiller.fit(*data, shuffle=form == "arrays", verbose=0)
    for ours, theirs in zip(before, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        ("sparse_categorical_crossentropy", INDICES[:, None]),
        ("categorical_crossentropy", SHARES),
        ("mse", SHARES),
    ],
)
def test_labels_of_the_right_form_are_taken(loss, y) -> None:
    distiller, x = on_three_classes(loss)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("kind", ["U", "S", "O"])
@pytest.mark.parametrize("form", ["arrays", "dataset", "several"])
def test_names_of_classes_are_no_labels(kind, form) -> None:
    y = np.array(["cat", "dog", "cat", "bird"]).astype(kind)
    distiller, x = on_three_classes("sparse_categorical_crossentropy")
    data = (x, {"classes": y} if form == "several" else y)
    if form == "dataset":
        data = (tf.data.Dataset.from_tensor_slices((x, y)).batch(2),)
    with pytest.raises(
        TypeError, match="Labels must be numbers. Received: y of .*np.un"
    ):
        distiller.fit(*data, shuffle=form != "dataset", verbose=0)


def test_mixed_samples_and_a_sparse_loss(tmp_path) -> None:
    distiller, x = on_three_classes("sparse_categorical_crossentropy")
    mixup = kdlite.augment.Mixup(0.5)
    teacher = distiller.teacher
    soft = kdlite.SoftLabels.build(teacher, x, tmp_path, augment=mixup, verbose=0)
    distiller.teacher = None
    with pytest.raises(ValueError, match="as Mixup and CutMix make them. Fix: keras"):
        distiller.fit(
            soft.attach((x, INDICES), augment=mixup), shuffle=False, verbose=0
        )


def on_three_classes(loss, run_eagerly=True):
    """A distiller of a softmax over three classes, and four samples."""
    models = [
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        for _ in range(2)
    ]
    distiller = kdlite.Distiller(*models)
    distiller.compile("sgd", loss, run_eagerly=run_eagerly)
    return distiller, np.eye(4, dtype="float32")
