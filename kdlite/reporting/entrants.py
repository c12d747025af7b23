"""Who is measured: models, what they gave, and files, checked before they are run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.batches import samples_at_once
from kdlite.distill.output_names import named, output_names
from kdlite.lite.runtime import TFLiteModel
from kdlite.reporting.comparison import Role

Array = np.ndarray[Any, Any]

#: The name of an output that is the only one.
ONLY = ""
BASELINE = "student without teacher"
_BATCH = 256


@dataclass(frozen=True)
class Entrant:
    """One that is measured: of each seed a model, a file, or what it gave.

    Attributes:
        name: What it is called.
        role: What it is in the comparison.
        sources: One a seed: a Keras model, a `TFLiteModel`, or outputs by name.
        paths: Of the files.
        seeds: Of the files the seeds of the student that each was made from; empty
            where that is not known.
    """

    name: str
    role: Role
    sources: tuple[Any, ...]
    paths: tuple[Path, ...] = ()
    seeds: tuple[int, ...] = ()

    def shapes(self, x: Any, count: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of one sample's output by name.

        Args:
            x: The samples, of which the first is run.
            count: How many there are.

        Raises:
            ValueError: If the samples do not fit, or seeds have other outputs.
        """
        found = [
            {name: np.shape(part)[1:] for name, part in self._told(s, x, 1).items()}
            for s in self.sources
        ]
        for other in found[1:]:
            check_shapes(self.name, found[0], f"another seed of {self.name}", other)
        for source in self.sources:
            if isinstance(source, Mapping):
                for name, part in source.items():
                    if len(part) != count:
                        raise ValueError(
                            "Outputs must be those of the test samples. Received: "
                            f"{len(part)} rows of {self.name}"
                            + (f" for output {name!r}" if name else "")
                            + f", and {count} samples. Fix: give model.predict(x) of "
                            "the same x"
                            + (
                                ", as one array: a list has one entry a seed."
                                if len(self.sources) > 1
                                else "."
                            )
                        )
        return found[0]

    def run(self, x: Any) -> list[dict[str, Array]]:
        """Returns what it gives on all samples by output name, one entry a seed."""
        return [self._told(source, x, None) for source in self.sources]

    def _told(self, source: Any, x: Any, most: int | None) -> dict[str, Array]:
        if isinstance(source, Mapping):
            return {name: np.asarray(part)[:most] for name, part in source.items()}
        inputs = head(x, most)
        try:
            if isinstance(source, keras.Model):
                told = source.predict(
                    inputs, batch_size=samples_at_once(inputs, _BATCH), verbose=0
                )
                names = output_names(source) or ()
                if len(keras.tree.flatten(told)) == 1:
                    names = (ONLY,)
                told = named(told, tuple(names))
            else:
                told = source.predict(inputs)
        except Exception as err:  # whatever a model makes Keras raise
            what = str(err).strip().partition("\n")[0]
            raise ValueError(
                "Every model and file must take the test samples. Received: "
                f"{self.name} and samples {_described(x)}: {what} Fix: give `x` as it "
                "takes them."
            ) from err
        told = told if isinstance(told, Mapping) else {ONLY: told}
        if len(told) == 1:
            return {ONLY: np.asarray(next(iter(told.values())))}
        return {name: np.asarray(part) for name, part in told.items()}


def count_samples(x: Any) -> int:
    """Returns how many samples there are; raises ValueError if that is not clear."""
    parts = list(x.values()) if isinstance(x, Mapping) else [x]
    counts = {len(part) if np.ndim(part) else 0 for part in parts}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            "Test samples must be an array (samples, ...), or such by input name, with "
            f"as many samples each and at least one. Received: {_described(x)}. Fix: "
            "give all inputs of every sample."
        )
    return counts.pop()


def head(x: Any, most: int | None) -> Any:
    """Returns the first samples; None for all."""
    if isinstance(x, Mapping):
        return {name: np.asarray(part)[:most] for name, part in x.items()}
    return np.asarray(x)[:most]


def _described(x: Any) -> str:
    if isinstance(x, Mapping):
        return (
            ", ".join(f"{name!r} {np.shape(part)}" for name, part in x.items())
            or "none"
        )
    return str(np.shape(x))


def entrants(student: Any, teacher: Any, baseline: Any, files: Any) -> list[Entrant]:
    """Reads who is to be measured, the teacher first.

    Args:
        student: As `kdlite.report` takes it; so are the others.
        teacher: The teacher.
        baseline: The student trained without one.
        files: The files.

    Raises:
        TypeError: If one is no model, array or file.
        ValueError: If two have one name, or there is none.
        FileNotFoundError: If a file is not there.
    """
    found: list[Entrant] = []
    roles: dict[Role, Any] = {
        "teacher": teacher,
        "baseline": baseline,
        "student": student,
    }
    for role, given in roles.items():
        if given is not None:
            seeds = list(given) if isinstance(given, (list, tuple)) else [given]
            name = BASELINE if role == "baseline" else str(role)
            found.append(Entrant(name, role, tuple(_source(role, s) for s in seeds)))
            if not seeds or (role == "teacher" and len(seeds) > 1):
                raise ValueError(
                    f"`{role}` must be "
                    + ("one model" if role == "teacher" else "a model or one a seed")
                    + f". Received: a list of {len(seeds)}. Fix: give "
                    + ("kdlite.teachers.Ensemble for several." if seeds else "a model.")
                )
    taken = {entrant.name for entrant in found}
    for name, paths in _named_files(files).items():
        if name in taken:
            raise ValueError(
                f"Each model and file must have a name of its own. Received: {name!r} "
                "twice. Fix: give `files` as a mapping from other names to paths."
            )
        taken.add(name)
        models = tuple(TFLiteModel(path) for path in paths)
        found.append(Entrant(name, "file", models, tuple(paths)))
    return found


def _source(role: str, given: Any) -> Any:
    """A model as it is, or what one gave as arrays by output name."""
    if isinstance(given, keras.Model):
        return given
    parts = dict(given) if isinstance(given, Mapping) else {ONLY: given}
    arrays = {str(name): np.asarray(part) for name, part in parts.items()}
    wrong = not arrays or any(
        a.dtype.kind not in "biuf" or not a.ndim for a in arrays.values()
    )
    if wrong:
        raise TypeError(
            f"`{role}` must be a keras.Model, or what one gave: an array (samples, "
            f"...), or such by output name. Received: {type(given).__name__}. Fix: "
            "load a file with keras.models.load_model; a .tflite belongs to `files`."
        )
    return {ONLY: next(iter(arrays.values()))} if len(arrays) == 1 else arrays


def _named_files(files: Any) -> dict[str, list[Path]]:
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    if not isinstance(files, (Mapping, Sequence)):
        raise TypeError(
            "`files` must be paths, or paths by name. Received: "
            f"{type(files).__name__}. Fix: give for example ['student.tflite']."
        )
    if not isinstance(files, Mapping):
        paths = [Path(file) for file in files]
        names = [path.name for path in paths]
        if len(set(names)) < len(names):
            names = [str(path) for path in paths]
        files = dict(zip(names, paths, strict=True))
    found = {}
    for name, given in files.items():
        several = isinstance(given, (list, tuple))
        found[str(name)] = [Path(p) for p in given] if several else [Path(given)]
        if not found[str(name)]:
            raise ValueError(
                f"`files` must name a path for each. Received: none for {name!r}. Fix: "
                "leave it out."
            )
    return found


def check_shapes(
    first: str,
    wanted: Mapping[str, tuple[int, ...]],
    other: str,
    found: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises ValueError if two have other outputs."""
    if dict(wanted) != dict(found):
        raise ValueError(
            "All must have the same outputs. Received: "
            f"{_outputs(wanted)} of {first} and {_outputs(found)} of {other}. Fix: "
            "give those that do the same task, with outputs of the same names."
        )


def _outputs(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name + ' ' if name else ''}{s}" for name, s in shapes.items())
