"""Labels of samples: which class each has, if it has one, and whether there is such."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]

UNLABELLED = -1


def class_indices(y: Array, classes: int) -> Array:
    """Returns the class of each sample (and position).

    Args:
        y: Class indices of shape `(samples, ...)` or `(samples, ..., 1)`, or one-hot or
            probability rows `(samples, ..., classes)`.
        classes: Number of classes.

    Returns:
        Integers of shape `(samples, ...)`, `UNLABELLED` where a row says nothing: a
        negative index, NaN, a row of zeros.

    Example:
        >>> class_indices(np.array([2, -1, 0]), 3).tolist()
        [2, -1, 0]
        >>> class_indices(np.array([[0.0, 1.0], [0.0, 0.0]]), 2).tolist()
        [1, -1]
    """
    y = np.asarray(y)
    if y.ndim > 1 and y.shape[-1] == classes > 1:
        known = np.isfinite(y).all(-1) & (y > 0).any(-1)
        return np.where(known, y.argmax(-1), UNLABELLED)
    if y.ndim > 1 and y.shape[-1] == 1:
        y = y[..., 0]
    known = np.isfinite(y) & (y >= 0) if y.dtype.kind == "f" else y >= 0
    return np.where(known, np.nan_to_num(y), UNLABELLED).astype("int64")


def check_label_range(
    y: Array, classes: int, ignored: int | None = None, name: str = "y"
) -> None:
    """Checks that class indices are those of classes that there are.

    Args:
        y: Class indices, of any shape.
        classes: Number of classes.
        ignored: The index that the loss leaves out, if there is one.
        name: What the message calls the labels.

    Raises:
        ValueError: If an index is below 0 or beyond the last class.

    Example:
        >>> check_label_range(np.array([1, 2, 3]), 3)
        Traceback (most recent call last):
        ...
        ValueError: `y` labels must lie in 0..2, as the models have 3 classes. ...
    """
    y = np.asarray(y)
    if ignored is not None:
        y = y[y != ignored]
    if not y.size or (y.min() >= 0 and y.max() < classes):
        return
    raise ValueError(
        f"`{name}` labels must lie in 0..{classes - 1}, as the models have {classes} "
        f"classes. Received: labels from {y.min()} to {y.max()}. Fix: Count from 0, "
        "and drop or merge classes that the models lack."
    )


def check_labels_for(loss: Any, y: Any, classes: int | None) -> None:
    """Checks class indices in memory against a loss that takes such.

    TensorFlow finds a wrong one when its batch comes, on a GPU by a loss of NaN; to
    look at all of them costs nothing beside an epoch.

    Args:
        loss: The loss as `compile()` got it.
        y: Labels as `fit()` got them; only an array is looked at.
        classes: Number of classes, or `None`: then nothing is known.

    Raises:
        ValueError: If an index is of no class, and not the one that `loss` leaves out.
    """
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    if classes is None or not (sparse or loss == "sparse_categorical_crossentropy"):
        return
    if not isinstance(y, np.ndarray) and not keras.ops.is_tensor(y):
        return
    labels = keras.ops.convert_to_numpy(y)
    if labels.dtype.kind in "iu":
        check_label_range(labels, classes, getattr(loss, "ignore_class", None))
