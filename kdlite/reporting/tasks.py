"""What an output is asked for, found from its shape and from what is right.

>>> read_task("animal", (2,), np.array([0, 1, 1]), labels=["cat", "dog"]).kind
'classes'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Array = np.ndarray[Any, Any]

#: What an output is asked for: one of several classes, yes or no, any of several
#: labels, or numbers.
Kind = Literal["classes", "binary", "labels", "values"]

# How far from 1 the probabilities of a file may sum up: half a step of 1/256 for each.
_SUM_TOLERANCE, _STEP = 0.02, 1 / 512

HEADLINES: Mapping[Kind, str] = {
    "classes": "top1",
    "binary": "accuracy",
    "labels": "mean_average_precision",
    "values": "mae",
}


@dataclass(frozen=True)
class Task:
    """What one output is asked for.

    Attributes:
        name: The output; empty where it is the only one.
        kind: What it is asked for.
        labels: Names of the classes, the labels or the values.
        target: What is right: class indices `(rows,)`, booleans `(rows,)`, booleans
            `(rows, labels)` or numbers `(rows, values)`. A sample has one row, or one
            for each of its positions.
        samples: How many samples there are.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    target: Array
    samples: int

    @property
    def headline(self) -> str:
        """The metric that this kind is judged by."""
        return HEADLINES[self.kind]

    @property
    def positions(self) -> int:
        """How many rows a sample has."""
        return len(self.target) // self.samples

    def rows(self, outputs: Array) -> Array:
        """Returns outputs `(samples, ...)` in the form of the target, in float64.

        Args:
            outputs: What a model gave.

        Returns:
            `(rows, classes)`, `(rows,)`, `(rows, labels)` or `(rows, values)`.
        """
        width = {"binary": ()}.get(self.kind, (len(self.labels),))
        return np.asarray(outputs, np.float64).reshape(len(self.target), *width)

    def decided(self, outputs: Array, from_logits: bool | None = None) -> Array:
        """Returns what a model says, in the form of the target.

        Args:
            outputs: What it gave, `(samples, ...)`.
            from_logits: As `probabilities` takes it.

        Returns:
            Classes, booleans or numbers.
        """
        rows = self.rows(outputs)
        if self.kind == "classes":
            return rows.argmax(-1)
        if self.kind == "values":
            return rows
        known: Array = probabilities(self, outputs, from_logits)
        return known > 0.5

    def told(self, decision: Any) -> str:
        """Returns one decision, a row of `decided` or of the target, as text."""
        if self.kind == "classes":
            return self.labels[int(decision)]
        if self.kind == "binary":
            return self.labels[int(decision)]
        if self.kind == "labels":
            on = [self.labels[i] for i in np.flatnonzero(decision)]
            return ", ".join(on) or "none"
        return ", ".join(f"{value:.4g}" for value in np.ravel(decision)[:6])


def read_task(
    name: str,
    shape: Sequence[int],
    target: Any,
    labels: Sequence[str] | None = None,
    kind: Kind | None = None,
) -> Task:
    """Finds what an output is asked for, from its shape and from what is right.

    Args:
        name: The output.
        shape: The shape of one sample's output.
        target: What is right, `(samples, ...)`: class indices or one-hot rows; 0 and 1;
            or numbers.
        labels: Names of classes, labels or values.
        kind: What it is asked for, where the numbers do not say.

    Returns:
        The task.

    Raises:
        ValueError: If output and target do not go together.

    Example:
        >>> read_task("price", (1,), np.array([2.5, 3.0])).kind
        'values'
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(
            f"`task` must be one of {', '.join(map(repr, get_args(Kind)))}. Received: "
            f"{kind!r}{_of(name)}. Fix: leave it out, or give one of these."
        )
    shape, target = tuple(shape), np.asarray(target)
    if target.dtype.kind not in "biuf":
        raise ValueError(
            f"Targets must be numbers. Received: dtype {target.dtype}{_of(name)}. Fix: "
            "give class indices, 0 and 1, or values."
        )
    if not target.ndim or not len(target):
        raise ValueError(
            f"There must be samples to measure on. Received: targets of shape "
            f"{target.shape}{_of(name)}. Fix: give at least one sample."
        )
    if not np.isfinite(target).all():
        raise ValueError(
            f"Targets must be finite. Received: {int((~np.isfinite(target)).sum())} "
            f"NaN or infinite{_of(name)}. Fix: leave these samples out."
        )
    samples, width = len(target), shape[-1] if shape else 1
    if kind == "classes" and width == 1:
        raise ValueError(
            "Classes need an output of two values or more, one for each. Received: an "
            f"output of shape {('samples', *shape)}{_of(name)}. Fix: leave `task` out: "
            "one value is yes or no, or a number; of a single class there is nothing "
            "to tell."
        )
    target = _fitted(target, shape)
    whole = bool((target == np.round(target)).all())
    zero_or_one = bool(np.isin(target, (0, 1)).all())
    if target.shape == (samples, *shape):
        one_hot = width > 1 and bool(np.allclose(target.sum(-1), 1, atol=1e-4))
        if kind is None:
            if width == 1 and zero_or_one:
                kind = "binary"
            elif zero_or_one:
                kind = "classes" if one_hot else "labels"
            else:
                kind = "values"
        fits = {
            "classes": one_hot,
            "binary": width == 1 and zero_or_one,
            "labels": zero_or_one,
            "values": True,
        }[kind]
        if kind == "classes":
            target = target.argmax(-1)
    else:
        fits = (
            target.shape == (samples, *shape[:-1])
            and width > 1
            and whole
            and kind in (None, "classes")
        )
        kind = "classes"
    if not fits:
        raise ValueError(
            "Targets must fit the output: class indices (samples,), or 0 and 1 or "
            f"numbers of its shape. Received: {target.dtype} {target.shape} for an "
            f"output of shape {('samples', *shape)}{_of(name)}"
            + (f" as {kind!r}" if kind else "")
            + ". Fix: bring the targets to that form, or say what they are by `task`."
        )
    if kind == "classes" and (target.min() < 0 or target.max() >= width):
        raise ValueError(
            f"Class indices must be from 0 to {width - 1}. Received: "
            f"{target.min():g} to {target.max():g}{_of(name)}. Fix: count classes from "
            "0, in the order of the output."
        )
    names = _names(name, kind, width, labels)
    form: dict[str, Any] = {
        "classes": lambda: target.astype(np.int64).reshape(-1),
        "binary": lambda: target.astype(bool).reshape(-1),
        "labels": lambda: target.astype(bool).reshape(-1, width),
        "values": lambda: target.astype(np.float64).reshape(-1, width),
    }
    return Task(name, kind, names, form[kind](), samples)


def _of(name: str) -> str:
    return f" for output {name!r}" if name else ""


def _fitted(target: Array, shape: tuple[int, ...]) -> Array:
    """Returns targets without, or with, a last axis of 1, as the output has it."""
    whole = (len(target), *shape)
    if target.shape == whole or not shape:
        return target.reshape(whole) if target.size == len(target) else target
    if shape[-1] == 1 and (*target.shape, 1) == whole:
        return target[..., None]
    if target.shape == (*whole[:-1], 1):  # class indices with an axis of their own
        return target[..., 0]
    return target


def _names(
    name: str, kind: Kind, width: int, labels: Sequence[str] | None
) -> tuple[str, ...]:
    count = 2 if kind == "binary" else width
    if labels is None:
        if kind == "binary":
            return ("no", "yes")
        return tuple(map(str, range(count)))
    if len(labels) != count:
        raise ValueError(
            f"There must be a label for each of {count}: "
            f"{'no and yes' if kind == 'binary' else kind}. Received: {len(labels)} "
            f"labels{_of(name)}. Fix: give {count}, in the order of the output."
        )
    return tuple(map(str, labels))


def probabilities(task: Task, outputs: Array, from_logits: bool | None = None) -> Array:
    """Returns the probabilities behind an output of classes, yes or no, or labels.

    Args:
        task: What the output is asked for.
        outputs: What a model gave, `(samples, ...)`.
        from_logits: Whether these are logits. None: they are, unless all are from 0 to
            1, and of classes sum up to 1.

    Returns:
        `(rows, classes)` that sum up to 1, `(rows,)` or `(rows, labels)`.
    """
    rows = task.rows(outputs)
    if from_logits is None:
        from_logits = bool(rows.min() < -1e-6 or rows.max() > 1 + 1e-6)
        if task.kind == "classes" and not from_logits:
            tolerance = _SUM_TOLERANCE + _STEP * rows.shape[-1]
            from_logits = bool(np.abs(rows.sum(-1) - 1).max() > tolerance)
    if task.kind == "classes":
        if from_logits:
            rows = np.exp(rows - rows.max(-1, keepdims=True))
        rows = np.maximum(rows, 0)
        total = rows.sum(-1, keepdims=True)
        # A file can round every probability to 0.
        return np.where(
            total > 0, rows / np.where(total > 0, total, 1), 1 / rows.shape[-1]
        )
    if from_logits:
        # Of either sign without overflow: 1 / (1 + exp(-x)).
        return 0.5 * (1 + np.tanh(rows / 2))
    return np.clip(rows, 0, 1)
