from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.compress.twin import Twin
from kdlite.copies import copy_of
from kdlite.distill.growth import copy_student


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
