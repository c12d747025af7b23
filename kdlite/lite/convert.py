"""From a Keras model to a proven `.tflite`, in one call.

The TFLite converter is trusted with nothing. It runs in a process of its own
(`_converter.py`, the only file that knows it), since it can crash, hang and run out of
memory. Its input is checked before, since it turns bad calibration data into float
files without a word. What it makes is looked into and run against the Keras model,
before it appears under the name that was asked for.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.compress.qat import float_layers
from kdlite.compress.recipes import RECIPES, Recipe
from kdlite.fingerprint import data_fingerprint, model_fingerprint
from kdlite.lite._converter import ConversionError
from kdlite.lite.calibration import (
    FEW_SAMPLES,
    MOST_SAMPLES,
    InputSpec,
    check_pixels,
    load_samples,
    observed_range,
    random_samples,
    read_folder,
    with_shapes,
)
from kdlite.lite.conversion import Conversion, Settings
from kdlite.lite.golden import golden_vectors
from kdlite.lite.in_place import check_target, put_in_place
from kdlite.lite.labels import Labels, check_counts, check_texts, score_meaning
from kdlite.lite.layer_errors import LayerError, layer_errors, noisiest
from kdlite.lite.layer_names import layers_of
from kdlite.lite.metadata import write_metadata
from kdlite.lite.mixed import smallest_set
from kdlite.lite.model_card import card_path, checked_accuracy, model_card
from kdlite.lite.op_versions import needed_runtime
from kdlite.lite.options import (
    check_limits,
    check_quantization,
    checked_auto_mixed,
    checked_engine,
    checked_options,
    checked_overrides,
    checked_recipe,
    release,
)
from kdlite.lite.preflight import check_layers
from kdlite.lite.serving import ServingModel, serve
from kdlite.lite.targets import read_once
from kdlite.lite.tflite_file import Op, TFLiteFile, inspect
from kdlite.lite.tolerance import problems, rule
from kdlite.lite.verify import VerificationError, VerificationReport, verify

__all__ = ["ConversionError", "ExportResult", "export"]

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_RANDOM_SAMPLES = 64


@dataclass(frozen=True)
class ExportResult:
    """A `.tflite` that is in place and does what the Keras model does.

    Attributes:
        path: The file.
        quantization: The recipe's name.
        io: The dtype of its float inputs and outputs.
        size_bytes: Its size.
        min_runtime: The oldest TFLite runtime that knows all its operations.
        ops: Its operations in order, as `kdlite.inspect` has them.
        inputs: Its inputs, likewise.
        outputs: Its outputs, likewise.
        overrides: By layer "float16" or "float32", for those that are more exact than
            the recipe: as asked for, or found by `auto_mixed`.
        verification: How it compares with the Keras model.
    """

    path: Path
    quantization: str
    io: str
    size_bytes: int
    min_runtime: str
    ops: tuple[Any, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    overrides: Mapping[str, str]
    verification: VerificationReport

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "path": str(self.path),
            "quantization": self.quantization,
            "io": self.io,
            "size_bytes": self.size_bytes,
            "min_runtime": self.min_runtime,
            "ops": [op.to_dict() for op in self.ops],
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "overrides": dict(self.overrides),
            "verification": self.verification.to_dict(),
        }

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.quantization}, {self.size_bytes:,} bytes, "
            f"{len(self.ops)} ops, {self.io} in and out, runs on TFLite "
            f"{self.min_runtime} and newer"
            + (f", with {', '.join(self.overrides)} in float" if self.overrides else "")
            + f"\n{self.verification}"
        )


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    quantization: str | Recipe = "float32",
    *,
    calibration_data: Any = None,
    labels: Labels | None = None,
    input_range: tuple[float, float] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    io: str = "float32",
    verify_data: Any = None,
    min_runtime: str = "2.16.1",
    allow_float_ops: Iterable[str] = (),
    overrides: Mapping[str, str] | None = None,
    auto_mixed: bool | Mapping[str, float] = False,
    engine: str | None = None,
    batch_size: int = 1,
    dynamic_shape: bool = False,
    allow_select_tf_ops: bool = False,
    description: str = "",
    author: str = "",
    license: str = "",
    intended_use: str = "",
    accuracy: Mapping[str, float] | None = None,
    overwrite: bool = False,
    time_limit_s: float = 600.0,
    memory_limit_bytes: float | None = None,
) -> ExportResult:
    """Converts a Keras model to a `.tflite` that is checked against it.

    The file has batch 1, inputs and outputs by the names that they have in Keras, and
    no operation that needs more than the built-in ones. It is run in LiteRT before this
    returns, against the Keras model on `verify_data`, else on `calibration_data`, else
    on random values, with XNNPACK, with LiteRT's own kernels and with several threads.
    What must hold:

    - float32: no difference beyond 1e-4 of the output's largest value.
    - A quantization-aware model: at least 99 % of the output values within one
      quantization step.
    - Any other recipe: no NaN, and an error (root mean square) of at most two
      quantization steps or, if that is more, `Recipe.least_snr_db` below how much the
      output varies: 11 dB with 8-bit weights. Good models are at 20 to 40 dB; the limit
      tells those that say nothing any more, as after calibration with wrong units.

    Equal arguments give equal bytes, in any process.

    Beside the file its model card is written, `MODEL_CARD.md`, or, where that is the
    card of another file, `<name>.MODEL_CARD.md`: what it is, how good, what was checked
    and how to make it again. A card that is not of this file is never touched.

    Args:
        model: A trained model: Functional, Sequential, or subclassed with one input.
            Mixed precision is converted as float32. Logits or probabilities: its
            outputs are the file's.
        path: The file to write.
        quantization: `"float32"`, `"float16"`, `"weight_only"`, `"dynamic"`, `"int8"`,
            `"int16x8"` or `"int4"`: `kdlite.compress.recipe` says what each means. For
            the last three there is `calibration_data`; or, for int8, `model` comes from
            `kdlite.quantize_aware`.
        calibration_data: Samples, typical and at least 100, at most 1000 of which are
            used: an array `(samples, ...)`, a mapping from input name to array,
            `(x, y)`, a `tf.data.Dataset`, an iterable of batches or a function that
            returns one, or the path of an `.npz` or of a folder of images. In the units
            of the file's input.
        labels: Class names in the order of the output, or such by output name.
        input_range: `(lo, hi)`, the values that the file's image inputs, or else its
            only input, take. Calibration data must lie in it; an int8 file spreads its
            256 levels over it, so that with `(0.0, 255.0)` a level is a pixel value.
            Where it is not given, the file's metadata say what the samples look like:
            0..255, 0..1 or -1..1.
        mean: What the model was trained with: its images were `(pixels - mean) / std`.
            The file then takes the pixels. A number, or one a channel.
        std: Goes with `mean`.
        io: Dtype of the file's float inputs and outputs: `"float32"`, or for int8 and
            int4 files also `"int8"` or `"uint8"`, for int16x8 `"int16"`.
        verify_data: Samples to compare on, in the forms of `calibration_data`; with
            labels, `(x, y)`, the task's metric is reported too.
        min_runtime: The oldest TFLite runtime that the file must work on.
        allow_float_ops: Operations of an integer file that may compute in float, such
            as `("NEG",)`.
        overrides: Layers by name or pattern that are to be more exact than the rest:
            `{"head/*": "float32"}`, or `"float16"` for weights of half precision
            (with `engine="aeq"`). Of a quantization-aware model, `quantize_aware` takes
            them.
        auto_mixed: Whether to search the layers to keep in float (in float16 with
            `engine="aeq"`) where the file would not be exact enough: as few as are
            found, the noisiest first. Or what it must reach besides, as
            `VerificationReport.require` takes it: `{"top1_agreement": 0.99}`. Some ten
            conversions.
        engine: What quantizes: `"tflite"`, TensorFlow's converter, or `"aeq"`,
            ai-edge-quantizer (`pip install "kdlite[aeq]"`). None: the converter where
            it knows the recipe.
        batch_size: How many samples a run of the file takes.
        dynamic_shape: Whether lengths that the model leaves open, as those of images of
            any size, stay open in the file, for the app to set before it runs. Most
            delegates refuse such files.
        allow_select_tf_ops: Whether operations may be TensorFlow's own. An app then
            needs the Select TF ops library; and the file cannot be run here, so that it
            is put in place with a warning, and `verification.samples` is 0.
        description: What the model does, for people who look into the file.
        author: Who made it.
        license: Under which terms.
        intended_use: What it is for and what not, in Markdown, for the model card.
        accuracy: The task's metric of other models on the samples of `verify_data`, for
            the model card: `{"teacher": 0.943}`.
        overwrite: Whether a file at `path` may be replaced, with its model card.
        time_limit_s: Seconds that the converter may take.
        memory_limit_bytes: Memory that the converter may take; None for all there is.

    Returns:
        What was written, and how it compares with the model.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument breaks a rule; found before anything is converted.
        FileExistsError: If there is a file and `overwrite` is False, or no room for its
            model card.
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written.
        ConversionError: If a layer is known not to become what is asked for, the
            converter fails, crashes or takes too long, an operation of an integer file
            is left in float, or one needs a newer runtime.
        VerificationError: If the file does not do what the model does. In no such case
            is a file left behind, or one that was there changed.

    Example:
        ``export(student, "student.tflite", "int8", calibration_data=x_train[:500],
        labels=names, input_range=(0.0, 255.0), verify_data=(x_test, y_test))``
    """
    path = Path(path)
    recipe = checked_recipe(quantization)
    float_ops = checked_options(recipe, io, min_runtime, allow_float_ops, batch_size)
    check_limits(time_limit_s, memory_limit_bytes)
    check_target(path, overwrite)
    card_path(path)
    accuracy = checked_accuracy(accuracy)
    if isinstance(getattr(model, "student", None), keras.Model):
        raise TypeError(
            "`model` must be the model that the file is to hold. Received: "
            f"{type(model).__name__} {model.name!r}, which trains one. Give its "
            ".student."
        )
    check_texts(labels)
    serving = serve(model, mean=mean, std=std, input_range=input_range)
    specs = serving.input_specs
    trained = serving.quantize_aware
    calibrated = recipe.integer and not trained
    check_quantization(model.name, recipe, trained, calibration_data)
    engine = checked_engine(engine, recipe, trained, io)
    kept = checked_overrides(overrides, model, recipe, trained, engine)
    wanted = checked_auto_mixed(auto_mixed, recipe, trained, engine)
    if not trained:
        check_layers(serving.model, recipe, engine, float_ops, kept)
    samples = None
    if calibration_data is not None:
        samples = load_samples(
            calibration_data, specs, most=MOST_SAMPLES, varied=calibrated
        )
        if len(specs) == 1:
            highest = float(np.abs(samples[specs[0].name]).max())
            check_pixels(model, highest, "`calibration_data`")
        count = len(samples[specs[0].name])
        if calibrated and count < FEW_SAMPLES:
            warnings.warn(
                f"`calibration_data` should have at least {FEW_SAMPLES} samples. "
                f"Received: {count} for input {specs[0].name!r}. The ranges found in "
                "so few hold badly for others: give more.",
                stacklevel=2,
            )
        if not dynamic_shape:
            specs = with_shapes(specs, samples)
    compared = samples
    if verify_data is not None:
        verify_data = read_folder(read_once(verify_data), specs, "verify_data")
        compared = load_samples(verify_data, specs, role="verify_data")
    known = specs
    for found in filter(None, (samples, compared)):
        known = with_shapes(known, found)
    _check_shapes_known(known)
    image_range = serving.image_range
    if image_range is None and compared is not None:
        image_range = observed_range(compared, known)
    if compared is None:
        compared = random_samples(serving.with_ranges(known), _RANDOM_SAMPLES)
    settings = Settings(
        recipe=recipe,
        engine=engine,
        io=io,
        batch_size=batch_size,
        # Dense kernels by channel: TFLite itself computes these right in int8 long
        # since (2.14 was tried), but runtimes made of it did not before 2.17
        # (tflite-micro, pull requests 2602 and 2673), nor did any where activations are
        # rounded in each run. A quantization-aware model has learned the levels of each
        # channel, and would not be itself with those of the whole kernel; and kernels
        # that become floats again are no matter to what computes with them.
        per_channel_dense=trained
        or recipe.dequantized
        or release(min_runtime) >= (2, 17),
        float_ops=bool(float_ops),
        select_tf_ops=allow_select_tf_ops,
        time_limit_s=time_limit_s,
        memory_limit_bytes=memory_limit_bytes,
    )
    specs = specs if dynamic_shape else known
    measured = samples if calibrated else None
    data = compared if verify_data is None else verify_data
    with Conversion(serving, specs, settings, measured) as conversion:
        check_counts(labels, conversion.outputs)

        def attempt(kept: Mapping[str, str]) -> _Attempt:
            blob = conversion.run(kept)
            content = inspect(blob)
            _check_content(serving, settings, specs, content, float_ops, kept)
            _check_runtime(model.name, content, min_runtime)
            if content.flex_ops:
                return _Attempt(blob, content, _not_run(path, content), [])
            # By its final name, under which it is not in place yet.
            report = replace(verify(blob, serving, data), file=path.name)
            wrong = problems(report.outputs, recipe, trained)
            for run in report.kernels:
                # Each rounds in its own way, so that no other is met to the step.
                wrong += [
                    f"{text}, with {run}" for text in problems(run.outputs, recipe)
                ]
            if wanted:
                try:
                    report.require(**wanted)
                except VerificationError as err:
                    wrong += err.problems
            return _Attempt(blob, content, report, wrong)

        made = attempt(kept)
        if made.wrong:
            errors: tuple[LayerError, ...] = ()
            if recipe.quantized and not trained:
                errors = layer_errors(
                    made.blob, conversion.floats(), compared, serving.model
                )
            tried = {}

            def holds(layers: Sequence[str]) -> bool:
                more = dict.fromkeys(
                    layers, "float16" if engine == "aeq" else "float32"
                )
                tried[tuple(layers)] = attempt({**kept, **more}), {**kept, **more}
                return not tried[tuple(layers)][0].wrong

            chosen = smallest_set(noisiest(errors), holds) if auto_mixed else None
            if chosen is None:
                raise VerificationError(made.report, made.wrong, errors)
            made, kept = tried[tuple(chosen)]
    blob, content, report = made.blob, made.content, made.report
    if not report.samples:
        warnings.warn(
            f"{path.name} was not run against the Keras model: it needs TensorFlow's "
            f"own operations ({', '.join(sorted({o.name for o in content.flex_ops}))}),"
            " which no Python package for this version runs in a .tflite. Compare the "
            "two on a phone.",
            stacklevel=2,
        )
    blob = write_metadata(
        blob,
        name=model.name,
        description=description,
        author=author,
        license=license,
        labels=labels,
        score_meaning=score_meaning(model) if labels else "",
        input_range=image_range,
        provenance={
            **_provenance(model, settings, measured, kept, mean, std),
            "golden": golden_vectors(blob, image_range) if report.samples else None,
        },
    )
    card = model_card(
        path.name,
        blob,
        report,
        rule=rule(recipe, trained),
        intended_use=intended_use,
        accuracy=accuracy,
    )
    put_in_place(path, blob, overwrite, {card_path(path): card.encode()})
    logger.info("wrote %s, %d bytes", path, len(blob))
    return ExportResult(
        path=path,
        quantization=recipe.name,
        io=io,
        size_bytes=len(blob),
        min_runtime=needed_runtime(content).release,
        ops=content.ops,
        inputs=content.inputs,
        outputs=content.outputs,
        overrides=kept,
        verification=report,
    )


@dataclass(frozen=True)
class _Attempt:
    """A file that was converted and compared."""

    blob: bytes
    content: TFLiteFile
    report: VerificationReport
    wrong: Sequence[str]


def _not_run(path: Path, content: TFLiteFile) -> VerificationReport:
    return VerificationReport(
        file=path.name,
        size_bytes=content.size_bytes,
        samples=0,
        outputs=(),
        float_ops=tuple(map(str, content.float_ops)),
        quantization=content.quantization,
    )


def _check_shapes_known(specs: Sequence[InputSpec]) -> None:
    for spec in specs:
        if None in spec.shape:
            raise ValueError(
                "The shape of every input must be known, but for the batch: on a phone "
                f"it cannot change. Received: {spec.shape} for input {spec.name!r}. "
                "Pass `verify_data` of the shape that the file is to have."
            )


def _check_content(
    serving: ServingModel,
    settings: Settings,
    specs: Sequence[InputSpec],
    content: TFLiteFile,
    allowed: frozenset[str],
    kept: Collection[str],
) -> None:
    """Raises unless the file is what was asked for."""
    name, recipe, io = serving.name, settings.recipe, settings.io
    layers = layers_of(content, serving.model)

    def listed(ops: Iterable[Op]) -> str:
        texts = {
            f"{op.name} (layer {layers[op][0]!r})" if layers[op] else str(op)
            for op in ops
        }
        return ", ".join(sorted(texts))

    if content.flex_ops and not settings.select_tf_ops:
        raise ConversionError(
            "Every operation must be a built-in one of TFLite. Received: "
            f"model={name!r}, in which {listed(content.flex_ops)} are not. Replace "
            "the layers that use them, or pass allow_select_tf_ops=True."
        )
    if recipe.integer:
        # Of a quantization-aware model, those that it was made with.
        kept = {*kept, *float_layers(serving.model)}
        left = [
            op
            for op in content.float_ops
            if op.name not in allowed and kept.isdisjoint(layers[op])
        ]
        if left:
            raise ConversionError(
                f"{recipe.name} means that every operation computes in integers. "
                f"Received: model={name!r}, of which stay in float: {listed(left)}. "
                "Replace these layers, or allow it: allow_float_ops="
                f"{tuple(sorted({op.name for op in left}))!r}."
            )
        found = content.quantization
        # A recipe of one's own may be none that a file can be told to have; and where
        # layers are kept in float, these may be all there are.
        known = recipe in RECIPES.values() and not kept
        if known and found not in (recipe.name, "mixed"):
            raise ConversionError(
                f"The file must be {recipe.name}, as `quantization` asks. Received: "
                f"model={name!r}, of which the converter made {found}. Use "
                f"quantization={found!r}"
                + (", or the plain model." if serving.quantize_aware else ".")
            )
    elif recipe.quantized and content.quantization == "float32":
        logger.warning(
            "%s: nothing was rounded. The converter leaves kernels of fewer than 1024 "
            "numbers in float, and %r has no larger ones.",
            recipe.name,
            name,
        )
    integers = {spec.name for spec in specs if spec.dtype != "float32"}
    for tensor in (*content.inputs, *content.outputs):
        if tensor.dtype != io and tensor.name not in integers:
            if tensor in content.outputs and tensor.dtype.startswith(("int", "bool")):
                continue  # such as the index of the largest
            raise ConversionError(
                f"Inputs and outputs must be {io}, as `io` asks. Received: "
                f"{tensor.dtype} for {tensor.name!r} of model={name!r}. Use "
                "io='float32'."
            )


def _check_runtime(name: str, content: TFLiteFile, min_runtime: str) -> None:
    """Raises if an operation needs a newer runtime."""
    needed = needed_runtime(content)
    if needed.runs_on(min_runtime):
        return
    release = needed.release or "a release that kdlite does not know"
    raise ConversionError(
        f"The file must run on TFLite {min_runtime}, as `min_runtime` asks. Received: "
        f"model={name!r}, of which {needed.op or 'any operation'} (version "
        f"{needed.version}) needs {release}. Ship that runtime and pass "
        f"min_runtime={needed.release or '...'!r}, or replace the layer."
    )


def _provenance(
    model: keras.Model,
    settings: Settings,
    samples: Mapping[str, Array] | None,
    kept: Mapping[str, str],
    mean: Any,
    std: Any,
) -> dict[str, Any]:
    """Where the file comes from; nothing that differs between equal exports."""
    origin: dict[str, Any] = {
        "kdlite": version("kdlite"),
        "keras": keras.version(),
        "tensorflow": version("tensorflow"),
        "model": model.name,
        "model_fingerprint": model_fingerprint(model),
        "quantization": settings.recipe.name,
        "io": settings.io,
    }
    if settings.engine == "aeq":
        origin["ai_edge_quantizer"] = version("ai-edge-quantizer")
    if kept:
        origin["overrides"] = dict(kept)
    if mean is not None:
        origin["normalisation_inside"] = {
            "mean": np.asarray(mean, np.float64).tolist(),
            "std": np.asarray(std, np.float64).tolist(),
        }
    if samples is not None:
        origin["calibration_samples"] = len(next(iter(samples.values())))
        origin["calibration_fingerprint"] = data_fingerprint(dict(samples))
    return origin
