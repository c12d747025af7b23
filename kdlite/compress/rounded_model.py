"""A student that rounds: the operations of its integer graph, in Keras."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kdlite.compress.fake_quant import FakeQuant, InFloat
from kdlite.compress.folded_layer import EIGHT_BITS, FoldedLayer
from kdlite.compress.integer_graph import ONE_RANGE, WITH_RELU, IntegerGraph, Op
from kdlite.compress.integer_layers import Range, clone
from kdlite.compress.recipes import Recipe
from kdlite.compress.wide_operations import (
    In8Bits,
    In16Bits,
    has_operation,
    table_name,
    without_default,
)

Tensor = Any

# The mean reaches over some 20 batches: it follows the weights, and even a short
# training forgets the ranges of its first batch.
_MOMENTUM = 0.95
_AVERAGES = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D)
_RESIZING = (keras.layers.UpSampling2D, keras.layers.Resizing)
# Ranges that differ by it are none of the same float32.
_APART = 2.0**-20
# Softmax and sigmoid: a loss must not see a probability rounded to zero.
_HEAD = "head"
_STEP_OF_TABLES = 2.0**-15


class RoundedModel:
    """Calls the operations of a graph again, with rounding between them.

    Args:
        graph: A student's operations.
        recipe: The bits to round to.
        ranges: Of each input the range that is known, or None.
        learned: Whether ranges and steps that are not known are trained.
    """

    def __init__(
        self,
        graph: IntegerGraph,
        recipe: Recipe,
        ranges: list[Range | None],
        learned: bool,
    ) -> None:
        self._graph = graph
        self._recipe = recipe
        self._learned = learned
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
        self._met = {
            self._group[x]
            for op in graph.ops
            if op.kind == "arithmetic"
            for x in op.inputs
        }
        # With 16 bits a concatenation is a sum of padded tensors.
        self._moving = {"pass", "concatenate", "largest"}
        if recipe.activation_bits == 16:
            self._moving.remove("concatenate")

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
        for op in self._graph.ops:
            group[op.output] = op.output
            if op.kind in ONE_RANGE:
                merged = {group[x] for x in (*op.inputs, op.output)}
                group.update({x: min(merged) for x in group if group[x] in merged})
            elif op.fixed is not None and op.output not in self._unrounded:
                self._fixed[op.output] = op.fixed
        return group

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
        return x not in self._graph.ids and any(op.kind != "float" for op in users)

    def _in_next(self, op: Op) -> bool:
        """Whether the ReLU that follows is part of the same integer operation."""
        user = self._graph.sole_user(op.output)
        return op.kind in WITH_RELU and user is not None and user.kind == "relu"

    def build(self, name: str) -> keras.Model:
        """Returns the quantization-aware model, with the student's weights."""
        graph = self._graph
        inputs = [
            keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
            for x in graph.functional.inputs
        ]
        self._used_names.update(x.name for x in inputs)
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
        # An input that is given back is no operation's result, and keeps its name.
        given_back = dict(zip(graph.inputs, inputs, strict=True))
        outputs = [
            self._named(given_back.get(x, values[x]), output_name)
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
        moved = op.kind in self._moving
        if op.kind == "kernel":
            outputs = self._folded_layer(op)(inputs[0], **self._steps(op, inputs[0]))
        elif self._is_followed(op, inputs):
            outputs = self._on_levels(op, inputs)
        else:
            unrounded = moved or op.output in self._unrounded
            layer = self._copy(op, unrounded and op.output in self._graph.outputs)
            told = without_default(layer)
            outputs = layer(inputs if len(inputs) > 1 else inputs[0], **told)
        if moved or op.output in self._unrounded or self._in_next(op):
            return outputs
        following: dict[str, Any] = {}
        if isinstance(op.layer, _AVERAGES):
            following["half_away"] = True
        elif isinstance(op.layer, _RESIZING):
            # XNNPACK has it so in 8 bits; of 16 there are TFLite's own kernels alone.
            wide = self._recipe.activation_bits == 16
            following["half_away" if wide else "half_up"] = True
        return self._round(op.output, outputs, op.name, **following)

    def _call_float(self, op: Op, values: Mapping[int, Tensor]) -> Tensor:
        if id(op.layer) not in self._copies:
            name = self._name(op.name, op.output in self._graph.outputs)
            self._copies[id(op.layer)] = InFloat(op.layer, name=name)
        symbolic = op.arguments.keras_tensors
        args, kwargs = op.arguments.fill_in(
            {id(x): values[n] for x, n in zip(symbolic, op.inputs, strict=True)}
        )
        return self._copies[id(op.layer)](*args, **kwargs)

    def _copy(self, op: Op, final: bool, around: Any = None) -> keras.Layer:
        """Returns a new layer, or one around it; with weights, one for all calls."""
        if id(op.layer) in self._copies:
            return self._copies[id(op.layer)]
        name = self._name(op.name, final)
        inner = clone(op.layer, **({} if around else {"name": name}))
        copy = around(inner, name=name) if around else inner
        if any(op.layer is layer for layer, _ in self._graph.weights):
            self._copies[id(op.layer)] = copy
        return copy

    def _is_followed(self, op: Op, inputs: list[Tensor]) -> bool:
        """Whether an operation is computed on levels, as its kernel does."""
        known = has_operation(op.layer, self._recipe.activation_bits)
        # A ReLU that is part of the operation before it has no rounding of its own.
        return known and all(self._group[x] in self._quantizers for x in op.inputs)

    def _on_levels(self, op: Op, inputs: list[Tensor]) -> Tensor:
        unrounded, table = op.output in self._unrounded, table_name(op.layer)
        wide = self._recipe.activation_bits == 16
        kind = In16Bits if wide else In8Bits
        around = functools.partial(kind, exact_in_training=unrounded or not table)
        layer = self._copy(op, unrounded and op.output in self._graph.outputs, around)
        steps = [
            self._quantizers[self._group[x]](value, site=None, step=True)
            for x, value in zip(op.inputs, inputs, strict=True)
        ]
        output_step = _STEP_OF_TABLES if table else self._output_step(op, inputs[0])
        values = inputs if len(inputs) > 1 else inputs[0]
        return layer(values, input_steps=steps, output_step=output_step)

    def _folded_layer(self, op: Op) -> FoldedLayer:
        if id(op.layer) not in self._folded:
            self._folded[id(op.layer)] = FoldedLayer(
                op.layer,
                op.batch_norm,
                input_scale=np.asarray(op.scale).tolist(),
                input_offset=np.asarray(op.offset).tolist(),
                bits=self._kernel_bits(op.layer),
                frozen_statistics=op.frozen_statistics,
                learned=self._learned,
                activation_bits=self._recipe.activation_bits,
                name=self._name(op.name),
            )
        return self._folded[id(op.layer)]

    def _steps(self, op: Op, value: Tensor) -> dict[str, Tensor]:
        """Returns the steps that an integer operation is followed in."""
        before = self._quantizers[self._group[op.inputs[0]]]
        return {
            "input_step": before(value, site=None, step=True),
            "output_step": self._output_step(op, value),
        }

    def _output_step(self, op: Op, value: Tensor) -> Tensor:
        end = self._graph.sole_user(op.output) if self._in_next(op) else None
        end = end or op
        after = self._quantizer(end.output, end.name)
        return after(value, site=None, step=True)

    def _kernel_bits(self, layer: keras.Layer) -> int:
        return 8 if isinstance(layer, EIGHT_BITS) else self._recipe.weight_bits

    def _round(self, x: int, value: Tensor, name: str, **following: Any) -> Tensor:
        measured = self._measured[self._group[x]]
        site = measured.index(x) if x in measured else None
        return self._quantizer(x, name)(value, site=site, **following)

    def _quantizer(self, x: int, name: str) -> FakeQuant:
        """Returns what rounds a tensor, and all that have its range."""
        group = self._group[x]
        measured = self._measured[group]
        if group not in self._quantizers:
            fixed = [self._fixed[i] for i in self._fixed if self._group[i] == group]
            only_inputs = set(measured) <= set(self._graph.inputs)
            self._quantizers[group] = FakeQuant(
                learned=self._learned and bool(measured) and not fixed,
                bits=self._recipe.activation_bits,
                sites=len(measured),
                fixed_range=(
                    (min(lo for lo, _ in fixed), max(hi for _, hi in fixed))
                    if fixed
                    else None
                ),
                # Weights do not move the range of an input, so all of it counts.
                momentum=None if only_inputs else _MOMENTUM,
                margin=self._margin(group, measured, bool(fixed)),
                name=self._name(f"{name}_fake_quant"),
            )
        return self._quantizers[group]

    def _margin(self, group: int, measured: list[int], fixed: bool) -> float:
        """Returns the fraction by which a range is widened."""
        margin = max(
            (op.margin for op in self._graph.ops if op.output in measured), default=0.0
        )
        # Two ranges that end where their ReLU6 does are alike, and the converter fails
        # on their sum where both are reshaped.
        apart = group in self._met and not fixed
        return margin + _APART * (1 + len(self._quantizers)) * apart

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
