"""What `inspect` says of a file, against LiteRT's own words and figures by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from converting import converted
from keras import layers

from kdlite.compress.qat import quantize_aware
from kdlite.compress.summary import summary
from kdlite.lite import flatbuffer
from kdlite.lite.flatbuffer import add_table, add_vector
from kdlite.lite.serving import serve
from kdlite.lite.tflite_file import TFLiteFile
from kdlite.lite.tflite_reader import inspect, inspect_bytes


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
        name: converted(model, kind)
        for name, kind in (
            ("float32", "float32"),
            ("float16", "float16"),
            ("dynamic", "dynamic"),
            ("int8 inside", "int8"),
        )
    } | {str(io.name): converted(model, "int8", io) for io in (tf.int8, tf.uint8)}


def changed(blob: bytes, change: Callable[[Any], object]) -> bytes:
    """The file after `change`, which gets LiteRT's own objects."""
    model = schema.ModelT.InitFromPackedBuf(blob, 0)
    change(model)
    builder = flatbuffers.Builder(len(blob))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def of_function(function: Callable[..., Any], *specs: tf.TensorSpec) -> bytes:
    concrete = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    return converter.convert()


# conv: 4x4 places, 3x3x3 taps, 4 filters; depthwise: 2x2 places, 3x3 taps, 4 filters;
# dense: 16 to 70.
MACS = 4 * 4 * 27 * 4 + 2 * 2 * 9 * 4 + 16 * 70


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("float32", "float32"),
        ("float16", "float16"),
        ("dynamic", "dynamic"),
        ("int8 inside", "int8"),
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
    assert [s.name for s in content.signatures] == ["serving_default"]
    assert content.flex_ops == content.custom_ops == ()
    if quantization == "int8":
        assert content.float_ops == ()
    else:
        assert {"CONV_2D", "FULLY_CONNECTED"} <= {o.name for o in content.float_ops}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("float32", [], []),
        ("int8 inside", ["QUANTIZE"], ["DEQUANTIZE"]),
        ("int8", [], []),
        ("uint8", ["QUANTIZE"], ["QUANTIZE"]),
    ],
)
def test_operations_are_those_of_the_layers(files, name, before, after) -> None:
    content = inspect(files[name])
    middle = ["CONV_2D", "DEPTHWISE_CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    assert [op.name for op in content.ops] == before + middle + after
    assert [op.macs for op in content.ops if op.macs] == [1728, 144, 1120]
    kernel = content.tensors[content.ops[len(before)].inputs[1]]
    assert kernel.shape == (4, 3, 3, 3) and kernel.constant and kernel.size == 108
    if name != "float32":
        # A scale for each filter: none of the tensor as a whole.
        assert len(kernel.scales) == 4 and kernel.axis == 0
        assert kernel.scale is None and kernel.zero_point is None
        assert kernel.to_dict()["channels"] == 4 and "scale " not in str(kernel)


@pytest.mark.parametrize(
    "name", ["float32", "float16", "dynamic", "int8 inside", "int8", "uint8"]
)
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
    for name in ("int8", "int8 inside"):
        assert inspect(files[name]).step("scores") == integers.step("scores")
    assert inspect(files["float32"]).step("scores") is None
    assert inspect(files["dynamic"]).step("scores") is None
    with pytest.raises(ValueError, match="`output` must be one of 'scores'.*'other'"):
        integers.step("other")


def test_a_step_is_found_behind_what_only_hands_values_on() -> None:
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, name="dense")(inputs)
    model = keras.Model(inputs, layers.Reshape((2, 2), name="y")(x))
    step = inspect(converted(model, "int8", tf.int8)).step("y")

    def reshape_after_dequantize(file: Any) -> None:
        # An operation cannot move and change its type: these two swap their places.
        graph, codes = file.subgraphs[0], file.operatorCodes
        reshape, dequantize = graph.operators[-2:]
        assert [codes[op.opcodeIndex].builtinCode for op in (reshape, dequantize)] == [
            schema.BuiltinOperator.RESHAPE,
            schema.BuiltinOperator.DEQUANTIZE,
        ]
        between, last = reshape.outputs[0], dequantize.outputs[0]
        values, shape = reshape.inputs
        dequantize.inputs, dequantize.outputs = [values], [between]
        reshape.inputs, reshape.outputs = [between, shape], [last]
        graph.tensors[between].type = schema.TensorType.FLOAT32
        graph.tensors[between].quantization = None
        graph.operators[-2:] = [dequantize, reshape]

    content = inspect(changed(converted(model, "int8"), reshape_after_dequantize))
    assert [op.name for op in content.ops[-2:]] == ["DEQUANTIZE", "RESHAPE"]
    assert content.step("y") == step > 0


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        (layers.Activation("elu", name="odd"), "ELU"),
        (layers.LayerNormalization(name="odd"), "NEG"),
    ],
    ids=["elu", "norm"],
)
def test_an_operation_left_in_float_is_named(layer, left) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    x = layer(layers.Dense(8, name="first")(inputs))
    content = inspect(
        converted(keras.Model(inputs, layers.Dense(2)(x)), "int8", integer=False)
    )
    assert {op.name for op in content.float_ops} == {left}
    assert "odd" in str(content.float_ops[0])
    assert content.quantization == "mixed"
    assert f"left in float: {left}" in str(content)
    assert content.to_dict()["float_ops"] == [str(content.float_ops[0])]


# Shape of one sample, layer, and multiply-accumulates by hand.
COUNTED = [
    # 4x4 places; each of 6 filters sees a third of the channels.
    ((4, 4, 6), layers.Conv2D(6, 3, padding="same", groups=3), 16 * 9 * 2 * 6),
    # Each of 4x4 inputs with 3 channels meets a 2x2 kernel for each of 5 filters.
    ((4, 4, 3), layers.Conv2DTranspose(5, 2, strides=2), 16 * 3 * 4 * 5),
    ((4, 4, 4, 2), layers.Conv3D(3, 2), 27 * 8 * 2 * 3),
    # (5, 4) by its transpose: 5x5 products over 4.
    ((5, 4), layers.Dot((2, 2)), 25 * 4),
    ((5, 4), layers.Dense(3), 5 * 4 * 3),
    ((4, 4, 2), layers.MaxPooling2D(), 0),
]


def test_macs_of_layers() -> None:
    inputs = [keras.Input(shape) for shape, _, _ in COUNTED]
    outputs = [
        layer([x, x] if isinstance(layer, layers.Dot) else x)
        for x, (_, layer, _) in zip(inputs, COUNTED, strict=True)
    ]
    content = inspect(converted(keras.Model(inputs, outputs)))
    # All numbers differ, so that each is known by its own.
    wanted = sorted(macs for _, _, macs in COUNTED if macs)
    assert sorted(op.macs for op in content.ops if op.macs) == wanted
    assert content.macs == sum(wanted)


def test_a_quantization_aware_model_is_int8(tmp_path, rng) -> None:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    scores = layers.Dense(5, bias_initializer="random_normal", name="scores")(x)
    student = quantize_aware(keras.Model(inputs, scores), "int8")
    student(rng.uniform(0, 1, (16, 8, 8, 3)).astype("float32"), training=True)
    serving = serve(student)
    serving.for_conversion().save_for_conversion(tmp_path, serving.input_specs)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = inspect(converter.convert())
    assert content.quantization == "int8" and content.float_ops == ()
    assert [op.name for op in content.ops if op.macs] == ["CONV_2D", "FULLY_CONNECTED"]
    # The normalization is in the kernel, and has become its bias.
    assert content.parameters == 3 * 3 * 3 * 4 + 4 + 4 * 5 + 5
    assert content.step("scores") is not None


def test_lengths_that_may_change() -> None:
    content = inspect(of_function(lambda x: x * 2.0, tf.TensorSpec((None, None, 3))))
    assert content.inputs[0].shape == (-1, -1, 3)
    assert content.inputs[0].size == 3


def test_a_file_without_signature(files) -> None:
    blob = changed(files["int8"], lambda file: setattr(file, "signatureDefs", None))
    content, before = inspect(blob), inspect(files["int8"])
    assert content.signatures == ()
    details = Interpreter(model_content=blob).get_input_details()
    assert content.inputs[0].name == details[0]["name"] != "image"
    assert content.step(content.outputs[0].name) == before.step("scores")
    assert (content.macs, content.parameters) == (before.macs, before.parameters)


def test_two_signatures_share_their_kernel(tmp_path) -> None:
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones((6, 5)))
    spec = tf.TensorSpec((1, 6), name="x")
    functions = {
        "zeta": tf.function(lambda x: {"u": x @ module.kernel}),
        "alpha": tf.function(lambda x: {"v": tf.nn.relu(x @ module.kernel)}),
    }
    module.functions = list(functions.values())
    signatures = {
        name: function.get_concrete_function(spec)
        for name, function in functions.items()
    }
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    blob = tf.lite.TFLiteConverter.from_saved_model(
        str(tmp_path), signature_keys=list(signatures)
    ).convert()
    content = inspect(blob)
    theirs = Interpreter(model_content=blob).get_signature_list()
    assert {s.name for s in content.signatures} == set(theirs) == {"zeta", "alpha"}
    # The graph that is run has the names of its own signature.
    assert [tensor.name for tensor in content.outputs] == theirs["alpha"]["outputs"]
    assert [(op.name, op.subgraph) for op in content.ops] == [
        ("FULLY_CONNECTED", 0),
        ("FULLY_CONNECTED", 1),
    ]
    assert content.macs == content.parameters == 30


def looping(until, step, first=0):
    """`y = x @ K` turn by turn, counted by a variable."""

    def loop(x):
        kernel = tf.ones((4, 4))
        turn = lambda n, x: (step(n), tf.linalg.matmul(x, kernel))  # noqa: E731
        return {"y": tf.while_loop(until, turn, [first, x])[1]}

    return inspect(of_function(loop, tf.TensorSpec((1, 4), name="x")))


@pytest.mark.parametrize(
    ("until", "step", "first", "turns"),
    [
        (lambda n, x: n < 3, lambda n: n + 1, 0, 3),
        (lambda n, x: n < 10, lambda n: n + 3, 1, 3),
        (lambda n, x: 7 > n, lambda n: 2 + n, 0, 4),
        (lambda n, x: tf.logical_and(n < 9, n < 5), lambda n: n + 1, 0, 5),
        # Of these the file does not say how often they turn.
        (lambda n, x: tf.reduce_sum(x) < 9.0, lambda n: n + 1, 0, None),
        (lambda n, x: n < 9, lambda n: n * 2, 1, None),
        (lambda n, x: n > -9, lambda n: n - 1, 0, None),
        (
            lambda n, x: tf.logical_and(n < 9, tf.reduce_sum(x) < 9.0),
            lambda n: n + 1,
            0,
            None,
        ),
    ],
)
def test_loops_count_with_all_their_turns(until, step, first, turns) -> None:
    content = looping(until, step, first)
    assert [op.macs for op in content.ops if op.subgraph and op.macs] == [16]
    assert content.macs == 16 * (turns or 1)
    assert content.macs_at_least is (turns is None)
    assert ("at least 16 multiply" in str(content)) is (turns is None)
    assert content.to_dict()["macs_at_least"] is content.macs_at_least


def test_loops_in_loops() -> None:
    def loop(x):
        def row(n, x):
            inner = lambda k, x: (k + 1, tf.linalg.matmul(x, tf.ones((4, 4))))  # noqa: E731
            return n + 1, tf.while_loop(lambda k, x: k < 5, inner, [0, x])[1]

        return {"y": tf.while_loop(lambda n, x: n < 3, row, [0, x])[1]}

    content = inspect(of_function(loop, tf.TensorSpec((1, 4), name="x")))
    assert content.macs == 16 * 5 * 3 and not content.macs_at_least


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(8),
        lambda: layers.LSTM(8, go_backwards=True, return_sequences=True),
        lambda: layers.GRU(8),
        lambda: layers.Bidirectional(layers.GRU(4)),
    ],
    ids=["lstm", "backwards", "gru", "bidirectional"],
)
def test_a_recurrent_layer_counts_what_the_summary_does(layer) -> None:
    model = keras.Sequential([keras.Input((10, 6)), layer(), layers.Dense(3)])
    content = inspect(converted(model))
    assert "WHILE" in [op.name for op in content.ops]
    assert content.macs == summary(model).macs and not content.macs_at_least


def test_a_loop_in_itself_and_in_no_graph_is_no_number(rng) -> None:
    def loop(x):
        turn = lambda n, x: (n + 1, tf.linalg.matmul(x, tf.ones((4, 4))))  # noqa: E731
        return {"y": tf.while_loop(lambda n, x: n < 3, turn, [0, x])[1]}

    blob = of_function(loop, tf.TensorSpec((1, 4), name="x"))

    def body_is(number):
        def change(model):
            for graph in model.subgraphs:
                for op in graph.operators:
                    if hasattr(op.builtinOptions, "bodySubgraphIndex"):
                        op.builtinOptions.bodySubgraphIndex = number

        return inspect(changed(blob, change))

    assert body_is(0).macs == 0
    assert body_is(99).macs == 0 and body_is(-1).macs == 0
    assert body_is(1).macs == 0  # the condition, which has no kernel


def test_custom_and_flex_operations() -> None:
    content = inspect(
        of_function(lambda x: {"y": tf.math.erf(x)}, tf.TensorSpec((4,), name="x"))
    )
    assert [op.name for op in content.flex_ops] == ["FlexErf"]
    assert content.custom_ops == content.flex_ops
    assert "not built in: FlexErf" in str(content)


def test_prints_and_goes_to_json(files, tmp_path) -> None:
    path = tmp_path / "student.tflite"
    path.write_bytes(files["int8 inside"])
    content, blob = inspect_bytes(path)
    assert content == inspect(path) and blob == files["int8 inside"]
    text = str(content)
    assert text.startswith(f"student.tflite: int8, {len(blob):,} bytes")
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


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda file: setattr(file, "subgraphs", None), "it has no graph"),
        (
            lambda file: setattr(file.subgraphs[0].tensors[1], "buffer", 999),
            "tensor 1 is in buffer 999 of",
        ),
        (
            lambda file: setattr(file.subgraphs[0].operators[0], "opcodeIndex", 77),
            "an operation has code 77 of",
        ),
        (
            lambda file: setattr(file.subgraphs[0].operators[0], "inputs", [500]),
            "tensor 500 is named, of",
        ),
        (
            lambda file: setattr(file.signatureDefs[0].inputs[0], "tensorIndex", 600),
            "tensor 600 is named, of",
        ),
        (
            lambda file: setattr(file.subgraphs[0].tensors[0], "shape", [2] * 65),
            "tensor 0 has 65 axes",
        ),
        (
            lambda file: setattr(
                file.subgraphs[0].tensors[0].quantization, "scale", [float("nan")]
            ),
            "tensor 0 has a scale of nan",
        ),
        (
            lambda file: setattr(
                file.subgraphs[0].tensors[0].quantization, "scale", [0.1, -0.5]
            ),
            "tensor 0 has a scale of -0.5",
        ),
    ],
)
def test_a_file_that_contradicts_itself(files, change, text) -> None:
    with pytest.raises(ValueError, match=f"well-formed file. Received: .*{text}"):
        inspect(changed(files["int8"], change))


def test_scales_that_say_nothing(files) -> None:
    def change(file: Any) -> None:
        file.subgraphs[0].tensors[0].quantization.scale = [0.0]
        last = file.subgraphs[0].tensors[-1]
        last.type = schema.TensorType.FLOAT32

    content = inspect(changed(files["int8"], change))
    assert content.tensors[0].scales == content.tensors[0].zero_points == ()
    assert content.tensors[-1].scale is None


def test_an_operation_without_inputs_makes_no_step(files) -> None:
    blob = changed(
        files["int8 inside"],
        lambda file: setattr(file.subgraphs[0].operators[-1], "inputs", []),
    )
    assert inspect(blob).step("scores") is None


def test_the_largest_sizes_can_be_printed(files) -> None:
    def change(file: Any) -> None:
        for tensor in file.subgraphs[0].tensors:
            if len(tensor.shape) == 2:
                tensor.shape = [2**31 - 1] * 64

    assert looked_into(changed(files["float32"], change))


def test_a_small_file_cannot_unfold_into_a_huge_one(monkeypatch) -> None:
    monkeypatch.setattr(flatbuffer, "_MAX_BYTES", 200_000)
    builder = flatbuffers.Builder(1024)
    tensors = add_vector(builder, [add_table(builder, {})] * 500)
    graphs = add_vector(builder, [add_table(builder, {0: tensors})] * 500)
    builder.Finish(add_table(builder, {2: graphs}), b"TFL3")
    with pytest.raises(ValueError, match="tables unfold to more than 200,000 bytes"):
        inspect(bytes(builder.Output()))


def test_a_large_file_can_have_large_tables(files, monkeypatch) -> None:
    monkeypatch.setattr(flatbuffer, "_MAX_BYTES", 100_000)

    def change(file: Any) -> None:
        quantization = file.subgraphs[0].tensors[0].quantization
        quantization.scale = np.full(30_000, 0.1, np.float32)
        quantization.zeroPoint = np.zeros(30_000, np.int64)

    assert len(inspect(changed(files["int8"], change)).tensors[0].scales) == 30_000


def looked_into(blob: bytes) -> bool:
    """Whether it was read; all that may be raised is ValueError."""
    try:
        content = inspect(blob)
    except ValueError as err:
        assert "must be a whole, well-formed file" in str(err)  # noqa: PT017
        return False
    assert isinstance(content, TFLiteFile)
    assert str(content) and content.quantization
    json.dumps(content.to_dict(), allow_nan=False)
    for output in content.outputs:
        content.step(output.name)
    return True


@pytest.mark.parametrize("name", ["float32", "int8 inside"])
def test_a_file_cut_short_is_an_error_or_reads(files, name) -> None:
    blob = files[name]
    whole = [looked_into(blob[: len(blob) * n // 50]) for n in range(50)]
    assert not any(whole[:25])
    assert looked_into(blob)


@pytest.mark.parametrize("name", ["float32", "dynamic", "int8 inside", "uint8"])
def test_flipped_bytes_are_an_error_or_read(files, name) -> None:
    rng = np.random.default_rng(0)
    blob = np.frombuffer(files[name], np.uint8)
    read = 0
    for _ in range(400):
        flipped = blob.copy()
        places = rng.integers(0, len(blob), rng.integers(1, 8))
        flipped[places] = rng.integers(0, 256, len(places))
        read += looked_into(flipped.tobytes())
    assert 0 < read < 400


@pytest.mark.parametrize("name", ["float32", "int8 inside"])
def test_words_that_lead_anywhere_are_an_error_or_read(files, name) -> None:
    rng = np.random.default_rng(1)
    extremes = (0, 1, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
    for _ in range(400):
        words = np.frombuffer(files[name][: len(files[name]) // 4 * 4], "<u4").copy()
        words[rng.integers(len(words))] = rng.choice([*extremes, rng.integers(2**32)])
        looked_into(words.tobytes())
