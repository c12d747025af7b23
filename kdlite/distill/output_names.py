"""Outputs by name: what a model returns, in whatever structure it has.

>>> import keras
>>> inputs = keras.Input((4,))
>>> box, cls = (keras.layers.Dense(units)(inputs) for units in (2, 3))
>>> model = keras.Model(inputs, {"box": box, "cls": cls})
>>> output_names(model), output_shapes(model)["cls"]
(('box', 'cls'), (None, 3))
>>> named(["first", "second"], ("box", "cls"))
{'box': 'first', 'cls': 'second'}
"""

from __future__ import annotations

from typing import Any

import keras

Structure = Any  # a tensor, or a dict, list or tuple of such
Shape = tuple[int | None, ...]

#: The name of an output that has none: the only one of a model without a graph.
ONLY = "output"


def named(structure: Structure, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a structure by the names of outputs.

    Args:
        structure: A dict, list, tuple or nest of such, or what is in it alone.
        names: The names of the outputs, which stand for places in a list.

    Returns:
        What is in it, by name: keys, or for a nest keys joined by `/`.
    """
    if not keras.tree.is_nested(structure):
        return {names[0] if len(names) == 1 else ONLY: structure}
    flat = keras.tree.flatten_with_path(structure)
    keys = ["/".join(map(str, path)) for path, _ in flat]
    if not isinstance(structure, dict) and len(keys) == len(names):
        keys = list(names)
    return dict(zip(keys, (leaf for _, leaf in flat), strict=True))


def output_names(model: keras.Model) -> tuple[str, ...] | None:
    """Returns the names of a model's outputs, in the order of `keras.tree.flatten`.

    Args:
        model: The model.

    Returns:
        Keys of a dict, else names of layers; `None` if the model has no graph.
    """
    structure = output_structure(model)
    if structure is None:
        return None
    if isinstance(structure, dict) or _is_deep(structure):
        return tuple(named(structure, ()))
    layers = [t._keras_history.operation.name for t in keras.tree.flatten(structure)]
    if len(set(layers)) < len(layers):  # two from one layer
        return tuple(map(str, range(len(layers))))
    return tuple(layers)


def output_structure(model: keras.Model) -> Structure:
    """Returns the symbolic outputs of a model, in their structure.

    Args:
        model: The model.

    Returns:
        Keras tensors, or `None` if the model has no graph that says what it returns.
    """
    if not type(model).call.__module__.startswith("keras."):
        return None  # a call of its own may return anything
    if isinstance(model, keras.Sequential):
        return model.outputs[0] if model.built and hasattr(model, "outputs") else None
    return model.output


def output_shapes(model: keras.Model) -> dict[str, Shape]:
    """Returns the shapes of a model's outputs.

    Args:
        model: The model.

    Returns:
        Shapes by name; none if the model has no graph.
    """
    names = output_names(model)
    if names is None:
        return {}
    outputs = keras.tree.flatten(output_structure(model))
    return {n: tuple(t.shape) for n, t in zip(names, outputs, strict=True)}


def _is_deep(structure: Structure) -> bool:
    return isinstance(structure, (list, tuple)) and any(
        keras.tree.is_nested(part) for part in structure
    )
