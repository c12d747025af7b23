"""The order of training on stored soft labels: samples and views, epoch by epoch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kdlite.distill.draws import hashed
from kdlite.distill.tracing import as_written

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any

_ORDER, _VIEWS = 1, 2  # what is drawn
_ROUNDS = 6
_POSITIONS_AT_ONCE = 1024
_NOT_BEGUN = -1


class Epochs:
    """Which sample comes when, and in which view: a function of seed and epoch alone.

    Orders and views are calculated where they are needed, so that they take no memory
    however many samples there are.

    Args:
        samples: Number of samples.
        views: Number of views of each.
        seed: For the order, and for which view comes first.
        shuffle: Whether the order changes.
        epoch: The first one.
    """

    def __init__(
        self, samples: int, views: int, seed: int, shuffle: bool, epoch: int
    ) -> None:
        self._samples = samples
        self._views = views
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = epoch
        self._lock = threading.Lock()

    def view(self, epoch: Tensor, places: Tensor) -> Tensor:
        """Returns which view an epoch has of a sample; K epochs have each of K once.

        Args:
            epoch: The epoch, int64.
            places: The samples' places in the data set, int64; or many of both.
        """
        views = tf.numpy_function(self._view, [epoch, places], tf.int64)
        views.set_shape(places.shape)
        return views

    def _view(self, epoch: Any, places: Array) -> Array:
        first = hashed(self._seed, _VIEWS, places) >> np.uint64(1)
        views = first.astype(np.int64) % self._views + epoch
        return (views % self._views).reshape(np.shape(places))

    def order(self, epoch: int, positions: Array) -> Array:
        """Returns the places of the samples that come at some positions of an epoch.

        A permutation of all places. It is that of a Feistel network over the smallest
        sufficient number of bits, gone through again from where it leads beyond the
        last sample until it leads to one.

        Args:
            epoch: The epoch.
            positions: From 0, int64.

        Returns:
            int64, of the same shape.

        Reference:
            Black, Rogaway 2002, Ciphers with Arbitrary Finite Domains, CT-RSA, method
            2.
        """
        if not self._shuffle:
            return positions
        half_bits = max(1, ((self._samples - 1).bit_length() + 1) // 2)
        shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
        last = np.uint64(self._samples - 1)

        def once(number: Array) -> Array:
            left, right = number >> shift, number & mask
            for turn in range(_ROUNDS):
                drawn = hashed(self._seed, _ORDER, epoch, turn, right)
                left, right = right, left ^ (drawn & mask)
            return (left << shift) | right

        places = once(np.asarray(positions, np.uint64))
        while (beyond := places > last).any():
            places[beyond] = once(places[beyond])
        return places.astype(np.int64)

    def places(self) -> tf.data.Dataset:
        """One epoch of `(epoch, place)`."""

        def ordered(epoch: Tensor, positions: Tensor) -> Structure:
            epoch, places = tf.numpy_function(
                self._ordered, [epoch, positions], (tf.int64, tf.int64)
            )
            epoch.set_shape([])
            places.set_shape(positions.shape)
            return epoch, (tf.fill(tf.shape(positions), epoch), places)

        blocks = tf.data.Dataset.range(self._samples).batch(_POSITIONS_AT_ONCE)
        not_begun = tf.constant(_NOT_BEGUN, tf.int64)
        return blocks.scan(not_begun, as_written(ordered)).unbatch()

    def shuffled(
        self, stream: Callable[[Tensor], tf.data.Dataset], buffer: int
    ) -> tf.data.Dataset:
        """Returns one epoch of `(epoch, place, parts)`.

        Args:
            stream: From an epoch's number, one pass of `(place, parts)`.
            buffer: Number of samples to shuffle among.
        """

        def ordered(_: Tensor) -> tf.data.Dataset:
            epoch = tf.numpy_function(self._begun, [], tf.int64)
            epoch.set_shape([])
            rows = stream(epoch)
            if self._shuffle:
                seed = tf.numpy_function(self._buffer_seed, [epoch], tf.int64)
                seed.set_shape([])
                tf.random.set_seed(1)  # of this function alone, so that none other acts
                rows = rows.shuffle(buffer, seed, reshuffle_each_iteration=False)
            return rows.map(as_written(lambda place, parts: (epoch, place, parts)))

        return tf.data.Dataset.range(1).flat_map(as_written(ordered))

    def counted(self, batches: tf.data.Dataset, count: int) -> tf.data.Dataset:
        """Strips the epoch off, and goes on to the next one with the last batch.

        Keras opens iterators that it does not read, or reads but one batch of to build
        a model: so neither an iterator that is opened nor what is prefetched counts,
        only a last batch that was handed out.

        Args:
            batches: One epoch of `(epoch, batch)`.
            count: Number of batches.
        """

        def handed_out(number: Tensor, numbered: Structure) -> Structure:
            epoch, batch = numbered
            last = tf.equal(number, count - 1)
            told = tf.numpy_function(self._handed_out, [epoch, last], tf.int64)
            with tf.control_dependencies([told]):
                return tf.nest.map_structure(tf.identity, batch)

        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        # Of several workers each makes all batches, and so counts all epochs, and takes
        # its share of them.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        batches = batches.enumerate().map(as_written(handed_out))
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
        return batches.with_options(options)

    # --- called from the pipeline's threads

    def _begun(self) -> Any:
        with self._lock:
            return np.int64(self._epoch)

    def _ordered(self, epoch: Any, positions: Array) -> tuple[Any, Array]:
        if epoch == _NOT_BEGUN:
            epoch = self._begun()
        return epoch, self.order(epoch, positions)

    def _handed_out(self, epoch: Any, last: Any) -> Any:
        if last:
            with self._lock:
                self._epoch = max(self._epoch, int(epoch) + 1)
        return np.int64(epoch)

    def _buffer_seed(self, epoch: Any) -> Any:
        drawn = hashed(self._seed, _ORDER, epoch)[0]
        return np.int64(1 + int(drawn) % (2**31 - 1))  # two zeros would mean any seed
