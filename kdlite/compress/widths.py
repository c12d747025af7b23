"""How wide each layer of a narrower model is.

Every layer that makes channels has a width, and where tensors are added, gated or
passed through a shared layer their widths must stay the same. `Widths` finds out which
belong together, and which must stay as they are: those of the inputs and of the
outputs.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
from keras.src.layers.convolutional.base_depthwise_conv import BaseDepthwiseConv
from keras.src.layers.convolutional.base_separable_conv import BaseSeparableConv
from keras.src.layers.layer import Layer

from kdlite.compress.graph import IN_TRAINING_ALONE, Call, CallGraph, Shape

# The length of a last axis: a sum of group widths, each times a factor. None stands
# for a length that does not change.
Width = tuple[tuple[int, int], ...]

# Layers that make channels, and the argument that says how many.
MAKERS: dict[type, str] = {
    BaseConv: "filters",
    BaseConvTranspose: "filters",
    BaseSeparableConv: "filters",
    layers.Dense: "units",
    layers.Embedding: "output_dim",
    layers.LSTM: "units",
    layers.GRU: "units",
    layers.SimpleRNN: "units",
}
_ONE_WIDTH = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
# Layers that leave the last axis as it is, in width and in place.
PASSING = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU),
    *(layers.Softmax, layers.Identity, layers.Masking, *IN_TRAINING_ALONE),
    *(layers.BatchNormalization, layers.LayerNormalization),
    *(layers.GroupNormalization, layers.UnitNormalization, layers.RMSNormalization),
    *(layers.Rescaling, layers.Resizing, layers.RepeatVector),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalAveragePooling3D, layers.GlobalMaxPooling1D),
    *(layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
)
# Operations of `keras.ops` that compute value by value; and two layers that
# `keras.applications` has of its own.
_BY_VALUE = frozenset(
    "Abs Add Cast Clip Divide Elu Exp Gelu HardSigmoid HardSilu LeakyRelu Log "
    "LogSoftmax Maximum Minimum Multiply Negative Power Relu Relu6 Rsqrt Selu Sigmoid "
    "Silu Softmax Softplus Sqrt Square Subtract Tanh TrueDivide".split()
)
_OF_CONVNEXT = ("LayerScale", "StochasticDepth")


class Widths:
    """The widths of a model's layers, and which belong together.

    Args:
        graph: The model's calls.

    Raises:
        ValueError: If a layer's width cannot be followed; it is named.
    """

    def __init__(self, graph: CallGraph) -> None:
        self._shapes = graph.shapes
        self._old: list[int] = []
        self._parent: list[int] = []
        self._sums: dict[int, Width] = {}
        self._fixed: set[int] = set()
        self._made: dict[int, Width] = {}
        self._last: dict[int, Width | None] = dict.fromkeys(graph.inputs)
        seen: dict[int, Call] = {}
        for call in graph.calls:
            operation = call.operation
            first = seen.setdefault(id(operation), call)
            if first is not call and isinstance(operation, Layer):
                for a, b in zip(first.inputs, call.inputs, strict=False):
                    self._equate(a, b)
            results = self._results(call)
            self._last.update(zip(call.outputs, results, strict=True))
        for x in graph.outputs:
            self._fix(self._last[x])

    def made_by(self, layer: Any, ratio: float) -> int | None:
        """Returns how many channels a layer makes in the narrower model.

        Args:
            layer: A layer of the model.
            ratio: Factor on all widths that are free, in (0, 1].

        Returns:
            The number, or None for a layer that makes none.
        """
        width = self._made.get(id(layer))
        return None if width is None else self._size(width, ratio)

    def of(self, tensor: int, ratio: float) -> int | None:
        """Returns the last length of a tensor in the narrower model, if it changes."""
        width = self._last[tensor]
        return None if width is None else self._size(width, ratio)

    @property
    def free(self) -> bool:
        """Whether any width can change."""
        roots = {self._find(group) for group in range(len(self._old))}
        return any(root not in self._fixed and root not in self._sums for root in roots)

    def _size(self, width: Width, ratio: float) -> int:
        return sum(factor * self._group_size(g, ratio) for g, factor in width)

    def _group_size(self, group: int, ratio: float) -> int:
        root = self._find(group)
        if root in self._fixed:
            return self._old[root]
        if root in self._sums:
            return self._size(self._sums[root], ratio)
        return narrowed(self._old[root], ratio)

    # Which belong together

    def _new_group(self, size: int) -> Width:
        self._old.append(size)
        self._parent.append(len(self._parent))
        return ((len(self._old) - 1, 1),)

    def _find(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def _roots(self, width: Width) -> Width:
        return tuple((self._find(group), factor) for group, factor in width)

    def _fix(self, width: Width | None) -> None:
        for group, _ in self._roots(width or ()):
            if group not in self._fixed:
                self._fixed.add(group)
                self._fix(self._sums.get(group))

    def _equate(self, a: int, b: int) -> None:
        """Keeps the last axes of two tensors as long as each other, if they are."""
        if self._shapes[a][-1:] == self._shapes[b][-1:]:
            self._tie(self._last[a], self._last[b])

    def _tie(self, left: Width | None, right: Width | None) -> None:
        """Keeps two lengths equal."""
        left, right = self._roots(left or ()), self._roots(right or ())
        alike = [f for _, f in left] == [f for _, f in right]
        if alike and all(
            self._old[one] == self._old[other]
            for (one, _), (other, _) in zip(left, right, strict=True)
        ):
            for (one, _), (other, _) in zip(left, right, strict=True):
                self._merge(one, other)
        elif not left or not right:
            self._fix((*left, *right))
        elif not (self._define(left, right) or self._define(right, left)):
            self._fix((*left, *right))

    def _merge(self, one: int, other: int) -> None:
        one, other = self._find(one), self._find(other)
        if one == other:
            return
        if one in self._fixed or other in self._fixed:
            self._fix(((one, 1), (other, 1)))
        sums = self._sums.pop(other, None)
        self._parent[other] = one
        if sums is not None:
            self._tie(((one, 1),), sums)

    def _define(self, single: Width, width: Width) -> bool:
        """Has a group be the sum that another width is, if it is free to."""
        if len(single) != 1 or single[0][1] != 1:
            return False
        group = self._find(single[0][0])
        if group in self._sums or group in self._parts(width):
            return False
        if group in self._fixed:
            self._fix(width)
        self._sums[group] = width
        return True

    def _parts(self, width: Width) -> set[int]:
        parts: set[int] = set()
        for group, _ in self._roots(width):
            parts |= {group} | self._parts(self._sums.get(group, ()))
        return parts

    # What each layer does

    def _results(self, call: Call) -> list[Width | None]:
        """Returns the last length of each output."""
        layer = call.operation
        taken = [self._last[x] for x in call.inputs]
        inner = inner_layer(layer)
        key = maker_key(inner)
        if key is not None:
            return self._maker(call, inner, getattr(inner, key))
        if isinstance(layer, layers.EinsumDense):
            return [self._einsum(call)]
        if all(width is None for width in taken):
            return [None] * len(call.outputs)
        (result,) = call.outputs[:1]
        shape = self._shapes[call.inputs[0]]
        if isinstance(inner, BaseDepthwiseConv):
            self._check_channels_last(call, inner)
            return [_times(taken[0], inner.depth_multiplier)]
        if isinstance(layer, _ONE_WIDTH) or _by_value(call):
            return [self._one_width(call)]
        if isinstance(layer, layers.Concatenate):
            return [self._concatenated(call)]
        if isinstance(layer, layers.Flatten):
            return [self._flattened(taken[0], shape)]
        if isinstance(layer, layers.Reshape):
            return [self._reshaped(taken[0], shape, self._shapes[result])]
        if isinstance(layer, layers.Permute):
            if layer.dims[-1] == len(layer.dims):
                return [taken[0]]
            self._fix(taken[0])
            return [None]
        if isinstance(layer, layers.MultiHeadAttention):
            if layer.get_config()["output_shape"] is not None:
                return [None] * len(call.outputs)
            return [taken[0], *[None] * (len(call.outputs) - 1)]
        if isinstance(layer, (layers.Attention, layers.AdditiveAttention)):
            self._equate(call.inputs[0], call.inputs[-1])
            return [taken[1], *[None] * (len(call.outputs) - 1)]
        if isinstance(layer, layers.Dot):
            for width in taken:
                self._fix(width)
            return [None]
        if isinstance(inner, PASSING) or type(layer).__name__ in _OF_CONVNEXT:
            self._check_channels_last(call, inner)
            return [taken[0]]
        raise ValueError(
            "A layer must be one whose width can be followed. Received: layer "
            f"{call.path!r} of class {type(layer).__name__}. Replace it by layers of "
            "Keras, or build the student yourself."
        )

    def _maker(self, call: Call, inner: Any, size: int) -> list[Width | None]:
        layer = call.operation
        self._check_channels_last(call, inner)
        if id(layer) not in self._made:
            taken, groups = self._last[call.inputs[0]], getattr(inner, "groups", 1)
            # As many groups as channels: a depthwise convolution by another name.
            by_channel = groups == self._shapes[call.inputs[0]][-1] and groups > 1
            self._made[id(layer)] = (
                tuple((group, each * (size // groups)) for group, each in taken)
                if taken and by_channel
                else self._new_group(size)
            )
        made = self._made[id(layer)]
        both = isinstance(layer, layers.Bidirectional)
        if both and layer.merge_mode == "concat":
            joined = (*made, *made)
        else:
            joined = made
        states: list[Width | None] = [made] * (len(call.outputs) - 1)
        for x in call.inputs[1:]:  # initial states
            self._tie(self._last[x], made)
        return [joined, *states]

    def _one_width(self, call: Call) -> Width | None:
        length = self._shapes[call.outputs[0]][-1]
        whole = [x for x in call.inputs if self._shapes[x][-1:] == (length,)]
        for x in whole[1:]:
            self._equate(whole[0], x)
        constants = [
            np.shape(value)
            for value in keras.tree.flatten(
                (call.arguments.args, call.arguments.kwargs)
            )
            if not isinstance(value, (str, keras.KerasTensor))
        ]
        if any(shape and shape[-1] != 1 for shape in constants):
            self._fix(self._last[whole[0]])
        return self._last[whole[0]]

    def _concatenated(self, call: Call) -> Width | None:
        axis, rank = call.operation.axis, len(self._shapes[call.outputs[0]])
        if axis % rank != rank - 1:
            for x in call.inputs[1:]:
                self._equate(call.inputs[0], x)
            return self._last[call.inputs[0]]
        joined: list[tuple[int, int]] = []
        for x in call.inputs:
            width = self._last[x]
            if width is None:
                width = self._new_group(self._shapes[x][-1])
                self._fix(width)
            joined += width
        return tuple(joined)

    def _flattened(self, width: Width | None, shape: Shape) -> Width | None:
        inner = shape[1:-1]
        if None in inner:
            self._fix(width)
            return None
        return _times(width, math.prod(inner))

    def _reshaped(
        self, width: Width | None, before: Shape, after: Shape
    ) -> Width | None:
        if width is None or before[-1] == after[-1]:
            return width
        if None not in (*before[1:], *after[1:]):
            if len(after) == 2:
                return self._flattened(width, before)
            if len(before) == 2:
                # A vector that becomes an image: its length follows the channels.
                channels = self._new_group(after[-1])
                spread = _times(channels, math.prod(after[1:-1])) or ()
                if self._define(self._roots(width), spread):
                    return channels
        self._fix(width)
        return None

    def _einsum(self, call: Call) -> Width | None:
        layer = call.operation
        taken, _, result = layer.equation.partition("->")
        taken, _, kernel = taken.partition(",")
        made = [letter for letter in result if letter not in taken + "."]
        if taken[-1] in kernel and made == [result[-1]] and taken[-1] not in result:
            if id(layer) not in self._made:
                size = self._shapes[call.outputs[0]][-1]
                self._made[id(layer)] = self._new_group(size)
            return self._made[id(layer)]
        if taken[-1] not in kernel:
            self._fix(self._last[call.inputs[0]])
        return None

    @staticmethod
    def _check_channels_last(call: Call, layer: Any) -> None:
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            raise ValueError(
                "Channels must be the last axis. Received: layer "
                f"{call.path!r} with data_format='channels_first'. Rebuild the teacher "
                "with 'channels_last', as phones have it."
            )


def narrowed(size: int, ratio: float) -> int:
    """Returns a width times a ratio, rounded to what computes well.

    Multiples of 8 from 32 on, of 4 from 8 on; never below 4, nor above what it was.

    Args:
        size: The width as it is.
        ratio: Factor on it, in (0, 1].

    Returns:
        The new width.

    Example:
        >>> [narrowed(size, 0.3) for size in (3, 16, 64, 200)]
        [3, 5, 20, 64]
    """
    wanted = size * ratio
    step = 8 if wanted >= 32 else 4 if wanted >= 8 else 1
    return min(size, max(4, int(wanted / step + 0.5) * step))


def maker_key(layer: Any) -> str | None:
    """Returns the argument that says how many channels a layer makes, if it does."""
    return next((key for kind, key in MAKERS.items() if isinstance(layer, kind)), None)


def inner_layer(layer: Any) -> Any:
    """Returns the layer in a wrapper, or else the layer."""
    if isinstance(layer, layers.Bidirectional):
        return layer.forward_layer
    return layer.layer if isinstance(layer, layers.TimeDistributed) else layer


def _times(width: Width | None, factor: int) -> Width | None:
    if width is None:
        return None
    return tuple((group, each * factor) for group, each in width)


def _by_value(call: Call) -> bool:
    operation = call.operation
    return not isinstance(operation, Layer) and type(operation).__name__ in _BY_VALUE
