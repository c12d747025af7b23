"""Each layer of a phone's student: the exported integers are the Keras model's."""

from __future__ import annotations

import ast
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops
from quantizing import (
    assert_same_within_one_step,
    calibrate,
    convert,
    operations,
    operations_behind,
    randomize,
    run_floats,
    run_lite,
)

from kdlite.compress.qat import float_layers, for_export, quantize_aware
from kdlite.lite.convert import export
from kdlite.lite.op_versions import needed_runtime
from kdlite.lite.tflite_reader import inspect

SEED = 20240229
IMAGE, SEQUENCE, VECTOR = (8, 8, 4), (12, 4), (6,)


def after(*made, shape=IMAGE):
    """A model of layers in a row."""
    return lambda: keras.Sequential([keras.Input(shape), *(make() for make in made)])


def conv(activation=None, **options):
    return lambda: layers.Conv2D(8, 3, activation=activation, **options)


def squeeze_and_excitation(gate):
    """The block of MobileNetV3: a gate for each channel, of the mean of all places."""

    def make():
        inputs = keras.Input(IMAGE)
        x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
        x = layers.Activation("hard_silu")(layers.BatchNormalization()(x))
        g = layers.GlobalAveragePooling2D(keepdims=True)(x)
        g = layers.Conv2D(4, 1, activation="relu")(g)
        g = layers.Conv2D(8, 1, activation=gate)(g)
        return keras.Model(inputs, layers.Conv2D(4, 1)(layers.Multiply()([x, g])))

    return make


def of_two(layer, *activations):
    """A layer of two tensors, each with a range of its own."""

    def make():
        inputs = keras.Input(IMAGE)
        parts = [
            layers.Conv2D(8, 1, activation=activation)(inputs)
            for activation in activations
        ]
        return keras.Model(inputs, layers.Conv2D(4, 1)(layer()(parts)))

    return make


def inverted_residual():
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(16, 1, use_bias=False)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(x))
    return keras.Model(inputs, layers.Add()([inputs, x]))


def operators():
    """A gate as MobileNetV3 of Keras has it, and arithmetic with numbers."""
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(8, 1)(inputs)
    gate = layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
    x = ops.relu(x * gate - 0.5) / 2.0
    return keras.Model(inputs, layers.Conv2D(4, 1)(ops.maximum(1.0 - x, x)))


def decoder():
    """Down, up again, and joined: a probability for each pixel."""
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    y = layers.Conv2DTranspose(8, 3, strides=2, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    z = layers.UpSampling2D(interpolation="bilinear")(x)
    x = layers.Concatenate()([y, z, inputs])
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def audio():
    inputs = keras.Input((32, 4))
    x = layers.Conv1D(8, 3, padding="causal", dilation_rate=2, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling1D(2)(x)
    x = layers.SeparableConv1D(8, 3, strides=2, padding="same", activation="silu")(x)
    x = layers.AveragePooling1D(2)(layers.DepthwiseConv1D(3, padding="same")(x))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


# Kind: a model, and the integer operations that only it has.
KINDS = {
    "conv_dilated": (after(conv(dilation_rate=2)), "CONV_2D"),
    "conv_grouped": (after(conv(groups=2)), "CONV_2D"),
    "depthwise": (after(lambda: layers.DepthwiseConv2D(3)), "DEPTHWISE_CONV_2D"),
    "depthwise_multiplied": (
        after(lambda: layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2)),
        "DEPTHWISE_CONV_2D",
    ),
    "depthwise_dilated": (
        after(lambda: layers.DepthwiseConv2D(2, dilation_rate=2, padding="same")),
        "DEPTHWISE_CONV_2D",
    ),
    "separable": (after(lambda: layers.SeparableConv2D(8, 3)), "DEPTHWISE_CONV_2D"),
    "transposed": (
        after(lambda: layers.Conv2DTranspose(8, 3, strides=2, padding="same")),
        "TRANSPOSE_CONV",
    ),
    "transposed_norm": (
        after(
            lambda: layers.Rescaling(0.5),
            lambda: layers.Conv2DTranspose(8, 2, strides=2, use_bias=False),
            layers.BatchNormalization,
        ),
        "TRANSPOSE_CONV",
    ),
    "transposed_1d": (
        after(lambda: layers.Conv1DTranspose(8, 3, strides=2), shape=SEQUENCE),
        "TRANSPOSE_CONV",
    ),
    "conv_1d": (after(lambda: layers.Conv1D(8, 3), shape=SEQUENCE), "CONV_2D"),
    "conv_1d_causal": (
        after(lambda: layers.Conv1D(8, 3, padding="causal"), shape=SEQUENCE),
        "PAD",
    ),
    "depthwise_1d": (
        after(lambda: layers.DepthwiseConv1D(3), shape=SEQUENCE),
        "DEPTHWISE_CONV_2D",
    ),
    "separable_1d": (
        after(lambda: layers.SeparableConv1D(8, 3), shape=SEQUENCE),
        "DEPTHWISE_CONV_2D",
    ),
    "dense": (after(lambda: layers.Dense(8), shape=VECTOR), "FULLY_CONNECTED"),
    "einsum": (
        after(
            lambda: layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d"),
            shape=SEQUENCE,
        ),
        "FULLY_CONNECTED",
    ),
    "einsum_heads": (
        after(
            lambda: layers.EinsumDense(
                "abc,cde->abde", (None, 2, 3), bias_axes="de", activation="relu"
            ),
            lambda: layers.EinsumDense("abde,dec->abc", (None, 8)),
            shape=SEQUENCE,
        ),
        "RESHAPE",
    ),
    "leaky_relu": (after(conv(), lambda: layers.LeakyReLU(0.1)), "LEAKY_RELU"),
    "leaky_relu_function": (after(conv("leaky_relu")), "LEAKY_RELU"),
    "prelu": (after(conv(), lambda: layers.PReLU(shared_axes=(1, 2))), "PRELU"),
    "hard_silu": (after(conv("hard_silu"), conv()), "HARD_SWISH"),
    "hard_sigmoid": (after(conv("hard_sigmoid"), conv()), "DEPTHWISE_CONV_2D"),
    "silu": (after(conv("silu"), conv()), "LOGISTIC"),
    "gelu": (after(conv("gelu"), conv()), "GELU"),
    "sigmoid": (after(conv("sigmoid"), conv()), "LOGISTIC"),
    "tanh": (after(conv("tanh"), conv()), "TANH"),
    "tanh_last": (after(conv("tanh")), "TANH"),
    "softmax": (after(conv("softmax"), conv()), "SOFTMAX"),
    "gate_sigmoid": (squeeze_and_excitation("sigmoid"), "MUL"),
    "gate_hard_sigmoid": (squeeze_and_excitation("hard_sigmoid"), "MUL"),
    "multiply": (of_two(layers.Multiply, "relu", None), "MUL"),
    "subtract": (of_two(layers.Subtract, "relu", None), "SUB"),
    "average": (of_two(layers.Average, "relu", None), "ADD"),
    "maximum": (of_two(layers.Maximum, "relu", None), "MAXIMUM"),
    "minimum": (of_two(layers.Minimum, None, "sigmoid"), "MINIMUM"),
    "concatenated_gates": (of_two(layers.Concatenate, None, "tanh"), "CONCATENATION"),
    "up_nearest": (after(conv(), layers.UpSampling2D), "TILE"),
    "up_bilinear": (
        after(conv(), lambda: layers.UpSampling2D(interpolation="bilinear")),
        "RESIZE_BILINEAR",
    ),
    "up_1d": (after(layers.UpSampling1D, shape=SEQUENCE), "TILE"),
    "resizing": (after(lambda: layers.Resizing(5, 5), conv()), "RESIZE_BILINEAR"),
    "pooling_1d": (
        after(
            lambda: layers.MaxPooling1D(2),
            lambda: layers.AveragePooling1D(2),
            layers.GlobalMaxPooling1D,
            shape=SEQUENCE,
        ),
        "AVERAGE_POOL_2D",
    ),
    "crop_and_pad": (
        after(lambda: layers.Cropping2D(1), lambda: layers.ZeroPadding2D(2)),
        "PAD",
    ),
    "crop_and_pad_1d": (
        after(
            lambda: layers.Cropping1D(1),
            lambda: layers.ZeroPadding1D(2),
            shape=SEQUENCE,
        ),
        "PAD",
    ),
    "permute": (after(lambda: layers.Permute((2, 3, 1))), "TRANSPOSE"),
    "repeat": (after(lambda: layers.RepeatVector(3), shape=VECTOR), "TILE"),
    "operators": (operators, "MUL"),
    "inverted_residual": (inverted_residual, "ADD"),
    "decoder": (decoder, "TRANSPOSE_CONV"),
    "audio": (audio, "DEPTHWISE_CONV_2D"),
}


def several(kinds, size=13):
    """Kinds that share a model, as to make and convert one takes a second."""
    kinds = list(kinds)
    groups = [kinds[k : k + size] for k in range(0, len(kinds), size)]
    return pytest.mark.parametrize(
        "kinds", groups, ids=[f"{group[0]}-{group[-1]}" for group in groups]
    )


def side_by_side(kinds, count=48):
    """A model with an input and an output for each kind, and samples for it."""
    inputs, outputs, samples = [], [], []
    for kind in kinds:
        # The weights and samples of a kind are its own, whatever it stands beside.
        keras.utils.set_random_seed(SEED)
        rng = np.random.default_rng(SEED)
        student = KINDS[kind][0]()
        randomize(student, rng)
        for variable in student.variables:
            if variable.path.endswith("alpha"):
                variable.assign(rng.uniform(0.1, 0.4, variable.shape))
        shape = student.input_shape[1:]
        inputs.append(keras.Input(shape))
        outputs.append(student(inputs[-1]))
        samples.append(rng.normal(0, 1, (count, *shape)).astype("float32"))
    return keras.Model(inputs, outputs), samples


def assert_little_is_lost(kinds, exact, rounded, share):
    """What rounding changes is a small share of the values' spread."""
    for kind, y, z in zip(kinds, exact, rounded, strict=True):
        assert np.abs(y - z).mean() < share * np.std(y), kind


# In 8 bits they are in `test_qat.py`, where layers fuse.
FUSED = ("conv_dilated", "conv_grouped", "depthwise_dilated", "separable", "dense")


@several(kind for kind in KINDS if kind not in FUSED)
def test_the_file_computes_what_the_keras_model_does(kinds, tmp_path) -> None:
    student, x = side_by_side(kinds)
    # Not left open: what follows a Resizing would take it to be training.
    exact = student(x, training=False)
    qat = quantize_aware(student)
    # Before training nothing is rounded but to ranges that an operation has by itself.
    for kind, y, z in zip(kinds, exact, qat(x, training=False), strict=True):
        np.testing.assert_allclose(z, y, atol=0.02, err_msg=kind)
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path))
    assert operations(content)[1] <= {"int8", "int32"}
    for k, kind in enumerate(kinds):
        assert KINDS[kind][1] in operations_behind(content, f"out_{k}")
    rounded = assert_same_within_one_step(qat, content, *x)
    assert_little_is_lost(kinds, exact, rounded, 0.06)


# One of each operation that 16 bits have a kernel of their own for.
WITH_16_BITS = (
    *("conv_grouped", "depthwise_multiplied", "depthwise_dilated", "transposed_norm"),
    *("dense", "einsum_heads", "leaky_relu", "hard_silu", "gate_hard_sigmoid"),
    *("multiply", "subtract", "maximum", "up_nearest", "pooling_1d", "crop_and_pad"),
    *("permute", "operators", "inverted_residual", "decoder"),
    *("sigmoid", "tanh", "silu", "audio", "tanh_last", "softmax"),
)


def file_of_16_bits(kinds, folder):
    """The quantization-aware model, its file, samples, and what the student gives."""
    student, x = side_by_side(kinds, 32)
    qat = quantize_aware(student, "int16x8")
    calibrate(qat, x)
    content = convert(for_export(qat), str(folder), recipe="int16x8")
    names, dtypes = operations(content)
    # Weights of 8 bits, and biases of 64.
    assert dtypes <= {"int16", "int8", "int64", "int32"}
    assert not {"CONCATENATION", "TILE", "HARD_SWISH"} & set(names)
    return qat, content, x, student(x, training=False)


def assert_16_bits_are_finer(kinds, content, x, exact, rounded):
    """Few steps are lost, and of the values what weights of 8 bits lose."""
    results = run_lite(content, *x)[0]
    for kind, y, (values, scale, zero) in zip(kinds, rounded, results, strict=True):
        steps = np.abs(values - y.numpy()) / scale
        assert zero == 0
        assert np.sqrt(np.mean(steps**2)) < 2, kind
        assert steps.max() < 8, kind
    assert_little_is_lost(kinds, exact, rounded, 0.02)


@several(WITH_16_BITS)
def test_activations_of_16_bits(kinds, tmp_path) -> None:
    qat, content, x, exact = file_of_16_bits(kinds, tmp_path)
    rounded = assert_same_within_one_step(qat, content, *x)
    assert_16_bits_are_finer(kinds, content, x, exact, rounded)


# Each kernel: what comes behind one is as with weights of 8 bits.
WITH_4_BITS = (
    *("conv_grouped", "conv_dilated", "depthwise", "separable", "transposed"),
    *("conv_1d", "dense", "einsum", "einsum_heads", "hard_sigmoid", "multiply"),
    *("decoder", "audio"),
)


@several(WITH_4_BITS)
def test_weights_of_4_bits(kinds, tmp_path) -> None:
    student, x = side_by_side(kinds)
    qat = quantize_aware(student, "int4")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int4")
    assert operations(content)[1] <= {"int8", "int32"}
    assert_same_within_one_step(qat, content, *x)
    found = inspect(content)
    stored = {"CONV_2D": set(), "DEPTHWISE_CONV_2D": set(), "TRANSPOSE_CONV": set()}
    for op in found.ops:
        if op.name in stored:
            stored[op.name].add(found.tensors_of(op)[1].dtype)
    assert stored["CONV_2D"] <= {"int4"}
    assert stored["DEPTHWISE_CONV_2D"] | stored["TRANSPOSE_CONV"] <= {"int8"}
    for k in range(len(kinds)):
        assert set(stored) & set(operations_behind(content, f"out_{k}"))
    assert needed_runtime(found).runs_on("2.16.1")


def of_one(shape, function):
    """A model of what a function makes of one input."""

    def make():
        inputs = keras.Input(shape)
        return keras.Model(inputs, function(inputs))

    return make


def of_inputs(function, *shapes):
    def make():
        inputs = [keras.Input(shape) for shape in shapes]
        return keras.Model(inputs, function(inputs))

    return make


def relu6(x):
    return layers.ReLU(6.0)(x)


def flat(x):
    return layers.Flatten()(x)


def used_and_cut(x):
    x = layers.Conv2D(4, 1)(x)
    return [x, relu6(x), layers.ReLU()(x)]


def used_and_softened(x):
    x = layers.Softmax()(x)
    return [x, layers.Dense(4)(x)]


# Where the operations of a file are other than a layer says: what the converter makes
# of a layer depends on what is before it, and on shapes.
POSITIONS = {
    "relu6_first": of_one(IMAGE, relu6),
    "relu6_behind_gate": of_one(IMAGE, lambda x: relu6(ops.sigmoid(x))),
    "relu6_behind_pooling": of_one(
        IMAGE, lambda x: relu6(layers.AveragePooling2D(2)(x))
    ),
    "relu6_behind_flatten": of_one(IMAGE, lambda x: relu6(flat(x))),
    "relu6_behind_concatenation": of_one(
        IMAGE, lambda x: relu6(layers.Concatenate()([x, layers.Conv2D(4, 1)(x)]))
    ),
    # TFLite has a ReLU in a product and a difference, too.
    "relu6_of_square": of_one(IMAGE, lambda x: relu6(x * x)),
    "relu_of_product": of_inputs(
        lambda x: layers.ReLU()(layers.Multiply()(x)), IMAGE, (1, 1, 4)
    ),
    # Its inputs have steps as fine as its output.
    "relu6_of_difference": of_inputs(
        lambda x: relu6(layers.Subtract()([relu6(y) for y in x])), IMAGE, IMAGE
    ),
    "relu6_of_sequence": of_one(SEQUENCE, relu6),
    "relu6_beside_others": of_one(IMAGE, used_and_cut),
    "relu6_of_five_axes": of_one(
        IMAGE, lambda x: relu6(layers.Reshape((8, 8, 2, 2))(x))
    ),
    "norm_of_five_axes": of_one(
        IMAGE, lambda x: layers.BatchNormalization()(layers.Reshape((4, 2, 8, 4))(x))
    ),
    "softmax_within": of_one(VECTOR, used_and_softened),
    "sum_of_vectors": of_inputs(layers.Add(), VECTOR, VECTOR),
    "mean_of_vectors": of_inputs(layers.Average(), VECTOR, VECTOR, VECTOR),
    "operator_of_vectors": of_inputs(lambda x: x[0] + x[1], VECTOR, VECTOR),
    "sum_with_channels": of_inputs(layers.Add(), IMAGE, (1, 1, 4)),
    "sum_with_places": of_inputs(layers.Add(), (8, 8, 1), IMAGE),
    # Here Keras adds along another axis where the batch is 1.
    "sum_with_column": of_inputs(layers.Add(), (4, 4), (4, 1)),
    "mean_with_number": of_inputs(layers.Average(), VECTOR, (1,)),
    "doubled_vector": of_one(IMAGE, lambda x: flat(x) + flat(x)),
    "squared_vector": of_one(IMAGE, lambda x: (lambda y: y * y)(flat(x))),
    "doubled_sequence": of_one(
        SEQUENCE, lambda x: (lambda y: y + y)(layers.Conv1D(4, 3)(x))
    ),
    "squared_sequence": of_one(
        SEQUENCE, lambda x: (lambda y: y * y)(layers.AveragePooling1D(2)(x))
    ),
    # With 4 bits a dense layer is a convolution.
    "doubled_dense": of_one(
        IMAGE, lambda x: (lambda y: y + y)(layers.Dense(4, activation="relu")(x))
    ),
    "dense_of_five_axes": of_one(
        IMAGE, lambda x: layers.Dense(4)(layers.Reshape((4, 2, 8, 4))(x))
    ),
    "relu_of_transposed_without_bias": of_one(
        IMAGE,
        lambda x: layers.Conv2DTranspose(4, 2, activation="relu", use_bias=False)(x),
    ),
    # The bias of one channel.
    "conv_1d_of_one_channel": of_one(
        SEQUENCE,
        lambda x: layers.Conv1D(1, 3, strides=2, padding="causal", activation="relu")(
            layers.Conv1D(1, 3)(x)
        ),
    ),
    "depthwise_1d_of_one_channel": of_one(
        SEQUENCE,
        lambda x: layers.DepthwiseConv1D(3, strides=2, padding="same")(
            layers.Dense(1)(x)
        ),
    ),
    "transposed_1d_of_one_channel": of_one(
        SEQUENCE,
        lambda x: [
            layers.Conv1DTranspose(1, 3, strides=2, activation=activation, **options)(x)
            for activation in (None, "relu", "relu6")
            for options in ({}, {"padding": "same", "output_padding": 1})
        ],
    ),
    "relu_of_transposed_1d": of_one(
        SEQUENCE, lambda x: layers.Conv1DTranspose(3, 3, activation="relu")(x)
    ),
    # Reshapes of two tensors with one range.
    "sum_of_gates": of_one(
        SEQUENCE,
        lambda x: layers.Add()(
            [layers.Activation("hard_sigmoid")(y) for y in (x, layers.Conv1D(4, 1)(x))]
        ),
    ),
    "product_of_gates": of_one(
        IMAGE,
        lambda x: layers.Multiply()(
            [flat(ops.sigmoid(y)) for y in (x, layers.Conv2D(4, 1)(x))]
        ),
    ),
    # Their ranges end where the ReLU6 does.
    "sum_of_relu6": of_one(
        SEQUENCE,
        lambda x: (
            relu6(layers.Conv1D(4, 1, kernel_initializer="ones")(x))
            + relu6(layers.Conv1D(4, 3, padding="same")(x) * 9.0)
        ),
    ),
    "product_of_relu6": of_one(
        IMAGE,
        lambda x: (
            flat(relu6(layers.Conv2D(4, 1, kernel_initializer="ones")(x)))
            * flat(relu6(layers.Conv2D(4, 3, padding="same")(x) * 9.0))
        ),
    ),
    "mean_of_mean": of_one(VECTOR, lambda x: (lambda y: (y + y) / 2.0)((x + x) / 2.0)),
    "difference_to_pooling": of_one(
        IMAGE,
        lambda x: flat(x) - flat(layers.MaxPooling2D(3, 1, padding="same")(x)),
    ),
    "norm_twice": of_one(
        IMAGE, lambda x: (lambda norm: norm(norm(x)))(layers.BatchNormalization())
    ),
}


@pytest.mark.parametrize("recipe", ["int8", "int16x8", "int4"])
def test_a_layer_is_the_same_in_every_position(recipe, tmp_path) -> None:
    inputs, outputs, x = [], [], []
    for make in POSITIONS.values():
        # Each has weights and samples of its own, whatever it stands beside.
        keras.utils.set_random_seed(SEED)
        rng = np.random.default_rng(SEED)
        student = make()
        randomize(student, rng)
        taken = [keras.Input(x.shape[1:]) for x in student.inputs]
        inputs += taken
        outputs += keras.tree.flatten(student(taken if len(taken) > 1 else taken[0]))
        # Wide enough for a ReLU6 to cut something off.
        x += [rng.normal(0, 3, (32, *t.shape[1:])).astype("float32") for t in taken]
    qat = quantize_aware(keras.Model(inputs, outputs), recipe)
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    assert "float32" not in operations(content)[1]
    # A convolution that a ReLU6 cuts to a quarter has levels as wide as four of its.
    assert_same_within_one_step(qat, content, *x, below=5)


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
@pytest.mark.parametrize("slope", [1e-3, 0.01, 0.2, 0.3])
def test_a_leaky_relu_is_its_kernel_to_the_bit(slope, recipe, tmp_path, rng) -> None:
    model = keras.Sequential([keras.Input((256,)), layers.LeakyReLU(slope)])
    qat = quantize_aware(model, recipe, input_range=(-3.0, 2.5))
    calibrate(qat, rng.uniform(-3.0, 2.5, (64, 256)).astype("float32"))
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    # All levels of 8 bits.
    x = (np.arange(-138, 118) * (5.5 / 255)).astype("float32")[None]
    ((values, scale, _),), _ = run_lite(content, x)
    np.testing.assert_allclose(values, qat(x, training=False), atol=scale / 100)


def of_each_level(layer, lowest, highest, folder):
    """The 256 levels that a model of a layer gives, and those that its file does."""
    model = keras.Sequential([keras.Input((256,)), layer])
    qat = quantize_aware(model, "int8", input_range=(lowest, highest))
    x = np.random.default_rng(0).uniform(lowest, highest, (64, 256))
    calibrate(qat, x.astype("float32"))
    content = convert(for_export(qat), str(folder))
    runner = Interpreter(model_content=content).get_signature_runner()
    step, zero = runner.get_input_details()["in_0"]["quantization"]
    x = ((np.arange(-128, 128) - zero) * step).astype("float32")[None]
    ((values, scale, _),), _ = run_lite(content, x)
    return np.rint(qat(x, training=False)[0] / scale), np.rint(values[0] / scale)


# On phones, arm64-v8a, level 93 of the last but one and 74 of the last are as the model
# has them: half-way between two levels NEON goes up, and x86 away from 0.
@pytest.mark.parametrize(
    ("lowest", "highest", "only_on_phones"),
    [
        *[(-3.0, 2.5, []), (-8.0, 8.0, []), (-1.0, 6.0, []), (-1.5, 2.8, [])],
        *[(-20.0, 30.0, []), (0.0, 10.0, []), (-0.05, 0.02, []), (-100.0, 2.0, [])],
        *[(-1.0, 0.2, [93]), (-1.356, 0.074, [74])],
    ],
)
def test_a_hard_swish_is_its_kernel_to_the_bit(
    lowest, highest, only_on_phones, tmp_path
) -> None:
    layer = layers.Activation("hard_silu")
    rounded, values = of_each_level(layer, lowest, highest, tmp_path)
    (off,) = np.nonzero(rounded != values)
    assert set(off) <= set(only_on_phones)
    assert np.abs(rounded - values).max() <= 1


# The steps of the last are to each other as 3 to 2: each other value is a tie.
@pytest.mark.parametrize(
    ("lowest", "highest"), [(-3.0, 2.5), (-1.0, 0.2), (-8.0, 8.0), (-3.0, 6.001)]
)
@pytest.mark.parametrize("max_value", [None, 6.0])
def test_a_relu_of_its_own_is_its_kernel_to_the_bit(
    max_value, lowest, highest, tmp_path
) -> None:
    rounded, values = of_each_level(layers.ReLU(max_value), lowest, highest, tmp_path)
    np.testing.assert_array_equal(rounded, values)


@pytest.mark.parametrize(("lowest", "highest"), [(-3.0, 2.5), (-1.0, 0.2)])
@pytest.mark.parametrize(
    "slopes",
    [
        *(keras.initializers.Constant(slope) for slope in (0.0, 0.25, -0.3)),
        keras.initializers.RandomUniform(-0.2, 0.6, seed=3),
        keras.initializers.RandomNormal(0.0, 2.0, seed=3),
    ],
)
def test_a_prelu_is_its_kernel_to_the_bit(slopes, lowest, highest, tmp_path) -> None:
    # Each level has a slope of its own.
    rounded, values = of_each_level(layers.PReLU(slopes), lowest, highest, tmp_path)
    np.testing.assert_array_equal(rounded, values)


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_prelus_between_convolutions(recipe, tmp_path, rng) -> None:
    inputs = x = keras.Input((8, 8, 3))
    for shared in [(1, 2), (1,), None]:
        slopes = keras.initializers.RandomUniform(0.0, 0.4, seed=len(shared or ()))
        x = layers.PReLU(slopes, shared_axes=shared)(layers.Conv2D(8, 3)(x))
    student = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))
    randomize(student, rng)
    x = rng.normal(size=(64, 8, 8, 3)).astype("float32")
    qat = quantize_aware(student, recipe)
    np.testing.assert_allclose(qat(x), student(x), atol=1e-5)
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    ((values, scale, _),), _ = run_lite(content, x)
    off = np.abs(values - qat(x, training=False)) / scale
    assert np.mean(off < 0.5) > 0.98
    assert off.max() < 1.01


@pytest.mark.parametrize("recipe", ["int8", "int4"])
@pytest.mark.parametrize("in_float", [None, "second"])
def test_hard_swishes_between_convolutions(in_float, recipe, tmp_path, rng) -> None:
    inputs = x = keras.Input((8, 8, 3))
    for name in ("first", "second", "third"):
        kind = {"padding": "same", "activation": "hard_silu", "name": name}
        x = layers.Conv2D(8, 3, **kind)(x)
    student = keras.Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling2D()(x)))
    randomize(student, rng)
    x = rng.normal(size=(64, 8, 8, 3)).astype("float32")
    overrides = in_float and {in_float: "float32"}
    qat = quantize_aware(student, recipe, overrides=overrides)
    np.testing.assert_allclose(qat(x), student(x), atol=1e-5)
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    ((values, scale, _),), _ = run_lite(content, x)
    off = np.abs(values - qat(x, training=False)) / scale
    assert np.mean(off < 0.5) > 0.98
    assert off.max() < 1.01


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_leaky_relus_between_convolutions(recipe, tmp_path, rng) -> None:
    inputs = x = keras.Input((8, 8, 3))
    for _ in range(3):
        x = layers.LeakyReLU(0.2)(layers.Conv2D(8, 3, padding="same")(x))
    student = keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))
    randomize(student, rng)
    x = rng.normal(size=(64, 8, 8, 3)).astype("float32")
    qat = quantize_aware(student, recipe)
    np.testing.assert_allclose(qat(x), student(x), atol=1e-5)
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    assert_same_within_one_step(qat, content, x)


@pytest.mark.parametrize("recipe", ["int8", "int4", "int16x8"])
def test_a_tensor_is_parted_from_its_range_more_than_once(recipe, tmp_path) -> None:
    """Of two operations that are alike the converter makes one, of no range."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((6,))
    tower = layers.Dense(8, activation="tanh")
    first, second = tower(inputs), tower(layers.Dense(6)(inputs))
    linear = layers.Dense(8)
    third, fourth = linear(inputs), linear(layers.Dense(6)(inputs))
    outputs = [
        layers.Multiply()([first, second]),
        layers.Subtract()([first, second]),
        layers.Maximum()([third, second]),
        layers.ReLU(6.0)(second),
        layers.Multiply()([third, fourth]),
        layers.ReLU(6.0)(fourth),
        layers.Subtract()([third, fourth]),
    ]
    model = keras.Model(inputs, outputs)
    randomize(model, rng)
    qat = quantize_aware(model, recipe)
    x = rng.normal(size=(64, 6)).astype("float32")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    assert "float32" not in operations(content)[1]
    assert_same_within_one_step(qat, content, x)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_sums_of_4_bits_are_rounded_as_their_kernel_does(groups, tmp_path) -> None:
    # Sums are small, so that one in twenty lies half-way between two levels: up, or for
    # groups, of which there is the plain kernel alone, away from 0. Without a ReLU half
    # of them are negative; what is one level off there is more behind other layers.
    keras.utils.set_random_seed(1)
    student = keras.Sequential([keras.Input(IMAGE), conv(groups=groups)()])
    x = np.random.default_rng(0).normal(size=(64, *IMAGE)).astype("float32")
    qat = quantize_aware(student, "int4")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int4")
    (values, scale, _) = run_lite(content, x)[0][0]
    off = np.abs(values - qat(x, training=False).numpy()) / scale
    assert values.min() < -10 * scale
    assert np.mean(off > 0.5) < 1e-3


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
def test_bilinear_sizes_take_ties_as_their_kernels_do(recipe, tmp_path) -> None:
    # The mean of four is half-way between two levels as often as not, and whether float
    # arithmetic has it so hangs on the step.
    inputs = [keras.Input(IMAGE) for _ in range(3)]
    x = [
        np.random.default_rng(k).normal(0, 1.5, (64, *IMAGE)).astype("float32")
        for k in range(3)
    ]
    sizes = [layers.Resizing(4, 4), layers.UpSampling2D(interpolation="bilinear")]
    outputs = [size(tensor) for tensor in inputs for size in sizes]
    qat = quantize_aware(keras.Model(inputs, outputs), recipe)
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    for y, (values, scale, _) in zip(qat(x), run_lite(content, *x)[0], strict=True):
        assert np.mean(np.abs(values - y) > scale / 2) < 1e-3


@pytest.mark.parametrize(
    ("before", "layer"),
    [
        ((8, 8), lambda: layers.Resizing(5, 5)),
        ((7, 9), lambda: layers.Resizing(13, 4)),
        ((10, 10), lambda: layers.Resizing(7, 23)),
        ((1, 4), lambda: layers.Resizing(3, 8)),
        ((32, 32), lambda: layers.Resizing(28, 28)),
        ((None, None), lambda: layers.Resizing(5, 6)),
        ((9, 9), lambda: layers.Resizing(3, 6, crop_to_aspect_ratio=True)),
        ((8, 7), lambda: layers.Resizing(3, 6, pad_to_aspect_ratio=True)),
        ((6, 5), lambda: layers.UpSampling2D((3, 2), interpolation="bilinear")),
    ],
)
def test_a_bilinear_size_is_its_kernel_to_the_bit(before, layer, tmp_path, rng) -> None:
    qat = quantize_aware(one_of(layer(), (*before, 3)), "int8", input_range=(-3, 2.5))
    x = rng.uniform(-3, 2.5, (16, *(size or 9 for size in before), 3))
    calibrate(qat, x := x.astype("float32"))
    content = convert(for_export(qat), str(tmp_path))
    ((values, scale, _),), _ = run_lite(content, x)
    for rounded in (qat(x, training=False), qat.predict(x, verbose=0)):
        np.testing.assert_allclose(values, rounded, atol=scale / 100)


@pytest.mark.parametrize("recipe", ["int8", "int4"])
def test_sizes_between_convolutions(recipe, tmp_path, rng) -> None:
    inputs = x = keras.Input((9, 9, 3))
    for size in (7, 10, 6):
        x = layers.Resizing(size, size)(layers.Conv2D(8, 3, padding="same")(x))
    ratio = {"crop_to_aspect_ratio": True}
    outputs = [layers.Dense(4)(layers.Flatten()(x)), layers.Resizing(4, 7, **ratio)(x)]
    student = keras.Model(inputs, outputs)
    randomize(student, rng)
    x = rng.normal(size=(64, 9, 9, 3)).astype("float32")
    qat = quantize_aware(student, recipe)
    calibrate(qat, x)
    known = [variable.numpy() for variable in qat.variables]
    exact, cropped = qat(x)
    for variable, value in zip(qat.variables, known, strict=True):
        np.testing.assert_array_equal(variable, value)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    (first, second), _ = run_lite(content, x)
    for rounded, (values, scale, _) in ((exact, first), (cropped, second)):
        off = np.abs(values - rounded) / scale
        assert np.mean(off < 0.5) > 0.95
        assert off.max() < 1.01


def one_of(layer, shape=IMAGE, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), layer])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: one_of(layers.PReLU(name="p")), "'p' cannot.*for it. Use LeakyReLU"),
        (lambda: one_of(layers.UpSampling1D(), SEQUENCE), "does not repeat"),
        (lambda: one_of(layers.RepeatVector(2), VECTOR), "does not repeat"),
        (lambda: one_of(layers.Embedding(4, 2), VECTOR, "int32"), "no table. Use rec"),
        (lambda: one_of(layers.Dense(2, activation="gelu"), VECTOR), "for GELU. Use"),
        (lambda: one_of(layers.Softmax(axis=1)), "axis=1. Use the last axis"),
        (
            lambda: one_of(layers.UpSampling2D(), (None, None, 4)),
            "an open size. Give its input a size",
        ),
        (
            lambda: one_of(layers.Resizing(5, 5)),
            r"from \(8, 8\) to \(5, 5\), which.*1/1024. Double",
        ),
        (
            # From 9 to 3 it would be exact.
            lambda: one_of(layers.Resizing(3, 6, crop_to_aspect_ratio=True), (9, 9, 4)),
            r"from \(4, 9\) to \(3, 6\), which.*1/1024. Double",
        ),
        (
            lambda: one_of(layers.Resizing(4, 8, pad_to_aspect_ratio=True)),
            "pad_to_aspect_ratio=True.*Pad with ZeroPadding2D before it",
        ),
        (
            of_one((None, 4), lambda x: layers.Concatenate(1, name="c")([x, x])),
            "layer 'c' along axis 1, which is open.*Give the input a size",
        ),
    ],
)
def test_what_16_bits_do_not_have(make, text) -> None:
    model = make()
    quantize_aware(model)
    with pytest.raises(ValueError, match=text):
        quantize_aware(model, "int16x8")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (layers.LayerNormalization, "LayerNormalization. Its mean and square root"),
        (lambda: layers.LSTM(2), "LSTM. Its loop has no ranges, and the converter"),
        (
            layers.ELU,
            "ELU. It has no integer operation. Leave it in float, overrides=.'elu",
        ),
        (lambda: layers.Activation("selu"), "'selu' in layer"),
    ],
)
def test_what_stays_in_float_is_an_error_that_says_why(make, text) -> None:
    model = keras.Sequential([keras.Input(SEQUENCE), make()])
    with pytest.raises(ValueError, match=text):
        quantize_aware(model)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ({"interpolation": "lanczos3"}, "'lanczos3'. Use 'bilinear'"),
        ({"antialias": True}, "antialias=True, which TFLite does not have"),
    ],
)
def test_a_resizing_that_is_none_of_tflites(kind, text) -> None:
    model = one_of(layers.Resizing(4, 4, name="size", **kind))
    with pytest.raises(ValueError, match=f"'size' cannot.*{text}"):
        quantize_aware(model)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2DTranspose(4, 3, dilation_rate=2, name="up"), IMAGE),
        (layers.Conv1DTranspose(4, 3, dilation_rate=2, name="up"), SEQUENCE),
    ],
)
def test_transposed_convolutions_are_not_dilated(layer, shape) -> None:
    with pytest.raises(ValueError, match="'up' cannot.*dilation_rate=.*TFLite has not"):
        quantize_aware(one_of(layer, shape))


def test_five_open_axes_are_no_image() -> None:
    inputs = keras.Input((None, 2, 2, 4))
    model = keras.Model(inputs, layers.Rescaling(2.0, 1.0, name="scaled")(inputs))
    with pytest.raises(ValueError, match="layer 'scaled' with shape.*input a size"):
        quantize_aware(model)


def text_net():
    """Ids of words, and a number beside them."""
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(20, 8, name="words")(ids)
    x = layers.Conv1D(8, 3, activation="relu")(x)
    number = keras.Input((2,), name="number")
    x = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), number])
    return keras.Model([ids, number], layers.Dense(3, name="topic")(x))


def test_an_embedding_is_a_table_of_integers(tmp_path, rng) -> None:
    student = text_net()
    data = {
        "ids": rng.integers(0, 20, (64, 6)).astype("int32"),
        "number": rng.normal(0, 0.1, (64, 2)).astype("float32"),
    }
    qat = quantize_aware(student)
    values = [data["ids"], data["number"]]
    np.testing.assert_allclose(qat(values), student(values), atol=1e-5)
    calibrate(qat, values)
    result = export(qat, tmp_path / "m.tflite", "int8", verify_data=data)
    assert "GATHER" in [op.name for op in result.ops]
    assert [tensor.dtype for tensor in result.inputs] == ["int32", "float32"]
    assert not [op for op in result.ops if op.float_compute]


def test_ids_are_no_quantities() -> None:
    inputs = keras.Input((4,), dtype="int32")
    with pytest.raises(ValueError, match="only go into an Embedding.*layer 'd', which"):
        quantize_aware(keras.Model(inputs, layers.Dense(2, name="d")(inputs)))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (layers.EinsumDense("abc,bd->adc", (8, 4)), "equation='abc,bd->adc'.*Sum over"),
        (layers.EinsumDense("...c,cd->...d", 8), "as in 'abc,cd->abd'"),
        (layers.Embedding(9, 4, mask_zero=True), "mask_zero=True. Leave it out"),
    ],
)
def test_other_products_and_masks(layer, text) -> None:
    dtype = "int32" if isinstance(layer, layers.Embedding) else "float32"
    shape = (6,) if dtype == "int32" else SEQUENCE
    model = keras.Sequential([keras.Input(shape, dtype=dtype), layer])
    with pytest.raises(ValueError, match=text):
        quantize_aware(model)


def test_a_relu6_behind_a_product_of_16_bits(tmp_path, rng) -> None:
    student = of_one(IMAGE, lambda x: relu6(x * x))()
    x = rng.normal(0, 3, (32, *IMAGE)).astype("float32")
    qat = quantize_aware(student, "int16x8")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    assert_same_within_one_step(qat, content, x)


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        (
            (9, 9, 8),
            [
                *(layers.Conv2D(12, 3, padding="same"), layers.Conv2D(1, 2)),
                *(
                    layers.Conv2D(8, 3, 2, groups=4),
                    layers.Conv2D(8, 3, dilation_rate=2),
                ),
                layers.DepthwiseConv2D(3, padding="same"),
                layers.DepthwiseConv2D(3, depth_multiplier=2),
                layers.Conv2DTranspose(5, 3, 2, padding="same"),
                *(layers.BatchNormalization(), layers.Dense(7)),
            ],
        ),
        (
            (20, 6),
            [
                *(layers.Conv1D(8, 3), layers.Conv1D(8, 3, padding="causal")),
                *(layers.DepthwiseConv1D(3), layers.Conv1DTranspose(5, 3, 2)),
                layers.EinsumDense("abc,cde->abde", (None, 4, 3), bias_axes="de"),
            ],
        ),
        # Sums of 4,608 products.
        ((4, 4, 512), [layers.Conv2D(8, 3), layers.Dense(8, use_bias=False)]),
    ],
)
def test_kernels_of_8_bits_are_xnnpacks_to_the_bit(shape, kernels, tmp_path, rng):
    """In float a sum is off by its last bits: one value in 50,000 at every layer."""
    inputs = keras.Input(shape, name="x")
    outputs = [kernel(inputs) for kernel in kernels]
    again = type(kernels[0]).from_config({**kernels[0].get_config(), "name": "again"})
    outputs.append(layers.ReLU()(layers.BatchNormalization()(again(inputs))))
    student = keras.Model(inputs, outputs)
    randomize(student, rng)
    qat = quantize_aware(student)
    x = rng.normal(0, 1, (96, *shape)).astype("float32")
    calibrate(qat, x)
    x = keras.Model(qat.input, qat.layers[1].output).predict(x, verbose=0)
    predicted = qat.predict(x, verbose=0)
    found, _ = run_lite(convert(for_export(qat), str(tmp_path)), x)
    for y, (values, scale, _) in zip(predicted, found, strict=True):
        np.testing.assert_allclose(values, y, atol=0.01 * scale, rtol=1e-6)


def test_products_of_8_bits_are_xnnpacks_on_ties(tmp_path, rng) -> None:
    """127 * 191 / 254 is 95.5 but for the last bits of what levels stand for."""
    inputs = [keras.Input((8, 8, 4), name="x"), keras.Input((1, 1, 4), name="gate")]
    student = keras.Model(inputs, layers.Multiply(name="product")(inputs))
    levels = rng.integers(0, 256, (256, 8, 8, 4)), rng.integers(0, 256, (256, 1, 1, 4))
    levels[0][:, 0], levels[1][:64] = 127, 191
    for top in (0.37, 0.75, 1.31, 2.0, 3.03):
        x = [(n * np.float32(top / 255)).astype("float32") for n in levels]
        qat = quantize_aware(student, input_range=(0.0, top))
        calibrate(qat, [y * (254 / 255) for y in x])
        (values, scale, _), *_ = run_lite(convert(for_export(qat), str(tmp_path)), *x)[
            0
        ]
        found = qat.predict(x, verbose=0)
        np.testing.assert_allclose(values, found, atol=0.01 * scale)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_global_means_have_no_ties(size, tmp_path, rng) -> None:
    """Of constant maps a mean has the range of its input, and halves are on a tie."""
    inputs = keras.Input((size, size, 32), name="x")
    student = keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs))
    qat = quantize_aware(student, input_range=(-1.0, 1.0))
    calibrate(qat, np.ones((1, size, size, 32), "float32") * [[[[-1.0]]], [[[1.0]]]])
    levels = rng.integers(-120, 120, (64, 1, 1, 32)) + rng.integers(
        -4, 5, (64, size, size, 32)
    )
    x = (levels * np.float32(2.0 / 255.0)).astype("float32")
    (values, scale, _), *_ = run_lite(convert(for_export(qat), str(tmp_path)), x)[0]
    np.testing.assert_allclose(values, qat.predict(x, verbose=0), atol=0.01 * scale)


# --- layers that are left in float


def transformer():
    """A token mixer: what TFLite has in float only, between layers that it has."""
    inputs = keras.Input((6, 8))
    x = layers.Dense(8, name="project")(inputs)
    y = layers.LayerNormalization(name="norm")(x)
    y = layers.MultiHeadAttention(2, 4, name="heads")(y, y, use_causal_mask=True)
    x = layers.Add(name="sum")([x, y])
    x = layers.Dense(16, activation="elu", name="up")(x)
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="transformer")


def nested_head():
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    head = keras.Sequential(
        [
            keras.Input((6, 6, 8)),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(5, activation="softmax", name="classes"),
        ],
        name="head",
    )
    return keras.Model(inputs, head(x), name="nested_head")


@pytest.mark.parametrize(
    ("make", "overrides", "floats"),
    [
        (transformer, ("norm", "heads", "up"), {"norm", "heads", "up"}),
        # The output has the nested model's name.
        (nested_head, ("head/*",), {"pool", "classes", "head"}),
        (nested_head, ("c?nv",), {"conv"}),
    ],
)
def test_layers_by_name_stay_in_float(make, overrides, floats, tmp_path, rng) -> None:
    student = make()
    randomize(student, rng)
    x = rng.normal(0, 1, (48, *student.input_shape[1:])).astype("float32")
    qat = quantize_aware(student, overrides=dict.fromkeys(overrides, "float32"))
    assert set(float_layers(qat)) == floats
    np.testing.assert_allclose(qat(x), student(x), atol=1e-5)
    qat.save(tmp_path / "qat.keras")
    qat = keras.saving.load_model(tmp_path / "qat.keras")
    assert set(float_layers(qat)) == floats
    calibrate(qat, x)
    exported = for_export(qat)
    (tmp_path / "saved").mkdir()
    content = convert(exported, str(tmp_path / "saved"), tf.float32)
    names, dtypes = operations(content)
    assert {"float32", "int8"} <= dtypes
    # Less than a step of an output of 8 bits that reaches to 4 standard deviations.
    values = run_floats(content, x)
    spread = np.std(student(x))
    assert np.sqrt(np.mean((values - qat(x)) ** 2)) < 8 / 255 * spread
    assert np.abs(student(x) - qat(x)).mean() < 0.06 * spread


def test_an_export_has_no_other_layers_in_float(tmp_path, rng) -> None:
    student = nested_head()
    x = rng.normal(0, 1, (32, *IMAGE)).astype("float32")
    # The model's own name means all that is in it.
    qat = quantize_aware(student, overrides={"head": "float32"})
    assert set(float_layers(qat)) == {"pool", "classes", "head"}
    calibrate(qat, x)
    result = export(qat, tmp_path / "m.tflite", "int8", verify_data=x)
    in_float = [op.name for op in result.ops if op.float_compute]
    assert in_float == ["NEG", "MUL", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]


class Doubled(layers.Layer):
    def call(self, x):
        return x * 2


@pytest.mark.parametrize("recipe", ["int8", "int16x8", "int4"])
def test_any_layer_between_integers_stays_in_float(recipe, tmp_path, rng) -> None:
    """Of what has a range the converter makes integers, or fails to."""
    between = [
        layers.ReLU(),
        layers.LeakyReLU(),
        *map(layers.Activation, ("tanh", "sigmoid", "silu", "hard_silu", "softmax")),
        *(layers.Identity(), layers.Permute((2, 1, 3)), layers.Reshape((3, 12, 4))),
        *(layers.MaxPooling2D(2), layers.AveragePooling2D(2), Doubled()),
        *(layers.LayerNormalization(), layers.GroupNormalization(2)),
        *(layers.Conv2D(4, 1, activation="tanh"), layers.Dense(4)),
    ]
    inputs = keras.Input((6, 6, 3), name="image")
    outputs, left = [], {}
    for number, layer in enumerate(between):
        layer.name = f"left_{number}"
        left[layer.name] = "float32"
        x = layer(layers.Conv2D(4, 3, padding="same")(inputs))
        outputs.append(layers.Conv2D(4, 2, name=f"end_{number}")(x))
    x = rng.normal(0, 1, (64, 6, 6, 3)).astype("float32")
    qat = quantize_aware(keras.Model(inputs, outputs), recipe, overrides=left)
    assert set(float_layers(qat)) == set(left)
    calibrate(qat, x)
    result = export(qat, tmp_path / "m.tflite", recipe, verify_data=x)
    for kernels in (result.verification, *result.verification.kernels):
        for output in kernels.outputs:
            assert output.within_one_step >= 0.99, (str(kernels), output.name)
    kept = {op.name for op in result.ops if op.float_compute}
    assert kept >= {
        *("LEAKY_RELU", "TANH", "LOGISTIC", "HARD_SWISH", "SOFTMAX"),
        *("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "CONV_2D", "FULLY_CONNECTED"),
    }


def test_loops_stay_in_float_between_integers(tmp_path, rng) -> None:
    inputs = keras.Input((6, 4), name="x")
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    loops = [layers.LSTM(8, name="lstm")(x), layers.GRU(8, name="gru")(x)]
    student = keras.Model(inputs, [layers.Dense(3)(y) for y in loops])
    x = rng.normal(0, 1, (64, 6, 4)).astype("float32")
    qat = quantize_aware(student, overrides={"lstm": "float32", "gru": "float32"})
    assert set(float_layers(qat)) == {"lstm", "gru"}
    calibrate(qat, x)
    result = export(qat, tmp_path / "m.tflite", "int8", verify_data=x)
    for output in result.verification.outputs:
        assert output.within_one_step >= 0.99
    computed = [(op.name, op.float_compute) for op in result.ops]
    assert ("CONV_2D", False) in computed and computed.count(("WHILE", True)) == 2
    # Behind the loops there are integers again; what is in them comes last in a file.
    assert computed.count(("FULLY_CONNECTED", False)) == 2


@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        (
            {"nope*": "float32"},
            ValueError,
            "must fit a layer. Received: 'nope.'.*'norm'",
        ),
        ({"norm": "int4"}, ValueError, "must leave layers in 'float32'.*'int4' for"),
        (["norm"], TypeError, "must be a mapping from layer name"),
        ({}, ValueError, "layer 'norm' of class LayerNormalization"),
    ],
)
def test_wrong_overrides(overrides, error, text) -> None:
    with pytest.raises(error, match=text):
        quantize_aware(transformer(), overrides=overrides)


def test_operations_of_keras_stay_in_float_by_name(tmp_path, rng) -> None:
    """Slices, operators, functions: they are called with what is no tensor as well."""
    inputs = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    made = [
        *(x[..., :2], x[:, 1:-1, ::2], -x, x**2, x * x[:, :1]),
        *(ops.exp(x), ops.mean(x, axis=[1, 2]), ops.stack([x, 2.0 * x], axis=-1)),
        *(ops.where(x > 0, x, 0.1 * x), ops.einsum("bhwc,bhwd->bcd", x, x)),
    ]
    outputs = [layers.Dense(3)(layers.Flatten()(y)) for y in made]
    student = keras.Model(inputs, outputs)
    randomize(student, rng)
    left: dict[str, str] = {}
    while True:  # the advice is followed until it is taken
        try:
            qat = quantize_aware(student, overrides=left)
            break
        except ValueError as err:
            (advised,) = re.findall(r"overrides=({.*?})", str(err))
            advice = ast.literal_eval(advised)
            assert not left.keys() & advice.keys()
            left |= advice
    x = rng.normal(0, 1, (64, 6, 6, 4)).astype("float32")
    for y, z in zip(student(x), qat(x), strict=True):  # no ranges yet
        np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-4)
    calibrate(qat, x)
    qat.save(tmp_path / "qat.keras")
    qat = keras.saving.load_model(tmp_path / "qat.keras")
    assert set(float_layers(qat)) == set(left)
    result = export(qat, tmp_path / "m.tflite", "int8", verify_data=x)
    for output in result.verification.outputs:
        assert output.within_one_step >= 0.99, output.name
    kept = {op.name for op in result.ops if op.float_compute}
    assert kept >= {"STRIDED_SLICE", "EXP", "MEAN", "PACK", "BATCH_MATMUL"}


def test_random_samples_of_pixels_are_whole(tmp_path, rng) -> None:
    """Of an input of bytes Keras cuts fractions off, and the file rounds them."""
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255)(image)
    for _ in range(3):
        x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    student = keras.Model(image, layers.Conv2D(4, 1)(x))
    randomize(student, rng)
    qat = quantize_aware(student)
    calibrate(qat, rng.integers(0, 256, (64, 8, 8, 3)).astype("uint8"))
    report = export(qat, tmp_path / "m.tflite", "int8").verification
    assert report.outputs[0].within_one_step >= 0.99


def test_only_what_has_one_output_is_left_in_float() -> None:
    inputs = keras.Input((4,))
    first, second = ops.split(layers.Dense(4)(inputs), 2, axis=-1)
    student = keras.Model(inputs, layers.Add()([first, second]))
    with pytest.raises(ValueError, match="one output.*'split.*' of class Split with 2"):
        quantize_aware(student, overrides={"split*": "float32"})


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
def test_masks_go_into_layers_in_float_alone(recipe, tmp_path, rng) -> None:
    inputs = keras.Input((8, 3), name="x")
    x = layers.Dense(4, activation="relu")(layers.Masking(name="mask")(inputs))
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    student = keras.Model(inputs, layers.Dense(2)(x))
    left = dict.fromkeys(("mask", "not_equal*", "any*"), "float32")
    with pytest.raises(ValueError, match="no mask.*'mean'.*{'mean': 'float32'}"):
        quantize_aware(student, recipe, overrides=left)
    qat = quantize_aware(student, recipe, overrides={**left, "mean": "float32"})
    x = rng.normal(0, 1, (64, 8, 3)).astype("float32")
    x[:, 5:] = 0.0
    calibrate(qat, x)
    (output,) = export(
        qat, tmp_path / "m.tflite", recipe, verify_data=x
    ).verification.outputs
    assert output.within_one_step >= 0.99
    np.testing.assert_allclose(qat(x), student(x), atol=0.05)


def test_a_layer_with_lora_is_refused_before_training() -> None:
    student = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="head")])
    student.get_layer("head").enable_lora(2)
    with pytest.raises(ValueError, match="'head'.*LoRA"):
        quantize_aware(student)


def test_a_dead_tensor_beside_one_that_hardly_lives(tmp_path, rng) -> None:
    """LiteRT ends the process where a sum's input is 2^19 times as wide as itself."""
    inputs, sums = [], []
    for width in (1e-3, 2e-5, 9e-6, 7e-7, 1e-8):
        inputs.append(keras.Input((4, 4, 2)))
        dead = layers.Conv2D(2, 1, kernel_initializer="zeros")(inputs[-1])
        faint = layers.Conv2D(
            2, 1, kernel_initializer=keras.initializers.Constant(width)
        )(inputs[-1])
        sums.append(layers.Add()([dead, faint]))
    qat = quantize_aware(keras.Model(inputs, sums))
    x = [rng.uniform(0, 1, (16, 4, 4, 2)).astype("float32") for _ in inputs]
    calibrate(qat, x)
    results = run_lite(convert(for_export(qat), str(tmp_path)), *x)[0]
    for y, (values, scale, _) in zip(qat(x), results, strict=True):
        assert np.abs(values - y.numpy()).max() < 1.01 * scale


# --- whole networks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"])
def test_networks_of_keras_are_integer_throughout(name, tmp_path, rng) -> None:
    make = getattr(keras.applications, name)
    qat = quantize_aware(make((64, 64, 3), weights=None, classes=10))
    x = rng.uniform(0, 255, (16, 64, 64, 3)).astype("float32")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path))
    assert operations(content)[1] <= {"int8", "int32"}
    # Untrained, its probabilities are all alike: few levels, of which none is off.
    (values, scale, _), *_ = run_lite(content, x)[0]
    assert np.abs(values - qat(x).numpy()).max() < 1.01 * scale
