"""Taps: which output a model has is read off its graph, and its logits are exact."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kdlite.compress.qat import quantize_aware
from kdlite.distill.taps import LogitsModel, logits_model

CLASSES = 3


def stack(*more, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *more])


def functional(head, shape=(4,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, head(inputs))


def dense(activation=None):
    return layers.Dense(CLASSES, activation=activation)


class Subclassed(keras.Model):
    def __init__(self, activation):
        super().__init__()
        self.dense = dense(activation)

    def call(self, x):
        return self.dense(x)


class Overriding(keras.Model):
    """A graph of logits, and a `call` of its own that the graph knows nothing of."""

    def call(self, inputs, training=None):
        return ops.softmax(super().call(inputs))


def run(model, rng):
    shape = model.input_shape if hasattr(model, "input_shape") else (None, 4)
    x = rng.normal(size=(5, *shape[1:])).astype("float32")
    return x, model(x)


SOFTMAX_HEADS = {
    "dense": lambda: stack(dense("softmax")),
    "activation": lambda: stack(dense(), layers.Activation("softmax")),
    "softmax layer": lambda: stack(dense(), layers.Softmax()),
    "softmax over [-1]": lambda: stack(dense(), layers.Softmax(axis=[-1])),
    "softmax over the last axis": lambda: stack(dense(), layers.Softmax(axis=1)),
    "activation as a layer": lambda: stack(dense(layers.Softmax())),
    "convolution": lambda: stack(
        layers.Conv2D(CLASSES, 1, activation="softmax"), shape=(2, 2, 4)
    ),
    "operation": lambda: functional(lambda x: ops.softmax(dense()(x))),
    "function": lambda: functional(lambda x: keras.activations.softmax(dense()(x))),
    "nested stack": lambda: stack(layers.Dense(4), stack(dense("softmax"))),
    "nested twice": lambda: functional(
        lambda x: stack(stack(dense(), layers.Softmax()))(layers.Dense(4)(x))
    ),
    "identity behind": lambda: stack(dense("softmax"), layers.Identity()),
    "linear behind": lambda: stack(dense("softmax"), layers.Activation("linear")),
    "unbuilt": lambda: keras.Sequential([layers.Dense(4), dense("softmax")]),
    "unbuilt, nested": lambda: keras.Sequential([keras.Sequential([dense("softmax")])]),
}


@pytest.mark.parametrize("make", SOFTMAX_HEADS.values(), ids=SOFTMAX_HEADS)
def test_a_softmax_head_is_recognised_and_its_input_read(make, rng):
    model = make()
    read = logits_model(model)
    assert read.outputs == "probabilities"
    x, output = run(model, rng)
    logits = read.read(output)
    # Not only equal up to a shift: the very numbers that went into the softmax.
    np.testing.assert_array_equal(ops.softmax(logits), output)
    np.testing.assert_array_equal(read(x), logits)
    assert np.abs(np.asarray(logits).sum(axis=-1)).max() > 1e-3


def test_the_logits_are_the_weights_times_the_input(rng):
    model = stack(dense("softmax"))
    x = rng.normal(size=(5, 4)).astype("float32")
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(logits_model(model)(x), x @ kernel + bias, atol=1e-6)


AVERAGED = {
    "of an ensemble": lambda: functional(
        lambda x: layers.Average()([dense("softmax")(x), dense("softmax")(x)])
    ),
    "over positions": lambda: stack(
        layers.Conv2D(CLASSES, 1, activation="softmax"),
        layers.GlobalAveragePooling2D(),
        shape=(2, 2, 4),
    ),
    "by time": lambda: stack(layers.TimeDistributed(dense("softmax")), shape=(2, 4)),
    "flattened": lambda: stack(
        layers.Conv2D(CLASSES, 2, activation="softmax"),
        layers.Flatten(),
        shape=(2, 2, 4),
    ),
}


@pytest.mark.parametrize("make", AVERAGED.values(), ids=AVERAGED)
def test_probabilities_behind_other_layers_give_logits_up_to_a_shift(make, rng):
    model = make()
    read = logits_model(model)
    assert read.outputs == "probabilities"
    _, output = run(model, rng)
    np.testing.assert_allclose(ops.softmax(read.read(output)), output, atol=1e-6)


LOGIT_HEADS = {
    "dense": lambda: stack(dense()),
    "linear": lambda: stack(dense("linear"), layers.Activation("linear")),
    "log-softmax": lambda: stack(dense("log_softmax")),
    "log-softmax operation": lambda: functional(lambda x: ops.log_softmax(dense()(x))),
    "softmax inside": lambda: stack(layers.Dense(4, activation="softmax"), dense()),
    "pooled": lambda: stack(
        layers.Conv2D(CLASSES, 1), layers.GlobalAveragePooling2D(), shape=(2, 2, 4)
    ),
    "reshaped": lambda: stack(
        layers.Conv2D(CLASSES, 2), layers.Reshape((CLASSES,)), shape=(2, 2, 4)
    ),
    "added": lambda: functional(lambda x: layers.Add()([dense()(x), dense()(x)])),
    "arithmetic": lambda: functional(lambda x: -(dense()(x) / 2.0 + 1.0) * 3.0),
    "normalized": lambda: stack(dense(), layers.BatchNormalization()),
    "dropout": lambda: stack(dense(), layers.Dropout(0.5)),
    "nested": lambda: stack(stack(dense())),
}


@pytest.mark.parametrize("make", LOGIT_HEADS.values(), ids=LOGIT_HEADS)
def test_a_linear_head_passes(make, rng):
    model = make()
    read = logits_model(model)
    assert read.outputs == "logits"
    _, output = run(model, rng)
    np.testing.assert_array_equal(read.read(output), output)


@pytest.mark.parametrize("index", [0, 1])
def test_one_output_of_a_nested_model_is_found(index):
    inputs = keras.Input((4,))
    two = keras.Model(inputs, [dense("softmax")(inputs), dense()(inputs)])
    model = functional(lambda x: two(x)[index])
    assert logits_model(model).outputs == ("probabilities", "logits")[index]


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_quantization_aware_students_are_read(activation, rng):
    student = stack(layers.Dense(4, activation="relu"), dense(activation))
    aware = quantize_aware(student, input_range=(-3.0, 3.0))
    read = logits_model(aware)
    assert read.outputs == ("probabilities" if activation else "logits")
    _, output = run(aware, rng)
    expected = ops.softmax(read.read(output)) if activation else read.read(output)
    np.testing.assert_array_equal(expected, output)


@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_runs_in_compiled_code(activation, jit_compile, rng):
    model = stack(dense(activation))
    read = logits_model(model)
    x = rng.normal(size=(5, 4)).astype("float32")
    compiled = tf.function(read.__call__, jit_compile=jit_compile)
    np.testing.assert_allclose(compiled(x), read(x), atol=1e-6)


def test_the_model_is_left_alone(rng):
    model = stack(layers.Dense(4), layers.BatchNormalization(), dense("softmax"))
    before = model.get_weights()
    config = model.get_config()
    read = logits_model(model)
    read(rng.normal(size=(5, 4)))
    assert model.trainable and all(layer.trainable for layer in model.layers)
    assert read.model is model and model.get_config() == config
    assert all(map(np.array_equal, before, model.get_weights()))
    assert logits_model(read) is read
    assert repr(read) == f"LogitsModel('{model.name}', outputs='probabilities')"


@pytest.mark.parametrize(
    ("activation", "outputs"), [(None, "logits"), ("softmax", "probabilities")]
)
def test_a_subclassed_model_is_declared(activation, outputs, rng):
    model = Subclassed(activation)
    with pytest.raises(
        ValueError,
        match=r"must be known whether the teacher returns.*class Subclassed has its own"
        r".*teacher_outputs='logits'",
    ):
        logits_model(model, role="teacher")
    read = logits_model(model, outputs)
    x = rng.normal(size=(5, 4)).astype("float32")
    kernel, bias = (model(x), model.get_weights())[1]
    np.testing.assert_allclose(read(x), x @ kernel + bias, atol=1e-6)


def test_a_call_of_its_own_outweighs_the_graph(rng):
    inputs = keras.Input((4,))
    model = Overriding(inputs, dense()(inputs))
    with pytest.raises(ValueError, match="class Overriding has its own call"):
        logits_model(model)
    read = logits_model(model, "probabilities")
    x, output = run(model, rng)
    np.testing.assert_allclose(ops.softmax(read(x)), output, atol=1e-6)


def test_declared_probabilities_may_be_zero():
    model = Subclassed(lambda x: ops.one_hot(ops.argmax(x, axis=-1), CLASSES))
    logits = logits_model(model, "probabilities")(np.eye(4, dtype="float32"))
    assert np.isfinite(logits).all()
    assert set(np.unique(np.asarray(logits) == 0.0)) == {True, False}


def test_an_unknown_head_is_an_error_until_declared(rng):
    for model, text in (
        (stack(dense("relu")), "the activation 'relu' of Dense"),
        (stack(dense(), layers.Lambda(lambda x: x)), "ends in Lambda"),
        (functional(lambda x: ops.tanh(dense()(x))), "ends in Tanh"),
        (
            functional(lambda x: layers.Add()([dense("softmax")(x), dense()(x)])),
            "ends in Add 'add.*' of probabilities",
        ),
        (
            functional(lambda x: layers.Average()([dense("softmax")(x), dense()(x)])),
            "ends in Average 'average.*' of logits and of others",
        ),
        (
            stack(
                layers.Conv2D(CLASSES, 1, activation="softmax"),
                layers.Flatten(),
                shape=(2, 2, 4),
            ),
            "whose Flatten 'flatten.*' moves the class axis",
        ),
        (functional(layers.Identity()), "ends in InputLayer"),
        (keras.Sequential(), "no layers before its output"),
    ):
        with pytest.raises(ValueError, match=rf"must be known whether.*{text}"):
            logits_model(model)
        assert logits_model(model, "logits").outputs == "logits"


@pytest.mark.parametrize(
    "make",
    [
        lambda: stack(dense("sigmoid")),
        lambda: stack(dense(), layers.Activation("sigmoid")),
        lambda: functional(lambda x: ops.sigmoid(dense()(x))),
        lambda: stack(stack(dense("sigmoid"))),
    ],
)
@pytest.mark.parametrize("declared", [None, "probabilities"])
def test_a_sigmoid_head_is_refused(make, declared):
    rule = (
        r"over classes needs.*a sigmoid\. Fix: .*MultiLabelSoftTargets"
        if declared is None
        else r"must agree with the model.*ends in sigmoid"
    )
    with pytest.raises(ValueError, match=rule):
        logits_model(make(), declared)


def test_a_softmax_over_another_axis_is_refused():
    model = stack(dense(), layers.Softmax(axis=1), shape=(5, 4))
    with pytest.raises(ValueError, match=r"softmax over axis 1 .*on the last axis"):
        logits_model(model)


def test_several_outputs_are_refused(rng):
    model = functional(
        lambda x: [layers.Dense(2, name="a")(x), layers.Dense(3, name="b")(x)]
    )
    with pytest.raises(
        ValueError, match=r"2 outputs \('a', 'b'\)\. Fix: .*outputs\[i\]"
    ):
        logits_model(model)

    class Pair(keras.Model):
        def call(self, x):
            return x, x

    with pytest.raises(ValueError, match=r"one tensor.*'pair.*', which returns tuple"):
        logits_model(Pair(), "logits")(np.zeros((1, 3)))


def test_a_declaration_must_agree_with_the_graph():
    with pytest.raises(ValueError, match=r"must agree.*student_outputs='logits', but"):
        logits_model(stack(dense("softmax")), "logits", role="student")
    with pytest.raises(ValueError, match=r"already read as logits.*='probabilities'"):
        logits_model(logits_model(stack(dense())), "probabilities")
    assert logits_model(stack(dense()), "logits").outputs == "logits"


def test_arguments_are_checked():
    with pytest.raises(
        TypeError, match="`student` must be a keras.Model. Received: st"
    ):
        logits_model("model.keras", role="student")
    with pytest.raises(ValueError, match=r"'values' or None\. Received: model_"):
        LogitsModel(stack(dense()), "softmax")


class TestHalfPrecision:
    @pytest.fixture(autouse=True)
    def half(self):
        keras.config.set_dtype_policy("mixed_float16")
        yield
        keras.config.set_dtype_policy("float32")

    @pytest.mark.parametrize("activation", [None, "softmax"])
    def test_logits_are_float32(self, activation, rng):
        model = stack(dense(activation))
        _, output = run(model, rng)
        assert output.dtype == "float16"
        assert logits_model(model).read(output).dtype == "float32"

    def test_rounded_probabilities_are_refused(self, rng):
        model = stack(dense("softmax"), layers.Activation("linear", dtype="float32"))
        with pytest.raises(ValueError, match="half precision before Activation 'act"):
            logits_model(model)
        fixed = stack(dense(), layers.Activation("softmax", dtype="float32"))
        assert logits_model(fixed).outputs == "probabilities"
        hidden = Subclassed(lambda x: ops.softmax(x) * 1.0)
        with pytest.raises(ValueError, match=r"half-precision.*returns float16\. Fix"):
            logits_model(hidden, "probabilities")(np.zeros((1, 4)))


def test_what_is_read_is_known():
    assert logits_model(stack(dense())).needs == "class logits"
    assert logits_model(stack(dense("sigmoid")), needs="values").needs == "values"
