"""Sigmoid, tanh and softmax of 16 bits, to the bit as TFLite looks them up in tables.

Its kernels do not compute these functions: they go straight from one entry of a table
to the next, of 256 or 512, and round on the way. That is off by up to 3 steps of
1/32768, so that a model that computes the functions themselves would not be the file's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any

# A sigmoid is 1/24 from one entry to the next, from 0 on; beyond the last it is 1.
_ENTRIES_OF_ONE = 24
_LAST = 255
# exp(x) and 1 / (1 + x) have 512 entries over the 65,536 levels of 16 bits.
_STRETCHES = 512
# Below it softmax takes the exponential to be that of this.
_LOWEST = -10.0


@keras.saving.register_keras_serializable(package="kdlite")
class LookedUp(keras.layers.Wrapper):
    """A sigmoid, tanh or softmax with the values of TFLite's 16-bit operation.

    They are multiples of 1/32768. The gradient is that of the function itself
    (straight-through). Values beyond the 65,536 levels of `input_step` are none of an
    integer tensor, as before a range has been measured: then it is the function.

    Args:
        layer: `Activation` of sigmoid or tanh, or `Softmax` over the last axis.
        exact_in_training: Whether training has the function itself: a loss must not
            see a probability that is rounded to zero.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of any shape, on the levels of 16 bits.
        input_step: How wide a step of `inputs` is, a number.
        training: Whether the model is training.

    Raises:
        ValueError: If `layer` is another function.

    Example:
        >>> table = LookedUp(keras.layers.Activation("tanh"))
        >>> x = np.array([-4096.0, 0.0, 4096.0], "float32") / 8192
        >>> (table(x, input_step=1 / 8192).numpy() * 32768).tolist()
        [-15144.0, 0.0, 15144.0]

    Reference:
        TFLite's reference operations `LogisticInt16`, `TanhInt16` and `SoftmaxInt16`,
        found again from what they give for each of the 65,536 inputs.
    """

    def __init__(
        self, layer: keras.Layer, exact_in_training: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(layer, **kwargs)
        self.exact_in_training = exact_in_training
        name = function_name(layer)
        if name is None:
            raise ValueError(
                f"`layer` must be one of {', '.join(_TABLES)}. Received: "
                f"layer={layer!r}. Other operations of 16 bits compute their function."
            )
        self._table = _TABLES[name]

    def call(
        self, inputs: Tensor, input_step: Tensor, training: bool | None = None
    ) -> Tensor:
        """Looks up `inputs`."""
        exact = self.layer(inputs)
        if training and self.exact_in_training:
            return exact
        levels = ops.round(ops.stop_gradient(inputs) / input_step)
        inside = ops.all(ops.abs(levels) <= 2.0**15)
        levels = ops.cast(ops.clip(levels, -(2**15), 2**15 - 1), "int64")
        found = self._table(levels, ops.cast(input_step, "float64"))
        found = ops.cast(found, "float32") / 2.0**15
        outputs = exact + ops.stop_gradient(ops.where(inside, found - exact, 0.0))
        if (logits := getattr(exact, "_keras_logits", None)) is not None:
            # Where losses read them, as behind Keras's own softmax and sigmoid.
            outputs._keras_logits = logits
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, the inner layer serialized."""
        return {**super().get_config(), "exact_in_training": self.exact_in_training}


def function_name(layer: keras.Layer) -> str | None:
    """Returns which of the functions with tables a layer is.

    Args:
        layer: Any layer.

    Returns:
        "sigmoid", "tanh" or "softmax"; None if it is none of them.

    Example:
        >>> function_name(keras.layers.Softmax())
        'softmax'
    """
    if isinstance(layer, LookedUp):
        return function_name(layer.layer)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if isinstance(layer, keras.layers.Activation):
        name = getattr(layer.activation, "__name__", "")
        return name if name in _TABLES else None
    return None


def _sigmoid(levels: Tensor, scale: Tensor) -> Tensor:
    """Returns the levels of a sigmoid, int64, of int64 levels of a scale."""
    places = _places(levels, scale)
    found = _between(ops.abs(places), 9, highest=(2**15 - 1) << 10)
    # What is left are 10 bits, and 1 is 2^25.
    return ops.right_shift(
        ops.where(places >= 0, found + 512, (1 << 25) - found + 511), 10
    )


def _tanh(levels: Tensor, scale: Tensor) -> Tensor:
    # tanh(x) is 2 sigmoid(2 x) - 1.
    places = _places(levels, scale)
    found = _between(ops.abs(places), 8, highest=(2**16 - 1) << 8)
    found = found - (1 << 23)
    return ops.right_shift(ops.where(places >= 0, found + 128, 127 - found), 8)


def _softmax(levels: Tensor, scale: Tensor) -> Tensor:
    below = ops.max(levels, axis=-1, keepdims=True) - levels
    places = _scaled(below, scale * (2**16 - 1) / -_LOWEST)
    exponentials = _looked_up(ops.maximum(2**15 - 1 - places, -(2**15)), _EXPONENTIAL)
    total = ops.sum(exponentials, axis=-1, keepdims=True)
    # The total is brought to 1 + x, with x from 0 to 1 in 65,536 steps.
    bits = _floor_log2(ops.cast(total, "float64"))
    brought = ops.right_shift(ops.left_shift(total, 30 - bits) + (1 << 13), 14)
    places = ops.minimum(brought - (3 << 15), 2**15 - 1)
    product = exponentials * _looked_up(places, _RECIPROCAL)
    half = ops.left_shift(ops.ones_like(bits), bits - 1)
    return ops.minimum(ops.right_shift(product + half, bits), 2**15 - 1)


_TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softmax": _softmax,
}


def _places(levels: Tensor, scale: Tensor) -> Tensor:
    """Returns where in the table of a sigmoid inputs are, in parts of 2^-9."""
    scale = scale * _ENTRIES_OF_ONE * 2**9
    # Doubled until it fills 15 bits, of which the rest is dropped.
    shift = ops.floor(ops.log2((2**15 - 1) / 2 / scale)) + 1.0
    shift = ops.clip(shift, 0.0, 31.0)
    factor = ops.cast(scale * ops.power(ops.cast(2.0, "float64"), shift), "int64")
    shift = ops.cast(shift, "int64")
    half = ops.right_shift(ops.left_shift(ops.ones_like(shift), shift), 1)
    return ops.right_shift(levels * factor + half, shift)


def _between(places: Tensor, bits: int, highest: int) -> Tensor:
    """Goes straight between entries of the sigmoid, 1 being 2^(16 + bits)."""
    entry = ops.right_shift(places, bits)
    part = places - ops.left_shift(entry, bits)
    before = ops.minimum(entry, _LAST - 1)
    low, high = ops.take(_SIGMOID, before), ops.take(_SIGMOID, before + 1)
    found = ops.left_shift(low, bits) + part * (high - low)
    return ops.where(entry >= _LAST, highest, found)


def _scaled(values: Tensor, factor: Tensor) -> Tensor:
    """Returns values, none below zero, times a number of 31 bits, rounded twice."""
    shift = _floor_log2(factor) + 1
    power = ops.power(ops.cast(2.0, "float64"), ops.cast(31 - shift, "float64"))
    mantissa = ops.cast(ops.floor(factor * power + 0.5), "int64")
    full = mantissa == 1 << 31
    mantissa = ops.where(full, 1 << 30, mantissa)
    shift = ops.where(full, shift + 1, shift)
    values = ops.left_shift(values, ops.maximum(shift, 0))
    # Half goes towards zero: the differences that these are, are negative.
    rounded = ops.right_shift(values * mantissa + (1 << 30) - 1, 31)
    right = ops.clip(-shift, 0, 31)
    half = ops.right_shift(ops.left_shift(ops.ones_like(right), right), 1)
    return ops.right_shift(rounded + half, right)


def _looked_up(levels: Tensor, table: np.ndarray) -> Tensor:
    """Goes straight between entries of one of the tables for all 16 bits."""
    entry = ops.right_shift(levels, 7)
    part = levels - ops.left_shift(entry, 7)
    before = entry + _STRETCHES // 2
    low, high = ops.take(table, before), ops.take(table, before + 1)
    return low + ops.right_shift((high - low) * part + 64, 7)


def _floor_log2(values: Tensor) -> Tensor:
    return ops.cast(ops.floor(ops.log2(values)), "int64")


def _of_sigmoid() -> np.ndarray:
    """Returns the entries of a sigmoid: 1 is 2^16."""

    def function(entry: np.ndarray) -> np.ndarray:
        return 2**16 / (1.0 + np.exp(-entry / _ENTRIES_OF_ONE))

    entry = np.arange(_LAST + 1.0)
    # A chord is furthest off in its middle: half of that goes to its ends.
    chord = (function(entry) + function(entry + 1.0)) / 2.0
    table = np.round(function(entry) - (chord - function(entry + 0.5)) / 2.0)
    table[_LAST] = 2**16 - 1
    return table.astype("int64")


def _of_levels(
    function: Callable[[np.ndarray], np.ndarray], lowest: float, highest: float
) -> np.ndarray:
    """Returns the entries of a function over the levels of 16 bits: 1 is 2^15."""
    step = (highest - lowest) / _STRETCHES
    x = lowest + step * np.arange(_STRETCHES + 1.0)
    exact = 2**15 * function(x)
    table = _half_away(exact)
    # As for a sigmoid, with each number rounded.
    chord = _half_away((exact[1:] + table[:-1]) / 2.0)
    middle = _half_away(2**15 * function(x[:-1] + step / 2.0))
    table[:-1] -= _half_away((chord - middle) / 2.0)
    return np.minimum(table, 2**15 - 1).astype("int64")


def _half_away(values: np.ndarray) -> np.ndarray:
    return np.copysign(np.floor(np.abs(values) + 0.5), values)


_SIGMOID = _of_sigmoid()
_EXPONENTIAL = _of_levels(np.exp, _LOWEST, 0.0)
_RECIPROCAL = _of_levels(lambda x: 1.0 / (1.0 + x), 0.0, 1.0)
