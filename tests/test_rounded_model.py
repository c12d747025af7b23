"""Where a model rounds: tensors of one range, and ranges by definition."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops
from quantizing import calibrate, convert, run_lite

from kdlite.compress.fake_quant import FakeQuant
from kdlite.compress.qat import for_export, quantize_aware


def test_gates_have_the_range_of_their_function() -> None:
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="sigmoid", name="gate")(inputs)
    x = layers.Multiply()([inputs, x])
    x = layers.Dense(4, activation="hard_sigmoid", name="hard")(x)
    x = layers.Dense(4, activation="tanh", name="tanh")(x)
    qat = quantize_aware(keras.Model(inputs, layers.Dense(2)(x)))
    ranges = {
        layer.name: layer.fixed_range
        for layer in qat.layers
        if getattr(layer, "fixed_range", None)
    }
    assert set(ranges.values()) == {(0.0, 255 / 256), (0.0, 1.0), (-1.0, 127 / 128)}


def test_a_probability_at_the_end_is_not_rounded_and_one_inside_is(rng) -> None:
    inputs = keras.Input((4,))
    inside = layers.Dense(3, activation="softmax", name="inside")(inputs)
    ending = layers.Dense(3, activation="softmax", name="ending")(inside)
    shown = layers.Reshape((3, 1), name="shown")(ending)
    model = keras.Model(inputs, [inside, shown])
    qat = quantize_aware(model)
    values, last = qat(rng.normal(0, 1, (8, 4)).astype("float32"))
    np.testing.assert_array_equal(ops.round(values * 256), values * 256)
    assert np.abs(ops.round(last * 256) - last * 256).max() > 1e-3


def test_prelu_is_shared_between_calls() -> None:
    inputs = keras.Input((4,))
    prelu = layers.PReLU(name="prelu")
    qat = quantize_aware(keras.Model(inputs, prelu(layers.Dense(4)(prelu(inputs)))))
    assert sum(isinstance(layer, layers.PReLU) for layer in qat.layers) == 1
    assert len(qat.trainable_variables) == 3


def test_a_hard_sigmoid_has_no_range_but_its_own() -> None:
    inputs = keras.Input((4,))
    gate = layers.Dense(4, activation="hard_sigmoid", name="gate")(inputs)
    model = keras.Model(
        inputs, layers.Concatenate()([inputs, layers.Reshape((4,))(gate)])
    )
    with pytest.raises(
        ValueError, match="Received: layer 'gate', whose.*one. Use a sig"
    ):
        quantize_aware(model)


@pytest.mark.parametrize(
    ("recipe", "gates"),
    [
        ("int16x8", ("sigmoid", "tanh", "softmax")),
        ("int8", ("hard_sigmoid", "hard_sigmoid")),
    ],
)
@pytest.mark.parametrize("joined", [layers.Concatenate, layers.Maximum])
def test_functions_of_one_range_can_meet(recipe, gates, joined, rng, tmp_path) -> None:
    inputs = keras.Input((4, 4, 3))
    parts = [layers.Conv2D(4, 1, activation=gate)(inputs) for gate in gates]
    parts[1] = layers.MaxPooling2D(2, 1, "same")(parts[1])
    student = keras.Model(inputs, joined()(parts))
    qat = quantize_aware(student, recipe)
    x = rng.normal(0, 2, (32, 4, 4, 3)).astype("float32")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    ((values, scale, _),) = run_lite(content, x)[0]
    # To the bit, as float32 has it.
    np.testing.assert_allclose(qat(x), values, rtol=1e-6, atol=scale / 1000)
    assert len(np.unique(values)) > 64


def test_a_sigmoid_that_meets_others_has_their_range(rng) -> None:
    inputs = keras.Input((4,))
    gate = layers.Dense(4, activation="sigmoid", name="gate")(inputs)
    model = keras.Model(inputs, layers.Concatenate()([inputs, gate]))
    qat = quantize_aware(model)
    qat(rng.uniform(-3, 3, (64, 4)).astype("float32"), training=True)
    found = [layer for layer in for_export(qat).layers if type(layer) is FakeQuant]
    ranges = {layer.fixed_range for layer in found}
    # Of the input, the sigmoid and the concatenation; and of what the sigmoid takes.
    assert len(ranges) == 2
    assert (0.0, 255 / 256) not in ranges


@pytest.mark.parametrize("structure", ["list", "by its name", "by another"])
def test_an_input_that_is_given_back_keeps_its_name(structure) -> None:
    x = keras.Input((4,), name="x")
    h = layers.Dense(3, name="h")(x)
    outputs = {
        "list": [h, x],
        "by its name": {"a": h, "x": x},
        "by another": {"a": h, "b": x},
    }
    model = keras.Model(x, outputs[structure])
    qat = quantize_aware(model)
    assert [x.name for x in qat.inputs] == ["x"]
    assert qat.output_names == model.output_names
    values = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    qat.compile("sgd", "mse")
    qat.fit(values, model.predict(values, verbose=0), verbose=0)
    made = for_export(qat)
    assert [x.name for x in made.inputs] == ["x"]
    *_, given_back = keras.tree.flatten(made(values))
    np.testing.assert_array_equal(given_back, values)
