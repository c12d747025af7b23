"""The teacher runs over a data set, and what it says goes into a store."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.distill.label_store import LabelWriter
from kdlite.distill.losses.outputs import compatible_shapes
from kdlite.distill.samples import (
    DataSet,
    Samples,
    Structure,
    Witness,
    check_same_samples,
    gathered,
)
from kdlite.distill.taps import LogitsModel
from kdlite.distill.tracing import as_written
from kdlite.distill.views import Views
from kdlite.progress import Progress

logger = logging.getLogger(__name__)

Tensor = Any
Array = np.ndarray[Any, Any]


def label(
    writer: LabelWriter,
    logits: LogitsModel,
    samples: Samples,
    looks: Views,
    batch_size: int,
    verbose: str | int,
) -> None:
    """Labels the samples that are not in the store yet."""
    manifest = writer.manifest
    shard = manifest.origin.part
    if manifest.finished:
        check_same_samples(samples, manifest.origin.sample_spec, writer.known, shard)
        logger.info("soft labels at %s are complete", writer.path)
        return
    if manifest.samples:
        logger.info("going on after %d samples at %s", manifest.samples, writer.path)
    views = looks.count
    samples_at_once = max(1, batch_size // views)  # a batch holds whole samples
    rows_at_once = samples_at_once * views

    def all_views(places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all views of some samples: which sample, its place, the view's number."""
        each = tf.range(tf.size(places) * views)
        which = each // views
        return which, tf.gather(places, which), tf.cast(each % views, tf.int64)

    def with_partners(places: Tensor, parts: Structure) -> Structure:
        """A block, in which are all partners, with those of each view."""
        _, at, numbers = all_views(places)
        partners = looks.partners(at, numbers, places[-1] + 1) - places[0]
        return places, parts, gathered(parts[0], tf.reshape(partners, [-1, views]))

    def seen(places: Tensor, parts: Structure, *partners: Structure) -> Structure:
        """A batch of views, of full size, so that the teacher is traced once."""
        which, at, numbers = all_views(places)
        x = gathered(parts[0], which)
        if looks.mixing is None:
            shown = looks.view(at, numbers, x)
        elif partners:
            others = tf.nest.map_structure(
                lambda array: tf.reshape(array, [-1, *array.shape[2:]]), partners[0]
            )
            shown, _ = looks.mixed(at, numbers, x, others)
        else:
            others = samples.at(looks.partners(at, numbers, samples.count))[0]
            shown, _ = looks.mixed(at, numbers, x, others)
        count = tf.size(which)
        rows = tf.minimum(tf.range(rows_at_once), count - 1)
        return gathered(shown, rows), count

    run = tf.function(lambda x: logits(x, training=False))
    witness = Witness(samples.spec, writer.known, shard=shard, finite=True)
    among = looks.mixing.among if looks.mixing and samples.arrays is None else None
    numbered = samples.numbered(witness, x_alone=True)
    if among:
        numbered = numbered.batch(among).map(as_written(with_partners)).unbatch()
    batches = (
        numbered.shard(shard[1], shard[0] - 1)
        .skip(manifest.samples)
        .batch(samples_at_once)
        .map(as_written(seen), tf.data.AUTOTUNE, deterministic=True)
        .prefetch(2)
    )
    total = None
    if samples.count is not None:
        total = len(range(shard[0] - 1, samples.count, shard[1])) * views
    before = manifest.samples * views
    progress = Progress("labelling", total, "label", verbose, before)
    with witness.errors():
        for x, count in batches:
            done = writer.manifest.samples
            if looks.augment is not None:
                each, view = np.divmod(np.arange(int(count)), views)
                leaves = [leaf[: int(count)].numpy() for leaf in tf.nest.flatten(x)]
                places = shard[0] - 1 + shard[1] * (done + each)
                looks.check_finite(leaves, places, view)
            rows = _checked_logits(run(x).numpy()[: int(count)], logits)
            rows = rows.reshape(-1, views, *rows.shape[1:])
            writer.append(rows, witness.take(done, len(rows)))
            progress.update((done + len(rows)) * views)
    if witness.count < manifest.samples:
        raise ValueError(
            f"The data set must be the one that labelling was begun with. Received: "
            f"{witness.count} samples, when {manifest.samples} are labelled. Fix: give "
            f"the same data, another path, or overwrite=True."
        )
    writer.commit(witness.dataset_samples)
    progress.close()


def _checked_logits(rows: Array, teacher: LogitsModel) -> Array:
    classes = teacher.needs in (None, "class logits") and teacher.outputs != "sigmoid"
    least = 2 if classes else 1
    if rows.ndim < 2 or rows.shape[-1] < least:
        raise ValueError(
            f"Soft labels are over two classes or more. Received: teacher "
            f"'{teacher.name}' with logits {rows.shape}. Fix: a classifier with two "
            f"logits or more, or LogitsModel(teacher, needs='independent logits' or "
            f"'values') where it is none."
        )
    if not np.isfinite(rows).all():
        raise ValueError(
            f"The teacher's logits must be finite. Received: NaN or infinity from "
            f"teacher '{teacher.name}'. Fix: check its weights and the data's range."
        )
    return rows


def batch_rank(model: keras.Model, dataset: DataSet) -> int | None:
    """Number of axes of a batch of the first input, if the model says so."""
    inputs = getattr(model, "inputs", None)
    if not inputs or not isinstance(dataset, tf.data.Dataset):
        return None
    spec = dataset.element_spec
    x = spec[0] if isinstance(spec, tuple) else spec
    names = {tensor.name: len(tensor.shape) for tensor in inputs}
    if isinstance(x, dict) and min(x) in names:  # the first, as structures are sorted
        return names[min(x)]
    return len(inputs[0].shape)


def check_taken(logits: LogitsModel, samples: Samples) -> None:
    """Checks that the teacher takes such samples, as far as its graph says."""
    inputs = getattr(logits.model, "inputs", None) or ()
    taken = [tuple(tensor.shape[1:]) for tensor in inputs]
    given = [tuple(shape) for _, shape in samples.spec]
    if len(taken) == len(given) == 1 and not any(
        # Keras itself adds or takes a last axis of 1.
        compatible_shapes(wanted, shape)
        for wanted, shape in (
            (taken[0], given[0]),
            (taken[0], (*given[0], 1)),
            ((*taken[0], 1), given[0]),
        )
    ):
        raise ValueError(
            f"Samples must have the shape that the teacher takes. Received: samples of "
            f"{given}, teacher '{logits.name}' takes {taken}. Fix: resize or reshape "
            f"the data, or give the teacher they are for."
        )
