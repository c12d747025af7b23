"""What a student is shown: samples in the epoch's order and view, with their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kdlite.distill.augment import mixed_targets
from kdlite.distill.epochs import Epochs
from kdlite.distill.samples import Samples, Structure, Witness, gathered
from kdlite.distill.taps import FEATURES_KEY, INPUTS_KEY, SOFT_LABELS_KEY
from kdlite.distill.tracing import as_written
from kdlite.distill.views import Views

Tensor = Any
Array = np.ndarray[Any, Any]

_SHUFFLE_BUFFER_BYTES = 256 << 20
_SHUFFLE_BUFFER_SAMPLES = 1024  # at least
_TENSOR_BYTES = 512  # what a sample's array takes in the buffer beside its values


def training_batches(
    samples: Samples,
    looks: Views,
    epochs: Epochs,
    batch_size: int,
    drop_remainder: bool,
    *,
    rows: Callable[[Array, Array], Array],
    logits_shape: Sequence[int],
    known: Array,
    features: Mapping[str, tuple[Callable[[Array, Array], Array], Sequence[int]]],
) -> tf.data.Dataset:
    """Joins samples, their views and their labels, one epoch an iteration.

    Args:
        samples: The data set that was labelled.
        looks: The views that were.
        epochs: The order of samples and views.
        batch_size: Samples in a batch.
        drop_remainder: Leave out the last batch if it is not full.
        rows: From the samples' places and the views' numbers, `(batch,)` each, their
            logits, float32 `(batch, ..., classes)`.
        logits_shape: Of one sample.
        known: Fingerprints of all samples.
        features: By the teacher's layer what `rows` and `logits_shape` are for it.
    """
    mixing = looks.mixing
    witness = Witness(samples.spec, known, complete=True)

    def seen(places: Tensor, views: Tensor, parts: Structure) -> Structure:
        return looks.view(places, views, parts[0]), *parts[1:]

    def mixed(
        places: Tensor, views: Tensor, parts: Structure, partners: Structure
    ) -> Structure:
        x, shares = looks.mixed(places, views, parts[0], partners[0])
        return x, *mixed_targets(parts[1:], partners[1:], shares, logits_shape)

    def mixed_blocks(epoch: Tensor, size: int) -> tf.data.Dataset:
        def of_block(places: Tensor, parts: Structure) -> Structure:
            views = epochs.view(epoch, places)
            partners = looks.partners(places, views, places[-1] + 1)
            partners = gathered(parts, partners - places[0])
            return places, mixed(places, views, parts, partners)

        blocks = samples.numbered(witness).batch(size)
        shown = blocks.map(as_written(of_block), tf.data.AUTOTUNE, deterministic=True)
        return shown.unbatch()

    def made(epoch: Tensor, places: Tensor, *streamed: Structure) -> Structure:
        views = epochs.view(epoch, places)

        def stored(
            rows: Callable[[Array, Array], Array], shape: Sequence[int]
        ) -> Tensor:
            values = tf.numpy_function(rows, [places, views], tf.float32)
            values.set_shape([*places.shape, *shape])
            return values

        if mixing is None:
            (parts,) = streamed or (samples.at(places),)
            parts = seen(places, views, parts)
        elif streamed:
            (parts,) = streamed  # mixed before they were shuffled
        else:
            partners = samples.at(looks.partners(places, views, samples.count))
            parts = mixed(places, views, samples.at(places), partners)
        x = {INPUTS_KEY: parts[0], SOFT_LABELS_KEY: stored(rows, logits_shape)}
        if features:
            x[FEATURES_KEY] = {name: stored(*each) for name, each in features.items()}
        return epoch[0], (x, *parts[1:])

    count = len(known)
    buffer = _buffer(samples, count)
    if samples.arrays is not None:
        numbered = epochs.places()
    elif mixing is not None and mixing.among is not None:
        among = mixing.among
        numbered = epochs.shuffled(lambda epoch: mixed_blocks(epoch, among), buffer)
    else:
        numbered = epochs.shuffled(lambda _: samples.numbered(witness), buffer)
    batches = numbered.batch(batch_size, drop_remainder)
    batches = batches.map(as_written(made), tf.data.AUTOTUNE, deterministic=True)
    number = count // batch_size if drop_remainder else -(-count // batch_size)
    return epochs.counted(batches.prefetch(tf.data.AUTOTUNE), number)


def _buffer(samples: Samples, count: int) -> int:
    """How many samples that are not in memory are shuffled at once."""
    sample_bytes = sum(
        int(np.prod(shape)) * (1 if dtype == "string" else tf.as_dtype(dtype).size)
        + _TENSOR_BYTES
        for dtype, shape in samples.spec
    )
    fitting = _SHUFFLE_BUFFER_BYTES // sample_bytes
    return min(count, max(_SHUFFLE_BUFFER_SAMPLES, fitting))
