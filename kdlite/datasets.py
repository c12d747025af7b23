"""Data to try kdlite on: Fashion-MNIST, whole and checked.

Nothing here needs TensorFlow, except Keras's download where the files are nowhere near.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdlite.progress import Progress

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_VALIDATION_IMAGES = 5_000
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")  # what TensorFlow reads
_OTHER_IMAGES = (".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jfif")
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FIX = (
    "Delete it and fetch it again, or install Debian's package dataset-fashion-mnist, "
    "or set KDLITE_DATA_DIR to a folder with the four published .gz files."
)


class _PublishedFile(NamedTuple):
    """What a file of the data set must be, to the byte."""

    name: str
    size_bytes: int
    sha256: str
    shape: tuple[int, ...]


_TRAIN_IMAGES = _PublishedFile(
    "train-images-idx3-ubyte.gz",
    26_421_856,
    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    (60_000, 28, 28, 1),
)
_TRAIN_LABELS = _PublishedFile(
    "train-labels-idx1-ubyte.gz",
    29_491,
    "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    (60_000,),
)
_TEST_IMAGES = _PublishedFile(
    "t10k-images-idx3-ubyte.gz",
    4_422_079,
    "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    (10_000, 28, 28, 1),
)
_TEST_LABELS = _PublishedFile(
    "t10k-labels-idx1-ubyte.gz",
    5_125,
    "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    (10_000,),
)
_FILES = (_TRAIN_IMAGES, _TRAIN_LABELS, _TEST_IMAGES, _TEST_LABELS)


class Split(NamedTuple):
    """One part of a data set; ``model.fit(*split)`` takes it as it is.

    Attributes:
        x: Images, uint8 in 0 to 255, shape ``(images, height, width, channels)``.
        y: Class indices, int64, shape ``(images,)``.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FashionMNIST:
    """Fashion-MNIST in three parts, so that nothing is chosen on the test set.

    Attributes:
        train: The first 55,000 images of the published training set.
        validation: Its last 5,000 images: for every choice that is made.
        test: The published test set, 10,000 images: to be looked at once, at the end.
        class_names: The ten names, in the order of the labels.
        folder: Where the files lie.
    """

    train: Split = field(repr=False)
    validation: Split = field(repr=False)
    test: Split = field(repr=False)
    class_names: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        parts = ", ".join(
            f"{len(split.y):,} {name}" for name, split in self._splits().items()
        )
        return (
            f"Fashion-MNIST: {parts} images of 28x28x1, "
            f"{len(self.class_names)} classes, from {self.folder}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the sizes, the names and the folder, as JSON takes them."""
        return {
            **{name: len(split.y) for name, split in self._splits().items()},
            "class_names": list(self.class_names),
            "folder": str(self.folder),
        }

    def _splits(self) -> dict[str, Split]:
        return {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }


def fashion_mnist() -> FashionMNIST:
    """Reads Fashion-MNIST from the nearest place, each file checked.

    The places, in order: the folder that the environment variable ``KDLITE_DATA_DIR``
    names (the files themselves, or a subfolder ``fashion-mnist`` with them), Debian's
    package ``dataset-fashion-mnist``, Keras's cache, and last a download by
    ``keras.datasets``.

    Returns:
        The images, uint8 of shape ``(images, 28, 28, 1)`` in 0 to 255 on black, with
        int64 labels in 0 to 9, split into 55,000 for training, 5,000 for validation
        and 10,000 for testing.

    Raises:
        ValueError: If a file has another size or checksum than the published one, or
            ``KDLITE_DATA_DIR`` lacks a file.
        OSError: If the files are nowhere and Keras cannot download them.

    Example:
        >>> data = fashion_mnist()
        >>> data.train.x.shape, data.train.x.dtype
        ((55000, 28, 28, 1), dtype('uint8'))
        >>> data.class_names[data.test.y[0]]
        'Ankle boot'

    Reference:
        Xiao, Rasul, Vollgraf (2017). Fashion-MNIST: a novel image dataset for
        benchmarking machine learning algorithms. arXiv:1708.07747. Licence: MIT.
    """
    folder = find_fashion_mnist() or _download()
    x, y = _read(folder, _TRAIN_IMAGES), _read(folder, _TRAIN_LABELS)
    x_test, y_test = _read(folder, _TEST_IMAGES), _read(folder, _TEST_LABELS)
    cut = len(x) - _VALIDATION_IMAGES
    return FashionMNIST(
        train=Split(x[:cut], y[:cut].astype(np.int64)),
        validation=Split(x[cut:], y[cut:].astype(np.int64)),
        test=Split(x_test, y_test.astype(np.int64)),
        class_names=FASHION_MNIST_CLASSES,
        folder=folder,
    )


def find_fashion_mnist() -> Path | None:
    """Returns the nearest folder with all four files, or None; reads none of them.

    Raises:
        ValueError: If ``KDLITE_DATA_DIR`` is set, and a file is missing there.
    """
    if named := os.environ.get("KDLITE_DATA_DIR"):
        folder = Path(named).expanduser()
        if (folder / "fashion-mnist").is_dir():
            folder /= "fashion-mnist"
        if missing := _missing(folder):
            raise ValueError(
                "KDLITE_DATA_DIR must name a folder with Fashion-MNIST's four files. "
                f"Received: KDLITE_DATA_DIR={named!r}, where {missing[0]} is missing. "
                "Put the published .gz files there, or unset the variable."
            )
        return folder
    for folder in (_DEBIAN_FOLDER, _keras_cache()):
        if not _missing(folder):
            return folder
    return None


def _missing(folder: Path) -> list[str]:
    return [file.name for file in _FILES if not (folder / file.name).is_file()]


def _keras_cache() -> Path:
    """The folder that ``keras.datasets`` downloads into, known without Keras."""
    home = os.environ.get("KERAS_HOME")
    if home is None:
        user = os.path.expanduser("~")
        base = user if os.access(user, os.W_OK) else tempfile.gettempdir()
        home = os.path.join(base, ".keras")
    return Path(home).expanduser() / "datasets" / "fashion-mnist"


def _download() -> Path:
    import keras

    folder = _keras_cache()
    try:
        # For the files it leaves behind: the arrays it returns are not checked.
        keras.datasets.fashion_mnist.load_data()
    except Exception as err:  # Keras raises a bare Exception for a failed download
        if _missing(folder):
            raise OSError(
                "Fashion-MNIST was found nowhere and Keras could not download it. "
                f"Received: {str(err).rstrip('.')}. Install Debian's package "
                "dataset-fashion-mnist, or set KDLITE_DATA_DIR to a folder with the "
                "four published .gz files."
            ) from err
    return folder


def _read(folder: Path, file: _PublishedFile) -> NDArray[np.uint8]:
    path = folder / file.name
    data = path.read_bytes()
    if len(data) != file.size_bytes:
        raise ValueError(
            f"{file.name} must have {file.size_bytes} bytes. "
            f"Received: {path} with {len(data)} bytes. {_FIX}"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != file.sha256:
        raise ValueError(
            f"{file.name} must have the sha256 {file.sha256}. "
            f"Received: {path} with {sha256}. {_FIX}"
        )
    # The idx form: a magic number and the length of each axis (an image has two), each
    # of 4 bytes, then the values.
    header_bytes = 4 + 4 * min(len(file.shape), 3)
    values = np.frombuffer(gzip.decompress(data), np.uint8, offset=header_bytes)
    return values.reshape(file.shape)


@dataclass(frozen=True, eq=False)
class Samples:
    """A user's own data, as arrays.

    Attributes:
        x: Inputs, ``(samples, ...)``.
        y: Class indices, ``(samples,)``, or None where there are none.
        class_names: The names of the classes, where the data tell them.
    """

    x: NDArray[Any] = field(repr=False)
    y: NDArray[Any] | None = field(repr=False)
    class_names: tuple[str, ...] | None = None

    def split(self, share: float) -> tuple[Samples, Samples]:
        """Holds back an evenly spread part, the same in every run.

        One of each so many samples, drawn: data in the order of their classes give up
        some of each class, and so do data in which the classes take turns.

        Args:
            share: The part to hold back, above 0 and up to 0.5.

        Returns:
            The rest, and the part held back.

        Raises:
            ValueError: There is one sample at most, which cannot be in both.
        """
        if len(self.x) < 2:
            raise ValueError(
                "A part is held back of two samples or more. Received: "
                f"{len(self.x)}. Fix: give more samples, or validation or test data of "
                "their own."
            )
        count, every = len(self.x), round(1 / share)
        starts = np.arange(0, count, every)
        lengths = np.minimum(every, count - starts)
        held = np.zeros(count, bool)
        held[starts + np.random.default_rng(0).integers(0, lengths)] = True

        def part(rows: NDArray[np.bool_]) -> Samples:
            y = None if self.y is None else self.y[rows]
            return Samples(self.x[rows], y, self.class_names)

        return part(~held), part(held)


def load(
    path: str | Path,
    shape: tuple[int | None, ...] | None,
    class_names: Sequence[str] | None = None,
    needs_y: bool = True,
    classes: int | None = None,
) -> Samples:
    """Reads samples from an ``.npz`` file or a folder of images.

    A folder that lacks a class, as a part held back may, has the labels of the others
    only where ``class_names`` say which these are.

    Args:
        path: An ``.npz`` with an array ``x`` (and ``y``), or a folder with one
            subfolder of images (PNG, JPEG, BMP, GIF) a class.
        shape: One sample's shape, as the model takes it; images are resized to it
            (bilinear), to grey or colour by its channels, as float32 in 0..255. None
            where the model does not say, which will do for an ``.npz``.
        class_names: The names of all classes in the order of their indices; a folder
            may lack some. By default its subfolders in alphabetical order.
        needs_y: Whether an ``.npz`` without ``y`` is an error.
        classes: How many classes the model has: without ``class_names`` a folder must
            have as many subfolders. None where labels do not matter.

    Returns:
        The samples.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: The file is no ``.npz``, lacks an array, or the folder has no
            images, or subfolders that are none of the classes.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, shape, class_names, classes)
    if not path.exists():
        raise FileNotFoundError(
            f"Data must exist. Received: {path}, which is not there. Name an .npz file "
            "or a folder with one subfolder of images a class."
        )
    arrays = read_npz(path)
    for name in ("x", "y") if needs_y else ("x",):
        if name not in arrays:
            raise ValueError(
                f"A data file must have the array {name!r}. Received: {path} with "
                f"{sorted(arrays)}. Write it with np.savez(path, x=x, y=y)."
            )
    y = arrays.get("y")
    counts = {a.shape[:1] for a in (arrays["x"], y) if a is not None}
    if len(counts) > 1 or () in counts:
        shapes = {name: arrays[name].shape for name in ("x", "y") if name in arrays}
        raise ValueError(
            "A data file must have one row of each array a sample. Received: "
            f"{path} with {', '.join(f'{n} {s}' for n, s in shapes.items())}. Write "
            "samples and labels in the same order, as many of each."
        )
    if y is not None and y.ndim > 1:
        # Never the first axis: there may be a single sample.
        y = np.squeeze(y, tuple(a for a in range(1, y.ndim) if y.shape[a] == 1))
    return Samples(arrays["x"], y)


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Reads all arrays of an ``.npz``.

    Args:
        path: The file.

    Returns:
        The arrays by name.

    Raises:
        ValueError: NumPy cannot read it, or it holds objects.
    """
    try:
        # Opened here: given a path, numpy leaves a broken file open.
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("It holds a single array.")
            return dict(stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise ValueError(
            f"A data file must be an .npz of plain arrays. Received: {path}, and numpy "
            f"says: {str(err).rstrip('.')}. Write it with np.savez(path, x=x, y=y)."
        ) from err


def _load_folder(
    path: Path,
    shape: tuple[int | None, ...] | None,
    class_names: Sequence[str] | None,
    classes: int | None,
) -> Samples:
    if shape is None or len(shape) != 3 or None in shape or shape[-1] not in (1, 3):
        received = "that does not say what it takes" if shape is None else "that takes "
        raise ValueError(
            "A folder of images needs a model that takes (height, width, 1 or 3). "
            f"Received: a model {received}{shape or ''}. Give an .npz instead."
        )
    warn_of_other_images(path)
    found = subfolders(path)
    names = _all_classes(path, found, class_names, classes)
    present = [name for name in names if name in found]
    files = {name: image_files(path / name) for name in present}
    empty = [name for name in found if not files[name]]
    if empty:
        raise ValueError(
            f"Each class must have images. Received: {path} without any in "
            f"{', '.join(empty)}. Add images (PNG, JPEG, BMP, GIF), or remove the "
            "subfolder."
        )
    x = read_images([file for name in present for file in files[name]], shape)
    y = [names.index(name) for name in present for _ in files[name]]
    return Samples(x, np.array(y, np.int32), names)


def image_files(folder: Path, suffixes: Sequence[str] = _IMAGES) -> list[Path]:
    """Returns the images in a folder and its subfolders, in a fixed order.

    Args:
        folder: A folder. What a system or a notebook hides in it, such as `._1.png` or
            `.ipynb_checkpoints`, is none of its images.
        suffixes: What names of images end in.
    """
    found = (
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    return sorted(found, key=lambda file: (str(file.parent), file.name))


def warn_of_other_images(folder: Path) -> None:
    """Warns of images in a folder and its subfolders that nobody here can read.

    Args:
        folder: One that `image_files` looks into.
    """
    if others := image_files(folder, _OTHER_IMAGES):
        kinds = sorted({file.suffix.lower() for file in others})
        warnings.warn(
            "Images must be PNG, JPEG, BMP or GIF to be read. Received: "
            f"{len(others)} of {', '.join(kinds)} in {folder}, which are passed over. "
            "Fix: save them as PNG.",
            stacklevel=2,
        )


def read_images(files: Sequence[Path], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Reads images, resized (bilinear), as Keras reads a folder of them.

    Args:
        files: One or more images.
        shape: `(height, width, 1 or 3)`, by which they become grey or coloured.

    Returns:
        float32 `(images, height, width, channels)`, from 0 to 255.

    Raises:
        ValueError: TensorFlow cannot read one, which is named.
    """
    import tensorflow as tf

    def decoded(content: Any, channels: int) -> Any:
        return tf.io.decode_image(content, channels, expand_animations=False)

    def read(path: Any) -> Any:
        content = tf.io.read_file(path)
        if shape[-1] == 1:  # which TensorFlow has of PNG and JPEG alone
            image = tf.cond(
                tf.reduce_any(tf.strings.substr(content, 0, 2) == [b"BM", b"GI"]),
                lambda: tf.image.rgb_to_grayscale(decoded(content, 3)),
                lambda: decoded(content, 1),
            )
        else:
            image = decoded(content, 3)
        return tf.ensure_shape(tf.image.resize(image, shape[:2]), shape)

    paths = [str(file) for file in files]
    images = tf.data.Dataset.from_tensor_slices(paths).map(read, tf.data.AUTOTUNE)
    progress = Progress("reading", len(paths), "image")
    x = np.empty((len(paths), *(length or 0 for length in shape)), np.float32)
    try:
        for index, image in enumerate(images.as_numpy_iterator()):
            x[index] = image
            progress.update(index + 1)
    except tf.errors.InvalidArgumentError as err:  # it names no file
        raise ValueError(
            "Each image must be one that TensorFlow can read (PNG, JPEG, BMP, GIF). "
            f"Received: {_unreadable(paths)}. Mend or remove it."
        ) from err
    return x


def subfolders(path: Path) -> list[str]:
    """Returns the subfolders of images, sorted, one a class.

    Args:
        path: A folder. What a system or a notebook hides in it, such as
            `.ipynb_checkpoints`, is no class, for Keras as well.
    """
    return sorted(
        folder.name
        for folder in path.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
    )


def _all_classes(
    path: Path,
    found: Sequence[str],
    class_names: Sequence[str] | None,
    classes: int | None,
) -> tuple[str, ...]:
    """The names of all classes in the order of their indices, of which some are found.

    Which of them a folder lacks, the folder cannot tell: labels would be shifted.
    """
    if not found:
        raise ValueError(
            "A folder of images must have one subfolder a class. Received: "
            f"{path} without any. Sort the images into subfolders named like the "
            "classes."
        )
    if class_names is not None:
        unknown = [name for name in found if name not in class_names]
        if unknown:
            raise ValueError(
                "Each subfolder of images must be named like a class. Received: "
                f"{', '.join(map(repr, unknown))} in {path}, where {list(class_names)} "
                "were named. Fix: rename the subfolder or take it away, or name the "
                "classes like the subfolders: --labels FILE."
            )
        return tuple(class_names)
    if classes is not None and len(found) != classes:
        few = ", ".join([*found[:5], *(["..."] if len(found) > 5 else [])])
        raise ValueError(
            "A folder of images must have one subfolder a class, where the classes are "
            f"not named. Received: {path} with {len(found)} subfolders ({few}) for a "
            f"model of {classes} classes. Fix: name all classes in the order of the "
            "model's output, in a file, one a line: --labels FILE."
        )
    return tuple(found)


def _unreadable(paths: Sequence[str]) -> str:
    """Returns the first image that cannot be read, and why, in a few words."""
    import tensorflow as tf

    for path in paths:
        try:
            tf.io.decode_image(tf.io.read_file(path), expand_animations=False)
        except tf.errors.OpError as err:
            # What ran it, {{function_node ...}} and [Op:...], says nothing to anyone.
            said = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", err.message.splitlines()[0])
            return f"{path} ({said.strip(' .')})"
    return "one that cannot be read a second time"
