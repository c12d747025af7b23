"""What a comparison of a file with its Keras model found, and what one asks of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdlite.lite.isolated_runs import Run
from kdlite.lite.layer_errors import LayerError, noisiest
from kdlite.lite.outliers import Outliers
from kdlite.lite.output_report import STEP_TOLERANCE, TOP1, OutputReport
from kdlite.lite.tolerance import Tolerance, caution, unfollowed, unresolved

_MOST_LAYERS = 6
# The share of the worst that counts.
_MUCH = 0.25
_NEEDS = {
    "top1_agreement": "an output of scores (samples, classes)",
    "max_steps": "an output that is quantized",
    "share_within_one_step": "an output that is quantized",
    "max_drop_points": "class indices (of one-hot rows their argmax), as verify(..., "
    "(x, y)) takes them",
}


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
        if layers:
            text += f"\n{_advice(report, layers)} The layers, by built-in kernels:\n"
            text += "\n".join(f"  {error}" for error in layers)
        super().__init__(text)


def _advice(report: VerificationReport, layers: Sequence[LayerError]) -> str:
    """Says where the error enters, and what to do about it."""
    trained = [t.recipe for t in report.tolerances if t.trained]
    entering = [error for error in layers if error.enters and error.layer]
    worst = noisiest(entering or layers, 0.0 if entering else _MUCH)[:_MOST_LAYERS]
    if not worst:
        return "No layer is known to add an error."
    kept = dict.fromkeys(worst, "float32")
    if not trained:
        return (
            f"Most of the error enters in {worst[0]}. Keep exact what adds much, and "
            f"what that reads, overrides={kept!r}, or let auto_mixed=True choose."
        )
    first = entering[0].layer if entering else worst[0]
    other = "" if trained[0].name == "int8" else ", or use recipe='int8'"
    return (
        ("More than a step" if entering else "Most of the error")
        + f" enters in {first}. Leave it in float, quantize_aware(student, ..., "
        f"overrides={kept!r}), and train anew{other}."
    )


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
class Ordinary:
    """How a file compares with the model on the samples without outliers.

    What one value in a hundred sets the range by, all others pay for; and in the
    figures of all samples the outliers drown that.

    Attributes:
        outliers: Which, and what they do to an input.
        outputs: One report for each output, of the other samples.
    """

    outliers: Outliers
    outputs: tuple[OutputReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "outliers": self.outliers.to_dict(),
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
        tolerances: What the outputs are held to, as `export` holds them; of several
            signatures one for each. Empty: to nothing but that they are numbers.
        changed: What was changed in the file since `export` wrote it, of which it keeps
            the SHA-256; empty if nothing.
        ordinary: How it compares on the samples without outliers, by signature, where
            an input has some that leave no levels to the others.
    """

    file: str
    size_bytes: int
    samples: int
    outputs: tuple[OutputReport, ...]
    float_ops: tuple[str, ...]
    quantization: str
    kernels: tuple[KernelRun, ...] = ()
    tolerances: tuple[Tolerance, ...] = ()
    changed: str = ""
    ordinary: tuple[Ordinary, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong whatever one asks for: NaN, and what no tolerance allows."""
        wrong = self._wrong(self.outputs)
        found = [self.changed] if self.changed else []
        found += wrong.values()
        for part in self.ordinary:
            for output in part.outputs:
                text = unfollowed(output) if self._is_calibrated(output) else ""
                if text and output.name not in wrong:
                    found.append(f"{text}, without outliers: {part.outliers}")
                    break
        all_samples = {output.name: output for output in self.outputs}
        for run in self.kernels:
            # How much an output varies is not seen in the few that others computed.
            measured = [_as_varied(o, all_samples[o.name]) for o in run.outputs]
            others = self._wrong(measured, other_kernels=True)
            # Said once, where the file is wrong by all of them.
            found += [f"{others[n]}, with {run}" for n in others if n not in wrong]
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether there are no problems: `export` would let the file pass."""
        return not self.problems

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is lost of the task's metric or the samples, and is no problem."""
        wrong = self._wrong(self.outputs)
        return tuple(
            text
            for output in self.outputs
            if output.name not in wrong
            and (
                text := caution(output)
                or (unresolved(output) if self._is_calibrated(output) else "")
            )
        )

    def _is_calibrated(self, output: OutputReport) -> bool:
        """Whether its steps are of samples, and were not trained with."""
        return any(
            t.recipe.integer and not t.trained and t.covers(output.name)
            for t in self.tolerances
        )

    def _wrong(
        self, outputs: Iterable[OutputReport], other_kernels: bool = False
    ) -> dict[str, str]:
        """Returns by output in what it is wrong."""
        wrong = {}
        for output in outputs:
            name, nan = output.name, output.nan_count
            text = f"output {name!r} has {nan} NaN" if nan else ""
            for tolerance in self.tolerances:
                if not text and tolerance.covers(name):
                    text = tolerance.problem(output, other_kernels)
            if text:
                wrong[name] = text
        return wrong

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
            VerificationError: If a limit is not kept, or there are `problems`.

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
            room = STEP_TOLERANCE if name == "max_steps" else 1e-9
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
                if o.metric == TOP1
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
            tolerances=tuple(t for t in self.tolerances if t.signature == signature),
            ordinary=tuple(
                part
                for part in (
                    replace(part, outputs=its(part.outputs)) for part in self.ordinary
                )
                if part.outputs
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
            "cautions": list(self.cautions),
            "rules": list(map(str, self.tolerances)),
            "outputs": [output.to_dict() for output in self.outputs],
            "kernels": [run.to_dict() for run in self.kernels],
            "ordinary": [part.to_dict() for part in self.ordinary],
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
            told = ", ".join(f"{run} {_most_apart(run)}" for run in self.kernels)
            lines.append(f"at most apart with {told}")
        problems = self.problems
        lines += [f"wrong: {text}" for text in problems]
        lines += [f"careful: {text}" for text in self.cautions]
        if self.outputs:
            verdict = "not held" if problems else "held"
            lines += [f"{verdict}: {rule}" for rule in map(str, self.tolerances)]
        return "\n".join(lines)


def _as_varied(few: OutputReport, known: OutputReport) -> OutputReport:
    return replace(
        few,
        spread=max(few.spread, known.spread),
        largest_value=max(few.largest_value, known.largest_value),
    )


def _most_apart(run: KernelRun) -> str:
    """The largest differences: in steps of quantized outputs, in values of others."""
    quantized = [o for o in run.outputs if o.largest_steps is not None]
    values = [o.largest_difference for o in run.outputs if o.largest_steps is None]
    parts = []
    if quantized:
        most = max(o.largest_steps or 0.0 for o in quantized)
        within = min(o.within_one_step for o in quantized)
        parts = [f"{most:.3g} steps ({within:.2%} within one)"]
    return " and ".join([*parts, *([f"{max(values):.3g}"] if values else [])])
