"""Stored soft labels: the teacher runs once, the student learns without it in memory.

Teacher logits are stored for each sample and, with an augmentation, for each of a few
views of it; in training the student is shown the very views that the teacher saw:

>>> import keras, numpy as np, tempfile
>>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
>>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
>>> folder = tempfile.mkdtemp()
>>> soft = SoftLabels.build(teacher, (x, y), folder)
>>> train = soft.attach((x, y), batch_size=2)
>>> inputs, labels = next(iter(train))
>>> inputs["inputs"].shape.as_list(), inputs["soft_labels"].shape.as_list()
([2, 4], [2, 3])
>>> bool(np.allclose(teacher(inputs["inputs"]), inputs["soft_labels"], atol=1e-5))
True

`Distiller(student).fit(train, shuffle=False)` takes it from there.
"""

from __future__ import annotations

import logging
import operator
import os
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.distill.epochs import Epochs
from kdlite.distill.label_store import (
    LabelWriter,
    Manifest,
    Origin,
    check_place,
    read_store,
)
from kdlite.distill.losses.outputs import compatible_shapes
from kdlite.distill.samples import (
    DataSet,
    Samples,
    Structure,
    Witness,
    check_same_samples,
    first_samples,
)
from kdlite.distill.taps import INPUTS_KEY, SOFT_LABELS_KEY, LogitsModel, logits_model
from kdlite.distill.views import Augment, Views
from kdlite.fingerprint import data_fingerprint, model_fingerprint

logger = logging.getLogger(__name__)

Tensor = Any
Array = np.ndarray[Any, Any]

_DEFAULT_BATCH_SIZE = 32
_SHUFFLE_BUFFER_BYTES = 256 << 20
_SHUFFLE_BUFFER_SAMPLES = 1024  # at least


class SoftLabels:
    """Teacher logits of a data set, stored on disk, by sample and view.

    Made by `SoftLabels.build` or `SoftLabels.load`; then `attach` joins them to the
    data for `Distiller.fit`. Fingerprints of the teacher, of each sample and of the
    augmentation are stored too, and anything that does not match is refused.

    Attributes:
        path: The folder they are in.
        views: Number of views of each sample.
        classes: Number of classes, the logits' last axis.
        teacher_fingerprint: Of the teacher, see `kdlite.fingerprint.model_fingerprint`.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x = np.eye(4, dtype="float32")
        >>> soft = SoftLabels.build(teacher, x, tempfile.mkdtemp())
        >>> len(soft), soft.classes, soft.logits().shape
        (4, 3, (4, 3))
    """

    def __init__(self, path: Path, manifest: Manifest, stored: tuple[Array, Array]):
        self.path = path
        self.views = manifest.origin.views
        self.classes = manifest.logits_shape[-1]
        self.teacher_fingerprint = manifest.origin.teacher
        self._origin = manifest.origin
        self._logits, self._samples = stored

    @classmethod
    def build(
        cls,
        teacher: keras.Model | LogitsModel,
        dataset: DataSet,
        path: str | os.PathLike[str],
        augment: Augment | None = None,
        views: int = 1,
        batch_size: int = 256,
        overwrite: bool = False,
        seed: int = 0,
        verbose: str | int = "auto",
    ) -> SoftLabels:
        """Runs the teacher over a data set and stores its logits.

        Killed at any moment, the same call goes on where it stopped; until it is done
        the store counts as unfinished and cannot be loaded. Called again when it is
        done, it checks the data and returns what is there. Labels and weights in the
        data set are not used: only `x` is labelled, in inference mode.

        Args:
            teacher: A `keras.Model` with one output of logits, class probabilities or
                sigmoids (the logits are found), or a `LogitsModel`.
            dataset: `x` (an array, or a dict or list of arrays), `(x, y)`,
                `(x, y, sample_weight)`, a `tf.data.Dataset` of such, batched or not, or
                a `keras.utils.PyDataset`. It must give the same samples in the same
                order each time. A dataset for a model without a graph must be batched.
            path: A new or empty folder, or one that a build was begun in.
            augment: `augment(x, seed)`, a stateless function from one sample (tensors,
                without a batch axis) and a seed (int64, shape `(2,)`, as
                `tf.image.stateless_*` take it) to a sample of the same shape and type.
                If given, every view is augmented; none is the plain sample.
            views: Number K of views of each sample; more than one needs `augment`.
            batch_size: Samples the teacher is run on at once.
            overwrite: Throw away whatever labels are at `path` and start anew.
            seed: From it, the sample's place and the view's number each view's own
                seed is drawn.
            verbose: 1 shows a progress bar, 0 none, `"auto"` one on a terminal.

        Returns:
            The soft labels.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of range, `augment` is not stateless or
                changes shape or type, or if what is stored at `path` was begun with
                another teacher, data set, augmentation, number of views or seed.
            FileExistsError: If at `path` is something else.
            RuntimeError: If another process is building there.

        Example:
            >>> import keras, numpy as np, tempfile, tensorflow as tf
            >>> def flip(x, seed):
            ...     return tf.image.stateless_random_flip_left_right(x, seed)
            >>> teacher = keras.Sequential(
            ...     [keras.Input((2, 2, 1)), keras.layers.Flatten()]
            ... )
            >>> teacher.add(keras.layers.Dense(3))
            >>> x = np.arange(20, dtype="float32").reshape(5, 2, 2, 1)
            >>> soft = SoftLabels.build(
            ...     teacher, x, tempfile.mkdtemp(), augment=flip, views=4
            ... )
            >>> soft.logits(view=3).shape
            (5, 3)
        """
        path = Path(path)
        views = _checked_int("views", views, least=1)
        batch_size = _checked_int("batch_size", batch_size, least=1)
        seed = _checked_int("seed", seed, least=0)
        show = _checked_verbose(verbose)
        _check_callable(augment)
        logits = logits_model(teacher, needs=None, role="teacher")
        fingerprint = model_fingerprint(logits.model)
        check_place(path)
        samples = Samples(dataset, _batch_rank(logits.model, dataset))
        _check_taken(logits, samples)
        looks = Views(augment, views, seed)
        few = first_samples(samples)
        looks.check(few)
        origin = Origin(
            teacher=fingerprint,
            sample_spec=samples.spec,
            first_samples=data_fingerprint(few),
            views=views,
            seed=seed,
            augment=looks.fingerprint(few),
        )
        with LabelWriter(path, origin, overwrite) as writer:
            _label(writer, logits, samples, looks, batch_size, show)
        return cls.load(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        teacher: keras.Model | LogitsModel | None = None,
    ) -> SoftLabels:
        """Opens stored soft labels; the logits stay on disk, mapped into memory.

        Args:
            path: The folder given to `build`.
            teacher: If given, the labels must be this teacher's.

        Returns:
            The soft labels.

        Raises:
            FileNotFoundError: If there are none.
            ValueError: If they are unfinished, truncated or changed, or of another
                teacher.
        """
        path = Path(path)
        manifest, *stored = read_store(path)
        soft = cls(path, manifest, (stored[0], stored[1]))
        if teacher is not None:
            model = logits_model(teacher, needs=None, role="teacher").model
            fingerprint = model_fingerprint(model)
            if fingerprint != soft.teacher_fingerprint:
                raise ValueError(
                    f"The soft labels must be the given teacher's. Received: teacher "
                    f"'{model.name}' with fingerprint {fingerprint[:12]}, labels by "
                    f"{soft.teacher_fingerprint[:12]} at {path}. Fix: load the teacher "
                    f"that made them, or build them anew."
                )
        return soft

    def attach(
        self,
        dataset: DataSet,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        augment: Augment | None = None,
        drop_remainder: bool = False,
        initial_epoch: int = 0,
    ) -> tf.data.Dataset:
        """Joins the soft labels to their data, for `Distiller.fit`.

        Elements are `({"inputs": x, "soft_labels": logits}, y, sample_weight)`, without
        `y` or `sample_weight` if the data set has none; logits are float32,
        `(batch, ..., classes)`.

        Each iteration is one epoch: a new order, and for each sample another of its K
        views, so that K epochs use each once. Both depend on `seed` and the epoch
        alone. An iteration that is left before its last batch does not count: the next
        one is the same epoch. Arrays are held in memory and shuffled as a whole; a
        `tf.data.Dataset` or `PyDataset` is shuffled in a buffer of 256 MB of samples,
        and each pass over it is checked to be in the order of the stored labels.

        Args:
            dataset: The data that were labelled, the same samples in the same order, in
                any of the forms that `build` takes; labels and weights are free.
            batch_size: `None`: that of the data set if it is in batches, else 32.
            shuffle: Whether the order changes; views change all the same.
            seed: For the order, and for which view comes first.
            augment: The one given to `build`.
            drop_remainder: Leave out the last batch if it is not full.
            initial_epoch: The epoch of the first iteration: for a training that goes
                on, the number of epochs it has done.

        Returns:
            A `tf.data.Dataset`, one epoch an iteration; `repeat()` is not needed. Fit
            with `shuffle=False`: Keras warns that it leaves such data in their order.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If the data set is not the one that was labelled, `augment` is
                not the one it was labelled with, or an argument is out of range.

        Example:
            >>> import keras, numpy as np, tempfile
            >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            >>> x, y = np.eye(4, dtype="float32"), np.arange(4)
            >>> soft = SoftLabels.build(teacher, x, tempfile.mkdtemp())
            >>> for inputs, labels in soft.attach((x, y), batch_size=4, seed=1):
            ...     print(sorted(inputs), sorted(labels.numpy().tolist()))
            ['inputs', 'soft_labels'] [0, 1, 2, 3]
        """
        seed = _checked_int("seed", seed, least=0)
        epoch = _checked_int("initial_epoch", initial_epoch, least=0)
        if batch_size is not None:
            batch_size = _checked_int("batch_size", batch_size, least=1)
        _check_callable(augment)
        samples = Samples(dataset, len(self._origin.sample_spec[0][1]) + 1)
        batch_size = batch_size or samples.batch_size or _DEFAULT_BATCH_SIZE
        if drop_remainder and batch_size > len(self):
            raise ValueError(
                f"There must be a full batch if the rest is left out. Received: "
                f"batch_size={batch_size}, {len(self)} samples, drop_remainder=True. "
                f"Fix: a smaller batch, or drop_remainder=False."
            )
        check_same_samples(samples, self._origin.sample_spec, self._samples)
        looks = Views(augment, self.views, self._origin.seed)
        self._check_augment(looks, samples)
        epochs = Epochs(len(self), self.views, seed, bool(shuffle), epoch)
        return self._batches(samples, looks, epochs, batch_size, drop_remainder)

    def _check_augment(self, looks: Views, samples: Samples) -> None:
        if looks.augment is None and self._origin.augment is None:
            return
        if looks.augment is None:
            received = "augment=None, for labels of augmented views"
        elif self._origin.augment is None:
            received = "an augment, for labels of the plain samples"
        elif looks.fingerprint(first_samples(samples)) != self._origin.augment:
            received = "an augment that makes other views of the first samples"
        else:
            return
        raise ValueError(
            f"`augment` must be the one the labels were built with, so that the "
            f"student sees what the teacher saw. Received: {received}. Fix: give the "
            f"same function as to SoftLabels.build, or build anew with this one."
        )

    def _batches(
        self,
        samples: Samples,
        looks: Views,
        epochs: Epochs,
        batch_size: int,
        drop_remainder: bool,
    ) -> tf.data.Dataset:
        def made(epoch: Tensor, places: Tensor, *streamed: Structure) -> Structure:
            (parts,) = streamed or (samples.at(places),)
            views = epochs.view(epoch, places)
            logits = tf.numpy_function(self._rows, [places, views], tf.float32)
            logits.set_shape([*places.shape, *self._logits.shape[2:]])
            x = looks.view(places, views, parts[0])
            inputs = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits}
            return epoch[0], (inputs, *parts[1:])

        in_memory = samples.arrays is not None
        rows = epochs.places() if in_memory else self._stream(samples, epochs)
        batches = rows.batch(batch_size, drop_remainder)
        batches = batches.map(made, tf.data.AUTOTUNE, deterministic=True)
        count = (
            len(self) // batch_size if drop_remainder else -(-len(self) // batch_size)
        )
        return epochs.counted(batches.prefetch(tf.data.AUTOTUNE), count)

    def _stream(self, samples: Samples, epochs: Epochs) -> tf.data.Dataset:
        """The samples of a data set that is not in memory, shuffled in a buffer."""
        stream = samples.numbered(Witness(samples.spec, self._samples, complete=True))
        sample_bytes = sum(
            int(np.prod(shape)) * (1 if dtype == "string" else tf.as_dtype(dtype).size)
            for dtype, shape in samples.spec
        )
        fitting = _SHUFFLE_BUFFER_BYTES // max(1, sample_bytes)
        buffer = min(len(self), max(_SHUFFLE_BUFFER_SAMPLES, fitting))
        return epochs.shuffled(stream, buffer)

    def _rows(self, places: Array, views: Array) -> Array:
        return np.asarray(self._logits[places, views], np.float32)

    def logits(self, view: int = 0) -> Array:
        """Returns the logits of one view of all samples, in the data set's order.

        Args:
            view: Its number, from 0 to `views - 1`.

        Returns:
            float32 `(samples, ..., classes)`, mapped from disk, read-only.

        Raises:
            ValueError: If there is no such view.
        """
        if not 0 <= _checked_int("view", view, least=0) < self.views:
            raise ValueError(
                f"`view` must be one of those stored. Received: view={view}, stored "
                f"0 to {self.views - 1}."
            )
        return self._logits[:, view]

    def to_dict(self) -> dict[str, Any]:
        """Returns what these labels are, as plain JSON."""
        return {
            "path": str(self.path),
            "samples": len(self),
            "views": self.views,
            "classes": self.classes,
            "augmented": self._origin.augment is not None,
            "bytes": self._logits.nbytes,
            "teacher": self.teacher_fingerprint,
        }

    def __len__(self) -> int:
        return len(self._samples)

    def __str__(self) -> str:
        views = f" x {self.views} views" if self.views > 1 else ""
        return (
            f"Soft labels of {len(self):,} samples{views}, {self.classes} classes, by "
            f"teacher {self.teacher_fingerprint[:12]}: "
            f"{self._logits.nbytes / 1024:,.0f} KiB in {self.path}"
        )

    def __repr__(self) -> str:
        return (
            f"SoftLabels({str(self.path)!r}, samples={len(self)}, views={self.views}, "
            f"classes={self.classes}, teacher={self.teacher_fingerprint[:12]!r})"
        )


def _label(
    writer: LabelWriter,
    logits: LogitsModel,
    samples: Samples,
    looks: Views,
    batch_size: int,
    show: bool,
) -> None:
    """Labels the samples that are not in the store yet."""
    manifest = writer.manifest
    if manifest.finished:
        check_same_samples(samples, manifest.origin.sample_spec, writer.known)
        logger.info("soft labels at %s are complete", writer.path)
        return
    if manifest.samples:
        logger.info("going on after %d samples at %s", manifest.samples, writer.path)
    views = looks.count
    samples_at_once = max(1, batch_size // views)  # a batch holds whole samples
    rows_at_once = samples_at_once * views

    def all_views(start: Tensor, parts: Structure) -> Structure:
        x = tf.nest.map_structure(
            lambda array: tf.repeat(array, views, axis=0), parts[0]
        )
        rows = tf.range(tf.shape(tf.nest.flatten(x)[0], tf.int64)[0])
        return start + rows // views, rows % views, x

    def filled(x: Structure) -> Structure:
        """A batch of full size, so that the teacher is traced once."""
        count = tf.shape(tf.nest.flatten(x)[0])[0]
        rows = tf.minimum(tf.range(rows_at_once), count - 1)
        return tf.nest.map_structure(lambda array: tf.gather(array, rows), x), count

    run = tf.function(lambda x: logits(x, training=False))
    witness = Witness(samples.spec, writer.known)
    batches = (
        samples.chunks(witness)
        .map(all_views)
        .unbatch()
        .skip(manifest.samples * views)
        .batch(rows_at_once)
        .map(looks.view, tf.data.AUTOTUNE, deterministic=True)
        .map(filled)
        .prefetch(2)
    )
    bar = None
    if show:
        target = samples.count and samples.count * views
        bar = keras.utils.Progbar(target, verbose=1, unit_name="label")
    with witness.errors():
        for x, count in batches:
            rows = _checked_logits(run(x).numpy()[: int(count)], logits)
            rows = rows.reshape(-1, views, *rows.shape[1:])
            done = writer.manifest.samples
            writer.append(rows, witness.take(done, len(rows)))
            if bar is not None:
                bar.update((done + len(rows)) * views)
    if witness.count < manifest.samples:
        raise ValueError(
            f"The data set must be the one that labelling was begun with. Received: "
            f"{witness.count} samples, when {manifest.samples} are labelled. Fix: give "
            f"the same data, another path, or overwrite=True."
        )
    writer.commit(finished=True)
    if bar is not None and bar.target is None:
        bar.update(writer.manifest.samples * views, finalize=True)


def _checked_logits(rows: Array, teacher: LogitsModel) -> Array:
    least = 1 if teacher.outputs in ("sigmoid", "values") else 2
    if rows.ndim < 2 or rows.shape[-1] < least:
        raise ValueError(
            f"Soft labels are over two classes or more. Received: teacher "
            f"'{teacher.name}' with logits {rows.shape}. Fix: give a classifier with "
            f"two logits or more, or with a sigmoid."
        )
    if not np.isfinite(rows).all():
        raise ValueError(
            f"The teacher's logits must be finite. Received: NaN or infinity from "
            f"teacher '{teacher.name}'. Fix: check its weights and the data's range."
        )
    return rows


def _batch_rank(model: keras.Model, dataset: DataSet) -> int | None:
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


def _check_taken(logits: LogitsModel, samples: Samples) -> None:
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


def _checked_int(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(
            f"`{name}` must be an integer. Received: {name}={value!r}. Fix: give a "
            f"whole number from {least} on."
        )
    if not least <= number < 2**63:
        raise ValueError(
            f"`{name}` must be at least {least} and below 2**63. Received: "
            f"{name}={value}. Fix: give a whole number from {least} on."
        )
    return number


def _checked_verbose(verbose: str | int) -> bool:
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(
            f"`verbose` must be 'auto', 0, 1 or 2. Received: verbose={verbose!r}. Fix: "
            f"1 for a progress bar, 0 for none."
        )
    return sys.stdout.isatty() if verbose == "auto" else verbose == 1


def _check_callable(augment: Any) -> None:
    if augment is not None and not callable(augment):
        raise TypeError(
            f"`augment` must be a function of a sample and a seed. Received: "
            f"augment={augment!r}. Fix: def augment(x, seed): ..."
        )
