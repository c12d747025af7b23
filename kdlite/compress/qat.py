"""Quantization-aware training in Keras 3, without tensorflow-model-optimization.

`quantize_aware()` builds a student again as a Functional model that rounds, with a
`FakeQuant` wherever an integer tensor has a range of its own; `for_export()` turns the
trained result into the plain model from which the converter makes integer operations,
without calibration data.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kdlite.compress.fake_quant import (
    FakeQuant,
    FoldedLayer,
    InFloat,
    checked_range,
)
from kdlite.compress.integer_graph import ONE_RANGE, IntegerGraph, Op
from kdlite.compress.recipes import Recipe
from kdlite.compress.recipes import recipe as find_recipe

Tensor = Any
Range = tuple[float, float]

# The mean reaches over some 20 batches: it follows the weights, and even a short
# training forgets the ranges of its first batch.
_MOMENTUM = 0.95
# Integer operations that have a ReLU built in.
_WITH_RELU = ("kernel", "add")
# Softmax and sigmoid: a loss must not see a probability rounded to zero.
_HEAD = "head"


def quantize_aware(
    student: keras.Model,
    recipe: str | Recipe = "int8",
    input_range: Range | Mapping[str, Range] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> keras.Model:
    """Returns a trainable copy of `student` that rounds as its integer model will.

    The result is a Functional model with the student's inputs, outputs and weights;
    the student itself is neither changed nor shared. Train it for a short time, with
    `fit()` or in a `Distiller`, at a small learning rate; exporting it then needs no
    calibration data.

    Weights are int8 per output channel, symmetric; activations int8 per tensor; a ReLU
    or ReLU6 is fused with the layer before it, and batch normalization folded into it
    (`FoldedLayer` says how; `freeze_batch_norm` fixes its statistics). A layer keeps
    its name where its output keeps its meaning: of `conv -> bn -> relu` remain `bn` and
    `relu`, and the logits of `Dense(name="p", activation="softmax")` are `p_linear`. A
    final softmax or sigmoid is left unrounded, since a loss must not see a probability
    rounded to zero; the integer model rounds it to multiples of 1/256.

    Activation ranges are measured in training. Until the first training step there are
    none, the model computes in float what the student does, and exporting it is an
    error. Only a fixed `input_range` applies from the start.

    Supported are convolutions (1D and 2D; depthwise, separable, transposed, dilated,
    grouped), Dense, BatchNormalization, the activations that TFLite has in int8,
    pooling, resizing and upsampling, sums, products and concatenations, layers that
    only move values, and models of these; docs/compression.md has the whole table.
    Sigmoid, tanh and softmax inside a model are rounded from the start, as their ranges
    are part of the operations.

    Args:
        student: A built Functional or Sequential model in float32.
        recipe: `"int8"`, by name or itself; other bits are refused.
        input_range: `(lo, hi)` of the input's values, or a mapping from input name to
            it. `(0.0, 255.0)` suits raw pixels: the integer input then is the pixel
            itself. Without it, the smallest and largest value seen in training count;
            for an input of dtype uint8 it is `(0.0, 255.0)`.
        overrides: Layers that are left in float, by name or pattern:
            `{"head/*": "float32"}`; `"head"` alone means the layer, or all that is in
            the model of that name. Any layer with one output can be.

    Returns:
        The quantization-aware `keras.Model`, not compiled.

    Raises:
        TypeError: If `student` is not a Keras model.
        ValueError: If the recipe has no integer activations, or the student is
            subclassed, not built, not float32, quantization-aware already, or has a
            layer that is not supported.

    Example:
        >>> student = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Rescaling(1 / 255),
        ...     keras.layers.Conv2D(4, 3, activation="relu"),
        ...     keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(2),
        ... ])
        >>> qat = quantize_aware(student, input_range=(0.0, 255.0))
        >>> qat.compile("sgd", "mse")
        >>> images = np.full((2, 8, 8, 1), 128.0)
        >>> history = qat.fit(images, np.zeros((2, 2)), verbose=0)
        >>> ready = for_export(qat)

    Reference:
        Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877.
    """
    chosen = find_recipe(recipe)
    if not chosen.integer:
        raise ValueError(
            "Quantization-aware training needs a recipe with integer activations. "
            f"Received: recipe={chosen.name!r}. Use 'int8', or export the student "
            "directly."
        )
    if (chosen.weight_bits, chosen.activation_bits) != (8, 8):
        raise ValueError(
            "Quantization-aware training rounds weights and activations to 8 bits. "
            f"Received: recipe={chosen.name!r}. Use 'int8', or export the student with "
            "calibration data."
        )
    policy = keras.config.dtype_policy().name
    if policy != "float32":
        raise ValueError(
            "Quantization-aware training needs the global dtype policy float32. "
            f"Received: {policy!r}. Call `keras.config.set_dtype_policy('float32')`."
        )
    if not isinstance(student, keras.Model):
        raise TypeError(
            "`student` must be a Keras model. Received: "
            f"student={type(student).__name__}. Pass the `keras.Model` to quantize."
        )
    if is_quantize_aware(student):
        raise ValueError(
            "`student` is quantization-aware already. Received: "
            f"student={student.name!r}. Pass the float student."
        )
    graph = IntegerGraph(student, _checked_overrides(overrides))
    ranges = _input_ranges(graph.functional.inputs, input_range)
    return _Builder(graph, chosen, ranges).build(student.name)


def _checked_overrides(overrides: Any) -> list[str]:
    if overrides is None:
        return []
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "`overrides` must be a mapping from layer name or pattern. Received: "
            f"overrides={overrides!r}. Write {{'head/*': 'float32'}}."
        )
    for pattern, kind in overrides.items():
        if kind != "float32":
            raise ValueError(
                "`overrides` must leave layers in 'float32'. Received: "
                f"{kind!r} for {pattern!r}. Leave the rest to `recipe`."
            )
    return list(overrides)


def float_layers(model: keras.Model) -> tuple[str, ...]:
    """Returns the names of the layers that a quantization-aware model has in float.

    Args:
        model: Any Keras model.

    Returns:
        The names of those that `quantize_aware(overrides=...)` left, and of the outputs
        that are theirs.
    """
    return tuple(
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, InFloat)
        or (isinstance(layer, keras.layers.Identity) and _made_in_float(layer))
    )


def _made_in_float(layer: keras.Layer) -> bool:
    made_by = getattr(layer.input, "_keras_history", None)
    return made_by is not None and isinstance(made_by.operation, InFloat)


def is_quantize_aware(model: keras.Model) -> bool:
    """Whether `model` has layers that `quantize_aware()` made.

    Args:
        model: Any Keras model.

    Returns:
        True for the result of `quantize_aware()`, trained or not, and models around it;
        False for a float model and for the result of `for_export()`.

    Example:
        >>> is_quantize_aware(keras.Sequential([keras.Input((2,))]))
        False
    """
    return any(
        isinstance(layer, FoldedLayer)
        or (isinstance(layer, FakeQuant) and layer.sites > 0)
        for layer in model._flatten_layers()
    )


def freeze_batch_norm(model: keras.Model) -> None:
    """Makes training use the moving statistics of batch normalization, from now on.

    Gamma and beta go on learning. Good for the last part of quantization-aware
    training, and for small batches: training then computes just what the exported model
    will. Call `compile()` after it.

    Args:
        model: A model from `quantize_aware()`; changed in place.

    Raises:
        ValueError: If the model is not quantization-aware.

    Example:
        >>> student = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(2),
        ...     keras.layers.BatchNormalization(),
        ... ])
        >>> freeze_batch_norm(quantize_aware(student))
    """
    _require_quantize_aware(model)
    for layer in model._flatten_layers():
        if isinstance(layer, FoldedLayer):
            layer.frozen_statistics = True


def for_export(model: keras.Model) -> keras.Model:
    """Returns the plain model that the converter turns into integer operations.

    It computes what `model` computes in inference: every `FoldedLayer` has become one
    Keras layer with a bias, its kernel on the integer levels and without fake
    quantization (of which the converter finds the same levels, per channel, and which
    it refuses on the kernel of a Dense), and every range is a constant. Inputs are
    float32. `model` stays as it is.

    Args:
        model: A trained model from `quantize_aware()`.

    Returns:
        A Functional model with the same inputs and outputs.

    Raises:
        ValueError: If the model is not quantization-aware, or a range was never
            measured because it was not trained.
    """
    _require_quantize_aware(model)
    unset = [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, FakeQuant) and not layer.has_range
    ]
    if unset:
        raise ValueError(
            "Every activation range must have been measured in training. Received: "
            f"model={model.name!r} with {len(unset)} ranges not set, the first of "
            f"{unset[0]!r}. Train it with `fit()` for one batch at least."
        )
    weights: list[tuple[keras.Layer, list[np.ndarray]]] = []

    def plain(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, FakeQuant):
            return layer.frozen()
        if isinstance(layer, FoldedLayer):
            clone, values = layer.plain()
        elif isinstance(layer, InFloat):
            clone, values = _clone(layer.layer, layer.name), layer.get_weights()
        else:
            clone, values = _clone(layer, layer.name), layer.get_weights()
        weights.append((clone, values))
        return clone

    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype="float32", name=x.name),
        model.input,
    )
    exported = keras.models.clone_model(
        model, input_tensors=inputs, clone_function=plain, recursive=True
    )
    for clone, values in weights:
        clone.set_weights(values)
    return exported


def _require_quantize_aware(model: keras.Model) -> None:
    if not is_quantize_aware(model):
        raise ValueError(
            "`model` must be quantization-aware. Received: "
            f"model={model.name!r}. Make it with `kdlite.quantize_aware(student)`."
        )


def _clone(layer: keras.Layer, name: str) -> keras.Layer:
    return type(layer).from_config({**layer.get_config(), "name": name})


def _input_ranges(
    inputs: list[Tensor], given: Range | Mapping[str, Range] | None
) -> list[Range | None]:
    by_name: dict[str, Any] = {
        x.name: (0.0, 255.0) for x in inputs if x.dtype == "uint8"
    }
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - {x.name for x in inputs})
        if unknown:
            raise ValueError(
                "`input_range` names an input the student does not have. Received: "
                f"{unknown[0]!r}. Inputs: {', '.join(repr(x.name) for x in inputs)}."
            )
        by_name.update(given)
    elif given is not None:
        by_name.update({x.name: given for x in inputs})
    return [
        checked_range(by_name[x.name]) if x.name in by_name else None for x in inputs
    ]


class _Builder:
    """Calls the operations of a graph again, with rounding between them."""

    def __init__(
        self, graph: IntegerGraph, recipe: Recipe, ranges: list[Range | None]
    ) -> None:
        self._graph = graph
        self._recipe = recipe
        self._fixed = {
            x: fixed
            for x, fixed in zip(graph.inputs, ranges, strict=True)
            if fixed is not None
        }
        self._output_names = graph.functional.output_names
        self._used_names: set[str] = set()
        self._folded: dict[int, FoldedLayer] = {}
        self._copies: dict[int, keras.Layer] = {}
        self._quantizers: dict[int, FakeQuant] = {}
        self._in_float = {op.output for op in graph.ops if op.kind == "float"}
        self._unrounded = self._unrounded_tensors()
        self._group = self._range_groups()
        self._measured = self._measured_tensors()

    def _unrounded_tensors(self) -> set[int]:
        """Returns what a softmax or sigmoid at the end of the model gives."""
        unrounded: set[int] = set()
        for op in self._graph.ops[::-1]:
            users = [user for user in self._graph.ops if op.output in user.inputs]
            ends = all(u.kind == "pass" and u.output in unrounded for u in users)
            if op.kind in (_HEAD, "pass") and ends:
                unrounded.add(op.output)
        # Of the layers that only move values, those behind a softmax or sigmoid.
        ending = set()
        for op in self._graph.ops:
            if op.output in unrounded and (op.kind == _HEAD or op.inputs[0] in ending):
                ending.add(op.output)
        return ending

    def _range_groups(self) -> dict[int, int]:
        """Returns for each tensor the group of tensors with one range that it is in."""
        group = {x: x for x in self._graph.inputs}
        joined = self._joined()
        for op in self._graph.ops:
            group[op.output] = op.output
            if op.kind in ONE_RANGE:
                merged = {group[x] for x in (*op.inputs, op.output)}
                group.update({x: min(merged) for x in group if group[x] in merged})
            elif op.fixed is None or op.output in self._unrounded:
                continue
            elif op.output not in joined:
                self._fixed[op.output] = op.fixed
            elif op.kind == "kernel":
                raise ValueError(
                    "A hard sigmoid has a range of its own. Received: layer "
                    f"{op.name!r}, whose output meets others in a concatenation or a "
                    "maximum, which have one range. Use a sigmoid."
                )
        return group

    def _joined(self) -> set[int]:
        """Returns the tensors that must share their range with another's values."""
        joined: set[int] = set()
        for op in self._graph.ops[::-1]:
            if op.kind in ONE_RANGE and (len(op.inputs) > 1 or op.output in joined):
                joined.update(op.inputs)
        return joined

    def _measured_tensors(self) -> dict[int, list[int]]:
        """Returns for each group the tensors whose values make its range."""
        measured = collections.defaultdict(list)
        for x in self._graph.inputs:
            if x not in self._fixed and self._is_rounded_later(x):
                measured[self._group[x]].append(x)
        for op in self._graph.ops:
            found = op.kind not in ONE_RANGE and op.output not in self._fixed
            if op.kind == "float":
                found = self._is_rounded_later(op.output)
            if found and op.output not in self._unrounded and not self._in_next(op):
                measured[self._group[op.output]].append(op.output)
        return measured

    def _is_rounded_later(self, x: int) -> bool:
        """Whether any integer operation takes a tensor that is not rounded yet."""
        users = [op for op in self._graph.ops if x in op.inputs]
        return any(op.kind != "float" for op in users)

    def _in_next(self, op: Op) -> bool:
        """Whether the ReLU that follows is part of the same integer operation."""
        user = self._graph.sole_user(op.output)
        return op.kind in _WITH_RELU and user is not None and user.kind == "relu"

    def build(self, name: str) -> keras.Model:
        """Returns the quantization-aware model, with the student's weights."""
        graph = self._graph
        inputs = [
            keras.Input(batch_shape=x.shape, dtype=x.dtype, name=self._name(x.name))
            for x in graph.functional.inputs
        ]
        values: dict[int, Tensor] = {}
        for x, value in zip(graph.inputs, inputs, strict=True):
            values[x] = value
            if self._is_rounded_later(x):
                values[x] = self._round(x, value, value.name)
        entering: dict[int, Tensor] = {}
        for op in graph.ops:
            if op.kind == "float":
                values[op.output] = self._call_float(op, values)
                continue
            for x in op.inputs:
                if x in self._in_float and x not in entering:
                    layer = values[x]._keras_history.operation
                    entering[x] = self._round(x, values[x], layer.name)
            taken = [entering.get(x, values[x]) for x in op.inputs]
            values[op.output] = self._call(op, taken)
        outputs = [
            self._named(values[x], output_name)
            for x, output_name in zip(graph.outputs, self._output_names, strict=True)
        ]
        pack = keras.tree.pack_sequence_as
        model = keras.Model(
            pack(graph.functional._inputs_struct, inputs),
            pack(graph.functional._outputs_struct, outputs),
            name=name,
        )
        for new, weights in graph.weights:
            self._copies.get(id(new), new).set_weights(weights)
        return model

    def _call(self, op: Op, inputs: list[Tensor]) -> Tensor:
        moved = op.kind in ("pass", "concatenate", "largest")
        if op.kind == "kernel":
            outputs = self._folded_layer(op)(inputs[0])
        else:
            unrounded = moved or op.output in self._unrounded
            layer = self._copy(op, unrounded and op.output in self._graph.outputs)
            outputs = layer(inputs if len(inputs) > 1 else inputs[0])
        if moved or op.output in self._unrounded or self._in_next(op):
            return outputs
        return self._round(op.output, outputs, op.name)

    def _call_float(self, op: Op, values: Mapping[int, Tensor]) -> Tensor:
        if id(op.layer) not in self._copies:
            name = self._name(op.name, op.output in self._graph.outputs)
            self._copies[id(op.layer)] = InFloat(op.layer, name=name)
        symbolic = op.arguments.keras_tensors
        args, kwargs = op.arguments.fill_in(
            {id(x): values[n] for x, n in zip(symbolic, op.inputs, strict=True)}
        )
        return self._copies[id(op.layer)](*args, **kwargs)

    def _copy(self, op: Op, final: bool) -> keras.Layer:
        """Returns a new layer; one with weights for all its calls."""
        if id(op.layer) in self._copies:
            return self._copies[id(op.layer)]
        copy = _clone(op.layer, self._name(op.name, final))
        if any(op.layer is layer for layer, _ in self._graph.weights):
            self._copies[id(op.layer)] = copy
        return copy

    def _folded_layer(self, op: Op) -> FoldedLayer:
        if id(op.layer) not in self._folded:
            self._folded[id(op.layer)] = FoldedLayer(
                op.layer,
                op.batch_norm,
                input_scale=np.asarray(op.scale).tolist(),
                input_offset=np.asarray(op.offset).tolist(),
                bits=self._recipe.weight_bits,
                frozen_statistics=op.frozen_statistics,
                name=self._name(op.name),
            )
        return self._folded[id(op.layer)]

    def _round(self, x: int, value: Tensor, name: str) -> Tensor:
        group = self._group[x]
        measured = self._measured[group]
        if group not in self._quantizers:
            fixed = [self._fixed[i] for i in self._fixed if self._group[i] == group]
            only_inputs = set(measured) <= set(self._graph.inputs)
            self._quantizers[group] = FakeQuant(
                bits=self._recipe.activation_bits,
                sites=len(measured),
                fixed_range=(
                    (min(lo for lo, _ in fixed), max(hi for _, hi in fixed))
                    if fixed
                    else None
                ),
                # Weights do not move the range of an input, so all of it counts.
                momentum=None if only_inputs else _MOMENTUM,
                margin=max(
                    (op.margin for op in self._graph.ops if op.output in measured),
                    default=0.0,
                ),
                name=self._name(f"{name}_fake_quant"),
            )
        site = measured.index(x) if x in measured else None
        return self._quantizers[group](value, site=site)

    def _named(self, value: Tensor, name: str) -> Tensor:
        """Returns the output under its name, by which losses and exports find it."""
        if value._keras_history.operation.name == name:
            return value
        return keras.layers.Identity(name=self._name(name, final=True))(value)

    def _name(self, name: str, final: bool = False) -> str:
        # The student's output names are kept for the layers that end the model.
        if name in self._output_names and not final:
            name = f"{name}_float"
        unique, count = name, 0
        while unique in self._used_names:
            count += 1
            unique = f"{name}_{count}"
        self._used_names.add(unique)
        return unique
