"""Losses that compare how teacher and student rank the classes of one sample."""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.losses.outputs import OutputLoss, TemperedLoss

Tensor = Any
Divergence = Literal["forward", "reverse", "jensen_shannon"]

# Below this, logits that do not differ have no scale to divide by.
_SMALLEST_VARIANCE = 1e-12


@keras.saving.register_keras_serializable(package="kdlite")
class SoftTargets(TemperedLoss):
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
        temperature: `T` > 0; 2 to 5 for small students, up to 20 for large ones; or
            one of `kdlite.schedules`, which `Distiller` follows. It is kept in a
            variable: `loss.temperature.assign(2.0)` acts in compiled code.
        divergence: `"forward"` is the above; `"reverse"` has teacher and student
            swapped, so that the student keeps to what the teacher finds likely;
            `"jensen_shannon"` is the mean of both to their mean, at most
            $T^2 \log 2$.
        standardize: Whether logits are brought to mean 0 and standard deviation 1 over
            the classes first (both models'), so that the student need not copy the
            teacher's scale. `T` is then that of the standardized logits: 1 to 3.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`, the
            weighted sum over the number of values.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** of shape `(batch, ..., classes)`.
        y_pred: Student **logits** of the same shape.
        sample_weight: Weights of shape `(batch, ...)`.

    Raises:
        ValueError: If `temperature` is not a finite number above zero, `divergence` is
            not one of these, or the two logits differ in shape.

    Example:
        >>> import numpy as np
        >>> loss = SoftTargets(temperature=2.0, reduction=None)
        >>> same = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
        >>> loss(same, same + 7.0).numpy().tolist()
        [0.0, 0.0]

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015,
        arXiv:1503.02531, section 2. `standardize`: Sun et al.: Logit Standardization
        in Knowledge Distillation, 2024, arXiv:2403.01427, algorithm 1.
    """

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 4.0,
        divergence: Divergence = "forward",
        standardize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "soft_targets",
    ) -> None:
        if divergence not in get_args(Divergence):
            raise ValueError(
                f"`divergence` must be one of {', '.join(get_args(Divergence))}. "
                f"Received: divergence={divergence!r}. Fix: 'forward' is Hinton's."
            )
        super().__init__(temperature, reduction, name)
        self.divergence = divergence
        self.standardize = bool(standardize)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        temperature = ops.convert_to_tensor(self._temperature)
        if self.standardize:
            teacher_logits, student_logits = (
                _standardized(logits) for logits in (teacher_logits, student_logits)
            )
        log_p, log_q = (
            ops.log_softmax(logits / temperature, axis=-1)
            for logits in (teacher_logits, student_logits)
        )
        # The gradient of the divergence is (q - p) / T, and q - p itself shrinks as
        # 1 / T: times T^2 the pull on the student is the same at every temperature.
        return self._divergence(log_p, log_q) * ops.square(temperature)

    def _divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.divergence == "forward":
            return kl_divergence(log_p, log_q)
        if self.divergence == "reverse":
            return kl_divergence(log_q, log_p)
        log_mean = ops.logaddexp(log_p, log_q) - ops.log(2.0)
        return (kl_divergence(log_p, log_mean) + kl_divergence(log_q, log_mean)) / 2.0

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {
            **super().get_config(),
            "divergence": self.divergence,
            "standardize": self.standardize,
        }


@keras.saving.register_keras_serializable(package="kdlite")
class LogitMSE(OutputLoss):
    r"""Mean squared difference of the logits.

    $$ L = \frac{1}{C} \sum_c (t_c - s_c)^2 $$

    over `C` classes. The student copies the logits themselves, their scale included; it
    is what `SoftTargets` tends to at high temperature, up to a factor, when logits have
    a mean of zero, which `center=True` gives them.

    Args:
        center: Whether the mean over the classes is taken from the logits first: a
            shift of all logits says nothing about the classes.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** of shape `(batch, ..., classes)`.
        y_pred: Student **logits** of the same shape.

    Example:
        >>> import numpy as np
        >>> float(LogitMSE()(np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]])))
        2.0

    Reference:
        Ba, Caruana: Do Deep Nets Really Need to be Deep?, 2014, arXiv:1312.6184,
        equation 1; Kim et al. 2021, arXiv:2105.08919, equation 5.
    """

    def __init__(
        self,
        center: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "logit_mse",
    ) -> None:
        super().__init__(reduction, name)
        self.center = bool(center)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        difference = teacher_logits - student_logits
        if self.center:
            difference -= ops.mean(difference, axis=-1, keepdims=True)
        return ops.mean(ops.square(difference), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        return {**super().get_config(), "center": self.center}


@keras.saving.register_keras_serializable(package="kdlite")
class HardLabel(OutputLoss):
    r"""Cross-entropy with the class that the teacher ranks first.

    $$ L = -\log q_{\arg\max_c t_c}, \quad q = \mathrm{softmax}(s) $$

    The teacher as a labeller: for data without labels, or with labels worse than it.

    Args:
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** of shape `(batch, ..., classes)`.
        y_pred: Student **logits** of the same shape.

    Example:
        >>> import numpy as np
        >>> loss = HardLabel()
        >>> round(float(loss(np.array([[1.0, 9.0]]), np.array([[0.0, 0.0]]))), 4)
        0.6931

    Reference:
        Touvron et al.: Training data-efficient image transformers, 2020,
        arXiv:2012.12877, equation 3.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "hard_label",
    ) -> None:
        super().__init__(reduction, name)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position), see `OutputLoss`."""
        chosen = ops.expand_dims(ops.argmax(teacher_logits, axis=-1), -1)
        log_q = ops.log_softmax(student_logits, axis=-1)
        return -ops.squeeze(ops.take_along_axis(log_q, chosen, axis=-1), axis=-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns KL(p || q) over the last axis, from log-probabilities.

    Args:
        log_p: Logarithms of `p`, of shape `(..., classes)`.
        log_q: Those of `q`.

    Returns:
        Values of shape `(...)`.
    """
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def _standardized(logits: Tensor) -> Tensor:
    variance = ops.var(logits, axis=-1, keepdims=True)
    centered = logits - ops.mean(logits, axis=-1, keepdims=True)
    return centered * ops.rsqrt(ops.maximum(variance, _SMALLEST_VARIANCE))
