"""What people reported of converting Keras 3 models, and what each tool makes of it.

`CASES` has the models; `TOOLS` the ways from a Keras 3 model to a `.tflite`, each used
as its documentation says. It is a part of `peers.py`, which makes each attempt in a
process of its own, since some end it.

Numbers in brackets: T is tensorflow/tensorflow, M tensorflow/model-optimization.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers
Array = np.ndarray[Any, Any]
Samples = dict[str, Array]

# The newest runtime on Maven Central by the name of TensorFlow Lite.
RUNTIME = "2.16.1"
# What may take floats in a file asked to be int8: its edges, and no arithmetic.
_EDGES = {"QUANTIZE", "DEQUANTIZE", "SHAPE"}


@dataclass(frozen=True)
class Case:
    """One report: the model, what was asked, and what is right.

    Attributes:
        what: One line.
        build: The model.
        quantization: As `kdlite.export` names it.
        calibration: What calibration gets, if not the samples: one of `nothing`, `nan`,
            `infinity`, `pixels`.
        limit: How far off an output may be, as a share of its range.
        refused: A pattern that the error must match, where an error is what is right.
    """

    what: str
    build: Callable[[], Any]
    quantization: str = "float32"
    calibration: str | None = None
    refused: str | None = None
    limit: float | None = None


def _image_net(activation: str = "relu") -> keras.Model:
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Activation(activation, name="act")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def _two_heads() -> keras.Model:
    inputs = keras.Input((8,), name="x")
    x = layers.Dense(16, activation="relu")(inputs)
    heads = {name: layers.Dense(4, name=name)(x) for name in ("z", "b", "a", "m")}
    return keras.Model(inputs, list(heads.values()))


def _named() -> keras.Model:
    first, second = keras.Input((8,), name="zeta"), keras.Input((4,), name="alpha")
    x = layers.Concatenate()([layers.Dense(4)(first), second])
    outputs = {"score": layers.Dense(3)(x), "box": layers.Dense(2)(x)}
    return keras.Model({"zeta": first, "alpha": second}, outputs)


def _sequence(layer: Callable[[], keras.Layer], batch: int | None) -> keras.Model:
    inputs = keras.Input((8, 4), batch_size=batch, name="x")
    return keras.Model(inputs, layers.Dense(3, name="logits")(layer()(inputs)))


def _normalized() -> keras.Model:
    inputs = keras.Input((32,), name="x")
    x = layers.Dense(32, activation="relu")(inputs)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, layers.Dense(4, name="logits")(x))


def _half() -> keras.Model:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return _image_net()
    finally:
        keras.config.set_dtype_policy(policy)


def _upsampled() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.UpSampling2D()(x)
    return keras.Model(inputs, layers.Conv2D(2, 3, padding="same", name="mask")(x))


def _decoder() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(inputs)
    return keras.Model(inputs, layers.Conv2D(2, 3, padding="same", name="mask")(x))


def _argmax() -> keras.Model:
    inputs = keras.Input((8,), name="x")
    scores = layers.Dense(4, name="scores")(inputs)
    return keras.Model(inputs, keras.ops.argmax(scores, axis=-1))


def _strings() -> keras.Model:
    words = layers.TextVectorization(
        vocabulary=["good", "bad"], output_sequence_length=4
    )
    inputs = keras.Input((1,), dtype="string", name="text")
    x = layers.Embedding(8, 4)(words(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def _trained_with_fake_quant() -> keras.Model:
    import kdlite

    model = kdlite.quantize_aware(_image_net(), "int8")
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 16, 16, 3)).astype("float32")
    model.fit(x, rng.normal(size=(64, 5)), verbose=0, epochs=2)
    return model


CASES: dict[str, Case] = {
    "outputs": Case("four heads of one shape, by place or name (T#33303)", _two_heads),
    "names": Case("inputs and outputs as dicts (T#117453)", _named),
    "nothing": Case(
        "int8, calibration gives no sample",
        _image_net,
        "int8",
        "nothing",
        r"(?i)calibration",
    ),
    "nan": Case(
        "int8, NaN in a calibration sample (T#44114)",
        _image_net,
        "int8",
        "nan",
        r"(?i)nan",
    ),
    "infinity": Case(
        "int8, infinity in a calibration sample (T#120295)",
        _image_net,
        "int8",
        "infinity",
        r"(?i)inf",
    ),
    "pixels": Case(
        "int8, calibrated with 0..255 where the net sees 0..1 (T#89438)",
        _image_net,
        "int8",
        "pixels",
        r"(?i)units|range",
    ),
    "layernorm": Case(
        "int8 of a net with LayerNormalization (T#54476)", _normalized, "int8"
    ),
    "elu": Case("int8 of a net with ELU (T#58746)", lambda: _image_net("elu"), "int8"),
    "mixed": Case("a mixed_float16 model (T#46380)", _half, limit=0.01),
    "lstm": Case(
        "LSTM of any batch (T#126061)", lambda: _sequence(lambda: layers.LSTM(8), None)
    ),
    "gru": Case(
        "int8 of a GRU, batch 1 (T#87468)",
        lambda: _sequence(lambda: layers.GRU(8), 1),
        "int8",
    ),
    "dense": Case(
        "dynamic-range Dense for the runtime 2.16.1 (T#80736)", _normalized, "dynamic"
    ),
    "decoder": Case("transposed convolution, batch left open (T#44905)", _decoder),
    "tile": Case("int16x8 of nearest upsampling (T#57725)", _upsampled, "int16x8"),
    "argmax": Case("argmax within the model (T#43277)", _argmax),
    "strings": Case(
        "text in, which needs TensorFlow's own operations (T#42673)",
        _strings,
        refused=r"(?i)TextVectorization|string",
    ),
    "qat": Case(
        "a net trained with fake quantization (T#38285)",
        _trained_with_fake_quant,
        "int8",
    ),
}


def samples_of(model: keras.Model, count: int = 64) -> Samples:
    """Values of 0..1 for every input by name, pixels of 0..255, or words."""
    rng = np.random.default_rng(0)
    pixels = any(isinstance(layer, layers.Rescaling) for layer in model.layers)
    drawn: Samples = {}
    for tensor in keras.tree.flatten(model.inputs):
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "string":
            drawn[tensor.name] = np.full(shape, "good")
        else:
            values = rng.uniform(0, 255 if pixels else 1, shape)
            drawn[tensor.name] = values.astype("float32")
    return drawn


def calibration_of(case: Case, samples: Samples) -> Samples:
    """The samples, or what a report says was given."""
    changed = {name: values.copy() for name, values in samples.items()}
    for name, values in changed.items():
        if case.calibration == "nothing":
            changed[name] = values[:0]
        elif case.calibration in ("nan", "infinity"):
            values[3].flat[0] = np.nan if case.calibration == "nan" else np.inf
        elif case.calibration == "pixels":
            changed[name] = values * 255
    return changed


def _representative(samples: Samples) -> Callable[[], Iterator[Samples]]:
    def give() -> Iterator[Samples]:
        for index in range(len(next(iter(samples.values())))):
            yield {name: values[index : index + 1] for name, values in samples.items()}

    return give


def _settings(case: Case, samples: Samples) -> dict[str, Any]:
    """The converter's attributes, as its guides set them."""
    if case.quantization == "float32":
        return {}
    settings: dict[str, Any] = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if case.quantization == "dynamic":
        return settings
    sets = tf.lite.OpsSet
    integer = {
        "int8": sets.TFLITE_BUILTINS_INT8,
        "int16x8": sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
    }[case.quantization]
    return {
        **settings,
        "representative_dataset": _representative(samples),
        "target_spec.supported_ops": [integer],
    }


def bare_converter(case: Case, model: Any, samples: Samples, path: Path) -> None:
    """`tf.lite.TFLiteConverter.from_keras_model`."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    for name, value in _settings(case, samples).items():
        holder = converter.target_spec if "." in name else converter
        setattr(holder, name.split(".")[-1], value)
    path.write_bytes(converter.convert())


def keras_export(case: Case, model: Any, samples: Samples, path: Path) -> None:
    """`model.export(path, format="litert")`."""
    settings = _settings(case, samples)
    operations = settings.pop("target_spec.supported_ops", None)
    if operations:
        settings["target_spec"] = {"supported_ops": operations}
    model.export(path, format="litert", verbose=False, **settings)


def edge_quantizer(case: Case, model: Any, samples: Samples, path: Path) -> None:
    """ai-edge-quantizer, of the float file that Keras exports."""
    from ai_edge_quantizer import quantizer, recipe

    floats = path.with_name("float.tflite")
    model.export(floats, format="litert", verbose=False)
    rows = {
        "int8": recipe.static_wi8_ai8,
        "int16x8": recipe.static_wi8_ai16,
        "dynamic": recipe.dynamic_wi8_afp32,
    }[case.quantization]()
    made = quantizer.Quantizer(str(floats), rows)
    ranges = None
    if made.need_calibration:
        data = list(_representative(samples)())
        ranges = made.calibrate({"serving_default": data})
    path.write_bytes(bytes(made.quantize(ranges).quantized_model))


def this(case: Case, model: Any, samples: Samples, path: Path) -> None:
    """`kdlite.export`."""
    import kdlite

    integer = case.quantization in ("int8", "int16x8")
    trained = case.build is _trained_with_fake_quant
    data = {"calibration_data": samples} if integer and not trained else {}
    kdlite.export(model, path, case.quantization, verify_data=samples_of(model), **data)


def model_optimization(case: Case, model: Any, samples: Samples, path: Path) -> None:
    """`tfmot.quantization.keras.quantize_model`, before any training."""
    import tensorflow_model_optimization as tfmot

    if case.build is _trained_with_fake_quant:
        model = _image_net()  # the fake quantization is to be its own
    aware = tfmot.quantization.keras.quantize_model(model)
    converter = tf.lite.TFLiteConverter.from_keras_model(aware)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path.write_bytes(converter.convert())


Tool = Callable[[Case, Any, Samples, Path], None]
# What makes a file of a trained model, and beside it what trains one on.
QUANTIZERS: dict[str, Tool] = {
    "bare converter": bare_converter,
    "Keras export": keras_export,
    "ai-edge-quantizer": edge_quantizer,
    "kdlite": this,
}
TOOLS: dict[str, Tool] = {**QUANTIZERS, "tfmot": model_optimization}


def judged(case: Case, model: keras.Model, path: Path) -> str:
    """`right`, or `wrong: ` and what is wrong of a file that was written."""
    import kdlite
    from kdlite.lite.op_versions import needed_runtime

    if case.refused is not None:
        return "wrong: a file, and not a word"
    content = kdlite.inspect(path)
    names = sorted({op.name for op in content.ops})
    if content.flex_ops:
        return "wrong: needs TensorFlow's own operations on the phone, not a word"
    if case.quantization in ("int8", "int16x8"):
        floats = sorted({op.name for op in content.float_ops} - _EDGES)
        if floats:
            return f"wrong: {', '.join(floats)} in float, not a word"
    needed = needed_runtime(content)
    if not needed.runs_on(RUNTIME):
        return f"wrong: needs runtime {needed.release} for {needed.op}, not a word"
    return _compared(case, model, path, names)


def _compared(case: Case, model: keras.Model, path: Path, names: list[str]) -> str:
    """Runs the file as an app does: by name, and outputs without names by place."""
    from ai_edge_litert.interpreter import Interpreter

    samples = samples_of(model, 16)
    interpreter = Interpreter(str(path))
    try:
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner()
    except (RuntimeError, ValueError) as err:
        return f"wrong: does not run ({str(err).splitlines()[0][:60]})"
    expected = model(samples if len(samples) > 1 else next(iter(samples.values())))
    if isinstance(expected, dict):
        wanted = {name: np.asarray(value) for name, value in expected.items()}
    else:
        outputs = keras.tree.flatten(expected)
        wanted = dict(zip(model.output_names, map(np.asarray, outputs), strict=True))
    has = runner.get_output_details()
    known = set(wanted) <= set(has)
    details = interpreter.get_output_details()
    takes = runner.get_input_details()
    if not set(samples) <= set(takes):
        return "wrong: inputs lost their names"
    worst = 0.0
    for index in range(16):
        try:
            given = runner(
                **{
                    name: _stored(values[index : index + 1], takes[name])
                    for name, values in samples.items()
                }
            )
        except (RuntimeError, ValueError) as err:
            return f"wrong: fails at the first call ({str(err).splitlines()[0][:50]})"
        for place, (name, value) in enumerate(wanted.items()):
            if known:
                got, detail = given[name], has[name]
            else:
                detail = details[place]
                got = next(
                    given[key]
                    for key, d in has.items()
                    if d["index"] == detail["index"]
                )
            scale, zero = detail["quantization"]
            got = (
                (got - float(zero)) * scale
                if scale and got.dtype != np.float32
                else got
            )
            if got.shape[1:] != value.shape[1:]:
                return "wrong: outputs in another order, without names"
            spread = float(np.ptp(value)) or 1.0
            worst = max(
                worst, float(np.abs(got - value[index : index + 1]).max()) / spread
            )
    limit = case.limit or (1e-4 if case.quantization == "float32" else 0.25)
    if worst > limit:
        reason = "" if known else ", outputs in another order, without names"
        return f"wrong: off by {worst:.0%} of the range{reason}"
    shapes = [name for name in ("SHAPE", "PACK") if name in names]
    note = "" if known or len(wanted) == 1 else ", by place only"
    return "right" + note + (f", with {' and '.join(shapes)}" if shapes else "")


def _stored(values: Array, takes: dict[str, Any]) -> Array:
    """Values as a file's input takes them, which may be integers."""
    scale, zero = takes["quantization"]
    if not scale or takes["dtype"] == np.float32:
        return values
    limits = np.iinfo(takes["dtype"])
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(
        takes["dtype"]
    )


def takes_part(tool: str, case: Case) -> bool:
    """Whether a case is about what a tool is for."""
    if tool == "tfmot":  # quantizes in training, to int8, without calibration
        return case.quantization == "int8" and case.calibration is None
    return tool != "ai-edge-quantizer" or case.quantization != "float32"


def attempt(name: str, tool: str, folder: Path) -> str:
    """What one tool makes of one case."""
    case = CASES[name]
    keras.utils.set_random_seed(0)
    model = case.build()
    path = folder / "model.tflite"
    try:
        TOOLS[tool](case, model, calibration_of(case, samples_of(model)), path)
    except Exception as err:  # whatever it is: it is what the user sees
        text = f"{type(err).__name__}: {err}"
        if case.refused and re.search(case.refused, text):
            return "right: refused, cause named"
        line = next((part for part in str(err).splitlines() if part.strip()), "")
        return f"refused: {type(err).__name__}: {line.strip()[:200]}"
    return judged(case, model, path)
