"""Fingerprints: equal for the same content, in any process; different for any other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from processes import run_in_copy

from kdlite.fingerprint import data_fingerprint, model_fingerprint, rows_fingerprint


def sequential(units=3):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2, activation="softmax"),
        ]
    )


def functional(units=3):
    """Operations, a shared layer, a nested model and a wrapper, all auto-named."""
    inputs = keras.Input((4,))
    shared = layers.Dense(units)
    x = keras.ops.add(shared(inputs), shared(keras.ops.multiply(inputs, 2.0)))
    nested = keras.Sequential([keras.Input((units,)), layers.Dense(units)])
    x = layers.Softmax()(nested(x) + nested(nested(x)))
    x = layers.Bidirectional(layers.LSTM(2))(keras.ops.expand_dims(x, 1))
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def two_inputs(names=(None, None)):
    a, b = (keras.Input((4,), name=name) for name in names)
    joined = layers.Concatenate()([a, layers.Dense(3)(b)])
    return keras.Model([a, b], layers.Dense(2)(joined))


@keras.saving.register_keras_serializable(package="test_fingerprint")
class Subclassed(keras.Model):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)


class Unserializable(keras.Model):
    def __init__(self, opaque):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def subclassed(units=3):
    model = Subclassed(units)
    model(np.zeros((1, 4), "float32"))
    return model


def with_lambda():
    return keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2 + 0.5)])


def called_sequential():
    model = keras.Sequential([layers.Dense(3)])
    model(np.zeros((2, 4), "float32"))
    return model


def vocabulary(words=("a", "b")):
    lookup = layers.StringLookup(output_mode="one_hot")
    lookup.adapt(list(words))
    return keras.Sequential([keras.Input((1,), dtype="string"), lookup])


BUILDERS = [
    sequential,
    functional,
    two_inputs,
    subclassed,
    with_lambda,
    called_sequential,
]


class TestModel:
    @pytest.mark.parametrize("build", BUILDERS)
    def test_saving_and_loading_keep_it(self, build, tmp_path):
        model = build()
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
        assert model_fingerprint(loaded) == model_fingerprint(model)

    @pytest.mark.parametrize("build", [sequential, functional, two_inputs, subclassed])
    def test_building_again_keeps_it(self, build):
        model, again = build(), build()
        assert model_fingerprint(model) != model_fingerprint(again)  # other weights
        again.set_weights(model.get_weights())
        assert model_fingerprint(model) == model_fingerprint(again)

    def test_an_activation_is_not_taken_for_a_layer_of_that_name(self):
        keras.backend.clear_session()
        model, again = functional(), functional()
        assert "softmax" in {layer.name for layer in model.layers}
        assert "softmax" not in {layer.name for layer in again.layers}
        again.set_weights(model.get_weights())
        assert model_fingerprint(model) == model_fingerprint(again)

    def test_a_clone_is_the_same(self):
        model = functional()
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        assert model_fingerprint(clone) == model_fingerprint(model)

    def test_each_weight_counts(self):
        model = sequential()
        before = model_fingerprint(model)
        for variable in model.weights:
            value = variable.numpy()
            changed = value.copy()
            changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
            variable.assign(changed)
            assert model_fingerprint(model) != before, variable.path
            variable.assign(value)
        assert model_fingerprint(model) == before

    def test_training_state_does_not_count(self):
        model = sequential()
        before = model_fingerprint(model)
        model.trainable = False
        model.layers[0].trainable = True
        model.compile("adam", "mse", metrics=["accuracy"])
        model(np.ones((2, 4), "float32"), training=True)  # moves batch statistics
        model.layers[1].moving_mean.assign(np.zeros(3))
        model.layers[1].moving_variance.assign(np.ones(3))
        assert model_fingerprint(model) == before

    def test_architecture_counts(self):
        inputs = keras.Input((4,))
        models = [
            keras.Sequential([keras.Input((4,)), layers.Activation("relu")]),
            keras.Sequential([keras.Input((4,)), layers.Activation("tanh")]),
            keras.Sequential([keras.Input((5,)), layers.Activation("relu")]),
            keras.Sequential([keras.Input((4,)), layers.Rescaling(1 / 255)]),
            keras.Sequential([keras.Input((4,)), layers.Rescaling(1 / 127)]),
            keras.Sequential(
                [keras.Input((4,)), layers.Rescaling(1 / 127, dtype="mixed_float16")]
            ),
            keras.Model(inputs, keras.ops.add(inputs, 1.0)),
            keras.Model(inputs, keras.ops.add(inputs, 2.0)),
            keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x + 1)]),
            keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x + 2)]),
        ]
        assert len({model_fingerprint(model) for model in models}) == len(models)

    def test_wiring_counts(self):
        a, b = keras.Input((2,)), keras.Input((2,))
        forth, back = keras.Model([a, b], a - b), keras.Model([a, b], b - a)
        assert model_fingerprint(forth) != model_fingerprint(back)

    def test_names_given_to_inputs_count_and_others_do_not(self):
        models = [two_inputs(("a", "b")), two_inputs(("b", "a")), two_inputs()]
        for model in models[1:]:
            model.set_weights(models[0].get_weights())
        assert len({model_fingerprint(model) for model in models}) == 3
        weights = [np.ones((4, 2)), np.zeros(2)]
        named = []
        for name in ("one", "other"):
            dense = layers.Dense(2, name=name)
            named.append(keras.Sequential([keras.Input((4,)), dense], name=name))
            dense.set_weights(weights)
        assert model_fingerprint(named[0]) == model_fingerprint(named[1])

    def test_a_learned_vocabulary_counts(self):
        assert model_fingerprint(vocabulary()) == model_fingerprint(vocabulary())
        assert model_fingerprint(vocabulary()) != model_fingerprint(vocabulary("ac"))

    def test_a_subclassed_model_without_config(self):
        models = [Unserializable(np.ones(2)) for _ in range(2)]
        for model in models:
            model(np.ones((1, 3)))
        assert model_fingerprint(models[0]) != model_fingerprint(models[1])
        models[1].set_weights(models[0].get_weights())
        assert model_fingerprint(models[0]) == model_fingerprint(models[1])

    def test_an_array_or_an_unknown_object_in_a_config(self):
        class Configured(keras.Model):
            def __init__(self, config):
                super().__init__()
                self.given = config
                self.built = True

            def get_config(self):
                return self.given

        long = np.arange(5000)
        configs = [{"a": long}, {"a": long[::-1]}, {"a": object()}, {"a": np.int64(3)}]
        prints = [model_fingerprint(Configured(config)) for config in configs]
        assert len(set(prints)) == len(configs)
        assert prints[2] == model_fingerprint(Configured({"a": object()}))
        assert prints[3] == model_fingerprint(Configured({"a": 3}))

    def test_a_model_that_is_not_built(self):
        model = keras.Sequential([layers.Dense(3)], name="net")
        with pytest.raises(ValueError, match="must be built. Received: model 'net'"):
            model_fingerprint(model)

    def test_other_processes_agree(self, tmp_path):
        model = functional()
        model.save(tmp_path / "model.keras")
        ended = run_in_copy("test_fingerprint:in_copy", tmp_path)
        assert ended.returncode == 0, ended.printed
        told = json.loads((tmp_path / "prints.json").read_text())
        assert told["model"] == model_fingerprint(model)
        assert told["data"] == data_fingerprint(ROWS)
        assert told["rows"] == rows_fingerprint(ROWS).tolist()
        assert told["hash"] != hash("name")  # its sets have other orders


ROWS = np.arange(12, dtype="float32").reshape(3, 4)


def in_copy(folder: Path) -> None:
    layers.Dense(3), keras.Input((2,))  # other automatic names
    told = {
        "model": model_fingerprint(keras.models.load_model(folder / "model.keras")),
        "data": data_fingerprint(ROWS),
        "rows": rows_fingerprint(ROWS).tolist(),
        "hash": hash("name"),
    }
    (folder / "prints.json").write_text(json.dumps(told))


class TestRows:
    def test_equal_rows_and_no_others_are_equal(self, rng):
        x = rng.integers(0, 3, (500, 4)).astype("uint8")
        hashes = rows_fingerprint(x)
        assert hashes.shape == (500,) and hashes.dtype == np.uint64
        same = (x[:, None] == x[None]).all(-1)
        np.testing.assert_array_equal(hashes[:, None] == hashes[None], same)

    def test_a_row_does_not_depend_on_its_batch(self, rng):
        x = rng.normal(size=(10, 3, 2)).astype("float32")
        hashes = rows_fingerprint(x)
        np.testing.assert_array_equal(rows_fingerprint(x[4:6]), hashes[4:6])
        np.testing.assert_array_equal(rows_fingerprint(x[::-1]), hashes[::-1])
        strided = np.stack([x, x], axis=-1)[..., 0]
        np.testing.assert_array_equal(rows_fingerprint(strided), hashes)

    def test_type_and_shape_count(self):
        x = np.zeros((2, 4), "float32")
        variants = [x, x.astype("int32"), x.reshape(2, 2, 2), x[:, :2]]
        assert len({int(rows_fingerprint(variant)[0]) for variant in variants}) == 4

    def test_byte_order_does_not_count(self):
        x = np.arange(4, dtype="<f4")
        np.testing.assert_array_equal(
            rows_fingerprint(x), rows_fingerprint(x.astype(">f4"))
        )

    def test_structures(self):
        a, b = np.arange(3.0), np.arange(3)
        forms = [{"a": a, "b": b}, (a, b), [a, b]]
        first, *others = map(rows_fingerprint, forms)
        for other in others:
            np.testing.assert_array_equal(first, other)
        assert (first != rows_fingerprint((b, a))).all()
        # Values on the border of two parts belong to one of them.
        left = (np.array([[1, 2]], "uint8"), np.array([[3]], "uint8"))
        right = (np.array([[1]], "uint8"), np.array([[2, 3]], "uint8"))
        assert rows_fingerprint(left) != rows_fingerprint(right)

    def test_strings(self):
        texts = np.array([["ab", "c"], ["a", "bc"], ["ab", "c"]])
        a, b, c = rows_fingerprint(texts)
        assert a == c != b
        as_tensorflow = np.array([[b"ab", b"c"]], dtype=object)
        assert rows_fingerprint(as_tensorflow)[0] == a

    def test_empty_rows_and_no_rows(self):
        assert rows_fingerprint(np.zeros((0, 3))).shape == (0,)
        assert len(set(rows_fingerprint(np.zeros((2, 0))).tolist())) == 1

    @pytest.mark.parametrize(
        "x", [(np.zeros(3), np.zeros(4)), np.float32(1), (np.zeros(3), np.float32(1))]
    )
    def test_samples_that_do_not_match(self, x):
        with pytest.raises(
            ValueError, match="same number of samples.*Received: shapes"
        ):
            rows_fingerprint(x)

    def test_no_collisions_among_many_close_rows(self):
        x = np.arange(100_000, dtype="int64")
        assert len(np.unique(rows_fingerprint(x))) == len(x)

    def test_it_is_quick(self, rng):
        x = rng.integers(0, 255, (60_000, 784), dtype="uint8")
        begin = time.process_time()
        rows_fingerprint(x)
        # A tenth of a second; the bound only tells a loop over bytes from it.
        assert time.process_time() - begin < 2.0


class TestData:
    def test_values_type_shape_and_order_count(self):
        x = np.arange(6, dtype="int32")
        variants = [
            x,
            x[::-1],
            x.reshape(2, 3),
            x.astype("int64"),
            (x, x),
            np.int32(0),
            np.array(["a", "bc"]),
            np.array(["ab", "c"]),
        ]
        assert len({data_fingerprint(variant) for variant in variants}) == len(variants)
        assert data_fingerprint(x) == data_fingerprint(np.repeat(x, 2)[::2])
        assert len(data_fingerprint(x)) == 64
