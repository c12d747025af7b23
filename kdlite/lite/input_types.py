"""Which type an input has in a file: bytes that only become floats are floats there.

A cast would be left to float operations, where an input of integers is quantized as it
is. But Keras adds and multiplies bytes as bytes, 200 + 100 is 44: where a model does
that, so must its file.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers
from keras.src.models.functional import Functional

from kdlite.compress.graph import IN_TRAINING_ALONE

Tensor = Any

HALF = ("float16", "bfloat16", "float64")
# Operations that make floats of integers before they compute, if they give floats: not
# those that take integers as places, such as `keras.ops.one_hot`.
_TO_FLOAT = ("Cast", "Divide", "TrueDivide")
_PROMOTING = ("Multiply", "Add", "Subtract")
# Layers whose results are some of the values that they take, of the type of these.
_MOVING = (
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.Identity),
    *(layers.Concatenate, layers.Maximum, layers.Minimum, layers.ReLU),
    *IN_TRAINING_ALONE,
)
# What computes with tensors as they are: with bytes, if all are.
_ARITHMETIC = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Dot)


def is_graph(model: keras.Model) -> bool:
    """Whether what a model computes is a graph of layers, and no `call` of its own.

    Args:
        model: A Keras model.

    Example:
        >>> is_graph(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        True
    """
    return type(model).call in (keras.Sequential.call, Functional.call)


def file_dtype(model: keras.Model, x: Tensor) -> str:
    """Returns the type that an input has in the file.

    Args:
        model: A built model.
        x: One of its `inputs`.

    Returns:
        "float32" for floats of other sizes, and for bytes of which the model makes
        floats before it computes with them; else the input's own.

    Example:
        >>> image = keras.Input((8, 8, 3), dtype="uint8")
        >>> model = keras.Model(image, keras.layers.Rescaling(1 / 255)(image))
        >>> file_dtype(model, model.inputs[0])
        'float32'
    """
    if x.dtype in HALF:
        return "float32"
    if x.dtype == "uint8" and is_graph(model):
        graph = model._functional if isinstance(model, keras.Sequential) else model
        if _through(graph, {id(x)}) is not None:
            return "float32"
    return str(x.dtype)


def _through(graph: Any, still: set[int]) -> list[int] | None:
    """Follows bytes through a graph of layers.

    Args:
        graph: A Functional model.
        still: The ids of those of its inputs that are bytes.

    Returns:
        Which of its outputs are bytes still; None where it computes with them.
    """
    still = set(still)
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            taken = [id(x) in still for x in node.input_tensors]
            if node.is_input or not any(taken):
                continue
            moved = _moved(node, taken, still)
            if moved is None:
                return None
            still.update(id(node.outputs[k]) for k in moved)
    return [k for k, x in enumerate(graph.outputs) if id(x) in still]


def _moved(node: Any, taken: list[bool], still: set[int]) -> Any:
    """Which results of a call are bytes still; None where it computes with them."""
    operation = node.operation
    if isinstance(operation, keras.Model) and is_graph(operation):
        sequential = isinstance(operation, keras.Sequential)
        inner = operation._functional if sequential else operation
        inputs = zip(inner.inputs, taken, strict=True)
        return _through(inner, {id(x) for x, is_byte in inputs if is_byte})
    if isinstance(operation, _MOVING):
        return range(len(node.outputs)) if all(taken) else ()
    if isinstance(operation, _ARITHMETIC):
        return None if all(taken) else ()
    known = isinstance(operation, keras.Layer) or _makes_floats(node, still)
    floats = all("float" in x.dtype for x in node.outputs)
    return () if known and floats else None


def _makes_floats(node: Any, still: set[int]) -> bool:
    kind = type(node.operation).__name__
    if kind not in _PROMOTING:
        return kind in _TO_FLOAT
    # Of some layers Keras says that they give floats, and they give bytes.
    types = [
        "uint8" if id(x) in still else getattr(x, "dtype", type(x))
        for x in node.arguments.args
    ]
    return "float" in keras.backend.result_type(*types)
