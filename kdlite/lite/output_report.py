"""How one output of a file compares with the Keras model's, in quantization steps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TOP1 = "top-1"
# How far from a whole step a difference may be: it is one of float32 products.
STEP_TOLERANCE = 0.01
# Float arithmetic in another order moves a value by some millionths of the largest.
_FLOAT_TOLERANCE = 1e-4
# Off by 0, 1, ... steps, and the last bin for so many or more.
_BINS = 10
# Less is told: the error is a third of what it is to be told from.
_FEW_DB = 10.0
# A loss is by chance in one of 700 files that lose nothing.
_SURE_ERRORS = 3.0
_BAR = 24


@dataclass(frozen=True)
class OutputReport:
    """How one output of a file compares with the Keras model's.

    Attributes:
        name: The output.
        step: The width of a quantization step; None for an output in float.
        largest_difference: The largest ``|file - Keras|`` over all values.
        rms_difference: Its root mean square.
        largest_value: The largest magnitude that the Keras model gives.
        spread: The standard deviation of what the Keras model gives; of a single value,
            which has none, its magnitude.
        within_one_step: Share of the values that are at most one step apart; in float,
            at most 1e-4 of `largest_value`.
        histogram: How many values are 0, 1, ... steps apart, the last for 9 and more.
            Empty in float.
        nan_count: Values that are NaN in the file.
        top1_agreement: Share of the samples with the same largest output; None where
            the output is no scores `(samples, classes)`.
        metric: The task's metric, "top-1" for class indices, "mean absolute error" for
            targets of the output's own shape; empty without targets.
        keras_metric: The metric of the Keras model.
        file_metric: The metric of the file.
        varying: Of the values along the last axis that differ between samples in Keras,
            the share that does in the file; 1 where there are none. Below 1, a value
            moves by less than a step: an output of its own has steps of its own.
        samples: On how many samples.
        varies: How much a value varies in Keras around its mean over the samples (root
            mean square): without what is the same for all samples, as an offset.
        unfollowed: How much of that the file does not follow: the difference around its
            mean over the samples, likewise.
        fixed_step: Whether the operation that makes the output sets the step, as that
            of a sigmoid is 1/256, and no data do.
        chance_metric: The metric of the best answer that is one for all samples: the
            most frequent class, or the median of the targets.
        lost_errors: By how many standard errors the file is worse than Keras in the
            metric, sample by sample; below 0, it is better.
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
    samples: int = 0
    varies: float = 0.0
    unfollowed: float = 0.0
    fixed_step: bool = False
    chance_metric: float | None = None
    lost_errors: float = 0.0

    @property
    def follows_db(self) -> float:
        """How well the file says in what samples differ, in decibels.

        At 0 it says no more than one answer for all of them.
        """
        least = 1e-30
        return 20 * math.log10(max(self.varies, least) / max(self.unfollowed, least))

    @property
    def lost_gain(self) -> float:
        """The share that is lost of what the model gains over one answer for all.

        0 without targets, and where it may be by chance.
        """
        if self.keras_metric is None or self.file_metric is None:
            return 0.0
        gained = abs(self.keras_metric - (self.chance_metric or 0.0))
        if not self._gains or self.lost_errors < _SURE_ERRORS:
            return 0.0
        return abs(self.keras_metric - self.file_metric) / gained

    @property
    def _gains(self) -> bool:
        """Whether the model is better than one answer for all samples."""
        if self.keras_metric is None or self.chance_metric is None:
            return False
        if self.metric == TOP1:
            return self.keras_metric > self.chance_metric
        return self.keras_metric < self.chance_metric

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
        if self.step and 0 < self.varies and self.follows_db < _FEW_DB:
            lines.append(
                f"  of what the samples differ by ({self.varies:.3g}), "
                f"{self.follows_db:z.1f} dB are left"
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


def compare(
    name: str,
    by_file: Array,
    by_keras: Array,
    *,
    step: float | None = None,
    target: Array | None = None,
    fixed_step: bool = False,
) -> OutputReport:
    """Compares two runs of one output.

    Args:
        name: The output.
        by_file: What the file gives, `(samples, ...)`.
        by_keras: What the Keras model gives, of the same shape.
        step: The width of a quantization step, or None in float.
        target: What would be right: class indices `(samples,)` or `(samples, 1)`, or
            values of the output's shape.
        fixed_step: Whether the operation sets the step, and no data do.

    Returns:
        The figures.

    Raises:
        ValueError: If the shapes differ, there are no samples, or what Keras gives can
            prove nothing, as `check_numbers` says.

    Example:
        >>> compare("y", np.array([[0.0, 0.2]]), np.array([[0.1, 0.2]]), step=0.1)
        ... # doctest: +ELLIPSIS
        OutputReport(name='y', step=0.1, largest_difference=0.1, ...)

    Reference:
        `lost_errors` is of classes the statistic `(b - c) / sqrt(b + c)`, where `b`
        samples are right by Keras alone and `c` by the file alone: McNemar 1947,
        Psychometrika 12.
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
    check_numbers(name, by_keras, step)
    told, wanted = _with_infinities(by_file), _with_infinities(by_keras)
    nan = np.isnan(told)
    # Equal infinities are no difference; a NaN is counted, and measures nothing.
    with np.errstate(invalid="ignore"):
        apart = np.where(told == wanted, 0.0, np.abs(told - wanted))
    apart = apart[~nan]
    finite = wanted[np.isfinite(wanted)]
    largest = float(np.abs(finite).max(initial=0.0))
    histogram: tuple[int, ...] = ()
    if step:
        # Both are on the same levels, or nearly: a share of a step is no step.
        levels = np.minimum(np.rint(apart / step), _BINS - 1).astype(int)
        histogram = tuple(np.bincount(levels, minlength=_BINS).tolist())
    # A level more or less, with room for the float product that makes it a value.
    near = (1 + STEP_TOLERANCE) * step if step else _FLOAT_TOLERANCE * largest
    metric, keras_metric, file_metric, chance, lost = "", None, None, None, 0.0
    if target is not None:
        metric = TOP1 if _is_indices(target, wanted) else "mean absolute error"
        keras_metric = _metric(metric, wanted, target)
        file_metric = _metric(metric, told, target)
        chance = _chance(metric, target)
        lost = _standard_errors(
            _faults(metric, told, target) - _faults(metric, wanted, target)
        )
    varies, unfollowed = _over_samples(told, wanted)
    return OutputReport(
        name=name,
        step=step,
        largest_difference=float(apart.max(initial=0.0)),
        rms_difference=float(np.sqrt(np.mean(apart**2))) if apart.size else 0.0,
        largest_value=largest,
        spread=float(finite.std()) if finite.size > 1 else largest,
        within_one_step=float((apart <= near).sum() / told.size),
        histogram=histogram,
        nan_count=int(nan.sum()),
        top1_agreement=_agreement(told, wanted),
        metric=metric,
        keras_metric=keras_metric,
        file_metric=file_metric,
        varying=_varying(told, wanted),
        samples=len(wanted),
        varies=varies,
        unfollowed=unfollowed,
        fixed_step=fixed_step,
        chance_metric=chance,
        lost_errors=lost,
    )


def _with_infinities(values: Array) -> Array:
    """Returns float64 with infinities for the ends of float32.

    TFLite's sums and products end in a range: without an activation in that of float32,
    so that the infinities of a mask become its ends there.
    """
    exact = values.astype(np.float64)
    ends = np.abs(exact) >= np.finfo(np.float32).max
    return np.where(ends, np.sign(exact) * np.inf, exact) if ends.any() else exact


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
    if metric == TOP1:
        return float((output.argmax(-1) == target.reshape(-1)).mean())
    return float(np.abs(output - target).mean())


def _faults(metric: str, output: Array, target: Array) -> Array:
    """Returns what each sample is off by."""
    if metric == TOP1:
        wrong: Array = output.argmax(-1) != target.reshape(-1)
        return wrong.astype(np.float64)
    apart: Array = np.abs(output - target).reshape(len(output), -1)
    return apart.mean(axis=1)


def _chance(metric: str, target: Array) -> float:
    if metric == TOP1:
        return float(np.unique(target, return_counts=True)[1].max() / len(target))
    return float(np.abs(target - np.median(target, axis=0)).mean())


def _standard_errors(differences: Array) -> float:
    """By how many standard errors a sum is above 0, if signs were drawn by chance."""
    noise = float(np.sqrt(np.sum(differences**2)))
    total = float(np.sum(differences))
    return total / noise if noise > 0 and math.isfinite(total) else 0.0


def _over_samples(told: Array, wanted: Array) -> tuple[float, float]:
    """How much values vary over the samples, and how much of that is not followed."""
    known = np.isfinite(told) & np.isfinite(wanted)
    told, wanted = (np.where(known, values, 0.0) for values in (told, wanted))
    return _around_means(wanted), _around_means(told - wanted)


def _around_means(values: Array) -> float:
    return float(np.sqrt(np.mean((values - values.mean(axis=0)) ** 2)))


def check_numbers(name: str, by_keras: Array, step: float | None = None) -> None:
    """Raises `ValueError` where what the Keras model gives can prove nothing of a file.

    Args:
        name: The output.
        by_keras: What the model gives, `(samples, ...)`.
        step: The width of a quantization step of the file's output, which then has no
            infinities; None in float.
    """
    if by_keras.dtype.kind != "f":
        return
    for bad, what in (
        (np.isnan(by_keras), "NaN"),
        (np.isinf(by_keras) & bool(step), "infinity, for a file whose steps end,"),
    ):
        if np.any(bad):
            raise ValueError(
                "A Keras model must give numbers for the samples that its file is "
                f"compared on, else that is no proof. Received: {what} in output "
                f"{name!r}, first for sample {int(np.argwhere(bad)[0][0])}. Fix: look "
                "in the model for infinite weights, a mask of infinities, or a "
                "logarithm, root or quotient out of its range; or give samples that it "
                "is made for (without any, they are random)."
            )


def check_target(name: str, target: Array, output: Array, count: int) -> None:
    """Raises `ValueError` where targets fit no metric of the output."""
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
