from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.compress.qat import for_export, quantize_aware
from kdlite.compress.twin import Twin
from kdlite.copies import copy_of
from kdlite.distill.growth import copy_student
from kdlite.lite.serving import as_float32


@pytest.mark.parametrize(
    "copied",
    [
        copy_of,
        lambda model: copy_student(model, 3),
        lambda model: Twin(model).with_weights(Twin(model).weights()),
    ],
    ids=["copy", "student", "twin"],
)
def test_a_copy_computes_what_the_model_does(copied, rng) -> None:
    x = rng.normal(50, 20, (60, 5)).astype("float32")
    adapted = layers.Normalization()
    adapted.adapt(x)
    inputs = keras.Input((5,))
    hidden = layers.BatchNormalization()(adapted(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8, "relu")(hidden)))
    told = np.asarray(copied(model)(x))
    np.testing.assert_array_equal(told, np.asarray(model(x)))


def test_more_classes_leave_the_old_ones(rng) -> None:
    x = rng.normal(50, 20, (60, 5)).astype("float32")
    adapted = layers.Normalization()
    adapted.adapt(x)
    model = keras.Sequential([keras.Input((5,)), adapted, layers.Dense(3)])
    told = np.asarray(copy_student(model, 4)(x))
    np.testing.assert_allclose(told[:, :3], np.asarray(model(x)), atol=1e-5)


@pytest.mark.parametrize(
    "copied",
    [
        copy_of,
        as_float32,
        lambda model: copy_student(model, 4),
        lambda model: Twin(model).with_weights(Twin(model).weights()),
        lambda model: for_export(trained(quantize_aware(model))),
    ],
    ids=["copy", "float32", "student", "twin", "export"],
)
def test_a_loss_that_no_file_could_name_is_no_matter_to_a_copy(copied) -> None:
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4, "relu")])
    inputs = keras.Input((5,), dtype="uint8")
    model = keras.Model(inputs, layers.Dense(3)(inner(layers.Rescaling(0.1)(inputs))))
    trained(inner)
    trained(model)
    assert not copied(model).compiled
    assert model.compiled and inner.compiled
    model.fit(np.ones((2, 5), "uint8"), np.ones((2, 3)), verbose=0)


def trained(model):
    def loss(wanted, given):
        return keras.ops.mean(keras.ops.square(wanted - given))

    model.compile("sgd", loss)
    model.fit(np.ones((2, 5)), np.ones((2, *model.output_shape[1:])), verbose=0)
    return model
