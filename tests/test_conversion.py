"""Each recipe, once, through `export`: what is in the file, and what is refused."""

from __future__ import annotations

import json
import re
import resource

import keras
import numpy as np
import pytest
from keras import layers
from test_layer_errors import spread_out

from kdlite.compress.qat import quantize_aware
from kdlite.lite import _converter, options, proof
from kdlite.lite.calibration import InputSpec, read_folder
from kdlite.lite.convert import ConversionError, export
from kdlite.lite.tflite_reader import inspect
from kdlite.lite.verification import VerificationError
from kdlite.lite.verify import verify

DATA = np.random.default_rng(0).normal(size=(120, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A net of which each kernel has more than 1024 numbers."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(40, 3, strides=2, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(32, activation="relu", name="dense"),
            layers.Dense(36, name="logits"),
        ],
        name="net",
    )


def kernel_types(result) -> dict[str, str]:
    """By operation with a kernel what the kernel is stored as."""
    content = inspect(result.path)
    found = {}
    for op in content.ops:
        tensors = content.tensors_of(op)
        if op.name in ("CONV_2D", "FULLY_CONNECTED", "DEQUANTIZE") and len(tensors) > 1:
            kernel = tensors[0 if op.name == "DEQUANTIZE" else 1]
            if kernel.constant:
                found.setdefault(op.name, kernel.dtype)
    return found


@pytest.mark.parametrize(
    ("quantization", "arguments", "kernels"),
    [
        ("dynamic", {}, {"CONV_2D": "int8", "FULLY_CONNECTED": "int8"}),
        ("weight_only", {}, {"DEQUANTIZE": "int8"}),
        (
            "int16x8",
            {"io": "int16", "batch_size": 4},
            {"CONV_2D": "int8", "FULLY_CONNECTED": "int8"},
        ),
        ("int4", {"io": "int8"}, {"CONV_2D": "int4", "FULLY_CONNECTED": "int4"}),
    ],
)
def test_each_recipe_is_what_it_says(
    model, tmp_path, quantization, arguments, kernels
) -> None:
    result = export(
        model,
        tmp_path / "m.tflite",
        quantization,
        calibration_data=DATA,
        author="A. Nobody",
        license="MIT",
        description="a net",
        **arguments,
    )
    content = inspect(result.path)
    assert content.quantization == result.quantization == quantization
    assert kernel_types(result) == kernels
    assert {t.dtype for t in (*result.inputs, *result.outputs)} == {result.io}
    assert result.inputs[0].shape[0] == arguments.get("batch_size", 1)
    # Of these types 2.16.1 knows all; a Dense layer of steps by channel would be 2.17.
    assert tuple(map(int, result.min_runtime.split("."))) <= (2, 16, 1)
    runs = {(run.kernels, run.threads) for run in result.verification.kernels}
    assert {("xnnpack", 4), ("built-in", 1), ("reference", 1)} <= runs
    if result.io != "float32":
        # A range that is an average over samples would cut off the ends of half of
        # them: ai-edge-quantizer has such, and with them 15 to 25 dB more noise.
        (output,) = result.outputs
        levels = np.iinfo(output.dtype)
        ends = (np.array([levels.min, levels.max]) - output.zero_point) * output.scale
        seen = model(DATA, training=False).numpy()
        assert ends[0] < seen.min() + output.scale
        assert ends[1] > seen.max() - output.scale


@pytest.mark.parametrize("size", [1, 3, 4, 10, 11, 23])
def test_every_sample_is_measured_in_batches_of_any_size(
    tmp_path, monkeypatch, size
) -> None:
    """Also where there are fewer samples than the file takes at once."""
    x, ids = np.arange(10.0).reshape(10, 1), np.arange(10)
    np.savez(tmp_path / "calibration.npz", x, ids)
    told = {
        "engine": "tflite",
        "calibrated": True,
        "calibration": str(tmp_path / "calibration.npz"),
        "inputs": ["x", "ids"],
        "batch_size": size,
    }
    (tmp_path / "options.json").write_text(json.dumps(told))
    given = []
    monkeypatch.setattr(
        _converter, "_by_tflite", lambda _, samples: given.extend(samples) or b"file"
    )
    _converter.convert(tmp_path)
    assert (tmp_path / "model.tflite").read_bytes() == b"file"
    assert {len(batch[name]) for batch in given for name in ("x", "ids")} == {size}
    joined = np.concatenate([batch["x"][:, 0] for batch in given])
    np.testing.assert_array_equal(joined[:10], np.arange(10))
    np.testing.assert_array_equal(joined, np.concatenate([b["ids"] for b in given]))
    assert len(given) == -(-10 // size)


def test_layers_are_kept_in_float(model, tmp_path) -> None:
    result = export(
        model,
        tmp_path / "m.tflite",
        "int8",
        calibration_data=DATA,
        overrides={"logits": "float32"},
    )
    floats = [op for op in result.ops if op.float_compute]
    assert [op.name for op in floats] == ["FULLY_CONNECTED"]
    assert result.outputs[0].shape == (1, 36)
    assert inspect(result.path).tensors_of(floats[0])[1].dtype == "float32"
    assert result.verification.quantization == "mixed"


def test_layers_are_kept_in_half_precision(model, tmp_path) -> None:
    result = export(
        model,
        tmp_path / "m.tflite",
        "int8",
        calibration_data=DATA,
        engine="aeq",
        overrides={"*": "float16", "conv": "float32"},
    )
    content = inspect(result.path)
    kernels = [content.tensors_of(op)[1] for op in content.ops if op.macs]
    stored = [
        content.tensors_of(op)[0].dtype for op in content.ops if op.name == "DEQUANTIZE"
    ]
    assert kernels[0].constant and kernels[0].dtype == "float32"
    assert stored.count("float16") == 2


@pytest.mark.parametrize(
    ("quantization", "arguments", "text"),
    [
        ("weight_only", {"engine": "tflite"}, "of this model: 'aeq'.*engine='tflite'"),
        ("int4", {"io": "uint8"}, "makes no uint8.*quantization='int4'.*io='int8'"),
        ("dynamic", {"io": "int8"}, "'float32' for dynamic.*io='int8'.*or 'int4'"),
        ("int8", {"io": "int16"}, "'uint8' for int8.*quantization='int16x8'"),
        ("int8", {"io": "int7"}, "for int8.*io='int7'.*Use 'float32' for values"),
        ("int8", {"overrides": {"zz*": "float32"}}, "must fit a layer.*'zz.*'conv'"),
        (
            "int8",
            {"overrides": {"conv": "float16"}},
            "give 'float32'.*Use engine='aeq'",
        ),
        ("int8", {"overrides": {"conv": "int4"}}, "give 'float32'.*Leave the rest"),
        (
            "dynamic",
            {"overrides": {"conv": "float32"}},
            "the engine can mix.*'dynamic'",
        ),
        ("float32", {"overrides": {"conv": "float32"}}, "can mix.*'float32'"),
        ("int8", {"calibration_data": None}, "int8 needs the ranges.*quantize_aware"),
        (
            "int4",
            {"calibration_data": None},
            "int4 needs .*, typical samples, or train",
        ),
    ],
)
def test_what_does_not_fit_together(
    model, tmp_path, quantization, arguments, text
) -> None:
    arguments = {"calibration_data": DATA, **arguments}
    with pytest.raises(ValueError, match=text):
        export(model, tmp_path / "m.tflite", quantization, **arguments)
    assert not list(tmp_path.iterdir())


def test_overrides_are_a_mapping(model, tmp_path) -> None:
    with pytest.raises(TypeError, match="must be a mapping.*overrides=.'conv'"):
        export(
            model,
            tmp_path / "m.tflite",
            "int8",
            calibration_data=DATA,
            overrides=["conv"],
        )


def test_the_other_engine_may_not_be_there(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs ai-edge-quantizer.*kdlite\[aeq\]"):
        export(model, tmp_path / "m.tflite", "weight_only")


def test_memory_is_limited(model, tmp_path) -> None:
    with pytest.raises(ConversionError, match="within 1,000,000 bytes.*'net'.*Raise"):
        export(model, tmp_path / "m.tflite", memory_limit_bytes=1e6)
    assert not list(tmp_path.iterdir())


POSITIVE = np.random.default_rng(1).uniform(0, 1, (120, 6)).astype("float32")


def test_what_fails_says_where(tmp_path) -> None:
    with pytest.raises(VerificationError) as caught:
        export(spread_out(), tmp_path / "m.tflite", "int8", calibration_data=POSITIVE)
    assert "Most of the error enters in narrow. " in str(caught.value)
    # What it reads is where the range is; "first" and "scores" add next to nothing.
    kept = {"narrow": "float32", "wide": "float32"}
    assert f"overrides={kept!r}" in str(caught.value)
    assert len(caught.value.layers) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "kind"), [("tflite", "float32"), ("aeq", "float16")]
)
def test_layers_to_keep_are_found(tmp_path, engine, kind) -> None:
    result = export(
        spread_out(),
        tmp_path / "m.tflite",
        "int8",
        calibration_data=POSITIVE,
        engine=engine,
        auto_mixed={"top1_agreement": 0.95},
    )
    # Between these two lies the tensor that 8 bits cannot hold.
    assert {"wide", "narrow"} <= set(result.overrides)
    assert len(result.overrides) < 4
    assert set(result.overrides.values()) == {kind}
    assert result.verification.outputs[0].top1_agreement >= 0.95


def test_a_search_keeps_what_the_engine_has_no_kernels_for(tmp_path) -> None:
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
    steep, back = (lambda t: keras.ops.exp(t * 3)), (lambda t: keras.ops.log(t + 1e-6))
    model = keras.Sequential(
        [
            keras.Input((8,), name="x"),
            layers.Dense(8, name="first"),
            layers.Lambda(steep, name="exp"),
            layers.Lambda(back, name="log"),
            layers.Dense(4, name="scores"),
        ]
    )
    path, given = tmp_path / "m.tflite", {"calibration_data": x, "engine": "aeq"}
    with pytest.raises(ConversionError, match="stay in float: EXP .layer 'exp'"):
        export(model, path, "int8", **given)
    result = export(model, path, "int8", auto_mixed=True, **given)
    assert {"exp", "log"} <= set(result.overrides) and len(result.overrides) < 4
    blob = path.read_bytes()
    kept = dict(result.overrides)
    export(model, path, "int8", overrides=kept, overwrite=True, **given)
    # The same by name, but for what the file says of how it was asked for.
    assert [str(op) for op in inspect(blob).ops] == [str(op) for op in result.ops]
    assert path.read_bytes() == blob


@pytest.mark.parametrize(
    ("quantization", "auto_mixed", "error", "text"),
    [
        ("float32", True, ValueError, "can mix.*'float32'"),
        ("int8", {"speed": 1}, ValueError, "some of 'top1_agreement'.*'speed'"),
        # What is kept in float has no steps to be held to.
        ("int8", {"max_steps": 2}, ValueError, "'max_drop_points'.*'max_steps'"),
        ("int8", {"max_drop_points": 1}, ValueError, "top-1 only.*verify_data=.x, y"),
        ("int8", 0.99, TypeError, "must be True, or what must be.*auto_mixed=0.99"),
    ],
)
def test_what_cannot_be_searched(
    model, tmp_path, quantization, auto_mixed, error, text
) -> None:
    with pytest.raises(error, match=text):
        export(
            model,
            tmp_path / "m.tflite",
            quantization,
            calibration_data=DATA,
            auto_mixed=auto_mixed,
        )


def dying(*behind: keras.layers.Layer) -> keras.Model:
    """A net with a ReLU whose inputs are all below 0."""
    keras.utils.set_random_seed(0)
    low = keras.initializers.Constant(-100.0)
    return keras.Sequential(
        [
            keras.Input((8,), name="x"),
            layers.Dense(4, name="first"),
            layers.Dense(4, activation="relu", bias_initializer=low, name="dead"),
            *behind,
        ],
        name="net",
    )


VALUES = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")


@pytest.mark.parametrize(
    ("quantization", "engine", "out"),
    [
        ("int8", "tflite", r"overrides=\{'dead': 'float32'\}"),
        ("int8", "aeq", r"overrides=\{'dead': 'float16'\}"),
        ("int16x8", "tflite", "quantization='dynamic'"),
    ],
)
@pytest.mark.parametrize("behind", [0, 2])
def test_a_layer_of_one_value_is_named_with_a_way_out(
    tmp_path, quantization, engine, out, behind
) -> None:
    model = dying(*[layers.Dense(3, name=f"last{n}") for n in range(behind)])
    path, given = tmp_path / "m.tflite", {"calibration_data": VALUES}
    told = r" \(and behind it 'last0', 'last1'\)" * (behind > 0)
    with pytest.raises(
        ConversionError,
        match=f"model='net', of which layer 'dead'{told} gives one value .*{out}.*XNN"
        if quantization == "int8"
        else f"layer 'dead'{told} gives one value .*{out}. LiteRT cannot run the file",
    ):
        export(model, path, quantization, engine=engine, **given)
    assert not path.exists()
    if quantization == "int8":
        kind = "float16" if engine == "aeq" else "float32"
        kept = {"overrides": {"dead": kind}}
        assert export(model, path, "int8", engine=engine, **given, **kept)
        found = export(
            model, path, "int8", engine=engine, **given, auto_mixed=True, overwrite=True
        )
        assert found.overrides == kept["overrides"]


def with_function(function, name: str, last: bool) -> keras.Model:
    inputs = keras.Input((8,), name="x")
    x = layers.Lambda(function, name=name)(layers.Dense(8, name="first")(inputs))
    return keras.Model(inputs, x if last else layers.Dense(2)(x), name="net")


@pytest.mark.parametrize("last", [False, True])
def test_what_16_bits_have_no_kernel_for_is_named_by_its_layer(tmp_path, last) -> None:
    model = with_function(lambda t: keras.ops.top_k(t, 2)[0], "best", last)
    with pytest.raises(
        ConversionError,
        match=r"16 bits.*Without one: TOPK_V2 \(layer 'best'\). Use .*'dynamic'",
    ):
        export(model, tmp_path / "m.tflite", "int16x8", calibration_data=VALUES)


@pytest.mark.parametrize("quantization", ["float32", "dynamic", "int8"])
def test_what_is_not_built_in_is_named_by_its_layer(tmp_path, quantization) -> None:
    model = with_function(lambda t: keras.ops.argmax(t, axis=-1), "index", True)
    given = {"calibration_data": VALUES} if quantization == "int8" else {}
    with pytest.raises(
        ConversionError, match=r"Not built in: BitwiseAnd \(layer 'index'\). Replace"
    ) as caught:
        export(model, tmp_path / "m.tflite", quantization, **given)
    assert caught.value.ops == ("BitwiseAnd",)


def test_what_makes_an_output_and_is_no_layer_is_named_by_the_output(tmp_path) -> None:
    inputs = keras.Input((8,), name="x")
    sign = keras.ops.sign(layers.Dense(4, name="first")(inputs))
    model = keras.Model(inputs, {"side": sign})
    with pytest.raises(ConversionError, match="SIGN .which makes output 'side'."):
        export(model, tmp_path / "m.tflite", "int8", calibration_data=VALUES)


@pytest.mark.parametrize(
    ("following", "told"),
    [
        (lambda x: layers.Dense(2, name="scores")(x), "before layer 'scores'"),
        (lambda x: x * 2.0, "before output 'y'"),
    ],
)
def test_an_operator_is_named_by_what_follows(tmp_path, following, told) -> None:
    inputs = keras.Input((8,), dtype="uint8", name="x")
    doubled = keras.ops.cast(inputs + inputs, "float32")  # bytes, which end at 255
    model = keras.Model(inputs, {"y": following(doubled)})
    with pytest.raises(ConversionError, match=rf"Not built in: \w+ \({told}\). Rep"):
        export(model, tmp_path / "m.tflite")


def test_operations_of_tensorflow_only_if_allowed(tmp_path) -> None:
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, keras.ops.argmax(inputs, axis=-1), name="net")
    with pytest.raises(
        ConversionError, match="built-in.*'net'.*BitwiseAnd.*pass allow"
    ):
        export(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="was not run.*FlexBitwiseAnd.*on a phone"):
        result = export(model, tmp_path / "m.tflite", allow_select_tf_ops=True)
    assert result.verification.samples == 0
    assert "FlexBitwiseAnd" in {op.name for op in inspect(result.path).flex_ops}


def test_lengths_that_stay_open(tmp_path) -> None:
    model = keras.Sequential(
        [
            keras.Input((None, None, 3), name="image"),
            layers.Conv2D(4, 3, name="conv"),
            layers.GlobalAveragePooling2D(name="pool"),
        ],
        name="net",
    )
    path = tmp_path / "m.tflite"
    result = export(model, path, verify_data=DATA, dynamic_shape=True)
    assert result.inputs[0].shape == (1, -1, -1, 3)
    larger = np.random.default_rng(2).normal(size=(3, 11, 9, 3)).astype("float32")
    assert verify(path, model, larger).outputs[0].largest_difference < 1e-5
    closed = export(model, path, verify_data=DATA, overwrite=True)
    assert closed.inputs[0].shape == (1, 8, 8, 3)


def test_a_folder_of_images(tmp_path, rng) -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Rescaling(1 / 255, name="scale"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="scores"),
        ],
        name="net",
    )
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path, rng.integers(0, 256, (10, 12, 3)))
    images, out = tmp_path / "images", tmp_path / "m.tflite"
    with pytest.raises(ValueError, match="2 subfolders.*for a model of 3 classes"):
        export(model, out, verify_data=images)
    # A folder may lack a class whose name is known, from the file too.
    result = export(model, out, verify_data=images, labels=["a", "c", "b"])
    assert result.verification.samples == 3
    _, y = read_folder(images, [InputSpec("x", (8, 8, 3))], "data", ["a", "c", "b"])
    assert y.tolist() == [0, 0, 2]
    (tmp_path / "others" / "z").mkdir(parents=True)
    with pytest.raises(ValueError, match="named like a class. Received: 'z' in"):
        verify(out, model, tmp_path / "others")
    assert result.verification.outputs[0].metric == "top-1"
    flat = verify(result.path, model, tmp_path / "images" / "a")
    assert flat.samples == 2 and not flat.outputs[0].metric
    (tmp_path / "images" / "a" / "._1.png").write_bytes(b"what a Mac keeps beside it")
    assert verify(result.path, model, images / "a").samples == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="`data` must be a folder of images.*'.*none'"):
        verify(result.path, model, tmp_path / "none")
    (tmp_path / "none" / "torn.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"must be one that TensorFlow.*torn.png \(Unkn[^{]*\)\. M"
    ):
        verify(result.path, model, tmp_path / "none")
    numbers = keras.Sequential([keras.Input((3,), name="x"), layers.Dense(1)])
    with pytest.raises(ValueError, match="of one image.*images' for 'x'"):
        export(numbers, tmp_path / "n.tflite", verify_data=tmp_path / "images")


def test_a_file_of_other_bits_than_asked_for_is_refused(tmp_path) -> None:
    aware = quantize_aware(
        keras.Sequential([keras.Input((6,), name="x"), layers.Dense(3, name="scores")])
    )
    aware(POSITIVE, training=True)
    with pytest.raises(
        ValueError, match="this for int8.*int4.*Use quantization='int8'"
    ):
        export(aware, tmp_path / "m.tflite", "int4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
@pytest.mark.parametrize(
    "asked",
    [
        {"auto_mixed": True},
        {"auto_mixed": {"top1_agreement": 0.9}},
        {"overrides": {"scores": "float32"}},
        {"overrides": {"scores": "float16"}},
    ],
    ids=str,
)
def test_a_quantization_aware_model_is_mixed_when_it_is_made(
    recipe, asked, tmp_path
) -> None:
    student = keras.Sequential(
        [keras.Input((6,), name="x"), layers.Dense(3, name="scores")]
    )
    (name, value), *_ = asked.items()
    told = rf"when it is made. Received: {name}={re.escape(repr(value))}. Leave it out"
    with pytest.raises(ValueError, match=rf"{told}; .*quantize_aware\(student, ...,"):
        export(quantize_aware(student, recipe), tmp_path / "m.tflite", recipe, **asked)
    assert not list(tmp_path.iterdir())


def test_a_quantization_aware_model_is_compared_on_what_it_met(
    tmp_path, monkeypatch
) -> None:
    compared = []

    def verify_and_tell(file, model, samples):
        compared.append(samples["x"])
        return verify(file, model, samples)

    monkeypatch.setattr(proof, "verify", verify_and_tell)
    student = keras.Sequential(
        [keras.Input((6,), name="x"), layers.Dense(3, name="scores")]
    )
    aware = quantize_aware(student, "int16x8")
    aware(np.linspace(50, 60, 12).reshape(2, 6), training=True)
    export(aware, tmp_path / "m.tflite", "int16x8")
    (x,) = compared
    assert 50 <= x.min() < 50.5 and 59.5 < x.max() <= 60
    means = x.mean(axis=1)
    assert means.min() < 52 and means.max() > 58


def test_no_room_is_not_the_models_fault(model, tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            OSError,
            match="room for the files of a conversion. Received: a file larger than "
            "one may be here, in .*kdlite-export-.*TMPDIR",
        ):
            export(model, tmp_path / "m.tflite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(tmp_path.iterdir())
