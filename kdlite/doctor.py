"""Checks before training: what would waste hours is found in the first seconds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kdlite.fingerprint import rows_fingerprint
from kdlite.lite.calibration import check_pixels

Array = np.ndarray[Any, Any]

# A hash per row costs little, but not nothing: enough rows to see an overlap.
_OVERLAP_ROWS = 20_000


def check_inputs(
    student: keras.Model,
    teacher: keras.Model,
    data: Mapping[str, tuple[Array, Array]],
    labels: Sequence[str] | None = None,
) -> None:
    """Checks models and data for a distillation of an image (or feature) classifier.

    Args:
        student: The model to train, one output of `(batch, classes)`.
        teacher: The trained model, the same classes in the same order.
        data: Splits by name (`"train"`, `"validation"`, `"test"`): `(x, y)`, `x` of
            shape `(samples, ...)` as both models take it, `y` integer class indices of
            shape `(samples,)` in `0..classes-1`.
        labels: Class names in the order of the indices, or None.

    Raises:
        ValueError: A rule is broken: the message names the rule, what was received and
            the fix.
        TypeError: A model or a split is of another type.

    Example:
        >>> import keras, numpy as np
        >>> def net(units):
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
        >>> train = (np.zeros((9, 4)), np.zeros(9, int))
        >>> check_inputs(net(3), net(2), {"train": train})
        Traceback (most recent call last):
        ...
        ValueError: Teacher and student must have the same classes. ...
    """
    for role, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"The {role} must be a keras.Model. Received: {type(model).__name__}. "
                "Load it with keras.models.load_model."
            )
        shape = _output_shape(model)
        if len(shape) != 2:
            raise ValueError(
                f"The {role} must have one output of shape (batch, classes). "
                f"Received: model {model.name!r} with output shape {shape}. Give a "
                "classifier; end it with a pooling or Flatten layer and a Dense layer."
            )
    if not student.trainable_variables:
        raise ValueError(
            "The student must have weights to train. Received: "
            f"{student.name!r}, in which all are frozen. Set student.trainable = True."
        )
    classes = _output_shape(student)[-1]
    teacher_classes = _output_shape(teacher)[-1]
    if classes != teacher_classes:
        raise ValueError(
            "Teacher and student must have the same classes. Received: teacher "
            f"{teacher.name!r} with {teacher_classes}, student {student.name!r} with "
            f"{classes}. Rebuild the student's last layer with {teacher_classes} units."
        )
    if labels is not None and len(labels) != classes:
        named = ", ".join([*labels[:5], *(["..."] if len(labels) > 5 else [])])
        raise ValueError(
            "There must be one name, or one subfolder of images, for each class. "
            f"Received: {len(labels)} ({named}) for {classes} classes. Give "
            "them in the order of the class indices."
        )
    for name, split in data.items():
        _check_split(name, split, classes)
        for role, model in (("student", student), ("teacher", teacher)):
            _check_shape(name, split[0], role, model)
    _check_value_ranges(data, student, teacher)
    _warn_overlap(data)


def _output_shape(model: keras.Model) -> tuple[int | None, ...]:
    try:
        shape = model.output_shape
    except (AttributeError, ValueError) as err:
        raise ValueError(
            "A model must know its shapes before it is used. Received: "
            f"{model.name!r}, which was never built. Call it once on a batch, "
            "or build it with keras.Input."
        ) from err
    if isinstance(shape, (list, dict)):
        raise ValueError(
            "A model must have one output here. Received: "
            f"{model.name!r} with {len(shape)} outputs. Use kdlite.Distiller directly "
            "on a model with the one output that is to be taught."
        )
    return tuple(shape)


def _check_split(name: str, split: tuple[Array, Array], classes: int | None) -> None:
    if not isinstance(split, tuple) or len(split) != 2:
        raise TypeError(
            f"`{name}` must be a tuple (x, y) of arrays. Received: "
            f"{type(split).__name__}. Give x of shape (samples, ...) and y of shape "
            "(samples,)."
        )
    x, y = split
    if len(x) == 0:
        raise ValueError(f"`{name}` must hold samples. Received: none. Give some data.")
    if len(x) != len(y):
        raise ValueError(
            f"`{name}` must have one label a sample. Received: {len(x)} samples, "
            f"{len(y)} labels. Cut both to the same samples."
        )
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"`{name}` labels must be integer class indices of shape (samples,). "
            f"Received: dtype {y.dtype}, shape {y.shape}. "
            + (
                "From one-hot rows: y.argmax(-1)."
                if y.ndim > 1
                else "From names: np.unique(y, return_inverse=True)[1]."
            )
        )
    if y.min() < 0 or y.max() >= (classes or 0):
        raise ValueError(
            f"`{name}` labels must lie in 0..{(classes or 0) - 1}, as the models have "
            f"{classes} classes. Received: labels from {y.min()} to {y.max()}. Count "
            "from 0, and drop or merge classes that the models lack."
        )
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_):
        raise ValueError(
            f"`{name}` inputs must be numbers. Received: dtype {x.dtype}. Turn them "
            "into an array of numbers first."
        )
    if np.issubdtype(x.dtype, np.floating):
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"`{name}` inputs must be finite. Received: NaN or infinity in "
                f"{int(bad.sum())} samples, the first at index {int(bad.argmax())}. "
                "Clean or drop these samples."
            )


def _check_shape(name: str, x: Array, role: str, model: keras.Model) -> None:
    shape = model.input_shape
    if isinstance(shape, (list, dict)):
        raise ValueError(
            f"The {role} must have one input here. Received: {model.name!r} with "
            f"{len(shape)} inputs. Use kdlite.Distiller directly for several inputs."
        )
    wanted, got = tuple(shape[1:]), tuple(x.shape[1:])
    if len(wanted) != len(got) or any(
        w is not None and w != g for w, g in zip(wanted, got, strict=True)
    ):
        raise ValueError(
            f"`{name}` inputs must have the shape that the {role} takes. Received: "
            f"samples of {got}, {role} {model.name!r} takes {wanted}. Resize or "
            "reshape the data, or rebuild the model."
        )


def _check_value_ranges(
    data: Mapping[str, tuple[Array, Array]],
    student: keras.Model,
    teacher: keras.Model,
) -> None:
    """Pixels in 0..1 for one split and 0..255 for another are the classical mistake."""
    highest = {name: float(np.abs(x).max()) for name, (x, _) in data.items()}
    large = max(highest, key=highest.__getitem__)
    for name, value in highest.items():
        if value * 100 < highest[large]:
            raise ValueError(
                "All splits must be in the same units. Received: "
                f"`{name}` up to {value:g}, `{large}` up to {highest[large]:g}. Scale "
                "them alike (pixels all in 0..255, or all in 0..1)."
            )
    for model in (student, teacher):
        check_pixels(model, highest[large], f"`{large}`")


def _warn_overlap(data: Mapping[str, tuple[Array, Array]]) -> None:
    if "train" not in data:
        return
    seen = rows_fingerprint(data["train"][0])
    for name, (x, _) in data.items():
        if name == "train":
            continue
        rows = rows_fingerprint(x[:_OVERLAP_ROWS])
        share = float(np.isin(rows, seen).mean())
        if share > 0.01:
            warnings.warn(
                f"{share:.1%} of the `{name}` samples are in `train` too: figures on "
                "them say little. Split the data so that no sample is in both.",
                stacklevel=4,
            )
