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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from kdlite.compress.recipes import Recipe
from kdlite.in_place import check_target, put_in_place
from kdlite.lite._converter import ConversionError
from kdlite.lite.golden import golden_vectors
from kdlite.lite.labels import Labels, score_meaning
from kdlite.lite.metadata import write_metadata
from kdlite.lite.model_card import card_path, checked_accuracy, model_card
from kdlite.lite.op_versions import needed_runtime
from kdlite.lite.options import (
    check_limits,
    check_prose,
    checked_models,
    checked_options,
    checked_recipe,
)
from kdlite.lite.proof import Demands, Proof
from kdlite.lite.signatures import merged, of_signature
from kdlite.lite.targets import read_once
from kdlite.lite.tflite_reader import inspect
from kdlite.lite.tolerance import rule
from kdlite.lite.verification import VerificationError, VerificationReport
from kdlite.lite.verify import verify

__all__ = ["ConversionError", "ExportResult", "export"]

logger = logging.getLogger(__name__)


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
        card: Its model card, beside it.
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
    card: Path

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
            "card": str(self.card),
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
    model: keras.Model | Mapping[str, keras.Model],
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
    on random values (of a quantization-aware model from what each input had in
    training), with XNNPACK, with LiteRT's own kernels and with several threads.
    What must hold:

    - float32: no difference beyond 1e-4 of the output's largest value.
    - A quantization-aware model: at least 99 % of the output values within one
      quantization step.
    - Any other recipe: no NaN, and an error (root mean square) of at most two
      quantization steps or, if that is more, `Recipe.least_snr_db` below how much the
      output varies: 11 dB with 8-bit weights. Good models are at 20 to 40 dB; the limit
      tells those that say nothing any more, as after calibration with wrong units.
      Two steps do not suffice where a step is wider than what the samples differ by, as
      behind an offset: 3 dB of that must be left. Nor do the decibels where outliers
      have them: 3 dB must be left on the samples without any.
    - With labels: not half is lost of what the model is better by than one answer for
      all samples; a loss of 5 % of that is a warning.

    Equal arguments give equal bytes, in any process.

    Beside the file its model card is written, `MODEL_CARD.md`, or, where that is the
    card of another file, `<name>.MODEL_CARD.md`: what it is, how good, what was checked
    and how to make it again. A card that is not of this file is never touched.

    Args:
        model: A trained model: Functional, Sequential, or subclassed with one input.
            Mixed precision is converted as float32. Logits or probabilities: its
            outputs are the file's. For a file with several signatures, a model by name,
            such as `{"classify": model, "embed": embedder}`: weights of layers that
            they share are in the file once. `calibration_data`, `verify_data`,
            `labels`, `mean`, `std`, `input_range` and `overrides` are then for all of
            them, or mappings by these names; outputs are called "classify/scores".
        path: The file to write.
        quantization: `"float32"`, `"float16"`, `"weight_only"`, `"dynamic"`, `"int8"`,
            `"int16x8"` or `"int4"`: `kdlite.compress.recipe` says what each means. For
            the last three there is `calibration_data`; or `model` comes from
            `kdlite.quantize_aware` with the same recipe.
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
            found, the noisiest first. Or what it must reach besides,
            `{"top1_agreement": 0.99}` or `{"max_drop_points": 0.5}`, as
            `VerificationReport.require` takes it. Some ten conversions.
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
    check_prose(
        path=path.name,  # the model card names it
        description=description,
        author=author,
        license=license,
        intended_use=intended_use,
    )
    check_target(path, overwrite)
    card_path(path)
    accuracy = checked_accuracy(accuracy)
    demands = Demands(
        file=path.name,
        recipe=recipe,
        engine=engine,
        io=io,
        min_runtime=min_runtime,
        float_ops=float_ops,
        auto_mixed=auto_mixed,
        batch_size=int(batch_size),
        dynamic_shape=dynamic_shape,
        select_tf_ops=allow_select_tf_ops,
        time_limit_s=time_limit_s,
        memory_limit_bytes=memory_limit_bytes,
    )
    models = checked_models(model)
    names = list(models) if isinstance(model, Mapping) else []
    several = len(models) > 1
    given = {
        "calibration_data": read_once(calibration_data) if names else calibration_data,
        "verify_data": read_once(verify_data) if names else verify_data,
        "labels": labels,
        "mean": mean,
        "std": std,
        "input_range": input_range,
        "overrides": overrides,
    }
    # All that can be found wrong is, before the first is converted.
    proofs: dict[str, Proof] = {}
    for name, each in models.items():
        its = {key: of_signature(value, name, names) for key, value in given.items()}
        proofs[name] = Proof(each, demands, **its)
    made = {name: proof.run() for name, proof in proofs.items()}
    origins = {name: proofs[name].provenance(made[name]) for name in made}
    (first, proof), *_ = proofs.items()
    blob, content, report = made[first].blob, made[first].content, made[first].report
    origin, kept = origins[first], dict(made[first].kept)
    if names:
        blob = merged({name: proven.blob for name, proven in made.items()})
        content = inspect(blob)
        kept = {f"{n}/{k}": v for n, p in made.items() for k, v in p.kept.items()}
        origin = {
            "signatures": origins,
            **{key: origin[key] for key in ("kdlite", "keras", "tensorflow")},
            "quantization": recipe.name,
            "io": io,
        }
        if not content.flex_ops:
            report = verify(
                blob,
                {name: each.serving for name, each in proofs.items()},
                {name: each.samples for name, each in proofs.items()},
            )
            held = [replace(p.tolerance, signature=n) for n, p in proofs.items()]
            report = replace(report, file=path.name, tolerances=tuple(held))
            wrong = [
                p for n, each in proofs.items() for p in each.problems(report.of(n))
            ]
            if wrong:
                raise VerificationError(report, wrong)
    if not report.samples:
        warnings.warn(
            f"{path.name} was not run against the Keras model: it needs TensorFlow's "
            f"own operations ({', '.join(sorted({o.name for o in content.flex_ops}))}),"
            " which no Python package for this version runs in a .tflite. Compare the "
            "two on a phone.",
            stacklevel=2,
        )
    for text in report.cautions:
        warnings.warn(
            f"A file should be as good as its model. Received: {path.name}, of which "
            f"{text}. Keep layers in float (`overrides`, or auto_mixed="
            '{"max_drop_points": 1.0}), give more calibration data, or train with '
            "`quantize_aware`.",
            stacklevel=2,
        )
    meanings = {
        name: score_meaning(each.model) if of_signature(labels, name, names) else ""
        for name, each in proofs.items()
    }
    ranges = {name: each.image_range for name, each in proofs.items()}
    blob = write_metadata(
        blob,
        name=proof.model.name,
        description=description,
        author=author,
        license=license,
        labels=labels if several else of_signature(labels, first, names),
        score_meaning=meanings if several else meanings[first],
        input_range=ranges if several else ranges[first],
        provenance={
            **origin,
            "golden": (
                golden_vectors(blob, proof.image_range) if report.samples else None
            ),
        },
    )
    card = model_card(
        path.name,
        blob,
        report,
        rule=" Or: ".join({rule(recipe, each.trained): 0 for each in proofs.values()}),
        intended_use=intended_use,
        accuracy=accuracy,
    )
    place = card_path(path)
    put_in_place(path, blob, overwrite, {place: card.encode()})
    logger.info("wrote %s, %d bytes", path, len(blob))
    return ExportResult(
        path=path,
        quantization=recipe.name,
        io=io,
        size_bytes=len(blob),
        min_runtime=needed_runtime(content).release,
        ops=content.ops,
        inputs=content.all_inputs,
        outputs=content.all_outputs,
        overrides=kept,
        verification=report,
        card=place,
    )
