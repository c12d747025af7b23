"""Does the file do what the Keras model does? Compared output by output, in steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np

from kdlite.lite.calibration import (
    InputSpec,
    load_samples,
    read_folder,
    with_shapes,
)
from kdlite.lite.isolated_runs import Outputs, Run, isolated_runs
from kdlite.lite.layer_errors import LayerError, noisiest
from kdlite.lite.metadata import read_metadata
from kdlite.lite.serving import ServingModel, serve
from kdlite.lite.signatures import of_signature
from kdlite.lite.targets import read_once, read_targets
from kdlite.lite.tflite_file import TensorInfo, inspect, inspect_bytes

Array = np.ndarray[Any, Any]

# Off by 0, 1, ... steps, and the last bin for so many or more.
_BINS = 10
# How far from a whole step a difference may be: it is one of float32 products.
_STEP_TOLERANCE = 0.01
# Float arithmetic in another order moves a value by some millionths of the largest.
_FLOAT_TOLERANCE = 1e-4
_BATCH = 256
_MOST_LAYERS = 6
# The share of the worst that counts.
_MUCH = 0.25
# Kernels and threads that a file is run with as well, on so many samples.
_OTHERS = (("xnnpack", 4), ("built-in", 1), ("built-in", 4), ("reference", 1))
_FEW = 16
_BAR = 24


class VerificationError(RuntimeError):
    """The file does not do what the Keras model does.

    Attributes:
        report: The whole comparison.
        problems: What was asked and not found, a sentence each.
        layers: How exact each operation is, in the order that they run; empty where it
            was not measured.
    """

    def __init__(
        self,
        report: VerificationReport,
        problems: Sequence[str],
        layers: Sequence[LayerError] = (),
    ) -> None:
        self.report = report
        self.problems = tuple(problems)
        self.layers = tuple(layers)
        text = (
            f"The file must do what the Keras model does. Received: {report.file}, "
            f"where {'; '.join(self.problems)}. Look at the layers and at the data "
            f"that ranges were found with. The comparison:\n{report}"
        )
        if worst := noisiest(layers, _MUCH)[:_MOST_LAYERS]:
            kept = dict.fromkeys(worst, "float32")
            text += (
                f"\nMost of the error enters in {worst[0]}. Keep exact what adds much, "
                f"and what that reads, overrides={kept!r}, or let auto_mixed=True "
                "choose. The layers:\n" + "\n".join(f"  {error}" for error in layers)
            )
        super().__init__(text)


@dataclass(frozen=True)
class OutputReport:
    """How one output of a file compares with the Keras model's.

    Attributes:
        name: The output.
        step: The width of a quantization step; None for an output in float.
        largest_difference: The largest ``|file - Keras|`` over all values.
        rms_difference: Its root mean square.
        largest_value: The largest magnitude that the Keras model gives.
        spread: The standard deviation of what the Keras model gives.
        within_one_step: Share of the values that are at most one step apart; in float,
            at most 1e-4 of `largest_value`.
        histogram: How many values are 0, 1, ... steps apart, the last for 9 and more.
            Empty in float.
        nan_count: Values that are NaN in the file and not in Keras.
        top1_agreement: Share of the samples with the same largest output; None where
            the output is no scores `(samples, classes)`.
        metric: The task's metric, "top-1" for class indices, "mean absolute error" for
            targets of the output's own shape; empty without targets.
        keras_metric: The metric of the Keras model.
        file_metric: The metric of the file.
        varying: Of the values along the last axis that differ between samples in Keras,
            the share that does in the file; 1 where there are none. Below 1, a value
            moves by less than a step: an output of its own has steps of its own.
    """

    name: str
    step: float | None
    largest_difference: float
    rms_difference: float
    largest_value: float
    spread: float
    within_one_step: float
    histogram: tuple[int, ...]
    nan_count: int
    top1_agreement: float | None
    metric: str
    keras_metric: float | None
    file_metric: float | None
    varying: float = 1.0

    @property
    def largest_steps(self) -> float | None:
        """The largest difference in quantization steps; None in float."""
        return self.largest_difference / self.step if self.step else None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            **asdict(self),
            "histogram": list(self.histogram),
            "largest_steps": self.largest_steps,
        }

    def __str__(self) -> str:
        if self.step:
            most = f"{self.largest_difference / self.step:.1f} steps of {self.step:.4g}"
        else:
            most = f"{self.largest_difference:.3g} of {self.largest_value:.3g}"
        lines = [
            f"{self.name}: at most {most} apart, {self.within_one_step:.2%} "
            + ("within one step" if self.step else "equal but for rounding")
        ]
        if self.top1_agreement is not None:
            lines[0] += f", top-1 agreement {self.top1_agreement:.2%}"
        if self.nan_count:
            lines.append(f"  {self.nan_count} NaN")
        if self.varying < 1:
            lines.append(
                f"  {1 - self.varying:.0%} of its values are the same for all samples "
                "in the file, and not in Keras: they move by less than a step"
            )
        if self.keras_metric is not None and self.file_metric is not None:
            lines.append(
                f"  {self.metric}: Keras {self.keras_metric:.4f}, "
                f"file {self.file_metric:.4f}"
            )
        total = sum(self.histogram)
        last = max((n for n, count in enumerate(self.histogram) if count), default=-1)
        for apart, count in enumerate(self.histogram[: last + 1]):
            more = "+" if apart == _BINS - 1 else " "
            bar = "#" * round(_BAR * count / total)
            lines.append(f"  {apart}{more} steps {bar:{_BAR}} {count / total:8.3%}")
        return "\n".join(lines)


@dataclass(frozen=True)
class KernelRun(Run):
    """How a file compares with the model when other kernels compute it.

    Phones have other kernels than the computer that made the file: what only one kind
    computes rightly is wrong.

    Attributes:
        outputs: One report for each output.
    """

    outputs: tuple[OutputReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "kernels": self.kernels,
            "threads": self.threads,
            "samples": self.samples,
            "outputs": [output.to_dict() for output in self.outputs],
        }


@dataclass(frozen=True)
class VerificationReport:
    """How a file compares with its Keras model.

    Attributes:
        file: The file's name.
        size_bytes: Its size.
        samples: On how many samples they were compared; 0 if the file cannot be run.
        outputs: One report for each output.
        float_ops: Operations that compute in float.
        quantization: How the file computes, as `kdlite.inspect` says.
        kernels: How it compares when other kernels and more threads compute it.
    """

    file: str
    size_bytes: int
    samples: int
    outputs: tuple[OutputReport, ...]
    float_ops: tuple[str, ...]
    quantization: str
    kernels: tuple[KernelRun, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong whatever one asks for: values that are no numbers."""
        found = [(output, "") for output in self.outputs]
        for run in self.kernels:
            found += [(output, f", with {run}") for output in run.outputs]
        return tuple(
            f"output {output.name!r} has {output.nan_count} NaN{where}"
            for output, where in found
            if output.nan_count
        )

    @property
    def passed(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def require(
        self,
        *,
        top1_agreement: float | None = None,
        max_steps: float | None = None,
        share_within_one_step: float | None = None,
        max_drop_points: float | None = None,
    ) -> VerificationReport:
        """Raises unless the file is as near to the model as asked.

        Args:
            top1_agreement: Least share of samples with the same largest output, 0 to
                1, in every output that is scores.
            max_steps: Most quantization steps that any value may be apart.
            share_within_one_step: Least share of values at most one step apart.
            max_drop_points: Most points of top-1 that the file may lose; needs labels.

        Returns:
            This report.

        Raises:
            ValueError: If a limit cannot be held against anything (no scores, no steps,
                no labels), or is no such number.
            VerificationError: If a limit is not kept, or there are NaN.

        Example:
            ``verify("student.tflite", student, (x, y)).require(top1_agreement=0.99)``
        """
        for name, share in (
            ("top1_agreement", top1_agreement),
            ("share_within_one_step", share_within_one_step),
        ):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(
                    f"`{name}` must be a share, from 0 to 1. Received: {name}={share}. "
                    "Give for example 0.99."
                )
        for name, most in (
            ("max_steps", max_steps),
            ("max_drop_points", max_drop_points),
        ):
            if most is not None and not most >= 0:
                raise ValueError(
                    f"`{name}` must be at least 0. Received: {name}={most}. Give for "
                    "example 1."
                )
        problems = list(self.problems)

        def limit(name: str, wanted: float | None, found: dict[str, float]) -> None:
            if wanted is None:
                return
            if not found:
                raise ValueError(
                    f"`{name}` needs {_NEEDS[name]}. Received: a comparison of "
                    f"{', '.join(repr(output.name) for output in self.outputs)} "
                    "without. Leave it out, or give what it needs."
                )
            least = name in ("top1_agreement", "share_within_one_step")
            # Differences of floats; a share or a point has fewer digits than this.
            room = _STEP_TOLERANCE if name == "max_steps" else 1e-9
            for output, value in found.items():
                if value < wanted - room if least else value > wanted + room:
                    problems.append(
                        f"{name} of output {output!r} is {value:.4g}, "
                        f"{'less' if least else 'more'} than {wanted:g}"
                    )

        outputs = self.outputs
        limit(
            "top1_agreement",
            top1_agreement,
            {o.name: o.top1_agreement for o in outputs if o.top1_agreement is not None},
        )
        limit(
            "max_steps",
            max_steps,
            {o.name: o.largest_steps for o in outputs if o.largest_steps is not None},
        )
        limit(
            "share_within_one_step",
            share_within_one_step,
            {o.name: o.within_one_step for o in outputs if o.step},
        )
        limit(
            "max_drop_points",
            max_drop_points,
            {
                o.name: 100 * (o.keras_metric - o.file_metric)
                for o in outputs
                if o.metric == _TOP1
                and o.keras_metric is not None
                and o.file_metric is not None
            },
        )
        if problems:
            raise VerificationError(self, problems)
        return self

    def of(self, signature: str) -> VerificationReport:
        """Returns what it says of one of several signatures.

        Args:
            signature: Its name.

        Returns:
            The report with the outputs of this signature alone.
        """

        def its(outputs: Iterable[OutputReport]) -> tuple[OutputReport, ...]:
            return tuple(o for o in outputs if o.name.startswith(f"{signature}/"))

        return replace(
            self,
            outputs=its(self.outputs),
            kernels=tuple(
                replace(run, outputs=its(run.outputs)) for run in self.kernels
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "file": self.file,
            "size_bytes": self.size_bytes,
            "samples": self.samples,
            "quantization": self.quantization,
            "float_ops": list(self.float_ops),
            "passed": self.passed,
            "problems": list(self.problems),
            "outputs": [output.to_dict() for output in self.outputs],
            "kernels": [run.to_dict() for run in self.kernels],
        }

    def __str__(self) -> str:
        head = (
            f"{self.file} against Keras on {self.samples:,} samples: "
            f"{self.quantization}, {self.size_bytes:,} bytes"
        )
        if self.float_ops and self.quantization == "mixed":
            head += f", left in float: {', '.join(self.float_ops)}"
        lines = [head, *map(str, self.outputs)]
        if self.kernels:
            worst = {
                str(run): max(
                    output.largest_steps or output.largest_difference
                    for output in run.outputs
                )
                for run in self.kernels
            }
            unit = " steps" if any(output.step for output in self.outputs) else ""
            told = ", ".join(f"{run} {most:.3g}{unit}" for run, most in worst.items())
            lines.append(f"at most apart with {told}")
        return "\n".join(lines)


_TOP1 = "top-1"
_NEEDS = {
    "top1_agreement": "an output of scores (samples, classes)",
    "max_steps": "an output that is quantized",
    "share_within_one_step": "an output that is quantized",
    "max_drop_points": "class indices, as verify(..., (x, y)) takes them",
}


def verify(
    file: str | os.PathLike[str] | bytes,
    model: keras.Model | Mapping[str, keras.Model],
    data: Any,
) -> VerificationReport:
    """Runs a `.tflite` and its Keras model on the same samples and compares them.

    The file runs in a process of its own, which may crash.

    Args:
        file: The path of the `.tflite`, or its bytes.
        model: The Keras model that it came from. Preprocessing that `export` put into
            the file, mean and standard deviation, is put before the model as well. Of a
            file with several signatures, a model by signature name.
        data: Samples in the units of the file's input: an array `(samples, ...)`, a
            mapping from input name to array, `(x, y)` with targets, a
            `tf.data.Dataset` or another iterable of batches of these, read once, or the
            path of an `.npz`, where targets are called `y`, or of a folder of images.
            Targets are class indices for an output of scores, or values of an output's
            shape; by output name if there are several. Of several signatures, for all,
            or a mapping from signature name to such.

    Returns:
        By output the differences in quantization steps, the agreement and the task's
        metric; prints as a few lines. `require` turns wishes into errors. Outputs of
        several signatures are called "signature/output".

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is not a Keras model.
        ValueError: If the file is not a `.tflite`, LiteRT cannot run it or crashes, the
            two have other inputs or outputs, `data` does not fit them, or the file has
            several signatures and `model` is not by name.

    Example:
        ``verify("student.tflite", student, (x_test, y_test)).require(max_steps=1)``
    """
    if isinstance(model, Mapping):
        return _verify_each(file, model, data)
    names = [signature.name for signature in inspect(file).signatures]
    if len(names) > 1:
        raise ValueError(
            "A file with several signatures is compared with a model for each. "
            f"Received: {type(model).__name__} for the signatures "
            f"{', '.join(map(repr, names))}. Give {{{names[0]!r}: model, ...}}."
        )
    return _verify_one(file, model, data, None)


def _verify_each(
    file: str | os.PathLike[str] | bytes, models: Mapping[str, keras.Model], data: Any
) -> VerificationReport:
    """Compares each signature with its model; outputs are "signature/output"."""
    data = read_once(data)
    reports = {
        name: _verify_one(file, model, of_signature(data, name, models), name)
        for name, model in models.items()
    }
    if not reports:
        raise ValueError(
            "`model` must have a model for a signature. Received: an empty mapping. "
            "Give {'classify': model, ...}."
        )

    def renamed(name: str, outputs: Iterable[OutputReport]) -> Iterator[OutputReport]:
        return (replace(o, name=f"{name}/{o.name}") for o in outputs)

    first = next(iter(reports.values()))
    # The last, which some operations have no kernels for, is left out for all.
    fewest = min((report.kernels for report in reports.values()), key=len)
    runs = [(run.kernels, run.threads) for run in fewest]
    return replace(
        first,
        samples=min(report.samples for report in reports.values()),
        outputs=tuple(
            output
            for name, report in reports.items()
            for output in renamed(name, report.outputs)
        ),
        float_ops=tuple(
            dict.fromkeys(op for r in reports.values() for op in r.float_ops)
        ),
        quantization=" and ".join(
            dict.fromkeys(report.quantization for report in reports.values())
        ),
        kernels=tuple(
            KernelRun(
                kernels,
                threads,
                min(report.kernels[index].samples for report in reports.values()),
                tuple(
                    output
                    for name, report in reports.items()
                    for output in renamed(name, report.kernels[index].outputs)
                ),
            )
            for index, (kernels, threads) in enumerate(runs)
        ),
    )


def _verify_one(
    file: str | os.PathLike[str] | bytes,
    model: keras.Model,
    data: Any,
    signature: str | None,
) -> VerificationReport:
    # What is looked at is what runs.
    content, blob = inspect_bytes(file, signature)
    if isinstance(model, ServingModel):
        serving = model
    else:
        serving = serve(model, **_normalisation(blob, signature))
    inputs = _matched("inputs", [s.name for s in serving.input_specs], content.inputs)
    specs = [_spec_of(spec, inputs, content.inputs) for spec in serving.input_specs]
    data = read_folder(read_once(data), specs, "data")
    samples = load_samples(data, specs, role="data")
    if any(None in spec.shape for spec in specs):
        specs = list(with_shapes(specs, samples))
    by_keras = _predict(serving, samples)
    names = _matched("outputs", list(by_keras), content.outputs)
    targets = read_targets(data, list(inputs), list(by_keras))
    count = len(next(iter(samples.values())))
    for name, target in targets.items():
        _check_target(name, target, by_keras[name], count)

    def compared(
        by_file: Outputs | ValueError,
        most: int,
        targets: Mapping[str, Array],
    ) -> tuple[OutputReport, ...]:
        if isinstance(by_file, ValueError):
            raise by_file
        return tuple(
            compare(
                name,
                by_file[names[name]],
                values[:most],
                step=content.step(names[name]),
                target=targets.get(name),
            )
            for name, values in by_keras.items()
        )

    few = min(count, _FEW)
    by_file, *by_others = isolated_runs(
        content,
        blob,
        {inputs[name]: array for name, array in samples.items()},
        [Run("xnnpack", 1, count), *(Run(*other, few) for other in _OTHERS)],
        signature,
    )
    return VerificationReport(
        file=content.name,
        size_bytes=content.size_bytes,
        samples=count,
        outputs=compared(by_file, count, targets),
        float_ops=tuple(str(op) for op in content.float_ops),
        quantization=content.quantization,
        kernels=tuple(
            KernelRun(kernels, threads, few, compared(told, few, {}))
            for (kernels, threads), told in zip(_OTHERS, by_others, strict=True)
            # Of some operations, such as ELU, there is no plain kernel.
            if kernels != "reference" or not isinstance(told, ValueError)
        ),
    )


def compare(
    name: str,
    by_file: Array,
    by_keras: Array,
    *,
    step: float | None = None,
    target: Array | None = None,
) -> OutputReport:
    """Compares two runs of one output.

    Args:
        name: The output.
        by_file: What the file gives, `(samples, ...)`.
        by_keras: What the Keras model gives, of the same shape.
        step: The width of a quantization step, or None in float.
        target: What would be right: class indices `(samples,)` or `(samples, 1)`, or
            values of the output's shape.

    Returns:
        The figures.

    Raises:
        ValueError: If the shapes differ, or there are no samples.

    Example:
        >>> compare("y", np.array([[0.0, 0.2]]), np.array([[0.1, 0.2]]), step=0.1)
        ... # doctest: +ELLIPSIS
        OutputReport(name='y', step=0.1, largest_difference=0.1, ...)
    """
    if by_file.shape != by_keras.shape:
        raise ValueError(
            f"File and model must have outputs of one shape. Received: {by_file.shape} "
            f"and {by_keras.shape} for {name!r}. Compare a file with its own model."
        )
    if not by_file.size:
        raise ValueError(
            f"There must be samples to compare. Received: {by_file.shape} for "
            f"{name!r}. Give at least one."
        )
    told, wanted = by_file.astype(np.float64), by_keras.astype(np.float64)
    nan = np.isnan(told) & ~np.isnan(wanted)
    # Equal infinities are no difference, nor is a NaN in both; a NaN in one is counted,
    # and measures nothing.
    same = (told == wanted) | (np.isnan(told) & np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(told - wanted))
    apart = apart[~np.isnan(apart)]
    finite = wanted[np.isfinite(wanted)]
    largest = float(np.abs(finite).max(initial=0.0))
    histogram: tuple[int, ...] = ()
    if step:
        # Both are on the same levels, or nearly: a share of a step is no step.
        levels = np.minimum(np.rint(apart / step), _BINS - 1).astype(int)
        histogram = tuple(np.bincount(levels, minlength=_BINS).tolist())
    # A level more or less, with room for the float product that makes it a value.
    near = (1 + _STEP_TOLERANCE) * step if step else _FLOAT_TOLERANCE * largest
    metric, keras_metric, file_metric = "", None, None
    if target is not None:
        metric = _TOP1 if _is_indices(target, wanted) else "mean absolute error"
        keras_metric = _metric(metric, wanted, target)
        file_metric = _metric(metric, told, target)
    return OutputReport(
        name=name,
        step=step,
        largest_difference=float(apart.max(initial=0.0)),
        rms_difference=float(np.sqrt(np.mean(apart**2))) if apart.size else 0.0,
        largest_value=largest,
        spread=float(finite.std()) if finite.size else 0.0,
        within_one_step=float((apart <= near).sum() / told.size),
        histogram=histogram,
        nan_count=int(nan.sum()),
        top1_agreement=_agreement(told, wanted),
        metric=metric,
        keras_metric=keras_metric,
        file_metric=file_metric,
        varying=_varying(told, wanted),
    )


def _varying(told: Array, wanted: Array) -> float:
    """The share of the values that vary in Keras which do so in the file."""
    if told.ndim > 1:
        told, wanted = (x.reshape(-1, x.shape[-1]) for x in (told, wanted))
    with np.errstate(invalid="ignore"):
        # By more than float arithmetic moves them.
        floor = _FLOAT_TOLERANCE * np.abs(wanted).max(axis=0)
        by_keras, by_file = np.ptp(wanted, axis=0), np.ptp(told, axis=0)
        varies = by_keras > floor
        return float(np.mean((by_file != 0)[varies])) if varies.any() else 1.0


def _agreement(told: Array, wanted: Array) -> float | None:
    if not _is_scores(wanted):
        return None
    return float((told.argmax(-1) == wanted.argmax(-1)).mean())


def _is_scores(output: Array) -> bool:
    return output.ndim == 2 and output.shape[-1] > 1


def _is_indices(target: Array, output: Array) -> bool:
    return (
        _is_scores(output)
        and target.dtype.kind in "iu"
        and target.shape in ((len(output),), (len(output), 1))
    )


def _metric(metric: str, output: Array, target: Array) -> float:
    if metric == _TOP1:
        return float((output.argmax(-1) == target.reshape(-1)).mean())
    return float(np.abs(output - target).mean())


def _check_target(name: str, target: Array, output: Array, count: int) -> None:
    if _is_indices(target, output):
        if target.min() < 0 or target.max() >= output.shape[-1]:
            raise ValueError(
                f"Class indices must be from 0 to {output.shape[-1] - 1}. Received: "
                f"{target.min()} to {target.max()} for output {name!r}. Count classes "
                "from 0, in the order of the output."
            )
        return
    if target.shape != output.shape or target.dtype.kind not in "fiub":
        raise ValueError(
            "Targets must be class indices (samples,) or values of the output's shape. "
            f"Received: {target.dtype} {target.shape} for output {name!r} of shape "
            f"{output.shape} and {count} samples. Give one target a sample, or none."
        )


def _normalisation(file: bytes, signature: str | None) -> dict[str, Any]:
    """Returns what `export` put into the file before the model, as `serve` takes it."""
    origin: Any = read_metadata(file).provenance or {}
    signatures = origin.get("signatures")
    if isinstance(signatures, Mapping):
        origin = signatures.get(signature)
    inside = origin.get("normalisation_inside") if isinstance(origin, Mapping) else None
    if not isinstance(inside, Mapping):
        return {}
    return {name: inside.get(name) for name in ("mean", "std")}


def _matched(side: str, names: Sequence[str], tensors: Sequence[Any]) -> dict[str, str]:
    """Returns the file's name for each of the model's inputs or outputs.

    By name; where each has just one, that one, as files made elsewhere name it.
    """
    of_file = [tensor.name for tensor in tensors]
    if set(of_file) == set(names):
        return {name: name for name in names}
    if len(of_file) == len(names) == 1:
        return {names[0]: of_file[0]}
    raise ValueError(
        f"File and model must have the same {side}. Received: "
        f"{', '.join(map(repr, of_file))} in the file and "
        f"{', '.join(map(repr, names))} in the model. Compare a file with its own "
        "model."
    )


def _spec_of(
    spec: InputSpec, inputs: Mapping[str, str], tensors: Sequence[TensorInfo]
) -> InputSpec:
    """Checks an input against the file's; returns it with the file's lengths."""
    tensor = next(t for t in tensors if t.name == inputs[spec.name])
    shape = tuple(None if length < 0 else length for length in tensor.shape[1:])
    fits = len(shape) == len(spec.shape) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            "File and model must have inputs of one shape. Received: "
            f"{tensor.shape[1:]} in the file and {spec.shape} in the model for "
            f"{spec.name!r}. Compare a file with its own model."
        )
    known = tuple(
        a if a is not None else b for a, b in zip(shape, spec.shape, strict=True)
    )
    return InputSpec(spec.name, known, spec.dtype)


def _predict(serving: ServingModel, samples: Mapping[str, Array]) -> dict[str, Array]:
    """Runs the Keras model; a tail of odd length would be traced a second time."""
    count = len(next(iter(samples.values())))
    if count <= _BATCH:  # to trace takes longer than to run once
        outputs = serving(dict(samples), training=False)
    else:
        outputs = serving.predict(dict(samples), batch_size=_BATCH, verbose=0)
    return {name: np.asarray(values) for name, values in outputs.items()}
