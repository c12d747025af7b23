"""Tuning: which loss, temperature and weights suit a student, from stored soft labels.

Each trial trains the student for a few epochs on the same slice of the data, from the
same weights, in the same order, and is judged on validation data. No test data take
part: what they say of the student that was chosen is then worth something.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np

from kdlite.counts import checked_count
from kdlite.distill.distiller import Distiller
from kdlite.distill.samples import DataSet
from kdlite.distill.schedules import checked_number
from kdlite.distill.soft_labels import SoftLabels
from kdlite.distill.trials import (
    Direction,
    Settings,
    Space,
    Trial,
    TrialReport,
    TrialStore,
    TuneResult,
)
from kdlite.fingerprint import data_fingerprint, model_fingerprint

Structure = Any
Search = Literal["auto", "grid", "random", "keras_tuner"]
DataForTraining = tuple[Structure, Structure, Structure]  # x, y, sample_weight

_SMALLER_IS_BETTER = ("loss", "error", "mse", "mae", "mape", "msle", "divergence")


def tune(
    student: keras.Model,
    soft_labels: SoftLabels,
    train: DataSet,
    validation: Any,
    loss: Any,
    *,
    metrics: Sequence[Any] = ("accuracy",),
    optimizer: str | keras.optimizers.Optimizer = "adam",
    soft_losses: Sequence[keras.distillation.DistillationLoss] | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    soft_loss_weights: Sequence[float] = (0.5, 0.9),
    fraction: float = 0.2,
    epochs: int = 3,
    batch_size: int = 32,
    objective: str = "val_accuracy",
    direction: Direction | None = None,
    search: Search = "auto",
    max_trials: int = 16,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    verbose: str | int = "auto",
) -> TuneResult:
    """Tries losses, temperatures and weights on a slice of the data.

    A trial is `Distiller(student, soft_loss=..., hard_loss_weight=1 - w,
    soft_loss_weight=w)`, trained from the weights that the student has now; afterwards
    the student has them again. Trials differ in their settings alone: samples, order
    and random numbers are the same. With few epochs on a slice the order of the trials
    is a hint; small differences need more seeds.

    A loss that has no temperature is tried once for each weight. A weight of 0 is tried
    once: it is the student without a teacher.

    Args:
        student: The student.
        soft_labels: The teacher's outputs for `train`.
        train: The data that were labelled, with labels, in any of the forms that
            `SoftLabels.attach` takes.
        validation: Data with labels to choose by, as `fit(validation_data=...)` takes
            them. Other samples than those of `train`, and not the test data.
        loss: The hard loss, as `compile()` takes it.
        metrics: Metrics, as `compile()` takes them.
        optimizer: The optimizer, made anew for each trial.
        soft_losses: Losses to try; `None` for `SoftTargets`.
        temperatures: Temperatures to try with each loss that has one.
        soft_loss_weights: Weights of the soft loss to try, from 0 to 1; the hard loss
            has the rest.
        fraction: The share of the samples to train on, above 0 and at most 1. They are
            drawn by `seed`, and held in memory.
        epochs: How long a trial trains; it is judged after its last epoch.
        batch_size: Samples in a step.
        objective: What is compared: `"val_loss"` or `val_` and a metric's name.
        direction: Whether more (`"max"`) or less (`"min"`) is better; `None` takes
            less of what is named a loss or an error.
        search: `"grid"` tries all; `"random"` a seeded draw of `max_trials`;
            `"keras_tuner"` lets KerasTuner's Bayesian optimization choose as many;
            `"auto"` tries all if there are no more than `max_trials`, else KerasTuner
            if it is installed, else draws.
        max_trials: How many trials there are at most, but for `"grid"`.
        seed: For the slice, the order and the random numbers of each trial.
        path: A folder that keeps the trials: called again, with the same student, data
            and settings, finished ones are not done again.
        verbose: 1 shows a bar of trials, 0 none, `"auto"` one on a terminal. Each trial
            is a line in the log.

    Returns:
        The trials, best first.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, `validation` is `train`, or
            there is no such objective.
        ImportError: If `search="keras_tuner"` and it is not installed.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> from kdlite.distill.soft_labels import SoftLabels
        >>> def model():
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.eye(4, dtype="float32").repeat(8, 0), np.arange(32) % 3
        >>> soft = SoftLabels.build(model(), x, tempfile.mkdtemp())
        >>> result = tune(
        ...     model(), soft, (x, y), (x[:8], y[:8]),
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ...     temperatures=(2.0, 4.0), soft_loss_weights=(0.9,), epochs=1,
        ... )
        >>> len(result.trials), result.search
        (2, 'grid')
        >>> sorted(result.best.settings)
        ['hard_loss_weight', 'soft_loss', 'soft_loss_weight']
    """
    if not isinstance(soft_labels, SoftLabels):
        raise TypeError(
            "`soft_labels` must be SoftLabels of the training data. Received: "
            f"soft_labels={soft_labels!r}. Fix: SoftLabels.load(folder), or "
            "SoftLabels.build(teacher, train, folder)."
        )
    space = Space(soft_losses, temperatures, soft_loss_weights)
    direction = _checked(direction, objective, search, epochs, batch_size, max_trials)
    share = checked_number("fraction", fraction, above=0.0)
    if share > 1.0:
        raise ValueError(
            f"`fraction` must be at most 1. Received: fraction={fraction}. Fix: 1.0, "
            f"for all samples."
        )
    if validation is train:
        raise ValueError(
            "`validation` must be other samples than those trained on. Received: the "
            "same object as train. Fix: split the data."
        )
    search = _chosen(search, len(space.trials), max_trials)
    data = _slice(soft_labels, train, share, batch_size, seed)
    compiling = (loss, list(metrics), keras.optimizers.get(optimizer))
    trainer = _Trainer(
        student, data, validation, space, compiling, epochs, batch_size, seed
    )
    trainer.check(objective)
    store = TrialStore(path, trainer.setup(soft_labels.teacher_fingerprint))
    count = (
        len(space.trials) if search == "grid" else min(max_trials, len(space.trials))
    )
    report = TrialReport(count, objective, verbose)

    def run(settings: Settings) -> Trial:
        known = dataclasses.asdict(settings)
        trial = store.read(known)
        if trial is None:
            trial = trainer.run(settings)
            store.write(known, trial)
        report.add(trial)
        return trial

    if search == "keras_tuner":
        trials = _by_keras_tuner(space, run, objective, direction, count, seed)
    else:
        wanted = list(space.trials)
        if search == "random":
            wanted = random.Random(seed).sample(wanted, count)
        trials = [run(settings) for settings in wanted]
    report.close()
    return TuneResult(
        _ordered(trials, objective, direction),
        objective,
        direction,
        search,
        len(keras.tree.flatten(data[0])[0]),
        epochs,
        seed,
    )


class _Trainer:
    """Trains the student anew for each trial, and puts it back."""

    def __init__(
        self,
        student: keras.Model,
        data: DataForTraining,
        validation: Any,
        space: Space,
        compiling: tuple[Any, list[Any], keras.optimizers.Optimizer],
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.student, self.data, self.validation = student, data, validation
        self.space = space
        self.loss, self.metrics, self.optimizer = compiling
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed

    def check(self, objective: str) -> None:
        """Refuses what cannot be compared, before anything is trained."""
        distiller = self._distiller(self.space.trials[0])
        kwargs = {"verbose": 0, "return_dict": True}
        if isinstance(self.validation, (tuple, list)):
            names = ("x", "y", "sample_weight")
            kwargs |= dict(zip(names, self.validation, strict=False))
            found = distiller.evaluate(**kwargs)
        else:
            found = distiller.evaluate(self.validation, **kwargs)
        if objective.removeprefix("val_") not in found:
            raise ValueError(
                f"`objective` must be a metric of the validation data. Received: "
                f"objective={objective!r}. Available: "
                f"{', '.join(f'val_{name}' for name in found)}."
            )

    def _distiller(self, settings: Settings) -> Distiller:
        distiller = Distiller(
            self.student,
            soft_loss=self.space.loss(settings),
            hard_loss_weight=_rest(settings.weight),
            soft_loss_weight=settings.weight,
        )
        optimizer = type(self.optimizer).from_config(self.optimizer.get_config())
        metrics = [_anew(metric) for metric in self.metrics]
        distiller.compile(optimizer, self.loss, metrics=metrics)
        return distiller

    def run(self, settings: Settings) -> Trial:
        """Runs one trial."""
        before = [variable.numpy() for variable in self.student.variables]
        start = time.perf_counter()
        try:
            keras.utils.set_random_seed(self.seed)
            distiller = self._distiller(settings)
            x, y, sample_weight = self.data
            history = distiller.fit(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=self.batch_size,
                epochs=self.epochs,
                validation_data=self.validation,
                verbose=0,
            ).history
        finally:
            for variable, value in zip(self.student.variables, before, strict=True):
                variable.assign(value)
        return Trial(
            keras.saving.serialize_keras_object(distiller.soft_loss),
            settings.temperature,
            _rest(settings.weight),
            settings.weight,
            {
                name.removeprefix("val_"): float(values[-1])
                for name, values in history.items()
                if name.startswith("val_")
            },
            time.perf_counter() - start,
        )

    def setup(self, teacher: str) -> dict[str, Any]:
        """All that trials have in common, by which stored ones are known."""
        known: Structure = self.validation
        if isinstance(known, (tuple, list)):
            arrays = [np.asarray(a) for a in keras.tree.flatten(list(known))]
            known = data_fingerprint(arrays)
        else:
            known = type(known).__name__
        return {
            "student": model_fingerprint(self.student),
            "teacher": teacher,
            "train": data_fingerprint(
                [a for a in keras.tree.flatten(list(self.data)) if a is not None]
            ),
            "validation": known,
            "loss": _nameless(_plain(self.loss)),
            "metrics": [_plain(metric) for metric in self.metrics],
            "optimizer": _nameless(_plain(self.optimizer)),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "losses": [_plain(loss) for loss in self.space.losses],
        }


def _by_keras_tuner(
    space: Space,
    run: Callable[[Settings], Trial],
    objective: str,
    direction: Direction,
    max_trials: int,
    seed: int,
) -> Iterable[Trial]:
    """Lets Bayesian optimization choose, given what earlier trials gave."""
    import keras_tuner

    metric = objective.removeprefix("val_")
    done: dict[Settings, Trial] = {}

    class Tuner(keras_tuner.BayesianOptimization):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            chosen: Mapping[str, Any] = trial.hyperparameters.values
            settings = space.settings(
                chosen["soft_loss"], chosen["temperature"], chosen["soft_loss_weight"]
            )
            if settings not in done:  # some come to the same
                done[settings] = run(settings)
            return {metric: done[settings].metrics[metric]}

    choices = keras_tuner.HyperParameters()
    choices.Choice("soft_loss", list(range(len(space.losses))), ordered=False)
    choices.Choice("temperature", space.temperatures)
    choices.Choice("soft_loss_weight", space.weights)
    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(
            objective=keras_tuner.Objective(metric, direction),
            max_trials=max_trials,
            seed=seed,
            hyperparameters=choices,
            allow_new_entries=False,
            tune_new_entries=False,
            directory=folder,
        )
        tuner.search(verbose=0)
    return done.values()


def _ordered(
    trials: Iterable[Trial], objective: str, direction: Direction
) -> tuple[Trial, ...]:
    """The best first; what is no number last."""

    def rank(trial: Trial) -> tuple[bool, float]:
        value = trial.metrics[objective.removeprefix("val_")]
        return not math.isfinite(value), -value if direction == "max" else value

    return tuple(sorted(trials, key=rank))


def _checked(
    direction: Direction | None,
    objective: str,
    search: Search,
    epochs: int,
    batch_size: int,
    max_trials: int,
) -> Direction:
    if search not in get_args(Search):
        raise ValueError(
            f"`search` must be one of {', '.join(get_args(Search))}. Received: "
            f"search={search!r}. Fix: 'auto' chooses by the number of trials."
        )
    for name, value in (
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("max_trials", max_trials),
    ):
        checked_count(name, value)
    if not isinstance(objective, str) or not objective.startswith("val_"):
        raise ValueError(
            f"`objective` must be of the validation data, and begin with 'val_'. "
            f"Received: objective={objective!r}. Fix: for example 'val_accuracy'."
        )
    if direction is None:
        less = objective.endswith(_SMALLER_IS_BETTER)
        return "min" if less else "max"
    if direction not in get_args(Direction):
        raise ValueError(
            f"`direction` must be 'max', 'min' or None. Received: direction="
            f"{direction!r}. Fix: 'max' where more is better."
        )
    return direction


def _chosen(search: Search, trials: int, max_trials: int) -> Search:
    needed = ("keras_tuner", "sklearn")
    installed = all(importlib.util.find_spec(name) is not None for name in needed)
    if search == "keras_tuner" and not installed:
        raise ImportError(
            "KerasTuner and scikit-learn must be installed. Received: "
            "search='keras_tuner' without them. Fix: pip install keras-tuner "
            "scikit-learn, or search='random'."
        )
    if search != "auto":
        return search
    if trials <= max_trials:
        return "grid"
    return "keras_tuner" if installed else "random"


def _slice(
    soft_labels: SoftLabels, train: DataSet, share: float, batch_size: int, seed: int
) -> DataForTraining:
    """The samples that are trained on, in memory."""
    count = max(1, math.ceil(share * len(soft_labels)))
    batches = soft_labels.attach(train, batch_size=batch_size, seed=seed)
    taken = list(batches.unbatch().take(count).batch(count))
    parts = keras.tree.map_structure(lambda tensor: tensor.numpy(), taken[0])
    if not isinstance(parts, tuple) or len(parts) < 2:
        raise ValueError(
            "`train` must have labels. Received: inputs alone. Fix: give (x, y)."
        )
    x, y, *weights = parts
    return x, y, weights[0] if weights else None


def _rest(weight: float) -> float:
    return round(1.0 - weight, 12)


def _anew(metric: Any) -> Any:
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def _nameless(plain: Any) -> Any:
    """A config without the names that Keras numbers."""
    if isinstance(plain, dict):
        return {key: _nameless(v) for key, v in plain.items() if key != "name"}
    return [_nameless(v) for v in plain] if isinstance(plain, list) else plain


def _plain(value: Any) -> Any:
    """What is serializable, as JSON has it; else its name."""
    try:
        serialized = keras.saving.serialize_keras_object(value)
        json.dumps(serialized)
    except (TypeError, ValueError):
        return getattr(value, "__name__", type(value).__name__)
    return serialized
