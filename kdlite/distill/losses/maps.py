"""Losses on what features say of positions and channels, not on their values."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.losses.classes import kl_divergence
from kdlite.distill.losses.features import (
    SMALLEST_SQUARE,
    FeatureLoss,
    Over,
    as_positions,
    checked_over,
)
from kdlite.distill.losses.teacher_loss import Tempered
from kdlite.distill.schedules import checked_number

Tensor = Any

# A masked position's place in a softmax: below every feature over every temperature.
_HIDDEN = -1e30
# Of the largest value of a sample: below it there is no attention.
_SMALLEST = 1e-16


@keras.saving.register_keras_serializable(package="kdlite")
class AttentionTransfer(FeatureLoss):
    r"""Where the teacher looks: the energy of its features over the positions.

    $$ L = \sum_j \left( \frac{q^t_j}{\|q^t\|_2} - \frac{q^s_j}{\|q^s\|_2} \right)^2,
       \quad q_j = \sum_c |f_{jc}|^p $$

    for positions `j` and channels `c`. Widths may differ, and nothing is trained.
    Values lie in [0, 2] and hang on the scale of neither model; equal attention is
    zero. This is the square of the paper's norm, as its authors' code has it, here
    summed over the positions.

    Args:
        power: $p \ge 1$; larger ones attend to the strongest positions.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ..., channels)`.
        y_pred: Student features of the same positions.
        sample_weight: Weights of shape `(batch,)`.

    Raises:
        TypeError: If `power` is no number.
        ValueError: If `power` is below 1, or the positions differ.

    Example:
        >>> import numpy as np
        >>> loss = AttentionTransfer()
        >>> left, right = np.eye(2)[:, None, :, None]
        >>> float(loss(left[None], right[None]))
        2.0

    Reference:
        Zagoruyko, Komodakis: Paying More Attention to Attention, 2016,
        arXiv:1612.03928, equation 2.
    """

    same_width = False
    about_positions = True

    def __init__(
        self,
        power: float = 2.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "attention_transfer",
    ) -> None:
        super().__init__(reduction, name)
        self.power = checked_number("power", power, least=1.0)

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        difference = self._attention(teacher) - self._attention(student)
        return ops.sum(ops.square(difference), axis=1)

    def _attention(self, features: Tensor) -> Tensor:
        features = as_positions(features)
        if self.power == 2.0:  # the common one, and the cheap one
            energy = ops.sum(ops.square(features), axis=-1)
            energy = _in_units_of_largest(energy, axis=1)
        else:
            # No power of values up to 1 overflows.
            features = _in_units_of_largest(ops.abs(features), axis=(1, 2))
            energy = ops.sum(ops.power(features, self.power), axis=-1)
        norm = ops.sum(ops.square(energy), axis=1, keepdims=True)
        return energy * ops.rsqrt(ops.maximum(norm, SMALLEST_SQUARE))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="kdlite")
class ChannelWise(Tempered, FeatureLoss):
    r"""Each channel as a distribution over the positions: KL divergence (CWD).

    $$ L = \frac{T^2}{C} \sum_c \sum_j \phi(t)_{jc} \log \frac{\phi(t)_{jc}}
       {\phi(s)_{jc}}, \quad \phi(f)_{jc} = \frac{e^{f_{jc} / T}}
       {\sum_k e^{f_{kc} / T}} $$

    for positions `j`. The student learns where each channel of the teacher is active;
    for dense prediction, on features or on the maps of class scores. A shift of a
    channel changes nothing, and equality gives zero.

    Args:
        temperature: `T` > 0, or one of `kdlite.schedules`; larger is softer.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ..., channels)`.
        y_pred: Student features of the same shape.
        sample_weight: Weights of shape `(batch,)`.

    Raises:
        TypeError: If `temperature` is no number.
        ValueError: If `temperature` is not above zero, or the shapes differ.

    Example:
        >>> import numpy as np
        >>> features = np.arange(12.0).reshape(1, 2, 2, 3)
        >>> abs(round(float(ChannelWise()(features, features + 5.0)), 6))
        0.0

    Reference:
        Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, 2020,
        arXiv:2011.13256, equations 2 to 4.
    """

    about_positions = True

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 4.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "channel_wise",
    ) -> None:
        super().__init__(temperature, reduction, name)

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        temperature = ops.convert_to_tensor(self._temperature)
        log_p, log_q = (
            self._log_softmax(features / temperature, mask)
            for features in (teacher, student)
        )
        divergence = ops.mean(kl_divergence(log_p, log_q), axis=-1)
        return divergence * ops.square(temperature)

    def _log_softmax(self, features: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            features = ops.where(mask > 0.0, features, _HIDDEN)
        by_channel = ops.transpose(as_positions(features), (0, 2, 1))
        return ops.log_softmax(by_channel, axis=-1)


@keras.saving.register_keras_serializable(package="kdlite")
class Gram(FeatureLoss):
    r"""Gram matrices: which positions, or which channels, go together.

    `over="positions"` is Neuron Selectivity Transfer with its polynomial kernel, the
    squared distance of the two Gram matrices of normalized channels:

    $$ L = \left\| \frac{1}{C_t} \sum_c \hat t_c \hat t_c^\top
         - \frac{1}{C_s} \sum_c \hat s_c \hat s_c^\top \right\|_F^2, \quad
       \hat f_c = f_c / \|f_c\|_2 $$

    with $f_c$ the map of channel `c` as a vector over positions. Widths may differ, and
    values hang on no scale. `over="channels"` compares the style of a layer, $G_{cd} =
    \frac{1}{P} \sum_j f_{jc} f_{jd}$ over `P` positions,

    $$ L = \frac{1}{C^2} \sum_{c, d} (G^t_{cd} - G^s_{cd})^2 $$

    which is the flow matrix of FSP between a layer and itself. Both are zero at
    equality.

    Args:
        over: `"positions"` or `"channels"`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ..., channels)`.
        y_pred: Student features of the same positions, or the same channels.
        sample_weight: Weights of shape `(batch,)`.

    Raises:
        ValueError: If `over` is neither of the two, or the shapes do not fit.

    Example:
        >>> import numpy as np
        >>> features = np.arange(12.0).reshape(1, 2, 2, 3)
        >>> abs(round(float(Gram()(features, 7.0 * features)), 6))
        0.0

    Reference:
        Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity
        Transfer, 2017, arXiv:1707.01219, equations 5 to 8; Yim et al.: A Gift from
        Knowledge Distillation, 2017 (CVPR), equations 1 and 2.
    """

    def __init__(
        self,
        over: Over = "positions",
        reduction: str | None = "sum_over_batch_size",
        name: str = "gram",
    ) -> None:
        super().__init__(reduction, name)
        self.over = checked_over(over)
        self.same_width = over == "channels"
        self.same_size = over == "positions"

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        t, s = as_positions(teacher), as_positions(student)
        if self.over == "positions":
            t, s = _unit_channels(t), _unit_channels(s)
            # The distance of two matrices of positions by positions, from products of
            # channels: maps have more positions than channels.
            own = _mean_square(t, t) + _mean_square(s, s)
            return ops.maximum(own - 2.0 * _mean_square(t, s), 0.0)
        styles = []
        for features in (t, s):
            counted = ops.cast(ops.shape(features)[1], "float32")
            if mask is not None:
                counted = ops.sum(as_positions(mask), axis=1, keepdims=True)
                counted = ops.maximum(counted, 1.0)
            products = ops.matmul(ops.transpose(features, (0, 2, 1)), features)
            styles.append(products / counted)
        return ops.mean(ops.square(styles[0] - styles[1]), axis=(1, 2))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        return {**super().get_config(), "over": self.over}


def _in_units_of_largest(values: Tensor, axis: int | tuple[int, ...]) -> Tensor:
    """Values over the largest of a sample; no part of the gradient, as it cancels."""
    largest = ops.max(values, axis=axis, keepdims=True)
    return values / ops.stop_gradient(ops.maximum(largest, _SMALLEST))


def _unit_channels(features: Tensor) -> Tensor:
    """Each channel as a unit vector over the positions."""
    norm = ops.sum(ops.square(features), axis=1, keepdims=True)
    return features * ops.rsqrt(ops.maximum(norm, SMALLEST_SQUARE))


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    """The mean, over pairs of channels, of their squared product over positions."""
    products = ops.matmul(ops.transpose(a, (0, 2, 1)), b)
    return ops.mean(ops.square(products), axis=(1, 2))
