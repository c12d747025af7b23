"""What the seeds of a run gave: learning curves, figures, the content of its report."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.batches import samples_at_once
from kdlite.gates import Gates
from kdlite.in_place import put_in_place
from kdlite.lite.runtime import TFLiteModel
from kdlite.reporting.comparison import Comparison, Contender, Role, contend
from kdlite.reporting.costs import INFERENCES, Cost, file_costs, model_cost
from kdlite.reporting.energy import EnergyUse
from kdlite.reporting.tasks import read_task

Array = np.ndarray[Any, Any]

KINDS = ("float32", "int8")
BATCH_PREDICT = 500
#: What page and model card call them.
NAMES = {
    "teacher": "teacher",
    "baseline": "student without teacher",
    "student": "student",
    "student_qat": "quantization-aware student",
    "float32": "float32 file",
    "int8": "int8 file",
}
_ROLES: dict[str, Role] = {
    "baseline": "baseline",
    "student": "student",
    "student_qat": "student",
}
_ORIGINS = {"float32": "student", "int8": "student_qat"}


@dataclass(frozen=True)
class Outcome:
    """What one seed gave."""

    seed: int
    folder: Path
    student: keras.Model
    quantized: keras.Model  # the quantization-aware one, which the int8 file is of
    baseline: keras.Model | None
    validation_top1: float

    def outputs(self, x: Array) -> dict[str, Array]:
        """Runs all that it gave on samples."""
        models = {
            "baseline": self.baseline,
            "student": self.student,
            "student_qat": self.quantized,
        }
        outputs = {
            name: model.predict(
                x, batch_size=samples_at_once(x, BATCH_PREDICT), verbose=0
            )
            for name, model in models.items()
            if model is not None
        }
        for kind in KINDS:
            outputs[kind] = predict_file(self.folder / f"student_{kind}.tflite", x)
        return outputs


@dataclass(frozen=True)
class Measured:
    """What the figures are taken on, and what is compared with.

    Attributes:
        on: What the samples are, such as "test".
        x: The samples, `(samples, ...)`.
        y: Their class indices, `(samples,)`.
        labels: The names of the classes.
        teacher: The teacher.
        scores: Its outputs on the samples.
        file: Its float file, if there is one.
        country: As `kdlite.track_energy` takes it.
    """

    on: str
    x: Array
    y: Array
    labels: tuple[str, ...]
    teacher: keras.Model
    scores: Array
    file: Path | None
    country: str | None = None


def measure(outcomes: Sequence[Outcome], by: Measured) -> Comparison:
    """Takes every figure.

    Args:
        outcomes: One a seed, the one that is shown first.
        by: What they are taken on.

    Returns:
        Teacher, baseline, student and files side by side.
    """
    labels = list(by.labels)
    task = read_task("", (len(labels),), by.y, labels, kind="classes")
    decided = {"": task.decided(by.scores)}
    first = outcomes[0]
    paths = {kind: first.folder / f"student_{kind}.tflite" for kind in KINDS}
    if by.file is not None:
        paths = {"teacher": by.file, **paths}
    costs = file_costs(paths, by.x[:INFERENCES], by.country)
    runs = [outcome.outputs(by.x) for outcome in outcomes]
    # Of the files, too, what the student holds: as files count, a scale is a weight.
    own = replace(model_cost(first.student), macs=costs["float32"].macs, bytes=None)
    of_teacher = contend(
        NAMES["teacher"],
        "teacher",
        [{"": by.scores}],
        {"": task},
        decided,
        replace(costs.get("teacher", Cost()), params=by.teacher.count_params()),
    )
    found: dict[str, Contender] = {}
    for name in runs[0]:
        cost = replace(costs.get(name, own), params=own.params, macs=own.macs)
        found[name] = contend(
            NAMES[name],
            _ROLES.get(name, "file"),
            [{"": run[name]} for run in runs],
            {"": task},
            decided,
            replace(cost, training=_training(first.folder, name)),
            origin=found.get(_ORIGINS.get(name, "")),
        )
    # The int8 file is held against it; it is no result of its own.
    del found["student_qat"]
    return Comparison(
        title="kdlite report",
        tasks={"": task},
        contenders=(of_teacher, *found.values()),
        inputs=by.x,
        history=_history(first.folder),
        measured_on=by.on,
        run=f"seed {first.seed}, the best of {len(outcomes)} on validation",
    )


def run_report(
    comparison: Comparison,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    gates: Gates,
) -> dict[str, Any]:
    """Returns what `report.json` holds, with the gates judged.

    Args:
        comparison: What was measured.
        seeds: The seeds, in the order of the comparison.
        settings: How it was trained.
        gates: What was asked for.
    """
    (task,) = comparison.tasks.values()
    found = {contender.name: contender for contender in comparison.contenders}

    def figures(name: str) -> dict[str, Any] | None:
        contender = found.get(NAMES[name])
        return None if contender is None else contender.figures(task)

    per_seed = [
        {
            "seed": seed,
            **{
                name: {
                    metric: found[NAMES[name]].values("", metric)[place]
                    for metric in ("top1", "agreement")
                }
                for name in ("baseline", "student", *KINDS)
                if NAMES[name] in found
            },
        }
        for place, seed in enumerate(seeds)
    ]
    report: dict[str, Any] = {
        "teacher": figures("teacher"),
        "baseline": figures("baseline"),
        "student": figures("student"),
        "tflite": {kind: figures(kind) for kind in KINDS},
        "separations": [test.to_dict() for test in comparison.separations(task)],
        "seeds": sorted(per_seed, key=lambda scores: scores["seed"]),
        "settings": dict(settings),
        "labels": list(task.labels),
    }
    report["gates"] = [asdict(gate) for gate in gates.judge(report)]
    return report


def with_notes(comparison: Comparison, report: Mapping[str, Any]) -> Comparison:
    """Returns a comparison with the gates and the settings of its run."""
    gates = [
        [
            gate["name"].replace("_", " "),
            f"{gate['required']:g}",
            "not measured"
            if gate["measured"] is None
            else f"{gate['measured']:.2f} {gate['note']}".rstrip(),
            "kept" if gate["passed"] else "missed",
        ]
        for gate in report["gates"]
    ]
    settings = [
        [
            key.replace("_", " "),
            ", ".join(f"{name} {count:,}" for name, count in value.items())
            if isinstance(value, Mapping)
            else str(value),
        ]
        for key, value in report["settings"].items()
    ]
    notes = {"Settings": [["setting", "value"], *settings]}
    if gates:
        notes = {"Gates": [["gate", "limit", "measured", ""], *gates], **notes}
    return replace(comparison, notes=notes)


def predict_file(path: Path, x: Array) -> Array:
    """Returns what a file gives, `(samples, classes)`."""
    return np.asarray(TFLiteModel(path).predict(x, verbose="auto"))


class Curve(keras.callbacks.Callback):
    """Writes a learning curve row by row: it goes on where training does."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Adds the epoch's figures."""
        seconds = time.perf_counter() - self._started
        row = {"epoch": epoch, "seconds": seconds, **(logs or {})}
        # Whole after each row, unlike by CSVLogger: neither a kill nor a full disk
        # leaves half a row, which nobody could read when training goes on.
        written = self._path.read_bytes() if self._path.exists() else b""
        with io.StringIO(newline="") as text:
            writer = csv.DictWriter(text, row)
            if not written:
                writer.writeheader()
            writer.writerow(row)
            put_in_place(self._path, written + text.getvalue().encode(), True)


def read_curve(path: Path) -> dict[str, list[float]]:
    """A learning curve by column."""
    rows = _rows(path)
    columns = [key for key in next(iter(rows), {}) if key not in ("epoch", "seconds")]
    return {key: [float(row[key]) for row in rows] for key in columns}


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows in order; of an epoch that was repeated the last counts."""
    with path.open(newline="") as file:
        rows = {int(row["epoch"]): row for row in csv.DictReader(file)}
    return [rows[epoch] for epoch in sorted(rows)]


def _history(folder: Path) -> dict[str, dict[str, list[float]]]:
    curves = {
        NAMES[name]: read_curve(folder / f"{name}.csv")
        for name in ("baseline", "student", "student_qat")
        if (folder / f"{name}.csv").exists()
    }
    # The quantization-aware epochs follow on those of the float student.
    before = len(next(iter(curves[NAMES["student"]].values()), []))
    later = curves[NAMES["student_qat"]]
    for key, values in later.items():
        later[key] = [float("nan")] * before + values
    return curves


def store_energy(path: Path, used: EnergyUse) -> None:
    """Keeps what a training took beside its learning curve."""
    told = json.dumps(used.to_dict()).encode()
    put_in_place(path.with_suffix(".energy.json"), told, overwrite=True)


def _training(folder: Path, name: str) -> EnergyUse | None:
    """What training a model took; of the int8 file both its trainings."""
    if name == "int8":
        float_part = _training(folder, "student")
        quantized = _training(folder, "student_qat")
        return float_part.plus(quantized) if float_part and quantized else None
    path = folder / f"{name}.csv"
    if not path.exists():
        return None
    # The curve knows of every call, also where the run was stopped in between; the
    # energy of such a run is not known.
    seconds = sum(float(row["seconds"]) for row in _rows(path))
    stored = path.with_suffix(".energy.json")
    if not stored.exists():
        return EnergyUse(seconds)
    found = json.loads(stored.read_text())
    return EnergyUse(**{**found, "assumptions": tuple(found["assumptions"])})
