"""Augmentations that mix two samples into one, for `SoftLabels.build` and `attach`.

Given as `augment=` in place of a function of one sample. Which sample is mixed in, and
how, is a function of the sample's place in the data set, the view's number and the seed
alone: so student and teacher see the very same image.

>>> import keras, numpy as np, tempfile
>>> from kdlite.distill.soft_labels import SoftLabels
>>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
>>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
>>> mixup, folder = Mixup(alpha=1.0), tempfile.mkdtemp()
>>> soft = SoftLabels.build(teacher, x, folder, augment=mixup, views=2)
>>> inputs, y = next(iter(soft.attach((x, y), 4, augment=mixup)))
>>> y.shape.as_list(), bool(np.allclose(np.sum(y, axis=1), 1.0))
([4, 3], True)
>>> bool(np.allclose(teacher(inputs["inputs"]), inputs["soft_labels"], atol=1e-5))
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kdlite.counts import checked_count
from kdlite.distill.draws import derived, natural, unit

__all__ = ["CutMix", "Mixup"]

Tensor = Any
Structure = Any  # a tensor or array, or a dict or tuple of such
Augment = Callable[[Structure, Tensor], Structure]

_SHARE, _ROW, _COLUMN = 2, 3, 4  # what is drawn; 1 is for the partner


class Mixing:
    r"""What `Mixup` and `CutMix` have in common.

    A mixed sample has the share $\lambda$ of its own sample a and $1 - \lambda$ of its
    partner b, with $\lambda$ drawn from Beta(`alpha`, `alpha`). Its label is the row of
    class shares $\lambda \, y_a + (1 - \lambda) \, y_b$, float32 `(batch, classes)`:
    compile with a loss for such rows, `keras.losses.CategoricalCrossentropy`. Class
    numbers and rows are both taken; a class below 0, of a sample without a label, adds
    nothing to the row. With sample weights $w$ the label is the mean of the two,
    weighted by $\lambda w_a$ and $(1 - \lambda) w_b$, and their sum is the new weight.
    Without labels in the data the soft loss alone remains.

    Args:
        alpha: From 0.01 on. 1 draws all shares alike, less mixes less.
        augment: `augment(x, seed)` on one sample, stateless, on both before they are
            mixed; see `SoftLabels.build`.
        among: Partners are drawn among so many samples that follow each other in the
            data set: so many are then held at once. `None`: among all, for data in
            memory. Needed for a `tf.data.Dataset` or `PyDataset`. Samples that are
            sorted by class find partners of their own class then.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        augment: Augment | None = None,
        among: int | None = None,
    ) -> None:
        name = type(self).__name__
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise TypeError(
                f"`alpha` of {name} must be a number. Received: alpha={alpha!r}. Fix: "
                f"1.0 draws all shares alike."
            )
        if not 0.01 <= alpha < float("inf"):
            raise ValueError(
                f"`alpha` of {name} must be at least 0.01 and finite. Received: "
                f"alpha={alpha}. Fix: 1.0 draws all shares alike."
            )
        if augment is not None and not callable(augment):
            raise TypeError(
                f"`augment` of {name} must be a function of a sample and a seed. "
                f"Received: augment={augment!r}. Fix: def augment(x, seed): ..."
            )
        if among is not None:
            among = checked_count("among", among, 2, "4096, say, or None")
        self.alpha = float(alpha)
        self.augment = augment
        self.among = among

    def __repr__(self) -> str:
        """Names what it does."""
        augment = getattr(self.augment, "__name__", self.augment)
        return (
            f"{type(self).__name__}(alpha={self.alpha}, augment={augment}, "
            f"among={self.among})"
        )

    def partners(self, places: Tensor, seeds: Tensor, end: Tensor) -> Tensor:
        """Returns the places of the samples that are mixed in; none is its own partner.

        Args:
            places: The samples' places, int64 `(batch,)`.
            seeds: One for each, int64 `(batch, 2)`.
            end: The number of samples, or the end of a block of `among`.
        """
        first, size = tf.zeros_like(places), tf.cast(end, tf.int64)
        if self.among is not None:
            first = places // self.among * self.among
            size = tf.minimum(tf.constant(self.among, tf.int64), size - first)
        # A sample that is alone has none but itself.
        step = 1 + natural(seeds[:, 1]) % tf.maximum(size - 1, 1)
        return first + (places - first + step) % size

    def shares(self, seeds: Tensor) -> Tensor:
        r"""Returns the own shares $\lambda$ of a batch, float32 `(batch,)`."""
        if self.alpha == 1.0:
            return unit(derived(seeds, _SHARE)[:, 0])

        def beta(seed: Tensor) -> Tensor:
            # Wide: both are next to 0 where alpha is small.
            parts = tf.random.stateless_gamma(
                [2], seed, tf.constant(self.alpha, tf.float64), dtype=tf.float64
            )
            return tf.cast(
                tf.math.divide_no_nan(parts[0], parts[0] + parts[1]), "float32"
            )

        return tf.map_fn(
            beta,
            derived(seeds, _SHARE),
            fn_output_signature=tf.TensorSpec([], tf.float32),
        )

    def mix(
        self, x: Structure, partners: Structure, seeds: Tensor
    ) -> tuple[Structure, Tensor]:
        r"""Returns mixed samples and the own share $\lambda$ in each.

        Args:
            x: The samples, `(batch, ...)`.
            partners: Those that are mixed in, of the same shape.
            seeds: One for each, int64 `(batch, 2)`.
        """
        raise NotImplementedError

    def check(self, x: Structure) -> None:
        """Checks that such samples can be mixed.

        Args:
            x: The first samples of the data set.

        Raises:
            ValueError: If they cannot.
        """
        for array in map(np.asarray, tf.nest.flatten(x)):
            measured = array.dtype.kind in "fV" or array.dtype in ("uint8", "uint16")
            if not measured:
                raise ValueError(
                    f"{type(self).__name__} takes samples that are measurements: real "
                    f"numbers, uint8 or uint16. Received: {array.dtype.name}. Fix: "
                    f"cast what may be blended, and leave out class numbers or tokens."
                )


class Mixup(Mixing):
    r"""Blends two samples: $x = \lambda x_a + (1 - \lambda) x_b$.

    In samples of whole numbers (uint8 images) the blend is rounded.

    See `Mixing` for arguments, partners and labels: `alpha=1.0`, `augment=None` on
    single samples before, `among=None` for how far partners are apart.

    Example:
        >>> Mixup(alpha=0.2, among=4096)
        Mixup(alpha=0.2, augment=None, among=4096)

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz 2018, mixup: Beyond Empirical Risk
        Minimization, arXiv:1710.09412, section 2. Beyer et al. 2022, Knowledge
        distillation: A good teacher is patient and consistent, arXiv:2106.05237: of
        samples mixed with uniform shares, seen alike by teacher and student.
    """

    def mix(
        self, x: Structure, partners: Structure, seeds: Tensor
    ) -> tuple[Structure, Tensor]:
        r"""Returns mixed samples and the own share $\lambda$ in each.

        Args:
            x: The samples, `(batch, ...)`.
            partners: Those that are mixed in, of the same shape.
            seeds: One for each, int64 `(batch, 2)`.
        """
        shares = self.shares(seeds)

        def blend(mine: Tensor, other: Tensor) -> Tensor:
            wide = tf.float64 if mine.dtype == tf.float64 else tf.float32
            share = tf.reshape(
                tf.cast(shares, wide), [-1] + [1] * (len(mine.shape) - 1)
            )
            mixed = share * tf.cast(mine, wide) + (1 - share) * tf.cast(other, wide)
            return tf.cast(
                tf.round(mixed) if mine.dtype.is_integer else mixed, mine.dtype
            )

        return tf.nest.map_structure(blend, x, partners), shares


class CutMix(Mixing):
    r"""Puts a rectangle of another image into each, at the same place of both.

    Its sides are $\sqrt{1 - \lambda}$ of the image's, its middle is anywhere in it, and
    what would lie outside is cut off; $\lambda$ is then the share of pixels that are
    the image's own. Samples are images `(height, width, channels)`.

    See `Mixing` for arguments, partners and labels: `alpha=1.0`, `augment=None` on
    single samples before, `among=None` for how far partners are apart.

    Example:
        >>> CutMix()
        CutMix(alpha=1.0, augment=None, among=None)

    Reference:
        Yun et al. 2019, CutMix: Regularization Strategy to Train Strong Classifiers
        with Localizable Features, arXiv:1905.04899, section 3.1, equations 1 and 2.
    """

    def mix(
        self, x: Structure, partners: Structure, seeds: Tensor
    ) -> tuple[Structure, Tensor]:
        r"""Returns mixed samples and the own share $\lambda$ in each.

        Args:
            x: The images, `(batch, height, width, channels)`.
            partners: Those that are mixed in, of the same shape.
            seeds: One for each, int64 `(batch, 2)`.
        """
        (image,), (other,) = tf.nest.flatten(x), tf.nest.flatten(partners)
        height, width = image.shape[1:3]
        side = tf.sqrt(1 - self.shares(seeds))
        rows, row_count = _cut(height, side, derived(seeds, _ROW)[:, 0])
        columns, column_count = _cut(width, side, derived(seeds, _COLUMN)[:, 0])
        cut_out = (rows[:, :, None] & columns[:, None, :])[..., None]
        pixels = tf.cast(row_count * column_count, tf.float32)
        mixed = tf.where(cut_out, other, image)
        return tf.nest.pack_sequence_as(x, [mixed]), 1 - pixels / (height * width)

    def check(self, x: Structure) -> None:
        """Checks that such samples can be mixed.

        Args:
            x: The first samples of the data set.

        Raises:
            ValueError: If they cannot.
        """
        shapes = [np.shape(array)[1:] for array in tf.nest.flatten(x)]
        if len(shapes) != 1 or len(shapes[0]) != 3:
            raise ValueError(
                f"CutMix takes samples that are one image (height, width, channels). "
                f"Received: samples of {shapes}. Fix: Mixup takes all shapes."
            )
        super().check(x)


def _cut(length: int, side: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the rows, or columns, are cut out, bool `(batch, length)`; how many."""
    half = tf.cast(side * length, tf.int64) // 2
    middle = natural(drawn) % length
    begin = tf.maximum(middle - half, 0)
    end = tf.minimum(middle + half, length)
    at = tf.range(length, dtype=tf.int64)
    return (at >= begin[:, None]) & (at < end[:, None]), end - begin


def check_unmixed(augment: Any, what: str) -> None:
    """Checks that an augmentation leaves labels as they are.

    Args:
        augment: A function of one sample, or `None`.
        what: What needs it, for the message.

    Raises:
        ValueError: If it mixes samples.
    """
    if isinstance(augment, Mixing):
        raise ValueError(
            f"`augment` of {what} is a function of one sample, since its loss takes "
            f"class numbers. Received: augment={augment!r}. Fix: mixed samples go "
            f"through SoftLabels.build and attach to a Distiller with "
            f"CategoricalCrossentropy, or without labels."
        )


def mixed_targets(
    targets: tuple[Structure, ...],
    partners: tuple[Structure, ...],
    shares: Tensor,
    logits_shape: Sequence[int],
) -> tuple[Structure, ...]:
    r"""Returns labels, and weights if there are, of mixed samples: see `Mixing`.

    Args:
        targets: `()`, `(y,)` or `(y, sample_weight)` of the samples.
        partners: The same of those that are mixed in.
        shares: The own share $\lambda$ of each, float32 `(batch,)`.
        logits_shape: Of one sample: `(classes,)`.

    Raises:
        ValueError: If the labels are not class numbers or rows of classes, or the
            weights not one for each sample.
    """
    if not targets:
        return ()
    if len(logits_shape) != 1:
        raise ValueError(
            f"Labels of mixed samples must be of one class distribution each. "
            f"Received: labels beside logits of shape {tuple(logits_shape)}. Fix: "
            f"leave them out to learn from the teacher alone."
        )
    (classes,) = logits_shape
    own, other = shares, 1 - shares
    if len(targets) == 2:
        own *= _weights(targets[1])
        other *= _weights(partners[1])
    weight = own + other
    rows = own[:, None] * _rows(targets[0], classes)
    rows += other[:, None] * _rows(partners[0], classes)
    rows = tf.math.divide_no_nan(rows, weight[:, None])
    return (rows, weight) if len(targets) == 2 else (rows,)


def _rows(y: Structure, classes: int) -> Tensor:
    leaves = tf.nest.flatten(y)
    shapes = [tuple(leaf.shape[1:]) for leaf in leaves]
    if len(shapes) != 1 or shapes[0] not in ((), (1,), (classes,)):
        raise ValueError(
            f"Labels of mixed samples must be class numbers, or rows of {classes} "
            f"classes. Received: labels of {shapes}. Fix: leave them out to learn from "
            f"the teacher alone."
        )
    if shapes[0] == (classes,):
        return tf.cast(leaves[0], tf.float32)
    if classes == 1:  # a value, or a yes
        return tf.cast(tf.reshape(leaves[0], [-1, 1]), tf.float32)
    return tf.one_hot(tf.cast(tf.reshape(leaves[0], [-1]), tf.int64), classes)


def _weights(sample_weight: Structure) -> Tensor:
    leaves = tf.nest.flatten(sample_weight)
    shapes = [tuple(leaf.shape[1:]) for leaf in leaves]
    if len(shapes) != 1 or shapes[0] not in ((), (1,)):
        raise ValueError(
            f"Weights of mixed samples must be one for each sample. Received: weights "
            f"of {shapes}. Fix: leave them out."
        )
    return tf.cast(tf.reshape(leaves[0], [-1]), tf.float32)
