"""Fake quantization: float layers that already round as the integer model will.

Two layers make a quantization-aware model. `FakeQuant` rounds a tensor to the levels of
an integer type. `FoldedLayer` is a convolution or dense layer with a rounded kernel,
together with the rescaling before it and the batch normalization after it, which both
vanish into its kernel and bias when the model is exported.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any

# A tensor that is zero throughout has no range of its own, and a scale near zero makes
# the integer kernels overflow; any range represents its zeros. It is given 1. LiteRT
# ends the process where an input of a sum is 2^19 times as wide as the sum, so that
# nothing narrower than 2^-19 can be alive beside it.
_DEAD_RANGE = 1e-5

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)
# The layers whose kernel can be rounded, with what is beside it folded in.
KERNELS = (*_CONVOLUTIONS, *_DEPTHWISE, *_TRANSPOSED, keras.layers.Dense)


@keras.saving.register_keras_serializable(package="kdlite")
class FakeQuant(keras.layers.Layer):
    """Rounds a tensor to the levels of an integer type, in a range it measures.

    With the range `[lo, hi]`, moved so that zero is exactly a level:

        scale = (hi - lo) / (2^bits - 1)
        y = scale * round(clip(x, lo, hi) / scale)

    The gradient is that of `clip` (straight-through). The range is measured in training
    only: the first batch sets it, later ones move it by an exponential mean. It always
    contains zero. Until it has been measured the layer passes its input on unchanged.
    With `trainable = False` the range stays as it is.

    Tensors that must have one range, such as the inputs of a concatenation, share one
    layer: each has a site of its own, and the range is the union over the sites.

    Args:
        bits: Bits of the integer type.
        sites: Number of tensors that are measured. 0 measures none.
        fixed_range: `(lo, hi)` that the range always includes; with `sites=0` it is the
            range.
        momentum: Weight of the old range in the exponential mean, in `[0, 1)`. `None`
            keeps the smallest and largest value ever seen.
        margin: The range is widened by this fraction of itself.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of any shape.
        site: Which site the tensor is, or `None` to use the range without measuring.
        training: Whether to measure.

    Raises:
        ValueError: If an argument is out of range, or neither `sites` nor
            `fixed_range` gives a range.

    Example:
        >>> quantizer = FakeQuant(sites=0, fixed_range=(0.0, 255.0))
        >>> quantizer(np.array([-3.0, 0.4, 254.6])).numpy().tolist()
        [0.0, 0.0, 255.0]

    Reference:
        Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877, section 3.
    """

    def __init__(
        self,
        bits: int = 8,
        sites: int = 1,
        fixed_range: tuple[float, float] | None = None,
        momentum: float | None = 0.95,
        margin: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if bits not in range(2, 17):
            raise ValueError(
                f"`bits` must be from 2 to 16. Received: bits={bits!r}. Use 8 for int8."
            )
        if sites < 0 or (sites == 0 and fixed_range is None):
            raise ValueError(
                "A range must come from measured sites or from `fixed_range`. "
                f"Received: sites={sites!r}, fixed_range={fixed_range!r}. Pass "
                "`sites=1`, or a `fixed_range`."
            )
        if momentum is not None and not 0.0 <= momentum < 1.0:
            raise ValueError(
                "`momentum` must be in [0, 1) or None. Received: "
                f"momentum={momentum!r}. Use 0.95."
            )
        if margin < 0.0:
            raise ValueError(
                f"`margin` must not be negative. Received: margin={margin!r}. Use 0."
            )
        self.bits = bits
        self.sites = sites
        self.fixed_range = None if fixed_range is None else checked_range(fixed_range)
        self.momentum = momentum
        self.margin = margin

    def build(self, input_shape: Any) -> None:
        """Creates one measured minimum and maximum for each site."""
        if self.sites:
            # A minimum above its maximum marks a site that has seen nothing yet.
            self.minimum = self.add_weight(
                shape=(self.sites,),
                initializer="ones",
                trainable=False,
                name="minimum",
            )
            self.maximum = self.add_weight(
                shape=(self.sites,),
                initializer=keras.initializers.Constant(-1.0),
                trainable=False,
                name="maximum",
            )

    def call(
        self, inputs: Tensor, site: int | None = 0, training: bool | None = None
    ) -> Tensor:
        """Rounds `inputs`."""
        inputs = ops.cast(inputs, self.compute_dtype)
        measured = bool(training and self.trainable and self.sites and site is not None)
        if measured:
            self._measure(inputs, site)
        lowest, highest = self._range()
        outputs = keras.quantizers.fake_quant_with_min_max_vars(
            inputs, lowest, highest, num_bits=self.bits
        )
        if measured or not self.sites:
            return outputs
        return ops.where(ops.any(self._seen()), outputs, inputs)

    def _measure(self, inputs: Tensor, site: int | None) -> None:
        inputs = ops.stop_gradient(inputs)
        here = np.arange(self.sites) == site
        seen = self._seen()
        for variable, new, extreme in (
            (self.minimum, ops.min(inputs), ops.minimum),
            (self.maximum, ops.max(inputs), ops.maximum),
        ):
            if self.momentum is None:
                moved = extreme(variable, new)
            else:
                moved = variable + (1.0 - self.momentum) * (new - variable)
            moved = ops.where(seen, moved, new)
            variable.assign(ops.where(here, moved, variable))

    def _seen(self) -> Tensor:
        return ops.less_equal(self.minimum, self.maximum)

    def _range(self) -> tuple[Tensor, Tensor]:
        lowest, highest = self.fixed_range or (0.0, 0.0)
        if self.sites:
            seen = self._seen()
            lowest = ops.minimum(lowest, ops.min(ops.where(seen, self.minimum, 0.0)))
            highest = ops.maximum(highest, ops.max(ops.where(seen, self.maximum, 0.0)))
        lowest = ops.convert_to_tensor(lowest * (1.0 + self.margin), "float32")
        highest = ops.convert_to_tensor(highest * (1.0 + self.margin), "float32")
        return lowest, ops.where(highest - lowest < _DEAD_RANGE, 1.0, highest)

    @property
    def has_range(self) -> bool:
        """Whether the range is known."""
        return not self.sites or bool(ops.any(self._seen()))

    def frozen(self) -> FakeQuant:
        """Returns a `FakeQuant` of the same name with this range as a constant."""
        lowest, highest = self._range()
        return FakeQuant(
            bits=self.bits,
            sites=0,
            fixed_range=(float(lowest), float(highest)),
            name=self.name,
        )

    def compute_output_shape(self, input_shape: Any, **kwargs: Any) -> Any:
        """Returns `input_shape`."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "bits": self.bits,
            "sites": self.sites,
            "fixed_range": self.fixed_range,
            "momentum": self.momentum,
            "margin": self.margin,
        }


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

    The kernel is rounded from the first training step on. The bias is not rounded: the
    converter stores it in 32 bits.

    Args:
        layer: A convolution (1D or 2D, depthwise, transposed) or `Dense`, without an
            activation.
        batch_norm: `BatchNormalization` over the last axis, or `None`.
        input_scale: Number, or one for each input channel, not zero.
        input_offset: Number, or one for each input channel. A padded `layer` needs 0.
        bits: Bits of a weight.
        frozen_statistics: Whether batch normalization uses its moving statistics in
            training too.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: What `layer` takes, before the rescaling.
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
    """

    def __init__(
        self,
        layer: keras.Layer,
        batch_norm: keras.layers.BatchNormalization | None = None,
        input_scale: float | list[float] = 1.0,
        input_offset: float | list[float] = 0.0,
        bits: int = 8,
        frozen_statistics: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
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

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Applies the layer, and batch normalization."""
        kernel = self._scaled_kernel()
        if training:
            self.rounding.assign(True)
            kernel = self._rounded(kernel)
        else:
            kernel = ops.where(self.rounding, self._rounded(kernel), kernel)
        if np.any(self._shift()):
            inputs = inputs + self._shift()
        outputs = self._apply(inputs, kernel)
        if self.layer.use_bias:
            outputs = outputs + self.layer.bias
        if self.batch_norm is None:
            return outputs
        return self.batch_norm(
            outputs, training=bool(training) and not self.frozen_statistics
        )

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
        step = ops.where(largest > 0.0, largest, 1.0) / (2 ** (self.bits - 1) - 1)
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
        shift = self._shift().astype("float64")
        shifted = kernel * self._by_input(shift)
        bias = shifted.sum(axis=self._reduced_axes()).reshape(-1)
        if self.layer.use_bias:
            bias = bias + ops.convert_to_numpy(self.layer.bias)
        if self.batch_norm is not None:
            norm = self.batch_norm
            variance = ops.convert_to_numpy(norm.moving_variance).astype("float64")
            factor = 1.0 / np.sqrt(variance + norm.epsilon)
            if norm.scale:
                factor = factor * ops.convert_to_numpy(norm.gamma)
            bias = (bias - ops.convert_to_numpy(norm.moving_mean)) * factor
            if norm.center:
                bias = bias + ops.convert_to_numpy(norm.beta)
            # A depthwise kernel has its output channels in its last two axes.
            reduced = self._reduced_axes()
            shape = [1 if k in reduced else n for k, n in enumerate(kernel.shape)]
            kernel = kernel * factor.reshape(shape)
        return kernel.astype("float32"), bias.astype("float32")

    def plain(self) -> tuple[keras.Layer, list[np.ndarray]]:
        """Returns the one Keras layer this becomes at export, and its weights."""
        config = {**self.layer.get_config(), "name": self.name, "use_bias": True}
        return type(self.layer).from_config(config), list(self.folded())

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
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FoldedLayer:
        """Creates the layer from `get_config()`."""
        deserialize = keras.saving.deserialize_keras_object
        inner = ("layer", "batch_norm")
        return cls(**{**config, **{key: deserialize(config[key]) for key in inner}})


@keras.saving.register_keras_serializable(package="kdlite")
class InFloat(keras.layers.Wrapper):
    """A layer of a quantization-aware model that is left in float.

    It computes what `layer` does; that it is one of these says so to the export.

    Args:
        layer: Any layer with one output.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        *args: What `layer` takes.
        **kwargs: What `layer` takes.

    Example:
        >>> InFloat(keras.layers.ReLU())(np.array([-1.0, 2.0])).numpy().tolist()
        [0.0, 2.0]
    """

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, unless it is: one of several inputs must be before."""
        if not self.layer.built:
            self.layer.build(input_shape)
        self.built = True

    def call(self, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the layer."""
        return self.layer(*args, **kwargs)


def checked_range(bounds: Any) -> tuple[float, float]:
    """Returns `(lo, hi)` as floats, or raises ValueError."""
    try:
        lowest, highest = (float(bound) for bound in bounds)
        valid = np.isfinite(lowest) and np.isfinite(highest) and lowest < highest
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "A range must be two finite numbers, the lower one first. Received: "
            f"range={bounds!r}. Pass for example (0.0, 255.0) for raw pixels."
        )
    return lowest, highest
