"""What `inspect` says of a file, against LiteRT's own words and figures by hand."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from converting import converted
from keras import layers

from kdlite.lite.tflite_file import TFLiteFile, inspect


def network() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(inputs)
    x = layers.DepthwiseConv2D(3, padding="valid", name="depthwise")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(70, name="scores")(x))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = network()
    rng = np.random.default_rng(0)
    for layer in model.layers:
        # The converter leaves out biases of zero, and has equal ones but once.
        if hasattr(layer, "bias"):
            layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


@pytest.fixture(scope="module")
def files(model) -> dict[str, bytes]:
    return {
        name: converted(model, name)
        for name in ("float32", "float16", "dynamic", "int8")
    } | {"uint8": converted(model, "int8", io=tf.uint8)}


# conv: 4x4 places, 3x3x3 taps, 4 filters; depthwise: 2x2 places, 3x3 taps, 4 filters;
# dense: 16 to 70.
MACS = 4 * 4 * 27 * 4 + 2 * 2 * 9 * 4 + 16 * 70


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("float32", "float32"),
        ("float16", "float16"),
        ("dynamic", "dynamic"),
        ("int8", "int8"),
        ("uint8", "int8"),
    ],
)
def test_kind_macs_and_parameters(files, model, name, quantization) -> None:
    content = inspect(files[name])
    assert content.quantization == quantization
    assert content.macs == MACS
    assert content.parameters == model.count_params()
    assert content.size_bytes == len(files[name])
    assert content.signatures == ("serving_default",)
    assert content.flex_ops == content.custom_ops == ()
    if quantization == "int8":
        assert content.float_ops == ()
    else:
        assert {"CONV_2D", "FULLY_CONNECTED"} <= {o.name for o in content.float_ops}


@pytest.mark.parametrize("name", ["float32", "float16", "dynamic", "int8", "uint8"])
def test_agrees_with_litert(files, name) -> None:
    content = inspect(files[name])
    interpreter = Interpreter(
        model_content=files[name],
        # No delegate: the operations as they are.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    theirs = [op["op_name"] for op in interpreter._get_ops_details()]
    assert [op.name for op in content.ops] == theirs
    runner = interpreter.get_signature_runner()
    for ours, details in (
        (content.inputs, runner.get_input_details()),
        (content.outputs, runner.get_output_details()),
    ):
        assert [tensor.name for tensor in ours] == list(details)
        for tensor in ours:
            told = details[tensor.name]
            assert tensor.dtype == told["dtype"].__name__
            assert tensor.shape == tuple(told["shape"])
            scale, zero_point = told["quantization"]
            assert (tensor.scale or 0.0) == pytest.approx(scale)
            assert (tensor.zero_point or 0) == zero_point
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    for tensor in content.tensors:
        told = details[tensor.index]
        assert (tensor.name, tensor.shape) == (told["name"], tuple(told["shape"]))
        parameters = told["quantization_parameters"]
        np.testing.assert_allclose(tensor.scales, parameters["scales"])
        assert list(tensor.zero_points) == parameters["zero_points"].tolist()


def test_step_of_an_output(files) -> None:
    integers = inspect(files["uint8"])
    assert integers.step("scores") == integers.outputs[0].scale > 0
    # Behind the DEQUANTIZE at the end, the integers have the same step.
    assert inspect(files["int8"]).step("scores") == pytest.approx(
        integers.step("scores")
    )
    assert inspect(files["float32"]).step("scores") is None
    assert inspect(files["dynamic"]).step("scores") is None
    with pytest.raises(ValueError, match="`output` must be one of 'scores'.*'other'"):
        integers.step("other")


def test_an_operation_left_in_float_is_named() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    x = layers.Dense(8, name="first")(inputs)
    x = layers.Activation("elu", name="odd")(x)
    content = inspect(
        converted(keras.Model(inputs, layers.Dense(2)(x)), "int8", integer=False)
    )
    assert {op.name for op in content.float_ops} == {"ELU"}
    assert "odd" in str(content.float_ops[0])
    assert content.quantization == "mixed"
    assert "left in float: ELU" in str(content)
    assert content.to_dict()["float_ops"] == [str(content.float_ops[0])]


@pytest.mark.parametrize(
    ("shape", "layer", "macs"),
    [
        # 4x4 places; each of 6 filters sees a third of the channels.
        ((4, 4, 6), layers.Conv2D(6, 3, padding="same", groups=3), 16 * 9 * 2 * 6),
        # Each of 4x4 inputs with 3 channels meets a 2x2 kernel for each of 5 filters.
        ((4, 4, 3), layers.Conv2DTranspose(5, 2, strides=2), 16 * 3 * 4 * 5),
        ((4, 4, 4, 2), layers.Conv3D(3, 2), 27 * 8 * 2 * 3),
        # (5, 4) by its transpose: 5x5 products over 4.
        ((5, 4), layers.Dot((2, 2)), 25 * 4),
        ((5, 4), layers.Dense(3), 5 * 4 * 3),
        ((4, 4, 2), layers.MaxPooling2D(), 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_macs_of_layers(shape, layer, macs) -> None:
    inputs = keras.Input(shape, name="x")
    outputs = layer([inputs, inputs] if isinstance(layer, layers.Dot) else inputs)
    assert inspect(converted(keras.Model(inputs, outputs))).macs == macs


def test_lengths_that_may_change_and_no_signature() -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, None, 3))])
    def double(x):
        return x * 2.0

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [double.get_concrete_function()], tf.Module()
    )
    content = inspect(converter.convert())
    assert content.inputs[0].shape == (-1, -1, 3)
    assert content.inputs[0].size == 3


def test_custom_and_flex_operations() -> None:
    @tf.function(input_signature=[tf.TensorSpec((4,), name="x")])
    def error_function(x):
        return {"y": tf.math.erf(x)}

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [error_function.get_concrete_function()], tf.Module()
    )
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    content = inspect(converter.convert())
    assert [op.name for op in content.flex_ops] == ["FlexErf"]
    assert content.custom_ops == content.flex_ops
    assert "not built in: FlexErf" in str(content)


def test_prints_and_goes_to_json(files, tmp_path) -> None:
    path = tmp_path / "student.tflite"
    path.write_bytes(files["int8"])
    content = inspect(path)
    text = str(content)
    assert text.startswith(f"student.tflite: int8, {len(files['int8']):,} bytes")
    assert "in   image: float32 [1, 8, 8, 3]" in text and "left in float: none" in text
    plain = json.loads(json.dumps(content.to_dict(), allow_nan=False))
    assert plain["macs"] == MACS and len(plain["ops"]) == len(content.ops)


# --- files that cannot be trusted


def test_missing_file_and_folder(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a .tflite that exists.*there"):
        inspect(tmp_path / "no.tflite")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    "blob", [b"", b"TFL3", b"\0\0\0\0TFL3", b"a text, and not a model at all" * 9]
)
def test_what_is_no_tflite(blob, tmp_path) -> None:
    with pytest.raises(ValueError, match="must be a whole, well-formed file. Received"):
        inspect(blob)
    path = tmp_path / "odd.tflite"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match="odd.tflite"):
        inspect(path)


def looked_into(blob: bytes) -> bool:
    """Whether it was read; all that may be raised is ValueError."""
    try:
        content = inspect(blob)
    except ValueError:
        return False
    assert isinstance(content, TFLiteFile)
    str(content), content.to_dict(), content.macs, content.quantization
    for output in content.outputs:
        content.step(output.name)
    return True


def test_a_file_cut_short_is_an_error_or_reads(files) -> None:
    blob = files["int8"]
    whole = [looked_into(blob[: len(blob) * n // 60]) for n in range(60)]
    assert not any(whole[:30])
    assert looked_into(blob)


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_flipped_bytes_are_an_error_or_read(files, name) -> None:
    rng = np.random.default_rng(0)
    blob = np.frombuffer(files[name], np.uint8)
    for _ in range(300):
        changed = blob.copy()
        places = rng.integers(0, len(blob), rng.integers(1, 8))
        changed[places] = rng.integers(0, 256, len(places))
        looked_into(changed.tobytes())
