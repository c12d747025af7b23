from __future__ import annotations

import keras
import numpy as np
import pytest

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
    model.compile("sgd", loss)
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
