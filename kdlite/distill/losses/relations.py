"""Losses that compare relations within a sample and across a batch."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.losses.outputs import TemperedLoss
from kdlite.distill.schedules import checked_number

Tensor = Any

# Of the product of two norms: below it probabilities do not differ, nothing correlates.
_SMALLEST_NORMS = 1e-12


@keras.saving.register_keras_serializable(package="kdlite")
class DIST(TemperedLoss):
    r"""Correlation of probabilities, over the classes and over the batch.

    $$ L = T^2 (\beta \, (1 - \rho(p_i, q_i))
         + \gamma \, \frac{1}{C} \sum_c (1 - \rho(p_{:c}, q_{:c}))) $$

    for sample `i`, with Pearson's correlation $\rho$, $p = \mathrm{softmax}(t / T)$ and
    `q` that of the student. The first term wants each sample's classes in the teacher's
    relations, the second each class's samples. Scale and shift are the student's own: a
    much larger teacher can be matched without being copied.

    The second term is the batch's (and its positions'), added to each sample's value;
    in a batch of one it is constant. Weights of samples scale values, not what goes
    into the correlation.

    Args:
        temperature: `T` > 0 or a schedule, as in `SoftTargets`.
        inter_weight: $\beta \ge 0$, of the relations between classes.
        intra_weight: $\gamma \ge 0$, of those within a class.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** of shape `(batch, ..., classes)`.
        y_pred: Student **logits** of the same shape.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of its range, or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> logits = np.array([[4.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
        >>> abs(round(float(DIST()(logits, logits)), 5))
        0.0

    Reference:
        Huang et al.: Knowledge Distillation from A Stronger Teacher, 2022,
        arXiv:2205.10536, equations 7 to 10.
    """

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "dist",
    ) -> None:
        super().__init__(temperature, reduction, name)
        self.inter_weight = checked_number("inter_weight", inter_weight)
        self.intra_weight = checked_number("intra_weight", intra_weight)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        temperature = ops.convert_to_tensor(self._temperature)
        p, q = (
            ops.softmax(logits / temperature, axis=-1)
            for logits in (teacher_logits, student_logits)
        )
        inter = 1.0 - _correlation(p, q, axis=-1)
        rows = (-1, ops.shape(p)[-1])
        intra = 1.0 - _correlation(ops.reshape(p, rows), ops.reshape(q, rows), axis=0)
        both = self.inter_weight * inter + self.intra_weight * ops.mean(intra)
        return both * ops.square(temperature)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {
            **super().get_config(),
            "inter_weight": self.inter_weight,
            "intra_weight": self.intra_weight,
        }


def _correlation(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Pearson's correlation along an axis; zero where either does not vary."""
    a, b = (x - ops.mean(x, axis=axis, keepdims=True) for x in (a, b))
    norms = ops.sum(ops.square(a), axis=axis) * ops.sum(ops.square(b), axis=axis)
    return ops.sum(a * b, axis=axis) * ops.rsqrt(ops.maximum(norms, _SMALLEST_NORMS**2))
