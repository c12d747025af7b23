"""Which Keras layer an operation of a `.tflite` comes from.

The converter names a tensor after the scopes that it was computed in, with numbers that
tell apart scopes of one name: "net_1/block_1/conv_1/Relu;net_1/block_1/conv_1/add" of
layer "conv" in model "block". The last tensor has the name of an output, and only its
kernel says where it comes from.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import keras

from kdlite.lite.names import identifier
from kdlite.lite.tflite_file import Op, TFLiteFile


def layer_names(model: keras.Model) -> tuple[str, ...]:
    """Returns the names of all layers, those of nested models as "block/conv".

    Args:
        model: A Keras model.

    Returns:
        The names in the model's order, inputs left out.

    Example:
        >>> layer_names(keras.Sequential([keras.layers.Dense(2, name="dense")]))
        ('dense',)
    """
    names: list[str] = []

    def collect(layers: Iterable[keras.Layer], prefix: str) -> None:
        for layer in layers:
            if isinstance(layer, keras.layers.InputLayer):
                continue
            names.append(prefix + layer.name)
            if isinstance(layer, keras.Model):
                collect(layer.layers, f"{prefix}{layer.name}/")

    collect(model.layers, "")
    return tuple(names)


def layers_of(content: TFLiteFile, model: keras.Model) -> dict[Op, tuple[str, ...]]:
    """Finds the layers that each operation comes from.

    Args:
        content: A file that was converted from the model.
        model: The model.

    Returns:
        By operation the layers' names as `layer_names` has them, that of its result
        first: several where layers are one operation. Empty where the file does not
        tell.
    """
    names = frozenset(layer_names(model))
    # An output has the name of its layer, or the one that the model gives it.
    last = {identifier(name.rpartition("/")[2]): name for name in names}
    outputs = {tensor.index: tensor.name for tensor in content.outputs}
    # A kernel kept in float16 is a float tensor that an operation makes of a constant.
    widened = {
        (op.subgraph, op.outputs[0]): content.tensors_of(op)
        for op in content.ops
        if op.name == "DEQUANTIZE" and op.outputs
    }
    found = {}
    for op in content.ops:
        tensors = content.tensors_of(op)
        behind = [t for i in op.inputs for t in widened.get((op.subgraph, i), ())]
        written = [tensor for tensor in tensors[len(op.inputs) :] if tensor]
        constants = [t for t in (*tensors, *behind) if t and t.constant]
        layers = [
            layer
            for tensor in (*written, *constants)
            for path in tensor.name.split(";")
            if (layer := _layer(path, names))
        ]
        if not layers and op.subgraph == 0 and op.outputs:
            layer = last.get(identifier(outputs.get(op.outputs[0], "")), "")
            layers = [layer] if layer else []
        found[op] = tuple(dict.fromkeys(layers))
    return found


def layer_of(path: str, model: keras.Model) -> str:
    """Returns the layer that an operation of a traced model is of.

    Args:
        path: The name of the operation, with the scopes that it was traced in.
        model: The model.

    Returns:
        The layer's name as `layer_names` has it; empty where the path does not tell.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(2, name="dense")])
        >>> layer_of("sequential_1/dense_1/BiasAdd", model)
        'dense'
    """
    return _layer(path, frozenset(layer_names(model)))


def places(content: TFLiteFile, model: keras.Model) -> dict[Op, str]:
    """Says for each operation where it is in the model, for messages.

    Args:
        content: A file that was converted from the model.
        model: The model.

    Returns:
        By operation "layer 'conv'", "which makes output 'y'", or, of operators between
        layers, "before layer 'dense'"; empty where the file does not tell.
    """
    layers = layers_of(content, model)
    outputs = {tensor.index: tensor.name for tensor in content.outputs}

    def behind(op: Op) -> Iterator[Op]:
        """Yields what reads the results of an operation, the nearest first."""
        known = set(op.outputs)
        for other in content.ops:
            if other.subgraph == 0 and not known.isdisjoint(other.inputs):
                known.update(other.outputs)
                yield other

    def place(op: Op) -> str:
        if layers[op]:
            return f"layer {layers[op][0]!r}"
        if op.subgraph:
            return ""
        for made in filter(outputs.__contains__, op.outputs):
            return f"which makes output {outputs[made]!r}"
        for other in behind(op):
            if layers[other]:
                return f"before layer {layers[other][0]!r}"
            for made in filter(outputs.__contains__, other.outputs):
                return f"before output {outputs[made]!r}"
        return ""

    return {op: place(op) for op in content.ops}


def check_layer_names(model: keras.Model) -> None:
    """Refuses names that TensorFlow takes in no graph.

    Args:
        model: A Keras model.

    Raises:
        ValueError: If its name, or that of a layer, has other characters.

    Example:
        >>> check_layer_names(keras.Sequential([keras.layers.ReLU(name="50%")]))
        Traceback (most recent call last):
        ...
        ValueError: Layers must have names that TensorFlow takes: letters a to z, ...
    """
    for layer in model._flatten_layers():
        odd = re.search(r"[^A-Za-z0-9_.\\/>-]", layer.name)
        if odd and not isinstance(layer, keras.layers.InputLayer):
            raise ValueError(
                "Layers must have names that TensorFlow takes: letters a to z, digits, "
                "and `_`, `-`, `.`. Received: "
                f"{'model' if layer is model else 'layer'} {layer.name!r} with "
                f"{odd[0]!r}. Fix: build it with another `name`, and copy the weights: "
                "new.set_weights(model.get_weights())."
            )


def matching(patterns: Mapping[str, str], model: keras.Model) -> dict[str, str]:
    """Returns what patterns say of layers, the last one that fits.

    Args:
        patterns: By name or pattern (`"head/*"`, `"conv?"`) what it is to be.
        model: The model.

    Returns:
        By layer name what it is to be.

    Raises:
        ValueError: If a pattern fits no layer.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(2, name="dense")])
        >>> matching({"d*": "float32"}, model)
        {'dense': 'float32'}
    """
    names = layer_names(model)
    chosen: dict[str, str] = {}
    for pattern, kind in patterns.items():
        fitting = [
            name
            for name in names
            # A model that is named means all that is in it.
            if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}/")
        ]
        if not fitting:
            raise ValueError(
                "Each pattern must fit a layer. Received: "
                f"{pattern!r} for model {model.name!r}. Its layers: "
                f"{', '.join(map(repr, names))}."
            )
        chosen |= dict.fromkeys(fitting, kind)
    return chosen


def _layer(path: str, names: Collection[str]) -> str:
    """Returns the innermost layer of the scopes of a tensor."""
    parts = {part for name in names for part in name.split("/")}
    plain = {identifier(part): part for part in parts} | {part: part for part in parts}
    scopes = [_plain(part, plain) for part in path.split("/")]
    known = [scope for scope in scopes if scope]
    for start in range(len(known)):
        for end in range(len(known), start, -1):
            if (name := "/".join(known[start:end])) in names:
                return name
    return ""


def _plain(scope: str, plain: Mapping[str, str]) -> str:
    """Returns the layer of a scope, which has a number more than the layer's name."""
    for form in (scope, identifier(scope)):
        without = re.sub(r"_\d+$", "", form)
        if layer := plain.get(without) or plain.get(form):
            return layer
    return ""
