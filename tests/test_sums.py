"""Sums whose tensors Keras may take for a bias along other axes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from quantizing import calibrate

from kdlite.compress.qat import for_export, quantize_aware
from kdlite.compress.sums import Mean, Plus, Sum, own_sum
from kdlite.lite.convert import ConversionError, export
from kdlite.lite.serving import as_float32

# Of what is added to what, and whether a batch or an open length makes it a bias.
SHAPES = [
    ((4, 4), (4, 1), True),
    ((1, 5), (5, 1), True),
    ((5, 1), (1, 5), True),
    ((4, 6, 4), (4, 1, 1), True),
    ((7,), (1,), True),
    ((3, 4, 5), (1, 1, 1), True),
    ((None, 4), (None, 1), True),
    ((4, 4), (4,), False),
    ((4, 4), (4, 4), False),
    ((6, 4, 4), (1, 1, 4), False),
    ((4, 1), (4, 1), False),
    ((5, 4), (5, 4), False),
]


def sums(first, second):
    """All ways to write a sum or a mean of two."""
    return {
        Sum: layers.Add()([first, second]),
        Mean: layers.Average()([first, second]),
        Plus: first + second,
    }


@pytest.mark.parametrize(("wide", "narrow", "mistakable"), SHAPES)
def test_what_keras_takes_for_a_bias(wide, narrow, mistakable, rng) -> None:
    first, second = keras.Input(wide), keras.Input(narrow)
    for own, total in sums(first, second).items():
        if own is Plus and len(wide) != len(narrow):
            continue  # NumPy's rule takes the batch for another axis
        found = own_sum(total._keras_history.operation)
        assert found is (own if mistakable else None)
        model = keras.Model([first, second], total)
        clone = as_float32(model)
        assert (clone is model) is not mistakable
        for batch in (1, 3, 4, 5, 7):
            a, b = (
                rng.normal(size=(batch, *(n or 4 for n in shape))).astype("float32")
                for shape in (wide, narrow)
            )
            b = b[:, None] if len(narrow) < len(wide) else b
            right = (a + b) / (2 if own is Mean else 1)
            given = [a, b.reshape(batch, *b.shape[len(wide) - len(narrow) + 1 :])]
            np.testing.assert_array_equal(clone(given), right)


def test_promotions_are_those_of_keras() -> None:
    whole, half = np.ones((2, 1), "int32"), np.ones((2, 3), "float16")
    for first, second in [(whole, half), (half, whole), (1, half), (half, 2.0)]:
        told, wanted = Plus()(first, second), keras.ops.add(first, second)
        assert told.dtype == wanted.dtype
        np.testing.assert_array_equal(told, wanted)


@pytest.mark.parametrize("recipe", ["float32", "int8", "int16x8"])
def test_a_file_adds_along_the_axes_of_its_model(recipe, tmp_path, rng) -> None:
    inputs = keras.Input((4, 4), name="x")
    inner = keras.Input((4, 4))
    column = layers.Dense(1, name="column")(inner)
    net = keras.Model(inner, inner + column, name="net")
    mean = layers.Average(name="mean")([net(inputs), layers.Dense(1)(inputs)])
    gain = layers.Dense(1)(layers.Flatten()(mean))
    scores = layers.Dense(64, name="scores")(layers.Flatten()(mean))
    # Of as many samples as there are scores Keras takes the gains for a bias.
    total = layers.Add(name="total")([scores, gain])
    model = keras.Model(inputs, {"mean": mean, "total": total})
    x = rng.normal(size=(128, 4, 4)).astype("float32")
    calibration = {} if recipe == "float32" else {"calibration_data": x}
    for count in (1, 64):
        file = tmp_path / f"{count}.tflite"
        result = export(model, file, recipe, verify_data=x[:count], **calibration)
        assert result.verification.passed


def test_a_quantization_aware_model_adds_along_its_own_axes(rng) -> None:
    wide, narrow = keras.Input((4, 4)), keras.Input((4, 1))
    student = keras.Model([wide, narrow], layers.Add(name="total")([wide, narrow]))
    x = [rng.normal(size=(8, *n.shape[1:])).astype("float32") for n in (wide, narrow)]
    qat = quantize_aware(student)
    calibrate(qat, x)
    together = qat(x).numpy()
    for model in (qat, for_export(qat)):
        alone = [model([a[n : n + 1] for a in x])[0] for n in range(8)]
        np.testing.assert_allclose(alone, together, atol=1e-6)


class Column(layers.Layer):
    """Adds in code of its own, as an operation, a layer, or an operator."""

    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.how = how
        self.sum = layers.Add(name="inside") if how == "layer" else keras.ops.add
        self.scale = self.add_weight(shape=(1, 4, 1))

    def call(self, x):
        narrow = keras.ops.mean(x, axis=-1, keepdims=True)
        if self.how == "operator":
            return x + narrow
        if self.how == "weight":
            return self.sum(x, self.scale)  # of every batch along the last axis
        if self.how == "own axis":
            return self.sum(x, keras.ops.mean(x, axis=1, keepdims=True))
        return self.sum([x, narrow]) if self.how == "layer" else self.sum(x, narrow)


@pytest.mark.parametrize(
    ("how", "layer"),
    [
        ("operation", "column"),
        ("layer", "column"),
        ("operator", ""),
        ("weight", ""),
        ("own axis", ""),
    ],
)
def test_a_sum_in_code_of_ones_own_is_refused_by_its_layer(
    how, layer, tmp_path, rng
) -> None:
    model = keras.Sequential(
        [keras.Input((4, 4)), Column(how, name="column"), layers.Dense(2)]
    )
    x = rng.normal(size=(20, 4, 4)).astype("float32")
    if layer:
        with pytest.raises(ConversionError, match="layer 'column' of.*write `a . b`"):
            export(model, tmp_path / "m.tflite", "float32", verify_data=x)
    else:
        export(model, tmp_path / "m.tflite", "float32", verify_data=x)
