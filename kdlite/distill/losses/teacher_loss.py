"""What every loss between a teacher's tensors and a student's has in common."""

from __future__ import annotations

from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.schedules import (
    checked_number,
    from_config,
    in_config,
    start_of,
)

Tensor = Any


class TeacherLoss(keras.losses.Loss, keras.distillation.DistillationLoss):
    """A Keras loss over (teacher, student) that serves Keras's own distiller too.

    Args:
        reduction: As in `keras.losses.Loss`. `"sum_over_batch_size"` is the weighted
            sum over the number of values.
        name: Name of the loss.
    """

    def __init__(self, reduction: str | None, name: str) -> None:
        # Half precision holds neither softened log-probabilities nor sums of squares:
        # float32 whatever comes.
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def compute_loss(
        self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any
    ) -> Tensor:
        """Returns the reduced loss: the contract of Keras's distillation losses.

        Args:
            teacher_outputs: What the teacher gives; as `y_true` of `call`.
            student_outputs: What the student gives; as `y_pred` of `call`.
            **kwargs: `sample_weight`, of shape `(batch, ...)`; others are not used.

        Returns:
            A float32 scalar.
        """
        return self(
            teacher_outputs,
            student_outputs,
            sample_weight=kwargs.get("sample_weight"),
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        config: dict[str, Any] = super().get_config()
        config.pop("dtype", None)  # no argument
        return config


class Tempered(TeacherLoss):
    """A loss with a temperature.

    Args:
        temperature: `T` > 0, or a schedule, which `Distiller` follows. It is kept in a
            variable: `loss.temperature.assign(2.0)` acts in compiled code.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        TypeError: If `temperature` is no number.
        ValueError: If `temperature` is not finite or not above zero.
    """

    def __init__(
        self,
        temperature: float | LearningRateSchedule,
        reduction: str | None,
        name: str,
    ) -> None:
        super().__init__(reduction, name)
        self.temperature_schedule: LearningRateSchedule | None = None
        if isinstance(temperature, LearningRateSchedule):
            self.temperature_schedule = temperature
            temperature = start_of(temperature)
        self._temperature = keras.Variable(
            checked_number("temperature", temperature, above=0.0),
            trainable=False,
            dtype="float32",
            autocast=False,
            name="temperature",
        )

    @property
    def temperature(self) -> keras.Variable:
        """The temperature `T`, a variable; a number takes the place of a schedule."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.assign(checked_number("temperature", value, above=0.0))
        self.temperature_schedule = None

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {
            **super().get_config(),
            "temperature": in_config(self.temperature_schedule, self._temperature),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Tempered:
        """Returns a loss from its config."""
        return cls(**{**config, "temperature": from_config(config["temperature"])})

    # A run that is taken up again from weights alone finds its temperature here.
    def save_own_variables(self, store: Any) -> None:
        """Writes the temperature into a Keras weights store."""
        store["temperature"] = self._temperature.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Reads the temperature from a Keras weights store."""
        self._temperature.assign(store["temperature"])


def trained_layers(
    loss: keras.distillation.DistillationLoss,
) -> list[keras.layers.Layer]:
    """Returns what a loss holds to be trained with the student: a projection, say.

    Args:
        loss: Any distillation loss.

    Returns:
        The Keras layers among its attributes.
    """
    return [v for v in vars(loss).values() if isinstance(v, keras.layers.Layer)]
