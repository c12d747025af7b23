"""Trials of a tuning: which there are, what each gave, kept in a folder and told."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras

from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.schedules import checked_number
from kdlite.progress import Progress, verbosity

logger = logging.getLogger(__name__)

Direction = Literal["max", "min"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What trials differ in; plain, so that two can be compared.

    Attributes:
        loss: The loss's place in the space.
        temperature: Its temperature, or `None` if it has none.
        weight: Weight of the soft loss.
    """

    loss: int
    temperature: float | None
    weight: float


class Space:
    """All settings there are to try.

    Args:
        losses: Losses; `None` for `SoftTargets`.
        temperatures: Temperatures for each loss that has one.
        weights: Weights of the soft loss, from 0 to 1.

    Attributes:
        trials: Settings, no two of which come to the same.

    Raises:
        TypeError: If a loss is none.
        ValueError: If a number is out of its range, or there is nothing to try.
    """

    def __init__(
        self,
        losses: Sequence[keras.distillation.DistillationLoss] | None,
        temperatures: Sequence[float],
        weights: Sequence[float],
    ) -> None:
        self.losses = [SoftTargets()] if losses is None else list(losses)
        for loss in self.losses:
            if not isinstance(loss, keras.distillation.DistillationLoss):
                raise TypeError(
                    f"`soft_losses` must be distillation losses. Received: {loss!r}. "
                    f"Fix: for example [kdlite.losses.SoftTargets()]."
                )
        self.temperatures = [
            checked_number("temperatures", value, above=0.0) for value in temperatures
        ]
        self.weights = [checked_number("soft_loss_weights", value) for value in weights]
        for name, values in (
            ("soft_losses", self.losses),
            ("temperatures", self.temperatures),
            ("soft_loss_weights", self.weights),
        ):
            if not values:
                raise ValueError(
                    f"`{name}` must have something to try. Received: none. Fix: one "
                    f"value keeps it as it is."
                )
        if max(self.weights) > 1.0:
            raise ValueError(
                f"`soft_loss_weights` are shares, the hard loss has the rest. "
                f"Received: {max(self.weights)}. Fix: numbers from 0 to 1."
            )
        every = itertools.product(
            range(len(self.losses)), self.temperatures, self.weights
        )
        self.trials = list(dict.fromkeys(itertools.starmap(self.settings, every)))

    def settings(self, loss: int, temperature: float, weight: float) -> Settings:
        """Returns settings; those that come to the same are equal.

        Args:
            loss: The loss's place.
            temperature: A temperature.
            weight: Weight of the soft loss.

        Returns:
            The settings.
        """
        if weight == 0.0:  # no loss, so it does not matter which
            return Settings(0, None, weight)
        tempered = hasattr(self.losses[loss], "temperature")
        return Settings(loss, temperature if tempered else None, weight)

    def loss(self, settings: Settings) -> keras.distillation.DistillationLoss:
        """Returns a loss for one trial alone.

        Args:
            settings: The trial's.

        Returns:
            A copy at its temperature.
        """
        loss = self.losses[settings.loss]
        config = loss.get_config()
        if settings.temperature is not None:
            config["temperature"] = settings.temperature
        return type(loss).from_config(config)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One way to distil, and what came of it.

    Attributes:
        soft_loss: The loss's config, as `keras.saving` serializes it; its name is
            `loss_name`.
        temperature: Its temperature, or `None` if it has none.
        hard_loss_weight: Weight of the hard loss.
        soft_loss_weight: Weight of the soft loss.
        metrics: What validation gave after the last epoch, without `val_`.
        seconds: How long it took.
    """

    soft_loss: dict[str, Any]
    temperature: float | None
    hard_loss_weight: float
    soft_loss_weight: float
    metrics: dict[str, float]
    seconds: float

    @property
    def loss_name(self) -> str:
        """The class of the loss; with a weight of 0 there is no teacher."""
        name = str(self.soft_loss["class_name"])
        return name if self.soft_loss_weight else "no teacher"

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make `kdlite.Distiller` do the same."""
        return {
            "soft_loss": keras.saving.deserialize_keras_object(self.soft_loss),
            "hard_loss_weight": self.hard_loss_weight,
            "soft_loss_weight": self.soft_loss_weight,
        }


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """What `tune` found.

    Attributes:
        trials: All trials, the best first.
        objective: The validation metric that they are ordered by.
        direction: `"max"` or `"min"`.
        search: How they were chosen: `"grid"`, `"random"` or `"keras_tuner"`.
        samples: How many samples each trained on.
        epochs: For how many epochs.
        seed: The seed of them all.
    """

    trials: tuple[Trial, ...]
    objective: str
    direction: Direction
    search: str
    samples: int
    epochs: int
    seed: int

    @property
    def best(self) -> Trial:
        """The first of the trials; `best.settings` are arguments of `Distiller`."""
        return self.trials[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in plain types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A table, the best trial first."""
        metric = self.objective.removeprefix("val_")
        lines = [
            f"{len(self.trials)} trials ({self.search}), {self.samples:,} samples, "
            f"{self.epochs} epochs, by validation {metric} ({self.direction}):",
            f"{'loss':<24}{'T':>7}{'hard':>7}{'soft':>7}{metric:>14}{'seconds':>9}",
        ]
        for trial in self.trials:
            temperature = "-" if trial.temperature is None else f"{trial.temperature:g}"
            lines.append(
                f"{trial.loss_name:<24}{temperature:>7}{trial.hard_loss_weight:>7.2g}"
                f"{trial.soft_loss_weight:>7.2g}{trial.metrics[metric]:>14.5g}"
                f"{trial.seconds:>9.1f}"
            )
        return "\n".join(lines)


class TrialStore:
    """Finished trials in a folder, one file each; in none if there is no path.

    Args:
        path: The folder, or `None`.
        setup: What all its trials have in common, in plain types: trials of another
            setup are not found.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, setup: dict[str, Any]
    ) -> None:
        self.path = None if path is None else Path(path)
        self._setup = json.dumps(setup, sort_keys=True)
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)

    def _file(self, settings: dict[str, Any]) -> Path | None:
        if self.path is None:
            return None
        known = self._setup + json.dumps(settings, sort_keys=True)
        return self.path / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"

    def read(self, settings: dict[str, Any]) -> Trial | None:
        """Returns a trial that was finished before.

        Args:
            settings: What it differs in from the others, in plain types.

        Returns:
            The trial, or `None`.

        Raises:
            ValueError: If what is stored is not whole.
        """
        file = self._file(settings)
        if file is None or not file.exists():
            return None
        try:
            return Trial(**json.loads(file.read_text()))
        except (ValueError, TypeError):
            raise ValueError(
                f"A stored trial must be whole. Received: {file}, which is not. Fix: "
                f"delete it, and it is run again."
            ) from None

    def write(self, settings: dict[str, Any], trial: Trial) -> None:
        """Keeps a trial, whole or not at all.

        Args:
            settings: What it differs in from the others.
            trial: The trial.
        """
        file = self._file(settings)
        if file is not None:
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(dataclasses.asdict(trial)))
            os.replace(temporary, file)


class TrialReport:
    """A line for each trial in the log, and a bar.

    Args:
        count: How many trials there will be.
        objective: What they are compared by.
        verbose: 1 for a bar, 0 for none, `"auto"` for one on a terminal.
    """

    def __init__(self, count: int, objective: str, verbose: str | int) -> None:
        self._metric = objective.removeprefix("val_")
        self._count, self._done = count, 0
        # Each trial is a line in the log: beside them only the bar is told.
        bar = 1 if verbosity(verbose) == 1 else 0
        self._progress = Progress("tuning", count, "trial", bar)

    def add(self, trial: Trial) -> None:
        """Tells of a trial.

        Args:
            trial: The trial.
        """
        self._done += 1
        value = trial.metrics[self._metric]
        logger.info(
            "trial %d of %d: %s, temperature %s, soft_loss_weight %g: %s %.5g",
            *(self._done, self._count, trial.loss_name, trial.temperature),
            *(trial.soft_loss_weight, self._metric, value),
        )
        self._progress.update(min(self._done, self._count), **{self._metric: value})

    def close(self) -> None:
        """Ends the bar, where fewer were tried than there might have been."""
        self._progress.close()
