r"""Losses between what a teacher and a student say about the classes.

They take **logits** and compute in float32. A loss is a `keras.losses.Loss` over
`(teacher logits, student logits)`, so sample weights, masks and reduction work as in
all of Keras, and a `keras.distillation.DistillationLoss`, so it also serves Keras's own
`keras.distillation.Distiller`:

>>> import numpy as np
>>> teacher, student = np.array([[5.0, 1.0, -2.0]]), np.array([[1.0, 4.0, 0.0]])
>>> loss = SoftTargets(temperature=3.0)
>>> round(float(loss(teacher, student)), 4)
5.2828
>>> round(float(loss.compute_loss(teacher, student)), 4)
5.2828
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kdlite.distill.taps import logits_model

Tensor = Any

# Infinite logits (a class that is masked out) become this: beyond every real logit, and
# small enough that differences of two and products with T^2 stay finite in float32.
_LARGEST_LOGIT = 1e30


@keras.saving.register_keras_serializable(package="kdlite")
class SoftTargets(keras.losses.Loss, keras.distillation.DistillationLoss):
    r"""KL divergence from the teacher's softened class distribution to the student's.

    $$ L = T^2 \sum_c p_c (\log p_c - \log q_c), \quad
       p = \mathrm{softmax}(t / T), \quad q = \mathrm{softmax}(s / T) $$

    over logits `t` of the teacher and `s` of the student, computed in float32 from
    log-softmax. Softening brings out how the teacher ranks the wrong classes. The
    gradient to the student is $T (q - p)$ for each sample; without the factor $T^2$ it
    would shrink as $1 / T^2$ and the balance with the hard loss would hang on `T`.

    The classes are on the last axis. More axes, such as positions of a sequence, give
    one value for each position. Adding a constant to all logits of a sample changes
    nothing, and equal distributions give zero.

    Args:
        temperature: `T` > 0; 2 to 5 for small students, up to 20 for large ones. It is
            kept in a variable: `loss.temperature.assign(2.0)` acts in compiled code.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`, the
            weighted sum over the number of values.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** of shape `(batch, ..., classes)`.
        y_pred: Student **logits** of the same shape.
        sample_weight: Weights of shape `(batch, ...)`.

    Raises:
        ValueError: If `temperature` is not a finite number above zero, or the two
            logits differ in shape.

    Example:
        >>> import numpy as np
        >>> loss = SoftTargets(temperature=2.0, reduction=None)
        >>> same = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
        >>> loss(same, same + 7.0).numpy().tolist()
        [0.0, 0.0]

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015,
        arXiv:1503.02531, section 2.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "soft_targets",
    ) -> None:
        # Half precision cannot hold softened log-probabilities: float32 whatever comes.
        super().__init__(name=name, reduction=reduction, dtype="float32")
        self._temperature = keras.Variable(
            _checked_temperature(temperature),
            trainable=False,
            dtype="float32",
            autocast=False,
            name="temperature",
        )

    @property
    def temperature(self) -> keras.Variable:
        """The temperature `T`, a variable; assigning a number sets its value."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.assign(_checked_temperature(value))

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one value for each sample (and position).

        Args:
            y_true: Teacher logits of shape `(batch, ..., classes)`.
            y_pred: Student logits of the same shape.

        Returns:
            float32 values of shape `(batch, ...)`.
        """
        self.validate_outputs(y_true, y_pred)
        temperature = ops.convert_to_tensor(self._temperature)
        log_p, log_q = (
            ops.log_softmax(
                ops.clip(ops.cast(logits, "float32"), -_LARGEST_LOGIT, _LARGEST_LOGIT)
                / temperature,
                axis=-1,
            )
            for logits in (y_true, y_pred)
        )
        divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
        # The gradient of the divergence is (q - p) / T, and q - p itself shrinks as
        # 1 / T: times T^2 the pull on the student is the same at every temperature.
        return divergence * ops.square(temperature)

    def compute_loss(
        self, teacher_outputs: Tensor, student_outputs: Tensor, **kwargs: Any
    ) -> Tensor:
        """Returns the reduced loss: the contract of Keras's distillation losses.

        Args:
            teacher_outputs: Teacher logits of shape `(batch, ..., classes)`.
            student_outputs: Student logits of the same shape.
            **kwargs: `sample_weight`, of shape `(batch, ...)`; others are not used.

        Returns:
            A float32 scalar.
        """
        return self(
            teacher_outputs,
            student_outputs,
            sample_weight=kwargs.get("sample_weight"),
        )

    def validate_outputs(
        self, teacher_outputs: Tensor, student_outputs: Tensor
    ) -> None:
        """Checks that teacher and student speak of the same classes.

        Args:
            teacher_outputs: Teacher logits.
            student_outputs: Student logits.

        Raises:
            ValueError: If either is not one tensor, or the shapes differ.
        """
        shapes = []
        for role, logits in (
            ("teacher", teacher_outputs),
            ("student", student_outputs),
        ):
            if not hasattr(logits, "shape"):
                raise ValueError(
                    f"`{type(self).__name__}` compares one output of each model. "
                    f"Received: {role} outputs of type {type(logits).__name__}. Fix: "
                    f"give models that return the class output alone."
                )
            shapes.append(tuple(logits.shape))
        teacher_shape, student_shape = shapes
        if not compatible_shapes(teacher_shape, student_shape):
            raise ValueError(
                f"Teacher and student logits must have the same shape. Received: "
                f"teacher {teacher_shape}, student {student_shape}. Fix: give both "
                f"models the same classes (last axis) and positions."
            )

    def validate_model_compatibility(
        self, teacher: keras.Model, student: keras.Model
    ) -> None:
        """Refuses softmax heads in Keras's own distiller, which hands on raw outputs.

        `kdlite.Distiller` reads the logits of such models and has no need of this.

        Args:
            teacher: The teacher.
            student: The student.

        Raises:
            ValueError: If a model returns probabilities.
        """
        for role, model in (("teacher", teacher), ("student", student)):
            if logits_model(model, role=role).outputs == "probabilities":
                raise ValueError(
                    f"`{type(self).__name__}` needs logits, and this distiller hands "
                    f"on what the models return. Received: {role} '{model.name}', "
                    f"which ends in a softmax. Fix: use kdlite.Distiller, which reads "
                    f"the logits before it."
                )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present value."""
        return {**super().get_config(), "temperature": float(self._temperature.numpy())}

    # A run that is taken up again from weights alone finds its temperature here.
    def save_own_variables(self, store: Any) -> None:
        """Writes the temperature into a Keras weights store."""
        store["temperature"] = self._temperature.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Reads the temperature from a Keras weights store."""
        self._temperature.assign(store["temperature"])


def weighted_loss(
    loss: keras.distillation.DistillationLoss,
    teacher_logits: Tensor,
    student_logits: Tensor,
    sample_weight: Tensor = None,
) -> Tensor:
    """Returns any distillation loss of a batch, weighted and masked as Keras's are.

    Args:
        loss: A loss that returns one value for each sample (and position), or, where
            there are neither weights nor a mask, one for the batch.
        teacher_logits: Logits of shape `(batch, ..., classes)`.
        student_logits: Logits of the same shape, with their mask if there is one.
        sample_weight: Weights of shape `(batch,)` up to `(batch, ...)`, or `None`.

    Returns:
        A scalar: the weighted sum of the values over their number.

    Raises:
        ValueError: If weights or a mask meet a loss that has averaged already.
    """
    if isinstance(loss, keras.losses.Loss):
        rank = len(student_logits.shape) - 1
        return loss(teacher_logits, student_logits, _with_rank(sample_weight, rank))
    values = loss.compute_loss(teacher_logits, student_logits)
    mask = getattr(student_logits, "_keras_mask", None)
    if len(values.shape) == 0:
        unusable = {"sample_weight": sample_weight, "mask": mask}
        given = [name for name, value in unusable.items() if value is not None]
        if given:
            raise ValueError(
                f"A `soft_loss` that returns one value for the batch cannot be "
                f"weighted by sample. Received: {' and '.join(given)} with soft_loss="
                f"{type(loss).__name__}. Fix: kdlite.losses.SoftTargets, a loss that "
                f"returns one value for each sample, or data without weights and masks."
            )
        return values
    if mask is not None and len(mask.shape) <= len(values.shape):
        values._keras_mask = mask
    weights = _with_rank(sample_weight, len(values.shape))
    return _PerSample(name="soft_loss")(ops.zeros_like(values), values, weights)


class _PerSample(keras.losses.Loss):
    """Keras's own reduction over values that are per-sample losses already."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return y_pred


def _with_rank(weights: Tensor, rank: int) -> Tensor:
    """Appends axes of size 1, so that weights of samples meet values of positions."""
    if weights is None:
        return None
    weights = ops.convert_to_tensor(weights)
    while len(weights.shape) < rank:
        weights = ops.expand_dims(weights, -1)
    return weights


def compatible_shapes(
    first: tuple[int | None, ...], second: tuple[int | None, ...]
) -> bool:
    """Tells whether two shapes can be equal, where `None` may be any size.

    Args:
        first: A shape.
        second: Another.

    Returns:
        `True` if ranks agree and no two known sizes differ.

    Example:
        >>> compatible_shapes((None, 10), (32, 10))
        True
        >>> compatible_shapes((None, 10), (None, 100))
        False
    """
    return len(first) == len(second) and all(
        None in (a, b) or a == b for a, b in zip(first, second, strict=True)
    )


def _checked_temperature(value: float) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"`temperature` must be a number. Received: temperature={value!r}."
        ) from None
    if not math.isfinite(number):
        raise ValueError(
            f"`temperature` must be finite. Received: temperature={value}."
        )
    if number <= 0.0:
        raise ValueError(
            f"`temperature` must be above zero. Received: temperature={value}. Fix: 1 "
            f"leaves the distributions as they are; 2 to 5 is usual."
        )
    return number
