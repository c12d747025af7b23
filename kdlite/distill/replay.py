"""A few old samples with the old teacher's logits: what an update remembers by."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.batches import samples_at_once
from kdlite.counts import checked_count
from kdlite.distill.schedules import checked_number
from kdlite.distill.taps import LogitsModel, logits_model
from kdlite.distill.targets import UNLABELLED, check_label_range, class_indices
from kdlite.in_place import check_target, put_in_place

Array = np.ndarray[Any, Any]

_BATCH = 256


@dataclass(frozen=True, eq=False, repr=False)
class ReplayBuffer:
    """Old samples, their labels and the logits of the teacher of then.

    Made when a student is trained, kept (it is a single `.npz`), and given to
    `kdlite.update` when the teacher has changed.

    Attributes:
        x: Inputs `(samples, ...)`.
        y: Class indices `(samples,)`, -1 where there was no label.
        logits: float32 `(samples, classes)`, of the teacher that taught the student.

    Example:
        >>> import numpy as np
        >>> x, y = np.eye(6, dtype="float32"), np.array([0, 0, 0, 0, 1, 1])
        >>> sure = np.array([9.0, 9.0, 0.1, 9.0, 9.0, 9.0])
        >>> logits = np.stack([sure * (y == 0), sure * (y == 1)], axis=1)
        >>> replay = ReplayBuffer.build(logits, (x, y), size=4, uncertain=0.5)
        >>> replay.y.tolist()
        [0, 0, 1, 1]
        >>> bool((replay.x == x[2]).all(1).any())  # where the teacher was unsure
        True
    """

    x: Array
    y: Array
    logits: Array

    def __post_init__(self) -> None:
        """Refuses arrays that do not belong together."""
        shapes = {name: np.shape(getattr(self, name)) for name in ("x", "y", "logits")}
        counts = {shape[:1] for shape in shapes.values()}
        if len(counts) != 1 or len(shapes["y"]) != 1 or len(shapes["logits"]) != 2:
            raise ValueError(
                "A replay buffer has x (samples, ...), y (samples,) and logits "
                f"(samples, classes) of the same samples. Received: shapes {shapes}. "
                "Fix: ReplayBuffer.build makes one."
            )
        if not counts.pop()[0]:
            raise ValueError(
                "A replay buffer must have samples. Received: none. Fix: a larger size."
            )
        if not np.isfinite(self.logits).all():
            raise ValueError(
                "The logits of a replay buffer must be finite. Received: NaN or "
                f"infinity in {int((~np.isfinite(self.logits)).any(1).sum())} samples. "
                "Fix: build it with a sound teacher."
            )

    @classmethod
    def build(
        cls,
        teacher: keras.Model | LogitsModel | Array,
        data: Array | tuple[Array, ...],
        size: int = 2000,
        *,
        uncertain: float = 0.5,
        seed: int = 0,
    ) -> ReplayBuffer:
        """Chooses samples: as many of each class, some at random, some in doubt.

        Args:
            teacher: The teacher of the student, or its logits for these samples,
                `(samples, classes)`, such as `SoftLabels.logits()`.
            data: `x` or `(x, y)`, arrays; without `y` the teacher's first choice is the
                class.
            size: Number of samples to keep, at most all. A class with fewer than its
                share leaves the rest to the others.
            uncertain: Part of each class, in 0..1, for which the teacher is least sure:
                the smallest difference between its two highest probabilities. The rest
                is drawn evenly. Doubtful samples are those between the classes; alone
                they would not show what a class is like.
            seed: Equal seeds choose equal samples.

        Returns:
            The buffer, sorted as in the data.

        Raises:
            TypeError: If `x` is not an array.
            ValueError: If shapes do not fit, labels are out of range, `size` is less
                than 1 or `uncertain` not in 0..1.
        """
        x, y = _pair(data)
        checked_count("size", size, fix="some hundred samples a class")
        if checked_number("uncertain", uncertain) > 1.0:
            raise ValueError(
                f"`uncertain` must lie in 0..1. Received: uncertain={uncertain}. Fix: "
                "0.5 takes half of the samples where the teacher is unsure."
            )
        logits = (
            np.asarray(teacher, "float32")
            if isinstance(teacher, np.ndarray)
            else predict(logits_model(teacher, role="teacher"), x)
        )
        if len(logits) != len(x) or logits.ndim != 2:
            raise ValueError(
                "There must be one row of logits for each sample. Received: logits "
                f"{logits.shape} for {len(x)} samples. Fix: label the same samples."
            )
        classes = logits.shape[1]
        labels = np.full(len(x), UNLABELLED)
        if y is not None:
            labels = class_indices(y, classes).reshape(-1)
            if len(labels) != len(x):
                raise ValueError(
                    "There must be one label a sample. Received: labels "
                    f"{np.shape(y)} for {len(x)} samples. Fix: cut both alike."
                )
            check_label_range(labels, classes, UNLABELLED)
        groups = np.where(labels == UNLABELLED, logits.argmax(-1), labels)
        rng = np.random.default_rng(seed)
        chosen = np.sort(
            np.concatenate(
                [
                    _of_class(
                        np.flatnonzero(groups == c), quota, logits, uncertain, rng
                    )
                    for c, quota in enumerate(_quotas(groups, classes, size))
                ]
            )
        )
        return cls(x[chosen], labels[chosen], logits[chosen])

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.x)

    @property
    def classes(self) -> int:
        """Number of classes of the teacher of then."""
        return int(self.logits.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in memory."""
        return int(self.x.nbytes + self.y.nbytes + self.logits.nbytes)

    def __repr__(self) -> str:
        """Says how many samples of what there are."""
        labelled = int((self.y != UNLABELLED).sum())
        return (
            f"ReplayBuffer({len(self)} samples of {self.x.shape[1:]} {self.x.dtype}, "
            f"{labelled} labelled, {self.classes} classes, "
            f"{self.nbytes / 1024:,.0f} KiB)"
        )

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Writes the buffer as an `.npz` of plain arrays, whole or not at all.

        Args:
            path: The file.
            overwrite: Whether one that is there may be replaced.

        Raises:
            FileExistsError: If there is a file and `overwrite` is False.
            ValueError: If `path` is no regular file.
            OSError: If it cannot be written, or its folder does not exist.
        """
        path = Path(path)
        check_target(path, overwrite)
        content = io.BytesIO()
        np.savez_compressed(content, x=self.x, y=self.y, logits=self.logits)
        put_in_place(path, content.getvalue(), overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReplayBuffer:
        """Reads a buffer.

        Args:
            path: What `save` wrote.

        Returns:
            The buffer.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no replay buffer.
        """
        path = Path(path)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in ("x", "y", "logits")}
        except FileNotFoundError:
            raise
        except Exception as err:  # whatever a broken file makes numpy raise
            raise ValueError(
                f"A replay buffer must be an .npz with x, y and logits. Received: "
                f"{path}, and numpy says: {str(err).rstrip('.')}. Fix: write it with "
                f"ReplayBuffer.save."
            ) from err
        return cls(**arrays)


def predict(model: LogitsModel, x: Array) -> Array:
    """Returns a model's logits for an array, in inference mode.

    Args:
        model: The model.
        x: Inputs `(samples, ...)`.

    Returns:
        float32 logits `(samples, classes)`.

    Raises:
        ValueError: If there are no samples.
    """
    if not len(x):
        raise ValueError(
            f"There must be samples. Received: an array of shape {x.shape}. Fix: give "
            "at least one, or leave the argument out."
        )
    size = samples_at_once(x, _BATCH)
    return np.concatenate(
        [
            np.asarray(model(x[start : start + size]), "float32")
            for start in range(0, len(x), size)
        ]
    )


def probabilities(logits: Array, classes: int | None = None) -> Array:
    """Returns the softmax of logits, with zeros for classes that they do not have.

    Args:
        logits: `(samples, classes)`.
        classes: How many classes to return, `None`: as many.

    Returns:
        float64 `(samples, classes)`.
    """
    shifted = np.exp(logits.astype("float64") - logits.max(-1, keepdims=True))
    p = shifted / shifted.sum(-1, keepdims=True)
    missing = (classes or p.shape[1]) - p.shape[1]
    return np.pad(p, ((0, 0), (0, missing)))


def _pair(data: Array | tuple[Array, ...]) -> tuple[Array, Array | None]:
    x, *rest = data if isinstance(data, tuple) else (data,)
    if not isinstance(x, np.ndarray):
        raise TypeError(
            "A replay buffer is chosen from arrays. Received: x of type "
            f"{type(x).__name__}. Fix: np.asarray(x), for a model with one input."
        )
    return x, np.asarray(rest[0]) if rest and rest[0] is not None else None


def _quotas(groups: Array, classes: int, size: int) -> list[int]:
    """How many samples of each class: as equal as the classes' sizes allow."""
    there = np.bincount(groups, minlength=classes)
    quotas = np.zeros(classes, int)
    left = min(size, len(groups))
    while left:
        open_classes = np.flatnonzero(quotas < there)
        share = max(1, left // len(open_classes))
        for c in open_classes:
            more = min(share, there[c] - quotas[c], left)
            quotas[c] += more
            left -= more
    return [int(quota) for quota in quotas]


def _of_class(
    places: Array,
    quota: int,
    logits: Array,
    uncertain: float,
    rng: np.random.Generator,
) -> Array:
    top = np.sort(probabilities(logits[places]), axis=-1)
    margin = top[:, -1] - top[:, -2] if top.shape[1] > 1 else top[:, -1]
    doubtful = np.argsort(margin, kind="stable")[: round(uncertain * quota)]
    others = np.setdiff1d(np.arange(len(places)), doubtful)
    drawn = rng.permutation(others)[: quota - len(doubtful)]
    return places[np.concatenate([doubtful, drawn])]
