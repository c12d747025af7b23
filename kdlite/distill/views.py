"""Augmented views of samples, the same for teacher and student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kdlite.fingerprint import data_fingerprint

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any  # a tensor or array, or a dict or tuple of such
Augment = Callable[[Structure, Tensor], Structure]

# So often is it tried whether an augmentation is stateless, for each of a few samples:
# even one that but flips a coin is caught.
_PROBED_VIEWS = 2
_PROBED_TIMES = 4


@dataclass(frozen=True)
class Views:
    """Augmented views of samples: functions of sample, place and view number.

    Attributes:
        augment: `augment(x, seed)` on one sample, stateless; `None`: the
            samples as they are.
        count: Number of views.
        seed: From which all seeds are drawn.
    """

    augment: Augment | None
    count: int
    seed: int

    def view(self, places: Tensor, views: Tensor, x: Structure) -> Structure:
        """Returns a view of each sample of a batch.

        Args:
            places: The samples' places in the data set, int64 `(batch,)`.
            views: The views' numbers, int64 `(batch,)`.
            x: The samples, `(batch, ...)`.
        """
        if self.augment is None:
            return x
        return tf.map_fn(
            lambda row: self._seen(*row),
            (x, self._seeds(places, views)),
            fn_output_signature=tf.nest.map_structure(
                lambda array: tf.TensorSpec(array.shape[1:], array.dtype), x
            ),
        )

    def _seen(self, x: Structure, seed: Tensor) -> Structure:
        """A view of one sample."""
        augmented = self.augment(x, seed)  # type: ignore[misc]
        return tf.nest.map_structure(
            lambda after, before: tf.ensure_shape(after, before.shape), augmented, x
        )

    def _seeds(self, places: Tensor, views: Tensor) -> Tensor:
        """The seeds of a batch of views, int64 `(batch, 2)`, each word good by itself.

        TensorFlow's own folding takes one sample at a time, and longer than a flip.
        """
        first = _mixed(_mixed(_mixed(self.seed) + _uint64(places)) + _uint64(views))
        return tf.bitcast(tf.stack([first, _mixed(first)], axis=-1), tf.int64)

    def check(self, x: Structure) -> None:
        """Checks on a few samples that `augment` is what it should be.

        Args:
            x: The first samples of the data set.

        Raises:
            ValueError: If `augment` changes type, shape or structure, or does not give
                the same view for the same seed; if there is none for several views.
        """
        if self.augment is None:
            if self.count > 1:
                raise ValueError(
                    f"Several views of a sample differ by augmentation. Received: "
                    f"views={self.count}, augment=None. Fix: give augment, or views=1."
                )
            return
        # Traced twice, and each view made several times in a trace: so neither what is
        # drawn in each call nor what is drawn once and frozen in the trace goes unseen.
        first, second = (self._probe(x, _PROBED_TIMES) for _ in range(2))
        expected = [
            view for view in first[::_PROBED_TIMES] for _ in range(_PROBED_TIMES)
        ]
        prints = [list(map(data_fingerprint, v)) for v in (expected, first, second)]
        if not prints[0] == prints[1] == prints[2]:
            raise ValueError(
                f"`augment` must be stateless: the same sample and seed must give the "
                f"same result. Received: augment={_called(self.augment)}, which gave "
                f"two. Fix: draw with tf.image.stateless_random_* or "
                f"tf.random.stateless_*, and the given seed."
            )

    def fingerprint(self, x: Structure) -> str | None:
        """Fingerprints views of a few samples: by them an augmentation is known again.

        Args:
            x: The first samples of the data set.

        Returns:
            64 hexadecimal digits, or `None` if there is no `augment`.

        Raises:
            ValueError: If `augment` changes type, shape or structure.
        """
        return None if self.augment is None else data_fingerprint(self._probe(x, 1))

    def _probe(self, x: Structure, times: int) -> list[tuple[Array, ...]]:
        """Makes the first views of each sample, each so many times."""
        probes = np.array(
            [
                (place, view)
                for place in range(len(tf.nest.flatten(x)[0]))
                for view in range(min(self.count, _PROBED_VIEWS))
                for _ in range(times)
            ],
            np.int64,
        )
        with tf.device("CPU:0"):
            held = tf.nest.map_structure(tf.constant, x)
            seeds = self._seeds(probes[:, 0], probes[:, 1])

        def made(place: Tensor, seed: Tensor) -> Structure:
            sample = tf.nest.map_structure(lambda array: array[place], held)
            try:
                seen = self.augment(sample, seed)  # type: ignore[misc]
            except Exception as err:
                raised.append(
                    ValueError(
                        f"`augment` must be a function of a sample (tensors, without a "
                        f"batch axis) and a seed that TensorFlow can trace. Received: "
                        f"augment={_called(self.augment)}, which raised "
                        f"{type(err).__name__}: {err}. Fix: def augment(x, seed), with "
                        f"operations of tf alone."
                    )
                )
                raise
            try:
                _check_augmented(self.augment, sample, seen)
            except ValueError as err:
                raised.append(err)
                raise
            return tuple(tf.nest.flatten(seen))

        raised: list[ValueError] = []
        pairs = tf.data.Dataset.from_tensor_slices((probes[:, 0], seeds))
        try:
            pairs = pairs.map(made)
        except Exception as err:  # as `raised`, with TensorFlow's trace around it
            if raised:
                raise raised[0] from None
            raise ValueError(
                f"`augment` must be a function that TensorFlow can trace. Received: "
                f"augment={_called(self.augment)}: {err} Fix: def augment(x, seed), "
                f"with operations of tf alone."
            ) from err
        results = [tuple(leaf.numpy() for leaf in result) for result in pairs]
        shapes = [array.shape[1:] for array in tf.nest.flatten(held)]
        for result in results:
            if [leaf.shape for leaf in result] != shapes:
                raise ValueError(
                    f"`augment` must keep the shape of a sample. Received: {shapes[0]} "
                    f"in, {result[0].shape} out. Fix: crop and resize to the shape it "
                    f"came in."
                )
        return results


def _uint64(numbers: Any) -> Tensor:
    if isinstance(numbers, int):
        return tf.constant(numbers, tf.uint64)
    return tf.cast(numbers, tf.uint64)


def _mixed(state: Tensor) -> Tensor:
    """Returns the number that SplitMix64 gives from a state, uint64.

    Reference:
        Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators,
        OOPSLA, section 4 (as its authors' Java code has it since).
    """
    z = _uint64(state) + _uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, _uint64(shift)))
        z *= _uint64(factor)
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, _uint64(31)))


def _called(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)


def _check_augmented(augment: Any, before: Structure, after: Structure) -> None:
    try:
        tf.nest.assert_same_structure(before, after)
        after = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(after)]
        kept = [t.dtype for t in tf.nest.flatten(before)] == [t.dtype for t in after]
    except (TypeError, ValueError):
        kept = False
    if not kept:
        described = [
            ", ".join(
                getattr(getattr(leaf, "dtype", None), "name", type(leaf).__name__)
                for leaf in tf.nest.flatten(structure)
            )
            for structure in (before, after)
        ]
        raise ValueError(
            f"`augment` must keep the structure and type of a sample. Received: "
            f"augment={_called(augment)}, {described[0]} in, {described[1]} out. Fix: "
            f"cast back what it returns."
        )
