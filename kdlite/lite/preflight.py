"""What is known not to convert, found layer by layer before anything is converted.

The converter's own words name operations, if it says anything at all: of an LSTM in
int8 it crashes. So layers that are known to fail are named here, each with a way out.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from kdlite.compress.graph import held_in_training
from kdlite.compress.recipes import Recipe
from kdlite.lite._converter import ConversionError

layers = keras.layers


class _Rule(NamedTuple):
    """Layers of one kind, of which some operations have no integer kernels.

    Attributes:
        kinds: Classes of layers.
        activations: Names of activation functions, of any layer.
        int8: Operations that the converter leaves in float under int8.
        int16: Operations that it leaves in float, or refuses, with int16 activations.
        instead: What to use in its place.
    """

    kinds: tuple[type[keras.Layer], ...]
    activations: tuple[str, ...]
    int8: tuple[str, ...]
    int16: tuple[str, ...]
    instead: str


_RULES = (
    _Rule(
        (layers.LayerNormalization,),
        (),
        ("NEG",),
        ("NEG",),
        "BatchNormalization, which is folded into the layer before it",
    ),
    _Rule(
        (layers.GroupNormalization,),
        (),
        ("NEG", "SQUARE"),
        ("NEG", "SQUARE"),
        "BatchNormalization, which is folded into the layer before it",
    ),
    _Rule(
        (layers.RMSNormalization, layers.UnitNormalization),
        (),
        ("SQUARE",),
        ("SQUARE",),
        "BatchNormalization, which is folded into the layer before it",
    ),
    _Rule((layers.ELU,), ("elu",), ("ELU",), ("ELU",), "LeakyReLU or ReLU"),
    _Rule((layers.Conv3D,), (), ("CONV_3D",), ("CONV_3D",), "Conv2D"),
    _Rule((layers.PReLU,), (), (), ("PRELU",), "ReLU"),
    _Rule((), ("hard_silu", "hard_swish"), (), ("HARD_SWISH",), "swish or ReLU"),
    _Rule((), ("selu",), (), ("GREATER", "SELECT_V2"), "swish or ReLU"),
    _Rule((layers.UpSampling2D,), (), (), ("TILE",), "interpolation='bilinear'"),
)


class _Odd(NamedTuple):
    """A weight that is no number.

    Attributes:
        layer: The layer's name.
        text: How many of what are in it, and its path.
        meant: Whether it is a constant, which may be infinite, of a layer that is not
            Keras's: such as a mask.
    """

    layer: str
    text: str
    meant: bool


def _odd_weights(model: keras.Model) -> Iterator[_Odd]:
    for layer in model._flatten_layers():
        own = not type(layer).__module__.startswith(("keras.", "kdlite."))
        # Those of a frozen layer are of a training, too.
        for constant in (False, True):
            weights = (
                layer._non_trainable_variables
                if constant
                else layer._trainable_variables
            )
            for weight in weights:
                if not keras.backend.is_float_dtype(weight.dtype):
                    continue
                values = np.asarray(weight.value, np.float32)
                where = f"in {weight.path!r}"
                if count := int(np.isnan(values).sum()):
                    yield _Odd(layer.name, f"{count} NaN {where}", False)
                elif count := int(np.isinf(values).sum()):
                    text = f"{count} times infinity {where}"
                    yield _Odd(layer.name, text, own and constant)


def broken_weight(model: keras.Model) -> str:
    """Says which weight of a model is no number, as after a training that diverged.

    Args:
        model: A Keras model.

    Returns:
        How many of what in the first such weight, with its path; empty if there is
        none. The infinities of a mask, a constant of a layer that is not Keras's, may
        be meant.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> _ = model.layers[0].bias.assign([np.nan])
        >>> broken_weight(model)
        "1 NaN in '.../bias'"
    """
    return next((odd.text for odd in _odd_weights(model) if not odd.meant), "")


def check_weights(model: keras.Model, recipe: Recipe, kept: Collection[str]) -> None:
    """Raises for weights that are no numbers: the file would do what the model does.

    Args:
        model: A Keras model.
        recipe: How it is to be quantized.
        kept: The names of layers that are to stay in float.

    Raises:
        ValueError: That names the first such weight.
        ConversionError: If a constant is infinite where it has to be an integer.
    """
    if broken := broken_weight(model):
        raise ValueError(
            "A model's weights must be numbers. Received: "
            f"model={model.name!r} with {broken}. Its training may have diverged: "
            "train it again with a lower learning rate, and look at the range of the "
            "data."
        )
    inner = {name.rpartition("/")[2] for name in kept}
    odd = next((o for o in _odd_weights(model) if o.layer not in inner), None)
    if recipe.integer and odd is not None:
        raise ConversionError(
            f"{recipe.name} needs constants that are finite, as there is no integer "
            f"for an infinity. Received: model={model.name!r} with {odd.text}. Use a "
            "number that is just far enough from the others (before a softmax, -20 "
            f"will do); keep layer {odd.layer!r}, and those that read it, exact by "
            "`overrides`; or use quantization='dynamic'."
        )


def check_layers(
    model: keras.Model,
    recipe: Recipe,
    engine: str,
    allowed: frozenset[str],
    kept: Collection[str],
) -> None:
    """Raises for layers that are known not to become what the recipe asks for.

    Args:
        model: A plain Keras model (not a quantization-aware one, of which is known what
            it becomes).
        recipe: How it is to be quantized.
        engine: What quantizes it.
        allowed: Operations that may stay in float.
        kept: The names of layers that are to.

    Raises:
        ConversionError: That names the layers, and a way out.
    """
    if forced := sorted(_forced_training(model)):
        warnings.warn(
            "A file runs every layer in inference mode, as model.predict does. "
            f"{_listed(forced)} of model {model.name!r} is called with training=True, "
            "which the file will not do.",
            stacklevel=4,
        )
    if not recipe.integer:
        return
    loops = [
        f"{layer.name!r} ({type(layer).__name__})"
        for layer in model._flatten_layers()
        if isinstance(layer, layers.RNN) and not layer.unroll
    ]
    if loops:
        raise ConversionError(
            f"{recipe.name} needs layers without a loop, as the converter crashes on "
            f"it. Received: model={model.name!r} with {_listed(loops)}. Use "
            "quantization='dynamic', which keeps its weights in 8 bits, or build it "
            "with unroll=True."
        )
    unrolled = [
        f"{layer.name!r} ({type(layer).__name__}, unrolled)"
        for layer in model._flatten_layers()
        if engine == "aeq" and isinstance(layer, layers.RNN)
    ]
    if unrolled:
        raise ConversionError(
            f"{recipe.name} by engine='aeq' needs layers without recurrence, of which "
            "ai-edge-quantizer measures no ranges. Received: "
            f"model={model.name!r} with {_listed(unrolled)}. Use engine='tflite' with "
            "quantization='int8' or 'int16x8', or quantization='dynamic'."
        )
    numbers = [
        repr(tensor.name)
        for tensor in keras.tree.flatten(getattr(model, "inputs", None) or [])
        if engine == "tflite" and recipe.activation_bits == 16
        if not tensor.dtype.startswith("float")
    ]
    if numbers:
        raise ConversionError(
            f"{recipe.name} needs inputs that are float, as the converter measures the "
            f"range of no other. Received: model={model.name!r} with the integer input "
            f"{_listed(numbers)}. Use quantization='int8' or 'dynamic', or "
            "engine='aeq'."
        )
    inner = {name.rpartition("/")[2] for name in kept}
    # What ai-edge-quantizer leaves in float depends on the operation alone: it is found
    # in the file.
    if engine != "tflite":
        return
    for rule in _RULES:
        left = set(rule.int16 if recipe.activation_bits == 16 else rule.int8) - allowed
        found = [
            text
            for layer in model._flatten_layers()
            if layer.name not in inner and (text := _is(layer, rule))
        ]
        if left and found:
            raise ConversionError(
                f"{recipe.name} means that every operation computes in integers. "
                f"Received: model={model.name!r} with {_listed(found)}; there is no "
                f"integer kernel of {' and '.join(sorted(left))}. Use "
                f"{rule.instead}; or let it compute in float: allow_float_ops="
                f"{tuple(sorted(left | allowed))!r}."
            )


def _is(layer: keras.Layer, rule: _Rule) -> str:
    """Returns what a message calls the layer, if the rule is about it."""
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", "")
    if isinstance(layer, layers.UpSampling2D) and layer.interpolation != "nearest":
        return ""
    if isinstance(layer, rule.kinds):
        return f"{layer.name!r} ({type(layer).__name__})"
    return f"{layer.name!r} ({name})" if name in rule.activations else ""


def _forced_training(model: keras.Model) -> Iterator[str]:
    """Yields the layers that the graph of a Functional model calls in training mode."""
    for layer in model._flatten_layers(include_self=True):
        # Of a layer that is in several models, the calls that belong to this one.
        depths: dict[int, list[Any]] = getattr(layer, "_nodes_by_depth", {})
        for node in itertools.chain(*depths.values()):
            if held_in_training(node):
                yield repr(node.operation.name)


def _listed(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))
