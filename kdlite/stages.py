"""The stages of a run: label, train, export, measure, write; each ends whole or not."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.backup import Backup
from kdlite.batches import samples_at_once
from kdlite.compress.qat import quantize_aware
from kdlite.copies import copy_of
from kdlite.distill.augment import Augment
from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import SoftTargets
from kdlite.distill.soft_labels import SoftLabels
from kdlite.distill.taps import logits_model
from kdlite.gates import Gates
from kdlite.lite.convert import ConversionError, export
from kdlite.lite.model_card import card_path
from kdlite.outcomes import (
    BATCH_PREDICT,
    KINDS,
    NAMES,
    Curve,
    Measured,
    Outcome,
    measure,
    predict_file,
    run_report,
    store_energy,
    with_notes,
)
from kdlite.progress import verbosity
from kdlite.reporting.card import run_section
from kdlite.reporting.comparison import Comparison
from kdlite.reporting.energy import track_energy
from kdlite.reporting.page import page
from kdlite.reporting.table import FEW_SAMPLES

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

# With what every student is trained; the report and the model cards name them.
_HARD_LOSS = keras.losses.SparseCategoricalCrossentropy
_SOFT_LOSS = SoftTargets
_OPTIMIZER = keras.optimizers.AdamW

_ASKED = 256  # samples that show whether a teacher knows the task


@dataclass(frozen=True)
class Training:
    """How each student is trained: the same for the distilled one and the baseline."""

    epochs: int
    qat_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    temperature: float
    hard_loss_weight: float
    soft_loss_weight: float


@dataclass(frozen=True)
class About:
    """What the files are to say of themselves, and their model cards."""

    description: str = ""
    author: str = ""
    license: str = ""
    intended_use: str = ""


def check_knows_the_task(
    teacher: keras.Model,
    data: Mapping[str, tuple[Array, Array]],
    labels: Sequence[str],
) -> None:
    """Raises if a teacher is hardly better than guessing, on a part of the data.

    Args:
        teacher: The trained classifier.
        data: Splits by name, `(x, y)`; "validation" if there is one, else "test".
        labels: Class names.

    Raises:
        ValueError: If too few of the samples are right.
    """
    name = "validation" if "validation" in data else "test"
    x, y = data[name]
    rows = np.linspace(0, len(y) - 1, min(len(y), _ASKED)).astype(int)
    top1 = _top1(
        teacher.predict(x[rows], batch_size=samples_at_once(x, _ASKED), verbose=0),
        y[rows],
    )
    guessing = 1 / len(labels)
    # A tenth of the way to all is much for two classes, and for a thousand too much.
    if top1 < min(1.5 * guessing, guessing + 0.1 * (1 - guessing)):
        raise ValueError(
            f"The teacher must know the task. Received: teacher {teacher.name!r} with "
            f"{top1:.1%} right on {len(rows)} samples of `{name}`, where guessing "
            f"gives {guessing:.1%}. Compare the order of the classes and the scale of "
            "the inputs with those it was trained on."
        )


def tell_of_untaught_classes(y: Array, labels: Sequence[str]) -> None:
    """Logs the classes that no sample shows, of which soft targets alone tell.

    Args:
        y: Class indices of the training samples, `(samples,)`.
        labels: Class names.
    """
    missing = sorted(set(range(len(labels))) - set(np.unique(y).tolist()))
    if missing:
        shown = [labels[index] for index in missing[:5]]
        logger.warning(
            "no training sample is of %d of the %d classes (%s): the student learns "
            "what the teacher says of them on samples of others",
            len(missing),
            len(labels),
            ", ".join([*shown, *(["..."] if len(missing) > len(shown) else [])]),
        )


def tell_of_few_samples(data: Mapping[str, Any]) -> None:
    """Logs that figures will say little, where one sample makes much of them.

    Args:
        data: Splits by name, `(x, y)`; "test" if there is one, else "validation".
    """
    on = "test" if "test" in data else "validation"
    count = len(data[on][1])
    if count < FEW_SAMPLES:
        logger.warning(
            "top-1 is measured on %d `%s` sample%s, where one is %.3g points: give %d "
            "or more",
            count,
            on,
            "" if count == 1 else "s",
            100 / count,
            FEW_SAMPLES,
        )


class Stages:
    """The stages, each of which leaves a whole file or nothing, so a run can go on."""

    def __init__(
        self,
        work: Path,
        teacher: keras.Model,
        data: Mapping[str, tuple[Array, Array]],
        labels: tuple[str, ...],
        training: Training,
        augment: Augment | None,
        views: int,
        verbose: str | int,
        about: About = About(),
        country: str | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> None:
        self.work = work
        self.input_range = input_range
        self.about = about
        self.country = country
        self.teacher = teacher
        self.data = data
        self.labels = labels
        self.training = training
        self.augment = augment
        self.views = views
        self.verbose = verbosity(verbose)
        self.measured_on = "test" if "test" in data else "validation"
        self.soft: SoftLabels

    def label(self) -> None:
        """Stores the teacher's outputs, once for all seeds."""
        logger.info("labelling the training data with the teacher")
        self.soft = SoftLabels.build(
            self.teacher,
            self.data["train"],
            self.work / "labels",
            augment=self.augment,
            views=self.views,
            verbose=self.verbose,
        )

    def train_and_export(
        self, start: keras.Model, seed: int, baseline: bool
    ) -> Outcome:
        """Trains one student, its quantization-aware successor and its baseline.

        Of `start` copies are trained: a run that was stopped knows it again.
        """
        folder = self.work / f"seed{seed}"
        folder.mkdir(exist_ok=True)

        def copy() -> keras.Model:
            return copy_of(start)

        student = self._fit(copy, folder / "student", seed, distill=True)
        qat = self._fit(
            lambda: quantize_aware(student, "int8", input_range=self.input_range),
            folder / "student_qat",
            seed,
            distill=True,
            quantized=True,
        )
        plain = None
        if baseline:
            plain = self._fit(copy, folder / "baseline", seed, distill=False)
        name = "validation" if "validation" in self.data else "test"
        verify_data = self.data[self.measured_on]
        accuracy = {
            "teacher": _top1(self._teacher_scores(self.measured_on), verify_data[1])
        }
        # The int8 file is the one to hand on: MODEL_CARD.md is its card.
        for kind, model in (("int8", qat), ("float32", student)):
            path = folder / f"student_{kind}.tflite"
            if not path.exists():
                logger.info("seed %d: exporting %s", seed, path.name)
                export(
                    model,
                    path,
                    kind,
                    labels=list(self.labels),
                    verify_data=verify_data,
                    accuracy=accuracy,
                    input_range=self.input_range,
                    **asdict(self.about),
                )
        x, y = self.data[name]
        top1 = _top1(predict_file(folder / "student_int8.tflite", x), y)
        return Outcome(seed, folder, student, qat, plain, top1)

    def _fit(
        self,
        build: Callable[[], keras.Model],
        path: Path,
        seed: int,
        *,
        distill: bool,
        quantized: bool = False,
    ) -> keras.Model:
        """Trains one model, or loads it where an earlier call had finished it."""
        whole, backup = path.with_suffix(".keras"), Backup(path.with_suffix(".backup"))
        if whole.exists():
            return keras.models.load_model(whole)
        keras.utils.set_random_seed(seed)  # of masks that are dropped
        model = build()
        logger.info("seed %d: training %s", seed, path.name)
        training = self.training
        epochs = training.qat_epochs if quantized else training.epochs
        train = self.soft.attach(
            self.data["train"],
            batch_size=training.batch_size,
            seed=seed,
            augment=self.augment,
            drop_remainder=len(self.soft) >= training.batch_size,
            initial_epoch=backup.epochs,
        )
        if not distill:
            # The very same images in the same order, only without the teacher's word.
            train = train.map(lambda x, y: (x["inputs"], y))
        trained: keras.Model = model
        if distill:
            trained = Distiller(
                model,
                soft_loss=_SOFT_LOSS(training.temperature),
                hard_loss_weight=training.hard_loss_weight,
                soft_loss_weight=training.soft_loss_weight,
            )
        steps = max(1, len(self.soft) // training.batch_size)
        peak = training.learning_rate * (0.1 if quantized else 1.0)
        trained.compile(
            _optimizer(peak, training.weight_decay, steps, epochs),
            _HARD_LOSS(from_logits=logits_model(model).outputs == "logits"),
            metrics=["accuracy"],
        )
        _create_variables(trained, *(part[:1] for part in self.data["train"]))
        keras.utils.set_random_seed(seed)
        done = backup.restore(trained)
        with track_energy(self.country) as tracker:
            trained.fit(
                train,
                epochs=epochs,
                initial_epoch=done,
                validation_data=self.data.get("validation"),
                validation_batch_size=samples_at_once(
                    self.data["train"][0], BATCH_PREDICT
                ),
                verbose=self.verbose,
                shuffle=False,
                callbacks=[
                    Curve(path.with_suffix(".csv")),
                    backup,
                ],
            )
        if not all(np.isfinite(weight).all() for weight in model.get_weights()):
            backup.remove()  # not to go on from there
            raise RuntimeError(
                "Training must give finite weights. Received: NaN or infinity after "
                f"training {path.name!r} with learning_rate={training.learning_rate}. "
                "Lower the learning rate, or look at the range of the data."
            )
        if not done:  # what a stopped run took is not known
            store_energy(path, tracker.used)
        _save_whole(model, whole)
        backup.remove()
        return model

    def _teacher_scores(self, split: str) -> Array:
        """The teacher's outputs on a split, computed once."""
        path = self.work / f"teacher_{split}.npy"
        if not path.exists():
            x, _ = self.data[split]
            scores = self.teacher.predict(
                x,
                batch_size=samples_at_once(x, BATCH_PREDICT),
                verbose=1 if self.verbose == 1 else 0,
            )
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, scores)
            os.replace(temporary, path)
        return np.load(path)

    def measure(
        self, outcomes: Sequence[Outcome], gates: Gates
    ) -> tuple[dict[str, Any], Comparison]:
        """Takes every figure on the test data and judges the gates.

        Args:
            outcomes: One a seed, the best first: it is the one shown.
            gates: What must be reached.

        Returns:
            What `report.json` holds, and what its page is made of.
        """
        x, y = self.data[self.measured_on]
        comparison = measure(
            outcomes,
            Measured(
                self.measured_on,
                x,
                y,
                self.labels,
                self.teacher,
                self._teacher_scores(self.measured_on),
                self._export_teacher(),
                self.country,
            ),
        )
        settings = {
            "hard_loss": _HARD_LOSS.__name__,
            "soft_loss": _SOFT_LOSS.__name__,
            "optimizer": _OPTIMIZER.__name__,
            **asdict(self.training),
            "views": self.views,
            "augmented": self.augment is not None,
            "measured_on": self.measured_on,
            "samples": {name: len(y) for name, (_, y) in self.data.items()},
        }
        seeds = [outcome.seed for outcome in outcomes]
        report = run_report(comparison, seeds, settings, gates)
        return report, with_notes(comparison, report)

    def _export_teacher(self) -> Path | None:
        """The teacher's float file: what the student's is compared with."""
        path = self.work / "teacher_float32.tflite"
        if path.exists():
            return path
        try:
            export(self.teacher, path, "float32", labels=list(self.labels))
        except (ConversionError, ValueError) as err:
            # A teacher need not be fit for a phone: the run is worth the same.
            logger.warning("the teacher has no .tflite to compare with: %s", err)
            return None
        return path

    def write_files(
        self, best: Outcome, report: dict[str, Any], comparison: Comparison
    ) -> None:
        """Writes all files of the result into one folder, still beside `out`."""
        final = self.work / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        self.teacher.save(final / "teacher.keras")
        best.student.save(final / "student.keras")
        shutil.copyfile(best.folder / "student_qat.keras", final / "student_qat.keras")
        for kind in KINDS:
            file = best.folder / f"student_{kind}.tflite"
            shutil.copyfile(file, final / file.name)
            card = card_path(file)
            text = card.read_text(encoding="utf-8")
            told = run_section(comparison, NAMES[kind])
            (final / card.name).write_text(f"{text}\n{told}", encoding="utf-8")
        (final / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        (final / "report.html").write_text(page(comparison), encoding="utf-8")


def _save_whole(model: keras.Model, path: Path) -> None:
    temporary = path.with_suffix(".tmp.keras")
    model.save(temporary)
    os.replace(temporary, path)


def _optimizer(
    peak: float, weight_decay: float, steps: int, epochs: int
) -> keras.optimizers.Optimizer:
    total = steps * epochs
    warmup = min(steps, max(1, total // 10))
    optimizer = _OPTIMIZER(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, total - warmup),
            warmup_target=peak,
            warmup_steps=warmup,
        ),
        weight_decay=weight_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _create_variables(model: keras.Model, x: Array, y: Array) -> None:
    """Has the optimizer and the metrics make theirs before the first step.

    TensorFlow traces a step that makes variables a second time, which takes as long as
    a short epoch.
    """
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(x, y, model(x, training=False), None)
    model.reset_metrics()


def _top1(scores: Array, y: Array) -> float:
    return float((scores.argmax(-1) == y).mean())
