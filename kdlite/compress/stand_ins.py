"""What stands in for operations that there are in 8 bits only.

TensorFlow's converter gives softmax, sigmoid and tanh the 8-bit range of their
definition, and refuses to quantize them where activations have 16 bits, though TFLite
has these operations. A leaky ReLU of the same shape and ranges stands in for each while
the model is converted; its slope says for which, and the finished file gets the
operation itself (`kdlite.lite.stored_types`). Concatenations of 16 bits it refuses as
well: they are sums of padded tensors; and sums where it broadcasts them: they are sums
of rows. What runtimes do not have, dense layers of 4
bits, are convolutions. And where integers meet layers that are left in float, there is
what it has no integers of.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kdlite.compress.fake_quant import FakeQuant, Unmasked
from kdlite.compress.sums import Sum
from kdlite.compress.wide_operations import In16Bits, table_name

Tensor = Any

# By slope, which float32 holds exactly and no model is likely to have.
SLOPES = {
    "softmax": 2.0**-10 + 1 * 2.0**-23,
    "sigmoid": 2.0**-10 + 3 * 2.0**-23,
    "tanh": 2.0**-10 + 5 * 2.0**-23,
}
# TFLite's int16 has these functions in steps of 1/32768.
RANGE = (-1.0, 32767 / 32768)


class StandIn(keras.layers.Layer):
    """A leaky ReLU in the place of another function, rounded to the range of that.

    Args:
        function: A name in `SLOPES`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of any shape.

    Example:
        >>> StandIn("tanh").stands_for
        'tanh'
    """

    def __init__(self, function: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stands_for = function
        self._rounding = FakeQuant(
            bits=16, sites=0, fixed_range=RANGE, for_converter=True
        )

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns what makes the operation that stands in."""
        slope = SLOPES[self.stands_for]
        outputs = ops.leaky_relu(inputs, negative_slope=slope)
        return self._rounding(outputs)


class PaddedSum(keras.layers.Layer):
    """A concatenation as a sum of tensors that zeros have made as long as the whole.

    Args:
        axis: Along which they are put in a row.
        rounding: Rounds each sum.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List of tensors, alike but for that axis.

    Example:
        >>> rounding = FakeQuant(sites=0, fixed_range=(0.0, 255.0))
        >>> parts = [keras.ops.ones((1, 2)), keras.ops.zeros((1, 1))]
        >>> PaddedSum(-1, rounding)(parts).numpy().tolist()
        [[1.0, 1.0, 0.0]]
    """

    def __init__(self, axis: int, rounding: FakeQuant, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis
        self.rounding = rounding

    def call(self, inputs: list[Tensor]) -> Tensor:
        """Returns the tensors in a row."""
        rank = len(inputs[0].shape)
        axis = self.axis % rank
        sizes = [x.shape[axis] for x in inputs]
        total = None
        for index, x in enumerate(inputs):
            around = [(0, 0)] * rank
            around[axis] = (sum(sizes[:index]), sum(sizes[index + 1 :]))
            x = ops.pad(x, around)
            total = x if total is None else self.rounding(total + x)
        return total


class RowSum(Sum):
    """A sum of 16 bits: of tensors of one shape the values are put in a row.

    The converter leaves out a reshape that only puts axes of length 1 before others, as
    behind many a dense layer: a sum broadcasts. With 16 bits it then has no such sum.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List of tensors whose shapes broadcast.

    Example:
        >>> RowSum()([keras.ops.ones((2, 5, 4)), keras.ops.ones((2, 5, 4))]).shape
        TensorShape([2, 5, 4])
    """

    def _merge_function(self, inputs: list[Tensor]) -> Tensor:
        shape, *others = [tuple(x.shape[1:]) for x in inputs]
        alike = all(other == shape for other in others) and None not in shape
        # To images such a reshape is of those of one row alone.
        if not alike or (len(shape) == 3 and shape[0] != 1):
            return super()._merge_function(inputs)
        rows = [ops.reshape(x, (-1, math.prod(shape))) for x in inputs]
        return ops.reshape(super()._merge_function(rows), (-1, *shape))


class PointwiseDense(keras.layers.Layer):
    """A dense layer as a convolution of one place.

    Runtimes have convolutions of 4-bit kernels since 2.11, and dense layers not yet in
    2.16.

    Args:
        units: How many values it makes.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, ..., values)`.

    Example:
        >>> PointwiseDense(3)(keras.ops.ones((2, 5, 4))).shape
        TensorShape([2, 5, 3])
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: Any) -> None:
        """Creates the kernel `(1, 1, values, units)` and the bias."""
        self.kernel = self.add_weight(
            shape=(1, 1, input_shape[-1], self.units), name="kernel"
        )
        self.bias = self.add_weight(shape=(self.units,), name="bias")

    def call(self, inputs: Tensor) -> Tensor:
        """Applies it to each place."""
        *places, width = inputs.shape[1:]
        if len(places) == 2:
            return ops.conv(inputs, self.kernel) + self.bias
        row = 1 if None in places else math.prod(places)
        outputs = ops.conv(ops.reshape(inputs, (-1, 1, row, width)), self.kernel)
        outputs = outputs + self.bias
        return ops.reshape(outputs, (*ops.shape(inputs)[:-1], self.units))


class RowDense(keras.layers.Dense):
    """A dense layer, on more than four axes of the places in a row.

    There the converter would leave the bias to operations of floats.

    Args:
        units: How many values it makes.
        **kwargs: Arguments of `keras.layers.Dense`.

    Call arguments:
        inputs: Tensor `(batch, ..., values)`.

    Example:
        >>> RowDense(3)(keras.ops.ones((2, 5, 1, 1, 4))).shape
        TensorShape([2, 5, 1, 1, 3])
    """

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Applies it to each place."""
        if len(inputs.shape) <= 4:
            return super().call(inputs)
        rows = super().call(ops.reshape(inputs, (-1, inputs.shape[-1])))
        return ops.reshape(rows, (*ops.shape(inputs)[:-1], self.units))


class OfOneRow(keras.layers.Layer):
    """A 1D convolution as one of images of one row, to which its bias is added.

    The converter adds it to what is 1D again, and there leaves that of a single channel
    to operations of floats.

    Args:
        layer: A 1D convolution, depthwise and transposed ones as well.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(batch, places, channels)`.

    Example:
        >>> OfOneRow(keras.layers.Conv1D(3, 2))(keras.ops.ones((2, 5, 4))).shape
        TensorShape([2, 4, 3])
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        config = layer.get_config()
        for key in ("kernel_size", "strides", "dilation_rate"):
            config[key] = (1, *config[key])
        if isinstance(layer, keras.layers.DepthwiseConv1D):
            # TensorFlow has equal ones only; there is one row to go along.
            config["strides"] = config["strides"][1:] * 2
        if config.get("output_padding") is not None:
            config["output_padding"] = (0, *np.atleast_1d(config["output_padding"]))
        self.layer = _OF_IMAGES[type(layer)].from_config(config)

    def call(self, inputs: Tensor) -> Tensor:
        """Applies it to the row."""
        return ops.squeeze(self.layer(ops.expand_dims(inputs, 1)), 1)


class Apart(Unmasked):
    """A layer that the converter leaves in float beside integers as well.

    It computes in integers what it can, of a layer as well as of parts of it, wherever
    ranges are known. What comes in and goes out is negated twice: of that it has no
    integers, and no range is known beyond.

    Args:
        layer: Any layer with one output.
        before: Whether integers are before it.
        behind: Whether its output is rounded to integers.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        *args: What `layer` takes.
        **kwargs: What `layer` takes.

    Example:
        >>> Apart(keras.layers.ReLU())(np.array([-1.0, 2.0])).numpy().tolist()
        [0.0, 2.0]
    """

    def __init__(
        self,
        layer: keras.Layer,
        before: bool = True,
        behind: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.before = before
        self.behind = behind

    def build(self, input_shape: Any = None) -> None:
        """Leaves the layer to its call, which may be of several inputs."""
        self.built = True

    def call(self, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the layer."""
        if self.before:
            args, kwargs = keras.tree.map_structure(_negated_twice, (args, kwargs))
        outputs = self.unmasked(*args, **kwargs)
        return _negated_twice(outputs) if self.behind else outputs


def _negated_twice(x: Any) -> Any:
    if not ops.is_tensor(x) or x.dtype != "float32":
        return x
    # Of two negations TensorFlow would make none.
    return ops.multiply(ops.negative(x), -1.0)


_OF_IMAGES: dict[type, Any] = {
    keras.layers.Conv1D: keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D: keras.layers.DepthwiseConv2D,
    keras.layers.Conv1DTranspose: keras.layers.Conv2DTranspose,
}


def stand_in(layer: keras.Layer, bits: int) -> keras.Layer | None:
    """Returns what stands in for a layer, or None if it needs nothing.

    Args:
        layer: A layer of a quantization-aware model.
        bits: Bits of its activations, 8 or 16.

    Returns:
        The new layer, of the same name.

    Example:
        >>> stand_in(keras.layers.Softmax(), 16).stands_for
        'softmax'
    """
    inner = layer.layer if isinstance(layer, In16Bits) else layer
    if isinstance(inner, keras.layers.Add):
        return Sum(name=layer.name) if bits == 8 else RowSum(name=layer.name)
    if bits == 8:
        return None
    if isinstance(layer, keras.layers.Concatenate):
        # In a model of 16 bits what it gives is rounded, as a sum is.
        rounding = layer._outbound_nodes[0].operation.frozen()
        return PaddedSum(layer.axis, rounding, name=layer.name)
    name = table_name(layer)
    return None if name is None else StandIn(name, name=layer.name)
