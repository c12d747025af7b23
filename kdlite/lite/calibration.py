"""Samples that say what a model's input looks like: the forms they come in, the checks.

The converter finds the range of every activation by running samples through the model.
It believes whatever it is given: from no samples or a NaN it makes a float file without
a word, from an inf a crash, from pixels where numbers around zero belong a useless
model. So samples are checked here, before anything is converted.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.compress.met_statistics import met_statistics
from kdlite.datasets import (
    image_files,
    load,
    read_images,
    read_npz,
    subfolders,
    warn_of_other_images,
)
from kdlite.lite.names import by_name

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

# Below this, ranges still change markedly with the choice of samples.
FEW_SAMPLES = 100
# Two draws from the same data differ in what their values span by far less.
_SCALES_APART = 20.0
_FEW_TO_COMPARE = 8
_COMPARED = 64
# Beyond a few hundred samples, the ranges that calibration finds hardly move.
MOST_SAMPLES = 1000
_MOST_NAMED = 5


@dataclass(frozen=True)
class InputSpec:
    """What an input takes.

    Attributes:
        name: The input's name, in Keras as in the file.
        shape: The shape of one sample, without the batch; None where any length will
            do.
        dtype: The name of its NumPy dtype.
        low_high: The least and the greatest value it is made for, if known.
        whole: Whether the model takes whole numbers, whatever the dtype here.
        vocabulary: Of ids, the Embedding with the fewest rows that takes them, and how
            many it has.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    low_high: tuple[float, float] | None = None
    whole: bool = False
    vocabulary: tuple[str, int] | None = None


def load_samples(
    data: Any,
    inputs: Sequence[InputSpec],
    *,
    role: str = "calibration_data",
    most: int | None = None,
    varied: bool = False,
) -> dict[str, Array]:
    """Reads samples for a model's inputs, whatever form they come in, and checks them.

    The forms: an array `(samples, ...)` for a model with one input; a mapping from
    input name to array; a list of arrays, one an input; `(x, y)` or `(x, y, weights)`
    with `x` in one of these forms, of which the rest is not looked at; a
    `tf.data.Dataset`, another iterable, or a function without arguments that returns
    one, of batches in these forms; the path of an `.npz` with arrays named like the
    inputs (`x` where there is one; `y` is not looked at), or of a folder of images.

    Args:
        data: The samples.
        inputs: What the model takes.
        role: The argument that `data` was given as, for messages.
        most: Use so many samples at most: of arrays evenly spaced ones, of batches the
            first. None uses all.
        varied: Whether an input with one and the same value everywhere is an error.

    Returns:
        By input name an array `(samples, ...)` of the input's dtype.

    Raises:
        TypeError: If `data` has none of these forms.
        ValueError: If there are no samples, or an input is missing or unknown, or has
            another shape or dtype, NaN, an infinity, or a value outside its range.
        FileNotFoundError: If there is no such `.npz`.

    Example:
        >>> inputs = [InputSpec("pixels", (2,), low_high=(0.0, 255.0))]
        >>> load_samples(np.array([[0, 255], [3, 4]]), inputs)["pixels"].shape
        (2, 2)
        >>> load_samples(np.array([[0.0, np.nan]]), inputs)
        Traceback (most recent call last):
        ...
        ValueError: `calibration_data` must be finite. Received: nan in sample 0 of ...
    """
    reader = _Reader(inputs, role)
    arrays = reader.arrays(data, most)
    for spec in inputs:
        arrays[spec.name] = reader.checked(arrays[spec.name], spec, varied)
    count = reader.count(arrays)
    if most is not None and count > most:
        logger.info("%s: %d of %d samples are used", role, most, count)
        # Evenly spaced: data is often sorted by class.
        kept = np.linspace(0, count - 1, most).astype(int)
        arrays = {name: array[kept] for name, array in arrays.items()}
    return arrays


def check_pixels(model: keras.Model, highest: float, received: str) -> None:
    """Refuses data of 0..1 for a model that divides pixels of 0..255 itself.

    Args:
        model: A Keras model.
        highest: The largest magnitude in the data.
        received: What the message calls the data.

    Raises:
        ValueError: If the model begins with a Rescaling that makes next to nothing of
            such values.
    """
    first = next(
        (
            layer
            for layer in model.layers
            if not isinstance(layer, keras.layers.InputLayer)
        ),
        None,
    )
    if not isinstance(first, keras.layers.Rescaling) or np.ndim(first.scale):
        return
    scale = first.scale
    if float(scale) < 0.1 and highest <= 1.0:
        raise ValueError(
            f"Data must be in the units that the model takes. Received: {received} up "
            f"to {highest:g}, for model {model.name!r}, which begins with "
            f"Rescaling({scale:g}) and so takes raw pixels. Fix: give pixels in "
            "0..255, or build the model without Rescaling."
        )


def check_scale(
    model: keras.Model, calibration: Mapping[str, Array], compared: Mapping[str, Array]
) -> None:
    """Refuses calibration data in other units than what it stands for.

    Ranges that were found in 0..255 leave one of 256 levels to values of 0..1.

    Args:
        model: What is quantized; its normalizations remember their training data.
        calibration: By input name `(samples, ...)`.
        compared: What the file is compared on, likewise.

    Raises:
        ValueError: If an input has another scale in the two, or if the model was
            trained on data of another scale.
    """
    rule = "`calibration_data` must be in the units that the model is used with."
    for name, values in calibration.items():
        others = compared[name]
        if values.dtype.kind != "f" or others.dtype.kind != "f":
            continue
        spread, other = float(np.ptp(values)), float(np.ptp(others))
        enough = min(len(values), len(others)) >= _FEW_TO_COMPARE
        if enough and not other / _SCALES_APART <= spread <= other * _SCALES_APART:
            raise ValueError(
                f"{rule} Received: for input {name!r} values from {values.min():g} to "
                f"{values.max():g}, where `verify_data` has {others.min():g} to "
                f"{others.max():g}. Scale them alike (pixels all in 0..255, or all in "
                "0..1)."
            )
    first = [values[:_COMPARED] for values in calibration.values()]
    met = met_statistics(model, first[0]) if len(first) == 1 else None
    if met is not None and not met.near:
        raise ValueError(
            f"{rule} Received: samples whose variance is {met.variance_ratio:.3g} "
            f"times that of the training data where they reach layer {met.layer!r}. "
            "Scale them as in training (pixels all in 0..255, or all in 0..1)."
        )


def observed_range(
    samples: Mapping[str, Array], inputs: Sequence[InputSpec]
) -> tuple[float, float] | None:
    """Tells by the looks of samples what 8-bit pixels become before they go in.

    Args:
        samples: By input name `(samples, ...)`.
        inputs: What the model takes.

    Returns:
        `(0, 255)`, `(0, 1)` or `(-1, 1)`, the one that a single image input's values
        fill, which for whole numbers takes half of it; None where they fill none, as
        after a normalisation with mean and deviation.

    Example:
        >>> inputs = [InputSpec("image", (1, 2, 1))]
        >>> observed_range({"image": np.array([[[[0.0], [231.0]]]])}, inputs)
        (0.0, 255.0)
    """
    images = [s for s in inputs if len(s.shape) == 3 and s.shape[-1] in (1, 3)]
    if len(inputs) != 1 or not images:
        return None
    values = samples[images[0].name]
    least, most = float(values.min()), float(values.max())
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        # Both ends are near: some pixel is all but black, another all but white.
        near = 0.2 * (high - low)
        if low <= least <= low + near and high - near <= most <= high:
            return low, high
    # Pixels as they are, of dim images or of some without black.
    if least >= 0.0 and 127.0 <= most <= 255.0 and (values == np.rint(values)).all():
        return 0.0, 255.0
    return None


def random_samples(
    inputs: Sequence[InputSpec], count: int, ends: bool = False
) -> dict[str, Array]:
    """Draws samples, evenly from each input's range (0 to 1 where it has none).

    Equal arguments give equal samples.

    Args:
        inputs: What the model takes; a length that is not known is 1.
        count: How many samples.
        ends: Whether every other one is of the lowest or the highest quarter alone:
            sums of values from everywhere never come near the largest.

    Returns:
        By input name an array `(count, ...)` of the input's dtype. Integer inputs
        without a range get 0 and 1: the only values that fit any vocabulary.

    Example:
        >>> random_samples([InputSpec("ids", (3,), "int32")], 2)["ids"].shape
        (2, 3)
    """
    generator = np.random.default_rng(0)
    samples = {}
    for spec in inputs:
        dtype = np.dtype(spec.dtype)
        low, high = spec.low_high or (0.0, 1.0)
        shape = (count, *(length or 1 for length in spec.shape))
        values = generator.uniform(low, high, shape)
        if ends:
            values[1::4] -= 0.75 * (values[1::4] - low)
            values[3::4] += 0.75 * (high - values[3::4])
        whole = spec.whole or dtype.kind != "f"
        samples[spec.name] = (np.rint(values) if whole else values).astype(dtype)
    return samples


def with_shapes(
    inputs: Iterable[InputSpec], samples: Mapping[str, Array]
) -> tuple[InputSpec, ...]:
    """Returns the inputs with the shapes that the samples have, all lengths known."""
    return tuple(replace(spec, shape=samples[spec.name].shape[1:]) for spec in inputs)


def read_folder(
    data: Any,
    inputs: Sequence[InputSpec],
    role: str,
    class_names: Sequence[str] | None = None,
    classes: int | None = None,
) -> Any:
    """Reads a folder of images, whatever else comes in is returned as it is.

    Args:
        data: Samples in any form; the path of a folder that holds images, or one
            subfolder of images a class.
        inputs: What the model takes: one image.
        role: The argument that `data` was given as, for messages.
        class_names: As `kdlite.datasets.load` takes them.
        classes: Likewise.

    Returns:
        The images, resized to the input's size (bilinear), from 0 to 255; with the
        subfolders as class indices, `(x, y)`, where there are some.

    Raises:
        ValueError: If the model does not take one image, or the folder has none that
            can be read.

    Example:
        ``read_folder("photos", [InputSpec("image", (224, 224, 3))], "verify_data")``
    """
    if not isinstance(data, (str, os.PathLike)) or not Path(data).is_dir():
        return data
    path, shape = Path(data), inputs[0].shape
    if len(inputs) > 1 or len(shape) != 3 or None in shape or shape[-1] not in (1, 3):
        raise ValueError(
            f"`{role}` can be a folder of images only for a model of one image "
            f"(height, width, 1 or 3). Received: {str(path)!r} for "
            f"{', '.join(f'{spec.name!r} {spec.shape}' for spec in inputs)}. Give "
            "arrays."
        )
    if subfolders(path):
        found = load(path, shape, class_names, classes=classes)
        return found.x, found.y
    warn_of_other_images(path)
    if not (files := image_files(path)):
        raise ValueError(
            f"`{role}` must be a folder of images (PNG, JPEG, BMP, GIF). Received: "
            f"{str(path)!r}, without any. Put images into it, or one subfolder of them "
            "a class."
        )
    return read_images(files, shape)


class _Reader:
    """Reads and checks `role` for `inputs`; holds what every message needs."""

    def __init__(self, inputs: Sequence[InputSpec], role: str) -> None:
        self._inputs = inputs
        self._names = [spec.name for spec in inputs]
        self._role = role

    def arrays(self, data: Any, most: int | None) -> dict[str, Array]:
        """Returns the arrays by input name, not looked into yet."""
        data = read_folder(data, self._inputs, self._role)
        if isinstance(data, (str, os.PathLike)):
            return self._named(self._npz(Path(data)))
        whole = self._structure(data)
        if whole is not None:
            return whole
        return self._joined(self._batches(data), most)

    def count(self, arrays: Mapping[str, Array]) -> int:
        """Returns the number of samples, the same for every input."""
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"`{self._role}` must have as many samples for every input. Received: "
                + ", ".join(f"{n} for input {name!r}" for name, n in counts.items())
                + ". Give each sample all of its inputs."
            )
        return next(iter(counts.values()))

    def checked(self, array: Array, spec: InputSpec, varied: bool) -> Array:
        """Returns the samples of one input in its dtype, or raises ValueError."""
        role, at = self._role, f"input {spec.name!r}"
        dtype = np.dtype(spec.dtype)
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise ValueError(
                f"`{role}` must be numbers. Received: dtype {array.dtype} for {at}. "
                f"Give {dtype.name} values."
            )
        self._check_shape(array, spec)
        if not len(array):
            raise ValueError(
                f"`{role}` must hold samples. Received: none for {at}. Give at least "
                f"{FEW_SAMPLES} that are typical of what the model will see."
            )
        if array.dtype.kind not in "iub":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32 if dtype.kind == "f" else np.float64)
            bad = _first(~np.isfinite(array))
            if bad is not None:
                raise ValueError(
                    f"`{role}` must be finite. Received: {array[bad]} in sample "
                    f"{bad[0]} of {at}. Drop that sample, or mend how it was made."
                )
        if spec.low_high is not None:
            low, high = spec.low_high
            bad = _first((array < low) | (array > high))
            if bad is not None:
                raise ValueError(
                    f"`{role}` must lie in `input_range`. Received: {array[bad]} in "
                    f"sample {bad[0]} of {at}, whose range is {low:g} to {high:g}. "
                    "Give samples in the units of the file's input, or the range that "
                    "these have."
                )
            _check_units(array, spec, role)
        if spec.vocabulary is not None:
            embedding, rows = spec.vocabulary
            # From -1 on they count from the end, as indices of Python do.
            bad = _first((array < -rows) | (array >= rows))
            if bad is not None:
                raise ValueError(
                    f"`{role}` must be ids of the vocabulary. Received: {array[bad]} "
                    f"in sample {bad[0]} of {at}, which goes into the {rows:,} rows of "
                    f"{embedding!r}. Give those that are not known an id of their own, "
                    "below that."
                )
        if dtype.kind != "f":
            with np.errstate(invalid="ignore"):
                cast = array.astype(dtype)
            bad = _first(cast != array)
            if bad is not None:
                raise ValueError(
                    f"`{role}` must fit the dtype of the input. Received: {array[bad]} "
                    f"in sample {bad[0]} of {at}, which takes {dtype.name}. Give "
                    f"{dtype.name} values."
                )
        elif varied and array.size and array.min() == array.max():
            raise ValueError(
                f"`{role}` must vary. Received: {array.flat[0]} everywhere, from "
                f"sample 0 to {len(array) - 1} of {at}. Give samples that are typical "
                "of what the model will see."
            )
        return np.ascontiguousarray(array, dtype)

    def _check_shape(self, array: Array, spec: InputSpec) -> None:
        if array.ndim and _fits(array.shape[1:], spec.shape):
            return
        wanted = ", ".join(["samples", *map(str, spec.shape)])
        fix = "Give samples as the model takes them."
        if _fits(array.shape, spec.shape):
            fix = "Add the batch axis: x[None], or dataset.batch(32)."
        raise ValueError(
            f"`{self._role}` must have the shape of the input. Received: "
            f"{tuple(array.shape)} (sample 0 is {tuple(array.shape[1:])}) for input "
            f"{spec.name!r}, which takes ({wanted}). {fix}"
        )

    def _structure(self, data: Any, batch: bool = False) -> dict[str, Array] | None:
        """Returns the arrays of one structure; None if it is no such structure.

        For a model with one input, a list of arrays is a list of batches, unless it is
        a batch itself.
        """
        if isinstance(data, tuple) and 1 <= len(data) <= 3:
            data = data[0]
        if isinstance(data, Mapping):
            return self._named(data)
        if _is_array(data):
            return self._positional([data])
        if isinstance(data, (list, tuple)) and data:
            whole = batch or len(self._inputs) > 1 or len(data) == 1
            if whole and all(map(_is_array, data)):
                return self._positional(data)
            if np.isscalar(_first_leaf(data)):
                return self._positional([np.asarray(data)])
        return None

    def _named(self, arrays: Mapping[Any, Any]) -> dict[str, Array]:
        arrays = {str(name): array for name, array in arrays.items()}
        meant = by_name(self._names, arrays)
        missing = [name for name in self._names if name not in meant]
        unknown = [name for name in arrays if name not in meant.values()]
        if missing or unknown:
            wrong = [f"no {name!r}" for name in missing[:_MOST_NAMED]]
            wrong += [f"unknown {name!r}" for name in unknown[:_MOST_NAMED]]
            raise ValueError(
                f"`{self._role}` must name the model's inputs. Received: "
                f"{', '.join(wrong)}, from sample 0 on. Inputs: "
                f"{', '.join(map(repr, self._names))}."
            )
        return {name: np.asarray(arrays[meant[name]]) for name in self._names}

    def _positional(self, arrays: Sequence[Any]) -> dict[str, Array]:
        if len(arrays) != len(self._names):
            raise ValueError(
                f"`{self._role}` must have an array for each input. Received: "
                f"{len(arrays)} for {len(self._names)} inputs "
                f"({', '.join(map(repr, self._names))}), from sample 0 on. Give a "
                "mapping from input name to array."
            )
        return {
            name: np.asarray(array)
            for name, array in zip(self._names, arrays, strict=True)
        }

    def _npz(self, path: Path) -> dict[str, Array]:
        if not path.is_file():
            raise FileNotFoundError(
                f"`{self._role}` must be a file that exists. Received: {str(path)!r}. "
                "Name an .npz with an array for each input."
            )
        arrays = read_npz(path)
        if "y" not in self._names:
            arrays.pop("y", None)
        if len(self._names) == 1 and list(arrays) == ["x"]:
            return {self._names[0]: arrays["x"]}
        return arrays

    def _batches(self, data: Any) -> Iterator[Any]:
        if callable(data) and not isinstance(data, Iterable):
            made: Callable[[], Any] = data
            data = made()
        if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
            raise TypeError(
                f"`{self._role}` must be arrays, an iterable of batches, a function "
                f"that returns one, or an .npz. Received: {type(data).__name__}. Give "
                "for example an array (samples, ...)."
            )
        cardinality = getattr(data, "cardinality", None)
        if cardinality is not None and int(cardinality()) == -1:
            raise ValueError(
                f"`{self._role}` must end. Received: a dataset that repeats for ever. "
                "Use dataset.take(...)."
            )
        return iter(data)

    def _joined(self, batches: Iterator[Any], most: int | None) -> dict[str, Array]:
        parts: list[dict[str, Array]] = []
        count = 0
        for batch in batches:
            arrays = self._structure(batch, batch=True)
            if arrays is None:
                raise TypeError(
                    f"`{self._role}` must give batches of arrays. Received: "
                    f"{type(batch).__name__} for sample {count}. Give an array, a "
                    "mapping from input name to array, or (x, y)."
                )
            for spec in self._inputs:
                self._check_shape(arrays[spec.name], spec)
            parts.append(arrays)
            count += self.count(arrays)
            if most is not None and count >= most:
                logger.info("%s: the first %d samples are used", self._role, most)
                break
        if not count:
            raise ValueError(
                f"`{self._role}` must hold samples. Received: no batches at all, so "
                f"none for input {self._names[0]!r}. Give at least {FEW_SAMPLES} "
                "samples; a generator can be used up only once."
            )
        joined = {}
        for spec in self._inputs:
            arrays_of = [part[spec.name] for part in parts]
            shapes = [array.shape[1:] for array in arrays_of]
            odd = next((i for i, s in enumerate(shapes) if s != shapes[0]), None)
            if odd is not None:
                sample = sum(len(array) for array in arrays_of[:odd])
                raise ValueError(
                    f"`{self._role}` must have one shape for all samples. Received: "
                    f"{shapes[odd]} in sample {sample} of input {spec.name!r}, after "
                    f"{shapes[0]}. Resize them alike."
                )
            joined[spec.name] = np.concatenate(arrays_of)
        if most is not None and count > most:
            joined = {name: array[:most] for name, array in joined.items()}
        return joined


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _first_leaf(value: Any) -> Any:
    while isinstance(value, list) and value:
        value = value[0]
    return value


def _check_units(array: Array, spec: InputSpec, role: str) -> None:
    low, high = spec.low_high or (0.0, 0.0)
    largest = float(np.abs(array).max(initial=0.0))
    if 0.0 < largest * 100.0 < max(abs(low), abs(high)):
        raise ValueError(
            f"`{role}` must be in the units of `input_range`. Received: values up to "
            f"{largest:g} for input {spec.name!r}, whose range is {low:g} to {high:g}. "
            "Scale them alike (pixels all in 0..255, or all in 0..1)."
        )


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        b is None or a == b for a, b in itertools.zip_longest(shape, wanted)
    )


def _first(bad: Array) -> tuple[int, ...] | None:
    """Returns the index of the first True, or None."""
    if not bad.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
