"""Small models that nobody wrote: a Hypothesis strategy for Keras models and exports.

`exports()` draws a `Case`: inputs of one kind or several, chains of layers with
branches between, one head or several, a recipe and the arguments that go with it. What
Hypothesis finds to fail it makes small. It is a part of `fuzz.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from hypothesis import strategies as st

layers = keras.layers
ACTIVATIONS = (None, "relu", "relu6", "tanh", "sigmoid", "swish", "gelu", "leaky_relu")
RECIPES = ("float32", "float16", "dynamic", "int8", "weight_only", "int16x8", "int4")
# Twelve in the range of the model's training, more are no surer.
SAMPLES = 12


@dataclass(frozen=True)
class Case:
    """One export.

    Attributes:
        build: Makes the model; equal each time.
        arguments: Of `kdlite.export`, without data.
        text: What it is, layer by layer.
    """

    build: Callable[[], keras.Model]
    arguments: Mapping[str, Any]
    text: str = field(compare=False)

    def __repr__(self) -> str:
        return f"{self.text} {dict(self.arguments)}"


def samples(model: keras.Model, count: int, seed: int) -> dict[str, np.ndarray]:
    """Draws samples: normal values, or ids that the embeddings have."""
    rng = np.random.default_rng(seed)
    return {
        tensor.name: rng.integers(0, _IDS, (count, *tensor.shape[1:]), np.int32)
        if tensor.dtype == "int32"
        else rng.normal(size=(count, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    }


_IDS = 11
Call = tuple[str, dict[str, Any]]


@st.composite
def exports(draw: st.DrawFn) -> Case:
    """Draws a model and how it is exported."""
    towers = draw(st.lists(_tower(), min_size=1, max_size=2))
    heads = draw(st.lists(_head(), min_size=1, max_size=3))
    named = draw(st.booleans())
    policy = draw(st.sampled_from(["float32"] * 4 + ["mixed_float16"]))
    seed = draw(st.integers(0, 999))
    quantization = draw(st.sampled_from(RECIPES))
    arguments: dict[str, Any] = {"quantization": quantization}
    if quantization == "int8":
        arguments["io"] = draw(st.sampled_from(["float32", "int8", "uint8"]))
        arguments["allow_float_ops"] = draw(st.sampled_from([(), ("NEG", "ELU")]))
    if quantization in ("float32", "int8"):
        arguments["batch_size"] = draw(st.sampled_from([1, 1, 1, 3]))
    if draw(st.integers(0, 3)) == 0:
        arguments["min_runtime"] = draw(st.sampled_from(["2.17.0", "2.21.0"]))

    def build() -> keras.Model:
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        return _build(towers, heads, named, policy)

    text = f"{towers} -> {heads}{' by name' if named else ''}, {policy}, seed {seed}"
    return Case(build, arguments, text)


@st.composite
def _tower(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[Call]]:
    kind = draw(st.sampled_from(["image", "image", "image", "series", "vector", "ids"]))
    sides, channels = st.integers(6, 10), st.integers(1, 4)
    shape: tuple[int, ...]
    if kind == "image":
        shape = (draw(sides), draw(sides), draw(channels))
    elif kind == "series":
        shape = (draw(sides), draw(channels))
    elif kind == "ids":
        shape = (draw(st.integers(2, 6)),)
    else:
        shape = (draw(st.integers(1, 9)),)
    calls = draw(st.lists(st.one_of(CALLS[kind]), max_size=4))
    return kind, shape, calls


def _call(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


_WIDTHS, _ACTIVATIONS = st.integers(1, 6), st.sampled_from(ACTIVATIONS)
_PADDING = st.sampled_from(["same", "valid"])
_ANY = [
    _call("Activation", activation=st.sampled_from(ACTIVATIONS[1:])),
    _call("BatchNormalization"),
    _call("Dropout", rate=st.just(0.3)),
    _call("ReLU", max_value=st.sampled_from([None, 1.0, 6.0])),
    _call("LeakyReLU"),
    _call("PReLU"),
    _call("ELU"),
    _call("LayerNormalization"),
    _call("Rescaling", scale=st.floats(0.1, 3.0), offset=st.floats(-1.0, 1.0)),
    _call("residual", activation=_ACTIVATIONS),
    _call("branches", activation=_ACTIVATIONS),
    _call("gate"),
]
_DENSE = _call("Dense", units=_WIDTHS, activation=_ACTIVATIONS)
_CONVOLUTION = {
    "filters": _WIDTHS,
    "kernel_size": st.integers(1, 3),
    "strides": st.integers(1, 2),
    "padding": _PADDING,
    "activation": _ACTIVATIONS,
    "use_bias": st.booleans(),
}
_DILATED = {
    "filters": _WIDTHS,
    "kernel_size": st.just(2),
    "dilation_rate": st.integers(2, 3),
    "padding": st.just("same"),
}
_UNROLLED = {
    "units": _WIDTHS,
    "return_sequences": st.just(True),
    "unroll": st.just(True),
}
CALLS: dict[str, list[st.SearchStrategy[Call]]] = {
    "image": [
        _call("Conv2D", **_CONVOLUTION),
        _call("SeparableConv2D", **_CONVOLUTION),
        _call("Conv2DTranspose", **_CONVOLUTION),
        _call("DepthwiseConv2D", kernel_size=st.integers(1, 3), padding=_PADDING),
        _call("Conv2D", **_DILATED),
        _call("MaxPooling2D", padding=_PADDING),
        _call("AveragePooling2D", pool_size=st.just(2), padding=_PADDING),
        _call("UpSampling2D", interpolation=st.sampled_from(["nearest", "bilinear"])),
        _call("ZeroPadding2D"),
        _call("Cropping2D", cropping=st.just(1)),
        _call("Permute", dims=st.just((2, 1, 3))),
        _call("SpatialDropout2D", rate=st.just(0.2)),
        _call("GroupNormalization", groups=st.just(1)),
        *_ANY,
    ],
    "series": [
        _call("Conv1D", **_CONVOLUTION),
        _call("MaxPooling1D", padding=_PADDING),
        _call("AveragePooling1D", pool_size=st.just(2), padding=_PADDING),
        _call("UpSampling1D"),
        _call("attention"),
        _call("GRU", **_UNROLLED),
        _DENSE,
        *_ANY,
    ],
    "vector": [_DENSE, *_ANY],
    "ids": [_DENSE, _call("Conv1D", **_CONVOLUTION), *_ANY],
}


@st.composite
def _head(draw: st.DrawFn) -> tuple[str, int, str | None]:
    kind = draw(st.sampled_from(["scores", "scores", "scores", "map"]))
    activation = draw(st.sampled_from([None, None, "softmax", "sigmoid", "tanh"]))
    return kind, draw(st.integers(1, 5)), activation


def _build(
    towers: list[Any], heads: list[Any], named: bool, policy: str
) -> keras.Model:
    ends, inputs = [], []
    for number, (kind, shape, calls) in enumerate(towers):
        x = keras.Input(
            shape, dtype="int32" if kind == "ids" else None, name=f"in_{number}"
        )
        inputs.append(x)
        if kind == "ids":
            x = layers.Embedding(_IDS, 4, dtype=policy)(x)
        for name, arguments in calls:
            x = called(name, arguments, x, policy)
        ends.append(x)
    flat = [_flat(x, policy) for x in ends]
    both = flat[0]
    if len(flat) > 1:
        both = layers.Concatenate(dtype=policy)(flat)
    outputs: dict[str, Any] = {}
    for number, (kind, units, activation) in enumerate(heads):
        of_map = kind == "map" and len(ends[0].shape) > 2
        # Of one shape now and then, and not in the order of the alphabet.
        name = f"out_{'zax'[number]}"
        layer = layers.Dense(units, activation=activation, name=name, dtype=policy)
        outputs[name] = layer(ends[0] if of_map else both)
    model = keras.Model(inputs, outputs if named else list(outputs.values()))
    rng = np.random.default_rng(len(model.weights))
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            spread = [rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()]
            layer.set_weights(spread)
    return model


def called(name: str, arguments: dict[str, Any], x: Any, policy: str) -> Any:
    """Calls a layer that `CALLS` draws, or one of the few with names of their own."""
    width = x.shape[-1]
    if name == "residual":
        y = layers.Dense(width, dtype=policy, **arguments)(x)
        return layers.Add(dtype=policy)([x, y])
    if name == "branches":
        y = layers.Dense(2, dtype=policy, **arguments)(x)
        return layers.Concatenate(dtype=policy)([y, x])
    if name == "gate":
        y = layers.Dense(width, activation="sigmoid", dtype=policy)(x)
        return layers.Multiply(dtype=policy)([x, y])
    if name == "attention":
        return layers.MultiHeadAttention(1, 4, dtype=policy)(x, x)
    smallest = min(x.shape[1:-1], default=9)
    shrinks = arguments.get("padding") == "valid" or name.startswith("Cropping")
    if smallest < 4 and (shrinks or "Pooling" in name):
        return x  # there would be nothing left
    if name == "Conv2DTranspose" and smallest > 20:
        return x
    return getattr(layers, name)(**arguments, dtype=policy)(x)


def _flat(x: Any, policy: str) -> Any:
    if len(x.shape) == 4:
        return layers.GlobalAveragePooling2D(dtype=policy)(x)
    return layers.Flatten(dtype=policy)(x) if len(x.shape) == 3 else x
