"""Adapters: features of student and teacher brought to one width and size."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import layers, ops

Tensor = Any
Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="kdlite")
class Adapter(layers.Layer):
    r"""Brings the features of a student and of its teacher to one width and size.

    Width: the student's channels are projected to the teacher's by a 1x1 convolution
    (maps) or a dense layer, trained with the student and no part of it. Size: along
    each axis of positions the larger of the two is averaged down to the size of the
    smaller, by area, so that a whole ratio is average pooling; nothing is made up by
    enlarging. Where one side is a vector, the other's positions are averaged.

    Masked positions have no part in an average; one is masked if all of it was.

    Args:
        same_width: Whether widths are to agree.
        same_size: Whether sizes are to agree.
        always_projected: Whether to project where widths agree already.
        **kwargs: As for every Keras layer.

    Raises:
        ValueError: If the two have no way to one size, or a width is not known.

    Example:
        >>> import numpy as np
        >>> adapter = Adapter()
        >>> adapter.build((None, 8, 8, 3), (None, 4, 4, 16))
        >>> pair = adapter.adapt(np.ones((2, 8, 8, 3)), np.ones((2, 4, 4, 16)))
        >>> [features.shape.as_list() for features in pair]
        [[2, 4, 4, 16], [2, 4, 4, 16]]
    """

    def __init__(
        self,
        same_width: bool = True,
        same_size: bool = True,
        always_projected: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.same_width = same_width
        self.same_size = same_size
        self.always_projected = always_projected
        self.projection: layers.Layer | None = None

    def build(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Makes the projection, if there is to be one.

        Args:
            student_shape: Shape of the student's features, `None` for the batch.
            teacher_shape: That of the teacher's.
        """
        ranks, widths = (
            (len(student_shape), len(teacher_shape)),
            (student_shape[-1], teacher_shape[-1]),
        )
        received = (
            f"Received: student features {tuple(student_shape)}, teacher features "
            f"{tuple(teacher_shape)}."
        )
        if min(ranks) < 2 or (
            self.same_size and ranks[0] != ranks[1] and min(ranks) > 2
        ):
            raise ValueError(
                f"Features must be (batch, channels) or have the same axes of "
                f"positions. {received} Fix: tap layers of one kind, or reshape one of "
                f"them in its model."
            )
        if not self.same_width:
            return
        if None in widths:
            raise ValueError(
                f"The widths of features must be known. {received} Fix: give the model "
                f"a fixed number of channels there, or tap another layer."
            )
        if widths[0] != widths[1] or self.always_projected:
            rank = ranks[0] if not self.same_size else min(ranks)
            arguments = {"dtype": "float32", "name": "projection"}
            self.projection = (
                layers.Conv2D(widths[1], 1, **arguments)
                if rank == 4
                else layers.Dense(widths[1], **arguments)
            )
            self.projection.build((*(None for _ in range(rank - 1)), widths[0]))

    def adapt(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both in float32, and comparable.

        Args:
            student: Features of shape `(batch, ..., channels)`, with their Keras mask.
            teacher: The teacher's.

        Returns:
            The student's features, with the mask that counts, and the teacher's.
        """
        sides = student, teacher
        masks = [_mask_of(x, other) for x, other in (sides, sides[::-1])]
        student, teacher = (
            ops.cast(ops.convert_to_tensor(x), "float32") for x in sides
        )
        if self.same_size and len(student.shape) > 2 and len(teacher.shape) > 2:
            for axis in range(1, len(student.shape) - 1):
                size = _smaller(student, teacher, axis)
                if size is not None:
                    student, masks[0] = _averaged(student, masks[0], axis, size)
                    teacher, masks[1] = _averaged(teacher, masks[1], axis, size)
        elif self.same_size:
            student = _as_vector(student, masks[0])
            teacher = _as_vector(teacher, masks[1])
            masks = [None, None]
        if self.projection is not None:
            student = self.projection(student)
        elif student is sides[0]:
            student = ops.copy(student)  # its mask is the model's own
        found = [mask for mask in masks if mask is not None]
        if found:
            student._keras_mask = functools.reduce(ops.logical_and, found)
        return student, teacher

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the adapter again."""
        return {
            **super().get_config(),
            "same_width": self.same_width,
            "same_size": self.same_size,
            "always_projected": self.always_projected,
        }


def _mask_of(features: Tensor, other: Tensor) -> Tensor | None:
    """Its mask, or that of the other side if that has the same positions."""
    for x in (features, other):
        mask = getattr(x, "_keras_mask", None)
        # A mask of as many axes as the features is that of steps which are gone.
        if mask is not None and len(mask.shape) < len(x.shape):
            rank = len(mask.shape)
            if tuple(features.shape[1:rank]) == tuple(x.shape[1:rank]):
                return mask if len(features.shape) > rank else None
    return None


def _smaller(student: Tensor, teacher: Tensor, axis: int) -> Any | None:
    """The smaller size along an axis, or `None` if both are the same."""
    known = student.shape[axis], teacher.shape[axis]
    if None not in known:
        return None if known[0] == known[1] else min(known)
    sizes = ops.shape(student)[axis], ops.shape(teacher)[axis]
    return ops.minimum(*sizes)


def _averaged(
    features: Tensor, mask: Tensor | None, axis: int, size: Any
) -> tuple[Tensor, Tensor | None]:
    """Averages along an axis down to a size, over positions that count."""
    if features.shape[axis] == size:
        return features, mask
    shares = _shares(ops.shape(features)[axis], size)
    if mask is None or len(mask.shape) <= axis:
        return _along(features, shares, axis), mask
    counted = ops.cast(mask, "float32")
    while len(counted.shape) < len(features.shape):
        counted = ops.expand_dims(counted, -1)
    weights = _along(counted, shares, axis)
    total = _along(features * counted, shares, axis)
    some = _along(ops.cast(mask, "float32"), shares, axis) > 0.0
    return total / ops.maximum(weights, 1e-6), some


def _along(x: Tensor, shares: Tensor, axis: int) -> Tensor:
    return ops.moveaxis(ops.tensordot(x, shares, axes=[[axis], [0]]), -1, axis)


def _shares(size: Any, smaller: Any) -> Tensor:
    """How much of each position is in each larger one, `(size, smaller)`."""
    ratio = ops.cast(size, "float32") / ops.cast(smaller, "float32")
    ends = ops.cast(ops.arange(smaller), "float32") * ratio
    begins = ops.cast(ops.arange(size), "float32")[:, None]
    overlap = ops.minimum(begins + 1.0, ends + ratio) - ops.maximum(begins, ends)
    return ops.maximum(overlap, 0.0) / ratio


def _as_vector(features: Tensor, mask: Tensor | None) -> Tensor:
    axes = tuple(range(1, len(features.shape) - 1))
    if not axes:
        return features
    if mask is None:
        return ops.mean(features, axis=axes)
    counted = ops.cast(mask, "float32")
    while len(counted.shape) < len(features.shape):
        counted = ops.expand_dims(counted, -1)
    counted = ops.broadcast_to(counted, ops.shape(features))
    total = ops.sum(features * counted, axis=axes)
    return total / ops.maximum(ops.sum(counted, axis=axes), 1.0)
