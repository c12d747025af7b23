"""A loss that tells a sample from others, in batches and a bank of negatives."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.counts import checked_count
from kdlite.distill.losses.batches import BatchLoss, unit_vectors
from kdlite.distill.losses.features import Shape, as_positions
from kdlite.distill.losses.teacher_loss import Tempered

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class Contrastive(Tempered, BatchLoss):
    r"""Tell the teacher's view of a sample from its views of others (CRD).

    $$ L_i = -\log h(t_i, s_i) - \sum_{j \in \mathcal N} \log (1 - h(t_j, s_i)), \quad
       h(t, s) = \frac{e^{g_t(t)^\top g_s(s) / \tau}}
       {e^{g_t(t)^\top g_s(s) / \tau} + N / M} $$

    with $g$ a linear projection to `dimensions` and to length 1 for each model, trained
    with the student. Negatives $\mathcal N$, `N` of them, are the other samples of the
    batch and, with `bank`, the teacher's projections of the last `bank` samples before
    it. A bank makes a small batch hard enough; it is saved with the distiller. Maps and
    sequences are averaged over their positions first. Not zero at equality.

    Args:
        dimensions: Size of the space of comparison.
        temperature: $\tau$ > 0, or one of `kdlite.schedules`.
        bank: How many teacher projections are kept as further negatives; 0 for the
            batch alone.
        samples: `M`, the number of training samples. `None` takes `N` for it.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ..., channels)`.
        y_pred: Student features of shape `(batch, ..., channels)`.
        sample_weight: Weights of the anchors, of shape `(batch,)`.

    Raises:
        TypeError: If `temperature` is no number.
        ValueError: If `temperature` is not above zero, or a count is not a whole number
            or too small.

    Example:
        >>> import numpy as np
        >>> loss = Contrastive(dimensions=4, bank=8)
        >>> features = np.eye(3, dtype="float32")
        >>> bool(loss(features, features) > 0)
        True

    Reference:
        Tian, Krishnan, Isola: Contrastive Representation Distillation, 2019,
        arXiv:1910.10699, equations 10 and 19; the queue: He et al. 2019,
        arXiv:1911.05722.
    """

    def __init__(
        self,
        dimensions: int = 128,
        temperature: float | LearningRateSchedule = 0.1,
        bank: int = 0,
        samples: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "contrastive",
    ) -> None:
        super().__init__(temperature, reduction, name)
        self.dimensions = checked_count("dimensions", dimensions, 1)
        self.bank = checked_count("bank", bank, 0)
        self.samples = None if samples is None else checked_count("samples", samples, 1)

    def make(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Makes the two projections and the bank."""
        for role, shape in (("teacher", teacher_shape), ("student", student_shape)):
            layer = layers.Dense(self.dimensions, dtype="float32", name=f"{role}_space")
            layer.build((None, shape[-1]))
            setattr(self, f"{role}_space", layer)
        if self.bank:
            self.queue = _Queue(self.bank, name="queue")
            self.queue.build((None, self.dimensions))

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        return self.anchors(_pooled(teacher, mask), _pooled(student, mask))

    def anchors(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Returns one value for each anchor, see `BatchLoss`."""
        t = unit_vectors(self.teacher_space(teacher))
        s = unit_vectors(self.student_space(student))
        scores = ops.matmul(s, ops.transpose(t))
        same = ops.eye(ops.shape(t)[0], dtype="float32")
        negative = 1.0 - same
        if self.bank:
            kept, filled = self.queue.read()
            scores = ops.concatenate([scores, ops.matmul(s, ops.transpose(kept))], 1)
            ones = ops.ones_like(scores[:, :1])
            same = ops.concatenate([same, ones * ops.zeros_like(filled)], 1)
            negative = ops.concatenate([negative, ones * filled], 1)
            self.queue.push(ops.stop_gradient(t))
        count = ops.maximum(ops.sum(negative[:1]), 1.0)
        ratio = count / self.samples if self.samples else ops.ones_like(count)
        # h = sigmoid(z): neither logarithm leaves the range of float32.
        z = scores / ops.convert_to_tensor(self._temperature) - ops.log(ratio)
        terms = same * ops.softplus(-z) + negative * ops.softplus(z)
        return ops.sum(terms, axis=1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again, at its present values."""
        return {
            **super().get_config(),
            "dimensions": self.dimensions,
            "bank": self.bank,
            "samples": self.samples,
        }


class _Queue(layers.Layer):
    """The last vectors that were pushed."""

    def __init__(self, length: int, name: str) -> None:
        super().__init__(name=name, dtype="float32", trainable=False)
        self._length = length

    def build(self, input_shape: Shape) -> None:
        for name, shape, dtype in (
            ("vectors", (self._length, input_shape[-1]), "float32"),
            ("pushed", (), "int32"),
        ):
            weight = self.add_weight(
                shape=shape,
                dtype=dtype,
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
                name=name,
            )
            setattr(self, name, weight)

    def read(self) -> tuple[Tensor, Tensor]:
        """Returns the vectors, and 1.0 for each that has been pushed, `(1, length)`."""
        filled = ops.arange(self._length) < ops.convert_to_tensor(self.pushed)
        vectors = ops.convert_to_tensor(self.vectors)
        return vectors, ops.cast(filled, "float32")[None]

    def push(self, vectors: Tensor) -> None:
        vectors = vectors[-self._length :]
        count = ops.shape(vectors)[0]
        start = ops.convert_to_tensor(self.pushed)
        places = (start + ops.arange(count)) % self._length
        queue = ops.convert_to_tensor(self.vectors)
        self.vectors.assign(ops.scatter_update(queue, places[:, None], vectors))
        # Counted on, within int32: a full queue stays full.
        counted = start + count
        again = self._length + counted % self._length
        self.pushed.assign(ops.where(counted < 2 * self._length, counted, again))


def _pooled(features: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the positions that count, `(batch, channels)`."""
    positions = as_positions(features)
    if mask is None or len(features.shape) == 2:
        return ops.mean(positions, axis=1)
    share = as_positions(ops.broadcast_to(mask, ops.shape(features)))
    return ops.sum(positions, axis=1) / ops.maximum(ops.sum(share, axis=1), 1.0)
