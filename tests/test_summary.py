"""Costs by layer, against hand-counted layers and against the exported file."""

from __future__ import annotations

import keras
import pytest
from converting import converted
from keras import layers

from kdlite.compress.summary import summary
from kdlite.lite.tflite_reader import inspect

# Layer, shape of one sample, and what it costs, counted by hand: places in the output
# times what each sums up, and numbers in kernels and biases.
HAND_COUNTED = {
    "conv": (layers.Conv2D(8, 3, padding="same"), (6, 5, 4), 30 * 9 * 4 * 8, 296),
    "strided": (layers.Conv2D(8, 3, strides=2), (7, 7, 4), 9 * 9 * 4 * 8, 296),
    "grouped": (layers.Conv2D(8, 1, groups=4), (6, 5, 4), 30 * 1 * 8, 16),
    "dilated": (layers.Conv2D(2, 2, dilation_rate=3), (6, 6, 1), 9 * 4 * 2, 10),
    "conv_1d": (layers.Conv1D(8, 5), (16, 3), 12 * 5 * 3 * 8, 128),
    "conv_3d": (layers.Conv3D(2, 2), (3, 3, 3, 2), 8 * 8 * 2 * 2, 34),
    "depthwise": (
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        (6, 5, 4),
        12 * 9 * 8,
        80,
    ),
    "separable": (
        layers.SeparableConv2D(8, 3),
        (6, 5, 4),
        12 * (9 * 4 + 4 * 8),
        36 + 40,
    ),
    "transposed": (
        layers.Conv2DTranspose(8, 3, strides=2),
        (5, 4, 3),
        20 * 9 * 3 * 8,
        224,
    ),
    "dense": (layers.Dense(7), (5,), 35, 42),
    "dense_3d": (layers.Dense(7), (3, 5), 3 * 35, 42),
    "einsum": (layers.EinsumDense("abc,cd->abd", (None, 7)), (3, 5), 3 * 35, 35),
    "einsum_dots": (layers.EinsumDense("...x,xy->...y", 7), (2, 3, 5), 6 * 35, 35),
    "embedding": (layers.Embedding(50, 4), (6,), 0, 200),
    "lstm": (layers.LSTM(4), (6, 3), 6 * 4 * (3 * 4 + 4 * 4), 128),
    "gru": (layers.GRU(4, reset_after=False), (6, 3), 6 * 3 * (3 * 4 + 4 * 4), 96),
    "bidirectional": (
        layers.Bidirectional(layers.SimpleRNN(4)),
        (6, 3),
        2 * 6 * (3 * 4 + 4 * 4),
        64,
    ),
    "by_step": (layers.TimeDistributed(layers.Dense(7)), (3, 5), 3 * 35, 42),
    "norm": (layers.BatchNormalization(), (6, 5, 4), 0, 16),
    "pooling": (layers.AveragePooling2D(2), (6, 6, 4), 0, 0),
}


@pytest.mark.parametrize("name", HAND_COUNTED)
def test_costs_are_those_counted_by_hand(name) -> None:
    layer, shape, macs, params = HAND_COUNTED[name]
    model = keras.Sequential([keras.Input(shape), layer])
    (row,) = summary(model).layers
    assert (row.macs, row.params) == (macs, params)
    assert row.kind == type(layer).__name__


def test_attention_and_products() -> None:
    query, value = keras.Input((6, 8)), keras.Input((5, 4))
    attention = layers.MultiHeadAttention(2, 3, name="heads")(query, value)
    plain = layers.Attention(name="plain")([value, value])
    product = keras.ops.matmul(attention, keras.ops.transpose(query, (0, 2, 1)))
    model = keras.Model([query, value], [product, plain])
    macs = {row.name: row.macs for row in summary(model).layers}
    # Projections of query, key, value and output, and then each pair of steps twice.
    assert macs["heads"] == 6 * 8 * 6 + 2 * 5 * 4 * 6 + 6 * 6 * 8 + 2 * 6 * 5 * 2 * 3
    assert macs["plain"] == 5 * 5 * 4 * 2
    assert macs["matmul"] == 6 * 6 * 8


def test_shared_layers_compute_twice_and_count_once() -> None:
    inputs = keras.Input((4,))
    dense = layers.Dense(4, name="twice")
    found = summary(keras.Model(inputs, dense(dense(inputs)), name="model"))
    assert [(row.params, row.macs) for row in found.layers] == [(20, 16), (0, 16)]
    assert (found.params, found.macs) == (20, 32)


def test_parameters_are_those_that_keras_counts_and_macs_those_of_the_file() -> None:
    base = keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=5)
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, base(inputs))
    found = summary(model)
    assert found.params == model.count_params()
    assert found.macs == inspect(converted(model)).macs
    assert found.unknown == ()
    assert found.layers[0].name.startswith(f"{base.name}/")


def test_what_is_not_known_is_said() -> None:
    class Own(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 2))

        def call(self, x):
            return x @ self.kernel

    inputs = keras.Input((None, None, 3))
    x = Own(name="own")(layers.Conv2D(4, 1, name="any_size")(inputs))
    found = summary(keras.Model(inputs, x))
    assert found.unknown == ("any_size", "own")
    assert "at least 0" in str(found)
    assert found.to_dict()["unknown"] == ["any_size", "own"]
    assert found.to_dict()["layers"][1]["params"] == 4 * 2


def test_only_keras_models_are_counted() -> None:
    with pytest.raises(TypeError, match="must be a Keras model. Received: str. Load"):
        summary("model.keras")
