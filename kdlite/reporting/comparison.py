"""Models and files side by side: what each scored, what it costs, what separates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kdlite.reporting.costs import Cost
from kdlite.reporting.scores import METRICS, Scores, score
from kdlite.reporting.significance import mcnemar, paired_t
from kdlite.reporting.tasks import Task

Array = np.ndarray[Any, Any]
Role = Literal["teacher", "baseline", "student", "file"]

_SEPARATES = 0.05
_NOTHING = Cost()


@dataclass(frozen=True, eq=False)
class Contender:
    """A model or a file, and how it did.

    Attributes:
        name: What it is called, such as "student .tflite, int8".
        role: What it is in the comparison.
        outputs: What it gave in the run that is shown, by task name.
        scores: By task name what was measured, one entry a seed, the run that is shown
            first.
        cost: What it costs.
        origin: Of a file the model that it was made from, with the very seeds that it
            was made from; None where that is not known.
    """

    name: str
    role: Role
    outputs: Mapping[str, Array]
    scores: Mapping[str, tuple[Scores, ...]]
    cost: Cost = Cost()
    origin: Contender | None = None

    @property
    def seeds(self) -> int:
        """How often it was trained."""
        return len(next(iter(self.scores.values())))

    def values(self, task: str, metric: str) -> list[float]:
        """Returns a metric of each seed; nothing where it was not measured."""
        found = [scores.metrics.get(metric) for scores in self.scores[task]]
        return [value for value in found if value is not None]

    def mean(self, task: str, metric: str) -> float | None:
        """Returns the mean of a metric over seeds, or None."""
        values = self.values(task, metric)
        return float(np.mean(values)) if values else None

    def sd(self, task: str, metric: str) -> float | None:
        """Returns the standard deviation over seeds, or None of fewer than two."""
        values = self.values(task, metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def figures(self, task: Task) -> dict[str, Any]:
        """Returns the means over seeds, the headline's deviation, and the costs.

        The deviation of a single seed is not known: None.
        """
        told: dict[str, Any] = {}
        for metric in METRICS:
            if (mean := self.mean(task.name, metric)) is not None:
                told[metric] = mean
        if self.role == "teacher":
            # It agrees with itself, and is not one of several seeds.
            for metric in ("agreement", "teacher_distance"):
                told.pop(metric, None)
        elif task.headline in told:
            told[f"{task.headline}_sd"] = self.sd(task.name, task.headline)
        return {**told, **self.cost.to_dict()}


def contend(
    name: str,
    role: Role,
    runs: Sequence[Mapping[str, Array]],
    tasks: Mapping[str, Task],
    teacher: Mapping[str, Array] | None = None,
    cost: Cost = _NOTHING,
    from_logits: bool | None = None,
    origin: Contender | None = None,
) -> Contender:
    """Measures a model or file.

    Args:
        name: What it is called.
        role: What it is in the comparison.
        runs: What it gave on the samples, by task name, one entry a seed.
        tasks: What is asked for.
        teacher: What the teacher decided, by task name.
        cost: What it costs.
        from_logits: Whether outputs are logits; None: found from the numbers.
        origin: Of a file the model that it was made from.

    Returns:
        The contender.

    Raises:
        ValueError: If an output is no finite number.

    Example:
        ``contend("student", "student", [{"": student.predict(x)}], {"": task})``
    """
    for run in runs:
        for task in tasks:
            broken = int((~np.isfinite(np.asarray(run[task], float))).sum())
            if broken:
                of = f" in output {task!r}" if task else ""
                raise ValueError(
                    f"Outputs must be finite. Received: {broken} NaN or infinite "
                    f"values of {name}{of}. Fix: look at its weights and at the range "
                    "of the data; a training may have diverged."
                )
    scores = {
        key: tuple(
            score(task, run[key], teacher[key] if teacher else None, from_logits)
            for run in runs
        )
        for key, task in tasks.items()
    }
    return Contender(name, role, runs[0], scores, cost, origin)


@dataclass(frozen=True)
class Separation:
    """Whether the difference of two contenders is more than chance.

    Attributes:
        first: Whose gain it is.
        second: Over whom.
        gain: How much better the first is in the task's metric, the mean over seeds.
        over_samples: The p-value on the samples of one seed: exact McNemar where a
            sample is right or wrong, else a paired t test. None where a sample has
            several decisions that depend on each other, or the two have other seeds.
        over_seeds: The p-value of a paired t test over seeds; None of fewer than two,
            or where the two have other seeds.
        samples_metric: What `over_samples` is about: a mean over samples, which not
            each metric is.
    """

    first: str
    second: str
    gain: float
    over_samples: float | None
    over_seeds: float | None
    samples_metric: str

    @property
    def verdict(self) -> str:
        """What follows, in words; seeds count more than one seed's samples."""
        if self.over_seeds is not None:
            return "separates" if self.over_seeds < _SEPARATES else "does not separate"
        if self.over_samples is None:
            return "not tested"
        of = " in labels right" if self.samples_metric == "label_accuracy" else ""
        if self.over_samples < _SEPARATES:
            return f"separates{of}, in one seed"
        return f"does not separate{of}"

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "first": self.first,
            "second": self.second,
            "gain": self.gain,
            "p_over_samples": self.over_samples,
            "p_over_samples_of": self.samples_metric,
            "p_over_seeds": self.over_seeds,
            "verdict": self.verdict,
        }


def separation(task: Task, first: Contender, second: Contender) -> Separation:
    """Tests whether one contender is better than another.

    Args:
        task: What they are measured at.
        first: One.
        second: The other.

    Returns:
        The gain of the first, and how likely chance alone gives one as large.
    """
    metric = task.headline
    sign = 1.0 if METRICS[metric].up else -1.0
    one, other = first.values(task.name, metric), second.values(task.name, metric)
    # The one teacher of all seeds is the same in each pair.
    count = max(len(one), len(other))
    if first.role == "teacher" and len(one) == 1:
        one = one * count
    if second.role == "teacher" and len(other) == 1:
        other = other * count
    paired = len(one) == len(other)
    over_seeds = None
    if paired and count > 1:
        step = 1 / len(task.target) if metric in ("top1", "accuracy") else 0.0
        over_seeds = paired_t(np.subtract(one, other), step)
    over_samples = None
    if paired and task.positions == 1:
        a = first.scores[task.name][0].per_sample
        b = second.scores[task.name][0].per_sample
        if task.kind in ("classes", "binary"):
            over_samples = mcnemar(a > 0.5, b > 0.5)
        elif len(a) > 1:
            over_samples = paired_t(a - b)
    return Separation(
        first.name,
        second.name,
        sign * float(np.mean(one) - np.mean(other)),
        over_samples,
        over_seeds,
        {"labels": "label_accuracy"}.get(task.kind, metric),
    )


def pareto(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Returns who is on the Pareto front: nobody is as cheap and better, or reverse.

    Args:
        points: By name a cost, less is better, and a merit, more is better.

    Returns:
        Names, the cheapest first.

    Example:
        >>> pareto({"big": (9.0, 0.95), "small": (1.0, 0.9), "poor": (2.0, 0.8)})
        ('small', 'big')
    """
    front = [
        name
        for name, (cost, merit) in points.items()
        if not any(
            (c <= cost and m >= merit) and (c, m) != (cost, merit)
            for c, m in points.values()
        )
    ]
    return tuple(sorted(front, key=lambda name: points[name]))


@dataclass(frozen=True)
class Comparison:
    """All that a report is made of.

    Attributes:
        title: What the page is called.
        tasks: What is asked for, by output; the name is empty for an only one.
        contenders: Who is compared: the teacher, the baseline, the student, files.
        inputs: The samples, `(samples, ...)`, or such by input name; None where they
            are not at hand.
        history: Learning curves: model to column to one value an epoch.
        notes: What else is to be told: tables of rows of cells, by heading.
        measured_on: What the samples are, such as "test".
        run: Of several seeds the one that is shown where there are no means.
    """

    title: str
    tasks: Mapping[str, Task]
    contenders: tuple[Contender, ...]
    inputs: Any = None
    history: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    notes: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    measured_on: str = "test"
    run: str = ""

    @property
    def shown(self) -> str:
        """Which of several seeds is shown; empty where there is one."""
        seeds = max(contender.seeds for contender in self.contenders)
        return "" if seeds == 1 else self.run or f"the first of {seeds} seeds"

    @property
    def series(self) -> tuple[str, ...]:
        """All that is drawn: the contenders, and others with learning curves."""
        names = [contender.name for contender in self.contenders]
        return (*names, *(name for name in self.history if name not in names))

    def of(self, role: Role) -> tuple[Contender, ...]:
        """Returns those in a role."""
        return tuple(c for c in self.contenders if c.role == role)

    def separations(self, task: Task) -> tuple[Separation, ...]:
        """Returns the differences that matter, each tested.

        The student against the baseline is the teacher's part; then the student against
        the teacher, and each file against what it was made from, and against the
        student of the same seeds.
        """
        pairs = []
        for student in self.of("student"):
            for other in (*self.of("baseline"), *self.of("teacher")):
                pairs.append((student, other))
        before = self.of("student") or self.of("teacher")
        for file in self.of("file"):
            same = [other for other in before if other.seeds == file.seeds]
            if file.origin and file.origin not in same:
                same.append(file.origin)
            pairs += [(file, other) for other in same or before]
        # Average precision, for one, is not known where no label is ever there.
        return tuple(
            separation(task, a, b)
            for a, b in pairs
            if a.values(task.name, task.headline) and b.values(task.name, task.headline)
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON takes them, by output and contender."""
        return {
            "title": self.title,
            "samples": next(iter(self.tasks.values())).samples,
            "outputs": {
                name: {
                    "task": task.kind,
                    "labels": list(task.labels),
                    "contenders": {c.name: c.figures(task) for c in self.contenders},
                    "separations": [s.to_dict() for s in self.separations(task)],
                }
                for name, task in self.tasks.items()
            },
        }
