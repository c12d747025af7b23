"""Losses on how the samples of a batch stand to each other.

The features of a sample are one vector, whatever their shape: no widths or sizes need
agree, and nothing needs an adapter. A loss gives each sample, as an *anchor*, the mean
over its partners; the mean over anchors is the paper's over pairs. Weights of samples
weigh anchors; every sample of the batch stays a partner of the others.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kdlite.counts import checked_count
from kdlite.distill.losses.features import (
    SMALLEST_SQUARE,
    FeatureLoss,
    as_positions,
)
from kdlite.distill.schedules import checked_number

Tensor = Any

# Of a probability in a logarithm: the authors' own bound.
_SMALLEST_PROBABILITY = 1e-7


class BatchLoss(FeatureLoss):
    """A loss between two batches of vectors; it defines `anchors(teacher, student)`.

    Args:
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
    """

    same_width = False
    same_size = False

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        return self.anchors(_as_vectors(teacher), _as_vectors(student))

    def anchors(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Returns one value for each sample as an anchor.

        Args:
            teacher: Vectors of shape `(batch, n)`.
            student: Vectors of shape `(batch, m)`.

        Returns:
            Values of shape `(batch,)`.
        """
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="kdlite")
class SimilarityPreserving(BatchLoss):
    r"""Which samples of a batch activate alike (SP).

    $$ L = \frac{1}{b^2} \| G^t - G^s \|_F^2, \quad
       G_{i:} = \tilde G_{i:} / \|\tilde G_{i:}\|_2, \quad \tilde G = F F^\top $$

    for a batch of `b` samples with features `F` as rows. An anchor's value is its
    row's share, $\frac{1}{b} \sum_j (G^t_{ij} - G^s_{ij})^2$. Zero at equality, and
    free of the scale of either model.

    Args:
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ...)`.
        y_pred: Student features of shape `(batch, ...)`.
        sample_weight: Weights of the anchors, of shape `(batch,)`.

    Example:
        >>> import numpy as np
        >>> features = np.eye(3)
        >>> float(SimilarityPreserving()(features, 2.0 * features))
        0.0

    Reference:
        Tung, Mori: Similarity-Preserving Knowledge Distillation, 2019,
        arXiv:1907.09682, equations 1 to 4.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "similarity_preserving",
    ) -> None:
        super().__init__(reduction, name)

    def anchors(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Returns one value for each anchor, see `BatchLoss`."""
        difference = _similarities(teacher) - _similarities(student)
        return ops.mean(ops.square(difference), axis=1)


@keras.saving.register_keras_serializable(package="kdlite")
class RelationalKD(BatchLoss):
    r"""Distances between samples, and angles of three of them (RKD).

    $$ L = \lambda_D \, \overline{h(\psi^t_{ij}, \psi^s_{ij})}
         + \lambda_A \, \overline{h(\cos^t_{ijk}, \cos^s_{ijk})} $$

    with Huber's `h` (half the square up to a difference of 1), the distance $\psi_{ij}
    = \|f_i - f_j\|_2 / \mu$ in units of the mean distance $\mu$ of the batch, and the
    cosine of the angle at `j` between samples `i` and `k`; means over distinct
    samples. An anchor's value is the mean over its distances and over the angles at it.
    Zero at equality; free of scale, shift and rotation.

    Angles take memory of `batch`$^3$ numbers: 67 MB at 256 samples.

    Args:
        distance_weight: $\lambda_D \ge 0$.
        angle_weight: $\lambda_A \ge 0$; 0 leaves the angles out.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ...)`.
        y_pred: Student features of shape `(batch, ...)`.
        sample_weight: Weights of the anchors, of shape `(batch,)`.

    Raises:
        TypeError: If a weight is no number.
        ValueError: If a weight is negative or not finite.

    Example:
        >>> import numpy as np
        >>> features = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> abs(round(float(RelationalKD()(features, 5.0 - 3.0 * features)), 6))
        0.0

    Reference:
        Park et al.: Relational Knowledge Distillation, 2019, arXiv:1904.05068,
        equations 5 to 10.
    """

    def __init__(
        self,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "relational_kd",
    ) -> None:
        super().__init__(reduction, name)
        self.distance_weight = checked_number("distance_weight", distance_weight)
        self.angle_weight = checked_number("angle_weight", angle_weight)

    def anchors(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Returns one value for each anchor, see `BatchLoss`."""
        pairs = [_Geometry(teacher), _Geometry(student)]
        t, s = (pair.distances() for pair in pairs)
        total = self.distance_weight * ops.sum(_huber(t - s), axis=1)
        others = ops.cast(ops.shape(t)[0] - 1, "float32")
        total = total / ops.maximum(others, 1.0)
        if self.angle_weight > 0.0:
            t, s = (pair.cosines() for pair in pairs)
            # Ordered pairs of others: (b - 1)(b - 2).
            triples = ops.maximum(others * (others - 1.0), 1.0)
            angles = _huber(t - s) * pairs[0].distinct[None]
            angles = ops.sum(angles, axis=(1, 2)) / triples
            total = total + self.angle_weight * angles
        return total

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        return {
            **super().get_config(),
            "distance_weight": self.distance_weight,
            "angle_weight": self.angle_weight,
        }


@keras.saving.register_keras_serializable(package="kdlite")
class ProbabilisticTransfer(BatchLoss):
    r"""Each sample's neighbours, as a distribution over the batch (PKT).

    $$ L = \sum_i \sum_{j \ne i} p_{j|i} \log \frac{p_{j|i}}{q_{j|i}}, \quad
       p_{j|i} = \frac{K(t_i, t_j)}{\sum_{k \ne i} K(t_i, t_k)}, \quad
       K(a, b) = \frac{1}{2} \left( \frac{a^\top b}{\|a\| \|b\|} + 1 \right) $$

    and `q` that of the student. An anchor's value is its divergence. Zero at equality,
    and free of the scale of either model.

    Args:
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ...)`.
        y_pred: Student features of shape `(batch, ...)`.
        sample_weight: Weights of the anchors, of shape `(batch,)`.

    Example:
        >>> import numpy as np
        >>> features = np.eye(3)
        >>> abs(round(float(ProbabilisticTransfer()(features, 2.0 * features)), 6))
        0.0

    Reference:
        Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge
        Transfer, 2018, arXiv:1803.10837, equations 3 to 8.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "probabilistic_transfer",
    ) -> None:
        super().__init__(reduction, name)

    def anchors(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Returns one value for each anchor, see `BatchLoss`."""
        p, q = _neighbours(teacher), _neighbours(student)
        # Both sum to 1: q - p adds nothing to the sum, and makes each of its terms
        # positive, so that close distributions lose no digits to each other's.
        p, q = (ops.maximum(x, _SMALLEST_PROBABILITY) for x in (p, q))
        excess = (q - p) / p
        return ops.sum(p * (excess - ops.log1p(excess)), axis=1)


@keras.saving.register_keras_serializable(package="kdlite")
class Correlation(BatchLoss):
    r"""Correlation of samples under a Gaussian kernel (CC).

    $$ L = \frac{1}{b^2} \sum_{i, j} (k(t_i, t_j) - k(s_i, s_j))^2, \quad
       k(a, b) = \sum_{n=0}^{N} e^{-2 \gamma} \frac{(2 \gamma)^n}{n!}
       (\hat a^\top \hat b)^n $$

    for unit vectors $\hat a$: the Taylor series of $e^{-\gamma \|\hat a - \hat b\|^2}$
    to order `N`. An anchor's value is the mean over its partners, itself included.
    Zero at equality, and free of the scale of either model.

    Args:
        gamma: $\gamma > 0$: larger ones see nearer neighbours only.
        order: `N`, 1 or more; `None` is the whole series.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ...)`.
        y_pred: Student features of shape `(batch, ...)`.
        sample_weight: Weights of the anchors, of shape `(batch,)`.

    Raises:
        TypeError: If `gamma` is no number.
        ValueError: If `gamma` is not above zero, or `order` is not a whole number of 1
            or more.

    Example:
        >>> import numpy as np
        >>> features = np.eye(3)
        >>> float(Correlation()(features, 2.0 * features))
        0.0

    Reference:
        Peng et al.: Correlation Congruence for Knowledge Distillation, 2019,
        arXiv:1904.01802, section 3.
    """

    def __init__(
        self,
        gamma: float = 0.4,
        order: int | None = 2,
        reduction: str | None = "sum_over_batch_size",
        name: str = "correlation",
    ) -> None:
        super().__init__(reduction, name)
        self.gamma = checked_number("gamma", gamma, above=0.0)
        self.order = None if order is None else checked_count("order", order, 1)

    def anchors(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Returns one value for each anchor, see `BatchLoss`."""
        difference = self._kernel(teacher) - self._kernel(student)
        return ops.mean(ops.square(difference), axis=1)

    def _kernel(self, vectors: Tensor) -> Tensor:
        cosines = _cosines(vectors)
        if self.order is None:
            return ops.exp(2.0 * self.gamma * (cosines - 1.0))
        exponent, series = 2.0 * self.gamma * cosines, ops.ones_like(cosines)
        for n in range(self.order, 0, -1):  # Horner's rule
            series = 1.0 + series * exponent / n
        return math.exp(-2.0 * self.gamma) * series

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        return {**super().get_config(), "gamma": self.gamma, "order": self.order}


class _Geometry:
    """Distances and angles of a batch of vectors, from their inner products."""

    def __init__(self, vectors: Tensor) -> None:
        # Distances and angles know no origin; about the mean, products lose least.
        vectors = vectors - ops.mean(vectors, axis=0, keepdims=True)
        self._products = ops.matmul(vectors, ops.transpose(vectors))
        squares = ops.diagonal(self._products)
        size = ops.shape(vectors)[0]
        self.distinct = 1.0 - ops.eye(size, dtype="float32")
        squared = squares[:, None] + squares[None, :] - 2.0 * self._products
        # What rounding leaves of the distance of two equal vectors is none.
        least = 1e-6 * ops.maximum(squares[:, None], squares[None, :])
        self._apart = self.distinct * ops.cast(squared > least, "float32")
        safe = ops.where(self._apart > 0.0, squared, 1.0)
        self._lengths = ops.where(self._apart > 0.0, ops.sqrt(safe), 1.0)

    def distances(self) -> Tensor:
        """Distances in units of their mean over distinct samples, `(batch, batch)`."""
        lengths = self._lengths * self._apart
        pairs = ops.maximum(ops.sum(self.distinct), 1.0)
        mean = ops.sum(lengths) / pairs
        return lengths / ops.maximum(mean, 1e-12)

    def cosines(self) -> Tensor:
        """Cosine at the first sample between the other two, `(batch, batch, batch)`."""
        g, squares = self._products, ops.diagonal(self._products)
        # <f_i - f_j, f_k - f_j> for [j, i, k]
        inner = (g[None, :, :] + squares[:, None, None]) - (
            g[:, :, None] + g[:, None, :]
        )
        scale = self._apart / self._lengths
        return inner * (scale[:, :, None] * scale[:, None, :])


def _huber(difference: Tensor) -> Tensor:
    size = ops.abs(difference)
    near = ops.minimum(size, 1.0)
    return near * (size - 0.5 * near)


def _similarities(vectors: Tensor) -> Tensor:
    """Inner products of a batch, each row of length 1."""
    # One scale for the whole batch is divided out of every row again.
    largest = ops.stop_gradient(ops.max(ops.abs(vectors)))
    vectors = vectors / ops.maximum(largest, 1e-30)
    return unit_vectors(ops.matmul(vectors, ops.transpose(vectors)))


def _cosines(vectors: Tensor) -> Tensor:
    vectors = unit_vectors(vectors)
    return ops.matmul(vectors, ops.transpose(vectors))


def _neighbours(vectors: Tensor) -> Tensor:
    distinct = 1.0 - ops.eye(ops.shape(vectors)[0], dtype="float32")
    kernel = 0.5 * (_cosines(vectors) + 1.0) * distinct
    total = ops.sum(kernel, axis=1, keepdims=True)
    return kernel / ops.maximum(total, _SMALLEST_PROBABILITY)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Returns vectors at length 1, those of no length as they are.

    Args:
        vectors: Of shape `(batch, n)`.

    Returns:
        The same shape.
    """
    norm = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(norm, SMALLEST_SQUARE))


def _as_vectors(features: Tensor) -> Tensor:
    positions = as_positions(features)
    return ops.reshape(positions, (ops.shape(positions)[0], -1))
