from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.distill.growth import copy_student, fit_new_rows, head_of
from kdlite.distill.replay import probabilities


def student(kind: str = "functional", softmax: bool = False, bias: bool = True):
    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Dense(5, activation="relu", name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(3, use_bias=bias, name="head"),
    ]
    layers += [keras.layers.Softmax(name="p")] if softmax else []
    if kind == "sequential":
        return keras.Sequential([keras.Input((4,), name="x"), *layers], name="small")
    x = inputs = keras.Input((4,), name="x")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name="small")


@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_old_rows_keep_their_bits(rng, kind, softmax, bias) -> None:
    old = student(kind, softmax, bias)
    weights = [w.copy() for w in old.get_weights()]
    grown = copy_student(old, 5)
    assert grown.output_shape == (None, 5)
    head, old_head = grown.get_layer("head"), old.get_layer("head")
    for new, was in zip(head.get_weights(), old_head.get_weights(), strict=True):
        np.testing.assert_array_equal(new[..., :3], was)
        assert not new[..., 3:].any()
    for name in ("hidden", "norm"):
        pairs = zip(
            grown.get_layer(name).get_weights(),
            old.get_layer(name).get_weights(),
            strict=True,
        )
        assert all(np.array_equal(new, was) for new, was in pairs)
    # Nothing is shared, and nothing changed.
    grown.set_weights([w + 1 for w in grown.get_weights()])
    for now, was in zip(old.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, was)


def test_as_many_classes_is_a_copy(rng) -> None:
    old = student()
    copy = copy_student(old, 3)
    x = rng.random((5, 4)).astype("float32")
    np.testing.assert_array_equal(copy(x), old(x))
    assert not {id(v) for v in copy.variables} & {id(v) for v in old.variables}


@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("bias", [False, True])
def test_new_rows_give_new_classes_their_probability(rng, kind, bias) -> None:
    grown = copy_student(student(kind, bias=bias), 5)
    inside = keras.Model(grown.inputs[0], head_of(grown).input)
    x = rng.normal(size=(60, 4)).astype("float32")
    features = np.asarray(inside(x), "float64")
    # A teacher whose new logits are linear in the features can be met exactly.
    kernel = rng.normal(size=(features.shape[1], 2)) * 0.5
    teacher = np.concatenate([np.asarray(grown(x))[:, :3], features @ kernel], 1)
    before = grown.get_layer("head").get_weights()[0][:, :3].copy()
    fit_new_rows(grown, x, teacher, 3)
    np.testing.assert_array_equal(
        grown.get_layer("head").get_weights()[0][:, :3], before
    )
    # Ridge: a thousandth of the features' scale pulls towards zero.
    np.testing.assert_allclose(
        probabilities(np.asarray(grown(x))), probabilities(teacher), atol=0.02
    )


def test_sure_teachers_give_finite_rows(rng) -> None:
    grown = copy_student(student(softmax=True), 4)
    x = rng.normal(size=(20, 4)).astype("float32")
    teacher = np.where(np.eye(4)[np.arange(20) % 4], 1e4, -1e4)
    fit_new_rows(grown, x, teacher, 3)
    assert all(np.isfinite(w).all() for w in grown.get_weights())


class Own(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="own")
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def test_a_head_that_cannot_grow_is_named() -> None:
    inputs = keras.Input((4, 4, 1))
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(
        keras.layers.Conv2D(3, 1)(inputs)
    )
    convolutional = keras.Model(inputs, pooled, name="conv")
    with pytest.raises(ValueError, match="'conv', which ends in GlobalAve.* 'pool'"):
        copy_student(convolutional, 4)
    nested = keras.Sequential([keras.Input((4,)), student()], name="nested")
    with pytest.raises(ValueError, match="'nested', which ends in Functional 'small'"):
        copy_student(nested, 4)
    own = Own()
    own(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="head that can grow.*'own'"):
        head_of(own)
