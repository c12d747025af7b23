"""Samples on which models differ: which to show, and how."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdlite.reporting.comparison import Comparison, Contender
from kdlite.reporting.tasks import Task

Array = np.ndarray[Any, Any]

_EACH = 4  # samples of each kind
_PIXELS = 112  # the longer side of a picture
_NUMBERS = 12


@dataclass(frozen=True)
class Group:
    """Samples on which some differ from others.

    Attributes:
        title: In what.
        samples: Their indices.
        contenders: Whose word is told.
    """

    title: str
    samples: tuple[int, ...]
    contenders: tuple[Contender, ...]


def differing(comparison: Comparison, task: Task) -> list[Group] | None:
    """Finds samples on which teacher, student and files differ.

    Args:
        comparison: What was measured.
        task: At what.

    Returns:
        Groups with up to four samples each, without those that would be empty; None
        where there are no samples to show, or nobody to differ.
    """
    shown = tuple(c for c in comparison.contenders if c.role != "baseline")
    if comparison.inputs is None or len(shown) < 2:
        return None
    teacher = next(iter(comparison.of("teacher")), None)
    student = next(iter(comparison.of("student")), None)
    file = comparison.of("file")[-1] if comparison.of("file") else None
    pairs = []
    if teacher and student:
        pairs.append((teacher, student))
    # One seed's file is nothing to hold against another seed.
    before = student or teacher
    if file and before and file.seeds != before.seeds:
        before = file.origin
    if file and before:
        pairs.append((before, file))
    groups = []
    for one, other in pairs:
        told = shown if one in shown else (*shown, one)
        for title, samples in _pair(task, one, other):
            if len(samples):
                groups.append(Group(title, tuple(map(int, samples[:_EACH])), told))
    return groups


def _pair(task: Task, one: Contender, other: Contender) -> list[tuple[str, Array]]:
    """The samples on which two differ, those with most to learn from first."""
    if task.kind == "values":
        rows = [
            task.rows(c.outputs[task.name]).reshape(task.samples, -1)
            for c in (one, other)
        ]
        apart = np.abs(rows[0] - rows[1]).mean(-1)
        order = np.argsort(-apart, kind="stable")
        title = f"{one.name} and {other.name} are furthest apart"
        return [(title, order[apart[order] > 0])]
    first, second = (c.scores[task.name][0].per_sample for c in (one, other))
    said = [
        c.scores[task.name][0].decided.reshape(task.samples, -1) for c in (one, other)
    ]
    differs = (said[0] != said[1]).any(-1)
    found = []
    for title, chosen in (
        (f"{one.name} is right, {other.name} is wrong", differs & (first > second)),
        (f"{other.name} is right, {one.name} is wrong", differs & (first < second)),
        (
            f"{one.name} and {other.name} are both wrong, and differ",
            differs & (first == second),
        ),
    ):
        share = 100 * float(chosen.mean())
        found.append(
            (
                f"{title}: {int(chosen.sum()):,} samples, {share:.1f} %",
                np.flatnonzero(chosen),
            )
        )
    return found


def picture(inputs: Any, index: int) -> str | None:
    """Returns a sample as a data URI where it has the shape of an image.

    Args:
        inputs: The samples, or such by input name.
        index: Which of them.

    Returns:
        A small PNG; None of a sample that is no image.
    """
    arrays = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    for array in arrays:
        sample = np.asarray(array[index])
        image = (
            sample.ndim == 3
            and sample.shape[-1] in (1, 3)
            and min(sample.shape[:2]) > 1
        )
        if image and sample.dtype.kind in "uif":
            return _png(sample.astype(np.float64))
    return None


def _png(sample: Array) -> str:
    from PIL import Image

    sample = np.nan_to_num(sample, posinf=0.0, neginf=0.0)
    low, high = float(sample.min()), float(sample.max())
    if low >= 0 and high > 1 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    pixels = np.clip(255 * (sample - low) / ((high - low) or 1.0), 0, 255).astype(
        np.uint8
    )
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(image.size) > _PIXELS:
        image.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def text_of(inputs: Any, index: int) -> str:
    """Returns a sample as a line of text.

    Args:
        inputs: The samples, or such by input name.
        index: Which of them.

    Returns:
        Its first numbers, or its words.

    Example:
        >>> text_of({"age": np.array([[41.0]]), "word": np.array(["yes"])}, 0)
        'age: 41; word: yes'
    """
    if isinstance(inputs, Mapping):
        return "; ".join(
            f"{name}: {text_of(part, index)}" for name, part in inputs.items()
        )
    sample = np.asarray(inputs[index])
    if sample.dtype.kind not in "biuf":
        values = [
            v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)
            for v in np.ravel(sample)[:_NUMBERS]
        ]
    else:
        values = [f"{value:.4g}" for value in np.ravel(sample)[:_NUMBERS]]
    return ", ".join(values) + (
        f", ... {sample.shape}" if sample.size > _NUMBERS else ""
    )
