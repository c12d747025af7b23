"""A layer whose kernel is rounded as the integer model's, with what folds into it.

`FoldedLayer` is a convolution or dense layer, together with the rescaling before it and
the batch normalization after it, which both vanish into its kernel and bias when the
model is exported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kdlite.compress.fake_quant import floor_log2, learned_rounding, rounded_once
from kdlite.compress.stand_ins import OfOneRow, PointwiseDense, RowDense

Tensor = Any

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)
_OF_ROWS = tuple(kinds[0] for kinds in (_CONVOLUTIONS, _DEPTHWISE, _TRANSPOSED))
# The layers whose kernel can be rounded, with what is beside it folded in.
KERNELS = (*_CONVOLUTIONS, *_DEPTHWISE, *_TRANSPOSED, keras.layers.Dense)
# Those that have 8 bits where others have 4: TFLite's operations take no fewer, or its
# reference kernels do not.
EIGHT_BITS = (*_DEPTHWISE, *_TRANSPOSED)
# Integer 0 of any bias. One of zeros the converter takes out: then it leaves a ReLU
# behind a transposed convolution to floats.
_ALMOST_ZERO = np.float32(1e-30)


@keras.saving.register_keras_serializable(package="kdlite")
class FoldedLayer(keras.layers.Layer):
    """A kernel layer with a rounded kernel, and the affine layers that fold into it.

        y = batch_norm(layer(input_scale * x + input_offset))

    with the kernel `K = input_scale * kernel` rounded, for each output channel `c`, to

        Q_c = s_c * round(K_c / s_c),   s_c = max|K_c| / (2^(bits - 1) - 1)

    and a straight-through gradient. Scaling a channel scales its steps along, so
    rounding before batch normalization is the same as rounding the kernel after
    `gamma / sqrt(variance + epsilon)` is folded into it: training may use the
    statistics of the batch, as the float model did, and yet the exported kernel lies
    exactly on the integer levels. There is no second convolution, and no division by a
    small gamma. With `frozen_statistics` the moving statistics are used in training
    too, which then computes the very function of inference.

    The kernel is rounded from the first training step on.

    With `learned`, each channel is clipped to `exp(-shrink) max|K_c|` before it is
    rounded, where `shrink >= 0` starts at 0 and follows the loss, with the gradient of
    learned step sizes: few bits do better without the rarest weights. The largest
    weight is on the highest level all the same, by which the converter finds the steps.

    Args:
        layer: A convolution (1D or 2D, depthwise, transposed) or `Dense`, without an
            activation.
        batch_norm: `BatchNormalization` over the last axis, or `None`.
        input_scale: Number, or one for each input channel, not zero.
        input_offset: Number, or one for each input channel. A padded `layer` needs 0.
        bits: Bits of a weight.
        frozen_statistics: Whether batch normalization uses its moving statistics in
            training too.
        learned: Whether the steps of a kernel that trains are trained.
        activation_bits: Bits of inputs and outputs, 8 or 16.
        **kwargs: Arguments of `keras.layers.Layer`.

    Given the steps, the integer operation is followed closer, wherever the statistics
    of the batch are not used. With 8 bits the bias is rounded to the steps of the sum,
    `S_c = input_step * s_c` (with the factor of batch normalization); in inference the
    sum is that of the integers, scaled and rounded in float32 as by XNNPACK. With 4
    bits it is rounded twice, as by TFLite's kernels. With 16-bit activations, whose
    biases have 64 bits, it is scaled by the 15 bits that convolutions keep of
    `S_c / output_step`; and in inference the sum is that of the integers, in float64.
    A value in a thousand on another level makes others of those behind it, and in deep
    networks of all.

    Call arguments:
        inputs: What `layer` takes, before the rescaling.
        input_step: How wide a step of `inputs` is, float64, if the operation is to be
            followed.
        output_step: How wide a step of the output is, likewise.
        training: Whether batch normalization uses the batch's statistics.

    Raises:
        TypeError: If `layer` is of another class.

    Example:
        >>> norm = keras.layers.BatchNormalization()
        >>> dense = FoldedLayer(keras.layers.Dense(2), norm)
        >>> outputs = dense(np.ones((1, 3)))
        >>> kernel, bias = dense.folded()
        >>> kernel.shape, bias.shape
        ((3, 2), (2,))

    Reference:
        Krishnamoorthi, 2018, "Quantizing deep convolutional networks for efficient
        inference", arXiv:1806.08342, section 3.2.1 (the folding that this replaces).
        Esser et al., 2019, "Learned Step Size Quantization", arXiv:1902.08153.
    """

    def __init__(
        self,
        layer: keras.Layer,
        batch_norm: keras.layers.BatchNormalization | None = None,
        input_scale: float | list[float] = 1.0,
        input_offset: float | list[float] = 0.0,
        bits: int = 8,
        frozen_statistics: bool = False,
        learned: bool = False,
        activation_bits: int = 8,
        **kwargs: Any,
    ) -> None:
        # Steps are float64, and stay it.
        super().__init__(autocast=False, **kwargs)
        if not isinstance(layer, KERNELS):
            raise TypeError(
                "`layer` must be a convolution or Dense. Received: "
                f"layer={layer!r}. Other layers have no kernel to fold into."
            )
        self.layer = layer
        self.batch_norm = batch_norm
        self.input_scale = input_scale
        self.input_offset = input_offset
        self.bits = bits
        self.frozen_statistics = frozen_statistics
        self.learned = learned
        self.activation_bits = activation_bits

    def build(self, input_shape: Any) -> None:
        """Builds the inner layers."""
        # Those of a loaded layer are built already.
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.batch_norm is not None and not self.batch_norm.built:
            self.batch_norm.build(self.layer.compute_output_shape(input_shape))
        self.rounding = self.add_weight(
            shape=(),
            dtype="bool",
            initializer="zeros",
            trainable=False,
            name="rounding",
        )
        if self.learned and self.layer.trainable:
            kernel = self.layer.kernel
            reduced = self._reduced_axes()
            self.shrink = self.add_weight(
                shape=[1 if k in reduced else n for k, n in enumerate(kernel.shape)],
                initializer="zeros",
                constraint="non_neg",
                name="shrink",
            )

    def call(
        self,
        inputs: Tensor,
        input_step: Tensor | None = None,
        output_step: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Applies the layer, and batch normalization."""
        inputs = ops.cast(inputs, self.compute_dtype)
        kernel = self._scaled_kernel()
        if training:
            self.rounding.assign(True)
            kernel = self._rounded(kernel)
        else:
            kernel = ops.where(self.rounding, self._rounded(kernel), kernel)
            if output_step is not None and self._bytes_alone():
                return self._on_levels(inputs, kernel, input_step, output_step)
        if np.any(self._shift()):
            inputs = inputs + self._shift()
        outputs = self._apply(inputs, kernel)
        if self.layer.use_bias:
            outputs = outputs + self.layer.bias
        of_batch = bool(training) and not self.frozen_statistics
        if self.batch_norm is not None:
            outputs = self.batch_norm(outputs, training=of_batch)
        if input_step is None or (of_batch and self.batch_norm is not None):
            return outputs
        exact = input_step, output_step
        input_step = ops.cast(input_step, "float32")
        if output_step is not None:
            output_step = ops.cast(output_step, "float32")
        followed = self._as_integers(outputs, kernel, input_step, output_step)
        if not training and self.activation_bits == 16 and output_step is not None:
            integers = self._in_integers(inputs, kernel, *exact)
            followed = outputs + ops.stop_gradient(integers - outputs)
        return ops.where(self.rounding, followed, outputs)

    def _as_integers(
        self,
        outputs: Tensor,
        kernel: Tensor,
        input_step: Tensor,
        output_step: Tensor | None,
    ) -> Tensor:
        """Returns the outputs with the bias and the scale of the integer operation."""
        _, bias, steps = self._of_channels(kernel, ops.convert_to_tensor)
        steps = steps * input_step
        if self.activation_bits == 16 and output_step is not None:
            if isinstance(self.layer, keras.layers.Dense):
                return outputs
            return outputs * _in_15_bits(steps / output_step)
        # As a channel of 8 bits has it, whose steps are 127/7 times as fine, and then
        # in these (`kdlite.lite.stored_types`).
        finer = _highest(8) / _highest(self.bits)
        known = ops.where(steps > 0.0, steps, 1.0)
        rounded = ops.round(ops.round(bias / known * finer) / finer) * known
        # A channel of zeros has no steps, and its bias all bits.
        outputs = outputs + ops.where(steps > 0.0, rounded - bias, 0.0)
        if output_step is None or self.bits == 8:
            return outputs
        grouped = getattr(self.layer, "groups", 1) > 1
        return rounded_once(outputs, known, output_step, half_away=grouped)

    def _bytes_alone(self) -> bool:
        return self.bits == self.activation_bits == 8

    def _on_levels(
        self, inputs: Tensor, kernel: Tensor, input_step: Tensor, output_step: Tensor
    ) -> Tensor:
        """Returns what inference gives with 8 bits, as XNNPACK's kernels compute it.

        Levels and their products are whole numbers, whose sums float32 holds: a sum of
        what they stand for is off by its last bits, and where it is halfway between two
        levels that takes it to the other one. The sum is scaled and rounded in float32.
        """
        rounding = self.rounding

        def levels(values: Tensor, step: Tensor) -> Tensor:
            values = values / step
            rounded = ops.stop_gradient(ops.round(values) - values)
            return values + ops.where(rounding, rounded, 0.0)

        largest = ops.max(ops.abs(kernel), axis=self._reduced_axes(), keepdims=True)
        of_weights = ops.where(largest > 0.0, _step_of(largest, 8), 1.0)
        of_weights = ops.stop_gradient(ops.where(rounding, of_weights, 1.0))
        of_inputs = ops.where(rounding, ops.cast(input_step, "float32"), 1.0)
        sums = self._apply(levels(inputs, of_inputs), levels(kernel, of_weights))
        outputs = sums * (ops.reshape(of_weights, (-1,)) * of_inputs)
        shifted = ops.sum(kernel * self._by_input(self._shift()), self._reduced_axes())
        outputs = outputs + ops.reshape(shifted, (-1,))
        if self.layer.use_bias:
            outputs = outputs + self.layer.bias
        if self.batch_norm is not None:
            outputs = self.batch_norm(outputs, training=False)
        sign, bias, steps = self._in_file(kernel, input_step, output_step)
        scale = steps * of_inputs / ops.cast(output_step, "float32")
        integers = ops.round((sums * sign + ops.cast(bias, "float32")) * scale)
        followed = integers * ops.cast(output_step, "float32")
        followed = outputs + ops.stop_gradient(followed - outputs)
        return ops.where(rounding, followed, outputs)

    def _in_file(
        self, kernel: Tensor, input_step: Tensor, output_step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns signs, bias on its levels and steps of weights, as a file has them.

        The bias is float64; steps are float32, in which files have them.
        """

        def wide(values: Tensor) -> Tensor:
            return ops.cast(values, "float64")

        factor, bias, steps = self._of_channels(wide(kernel), wide)
        # The kernel is float32, and in the file so are its steps; but not when the bias
        # is rounded to those of the sum.
        steps = wide(ops.cast(steps * _highest(8), "float32")) / _highest(8)
        steps = ops.where(steps > 0.0, steps, wide(output_step) / wide(input_step))
        bias = ops.round(wide(ops.cast(bias, "float32")) / (steps * wide(input_step)))
        sign = ops.cast(ops.sign(factor), "float32")
        return sign, bias, ops.cast(steps, "float32")

    def _in_integers(
        self, inputs: Tensor, kernel: Tensor, input_step: Tensor, output_step: Tensor
    ) -> Tensor:
        """Returns the outputs of the operation of 16 bits, on their levels.

        Its sums have more bits than float32; float64 holds them, and they are exact.
        """

        def wide(values: Tensor) -> Tensor:
            return ops.cast(values, "float64")

        sign, bias, steps = self._in_file(kernel, input_step, output_step)
        input_step, output_step = (
            ops.cast(step, "float32") for step in (input_step, output_step)
        )
        steps = wide(steps) * wide(input_step)
        largest = ops.max(ops.abs(kernel), axis=self._reduced_axes(), keepdims=True)
        largest = ops.where(largest > 0.0, largest, 1.0)
        weights = wide(ops.round(kernel / largest * _highest(8)))
        levels = wide(ops.round((inputs - self._shift()) / input_step))
        sums = self._apply(levels, weights) * wide(sign) + bias
        scale = steps / wide(output_step)
        if isinstance(self.layer, keras.layers.Dense):
            # It keeps all bits of the scale, since after TFLite 2.16.
            scaled = sums * scale
        else:
            scaled = sums * scale * _in_15_bits(scale)
        outputs = ops.floor(scaled + 0.5)
        return ops.cast(outputs * wide(output_step), self.compute_dtype)

    def _of_channels(
        self, kernel: Tensor, read: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns factor and bias of each channel, and the step of its weights."""
        kernel = ops.stop_gradient(kernel)
        largest = ops.max(ops.abs(kernel), axis=self._reduced_axes())
        shifted = ops.sum(kernel * self._by_input(self._shift()), self._reduced_axes())
        affine = self._affine(ops.reshape(shifted, (-1,)), read)
        factor, bias = (ops.stop_gradient(read(values)) for values in affine)
        steps = _step_of(ops.reshape(largest, (-1,)), self.bits)
        return factor, bias, steps * ops.abs(factor)

    def _apply(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, keras.layers.Dense):
            return ops.matmul(inputs, kernel)
        options = {
            "strides": layer.strides,
            "padding": layer.padding,
            "data_format": layer.data_format,
            "dilation_rate": layer.dilation_rate,
        }
        if isinstance(layer, _TRANSPOSED):
            return ops.conv_transpose(
                inputs, kernel, output_padding=layer.output_padding, **options
            )
        convolve = ops.depthwise_conv if isinstance(layer, _DEPTHWISE) else ops.conv
        return convolve(inputs, kernel, **options)

    def _scaled_kernel(self) -> Tensor:
        scale = np.asarray(self.input_scale, "float32")
        return self.layer.kernel * self._by_input(scale)

    def _by_input(self, values: np.ndarray) -> np.ndarray:
        """Returns one number for each input channel, as the kernel has them."""
        # They are on its last axis but one, or the last of a transposed convolution.
        transposed = isinstance(self.layer, _TRANSPOSED)
        return values[:, None] if values.ndim and not transposed else values

    def _shift(self) -> np.ndarray:
        # scale * x + offset = scale * (x + shift): the scale is in the kernel already.
        offset = np.asarray(self.input_offset, "float32")
        return np.asarray(offset / np.asarray(self.input_scale, "float32"))

    def _reduced_axes(self) -> tuple[int, ...]:
        """Returns the axes of the kernel that one output channel is a sum over."""
        rank = len(self.layer.kernel.shape)
        if isinstance(self.layer, _TRANSPOSED):
            return (*range(rank - 2), rank - 1)
        return tuple(
            range(rank - 2 if isinstance(self.layer, _DEPTHWISE) else rank - 1)
        )

    def _rounded(self, kernel: Tensor) -> Tensor:
        largest = ops.max(ops.abs(kernel), axis=self._reduced_axes(), keepdims=True)
        largest = ops.where(largest > 0.0, largest, 1.0)
        levels = _highest(self.bits)
        if self.learned and self.layer.trainable:
            clipped = ops.stop_gradient(largest) * ops.exp(-self.shrink)
            return learned_rounding(kernel, -clipped, clipped, 2 * levels)
        step = _step_of(largest, self.bits)
        # No weight is beyond the range of its own channel, so the gradient is 1.
        return kernel + ops.stop_gradient(ops.round(kernel / step) * step - kernel)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rounded kernel and the bias, with everything folded in.

        Returns:
            The kernel in the layout of `layer`, and the bias `(channels,)`, such that
            `layer` with these alone computes what this layer does in inference.
        """
        kernel = ops.convert_to_numpy(self._rounded(self._scaled_kernel()))
        kernel = kernel.astype("float64")

        def exact(values: Tensor) -> np.ndarray:
            return np.asarray(ops.convert_to_numpy(values), "float64")

        shifted = kernel * self._by_input(exact(self._shift()))
        factor, bias = self._affine(
            shifted.sum(axis=self._reduced_axes()).reshape(-1), exact
        )
        # A depthwise kernel has its output channels in its last two axes.
        reduced = self._reduced_axes()
        shape = [1 if k in reduced else n for k, n in enumerate(kernel.shape)]
        kernel = kernel * np.broadcast_to(factor, bias.shape).reshape(shape)
        return kernel.astype("float32"), bias.astype("float32")

    def _affine(self, bias: Any, read: Callable[[Tensor], Any]) -> tuple[Any, Any]:
        """Returns what inference multiplies each channel with, and the whole bias."""
        if self.layer.use_bias:
            bias = bias + read(self.layer.bias)
        if self.batch_norm is None:
            return np.ones(1, "float32"), bias
        norm = self.batch_norm
        factor = (read(norm.moving_variance) + norm.epsilon) ** -0.5
        if norm.scale:
            factor = factor * read(norm.gamma)
        bias = (bias - read(norm.moving_mean)) * factor
        if norm.center:
            bias = bias + read(norm.beta)
        return factor, bias

    def cut_channels(self, input_step: float) -> list[int]:
        """Returns the channels whose bias has more than 32 bits, in the sum's steps."""
        kernel, bias = self.folded()
        largest = np.abs(kernel).max(axis=self._reduced_axes()).reshape(-1)
        steps = largest / _highest(self.bits) * input_step
        return np.flatnonzero(np.abs(bias) > (2.0**31 - 1) * steps).tolist()

    def plain(self, activation_bits: int = 8) -> tuple[keras.Layer, list[np.ndarray]]:
        """Returns the one layer this becomes at export, and its weights."""
        kernel, bias = self.folded()
        if self.bits == 4 and isinstance(self.layer, keras.layers.Dense):
            pointwise = PointwiseDense(self.layer.units, name=self.name)
            return pointwise, [kernel[None, None], bias]
        config = {**self.layer.get_config(), "name": self.name, "use_bias": True}
        dense = isinstance(self.layer, keras.layers.Dense)
        made = RowDense if dense else type(self.layer)
        # Without a bias a dense layer of 16 bits has sums of 32 bits, which overflow.
        kept = dense and activation_bits > 8
        if (kept or isinstance(self.layer, _TRANSPOSED)) and not np.any(bias):
            bias = bias + _ALMOST_ZERO
        copy = made.from_config(config)
        if bias.size == 1 and isinstance(self.layer, _OF_ROWS):
            return OfOneRow(copy, name=self.name), [kernel[None], bias]
        return copy, [kernel, bias]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the output shape of `layer`."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, the inner layers serialized."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "layer": serialize(self.layer),
            "batch_norm": serialize(self.batch_norm),
            "input_scale": self.input_scale,
            "input_offset": self.input_offset,
            "bits": self.bits,
            "frozen_statistics": self.frozen_statistics,
            "learned": self.learned,
            "activation_bits": self.activation_bits,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FoldedLayer:
        """Creates the layer from `get_config()`."""
        deserialize = keras.saving.deserialize_keras_object
        inner = ("layer", "batch_norm")
        return cls(**{**config, **{key: deserialize(config[key]) for key in inner}})


def _highest(bits: int) -> int:
    """Returns the highest level of a weight, which is the lowest one's negative."""
    return int(2 ** (bits - 1) - 1)


def _step_of(largest: Tensor, bits: int) -> Tensor:
    """Returns how wide a step is of weights whose largest is given.

    TensorFlow's graphs multiply by the reciprocal of a constant in place of dividing by
    it: off by one float32 bit, from the file and from the same model run eagerly.
    """
    exact = ops.cast(largest, "float64") / _highest(bits)
    return ops.cast(exact, largest.dtype)


def _in_15_bits(scale: Tensor) -> Tensor:
    """Returns by how much a scale grows when its mantissa is rounded to 15 bits."""
    scale = ops.where(scale > 0.0, scale, 1.0)
    power = ops.power(2.0, ops.cast(14.0 - floor_log2(scale), scale.dtype))
    kept = ops.minimum(ops.round(scale * power), 2.0**15 - 1.0)
    return kept / (scale * power)
