"""Running a file: as LiteRT by hand would, whatever its types and lengths."""

from __future__ import annotations

import json
from pathlib import Path

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
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


def test_values_that_an_operation_does_not_take() -> None:
    ids = keras.Input((2,), dtype="int32", name="ids")
    model = TFLiteModel(converted(keras.Model(ids, layers.Embedding(5, 3)(ids))))
    assert model.predict(np.array([[0, 4]], np.int32)).shape == (1, 2, 3)
    with pytest.raises(ValueError, match="such that the operations.*gather.*Give val"):
        model.predict(np.array([[0, 5]], np.int32))


def edited(blob: bytes, edit) -> bytes:
    """The file with its first graph changed."""
    model = schema.ModelT.InitFromPackedBuf(blob, 0)
    edit(model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def no_operation_makes_it(graph) -> None:
    graph.operators.pop()


def it_is_a_constant(graph) -> None:
    graph.inputs = graph.operators[0].inputs[1:2]


@pytest.mark.parametrize(
    ("edit", "text"),
    [(no_operation_makes_it, "data is null"), (it_is_a_constant, "is unallocated")],
)
def test_edges_that_have_no_place(files, edit, text) -> None:
    model = TFLiteModel(edited(files["None"], edit))
    x = np.zeros(model.inputs[0].shape)
    with pytest.raises(
        ValueError, match=f"one that LiteRT can run.*{text}.*Convert its"
    ):
        model.predict(x)


@pytest.mark.parametrize("kernels", ["xnnpack", "built-in", "reference"])
@pytest.mark.parametrize("io", [None, tf.float32, tf.int8, tf.uint8])
def test_predicts_what_litert_does_by_hand(files, rng, io, kernels) -> None:
    x = rng.uniform(-0.2, 1.2, (7, 6, 6, 1)).astype("float32")
    model = TFLiteModel(files[str(io)], kernels=kernels)
    told = model.predict(x)
    assert told.shape == (7, 4) and told.dtype == np.float32
    step = model.content.step("scores") or 1e-5
    # Kernels of one and the other may round to neighbouring levels.
    tolerance = 1e-6 if kernels == "xnnpack" else 1.01 * step
    np.testing.assert_allclose(told, by_hand(files[str(io)], x), atol=tolerance)


def test_a_path_does_as_well_as_bytes(files, rng, tmp_path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(files["None"])
    x = rng.uniform(0, 1, (2, 6, 6, 1))
    ours, theirs = TFLiteModel(path, threads=2), TFLiteModel(files["None"])
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    np.testing.assert_array_equal(ours.predict({"image": x}), theirs.predict(x))


def test_the_bytes_that_were_checked_are_those_that_run(
    files, rng, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(files["None"])
    read = Path.read_bytes

    def read_and_replaced(self: Path) -> bytes:
        blob = read(self)
        self.write_bytes(b"another file, that nobody has checked")
        return blob

    monkeypatch.setattr(Path, "read_bytes", read_and_replaced)
    model = TFLiteModel(path)
    x = rng.uniform(0, 1, (2, 6, 6, 1))
    np.testing.assert_array_equal(
        model.predict(x), TFLiteModel(files["None"]).predict(x)
    )


def test_raw_values_are_not_touched(files, rng) -> None:
    model = TFLiteModel(files[str(tf.uint8)])
    x = rng.uniform(0, 1, (3, 6, 6, 1))
    levels = quantize(x, model.inputs[0])
    raw = model.predict_raw(levels)
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(dequantize(raw, model.outputs[0]), model.predict(x))
    with pytest.raises(ValueError, match="file's dtype. Received: float64.*uint8"):
        model.predict_raw(x)
    # Float files have their own raw values.
    plain = TFLiteModel(files["None"])
    np.testing.assert_array_equal(
        plain.predict_raw(x.astype("float32")), plain.predict(x)
    )


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


def function_file(function, *specs: tf.TensorSpec, flex: bool = False) -> bytes:
    signature = tf.function(function).get_concrete_function(*specs)
    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([signature], module)
    if flex:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]
    return converter.convert()


def plus_one(*shape: int | None, dtype: tf.DType = tf.float32) -> bytes:
    one = tf.ones((), dtype)
    return function_file(
        lambda x: {"y": x + one}, tf.TensorSpec(shape, dtype, name="x")
    )


def test_a_file_of_a_larger_batch_takes_any_number_of_samples(rng) -> None:
    model = TFLiteModel(plus_one(4, 3))
    for count in (1, 4, 6):
        x = rng.normal(size=(count, 3)).astype("float32")
        np.testing.assert_allclose(model.predict(x), x + 1)
        np.testing.assert_array_equal(model.predict_raw(x), model.predict(x))


def test_lengths_that_may_change(rng) -> None:
    model = TFLiteModel(plus_one(None, None, 2))
    for length in (3, 5, 1):
        x = rng.normal(size=(4, length, 2)).astype("float32")
        np.testing.assert_allclose(model.predict(x), x + 1)
        np.testing.assert_allclose(model.predict_raw(x), x + 1)
    with pytest.raises(ValueError, match=r"Received: \(4, 3, 7\) for 'x'.*-1, 2\)"):
        model.predict(np.zeros((4, 3, 7)))


def test_an_input_that_is_one_number(rng) -> None:
    model = TFLiteModel(plus_one())
    x = rng.normal(size=5).astype("float32")
    np.testing.assert_allclose(model.predict(x), x + 1)
    with pytest.raises(ValueError, match=r"takes \(samples\)"):
        model.predict(np.float32(3.0))


def test_integer_inputs_take_integers() -> None:
    model = TFLiteModel(plus_one(1, 2, dtype=tf.int32))
    told = model.predict([[3.0, 4.0], [-1, 9]])
    assert told.dtype == np.int32 and told.tolist() == [[4, 5], [0, 10]]
    for value in (0.5, np.nan, 2.0**40):
        with pytest.raises(ValueError, match="Values must be int32.*for 'x'. Round"):
            model.predict(np.array([[1.0, value]]))
    assert measure_latency([plus_one(1, 2, dtype=tf.int32)], runs=1, warmup=0)


def test_an_output_without_a_batch_is_one_a_sample(rng) -> None:
    x = rng.normal(size=(3, 6)).astype("float32")
    spec = tf.TensorSpec((1, 6), name="x")
    outputs = TFLiteModel(
        function_file(
            lambda x: {"grid": tf.reshape(x, (3, 2)), "total": tf.reduce_sum(x)}, spec
        )
    ).predict(x)
    np.testing.assert_array_equal(outputs["grid"], x.reshape(3, 3, 2))
    np.testing.assert_allclose(outputs["total"], x.sum(1), rtol=1e-5)


def test_outputs_that_belong_to_no_sample() -> None:
    together = TFLiteModel(
        function_file(
            lambda x: {"y": tf.reduce_sum(x, 0)}, tf.TensorSpec((4, 3), name="x")
        )
    )
    with pytest.raises(ValueError, match=r"as many values.*\(3,\) for 'y', of 4 sam"):
        together.predict(np.ones((8, 3)))
    found = TFLiteModel(
        function_file(lambda x: {"y": tf.where(x > 0)}, tf.TensorSpec((1, 3), name="x"))
    )
    assert found.predict(np.array([[1, 0, 1]])).tolist() == [[[0, 0], [0, 2]]]
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(3, 2\) for 'y'"):
        found.predict(np.array([[1, 1, 1], [0, 0, 1]]))


@pytest.mark.parametrize("shape", [(6, 6, 1), (2, 5, 6, 1), (0, 6, 6, 1), (2, 6, 6)])
def test_samples_of_another_shape(files, shape) -> None:
    with pytest.raises(ValueError, match=r"shape of the input.*\(samples, 6, 6, 1\)"):
        TFLiteModel(files["None"]).predict(np.zeros(shape))


@pytest.mark.parametrize("threads", [0, 1.5, None])
def test_threads(files, threads) -> None:
    with pytest.raises(ValueError, match="`threads` must be a whole number from 1 on"):
        TFLiteModel(files["None"], threads=threads)


def test_what_cannot_be_run(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        TFLiteModel(tmp_path / "no.tflite")
    with pytest.raises(ValueError, match="well-formed"):
        TFLiteModel(b"no model")
    blob = function_file(
        lambda x: {"y": tf.math.erf(x)}, tf.TensorSpec((1, 3), name="x"), flex=True
    )
    with pytest.raises(ValueError, match="must be one that LiteRT can run.*custom_ops"):
        TFLiteModel(blob)


def test_inputs_and_outputs_must_be_numbers(files) -> None:
    text = function_file(
        lambda x: {"y": tf.reshape(x, (1, 3))},
        tf.TensorSpec((3,), tf.string, name="x"),
    )
    with pytest.raises(
        ValueError, match="that are numbers. Received: .*string for 'x'"
    ):
        TFLiteModel(text)
    file = schema.ModelT.InitFromPackedBuf(files["None"], 0)
    file.signatureDefs[0].inputs = []
    builder = flatbuffers.Builder(1024)
    builder.Finish(file.Pack(builder), b"TFL3")
    with pytest.raises(ValueError, match="that are numbers. Received: .*no inputs"):
        TFLiteModel(bytes(builder.Output()))


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


def test_integers_cannot_say_nan(files) -> None:
    x = np.zeros((2, 6, 6, 1))
    x[1, 2, 3] = np.nan
    for io in (tf.int8, tf.uint8):
        with pytest.raises(ValueError, match=f"cannot say NaN.*'image'.*{io.name}"):
            TFLiteModel(files[str(io)]).predict(x)
    assert np.isnan(TFLiteModel(files["None"]).predict(x)[1]).all()
    # Infinities are the farthest level.
    tensor = TensorInfo("x", "int8", (1, 2), (0.1,), (3,), 0, False, 0)
    assert quantize(np.array([np.inf, -np.inf]), tensor).tolist() == [127, -128]


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
        assert json.loads(json.dumps(result.to_dict())) == {
            "p50_ms": result.p50_ms,
            "p90_ms": result.p90_ms,
            "min_ms": result.min_ms,
            "runs": 25,
            "threads": 2,
            "processor": result.processor,
        }
        assert "25 runs, 2 threads" in str(result)
    assert measure_latency([]) == ()


def test_a_busy_computer_is_told(files, two, monkeypatch) -> None:
    # Of each second that passes the process has a part.
    for part, busy in ((1.0, False), (0.3, True)):
        clock = iter(range(10**6))
        had = iter(range(10**6))

        def turn(self: TFLiteModel, runs: int, clock=clock, had=had, part=part):
            return iter([1.0] * runs)

        monkeypatch.setattr(TFLiteModel, "_turn", turn)
        monkeypatch.setattr(
            "kdlite.lite.runtime.time.perf_counter_ns", lambda clock=clock: next(clock)
        )
        monkeypatch.setattr(
            "kdlite.lite.runtime.time.process_time_ns",
            lambda had=had, part=part: part * next(had),
        )
        for found in measure_latency([files["None"], two], runs=30):
            assert found.processor == pytest.approx(part)
            assert found.busy == busy
            words = "the computer was busy: these runs had 30 % of a processor"
            assert (words in str(found)) == busy


def test_files_are_timed_in_turns(files, two, monkeypatch) -> None:
    turns, rng = [], np.random.default_rng(0)
    taken: dict[int, list[float]] = {}

    def turn(self: TFLiteModel, runs: int):
        times = rng.uniform(1, 9, runs).tolist()
        turns.append((len(self.inputs), runs))
        taken.setdefault(len(self.inputs), []).extend(times)
        return iter(times)

    monkeypatch.setattr(TFLiteModel, "_turn", turn)
    one, other = measure_latency([files["None"], two], runs=24, warmup=3)
    warmup, turns = turns[:2], turns[2:]
    assert warmup == [(1, 3), (2, 3)]
    assert turns == [(1, 10), (2, 10), (1, 10), (2, 10), (1, 4), (2, 4)]
    for result, inputs in ((one, 1), (other, 2)):
        times = sorted(taken[inputs][3:])
        assert result.min_ms == times[0]
        assert result.p50_ms == pytest.approx((times[11] + times[12]) / 2)
        # At nine tenths of the way from the first of 24 times to the last: 20.7.
        assert result.p90_ms == pytest.approx(times[20] + 0.7 * (times[21] - times[20]))
    assert "1 thread" in str(one) and not str(one).endswith("s")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"runs": 0}, "`runs` must be a whole number from 1 on"),
        ({"warmup": -1}, "`warmup` must be a whole number from 0 on"),
        ({"threads": 0}, "`threads`"),
    ],
)
def test_latency_refuses(files, arguments, text) -> None:
    with pytest.raises(ValueError, match=text):
        measure_latency([files["None"]], **arguments)


@pytest.mark.parametrize("files", ["student.tflite", Path("student.tflite"), b"TFL3"])
def test_latency_takes_a_list(files) -> None:
    with pytest.raises(TypeError, match=r"`files` must be a list.*Write \[file\]"):
        measure_latency(files)
