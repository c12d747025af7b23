"""Samples in a fixed order, whatever form the data set has, and views of them.

What is stored about a sample finds it again by its place in the data set, so the place
travels with the sample, and a `Witness` sees to it that the sample is the one that was
there before.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.distill.augment import Mixing
from kdlite.distill.tracing import as_written
from kdlite.fingerprint import rows_fingerprint

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any  # a tensor or array, or a dict or tuple of such
DataSet = Any  # arrays, a tf.data.Dataset or a keras.utils.PyDataset
Spec = list[list[Any]]  # [dtype, shape] of each array of a sample

_CHUNK_SAMPLES = 256
_FIRST_SAMPLES = 4
_REREAD_CHUNKS = 8


class Samples:
    """A data set as one sequence of samples `(x,)`, `(x, y)` or `(x, y, weight)`.

    Args:
        dataset: An array or a dict (several inputs) or list of arrays `x`; a tuple
            `(x,)`, `(x, y)` or `(x, y, sample_weight)` of such; a `tf.data.Dataset` of
            elements of these forms, batched or not; a `keras.utils.PyDataset`, read
            from its first batch to its last without its `on_epoch_begin/end`.
        batch_rank: Number of axes of a batch of the first array of `x`, by which a
            batched `tf.data.Dataset` is told from one that is not; `None`: batched.

    Attributes:
        arrays: The parts as tensors, if they are in memory, else `None`.
        count: Number of samples, `None` if not known without reading them all.
        batch_size: The data set's own, `None` if it is not in batches.
        spec: Type and shape of each array of a sample's `x`.

    Raises:
        TypeError: If the data set is of no such form.
        ValueError: If it is empty or endless, or its arrays do not match.
    """

    def __init__(self, dataset: DataSet, batch_rank: int | None = None) -> None:
        self.arrays: tuple[Structure, ...] | None = None
        self.count: int | None = None
        self.batch_size: int | None = None
        if isinstance(dataset, keras.utils.PyDataset):
            dataset = _read_in_order(dataset)
        if isinstance(dataset, tf.data.Dataset):
            self._batches = self._open(dataset, batch_rank)
        else:
            self._hold(dataset)

    def _hold(self, dataset: Structure) -> None:
        parts = dataset if isinstance(dataset, tuple) else (dataset,)
        _check_parts(parts)
        arrays = tuple(map(_as_arrays, parts))
        leaves = keras.tree.flatten(arrays)
        counts = {len(leaf) if leaf.ndim else None for leaf in leaves}
        if not leaves or len(counts) != 1 or None in counts:
            raise ValueError(
                f"All arrays must have the same number of samples, on their first "
                f"axis. Received: shapes={[leaf.shape for leaf in leaves]}. Fix: cut "
                f"them to the same samples."
            )
        (self.count,) = counts
        if not self.count:
            raise ValueError(_EMPTY)
        self.spec = _spec_of(keras.tree.flatten(arrays[0]))
        # In host memory, whatever devices there are: tf.data gathers from it there.
        with tf.device("CPU:0"):
            self.arrays = keras.tree.map_structure(tf.constant, arrays)

    def _open(self, dataset: Any, batch_rank: int | None) -> Any:
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                "A data set must end. Received: an endless tf.data.Dataset. Fix: leave "
                "out repeat(); take(n) cuts one."
            )
        spec = dataset.element_spec
        _check_parts(spec if isinstance(spec, tuple) else (spec,))
        leaves = tf.nest.flatten(spec)
        if not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
            raise TypeError(
                f"The data must be dense tensors. Received: elements of {spec}. Fix: "
                f"make sparse and ragged ones dense."
            )
        if not isinstance(spec, tuple):
            dataset = dataset.map(as_written(lambda x: (x,)))
            spec = (spec,)
        rank = tf.nest.flatten(spec[0])[0].shape.rank
        batched = batch_rank is None or rank is None or rank >= batch_rank
        if not batched:
            dataset = dataset.batch(_CHUNK_SAMPLES)
        first = next(iter(dataset.take(1)), None)
        if first is None:
            raise ValueError(_EMPTY)
        leaves = [leaf.numpy() for leaf in tf.nest.flatten(first[0])]
        if any(leaf.ndim == 0 for leaf in leaves):
            raise ValueError(
                f"A tf.data.Dataset must be in batches, or its samples must have the "
                f"shape of the model's input. Received: elements of {spec}. Fix: "
                f".batch(n)."
            )
        if batched:
            self.batch_size = len(leaves[0])
        self.spec = _spec_of(leaves)
        return dataset

    def read(self) -> Iterator[tuple[int, tuple[Structure, ...]]]:
        """Reads the samples in order, in batches of the data set's making.

        Yields:
            The place of the batch's first sample, and `(x[, y[, sample_weight]])`,
            tensors.

        Raises:
            ValueError: If the samples are of several shapes.
        """
        batches = self._batches if self.arrays is None else self._slices(self.arrays)
        start = 0
        for parts in batches:
            leaves = tf.nest.flatten(parts[0])
            _check_spec(_spec_of(leaves), self.spec, start)
            yield start, parts
            start += len(leaves[0])

    def _slices(self, arrays: tuple[Structure, ...]) -> Iterator[tuple[Structure, ...]]:
        for start in range(0, len(tf.nest.flatten(arrays)[0]), _CHUNK_SAMPLES):
            yield _sliced(arrays, start)

    def chunks(
        self, witness: Callable[..., Any] | None = None, x_alone: bool = False
    ) -> Any:
        """Returns the samples in order, in batches of the data set's making.

        Args:
            witness: Called as `witness(start, *arrays_of_x)` for each batch, in order,
                with the place of its first sample.
            x_alone: Leave out labels and weights, which may be of any shape.

        Returns:
            A `tf.data.Dataset` of `(places, parts)`: the places of the batch's samples,
            and `(x[, y[, sample_weight]])`.
        """

        def numbered(start: Tensor, parts: Structure) -> Structure:
            leaves = tf.nest.flatten(parts[0])
            told = []
            if witness is not None:
                told = [tf.numpy_function(witness, [start, *leaves], tf.int64)]
            with tf.control_dependencies(told):
                places = tf.range(start, start + length(parts))
            leaves = [
                tf.ensure_shape(leaf, [None, *shape])
                for leaf, (_, shape) in zip(leaves, self.spec, strict=True)
            ]
            others = () if x_alone else parts[1:]
            return places, (tf.nest.pack_sequence_as(parts[0], leaves), *others)

        def sliced(start: Tensor) -> Structure:
            return numbered(start, _sliced(self.arrays, start))

        def counted(start: Tensor, parts: Structure) -> Structure:
            return start + length(parts), numbered(start, parts)

        # One function in the pipeline, as each takes its time to be traced.
        if self.arrays is not None:
            starts = tf.data.Dataset.range(0, self.count, _CHUNK_SAMPLES)
            return starts.map(as_written(sliced))
        return self._batches.scan(tf.constant(0, tf.int64), as_written(counted))

    def at(self, places: Tensor) -> tuple[Structure, ...]:
        """Returns the parts of samples in memory.

        Args:
            places: One place or a batch of them.
        """
        return gathered(self.arrays, places)

    def numbered(
        self, witness: Callable[..., Any] | None = None, x_alone: bool = False
    ) -> Any:
        """Returns the samples one by one.

        Args:
            witness: As for `chunks`.
            x_alone: As for `chunks`.

        Returns:
            A `tf.data.Dataset` of `(place, parts)`.
        """
        return self.chunks(witness, x_alone).unbatch()

    def check_mixing(self, mixing: Mixing | None) -> None:
        """Checks that each sample's partners can be had.

        Args:
            mixing: How two samples are mixed, if they are.

        Raises:
            ValueError: If they may be anywhere in a data set that is not in memory.
        """
        if mixing is not None and mixing.among is None and self.arrays is None:
            raise ValueError(
                f"Samples are mixed with any other only in memory. Received: "
                f"{mixing!r} for a data set that is read in a stream. Fix: "
                f"{type(mixing).__name__}(among=4096), which holds so many at once, or "
                f"give arrays."
            )

    def fingerprints(self) -> Array:
        """Reads all samples and returns a 64-bit fingerprint of each `x`."""
        if self.arrays is not None:
            return rows_fingerprint(_numpy(self.arrays[0]))
        witness = Witness(self.spec)
        for start, parts in self.read():
            witness(start, *_numpy(tf.nest.flatten(parts[0])))
        return witness.take(0, witness.count)


class Witness:
    """Sees batches go by in order, notes what they were, compares with what is known.

    Args:
        spec: Type and shape that each sample must have.
        known: Fingerprints of the first samples.
        complete: Whether those are all; then nothing is noted.
        shard: `(i, n)`: every n-th sample from the i-th on, i from 1, is looked at; the
            others are only counted.
        finite: Whether a sample that is not known yet must be free of NaN and infinity.

    Attributes:
        count: Number of samples looked at.
        dataset_samples: Number of samples that went by.

    Raises:
        ValueError: When called with a sample of another shape or fingerprint, or with
            one that is not finite.
    """

    def __init__(
        self,
        spec: Spec,
        known: Array | None = None,
        complete: bool = False,
        shard: tuple[int, int] = (1, 1),
        finite: bool = False,
    ) -> None:
        self.count = 0
        self.dataset_samples = 0
        self._spec = spec
        self._known = np.zeros(0, np.uint64) if known is None else known
        self._complete = complete
        self._shard = shard
        self._finite = finite
        self._noted: list[Array] = []
        self._noted_from = 0
        self._lock = threading.Lock()
        self._error: ValueError | None = None

    def take(self, first: int, count: int) -> Array:
        """Returns fingerprints and forgets all up to there.

        Args:
            first: The place of the first.
            count: How many.
        """
        with self._lock:
            noted = np.concatenate([np.zeros(0, np.uint64), *self._noted])
            begin = first - self._noted_from
            self._noted = [noted[begin + count :]]
            self._noted_from = first + count
        return noted[begin : begin + count]

    def __call__(self, start: int, *leaves: Array) -> Any:
        """Looks at a batch whose first sample has the place `start`."""
        try:
            self._look(int(start), leaves)
        except ValueError as err:
            # A pipeline may ask for more behind an error, out of step with the places.
            self._error = self._error or err
            raise
        return np.int64(0)

    def _look(self, start: int, leaves: tuple[Array, ...]) -> None:
        _check_spec(_spec_of(leaves), self._spec, start)
        index, shards = self._shard[0] - 1, self._shard[1]
        offset = (index - start) % shards
        own = [leaf[offset::shards] for leaf in leaves]
        rows = rows_fingerprint(own)
        first = (start + offset - index) // shards
        known = self._known[first : first + len(rows)]
        differs = np.flatnonzero(rows[: len(known)] != known)
        if differs.size or (self._complete and len(known) < len(rows)):
            number = first + (int(differs[0]) if differs.size else len(known))
            raise ValueError(
                f"The data set must give the same samples in the same order each time. "
                f"Received: another sample {index + shards * number} than before. "
                f"{_ORDER_FIX}"
            )
        if self._finite:
            bad = not_finite([leaf[len(known) :] for leaf in own])
            if bad.any():
                number = first + len(known) + int(bad.argmax())
                raise ValueError(
                    f"The inputs must be finite. Received: NaN or infinity in sample "
                    f"{index + shards * number}. Fix: clean or drop this sample."
                )
        self.count = first + len(rows)
        self.dataset_samples = start + len(leaves[0])
        if not self._complete:
            with self._lock:
                self._noted.append(rows)

    def errors(self) -> _Unwrapped:
        """Raises what this witness raised in a pipeline as it was."""
        return _Unwrapped(self)


class _Unwrapped:
    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, tf.errors.OpError) and self._witness._error is not None:
            raise self._witness._error from None


def first_samples(samples: Samples) -> Structure:
    """Returns the `x` of the first few samples, as a batch.

    Args:
        samples: The data set.
    """
    batches = []
    for start, parts in samples.read():
        batches.append(_numpy(parts[0]))
        if start + len(tf.nest.flatten(parts[0])[0]) >= _FIRST_SAMPLES:
            break
    return tf.nest.map_structure(
        lambda *arrays: np.concatenate(arrays)[:_FIRST_SAMPLES], *batches
    )


def not_finite(leaves: Sequence[Array]) -> Array:
    """Returns for each sample whether it has a NaN or an infinity, `(samples,)` bool.

    Args:
        leaves: The arrays of some samples, `(samples, ...)`.
    """
    bad = np.zeros(len(leaves[0]), bool)
    for leaf in leaves:
        if leaf.dtype.kind in "fc" or leaf.dtype.name == "bfloat16":
            bad |= ~np.isfinite(leaf.reshape(len(leaf), leaf[:1].size)).all(-1)
    return bad


def check_same_samples(
    samples: Samples, spec: Spec, known: Array, shard: tuple[int, int] = (1, 1)
) -> None:
    """Checks that a data set has the samples that were labelled, in their order.

    Args:
        samples: The data set.
        spec: Type and shape of a labelled sample.
        known: Fingerprints of all labelled samples.
        shard: `(i, n)`: every n-th sample from the i-th on was labelled.

    Raises:
        ValueError: If other samples, more or fewer, or another order are found.
    """
    if samples.spec != spec:
        received = f"samples of {listed(samples.spec)}, labelled {listed(spec)}"
        raise ValueError(f"{_SAME_RULE} Received: {received}. {_SAME_FIX}")
    # Chunk by chunk: fingerprints of all samples are held only to tell what is wrong.
    witness = Witness(spec, known, complete=True, shard=shard)
    error: ValueError | None = None
    try:
        for start, parts in samples.read():
            witness(start, *_numpy(tf.nest.flatten(parts[0])))
    except ValueError as err:
        error = err
    if error is not None or witness.count != len(known):
        found = samples.fingerprints()[shard[0] - 1 :: shard[1]]
        raise _difference(found, known, shard) or error or ValueError(_SAME_RULE)
    if samples.arrays is None:
        # A shuffle with a seed can begin alike in each process, and go on otherwise.
        witness = Witness(spec, known, complete=True, shard=shard)
        for start, parts in itertools.islice(samples.read(), _REREAD_CHUNKS):
            witness(start, *_numpy(tf.nest.flatten(parts[0])))


def _difference(
    found: Array, known: Array, shard: tuple[int, int]
) -> ValueError | None:
    common = min(len(found), len(known))
    differs = np.flatnonzero(found[:common] != known[:common])
    first = differs[0] * shard[1] + shard[0] - 1 if differs.size else 0
    if differs.size and np.array_equal(np.sort(found), np.sort(known)):
        return ValueError(
            f"{_SAME_RULE} Received: the same samples in another order, sample "
            f"{first} being the first elsewhere. {_ORDER_FIX}"
        )
    if len(found) != len(known):
        received = f"{len(found):,} samples, labelled {len(known):,}"
    elif differs.size:
        received = (
            f"{differs.size:,} of {len(known):,} samples that are others, the first at "
            f"{first}"
        )
    else:
        return None
    return ValueError(f"{_SAME_RULE} Received: {received}. {_SAME_FIX}")


_SAME_RULE = "The data set must be the one that was labelled."
_SAME_FIX = "Fix: give the same samples in the same order, or label these."
_EMPTY = "A data set must have samples. Received: none. Fix: give at least one."
_ORDER_FIX = (
    "Fix: leave shuffling (in a tf.data pipeline or a PyDataset) and random "
    "augmentation to `attach` and `augment`, or give shuffle() "
    "reshuffle_each_iteration=False and a seed."
)


def _check_parts(parts: tuple[Any, ...]) -> None:
    if not 1 <= len(parts) <= 3 or any(part is None for part in parts):
        given = [None if part is None else "..." for part in parts]
        raise TypeError(
            f"A data set must be x, or a tuple (x,), (x, y) or (x, y, sample_weight). "
            f"Received: a tuple of {len(parts)}, {given}. Fix: leave out what is None; "
            f"give several inputs as a dict or list."
        )


def _read_in_order(dataset: Any) -> Any:
    """A PyDataset's batches from first to last, as a `tf.data.Dataset`."""
    count = dataset.num_batches
    if count is None:
        raise ValueError(
            "A data set must end. Received: a PyDataset with num_batches=None. Fix: "
            "give it a number of batches."
        )
    if count == 0:
        raise ValueError(_EMPTY)

    def batches() -> Iterator[Structure]:
        for index in range(count):
            batch = dataset[index]
            parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
            _check_parts(parts)
            yield tuple(map(_as_arrays, parts))

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec([None] * array.ndim, array.dtype), next(batches())
    )
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def _as_arrays(part: Structure) -> Structure:
    """Arrays in dicts and tuples; not in lists, which tf.data takes for one tensor."""
    if isinstance(part, dict):
        return {key: _as_arrays(item) for key, item in part.items()}
    if isinstance(part, (list, tuple)) and any(map(_is_input, part)):
        return tuple(_as_arrays(item) for item in part)
    return _array(part)


def _is_input(value: Any) -> bool:
    return isinstance(value, dict) or (hasattr(value, "shape") and np.ndim(value) > 0)


def _array(values: Any) -> Array:
    """An array as Keras takes it: numbers, text, and real numbers in `floatx`."""
    if isinstance(values, Mapping):  # of which numpy would make an array of the names
        raise TypeError(
            "Arrays must be given one by one, and several inputs as a dict. Received: "
            f"{type(values).__name__} with {', '.join(map(repr, values))}. Fix: "
            "(data['x'], data['y'])."
        )
    array = np.asarray(values)
    if array.dtype.kind == "f" and array.dtype != keras.config.floatx():
        array = array.astype(keras.config.floatx())
    text = array.dtype.kind in "SU" or (
        array.dtype.kind == "O" and all(isinstance(v, (str, bytes)) for v in array.flat)
    )
    if array.dtype.kind not in "biufcV" and not text:
        check_can_be_read_again(values, array)
        raise TypeError(
            f"The data must be arrays of numbers or strings. Received: "
            f"{type(values).__name__} of {array.dtype}. Fix: convert it with "
            f"np.asarray, or give a tf.data.Dataset."
        )
    return array


def check_can_be_read_again(values: Any, array: Array) -> None:
    """Refuses what only gives samples, one after the other.

    Args:
        values: What was given as an array.
        array: What numpy makes of it.

    Raises:
        TypeError: If it is a generator, an iterator, a loader of batches or a function
            that makes one.
    """
    if not array.ndim and array.dtype == object and not isinstance(values, str):
        if hasattr(values, "__iter__") or callable(values):
            raise TypeError(
                f"A data set must be arrays, a tf.data.Dataset or a "
                f"keras.utils.PyDataset: it is read more than once, and what is known "
                f"of a sample is found again by its place. Received: a "
                f"{type(values).__name__}, which gives its samples once, or in any "
                f"order. Fix: put them into arrays, or give tf.data.Dataset."
                f"from_generator(function, output_signature=...), whose function makes "
                f"it anew each time."
            )


def _spec_of(leaves: Any) -> Spec:
    return [[_type_name(leaf.dtype), [*leaf.shape[1:]]] for leaf in leaves]


def _type_name(dtype: Any) -> str:
    if isinstance(dtype, np.dtype) and dtype.kind in "OSU":
        return "string"
    return str(dtype.name)


def _check_spec(spec: Spec, expected: Spec, start: int) -> None:
    if spec != expected:
        raise ValueError(
            f"All samples must have the same shape. Received: {listed(spec)} from "
            f"sample {start} on, before {listed(expected)}. Fix: pad or resize them to "
            f"one shape."
        )


def _numpy(structure: Structure) -> Structure:
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), structure)


def listed(spec: Spec) -> str:
    """Returns types and shapes as text.

    Args:
        spec: Of each array of a sample.
    """
    return " and ".join(f"{dtype} {tuple(shape)}" for dtype, shape in spec)


def gathered(parts: Structure, at: Tensor) -> Structure:
    """Returns samples of a batch.

    Args:
        parts: The batch.
        at: Which, from 0.
    """
    return tf.nest.map_structure(lambda array: tf.gather(array, at), parts)


def _sliced(arrays: Structure, start: Any) -> Structure:
    return tf.nest.map_structure(
        lambda array: array[start : start + _CHUNK_SAMPLES], arrays
    )


def length(parts: Structure) -> Tensor:
    """Returns the number of samples in a batch, int64.

    Args:
        parts: The batch.
    """
    return tf.shape(tf.nest.flatten(parts)[0], tf.int64)[0]
