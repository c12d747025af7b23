"""Heads: sigmoids and values; those of classes are in `test_taps.py`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kdlite.distill.heads import Head, find_head
from kdlite.distill.taps import logits_model

LABELS = 3


def dense(activation=None, units=LABELS):
    return layers.Dense(units, activation=activation)


def functional(make, shape=(4,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, make(inputs), name="m")


def nested(x):
    inner = keras.Sequential([keras.Input((4,)), dense("sigmoid")])
    return inner(x)


SIGMOID_HEADS = {
    "activation": lambda x: dense("sigmoid")(x),
    "layer": lambda x: layers.Activation("sigmoid")(dense()(x)),
    "operation": lambda x: ops.sigmoid(dense()(x)),
    "nested": nested,
    "one unit": lambda x: dense("sigmoid", 1)(x),
    "identity": lambda x: layers.Identity()(dense("sigmoid")(x)),
}


@pytest.mark.parametrize("make", SIGMOID_HEADS.values(), ids=SIGMOID_HEADS)
def test_a_sigmoid_head_is_recognised_and_its_input_read(make, rng):
    model = functional(make)
    head = find_head(model, needs="independent logits")
    assert head.outputs == "sigmoid"
    # Weights so large that every probability is rounded to 0 or 1.
    model.set_weights([1e3 * w for w in model.get_weights()])
    output = model(rng.normal(size=(5, 4)).astype("float32"))
    logits = head.read(output)
    np.testing.assert_array_equal(ops.sigmoid(logits), output)
    assert np.abs(logits).max() > 100.0  # not what is left behind the sigmoid


BEHIND_OTHERS = {
    "of several layers": lambda x: layers.Concatenate()(
        [dense("sigmoid")(x), dense("sigmoid", 1)(x)]
    ),
    "of an ensemble": lambda x: layers.Average()(
        [dense("sigmoid")(x), dense("sigmoid")(x)]
    ),
    "reshaped": lambda x: layers.Reshape((3, 1))(dense("sigmoid")(x)),
}


@pytest.mark.parametrize("make", BEHIND_OTHERS.values(), ids=BEHIND_OTHERS)
def test_sigmoids_behind_other_layers_are_turned_around(make, rng):
    model = functional(make)
    head = find_head(model, needs="independent logits")
    assert head.outputs == "sigmoid"
    output = model(rng.normal(size=(5, 4)).astype("float32"))
    np.testing.assert_allclose(ops.sigmoid(head.read(output)), output, atol=1e-6)


def test_certain_probabilities_give_numbers():
    head = Head("m", "sigmoid", "independent logits")
    certain = head.read(ops.convert_to_tensor([[0.0, 1.0, 0.5]]))
    assert np.isfinite(certain).all()
    assert certain[0, 0] < -80.0 and certain[0, 1] > 15.0 and certain[0, 2] == 0.0


VALUE_HEADS = {
    "linear": lambda x: dense()(x),
    "relu": lambda x: dense("relu")(x),
    "bounded": lambda x: dense("tanh")(x),
    "sigmoid": lambda x: dense("sigmoid")(x),
    "custom": lambda x: layers.Lambda(lambda z: z * 2.0)(dense()(x)),
}


@pytest.mark.parametrize("make", VALUE_HEADS.values(), ids=VALUE_HEADS)
def test_values_are_read_as_they_are(make, rng):
    model = functional(make)
    output = model(rng.normal(size=(5, 4)).astype("float32"))
    head = find_head(model, needs="values")
    np.testing.assert_array_equal(head.read(output), output)


MISFITS = [
    ("class logits", "sigmoid", r"over classes needs class logits or a softmax\..*Fix: "
     r"kdlite\.losses\.MultiLabelSoftTargets"),
    ("independent logits", "softmax", r"over independent labels needs logits or sig.*"
     r"ends in a softmax\. Fix: kdlite\.losses\.SoftTargets"),
    ("values", "softmax", r"over values needs numbers that are no class.*SoftTargets"),
]  # fmt: skip


@pytest.mark.parametrize("needs, activation, text", MISFITS)
def test_a_head_that_does_not_fit_the_loss_names_both(needs, activation, text):
    model = functional(dense(activation))
    with pytest.raises(ValueError, match=text):
        find_head(model, needs=needs)
    with pytest.raises(
        ValueError, match=r"Received: MyLoss for output 'tags' of student 'm', which"
    ):
        find_head(model, needs=needs, role="student", name="tags", loss="MyLoss")


def test_declared_values_have_no_logits():
    model = functional(dense("relu"))
    for needs in ("class logits", "independent logits", None):
        with pytest.raises(ValueError, match=r"returns values\. Fix: .*Regression"):
            find_head(model, "values", needs=needs)
    assert find_head(functional(dense()), "values", needs="values").outputs == "values"


@pytest.mark.parametrize(
    "needs, kinds",
    [
        ("class logits", "logits or probabilities"),
        ("independent logits", "logits or sigmoid"),
        (None, "logits or probabilities or sigmoid"),
    ],
)
def test_an_unknown_head_is_declared(needs, kinds):
    model = functional(dense("relu"))
    with pytest.raises(ValueError, match=rf"whether the teacher returns {kinds}\. Rec"):
        find_head(model, needs=needs, role="teacher")
    assert find_head(model, "logits", needs=needs).outputs == "logits"


def test_any_logits_will_do_where_nothing_is_needed(rng):
    for activation, kind in (
        (None, "logits"),
        ("softmax", "probabilities"),
        ("sigmoid", "sigmoid"),
    ):
        read = logits_model(functional(dense(activation)), needs=None)
        assert read.outputs == kind
        x = rng.normal(size=(2, 4)).astype("float32")
        kernel, bias = read.model.get_weights()
        np.testing.assert_allclose(read(x), x @ kernel + bias, atol=1e-6)


def test_half_precision_sigmoids():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = functional(dense("sigmoid"))
        behind = functional(
            lambda x: layers.Activation("linear", dtype="float32")(dense("sigmoid")(x))
        )
    finally:
        keras.config.set_dtype_policy("float32")
    head = find_head(model, needs="independent logits")
    output = model(np.ones((1, 4), "float32"))
    assert output.dtype == tf.float16 and head.read(output).dtype == tf.float32
    with pytest.raises(ValueError, match="sigmoid runs in half precision before Act"):
        find_head(behind, needs="independent logits")
