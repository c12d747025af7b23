"""Operations on levels: the Keras layers give what LiteRT gives, to the bit."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from quantizing import calibrate, convert, randomize, run_lite

from kdlite.compress.fake_quant import floor_log2
from kdlite.compress.qat import for_export, quantize_aware
from kdlite.compress.wide_operations import In8Bits, In16Bits

LEVELS = np.arange(-(2**15), 2**15)
# From an input that is all but constant to one that is far beyond the table, and in
# between so that what is kept of a scale has other bits.
WIDEST = (1e-2, 0.7, 3.0, 9.0, 41.0, 1000.0)


def side_by_side(model, x, widest, folder):
    """The levels that the quantization-aware model gives, and those of its file."""
    qat = quantize_aware(model, "int16x8", input_range=(-widest, widest))
    content = convert(for_export(qat), str(folder), recipe="int16x8")
    ((values, scale, zero),), _ = run_lite(content, x)
    assert (scale, zero) == (2.0**-15, 0)
    return qat.predict(x, verbose=0) / scale, values / scale


@pytest.mark.parametrize("widest", WIDEST)
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_each_of_the_65536_inputs(function, widest, tmp_path) -> None:
    model = keras.Sequential([keras.Input((2**14,)), layers.Activation(function)])
    x = (LEVELS * (widest / (2**15 - 1))).astype("float32").reshape(4, -1)
    looked_up, kernel = side_by_side(model, x, widest, tmp_path)
    np.testing.assert_array_equal(looked_up, kernel)
    # It is the function, but for what the table is off by.
    exact = np.float64(model(x)) * 2**15
    assert 0.6 < np.abs(kernel - exact).max() < 4


@pytest.mark.parametrize("widest", [7.991, 8.0, 8.009, 16.0])
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_a_range_that_another_kernel_would_shift(function, widest, rng, tmp_path):
    model = of_one((2**10,), layers.Activation(function))
    x = rng.uniform(-widest, widest, (16, 2**10)).astype("float32")
    looked_up, kernel = side_by_side(model, x, widest, tmp_path)
    np.testing.assert_array_equal(looked_up, kernel)


@pytest.mark.parametrize("widest", WIDEST[1::2])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_softmax(classes, widest, rng, tmp_path) -> None:
    model = keras.Sequential([keras.Input((40, classes)), layers.Softmax()])
    # Rows of all widths, so that sums have all numbers of bits.
    levels = rng.uniform(-1, 1, (8, 40, classes)) * rng.uniform(0, 1, (8, 40, 1))
    x = np.round(levels * (2**15 - 1)) * (widest / (2**15 - 1))
    x = x.astype("float32")
    looked_up, kernel = side_by_side(model, x, widest, tmp_path)
    np.testing.assert_array_equal(looked_up, kernel)


def test_before_a_range_is_known_it_is_the_function(rng) -> None:
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4), layers.Softmax(), layers.Dense(2)]
    )
    x = rng.normal(0, 3, (16, 6)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    np.testing.assert_allclose(qat(x), model(x), atol=1e-4)


def test_a_loss_sees_no_probability_that_is_rounded_to_zero() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Softmax()])
    x = np.array([[0.0, 20.0, -20.0]], "float32")
    qat = quantize_aware(model, "int16x8", input_range=(-32.0, 32.0))
    np.testing.assert_allclose(qat(x, training=True), model(x), rtol=1e-2)
    # In inference it is the table, whose least is far above.
    assert np.min(qat(x, training=False)) > 1e6 * np.min(model(x))
    # Losses read the logits in evaluation as well.
    table = In16Bits(layers.Softmax())
    np.testing.assert_array_equal(
        table(x, input_steps=[2.0**-10], output_step=2.0**-15)._keras_logits, x
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_its_gradient_is_that_of_the_function(jit_compile, rng) -> None:
    x = tf.constant(rng.integers(-300, 300, (5, 4)) / 128, "float32")
    weights = tf.constant(rng.normal(size=(5, 4)), "float32")
    for layer in (
        layers.Activation("tanh"),
        layers.Activation("sigmoid"),
        layers.Softmax(),
    ):
        table = In16Bits(layer)

        @tf.function(jit_compile=jit_compile)
        def slopes(call, **step):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = call(x, **step)
            return y, tape.gradient(y, x, output_gradients=weights)

        y, found = slopes(table, input_steps=[1 / 128], output_step=2.0**-15)
        exact, expected = slopes(layer)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(y, exact, atol=4 * 2.0**-15)
        np.testing.assert_array_equal(y * 2.0**15, np.round(y * 2.0**15))


def test_saved_and_loaded(tmp_path, rng) -> None:
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, activation="silu"), layers.Dense(3)]
    )
    x = rng.normal(size=(16, 6)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    qat.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(x), qat(x))
    table = In16Bits(layers.Softmax(), exact_in_training=True)
    assert In16Bits.from_config(table.get_config()).exact_in_training


def test_other_functions_have_no_table() -> None:
    with pytest.raises(ValueError, match="sigmoid, tanh, softmax, Multiply.*Maximum"):
        In16Bits(layers.Maximum())
    with pytest.raises(ValueError, match="8 bits .*: hard swish, Multiply.*Maximum"):
        In8Bits(layers.Maximum())


def of_two(layer):
    pair = [keras.Input((6, 6, 8)), keras.Input((6, 6, 8))]
    return keras.Model(pair, layer(pair))


def of_one(shape, layer):
    return keras.Sequential([keras.Input(shape), layer])


def deep(activation):
    """What is one level off in the first layer, is several behind the last."""
    inputs = x = keras.Input((8, 8, 3))
    for _ in range(5):
        x = layers.Conv2D(16, 3, padding="same", activation=activation)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, use_bias=activation == "tanh")(x))


ROUNDED = {
    "product": lambda: of_two(layers.Multiply()),
    "sum": lambda: of_two(layers.Add()),
    "difference": lambda: of_two(layers.Subtract()),
    "relu": lambda: of_one((6, 6, 8), layers.ReLU()),
    "leaky_relu": lambda: of_one((6, 6, 8), layers.LeakyReLU(0.2)),
    "mean_of_4": lambda: of_one((4, 8), layers.GlobalAveragePooling1D()),
    "mean_of_5": lambda: of_one((5, 8), layers.GlobalAveragePooling1D()),
    "mean_of_49": lambda: of_one((7, 7, 8), layers.GlobalAveragePooling2D()),
    "mean_kept": lambda: of_one(
        (2, 3, 8), layers.GlobalAveragePooling2D(keepdims=True)
    ),
    "pooling_of_2": lambda: of_one((6, 8), layers.AveragePooling1D(2)),
    "pooling_of_4": lambda: of_one((6, 6, 8), layers.AveragePooling2D(2)),
    "pooling_of_9": lambda: of_one((6, 6, 8), layers.AveragePooling2D(3)),
    "dense": lambda: of_one((16,), layers.Dense(8)),
    "dense_without_bias": lambda: of_one((16,), layers.Dense(8, use_bias=False)),
    "conv": lambda: of_one((6, 6, 8), layers.Conv2D(8, 3)),
    "depthwise": lambda: of_one((6, 6, 8), layers.DepthwiseConv2D(3)),
    "transposed": lambda: of_one((6, 6, 8), layers.Conv2DTranspose(8, 3)),
    "deep_tanh": lambda: deep("tanh"),
    "deep_silu": lambda: deep("silu"),
}


@pytest.mark.parametrize("kind", ROUNDED)
def test_rounded_as_their_kernels_do(kind, rng, tmp_path) -> None:
    model = ROUNDED[kind]()
    randomize(model, rng)
    x = [rng.normal(size=(64, *t.shape[1:])).astype("float32") for t in model.inputs]
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x if len(x) > 1 else x[0])
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    rounded = qat(x if len(x) > 1 else x[0], training=False).numpy()
    ((values, scale, _),), _ = run_lite(content, *x)
    off = np.abs(values - rounded) / scale
    assert off.max() < 0.5


@pytest.mark.parametrize("ratio", [1.0, 0.7, 1e-3, 1e-6])
@pytest.mark.parametrize("shape", [(6, 6, 8), (5, 3, 7), (9,)])
def test_a_sum_that_all_but_cancels(shape, ratio, rng, tmp_path) -> None:
    pair = [keras.Input(shape), keras.Input(shape)]
    model = keras.Model(pair, layers.Add()(pair))
    # A narrow output shows the bits that the inputs have lost.
    first = rng.uniform(-1, 1, (64, *shape))
    noise = 2e-3 * rng.uniform(-1, 1, first.shape)
    x = [first.astype("float32"), (ratio * (noise - first)).astype("float32")]
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    ((values, scale, _),), _ = run_lite(content, *x)
    rounded = qat(x, training=False).numpy()
    np.testing.assert_array_equal(np.rint(rounded / scale), np.rint(values / scale))


def test_an_input_range_that_is_known_is_counted_from_zero(rng, tmp_path) -> None:
    model = of_one((6, 6, 8), layers.Conv2D(8, 3))
    x = rng.uniform(-3, 3, (256, 6, 6, 8)).astype("float32")
    qat = quantize_aware(model, "int16x8", input_range=(-3.3, 3.3))
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    ((values, scale, _),), _ = run_lite(content, x)
    rounded = qat(x, training=False).numpy()
    np.testing.assert_array_equal(np.rint(rounded / scale), np.rint(values / scale))


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("shape", [(1200,), (2, 1200)])
def test_a_sum_beyond_32_bits(shape, use_bias, rng, tmp_path) -> None:
    """Of inputs at their highest level, 516 weights at theirs have 2^31."""
    model = of_one(shape, layers.Dense(4, use_bias=use_bias, name="d"))
    kernel = rng.uniform(0.9, 1.0, (1200, 4)).astype("float32")
    # The converter takes out a bias of zeros, too.
    model.get_layer("d").set_weights([kernel, np.zeros(4)][: 1 + use_bias])
    x = rng.uniform(0.9, 1.0, (16, *shape)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    ((values, scale, _),), _ = run_lite(content, x)
    np.testing.assert_allclose(values, qat(x, training=False), atol=scale / 2)
    np.testing.assert_allclose(values, model(x), rtol=1e-2)


def test_a_mean_beyond_32_bits_is_refused() -> None:
    model = of_one((300, 300, 3), layers.GlobalAveragePooling2D(name="all_places"))
    with pytest.raises(ValueError, match="'all_places'.*90,000 places.*32 bits"):
        quantize_aware(model, "int16x8")
    quantize_aware(model, "int8")


@pytest.mark.parametrize(
    ("layer", "wide"),
    [
        (layers.Activation("tanh", name="gate"), 2e5),
        (layers.Activation("sigmoid", name="gate"), 2e5),
        (layers.Softmax(name="gate"), 9e4),
    ],
)
def test_inputs_that_a_table_does_not_take(layer, wide, rng) -> None:
    model = of_one((4,), type(layer).from_config(layer.get_config()))
    for widest in (wide, 1e7, 1e25):
        qat = quantize_aware(model, "int16x8")
        x = (widest * rng.uniform(-1, 1, (32, 4))).astype("float32")
        x[0, :2] = -widest, widest
        assert np.isfinite(qat(x, training=True)).all()
        assert np.isfinite(qat.predict(x, verbose=0)).all()
        with pytest.raises(ValueError, match="takes inputs within.*'gate'.*Scale"):
            for_export(qat)


@pytest.mark.parametrize("kind", [layers.Add, layers.Subtract])
def test_a_sum_is_not_too_narrow_for_its_kernel(kind, rng, tmp_path) -> None:
    inputs = [keras.Input((8,), name=name) for name in "ab"]
    model = keras.Model(inputs, kind(name="rest")(inputs))
    first = rng.integers(-32000, 32000, (64, 8))
    first[0, :2] = -32767, 32767
    sign = -1 if kind is layers.Add else 1
    for steps in (4, 1):
        # Some 8,192 and 32,767 times narrower.
        rest = rng.integers(-steps, steps + 1, first.shape)
        rest[0, :2] = 0
        x = [y.astype("float32") / 32767 for y in (first, sign * (first + rest))]
        qat = quantize_aware(model, "int16x8")
        calibrate(qat, x)
        if steps == 1:
            with pytest.raises(ValueError, match="less than 16,384.*'rest'.*as 1 and"):
                for_export(qat)
            continue
        content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
        ((values, scale, _),), _ = run_lite(content, *x)
        expected = qat(x, training=False)
        assert np.abs(values - expected).max() <= 1.01 * scale


def test_what_is_not_a_number_stays_with_its_sample(rng) -> None:
    model = of_one((6,), layers.Activation("tanh"))
    x = rng.normal(size=(8, 6)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    clean = qat(x).numpy()
    x[3] = np.nan
    found = qat(x).numpy()
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(clean, 3, 0))


@pytest.mark.parametrize(("offset", "cut"), [(100.0, False), (2000.0, True)])
def test_a_bias_beyond_32_bits_is_refused(offset, cut, rng, tmp_path) -> None:
    model = of_one((8,), layers.Dense(2, name="year"))
    kernel = rng.uniform(0.5, 1.0, (8, 2))
    model.get_layer("year").set_weights([kernel, np.array([offset, 0.0])])
    x = rng.uniform(0, 1, (64, 8)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    if cut:
        with pytest.raises(ValueError, match=r"32 bits.*\[0\] of layer 'year'"):
            for_export(qat)
        return
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    ((values, scale, _),), _ = run_lite(content, x)
    np.testing.assert_allclose(values, qat(x, training=False), atol=scale / 2)


@pytest.mark.parametrize("keepdims", [True, False])
def test_means_over_an_open_size(keepdims, rng, tmp_path) -> None:
    pool = layers.GlobalAveragePooling2D(keepdims=keepdims)
    model = of_one((None, None, 8), pool)
    x = rng.normal(size=(64, 8, 8, 8)).astype("float32")
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe="int16x8")
    for height, width in ((8, 8), (5, 7), (1, 1), (3, 11)):
        part = rng.normal(size=(64, height, width, 8)).astype("float32")
        ((values, scale, _),), _ = run_lite(content, part)
        for rounded in (qat(part, training=False), qat.predict(part, verbose=0)):
            np.testing.assert_allclose(values, rounded, atol=scale / 2)


def test_powers_of_two_are_themselves_in_graphs() -> None:
    powers = 2.0 ** np.arange(-40, 41)
    near = [powers, powers * (1 + 1e-9), powers * (1 - 1e-9)]
    expected = [np.arange(-40, 41) + less for less in (0, 0, -1)]
    graph = tf.function(floor_log2)
    np.testing.assert_array_equal(graph(np.stack(near)), np.stack(expected))
    np.testing.assert_array_equal(graph(2 ** np.arange(41)), np.arange(41))


DEAD = {
    "conv": (layers.Conv2D(6, 3), np.s_[..., 1]),
    "depthwise": (layers.DepthwiseConv2D(3), np.s_[:, :, 1]),
    "transposed": (layers.Conv2DTranspose(6, 3), np.s_[:, :, 1, :]),
    "dense": (layers.Dense(6), np.s_[..., 1]),
}


@pytest.mark.parametrize("kind", DEAD)
def test_a_channel_without_weights_is_refused(kind, rng) -> None:
    made, channel = DEAD[kind]
    layer = type(made).from_config({**made.get_config(), "name": "dead"})
    model = keras.Sequential([keras.Input((6, 6, 8)), layer])
    kernel, bias = layer.get_weights()
    kernel[channel] = 0.0
    layer.set_weights([kernel, bias + 0.5])
    x = rng.normal(size=(8, 6, 6, 8)).astype("float32")
    for recipe in ("int8", "int16x8"):
        qat = quantize_aware(model, recipe)
        calibrate(qat, x)
        if recipe == "int8":
            for_export(qat)
            continue
        with pytest.raises(ValueError, match=r"channels \[1\] of layer 'dead'.*int8"):
            for_export(qat)
    # Without a bias nothing is cut off.
    layer.set_weights([kernel, 0.0 * bias])
    qat = quantize_aware(model, "int16x8")
    calibrate(qat, x)
    for_export(qat)
