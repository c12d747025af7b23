"""What a training goes on from, beside the weights and the optimizer."""

from __future__ import annotations

from typing import Any

import keras

_SEED, _MEAN_TEACHER = "seed_state_", "mean_teacher_"


class Resumable(keras.Model):
    """A model whose files also hold states of its training that are no weights.

    Keras saves no seed state, and without it a run that is taken up again draws other
    dropout masks than one that was never stopped. A mean teacher is no part of what is
    trained, and yet where its training stands.
    """

    def students_in_training(self) -> tuple[keras.Model, ...]:
        """The models whose random layers draw on in training."""
        raise NotImplementedError

    def random_parts(self) -> tuple[keras.layers.Layer, ...]:
        """Other parts whose random layers draw on in training."""
        return ()

    def mean_teacher_weights(self) -> list[keras.Variable]:
        """The weights of a mean teacher, if there is one."""
        return []

    def save_own_variables(self, store: Any) -> None:
        """Writes the model's own weights, and the states."""
        super().save_own_variables(store)
        for name, state in self._states().items():
            store[name] = state.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote."""
        states = self._states()
        saved = {key for key in store.keys() if key.startswith((_SEED, _MEAN_TEACHER))}
        seeds = [
            sum(name.startswith(_SEED) for name in names) for names in (saved, states)
        ]
        students = " and ".join(repr(s.name) for s in self.students_in_training())
        if seeds[0] != seeds[1]:
            raise ValueError(
                f"A distiller goes on with the student it was saved with. Received: "
                f"{seeds[0]} saved random states for the {seeds[1]} random layers "
                f"of student {students}. Fix: make the same student."
            )
        if not set(states) <= saved:
            raise ValueError(
                f"A mean teacher goes on from its own weights. Received: a file "
                f"without them, or with those of a student other than {students}. "
                f"Fix: give the teacher that it was saved with, and a mean teacher "
                f"after loading."
            )
        super().load_own_variables(
            {key: store[key] for key in store.keys() if key not in saved}
        )
        for name, state in states.items():
            state.assign(store[name])

    def _states(self) -> dict[str, keras.Variable]:
        parts = (*self.students_in_training(), *self.random_parts())
        known = {
            id(variable)
            for part in parts
            for variable in (*part.weights, *part.metrics_variables)
        }
        seeds = [v for part in parts for v in part.variables if id(v) not in known]
        named = ((_SEED, seeds), (_MEAN_TEACHER, self.mean_teacher_weights()))
        return {
            f"{prefix}{index}": variable
            for prefix, variables in named
            for index, variable in enumerate(variables)
        }
