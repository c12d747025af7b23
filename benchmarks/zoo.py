"""Small models of every kind that phones run: what conversion is tried on.

`ZOO` has a function by name; each returns a built model with random weights. All take
values from -1 to 1, or as `samples` says. It is a part of `conversion_matrix.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

layers = keras.layers
Model = Callable[[], keras.Model]
ZOO: dict[str, Model] = {}


def samples(model: keras.Model, count: int = 100, seed: int = 0) -> dict[str, Any]:
    """Draws samples for a model's inputs: normal values, pixels, or ids below 20."""
    rng = np.random.default_rng(seed)
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return {"x": rng.normal(size=(count, 12, 12, 3)).astype("float32")}
    drawn = {}
    for tensor in keras.tree.flatten(inputs):
        shape = (count, *(length or 12 for length in tensor.shape[1:]))
        if tensor.dtype == "int32":
            drawn[tensor.name] = rng.integers(0, 20, shape, np.int32)
        elif tensor.dtype == "uint8" or "pixels" in tensor.name:
            drawn[tensor.name] = rng.integers(0, 256, shape).astype("uint8")
        else:
            drawn[tensor.name] = rng.normal(size=shape).astype("float32")
    return drawn


def model(name: str) -> Callable[[Model], Model]:
    def add(function: Model) -> Model:
        def build() -> keras.Model:
            keras.utils.set_random_seed(1)
            return function()

        ZOO[name] = build
        return build

    return add


def stack(*stack: keras.Layer, shape: Any = (12, 12, 3), **kwargs: Any) -> keras.Model:
    """A Sequential model that ends in 5 scores."""
    inputs = keras.Input(shape, name=kwargs.pop("name", "x"), **kwargs)
    x = inputs
    for layer in stack:
        x = layer(x)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    elif len(x.shape) == 3:
        x = layers.GlobalAveragePooling1D(name="pool")(x)
    elif len(x.shape) == 5:
        x = layers.GlobalAveragePooling3D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")


def conv(filters: int, name: str = "conv", **kwargs: Any) -> keras.Layer:
    return layers.Conv2D(filters, 3, padding="same", name=name, **kwargs)


def trained_norm(model: keras.Model) -> keras.Model:
    """Gives batch normalizations statistics, as training does."""
    rng = np.random.default_rng(2)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, shape),
                    rng.normal(0, 0.1, shape),
                    rng.normal(0, 0.1, shape),
                    rng.uniform(0.5, 1.5, shape),
                ]
            )
    return model


@model("Conv, BN, ReLU6, depthwise")
def _() -> keras.Model:
    return trained_norm(
        stack(
            conv(16, use_bias=False),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(6.0, name="relu"),
            layers.DepthwiseConv2D(3, name="depthwise"),
        )
    )


@model("SeparableConv, LeakyReLU")
def _() -> keras.Model:
    return stack(layers.SeparableConv2D(16, 3, name="separable"), layers.LeakyReLU())


@model("BN first; ReLU before BN")
def _() -> keras.Model:
    return trained_norm(
        stack(
            layers.BatchNormalization(name="first"),
            conv(16, activation="relu"),
            layers.BatchNormalization(name="after"),
        )
    )


@model("swish")
def _() -> keras.Model:
    return stack(conv(16, activation="swish"))


@model("hard swish")
def _() -> keras.Model:
    return stack(conv(16, activation="hard_swish"))


@model("GELU, exact and by tanh")
def _() -> keras.Model:
    return stack(
        conv(16, activation="gelu"),
        conv(16, "conv2"),
        layers.Activation(lambda x: keras.activations.gelu(x, approximate=True)),
    )


@model("ELU")
def _() -> keras.Model:
    return stack(conv(16), layers.ELU(name="elu"))


@model("PReLU")
def _() -> keras.Model:
    return stack(conv(16), layers.PReLU(shared_axes=(1, 2), name="prelu"))


@model("softplus, mish, tanh")
def _() -> keras.Model:
    return stack(
        conv(8, activation="softplus"),
        conv(8, "conv2", activation="mish"),
        conv(8, "conv3", activation="tanh"),
    )


@model("selu")
def _() -> keras.Model:
    return stack(conv(16, activation="selu"))


@model("squeeze and excitation")
def _() -> keras.Model:
    inputs = keras.Input((12, 12, 3), name="x")
    x = conv(16, activation="relu")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(4, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(16, 1, activation="hard_sigmoid", name="expand")(gate)
    x = layers.GlobalAveragePooling2D(name="pool")(
        layers.Multiply(name="gated")([x, gate])
    )
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")


@model("inverted residual")
def _() -> keras.Model:
    inputs = keras.Input((12, 12, 3), name="x")
    x = y = conv(8)(inputs)
    for name, layer in (
        ("expand", layers.Conv2D(24, 1, use_bias=False)),
        ("middle", layers.DepthwiseConv2D(3, padding="same", use_bias=False)),
        ("project", layers.Conv2D(8, 1, use_bias=False)),
    ):
        y = layers.BatchNormalization(name=f"{name}_norm")(layer(y))
        y = y if name == "project" else layers.ReLU(6.0, name=f"{name}_relu")(y)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, y]))
    return trained_norm(
        keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")
    )


@model("ConvNeXt block")
def _() -> keras.Model:
    inputs = keras.Input((12, 12, 3), name="x")
    x = conv(16)(inputs)
    y = layers.DepthwiseConv2D(7, padding="same", name="depthwise")(x)
    y = layers.LayerNormalization(epsilon=1e-6, name="norm")(y)
    y = layers.Dense(32, activation="gelu", name="up")(y)
    y = layers.Dense(16, name="down")(y)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, y]))
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")


@model("ViT block")
def _() -> keras.Model:
    inputs = keras.Input((12, 12, 3), name="x")
    x = layers.Conv2D(16, 4, strides=4, name="patches")(inputs)
    x = layers.Reshape((9, 16), name="tokens")(x)
    y = layers.LayerNormalization(name="norm1")(x)
    y = layers.MultiHeadAttention(2, 8, name="attention")(y, y)
    x = layers.Add(name="add1")([x, y])
    y = layers.LayerNormalization(name="norm2")(x)
    y = layers.Dense(16, name="down")(layers.Dense(32, activation="gelu", name="up")(y))
    x = layers.GlobalAveragePooling1D(name="pool")(layers.Add(name="add2")([x, y]))
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")


@model("attention alone")
def _() -> keras.Model:
    inputs = keras.Input((9, 16), name="x")
    x = layers.MultiHeadAttention(2, 8, name="attention")(inputs, inputs)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")


@model("LayerNormalization")
def _() -> keras.Model:
    return stack(layers.Dense(16), layers.LayerNormalization(name="norm"), shape=(8,))


@model("GroupNormalization")
def _() -> keras.Model:
    return stack(conv(16), layers.GroupNormalization(4, name="norm"))


@model("RMSNormalization")
def _() -> keras.Model:
    return stack(layers.Dense(16), layers.RMSNormalization(name="norm"), shape=(8,))


@model("UnitNormalization")
def _() -> keras.Model:
    return stack(layers.Dense(16), layers.UnitNormalization(name="norm"), shape=(8,))


@model("EinsumDense")
def _() -> keras.Model:
    return stack(
        layers.EinsumDense("abc,cd->abd", (9, 16), name="einsum"), shape=(9, 8)
    )


@model("text: Embedding")
def _() -> keras.Model:
    return stack(layers.Embedding(20, 8, name="embedding"), shape=(10,), dtype="int32")


@model("audio: dilated Conv1D")
def _() -> keras.Model:
    return stack(
        layers.Conv1D(16, 3, activation="relu", name="conv"),
        layers.Conv1D(16, 3, dilation_rate=2, activation="relu", name="dilated"),
        layers.MaxPooling1D(2, name="max"),
        shape=(40, 4),
    )


@model("audio: residual SeparableConv1D")
def _() -> keras.Model:
    inputs = keras.Input((40, 8), name="x")
    x = y = layers.Conv1D(16, 5, strides=2, padding="same", name="stem")(inputs)
    for name in ("first", "second"):
        y = layers.SeparableConv1D(16, 3, padding="same", use_bias=False, name=name)(y)
        y = layers.BatchNormalization(name=f"{name}_norm")(y)
        y = layers.ReLU(name=f"{name}_relu")(y)
    x = layers.GlobalAveragePooling1D(name="pool")(layers.Add(name="add")([x, y]))
    return trained_norm(
        keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")
    )


@model("audio: spectrogram, Conv2D")
def _() -> keras.Model:
    return stack(
        layers.Normalization(mean=0.5, variance=4.0, name="scale"),
        layers.Reshape((24, 10, 1), name="image"),
        layers.Conv2D(16, (7, 3), strides=2, activation="relu", name="conv"),
        layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise"),
        layers.MaxPooling2D(2, name="max"),
        shape=(24, 10),
    )


@model("text: Embedding, Conv1D, mask")
def _() -> keras.Model:
    inputs = keras.Input((10,), dtype="int32", name="x")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.Conv1D(16, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.GlobalMaxPooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")


@model("text: TextVectorization")
def _() -> keras.Model:
    words = layers.TextVectorization(
        max_tokens=20, output_sequence_length=10, vocabulary=["a", "b"], name="words"
    )
    return stack(
        words, layers.Embedding(20, 8, name="embedding"), shape=(), dtype="string"
    )


@model("LSTM")
def _() -> keras.Model:
    return stack(layers.LSTM(8, name="lstm"), shape=(6, 4))


@model("GRU")
def _() -> keras.Model:
    return stack(layers.GRU(8, name="gru"), shape=(6, 4))


@model("bidirectional LSTM")
def _() -> keras.Model:
    return stack(layers.Bidirectional(layers.LSTM(8), name="both"), shape=(6, 4))


@model("masked LSTM")
def _() -> keras.Model:
    return stack(layers.Masking(name="mask"), layers.LSTM(8, name="lstm"), shape=(6, 4))


@model("LSTM, unrolled")
def _() -> keras.Model:
    return stack(layers.LSTM(8, unroll=True, name="lstm"), shape=(4, 4))


@model("GRU, unrolled")
def _() -> keras.Model:
    return stack(layers.GRU(8, unroll=True, name="gru"), shape=(4, 4))


@model("Conv3D")
def _() -> keras.Model:
    return stack(layers.Conv3D(8, 3, name="conv3d"), shape=(6, 6, 6, 2))


@model("grouped Conv2D, Permute")
def _() -> keras.Model:
    return stack(
        conv(16),
        conv(16, "grouped", groups=4),
        layers.Permute((2, 1, 3), name="permute"),
    )


@model("channels first")
def _() -> keras.Model:
    return stack(
        layers.Permute((3, 1, 2), name="permute"),
        layers.DepthwiseConv2D(3, data_format="channels_first", name="depthwise"),
        layers.Permute((2, 3, 1), name="back"),
    )


@model("decoder: nearest")
def _() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="x")
    x = conv(8, activation="relu", strides=2)(inputs)
    x = layers.UpSampling2D(name="up")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="mask")(x), name="net")


@model("decoder: bilinear")
def _() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="x")
    x = conv(8, activation="relu", strides=2)(inputs)
    x = layers.UpSampling2D(interpolation="bilinear", name="up")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="mask")(x), name="net")


@model("decoder: Conv2DTranspose")
def _() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="x")
    x = conv(8, activation="relu", strides=2)(inputs)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="up")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="mask")(x), name="net")


@model("segmentation: U-Net")
def _() -> keras.Model:
    inputs = keras.Input((16, 16, 3), name="x")
    x = skip = conv(8, "down1", activation="relu")(inputs)
    x = layers.MaxPooling2D(2, name="max")(x)
    x = conv(16, "down2", activation="relu")(x)
    x = layers.UpSampling2D(interpolation="bilinear", name="up")(x)
    x = layers.Concatenate(name="both")([x, skip])
    x = conv(8, "join", activation="relu")(x)
    x = layers.Conv2D(3, 1, name="classes")(x)
    return keras.Model(inputs, layers.Softmax(name="mask")(x), name="net")


@model("Resizing, Rescaling")
def _() -> keras.Model:
    return stack(
        layers.Resizing(8, 8, name="resize"),
        layers.Rescaling(1 / 127.5, -1.0, name="scale"),
        conv(16),
        name="pixels",
    )


@model("uint8 input")
def _() -> keras.Model:
    return stack(layers.Rescaling(1 / 255, name="scale"), conv(16), dtype="uint8")


@model("Normalization")
def _() -> keras.Model:
    norm = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])
    return stack(norm, conv(16))


@model("augmentation, Dropout, noise")
def _() -> keras.Model:
    return stack(
        layers.RandomFlip(name="flip"),
        layers.GaussianNoise(0.1, name="noise"),
        conv(16),
        layers.Dropout(0.5, name="dropout"),
    )


@model("nested")
def _() -> keras.Model:
    block = keras.Sequential(
        [keras.Input((12, 12, 16)), conv(16, "inner"), layers.ReLU(name="relu")],
        name="block",
    )
    return stack(conv(16), block)


class _Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv = conv(16, activation="relu")
        self.pool = layers.GlobalAveragePooling2D()
        self.dense = layers.Dense(5)

    def call(self, x: Any) -> Any:
        return self.dense(self.pool(self.conv(x)))


@model("subclassed")
def _() -> keras.Model:
    made = _Subclassed(name="net")
    made(np.zeros((1, 12, 12, 3), "float32"))
    return made


@model("any height and width")
def _() -> keras.Model:
    return stack(conv(16, activation="relu"), shape=(None, None, 3))


@model("mixed_float16")
def _() -> keras.Model:
    return stack(conv(16, activation="relu", dtype="mixed_float16"))


@model("dictionaries in and out")
def _() -> keras.Model:
    inputs = {
        "zeta": keras.Input((8,), name="zeta"),
        "alpha": keras.Input((8,), name="alpha"),
    }
    x = layers.Concatenate(name="both")([inputs["zeta"], inputs["alpha"]])
    outputs = {
        "second": layers.Dense(3, name="second")(x),
        "first": layers.Dense(3, name="first")(x),
    }
    return keras.Model(inputs, outputs, name="net")


@model("two towers")
def _() -> keras.Model:
    query = keras.Input((8,), name="query")
    item = keras.Input((6,), dtype="int32", name="item")
    x = layers.Dense(8, name="query_tower")(query)
    y = layers.Embedding(20, 8, name="items")(item)
    y = layers.Dense(8, name="item_tower")(layers.Flatten(name="flat")(y))
    return keras.Model([query, item], layers.Dot(1, name="score")([x, y]), name="net")


@model("twelve heads")
def _() -> keras.Model:
    inputs = keras.Input((12, 12, 3), name="x")
    x = layers.GlobalAveragePooling2D(name="pool")(conv(16, activation="relu")(inputs))
    heads = [layers.Dense(3, name=f"head_{k}")(x) for k in range(12)]
    return keras.Model(inputs, heads, name="net")


@model("detection: boxes and scores")
def _() -> keras.Model:
    inputs = keras.Input((16, 16, 3), name="x")
    x = conv(16, activation="relu", strides=2)(inputs)
    boxes = layers.Reshape((64, 4), name="boxes")(layers.Conv2D(4, 1, name="box")(x))
    scores = layers.Conv2D(3, 1, activation="sigmoid", name="class")(x)
    scores = layers.Reshape((64, 3), name="scores")(scores)
    return keras.Model(inputs, {"boxes": boxes, "scores": scores}, name="net")


@model("argmax inside")
def _() -> keras.Model:
    inputs = keras.Input((12, 12, 3), name="x")
    x = layers.GlobalAveragePooling2D(name="pool")(conv(16)(inputs))
    x = layers.Dense(5, name="scores")(x)
    return keras.Model(inputs, keras.ops.argmax(x, axis=-1), name="net")


@model("shared layer")
def _() -> keras.Model:
    inputs = [keras.Input((8,), name=name) for name in ("left", "right")]
    shared = layers.Dense(16, activation="relu", name="shared")
    x = layers.Add(name="add")([shared(x) for x in inputs])
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="net")
