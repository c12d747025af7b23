"""How much each loss of a distiller counts: variables, and what they follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import keras
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.schedules import checked_number, in_config, start_of

Weight: TypeAlias = float | LearningRateSchedule

_HARD, _SOFT = "hard_loss_weight", "soft_loss_weight"


class LossWeights:
    """The weights of the hard loss and of the soft losses.

    Args:
        hard: Weight of the hard loss: a number of 0 or more, or a schedule.
        soft: The same for the soft losses of all outputs, or a dict by output.
        outputs: The names of the outputs that are taught.
        add_weight: `add_weight` of the Keras model that tracks and saves them.

    Raises:
        TypeError: If a weight is no number.
        ValueError: If a number is negative or not finite.
    """

    def __init__(
        self,
        hard: Weight,
        soft: Weight | Mapping[str, Weight],
        outputs: Iterable[str],
        add_weight: Callable[..., keras.Variable],
    ) -> None:
        self._add_weight = add_weight
        self._variables: dict[str, keras.Variable] = {}
        self._schedules: dict[str, LearningRateSchedule] = {}
        self._add(_HARD, hard)
        self._by_output = isinstance(soft, Mapping)
        self._names = {o: f"{o}_{_SOFT}" if self._by_output else _SOFT for o in outputs}
        if isinstance(soft, Mapping):
            for output, name in self._names.items():
                self._add(name, soft[output])
        else:  # there too where no output is taught
            self._add(_SOFT, soft)

    def _add(self, name: str, value: Weight) -> None:
        if isinstance(value, LearningRateSchedule):
            self._schedules[name] = value
            value = start_of(value)
        self._variables[name] = self._add_weight(
            name=name,
            initializer=keras.initializers.Constant(checked_number(name, value)),
            dtype="float32",
            trainable=False,
            autocast=False,
        )

    @property
    def hard(self) -> keras.Variable:
        """Weight of the hard loss."""
        return self._variables[_HARD]

    @property
    def of_outputs(self) -> dict[str, keras.Variable]:
        """Weight of the soft loss of each output that is taught."""
        return {output: self._variables[name] for output, name in self._names.items()}

    @property
    def soft(self) -> keras.Variable | dict[str, keras.Variable]:
        """Weight of the soft losses: one for all, or a dict by output, as given."""
        return self.of_outputs if self._by_output else self._variables[_SOFT]

    def set_hard(self, value: float) -> None:
        """Gives the hard loss a number, which ends a schedule.

        Args:
            value: The number.
        """
        self._set(_HARD, value)

    def set_soft(self, value: float | Mapping[str, float]) -> None:
        """Gives the soft losses a number, or those of a dict one each.

        Args:
            value: The number or numbers.

        Raises:
            TypeError: If a weight is no number, or an output has none.
            ValueError: If a number is negative or not finite. Nothing is set then.
        """
        given = value if self._by_output and isinstance(value, Mapping) else {}
        numbers = {
            name: checked_number(name, given.get(output, value))
            for output, name in self._names.items()
        }
        for name, number in numbers.items():
            self._set(name, number)

    def _set(self, name: str, value: Any) -> None:
        self._variables[name].assign(checked_number(name, value))
        self._schedules.pop(name, None)

    def scheduled(self) -> dict[str, tuple[keras.Variable, LearningRateSchedule]]:
        """Returns what follows a schedule, by the name it is logged under."""
        return {
            name: (self._variables[name], schedule)
            for name, schedule in self._schedules.items()
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `Distiller` that make them again."""
        plain = {
            name: in_config(self._schedules.get(name), variable)
            for name, variable in self._variables.items()
        }
        by_output = {output: plain[name] for output, name in self._names.items()}
        soft = by_output if self._by_output else plain[_SOFT]
        return {_HARD: plain[_HARD], _SOFT: soft}
