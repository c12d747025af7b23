"""Feature taps: any layer of any model, in its own forward pass."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdlite.distill.feature_taps import FeatureTaps, forward_shapes, nodes_of

X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def read(model, *names, x=X, **kwargs):
    with FeatureTaps(model, names).recording() as features:
        outputs = model(x, **kwargs)
    return outputs, features


def functional():
    inputs = keras.Input((4,))
    hidden = layers.Dense(4, name="hidden")(inputs)
    total = hidden + inputs
    outputs = layers.Dense(2, name="head")(total)
    return keras.Model(inputs, outputs, name="functional"), total


def backbone():
    inputs = keras.Input((None, None, 1))
    maps = layers.Conv2D(3, 3, strides=2, padding="same", name="block1")(inputs)
    maps = layers.Conv2D(5, 3, strides=2, padding="same", name="block2")(maps)
    return keras.Model(inputs, maps, name="backbone")


def nested():
    inputs = keras.Input((8, 8, 1))
    pooled = layers.GlobalAveragePooling2D()(backbone()(inputs))
    return keras.Model(inputs, layers.Dense(2)(pooled), name="nested")


class Telling(keras.Model):
    """A subclassed model that says what its features are."""

    def __init__(self):
        super().__init__(name="telling")
        self.first, self.second = layers.Dense(3), layers.Dense(2)
        self.dropout = layers.Dropout(0.5)

    def features(self, inputs, training=None):
        hidden = self.first(inputs)
        dropped = self.dropout(hidden, training=training)
        return self.second(dropped), {"hidden": hidden, "dropped": dropped}

    def call(self, inputs, training=None):
        return self.features(inputs, training)[0]


class Plain(keras.Model):
    def __init__(self):
        super().__init__(name="plain")
        self.first = layers.Dense(3, name="first")
        self.rest = [layers.Dense(3, name="listed"), layers.Dense(2, name="last")]

    def call(self, inputs):
        for layer in (self.first, *self.rest):
            inputs = layer(inputs)
        return inputs


class TestWhereLayersAre:
    def test_in_sequential_models(self):
        model = keras.Sequential([layers.Dense(3, name="a"), layers.Dense(2)])
        for _ in range(2):  # not built, and built
            _, features = read(model, "a")
            np.testing.assert_allclose(features["a"], model.layers[0](X), rtol=1e-6)

    def test_in_functional_models_operations_too(self):
        model, total = functional()
        outputs, features = read(model, "hidden", total._keras_history.operation.name)
        hidden = model.get_layer("hidden")(X)
        first, second = features.values()
        np.testing.assert_allclose(first, hidden, rtol=1e-6)
        np.testing.assert_allclose(second, hidden + X, rtol=1e-6)
        np.testing.assert_array_equal(outputs, model(X))

    def test_in_nested_models(self):
        model = nested()
        x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
        _, features = read(model, "backbone/block1", "backbone", x=x)
        inner = model.get_layer("backbone")
        expected = inner.get_layer("block1")(x)
        np.testing.assert_allclose(features["backbone/block1"], expected, rtol=1e-5)
        np.testing.assert_allclose(features["backbone"], inner(x), rtol=1e-5)

    def test_in_subclassed_models_and_composite_layers(self):
        model = Plain()
        _, features = read(model, "first", "listed")
        np.testing.assert_allclose(
            features["listed"], model.rest[0](features["first"]), rtol=1e-6
        )
        each = layers.TimeDistributed(layers.Dense(2, name="d"), name="each")
        wrapped = keras.Sequential([each])
        _, features = read(wrapped, "each/d", x=X[None])
        assert features["each/d"].shape[-1] == 2

    def test_of_a_shared_layer_each_call(self):
        inputs, shared = keras.Input((4,)), layers.Dense(4, name="shared")
        model = keras.Model(inputs, shared(shared(inputs)))
        outputs, features = read(model, "shared", "shared:0", "shared:1")
        np.testing.assert_allclose(features["shared:0"], shared(X), rtol=1e-6)
        np.testing.assert_array_equal(features["shared"], outputs)
        np.testing.assert_array_equal(features["shared:1"], outputs)

    def test_where_a_model_says_it_itself(self):
        model = Telling()
        outputs, features = read(model, "hidden", "dropped", training=True)
        assert (features["dropped"] != features["hidden"]).numpy().any()
        np.testing.assert_allclose(
            outputs, model.second(features["dropped"]), rtol=1e-6
        )
        outputs, features = read(model, "dropped")
        np.testing.assert_array_equal(outputs, model(X))
        inputs = keras.Input((4,))
        whole = keras.Model(inputs, layers.Dense(2)(model(inputs)))
        _, features = read(whole, "telling/hidden")
        np.testing.assert_allclose(features["telling/hidden"], model.first(X))

    def test_masks_come_with_them(self):
        tokens = keras.Input((4,), dtype="int32")
        embedded = layers.Embedding(9, 3, mask_zero=True, name="e")(tokens)
        model = keras.Model(tokens, layers.Dense(2, name="d")(embedded))
        x = np.array([[1, 2, 0, 0]])
        _, features = read(model, "d", x=x)
        np.testing.assert_array_equal(features["d"]._keras_mask, x > 0)


class TestOneForwardPass:
    def test_in_compiled_code(self):
        model, _ = functional()
        taps = FeatureTaps(model, ["hidden"])

        @tf.function(jit_compile=True)
        def run(x):
            with taps.recording() as features:
                model(x)
            return features["hidden"]

        for x in (X, 2.0 * X):
            np.testing.assert_allclose(run(x), model.get_layer("hidden")(x), rtol=1e-6)

    def test_the_model_is_left_as_it_was(self):
        model, _ = functional()
        layer = model.get_layer("hidden")
        before, config = dict(vars(layer)), model.get_config()
        own = model.get_layer("head")
        called = own.call
        own.call = lambda x: called(x)  # a user's own
        mine = own.call
        read(model, "hidden", "head")
        with pytest.raises(ZeroDivisionError):
            with FeatureTaps(model, ["hidden"]).recording():
                model(X)
                raise ZeroDivisionError
        assert vars(layer) == before
        assert own.call is mine
        assert model.get_config() == config

    def test_the_last_pass_counts_and_none_is_empty(self):
        model, _ = functional()
        with FeatureTaps(model, ["hidden"]).recording() as features:
            model(X)
            model(3.0 * X)
        np.testing.assert_allclose(
            features["hidden"], model.get_layer("hidden")(3.0 * X), rtol=1e-6
        )
        with FeatureTaps(model, ["hidden"]).recording() as features:
            pass
        assert features == {}

    def test_threads_that_take_turns_do_not_mix(self):
        """As replicas of a distribution strategy do, in the middle of a pass."""
        model, _ = functional()
        taps = FeatureTaps(model, ["hidden"])
        turns = [threading.Event() for _ in range(3)]
        found = {}

        def first():
            with taps.recording() as features:
                turns[0].set()
                turns[1].wait(10)
                model(X)
            found[1] = features["hidden"]
            turns[2].set()

        def second():
            turns[0].wait(10)
            with taps.recording() as features:
                model(5.0 * X)
                turns[1].set()
                turns[2].wait(10)
            found[5] = features["hidden"]

        threads = [threading.Thread(target=run) for run in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for factor, hidden in found.items():
            np.testing.assert_allclose(
                hidden, model.get_layer("hidden")(factor * X), rtol=1e-5
            )
        assert "call" not in vars(model.get_layer("hidden"))


class TestShapes:
    def test_they_are_known_without_data(self):
        shapes = FeatureTaps(nested(), ["backbone/block1", "backbone"]).shapes()
        assert shapes == {
            "backbone/block1": (None, 4, 4, 3),
            "backbone": (None, 2, 2, 5),
        }

    def test_nothing_moves(self):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.BatchNormalization(name="bn"),
                layers.ActivityRegularization(l2=1.0),
            ]
        )
        before = [v.numpy() for v in model.variables]
        FeatureTaps(model, ["bn"]).shapes()
        forward_shapes(model)
        assert all(map(np.array_equal, before, [v.numpy() for v in model.variables]))
        assert model.losses == []

    def test_models_of_unknown_inputs_have_none(self):
        assert FeatureTaps(Plain(), ["first"]).shapes() is None
        assert forward_shapes(Plain()) is None

    def test_all_shapes_in_their_order(self):
        inputs, shared = keras.Input((4, 3)), layers.Dense(3, name="shared")
        hidden = shared(inputs)
        attended = layers.MultiHeadAttention(2, 2, name="attention")(hidden, hidden)
        model = keras.Model(inputs, shared(attended))
        found = forward_shapes(model)
        assert list(found) == ["attention", "shared"]  # the last call of it
        assert found["attention"][1] == (None, 4, 3)

    def test_paths_are_those_of_taps(self):
        model = nested()
        paths = [path for path, _ in nodes_of(model)]
        assert "backbone/block1" in paths and "backbone" in paths
        FeatureTaps(model, paths)


class TestErrors:
    def test_near_names_are_named(self):
        with pytest.raises(
            ValueError,
            match=r"named by its path\. Received: 'block1' for teacher 'nested'\. "
            r"Near: 'backbone/block1'\. Fix",
        ):
            FeatureTaps(nested(), ["block1"], role="teacher")
        with pytest.raises(ValueError, match=r"'hiden' for model.*Near: 'hidden'"):
            FeatureTaps(functional()[0], ["hiden"])
        with pytest.raises(ValueError, match=r"It has: 'first', 'listed', 'last'\."):
            FeatureTaps(Plain(), ["zzzzzz/y"])

    def test_inputs_are_no_features(self):
        model, _ = functional()
        with pytest.raises(ValueError, match="must be a layer of the model"):
            FeatureTaps(model, [model.layers[0].name])

    def test_layers_out_of_the_pass(self):
        class Unused(Plain):
            def __init__(self):
                super().__init__()
                self.unused = layers.Dense(1, name="unused")
                self.unused.build((None, 4))

        model = Unused()
        with pytest.raises(ValueError, match=r"'unused' of model 'plain', .* 0 times"):
            read(model, "unused")
        model = Plain()
        with pytest.raises(ValueError, match=r"'first:1' of .* called 1 times"):
            read(model, "first:1")

    def test_several_tensors(self):
        inputs = keras.Input((4,))
        inner = keras.Model(
            inputs, [layers.Dense(2, name="a")(inputs), inputs], name="inner"
        )
        model = keras.Model(inputs, inner(inputs)[0])
        with pytest.raises(ValueError, match=r"one tensor.*list.*'inner/<layer>'"):
            read(model, "inner")
        assert read(model, "inner/a")[1]["inner/a"].shape == (3, 2)

    def test_features_that_are_not_told(self):
        with pytest.raises(
            ValueError, match=r"features\(\) of 'telling' returns \['dropped', 'hidd"
        ):
            read(Telling(), "first")
