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
        TypeError: If labels are texts.
        ValueError: If an index is of no class, and not the one that `loss` leaves out.
    """
    for leaf in keras.tree.flatten(y):
        if isinstance(leaf, np.ndarray):
            _check_numbers(leaf.dtype)
    if classes is None or not _takes_indices(loss):
        return
    if not isinstance(y, np.ndarray) and not keras.ops.is_tensor(y):
        return
    labels = keras.ops.convert_to_numpy(y)
    if labels.dtype.kind in "iu":
        check_label_range(labels, classes, getattr(loss, "ignore_class", None))


def check_label_form(loss: Any, y: Any, y_pred: Any) -> None:
    """Checks that labels have the form that a loss over classes takes.

    Keras compares ranks and speaks of `target` and `output`; what to do, and that it is
    mixing that makes rows of labels, it cannot know.

    Args:
        loss: The loss as `compile()` got it.
        y: A batch of labels.
        y_pred: The student's outputs.

    Raises:
        TypeError: If labels are texts.
        ValueError: If there are rows of class shares where indices are needed, or
            indices where rows are.
    """
    for leaf in keras.tree.flatten(y):
        _check_numbers(leaf.dtype)
    if keras.tree.is_nested(y) or keras.tree.is_nested(y_pred):
        return
    labels, outputs = tuple(y.shape), tuple(y_pred.shape)
    if not labels or not outputs or outputs[-1] in (None, 1):
        return
    rows = len(labels) == len(outputs) and labels[-1] not in (None, 1)
    if _takes_indices(loss) and rows:
        raise ValueError(
            f"This loss takes one class index a sample. Received: labels {labels} for "
            f"outputs {outputs}, rows of class shares, as Mixup and CutMix make them. "
            f"Fix: keras.losses.CategoricalCrossentropy(from_logits=...), or "
            f"y.argmax(-1) of one-hot rows."
        )
    if (
        _takes_rows(loss)
        and not rows
        and len(labels) in (len(outputs), len(outputs) - 1)
    ):
        raise ValueError(
            f"This loss takes a row of class shares a sample. Received: labels "
            f"{labels} for outputs {outputs}, class indices. Fix: "
            f"keras.losses.SparseCategoricalCrossentropy(from_logits=...), or "
            f"keras.utils.to_categorical(y)."
        )


def _takes_indices(loss: Any) -> bool:
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    return sparse or loss == "sparse_categorical_crossentropy"


def _takes_rows(loss: Any) -> bool:
    rows = (
        keras.losses.CategoricalCrossentropy,
        keras.losses.CategoricalFocalCrossentropy,
    )
    names = ("categorical_crossentropy", "categorical_focal_crossentropy")
    return isinstance(loss, rows) or (isinstance(loss, str) and loss in names)


def _check_numbers(dtype: Any) -> None:
    numpys = isinstance(dtype, np.dtype) and dtype.kind in "USO"
    if numpys or getattr(dtype, "name", "") == "string":  # TensorFlow's
        raise TypeError(
            f"Labels must be numbers. Received: y of {dtype}. Fix: class indices, such "
            f"as names, y = np.unique(y, return_inverse=True) makes of names."
        )
