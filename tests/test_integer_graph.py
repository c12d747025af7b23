"""Reading and fusing a student, and what cannot be quantized."""

from __future__ import annotations

import operator

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.compress.integer_graph import IntegerGraph


def model(*stack, shape=(6, 6, 4)):
    return keras.Sequential([keras.Input(shape), *stack], name="net")


def ops_of(student):
    return [(op.kind, op.name) for op in IntegerGraph(student).ops]


def test_convolution_batch_norm_and_relu_become_two_operations():
    student = model(
        layers.Conv2D(4, 3, name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(name="relu"),
    )
    graph = IntegerGraph(student)
    assert [(op.kind, op.name) for op in graph.ops] == [
        ("kernel", "bn"),
        ("relu", "relu"),
    ]
    assert graph.ops[0].batch_norm is not None


def test_batch_norm_folds_into_nothing_but_the_kernel_right_before_it():
    inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 3, activation="relu", name="a")(inputs)
    x = layers.BatchNormalization(name="after_relu")(x)
    y = layers.Conv2D(4, 3, name="used_twice")(x)
    z = layers.BatchNormalization(name="beside")(y)
    student = keras.Model(inputs, layers.Add(name="sum")([y, z]))
    assert ops_of(student) == [
        ("kernel", "a_linear"),
        ("relu", "a"),
        ("kernel", "after_relu"),
        ("kernel", "used_twice"),
        ("kernel", "beside"),
        ("add", "sum"),
    ]


@pytest.mark.parametrize(
    ("stack", "absorbed"),
    [
        ([layers.Rescaling(0.5, -1.0), layers.Conv2D(4, 3)], True),
        ([layers.Rescaling(0.5), layers.Conv2D(4, 3, padding="same")], True),
        # Folded, the padding would add zeros before the offset instead of after it.
        ([layers.Rescaling(0.5, -1.0), layers.Conv2D(4, 3, padding="same")], False),
        ([layers.Rescaling(0.5), layers.ZeroPadding2D(), layers.Conv2D(4, 3)], True),
        (
            [layers.Rescaling(2.0, 1.0), layers.ZeroPadding2D(), layers.Conv2D(4, 3)],
            False,
        ),
        ([layers.Rescaling(0.5, 1.0), layers.Flatten(), layers.Dense(2)], True),
        ([layers.Rescaling(np.arange(1.0, 5.0)), layers.Conv2D(4, 1)], True),
        ([layers.Rescaling(np.arange(1.0, 5.0)), layers.Conv2D(4, 1, groups=2)], False),
        (
            [layers.Rescaling(np.arange(1.0, 5.0)), layers.Flatten(), layers.Dense(2)],
            False,
        ),
        ([layers.Rescaling(0.0, 1.0), layers.Conv2D(4, 3)], False),
        ([layers.Rescaling(0.5), layers.MaxPooling2D(), layers.Conv2D(4, 3)], False),
    ],
)
def test_a_rescaling_goes_into_the_kernel_where_that_is_exact(stack, absorbed):
    kernels = [op for op in IntegerGraph(model(*stack)).ops if op.kind == "kernel"]
    assert len(kernels) == (1 if absorbed else 2)
    assert not absorbed or np.any(kernels[0].scale != 1.0)
    assert absorbed or kernels[0].margin > 0


def test_two_rescalings_are_composed():
    student = model(
        layers.Rescaling(2.0, 1.0), layers.Rescaling(3.0, 5.0), layers.Dense(2)
    )
    (kernel,) = IntegerGraph(student).ops
    assert (kernel.scale, kernel.offset) == (6.0, 8.0)


def test_models_in_models_are_read_through():
    inner = model(
        layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="bn")
    )
    inputs = keras.Input((6, 6, 4))
    outer = keras.Model(inputs, layers.ReLU(name="relu")(inner(inputs, training=False)))
    graph = IntegerGraph(model(outer, layers.Flatten(name="flat")))
    assert [op.name for op in graph.ops] == ["bn", "relu", "flat"]
    # What the call held in inference mode stays there.
    assert graph.ops[0].frozen_statistics


def test_dropout_held_in_inference_mode_is_none():
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(layers.Dense(4, name="d")(inputs), training=False)
    assert ops_of(keras.Model(inputs, x)) == [("kernel", "d")]


@pytest.mark.parametrize(
    "operation",
    [operator.add, operator.sub, operator.mul, operator.truediv],
)
@pytest.mark.parametrize(
    "number", [2.0, 2, np.float32(2), np.float64(2), np.int64(2), np.array(2.0)]
)
def test_numbers_are_numbers_whoever_they_come_from(operation, number):
    inputs = keras.Input((4,))
    outputs = layers.Dense(3, name="d")(operation(inputs, number))
    (op,) = IntegerGraph(keras.Model(inputs, outputs)).ops
    wanted = {"add": (1, 2), "sub": (1, -2), "mul": (2, 0), "truediv": (0.5, 0)}
    assert (op.kind, op.name) == ("kernel", "d")
    assert (op.scale, op.offset) == wanted[operation.__name__]


class OwnDense(layers.Dense):
    pass


class OwnCall(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


class OwnFunctional(keras.Model):
    def __init__(self):
        inputs = keras.Input((4,))
        super().__init__(inputs, layers.Dense(2)(inputs), name="own_functional")

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) + 1


def in_training_mode():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dropout(0.5, name="mc")(inputs, training=True))


def shared(second):
    inputs = keras.Input((4,))
    dense = layers.Dense(4, name="twice")
    norm = layers.BatchNormalization(name="norm")
    return keras.Model(inputs, second(norm(dense(inputs)), dense, norm))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: keras.Sequential([layers.Dense(2)], name="s"), "built.*model='s'"),
        (OwnCall, "'own' of the subclass OwnCall.*keras.Model.inputs, outputs"),
        (OwnFunctional, "'own_functional' of the subclass OwnFunctional"),
        (
            lambda: model(OwnCall(), shape=(4,)),
            "'own' of the subclass OwnCall.*Rebuild it",
        ),
        (
            lambda: model(OwnDense(2, name="d")),
            "not have this layer. .*'d' of class OwnDense. Leave it in float, over",
        ),
        (
            lambda: model(layers.ConvLSTM1D(2, 3, name="loop"), shape=(4, 8, 2)),
            "layer 'loop' of class ConvLSTM1D",
        ),
        (
            lambda: keras.Model(
                (x := keras.Input((4, 8))),
                layers.MultiHeadAttention(2, 2, name="mha")(x, x),
            ),
            "layer 'mha' of class MultiHeadAttention",
        ),
        (
            lambda: keras.Model((x := keras.Input((4,))), keras.ops.exp(x + 1.0)),
            "layer .* of class Exp",
        ),
        (
            lambda: model(layers.Dense(2, name="d", dtype="mixed_float16")),
            "dtype policy float32. .*'d' with 'mixed_float16'",
        ),
        (
            lambda: model(layers.MaxPooling2D(data_format="channels_first", name="p")),
            "'p' cannot be quantized as it is.*channels_first'. Use 'channels_last'",
        ),
        (
            lambda: model(layers.Dense(2, activity_regularizer="l2")),
            "activity regularizer. Remove it",
        ),
        (
            lambda: model(layers.BatchNormalization(axis=1)),
            "axis=1.* Use the last axis",
        ),
        (lambda: model(layers.BatchNormalization(renorm=True)), "renorm=True"),
        (
            lambda: model(layers.Normalization(mean=0.0, variance=1.0, invert=True)),
            "Normalization with .*invert=True",
        ),
        (lambda: model(layers.ReLU(1.0)), "max_value=1.0.*Use ReLU or ReLU6"),
        (lambda: model(layers.ReLU(negative_slope=0.1)), "Use ReLU or ReLU6"),
        (
            lambda: model(layers.Dense(2, activation="selu", name="d")),
            "'relu', 'relu6', 'softmax', .*, 'silu', .*'linear'.*'selu' in layer 'd'",
        ),
        (
            lambda: model(layers.RandomFlip(name="flip")),
            "does not have this layer.*'flip' of class RandomFlip.*in the data",
        ),
        (in_training_mode, "held in training mode. Received: layer 'mc'"),
        (
            lambda: keras.Model((x := keras.Input((4,), dtype="int64")), x),
            "must be float32, uint8 or, for an Embedding, int32. .*int64",
        ),
        (
            lambda: shared(lambda x, dense, norm: dense(x)),
            "same neighbours. Received: layer 'twice' called twice, for 'norm' and",
        ),
        (
            lambda: shared(lambda x, dense, norm: norm(layers.Dense(4)(x))),
            "layer 'norm' called twice",
        ),
    ],
)
def test_what_cannot_be_quantized_is_an_error_that_names_it(make, text):
    with pytest.raises(ValueError, match=text):
        IntegerGraph(make())
