"""A Keras student as the list of operations that its integer model will have.

`IntegerGraph` reads a Functional or Sequential model, models nested in it included, and
fuses the neighbours that one integer operation replaces: a rescaling and a batch
normalization vanish into the convolution or dense layer beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.src.models.functional import Functional

Shape = tuple[Any, ...]

# Integer operations whose output must have the scale of their inputs. "pass" is any
# layer that only moves or drops values; "clip" is a ReLU after one of these.
ONE_RANGE = ("pass", "concatenate", "average", "clip")

# A rescaled byte rounded to a range of 256 values can lie halfway between two levels,
# all of them at once, and there float and integer arithmetic round to different sides.
# A range that is wider by one level in 254 keeps them apart.
_RESCALED_MARGIN = 1.0 / 254.0


@dataclasses.dataclass
class Op:
    """One operation between numbered tensors.

    Attributes:
        kind: `"kernel"` (Conv2D, DepthwiseConv2D, Dense), `"relu"`, `"add"`, `"mean"`,
            `"head"` (softmax, sigmoid); one of `ONE_RANGE`; before fusing also
            `"batch_norm"` and `"affine"`.
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


class IntegerGraph:
    """The operations of a student, in the order of computation.

    Args:
        student: A built Functional or Sequential model.

    Attributes:
        functional: The student's own graph, with the structure of inputs and outputs.
        ops: The fused operations.
        inputs: Numbers of the input tensors.
        outputs: Numbers of the output tensors.
        weights: New layers, and the student's values for their weights.

    Raises:
        ValueError: If the student cannot be read, or has a layer that cannot be
            quantized.
    """

    def __init__(self, student: keras.Model) -> None:
        self.functional = _functional(student)
        for x in self.functional.inputs:
            if x.dtype not in ("float32", "uint8"):
                raise ValueError(
                    "An input must be float32 or uint8. Received: input "
                    f"{x.name!r} of dtype {x.dtype}. Change the dtype of its "
                    "`keras.Input`."
                )
        self.ops: list[Op] = []
        self.weights: list[tuple[keras.Layer, list[np.ndarray]]] = []
        self._shapes: list[Shape] = []
        self._copies: dict[tuple[int, str], keras.Layer] = {}
        self.inputs = [self._tensor(x.shape) for x in self.functional.inputs]
        self.outputs = self._read(student, self.inputs, None)
        self._fuse_affine()
        self._fuse_batch_norm()
        self._replace_affine()
        self._find_clips()
        self._check_shared()

    def sole_user(self, tensor: int) -> Op | None:
        """Returns the one operation that uses a tensor, or None if others do too."""
        users = [op for op in self.ops for x in op.inputs if x == tensor]
        return users[0] if len(users) == 1 and tensor not in self.outputs else None

    # Reading

    def _read(
        self, model: keras.Model, inputs: list[int], training: bool | None
    ) -> list[int]:
        graph = _functional(model)
        tensors = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                layer = node.operation
                arguments = [tensors[id(x)] for x in node.arguments.keras_tensors]
                pinned = node.arguments.kwargs.get("training")
                pinned = training if pinned is None else pinned
                if not isinstance(layer, keras.Model):
                    _check_supported(layer)
                if pinned:
                    raise ValueError(
                        "A layer must not be held in training mode. Received: layer "
                        f"{layer.name!r} called with training=True. Call it without."
                    )
                if isinstance(layer, keras.Model):
                    results = self._read(layer, arguments, pinned)
                else:
                    shape = node.outputs[0].shape
                    results = [self._call(layer, arguments, shape, pinned is not None)]
                tensors.update(zip(map(id, node.outputs), results, strict=True))
        return [tensors[id(x)] for x in graph.outputs]

    def _call(
        self, layer: Any, inputs: list[int], shape: Shape, inference: bool
    ) -> int:
        name = layer.name
        match type(layer):
            case layers.Conv2D | layers.DepthwiseConv2D | layers.Dense:
                new = self._copy(
                    layer, _clone(layer, activation="linear"), layer.get_weights()
                )
                return self._kernel(layer, new, inputs, shape)
            case layers.SeparableConv2D:
                return self._separable(layer, inputs, shape)
            case layers.BatchNormalization:
                new = self._copy(layer, _clone(layer), layer.get_weights())
                norm = {"batch_norm": new, "frozen_statistics": inference}
                return self._emit("batch_norm", layer, name, inputs, shape, **norm)
            case layers.Rescaling | layers.Normalization:
                scale, offset = _scale_and_offset(layer)
                affine = {"scale": scale, "offset": offset}
                return self._emit("affine", layer, name, inputs, shape, **affine)
            case layers.Activation:
                return self._activation(layer, inputs, shape)
            case layers.Add:
                return self._add(layer, inputs, shape)
            case layers.Dropout | layers.SpatialDropout2D if inference:
                return inputs[0]
            case layer_type:
                return self._emit(_KINDS[layer_type], layer, name, inputs, shape)

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
        return self._activation(layer, [between], shape)

    def _separable(self, layer: Any, inputs: list[int], shape: Shape) -> int:
        first, *rest = layer.get_weights()
        depthwise = layers.DepthwiseConv2D(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            trainable=layer.trainable,
        )
        pointwise = layers.Conv2D(
            layer.filters,
            1,
            use_bias=layer.use_bias,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            trainable=layer.trainable,
        )
        between = self._emit(
            "kernel",
            self._copy(layer, depthwise, [first], "depthwise"),
            f"{layer.name}_depthwise",
            inputs,
            (*shape[:-1], first.shape[-2] * first.shape[-1]),
        )
        new = self._copy(layer, pointwise, rest, "pointwise")
        return self._kernel(layer, new, [between], shape)

    def _activation(self, layer: Any, inputs: list[int], shape: Shape) -> int:
        function = layer.activation
        if function is keras.activations.linear:
            return inputs[0]
        if function not in _ACTIVATIONS:
            known = ", ".join(repr(known.__name__) for known in _ACTIVATIONS)
            raise ValueError(
                f"Quantization-aware training has the activations {known} and "
                "'linear'. Received: activation="
                f"{getattr(function, '__name__', function)!r} in layer {layer.name!r}. "
                "Use one of these, or quantize after training."
            )
        kind, make = _ACTIVATIONS[function]
        return self._emit(kind, make(), layer.name, inputs, shape)

    def _add(self, layer: Any, inputs: list[int], shape: Shape) -> int:
        # The integer ADD takes two tensors; a sum of more is a chain of them.
        total, *others = inputs
        for index, other in enumerate(others, start=1):
            last = index == len(others)
            name = layer.name if last else f"{layer.name}_{index}"
            total = self._emit("add", layer, name, [total, other], shape)
        return total

    # Fusing

    def _fuse_affine(self) -> None:
        # Backwards, so that the first of two rescalings meets a kernel as well.
        for op in self.ops[::-1]:
            if op.kind != "affine":
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
                kernel.name, kernel.output = op.name, op.output
                self.ops.remove(op)

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
            kernel = layers.DepthwiseConv2D(1, trainable=False)
            scale, offset = (
                np.broadcast_to(x, shape[-1:]) for x in (op.scale, op.offset)
            )
            self.weights.append((kernel, [scale.reshape(1, 1, -1, 1), offset]))
            image = (*(1,) * (4 - len(shape)), *shape[1:])
            before, after = op.inputs, op.output
            if len(shape) < 4:
                reshape = layers.Reshape(image)
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
            if len(shape) < 4:
                self.ops[-1].name = f"{op.name}_image"
                reshape = layers.Reshape(shape[1:])
                self.ops.append(Op("pass", op.name, [after], op.output, reshape))

    def _find_clips(self) -> None:
        # The converter makes such a ReLU part of the pooling, which has one scale.
        kinds: dict[int, str] = {}
        for op in self.ops:
            if op.kind == "relu" and kinds.get(op.inputs[0]) in ONE_RANGE:
                op.kind = "clip"
            kinds[op.output] = op.kind

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
                        f"neighbours. Received: layer {new.name!r} called twice, for "
                        f"{owner.name!r} and for {op.name!r}. Give each call a layer "
                        "of its own."
                    )


_ACTIVATIONS: dict[Callable[..., Any], tuple[str, Callable[[], keras.Layer]]] = {
    keras.activations.relu: ("relu", layers.ReLU),
    keras.activations.relu6: ("relu", lambda: layers.ReLU(6.0)),
    keras.activations.softmax: ("head", layers.Softmax),
    keras.activations.sigmoid: ("head", lambda: layers.Activation("sigmoid")),
}
# The layers that need no more than their kind.
_KINDS: dict[type, str] = {
    layers.ReLU: "relu",
    layers.Softmax: "head",
    layers.Concatenate: "concatenate",
    layers.AveragePooling2D: "average",
    layers.GlobalAveragePooling2D: "mean",
    layers.MaxPooling2D: "pass",
    layers.GlobalMaxPooling2D: "pass",
    layers.ZeroPadding2D: "pass",
    layers.Flatten: "pass",
    layers.Reshape: "pass",
    layers.Dropout: "pass",
    layers.SpatialDropout2D: "pass",
    layers.Identity: "pass",
}
_SUPPORTED = (
    *(layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense),
    *(layers.BatchNormalization, layers.Rescaling, layers.Normalization),
    *(layers.Activation, layers.Add, *_KINDS),
)


def _clone(layer: keras.Layer, **changes: Any) -> keras.Layer:
    return type(layer).from_config({**layer.get_config(), **changes})


def _functional(model: keras.Model) -> Functional:
    """Returns the graph of a Functional or Sequential model."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if graph is None:
        raise ValueError(
            f"A Sequential model must be built. Received: model={model.name!r}, not "
            "built. Put a `keras.Input` first, or call it on data."
        )
    if not isinstance(graph, Functional) or type(graph).call is not Functional.call:
        raise ValueError(
            "Quantization-aware training needs the graph of a Functional or Sequential "
            f"model. Received: {model.name!r} of the subclass {type(model).__name__}, "
            "with a `call` of its own. Rebuild it as `keras.Model(inputs, outputs)`."
        )
    return graph


def _check_supported(layer: Any) -> None:
    """Raises ValueError unless the layer can be quantized."""
    if type(layer) not in _SUPPORTED:
        names = ", ".join(supported.__name__ for supported in _SUPPORTED)
        raise ValueError(
            "Quantization-aware training does not have this layer. Received: layer "
            f"{layer.name!r} of class {type(layer).__name__}. Build the student from "
            f"{names}, or quantize it after training. Augmentation belongs in the data."
        )
    if layer.dtype_policy.name != "float32":
        raise ValueError(
            "Quantization-aware training needs the dtype policy float32. Received: "
            f"layer {layer.name!r} with {layer.dtype_policy.name!r}. Rebuild the "
            "student in float32 and copy its weights."
        )
    problem = None
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        problem = "data_format='channels_first'. Use 'channels_last'"
    elif layer.activity_regularizer is not None:
        problem = "an activity regularizer. Remove it"
    elif isinstance(layer, layers.BatchNormalization) and (
        layer.axis not in (-1, layer.input_spec.ndim - 1) or layer.renorm
    ):
        problem = f"axis={layer.axis}, renorm={layer.renorm}. Use the last axis, plain"
    elif isinstance(layer, layers.Normalization) and (
        layer.invert or any(size != 1 for size in layer.mean.shape[:-1])
    ):
        problem = f"axis={layer.axis}, invert={layer.invert}. Use the last axis"
    elif isinstance(layer, layers.ReLU) and (
        layer.max_value not in (None, 6.0) or layer.negative_slope or layer.threshold
    ):
        problem = (
            f"max_value={layer.max_value}, a slope or a threshold. Use ReLU or ReLU6"
        )
    if problem is not None:
        raise ValueError(
            f"Layer {layer.name!r} cannot be quantized as it is. Received: "
            f"{type(layer).__name__} with {problem}."
        )


def _scale_and_offset(layer: Any) -> tuple[Any, Any]:
    """Returns what an affine layer does: numbers, or one for each channel."""
    if isinstance(layer, layers.Rescaling):
        return np.float64(layer.scale), np.float64(layer.offset)
    deviation = np.sqrt(np.float64(layer.variance)).reshape(-1)
    deviation = np.maximum(deviation, keras.config.epsilon())
    return 1.0 / deviation, -np.float64(layer.mean).reshape(-1) / deviation


def _keeps_affine(op: Op, affine: Op) -> bool:
    """Whether `op` may as well come before the affine."""
    if np.size(affine.scale) > 1 or np.size(affine.offset) > 1:
        return False
    if isinstance(op.layer, layers.ZeroPadding2D):
        return not np.any(affine.offset)
    return isinstance(op.layer, layers.Flatten | layers.Reshape)


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
