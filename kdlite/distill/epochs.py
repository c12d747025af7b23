"""The order of training on stored soft labels: samples and views, epoch by epoch."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any


class Epochs:
    """Which sample comes when, and in which view: a function of seed and epoch alone.

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
        first_views = self._rng(0).integers(views, size=samples)
        with tf.device("CPU:0"):
            self._first_views = tf.constant(first_views, tf.int64)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(
            np.random.SeedSequence(self._seed, spawn_key=purpose)
        )

    def view(self, epoch: Tensor, place: Tensor) -> Tensor:
        """Returns which view an epoch has of a sample; K epochs have each of K once.

        Args:
            epoch: The epoch, int64.
            place: The sample's place in the data set, int64; or many of both.
        """
        return (tf.gather(self._first_views, place) + epoch) % self._views

    def places(self) -> tf.data.Dataset:
        """One epoch of `(epoch, place)`."""

        def ordered(_: Tensor) -> tf.data.Dataset:
            epoch = tf.numpy_function(self._begun, [], tf.int64)
            order = tf.numpy_function(self._order, [epoch], tf.int64)
            epoch.set_shape([])
            order.set_shape([self._samples])
            epochs = tf.data.Dataset.from_tensors(epoch).repeat()
            return tf.data.Dataset.zip(
                (epochs, tf.data.Dataset.from_tensor_slices(order))
            )

        return tf.data.Dataset.range(1).flat_map(ordered)

    def shuffled(self, stream: tf.data.Dataset, buffer: int) -> tf.data.Dataset:
        """Returns one epoch of `(epoch, place, parts)`.

        Args:
            stream: One pass of `(place, parts)`.
            buffer: Number of samples to shuffle among.
        """

        def ordered(_: Tensor) -> tf.data.Dataset:
            epoch = tf.numpy_function(self._begun, [], tf.int64)
            epoch.set_shape([])
            rows = stream
            if self._shuffle:
                seed = tf.numpy_function(self._buffer_seed, [epoch], tf.int64)
                seed.set_shape([])
                tf.random.set_seed(1)  # of this function alone, so that none other acts
                rows = rows.shuffle(buffer, seed, reshuffle_each_iteration=False)
            return rows.map(lambda place, parts: (epoch, place, parts))

        return tf.data.Dataset.range(1).flat_map(ordered)

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
            told = tf.cond(
                tf.equal(number, count - 1),
                lambda: tf.numpy_function(self._ended, [epoch], tf.int64),
                lambda: epoch,
            )
            with tf.control_dependencies([told]):
                return tf.nest.map_structure(tf.identity, batch)

        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        # Another process would have its own count of epochs.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.OFF
        )
        batches = batches.enumerate().map(handed_out)
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
        return batches.with_options(options)

    # --- called from the pipeline's threads

    def _begun(self) -> Any:
        with self._lock:
            return np.int64(self._epoch)

    def _ended(self, epoch: Any) -> Any:
        with self._lock:
            self._epoch = max(self._epoch, int(epoch) + 1)
        return np.int64(epoch)

    def _order(self, epoch: Any) -> Array:
        if not self._shuffle:
            return np.arange(self._samples, dtype=np.int64)
        return self._rng(1, int(epoch)).permutation(self._samples).astype(np.int64)

    def _buffer_seed(self, epoch: Any) -> Any:
        return self._rng(1, int(epoch)).integers(1, 2**31 - 1)
