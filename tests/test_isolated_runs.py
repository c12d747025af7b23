from __future__ import annotations

import dataclasses
import signal

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from converting import converted
from keras import layers

from kdlite.lite import isolated_runs
from kdlite.lite.isolated_runs import Run
from kdlite.lite.runtime import TFLiteModel
from kdlite.lite.tflite_reader import inspect_bytes
from kdlite.lite.verify import verify

WAYS = [Run("xnnpack", 1, 9), Run("built-in", 4, 5), Run("reference", 1, 2)]


@pytest.fixture(scope="module")
def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3), name="image"),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="scores"),
        ],
        name="net",
    )


@pytest.fixture(scope="module")
def blob(net) -> bytes:
    return converted(net)


@pytest.fixture(scope="module")
def crashing(blob) -> bytes:
    """A whole file with two graphs that call each other without end."""
    model = schema.ModelT.InitFromPackedBuf(blob, 0)
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.CALL_ONCE
    code.deprecatedBuiltinCode = 127  # of those that one byte cannot say
    model.operatorCodes.append(code)

    def call(graph: int) -> schema.OperatorT:
        op = schema.OperatorT()
        op.opcodeIndex = len(model.operatorCodes) - 1
        op.inputs = op.outputs = []
        op.builtinOptionsType = schema.BuiltinOptions.CallOnceOptions
        op.builtinOptions = schema.CallOnceOptionsT()
        op.builtinOptions.initSubgraphIndex = graph
        return op

    for graph in (1, 2):
        below = schema.SubGraphT()
        below.tensors = below.inputs = below.outputs = []
        below.operators = [call(3 - graph)]
        model.subgraphs.append(below)
    model.subgraphs[0].operators.insert(0, call(1))
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def images(rng, count: int = 9) -> np.ndarray:
    return rng.normal(size=(count, 6, 6, 3)).astype("float32")


@pytest.mark.parametrize("chunk", [1, 4 * 6 * 6 * 3 * 4, 2**27])
def test_the_same_as_in_this_process(blob, rng, monkeypatch, chunk) -> None:
    monkeypatch.setattr(isolated_runs, "_CHUNK_BYTES", chunk)
    x = images(rng)
    told = isolated_runs.isolated_runs(*inspect_bytes(blob), {"image": x}, WAYS)
    for run, outputs in zip(WAYS, told, strict=True):
        model = TFLiteModel(blob, run.threads, run.kernels)
        wanted = model.predict(x[: run.samples])
        assert list(outputs) == ["scores"]
        np.testing.assert_array_equal(outputs["scores"], wanted)


def test_several_inputs_and_outputs_of_odd_names(rng) -> None:
    # Of these NumPy's archives make arguments, folders and suffixes.
    inputs = [keras.Input((2,), name=name) for name in ("file", "arr_0", "y.npy")]
    x = layers.Concatenate(name="all")(inputs)
    outputs = {"args": layers.Dense(2, name="a")(x), "0": layers.Dense(3, name="b")(x)}
    blob = converted(keras.Model(inputs, outputs))
    content, _ = inspect_bytes(blob)
    x = {t.name: rng.normal(size=(5, 2)).astype("float32") for t in content.inputs}
    (told,) = isolated_runs.isolated_runs(content, blob, x, [Run("xnnpack", 1, 5)])
    wanted = TFLiteModel(blob).predict(x)
    assert set(told) == set(wanted) == {t.name for t in content.outputs}
    for name, values in wanted.items():
        np.testing.assert_array_equal(told[name], values)


def test_what_a_way_cannot_run_is_told_and_the_others_go_on(rng) -> None:
    blob = converted(keras.Sequential([keras.Input((4,), name="x"), layers.ELU()]))
    told = isolated_runs.isolated_runs(
        *inspect_bytes(blob), {"x": rng.normal(size=(9, 4)).astype("float32")}, WAYS
    )
    assert isinstance(told[2], ValueError) and "ELU" in str(told[2])
    assert [len(next(iter(outputs.values()))) for outputs in told[:2]] == [9, 5]


def test_a_file_that_crashes_litert_is_an_error(
    net, crashing, blob, rng, tmp_path
) -> None:
    path = tmp_path / "bad.tflite"
    path.write_bytes(crashing)
    with pytest.raises(ValueError, match=CRASHED.format("bad.tflite")):
        verify(path, net, images(rng))
    with pytest.raises(ValueError, match=CRASHED.format(rf"{len(crashing)} bytes")):
        verify(crashing, net, images(rng))
    # All is as it was.
    assert verify(blob, net, images(rng)).passed


CRASHED = (
    r"one that LiteRT can run. Received: {}, with which LiteRT, by its .* kernels and "
    r"\d threads?, crashed \(SIG[A-Z]+\)\. Make or copy"
)


@pytest.mark.parametrize("kernels", ["reference", "built-in"])
def test_reference_kernels_that_crash_are_no_fault_of_the_file(
    net, blob, rng, monkeypatch, kernels
) -> None:
    real = isolated_runs._SERVERS

    class Crashing:
        """Has the copy crash in the run with these kernels, the last."""

        def run(self, job, folder, limit):
            ended = real.run(job, folder, limit)
            (folder / "1.npz").unlink()
            return dataclasses.replace(ended, returncode=-int(signal.SIGABRT))

    monkeypatch.setattr(isolated_runs, "_SERVERS", Crashing())
    ways = [Run("xnnpack", 1, 9), Run(kernels, 1, 2)]
    content, _ = inspect_bytes(blob)
    x = images(rng)
    if kernels != "reference":
        with pytest.raises(ValueError, match=r"its built-in kernels .*SIGABRT"):
            isolated_runs.isolated_runs(content, blob, {"image": x}, ways)
        return
    told, reason = isolated_runs.isolated_runs(content, blob, {"image": x}, ways)
    np.testing.assert_allclose(told["scores"], net(x), atol=1e-5)
    assert "reference kernels and 1 thread, crashed (SIGABRT)" in str(reason)


def test_a_file_that_never_ends_is_stopped(net, blob, rng, monkeypatch) -> None:
    monkeypatch.setattr(isolated_runs, "_LEAST_TIME_S", 0.0)
    monkeypatch.setattr(isolated_runs, "_MOST_TIME_S", 0.0)
    with pytest.raises(ValueError, match="1 thread, was not done after 0 s, and was"):
        verify(blob, net, images(rng))
