"""The model card beside a file: what it is, how good, how proven, how to make it again.

Written from the file itself, and from how it compared with its Keras model. Where
nothing is known the card says so: a gap that is named can be filled.

Reference:
    Mitchell et al., Model Cards for Model Reporting, 2019, arXiv:1810.03993.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlite.lite.file_report import FileReport, describe
from kdlite.lite.markdown import Ready, closed, code, escaped, table
from kdlite.lite.metadata_schema import TensorMetadata
from kdlite.lite.output_report import OutputReport
from kdlite.lite.tflite_file import TensorInfo
from kdlite.lite.verification import VerificationReport

_NAME = "MODEL_CARD.md"
_MOST_LABELS = 50
_UNKNOWN = "not stated"


def card_path(file: Path) -> Path:
    """Returns where the model card of a file is, or is to be.

    `MODEL_CARD.md` in the file's folder; where that is the card of another file, or
    anyone else's, `<file's stem>.MODEL_CARD.md`.

    Args:
        file: The `.tflite`.

    Raises:
        FileExistsError: If both are there, and neither is this file's.

    Example:
        >>> card_path(Path("no_such_folder", "student.tflite")).name
        'MODEL_CARD.md'
    """
    shared, own = file.with_name(_NAME), file.with_name(f"{file.stem}.{_NAME}")
    for path in (own, shared):
        if _is_card_of(path, file.name):
            return path
    for path in (shared, own):
        with contextlib.suppress(OSError):  # too long a name
            if not path.exists():
                return path
    raise FileExistsError(
        f"The model card of a file needs a place beside it. Received: {str(file)!r}, "
        f"where {shared.name} and {own.name} are of other files, or no file can be "
        "named so. Choose another folder "
        "or name, or move one away."
    )


def _is_card_of(path: Path, name: str) -> bool:
    try:
        if not path.is_file():
            return False  # a pipe would be waited for
        with path.open(encoding="utf-8") as file:
            return file.readline().rstrip("\r\n") == _first_line(name)
    except (OSError, UnicodeDecodeError):
        return False


def _first_line(name: str) -> str:
    return f"<!-- kdlite: the model card of {name} -->"


def checked_accuracy(accuracy: Any) -> dict[str, float]:
    """Returns what a card is to say of other models.

    Args:
        accuracy: A mapping from name to number, or None.

    Raises:
        TypeError: If it is no mapping.
        ValueError: If something in it is no finite number.

    Example:
        >>> checked_accuracy({"teacher": "good"})
        Traceback (most recent call last):
        ...
        ValueError: `accuracy` must give a finite number by name. Received: 'good' ...
    """
    if accuracy is None:
        return {}
    if not isinstance(accuracy, Mapping):
        raise TypeError(
            "`accuracy` must be a mapping from the name of a model to a number. "
            f"Received: accuracy={accuracy!r}. Give for example {{'teacher': 0.943}}."
        )
    for name, value in accuracy.items():
        number = isinstance(value, numbers.Real) and math.isfinite(value)
        if not number or isinstance(value, bool):
            raise ValueError(
                f"`accuracy` must give a finite number by name. Received: {value!r} "
                f"for {name!r}. Give for example {{'teacher': 0.943}}."
            )
    return {str(name): float(value) for name, value in accuracy.items()}


def model_card(
    name: str,
    blob: bytes,
    verification: VerificationReport,
    *,
    rule: str,
    intended_use: str = "",
    accuracy: Mapping[str, float] | None = None,
) -> str:
    """Writes the model card of a file, in Markdown; equal arguments give equal text.

    Args:
        name: The file's name.
        blob: Its bytes, metadata included.
        verification: How it compares with its Keras model.
        rule: What it had to keep, in words.
        intended_use: What it is for and what not, by the one who made it.
        accuracy: The task's metric of other models on the same samples, by name, such
            as `{"teacher": 0.943}`.

    Returns:
        The text.

    Example:
        ``model_card("student.tflite", blob, verify(blob, student, data), rule="...")``
    """
    report = describe(blob)
    about = report.metadata
    parts = [
        _first_line(name),
        f"# {escaped(about.name or name)}",
        escaped(about.description)
        or f"What it does is {_UNKNOWN} "
        "(`description=`, or `--description`, states it).",
        table(("", ""), _glance(name, report)),
        "## Intended use",
        closed(intended_use.strip())
        or f"{_UNKNOWN.capitalize()} (`intended_use=`, or `--intended-use`, states "
        "it).",
        "## Input",
        table(
            ("name", "dtype", "shape", "values"),
            [
                _tensor_row(tensor, told)
                for tensor, told in _paired(report.content.all_inputs, about.all_inputs)
            ],
        ),
        "## Output",
        table(
            ("name", "dtype", "shape", "values"),
            [
                _tensor_row(tensor, told)
                for tensor, told in _paired(
                    report.content.all_outputs, about.all_outputs
                )
            ],
        ),
        *_labels(about.all_outputs),
        "## How good it is",
        *_accuracy(verification, accuracy or {}),
        "## What was checked",
        *_checked(verification, rule),
        "## How to make it again",
        *_origin(name, blob, report),
    ]
    return "\n\n".join(parts) + "\n"


def _glance(name: str, report: FileReport) -> list[tuple[str, str]]:
    content, about = report.content, report.metadata
    origin = about.provenance or {}
    kept = origin.get("overrides")
    computes = content.quantization
    if kept:
        computes += ", with " + ", ".join(f"{k} in {v}" for k, v in kept.items())
    return [
        ("file", Ready(f"{code(name)}, {content.size_bytes:,} bytes")),
        ("author", about.author or _UNKNOWN),
        ("licence", about.license or _UNKNOWN),
        ("computes in", computes),
        ("numbers in its kernels and biases", f"{content.parameters:,}"),
        ("multiply-accumulates", f"{content.macs_text} a run"),
        ("memory for tensors", f"{report.arena_bytes:,} bytes"),
        (
            "runs on",
            f"TFLite {report.runtime.release or 'of a later release'} or newer",
        ),
    ]


def _paired(
    tensors: Sequence[TensorInfo], about: Sequence[TensorMetadata]
) -> list[tuple[TensorInfo, TensorMetadata]]:
    told = {tensor.name: tensor for tensor in about}
    return [(t, told.get(t.name, TensorMetadata())) for t in tensors]


def _tensor_row(tensor: TensorInfo, about: TensorMetadata) -> tuple[str, ...]:
    what = "" if about.content == "features" else about.content  # says nothing
    parts = [f"{about.color_space} {what}".strip(), about.description]
    if about.minimum and about.maximum:
        parts.append(f"from {_numbers(about.minimum)} to {_numbers(about.maximum)}")
    if about.mean and about.std:
        parts.append(
            f"8-bit pixels go in as (pixel - {_numbers(about.mean)}) / "
            f"{_numbers(about.std)}"
        )
    if tensor.scale is not None:
        parts.append(f"value = {tensor.scale:.6g} * (level - {tensor.zero_point})")
    shape = " x ".join("any" if n < 0 else str(n) for n in tensor.shape) or "a number"
    values = "; ".join(part for part in parts if part)
    return (tensor.name, tensor.dtype, shape, values)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _labels(outputs: Sequence[TensorMetadata]) -> list[str]:
    parts = []
    for output in outputs:
        if output.labels:
            few = ", ".join(map(escaped, output.labels[:_MOST_LABELS]))
            more = len(output.labels) - _MOST_LABELS
            parts.append(
                f"The {len(output.labels)} labels of {escaped(output.name)}, in order: "
                + few
                + (f", and {more} more, all of them in the file." if more > 0 else ".")
            )
    return parts


def _accuracy(
    verification: VerificationReport, accuracy: Mapping[str, float]
) -> list[str]:
    measured = [o for o in verification.outputs if o.metric]
    rows = [(who, "", _metric("", value)) for who, value in accuracy.items()]
    for output in measured:
        what = output.metric
        if len(verification.outputs) > 1:
            what += f" of {output.name}"
        for who, value in (
            ("the Keras model it was made from", output.keras_metric),
            ("this file", output.file_metric),
        ):
            if value is not None:
                rows.append((who, what, _metric(output.metric, value)))
    if not rows:
        return [
            "Not measured: `kdlite.export` was given no labels "
            "(`verify_data=(x, y)` does)."
        ]
    if not measured:
        rows = [(who, "as given to the export", value) for who, _, value in rows]
        return [table(("model", "metric", "value"), rows)]
    same = f"On {verification.samples:,} samples that came with the export."
    if accuracy:
        given = ", ".join(map(escaped, accuracy))
        same += f" What stands beside {given} was given to it, and not measured."
    rows = [(who, what or measured[0].metric, value) for who, what, value in rows]
    return [table(("model", "metric", "value"), rows), same]


def _metric(name: str, value: float) -> str:
    share = name in ("", "top-1") and 0 <= value <= 1
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"


def _checked(verification: VerificationReport, rule: str) -> list[str]:
    if not verification.samples:
        return [
            "Nothing: the file needs TensorFlow's own operations, and was not run "
            "against its Keras model. Compare the two on a phone."
        ]
    rows = []
    runs = [("xnnpack", 1, verification.samples, verification.outputs)]
    runs += [(r.kernels, r.threads, r.samples, r.outputs) for r in verification.kernels]
    for kernels, threads, samples, outputs in runs:
        for output in outputs:
            rows.append(
                (
                    output.name,
                    f"{kernels}, {threads} thread{'s' if threads > 1 else ''}",
                    f"{samples:,}",
                    _most(output),
                    f"{100 * math.floor(1e4 * output.within_one_step) / 1e4:g} %",
                    "-"
                    if output.top1_agreement is None
                    else f"{100 * output.top1_agreement:.2f} %",
                )
            )
    return [
        "The file was run in LiteRT against the Keras model that it was made from, "
        f"and was put in place because it kept this: {rule}",
        table(
            ("output", "kernels", "samples", "at most apart", "alike", "top-1 alike"),
            rows,
        ),
        "Alike: within one quantization step, or for an output in float within 1e-4 "
        "of the largest value. This says that the file does what the model does, not "
        "that the model is right; and it was found on a computer, not on a phone.",
    ]


def _most(output: OutputReport) -> str:
    if output.largest_steps is not None:
        return f"{output.largest_steps:.1f} steps of {output.step:.3g}"
    return f"{output.largest_difference:.2g} of {output.largest_value:.2g}"


def _origin(name: str, blob: bytes, report: FileReport) -> list[str]:
    origin = dict(report.metadata.provenance or {})
    digest = Ready(code(hashlib.sha256(blob).hexdigest()))
    rows: list[tuple[str, str]] = [("SHA-256 of the file", digest)]
    for key, words in (
        ("model", "Keras model"),
        ("model_fingerprint", "fingerprint of the model"),
        ("calibration_samples", "calibration samples"),
        ("calibration_fingerprint", "fingerprint of the calibration data"),
        ("normalisation_inside", "normalisation inside the file"),
        ("kdlite", "kdlite"),
        ("keras", "Keras"),
        ("tensorflow", "TensorFlow"),
        ("ai_edge_quantizer", "ai-edge-quantizer"),
    ):
        if key in origin:
            rows.append((words, _told(origin[key])))
    quantization = origin.get("quantization", report.content.quantization)
    call = [
        f'kdlite.export(model, {json.dumps(name, ensure_ascii=False)}, "{quantization}"'
    ]
    if "calibration_samples" in origin:
        call.append("calibration_data=...")
    if origin.get("io", "float32") != "float32":
        call.append(f"io={origin['io']!r}")
    if "overrides" in origin:
        call.append(f"overrides={origin['overrides']!r}")
    if any(output.labels for output in report.metadata.all_outputs):
        call.append("labels=[...]")
    return [
        "From the same model, with the same versions, data and further words, as on "
        "licence and author, this gives the same bytes:",
        f"```python\n{', '.join(call)})\n```",
        table(("", ""), rows),
    ]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return str(value)
