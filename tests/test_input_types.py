"""Bytes that a file takes as floats, and bytes that it must take as they are."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from kdlite.lite.input_types import file_dtype
from kdlite.lite.serving import serve


class Doubled(layers.Layer):
    def call(self, x):
        return x + x


class Scaled(layers.Layer):
    def call(self, x):
        return x / 255 - 0.5


def inside(function):
    """The same in a model within the model."""

    def call(x):
        inner = keras.Input(x.shape[1:], dtype="uint8")
        return keras.Model(inner, function(inner))(x)

    return call


def float32(x):
    return ops.cast(x, "float32")


FLOATS = {
    "rescaling": layers.Rescaling(1 / 255),
    "dense": layers.Dense(2),
    "moved": lambda x: layers.Dense(2)(layers.Flatten()(layers.Dropout(0.5)(x))),
    "joined": lambda x: layers.Dense(2)(layers.Concatenate()([x, x])),
    "larger": lambda x: layers.Maximum()([x, layers.Reshape((4,))(x)]) / 2,
    "mixed": lambda x: layers.Multiply()([x, layers.Dense(4)(x)]),
    "operators": lambda x: x / 255 - x * 0.5,
    "moved operators": lambda x: layers.Flatten()(x) * 0.5,
    "nested": inside(lambda x: layers.Rescaling(2.0)(layers.Reshape((2, 2))(x))),
    "own": Scaled(),
}
BYTES = {
    "sum": lambda x: layers.Dense(2)(layers.Add()([x, x])),
    "product": lambda x: float32(layers.Multiply()([x, x])),
    "mean": lambda x: layers.Average()([x, layers.Flatten()(x)]),
    "operators": lambda x: float32(x + x),
    "behind a layer": lambda x: float32(layers.Flatten()(x) + 100),
    "behind layers": lambda x: float32(layers.Concatenate()([x, x]) * 3),
    "dropout": lambda x: float32(layers.Dropout(0.5)(x) + x),
    "nested": inside(lambda x: float32(layers.ReLU()(x) + x)),
    "behind a model": lambda x: float32(inside(layers.Flatten())(x) + 100),
    "own": lambda x: float32(Doubled()(x)),
}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        *((function, "float32") for function in FLOATS.values()),
        *((function, "uint8") for function in BYTES.values()),
    ],
    ids=[
        *(f"{kind}, floats" for kind in FLOATS),
        *(f"{kind}, bytes" for kind in BYTES),
    ],
)
def test_a_file_computes_with_what_its_model_does(function, expected, rng) -> None:
    inputs = keras.Input((4,), dtype="uint8", name="x")
    model = keras.Model(inputs, {"y": function(inputs)})
    assert file_dtype(model, model.inputs[0]) == expected
    x = rng.integers(0, 256, (16, 4)).astype("uint8")
    told, wanted = serve(model)(x)["y"], model.predict(x, verbose=0)["y"]
    np.testing.assert_allclose(told, wanted, rtol=1e-5, atol=1e-4)
