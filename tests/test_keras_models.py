"""Models as Keras ships them, and a transformer, are distilled as they are."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kdlite
from kdlite.distill.taps import LogitsModel

CLASSES, SIZE, BATCH = 3, 32, 2


def small_teacher():
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=4, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ],
        name="small",
    )


def application(name):
    return getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES
    )


def transformer(width=8, tokens=20):
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(tokens, width, mask_zero=True)(inputs)
    attended = layers.MultiHeadAttention(2, width // 2)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    hidden = layers.Dense(2 * width, activation="gelu")(x)
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(width)(hidden)]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2 * BATCH, SIZE, SIZE, 3)).astype("float32")
    return x, np.arange(2 * BATCH) % CLASSES


@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetV2B0"])
def test_applications_are_students(name, images):
    x, y = images
    student = application(name)
    before = [w.copy() for w in student.get_weights()]
    distiller = kdlite.Distiller(student, small_teacher(), hard_loss_weight=0.0)
    # Tracing hundreds of layers takes a minute, and one eager step a second.
    loss = keras.losses.SparseCategoricalCrossentropy()
    distiller.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    logs = distiller.fit(x, y, batch_size=len(x), verbose=0).history
    assert np.isfinite(logs["soft_loss"][0]) and logs["soft_loss"][0] > 0.0
    moved = [
        not np.array_equal(*pair)
        for pair in zip(before, student.get_weights(), strict=True)
    ]
    # Every kernel and statistic; a bias before batch normalization has no gradient.
    assert np.mean(moved) > 0.9


def test_an_application_is_a_teacher(images):
    x, y = images
    teacher = application("MobileNetV3Small")
    states = [v.numpy() for v in teacher.variables]
    student = small_teacher()
    expected = LogitsModel(teacher)(x)
    soft = kdlite.losses.SoftTargets(reduction=None)(expected, student(x))
    distiller = kdlite.Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = distiller.fit(x, batch_size=BATCH, verbose=0).history
    assert logs["soft_loss"][0] == pytest.approx(float(np.mean(soft)), rel=1e-3)
    assert all(
        np.array_equal(before, after)
        for before, after in zip(states, teacher.variables, strict=True)
    )


def test_a_transformer_learns_from_a_larger_one():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 20, (32, 7))
    x[:, 5:] *= rng.integers(0, 2, (32, 1))  # some are padded
    y = np.zeros(32, "int32")
    keras.utils.set_random_seed(0)
    student, teacher = transformer(8), transformer(16)
    teacher.layers[-1].set_weights(
        [4.0 * weight for weight in teacher.layers[-1].get_weights()]
    )
    distiller = kdlite.Distiller(student, teacher, hard_loss_weight=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy()
    distiller.compile(keras.optimizers.Adam(0.02), loss)
    (first,) = distiller.fit(x, y, verbose=0).history["soft_loss"]
    # Few epochs of many steps, as to begin with an epoch takes longer than a step.
    often = np.tile(x, (20, 1)), np.tile(y, 20)
    *_, last = distiller.fit(*often, epochs=2, verbose=0).history["soft_loss"]
    assert last < 0.3 * first
    agree = np.asarray(student(x)).argmax(-1) == np.asarray(teacher(x)).argmax(-1)
    assert agree.mean() > 0.8
