"""Losses that hold the target class apart from the others."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.losses.classes import kl_divergence
from kdlite.distill.losses.outputs import LARGEST_LOGIT, TemperedLoss
from kdlite.distill.schedules import checked_number

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class DecoupledKD(TemperedLoss):
    r"""Soft targets in two parts: how sure of the target class, how the others rank.

    $$ L = T^2 (\alpha \, \mathrm{KL}(b^t \| b^s)
         + \beta \, \mathrm{KL}(\hat p \| \hat q)) $$

    with $b = (p_y, 1 - p_y)$, the target class `y` against all others, and
    $\hat p$, $\hat q$ the softmax over the other classes alone, all at temperature `T`.
    `SoftTargets` is this with $\alpha = 1$, $\beta = 1 - p_y^t$: a teacher that is sure
    leaves its ranking of the others unheard, and this loss does not.

    Args:
        temperature: `T` > 0 or a schedule, as in `SoftTargets`.
        target_weight: $\alpha \ge 0$.
        other_weight: $\beta \ge 0$; the paper has 8 for CIFAR-100, 0.5 for ImageNet.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** `(batch, ..., classes)`, or the pair of these and
            labels; without a label the teacher's first choice is the target.
        y_pred: Student **logits** of the same shape.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of its range, or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> logits = np.array([[4.0, 1.0, 0.0]])
        >>> float(DecoupledKD()((logits, np.array([0])), logits + 2.0))
        0.0

    Reference:
        Zhao et al.: Decoupled Knowledge Distillation, 2022, arXiv:2203.08679,
        equation 7.
    """

    uses_labels = True

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 4.0,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "decoupled_kd",
    ) -> None:
        super().__init__(temperature, reduction, name)
        self.target_weight = checked_number("target_weight", target_weight)
        self.other_weight = checked_number("other_weight", other_weight)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        temperature = ops.convert_to_tensor(self._temperature)
        teacher, student = teacher_logits / temperature, student_logits / temperature
        target = kl_divergence(_binary(teacher, targets), _binary(student, targets))
        others = _kl_of_others(teacher, student, targets)
        both = self.target_weight * target + self.other_weight * others
        return both * ops.square(temperature)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {
            **super().get_config(),
            "target_weight": self.target_weight,
            "other_weight": self.other_weight,
        }


@keras.saving.register_keras_serializable(package="kdlite")
class NKD(TemperedLoss):
    r"""Normalized distillation: a soft label on the target, the others on their own.

    $$ L = -p_y \log q_y - \gamma T^2 \sum_{c \ne y} \hat p_c \log \hat q_c $$

    with `p`, `q` at temperature 1 and $\hat p$, $\hat q$ the softmax over the classes
    other than the target `y`, at temperature `T`. A cross-entropy: not zero where
    student and teacher are equal, but smallest there in its second part.

    Args:
        temperature: `T` > 0 of the other classes, a variable as in `SoftTargets`.
        other_weight: $\gamma \ge 0$.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** `(batch, ..., classes)`, or the pair of these and
            labels; without a label the teacher's first choice is the target.
        y_pred: Student **logits** of the same shape.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of its range, or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> loss = NKD(other_weight=0.0)
        >>> same = np.array([[0.0, 0.0]])
        >>> round(float(loss((same, np.array([1])), same)), 4)
        0.3466

    Reference:
        Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation, 2023,
        arXiv:2303.13005, equation 5.
    """

    uses_labels = True

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        other_weight: float = 1.5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "nkd",
    ) -> None:
        super().__init__(temperature, reduction, name)
        self.other_weight = checked_number("other_weight", other_weight)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        temperature = ops.convert_to_tensor(self._temperature)
        p = ops.softmax(teacher_logits, axis=-1)
        log_q = ops.log_softmax(student_logits, axis=-1)
        target = -ops.sum(targets * p * log_q, axis=-1)
        log_p, log_q = (
            _log_softmax_of_others(logits / temperature, targets)
            for logits in (teacher_logits, student_logits)
        )
        others = -ops.sum((1.0 - targets) * ops.exp(log_p) * log_q, axis=-1)
        return target + self.other_weight * ops.square(temperature) * others

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {**super().get_config(), "other_weight": self.other_weight}


def _without_target(logits: Tensor, targets: Tensor) -> Tensor:
    return ops.where(targets > 0.0, -LARGEST_LOGIT, logits)


def _log_softmax_of_others(logits: Tensor, targets: Tensor) -> Tensor:
    return ops.log_softmax(_without_target(logits, targets), axis=-1)


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of the target class and of all others, `(..., 2)`."""
    log_p = ops.log_softmax(logits, axis=-1)
    target = ops.sum(targets * log_p, axis=-1)
    others = ops.logsumexp(_without_target(log_p, targets), axis=-1)
    return ops.stack([target, others], axis=-1)


def _kl_of_others(teacher: Tensor, student: Tensor, targets: Tensor) -> Tensor:
    log_p, log_q = (
        # Zero at the target: out of the sum, and no infinity times zero.
        ops.where(targets > 0.0, 0.0, _log_softmax_of_others(logits, targets))
        for logits in (teacher, student)
    )
    return ops.sum((1.0 - targets) * ops.exp(log_p) * (log_p - log_q), axis=-1)
