"""Weights and temperature that change over training.

Wherever `Distiller` and the losses take a weight or a temperature, they take a number,
one of these, or a Keras `LearningRateSchedule`:

>>> warm_up = Linear(0.0, 0.9, over=100)
>>> [round(float(warm_up(step)), 2) for step in (0, 50, 100, 500)]
[0.0, 0.45, 0.9, 0.9]
>>> Cosine(10.0, 2.0, over=30, unit="epochs").unit
'epochs'

A schedule is a function of training steps (optimizer updates) or of epochs, so a run
that is taken up again goes on with the value it was stopped at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

__all__ = ["Cosine", "Custom", "Linear", "Piecewise"]

Tensor = Any
Unit = Literal["steps", "epochs"]


class Schedule(LearningRateSchedule):
    """A value over steps or epochs; a Keras `LearningRateSchedule` with a unit.

    Args:
        unit: What it is called with: `"steps"`, counted from 0 by the optimizer, or
            `"epochs"`, counted from 0 by `fit()`.

    Raises:
        ValueError: If there is no such unit.
    """

    def __init__(self, unit: Unit = "steps") -> None:
        if unit not in get_args(Unit):
            raise ValueError(
                f"`unit` must be 'steps' or 'epochs'. Received: unit={unit!r}. Fix: "
                f"'steps' moves after each batch, 'epochs' between epochs."
            )
        self.unit: Unit = unit

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the schedule again."""
        return {"unit": self.unit}


class _Ramp(Schedule):
    """From one value to another, and then constant."""

    def __init__(
        self,
        start: float,
        end: float,
        over: float,
        delay: float = 0.0,
        unit: Unit = "steps",
    ) -> None:
        super().__init__(unit)
        self.start = checked_number("start", start, least=None)
        self.end = checked_number("end", end, least=None)
        self.over = checked_number("over", over)
        self.delay = checked_number("delay", delay)

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the value at a step (or epoch), a float32 scalar."""
        passed = ops.cast(step, "float32") - self.delay
        # A ramp over nothing is a step.
        share = ops.clip(passed / max(self.over, 1e-9), 0.0, 1.0)
        return self.start + (self.end - self.start) * self._eased(share)

    def _eased(self, share: Tensor) -> Tensor:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the schedule again."""
        return {
            **super().get_config(),
            "start": self.start,
            "end": self.end,
            "over": self.over,
            "delay": self.delay,
        }


@keras.saving.register_keras_serializable(package="kdlite")
class Linear(_Ramp):
    """Straight from `start` to `end`; with `start=0.0` a warm-up.

    Args:
        start: The value until `delay` has passed.
        end: The value from `delay + over` on.
        over: How many steps or epochs it takes, 0 or more.
        delay: How many pass before it begins.
        unit: `"steps"` or `"epochs"`.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is not finite or too small, or there is no such unit.

    Example:
        >>> [float(Linear(0.0, 1.0, over=2, delay=1)(n)) for n in range(5)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """

    def _eased(self, share: Tensor) -> Tensor:
        return share


@keras.saving.register_keras_serializable(package="kdlite")
class Cosine(_Ramp):
    r"""From `start` to `end` along half a cosine: slow, fast, slow.

    $$ v(n) = s + (e - s) \, (1 - \cos(\pi x)) / 2, \quad
       x = \mathrm{clip}((n - \mathrm{delay}) / \mathrm{over}, 0, 1) $$

    Args:
        start: The value `s` until `delay` has passed.
        end: The value `e` from `delay + over` on.
        over: How many steps or epochs it takes, 0 or more.
        delay: How many pass before it begins.
        unit: `"steps"` or `"epochs"`.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is not finite or too small, or there is no such unit.

    Example:
        >>> round(float(Cosine(8.0, 2.0, over=10)(5)), 4)
        5.0
    """

    def _eased(self, share: Tensor) -> Tensor:
        return (1.0 - ops.cos(math.pi * share)) / 2.0


@keras.saving.register_keras_serializable(package="kdlite")
class Piecewise(Schedule):
    """One value after another.

    Args:
        boundaries: Where the value changes: increasing numbers of steps or epochs.
        values: One more than boundaries; the first holds before the first boundary,
            the next from it on.
        unit: `"steps"` or `"epochs"`.

    Raises:
        TypeError: If a number is none.
        ValueError: If numbers are not finite, boundaries do not increase, or the values
            are not one more.

    Example:
        >>> [float(Piecewise([2, 4], [1.0, 0.5, 0.0])(n)) for n in range(6)]
        [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    """

    def __init__(
        self,
        boundaries: Sequence[float],
        values: Sequence[float],
        unit: Unit = "steps",
    ) -> None:
        super().__init__(unit)
        self.boundaries = [
            checked_number("boundaries", value, least=None) for value in boundaries
        ]
        self.values = [checked_number("values", value, least=None) for value in values]
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"`values` must be one more than `boundaries`. Received: "
                f"{len(self.values)} values, {len(self.boundaries)} boundaries. Fix: "
                f"begin with the value before the first boundary."
            )
        if sorted(set(self.boundaries)) != self.boundaries:
            raise ValueError(
                f"`boundaries` must increase. Received: boundaries="
                f"{self.boundaries}. Fix: sort them."
            )

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the value at a step (or epoch), a float32 scalar."""
        step = ops.cast(step, "float32")
        value = ops.convert_to_tensor(self.values[0], "float32")
        for boundary, then in zip(self.boundaries, self.values[1:], strict=True):
            value = ops.where(step >= boundary, then, value)
        return value

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the schedule again."""
        return {
            **super().get_config(),
            "boundaries": self.boundaries,
            "values": self.values,
        }


@keras.saving.register_keras_serializable(package="kdlite")
class Custom(Schedule):
    """A function of your own; with `unit="epochs"` also for Keras's own schedules.

    Args:
        function: From a step or epoch to a number. With `unit="steps"` it is traced:
            use `keras.ops`. A Keras `LearningRateSchedule` will do.
        unit: `"steps"` or `"epochs"`.

    Raises:
        TypeError: If `function` cannot be called.
        ValueError: If there is no such unit.

    Example:
        >>> float(Custom(lambda epoch: 4.0 / (1 + epoch), unit="epochs")(3))
        1.0
    """

    def __init__(self, function: Callable[[Any], Any], unit: Unit = "steps") -> None:
        super().__init__(unit)
        if not callable(function):
            raise TypeError(
                f"`function` must be callable. Received: function={function!r}. Fix: "
                f"give for example lambda epoch: 0.9**epoch."
            )
        self.function = function

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the value at a step (or epoch)."""
        return self.function(step)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments; a lambda is saved, and loaded only if allowed."""
        return {
            **super().get_config(),
            "function": keras.saving.serialize_keras_object(self.function),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Custom:
        """Returns the schedule from its config."""
        function = keras.saving.deserialize_keras_object(config["function"])
        return cls(function, config["unit"])


def unit_of(schedule: LearningRateSchedule) -> Unit:
    """Returns what a schedule is called with; Keras's own take steps.

    Args:
        schedule: A schedule of kdlite or of Keras.

    Returns:
        `"steps"` or `"epochs"`.
    """
    return getattr(schedule, "unit", "steps")


def start_of(schedule: LearningRateSchedule) -> float:
    """Returns a schedule's value before the first step.

    Args:
        schedule: A schedule of kdlite or of Keras.

    Returns:
        The number.
    """
    return float(ops.convert_to_numpy(ops.convert_to_tensor(schedule(0))))


def in_config(schedule: LearningRateSchedule | None, variable: keras.Variable) -> Any:
    """Returns what a config holds of a value: its schedule, else the number it is.

    Args:
        schedule: The schedule, or `None`.
        variable: The variable that holds the value.

    Returns:
        A dict or a float.
    """
    if schedule is None:
        return float(variable.numpy())
    return keras.saving.serialize_keras_object(schedule)


def from_config(value: Any) -> Any:
    """Returns the schedule or number that `in_config` made a config of.

    Args:
        value: What the config holds.

    Returns:
        A schedule or a number.
    """
    return (
        keras.saving.deserialize_keras_object(value)
        if isinstance(value, dict)
        else value
    )


def checked_number(
    name: str, value: Any, *, least: float | None = 0.0, above: float | None = None
) -> float:
    """Returns an argument as a float.

    Args:
        name: Its name.
        value: What was given.
        least: The least that it may be; `None` for no bound.
        above: What it must exceed; `None` for no such bound.

    Returns:
        The number.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite, or too small.
    """
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be a number. Received: {name}={value!r}. Fix: give one, "
            f"such as 1.0."
        ) from None
    rule = None
    if not math.isfinite(number):
        rule = "finite"
    elif above is not None and number <= above:
        rule = f"above {above:g}"
    elif least is not None and number < least:
        rule = f"{least:g} or more"
    if rule is not None:
        raise ValueError(
            f"`{name}` must be {rule}. Received: {name}={value}. Fix: give such a "
            f"number, for example 1.0."
        )
    return number
