"""Losses over numbers."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kdlite.distill.losses.outputs import OutputLoss, compatible_shapes
from kdlite.distill.schedules import checked_number

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class Regression(OutputLoss):
    r"""Squared error to the label, while the student is worse than the teacher.

    $$ L = \begin{cases} e(s) & e(s) + m > e(t) \\ 0 & \text{else} \end{cases},
       \quad e(x) = \frac{1}{D} \sum_d (x_d - y_d)^2 $$

    over `D` values `s` of the student, `t` of the teacher and labels `y`. A teacher of
    numbers may be wrong by any amount and in any direction, so it is not copied: it is
    the bar that the student has to clear, by the margin `m`. Beside the hard loss this
    pulls harder on the samples where the teacher shows that less error is possible.

    Without labels the teacher's values stand for them, and this is the mean squared
    difference of the two; `bounded=False` is that in any case.

    Args:
        margin: $m \ge 0$, in the unit of the labels squared.
        bounded: Whether the teacher's error is the bound; `False` copies the teacher.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher values of shape `(batch, ..., values)`, or the pair of these and
            labels of the same shape (where there is one value, without the last axis).
        y_pred: Student values of the same shape.

    Raises:
        TypeError: If `margin` is no number.
        ValueError: If `margin` is negative or not finite, or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> teacher, labels = np.array([[1.0], [1.0]]), np.array([[2.0], [2.0]])
        >>> student = np.array([[0.0], [2.5]])  # worse than the teacher, and better
        >>> Regression(reduction=None)((teacher, labels), student).numpy().tolist()
        [4.0, 0.0]

    Reference:
        Chen et al.: Learning Efficient Object Detection Models with Knowledge
        Distillation, NIPS 2017, section 3.3, equation 4.
    """

    needs = "values"

    def __init__(
        self,
        margin: float = 0.0,
        bounded: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "regression",
    ) -> None:
        super().__init__(reduction, name)
        self.margin = checked_number("margin", margin)
        self.bounded = bool(bounded)
        self.uses_labels = self.bounded

    def targets(self, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns labels of the shape of the values; without labels the teacher's."""
        if labels is None:
            return teacher_logits
        shape, values = tuple(labels.shape), tuple(teacher_logits.shape)
        if len(shape) == len(values) - 1 and values[-1] == 1:
            labels = ops.expand_dims(labels, -1)
        if not compatible_shapes(tuple(labels.shape), values):
            raise ValueError(
                f"Labels must have the shape of the values. Received: labels {shape}, "
                f"teacher values {values}. Fix: one label for each value."
            )
        return ops.cast(labels, "float32")

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        if not self.bounded:
            return _mean_square(student_logits - teacher_logits)
        error = _mean_square(student_logits - targets)
        bound = _mean_square(teacher_logits - targets)
        return ops.where(error + self.margin > bound, error, 0.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        config = {"margin": self.margin, "bounded": self.bounded}
        return {**super().get_config(), **config}


def _mean_square(difference: Tensor) -> Tensor:
    return ops.mean(ops.square(difference), axis=-1)
