"""Operations on levels: what TFLite's kernels give, to the bit.

With 16 bits they do not compute sigmoid, tanh and softmax: they go straight from one
entry of a table to the next, of 256 or 512, which is off by up to 3 steps of 1/32768.
Products, sums and means are rounded twice or more on the way, and so are some
operations of 8 bits. A model that computed the functions themselves would not be the
file's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kdlite.compress.fake_quant import floor_log2

Tensor = Any

# A sigmoid is 1/24 from one entry to the next, from 0 on; beyond the last it is 1.
_ENTRIES_OF_ONE = 24
_LAST = 255
# exp(x) and 1 / (1 + x) have 512 entries over the 65,536 levels of 16 bits.
_STRETCHES = 512
# Below it softmax takes the exponential to be that of this.
_LOWEST = -10.0
_HIGHEST_LEVEL = 2**15 - 1
# The end of the range that the converter gives slopes of 0.
_LEAST_SLOPE = 5e-7
# Of XNNPACK's places between two values.
_BITS_OF_PLACE = 11


@keras.saving.register_keras_serializable(package="kdlite")
class In16Bits(layers.Wrapper):
    """A layer with the values of TFLite's 16-bit operation, on the levels of its steps.

    The gradient is that of the layer itself (straight-through). Values beyond the
    65,536 levels of `input_steps` are none of an integer tensor, as before a range has
    been measured: then it is the layer.

    Args:
        layer: What `has_operation` says yes to.
        exact_in_training: Whether training has the layer itself: a loss must not see a
            probability that is rounded to zero, and a level more or less is no matter.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor on the levels of 16 bits, or what `layer` takes of them.
        input_steps: How wide a step of each is, numbers.
        output_step: How wide a step of the output is. Sigmoid, tanh and softmax have
            1/32768, whatever it is.
        training: Whether the model is training.

    Raises:
        ValueError: If `layer` is none of these.

    Example:
        >>> tanh = In16Bits(keras.layers.Activation("tanh"))
        >>> x = np.array([-4096.0, 0.0, 4096.0], "float32") / 8192
        >>> y = tanh(x, input_steps=[1 / 8192], output_step=1 / 32768)
        >>> (y.numpy() * 32768).tolist()
        [-15143.0, 0.0, 15143.0]

    Reference:
        TFLite's operations, such as `LogisticInt16` and `SoftmaxInt16`, found again
        from what they give for each of the 65,536 inputs; sums are those of NEON, which
        are rounded once less than the reference's.
    """

    _bits = 16

    def __init__(
        self, layer: keras.Layer, exact_in_training: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(layer, **kwargs)
        self.exact_in_training = exact_in_training
        found = _operation(layer, self._bits)
        if found is None:
            raise ValueError(
                f"`layer` must be an operation that {self._bits} bits have a rounding "
                f"of their own for: {_names(self._bits)}. Received: layer={layer!r}. "
                "Other layers are called as they are."
            )
        self._operation = found

    def _is_level(self, x: Tensor, level: Tensor) -> Tensor:
        """Whether values are on levels, and not from before a range was measured."""
        return ops.all(ops.abs(level) <= 2.0**15)

    def build(self, input_shape: Any) -> None:
        """Builds the layer."""
        if not self.layer.built:
            self.layer.build(input_shape)
        self.built = True

    def call(
        self,
        inputs: Any,
        input_steps: list[Tensor],
        output_step: Tensor,
        training: bool | None = None,
    ) -> Tensor:
        """Computes what the operation does."""
        exact = self.layer(inputs, **without_default(self.layer, training))
        if training and self.exact_in_training:
            return exact
        values = [ops.stop_gradient(x) for x in keras.tree.flatten(inputs)]
        inside, levels, steps = True, [], []
        for x, step in zip(values, input_steps, strict=True):
            level = ops.round(x / step)
            # What is not a number stays so, and says nothing of the others.
            level = ops.where(ops.isnan(level), 0.0, level)
            inside = ops.logical_and(inside, self._is_level(x / step, level))
            level = ops.clip(level, -(2**15), _HIGHEST_LEVEL)
            levels.append(ops.cast(level, "int64"))
            steps.append(_wide(ops.cast(step, "float32")))
        step = _wide(ops.cast(output_step, "float32"))
        found = _wide(self._operation(self.layer, levels, steps, step)) * step
        found = ops.cast(found, "float32")
        outputs = exact + ops.stop_gradient(ops.where(inside, found - exact, 0.0))
        if (logits := getattr(exact, "_keras_logits", None)) is not None:
            # Where losses read them, as behind Keras's own softmax and sigmoid.
            outputs._keras_logits = logits
        return outputs

    def compute_output_spec(
        self, inputs: Any, *args: Any, **kwargs: Any
    ) -> keras.KerasTensor:
        """Returns what `call` does without a trace of it, which takes far longer."""
        return self.layer.compute_output_spec(inputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, the inner layer serialized."""
        return {**super().get_config(), "exact_in_training": self.exact_in_training}


@keras.saving.register_keras_serializable(package="kdlite")
class In8Bits(In16Bits):
    """A layer with the values of the 8-bit operation that phones run.

    It is XNNPACK's where XNNPACK has one for integers, and else TFLite's own:

        product     round(a * b * ratio) in float32, half to even, with `ratio` the
                    product of the inputs' steps by the output's.
        LeakyReLU   floor(x * round(256 * ratio) / 256 + 1/2), with `ratio` the input's
                    step by the output's, times the slope below 0. TFLite's own kernel
                    keeps 31 bits of it, and has what is less than 1/256.
        ReLU        TFLite's own, with 31 bits of the ratio.
        PReLU       TFLite's own, with slopes of 8 bits in one range.
        bilinear    XNNPACK's: places in steps of 2^-11, and one rounding, half up.
        hard swish  TFLite's own: x in steps of 2^-6 to 2^-3 of the output's, times the
                    gate (x + 3) / 6 in steps of 2^-15, each of them rounded before.

    Args:
        layer: What `has_operation(layer, 8)` says yes to.
        **kwargs: Arguments of `In16Bits`.

    Call arguments:
        inputs: Tensor on levels of 8 bits, or both that a product is of.
        input_steps: How wide a step of each is, numbers.
        output_step: How wide a step of the output is.
        training: Whether the model is training.

    Raises:
        ValueError: If `layer` is none of these.

    Example:
        >>> leaky = In8Bits(keras.layers.LeakyReLU(0.3))
        >>> x = np.array([-50.0, 0.0, 50.0], "float32")
        >>> leaky(x, input_steps=[1.0], output_step=0.5).numpy().tolist()
        [-15.0, 0.0, 50.0]

    Reference:
        XNNPACK's and TFLite's sources, held against LiteRT 2.3 on x86, and against the
        library of TFLite 2.16.1 for phones (arm64-v8a).
    """

    _bits = 8

    def _is_level(self, x: Tensor, level: Tensor) -> Tensor:
        # A range that is not known is 1: levels as coarse are no matter of chance.
        return ops.all(ops.logical_or(ops.abs(x - level) < 1e-2, ops.isnan(x)))


def without_default(layer: keras.Layer, training: bool | None = None) -> dict[str, Any]:
    """Returns what to call a layer with, so that it tells nobody to be training.

    Args:
        layer: Any layer.
        training: Whether the model is training, if that is known.

    Returns:
        Arguments of a `Resizing`, which takes itself to be training where nothing is
        said, and with it all layers behind it: a call of the model would measure. None
        of other layers.

    Example:
        >>> without_default(layers.Resizing(2, 2)), without_default(layers.ReLU())
        ({'training': None}, {})
    """
    return {"training": training} if isinstance(layer, layers.Resizing) else {}


def table_name(layer: keras.Layer) -> str | None:
    """Returns which of the functions with tables a layer is.

    Args:
        layer: Any layer.

    Returns:
        "sigmoid", "tanh" or "softmax"; None if it is none of them.

    Example:
        >>> table_name(keras.layers.Softmax())
        'softmax'
    """
    if isinstance(layer, In16Bits):
        return table_name(layer.layer)
    if isinstance(layer, layers.Softmax):
        return "softmax"
    if isinstance(layer, layers.Activation):
        name = getattr(layer.activation, "__name__", "")
        return name if name in _TABLES else None
    return None


def widest_step(layer: keras.Layer) -> float | None:
    """Returns how wide a step the table of a layer takes at most.

    Args:
        layer: Any layer.

    Returns:
        A number; None of a layer without a table. In wider steps TFLite's kernel goes
        beyond 32 bits.

    Example:
        >>> widest_step(keras.layers.Softmax()) * 2**15 > 80_000
        True
    """
    name = table_name(layer)
    if name == "softmax":
        # Differences of 16 bits are shifted by 14 at most.
        return 2**14 * -_LOWEST / (2**16 - 1)
    return None if name is None else 2**16 / (_ENTRIES_OF_ONE * 2**9)


def has_operation(layer: Any, bits: int) -> bool:
    """Whether `In16Bits` or `In8Bits` has the operation of a layer.

    Args:
        layer: Any layer.
        bits: 16 or 8.

    Returns:
        True with 16 bits for sigmoid, tanh, softmax, products, sums and differences of
        two tensors, ReLU, LeakyReLU and global means; with 8 for products, ReLU,
        LeakyReLU, PReLU, hard swish and bilinear resizing.

    Example:
        >>> [has_operation(kind(), 16) for kind in (layers.Multiply, layers.Maximum)]
        [True, False]
    """
    return _operation(layer, bits) is not None


# Tables


def _sigmoid(levels: Tensor, scale: Tensor) -> Tensor:
    """Returns the levels of a sigmoid, int64, of int64 levels of a scale."""
    places = _places(levels, scale)
    found = _between(ops.abs(places), 9, highest=_HIGHEST_LEVEL << 10)
    # What is left are 10 bits, and 1 is 2^25.
    found = ops.where(places >= 0, found + 512, (1 << 25) - found + 511)
    return ops.right_shift(found, 10)


def _tanh(levels: Tensor, scale: Tensor) -> Tensor:
    # tanh(x) is 2 sigmoid(2 x) - 1.
    places = _places(levels, scale)
    found = _between(ops.abs(places), 8, highest=(2**16 - 1) << 8)
    found = found - (1 << 23)
    return ops.right_shift(ops.where(places >= 0, found + 128, 127 - found), 8)


def _softmax(levels: Tensor, scale: Tensor) -> Tensor:
    below = levels - ops.max(levels, axis=-1, keepdims=True)
    places = _scaled(below, scale * (2**16 - 1) / -_LOWEST) + _HIGHEST_LEVEL
    exponentials = _looked_up(ops.maximum(places, -(2**15)), _EXPONENTIAL)
    total = ops.sum(exponentials, axis=-1, keepdims=True)
    # The total is brought to 1 + x, with x from 0 to 1 in 65,536 steps.
    bits = _floor_log2(total)
    brought = ops.right_shift(ops.left_shift(total, 30 - bits) + (1 << 13), 14)
    places = ops.minimum(brought - (3 << 15), _HIGHEST_LEVEL)
    product = exponentials * _looked_up(places, _RECIPROCAL)
    return ops.minimum(_shifted(product, bits), _HIGHEST_LEVEL)


_TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softmax": _softmax,
}


def _places(levels: Tensor, scale: Tensor) -> Tensor:
    """Returns where in the table of a sigmoid inputs are, in parts of 2^-9."""
    scale = scale * _ENTRIES_OF_ONE * 2**9
    # Doubled until it fills 15 bits, of which the rest is dropped.
    shift = ops.floor(ops.log2(_HIGHEST_LEVEL / 2 / scale)) + 1.0
    shift = ops.clip(shift, 0.0, 31.0)
    factor = ops.cast(scale * ops.power(_wide(2.0), shift), "int64")
    return _shifted(levels * factor, ops.cast(shift, "int64"))


def _between(places: Tensor, bits: int, highest: int) -> Tensor:
    """Goes straight between entries of the sigmoid, 1 being 2^(16 + bits)."""
    entry = ops.right_shift(places, bits)
    part = places - ops.left_shift(entry, bits)
    before = ops.clip(entry, 0, _LAST - 1)
    low, high = ops.take(_SIGMOID, before), ops.take(_SIGMOID, before + 1)
    found = ops.left_shift(low, bits) + part * (high - low)
    return ops.where(entry >= _LAST, highest, found)


def _looked_up(levels: Tensor, table: np.ndarray) -> Tensor:
    """Goes straight between entries of one of the tables for all 16 bits."""
    entry = ops.right_shift(levels, 7)
    part = levels - ops.left_shift(entry, 7)
    # Sums of what is far too wide are beyond it, as with the kernel.
    before = ops.clip(entry + _STRETCHES // 2, 0, _STRETCHES - 1)
    low, high = ops.take(table, before), ops.take(table, before + 1)
    return low + ops.right_shift((high - low) * part + 64, 7)


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
    return np.minimum(table, _HIGHEST_LEVEL).astype("int64")


def _half_away(values: np.ndarray) -> np.ndarray:
    return np.copysign(np.floor(np.abs(values) + 0.5), values)


_SIGMOID = _of_sigmoid()
_EXPONENTIAL = _of_levels(np.exp, _LOWEST, 0.0)
_RECIPROCAL = _of_levels(lambda x: 1.0 / (1.0 + x), 0.0, 1.0)


# Arithmetic


def _product(
    layer: keras.Layer, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    factor = _as_float32(_as_float32(steps[0] * steps[1]) / step)
    return _scaled(levels[0] * levels[1], factor)


def _sum(
    layer: keras.Layer, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    # Both are brought to a step that is common to them, with 15 bits more.
    common = 2.0 * ops.maximum(*steps)
    factors = [x_step / common for x_step in steps]
    first, second = (
        _scaled(ops.left_shift(x, 15), factor)
        for x, factor in zip(levels, factors, strict=True)
    )
    if isinstance(layer, layers.Subtract):
        total = first - second
    else:
        total = ops.where(
            _in_vectors(first, 16),
            sum(map(_scaled_at_once, levels, factors)),
            first + second,
        )
    return _scaled(total, common / (2.0**15 * step))


def _in_vectors(values: Tensor, width: int) -> Tensor:
    """Returns which values of a sample NEON computes, `width` at once: not the last."""
    shape = ops.shape(values)[1:]
    count = ops.prod(shape)
    return ops.reshape(ops.arange(count) < count // width * width, shape)


def _scaled_at_once(values: Tensor, factor: Tensor) -> Tensor:
    """Returns integers times 2^15 and a number of 31 bits, rounded once: NEON's way."""
    mantissa, shift = _mantissa(factor)
    values = ops.left_shift(values, ops.maximum(15 + shift, 0))
    values = ops.right_shift(values, ops.maximum(-15 - shift, 0))
    return ops.right_shift(values * mantissa + (1 << 30), 31)


def _relu(
    layer: keras.Layer, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    found = ops.maximum(_scaled(levels[0], _as_float32(steps[0] / step)), 0)
    if layer.max_value is None:
        return found
    return ops.minimum(found, ops.cast(ops.round(layer.max_value / step), "int64"))


def _leaky_relu(
    layer: Any, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    slope = float(np.float32(layer.negative_slope))
    falling = _as_float32(_as_float32(steps[0] * slope) / step)
    rising = _as_float32(steps[0] / step)
    (x,) = levels
    return ops.where(x >= 0, _scaled(x, rising), _scaled(x, falling))


def _product_of_xnnpack(
    layer: Any, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    first, second = levels
    scale = _as_float32(_as_float32(steps[0] * steps[1]) / step)
    return ops.round(_as_float32(_wide(first * second) * scale))


def _leaky_relu_of_xnnpack(
    layer: Any, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    (x,) = levels
    rising = _as_float32(steps[0] / step)
    falling = _as_float32(rising * float(np.float32(layer.negative_slope)))
    ends = [ops.abs(rising), ops.abs(falling)]
    taken = ops.logical_and(
        ops.minimum(*ends) >= 2.0**-8, ops.maximum(*ends) <= 127.996
    )
    factor = ops.where(x >= 0, ops.round(256.0 * rising), ops.round(256.0 * falling))
    found = _shifted(x * ops.cast(factor, "int64"), 8)
    return ops.where(taken, found, _leaky_relu(layer, levels, steps, step))


def _prelu(
    layer: Any, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    (x,) = levels
    slopes = _wide(layer.alpha)
    # The converter gives all of them one range, which has 0 in its middle.
    unit = ops.maximum(ops.max(ops.abs(slopes)), _LEAST_SLOPE) / 127.0
    slopes = ops.cast(ops.round(slopes / unit), "int64")
    falling = _as_float32(_as_float32(steps[0] * _as_float32(unit)) / step)
    rising = _as_float32(steps[0] / step)
    return ops.where(x >= 0, _scaled(x, rising), _scaled(x * slopes, falling))


def _resized(
    layer: Any, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    (x,) = levels
    if isinstance(layer, layers.UpSampling2D):
        height, width = map(operator.mul, ops.shape(x)[1:3], layer.size)
    else:
        height, width = layer.height, layer.width
    return _shifted(_along(_along(x, 1, height), 2, width), 2 * _BITS_OF_PLACE)


def _along(x: Tensor, axis: int, size: Tensor | int) -> Tensor:
    """Goes straight between the values along an axis, times 2^11."""
    last = ops.shape(x)[axis] - 1
    ratio = _as_float32(_wide(last + 1) / _wide(size))
    places = _as_float32(_wide(ops.arange(size)) * ratio)
    places = _as_float32(places + _as_float32(0.5 * ratio - 0.5))
    places = ops.clip(places, 0.0, _wide(last))
    before = ops.floor(places)
    part = ops.cast(ops.round((places - before) * 2.0**_BITS_OF_PLACE), "int64")
    before = ops.cast(before, "int64")
    low = ops.take(x, before, axis)
    high = ops.take(x, ops.minimum(before + 1, last), axis)
    part = ops.reshape(part, [-1] + [1] * (len(x.shape) - axis - 1))
    return ops.left_shift(low, _BITS_OF_PLACE) + part * (high - low)


def _hard_swish(
    layer: Any, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    x = ops.left_shift(levels[0], 7)
    factor, shift = _mantissa_of_16_bits(_as_float32(steps[0] / 128.0 / step))
    scaled = _shifted(x * factor, 15)
    # x / 3 is cut off at 1 and -1, which are 2^15, by the last doubling alone.
    factor, doubled = _mantissa_of_16_bits(_as_float32(steps[0] * 256.0 / 3.0))
    part = _cut_off(ops.left_shift(x, ops.clip(doubled - 1, 0, 32)))
    part = _shifted(part * factor, 15)
    part = _cut_off(ops.left_shift(part, ops.clip(doubled, 0, 1)))
    # Halves go up where NEON has eight at once, and for the rest away from 0.
    turned = ops.logical_and(x < 0, ops.logical_not(_in_vectors(x, 8)))
    sign = ops.where(turned, -ops.ones_like(x), ops.ones_like(x))
    part = sign * _shifted(sign * part, -doubled)
    gate = ops.right_shift(part + (1 << 15), 1)
    return sign * _shifted(ops.right_shift(sign * gate * scaled, 15), -shift)


def _mean(
    layer: Any, levels: list[Tensor], steps: list[Tensor], step: Tensor
) -> Tensor:
    (x,) = levels
    places = ops.shape(x)[1:-1]
    count = ops.cast(ops.prod(places), "int64")
    total = ops.sum(x, axis=tuple(range(1, 1 + len(places))), keepdims=layer.keepdims)
    mantissa, shift = _mantissa(steps[0] / step)
    halvings = _floor_log2(count)
    mantissa = ops.floor_divide(ops.left_shift(mantissa, halvings), count)
    return _times(total, mantissa, shift - halvings)


_ARITHMETIC: dict[type, Callable[[Any, list[Tensor], list[Tensor], Tensor], Tensor]] = {
    layers.Multiply: _product,
    layers.Add: _sum,
    layers.Subtract: _sum,
    layers.ReLU: _relu,
    layers.LeakyReLU: _leaky_relu,
    layers.GlobalAveragePooling1D: _mean,
    layers.GlobalAveragePooling2D: _mean,
}


_OF_8_BITS = {
    layers.Multiply: _product_of_xnnpack,
    layers.ReLU: _relu,
    layers.LeakyReLU: _leaky_relu_of_xnnpack,
    layers.PReLU: _prelu,
    layers.Resizing: _resized,
    layers.UpSampling2D: _resized,
}
# With it a resizing is two operations.
_TO_ASPECT_RATIO = ("crop_to_aspect_ratio", "pad_to_aspect_ratio")


def _operation(layer: Any, bits: int) -> Any:
    if bits == 8:
        bilinear = getattr(layer, "interpolation", "bilinear") == "bilinear"
        if not bilinear or any(getattr(layer, x, False) for x in _TO_ASPECT_RATIO):
            return None
        hard_swish = getattr(layer, "activation", None) is keras.activations.hard_silu
        return _hard_swish if hard_swish else _OF_8_BITS.get(type(layer))
    if (name := table_name(layer)) is not None:
        table = _TABLES[name]
        return lambda layer, levels, steps, step: table(levels[0], steps[0])
    # TFLite has ReLU6 as a part of other operations only.
    if isinstance(layer, layers.ReLU) and layer.max_value is not None:
        return None
    return _ARITHMETIC.get(type(layer))


def _names(bits: int) -> str:
    functions, kinds = (
        (["hard swish"], _OF_8_BITS) if bits == 8 else (_TABLES, _ARITHMETIC)
    )
    return ", ".join([*functions, *(kind.__name__ for kind in kinds)])


def _scaled(values: Tensor, factor: Tensor) -> Tensor:
    """Returns integers times a number of 31 bits, rounded twice."""
    return _times(values, *_mantissa(factor))


def _mantissa(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a number as an integer of 31 bits, and a power of two."""
    shift = _floor_log2(factor) + 1
    mantissa = factor * ops.power(_wide(2.0), _wide(31 - shift))
    mantissa = ops.cast(ops.floor(mantissa + 0.5), "int64")
    full = mantissa == 1 << 31
    return ops.where(full, 1 << 30, mantissa), ops.where(full, shift + 1, shift)


def _mantissa_of_16_bits(factor: Tensor) -> tuple[Tensor, Tensor]:
    mantissa, shift = _mantissa(factor)
    return ops.minimum(_shifted(mantissa, 16), _HIGHEST_LEVEL), shift


def _cut_off(values: Tensor) -> Tensor:
    return ops.clip(values, -(2**15), _HIGHEST_LEVEL)


def _times(values: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """Returns `values * mantissa / 2^31 * 2^shift`, rounded after each product."""
    below = values < 0
    sizes = ops.left_shift(ops.abs(values), ops.maximum(shift, 0))
    # Half goes up, and then away from zero.
    half = (1 << 30) - ops.cast(below, "int64")
    sizes = _shifted(ops.right_shift(sizes * mantissa + half, 31), -shift)
    return ops.where(below, -sizes, sizes)


def _shifted(values: Tensor, bits: Tensor | int) -> Tensor:
    """Returns integers divided by a power of two, half up; negative bits are none."""
    bits = ops.clip(ops.cast(bits, "int64"), 0, 62)
    half = ops.right_shift(ops.left_shift(ops.ones_like(bits), bits), 1)
    return ops.right_shift(values + half, bits)


def _floor_log2(values: Tensor) -> Tensor:
    return ops.cast(floor_log2(values), "int64")


def _wide(values: Any) -> Tensor:
    return ops.cast(values, "float64")


def _as_float32(values: Tensor) -> Tensor:
    """Returns numbers with the bits that TFLite computes them with."""
    return _wide(ops.cast(values, "float32"))
