from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from kdlite.compress.qat import quantize_aware
from kdlite.compress.recipes import RECIPES
from kdlite.lite import _converter, convert, proof
from kdlite.lite.convert import ConversionError, ExportResult, export
from kdlite.lite.fork_server import ForkServers
from kdlite.lite.metadata import read_metadata
from kdlite.lite.runtime import TFLiteModel
from kdlite.lite.tflite_reader import inspect
from kdlite.lite.verification import VerificationError

layers = keras.layers
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 61.0, 62.0]
NAMES = ["cat", "dog", "eel", "fox", "gnu"]


def pixels(count: int = 128, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 8, 8, channels), np.uint8)


def normalised(images: np.ndarray) -> np.ndarray:
    return ((images - np.array(MEAN)) / np.array(STD)).astype("float32")


def two_heads() -> keras.Model:
    """Conv, BN, ReLU6, depthwise; two heads of one shape, not in alphabetical order."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(6.0, name="relu")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Flatten(name="flat")(x)
    outputs = {
        "zeta": layers.Dense(5, name="first", activation="softmax")(x),
        "alpha": layers.Dense(5, name="second", activation="softmax")(x),
    }
    model = keras.Model(inputs, outputs, name="two_heads")
    norm = model.get_layer("norm")
    norm.set_weights([np.linspace(low, 2, 6) for low in (0.5, -1, -0.2, 0.1)])
    return model


def classifier() -> keras.Model:
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Rescaling(1 / 255, name="scale"),
            layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(5, name="logits"),
        ],
        name="classifier",
    )


SEQUENCES = np.random.default_rng(0).normal(size=(128, 4, 3))


def sequence_model() -> keras.Model:
    keras.utils.set_random_seed(6)
    return keras.Sequential(
        [
            keras.Input((4, 3), name="x"),
            layers.Conv1D(4, 2, name="conv"),
            layers.Flatten(name="flat"),
        ],
        name="sequences",
    )


def op_names(result: ExportResult) -> list[str]:
    return [op.name for op in result.ops]


def by_name(tensors) -> dict:
    return {tensor.name: tensor for tensor in tensors}


# --- float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def float_file(folder) -> tuple[keras.Model, ExportResult]:
    # Saved and loaded before: what keras#18430 and tensorflow#63867 failed on.
    two_heads().save(folder / "two_heads.keras")
    model = keras.models.load_model(folder / "two_heads.keras")
    result = export(
        model,
        folder / "float.tflite",
        mean=MEAN,
        std=STD,
        input_range=(0.0, 255.0),
        labels={"zeta": NAMES},
        verify_data=(pixels(), None),
    )
    return model, result


def test_a_float_file_computes_what_keras_does_by_name(float_file) -> None:
    model, result = float_file
    images = pixels()
    told = TFLiteModel(result.path).predict(images.astype("float32"))
    wanted = {name: y.numpy() for name, y in model(normalised(images)).items()}
    # Heads of one shape came back swapped by position (tensorflow#33303 and others).
    assert set(told) == {"zeta", "alpha"}
    for name in told:
        np.testing.assert_allclose(told[name], wanted[name], atol=1e-5)
    assert np.abs(wanted["zeta"] - wanted["alpha"]).max() > 0.1


def test_a_float_file_is_static_folded_and_named(float_file) -> None:
    _, result = float_file
    assert by_name(result.inputs)["image"].shape == (1, 8, 8, 3)
    assert by_name(result.outputs)["alpha"].shape == (1, 5)
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"} <= set(op_names(result))
    # Batch normalization is in the kernel; MUL and ADD are `mean` and `std`.
    assert op_names(result).count("MUL") == op_names(result).count("ADD") == 1
    assert not {"SHAPE", "PACK", "STRIDED_SLICE"} & set(op_names(result))


def test_what_the_file_says_of_itself(float_file) -> None:
    _, result = float_file
    about = read_metadata(result.path)
    assert about.name == "two_heads"
    assert by_name(about.outputs)["zeta"].labels == tuple(NAMES)
    assert by_name(about.outputs)["zeta"].description == "probability of each class"
    assert about.inputs[0].minimum == (0.0,) and about.inputs[0].maximum == (255.0,)
    # Pixels go in as they are.
    assert (about.inputs[0].mean, about.inputs[0].std) == ((0.0,), (1.0,))
    assert about.provenance["quantization"] == "float32"
    assert about.provenance["normalisation_inside"] == {"mean": MEAN, "std": STD}
    samples = result.verification.samples
    assert about.provenance["checked"] == {"samples": samples, "largest_share": 1e-4}


def test_the_result_prints_and_is_plain_json(float_file) -> None:
    _, result = float_file
    assert str(result).startswith(
        f"{result.path}: float32, {result.size_bytes:,} bytes"
    )
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["size_bytes"] == result.path.stat().st_size == result.size_bytes
    assert plain["quantization"] == "float32" and plain["io"] == "float32"
    assert plain["verification"] and plain["ops"] and plain["inputs"]
    with pytest.raises(AttributeError):
        result.path = Path("other")  # type: ignore[misc]


@pytest.fixture(scope="module")
def left(folder) -> tuple[Path, bytes]:
    """What the converter was given for an int8 file, and what it made of that."""
    kept, made = folder / "kept", []
    run = _converter.Converter.run

    def keeping(self, folder, *args):
        shutil.copytree(folder.parent, kept)
        options = json.loads((folder / "options.json").read_text())
        for name in ("saved_model", "calibration"):
            options[name] = str(kept / Path(options[name]).name)
        (kept / "options.json").write_text(json.dumps(options))
        made.append(run(self, folder, *args))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_converter.Converter, "run", keeping)
        path = folder / "left.tflite"
        export(sequence_model(), path, "int8", calibration_data=SEQUENCES)
    return kept, made[0]


def test_the_same_bytes_in_another_process(float_file, left, tmp_path) -> None:
    _, result = float_file
    kept, made = left
    script = """
        import keras, pathlib, sys, numpy as np
        from kdlite.lite import _converter, conversion
        from kdlite.lite.convert import export

        class Converter:  # here, rather than in a copy of one more process
            def run(self, folder, *limits):
                _converter.convert(folder)
                return (folder / "model.tflite").read_bytes()

        # By a process that has converted nothing, and is nobody's copy.
        _converter.convert(pathlib.Path(sys.argv[4]))
        conversion.Converter = Converter
        keras.layers.Dense(3)(np.ones((1, 2)))
        model = keras.models.load_model(sys.argv[1])
        images = np.load(sys.argv[3])
        export(model, sys.argv[2], mean=[120.0, 110.0, 100.0], std=[60.0, 61.0, 62.0],
               input_range=(0.0, 255.0), labels={"zeta": sys.argv[5:]},
               verify_data=(images, None))
    """
    np.save(tmp_path / "images.npy", pixels())
    subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(script),
            result.path.with_name("two_heads.keras"),
            tmp_path / "again.tflite",
            tmp_path / "images.npy",
            kept,
            *NAMES,
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (tmp_path / "again.tflite").read_bytes() == result.path.read_bytes()
    assert (kept / "model.tflite").read_bytes() == made


class Strided(keras.Model):
    """Subclassed, under mixed precision, without names for its outputs."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, strides=2, activation="relu")
        self.pool = layers.GlobalAveragePooling2D()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(self.pool(self.conv(inputs)))


def test_the_metric_comes_from_targets_in_any_form(tmp_path) -> None:
    model = keras.Sequential(
        [keras.Input((2,), name="y"), layers.Dense(3, name="logits")], name="from_y"
    )
    x = np.random.default_rng(2).normal(size=(40, 2)).astype("float32")
    labels = model(x).numpy().argmax(-1)
    batches = tf.data.Dataset.from_tensor_slices((x, labels)).batch(16)
    result = export(model, tmp_path / "batches.tflite", verify_data=batches)
    assert result.verification.outputs[0].file_metric == 1.0
    # An input may be called as targets are.
    np.savez(tmp_path / "inputs.npz", y=x)
    path = tmp_path / "inputs.tflite"
    result = export(model, path, verify_data=tmp_path / "inputs.npz")
    assert result.verification.outputs[0].file_metric is None


def test_a_subclassed_model_in_mixed_precision(tmp_path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = Strided(name="strided")
        model(np.zeros((2, 8, 8, 3)))
    finally:
        keras.config.set_dtype_policy("float32")
    before = [w.copy() for w in model.get_weights()]
    result = export(model, tmp_path / "s.tflite", verify_data=pixels(16) / 255)
    assert keras.config.dtype_policy().name == "float32"
    assert model.compute_dtype == "float16"
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    images = (pixels(16) / 255).astype("float32")
    told = np.asarray(TFLiteModel(result.path).predict(images))
    wanted = model(images, training=False)
    # float16 has 11 bits: a few of its rounding errors, 5e-4 each, add up.
    np.testing.assert_allclose(told, wanted, atol=5e-3)
    assert {op.name for op in result.ops} <= {
        "CONV_2D",
        "MEAN",
        "FULLY_CONNECTED",
    }


# --- int8


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    """A quantization-aware model with ranges, by a few steps of training."""
    model = quantize_aware(classifier(), input_range=(0.0, 255.0))
    keras.utils.set_random_seed(5)
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    images = pixels(256).astype("float32")
    targets = keras.utils.normalize(images[:, 0, :5, 0])
    model.fit(images, targets, batch_size=64, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def aware_file(folder, trained) -> ExportResult:
    # Without any data, as no ranges are to be measured (tensorflow#38285 wants a data
    # set).
    return export(trained, folder / "aware.tflite", "int8", labels=NAMES)


def test_a_quantization_aware_file_is_integer_throughout(aware_file) -> None:
    names = op_names(aware_file)
    assert names[0] == "QUANTIZE" and names[-1] == "DEQUANTIZE"
    assert not {"QUANTIZE", "DEQUANTIZE", "MUL", "ADD"} & set(names[1:-1])
    assert inspect(aware_file.path).float_ops == ()
    assert aware_file.inputs[0].dtype == aware_file.outputs[0].dtype == "float32"


def test_a_quantization_aware_file_is_on_the_level_of_keras(
    aware_file, trained
) -> None:
    images = pixels(100).astype("float32")
    told = np.asarray(TFLiteModel(aware_file.path).predict(images))
    wanted = trained(images, training=False)
    step = np.diff(np.unique(told)).min()
    # The one op that rounds otherwise than Keras, MEAN, can move a value by one level.
    assert (np.abs(told - wanted) <= 1.01 * step).mean() >= 0.99
    # Dense kernels keep their levels by channel, on which training has put them.
    assert (np.abs(told - wanted) < 0.5 * step).mean() >= 0.9


def two_inputs() -> keras.Model:
    """uint8 pixels and int32 ids; hard swish, and a transposed convolution."""
    keras.utils.set_random_seed(4)
    image = keras.Input((8, 8, 3), dtype="uint8", name="zoo-image")
    ids = keras.Input((2,), dtype="int32", name="ids")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(image)
    x = layers.Conv2D(6, 3, activation="hard_swish", name="conv")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, name="up")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    y = layers.Flatten(name="flat")(layers.Embedding(10, 3, name="embedding")(ids))
    x = layers.Concatenate(name="both")([x, y])
    return keras.Model(
        [image, ids], layers.Dense(4, name="logits")(x), name="two_inputs"
    )


@pytest.fixture(scope="module")
def calibrated_file(folder) -> tuple[keras.Model, dict, ExportResult]:
    model = two_inputs()
    data = {
        "zoo-image": pixels(),
        "ids": np.random.default_rng(5).integers(0, 10, (128, 2), np.int32),
    }
    result = export(
        model, folder / "uint8.tflite", "int8", calibration_data=data, io="uint8"
    )
    return model, data, result


def test_a_calibrated_file_takes_pixels_as_they_are(calibrated_file) -> None:
    model, data, result = calibrated_file
    assert set(by_name(result.inputs)) == {"zoo-image", "ids"}
    image = by_name(result.inputs)["zoo-image"]
    assert image.dtype == "uint8" and image.shape == (1, 8, 8, 3)
    # A level is a pixel value, whatever the samples' largest value was.
    assert (image.scale, image.zero_point) == (pytest.approx(1.0), 0)
    assert by_name(result.inputs)["ids"].dtype == "int32"
    assert result.outputs[0].dtype == "uint8"
    assert inspect(result.path).float_ops == ()
    assert not {"SHAPE", "PACK"} & set(op_names(result))


def test_a_calibrated_file_is_close_to_keras(calibrated_file) -> None:
    model, data, result = calibrated_file
    told = np.asarray(TFLiteModel(result.path).predict(data))
    wanted = model(data, training=False).numpy()
    error = np.sqrt(np.mean((told - wanted) ** 2))
    assert 20 * np.log10(wanted.std() / error) > 20


def test_a_file_runs_on_the_runtime_it_is_made_for(calibrated_file, aware_file) -> None:
    # 2.16.1 knows FULLY_CONNECTED up to version 9 (tensorflow#80736).
    for result in (calibrated_file[2], aware_file):
        for op in result.ops:
            if op.name == "FULLY_CONNECTED":
                assert op.version <= 9


def test_float_ops_are_an_error_that_names_them_unless_allowed(
    tmp_path, monkeypatch
) -> None:
    model = keras.Sequential(
        [
            keras.Input((6,), name="x"),
            layers.Dense(8, name="hidden"),
            layers.LayerNormalization(name="layer_norm"),
            layers.Dense(3, name="logits"),
        ],
        name="normalised",
    )
    data = np.random.default_rng(0).normal(size=(128, 6))
    path = tmp_path / "n.tflite"
    export(model, path, "int8", calibration_data=data, allow_float_ops=("neg",))
    assert {op.name for op in inspect(path).float_ops} == {"NEG"}
    blob = path.read_bytes()
    monkeypatch.setattr(_converter.Converter, "run", lambda *args: blob)
    monkeypatch.setattr(proof, "check_layers", lambda *args: None)
    with pytest.raises(ConversionError, match="int8 means that every op") as caught:
        export(model, tmp_path / "other.tflite", "int8", calibration_data=data)
    assert re.search("stay in float: .*NEG .layer 'layer_norm'", str(caught.value))
    assert "allow_float_ops=('NEG',)" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MODEL_CARD.md", "n.tflite"]


# --- what the converter cannot do


def looped() -> keras.Model:
    # tensorflow#87468: int8 of an LSTM, which with batch 1 is a loop, is a
    # segmentation fault.
    return keras.Sequential(
        [keras.Input((4, 3), name="x"), layers.LSTM(4), layers.Dense(2)], name="lstm"
    )


def test_a_crash_is_an_exception_and_what_was_before_changes_no_byte(
    left, folder, tmp_path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(proof, "check_layers", lambda *args: None)
        with pytest.raises(ConversionError, match="crashed.*model='lstm'"):
            export(looped(), tmp_path / "l.tflite", "int8", calibration_data=SEQUENCES)
    assert not list(tmp_path.iterdir())
    # After a crash and another model the same as before.
    export(small_model(), tmp_path / "2.tflite")
    path = tmp_path / "3.tflite"
    export(sequence_model(), path, "int8", calibration_data=SEQUENCES)
    assert path.read_bytes() == (folder / "left.tflite").read_bytes()


@pytest.fixture
def small() -> keras.Model:
    return small_model()


def small_model() -> keras.Model:
    return keras.Sequential(
        [keras.Input((2,), name="x"), layers.Dense(2, name="y")], name="small"
    )


@pytest.fixture
def acted_by(monkeypatch, tmp_path) -> Iterator[Callable[[str], None]]:
    """Lets this code act the converter."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_converter, "_JOB", "acts:acts")
    monkeypatch.setattr(_converter, "_SERVERS", ForkServers(()))

    def act(code: str) -> None:
        code = "def acts(folder):\n" + textwrap.indent(textwrap.dedent(code), "    ")
        (tmp_path / "acts.py").write_text(code)

    yield act
    _converter._SERVERS.close()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os.abort()", r"crashed \(SIGABRT\)\. Received: model='small'"),
        ("import os; os.kill(os.getpid(), 11)", r"crashed \(SIGSEGV\)"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "was killed, most likely because memory",
        ),
        (
            "print('a\\nb\\nc\\nd\\ne\\nf'); raise RuntimeError('no such op')",
            r"raised an error\. Received: model='small'\. Its last words(?s:.*)no such",
        ),
        ("pass", r"must make a file.*Its last words: none"),
    ],
)
def test_however_the_converter_ends(small, tmp_path, acted_by, code, text) -> None:
    acted_by(code)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.tflite").write_text("old")
    with pytest.raises(ConversionError, match=text):
        export(small, out / "old.tflite", overwrite=True)
    assert [p.read_text() for p in out.iterdir()] == ["old"]


def test_a_converter_that_hangs_is_stopped(small, tmp_path, acted_by) -> None:
    pid = tmp_path / "pid"
    acted_by(
        f"""
        import os, pathlib, time
        pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))
        time.sleep(600)
        """,
    )
    with pytest.raises(ConversionError, match="within 2 s, and was stopped.*'small'"):
        export(small, tmp_path / "m.tflite", time_limit_s=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), signal.SIG_DFL)
    assert not (tmp_path / "m.tflite").exists()


def test_what_the_converter_prints_is_logged(small, tmp_path, acted_by, caplog) -> None:
    acted_by("print('loading'); raise SystemExit(3)")
    with caplog.at_level("DEBUG", "kdlite"), pytest.raises(ConversionError):
        export(small, tmp_path / "m.tflite")
    assert "loading" in caplog.text


# --- in place, or not at all


@pytest.fixture
def other_model(float_file) -> keras.Model:
    """The model of `float_file`, with other weights."""
    model = keras.models.clone_model(float_file[0])
    keras.utils.set_random_seed(77)
    model.set_weights(
        [np.random.normal(size=w.shape) ** 2 for w in model.get_weights()]
    )
    return model


@pytest.fixture
def converted(monkeypatch, float_file) -> None:
    """Lets the converter make `float_file` of any model."""
    blob = float_file[1].path.read_bytes()
    monkeypatch.setattr(_converter.Converter, "run", lambda *args: blob)
    monkeypatch.setattr(convert, "write_metadata", lambda blob, **kwargs: blob)


def test_a_file_that_does_otherwise_is_not_put_in_place(
    other_model, converted, tmp_path
) -> None:
    (tmp_path / "old.tflite").write_text("old")
    for name in ("new.tflite", "old.tflite"):
        with pytest.raises(VerificationError):
            export(
                other_model,
                tmp_path / name,
                mean=MEAN,
                std=STD,
                verify_data=pixels(16),
                overwrite=True,
            )
    assert [p.name for p in tmp_path.iterdir()] == ["old.tflite"]
    assert (tmp_path / "old.tflite").read_text() == "old"


def test_a_file_of_the_wrong_kind_is_an_error(float_file, converted, tmp_path) -> None:
    calibration = normalised(pixels())
    # So a float file where int8 was asked for (tensorflow#40681) cannot pass.
    with pytest.raises(ConversionError, match="int8 means.*stay in float.*CONV_2D"):
        export(
            float_file[0], tmp_path / "x.tflite", "int8", calibration_data=calibration
        )
    with pytest.raises(
        ConversionError, match="must be int8, as `quantization` asks.*made float32"
    ):
        export(
            float_file[0],
            tmp_path / "x.tflite",
            "int8",
            calibration_data=calibration,
            io="int8",
            allow_float_ops={op.name for op in float_file[1].ops},
        )
    assert not list(tmp_path.iterdir())


def test_inputs_of_another_type_than_asked_for_are_an_error(
    float_file, converted, tmp_path
) -> None:
    calibration = normalised(pixels())
    # Of a recipe of one's own a file cannot be told to be it.
    mine = dataclasses.replace(RECIPES["int8"], name="mine")
    with pytest.raises(
        ConversionError, match="must be int8, as `io` asks. Received: float32 for"
    ):
        export(
            float_file[0],
            tmp_path / "x.tflite",
            mine,
            calibration_data=calibration,
            io="int8",
            allow_float_ops={op.name for op in float_file[1].ops},
        )
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_too_old_is_an_error(float_file, converted, tmp_path) -> None:
    with pytest.raises(
        ConversionError, match="must run on TFLite 1.0, as `min_runtime`"
    ):
        export(float_file[0], tmp_path / "x.tflite", min_runtime="1.0")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_if_asked(float_file, converted, tmp_path) -> None:
    model, result = float_file
    path = tmp_path / "m.tflite"
    path.write_text("old")
    arguments = dict(mean=MEAN, std=STD, verify_data=pixels(16))
    with pytest.raises(FileExistsError, match="`path` must not exist.*overwrite=True"):
        export(model, path, **arguments)
    assert path.read_text() == "old"
    export(model, path, overwrite=True, **arguments)
    assert path.read_bytes() == result.path.read_bytes()
    # Like any new file: not for the owner alone, as temporary files are.
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_full_disk(float_file, converted, tmp_path, monkeypatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert.os, "fsync", full)
    with pytest.raises(OSError, match="possible to write.*bytes.*No space left"):
        export(float_file[0], tmp_path / "m.tflite", mean=MEAN, std=STD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("none/m.tflite", FileNotFoundError, "The folder of `path` must exist.*none"),
        ("", ValueError, "`path` must be a file. Received: .*a folder"),
    ],
)
def test_a_path_that_cannot_be(small, tmp_path, path, error, text) -> None:
    with pytest.raises(error, match=text):
        export(small, tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_writable(small, tmp_path, monkeypatch) -> None:
    # Root may write anywhere, so the system is asked in its place.
    monkeypatch.setattr(convert.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="folder of `path` must be writable"):
        export(small, tmp_path / "m.tflite")


# --- wrong use, found before anything is converted


@pytest.fixture
def no_conversion(monkeypatch):
    def called(*args):
        raise AssertionError("converted")

    monkeypatch.setattr(_converter.Converter, "run", called)


GOOD = np.random.default_rng(8).normal(size=(120, 2))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"quantization": "int9"}, "must be one of 'float32', 'float16'.*'int9'"),
        ({"io": "int8"}, "must be one of 'float32' for float32.*io='int8'.*or 'int4'"),
        ({"engine": "aeq"}, "makes float32 of this model: 'tflite'.*engine='aeq'"),
        ({"batch_size": 0}, "`batch_size` must be a whole number from 1"),
        ({"memory_limit_bytes": 0}, "`memory_limit_bytes` must be above 0"),
        ({"min_runtime": "new"}, "`min_runtime` must be a release.*'new'"),
        ({"time_limit_s": 0}, "`time_limit_s` must be above 0"),
        ({"quantization": "int8"}, "calibration_data=None.*'small'.*quantize_aware"),
        ({"mean": 1.0}, "`mean` and `std` go together.*std=None"),
        ({"mean": 1.0, "std": 0.0}, "`std` must be a finite number above 0"),
        ({"mean": [1.0] * 3, "std": 1.0}, r"`mean` must be .*each channel.*\(2,\)"),
        ({"mean": "a", "std": 1.0}, "`mean` must be a finite number"),
        ({"input_range": (1, 0)}, "`input_range` must be two finite numbers"),
        ({"input_range": 255}, "`input_range` must be two finite numbers"),
        ({"labels": ["a"]}, "as many as one output has classes.*1 labels.*2 of 'y'"),
        ({"labels": {"z": ["a", "b"]}}, "Received: 2 for 'z'; classes: 2 of 'y'"),
        ({"labels": ["a", " "]}, "not empty. Received: ' ' for class 1"),
        ({"verify_data": np.zeros((3, 5))}, "`verify_data` must have the shape"),
    ],
)
def test_wrong_arguments(small, tmp_path, no_conversion, arguments, text) -> None:
    with pytest.raises(ValueError, match=text):
        export(small, tmp_path / "m.tflite", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (GOOD[:0], "must hold samples"),
        (lambda: iter([]), "must hold samples"),
        (
            np.where(np.arange(120)[:, None] == 7, np.nan, GOOD),
            "nan in sample 7 of .*'x'",
        ),
        (
            np.where(np.arange(120)[:, None] == 9, np.inf, GOOD),
            "inf in sample 9 of .*'x'",
        ),
        (GOOD[:, :1], "must have the shape of the input.*'x'"),
        (GOOD * 100, r"must lie in `input_range`.*in sample 0 of input 'x'"),
        (GOOD * 0, "must vary.*'x'"),
        ({"y": GOOD}, "no 'x', unknown 'y'"),
        (GOOD.astype(str), "must be numbers.*'x'"),
    ],
)
def test_bad_calibration_data(small, tmp_path, no_conversion, data, text) -> None:
    with pytest.raises(ValueError, match=text):
        export(
            small,
            tmp_path / "m.tflite",
            "int8",
            calibration_data=data,
            input_range=(-5.0, 5.0),
        )
    assert not list(tmp_path.iterdir())


def test_few_samples_are_a_warning_where_the_user_is(
    small, tmp_path, no_conversion
) -> None:
    with (
        pytest.warns(
            UserWarning, match="at least 100 samples.*99 for input 'x'"
        ) as told,
        pytest.raises(AssertionError, match="converted"),
    ):
        export(small, tmp_path / "m.tflite", "int8", calibration_data=GOOD[:99])
    assert told[0].filename == __file__
    with pytest.raises(AssertionError, match="converted"):
        export(small, tmp_path / "m.tflite", "int8", calibration_data=GOOD[:100])


def test_wrong_models(small, trained, tmp_path, no_conversion) -> None:
    path = tmp_path / "m.tflite"
    with pytest.raises(TypeError, match="must be a Keras model. Received: model=str"):
        export("model.keras", path)
    with pytest.raises(ValueError, match="must be built.*'empty'"):
        export(keras.Sequential([layers.Dense(2)], name="empty"), path)
    with pytest.raises(TypeError, match="`allow_float_ops` must be a collection"):
        export(small, path, allow_float_ops="NEG")
    with pytest.raises(
        ValueError, match="TFLite has. Received: 'conv2'. Near it are CONV_2D.* Fix: th"
    ):
        export(small, path, allow_float_ops=["NEG", "conv2", "FlexErf"])
    with pytest.raises(ValueError, match="Received: 'zzzzzz'. Fix: the names that"):
        export(small, path, allow_float_ops=["zzzzzz"])
    with pytest.raises(TypeError, match="`labels` must be a list.*Received: str"):
        export(small, path, labels="ab")
    with pytest.raises(ValueError, match="for int8.*quantization='float32'"):
        export(trained, path)
    text = keras.Sequential(
        [
            keras.Input((), dtype="string", name="text"),
            layers.TextVectorization(vocabulary=["a"]),
        ]
    )
    with pytest.raises(ValueError, match="must be numbers.*'text' of dtype string"):
        export(text, path)
    quantized = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, name="dense8")], name="quantized"
    )
    quantized.layers[0].quantize("int8")
    with pytest.raises(ValueError, match=r"`quantize\(\)`.*'quantized'.*'dense8'"):
        export(quantized, path)
    assert not list(tmp_path.iterdir())


def test_open_lengths_come_from_the_data(tmp_path, no_conversion) -> None:
    model = keras.Sequential(
        [keras.Input((None, None, 3), name="image"), layers.GlobalAveragePooling2D()]
    )
    with pytest.raises(
        ValueError, match=r"must be known.*\(None, None, 3\) for .*'image'"
    ):
        export(model, tmp_path / "m.tflite")
    with pytest.raises(AssertionError, match="converted"):
        export(model, tmp_path / "m.tflite", verify_data=pixels(2))


def test_lengths_that_stay_open_need_samples(tmp_path, no_conversion) -> None:
    model = keras.Sequential(
        [keras.Input((None, None, 3), name="image"), layers.GlobalAveragePooling2D()]
    )
    with pytest.raises(
        ValueError, match=r"lengths stay open.*for input 'image' of \(None, None, 3\)"
    ):
        export(model, tmp_path / "m.tflite", dynamic_shape=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["<b>o", "a$b", "two words", "größe"])
def test_layers_have_names_that_tensorflow_takes(tmp_path, no_conversion, name):
    x = keras.Input((4,), name="any input: ü")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(2, name=name)])
    for wrong in (inner, layers.Dense(2, name=name)):
        model = keras.Model(x, wrong(x))
        with pytest.raises(ValueError, match=r"names that TensorFlow takes.*layer"):
            export(model, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="TensorFlow takes.*model 'my net' with ' '"):
        export(keras.Model(x, x * 2, name="my net"), tmp_path / "m.tflite")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_operators_in_mixed_precision(tmp_path, policy, quantization) -> None:
    keras.utils.set_random_seed(3)
    x = keras.Input((8, 8, 3), dtype="uint8", name="image")
    h = keras.ops.cast(x, policy.removeprefix("mixed_")) / 255
    h = layers.Conv2D(4, 3, dtype=policy, name="conv")(h)
    h = keras.ops.relu(h) * 2 + keras.ops.relu(-h)
    h = layers.GlobalAveragePooling2D(dtype=policy, name="pool")(h)
    model = keras.Model(x, layers.Dense(3, dtype="float32", name="y")(h))
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3), np.uint8)
    path = tmp_path / "m.tflite"
    options = {} if quantization == "float32" else {"calibration_data": images}
    if quantization == "int8":
        options["allow_float_ops"] = ("NEG",)
    result = export(model, path, quantization, verify_data=images, **options)
    assert result.inputs[0].dtype == "float32"
    run = Interpreter(str(path)).get_signature_runner()
    told = [run(image=image[None].astype("float32"))["y"] for image in images[:20]]
    wanted = model.predict(images[:20], verbose=0)
    # bfloat16 has 8 bits, as int8 has: five roundings of terms a few times the sum.
    assert np.abs(np.concatenate(told) - wanted).max() < 0.1 * np.abs(wanted).max()


def test_pixels_in_other_units_than_the_model_takes(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(3),
        ],
        name="takes_bytes",
    )
    x = np.random.default_rng(0).uniform(size=(120, 4, 4, 1)).astype("float32")
    with pytest.raises(ValueError, match="units.*'takes_bytes'.*begins with Rescaling"):
        export(model, tmp_path / "m.tflite", "int8", calibration_data=x)
    assert list(tmp_path.iterdir()) == []


def test_a_distiller_is_not_its_student(tmp_path):
    class Trains(keras.Model):
        student = None

    trains = Trains()
    trains.student = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    with pytest.raises(TypeError, match="Received: Trains.*Give its .student"):
        export(trains, tmp_path / "m.tflite")


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("around", [lambda x: x, layers.Reshape((4,), name="again")])
def test_bytes_that_come_out_as_they_went_in_are_refused_by_name(
    trained, around, tmp_path
) -> None:
    inputs = keras.Input((4,), name="taken")
    outputs = {"given": around(inputs), "y": layers.Dense(2)(inputs)}
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).integers(0, 256, (128, 4)).astype("float32")
    options = {"calibration_data": x}
    if trained:
        model, options = quantize_aware(model, input_range=(0, 255)), {}
        model(x, training=True)
    with pytest.raises(ConversionError, match="output 'given' is its input 'taken'"):
        export(model, tmp_path / "m.tflite", "int8", io="uint8", **options)
    export(model, tmp_path / "m.tflite", "int8", io="float32", **options)
