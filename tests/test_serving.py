from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite.compress.qat import quantize_aware
from kdlite.lite.calibration import load_samples
from kdlite.lite.names import identifier
from kdlite.lite.serving import as_float32, serve

layers = keras.layers


def test_nested_outputs_get_unique_names() -> None:
    inputs = keras.Input((2,), name="x")
    shared = layers.Dense(2, name="shared")
    one, two = shared(inputs), shared(layers.ReLU(name="relu")(inputs))
    x = np.ones((3, 2), "float32")
    assert list(serve(keras.Model(inputs, [one, two]))(x)) == ["shared", "shared_1"]
    nested = keras.Model(inputs, {"b": [one, two], "a": {"c": two}})
    assert list(serve(nested)(x)) == ["a_c", "b_0", "b_1"]


def test_ids_are_told_of_by_the_smallest_embedding_that_takes_them(rng) -> None:
    ids, pixel = keras.Input((3,), dtype="int32", name="ids"), keras.Input((3,))
    small = keras.Sequential([keras.Input((3,)), layers.Embedding(5, 2, name="few")])
    x = [small(ids), layers.Embedding(9, 2)(ids), layers.Reshape((3, 1))(pixel)]
    model = keras.Model([ids, pixel], layers.Concatenate()(x))
    for net in (model, quantize_aware(model)):
        first, second = serve(net).input_specs
        assert first.vocabulary == ("few", 5) and second.vocabulary is None
    data = [rng.integers(-5, 5, (7, 3)), rng.random((7, 3))]
    load_samples(data, [first, second])
    for wrong in (5, -6):
        data[0][3, 1] = wrong
        with pytest.raises(ValueError, match=f"{wrong} in sample 3.*'ids'.* 5 rows"):
            load_samples(data, [first, second])


def test_mixed_precision_becomes_a_float32_clone() -> None:
    inputs = keras.Input((8, 8, 3), dtype="uint8", name="image")
    inner = keras.Sequential(
        [
            layers.Conv2D(4, 3, dtype="mixed_float16", name="conv"),
            layers.BatchNormalization(dtype="mixed_float16", name="norm"),
        ],
        name="inner",
    )
    x = layers.Rescaling(1 / 255, dtype="mixed_float16", name="scale")(inputs)
    x = layers.GlobalAveragePooling2D(dtype="mixed_float16", name="pool")(inner(x))
    model = keras.Model(inputs, layers.Dense(2, dtype="mixed_float16", name="y")(x))
    clone = as_float32(model)
    for layer in clone._flatten_layers():
        assert layer.compute_dtype == layer.variable_dtype == "float32"
    assert clone.inputs[0].dtype == clone.outputs[0].dtype == "float32"
    assert clone.inputs[0].name == "image" and clone.output_names == ["y"]
    images = np.random.default_rng(3).integers(0, 256, (8, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(
        clone(images.astype("float32"), training=False),
        model(images, training=False),
        atol=3e-3,
    )
    assert model.get_layer("y").compute_dtype == "float16"
    plain = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    assert as_float32(plain) is plain


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_operations_of_other_precision_become_float32(dtype) -> None:
    inputs = keras.Input((4,), name="x")
    h = keras.ops.cast(inputs * 3, dtype)
    h = keras.ops.concatenate([h[:, 1:], keras.ops.relu(h) + h / 2], -1)
    model = keras.Model(inputs, keras.ops.cast(h, "float32"))
    clone = as_float32(model)
    assert clone is not model
    made = [x.dtype for op in clone.operations for x in keras.tree.flatten(op.output)]
    assert set(made) == {"float32"}
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    # bfloat16 has 8 bits.
    np.testing.assert_allclose(clone(x), model(x), rtol=2**-6, atol=1e-2)


def test_bytes_that_a_model_computes_with_stay_bytes() -> None:
    inputs = keras.Input((3,), dtype="uint8", name="x")
    x = np.array([[200, 3, 100]], np.uint8)

    def given(outputs):
        serving = serve(keras.Model(inputs, outputs))
        return serving.input_specs[0].dtype, next(iter(serving(x).values())).numpy()

    dtype, values = given(keras.ops.cast(inputs, "float32") + 100)
    assert dtype == "float32" and values.tolist() == [[300, 103, 200]]
    dtype, values = given(inputs / 100 - inputs * 0.5)
    assert dtype == "float32"
    np.testing.assert_allclose(values, [[-98, -1.47, -49]], rtol=1e-6)
    dtype, values = given(keras.ops.one_hot(inputs, 201))
    assert dtype == "uint8" and values.argmax(-1).tolist() == [[200, 3, 100]]
    dtype, values = given(keras.ops.cast(inputs + inputs, "float32"))
    assert dtype == "uint8" and values.tolist() == [[144, 6, 200]]
    dtype, values = given(keras.ops.cast(keras.ops.cast(inputs, "int8"), "float32"))
    assert dtype == "uint8" and values.tolist() == [[-56, 3, 100]]


def test_a_normalization_keeps_its_statistics_in_float32() -> None:
    images = np.random.default_rng(0).integers(50, 200, (20, 4, 4, 3), np.uint8)
    layer = layers.Normalization()
    layer.adapt(images.astype("float32"))
    inputs = keras.Input((4, 4, 3), dtype="uint8")
    model = keras.Model(inputs, layer(inputs))
    clone = as_float32(model)
    np.testing.assert_allclose(clone(images), model(images), atol=1e-5)


class Doubled(keras.Model):
    """Has a graph, and a `call` of its own."""

    def __init__(self, **kwargs) -> None:
        inputs = keras.Input((2,), dtype="uint8", name="x")
        super().__init__(inputs, layers.Dense(1, name="y")(inputs), **kwargs)

    def get_config(self):
        return {"name": self.name}

    def call(self, inputs, training=False):
        return 2 * super().call(inputs)


def test_a_call_of_its_own_is_kept_beside_a_graph() -> None:
    x = np.array([[3, 200], [255, 0]], np.uint8)
    model = Doubled()
    np.testing.assert_allclose(serve(model)(x)["y"], model(x))
    inputs = keras.Input((2,), dtype="uint8")
    outputs = layers.Dense(1, dtype="mixed_float16", name="out")(model(inputs))
    around = keras.Model(inputs, outputs)
    np.testing.assert_allclose(serve(around)(x)["out"], around(x), rtol=1e-2)


class Fixed(keras.Model):
    """Subclassed, with a layer of its own dtype."""

    def __init__(self, units: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, dtype="mixed_float16", name="inside")

    def get_config(self):
        return {"units": self.units, "name": self.name}

    def call(self, inputs):
        return self.dense(inputs)


def test_a_subclassed_model_that_cannot_be_made_in_float32() -> None:
    model = Fixed(3, name="fixed")
    model(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="take its dtype from the global.*'inside'"):
        as_float32(model)
    model.get_config = lambda: {"unknown": 1}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="possible to make again in float32.*'fixed'"):
        as_float32(model)
    assert keras.config.dtype_policy().name == "float32"


def test_normalisation_inside_a_quantization_aware_model() -> None:
    model = quantize_aware(
        keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3, name="c")])
    )
    images = np.random.default_rng(1).integers(0, 256, (64, 4, 4, 1)).astype("float32")
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    model((images - 100) / 50, training=True)
    serving = serve(model, mean=100.0, std=50.0)
    wanted = model((images - 100) / 50, training=False).numpy()
    np.testing.assert_allclose(serving(images)["c"], wanted, atol=1e-5)
    # Rounded before and after, the input is on the levels of training: each a pixel.
    rounded = serving.for_conversion()(images)["c"]
    step = np.diff(np.unique(wanted)).min()
    assert (np.abs(rounded - wanted) <= 1.01 * step).all()


def test_several_inputs_without_an_image_have_no_range() -> None:
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([a, b], layers.Add()([a, b]))
    with pytest.raises(ValueError, match="need an image input.*'a', 'b'"):
        serve(model, input_range=(0.0, 1.0))


@pytest.mark.parametrize("name", ["<image>", "_x", "1x1", "a b", "inputs"])
def test_inputs_of_any_name_are_saved(tmp_path, name) -> None:
    model = keras.Sequential([keras.Input((2,), name=name), keras.layers.Dense(1)])
    serving = serve(model)
    serving.save_for_conversion(tmp_path, serving.input_specs)
    signature = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    assert serving.input_specs[0].name == name
    assert list(signature.structured_input_signature[1]) == [identifier(name)]


def test_a_notebook_is_told_nothing_of_passing_folders(tmp_path, caplog) -> None:
    told = tf.get_logger()
    level = told.level
    told.setLevel("INFO")  # as TensorFlow does where there is a prompt
    told.addHandler(caplog.handler)
    try:
        serving = serve(keras.Sequential([keras.Input((2,)), layers.Dense(1)]))
        serving.save_for_conversion(tmp_path / "saved", serving.input_specs)
        assert caplog.records == []
        assert told.level == 20
        tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
        assert "Assets written" in caplog.text  # or the test tests nothing
    finally:
        told.removeHandler(caplog.handler)
        told.setLevel(level)


def test_to_be_saved_a_model_is_traced_once(tmp_path) -> None:
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            traces.append(inputs)
            return inputs + 1.0

    model = keras.Sequential([keras.Input((3,), name="x"), Counted(name="y")])
    serving = serve(model)
    traces.clear()
    serving.save_for_conversion(tmp_path, serving.input_specs)
    assert len(traces) == 1


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
def test_samples_are_drawn_from_what_training_met(recipe, rng) -> None:
    near = keras.Input((6,), name="near")
    far, told = keras.Input((6,), name="far"), keras.Input((6,), name="told")
    y = keras.layers.Concatenate(name="all")([near, far, told])
    student = keras.Model([near, far, told], keras.layers.Dense(2, name="y")(y))
    model = quantize_aware(student, recipe, input_range={"told": (-2.0, 9.0)})
    x = {
        "near": np.array([[0.5, 1, 1, 1, 1, 1]], "float32"),
        "far": np.array([[-9, -8, -8, -8, -8, -7]], "float32"),
        "told": np.ones((1, 6), "float32"),
    }
    serving = serve(model)
    specs = serving.input_specs
    untrained = serving.with_ranges(specs)
    assert all(low < high for low, high in (spec.low_high for spec in untrained))
    model(x, training=True)
    ranges = {spec.name: spec.low_high for spec in serving.with_ranges(specs)}
    # Not what the levels reach to: 0, the other inputs, and the same below 0 as above.
    assert ranges["near"] == (0.5, 1.0) and ranges["far"] == (-9.0, -7.0)
    assert ranges["told"] == (-2.0, 9.0)
