"""A smaller model of the same kind: narrower, shallower, with separable convolutions.

`shrunken()` builds a Functional or Sequential model again, layer by layer, with fewer
channels. What size that gives, and which student fits a limit, is found by measuring
(`kdlite.shrink`, in `kdlite/sizing.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_separable_conv import BaseSeparableConv
from keras.src.layers.layer import Layer

from kdlite.compress.graph import Call, CallGraph
from kdlite.compress.widths import PASSING, Widths, inner_layer, maker_key

Tensor = Any

# Fewer input channels than this make a separable convolution no cheaper.
_FEWEST_CHANNELS = 8
_SEPARABLE = {
    layers.Conv1D: layers.SeparableConv1D,
    layers.Conv2D: layers.SeparableConv2D,
}


def shrunken(
    teacher: keras.Model,
    width: float = 1.0,
    *,
    depth: float = 1.0,
    separable: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a smaller model of the same kind, with new weights.

    Every width (filters, units, embedding length, attention heads) is multiplied by
    `width`, see `narrowed`. Tensors that are added or gated keep one width; inputs and
    outputs keep theirs, so that the student has the teacher's classes, boxes or
    embedding. Layers keep their names, but for those in nested models, which are
    opened: one that is taken gets the model's name before it. All layers train, in
    float32; only `Normalization` keeps its statistics.

    Args:
        teacher: A built Functional or Sequential model.
        width: Factor on the widths, in (0, 1].
        depth: The share of blocks that stay, in (0, 1]: of residual blocks whose input
            and output are alike, or in a model without any, of layers of which that is
            true. Among those of one shape the first stay.
        separable: Whether Conv1D and Conv2D become depthwise-separable, but for the
            pointwise, the grouped, and those of fewer than 8 input channels.
        name: Name of the new model; the teacher's with `_student` by default.

    Returns:
        A Functional model with the teacher's inputs and outputs.

    Raises:
        TypeError: If `teacher` is not a Keras model.
        ValueError: If `width` or `depth` is out of range, or the teacher is not built,
            subclassed, has a layer whose width cannot be followed, or nothing that can
            be made smaller as asked.

    Example:
        >>> teacher = keras.Sequential(
        ...     [
        ...         keras.Input((8, 8, 3)),
        ...         keras.layers.Conv2D(64, 3, activation="relu"),
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(10),
        ...     ]
        ... )
        >>> student = shrunken(teacher, 0.25)
        >>> student.layers[1].filters, student.output_shape
        (16, (None, 10))
    """
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            f"`teacher` must be a Keras model. Received: {type(teacher).__name__}. "
            "Load a file with keras.models.load_model."
        )
    for argument, value in (("width", width), ("depth", depth)):
        if not 0.0 < value <= 1.0:
            raise ValueError(
                f"`{argument}` must be above 0 and at most 1. Received: "
                f"{argument}={value!r}. 1 leaves it as it is."
            )
    graph = CallGraph(teacher, "Making a smaller model")
    widths = Widths(graph)
    if width < 1.0 and not widths.free:
        raise ValueError(
            "A teacher must have a width between its inputs and its outputs. Received: "
            f"{teacher.name!r}, where every layer is one or the other. Build the "
            "student yourself."
        )
    skipped = _skipped_blocks(graph, depth, teacher.name) if depth < 1.0 else {}
    builder = _Builder(graph, widths, skipped, width, separable)
    return builder.build(name or f"{teacher.name}_student")


# Depth


@dataclasses.dataclass(frozen=True)
class _Block:
    """A part of the graph whose input can take the place of its output."""

    begin: int
    end: int


def _skipped_blocks(graph: CallGraph, depth: float, name: str) -> dict[int, int]:
    """Returns by the output of each block that goes the tensor in its place."""
    blocks = _residual_blocks(graph) or _plain_blocks(graph)
    if not blocks:
        raise ValueError(
            "`depth` needs blocks whose output is like their input. Received: "
            f"depth={depth!r} for {name!r}, which has none. Leave depth at 1."
        )
    stages: dict[Any, list[_Block]] = {}
    for block in blocks:
        stages.setdefault(graph.shapes[block.end], []).append(block)
    skipped = {}
    for stage in stages.values():
        # Half of one block is none: where the stage begins, another changes the shape.
        kept = math.ceil(len(stage) * depth - 0.5)
        if len(stages) == 1:
            kept = max(1, kept)
        skipped.update({block.end: block.begin for block in stage[kept:]})
    return skipped


def _residual_blocks(graph: CallGraph) -> list[_Block]:
    """Returns the blocks of which the output is their input and something added."""
    made_by = {x: call for call in graph.calls for x in call.outputs}
    # What every way from the inputs to a tensor leads through.
    through = {x: {x} for x in graph.inputs}
    blocks = []
    for call in graph.calls:
        common = set.intersection(*(through[x] for x in call.inputs))
        through.update({x: {x, *common} for x in call.outputs})
        if type(call.operation).__name__ != "Add" or len(call.inputs) != 2:
            continue
        for begin, branch in (call.inputs, call.inputs[::-1]):
            alike = graph.shapes[begin] == graph.shapes[call.outputs[0]]
            if begin != branch and begin in through[branch] and alike:
                end = _same_activation(graph, made_by.get(begin), call.outputs[0])
                blocks.append(_Block(begin, end))
    return blocks


def _same_activation(graph: CallGraph, before: Call | None, end: int) -> int:
    """Returns the end of a block, behind a ReLU that its input has been through."""
    users = graph.users(end)
    if before is None or len(users) != 1 or end in graph.outputs:
        return end
    activations = [_activation(call) for call in (before, users[0])]
    same = activations[0] is not None and activations[0] == activations[1]
    return users[0].outputs[0] if same else end


def _activation(call: Call) -> Any:
    """Returns what tells a ReLU from others; None for a layer that is none."""
    if isinstance(call.operation, layers.ReLU):
        limit = call.operation.max_value
        return "relu" if limit is None else f"relu{limit:g}"
    if isinstance(call.operation, layers.Activation):
        name = getattr(call.operation.activation, "__name__", "")
        return name if name.startswith("relu") else None
    return None


def _plain_blocks(graph: CallGraph) -> list[_Block]:
    """Returns the layers of which input and output are alike, with what follows."""
    blocks = []
    for call in graph.calls:
        if maker_key(call.operation) is None or len(call.inputs) != 1:
            continue
        begin, end = call.inputs[0], call.outputs[0]
        if begin in graph.inputs or graph.shapes[begin] != graph.shapes[end]:
            continue
        while len(users := graph.users(end)) == 1 and end not in graph.outputs:
            (user,) = users
            same = graph.shapes[user.outputs[0]] == graph.shapes[end]
            if not (isinstance(user.operation, PASSING) and same):
                break
            end = user.outputs[0]
        blocks.append(_Block(begin, end))
    return blocks


# Building


class _Builder:
    """Makes the calls of a graph again, with narrower layers."""

    def __init__(
        self,
        graph: CallGraph,
        widths: Widths,
        skipped: Mapping[int, int],
        width: float,
        separable: bool,
    ) -> None:
        self._graph = graph
        self._widths = widths
        self._skipped = skipped
        self._width = width
        self._separable = separable
        self._copies: dict[int, Any] = {}
        self._kept: list[tuple[Layer, Layer]] = []
        # Layers of the model itself keep their names before those inside others.
        self._reserved = {
            call.operation.name for call in graph.calls if "/" not in call.path
        }
        self._used = {x.name for x in graph.functional.inputs}
        self._made_by = {x: call for call in graph.calls for x in call.outputs}
        self._values: dict[int, Tensor] = {}

    def build(self, name: str) -> keras.Model:
        graph = self._graph
        inputs = [
            keras.Input(batch_shape=x.shape, dtype=_full(x.dtype), name=x.name)
            for x in graph.functional.inputs
        ]
        self._values.update(zip(graph.inputs, inputs, strict=True))
        needed = self._needed()
        for call in graph.calls:
            if needed.intersection(call.outputs):
                self._call(call)
        outputs = [
            self._named(self._values[self._place(x)], output_name)
            for x, output_name in zip(
                graph.outputs, graph.functional.output_names, strict=True
            )
        ]
        pack = keras.tree.pack_sequence_as
        model = keras.Model(
            pack(graph.functional._inputs_struct, inputs),
            pack(graph.functional._outputs_struct, outputs),
            name=name,
        )
        for copy, layer in self._kept:
            copy.set_weights(layer.get_weights())
            copy.finalize_state()
        return model

    def _place(self, tensor: int) -> int:
        """Returns the tensor that is in the place of one, behind skipped blocks."""
        while tensor in self._skipped:
            tensor = self._skipped[tensor]
        return tensor

    def _needed(self) -> set[int]:
        """Returns the tensors that the outputs are computed from."""
        needed: set[int] = set()
        waiting = [self._place(x) for x in self._graph.outputs]
        while waiting:
            tensor = waiting.pop()
            if tensor not in needed and tensor in self._made_by:
                waiting += [self._place(x) for x in self._made_by[tensor].inputs]
            needed.add(tensor)
        return needed

    def _call(self, call: Call) -> None:
        given = [self._values[self._place(x)] for x in call.inputs]
        args, kwargs = call.arguments.fill_in(
            {
                id(x): value
                for x, value in zip(call.arguments.keras_tensors, given, strict=True)
            }
        )
        # The student trains as a whole, and from the start.
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        results = keras.tree.flatten(self._copy(call, given)(*args, **kwargs))
        self._values.update(zip(call.outputs, results, strict=True))

    def _copy(self, call: Call, given: list[Tensor]) -> Any:
        layer = call.operation
        if id(layer) in self._copies:
            return self._copies[id(layer)]
        config = layer.get_config()
        kind = type(layer)
        if isinstance(layer, Layer):
            config["name"] = self._name(call)
            config = self._narrow(call, config, given)
            if self._separable and _can_be_separable(layer):
                kind, config = _as_separable(layer, config)
        copy = kind.from_config(config)
        self._copies[id(layer)] = copy
        if isinstance(layer, layers.Normalization) and layer.weights:
            self._kept.append((copy, layer))
        return copy

    def _narrow(
        self, call: Call, config: dict[str, Any], given: list[Tensor]
    ) -> dict[str, Any]:
        """Returns the configuration of a layer with what depends on the widths."""
        layer = call.operation
        # The student trains as a whole: no layer is frozen, or adapted with LoRA.
        config = {
            k: v for k, v in config.items() if k not in ("trainable", "lora_rank")
        }
        if _full(layer.compute_dtype) != layer.compute_dtype:
            config["dtype"] = "float32"
        made = self._widths.made_by(layer, self._width)
        channels: Any = given[0].shape[-1] if given[0].shape else None
        if isinstance(layer, (layers.TimeDistributed, layers.Bidirectional)):
            for part in ("layer", "backward_layer"):
                if config.get(part):
                    config[part] = _inner_config(config[part], inner_layer(layer), made)
        elif isinstance(layer, layers.EinsumDense):
            if made is not None:
                shape = config["output_shape"]
                before = (shape,) if isinstance(shape, int) else tuple(shape)
                config["output_shape"] = (*before[:-1], made)
        elif isinstance(layer, layers.MultiHeadAttention):
            heads = config["num_heads"]
            config["num_heads"] = max(1, math.floor(heads * self._width + 0.5))
        elif isinstance(layer, layers.Reshape):
            last = self._widths.of(call.outputs[0], self._width)
            if last is not None and layer.target_shape[-1] != -1:
                config["target_shape"] = (*layer.target_shape[:-1], last)
        elif isinstance(layer, layers.GroupNormalization):
            if layer.groups > 0 and layer.axis in (-1, len(given[0].shape) - 1):
                same = layer.groups == self._graph.shapes[call.inputs[0]][-1]
                divisor = channels if same else math.gcd(layer.groups, channels)
                config["groups"] = divisor
        elif "projection_dim" in config:  # ConvNeXt's LayerScale
            config["projection_dim"] = channels
        elif made is not None and (key := maker_key(layer)) is not None:
            config[key] = made
            if getattr(layer, "groups", 1) > 1:
                by_channel = layer.groups == self._graph.shapes[call.inputs[0]][-1]
                groups = channels if by_channel else layer.groups
                config["groups"] = math.gcd(groups, channels, made)
        return config

    def _name(self, call: Call) -> str:
        """Returns a layer's own name, or one with the name of the model it is in."""
        *models, name = call.path.split("/")
        unique = name
        while models and (unique in self._used or unique in self._reserved):
            unique = f"{models.pop()}_{unique}"
        count = 0
        base = unique
        while unique in self._used:
            count += 1
            unique = f"{base}_{count}"
        self._used.add(unique)
        return unique

    def _named(self, value: Tensor, name: str) -> Tensor:
        """Returns the output under its name, by which losses and exports find it."""
        if value._keras_history.operation.name == name or name in self._used:
            return value
        self._used.add(name)
        return layers.Identity(name=name)(value)


def _full(dtype: str) -> str:
    return "float32" if dtype in ("float16", "bfloat16", "float64") else dtype


def _inner_config(
    config: dict[str, Any], inner: Layer, made: int | None
) -> dict[str, Any]:
    """Returns the serialized inner layer of a wrapper, with the width it makes."""
    key = maker_key(inner)
    changes = {} if key is None or made is None else {key: made}
    # It would be built for the inputs of then.
    kept = {name: value for name, value in config.items() if name != "build_config"}
    return {**kept, "config": {**config["config"], **changes}}


def _can_be_separable(layer: Layer) -> bool:
    if type(layer) not in _SEPARABLE:
        return False
    taken = layer.kernel.shape[-2]
    return (
        max(layer.kernel_size) > 1
        and layer.groups == 1
        and taken >= _FEWEST_CHANNELS
        # What TensorFlow's depthwise convolution has.
        and len(set(layer.strides)) == 1
        and (max(layer.strides) == 1 or max(layer.dilation_rate) == 1)
    )


def _as_separable(
    layer: BaseConv, config: dict[str, Any]
) -> tuple[type[BaseSeparableConv], dict[str, Any]]:
    """Returns the class and the configuration of the separable one."""
    config = {**config}
    config.pop("groups")
    for part in ("initializer", "regularizer", "constraint"):
        shared = config.pop(f"kernel_{part}")
        config[f"depthwise_{part}"] = config[f"pointwise_{part}"] = shared
    return _SEPARABLE[type(layer)], config
