"""What is measured of one output: how right it is, how sure, and where it is wrong.

>>> y = np.array([0, 1, 1])
>>> task = read_task("animal", (2,), y, labels=["cat", "dog"])
>>> scores = score(task, np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]))
>>> task.kind, round(scores.metrics["top1"], 3)
('classes', 0.667)
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

_BINS = 15  # as Guo et al. 2017, section 4.1
_LEAST = 1e-12  # probabilities below are taken as this, so that logarithms are finite
# How far from 1 the probabilities of a file may sum up: half a step of 1/256 for each.
_SUM_TOLERANCE, _STEP = 0.02, 1 / 512
_TOP5_CLASSES = 10


@dataclass(frozen=True)
class Metric:
    """One figure: how it is called, and which way is better.

    Attributes:
        title: For people.
        share: Whether it is a share, told in per cent.
        up: Whether more is better.
    """

    title: str
    share: bool = True
    up: bool = True

    def told(self, value: float) -> str:
        """Returns a value as text, without the unit."""
        return f"{100 * value:.2f}" if self.share else f"{value:.4g}"

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title}, %" if self.share else self.title


METRICS = {
    "top1": Metric("top-1"),
    "top5": Metric("top-5"),
    "accuracy": Metric("accuracy"),
    "mean_average_precision": Metric("mean average precision"),
    "mae": Metric("mean absolute error", share=False, up=False),
    "f1": Metric("F1"),
    "auc": Metric("area under ROC"),
    "label_accuracy": Metric("labels right"),
    "exact_match": Metric("all labels right"),
    "rmse": Metric("root mean square error", share=False, up=False),
    "r2": Metric("R squared", share=False),
    "agreement": Metric("agreement with the teacher"),
    "teacher_distance": Metric("distance from the teacher", share=False, up=False),
    "ece": Metric("calibration error (ECE)", up=False),
    "nll": Metric("negative log-likelihood", share=False, up=False),
}

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


@dataclass(frozen=True)
class Reliability:
    """How often predictions of each confidence are right.

    Attributes:
        edges: Of the bins, `(bins + 1,)`, from 0 to 1.
        counts: Predictions in each.
        confidence: Their mean confidence; 0 where there is none.
        accuracy: Which share of them is right; 0 where there is none.
    """

    edges: Array
    counts: Array
    confidence: Array
    accuracy: Array

    @property
    def ece(self) -> float:
        """The expected calibration error, `sum_m |B_m| / n |acc(B_m) - conf(B_m)|`."""
        share = self.counts / max(1, self.counts.sum())
        return float((share * np.abs(self.accuracy - self.confidence)).sum())


def reliability(confidence: Array, right: Array, bins: int = _BINS) -> Reliability:
    """Sorts predictions into bins of equal width by how sure they were.

    Args:
        confidence: The probability of what was predicted, `(predictions,)`.
        right: Whether that was right.
        bins: How many.

    Returns:
        What each bin holds.

    Example:
        >>> reliability(np.array([0.9, 0.9]), np.array([True, False])).ece
        0.4

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599,
        equations 2 and 3; bin `m` holds confidences above `(m - 1) / M`, up to `m / M`.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    least = np.maximum(counts, 1)
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        counts=counts,
        confidence=np.bincount(place, confidence, bins) / least,
        accuracy=np.bincount(place, right.astype(float), bins) / least,
    )


@dataclass(frozen=True)
class Part:
    """How one class, label or value fares.

    Attributes:
        name: Its name.
        count: How often it is right, of values how many there are.
        figures: By the name of a column: recall, precision and F1, or errors.
    """

    name: str
    count: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """What was measured of one output of one model.

    Attributes:
        metrics: By the names of `METRICS`.
        decided: What the model says, as `Task.decided` gives it.
        per_sample: How right each sample is, `(samples,)`, more is better: the share
            of its decisions that are right, or its mean absolute error, negated.
        parts: How each class, label or value fares.
        reliability: How confidence and accuracy go together; None of values.
        confusion: How often each class was taken for each, `(true, predicted)`; None of
            labels and values.
    """

    metrics: Mapping[str, float]
    decided: Array
    per_sample: Array
    parts: tuple[Part, ...]
    reliability: Reliability | None
    confusion: Array | None


def score(
    task: Task,
    outputs: Array,
    teacher: Array | None = None,
    from_logits: bool | None = None,
) -> Scores:
    """Measures one output of one model.

    Args:
        task: What it is asked for, and what is right.
        outputs: What the model gave, `(samples, ...)`.
        teacher: What the teacher decided, as `task.decided` gives it.
        from_logits: As `probabilities` takes it.

    Returns:
        The figures that suit the task: no accuracy of numbers, no error of classes.

    Example:
        ``score(task, student.predict(x), task.decided(teacher.predict(x)))``
    """
    rows = task.rows(outputs)
    decided = task.decided(outputs, from_logits)
    known = None
    if task.kind != "values":
        known = probabilities(task, outputs, from_logits)
    metrics: dict[str, float] = {}
    if task.kind == "values":
        right: Array = -np.abs(rows - task.target)
        metrics |= _value_metrics(task, rows)
    else:
        right = decided == task.target
    if known is not None:
        confidence = (
            known.max(-1) if task.kind == "classes" else np.maximum(known, 1 - known)
        )
        bins = reliability(confidence.ravel(), right.ravel())
    if task.kind == "classes":
        metrics["top1"] = float(right.mean())
        if len(task.labels) > _TOP5_CLASSES:
            own = np.take_along_axis(rows, task.target[:, None], -1)
            metrics["top5"] = float(((rows > own).sum(-1) < 5).mean())
    elif task.kind == "binary":
        metrics["accuracy"] = float(right.mean())
        metrics["auc"] = roc_auc(task.target, rows)
        metrics["f1"] = _f1(task.target, decided)
    elif task.kind == "labels":
        found = [
            average_precision(task.target[:, i], rows[:, i])
            for i in range(len(task.labels))
        ]
        with_any = [value for value in found if not np.isnan(value)]
        metrics["mean_average_precision"] = (
            float(np.mean(with_any)) if with_any else np.nan
        )
        metrics["f1"] = float(
            np.mean([_f1(task.target[:, i], decided[:, i]) for i in range(len(found))])
        )
        metrics["label_accuracy"] = float(right.mean())
        metrics["exact_match"] = float(right.all(-1).mean())
    if teacher is not None:
        if task.kind == "values":
            metrics["teacher_distance"] = float(np.abs(rows - teacher).mean())
        else:
            metrics["agreement"] = float((decided == teacher).mean())
    if known is not None:
        metrics["ece"] = bins.ece
        metrics["nll"] = _nll(task, known)
    return Scores(
        # What cannot be told, as the area under ROC of one class alone, is left out.
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        decided=decided,
        per_sample=right.reshape(task.samples, -1).mean(-1),
        parts=_parts(task, rows, decided),
        reliability=bins if known is not None else None,
        confusion=_confusion(task, decided),
    )


def _value_metrics(task: Task, rows: Array) -> dict[str, float]:
    error = rows - task.target
    spread = ((task.target - task.target.mean(0)) ** 2).sum()
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).sum() / spread) if spread else float("nan"),
    }


def _nll(task: Task, known: Array) -> float:
    if task.kind == "classes":
        own = np.take_along_axis(known, task.target[:, None], -1)
    else:
        own = np.where(task.target, known, 1 - known)
    return float(-np.log(np.maximum(own, _LEAST)).mean())


def _f1(target: Array, decided: Array) -> float:
    both = int((target & decided).sum())
    total = int(target.sum()) + int(decided.sum())
    return 2 * both / total if total else 0.0


def roc_auc(target: Array, scores: Array) -> float:
    """The probability that a yes has a higher score than a no; ties count half.

    Args:
        target: Yes or no, `(rows,)`.
        scores: What the model gave.

    Returns:
        0 to 1; NaN without both.

    Example:
        >>> roc_auc(np.array([False, True, True]), np.array([0.1, 0.1, 0.9]))
        0.75

    Reference:
        Hanley and McNeil 1982, Radiology 143: the rank sum of Mann and Whitney.
    """
    yes, no = int(target.sum()), int((~target).sum())
    if not yes or not no:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    return float((rank[place][target].sum() - yes * (yes + 1) / 2) / (yes * no))


def average_precision(target: Array, scores: Array) -> float:
    """The mean precision over recall, `sum_n (R_n - R_{n-1}) P_n`.

    Args:
        target: Whether the label is there, `(rows,)`.
        scores: What the model gave; equal ones are one threshold.

    Returns:
        0 to 1; NaN where the label is never there.

    Example:
        >>> average_precision(np.array([True, False, True]), np.array([3.0, 2.0, 1.0]))
        0.8333333333333333
    """
    total = int(target.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(target[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = found[last] / (last + 1)
    recall = np.concatenate([[0], found[last] / total])
    return float((np.diff(recall) * precision).sum())


def _parts(task: Task, rows: Array, decided: Array) -> tuple[Part, ...]:
    if task.kind == "values":
        error = np.abs(rows - task.target)
        return tuple(
            Part(name, len(rows), {"mae": float(error[:, i].mean())})
            for i, name in enumerate(task.labels)
        )
    if task.kind == "labels":
        pairs = [(task.target[:, i], decided[:, i]) for i in range(len(task.labels))]
    else:
        pairs = [(task.target == i, decided == i) for i in range(len(task.labels))]
    return tuple(
        Part(
            name,
            int(target.sum()),
            {
                "recall": _share(target & said, target),
                "precision": _share(target & said, said),
                "f1": _f1(target, said),
            },
        )
        for name, (target, said) in zip(task.labels, pairs, strict=True)
    )


def _share(part: Array, whole: Array) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else float("nan")


def _confusion(task: Task, decided: Array) -> Array | None:
    if task.kind not in ("classes", "binary"):
        return None
    counts = np.zeros((len(task.labels), len(task.labels)), int)
    np.add.at(counts, (task.target.astype(int), decided.astype(int)), 1)
    return counts
