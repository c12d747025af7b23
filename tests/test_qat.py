"""Quantization-aware training: the trained Keras model is the integer model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from quantizing import (
    assert_same_within_one_step,
    calibrate,
    convert,
    operations,
    randomize,
    run_lite,
)

from kdlite.compress.fake_quant import FakeQuant
from kdlite.compress.folded_layer import FoldedLayer
from kdlite.compress.qat import (
    float_layers,
    for_export,
    freeze_batch_norm,
    is_quantize_aware,
    quantize_aware,
    trained_bits,
)
from kdlite.compress.recipes import Recipe, recipe


def separable_block(x, filters, strides, name):
    x = layers.DepthwiseConv2D(
        3, strides=strides, padding="same", use_bias=False, name=f"{name}_dw"
    )(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn1")(x)
    x = layers.ReLU(6.0, name=f"{name}_relu")(x)
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pw")(x)
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn2")(x)


def mobile_net():
    """A small residual depthwise net on raw pixels, with a softmax at the end."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)
    x = layers.Conv2D(8, 3, 2, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(momentum=0.9, name="stem_bn")(x)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    x = layers.Add(name="sum")([x, separable_block(x, 8, 1, "block1")])
    x = layers.ReLU(name="last")(separable_block(x, 16, 2, "block2"))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.1, name="dropout")(x)
    x = layers.Dense(5, activation="softmax", name="classes")(x)
    return keras.Model(inputs, x, name="mobile")


def pixels(rng, count, shape=(16, 16, 3)):
    return rng.integers(0, 256, (count, *shape)).astype("float32")


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    """The student, it trained quantization-aware, data, and the `.tflite`."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    x = pixels(rng, 256)
    # Learnable: the class is how bright the noise is.
    y = rng.integers(0, 5, 256)
    x = np.floor(x * (y[:, None, None, None] + 1) / 5)
    student = mobile_net()
    student.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    student.fit(np.tile(x, (8, 1, 1, 1)), np.tile(y, 8), verbose=0)
    before = [value.copy() for value in student.get_weights()]
    qat = quantize_aware(student, input_range=(0.0, 255.0))
    unset = qat(x, training=False)
    qat.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    often = np.tile(x, (2, 1, 1, 1)), np.tile(y, 2)
    history = qat.fit(*often, epochs=2, verbose=0).history
    folder = tmp_path_factory.mktemp("mobile")
    content = convert(for_export(qat), str(folder), tf.uint8)
    return {
        "student": student,
        "before": before,
        "unset": unset,
        "qat": qat,
        "loss": history["loss"],
        "data": (x, y),
        "content": content,
    }


# --- the trained residual depthwise net


def test_until_training_it_computes_what_the_student_does(mobile):
    x, _ = mobile["data"]
    expected = mobile["student"](x, training=False)
    np.testing.assert_allclose(mobile["unset"], expected, atol=1e-5)


def test_the_student_is_neither_changed_nor_shared(mobile):
    student, qat = mobile["student"], mobile["qat"]
    for now, before in zip(student.get_weights(), mobile["before"], strict=True):
        np.testing.assert_array_equal(now, before)
    assert not {id(v) for v in student.variables} & {id(v) for v in qat.variables}
    assert student.count_params() < qat.count_params()
    shapes = [
        sorted(tuple(v.shape) for v in model.trainable_variables)
        for model in (student, qat)
    ]
    assert shapes[0] == shapes[1]


def test_quantization_aware_training_lowers_the_loss(mobile):
    student, qat = mobile["student"], mobile["qat"]
    x, y = mobile["data"]
    assert mobile["loss"][-1] < mobile["loss"][0]
    before, after = (model(x, training=False).numpy() for model in (student, qat))
    loss = keras.losses.SparseCategoricalCrossentropy()
    assert float(loss(y, after)) < float(loss(y, before))
    assert np.mean(after.argmax(-1) == y) > 0.9


def test_the_converted_model_is_integer_and_equal(mobile):
    x, _ = mobile["data"]
    names, dtypes = operations(mobile["content"])
    # Batch normalization, ReLU6 and the rescaling have left no operation.
    assert names == [
        "QUANTIZE",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "ADD",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "MEAN",
        "FULLY_CONNECTED",
        "SOFTMAX",
        "QUANTIZE",
    ]
    assert dtypes == {"uint8", "int8", "int32"}
    assert_same_within_one_step(mobile["qat"], mobile["content"], x[:64])


def test_raw_pixels_are_the_integer_input(mobile):
    _, details = run_lite(mobile["content"], mobile["data"][0][:1])
    assert details["in_0"]["quantization"] == (1.0, 0)


def test_the_exported_model_computes_the_same_in_float(mobile):
    x, _ = mobile["data"]
    qat = mobile["qat"]
    exported = for_export(qat)
    assert not is_quantize_aware(exported)
    assert not [layer for layer in exported.layers if isinstance(layer, FoldedLayer)]
    # Folding is exact up to float32, and the converter is yet to round the biases: both
    # move few values over a tie.
    difference = np.abs(exported(x, training=False) - qat(x, training=False))
    assert np.mean(difference < 1e-5) > 0.95
    assert qat.count_params() > exported.count_params()


def test_ranges_stay_in_inference(mobile):
    x, y = mobile["data"]
    qat = mobile["qat"]
    before = [value.copy() for value in qat.get_weights()]
    qat.evaluate(2 * x, y, verbose=0)
    qat(2 * x, training=False)
    for now, value in zip(qat.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, value)


def test_gradients_reach_every_trainable_variable(mobile):
    x, y = mobile["data"]
    qat = mobile["qat"]
    with tf.GradientTape() as tape:
        probabilities = qat(x[:32], training=False)
        loss = tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(y[:32], probabilities)
        )
    gradients = tape.gradient(loss, [v.value for v in qat.trainable_variables])
    for gradient in gradients:
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_it_survives_a_keras_file_and_trains_on(mobile, tmp_path):
    x, y = mobile["data"]
    mobile["qat"].save(tmp_path / "qat.keras")
    loaded = keras.saving.load_model(tmp_path / "qat.keras")
    np.testing.assert_array_equal(
        loaded(x, training=False), mobile["qat"](x, training=False)
    )
    assert is_quantize_aware(loaded)
    kernel = loaded.get_layer("stem_bn").layer.kernel.numpy()
    ranges = [
        [
            layer.fixed_range
            for layer in for_export(model).layers
            if isinstance(layer, FakeQuant)
        ]
        for model in (loaded, mobile["qat"])
    ]
    assert ranges[0] == ranges[1]
    loaded.run_eagerly = True
    loaded.fit(x, y, batch_size=128, verbose=0)
    assert (loaded.get_layer("stem_bn").layer.kernel != kernel).numpy().any()


def test_names_and_the_logits_before_the_softmax_are_where_they_were(mobile):
    student, qat = mobile["student"], mobile["qat"]
    assert qat.name == student.name
    assert [x.name for x in qat.inputs] == ["image"]
    assert qat.output_names == student.output_names == ["classes"]
    softmax = qat.get_layer("classes")
    assert isinstance(softmax, layers.Softmax)
    x, _ = mobile["data"]
    logits = keras.Model(qat.input, softmax.input)(x[:8])
    np.testing.assert_allclose(keras.ops.softmax(logits), qat(x[:8]), atol=1e-6)
    names = {layer.name for layer in qat.layers}
    assert {"stem_bn", "stem_relu", "block1_bn2", "sum", "last", "pool"} <= names
    # Their outputs are no longer what these names meant.
    assert not {"stem", "rescale", "block1_dw"} & names


def test_compiled_by_xla_it_does_the_same(mobile):
    x, y = mobile["data"]
    inputs = keras.Input((16, 16, 3))
    features = separable_block(layers.Rescaling(1 / 255)(inputs), 8, 2, "block")
    outputs = layers.Dense(5, "softmax")(layers.GlobalAveragePooling2D()(features))
    student = keras.Model(inputs, outputs)
    losses = []
    for jit_compile in (False, True):
        qat = quantize_aware(student, input_range=(0.0, 255.0))
        qat.compile(
            keras.optimizers.SGD(0.01),
            "sparse_categorical_crossentropy",
            jit_compile=jit_compile,
            run_eagerly=not jit_compile,
        )
        history = qat.fit(x[:64], y[:64], batch_size=32, shuffle=False, verbose=0)
        losses.append(history.history["loss"][0])
        assert all(
            layer.has_range for layer in qat.layers if isinstance(layer, FakeQuant)
        )
    # Other float32 kernels round a few values to the next level.
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# --- every other layer, in a few models


def zoo():
    """All places where layers fuse and fold; outputs by name, none very deep."""
    inputs = keras.Input((10, 10, 4), name="features")
    first = layers.BatchNormalization(name="first")(inputs)
    x = layers.SeparableConv2D(
        8, 3, padding="same", depth_multiplier=2, activation="relu", name="separable"
    )(first)
    separable = layers.BatchNormalization(name="after_relu")(x)
    a = layers.Conv2D(8, 3, padding="same", groups=2, name="grouped")(first)
    b = layers.Conv2D(
        8, 3, padding="same", dilation_rate=2, activation="relu6", name="dilated"
    )(first)
    c = layers.Conv2D(8, 1, use_bias=False, name="pointwise")(first)
    x = layers.Activation("relu", name="sum_relu")(layers.Add(name="sum")([a, b, c]))
    most = layers.ReLU(6.0, name="most")(layers.MaxPooling2D(2)(x))
    mean = layers.AveragePooling2D(3, strides=2, padding="same", name="mean")(x)
    both = layers.Concatenate(name="both")([most, layers.ReLU()(mean)])
    x = layers.DepthwiseConv2D(2, dilation_rate=2, activation="relu", name="dw")(inputs)
    x = layers.Flatten()(layers.ZeroPadding2D(1)(layers.MaxPooling2D(2)(x)))
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    flat = layers.BatchNormalization(name="flat_norm")(x)
    return keras.Model(
        inputs,
        {
            "separable": separable,
            "both": both,
            "largest": layers.GlobalMaxPooling2D(name="g")(both),
            "reshaped": layers.Reshape((3, 4), name="r")(layers.Dense(12)(flat)),
            "sigmoid": layers.Dense(1, activation="sigmoid", name="p")(flat),
        },
        name="zoo",
    )


def nested():
    """Nested and shared layers, a skip over a concatenation, an affine kept apart."""
    base_inputs = keras.Input((8, 8, 8))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(base_inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization()(x))
    base = keras.Model(base_inputs, x, name="base")
    norm_after = keras.Sequential(
        [
            keras.Input((8, 8, 20)),
            layers.Conv2D(8, 1, activation="relu6", name="conv"),
            layers.BatchNormalization(),
        ],
        name="norm_after",
    )
    inputs = [
        keras.Input((16, 16, 3), name="zeta"),
        keras.Input((8, 8, 8), name="alpha"),
    ]
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(inputs[0])
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x)
    x = layers.Add()([x, layers.ReLU(name="apart")(x)])
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    pooled = layers.Dense(3, name="pooled")(layers.Flatten()(layers.ReLU()(pooled)))
    skip = base(inputs[1], training=False)
    low = layers.Conv2D(4, 1, activation="relu")(layers.MaxPooling2D(2)(skip))
    low = layers.ZeroPadding2D(((3, 1), (2, 2)))(low)
    joined = norm_after(layers.Concatenate(name="joined")([skip, low, inputs[1]]))
    twice = layers.Conv2D(
        8, 1, name="twice", activation="relu", kernel_regularizer="l2"
    )
    x = layers.Reshape((64, 8))(twice(twice(inputs[1])))
    x = layers.Softmax()(layers.Dense(4, name="dense_3d")(x))
    segments = layers.Reshape((8, 8, 4), name="segments")(x)
    return keras.Model(inputs, [segments, pooled, joined], name="nested")


@pytest.mark.parametrize("make", [zoo, nested])
def test_every_layer_becomes_integer_and_equal(make, tmp_path, rng):
    student = make()
    randomize(student, rng)
    x = [
        pixels(rng, 48, (16, 16, 3))
        if y.shape[1] == 16
        else rng.uniform(-2, 2, (48, *y.shape[1:])).astype("float32")
        for y in student.inputs
    ]
    struct = keras.tree.pack_sequence_as(student.input, x)
    qat = quantize_aware(student)
    expected = keras.tree.flatten(student(struct))
    for y, z in zip(expected, keras.tree.flatten(qat(struct)), strict=True):
        np.testing.assert_allclose(y, z, atol=1e-5)
    assert qat.output_names == student.output_names
    assert [y.name for y in qat.inputs] == [y.name for y in student.inputs]
    keras.tree.assert_same_structure(qat.output, student.output)
    assert len(qat.losses) == len(student.losses)
    calibrate(qat, struct)
    content = convert(for_export(qat), str(tmp_path))
    names, dtypes = operations(content)
    assert dtypes <= {"int8", "int32"}
    # No conversion between integer ranges: those that must be one are one.
    assert not {"QUANTIZE", "DEQUANTIZE", "MUL", "TRANSPOSE"} & set(names)
    rounded = assert_same_within_one_step(qat, content, *x)
    # And rounding has changed little: a few percent of the values' spread.
    for y, z in zip(expected, rounded, strict=True):
        assert np.abs(y - z).mean() < 0.05 * np.std(y)


def test_shared_layers_stay_shared():
    inputs = keras.Input((4,))
    dense = layers.Dense(4, name="twice")
    qat = quantize_aware(keras.Model(inputs, dense(dense(inputs))))
    assert len(qat.trainable_variables) == 2
    assert sum(isinstance(layer, FoldedLayer) for layer in qat.layers) == 1


@pytest.mark.parametrize("bits", ["int8", "int16x8"])
@pytest.mark.parametrize("shape", [(4, 4, 3), (6,)])
def test_a_normalization_on_its_own_can_be_shared(bits, shape, rng, tmp_path):
    inputs = keras.Input(shape)
    norm = layers.BatchNormalization(name="norm")
    parts = [norm(layers.ReLU()(inputs)), norm(layers.LeakyReLU(0.2)(inputs))]
    student = keras.Model(inputs, parts)
    randomize(student, rng)
    x = rng.normal(size=(64, *shape)).astype("float32")
    qat = quantize_aware(student, bits)
    assert sum(isinstance(layer, FoldedLayer) for layer in qat.layers) == 1
    for y, z in zip(student(x), qat(x), strict=True):
        np.testing.assert_allclose(y, z, atol=1e-5)
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=bits)
    assert_same_within_one_step(qat, content, x)


def _dense_behind_convolution(x):
    return layers.Dense(4)(layers.Conv1D(4, 3, padding="same")(x)), x


def _dense_behind_mean(x):
    images = layers.Reshape((3, 4, 4))(x)
    mean = layers.GlobalAveragePooling2D(keepdims=True)(images)
    row = layers.Dense(4)(layers.GlobalAveragePooling1D()(x))
    return mean, layers.Reshape((1, 1, 4))(row)


def _itself_in_one_row(x):
    row = layers.Reshape((1, 12, 4))(x)
    return row, row


@pytest.mark.parametrize(
    "parts", [_dense_behind_convolution, _dense_behind_mean, _itself_in_one_row]
)
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_sums_of_16_bits_are_not_broadcast(parts, activation, rng, tmp_path):
    """The converter leaves out reshapes before them, and has no sum then."""
    inputs = keras.Input((12, 4))
    total = layers.Add()(list(parts(inputs)))
    student = keras.Model(inputs, layers.Activation(activation)(total))
    randomize(student, rng)
    x = rng.normal(size=(64, 12, 4)).astype("float32")
    qat = quantize_aware(student, "int16x8")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    assert "float32" not in operations(content)[1]
    assert_same_within_one_step(qat, content, x)


def test_tensors_that_meet_in_a_concatenation_have_one_range():
    inputs = keras.Input((4,))
    a, b = layers.Dense(4, name="a")(inputs), layers.Dense(4, name="b")(inputs)
    qat = quantize_aware(keras.Model(inputs, layers.Concatenate()([a, b])))
    (shared,) = [
        layer
        for layer in qat.layers
        if isinstance(layer, FakeQuant) and layer.sites == 2
    ]
    roundings = [
        node for node in shared._inbound_nodes if not node.arguments.kwargs.get("step")
    ]
    assert len(roundings) == 2


def test_batch_statistics_move_until_they_are_frozen(rng):
    student = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()]
    )
    x = rng.normal(3, 1, (64, 4)).astype("float32")
    qat = quantize_aware(student)
    (folded,) = [layer for layer in qat.layers if isinstance(layer, FoldedLayer)]
    start = folded.batch_norm.moving_mean.numpy()
    qat.compile("sgd", "mse", run_eagerly=True)
    qat.fit(x, x, verbose=0)
    moved = folded.batch_norm.moving_mean.numpy()
    assert np.abs(moved - start).max() > 0.01
    freeze_batch_norm(qat)
    qat.compile("sgd", "mse", run_eagerly=True)
    gamma = folded.batch_norm.gamma.numpy()
    qat.fit(x, x, verbose=0)
    np.testing.assert_array_equal(folded.batch_norm.moving_mean, moved)
    assert np.abs(folded.batch_norm.gamma.numpy() - gamma).max() > 0


def test_layers_that_do_not_train_stay_so():
    base = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()]
    )
    base.trainable = False
    student = keras.Sequential([keras.Input((4,)), base, layers.Dense(2, name="head")])
    qat = quantize_aware(student)
    assert [v.shape for v in qat.trainable_variables] == [(4, 2), (2,)]


def test_ranges_follow_few_steps(rng):
    # Ranges that start at zero or at [-6, 6] would be far off after three batches.
    student = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d")])
    x = rng.normal(0, 50, (96, 4)).astype("float32")
    qat = quantize_aware(student)
    qat.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    qat.fit(x, x, batch_size=32, epochs=1, verbose=0)
    lowest, highest = for_export(qat).get_layer("d_fake_quant").fixed_range
    y = student(x).numpy()
    assert 0.7 * y.min() > lowest > 1.1 * y.min()
    assert 0.7 * y.max() < highest < 1.1 * y.max()


def test_integer_inputs_are_raw_bytes(rng):
    inputs = keras.Input((6, 6, 1), dtype="uint8")
    x = layers.Conv2D(2, 3)(layers.Rescaling(1 / 255)(inputs))
    student = keras.Model(inputs, layers.Flatten()(x))
    qat = quantize_aware(student)
    x = rng.integers(0, 256, (4, 6, 6, 1), dtype="uint8")
    np.testing.assert_allclose(qat(x), student(x), atol=1e-5)
    calibrate(qat, x)
    exported = for_export(qat)
    assert exported.inputs[0].dtype == "float32"
    assert exported.layers[1].fixed_range == (0.0, 255.0)
    np.testing.assert_allclose(exported(x.astype("float32")), qat(x), atol=1e-5)


def test_input_ranges_by_name_and_measured():
    inputs = [keras.Input((2,), name="zeta"), keras.Input((2,), name="alpha")]
    outputs = layers.Add()([layers.Dense(2)(x) for x in inputs])
    qat = quantize_aware(keras.Model(inputs, outputs), input_range={"alpha": (-1, 3)})
    for top in (5.0, 1.0):
        qat([np.array([[-top, top]])] * 2, training=True)
    exported = for_export(qat)
    assert exported.get_layer("alpha_fake_quant").fixed_range == (-1.0, 3.0)
    assert exported.get_layer("zeta_fake_quant").fixed_range == (-5.0, 5.0)


def test_output_names_survive_fake_quantization():
    inputs = keras.Input((4,))
    logits = layers.Dense(2, name="logits")(inputs)
    student = keras.Model(
        inputs, [logits, layers.Dense(3, name="other")(logits), logits]
    )
    qat = quantize_aware(student)
    assert qat.output_names[:2] == student.output_names[:2]
    qat = quantize_aware(keras.Model(inputs, [logits, student.outputs[1]]))
    qat.compile("sgd", {"logits": "mse", "other": "mse"}, run_eagerly=True)
    qat.fit(
        np.ones((2, 4)),
        {"logits": np.ones((2, 2)), "other": np.ones((2, 3))},
        verbose=0,
    )


# --- other bits, and ranges that are learned


def bright_net():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="scores")(x), name="bright")


# Ranges that are measured only: `mobile` in int8, and all of `test_integer_layers.py`.
@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("int16x8", "ema"),
        ("int8", "learned"),
        ("int16x8", "learned"),
        ("int4", "learned"),
    ],
)
def test_every_recipe_trains_saves_and_becomes_an_equal_file(
    name, ranges, tmp_path, rng
):
    x = rng.uniform(-1, 1, (256, 8, 8, 3)).astype("float32")
    y = rng.integers(0, 4, 256)
    x *= (y[:, None, None, None] + 1) / 4
    student = bright_net()
    qat = quantize_aware(student, name, ranges=ranges)
    np.testing.assert_allclose(qat(x), student(x), atol=1e-5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(
        keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], run_eagerly=True
    )
    losses = qat.fit(x, y, batch_size=128, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    learned = [
        variable.numpy()
        for variable in qat.trainable_variables
        if variable.path.rsplit("/", 1)[-1] in ("stretch", "shrink")
    ]
    assert len(learned) == (0 if ranges == "ema" else 6)
    assert all(np.abs(values).max() > 0 for values in learned[1:])
    qat.save(tmp_path / "qat.keras")
    loaded = keras.saving.load_model(tmp_path / "qat.keras")
    np.testing.assert_array_equal(loaded(x), qat(x))
    content = convert(for_export(loaded), str(tmp_path), recipe=name)
    assert_same_within_one_step(qat, content, x[:64])


def test_learned_ranges_are_better_where_bits_are_few(rng):
    # Heavy tails: the largest weight of a channel is far beyond all others.
    kernel = (rng.standard_t(2, (64, 16)) * 0.1).astype("float32")
    x = rng.standard_t(3, (512, 64)).astype("float32")
    student = keras.Sequential([keras.Input((64,)), layers.Dense(16, name="d")])
    student.set_weights([kernel, np.zeros(16)])
    y = student(x).numpy()
    losses = {"ema": 0.0, "learned": 0.0}
    # One training tells little: it goes either way.
    for seed in range(4):
        for ranges in losses:
            keras.utils.set_random_seed(seed)
            qat = quantize_aware(student, "int4", ranges=ranges)
            qat.compile(keras.optimizers.Adam(0.01), "mse")
            qat.fit(x, y, batch_size=64, epochs=12, verbose=0)
            losses[ranges] += np.mean((qat(x, training=False) - y) ** 2)
    assert losses["learned"] < 0.8 * losses["ema"]


# --- what is refused


def tiny():
    return keras.Sequential([keras.Input((4,)), layers.Dense(2, name="d")], name="tiny")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: quantize_aware(tiny(), "float32"),
            "needs a recipe with integer activations. Received: recipe='float32'",
        ),
        (lambda: quantize_aware(tiny(), "int3"), "No recipe.*'int3'"),
        (
            lambda: quantize_aware(tiny(), Recipe("narrow", 4, 16)),
            "4-bit weights with activations of 8, as TFLite's kernels do. Received: "
            "recipe='narrow' with 4-bit weights and 16-bit activations. Use 'int8'",
        ),
        (
            lambda: quantize_aware(tiny(), ranges="lsq"),
            "`ranges` must be one of 'ema', 'learned'. Received: ranges='lsq'. Use",
        ),
        (lambda: trained_bits(tiny()), "must be quantization-aware"),
        (
            lambda: quantize_aware(quantize_aware(tiny())),
            "quantization-aware already. Received: student='tiny'",
        ),
        (
            lambda: quantize_aware(tiny(), overrides={"*": "float32"}),
            "integers somewhere. Received: model 'tiny', whose layers are left in",
        ),
        (
            lambda: quantize_aware(tiny(), input_range={"nope": (0, 1)}),
            "an input the student does not have. Received: 'nope'. Inputs: ",
        ),
        (lambda: quantize_aware(tiny(), input_range=(1, 0)), r"range=\(1, 0\)"),
        (
            lambda: quantize_aware(tiny(), input_range=(-4e-6, 5e-6)),
            r"1e-05 wide, 0 included.*range=\(-4e-06, 5e-06\).* larger values",
        ),
        (lambda: for_export(tiny()), "must be quantization-aware. .*model='tiny'"),
        (lambda: freeze_batch_norm(tiny()), "must be quantization-aware"),
        (
            lambda: for_export(quantize_aware(tiny(), input_range=(0, 1))),
            "must have been measured in training. Received: model='tiny' with 1 ranges "
            "not set, the first of 'd_fake_quant'. Train it",
        ),
    ],
)
def test_errors_say_what_to_do(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Dense(2, activation="relu", name="d"),
        keras.layers.SeparableConv1D(2, 1, name="d"),
        keras.layers.EinsumDense("abc,cd->abd", (None, 2), bias_axes="d", name="d"),
    ],
)
def test_a_layer_of_dead_channels_can_be_left_by_the_name_in_the_error(layer, rng):
    inputs = keras.Input((4, 3))
    block = keras.Sequential([keras.Input((4, 3)), layer], name="block")
    student = keras.Model(inputs, keras.layers.Dense(2)(block(inputs)))
    *_, kernel, bias = layer.get_weights()
    layer.set_weights([*_, np.zeros_like(kernel), bias + 1.0])
    qat = quantize_aware(student, "int16x8")
    calibrate(qat, rng.normal(size=(8, 4, 3)).astype("float32"))
    left = {"d": "float32"}
    with pytest.raises(ValueError, match=rf"\[0, 1\] of layer 'd'.*overrides={left}"):
        for_export(qat)
    assert float_layers(quantize_aware(student, "int16x8", overrides=left)) == ("d",)


def test_a_student_is_a_keras_model():
    with pytest.raises(TypeError, match="must be a Keras model. Received: student=str"):
        quantize_aware("student.keras")


def test_mixed_precision_is_refused():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with pytest.raises(ValueError, match="global dtype policy.*'mixed_float16'"):
            quantize_aware(tiny())
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("name", "bits"), [("int8", (8, 8)), ("int16x8", (8, 16)), ("int4", (4, 8))]
)
def test_a_model_knows_what_it_was_made_for(name, bits, tmp_path):
    qat = quantize_aware(tiny(), name)
    assert trained_bits(qat) == bits
    qat.save(tmp_path / "qat.keras")
    assert trained_bits(keras.saving.load_model(tmp_path / "qat.keras")) == bits


def test_a_model_whose_ranges_are_all_known_is_quantization_aware():
    inputs = keras.Input((4,), name="x")
    outputs = layers.Reshape((2, 2), name="y")(inputs)
    qat = quantize_aware(keras.Model(inputs, outputs), input_range=(0.0, 255.0))
    assert is_quantize_aware(qat)
    assert not is_quantize_aware(for_export(qat))


def test_a_recipe_may_be_given_itself():
    assert is_quantize_aware(quantize_aware(tiny(), recipe("int8")))


def test_a_deep_network_is_equal_to_the_bit(rng, tmp_path):
    """One value on another level makes many others so, layer by layer."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((24,), name="x")
    x = inputs
    for _ in range(8):
        bias = keras.initializers.RandomUniform(-0.5, 0.5)
        x = layers.ReLU()(layers.Dense(48, bias_initializer=bias)(x))
    student = keras.Model(inputs, layers.Dense(10, name="y")(x))
    for layer in student.layers[1:-1:6]:  # channels that were pruned away
        kernel, bias = layer.get_weights()
        kernel[:, ::5] = 0.0
        layer.set_weights([kernel, bias])
    qat = quantize_aware(student)
    x = rng.normal(0, 1, (500, 24)).astype("float32")
    qat(x, training=True)
    values, scale, _ = run_lite(convert(for_export(qat), str(tmp_path)), x)[0][0]
    steps = np.abs(values - qat(x, training=False).numpy()) / scale
    assert np.mean(steps < 0.01) > 0.99


def test_a_graph_of_16_bits_computes_what_eager_calls_do(rng):
    # TensorFlow's graphs turn a division by a constant into a product.
    # Of many channels some are one bit from another scale.
    inputs = x = keras.Input((2, 2, 8))
    for channels in (8, 4096):
        x = layers.BatchNormalization()(layers.Conv2D(channels, 1)(x))
    student = keras.Model(inputs, x)
    randomize(student, rng)
    qat = quantize_aware(student, "int16x8")
    freeze_batch_norm(qat)
    x = rng.normal(size=(256, 2, 2, 8)).astype("float32")
    qat(x, training=True)
    eager, graph = qat(x, training=False).numpy(), qat.predict(x, verbose=0)
    np.testing.assert_array_equal(graph, eager)
