"""How the logits of a sample are written: all of them, or the likeliest and the rest.

Whole logits take 4 bytes a class, in half precision 2. With `top_k` only the k largest
are kept, with the classes they belong to and one number for all others together, the
logarithm of their mass: for 1,000 classes and k = 10 in half precision 42 bytes instead
of 4,000.

>>> import numpy as np
>>> form = LabelForm("float32", top_k=2)
>>> logits = np.log([[[0.1, 0.5, 0.1, 0.3]]])
>>> again = form.decode(form.encode(logits), classes=4)
>>> bool(np.allclose(np.exp(again), [[[0.1, 0.5, 0.1, 0.3]]]))
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdlite.counts import checked_count

Array = np.ndarray[Any, Any]

_SUFFIXES = {"float32": "f32", "float16": "f16"}
_CLASSES = "classes.bin"
# Whatever a store may consist of, in any form.
FORM_FILES = {
    _CLASSES,
    *(f"{kind}.{suffix}" for kind in ("logits", "top") for suffix in ("f32", "f16")),
}


@dataclass(frozen=True)
class LabelForm:
    r"""The form in which logits are stored.

    With `top_k` = k the k largest logits $z_i$ of the C classes are stored, in falling
    order, and $r = \log \sum_{j} e^{z_j}$ over the C - k
    others. Rebuilt, the k are as stored and each of the others is
    $r - \log(C - k)$: at temperature 1 each of the k classes has its probability and
    the others together have theirs, in even shares. At another temperature T the
    others' mass is that of even shares, at T > 1 never below the true one.

    `float16` rounds what is stored to 11 bits: a logit z moves by at most
    $2^{-11} \max(|z|, 2^{-14})$, and so a probability by a factor of at most
    $e^{2^{-10} \max |z|}$: less than 1.6 % where logits are below 16.

    Attributes:
        dtype: `"float32"` or `"float16"`.
        top_k: How many logits are kept; `None`: all.

    Raises:
        ValueError: If either is out of range.
    """

    dtype: str = "float32"
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _SUFFIXES:
            raise ValueError(
                f"`dtype` of stored logits must be 'float32' or 'float16'. Received: "
                f"dtype={self.dtype!r}. Fix: 'float16' halves the size."
            )
        if self.top_k is not None:
            fix = "the number of classes to keep, or None for all"
            checked_count("top_k", self.top_k, fix=fix)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, one an array."""
        suffix = _SUFFIXES[self.dtype]
        return (
            (f"logits.{suffix}",) if self.top_k is None else (f"top.{suffix}", _CLASSES)
        )

    def check_shape(self, logits_shape: Sequence[int]) -> None:
        """Checks that logits of a shape can be stored so.

        Args:
            logits_shape: Of one sample in one view, classes last.

        Raises:
            ValueError: If `top_k` leaves no rest.
        """
        if self.top_k is not None and self.top_k >= logits_shape[-1]:
            raise ValueError(
                f"`top_k` must be below the number of classes. Received: "
                f"top_k={self.top_k}, {logits_shape[-1]} classes. Fix: a smaller one, "
                f"or None to keep all."
            )

    def layout(
        self, logits_shape: Sequence[int]
    ) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Returns type and shape of a sample's view in each file, little-endian.

        Args:
            logits_shape: Of one sample in one view, classes last.
        """
        *positions, classes = logits_shape
        values = np.dtype(self.dtype).newbyteorder("<")
        if self.top_k is None:
            return {self.files[0]: (values, tuple(logits_shape))}
        numbers = np.min_scalar_type(classes - 1).newbyteorder("<")
        return {
            self.files[0]: (values, (*positions, self.top_k + 1)),
            self.files[1]: (numbers, (*positions, self.top_k)),
        }

    def encode(self, logits: Array) -> dict[str, Array]:
        """Returns the arrays to write.

        Args:
            logits: `(samples, views, ..., classes)`, finite.

        Returns:
            One array a file, `(samples, views, ...)`.

        Raises:
            ValueError: If `top_k` leaves no rest, or a logit is too large for float16.
        """
        self.check_shape(logits.shape)
        layout = self.layout(logits.shape[2:])
        arrays = [logits] if self.top_k is None else _split(logits, self.top_k)
        encoded = {}
        for (name, (dtype, _)), array in zip(layout.items(), arrays, strict=True):
            if dtype.kind == "f" and dtype.itemsize == 2 and array.size:
                largest = float(np.abs(array).max())
                # What rounds to more than the largest number is infinity.
                if largest >= 65520.0:
                    raise ValueError(
                        f"Logits in float16 must be below 65,504. Received: "
                        f"{largest:.6g}. Fix: dtype='float32'."
                    )
            encoded[name] = np.ascontiguousarray(array, dtype)
        return encoded

    def decode(self, rows: Mapping[str, Array], classes: int) -> Array:
        """Returns logits as they are told to the student.

        Args:
            rows: What was written, of any samples and views.
            classes: The number of classes.

        Returns:
            float32 `(..., classes)`.

        Raises:
            ValueError: If a stored class is none, or a logit is not finite.
        """
        values = np.asarray(rows[self.files[0]], np.float32)
        if not np.isfinite(values).all():
            raise ValueError(_BROKEN.format(self.files[0], "NaN or infinity"))
        if self.top_k is None:
            return values
        numbers = np.asarray(rows[self.files[1]], np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(_BROKEN.format(self.files[1], f"class {numbers.max()}"))
        each = values[..., -1:] - np.float32(math.log(classes - self.top_k))
        logits = np.repeat(each, classes, axis=-1)
        np.put_along_axis(logits, numbers, values[..., :-1], axis=-1)
        return logits


_BROKEN = (
    "Stored labels must be finite logits of their classes. Received: {1} in {0}. Fix: "
    "build the labels again with overwrite=True."
)


def _split(logits: Array, k: int) -> tuple[Array, Array]:
    """The k largest logits and the log of the others' mass; the k classes."""
    wide = np.array(logits, np.float64)
    chosen = np.argpartition(wide, -k, axis=-1)[..., -k:]
    top = np.take_along_axis(wide, chosen, axis=-1)
    # Falling, and of equal ones the first class before the others.
    order = np.lexsort((chosen, -top), axis=-1)
    chosen = np.take_along_axis(chosen, order, axis=-1)
    top = np.take_along_axis(top, order, axis=-1)
    np.put_along_axis(wide, chosen, -np.inf, axis=-1)
    largest = wide.max(axis=-1, keepdims=True)
    mass = np.exp(wide - largest).sum(axis=-1, keepdims=True)
    return np.concatenate([top, largest + np.log(mass)], axis=-1), chosen
