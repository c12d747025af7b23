"""Running a file: as LiteRT by hand would, whatever its types and lengths."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from converting import converted
from keras import layers

from kdlite.lite.runtime import TFLiteModel, dequantize, measure_latency, quantize
from kdlite.lite.tflite_file import TensorInfo


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(3, 3, activation="relu")(inputs)
    scores = layers.Dense(4, name="scores")(layers.Flatten()(x))
    model = keras.Model(inputs, scores)
    return {"None": converted(model)} | {
        str(io): converted(model, "int8", io) for io in (tf.float32, tf.int8, tf.uint8)
    }


@pytest.fixture(scope="module")
def two() -> bytes:
    """Two inputs and two outputs, of which the alphabet has the second first."""
    zeta, alpha = keras.Input((2,), name="zeta"), keras.Input((2,), name="alpha")
    outputs = {
        "twice": layers.Rescaling(2.0)(zeta),
        "less": layers.Subtract()([zeta, alpha]),
    }
    return converted(keras.Model([zeta, alpha], outputs))


def by_hand(blob: bytes, x: np.ndarray) -> np.ndarray:
    """LiteRT, one sample after another, in the file's own types."""
    interpreter = Interpreter(model_content=blob)
    interpreter.allocate_tensors()
    (given,), (told,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    scale, zero_point = given["quantization"]
    if scale:
        limits = np.iinfo(given["dtype"])
        x = np.clip(np.round(x / scale) + zero_point, limits.min, limits.max)
    outputs = []
    for sample in x.astype(given["dtype"]):
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(told["index"])[0])
    scale, zero_point = told["quantization"]
    outputs = np.array(outputs)
    return (outputs.astype(float) - zero_point) * scale if scale else outputs


@pytest.mark.parametrize("xnnpack", [True, False])
@pytest.mark.parametrize("io", [None, tf.float32, tf.int8, tf.uint8])
def test_predicts_what_litert_does_by_hand(files, rng, io, xnnpack) -> None:
    x = rng.uniform(-0.2, 1.2, (7, 6, 6, 1)).astype("float32")
    model = TFLiteModel(files[str(io)], xnnpack=xnnpack)
    told = model.predict(x)
    assert told.shape == (7, 4) and told.dtype == np.float32
    step = model.content.step("scores") or 1e-5
    # Kernels of one and the other may round to neighbouring levels.
    tolerance = 1e-6 if xnnpack else 1.01 * step
    np.testing.assert_allclose(told, by_hand(files[str(io)], x), atol=tolerance)


def test_a_path_does_as_well_as_bytes(files, rng, tmp_path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(files["None"])
    x = rng.uniform(0, 1, (2, 6, 6, 1))
    ours, theirs = TFLiteModel(path, threads=2), TFLiteModel(files["None"])
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


def test_raw_values_are_not_touched(files, rng) -> None:
    model = TFLiteModel(files[str(tf.uint8)])
    x = rng.uniform(0, 1, (3, 6, 6, 1))
    levels = quantize(x, model.inputs[0])
    raw = model.predict_raw(levels)
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(dequantize(raw, model.outputs[0]), model.predict(x))
    with pytest.raises(ValueError, match="file's dtype. Received: float64.*uint8"):
        model.predict_raw(x)


def test_several_inputs_and_outputs_go_by_name(two) -> None:
    model = TFLiteModel(two)
    zeta, alpha = np.array([[1.0, 2.0]]), np.array([[10.0, 10.0]])
    told = model.predict({"alpha": alpha, "zeta": zeta})
    np.testing.assert_allclose(told["twice"], [[2, 4]])
    np.testing.assert_allclose(told["less"], [[-9, -8]])
    raw = model.predict_raw({"alpha": alpha.astype("f4"), "zeta": zeta.astype("f4")})
    assert set(raw) == {"twice", "less"}
    with pytest.raises(ValueError, match="takes a mapping.*ndarray"):
        model.predict(zeta)
    with pytest.raises(ValueError, match="Inputs must be .*Received: 'zeta', 'beta'"):
        model.predict({"zeta": zeta, "beta": alpha})
    with pytest.raises(ValueError, match="as many samples.*2 of 'alpha'"):
        model.predict({"zeta": zeta, "alpha": np.ones((2, 2))})


def function_file(shape: tuple[int | None, ...]) -> bytes:
    signature = tf.function(lambda x: {"y": x + 1.0}).get_concrete_function(
        tf.TensorSpec(shape, name="x")
    )
    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([signature], module)
    return converter.convert()


def test_a_file_of_a_larger_batch_takes_any_number_of_samples(rng) -> None:
    model = TFLiteModel(function_file((4, 3)))
    for count in (1, 4, 6):
        x = rng.normal(size=(count, 3)).astype("float32")
        np.testing.assert_allclose(model.predict(x), x + 1)


def test_lengths_that_may_change(rng) -> None:
    model = TFLiteModel(function_file((None, None, 2)))
    for length in (3, 5):
        x = rng.normal(size=(4, length, 2)).astype("float32")
        np.testing.assert_allclose(model.predict(x), x + 1)


@pytest.mark.parametrize("shape", [(6, 6, 1), (2, 5, 6, 1), (0, 6, 6, 1), (2, 6, 6)])
def test_samples_of_another_shape(files, shape) -> None:
    with pytest.raises(ValueError, match=r"shape of the input.*\(samples, 6, 6, 1\)"):
        TFLiteModel(files["None"]).predict(np.zeros(shape))


@pytest.mark.parametrize("threads", [0, 1.5, None])
def test_threads(files, threads) -> None:
    with pytest.raises(ValueError, match="`threads` must be an integer above 0"):
        TFLiteModel(files["None"], threads=threads)


def test_what_cannot_be_run(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        TFLiteModel(tmp_path / "no.tflite")
    with pytest.raises(ValueError, match="well-formed"):
        TFLiteModel(b"no model")
    signature = tf.function(lambda x: {"y": tf.math.erf(x)}).get_concrete_function(
        tf.TensorSpec((1, 3), name="x")
    )
    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([signature], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]
    with pytest.raises(ValueError, match="must be one that LiteRT can run.*custom_ops"):
        TFLiteModel(converter.convert())


# --- numbers and levels


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_levels_are_numpys(rng, dtype) -> None:
    info = np.iinfo(dtype)
    tensor = TensorInfo("x", dtype, (1, 9), (0.037,), (5,), 0, False, 0)
    x = np.concatenate([rng.normal(0, 3, 500), [1e9, -1e9, 0.0]])
    levels = quantize(x, tensor)
    oracle = [
        min(max(round(float(value) / 0.037) + 5, info.min), info.max) for value in x
    ]
    assert levels.dtype == dtype and levels.tolist() == oracle
    assert levels[-1] == 5
    values = dequantize(levels, tensor)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, (np.array(oracle) - 5) * 0.037, rtol=1e-6)
    np.testing.assert_array_equal(quantize(values, tensor), levels)


def test_what_is_not_quantized_stays() -> None:
    tensor = TensorInfo("ids", "int32", (1, 2), (), (), 0, False, 0)
    assert tensor.scale is None and tensor.zero_point is None
    assert quantize(np.array([3.0, 4.0]), tensor).dtype == np.int32
    levels = np.array([1, 2])
    assert dequantize(levels, tensor) is levels


# --- latency


def test_latency_has_one_result_a_file(files, two) -> None:
    results = measure_latency([files["None"], two], threads=2, runs=25, warmup=1)
    assert len(results) == 2
    for result in results:
        assert 0 < result.min_ms <= result.p50_ms <= result.p90_ms
        assert (result.runs, result.threads) == (25, 2)
        assert result.to_dict()["p50_ms"] == result.p50_ms
        assert "25 runs, 2 threads" in str(result)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"runs": 0}, "`runs` must be an integer, at least 1"),
        ({"warmup": -1}, "`warmup` must be an integer, at least 0"),
        ({"threads": 0}, "`threads`"),
    ],
)
def test_latency_refuses(files, arguments, text) -> None:
    with pytest.raises(ValueError, match=text):
        measure_latency([files["None"]], **arguments)
