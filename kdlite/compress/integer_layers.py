"""The layers that have integer operations, and what each becomes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from kdlite.compress.folded_layer import KERNELS as KERNELS
from kdlite.compress.graph import IN_TRAINING_ALONE, Call
from kdlite.compress.stand_ins import RANGE
from kdlite.copies import layer_again

Range = tuple[float, float]
Make = Callable[[], keras.Layer]

_activations = keras.activations
ACTIVATIONS: dict[Callable[..., Any], tuple[str, Make]] = {
    _activations.relu: ("relu", layers.ReLU),
    _activations.relu6: ("relu", lambda: layers.ReLU(6.0)),
    _activations.softmax: ("head", layers.Softmax),
    _activations.sigmoid: ("head", lambda: layers.Activation("sigmoid")),
    _activations.tanh: ("value", lambda: layers.Activation("tanh")),
    _activations.hard_silu: ("value", lambda: layers.Activation("hard_silu")),
    _activations.leaky_relu: ("value", lambda: layers.LeakyReLU(0.2)),
    _activations.gelu: ("value", lambda: layers.Activation("gelu")),
}
# What TFLite's own kernels have by definition, so that nothing is to be measured: the
# widest that a function reaches, in steps of 1/256 and 1/128; with 16 bits of 1/32768.
_UNIT_RANGE: Range = (0.0, 255 / 256)
_FIXED_RANGES: dict[Callable[..., Any], Range] = {
    _activations.softmax: _UNIT_RANGE,
    _activations.sigmoid: _UNIT_RANGE,
    _activations.tanh: (-1.0, 127 / 128),
}

# The layers that need no more than their kind.
KINDS: dict[type, str] = {
    layers.ReLU: "relu",
    layers.Softmax: "head",
    layers.LeakyReLU: "value",
    layers.Subtract: "arithmetic",
    layers.Concatenate: "concatenate",
    layers.AveragePooling1D: "average",
    layers.AveragePooling2D: "average",
    layers.GlobalAveragePooling1D: "mean",
    layers.GlobalAveragePooling2D: "mean",
    **dict.fromkeys(
        (
            *(layers.MaxPooling1D, layers.MaxPooling2D),
            *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D),
            *(layers.ZeroPadding1D, layers.ZeroPadding2D),
            *(layers.Cropping1D, layers.Cropping2D, layers.UpSampling1D),
            *(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector),
            *(layers.Identity, *IN_TRAINING_ALONE),
        ),
        "pass",
    ),
}
_SUPPORTED = (
    *KERNELS,
    *(layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.BatchNormalization, layers.Rescaling, layers.Normalization),
    *(layers.Activation, layers.PReLU, layers.UpSampling2D, layers.Resizing),
    *(layers.EinsumDense, layers.Embedding),
    *(layers.Add, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum),
    *KINDS,
)
# Operations of `keras.ops`, and what does the same.
_FUNCTIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Tanh": "tanh",
}
_MERGES = {
    "Add": layers.Add,
    "Subtract": layers.Subtract,
    "Multiply": layers.Multiply,
    "Maximum": layers.Maximum,
    "Minimum": layers.Minimum,
}
# Why the converter leaves these in float, and what to do.
_IN_FLOAT: dict[type, str] = {
    layers.LayerNormalization: "Its mean and square root stay in float",
    layers.GroupNormalization: "Its mean and square root stay in float",
    layers.RMSNormalization: "Its square stays in float",
    layers.UnitNormalization: "Its square stays in float",
    layers.MultiHeadAttention: "Its products have ranges that it does not give",
    layers.ELU: "It has no integer operation",
    layers.Conv3D: "It has no integer operation",
    layers.LSTM: "Its loop has no ranges, and the converter crashes on them",
    layers.GRU: "Its loop has no ranges, and the converter crashes on them",
    layers.Bidirectional: "Its loop has no ranges, and the converter crashes on them",
}


def clone(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """Returns a new layer of the same configuration.

    Args:
        layer: Any layer.
        **changes: What is different.

    Returns:
        The layer, not built.

    Raises:
        ValueError: If it cannot be made again from its configuration.
    """
    return layer_again(layer, lambda config: {**config, **changes})


def fixed_range(function: Callable[..., Any], bits: int) -> Range | None:
    """Returns the range that an activation has by definition.

    Args:
        function: Of `keras.activations`.
        bits: Bits of an activation, 8 or 16.

    Returns:
        `(lo, hi)`; None where it is to be measured.
    """
    known = _FIXED_RANGES.get(function)
    return known if known is None or bits == 8 else RANGE


def separated(layer: Any) -> tuple[keras.Layer, keras.Layer]:
    """Returns the two layers that a separable convolution is made of.

    Args:
        layer: A `SeparableConv1D` or `SeparableConv2D`.

    Returns:
        A depthwise and a pointwise convolution, neither with an activation.
    """
    image = isinstance(layer, layers.SeparableConv2D)
    depthwise = layers.DepthwiseConv2D if image else layers.DepthwiseConv1D
    pointwise = layers.Conv2D if image else layers.Conv1D
    return (
        depthwise(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            trainable=layer.trainable,
            name=layer.name,
        ),
        pointwise(
            layer.filters,
            1,
            use_bias=layer.use_bias,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            trainable=layer.trainable,
            name=layer.name,
        ),
    )


def einsum_axes(layer: Any) -> tuple[int, int, int] | None:
    """Returns how many axes an `EinsumDense` keeps, sums over and makes.

    Args:
        layer: An `EinsumDense`.

    Returns:
        The numbers of axes, the batch not counted; None unless it sums over the last
        ones, makes the last ones, and has a bias for each of them or none.

    Example:
        >>> heads = layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de")
        >>> einsum_axes(heads)
        (1, 1, 2)
    """
    taken, _, rest = layer.equation.partition(",")
    kernel, _, result = rest.partition("->")
    if "." in layer.equation:
        return None
    summed = [letter for letter in kernel if letter in taken]
    made = [letter for letter in kernel if letter not in taken]
    kept = taken[: len(taken) - len(summed)]
    plain = (
        list(kernel) == summed + made
        and taken == kept + "".join(summed)
        and result == kept + "".join(made)
        and list(layer.bias_axes or made) == made
    )
    if not (plain and kept and summed and made):
        return None
    return len(kept) - 1, len(summed), len(made)


def scale_and_offset(layer: Any) -> tuple[Any, Any]:
    """Returns what an affine layer does: numbers, or one for each channel.

    Args:
        layer: A `Rescaling` or `Normalization`.

    Returns:
        `scale` and `offset` of `scale * x + offset`.
    """
    if isinstance(layer, layers.Rescaling):
        return np.float64(layer.scale), np.float64(layer.offset)
    deviation = np.sqrt(np.float64(layer.variance)).reshape(-1)
    deviation = np.maximum(deviation, keras.config.epsilon())
    return 1.0 / deviation, -np.float64(layer.mean).reshape(-1) / deviation


def as_layer(call: Call) -> Any:
    """Returns what is called, operations of `keras.ops` as the layer that does it.

    Args:
        call: A call.

    Returns:
        The layer; an operation that no layer does as it is.
    """
    operation, name = call.operation, call.operation.name
    if isinstance(operation, keras.Layer):
        return operation
    kind = type(operation).__name__
    if kind in _FUNCTIONS and len(call.inputs) == 1:
        return layers.Activation(_FUNCTIONS[kind], name=name)
    if kind in _MERGES and len(call.inputs) == 2:
        return _MERGES[kind](name=name)
    operands = [*call.arguments.args, *call.arguments.kwargs.values()]
    numbers = [value for value in operands if _is_number(value)]
    if len(operands) != 2 or len(numbers) != 1:
        return operation
    number, first = float(numbers[0]), operands[0] is numbers[0]
    match kind:
        case "Add":
            return layers.Rescaling(1.0, number, name=name)
        case "Subtract":
            sign = -1.0 if first else 1.0
            return layers.Rescaling(sign, -sign * number, name=name)
        case "Multiply":
            return layers.Rescaling(number, name=name)
        case "Divide" | "TrueDivide" if number and not first:
            return layers.Rescaling(1.0 / number, name=name)
    return operation


def _is_number(value: Any) -> bool:
    """Whether an operand of an operation is a number, Python's or NumPy's."""
    if isinstance(value, (np.ndarray, np.generic)):
        return not value.ndim and value.dtype.kind in "iuf"
    return isinstance(value, (int, float))


def aspect_frame(layer: Any, size: tuple[int | None, ...]) -> keras.Layer | None:
    """Returns what a `Resizing` does before it resizes, to keep the aspect ratio.

    Args:
        layer: Any layer that resizes.
        size: Height and width of what it is given, None where open.

    Returns:
        The layer that crops or pads; None where it does neither, or in a way that no
        other layer has: to an open size, or with other values than 0.
    """
    crops = getattr(layer, "crop_to_aspect_ratio", False)
    pads = getattr(layer, "pad_to_aspect_ratio", False) and not layer.fill_value
    if not (crops or pads) or None in size:
        return None
    given: Any = np.array(size)
    after = np.array([layer.height, layer.width])
    # As Keras has it, bits and all.
    wanted = (np.float32(given[::-1] * after) / np.float32(after[::-1])).astype(int)
    if pads:
        return layers.ZeroPadding2D((np.maximum(wanted - given, 0) // 2).tolist())
    cut = given - np.clip(wanted, 1, given)
    return layers.Cropping2D(np.stack([cut // 2, cut - cut // 2], -1).tolist())


def check_supported(layer: Any, bits: int = 8) -> None:
    """Raises ValueError unless a layer can be quantized.

    Args:
        layer: A student's layer.
        bits: Bits of an activation, 8 or 16.

    Raises:
        ValueError: The layer, and why not.
    """
    if type(layer) not in _SUPPORTED:
        names = ", ".join(
            supported.__name__
            for supported in _SUPPORTED
            if supported not in IN_TRAINING_ALONE
        )
        why = _IN_FLOAT.get(type(layer))
        raise ValueError(
            "Quantization-aware training does not have this layer. Received: layer "
            f"{layer.name!r} of class {type(layer).__name__}. "
            + (f"{why}. " if why else "")
            + f"Leave it in float, {override(layer.name)}, or export the "
            "student with 'dynamic', which has 8-bit weights of any layer. Or build "
            f"the student from {names}, and what acts in training alone: "
            "dropout, noise, augmentation."
        )
    if layer.dtype_policy.name != "float32":
        raise ValueError(
            "Quantization-aware training needs the dtype policy float32. Received: "
            f"layer {layer.name!r} with {layer.dtype_policy.name!r}. Rebuild the "
            "student in float32 and copy its weights."
        )
    problem = _problem(layer) or (_problem_of_16_bits(layer) if bits == 16 else None)
    if problem:
        raise ValueError(
            f"Layer {layer.name!r} cannot be quantized as it is. Received: "
            f"{type(layer).__name__} with {problem}."
        )


def override(name: str) -> str:
    """Returns the argument of `quantize_aware` that leaves a layer in float."""
    return f"overrides={{{name!r}: 'float32'}}"


def _problem(layer: Any) -> str | None:
    """Returns what about a supported layer cannot be quantized, and what can."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "data_format='channels_first'. Use 'channels_last'"
    if getattr(layer, "lora_enabled", False):
        return (
            "LoRA, whose two factors no kernel has. Build it without, and give it "
            f"the sum, `model.get_layer({layer.name!r}).kernel`"
        )
    or_float = f", or leave it in float, {override(layer.name)}"
    regularized = layer.activity_regularizer is not None
    if regularized and not isinstance(layer, layers.ActivityRegularization):
        return "an activity regularizer. Remove it"
    if isinstance(layer, layers.BatchNormalization) and (
        layer.axis not in (-1, layer.input_spec.ndim - 1) or layer.renorm
    ):
        return (
            f"axis={layer.axis}, renorm={layer.renorm}. Use the last axis, plain"
            f"{or_float}"
        )
    if isinstance(layer, layers.Normalization) and (
        layer.invert or any(size != 1 for size in layer.mean.shape[:-1])
    ):
        return f"axis={layer.axis}, invert={layer.invert}. Use the last axis"
    if isinstance(layer, layers.ReLU) and (
        layer.max_value not in (None, 6.0) or layer.negative_slope or layer.threshold
    ):
        return (
            f"max_value={layer.max_value}, a slope or a threshold. Use ReLU or ReLU6"
            f"{or_float}"
        )
    if isinstance(layer, layers.Conv1DTranspose | layers.Conv2DTranspose) and (
        set(np.atleast_1d(layer.dilation_rate)) != {1}
    ):
        return f"dilation_rate={layer.dilation_rate}, which TFLite has not. Use 1"
    if isinstance(layer, layers.RandomCrop) and layer.input.shape != layer.output.shape:
        return (
            f"images of {layer.input.shape[1:3]} and crops of {layer.output.shape[1:3]}"
            ", where Keras leaves images whole in inference. Crop in the data"
        )
    if isinstance(layer, layers.EinsumDense) and einsum_axes(layer) is None:
        return (
            f"equation={layer.equation!r}, bias_axes={layer.bias_axes!r}. Sum over the "
            "last axes, as in 'abc,cd->abd', with a bias for each that is made"
            f"{or_float}"
        )
    if isinstance(layer, layers.Embedding) and layer.mask_zero:
        return "mask_zero=True. Leave it out, and take the mean over all places"
    if isinstance(layer, layers.UpSampling2D | layers.Resizing):
        if layer.interpolation not in ("nearest", "bilinear"):
            return f"interpolation={layer.interpolation!r}. Use 'bilinear'"
        if layer.interpolation == "bilinear" and getattr(layer, "antialias", False):
            return "antialias=True, which TFLite does not have. Leave it out"
    return None


def _problem_of_16_bits(layer: Any) -> str | None:
    """Returns what about a layer TFLite has in 8 bits only, and what to use."""
    if isinstance(layer, layers.PReLU):
        return "16-bit activations, which TFLite does not have for it. Use LeakyReLU"
    if isinstance(layer, layers.UpSampling1D | layers.RepeatVector):
        return "16-bit activations, which TFLite does not repeat. Use Conv1DTranspose"
    if isinstance(layer, layers.Embedding):
        return "16-bit activations, of which TFLite has no table. Use recipe='int8'"
    if getattr(layer, "activation", None) is _activations.gelu:
        return "16-bit activations, which TFLite does not have for GELU. Use 'silu'"
    if isinstance(layer, layers.Softmax) and layer.axis not in (-1, _rank(layer) - 1):
        return f"axis={layer.axis}. Use the last axis"
    if getattr(layer, "pad_to_aspect_ratio", False):
        return (
            "pad_to_aspect_ratio=True and 16-bit activations, of which TFLite does not "
            "put in what is padded. Pad with ZeroPadding2D before it"
        )
    if KINDS.get(type(layer)) == "mean":
        places = math.prod(size or 1 for size in layer.input.shape[1:-1])
        if places * (2**15 - 1) >= 2**31:
            return (
                f"16-bit activations at {places:,} places, whose sum is beyond the 32 "
                "bits that TFLite has for it. Use AveragePooling before it"
            )
    if isinstance(layer, layers.UpSampling2D | layers.Resizing):
        before, after = (tensor.shape[1:3] for tensor in (layer.input, layer.output))
        if None in before or None in after:
            return "16-bit activations and an open size. Give its input a size"
        if (frame := aspect_frame(layer, before)) is not None:
            before = frame.compute_output_shape((None, *before, None))[1:3]
        # TFLite's kernel has places in steps of 1/1024.
        rough = any(512 * a % b for a, b in zip(before, after, strict=True))
        if layer.interpolation == "bilinear" and rough:
            return (
                f"16-bit activations from {before} to {after}, which TFLite does in "
                "steps of 1/1024. Double or halve the size, or use 'nearest'"
            )
    return None


def _rank(layer: Any) -> int:
    return len(layer.output.shape)
