"""The whole way in one call: teacher and data in, proven `.tflite` and report out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.compress.fake_quant import checked_range
from kdlite.compress.qat import quantize_aware
from kdlite.compress.shrink import shrunken
from kdlite.counts import checked_count
from kdlite.distill.augment import Augment, check_unmixed
from kdlite.distill.distiller import Distiller
from kdlite.distill.label_store import locked
from kdlite.distill.losses import SoftTargets
from kdlite.distill.schedules import checked_number
from kdlite.distill.views import Views
from kdlite.doctor import check_inputs
from kdlite.fingerprint import data_fingerprint, model_fingerprint
from kdlite.gates import Gate, Gates
from kdlite.lite.labels import check_texts
from kdlite.lite.options import check_prose
from kdlite.reporting.energy import check_country
from kdlite.reporting.table import table
from kdlite.result_folder import (
    begin_or_go_on,
    check_free,
    make_work_folder,
    put_in_place,
)
from kdlite.sizing import STEPS, shrink_candidates
from kdlite.stages import (
    About,
    Stages,
    Training,
    check_knows_the_task,
    tell_of_few_samples,
    tell_of_untaught_classes,
)

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Data = Any  # (x, y) of arrays, tf.data.Dataset or keras.utils.PyDataset

_QUANTIZATIONS = ("int8",)
_PROBED = 4  # samples that an augmentation is tried on


@dataclass(frozen=True)
class PipelineResult:
    """What `distill_to_tflite` made.

    Attributes:
        out: The folder with the files.
        report: The figures, as in `report.json`.
        gates: What was asked and what was reached.
    """

    out: Path
    report: dict[str, Any]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate was kept."""
        return all(gate.passed for gate in self.gates)

    @property
    def tflite(self) -> Path:
        """The quantized file."""
        return self.out / "student_int8.tflite"

    @property
    def student(self) -> Path:
        """The float student, a plain Keras model."""
        return self.out / "student.keras"

    @property
    def html(self) -> Path:
        """The report as one page."""
        return self.out / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Returns the report, with the folder."""
        return {"out": str(self.out), "passed": self.passed, **self.report}

    def __str__(self) -> str:
        """The table of the report, and each gate."""
        lines = [table(self.report)]
        lines += [f"gate: {gate}" for gate in self.gates]
        lines.append(f"files: {self.out}")
        return "\n".join(lines)


def distill_to_tflite(
    teacher: keras.Model,
    train: Data,
    student: keras.Model | Callable[[], keras.Model] | None = None,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    validation: Data = None,
    test: Data = None,
    labels: Sequence[str] | None = None,
    epochs: int = 30,
    qat_epochs: int = 2,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-3,
    temperature: float = 4.0,
    hard_loss_weight: float = 0.1,
    soft_loss_weight: float = 0.9,
    quantization: str = "int8",
    augment: Augment | None = None,
    views: int = 1,
    seeds: int = 1,
    baseline: bool = True,
    gates: Gates | None = None,
    input_range: tuple[float, float] | None = None,
    description: str = "",
    author: str = "",
    license: str = "",
    intended_use: str = "",
    country: str | None = None,
    out: str | Path = "out",
    overwrite: bool = False,
    verbose: str | int = "auto",
) -> PipelineResult:
    """Distils a classifier and takes it to a verified `.tflite`, with a report.

    Labels the training data with the teacher once, trains the student on these soft
    labels, goes on for a short while with fake quantization, exports float32 and int8
    files, checks each against its Keras model in LiteRT, and measures everything on the
    test data. Beside it, the same student is trained without a teacher: same start,
    same images, same number of steps.

    A run that was stopped goes on where it was when it is called again with the same
    arguments. Until it is done all lies in `<out>.partial`; `out` appears whole.

    Args:
        teacher: The trained classifier, `(batch, ...)` to `(batch, classes)`, logits or
            a softmax.
        train: `(x, y)` of arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset` of
            them; `y` integer class indices. Held in memory; for more data than that use
            `SoftLabels`, `Distiller` and `export` themselves.
        student: The model to train, a copy of it, from its weights as they are; or a
            function that builds one, called once for each seed. None: `kdlite.shrink`
            makes one from the teacher.
        ratio: Without `student`: how many times smaller the int8 file is to be than the
            teacher's float32 file; 10 if nothing else is asked.
        max_bytes: Without `student`: most bytes of the int8 file.
        validation: Like `train`: watched during training, and where seeds are compared;
            with `seeds` above 1 it is needed.
        test: Like `train`: the figures in the report. Without it they are taken on
            `validation`, and the report says so. One of the two is needed.
        labels: Class names in the order of the indices.
        epochs: Passes over the training data for the float student.
        qat_epochs: Passes with fake quantization after that.
        batch_size: Samples a step.
        learning_rate: Peak of one cosine with a short warm-up; a tenth of it in the
            quantization-aware part.
        weight_decay: Of AdamW; biases and normalization are left out.
        temperature: Of the soft targets, above 0.
        hard_loss_weight: Weight of the loss on the labels, for the distilled student.
        soft_loss_weight: Weight of the loss on the soft targets.
        quantization: `"int8"`.
        augment: `augment(x, seed)` on one sample, stateless; see `SoftLabels.build`.
        views: Augmented views stored of each sample.
        seeds: Repetitions, each with its own start and order; needs `student` as a
            function. The report gives means and standard deviations; the files are
            those of the seed that is best on `validation`.
        baseline: Whether to train the student without a teacher beside it.
        gates: What must be reached. By default int8 may lose at most 1 point; `ratio`
            and `max_bytes` are gates too.
        input_range: `(lo, hi)`, what 8-bit pixels from 0 to 255 become before they go
            into the models, such as `(0.0, 1.0)`: the files say it, and an app needs
            it. Where it is not given, they say what the samples look like: 0..255,
            0..1 or -1..1.
        description: What the student does: in the files, their model cards and the
            Android app, as are the next two.
        author: Who made it.
        license: Under which terms.
        intended_use: What it is for and what not, for the model cards.
        country: Where the electricity comes from, three letters as in ISO 3166: has the
            energy and the CO2 of training and inference estimated
            (`pip install "kdlite[energy]"`).
        out: Folder to write: `teacher.keras`, `student.keras`, `student_int8.tflite`,
            `student_float32.tflite`, a model card for each of these two with the
            report's figures, `report.json`, `report.html`, and `student_qat.keras`, the
            model that the int8 file was made from.
        overwrite: Whether to replace `out`, and to drop what an earlier run with other
            settings left half-done.
        verbose: As in Keras's `fit`; `"auto"` is a bar on a terminal, else a line an
            epoch.

    Returns:
        The files, the figures and the gates; prints as a table.

    Raises:
        ValueError: An input breaks a rule; found before anything is computed.
        TypeError: An argument is of the wrong type.
        FileExistsError: `out` exists, and `overwrite` is False or it is no result; or
            `<out>.partial` is of something else.
        ModuleNotFoundError: `country` is given, and CodeCarbon is not installed.
        RuntimeError: Another process is at the same `out`, or training diverged.
    """
    out = Path(out)
    if quantization not in _QUANTIZATIONS:
        raise ValueError(
            f"`quantization` must be one of {_QUANTIZATIONS}. Received: "
            f"{quantization!r}. Other files come from kdlite.export on student.keras."
        )
    for name, value in (
        ("epochs", epochs),
        ("qat_epochs", qat_epochs),
        ("batch_size", batch_size),
        ("views", views),
        ("seeds", seeds),
    ):
        checked_count(name, value)
    for name, rate, least in (
        ("learning_rate", learning_rate, "above 0"),
        ("weight_decay", weight_decay, "0 or more"),
    ):
        known = isinstance(rate, Real) and math.isfinite(rate)
        if not known or rate < 0 or (rate == 0 and least == "above 0"):
            raise ValueError(
                f"`{name}` must be finite and {least}. Received: {name}={rate!r}. The "
                "default is a good start."
            )
    if hard_loss_weight == soft_loss_weight == 0:
        raise ValueError(
            "One of the two losses must count. Received: hard_loss_weight=0 and "
            "soft_loss_weight=0. Give for example 0.1 and 0.9."
        )
    if seeds > 1 and isinstance(student, keras.Model):
        raise ValueError(
            "`seeds` above 1 needs the student as a function that builds it, so that "
            f"each seed has its own start. Received: seeds={seeds} and the model "
            f"{student.name!r}. Pass student=lambda: build_student()."
        )
    if seeds > 1 and validation is None:
        raise ValueError(
            "`seeds` above 1 needs `validation`: the best seed is chosen on it, and "
            f"nothing on `test`. Received: seeds={seeds} and no `validation`. Hold "
            "some samples back and pass them."
        )
    if student is not None and (ratio, max_bytes) != (None, None):
        raise ValueError(
            "`ratio` and `max_bytes` make a student, so that none must be given. "
            f"Received: student={student!r}, ratio={ratio!r}, max_bytes={max_bytes!r}. "
            "Leave out the student, or the others."
        )
    if train is None:
        raise TypeError(
            "`train` must be (x, y), a tf.data.Dataset or a keras.utils.PyDataset. "
            "Received: None. Give (images, class indices)."
        )
    if validation is None and test is None:
        raise ValueError(
            "Figures need data that the student was not trained on. Received: neither "
            "`validation` nor `test`. Hold some samples back and pass them."
        )
    if gates is not None and not isinstance(gates, Gates):
        raise TypeError(
            f"`gates` must be kdlite.Gates or None. Received: {gates!r}. Give for "
            "example kdlite.Gates(teacher_drop_points=2.0)."
        )
    about = About(description, author, license, intended_use)
    check_prose(**asdict(about))
    check_free(out, overwrite)
    check_country(country)
    data = {
        name: _as_arrays(split, name)
        for name, split in (
            ("train", train),
            ("validation", validation),
            ("test", test),
        )
        if split is not None
    }
    example = _example(student, teacher)
    labels = _checked_labels(labels)
    check_inputs(example, teacher, data, labels)
    if input_range is not None:
        input_range = checked_range(input_range)
        _check_in_range(data, input_range)
    names = tuple(labels or map(str, range(teacher.output_shape[-1])))
    check_knows_the_task(teacher, data, names)
    tell_of_untaught_classes(data["train"][1], names)
    tell_of_few_samples(data)
    # As JSON takes numbers, whoever they come from.
    views, seeds, baseline = int(views), int(seeds), bool(baseline)
    training = Training(
        int(epochs),
        int(qat_epochs),
        int(batch_size),
        float(learning_rate),
        float(weight_decay),
        checked_number("temperature", temperature, above=0.0),
        checked_number("hard_loss_weight", hard_loss_weight),
        checked_number("soft_loss_weight", soft_loss_weight),
    )
    # Made before the first file is written: they hold the rules for these arguments.
    Distiller(
        example, teacher, SoftTargets(temperature), hard_loss_weight, soft_loss_weight
    )
    quantize_aware(example, quantization, input_range=input_range)
    check_unmixed(augment, "distill_to_tflite")
    Views(augment, views, seed=0).check(data["train"][0][:_PROBED])
    if student is None:
        ratio = 10.0 if (ratio, max_bytes) == (None, None) else ratio
        candidates = shrink_candidates(
            teacher,
            ratio=ratio,
            max_bytes=max_bytes,
            depths=(1.0,),
            separable=(False,),
            labels=list(names),
        )
        logger.info("%s", candidates)
        student = candidates.best.build
        example = _example(student, teacher)
        gates = (gates or Gates()).with_size(ratio, max_bytes)
    settings = {
        **asdict(training),
        "views": views,
        "seeds": seeds,
        "baseline": baseline,
        "augmented": augment is not None,
        **asdict(about),
        "input_range": list(input_range) if input_range else None,
        "country": country,
        "labels": list(names),
        "teacher": model_fingerprint(teacher),
        "student": model_fingerprint(example),
        "trainable": [layer.trainable for layer in example._flatten_layers()],
        **{f"data_{name}": data_fingerprint(split) for name, split in data.items()},
    }
    work = make_work_folder(out)
    with locked(work, "A run is"):
        begin_or_go_on(work, settings, overwrite)
        stages = Stages(
            work,
            teacher,
            data,
            names,
            training,
            augment,
            views,
            verbose,
            about,
            country,
            input_range,
        )
        stages.label()
        outcomes = []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            start = student if isinstance(student, keras.Model) else student()
            outcomes.append(stages.train_and_export(start, seed, baseline))
        outcomes.sort(key=lambda outcome: outcome.validation_top1, reverse=True)
        report, comparison = stages.measure(outcomes, gates or Gates())
        stages.write_files(outcomes[0], report, comparison)
        put_in_place(work, out)
    return PipelineResult(out, report, tuple(Gate(**gate) for gate in report["gates"]))


def _example(
    student: keras.Model | Callable[[], keras.Model] | None, teacher: keras.Model
) -> keras.Model:
    """The student, or one like it: without one, the smallest that the teacher gives."""
    if isinstance(student, keras.Model):
        return student
    keras.utils.set_random_seed(0)
    return shrunken(teacher, 1.0 / STEPS) if student is None else student()


def _check_in_range(
    data: Mapping[str, tuple[Array, Array]], low_high: tuple[float, float]
) -> None:
    """Raises unless the values of all samples lie in a range."""
    low, high = low_high
    for name, (x, _) in data.items():
        least, most = float(x.min()), float(x.max())
        if least < low or most > high:
            raise ValueError(
                f"`{name}` must lie in `input_range`. Received: values from {least:g} "
                f"to {most:g}, input_range=({low:g}, {high:g}). Fix: give the range "
                "that pixels from 0 to 255 have in these samples."
            )


def _checked_labels(labels: Sequence[str] | None) -> list[str] | None:
    """The class names as a list; raises unless a file can have them."""
    if labels is None:
        return None
    # No set: it has no order.
    listed = isinstance(labels, (Sequence, np.ndarray)) and not isinstance(labels, str)
    if not listed or not all(isinstance(name, str) for name in labels):
        raise TypeError(
            f"`labels` must be a list of class names. Received: {labels!r}. Give for "
            "example ['cat', 'dog']."
        )
    names = [str(name) for name in labels]
    check_texts(names)
    return names


def _as_arrays(data: Data, name: str) -> tuple[Array, Array]:
    """`(x, y)` in memory, from arrays or any Keras data set of batches or samples."""
    if isinstance(data, tuple) and len(data) == 2:
        _check_pair(data, name, "a pair")
        return np.asarray(data[0]), np.asarray(data[1])
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"`{name}` must end. Received: a tf.data.Dataset without end. "
                "Drop .repeat()."
            )
        spec = data.element_spec
        _check_pair(spec, name, "a tf.data.Dataset")
        batches = list(
            (data if spec[1].shape.rank else data.batch(256)).as_numpy_iterator()
        )
    elif isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ValueError(
                f"`{name}` must end. Received: a keras.utils.PyDataset without end. "
                "Give it a __len__, its number of batches."
            )
        batches = [data[index] for index in range(data.num_batches)]
        for batch in batches:
            _check_pair(batch, name, "a keras.utils.PyDataset")
    else:
        raise TypeError(
            f"`{name}` must be (x, y) of arrays, a tf.data.Dataset or a "
            f"keras.utils.PyDataset. Received: {type(data).__name__}. Give "
            "(images, class indices)."
        )
    if not batches:
        raise ValueError(
            f"`{name}` must hold samples. Received: an empty data set. Give some data."
        )
    return (
        np.concatenate([np.asarray(batch[0]) for batch in batches]),
        np.concatenate([np.asarray(batch[1]) for batch in batches]),
    )


def _check_pair(pair: Any, name: str, of: str) -> None:
    """Raises unless there is one input and one label, and nothing that would be lost.

    Args:
        pair: An element, or what is known of all.
        name: The argument.
        of: What it is from, for the message.
    """
    if not isinstance(pair, tuple) or len(pair) != 2:
        parts = f"{len(pair)} parts" if isinstance(pair, tuple) else "no pairs"
        raise ValueError(
            f"`{name}` must give (x, y). Received: {of} of {parts}. Map it to pairs of "
            "input and class index; for sample weights use kdlite.Distiller itself."
        )
    for part, told in zip(pair, ("x", "y"), strict=True):
        if isinstance(part, Mapping):
            raise TypeError(
                f"`{name}` must give one array of inputs and one of class indices. "
                f"Received: {of} with a {type(part).__name__} as {told}. For several "
                "inputs or outputs use kdlite.Distiller itself."
            )
