"""Where a model rounds: tensors of one range, and ranges by definition."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops
from quantizing import calibrate, convert, run_lite

from kdlite.compress.qat import for_export, quantize_aware
from kdlite.compress.wide_operations import In8Bits


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


def test_prelu_is_shared_between_calls(rng, tmp_path) -> None:
    inputs = keras.Input((4,))
    prelu = layers.PReLU(keras.initializers.Constant(0.3), name="prelu")
    qat = quantize_aware(keras.Model(inputs, prelu(layers.Dense(4)(prelu(inputs)))))
    assert sum(isinstance(layer, In8Bits) for layer in qat.layers) == 1
    assert len(qat.trainable_variables) == 3
    x = rng.normal(size=(64, 4)).astype("float32")
    qat.compile("adam", "mse")
    qat.fit(x, x, verbose=0)
    (slopes,) = [v for v in qat.trainable_variables if v.path.endswith("alpha")]
    assert (slopes.numpy() != np.float32(0.3)).all()
    qat.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert len(again.trainable_variables) == 3
    np.testing.assert_array_equal(again(x), qat(x))
    content = convert(for_export(again), str(tmp_path))
    ((values, scale, _),), _ = run_lite(content, x)
    np.testing.assert_allclose(values, qat(x), atol=1.01 * scale)


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


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "softmax", "hard_sigmoid"])
def test_a_function_with_a_range_can_meet_others(recipe, gate, rng, tmp_path) -> None:
    inputs = keras.Input((6, 4))
    gates = [
        layers.Activation(gate)(inputs),
        layers.Dense(4, activation=gate)(inputs),
        layers.MaxPooling1D(2, 1, "same")(layers.Conv1D(4, 1, activation=gate)(inputs)),
    ]
    outputs = [
        layers.Concatenate()([gates[0], inputs]),
        layers.Maximum()([gates[1], layers.Dense(4)(inputs)]),
        layers.Concatenate(1)([layers.ReLU()(gates[2]), layers.Dense(4)(inputs)]),
        layers.Dense(3)(gates[1]),
    ]
    qat = quantize_aware(keras.Model(inputs, outputs), recipe)
    x = rng.normal(0, 2, (64, 6, 4)).astype("float32")
    calibrate(qat, x)
    content = convert(for_export(qat), str(tmp_path), recipe=recipe)
    for y, (values, scale, _) in zip(qat(x), run_lite(content, x)[0], strict=True):
        # The converter's own step from range to range is another level for one in ten.
        assert np.mean(np.abs(values - y) > scale / 2) < 0.01


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
