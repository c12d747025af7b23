"""What is measured of one output: how right it is, how sure, and where it is wrong.

>>> from kdlite.reporting.tasks import read_task
>>> y = np.array([0, 1, 1])
>>> task = read_task("animal", (2,), y, labels=["cat", "dog"])
>>> scores = score(task, np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]))
>>> task.kind, round(scores.metrics["top1"], 3)
('classes', 0.667)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdlite.reporting.tasks import Task, probabilities

Array = np.ndarray[Any, Any]

_BINS = 15  # as Guo et al. 2017, section 4.1
_LEAST = 1e-12  # probabilities below are taken as this, so that logarithms are finite
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

    def spread(self, sd: float) -> str:
        """Returns a standard deviation as text, of which few digits are known."""
        return self.told(sd) if self.share else f"{sd:.2g}"

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
