"""A Keras student as the list of operations that its integer model will have.

`IntegerGraph` reads a Functional or Sequential model, models nested in it included, and
fuses the neighbours that one integer operation replaces: a rescaling and a batch
normalization vanish into the convolution or dense layer beside them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.ops.symbolic_arguments import SymbolicArguments

from kdlite.compress.graph import IN_TRAINING_ALONE, Call, CallGraph, Shape
from kdlite.compress.integer_layers import (
    ACTIVATIONS,
    KERNELS,
    KINDS,
    Range,
    as_layer,
    aspect_frame,
    check_supported,
    clone,
    einsum_axes,
    fixed_range,
    override,
    scale_and_offset,
    separated,
)
from kdlite.compress.sums import Sum

# Integer operations whose output must have the scale of their inputs. "pass" is any
# layer that only moves or drops values; "clip" is a ReLU after one of these.
ONE_RANGE = ("pass", "concatenate", "average", "largest", "clip")

# Integer operations that have a ReLU built in; and what becomes one of them.
WITH_RELU = ("kernel", "arithmetic")
_BEFORE_RELU = (*WITH_RELU, "affine", "batch_norm")

# A rescaled byte rounded to a range of 256 values can lie halfway between two levels,
# all of them at once, and there float and integer arithmetic round to different sides.
# A range that is wider by one level in 254 keeps them apart.
_RESCALED_MARGIN = 1.0 / 254.0
# Of a mean, which has levels between those of what it is of, no ratio of whole numbers
# keeps all apart.
_MEAN_MARGIN = (5.0**0.5 - 1.0) / 2.0 * _RESCALED_MARGIN


@dataclasses.dataclass
class Op:
    """One operation between numbered tensors.

    Attributes:
        kind: `"kernel"` (a convolution or Dense), `"relu"`, `"mean"`, `"arithmetic"` (a
            sum, difference or product of two), `"value"` (any other function of
            values), `"head"` (softmax, sigmoid), `"float"` (a layer that is left in
            float); one of `ONE_RANGE`; before fusing also `"batch_norm"` and
            `"affine"`.
        name: Name of the student's layer that has the same output.
        inputs: Numbers of the input tensors.
        output: Number of the output tensor.
        layer: The layer; of a kernel a new one, else the student's or one like it.
        scale: `y = scale * x + offset` is what an affine does, and what happens to the
            input of a kernel. A number, or one for each channel.
        offset: See `scale`.
        batch_norm: New BatchNormalization after the kernel.
        frozen_statistics: Whether `batch_norm` never uses the batch's statistics.
        margin: Fraction by which the range of the output is widened.
        fixed: The range of the output, where it is known and not measured.
        arguments: How a layer that is left in float is called.
        folded: Of a kernel, the names of what became part of it.
    """

    kind: str
    name: str
    inputs: list[int]
    output: int
    layer: Any
    scale: Any = 1.0
    offset: Any = 0.0
    batch_norm: keras.Layer | None = None
    frozen_statistics: bool = False
    margin: float = 0.0
    fixed: Range | None = None
    arguments: Any = None
    folded: tuple[str, ...] = ()


class IntegerGraph:
    """The operations of a student, in the order of computation.

    Args:
        student: A built Functional or Sequential model.
        in_float: Names or patterns of layers that are left in float; a nested model's
            are `"model/layer"`, and its own name means all of them.
        bits: Bits of an activation, 8 or 16.

    Attributes:
        functional: The student's own graph, with the structure of inputs and outputs.
        ops: The fused operations.
        inputs: Numbers of the input tensors.
        outputs: Numbers of the output tensors.
        ids: Numbers of the input tensors that are whole numbers, and no quantities.
        weights: New layers, and the student's values for their weights.

    Raises:
        ValueError: If the student cannot be read, or has a layer that cannot be
            quantized.
    """

    def __init__(
        self, student: keras.Model, in_float: Iterable[str] = (), bits: int = 8
    ) -> None:
        self._bits = bits
        graph = CallGraph(student, "Quantization-aware training")
        self.functional = graph.functional
        for x in self.functional.inputs:
            if x.dtype not in ("float32", "uint8", "int32"):
                raise ValueError(
                    "An input must be float32, uint8 or, for an Embedding, int32. "
                    f"Received: input {x.name!r} of dtype {x.dtype}. Change the dtype "
                    "of its `keras.Input`."
                )
        self.ops: list[Op] = []
        self.weights: list[tuple[keras.Layer, list[np.ndarray]]] = []
        self._shapes: list[Shape] = []
        self._copies: dict[tuple[int, str], keras.Layer] = {}
        self._sames: Counter[int] = Counter()
        self.inputs = [self._tensor(graph.shapes[x]) for x in graph.inputs]
        self.ids = {
            tensor
            for tensor, x in zip(self.inputs, self.functional.inputs, strict=True)
            if x.dtype == "int32"
        }
        self.outputs = self._read(graph, _matching(in_float, graph))
        self._fuse_affine()
        self._fuse_batch_norm()
        self._part_ranges()
        self._part_twins()
        self._lead_relus()
        self._replace_affine()
        self._find_clips()
        self._widen_sums()
        self._check_shared()

    def sole_user(self, tensor: int) -> Op | None:
        """Returns the one operation that uses a tensor, or None if others do too."""
        users = [op for op in self.ops for x in op.inputs if x == tensor]
        return users[0] if len(users) == 1 and tensor not in self.outputs else None

    # Reading

    def _read(self, graph: CallGraph, in_float: set[str]) -> list[int]:
        tensors = dict(zip(graph.inputs, self.inputs, strict=True))
        for call in graph.calls:
            if call.path in in_float:
                inputs = [tensors[x] for x in call.inputs]
                tensors.update(self._float(call, inputs, graph))
                continue
            layer = as_layer(call)
            if call.arguments.kwargs.get("mask") is not None:
                raise ValueError(
                    "Integer operations take no mask. Received: layer "
                    f"{layer.name!r} of class {type(layer).__name__}, called with "
                    f"one. Leave it in float, {override(layer.name)}, or call it "
                    "without."
                )
            check_supported(layer, self._bits)
            if call.training:
                raise ValueError(
                    "A layer must not be held in training mode. Received: layer "
                    f"{layer.name!r} called with training=True. Call it without."
                )
            inputs = [tensors[x] for x in call.inputs]
            if self.ids.intersection(inputs) and type(layer) is not layers.Embedding:
                raise ValueError(
                    "Whole numbers can only go into an Embedding. Received: layer "
                    f"{call.path!r}, which takes an int32 input. Make the input "
                    "float32."
                )
            shape = graph.shapes[call.outputs[0]]
            inference = call.training is not None
            tensors[call.outputs[0]] = self._call(layer, inputs, shape, inference)
        return [tensors[x] for x in graph.outputs]

    def _float(self, call: Call, inputs: list[int], graph: CallGraph) -> dict[int, int]:
        """Reads a layer that is left as it is; returns the number of its output."""
        layer, arguments = call.operation, call.arguments
        if len(call.outputs) != 1:
            raise ValueError(
                "Only a layer with one output can be left in float. Received: "
                f"{call.path!r} of class {type(call.operation).__name__} with "
                f"{len(call.outputs)}. Build it of several with one each (for parts of "
                "a tensor, slices: `x[..., :8]`), or export the student with 'dynamic'."
            )
        if not isinstance(layer, keras.Layer):
            layer, arguments = _as_model(call)
        new = clone(layer)
        if (shapes := layer.get_build_config()) is not None:
            new.build_from_config(shapes)
        new = self._copy(layer, new, layer.get_weights())
        (result,) = call.outputs
        shape = graph.shapes[result]
        called = {"arguments": arguments, "margin": _RESCALED_MARGIN}
        return {result: self._emit("float", new, layer.name, inputs, shape, **called)}

    def _call(
        self, layer: Any, inputs: list[int], shape: Shape, inference: bool
    ) -> int:
        name = layer.name
        match type(layer):
            case layers.Conv1D if layer.padding == "causal":
                return self._causal(layer, inputs, shape)
            case made if made in KERNELS:
                new = clone(layer, activation="linear")
                new = self._copy(layer, new, layer.get_weights())
                return self._kernel(layer, new, inputs, shape)
            case layers.SeparableConv1D | layers.SeparableConv2D:
                return self._separable(layer, inputs, shape)
            case layers.BatchNormalization:
                new = self._copy(layer, clone(layer), layer.get_weights())
                norm = {"batch_norm": new, "frozen_statistics": inference}
                return self._emit("batch_norm", layer, name, inputs, shape, **norm)
            case layers.Rescaling | layers.Normalization:
                scale, offset = scale_and_offset(layer)
                affine = {"scale": scale, "offset": offset}
                return self._emit("affine", layer, name, inputs, shape, **affine)
            case layers.Activation:
                return self._activation(name, layer.activation, inputs, shape)
            case layers.Softmax:
                fixed = fixed_range(keras.activations.softmax, self._bits)
                return self._emit("head", layer, name, inputs, shape, fixed=fixed)
            case layers.Add:
                return self._chain("arithmetic", layer, inputs, shape)
            case layers.Multiply:
                return self._chain("arithmetic", layer, inputs, shape)
            case layers.Maximum | layers.Minimum:
                return self._chain("largest", layer, inputs, shape)
            case layers.Average:
                total = layers.Add(name=f"{name}_sum")
                summed = self._chain("arithmetic", total, inputs, shape)
                mean = {"scale": np.float64(1.0 / len(inputs)), "offset": 0.0}
                return self._emit("affine", layer, name, [summed], shape, **mean)
            case layers.Concatenate if self._bits == 16 and shape[layer.axis] is None:
                raise ValueError(
                    "A concatenation of 16 bits is of parts whose lengths are known. "
                    f"Received: layer {name!r} along axis {layer.axis}, which is open "
                    f"in its output {shape}. Give the input a size, or use "
                    "recipe='int8'."
                )
            case layers.UpSampling2D if self._bits == 16:
                # Repeating is no operation of 16 bits, and resizing is.
                same = layers.Resizing(*shape[1:3], layer.interpolation)
                kind = "pass" if layer.interpolation == "nearest" else "average"
                return self._emit(kind, same, name, inputs, shape)
            case layers.UpSampling2D | layers.Resizing:
                inside = self._shapes[inputs[0]]
                if (frame := aspect_frame(layer, inside[1:3])) is not None:
                    kept = {"crop_to_aspect_ratio": False, "pad_to_aspect_ratio": False}
                    layer, inside = (
                        clone(layer, **kept),
                        frame.compute_output_shape(inside),
                    )
                    inputs = [
                        self._emit("pass", frame, f"{name}_frame", inputs, inside)
                    ]
                moved = layer.interpolation == "nearest"
                kind = "pass" if moved else "average"
                return self._emit(kind, layer, name, inputs, shape)
            case layers.EinsumDense:
                return self._einsum(layer, inputs, shape)
            case layers.PReLU | layers.Embedding:
                new = self._copy(layer, clone(layer), layer.get_weights())
                return self._emit("value", new, name, inputs, shape)
            case made if made in IN_TRAINING_ALONE and inference:
                return inputs[0]
            case made if KINDS[made] == "mean" and self._bits == 8:
                # Of a range like that of its input every other mean is on a tie, which
                # runtimes take to different sides. That of one place is none.
                alone = math.prod(n or 2 for n in self._shapes[inputs[0]][1:-1]) == 1
                apart = {"margin": 0.0 if alone else _MEAN_MARGIN}
                return self._emit("mean", layer, name, inputs, shape, **apart)
            case made:
                return self._emit(KINDS[made], layer, name, inputs, shape)

    def _tensor(self, shape: Shape) -> int:
        self._shapes.append(shape)
        return len(self._shapes) - 1

    def _emit(
        self,
        kind: str,
        layer: Any,
        name: str,
        inputs: list[int],
        shape: Shape,
        **fields: Any,
    ) -> int:
        op = Op(kind, name, inputs, self._tensor(shape), layer, **fields)
        self.ops.append(op)
        return op.output

    def _copy(
        self, layer: Any, new: keras.Layer, values: list[Any], part: str = ""
    ) -> keras.Layer:
        # A layer that is called twice is copied once.
        if (id(layer), part) not in self._copies:
            self._copies[id(layer), part] = new
            self.weights.append((new, values))
        return self._copies[id(layer), part]

    def _kernel(
        self, layer: Any, new: keras.Layer, inputs: list[int], shape: Shape
    ) -> int:
        if layer.activation is keras.activations.linear:
            return self._emit("kernel", new, layer.name, inputs, shape)
        between = self._emit("kernel", new, f"{layer.name}_linear", inputs, shape)
        return self._activation(layer.name, layer.activation, [between], shape)

    def _causal(self, layer: Any, inputs: list[int], shape: Shape) -> int:
        before = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        length = self._shapes[inputs[0]][1]
        padded = (None, length and length + before, self._shapes[inputs[0]][-1])
        zeros = layers.ZeroPadding1D((before, 0))
        inputs = [self._emit("pass", zeros, f"{layer.name}_pad", inputs, padded)]
        new = clone(layer, activation="linear", padding="valid")
        return self._kernel(
            layer, self._copy(layer, new, layer.get_weights()), inputs, shape
        )

    def _separable(self, layer: Any, inputs: list[int], shape: Shape) -> int:
        depthwise, pointwise = separated(layer)
        first, *rest = layer.get_weights()
        between = self._emit(
            "kernel",
            self._copy(layer, depthwise, [first], "depthwise"),
            f"{layer.name}_depthwise",
            inputs,
            (*shape[:-1], first.shape[-2] * first.shape[-1]),
        )
        new = self._copy(layer, pointwise, rest, "pointwise")
        return self._kernel(layer, new, [between], shape)

    def _einsum(self, layer: Any, inputs: list[int], shape: Shape) -> int:
        """Reads a product over the last axes as a Dense between reshapes."""
        kept, summed, made = einsum_axes(layer) or (0, 0, 0)
        kernel, *bias = layer.get_weights()
        places = tuple(-1 if n is None else n for n in shape[1 : len(shape) - made])
        flat = (*kernel.shape[:summed], 1), kernel.shape[summed:]
        before, after = int(np.prod(flat[0])), int(np.prod(flat[1]))
        if summed > 1:
            row = layers.Reshape((*places, before))
            name, whole = f"{layer.name}_in", (shape[0], *shape[1 : 1 + kept], before)
            inputs = [self._emit("pass", row, name, inputs, whole)]
        new = layers.Dense(
            after,
            use_bias=bool(bias),
            kernel_regularizer=layer.kernel_regularizer,
            kernel_constraint=layer.kernel_constraint,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            trainable=layer.trainable,
            name=layer.name,
        )
        values = [kernel.reshape(before, after), *(b.reshape(-1) for b in bias)]
        whole = (*shape[: 1 + kept], after)
        new, name = self._copy(layer, new, values), layer.name
        linear = layer.activation is keras.activations.linear
        if made == 1 and linear:
            return self._emit("kernel", new, name, inputs, whole)
        found = self._emit("kernel", new, f"{name}_linear", inputs, whole)
        if not linear:
            name = name if made == 1 else f"{name}_flat"
            found = self._activation(name, layer.activation, [found], whole)
        if made == 1:
            return found
        row = layers.Reshape((*places, *kernel.shape[summed:]))
        return self._emit("pass", row, layer.name, [found], shape)

    def _activation(
        self, name: str, function: Any, inputs: list[int], shape: Shape
    ) -> int:
        if function is keras.activations.linear:
            return inputs[0]
        if function is keras.activations.silu:
            # There is no such operation: it is a sigmoid and a product.
            gate = keras.activations.sigmoid
            gated = self._activation(f"{name}_sigmoid", gate, inputs, shape)
            product = layers.Multiply()
            return self._emit("arithmetic", product, name, [*inputs, gated], shape)
        if function is keras.activations.hard_silu and self._bits == 16:
            gate = keras.activations.hard_sigmoid
            gated = self._activation(f"{name}_gate", gate, inputs, shape)
            product = layers.Multiply()
            return self._emit("arithmetic", product, name, [*inputs, gated], shape)
        if function is keras.activations.hard_sigmoid and self._bits == 16:
            # A range of 16 bits goes below zero, and so cuts nothing off.
            three, sixth = np.float64(3.0), np.float64(1 / 6)
            up = {"scale": np.float64(1.0), "offset": three}
            raised = self._emit("affine", None, f"{name}_up", inputs, shape, **up)
            relu6 = layers.ReLU(6.0)
            cut = self._emit("relu", relu6, f"{name}_relu6", [raised], shape)
            down = {"scale": sixth, "offset": np.float64(0.0)}
            return self._emit("affine", None, name, [cut], shape, **down)
        if function is keras.activations.hard_sigmoid:
            # relu6(x + 3) / 6 is x / 6 + 1/2 in a range that ends at 0 and 1.
            line = {"scale": np.float64(1 / 6), "offset": np.float64(0.5)}
            range_ = {"fixed": (0.0, 1.0)}
            return self._emit("affine", None, name, inputs, shape, **line, **range_)
        if function not in ACTIVATIONS:
            known = ", ".join(repr(known.__name__) for known in ACTIVATIONS)
            raise ValueError(
                f"Quantization-aware training has the activations {known}, 'silu', "
                "'hard_sigmoid' and 'linear'. Received: activation="
                f"{getattr(function, '__name__', function)!r} in layer {name!r}. "
                f"Use one of these, or leave the layer in float, {override(name)}."
            )
        kind, make = ACTIVATIONS[function]
        fixed = fixed_range(function, self._bits)
        return self._emit(kind, make(), name, inputs, shape, fixed=fixed)

    def _chain(self, kind: str, layer: Any, inputs: list[int], shape: Shape) -> int:
        # An integer operation takes two tensors; a sum of more is a chain of them.
        total, *others = inputs
        for index, other in enumerate(others, start=1):
            last = index == len(others)
            name = layer.name if last else f"{layer.name}_{index}"
            broadcast = np.broadcast_shapes(
                *(tuple(n or 1 for n in self._shapes[x]) for x in (total, other))
            )
            between = shape if last else (shape[0], *broadcast[1:])
            pair = [total, other]
            broadcasts = type(layer) is layers.Add and not self._alike(pair)
            if broadcasts and self._bits == 16:
                total = self._broadcast_sum(name, pair, between)
            else:
                pairwise = Sum(name=layer.name) if broadcasts else layer
                total = self._emit(kind, pairwise, name, pair, between)
        return total

    def _alike(self, pair: list[int]) -> bool:
        first, second = (self._shapes[x] for x in pair)
        return first[1:] == second[1:]

    def _broadcast_sum(self, name: str, pair: list[int], shape: Shape) -> int:
        """Reads a sum as a difference, of which TFLite has 16 bits for all shapes."""
        larger, smaller = pair
        if np.prod([n or 1 for n in self._shapes[larger]]) < np.prod(
            [n or 1 for n in self._shapes[smaller]]
        ):
            larger, smaller = smaller, larger
        minus = {"scale": np.float64(-1.0), "offset": np.float64(0.0)}
        negative = self._emit(
            "affine", None, f"{name}_minus", [smaller], self._shapes[smaller], **minus
        )
        pair = [larger, negative]
        return self._emit("arithmetic", layers.Subtract(), name, pair, shape)

    # Fusing

    def _fuse_affine(self) -> None:
        # Backwards, so that the first of two rescalings meets a kernel as well.
        for op in self.ops[::-1]:
            if op.kind != "affine" or op.fixed is not None:
                continue
            target = self.sole_user(op.output)
            passed = []
            while target is not None and _keeps_affine(target, op):
                passed.append(target)
                target = self.sole_user(target.output)
            if target is None or not _absorbs(target, op, through=bool(passed)):
                continue
            target.offset = target.scale * op.offset + target.offset
            target.scale = target.scale * op.scale
            target.folded = (op.name, *target.folded)
            first = passed[0] if passed else target
            first.inputs = op.inputs
            self.ops.remove(op)

    def _fuse_batch_norm(self) -> None:
        for op in list(self.ops):
            kernel = next((x for x in self.ops if x.output == op.inputs[0]), None)
            if (
                op.kind == "batch_norm"
                and kernel is not None
                and kernel.kind == "kernel"
                and kernel.batch_norm is None
                and self.sole_user(kernel.output) is op
            ):
                kernel.batch_norm = op.batch_norm
                kernel.frozen_statistics = op.frozen_statistics
                kernel.folded = (*kernel.folded, op.name)
                kernel.name, kernel.output = op.name, op.output
                self.ops.remove(op)

    def _part_twins(self) -> None:
        """Puts an affine that changes nothing before one of two inputs of one range.

        From `f(reshape(x), reshape(y))` the converter makes `reshape(f(x, y))`, and if
        `x` and `y` have one range, that is the result's. Operations on sequences are
        reshaped as well.
        """
        ranges = self._ranges()
        reshaped: set[int] = set()
        parted: list[Op] = []
        for op in self.ops:
            if isinstance(op.layer, layers.Flatten | layers.Reshape):
                reshaped.add(op.output)
            if op.kind == "arithmetic":
                first, x = op.inputs
                shape = self._shapes[x]
                row = self._bits == 16 and shape[1:2] == (1,)
                moved = x in reshaped or len(shape) != 4 or row
                if moved and ranges[x] == ranges[first]:
                    parted.append(self._same(f"{op.name}_in", x))
                    op.inputs = [first, parted[-1].output]
            parted.append(op)
        self.ops = parted

    def _part_ranges(self) -> None:
        """Puts an affine that changes nothing behind what meets another range.

        Softmax, sigmoid, tanh and hard sigmoid have theirs by definition. From one to
        the other the converter goes as well, in steps that XNNPACK has 8 bits of.
        """
        ranges = self._ranges()
        parted: dict[int, int] = {}
        ops: list[Op] = []
        for op in self.ops:
            if op.kind in ONE_RANGE:
                op.inputs = [parted.get(x, x) for x in op.inputs]
            ops.append(op)
            if op.fixed is not None and len(ranges[op.output]) > 1:
                ops.append(self._same(f"{op.name}_out", op.output))
                parted[op.output] = ops[-1].output
        self.ops = ops

    def _ranges(self) -> dict[int, frozenset[Any]]:
        """Returns for each tensor what its range is of.

        Ranges that operations have by definition; else the numbers of tensors, but of
        inputs "given", as they can be given one.
        """
        own: dict[int, Any] = dict.fromkeys(self.inputs, "given")
        measured = {x: frozenset([x]) for x in self.inputs}
        kinds: dict[int, str] = {}
        for op in self.ops:
            clip = op.kind == "relu" and kinds.get(op.inputs[0]) in ONE_RANGE
            kinds[op.output] = "clip" if clip else op.kind
            own[op.output] = op.fixed or op.output
            found = frozenset([op.output])
            if kinds[op.output] in ONE_RANGE:
                shared = [measured[x] for x in op.inputs]
                found = frozenset().union(*shared)
                measured = {x: found if y in shared else y for x, y in measured.items()}
            measured[op.output] = found
        return {x: frozenset(own[y] for y in found) for x, found in measured.items()}

    def _same(self, name: str, x: int) -> Op:
        """Returns an affine that changes nothing, or a float32's last bit.

        Of two that are alike the converter makes one, which then has no one range.
        """
        self._sames[x] += 1
        unlike = 1.0 + (self._sames[x] - 1) * 2.0**-23
        return Op("affine", name, [x], self._tensor(self._shapes[x]), None, unlike)

    def _lead_relus(self) -> None:
        """Puts an affine that changes nothing before some ReLUs.

        TFLite has a ReLU6 of 16 bits as a part of other operations only. And behind one
        channel of a transposed convolution the converter leaves any to floats.
        """
        makers = {op.output: op for op in self.ops}
        led: list[Op] = []
        for op in self.ops:
            if op.kind == "relu" and self._is_alone(op, makers.get(op.inputs[0])):
                led.append(self._same(f"{op.name}_in", op.inputs[0]))
                op.inputs = [led[-1].output]
            led.append(op)
        self.ops = led

    def _is_alone(self, relu: Op, maker: Op | None) -> bool:
        """Whether a ReLU is no operation, nor part of the one before it."""
        if maker is not None and self.sole_user(maker.output) is not relu:
            maker = None
        if maker is not None and isinstance(maker.layer, layers.Conv1DTranspose):
            return bool(maker.layer.filters == 1)
        if self._bits == 8 or relu.layer.max_value is None:
            return False
        return maker is None or maker.kind not in _BEFORE_RELU

    def _replace_affine(self) -> None:
        """Makes a depthwise convolution of each affine that nothing absorbed.

        With one weight for each channel it is exact, where the MUL and ADD of the
        converter round twice with one scale for all channels.
        """
        ops, self.ops = self.ops, []
        for op in ops:
            if op.kind not in ("affine", "batch_norm"):
                self.ops.append(op)
                continue
            shape = self._shapes[op.output]
            scale, offset = (
                np.broadcast_to(x, shape[-1:]) for x in (op.scale, op.offset)
            )
            kernel = self._copy(
                op.batch_norm or op,  # two calls of one are two of the other
                layers.DepthwiseConv2D(1, trainable=False, name=op.name),
                [scale.reshape(1, 1, -1, 1), offset],
                "kernel",
            )
            before, after = op.inputs, op.output
            if len(shape) != 4:
                image = _as_image(op.name, shape)
                reshape = layers.Reshape(image[1:])
                name = f"{op.name}_in"
                before = [self._emit("pass", reshape, name, before, image)]
                after = self._tensor(image)
            self.ops.append(
                dataclasses.replace(
                    op,
                    kind="kernel",
                    inputs=before,
                    output=after,
                    layer=kernel,
                    scale=1.0,
                    offset=0.0,
                    margin=_RESCALED_MARGIN if op.kind == "affine" else 0.0,
                )
            )
            if len(shape) != 4:
                self.ops[-1].name = f"{op.name}_image"
                reshape = layers.Reshape([-1 if n is None else n for n in shape[1:]])
                self.ops.append(Op("pass", op.name, [after], op.output, reshape))

    def _find_clips(self) -> None:
        # The converter makes such a ReLU part of the pooling, which has one scale.
        kinds: dict[int, str] = {}
        for op in self.ops:
            if op.kind == "relu" and kinds.get(op.inputs[0]) in ONE_RANGE:
                op.kind = "clip"
            kinds[op.output] = op.kind

    def _widen_sums(self) -> None:
        """Keeps sums of two tensors of known ranges from between two levels.

        They would be there whenever the two differ by an odd number of levels.
        """
        known: set[int] = set()
        for op in self.ops:
            if op.fixed is not None or (op.kind == "relu" and op.layer.max_value):
                known.add(op.output)
            elif op.kind in ONE_RANGE and known.issuperset(op.inputs):
                known.add(op.output)
            if isinstance(op.layer, layers.Add | layers.Subtract) and (
                known.issuperset(op.inputs)
            ):
                op.margin = _RESCALED_MARGIN
                user = self.sole_user(op.output)
                if user is not None and user.kind == "relu":
                    user.margin = _RESCALED_MARGIN

    def _check_shared(self) -> None:
        """Raises ValueError where two calls of a layer fold in different ways."""
        owners: dict[int, Op] = {}
        for op in self.ops:
            if op.kind != "kernel":
                continue
            for new in filter(None, (op.layer, op.batch_norm)):
                owner = owners.setdefault(id(new), op)
                if not (
                    owner.layer is op.layer
                    and owner.batch_norm is op.batch_norm
                    and owner.frozen_statistics == op.frozen_statistics
                    and np.array_equal(owner.scale, op.scale)
                    and np.array_equal(owner.offset, op.offset)
                ):
                    raise ValueError(
                        "All calls of a shared layer must fold with the same "
                        f"neighbours. Received: layer {new.name!r} called twice, "
                        f"{_difference(owner, op)}. Give each call a layer of its own."
                    )


def _as_model(call: Call) -> tuple[keras.Model, SymbolicArguments]:
    """Returns an operation of `keras.ops` as a model, and how that is called."""
    tensors = call.arguments.keras_tensors
    inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in tensors]
    given = {id(x): new for x, new in zip(tensors, inputs, strict=True)}
    args, kwargs = call.arguments.fill_in(given)
    outputs = call.operation(*args, **kwargs)
    model = keras.Model(inputs, outputs, name=call.operation.name)
    return model, SymbolicArguments(tensors)


def _difference(first: Op, second: Op) -> str:
    """Says in what two calls of a layer fold differently."""
    if first.layer is not second.layer:
        # What is shared is a batch normalization, which may have made the layer.
        return " and ".join(
            "on its own"
            if call.batch_norm and call.batch_norm.name == call.layer.name
            else f"behind {call.layer.name!r}"
            for call in (first, second)
        )
    if first.folded != second.folded:
        one, other = (
            ", ".join(repr(name) for name in call.folded if name not in others.folded)
            or "nothing else"
            for call, others in ((first, second), (second, first))
        )
        if one != other:
            return f"once with {one} and once with {other} folded into it"
    if first.frozen_statistics != second.frozen_statistics:
        return "once in training mode and once with frozen statistics"
    return f"with other values of {', '.join(map(repr, first.folded))}"


def _matching(patterns: Iterable[str], graph: CallGraph) -> set[str]:
    """Returns the paths of the layers that patterns name."""
    paths = list(dict.fromkeys(call.path for call in graph.calls))
    found: set[str] = set()
    for pattern in patterns:
        fitting = {
            path
            for path in paths
            if fnmatch.fnmatchcase(path, pattern) or path.startswith(f"{pattern}/")
        } or {
            # By its own name, as errors have it, a layer of a nested model.
            path
            for path in paths
            if fnmatch.fnmatchcase(path.rpartition("/")[-1], pattern)
        }
        if not fitting:
            raise ValueError(
                f"Each pattern must fit a layer. Received: {pattern!r} for model "
                f"{graph.functional.name!r}. Its layers: "
                f"{', '.join(map(repr, paths))}."
            )
        found |= fitting
    return found


def _as_image(name: str, shape: Shape) -> Shape:
    """Returns the shape that a tensor of other axes has as an image, -1 if open."""
    places, channels = shape[1:-1], shape[-1]
    if None in places and len(shape) > 4:
        raise ValueError(
            "What is scaled must have at most four axes, or known sizes. Received: "
            f"layer {name!r} with shape {shape}. Give the input a size."
        )
    width = -1 if None in places else math.prod(n or 1 for n in places)
    return (shape[0], 1, width, channels)


def _keeps_affine(op: Op, affine: Op) -> bool:
    """Whether `op` may as well come before the affine, in training as well."""
    layer = op.layer
    if isinstance(layer, layers.RandomFlip):
        return True
    if np.size(affine.scale) > 1 or np.size(affine.offset) > 1:
        return False
    if isinstance(layer, _ZEROS) or (
        isinstance(layer, _RESAMPLING)
        and (layer.fill_mode, layer.fill_value) == ("constant", 0.0)
    ):
        return not np.any(affine.offset)
    if isinstance(layer, _RESAMPLING):
        return layer.fill_mode != "constant"
    return isinstance(layer, layers.Flatten | layers.Reshape)


# Some values become zero, and others are scaled.
_ZEROS = (
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Dropout),
    *(layers.SpatialDropout1D, layers.SpatialDropout2D, layers.GaussianDropout),
)
# Means of neighbours, with weights that add up to 1.
_RESAMPLING = (layers.RandomRotation, layers.RandomTranslation, layers.RandomZoom)


def _absorbs(op: Op, affine: Op, through: bool) -> bool:
    """Whether the affine can go into the kernel of `op`."""
    if op.kind == "affine":
        return not through
    if op.kind != "kernel" or not np.all(affine.scale):
        return False
    # Padding adds zeros after the affine; folded, they would be added before it.
    padded = getattr(op.layer, "padding", "valid") != "valid"
    if padded and np.any(affine.offset):
        return False
    per_channel = np.size(affine.scale) > 1 or np.size(affine.offset) > 1
    return not (per_channel and getattr(op.layer, "groups", 1) > 1)
