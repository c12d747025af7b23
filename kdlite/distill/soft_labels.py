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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.counts import checked_count
from kdlite.distill.augment import Augment, Mixing
from kdlite.distill.epochs import Epochs
from kdlite.distill.label_forms import LabelForm
from kdlite.distill.label_manifest import MANIFEST, Origin
from kdlite.distill.label_shards import merge_shards
from kdlite.distill.label_store import (
    LabelStore,
    LabelWriter,
    check_place,
    shard_folder,
    shard_folders,
)
from kdlite.distill.labelling import batch_rank, check_taken, label
from kdlite.distill.samples import (
    DataSet,
    Samples,
    check_same_samples,
    first_samples,
)
from kdlite.distill.stored_features import (
    FEATURE_DTYPE,
    check_same_labels,
    check_size,
    feature_folder,
    feature_folders,
    feature_models,
)
from kdlite.distill.taps import LogitsModel, logits_model
from kdlite.distill.training_batches import training_batches
from kdlite.distill.views import Views
from kdlite.fingerprint import data_fingerprint, model_fingerprint
from kdlite.progress import verbosity

logger = logging.getLogger(__name__)

Tensor = Any
Array = np.ndarray[Any, Any]

_DEFAULT_BATCH_SIZE = 32


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
        features: Paths of the teacher's layers whose features are stored too.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x = np.eye(4, dtype="float32")
        >>> soft = SoftLabels.build(teacher, x, tempfile.mkdtemp())
        >>> len(soft), soft.classes, soft.logits().shape
        (4, 3, (4, 3))
    """

    def __init__(self, path: Path, store: LabelStore):
        self.path = path
        self._store = store
        self._origin = store.manifest.origin
        self._logits_shape = tuple(store.manifest.logits_shape)
        self.views = self._origin.views
        self.classes = self._logits_shape[-1] if len(self) else 0
        self.teacher_fingerprint = self._origin.teacher
        self._features: dict[str, SoftLabels] = {}
        for layer, folder in feature_folders(path).items():
            self._features[layer] = SoftLabels.load(folder)
            check_same_labels(layer, self._features[layer]._origin, self._origin)

    @classmethod
    def build(
        cls,
        teacher: keras.Model | LogitsModel,
        dataset: DataSet,
        path: str | os.PathLike[str],
        augment: Augment | Mixing | None = None,
        views: int = 1,
        batch_size: int = 256,
        overwrite: bool = False,
        seed: int = 0,
        verbose: str | int = "auto",
        *,
        dtype: str = "float32",
        top_k: int | None = None,
        shard: tuple[int, int] | None = None,
        features: Sequence[str] = (),
        max_feature_bytes: float = 4e9,
    ) -> SoftLabels:
        """Runs the teacher over a data set and stores its logits.

        Killed at any moment, the same call goes on where it stopped; until it is done
        the store counts as unfinished and cannot be loaded. Called again when it is
        done, it checks the data and returns what is there. Labels and weights in the
        data set are not used: only `x` is labelled, in inference mode.

        Args:
            teacher: A `keras.Model` with one output of logits, class probabilities or
                sigmoids (the logits are found), or a `LogitsModel`: for a single linear
                unit, or the values of an activation for `kdlite.losses.Regression`,
                `LogitsModel(teacher, needs="values")`.
            dataset: `x` (an array, or a dict or list of arrays), `(x, y)`,
                `(x, y, sample_weight)`, a `tf.data.Dataset` of such, batched or not, or
                a `keras.utils.PyDataset`. It must give the same samples in the same
                order each time. A dataset for a model without a graph must be batched.
            path: A new or empty folder, or one that a build was begun in.
            augment: `augment(x, seed)`, a stateless function from one sample (tensors,
                without a batch axis) and a seed (int64, shape `(2,)`, as
                `tf.image.stateless_*` take it) to a sample of the same shape and type.
                If given, every view is augmented; none is the plain sample. Or one of
                `kdlite.augment`, `Mixup` or `CutMix`, which mix two samples.
            views: Number K of views of each sample; more than one needs `augment`.
            batch_size: Samples the teacher is run on at once.
            overwrite: Throw away whatever labels are at `path` and start anew.
            seed: From it, the sample's place and the view's number each view's own
                seed is drawn.
            verbose: 1 shows a progress bar, 2 logs a line each half minute, 0 neither;
                `"auto"` is a bar on a terminal, else lines.
            dtype: `"float32"`, or `"float16"` for half the size: see `LabelForm` for
                what it changes.
            top_k: Store only so many of each sample's largest logits, and the mass of
                all others: see `LabelForm` for what the student is told then. `None`
                stores all.
            shard: `(i, n)` labels every n-th sample, from the i-th on, i from 1, into
                the folder `shard-i-of-n` in that at `path`: for n workers, each with
                another i and the whole data set. `SoftLabels.merge` puts them together.
            features: Paths of layers of the teacher, as in `feature_losses`, whose
                features are stored as well, in float16, one folder and one more run of
                the teacher for each; `Distiller` then needs no teacher for losses on
                them.
            max_feature_bytes: Most bytes of all features; what they will take is
                computed before anything is labelled, where the number of samples is
                known.

        Returns:
            The soft labels; of a shard those of its samples, to be merged before use.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of range, `augment` is not stateless or
                changes shape or type, a sample is not finite, or if what is stored at
                `path` was begun with another teacher, data set, augmentation, number of
                views, seed or form.
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
        views = checked_count("views", views, least=1)
        batch_size = checked_count("batch_size", batch_size, least=1)
        seed = checked_count("seed", seed, least=0)
        verbose = verbosity(verbose)
        _check_callable(augment)
        if top_k is not None:
            top_k = checked_count("top_k", top_k, least=1)
        LabelForm(dtype, top_k)
        root = path
        check_place(path)
        if shard is not None:
            shard = _checked_shard(shard)
            path = shard_folder(path, shard)
            check_place(path)
        logits = logits_model(teacher, needs=None, role="teacher")
        if top_k is not None and logits.outputs in ("sigmoid", "values"):
            raise ValueError(
                f"`top_k` is of classes that share one mass. Received: top_k={top_k}, "
                f"teacher '{logits.name}' with outputs={logits.outputs!r}. Fix: "
                f"top_k=None; dtype='float16' halves the size."
            )
        fingerprint = model_fingerprint(logits.model)
        samples = Samples(dataset, batch_rank(logits.model, dataset))
        check_taken(logits, samples)
        looks = Views(augment, views, seed)
        few = first_samples(samples)
        looks.check(few)
        samples.check_mixing(looks.mixing)
        origin = Origin(
            teacher=fingerprint,
            sample_spec=samples.spec,
            first_samples=data_fingerprint(few),
            views=views,
            seed=seed,
            augment=looks.fingerprint(few),
            dtype=dtype,
            top_k=top_k,
            shard=None if shard is None else list(shard),
            outputs=logits.outputs,
        )
        models = feature_models(logits, features)
        room = (few, views, max_feature_bytes)
        if samples.count is not None:
            check_size(models, samples.count, *room)
        with LabelWriter(path, origin, overwrite) as writer:
            label(writer, logits, samples, looks, batch_size, verbose)
        if samples.count is None and shard is None:
            check_size(models, len(cls.load(path)), *room)
        for layer, model in models.items():
            cls.build(
                *(model, dataset, feature_folder(root, layer), augment, views),
                *(batch_size, overwrite, seed, verbose),
                dtype=FEATURE_DTYPE,
                shard=shard,
            )
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
        if shard_folders(path) and not (path / MANIFEST).exists():
            raise ValueError(
                f"Shards are merged before they are used. Received: {path}, with "
                f"{len(shard_folders(path))} shards. Fix: SoftLabels.merge(path)."
            )
        soft = cls(path, LabelStore(path))
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

    @classmethod
    def merge(cls, path: str | os.PathLike[str], overwrite: bool = False) -> SoftLabels:
        """Puts together what `build` made with each `shard=(i, n)` of a number n.

        The shards' folders must be in that at `path`, where the whole is written, the
        same as if one worker had built it. They are left as they are and not needed any
        more. Killed at any moment, the same call goes on where it stopped.

        Args:
            path: The folder given to `build`.
            overwrite: Throw away whatever whole is at `path` and merge anew.

        Returns:
            The soft labels of the whole data set.

        Raises:
            FileNotFoundError: If there are no shards.
            ValueError: If a shard is missing, doubled, unfinished, damaged, or of other
                labels than the rest; all such are named.

        Example:
            >>> import keras, numpy as np, tempfile
            >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            >>> x, folder = np.eye(4, dtype="float32"), tempfile.mkdtemp()
            >>> for i in (1, 2):  # on two machines, say
            ...     shard = SoftLabels.build(teacher, x, folder, shard=(i, 2))
            >>> len(shard), len(SoftLabels.merge(folder))
            (2, 4)
        """
        path = Path(path)
        merge_shards(path, overwrite)
        for folder in feature_folders(path).values():
            merge_shards(folder, overwrite)
        return cls.load(path)

    def attach(
        self,
        dataset: DataSet,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        augment: Augment | Mixing | None = None,
        drop_remainder: bool = False,
        initial_epoch: int = 0,
    ) -> tf.data.Dataset:
        """Joins the soft labels to their data, for `Distiller.fit`.

        Elements are `({"inputs": x, "soft_labels": logits}, y, sample_weight)`, without
        `y` or `sample_weight` if the data set has none; logits are float32,
        `(batch, ..., classes)`. Stored features come beside them, as `"features"`, a
        dict by the layers' paths of float32 `(batch, ...)`. Where samples are mixed,
        `y` are rows of class shares, as `kdlite.augment.Mixup` says.

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
        if self._origin.shard is not None:
            raise ValueError(
                f"Labels are attached to the whole data set. Received: those of shard "
                f"{self._origin.shard[0]} of {self._origin.shard[1]}. Fix: "
                f"SoftLabels.merge('{self.path.parent}') first."
            )
        seed = checked_count("seed", seed, least=0)
        epoch = checked_count("initial_epoch", initial_epoch, least=0)
        if batch_size is not None:
            batch_size = checked_count("batch_size", batch_size, least=1)
        _check_callable(augment)
        samples = Samples(dataset, len(self._origin.sample_spec[0][1]) + 1)
        batch_size = batch_size or samples.batch_size or _DEFAULT_BATCH_SIZE
        if drop_remainder and batch_size > len(self):
            raise ValueError(
                f"There must be a full batch if the rest is left out. Received: "
                f"batch_size={batch_size}, {len(self)} samples, drop_remainder=True. "
                f"Fix: a smaller batch, or drop_remainder=False."
            )
        check_same_samples(samples, self._origin.sample_spec, self._store.samples)
        looks = Views(augment, self.views, self._origin.seed)
        self._check_augment(looks, samples)
        samples.check_mixing(looks.mixing)
        epochs = Epochs(len(self), self.views, seed, bool(shuffle), epoch)
        return training_batches(
            samples,
            looks,
            epochs,
            batch_size,
            drop_remainder,
            rows=self._rows,
            logits_shape=self._logits_shape,
            known=self._store.samples,
            features={
                layer: (stored._rows, stored._logits_shape)
                for layer, stored in self._features.items()
            },
        )

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

    def _rows(self, places: Array, views: Array) -> Array:
        return self._store.rows(places, views)

    def logits(self, view: int = 0, places: Any = None) -> Array:
        """Returns the logits of one view, as the student is told them.

        Args:
            view: Its number, from 0 to `views - 1`.
            places: The samples' places in the data set, integers from 0 on, or a
                slice; `None`: all, in its order.

        Returns:
            float32 `(samples, ..., classes)`; if that is how they are stored, all are
            mapped from disk, read-only, else they are in memory.

        Raises:
            TypeError: If `places` are not integers.
            ValueError: If there is no such view or sample.
        """
        if not 0 <= checked_count("view", view, least=0) < self.views:
            raise ValueError(
                f"`view` must be one of those stored. Received: view={view}, stored "
                f"0 to {self.views - 1}."
            )
        if places is None:
            places = slice(None)
        elif not isinstance(places, slice):
            places = self._checked_places(places)
        return self._store.rows(places, view)

    def _checked_places(self, places: Any) -> Array:
        numbers = np.asarray(places)
        if numbers.dtype.kind not in "iu" and numbers.size:
            raise TypeError(
                f"`places` must be integers, or a slice. Received: {numbers.dtype} of "
                f"shape {numbers.shape}. Fix: np.flatnonzero(mask) makes places of a "
                f"mask."
            )
        wrong = numbers[(numbers < 0) | (numbers >= len(self))]
        if wrong.size:
            raise ValueError(
                f"`places` are those of samples in the data set, counted from 0. "
                f"Received: {int(wrong.flat[0])}, of {len(self):,} samples. Fix: "
                f"places from 0 to {len(self) - 1}."
            )
        return numbers.astype(np.int64)

    @property
    def features(self) -> tuple[str, ...]:
        """Paths of the teacher's layers whose features are stored too."""
        return tuple(self._features)

    def to_dict(self) -> dict[str, Any]:
        """Returns what these labels are, as plain JSON."""
        return {
            "path": str(self.path),
            "samples": len(self),
            "views": self.views,
            "classes": self.classes,
            "augmented": self._origin.augment is not None,
            "dtype": self._origin.dtype,
            "top_k": self._origin.top_k,
            "shard": self._origin.shard,
            "bytes": self._store.nbytes,
            "teacher": self.teacher_fingerprint,
            "outputs": self._origin.outputs,
            "features": {
                layer: {
                    "shape": list(stored._logits_shape),
                    "bytes": stored._store.nbytes,
                }
                for layer, stored in self._features.items()
            },
        }

    def __len__(self) -> int:
        return len(self._store.samples)

    def __str__(self) -> str:
        views = f" x {self.views} views" if self.views > 1 else ""
        text = (
            f"Soft labels of {len(self):,} samples{views}, {self.classes} classes, by "
            f"teacher {self.teacher_fingerprint[:12]}: "
            f"{self._store.nbytes / 1024:,.0f} KiB in {self.path}"
        )
        for layer, stored in self._features.items():
            text += f", {stored._store.nbytes / 1024:,.0f} KiB of features of {layer!r}"
        return text

    def __repr__(self) -> str:
        return (
            f"SoftLabels({str(self.path)!r}, samples={len(self)}, views={self.views}, "
            f"classes={self.classes}, teacher={self.teacher_fingerprint[:12]!r})"
        )


def _checked_shard(shard: Any) -> tuple[int, int]:
    try:
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        raise TypeError(
            f"`shard` must be two integers (i, n). Received: shard={shard!r}. Fix: "
            f"(1, 4) for the first of four."
        ) from None
    if not 1 <= index <= count < 2**31:
        raise ValueError(
            f"`shard` must be (i, n) with i from 1 to n. Received: shard={shard!r}. "
            f"Fix: (1, n) for the first of n, (n, n) for the last."
        )
    return index, count


def _check_callable(augment: Any) -> None:
    if not (augment is None or callable(augment) or isinstance(augment, Mixing)):
        raise TypeError(
            f"`augment` must be a function of a sample and a seed, Mixup or CutMix. "
            f"Received: augment={augment!r}. Fix: def augment(x, seed): ..."
        )
