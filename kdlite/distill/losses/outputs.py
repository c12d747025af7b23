"""What all losses between a teacher's and a student's outputs have in common.

They take **logits** (`Regression`: values) and compute in float32. A loss is a
`keras.losses.Loss` over `(teacher logits, student logits)`, so sample weights, masks
and reduction work as in all of Keras, and a `keras.distillation.DistillationLoss`, so
it also serves Keras's own `keras.distillation.Distiller`. Losses that ask for the label
too find it beside the teacher's logits, in a pair:

>>> import numpy as np
>>> from kdlite.distill.losses import DecoupledKD, SoftTargets
>>> teacher, student = np.array([[5.0, 1.0, -2.0]]), np.array([[1.0, 4.0, 0.0]])
>>> loss = SoftTargets(temperature=3.0)
>>> round(float(loss(teacher, student)), 4)
5.2828
>>> round(float(loss.compute_loss(teacher, student)), 4)
5.2828
>>> bool(DecoupledKD()((teacher, np.array([0])), student) > 0)
True
"""

from __future__ import annotations

from typing import Any, get_args

import keras
from keras import ops

from kdlite.distill.heads import Needs, find_head
from kdlite.distill.losses.teacher_loss import TeacherLoss, Tempered
from kdlite.distill.replicas import share

Tensor = Any

# Infinite logits (a class that is masked out) become this: beyond every real logit, and
# small enough that differences of two and products with T^2 stay finite in float32.
LARGEST_LOGIT = 1e30


class OutputLoss(TeacherLoss):
    """A loss between outputs: their shapes are checked, and it is in float32.

    A loss defines `values(teacher_logits, student_logits, targets)`, and says what it
    is over with `needs`.

    Args:
        reduction: As in `keras.losses.Loss`. `"sum_over_batch_size"` is the weighted
            sum over the number of values.
        name: Name of the loss.
    """

    #: What it is over: heads that do not fit are refused.
    needs: Needs = "class logits"
    #: Whether the values hang on the label: it is then given beside the teacher.
    uses_labels = False

    def values(
        self, teacher_logits: Tensor, student_logits: Tensor, targets: Tensor
    ) -> Tensor:
        """Returns one value for each sample (and position).

        Args:
            teacher_logits: float32, finite, of shape `(batch, ..., classes)`.
            student_logits: The same of the student.
            targets: What `targets` made of the labels, for losses that use them; else
                `None`.

        Returns:
            float32 values of shape `(batch, ...)`.
        """
        raise NotImplementedError

    def targets(self, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """Returns labels as `values` takes them: one-hot target classes.

        Args:
            labels: As in `call`, or `None`.
            teacher_logits: float32 logits of shape `(batch, ..., classes)`.

        Returns:
            Rows of the shape of the logits; the teacher's first choice where there is
            no label.
        """
        classes = teacher_logits.shape[-1]
        chosen = ops.argmax(teacher_logits, axis=-1)
        if labels is not None:
            labels = ops.cast(class_indices(labels, teacher_logits), chosen.dtype)
            chosen = ops.where(labels < 0, chosen, labels)
        return ops.one_hot(chosen, classes, dtype="float32")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one value for each sample (and position).

        Args:
            y_true: Teacher logits of shape `(batch, ..., classes)`, or a pair of these
                and labels: class indices `(batch, ...)`, negative where there is none,
                or one-hot rows `(batch, ..., classes)`. Where there is no label the
                teacher's first choice stands for it.
            y_pred: Student logits of the shape of the teacher's.

        Returns:
            float32 values of shape `(batch, ...)`.
        """
        labels = None
        if isinstance(y_true, (tuple, list)):
            y_true, labels = y_true
        self.validate_outputs(y_true, y_pred)
        teacher, student = (
            ops.clip(ops.cast(logits, "float32"), -LARGEST_LOGIT, LARGEST_LOGIT)
            for logits in (y_true, y_pred)
        )
        targets = self.targets(labels, teacher) if self.uses_labels else None
        return self.values(teacher, student, targets)

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
        """Refuses squashed heads in Keras's own distiller, which hands on raw outputs.

        `kdlite.Distiller` reads the logits of such models and has no need of this.

        Args:
            teacher: The teacher.
            student: The student.

        Raises:
            ValueError: If a model returns probabilities where logits are needed.
        """
        loss = type(self).__name__
        for role, model in (("teacher", teacher), ("student", student)):
            head = find_head(model, needs=self.needs, role=role, loss=loss)
            if self.needs != "values" and head.outputs != "logits":
                squashing = "sigmoid" if head.outputs == "sigmoid" else "softmax"
                raise ValueError(
                    f"`{loss}` needs logits, and this distiller hands on what the "
                    f"models return. Received: {head.described}, which ends in a "
                    f"{squashing}. Fix: use kdlite.Distiller, which reads the logits "
                    f"before it."
                )


class TemperedLoss(Tempered, OutputLoss):
    """An `OutputLoss` with a temperature."""


def needs_of(loss: keras.distillation.DistillationLoss) -> Needs:
    """Returns what a distillation loss is over; class logits, if it does not say.

    Args:
        loss: The loss.

    Returns:
        What the heads it compares must fit.

    Raises:
        ValueError: If it says something unknown.
    """
    needs: Needs = getattr(loss, "needs", "class logits")
    if needs not in get_args(Needs):
        raise ValueError(
            f"A loss's `needs` must be one of {get_args(Needs)}. Received: "
            f"{type(loss).__name__}.needs={needs!r}. Fix: leave it out for classes."
        )
    return needs


def weighted_loss(
    loss: keras.distillation.DistillationLoss,
    teacher_logits: Tensor,
    student_logits: Tensor,
    sample_weight: Tensor = None,
    labels: Tensor = None,
) -> Tensor:
    """Returns any distillation loss of a batch, weighted and masked as Keras's are.

    Args:
        loss: A loss that returns one value for each sample (and position), or, where
            there are neither weights nor a mask, one for the batch.
        teacher_logits: Logits of shape `(batch, ..., classes)`.
        student_logits: Logits of the same shape. A position counts if neither has a
            mask (as Keras keeps it on outputs) that leaves it out.
        sample_weight: Weights of shape `(batch,)` up to `(batch, ...)`, or `None`.
        labels: Labels of the batch, for a loss that uses them, or `None`.

    Returns:
        A scalar: the weighted sum of the values over their number.

    Raises:
        ValueError: If weights or a mask meet a loss that has averaged already.
    """
    mask = _mask_of_both(teacher_logits, student_logits)
    if isinstance(loss, keras.losses.Loss):
        if mask is not None:
            student_logits = ops.convert_to_tensor(student_logits)
            student_logits._keras_mask = mask
        rank = len(student_logits.shape) - 1
        if labels is not None and getattr(loss, "uses_labels", False):
            teacher_logits = (teacher_logits, labels)
        return loss(teacher_logits, student_logits, _with_rank(sample_weight, rank))
    values = loss.compute_loss(teacher_logits, student_logits)
    if len(values.shape) == 0:
        unusable = {"sample_weight": sample_weight, "mask": mask}
        given = [name for name, value in unusable.items() if value is not None]
        if given:
            raise ValueError(
                f"A loss that returns one value for the batch cannot be weighted by "
                f"sample. Received: {' and '.join(given)} with "
                f"{type(loss).__name__}. Fix: one of kdlite.losses, a loss that "
                f"returns one value for each sample, or data without weights and masks."
            )
        # Keras's own call a function, or a `keras.losses.Loss`, which has shared it.
        shared = isinstance(getattr(loss, "loss", None), keras.losses.Loss)
        return values if shared else share(values)
    if mask is not None and len(mask.shape) <= len(values.shape):
        values._keras_mask = mask
    weights = _with_rank(sample_weight, len(values.shape))
    return _PerSample(name="soft_loss")(ops.zeros_like(values), values, weights)


def _mask_of_both(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """A student may have lost the mask in layers that pass none on, or the teacher."""
    masks = [getattr(x, "_keras_mask", None) for x in (teacher_logits, student_logits)]
    known = [ops.cast(mask, "bool") for mask in masks if mask is not None]
    if not known:
        return None
    return known[0] if len(known) == 1 else ops.logical_and(*known)


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


def class_indices(labels: Tensor, logits: Tensor) -> Tensor:
    """Returns labels as class indices.

    Args:
        labels: Indices of shape `(batch, ...)` or `(batch, ..., 1)`, or one-hot rows.
        logits: Logits of shape `(batch, ..., classes)`.

    Returns:
        Indices of shape `(batch, ...)`, of the type of the labels if they are indices.

    Raises:
        ValueError: If labels have another shape.
    """
    shape, rows = tuple(labels.shape), tuple(logits.shape)
    if len(shape) == len(rows) and shape[-1] == rows[-1]:
        labels = ops.argmax(labels, axis=-1)
    elif len(shape) == len(rows) and shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if not compatible_shapes(tuple(labels.shape), rows[:-1]):
        raise ValueError(
            f"Labels must be class indices or one-hot rows. Received: labels {shape}, "
            f"teacher logits {rows}. Fix: one index for each row of logits."
        )
    return labels
