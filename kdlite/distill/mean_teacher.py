"""A mean teacher: the student itself, averaged over its training steps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kdlite.distill.schedules import checked_number

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class MeanTeacher:
    r"""A teacher whose weights are a moving average of the student's.

    After the `t`-th update of the student's weights $\theta$

    $$ \theta' \leftarrow \alpha_t \theta' + (1 - \alpha_t) \theta, \qquad
       \alpha_t = \min\!\left(\alpha, \frac{t}{t + 1}\right) $$

    beginning with the student's own weights: the plain mean of all weights so far, and
    then one over about the last $1 / (1 - \alpha)$ updates. Accumulated gradients count
    as one update. Statistics of batch normalization are averaged as well, what is no
    float is copied. The average tends to be better than the student, and teaches it to
    agree with itself whatever is dropped out or augmented away.

    Give it to a `kdlite.Distiller`, which makes it follow its student. Unlike other
    teachers it is part of the training: the distiller saves it and goes on with it.

    Args:
        decay: $\alpha$, at least 0 and below 1.

    Attributes:
        decay: As given.
        average: The averaged student, a plain `keras.Model` to evaluate, save and
            export; `None` until there is a student.

    Raises:
        TypeError: If `decay` is no number.
        ValueError: If it is out of range.

    Example:
        >>> import keras, numpy as np
        >>> from kdlite.distill import Distiller
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> before = student.get_weights()[1]
        >>> distiller = Distiller(student, MeanTeacher(decay=0.99))
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("sgd", loss)
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> history = distiller.fit(x, y, batch_size=8, verbose=0)
        >>> after, average = student.get_weights()[1], distiller.teacher.average
        >>> bool(np.allclose(average.get_weights()[1], (before + after) / 2))
        True

    Reference:
        Tarvainen, Valpola: Mean teachers are better role models, 2017,
        arXiv:1703.01780, equation 1; the decay's ramp is that of the authors' code.
    """

    def __init__(self, decay: float = 0.999) -> None:
        decay = checked_number("decay", decay)
        if decay >= 1.0:
            raise ValueError(
                f"`decay` must be below 1. Received: decay={decay}. Fix: 0.99 for a "
                f"mean over about 100 updates, 0.999 for 1000."
            )
        self.decay = decay
        self.average: keras.Model | None = None
        self._student: keras.Model | None = None
        self._updates = keras.Variable(0, dtype="int64", trainable=False)

    def follow(self, student: keras.Model) -> keras.Model:
        """Makes it the average of a student, from its present weights on.

        Args:
            student: The student; if it is followed already, nothing happens.

        Returns:
            The average.

        Raises:
            ValueError: If it follows another one, or this one has no weights yet, or
                cannot be made again from its config.
        """
        if self.average is None:
            average = copied(student)
            average.set_weights(student.get_weights())
            self.average, self._student = average, student
        elif self._student is not student:
            raise ValueError(
                f"A mean teacher is the average of one student. Received: student "
                f"'{student.name}' for the average of '{self.average.name}'. Fix: "
                f"give each distiller a MeanTeacher() of its own."
            )
        return self.average

    @property
    def weights(self) -> list[keras.Variable]:
        """Its state: the averaged weights, and the count of updates."""
        return [*(self.average.weights if self.average else ()), self._updates]

    def update(self, updated: Tensor) -> None:
        """Takes the student's weights into the average.

        Args:
            updated: 1 if the student's weights have been updated, else 0: then nothing
                changes.
        """
        self._updates.assign_add(ops.cast(updated, "int64"))
        count = ops.cast(self._updates, "float32")
        decay = ops.minimum(self.decay, count / (count + 1.0))
        rate = (1.0 - decay) * ops.cast(updated, "float32")
        average, student = self.average, self._student
        for mean, weight in zip(
            average.weights if average else (),
            student.weights if student else (),
            strict=True,
        ):
            if keras.backend.is_float_dtype(mean.dtype):
                mean.assign_add(ops.cast(rate, mean.dtype) * (weight - mean))
            else:
                mean.assign(ops.where(ops.cast(updated, "bool"), weight, mean))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make it again, without its student."""
        return {"decay": self.decay}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MeanTeacher:
        """Returns it from its config."""
        return cls(**config)

    def __repr__(self) -> str:
        """Names the student."""
        of = "no student yet" if self._student is None else repr(self._student.name)
        return f"MeanTeacher(decay={self.decay:g}, of {of})"


def copied(model: keras.Model) -> keras.Model:
    """Returns a model of the same architecture, with weights of its own, as at first.

    Args:
        model: A built model.

    Raises:
        ValueError: If it has no weights yet, or cannot be made from its config.
    """
    if not model.built:
        raise ValueError(
            f"A model is copied with its weights, so it must be built. Received: model "
            f"'{model.name}', which is not. Fix: give it a keras.Input, or call it on "
            f"a batch once."
        )
    try:
        copy = type(model).from_config(model.get_config())
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        shapes = [tuple(weight.shape) for weight in model.weights]
        if [tuple(weight.shape) for weight in copy.weights] != shapes:
            raise ValueError("the copy has other weights")
    except Exception as err:
        reason = str(err).strip().partition("\n")[0]
        raise ValueError(
            f"A model is copied from its config. Received: model '{model.name}' of "
            f"class {type(model).__name__}, which cannot be ({reason}). Fix: build it "
            f"with keras.Model(inputs, outputs), or give its class get_config() with "
            f"all of its arguments."
        ) from err
    return copy
