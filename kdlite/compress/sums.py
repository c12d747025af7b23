"""Sums along the axes of their tensors, where Keras may go along others.

Keras takes a second tensor of one axis longer than 1 for a bias, and adds it along the
last axis of the first or else its second, if they are as long: of batch 1 the shape
(1, 4, 1) to (1, 4, 4) along the last, of batch 4 the shape (4, 1) to (4, 4) likewise.
Where the batch is open, as in `fit()` and `predict()`, it never does. So a model is
another one in a file, whose batch is known, and when it is called on arrays.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from keras.src.ops.numpy import Add

from kdlite.compress.graph import Shape

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class Sum(layers.Add):
    """`keras.layers.Add` along the axes of its tensors, whatever the batch.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List of tensors whose shapes broadcast.

    Example:
        >>> column = keras.ops.convert_to_tensor([[[1.0], [2.0]]])
        >>> Sum()([keras.ops.zeros((1, 2, 2)), column]).numpy().tolist()
        [[[1.0, 1.0], [2.0, 2.0]]]
    """

    def _merge_function(self, inputs: list[Tensor]) -> Tensor:
        return functools.reduce(_added, inputs)


class Mean(layers.Average):
    """`keras.layers.Average` likewise.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: List of tensors whose shapes broadcast.

    Example:
        >>> column = keras.ops.convert_to_tensor([[[2.0], [4.0]]])
        >>> Mean()([keras.ops.zeros((1, 2, 2)), column]).numpy().tolist()
        [[[1.0, 1.0], [2.0, 2.0]]]
    """

    def _merge_function(self, inputs: list[Tensor]) -> Tensor:
        return functools.reduce(_added, inputs) / len(inputs)


class Plus(keras.Operation):
    """`keras.ops.add` likewise.

    Call arguments:
        x1: Tensor, array or number.
        x2: Another, whose shape broadcasts with it.

    Example:
        >>> Plus()(keras.ops.zeros((2, 2)), [[1.0], [2.0]]).numpy().tolist()
        [[1.0, 1.0], [2.0, 2.0]]
    """

    def call(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Returns the sum."""
        return _added(x1, x2)


def own_sum(operation: Any) -> type[keras.Operation] | None:
    """Returns what stands in for an operation whose sum may go along other axes.

    Args:
        operation: A layer or operation in a Functional model.

    Returns:
        The class of the same sum, whatever the batch; None for what needs none: other
        operations, and sums of tensors that Keras takes for what they are.

    Example:
        >>> wide, narrow = keras.Input((4, 4)), keras.Input((4, 1))
        >>> own_sum((wide + narrow)._keras_history.operation).__name__
        'Plus'
        >>> own_sum((wide + wide)._keras_history.operation)
    """
    own = _OWN.get(type(operation))
    mistakable = own is not None and any(
        _mistakable(*shapes)
        for node in operation._inbound_nodes
        for shapes in _additions(operation, node)
    )
    return own if mistakable else None


def astray(graph: tf.Graph, given: Collection[Tensor]) -> list[str]:
    """Finds the sums of a traced graph that go along other axes than their own.

    Args:
        graph: What a model was traced to, for a known batch.
        given: The tensors that it takes. What does not follow from them, as a bias, has
            no batch, and is added in all batches alike.

    Returns:
        The names of the operations, with the scopes of their layers.
    """
    known = {x.op.name for x in given}

    def follows(tensor: Tensor) -> bool:
        waiting, seen = [tensor.op], set()
        while waiting:
            op = waiting.pop()
            if op.name in known:
                return True
            if op.name not in seen:
                seen.add(op.name)
                waiting += [x.op for x in op.inputs]
        return False

    found = []
    for op in graph.get_operations():
        # What has one axis more than a bias has been squeezed to it.
        if op.type == "BiasAdd" and op.inputs[1].op.type == "Squeeze":
            narrow = op.inputs[1].op.inputs[0]
            shapes = (tuple(x.shape) for x in (op.inputs[0], narrow))
            if _is_astray(*shapes) and follows(narrow):
                found.append(op.name)
    return found


def _added(x1: Tensor, x2: Tensor) -> Tensor:
    # As Keras does, but for what it takes for a bias.
    x1, x2 = (x if isinstance(x, (int, float)) else _tensor(x) for x in (x1, x2))
    dtype = keras.backend.result_type(*(getattr(x, "dtype", type(x)) for x in (x1, x2)))
    return tf.add(_tensor(x1, dtype), _tensor(x2, dtype))


def _tensor(x: Tensor, dtype: str | None = None) -> Tensor:
    return ops.convert_to_tensor(x, dtype)


# By class of an operation what stands in for it.
_OWN: dict[type, type[keras.Operation]] = {
    layers.Add: Sum,
    layers.Average: Mean,
    Add: Plus,
}


def _additions(operation: keras.Operation, node: Any) -> Iterator[tuple[Shape, Shape]]:
    """Yields the shapes of what a call adds to what."""
    if not isinstance(operation, keras.Layer):
        first, second = (_shape(x) for x in node.arguments.args)
        yield first, second
        return
    shapes = [_shape(x) for x in node.input_tensors]
    rank = max(map(len, shapes))
    # Such layers put axes of length 1 behind the batch.
    shapes = [(*x[:1], *(1,) * (rank - len(x)), *x[1:]) for x in shapes]
    total = shapes[0]
    for shape in shapes[1:]:
        yield total, shape
        total = tuple(a if b == 1 else b for a, b in zip(total, shape, strict=True))


def _shape(x: Any) -> Shape:
    return tuple(x.shape if hasattr(x, "shape") else np.shape(x))


def _mistakable(first: Shape, second: Shape) -> bool:
    """Whether for some lengths Keras adds along other axes than where they are open."""
    if first == second or _bias_axis(first, second) is not None:
        return False
    lengths = {1, *first, *second} - {None}
    for filled in itertools.product(
        *(lengths if n is None else (n,) for n in (*first, *second))
    ):
        if _is_astray(filled[: len(first)], filled[len(first) :]):
            return True
    return False


def _is_astray(first: Shape, second: Shape) -> bool:
    """Whether Keras adds along another axis than the longest of `second`."""
    along = _bias_axis(first, second)
    own = len(first) - len(second) + int(np.argmax((*second, 0)))
    return along is not None and (along != own or len(first) < len(second))


def _bias_axis(first: Shape, second: Shape) -> int | None:
    """The axis along which Keras adds a bias; None where it takes none for one."""
    longer = [length for length in second if length != 1]
    if len(first) < 2 or len(longer) != 1 or longer[0] is None:
        return None
    if longer[0] not in (first[1], first[-1]):
        return None
    return len(first) - 1 if longer[0] == first[-1] else 1
