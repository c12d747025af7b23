"""Fingerprints: is this still the same teacher, and are these still the same samples?

Hashes of content, equal in every process and on every machine: a store of teacher
outputs, or a run that was stopped, must not be taken up with another model or other
data under the same name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import marshal
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

Array = np.ndarray[Any, Any]
Structure = Any  # an array, or a dict, tuple or list of such

# What a config says that does not change what the model computes.
_NOT_COMPUTED = frozenset(
    {"trainable", "build_config", "build_input_shape", "compile_config"}
)
_AUTOMATIC_INPUT_NAME = re.compile(r"(input_layer|keras_tensor)(_\d+)?")


def model_fingerprint(model: keras.Model) -> str:
    """Fingerprints what a model computes in inference: architecture and weights.

    Equal after saving and loading, and for a model that is built again and given the
    same weights, whatever numbers Keras appends to its layers' names. Names count only
    where data are fed by them: those given to inputs. `trainable`, the optimizer and
    the state of random layers do not count.

    A subclassed model is known by its class's name, its config if it has one, and its
    weights: a change of its code alone goes unseen.

    Args:
        model: Any built model.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: If the model has not been built: it has no weights yet.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> before = model_fingerprint(model)
        >>> model.layers[0].bias.assign([0.5]) is None
        False
        >>> model_fingerprint(model) == before
        False
    """
    if not model.built:
        raise ValueError(
            f"A model is fingerprinted with its weights, so it must be built. "
            f"Received: model '{model.name}', which is not. Fix: call it on a batch "
            f"once."
        )
    try:
        config = model.get_config()
    except NotImplementedError:  # a subclassed model: its class and weights must do
        config = {}
    architecture = [type(model).__name__, _canonical(config)]
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for weight in model.weights:
        _update(digest, np.asarray(keras.ops.convert_to_numpy(weight)))
    for layer in model._flatten_layers():
        if hasattr(layer, "get_vocabulary"):  # learned, but not in a weight
            digest.update(
                repr([str(token) for token in layer.get_vocabulary()]).encode()
            )
    return digest.hexdigest()


def rows_fingerprint(x: Structure) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Fingerprints each sample of a batch by its values, type and shape.

    The hash of a sample does not depend on the batch it is in.

    Args:
        x: An array `(samples, ...)`, or a dict, tuple or list of such.

    Returns:
        One 64-bit hash a sample, `(samples,)`; a tenth of a second for 60,000 rows of
        784 bytes.

    Raises:
        ValueError: The arrays differ in their number of samples.

    Example:
        >>> import numpy as np
        >>> a, b, c = rows_fingerprint(np.array([[1, 2], [3, 4], [1, 2]]))
        >>> bool(a == c), bool(a == b)
        (True, False)
    """
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(x)]
    counts = [len(array) if array.ndim else None for array in arrays]
    if len(set(counts)) != 1 or None in counts:
        raise ValueError(
            "All arrays must have the same number of samples, on their first axis. "
            f"Received: shapes={[array.shape for array in arrays]}. Cut them to the "
            "same samples."
        )
    parts = [_row_bytes(array) for array in arrays]
    kinds = [f"{_kind(array)}{array.shape[1:]}" for array in arrays]
    start = hashlib.blake2b(repr(kinds).encode(), digest_size=8)
    hashes = bytearray()
    for row in zip(*parts, strict=True):
        digest = start.copy()
        for part in row:
            digest.update(part)
        hashes += digest.digest()
    return np.frombuffer(bytes(hashes), "<u8").astype(np.uint64)


def data_fingerprint(data: Structure) -> str:
    """Fingerprints whole arrays: values, types, shapes and order.

    Args:
        data: An array, or a dict, tuple or list of such.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import numpy as np
        >>> x = np.arange(4)
        >>> data_fingerprint((x, x)) == data_fingerprint((x, x[::-1]))
        False
    """
    digest = hashlib.sha256()
    for leaf in keras.tree.flatten(data):
        _update(digest, np.asarray(leaf))
    return digest.hexdigest()


def _update(digest: Any, array: Array) -> None:
    digest.update(f"{_kind(array)}{array.shape}".encode())
    for row in _row_bytes(array.reshape(1, -1)):
        digest.update(row)


def _kind(array: Array) -> str:
    return "string" if array.dtype.kind in "OSU" else array.dtype.name


def _row_bytes(array: Array) -> Any:
    """The bytes of each row: an array of uint8, or, for strings, a list of bytes."""
    if _kind(array) == "string":
        # TensorFlow hands out bytes where numpy had text; lengths tell them apart.
        rows = array.astype(object).reshape(len(array), -1).tolist()
        return [
            b"".join(b"%d:%s" % (len(text), text) for text in map(_encoded, row))
            for row in rows
        ]
    width = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=int))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).reshape(len(array), width)


def _encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


# --- architecture, without the names that Keras counts up within a process


def _canonical(value: Any, places: Mapping[str, int] | None = None) -> Any:
    """A config in plain JSON, in which layers are called by their place.

    Args:
        value: A config, or a part of one.
        places: Of the model it is in: layer name -> place among the layers.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_canonical(item, places) for item in value]
    if not isinstance(value, Mapping):
        try:
            return _canonical(keras.saving.serialize_keras_object(value), places)
        except (TypeError, ValueError):  # nothing to be compared but its type
            return type(value).__qualname__
    if value.get("class_name") == "__keras_tensor__":
        history = value["config"].get("keras_history")
        return [value["config"].get("shape"), _renamed(history, places or {})]
    if value.get("class_name") == "__lambda__":
        return {**value, "config": _canonical_lambda(value["config"])}
    config = {str(key): item for key, item in value.items() if key not in _NOT_COMPUTED}
    if "trainable" in value:  # of a layer, whose name is no part of what it does
        config.pop("name", None)
    if isinstance(value.get("layers"), (list, tuple)):
        config["layers"] = [_without_name(layer) for layer in value["layers"]]
        names = (_name(layer) for layer in value["layers"])
        places = {name: place for place, name in enumerate(names) if name}
        for ends in {"input_layers", "output_layers"} & set(config):
            config[ends] = _renamed(config[ends], places)
    return {key: _canonical(item, places) for key, item in config.items()}


def _name(layer: Any) -> str | None:
    """The name of a serialized layer or operation."""
    config = layer.get("config") if isinstance(layer, Mapping) else None
    return config.get("name") if isinstance(config, Mapping) else None


def _without_name(layer: Any) -> Any:
    name = _name(layer)
    if name is None:
        return layer
    if layer.get("class_name") == "InputLayer" and not _AUTOMATIC_INPUT_NAME.fullmatch(
        name
    ):
        return layer  # data may be fed by this name
    config = {key: item for key, item in layer["config"].items() if key != "name"}
    if "trainable" in config:
        config = {key: item for key, item in config.items() if key != "trainable"}
    return {**{k: v for k, v in layer.items() if k != "name"}, "config": config}


def _renamed(ends: Any, places: Mapping[str, int]) -> Any:
    """References to tensors, `[name, node, index]`, with places for names."""
    if isinstance(ends, Mapping):
        return {str(key): _renamed(item, places) for key, item in ends.items()}
    if isinstance(ends, (list, tuple)):
        return [_renamed(item, places) for item in ends]
    return places.get(ends, ends) if isinstance(ends, str) else ends


def _canonical_lambda(config: Any) -> Any:
    """A lambda's config with code bytes that do not depend on the process.

    `marshal` marks what happens to be shared in memory; its version 0 does not.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("code"), str):
        return _canonical(config)
    code = marshal.loads(base64.b64decode(config["code"]))
    others = {key: item for key, item in config.items() if key != "code"}
    code_bytes = hashlib.sha256(marshal.dumps(code, 0)).hexdigest()
    return {"code": code_bytes, **_canonical(others)}
