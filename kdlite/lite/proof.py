"""From one Keras model to the bytes of a `.tflite` that was run against it.

The converter is trusted with nothing. Its input is checked before, since it turns bad
calibration data into float files without a word. What it makes is looked into and run
against the Keras model, and made again with some layers in float where that was asked
for and is needed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import keras
import numpy as np

from kdlite.compress.qat import float_layers, trained_bits
from kdlite.compress.recipes import RECIPES, Recipe
from kdlite.fingerprint import data_fingerprint, model_fingerprint
from kdlite.lite._converter import ConversionError
from kdlite.lite.calibration import (
    FEW_SAMPLES,
    MOST_SAMPLES,
    InputSpec,
    check_pixels,
    check_scale,
    load_samples,
    observed_range,
    random_samples,
    read_folder,
    with_shapes,
)
from kdlite.lite.conversion import Conversion, Settings
from kdlite.lite.labels import Labels, check_counts, check_texts, class_count
from kdlite.lite.layer_errors import (
    LayerError,
    layer_errors,
    noisiest,
    trained_layer_errors,
)
from kdlite.lite.layer_names import check_layer_names, layers_of, places
from kdlite.lite.mixed import smallest_set
from kdlite.lite.op_versions import needed_runtime
from kdlite.lite.options import (
    check_quantization,
    checked_auto_mixed,
    checked_engine,
    checked_overrides,
    release,
)
from kdlite.lite.output_report import check_numbers
from kdlite.lite.preflight import check_layers, check_weights
from kdlite.lite.serving import ServingModel, serve
from kdlite.lite.targets import read_once
from kdlite.lite.tflite_file import Op, TFLiteFile
from kdlite.lite.tflite_reader import inspect
from kdlite.lite.tolerance import Tolerance
from kdlite.lite.verification import VerificationError, VerificationReport
from kdlite.lite.verify import verify

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_RANDOM_SAMPLES = 64
# How many a model is run on that no file could be made of.
_FEW = 4
# Converters give a range of one value a step of 1e-8 and less.
_NO_STEP = 1e-7


@dataclass(frozen=True)
class Demands:
    """What a file is to be, whatever model is in it.

    Attributes:
        file: Its name, for messages and reports.
        recipe: How it is quantized.
        engine: What quantizes it; None for what the recipe prefers.
        io: Dtype of its float inputs and outputs.
        min_runtime: The oldest TFLite runtime that it must work on.
        float_ops: Operations of an integer file that may compute in float.
        auto_mixed: As `export` takes it.
        batch_size: How many samples a run takes.
        dynamic_shape: Whether lengths that the model leaves open stay open.
        select_tf_ops: Whether operations may be TensorFlow's own.
        time_limit_s: Seconds that the converter may take.
        memory_limit_bytes: Memory that the converter may take.
    """

    file: str
    recipe: Recipe
    engine: str | None
    io: str
    min_runtime: str
    float_ops: frozenset[str]
    auto_mixed: bool | Mapping[str, float]
    batch_size: int
    dynamic_shape: bool
    select_tf_ops: bool
    time_limit_s: float
    memory_limit_bytes: float | None


@dataclass(frozen=True)
class Proven:
    """A file that does what its model does.

    Attributes:
        blob: Its bytes, as the converter made them.
        content: What is inside.
        report: How it compares with the model.
        kept: By layer "float16" or "float32", for those more exact than the recipe.
    """

    blob: bytes
    content: TFLiteFile
    report: VerificationReport
    kept: Mapping[str, str]


class Proof:
    """One model on its way to a file that is proven.

    Args:
        model: As `export` takes it, like all else that follows.
        demands: What its file is to be.
        calibration_data: Samples that ranges are measured on.
        verify_data: Samples to compare on.
        labels: Class names.
        mean: Of normalisation inside the file.
        std: Goes with `mean`.
        input_range: What the image inputs take.
        overrides: Layers by name or pattern that are to be more exact.

    Attributes:
        model: The model.
        serving: The model as the file has it.
        trained: Whether it is quantization-aware.
        image_range: The range of the image inputs, or of the only input: as asked, else
            as the samples look; None if unknown.
        samples: What to compare on, with targets where there are some.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If one breaks a rule.
        ConversionError: If a layer is known not to become what is asked for.
    """

    def __init__(
        self,
        model: keras.Model,
        demands: Demands,
        *,
        calibration_data: Any,
        verify_data: Any,
        labels: Labels | None,
        mean: Any,
        std: Any,
        input_range: Any,
        overrides: Any,
    ) -> None:
        recipe = demands.recipe
        if isinstance(getattr(model, "student", None), keras.Model):
            raise TypeError(
                "`model` must be the model that the file is to hold. Received: "
                f"{type(model).__name__} {model.name!r}, which trains one. Give its "
                ".student."
            )
        check_texts(labels)
        if isinstance(model, keras.Model):
            check_layer_names(model)
        serving = serve(model, mean=mean, std=std, input_range=input_range)
        specs = serving.input_specs
        self.model, self.serving = model, serving
        self.trained = trained = serving.quantize_aware
        calibrated = recipe.integer and not trained
        bits = trained_bits(serving.model) if trained else None
        check_quantization(model.name, recipe, bits, calibration_data)
        engine = checked_engine(demands.engine, recipe, trained, demands.io)
        self._asked = checked_overrides(overrides, model, recipe, trained, engine)
        self._wanted = checked_auto_mixed(demands.auto_mixed, recipe, trained, engine)
        if "max_drop_points" in self._wanted and verify_data is None:
            raise ValueError(
                "`auto_mixed` can hold a file to points of top-1 only where the right "
                "classes are known. Received: max_drop_points without verify_data. "
                "Give verify_data=(x, y)."
            )
        check_weights(model, recipe, self._asked)
        if not trained:
            check_layers(serving.model, recipe, engine, demands.float_ops, self._asked)
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
                    f"Received: {count} for input {specs[0].name!r}. The ranges found "
                    "in so few hold badly for others: give more.",
                    stacklevel=3,
                )
            if not demands.dynamic_shape:
                specs = with_shapes(specs, samples)
        compared = samples
        if verify_data is not None:
            verify_data = read_folder(
                *(read_once(verify_data), specs, "verify_data"),
                None if isinstance(labels, Mapping) else labels,
                class_count(serving.model),
            )
            compared = load_samples(verify_data, specs, role="verify_data")
        known = specs
        for found in filter(None, (samples, compared)):
            known = with_shapes(known, found)
        _check_shapes_known(known, demands.dynamic_shape)
        self.image_range = serving.image_range
        if self.image_range is None and compared is not None:
            self.image_range = observed_range(compared, known)
        if compared is None:
            ranged = serving.with_ranges(known)
            compared = random_samples(ranged, _RANDOM_SAMPLES, ends=trained)
        if calibrated and samples is not None:
            check_scale(serving.model, samples, compared)
        self.samples = compared if verify_data is None else verify_data
        self._compared = compared
        self._demands = demands
        self._labels = labels
        self._normalisation = (mean, std)
        self._specs = specs if demands.dynamic_shape else known
        self._measured = samples if calibrated else None
        self._settings = Settings(
            recipe=recipe,
            engine=engine,
            io=demands.io,
            batch_size=demands.batch_size,
            # Dense kernels by channel: TFLite itself computes these right in int8 long
            # since (2.12 was tried), but runtimes made of it did not before 2.17
            # (tflite-micro, pull requests 2602 and 2673), nor did any where activations
            # are rounded in each run; and kernels of 4 bits not before 2.21. A
            # quantization-aware model has learned the levels of each channel, and would
            # not be itself with those of the whole kernel; and kernels that become
            # floats again are no matter to what computes with them.
            per_channel_dense=trained
            or recipe.dequantized
            or release(demands.min_runtime)
            >= ((2, 21) if recipe.weight_bits == 4 else (2, 17)),
            float_ops=bool(demands.float_ops),
            select_tf_ops=demands.select_tf_ops,
            time_limit_s=demands.time_limit_s,
            memory_limit_bytes=demands.memory_limit_bytes,
        )

    def run(self) -> Proven:
        """Converts the model and compares it with the file.

        Raises:
            ConversionError: If the converter makes no file, or not what was asked for.
            VerificationError: If the file does not do what the model does.
        """
        with Conversion(
            self.serving, self._specs, self._settings, self._measured
        ) as conversion:
            check_counts(self._labels, conversion.outputs)
            try:
                made, wrong = self._attempt(conversion, self._asked)
            except (ConversionError, ValueError):  # of no file, or of a broken one
                self._check_numbers()
                raise
            if not wrong:
                return made
            errors: tuple[LayerError, ...] = ()
            if self.trained:
                errors = trained_layer_errors(made.blob, self._compared, self.serving)
            elif self._settings.recipe.quantized:
                errors = layer_errors(
                    made.blob, conversion.floats(), self._compared, self.serving.model
                )
            tried: dict[tuple[str, ...], Proven] = {}

            def holds(layers: Sequence[str]) -> bool:
                kept = self._with(self._asked, layers)
                tried[tuple(layers)], wrong = self._attempt(conversion, kept)
                return not wrong

            chosen = None
            if self._demands.auto_mixed:
                chosen = smallest_set(noisiest(errors), holds)
            if chosen is None:
                raise VerificationError(made.report, wrong, errors)
            return tried[tuple(chosen)]

    def _check_numbers(self) -> None:
        """Says if the model is the reason: of NaN converters say what is no help."""
        few = {name: array[:_FEW] for name, array in self._compared.items()}
        for name, values in self.serving(few, training=False).items():
            check_numbers(name, np.asarray(values))

    @property
    def tolerance(self) -> Tolerance:
        """What its file is held to."""
        return Tolerance(self._settings.recipe, self.trained)

    def problems(self, report: VerificationReport) -> list[str]:
        """Says in what a file is not what it must be; nothing if it is."""
        try:
            report.require(**self._wanted)
        except VerificationError as err:
            return list(err.problems)
        return []

    def provenance(self, made: Proven) -> dict[str, Any]:
        """Where a file comes from; nothing that differs between equal exports.

        Args:
            made: The file.
        """
        settings = self._settings
        origin: dict[str, Any] = {
            "kdlite": version("kdlite"),
            "keras": keras.version(),
            "tensorflow": version("tensorflow"),
            "model": self.model.name,
            "model_fingerprint": model_fingerprint(self.model),
            "quantization": settings.recipe.name,
            "io": settings.io,
        }
        if settings.engine == "aeq":
            origin["ai_edge_quantizer"] = version("ai-edge-quantizer")
        if made.report.samples:
            held = self.tolerance.to_dict()
            origin["checked"] = {"samples": made.report.samples, **held}
        if made.kept:
            origin["overrides"] = dict(made.kept)
        mean, std = self._normalisation
        if mean is not None:
            origin["normalisation_inside"] = {
                "mean": np.asarray(mean, np.float64).tolist(),
                "std": np.asarray(std, np.float64).tolist(),
            }
        if self._measured is not None:
            origin["calibration_samples"] = len(next(iter(self._measured.values())))
            origin["calibration_fingerprint"] = data_fingerprint(dict(self._measured))
        return origin

    def _with(self, kept: Mapping[str, str], layers: Iterable[str]) -> dict[str, str]:
        kind = "float16" if self._settings.engine == "aeq" else "float32"
        return {**kept, **dict.fromkeys(layers, kind)}

    def _dead(self, layers: Sequence[str], err: ValueError) -> str:
        """Says that layers have one value, of which LiteRT can run no file."""
        name, recipe = self.serving.name, self._settings.recipe
        others = ", ".join(map(repr, layers[1:]))
        behind = f" (and behind it {others})" if others else ""
        words = str(err).partition("LiteRT says: ")[2] or str(err)
        mixed = self._settings.engine == "aeq" or recipe.activation_bits == 8
        return (
            f"{recipe.name} needs values that differ, as a range of one value has no "
            f"steps. Received: model={name!r}, of which layer {layers[0]!r}{behind} "
            "gives one value for all samples of `calibration_data`. Take it out or "
            "train it again, as a ReLU whose inputs are all below 0 is dead; give "
            "samples for which it is not constant; or "
            + (
                f"keep it in float: overrides={self._with({}, layers[:1])!r}."
                if mixed
                else "use quantization='dynamic'."
            )
            + f" LiteRT cannot run the file: {words}"
        )

    def _attempt(
        self, conversion: Conversion, kept: Mapping[str, str]
    ) -> tuple[Proven, list[str]]:
        """Makes a file; says with it what is wrong."""
        demands = self._demands
        blob = conversion.run(kept)
        content = inspect(blob)
        if demands.auto_mixed and self._settings.engine == "aeq":
            # What has no integer kernels is in float whatever else is, or no set of
            # layers would do.
            layers = layers_of(content, self.serving.model)
            left = [
                layer
                for op in _left_in_float(content, layers, demands.float_ops, kept)
                for layer in layers[op][:1]
            ]
            if self._settings.recipe.integer and left:
                return self._attempt(conversion, self._with(kept, left))
        _check_content(
            self.serving, self._settings, self._specs, content, demands.float_ops, kept
        )
        _check_runtime(self.model.name, content, demands.min_runtime)
        if content.flex_ops:
            return Proven(blob, content, _not_run(demands.file, content), kept), []
        # By its final name, under which it is not in place yet.
        try:
            report = verify(blob, self.serving, self.samples)
        except ValueError as err:
            dead = _constant_layers(content, self.serving.model)
            if not (self._settings.recipe.integer and dead):
                raise
            more = [layer for layer in dead if layer not in kept]
            if demands.auto_mixed and more:
                return self._attempt(conversion, self._with(kept, more[:1]))
            raise ConversionError(self._dead(dead, err)) from err
        report = replace(report, file=demands.file, tolerances=(self.tolerance,))
        return Proven(blob, content, report, kept), self.problems(report)


def _not_run(file: str, content: TFLiteFile) -> VerificationReport:
    return VerificationReport(
        file=file,
        size_bytes=content.size_bytes,
        samples=0,
        outputs=(),
        float_ops=tuple(map(str, content.float_ops)),
        quantization=content.quantization,
    )


def _check_shapes_known(specs: Sequence[InputSpec], stay_open: bool) -> None:
    for spec in specs:
        if None in spec.shape and stay_open:
            raise ValueError(
                "Where lengths stay open, there must be samples of some length to "
                f"compare on. Received: dynamic_shape=True for input {spec.name!r} of "
                f"{spec.shape}, and no samples. Fix: pass `verify_data`; the file "
                "takes other lengths all the same."
            )
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
    where = places(content, serving.model)

    def text(op: Op) -> str:
        return f"{op.name} ({where[op]})" if where[op] else str(op)

    def listed(ops: Iterable[Op]) -> str:
        return ", ".join(sorted(set(map(text, ops))))

    if content.flex_ops and not settings.select_tf_ops:
        raise ConversionError(
            "Every operation must be a built-in one of TFLite. Received: "
            f"model={name!r}, in which {listed(content.flex_ops)} are not. Replace "
            "the layers that use them, or pass allow_select_tf_ops=True."
        )
    if recipe.integer:
        # Of a quantization-aware model, those that it was made with.
        kept = {*kept, *float_layers(serving.model)}
        left = _left_in_float(content, layers, allowed, kept)
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
    if io == "uint8" and (same := _given_back(content, integers)):
        raise ConversionError(
            "With io='uint8' each output must be computed, as TensorFlow's converter "
            f"makes a wrong file of others. Received: model={name!r}, whose output "
            f"{same[0]!r} is its input {same[1]!r} as it is. Leave it out, as an app "
            "has it already, or use io='float32'."
        )
    for tensor in (*content.inputs, *content.outputs):
        if tensor.dtype != io and tensor.name not in integers:
            if tensor in content.outputs and tensor.dtype.startswith(("int", "bool")):
                continue  # such as the index of the largest
            raise ConversionError(
                f"Inputs and outputs must be {io}, as `io` asks. Received: "
                f"{tensor.dtype} for {tensor.name!r} of model={name!r}. Use "
                "io='float32'."
            )


def _given_back(
    content: TFLiteFile, integers: Collection[str]
) -> tuple[str, str] | None:
    """Returns an output that is an input, by their names, if there is one."""
    inputs = {t.index: t.name for t in content.inputs if t.name not in integers}
    made_by = {op.outputs[0]: op for op in content.ops if op.outputs}
    for tensor in content.outputs:
        op = made_by.get(tensor.index)
        # Of a type other than the file's, as the converter leaves it.
        first = op.inputs[0] if op and op.name == "QUANTIZE" else tensor.index
        for index in (tensor.index, first):
            if index in inputs:
                return tensor.name, inputs[index]
    return None


def _constant_layers(content: TFLiteFile, model: keras.Model) -> list[str]:
    """Returns the layers whose range was one value, in the order that they run."""
    layers = layers_of(content, model)
    return list(
        dict.fromkeys(
            layers[op][0]
            for op in content.ops
            if op.subgraph == 0
            and op.outputs
            and layers[op]
            and (content.tensors[op.outputs[0]].scale or 1.0) < _NO_STEP
        )
    )


def _left_in_float(
    content: TFLiteFile,
    layers: Mapping[Op, tuple[str, ...]],
    allowed: Collection[str],
    kept: Collection[str],
) -> list[Op]:
    """Returns the operations that compute in float and should not."""
    return [
        op
        for op in content.float_ops
        if op.name not in allowed and set(kept).isdisjoint(layers[op])
    ]


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
