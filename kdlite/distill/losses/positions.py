"""Losses over the classes of each position: of a sequence, of an image."""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.losses.classes import Divergence, SoftTargets, kl_divergence
from kdlite.distill.losses.outputs import LARGEST_LOGIT, TemperedLoss, class_indices

Tensor = Any
Over = Literal["classes", "positions"]


class _OfPositions(TemperedLoss):
    """A loss over the classes of positions, some of which may not count."""

    #: The axes of the outputs that it compares.
    axes: str
    ignore_class: int | None

    def _ignore(self, ignore_class: Any) -> None:
        whole = hasattr(ignore_class, "__index__") and not isinstance(
            ignore_class, bool
        )
        if ignore_class is not None and not whole:
            raise TypeError(
                f"`ignore_class` must be a label, an integer, or None. Received: "
                f"ignore_class={ignore_class!r}. Fix: for example 255."
            )
        self.ignore_class = None if ignore_class is None else int(ignore_class)
        self.uses_labels = ignore_class is not None

    def validate_outputs(
        self, teacher_outputs: Tensor, student_outputs: Tensor
    ) -> None:
        """Checks that both speak of the same classes at the same positions."""
        super().validate_outputs(teacher_outputs, student_outputs)
        if len(student_outputs.shape) != len(self.axes.split(",")):
            raise ValueError(
                f"`{type(self).__name__}` compares outputs of shape {self.axes}. "
                f"Received: student output {tuple(student_outputs.shape)}. Fix: "
                f"kdlite.losses.SoftTargets, for any shape with classes last."
            )

    def targets(self, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns which positions count, by the labels; `None` without labels."""
        if labels is None:
            return None
        labels = ops.cast(class_indices(labels, teacher_logits), "int32")
        return ops.not_equal(labels, self.ignore_class)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {**super().get_config(), "ignore_class": self.ignore_class}


@keras.saving.register_keras_serializable(package="kdlite")
class SequenceSoftTargets(_OfPositions, SoftTargets):
    r"""`SoftTargets` at each position of a sequence, padding left out.

    $$ L_{ij} = T^2 \, \mathrm{KL}(p_{ij} \| q_{ij}) $$

    for position `j` of sequence `i`, and 0 where that is padding; the mean is over the
    positions that are not. A position is padding if the student's or the teacher's
    output has a mask (as `keras.layers.Embedding(mask_zero=True)` makes it and layers
    pass it on) that leaves it out, or if its label is `ignore_class`. Teacher and
    student must have the same positions: tokens of the same tokenizer, frames of the
    same rate.

    Args:
        temperature: `T` > 0 or a schedule, as in `SoftTargets`.
        divergence: `"forward"`, `"reverse"` or `"jensen_shannon"`, as in `SoftTargets`.
        ignore_class: The label of padding, such as -1 or -100; `None` for none. Give
            the hard loss the same, `SparseCategoricalCrossentropy(ignore_class=...)`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** `(batch, positions, classes)`, or the pair of these
            and labels `(batch, positions)`.
        y_pred: Student **logits** of the same shape.

    Raises:
        TypeError: If `temperature` is no number or `ignore_class` no integer.
        ValueError: If an argument is out of its range, or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> loss = SequenceSoftTargets(1.0, ignore_class=-1, reduction=None)
        >>> teacher = np.array([[[50.0, 0.0], [50.0, 0.0]]])
        >>> values = loss((teacher, np.array([[0, -1]])), np.zeros((1, 2, 2)))
        >>> values.numpy().round(4).tolist()
        [[0.6930999755859375, 0.0]]

    Reference:
        Hinton, Vinyals, Dean, 2015, arXiv:1503.02531; by position in Kim, Rush:
        Sequence-Level Knowledge Distillation, 2016, arXiv:1606.07947, section 3.1.
    """

    axes = "(batch, positions, classes)"

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 2.0,
        divergence: Divergence = "forward",
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "sequence_soft_targets",
    ) -> None:
        super().__init__(temperature, divergence, False, reduction, name)
        self._ignore(ignore_class)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample and position, see `OutputLoss`."""
        return _only(targets, super().values(teacher_logits, student_logits, None))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        config: dict[str, Any] = super().get_config()
        del config["standardize"]
        return config


@keras.saving.register_keras_serializable(package="kdlite")
class PixelSoftTargets(_OfPositions, TemperedLoss):
    r"""Segmentation maps: KL divergence over the classes of each pixel, or over pixels.

    `over="classes"` softens the classes of each pixel, as for the classes of an image:

    $$ L_{ij} = T^2 \sum_c p_{ijc} \log \frac{p_{ijc}}{q_{ijc}}, \quad
       p_{ij} = \mathrm{softmax}_c(t_{ij} / T) $$

    `over="positions"` softens the pixels of each class map (channel-wise distillation):
    where in the image a class is, rather than how much of it a pixel is,

    $$ L = \frac{T^2}{C} \sum_c \sum_{ij} \phi_{ijc} \log \frac{\phi_{ijc}}{\psi_{ijc}},
       \quad \phi_c = \mathrm{softmax}_{ij}(t_c / T) $$

    for a sample of `C` class maps; it is the value of each of the sample's pixels, so
    that weights of pixels act in both. Pixels with the label `ignore_class` are left
    out of either.

    Args:
        temperature: `T` > 0 or a schedule. Over positions the paper has 4.
        over: `"classes"` or `"positions"`.
        ignore_class: The label of pixels that do not count, such as 255; `None` for
            none.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher **logits** `(batch, height, width, classes)`, or the pair of
            these and labels `(batch, height, width)`.
        y_pred: Student **logits** of the same shape.

    Raises:
        TypeError: If `temperature` is no number or `ignore_class` no integer.
        ValueError: If an argument is out of its range, or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> teacher = np.zeros((1, 2, 2, 3))
        >>> teacher[0, 0, 0, 1] = 99.0
        >>> flat = np.zeros((1, 2, 2, 3))
        >>> round(float(PixelSoftTargets(1.0)(teacher, flat)), 4)  # log(3) / 4
        0.2747
        >>> loss = PixelSoftTargets(1.0, over="positions")
        >>> round(float(loss(teacher, flat)), 4)  # log(4) / 3
        0.4621

    Reference:
        Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, 2021,
        arXiv:2011.13256, section 3.2.
    """

    axes = "(batch, height, width, classes)"

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 4.0,
        over: Over = "classes",
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "pixel_soft_targets",
    ) -> None:
        super().__init__(temperature, reduction, name)
        if over not in get_args(Over):
            raise ValueError(
                f"`over` must be 'classes' or 'positions'. Received: over={over!r}. "
                f"Fix: 'classes' compares pixels, 'positions' whole class maps."
            )
        self.over = over
        self._ignore(ignore_class)

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample and pixel, see `OutputLoss`."""
        temperature = ops.convert_to_tensor(self._temperature)
        t, s = teacher_logits / temperature, student_logits / temperature
        if self.over == "classes":
            log_p, log_q = (ops.log_softmax(logits, axis=-1) for logits in (t, s))
            return _only(targets, kl_divergence(log_p, log_q) * ops.square(temperature))
        if (
            targets is not None
        ):  # no logit is below: such a pixel has no part in the sum
            counted = ops.expand_dims(targets, -1)
            t, s = (ops.where(counted, x, -2 * LARGEST_LOGIT) for x in (t, s))
        log_p, log_q = (
            ops.log_softmax(_class_maps(logits), axis=-1) for logits in (t, s)
        )
        of_sample = ops.mean(kl_divergence(log_p, log_q), axis=-1) * ops.square(
            temperature
        )
        every_pixel = ops.zeros_like(student_logits[..., 0])
        return _only(targets, every_pixel + ops.reshape(of_sample, (-1, 1, 1)))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {**super().get_config(), "over": self.over}


def _class_maps(logits: Tensor) -> Tensor:
    """From `(batch, height, width, classes)` to `(batch, classes, pixels)`."""
    shape = ops.shape(logits)
    rows = ops.reshape(logits, (shape[0], shape[1] * shape[2], shape[3]))
    return ops.transpose(rows, (0, 2, 1))


def _only(kept: Tensor, values: Tensor) -> Tensor:
    """Values with a mask of those that count, which Keras's reduction heeds."""
    if kept is None:
        return values
    values = ops.where(kept, values, 0.0)
    values._keras_mask = kept
    return values
