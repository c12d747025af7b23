"""What the doctor looks at, a `Case`, and what it finds, a `Finding`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from kdlite.batches import samples_at_once
from kdlite.distill.class_map import ClassMap
from kdlite.distill.samples import (
    DataSet,
    Samples,
    check_can_be_read_again,
    not_finite,
)
from kdlite.distill.taps import (
    INPUTS_KEY,
    SOFT_LABELS_KEY,
    LogitsModel,
    brings_soft_labels,
)
from kdlite.distill.targets import UNLABELLED, class_indices

Array = np.ndarray[Any, Any]
Structure = Any
Role = Literal["student", "teacher"]

BATCH = 64

# Two outcomes on the same samples are told apart at this many standard deviations.
SIGNIFICANT = 3.0


@dataclass(frozen=True)
class Finding:
    """Something that would go wrong, with the figures that show it and the way out.

    Attributes:
        code: Its name, see docs/doctor.md; `kdlite.check(allow=...)` takes it.
        severity: `"error"`: training cannot work, or works on something else than is
            meant; `"warning"`: it works, less well than it could.
        found: What was found, with figures.
        fix: What to do.
    """

    code: str
    severity: Literal["error", "warning"]
    found: str
    fix: str

    def to_dict(self) -> dict[str, str]:
        """Returns the fields as JSON takes them."""
        return asdict(self)

    def __str__(self) -> str:
        """The finding in two lines."""
        return f"{self.severity} {self.code}: {self.found}\n  Fix: {self.fix}"

    @classmethod
    def of(cls, code: str, error: Exception) -> Finding:
        """Returns a finding from an error message in kdlite's form.

        Args:
            code: The finding's name.
            error: `rule. Received: what. Fix: how.`
        """
        found, _, fix = str(error).partition(" Fix: ")
        # What comes from a library below names no way out.
        fix = fix or "Give models and data that fit: the text above is what failed."
        return cls(code, "error", found, fix)


class MappedTeacher:
    """A teacher read in the student's classes, as a class map has them.

    Args:
        teacher: The teacher, read at its logits.
        class_map: For each class of the student the teacher's.
    """

    def __init__(self, teacher: LogitsModel, class_map: ClassMap) -> None:
        self._teacher = teacher
        self._class_map = class_map
        self.model, self.outputs = teacher.model, teacher.outputs
        self.name = teacher.name

    def __call__(self, inputs: Structure, training: bool = False) -> Array:
        """Returns logits `(samples, ..., student's classes)`.

        Args:
            inputs: What the teacher takes.
            training: Passed to the teacher.

        Returns:
            float32 logits; a class that the teacher lacks has its least one, which is
            as little as can be said without standing out.
        """
        known = np.asarray(self._class_map.of_teacher(self._teacher(inputs, training)))
        classes = len(self._class_map.entries)
        logits = np.repeat(known.min(-1, keepdims=True), classes, axis=-1)
        logits[..., list(self._class_map.known)] = known
        return logits


@dataclass(frozen=True)
class Case:
    """Two models and what they say of some samples.

    Attributes:
        student: The student, read at its logits.
        teacher: The teacher, likewise; `None` where the data bring soft labels.
        x: Some samples as the models take them, arrays `(samples, ...)`.
        y: Their labels as they came, or `None`.
        student_logits: float32 `(samples, ..., classes)`.
        teacher_logits: Those of the teacher, or the stored soft labels.
        soft_loss: The loss on the teacher's outputs.
        hard_loss: The loss on the labels as `compile()` takes it; `None`: not known.
        batch_size: Of the training, where it is known.
        unknown: Classes that the teacher lacks, by the class map.
    """

    student: LogitsModel
    teacher: LogitsModel | MappedTeacher | None
    x: Structure
    y: Array | None
    student_logits: Array
    teacher_logits: Array
    soft_loss: keras.distillation.DistillationLoss
    hard_loss: Any
    batch_size: int | None
    unknown: tuple[int, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.student_logits.shape[-1])

    @property
    def labels(self) -> Array:
        """The class of each sample and position in one row, or `UNLABELLED`."""
        count = self.student_logits.size // self.classes
        if self.y is None:
            return np.full(count, UNLABELLED)
        labels = class_indices(self.y, self.classes).reshape(-1)
        no_word = (labels >= self.classes) | np.isin(labels, self.unknown)
        return np.where(no_word, UNLABELLED, labels)

    def model(self, role: Role) -> LogitsModel | MappedTeacher | None:
        """Returns one of the two models."""
        return self.student if role == "student" else self.teacher

    def logits(self, role: Role) -> Array:
        """Returns one model's logits, `(samples * positions, classes)`."""
        logits = self.student_logits if role == "student" else self.teacher_logits
        return logits.reshape(-1, logits.shape[-1])

    def right(self, role: Role) -> Array:
        """Returns for each labelled sample whether a model is right."""
        labelled = self.labels != UNLABELLED
        return self.logits(role)[labelled].argmax(-1) == self.labels[labelled]

    def name(self, role: Role) -> str:
        """How messages call a model, or what stands for it."""
        model = self.model(role)
        return "stored soft labels" if model is None else f"{role} '{model.name}'"


def examine(
    student: LogitsModel,
    teacher: LogitsModel | None,
    class_map: ClassMap | None,
    dataset: DataSet,
    samples: int,
    soft_loss: keras.distillation.DistillationLoss,
    hard_loss: Any,
    batch_size: int | None,
) -> tuple[Case, Array | None]:
    """Runs both models on some samples of a data set.

    Args:
        student: The student.
        teacher: The teacher, or `None` where the data bring soft labels.
        class_map: Which classes are which, if they are not the same.
        dataset: The data.
        samples: How many to run them on.
        soft_loss: The loss on the teacher's outputs.
        hard_loss: The loss on the labels, or `None`.
        batch_size: Of the training, or `None` for the data set's.

    Returns:
        The case, and all labels that could be had without reading more.

    Raises:
        ValueError: If there is no source of soft labels, or the inputs are not finite.
    """
    (x, y), labels, own_batch_size = _some(dataset, student, samples)
    stored = None
    if teacher is None and brings_soft_labels(x):
        x, stored = x[INPUTS_KEY], np.asarray(x[SOFT_LABELS_KEY], "float32")
    bad = not_finite(keras.tree.flatten(x))
    if bad.any():
        raise ValueError(
            f"The inputs must be finite. Received: NaN or infinity in {bad.sum()} "
            f"of {len(bad)} samples. Fix: clean or drop these samples."
        )
    if teacher is None and stored is None:
        raise ValueError(
            "There must be a teacher, or soft labels in the data. Received: "
            "teacher=None and data without soft labels. Fix: give the teacher, or what "
            "SoftLabels.attach returns."
        )
    seen: LogitsModel | MappedTeacher | None = teacher
    if teacher is not None and class_map is not None:
        seen = MappedTeacher(teacher, class_map)
    case = Case(
        student=student,
        teacher=seen,
        x=x,
        y=y,
        student_logits=run(student, x),
        teacher_logits=np.asarray(stored if seen is None else run(seen, x)),
        soft_loss=soft_loss,
        hard_loss=hard_loss,
        batch_size=batch_size or own_batch_size,
        unknown=tuple(
            index
            for index, entry in enumerate(class_map.entries if class_map else ())
            if entry is None
        ),
    )
    return case, labels


def run(model: LogitsModel | MappedTeacher, x: Structure) -> Array:
    """Returns a model's logits on arrays, in inference mode and in batches.

    Args:
        model: The model.
        x: Samples.

    Returns:
        float32 logits `(samples, ..., classes)`.
    """
    count = len(keras.tree.flatten(x)[0])
    size = samples_at_once(x, BATCH)
    return np.concatenate(
        [
            np.asarray(model(rows(x, slice(start, start + size))), "float32")
            for start in range(0, count, size)
        ]
    )


@contextlib.contextmanager
def unchanged(*models: LogitsModel | None) -> Iterator[None]:
    """Puts back what a forward pass changes: statistics and random states.

    Args:
        *models: The models; `None` is left out.
    """
    kept = [
        (variable, variable.numpy())
        for model in models
        if model is not None
        for variable in model.model.variables
        if not variable.trainable
    ]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)


def rows(x: Structure, chosen: slice) -> Structure:
    """Returns some samples of a structure of arrays.

    Args:
        x: Arrays `(samples, ...)`.
        chosen: Which.
    """
    return keras.tree.map_structure(lambda array: array[chosen], x)


def better(right: Array, than: Array) -> bool:
    """Whether more of the same samples are right than chance explains (McNemar).

    Args:
        right: For each sample, whether it is right.
        than: The same of what it is compared with.
    """
    gained, lost = int((right & ~than).sum()), int((than & ~right).sum())
    return gained - lost > SIGNIFICANT * np.sqrt(gained + lost)


def _some(
    dataset: DataSet, student: LogitsModel, count: int
) -> tuple[tuple[Structure, Array | None], Array | None, int | None]:
    """Returns some samples `(x, y)`, all labels that can be had cheaply, batch size."""
    if not isinstance(dataset, (tf.data.Dataset, keras.utils.PyDataset)):
        parts = dataset if isinstance(dataset, tuple) else (dataset,)
        # As Keras has it, and with its checks of shapes; the few rows alone.
        whole = [keras.tree.map_structure(_array, part) for part in parts[:2]]
        length = _common_length(whole)
        chosen = np.unique(np.linspace(0, length - 1, min(count, length)).astype(int))
        x, *y = keras.tree.map_structure(lambda array: array[chosen], whole)
        return (x, y[0] if y else None), whole[1] if y else None, None
    inputs = getattr(student.model, "inputs", None)
    samples = Samples(dataset, len(inputs[0].shape) if inputs else None)
    batches = []
    for _, parts in samples.read():
        batches.append(keras.tree.map_structure(np.asarray, parts))
        if sum(len(keras.tree.flatten(batch)[0]) for batch in batches) >= count:
            break
    joined = keras.tree.map_structure(lambda *a: np.concatenate(a)[:count], *batches)
    x, *y = joined
    return (x, y[0] if y else None), y[0] if y else None, samples.batch_size


def _array(values: Any) -> Array:
    array = np.asarray(values)
    check_can_be_read_again(values, array)
    return array


def _common_length(parts: list[Any]) -> int:
    """Number of samples of `[x]` or `[x, y]`; ValueError if there is none."""
    shapes = [array.shape for array in keras.tree.flatten(parts)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) > 1 or not min(lengths):
        raise ValueError(
            "Inputs and labels must have as many samples, one or more. Received: "
            f"arrays of the shapes {', '.join(map(str, shapes))}. Fix: give each "
            "sample its label, (x, y)."
        )
    if len(parts) > 1 and any(
        array.dtype.kind not in "biuf" for array in keras.tree.flatten(parts[1])
    ):
        kinds = {str(array.dtype) for array in keras.tree.flatten(parts[1])}
        raise ValueError(
            f"Labels must be numbers. Received: {', '.join(sorted(kinds))}. Fix: "
            "number the classes from 0 in the order of the teacher's outputs."
        )
    return int(min(lengths))
