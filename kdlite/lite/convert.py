"""From a Keras model to a proven `.tflite`, in one call.

The TFLite converter is trusted with nothing. It runs in a process of its own
(`_converter.py`, the only file that knows it), since it can crash, hang and run out of
memory. Its input is checked before, since it turns bad calibration data into float
files without a word. What it makes is looked into and run against the Keras model,
before it appears under the name that was asked for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.fingerprint import data_fingerprint, model_fingerprint
from kdlite.lite._converter import ConversionError, Converter
from kdlite.lite.calibration import (
    FEW_SAMPLES,
    MOST_SAMPLES,
    InputSpec,
    check_pixels,
    load_samples,
    observed_range,
    random_samples,
    with_shapes,
)
from kdlite.lite.golden import golden_vectors
from kdlite.lite.labels import Labels, check_counts, check_texts, score_meaning
from kdlite.lite.metadata import read_metadata, write_metadata
from kdlite.lite.serving import ServingModel, serve
from kdlite.lite.targets import read_once
from kdlite.lite.tflite_file import TFLiteFile, inspect
from kdlite.lite.verify import VerificationError, VerificationReport, verify

__all__ = ["ConversionError", "ExportResult", "export"]

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_QUANTIZATIONS = ("float32", "int8")
_IO = ("float32", "int8", "uint8")
_RANDOM_SAMPLES = 64
_FLOAT_TOLERANCE = 1e-4
_FLOAT_FLOOR = 1e-6
_WITHIN_ONE_STEP = 0.99
_NOISE_RATIO = 10 ** (10 / 20)  # 10 dB


@dataclass(frozen=True)
class ExportResult:
    """A `.tflite` that is in place and does what the Keras model does.

    Attributes:
        path: The file.
        quantization: "float32" or "int8".
        io: The dtype of its float inputs and outputs.
        size_bytes: Its size.
        ops: Its operations in order, as `kdlite.inspect` has them.
        inputs: Its inputs, likewise.
        outputs: Its outputs, likewise.
        verification: How it compares with the Keras model.
    """

    path: Path
    quantization: str
    io: str
    size_bytes: int
    ops: tuple[Any, ...]
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    verification: VerificationReport

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "path": str(self.path),
            "quantization": self.quantization,
            "io": self.io,
            "size_bytes": self.size_bytes,
            "ops": [op.to_dict() for op in self.ops],
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "verification": self.verification.to_dict(),
        }

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.quantization}, {self.size_bytes:,} bytes, "
            f"{len(self.ops)} ops, {self.io} in and out\n{self.verification}"
        )


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    quantization: str = "float32",
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
    overwrite: bool = False,
    time_limit_s: float = 600.0,
) -> ExportResult:
    """Converts a Keras model to a `.tflite` that is checked against it.

    The file has batch 1, inputs and outputs by the names that they have in Keras, and
    no operation that needs more than the built-in ones. It is run in LiteRT before this
    returns, against the Keras model on `verify_data`, else on `calibration_data`, else
    on random values. What must hold:

    - float32: no difference beyond 1e-4 of the output's largest value.
    - int8 of a quantization-aware model: at least 99 % of the output values within one
      quantization step.
    - int8 by calibration: no NaN, and an error (root mean square) of at most two
      quantization steps or, if that is more, a third of how much the output varies
      (10 dB of signal to noise). Good models are at 20 to 40 dB; the limit tells those
      that say nothing any more, as after calibration with wrong units.

    Equal arguments give equal bytes, in any process.

    Args:
        model: A trained model: Functional, Sequential, or subclassed with one input.
            Mixed precision is converted as float32. Logits or probabilities: its
            outputs are the file's.
        path: The file to write.
        quantization: `"float32"` or `"int8"`. For int8 either `model` comes from
            `kdlite.quantize_aware`, or there is `calibration_data`.
        calibration_data: Samples, typical and at least 100, at most 1000 of which are
            used: an array `(samples, ...)`, a mapping from input name to array,
            `(x, y)`, a `tf.data.Dataset`, an iterable of batches or a function that
            returns one, or the path of an `.npz`. In the units of the file's input.
        labels: Class names in the order of the output, or such by output name.
        input_range: `(lo, hi)`, the values that the file's image inputs, or else its
            only input, take. Calibration data must lie in it; an int8 file spreads its
            256 levels over it, so that with `(0.0, 255.0)` a level is a pixel value.
            Where it is not given, the file's metadata say what the samples look like:
            0..255, 0..1 or -1..1.
        mean: What the model was trained with: its images were `(pixels - mean) / std`.
            The file then takes the pixels. A number, or one a channel.
        std: Goes with `mean`.
        io: Dtype of the file's float inputs and outputs: `"float32"`, or for int8 files
            also `"int8"` or `"uint8"`.
        verify_data: Samples to compare on, in the forms of `calibration_data`; with
            labels, `(x, y)`, the task's metric is reported too.
        min_runtime: The oldest TFLite runtime that the file must work on.
        allow_float_ops: Operations of an int8 file that may compute in float, such as
            `("NEG",)`.
        overwrite: Whether a file at `path` may be replaced.
        time_limit_s: Seconds that the converter may take.

    Returns:
        What was written, and how it compares with the model.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument breaks a rule; found before anything is converted.
        FileExistsError: If there is a file and `overwrite` is False.
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written.
        ConversionError: If the converter fails, crashes or takes too long, or an
            operation of an int8 file is left in float.
        VerificationError: If the file does not do what the model does. In no such case
            is a file left behind, or one that was there changed.

    Example:
        ``export(student, "student.tflite", "int8", calibration_data=x_train[:500],
        labels=names, input_range=(0.0, 255.0), verify_data=(x_test, y_test))``
    """
    path = Path(path)
    float_ops = _checked_options(quantization, io, min_runtime, allow_float_ops)
    _check_target(path, overwrite, time_limit_s)
    if isinstance(getattr(model, "student", None), keras.Model):
        raise TypeError(
            "`model` must be the model that the file is to hold. Received: "
            f"{type(model).__name__} {model.name!r}, which trains one. Give its "
            ".student."
        )
    check_texts(labels)
    serving = serve(model, mean=mean, std=std, input_range=input_range)
    specs = serving.input_specs
    calibrated = quantization == "int8" and not serving.quantize_aware
    _check_quantization(model.name, quantization, serving, calibration_data)
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
        specs = with_shapes(specs, samples)
    compared = samples
    if verify_data is not None:
        verify_data = read_once(verify_data)
        compared = load_samples(verify_data, specs, role="verify_data")
        specs = with_shapes(specs, compared)
    _check_shapes_known(specs)
    image_range = serving.image_range
    if image_range is None and compared is not None:
        image_range = observed_range(compared, specs)
    if compared is None:
        compared = random_samples(serving.with_ranges(specs), _RANDOM_SAMPLES)

    with (
        tempfile.TemporaryDirectory(prefix="kdlite-export-") as name,
        Converter(folder := Path(name)) as converter,
    ):
        outputs = _save(serving, folder / "saved_model", specs)
        check_counts(labels, outputs)
        if calibrated and samples is not None:
            # By number: `savez` would take some names for its own arguments.
            np.savez(folder / "calibration.npz", *samples.values())
        options = {
            "inputs": list(samples or {}),
            "quantization": quantization,
            "io": io,
            "calibrated": calibrated,
            "float_ops": bool(float_ops),
            # Dense kernels by channel: TFLite itself computes these right in int8 long
            # since (2.14 was tried), but runtimes made of it did not before 2.17
            # (tflite-micro, pull requests 2602 and 2673). A quantization-aware model
            # has learned the levels of each channel, and would not be itself with
            # those of the whole kernel.
            "per_channel_dense": not calibrated or _release(min_runtime) >= (2, 17),
        }
        (folder / "options.json").write_text(json.dumps(options))
        blob = converter.run(model.name, time_limit_s)
    content = inspect(blob)
    _check_content(model.name, content, quantization, io, float_ops, specs)
    blob = write_metadata(
        blob,
        name=model.name,
        labels=labels,
        score_meaning=score_meaning(model) if labels else "",
        input_range=image_range,
        provenance={
            **_provenance(
                model, quantization, io, samples if calibrated else None, mean, std
            ),
            "golden": golden_vectors(blob, image_range),
        },
    )
    with _put_in_place(path, blob, overwrite) as file:
        _check_runtime(model.name, file, min_runtime)
        data = compared if verify_data is None else verify_data
        # By its final name: until it has passed, the file has another.
        report = replace(verify(file, serving, data), file=path.name)
        if problems := _problems(report, quantization, calibrated):
            raise VerificationError(report, problems)
    logger.info("wrote %s, %d bytes", path, len(blob))
    return ExportResult(
        path=path,
        quantization=quantization,
        io=io,
        size_bytes=len(blob),
        ops=content.ops,
        inputs=content.inputs,
        outputs=content.outputs,
        verification=report,
    )


def _checked_options(
    quantization: Any, io: Any, min_runtime: Any, allow_float_ops: Any
) -> frozenset[str]:
    """Checks the plain options; returns the names of the allowed float operations."""
    if quantization not in _QUANTIZATIONS:
        raise ValueError(
            f"`quantization` must be one of {', '.join(map(repr, _QUANTIZATIONS))}. "
            f"Received: quantization={quantization!r}. Use 'int8' for the smallest "
            "file."
        )
    if io not in _IO:
        raise ValueError(
            f"`io` must be one of {', '.join(map(repr, _IO))}. Received: io={io!r}. "
            "Use 'float32' for values as the Keras model has them."
        )
    if quantization == "float32" and io != "float32":
        raise ValueError(
            "A float32 file has float32 inputs and outputs. Received: "
            f"io={io!r} with quantization='float32'. Use io='float32', or "
            "quantization='int8'."
        )
    if not isinstance(min_runtime, str) or not re.match(r"\d+\.\d+", min_runtime):
        raise ValueError(
            "`min_runtime` must be a release of TFLite. Received: "
            f"min_runtime={min_runtime!r}. Give for example '2.16.1'."
        )
    if isinstance(allow_float_ops, str):
        raise TypeError(
            "`allow_float_ops` must be a collection of names. Received: "
            f"allow_float_ops={allow_float_ops!r}. Write ({allow_float_ops!r},)."
        )
    return frozenset(str(name).upper() for name in allow_float_ops)


def _release(text: str) -> tuple[int, ...]:
    """Returns `"2.16.1"` as `(2, 16, 1)`."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _check_target(path: Path, overwrite: bool, time_limit_s: float) -> None:
    if not time_limit_s > 0:
        raise ValueError(
            "`time_limit_s` must be above 0. Received: "
            f"time_limit_s={time_limit_s!r}. Most models convert in 10 seconds."
        )
    if path.is_dir():
        raise ValueError(
            f"`path` must be a file. Received: {str(path)!r}, a folder. Give it a name "
            "such as 'model.tflite'."
        )
    _check_free(path, overwrite)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder of `path` must exist. Received: {str(path)!r}. Make "
            f"{str(path.parent)!r} first."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"The folder of `path` must be writable. Received: {str(path)!r}. Choose "
            "another, or change its permissions."
        )


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"`path` must not exist. Received: {str(path)!r}. Choose another name, or "
            "pass overwrite=True to replace it."
        )


def _check_quantization(
    name: str, quantization: str, serving: ServingModel, calibration_data: Any
) -> None:
    if quantization == "float32" and serving.quantize_aware:
        raise ValueError(
            "A quantization-aware model is made for int8. Received: "
            f"model={name!r} with quantization='float32'. Use quantization='int8', or "
            "export the student that it was made from."
        )
    if quantization == "int8" and not serving.quantize_aware:
        if calibration_data is None:
            raise ValueError(
                "int8 needs the ranges of all activations. Received: "
                f"calibration_data=None and the plain model {name!r}. Pass "
                "`calibration_data`, typical samples, or train the model that "
                "kdlite.quantize_aware(model) returns, and export that."
            )


def _check_shapes_known(specs: Sequence[InputSpec]) -> None:
    for spec in specs:
        if None in spec.shape:
            raise ValueError(
                "The shape of every input must be known, but for the batch: on a phone "
                f"it cannot change. Received: {spec.shape} for input {spec.name!r}. "
                "Pass `verify_data` of the shape that the file is to have."
            )


def _save(
    serving: ServingModel, folder: Path, specs: Sequence[InputSpec]
) -> dict[str, tuple[int, ...]]:
    converted = serving.for_conversion()
    try:
        return converted.save_for_conversion(folder, specs)
    except Exception as err:  # whatever a model's own code raises when traced
        raise ConversionError(
            "The model must run as a TensorFlow graph of batch 1. Received: "
            f"model={serving.name!r}, which raised {_in_one_line(err)} Keep what is "
            "not numbers, such as vocabularies, outside the model."
        ) from err


def _in_one_line(err: Exception) -> str:
    """Returns what an exception says, without what Keras and TensorFlow put around."""
    text = re.sub(r"\x1b\[\d*m", "", str(err))
    text = text.partition("Exception encountered when calling")[2] or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(err).__name__}: {' '.join(lines[:2])}"


def _check_content(
    name: str,
    content: TFLiteFile,
    quantization: str,
    io: str,
    allowed: frozenset[str],
    specs: Sequence[InputSpec],
) -> None:
    """Raises unless the file is what was asked for."""
    if content.flex_ops:
        raise ConversionError(
            "Every operation must be a built-in one of TFLite. Received: "
            f"model={name!r}, in which {_listed(content.flex_ops)} are not. Replace "
            "the layers that use them."
        )
    if quantization == "int8":
        left = [op for op in content.float_ops if op.name not in allowed]
        if left:
            raise ConversionError(
                "int8 means that every operation computes in integers. Received: "
                f"model={name!r}, of which stay in float: {_listed(left)}. Replace "
                "these layers, or allow it: allow_float_ops="
                f"{tuple(sorted({op.name for op in left}))!r}."
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


def _listed(ops: Iterable[Any]) -> str:
    return ", ".join(sorted({str(op) for op in ops}))


@contextlib.contextmanager
def _put_in_place(path: Path, blob: bytes, overwrite: bool) -> Iterator[Path]:
    """Yields a file beside `path` with the content; on success it becomes `path`."""
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        try:
            with open(beside, "xb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
        except OSError as err:
            raise OSError(
                f"`path` must be possible to write. Received: {str(path)!r}, "
                f"{len(blob):,} bytes ({err.strerror}). Make room, or choose another "
                "folder."
            ) from err
        yield beside
        # It may have come into being since the start.
        _check_free(path, overwrite)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def _check_runtime(name: str, file: Path, min_runtime: str) -> None:
    """Raises if the file says that it needs a newer runtime."""
    needed = read_metadata(file).min_runtime_version
    if _release(needed) > _release(min_runtime):
        raise ConversionError(
            f"The file must run on TFLite {min_runtime}, as `min_runtime` asks. "
            f"Received: model={name!r}, of which an operation needs {needed}. Ship "
            f"that runtime and pass min_runtime={needed!r}, or replace the layer."
        )


def _provenance(
    model: keras.Model,
    quantization: str,
    io: str,
    samples: Mapping[str, Array] | None,
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
        "quantization": quantization,
        "io": io,
    }
    if mean is not None:
        origin["normalisation_inside"] = {
            "mean": np.asarray(mean, np.float64).tolist(),
            "std": np.asarray(std, np.float64).tolist(),
        }
    if samples is not None:
        origin["calibration_samples"] = len(next(iter(samples.values())))
        origin["calibration_fingerprint"] = data_fingerprint(dict(samples))
    return origin


def _problems(
    report: VerificationReport, quantization: str, calibrated: bool
) -> list[str]:
    """Returns in what the file does not do what the model does; see `export`."""
    problems = []
    for output in report.outputs:
        step = output.step or 0.0
        if output.nan_count:
            problems.append(f"output {output.name!r} has {output.nan_count} NaN")
        elif quantization == "float32":
            # Sums in another order: 1e-6 of the largest value for each of many layers.
            limit = max(_FLOAT_TOLERANCE * output.largest_value, _FLOAT_FLOOR)
            if output.largest_difference > limit:
                problems.append(
                    f"output {output.name!r} differs by {output.largest_difference:.3g}"
                    f", more than {limit:.3g}"
                )
        elif calibrated:
            limit = max(2 * step, output.spread / _NOISE_RATIO)
            if output.rms_difference > limit:
                problems.append(
                    f"output {output.name!r} is off by {output.rms_difference:.3g} "
                    f"(root mean square), more than {limit:.3g}"
                )
        elif output.within_one_step < _WITHIN_ONE_STEP:
            problems.append(
                f"of output {output.name!r} only {output.within_one_step:.1%} are "
                f"within one quantization step, not {_WITHIN_ONE_STEP:.0%}"
            )
    return problems
