"""Augmented views of samples, the same for teacher and student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from kdlite.distill.augment import Augment, Mixing
from kdlite.distill.draws import derived, seeds
from kdlite.distill.samples import gathered, not_finite
from kdlite.distill.tracing import as_written, rewritten, status
from kdlite.fingerprint import data_fingerprint

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any  # a tensor or array, or a dict or tuple of such

# So often is it tried whether an augmentation is stateless, for each of a few samples:
# even one that but flips a coin is caught.
_PROBED_VIEWS = 2
_PROBED_TIMES = 4
_PARTNER = 1  # what other seeds are drawn for


@dataclass(frozen=True)
class Views:
    """Augmented views of samples: functions of sample, place and view number.

    Attributes:
        augment: `augment(x, seed)` on one sample, stateless; or a `Mixing` of two;
            `None`: the samples as they are.
        count: Number of views.
        seed: From which all seeds are drawn.
    """

    augment: Augment | Mixing | None
    count: int
    seed: int
    _where: Any = field(default_factory=status, init=False, repr=False, compare=False)

    @property
    def mixing(self) -> Mixing | None:
        """How two samples are mixed, if they are."""
        return self.augment if isinstance(self.augment, Mixing) else None

    @property
    def _single(self) -> Augment | None:
        """What is done to each sample by itself."""
        return (
            self.augment.augment if isinstance(self.augment, Mixing) else self.augment
        )

    def _mixing(self, method: str) -> Callable[..., Any]:
        """What a `Mixing` does, which may be one of the user's."""
        function: Callable[..., Any] = getattr(self.augment, method)
        return rewritten(function, self._where)

    def view(self, places: Tensor, views: Tensor, x: Structure) -> Structure:
        """Returns a view of each sample of a batch, if none are mixed.

        Args:
            places: The samples' places in the data set, int64 `(batch,)`.
            views: The views' numbers, int64 `(batch,)`.
            x: The samples, `(batch, ...)`.
        """
        return self._augmented(x, seeds(self.seed, places, views))

    def partners(self, places: Tensor, views: Tensor, end: Tensor) -> Tensor:
        """Returns the places of the samples that are mixed in.

        Args:
            places: The samples' places in the data set, int64 `(batch,)`.
            views: The views' numbers, int64 `(batch,)`.
            end: The number of samples, or the end of a block of them.
        """
        drawn = seeds(self.seed, places, views)
        return self._mixing("partners")(places, drawn, end)

    def mixed(
        self, places: Tensor, views: Tensor, x: Structure, partners: Structure
    ) -> tuple[Structure, Tensor]:
        """Returns a view of each sample of a batch, mixed with another.

        Args:
            places: The samples' places in the data set, int64 `(batch,)`.
            views: The views' numbers, int64 `(batch,)`.
            x: The samples, `(batch, ...)`.
            partners: Those that are mixed in.

        Returns:
            The views, and the own share of each sample, float32 `(batch,)`.
        """
        drawn = seeds(self.seed, places, views)
        mine = self._augmented(x, drawn)
        others = self._augmented(partners, derived(drawn, _PARTNER))
        return self._mixing("mix")(mine, others, drawn)

    def _augmented(self, x: Structure, drawn: Tensor) -> Structure:
        if self._single is None:
            return x
        augment = rewritten(self._single, self._where)

        def seen(row: tuple[Structure, Tensor]) -> Structure:
            return tf.nest.map_structure(
                lambda after, before: tf.ensure_shape(after, before.shape),
                augment(*row),
                row[0],
            )

        return tf.map_fn(
            as_written(seen),
            (x, drawn),
            fn_output_signature=tf.nest.map_structure(
                lambda array: tf.TensorSpec(array.shape[1:], array.dtype), x
            ),
        )

    def check(self, x: Structure) -> None:
        """Checks on a few samples that `augment` is what it should be.

        Args:
            x: The first samples of the data set.

        Raises:
            ValueError: If `augment` changes type, shape or structure, or does not give
                the same view for the same seed; if there is none for several views.
        """
        if self.augment is None and self.count > 1:
            raise ValueError(
                f"Several views of a sample differ by augmentation. Received: "
                f"views={self.count}, augment=None. Fix: give augment, or views=1."
            )
        if self.mixing is not None:
            self.mixing.check(x)
        if self._single is None:
            return
        # Traced twice, and each view made several times in a trace: so neither what is
        # drawn in each call nor what is drawn once and frozen in the trace goes unseen.
        first, second = (self._probe(x, _PROBED_TIMES) for _ in range(2))
        expected = [
            view for view in first[::_PROBED_TIMES] for _ in range(_PROBED_TIMES)
        ]
        if not not_finite([*map(np.asarray, tf.nest.flatten(x))]).any():
            rows, shown = first[::_PROBED_TIMES], min(self.count, _PROBED_VIEWS)
            samples, views = np.divmod(np.arange(len(rows)), shown)
            leaves = [np.stack(leaf) for leaf in zip(*rows, strict=True)]
            self.check_finite(leaves, samples, views)
        prints = [list(map(data_fingerprint, v)) for v in (expected, first, second)]
        if not prints[0] == prints[1] == prints[2]:
            raise ValueError(
                f"`augment` must be stateless: the same sample and seed must give the "
                f"same result. Received: augment={_called(self._single)}, which gave "
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
        if self.augment is None:
            return None
        if self.mixing is None:
            return data_fingerprint(self._probe(x, 1))
        count = len(tf.nest.flatten(x)[0])
        places, views = np.mgrid[:count, : min(self.count, _PROBED_VIEWS)].reshape(
            2, -1
        )
        with tf.device("CPU:0"):
            partners = self.partners(places, views, count)
            few, others = gathered(x, places), gathered(x, partners)
            seen, shares = self.mixed(places, views, few, others)
        told = [np.array(repr(self.mixing.among)), shares.numpy()]
        return data_fingerprint(told + [leaf.numpy() for leaf in tf.nest.flatten(seen)])

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
            drawn = seeds(self.seed, probes[:, 0], probes[:, 1])

        def made(place: Tensor, seed: Tensor) -> Structure:
            sample = tf.nest.map_structure(lambda array: array[place], held)
            try:
                seen = self._single(sample, seed)  # type: ignore[misc]
            except Exception as err:
                raised.append(
                    ValueError(
                        f"`augment` must be a function of a sample (tensors, without a "
                        f"batch axis) and a seed that TensorFlow can trace. Received: "
                        f"augment={_called(self._single)}, which raised "
                        f"{type(err).__name__}: {err}. Fix: def augment(x, seed), with "
                        f"operations of tf alone."
                    )
                )
                raise
            try:
                _check_augmented(self._single, sample, seen)
            except ValueError as err:
                raised.append(err)
                raise
            return tuple(tf.nest.flatten(seen))

        raised: list[ValueError] = []
        word = tf.TensorSpec([], tf.int64), tf.TensorSpec([2], tf.int64)
        try:
            traced = tf.function(made).get_concrete_function(*word)
        except Exception as err:  # as `raised`, with TensorFlow's trace around it
            if raised:
                raise raised[0] from None
            raise ValueError(
                f"`augment` must be a function that TensorFlow can trace. Received: "
                f"augment={_called(self._single)}: {err} Fix: def augment(x, seed), "
                f"with operations of tf alone."
            ) from err
        with tf.device("CPU:0"):
            results = [
                tuple(leaf.numpy() for leaf in traced(tf.constant(place), seed))
                for place, seed in zip(probes[:, 0], drawn, strict=True)
            ]
        shapes = [array.shape[1:] for array in tf.nest.flatten(held)]
        for result in results:
            if [leaf.shape for leaf in result] != shapes:
                raise ValueError(
                    f"`augment` must keep the shape of a sample. Received: {shapes[0]} "
                    f"in, {result[0].shape} out. Fix: crop and resize to the shape it "
                    f"came in."
                )
        return results

    def check_finite(
        self, leaves: Sequence[Array], samples: Array, views: Array
    ) -> None:
        """Checks that views of finite samples are finite too.

        Args:
            leaves: The arrays of some views, `(rows, ...)`.
            samples: Which sample each is of, `(rows,)`.
            views: Which of its views each is, `(rows,)`.

        Raises:
            ValueError: If one is not.
        """
        bad = not_finite(leaves)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"`augment` must give finite values for finite samples. Received: NaN "
                f"or infinity in view {views[row]} of sample {samples[row]}, by "
                f"augment={_called(self._single or self.augment)}. Fix: look for a "
                f"quotient, root or logarithm out of its range in it."
            )


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
