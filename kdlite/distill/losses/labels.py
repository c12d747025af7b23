"""Losses over independent labels, each behind a sigmoid of its own."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.losses.outputs import TemperedLoss

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class MultiLabelSoftTargets(TemperedLoss):
    r"""Binary KL divergence of each label, from the teacher's to the student's.

    $$ L = \frac{T^2}{C} \sum_c p_c \log \frac{p_c}{q_c}
         + (1 - p_c) \log \frac{1 - p_c}{1 - q_c}, \quad
       p = \sigma(t / T), \quad q = \sigma(s / T) $$

    over logits `t` of the teacher and `s` of the student, computed in float32 from
    log-sigmoid, for `C` labels of which any number may hold: tags, attributes, a binary
    mask, or a single unit for two classes. The mean over the labels is that of
    `keras.losses.BinaryCrossentropy`; the gradient to the student is
    $T (q - p) / C$ for each sample.

    Args:
        temperature: `T` > 0 or a schedule, as in `SoftTargets`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** (before the sigmoid) of shape `(batch, ..., labels)`.
        y_pred: Student **logits** of the same shape.

    Raises:
        TypeError: If `temperature` is no number.
        ValueError: If `temperature` is not a finite number above zero, or shapes do
            not fit.

    Example:
        >>> import numpy as np
        >>> loss = MultiLabelSoftTargets(temperature=1.0)
        >>> teacher, student = np.array([[50.0, -50.0]]), np.array([[0.0, -50.0]])
        >>> round(float(loss(teacher, student)), 4)  # log(2) / 2
        0.3466

    Reference:
        Yang et al.: Multi-Label Knowledge Distillation, 2023, arXiv:2308.06453, its
        distillation of logits by one-versus-all divergences.
    """

    needs = "independent logits"

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 2.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "multi_label_soft_targets",
    ) -> None:
        super().__init__(temperature, reduction, name)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        temperature = ops.convert_to_tensor(self._temperature)
        t, s = teacher_logits / temperature, student_logits / temperature
        # The probability of either answer from its own logit: 1 - p would be rounded.
        answers = [
            ops.sigmoid(sign * t)
            * (ops.log_sigmoid(sign * t) - ops.log_sigmoid(sign * s))
            for sign in (1.0, -1.0)
        ]
        return ops.mean(sum(answers), axis=-1) * ops.square(temperature)
