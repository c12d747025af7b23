"""What each layer of a quantization-aware model gives, as an integer file has it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdlite.compress.fake_quant import FakeQuant
from kdlite.compress.folded_layer import FoldedLayer
from kdlite.compress.graph import CallGraph
from kdlite.compress.wide_operations import In16Bits

Array = np.ndarray[Any, Any]

# What is behind the name of a layer that becomes several.
_PARTS = frozenset(
    "linear float sigmoid gate up relu6 pad frame flat in sum depthwise image "
    "minus".split()
)

# What a ReLU that follows is a part of.
_WITH_RELU = (
    *(FoldedLayer, In16Bits),
    *(keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply),
)


@dataclass(frozen=True)
class Result:
    """What one call of a layer gives.

    Attributes:
        path: The layer's path in the quantization-aware model.
        layers: The names of the student's layers that it stands for, the last first, as
            `quantize_aware(overrides=...)` takes them.
        values: `(samples, ...)`, rounded where the model rounds them next.
    """

    path: str
    layers: tuple[str, ...]
    values: Array


def rounded_results(model: keras.Model, inputs: Sequence[Any]) -> list[Result]:
    """Runs a quantization-aware model and keeps what each layer gives.

    Args:
        model: The model, or one around it.
        inputs: A tensor for each of its inputs.

    Returns:
        One entry for each call, in the order of computation, those that round last.

    Example:
        >>> from kdlite.compress.qat import quantize_aware
        >>> student = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(2, activation="relu", name="d")]
        ... )
        >>> results = rounded_results(quantize_aware(student), [np.ones((3, 4))])
        >>> {result.layers for result in results if result.values.shape == (3, 2)}
        {('d',)}
    """
    graph = CallGraph(model, "Looking for the layer that is wrong")
    tensors = dict(zip(graph.inputs, inputs, strict=True))
    roundings = []
    for call in graph.calls:
        symbolic = call.arguments.keras_tensors
        args, kwargs = call.arguments.fill_in(
            {id(x): tensors[n] for x, n in zip(symbolic, call.inputs, strict=True)}
        )
        made = keras.tree.flatten(call.operation(*args, **kwargs))
        tensors.update(zip(call.outputs, made, strict=True))
        if isinstance(call.operation, FakeQuant) and not kwargs.get("step"):
            roundings.append(call)
    rounded = {call.inputs[0]: tensors[call.outputs[0]] for call in roundings}
    known = {call.operation.name for call in graph.calls}
    known |= {name for call in graph.calls for name in _kernels(call.operation)}
    layers: dict[int, tuple[str, ...]] = dict.fromkeys(graph.inputs, ())
    found, before_relu = [], set()
    for call in graph.calls:
        if isinstance(call.operation, FakeQuant):
            continue
        names = _kernels(call.operation) or (_whole(call.operation.name, known),)
        first = next(iter(call.inputs), -1)
        if isinstance(call.operation, keras.layers.ReLU) and first in before_relu:
            names = layers[first]  # one operation, of which it is never the wrong part
        for tensor in call.outputs:
            layers[tensor] = names
            if isinstance(call.operation, _WITH_RELU) and tensor not in rounded:
                before_relu.add(tensor)
            values = np.asarray(rounded.get(tensor, tensors[tensor]))
            found.append(Result(call.path, names, values))
    # Some of a file's tensors have the names of these.
    for call in roundings:
        values = np.asarray(tensors[call.outputs[0]])
        found.append(Result(call.path, layers.get(call.inputs[0], ()), values))
    return found


def _kernels(operation: Any) -> tuple[str, ...]:
    """Returns the layers that one with a kernel is made of, the last first."""
    if not isinstance(operation, FoldedLayer):
        return ()
    norm = operation.batch_norm
    return (*([norm.name] if norm else []), operation.layer.name)


def _whole(name: str, known: Collection[str]) -> str:
    """Returns the layer that a part is of."""
    base, _, part = name.rpartition("_")
    while part in _PARTS and base in known:
        name = base
        base, _, part = name.rpartition("_")
    return name
