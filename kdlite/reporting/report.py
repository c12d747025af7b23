"""`kdlite.report`: any models, arrays and files on one page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.in_place import check_target, put_in_place
from kdlite.lite.labels import Labels, check_counts, check_texts
from kdlite.lite.targets import read_targets
from kdlite.reporting.comparison import Comparison, Contender, contend
from kdlite.reporting.costs import INFERENCES, Cost, file_costs, model_cost
from kdlite.reporting.energy import EnergyTracker, EnergyUse, check_country
from kdlite.reporting.entrants import (
    BASELINE,
    ONLY,
    Entrant,
    check_shapes,
    count_samples,
    head,
)
from kdlite.reporting.entrants import entrants as read_entrants
from kdlite.reporting.origins import with_origins
from kdlite.reporting.page import page, summary
from kdlite.reporting.scores import METRICS
from kdlite.reporting.table import aligned
from kdlite.reporting.tasks import Task, read_task

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Report:
    """What `kdlite.report` found; prints as a table.

    Attributes:
        path: The page.
        summary: What came out, in a sentence.
        figures: All figures, by output and model, as JSON takes them.
    """

    path: Path
    summary: str
    figures: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {"path": str(self.path), "summary": self.summary, **self.figures}

    def __str__(self) -> str:
        lines = []
        for name, output in self.figures["outputs"].items():
            told = output["contenders"]
            used = [m for m in METRICS if any(m in row for row in told.values())]
            rows = [[name, *(METRICS[metric].heading for metric in used)]]
            for who, row in told.items():
                rows.append([who, *(_cell(row, metric) for metric in used)])
            lines.append(aligned(rows))
        return "\n".join([*lines, self.summary, f"page: {self.path}"])


def _cell(figures: Mapping[str, Any], metric: str) -> str:
    if metric not in figures:
        return "-"
    text = METRICS[metric].told(figures[metric])
    sd = figures.get(f"{metric}_sd")
    return text if sd is None else f"{text} ±{METRICS[metric].spread(sd)}"


def report(
    *,
    test: tuple[Any, ...],
    student: Any = None,
    teacher: Any = None,
    baseline: Any = None,
    files: Any = (),
    labels: Labels | None = None,
    history: Any = None,
    training: Mapping[str, Any] | None = None,
    country: str | None = None,
    task: str | Mapping[str, str] | None = None,
    from_logits: bool | None = None,
    title: str = "kdlite report",
    path: str | os.PathLike[str] = "report.html",
    overwrite: bool = False,
) -> Report:
    """Measures models and files side by side, and writes one self-contained page.

    The page has what suits the task: for classes top-1, calibration, confusion and the
    worst classes; for yes or no accuracy and the area under ROC; for several labels at
    once average precision and F1; for numbers errors. For all of them how near the
    student is to the teacher, whether differences are more than chance, parameters,
    multiply-accumulates, bytes, latency, memory, the Pareto front, learning curves, and
    samples on which they differ.

    A model is a `keras.Model`, or what it gave on the test samples: an array
    `(samples, ...)`, or such by output name. A list of these is the same model trained
    with several seeds: the page then has means, standard deviations and tests over
    seeds, and shows the first.

    Args:
        test: `(x, y)`: samples, an array or such by input name, and what is right:
            class indices or one-hot rows, 0 and 1, or numbers; of several outputs by
            name.
        student: The student.
        teacher: The teacher.
        baseline: The student trained without a teacher.
        files: `.tflite` files: paths, or paths by name; a list of paths under one name
            is of several seeds.
        labels: Names of the classes, or such by output name.
        history: Learning curves: what `fit()` returned or a dict of its columns, for
            the student; or such by model.
        training: By model what its training took: what `kdlite.track_energy` found, or
            seconds.
        country: Where the electricity comes from, three letters as in ISO 3166: has the
            energy of inference estimated (`pip install "kdlite[energy]"`).
        task: "classes", "binary", "labels" or "values", or such by output name, where
            the numbers do not say what is asked for.
        from_logits: Whether outputs are logits. None: they are, unless all are from 0
            to 1 (and of classes sum up to 1).
        title: What the page is called.
        path: The page to write.
        overwrite: Whether a file at `path` may be replaced.

    Returns:
        The figures; prints as a table.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument breaks a rule; found on the first sample, before all
            are run.
        FileNotFoundError: If a file, or the folder of the page, is not there.
        FileExistsError: If there is a file at `path` and `overwrite` is False.
        ModuleNotFoundError: If `country` is given and CodeCarbon is not installed.

    Example:
        >>> import tempfile
        >>> x, y = np.zeros((4, 2)), np.array([0, 1, 1, 0])
        >>> told = np.array([[2.0, 0], [0, 2], [2, 0], [2, 0]])
        >>> made = report(
        ...     student=told,
        ...     teacher=2 * np.eye(2)[y],
        ...     test=(x, y),
        ...     path=Path(tempfile.mkdtemp(), "report.html"),
        ... )
        >>> made.figures["outputs"][""]["contenders"]["student"]["top1"]
        0.75
    """
    path = Path(path)
    check_target(path, overwrite, "report.html")
    check_country(country)
    check_texts(labels)
    if not isinstance(test, tuple) or len(test) != 2:
        raise TypeError(
            "`test` must be (x, y). Received: "
            f"{type(test).__name__}. Fix: give samples and what is right for each."
        )
    x, y = test
    count = count_samples(x)
    entrants = with_origins(read_entrants(student, teacher, baseline, files))
    if not entrants:
        raise ValueError(
            "There must be something to report on. Received: no student, no teacher "
            "and no files. Fix: give at least one."
        )
    shapes = entrants[0].shapes(x, count)
    for entrant in entrants[1:]:
        check_shapes(entrants[0].name, shapes, entrant.name, entrant.shapes(x, count))
    tasks = _tasks(shapes, y, count, labels, task)
    curves = _curves(history)
    spent = _training(training, [entrant.name for entrant in entrants])
    runs = {entrant.name: entrant.run(x) for entrant in entrants}
    costs = _costs(entrants, spent, country, x)
    decided = None
    if teacher is not None:
        decided = {
            k: t.decided(runs["teacher"][0][k], from_logits) for k, t in tasks.items()
        }
    comparison = Comparison(
        title=title,
        tasks=tasks,
        contenders=_contenders(entrants, runs, costs, tasks, decided, from_logits),
        inputs=x,
        history=curves,
    )
    put_in_place(path, page(comparison).encode(), overwrite)
    return Report(path, summary(comparison), comparison.to_dict())


def _tasks(
    shapes: Mapping[str, tuple[int, ...]],
    y: Any,
    count: int,
    labels: Labels | None,
    kinds: str | Mapping[str, str] | None,
) -> dict[str, Task]:
    names = list(shapes)
    if names == [ONLY] and isinstance(y, Mapping) and len(y) == 1:
        y = next(iter(y.values()))
    targets = read_targets((None, y), [], names)
    if missing := [name for name in names if name not in targets]:
        raise ValueError(
            "There must be targets for every output. Received: none for "
            f"{', '.join(map(repr, missing))}. Fix: add them to `y`, by output name."
        )
    if isinstance(kinds, Mapping) and (odd := sorted(set(kinds) - set(names))):
        raise ValueError(
            "`task` must go by output name. Received: "
            f"{', '.join(map(repr, odd))}; outputs: {', '.join(map(repr, names))}. "
            "Fix: name the outputs."
        )
    tasks = {}
    for name in names:
        if len(targets[name]) != count:
            raise ValueError(
                "There must be a target for each sample. Received: "
                f"{len(targets[name])} targets"
                f"{f' for output {name!r}' if name else ''} and {count} samples. Fix: "
                "give one target a sample."
            )
        kind: Any = kinds.get(name) if isinstance(kinds, Mapping) else kinds
        tasks[name] = read_task(name, shapes[name], targets[name], None, kind)
    if labels is None:
        return tasks
    # A list is for the only output with so many classes.
    widths = {name: (len(task.labels),) for name, task in tasks.items()}
    check_counts(labels, widths)
    if not isinstance(labels, Mapping):
        labels = {next(n for n, w in widths.items() if w == (len(labels),)): labels}
    return {
        name: replace(task, labels=tuple(labels.get(name, task.labels)))
        for name, task in tasks.items()
    }


def _curves(history: Any) -> dict[str, dict[str, list[float]]]:
    if history is None:
        return {}
    history = getattr(history, "history", history)
    if isinstance(history, Mapping):
        parts = {n: getattr(part, "history", part) for n, part in history.items()}
        if not any(isinstance(part, Mapping) for part in parts.values()):
            parts = {"student": parts}
        try:
            return {
                _called(name): {
                    str(column): [float(value) for value in values]
                    for column, values in part.items()
                }
                for name, part in parts.items()
                if part is not None
            }
        except (TypeError, ValueError, AttributeError):
            pass
    raise TypeError(
        "`history` must be what fit() returned, or columns with a number an epoch, or "
        f"such by model. Received: {history!r:.80}. Fix: give for example "
        "{'student': history}."
    )


def _called(name: Any) -> str:
    return BASELINE if name == "baseline" else str(name)


def _training(training: Any, names: Sequence[str]) -> dict[str, EnergyUse]:
    if training is None:
        return {}
    if not isinstance(training, Mapping):
        raise TypeError(
            "`training` must be a mapping from model to what its training took. "
            f"Received: {type(training).__name__}. Fix: give for example "
            "{'student': seconds}."
        )
    spent = {}
    for name, used in training.items():
        if _called(name) not in names:
            raise ValueError(
                f"`training` must go by model. Received: {name!r}; there are "
                f"{', '.join(map(repr, names))}. Fix: use these names."
            )
        used = used.used if isinstance(used, EnergyTracker) else used
        if not isinstance(used, EnergyUse):
            number = isinstance(used, (int, float)) and not isinstance(used, bool)
            if not number or not 0 <= used < float("inf"):
                raise ValueError(
                    "`training` must give what kdlite.track_energy found, or seconds. "
                    f"Received: {used!r} for {name!r}. Fix: give seconds, 0 or more."
                )
            used = EnergyUse(float(used))
        spent[_called(name)] = used
    return spent


def _costs(
    entrants: Sequence[Entrant],
    spent: Mapping[str, EnergyUse],
    country: str | None,
    x: Any,
) -> dict[str, Cost]:
    paths = {e.name: e.paths[0] for e in entrants if e.role == "file"}
    costs = file_costs(paths, head(x, INFERENCES), country) if paths else {}
    for entrant in entrants:
        cost = costs.get(entrant.name, Cost())
        if isinstance(entrant.sources[0], keras.Model):
            cost = model_cost(entrant.sources[0])
        costs[entrant.name] = replace(cost, training=spent.get(entrant.name))
    return costs


def _contenders(
    entrants: Sequence[Entrant],
    runs: Mapping[str, Sequence[Mapping[str, Array]]],
    costs: Mapping[str, Cost],
    tasks: Mapping[str, Task],
    decided: Mapping[str, Array] | None,
    from_logits: bool | None,
) -> tuple[Contender, ...]:
    """Measures all, each file beside the seeds of the model that it was made from."""
    found: dict[str, Contender] = {}
    for entrant in entrants:
        origin = None
        if entrant.seeds:
            origin = found.get("student") or found["teacher"]
            if len(entrant.seeds) < origin.seeds:
                numbers = ", ".join(str(1 + seed) for seed in entrant.seeds)
                some = "seed" if len(entrant.seeds) == 1 else "seeds"
                own = [runs[origin.name][seed] for seed in entrant.seeds]
                origin = contend(
                    f"{origin.name}, {some} {numbers} of {origin.seeds}",
                    origin.role,
                    own,
                    tasks,
                    decided,
                    from_logits=from_logits,
                )
        found[entrant.name] = contend(
            entrant.name,
            entrant.role,
            runs[entrant.name],
            tasks,
            decided,
            costs[entrant.name],
            from_logits,
            origin,
        )
    return tuple(found.values())
