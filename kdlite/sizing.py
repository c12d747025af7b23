"""A student of a wanted size: candidates are exported, measured, and compared."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import keras

from kdlite.compress.fake_quant import FakeQuant
from kdlite.compress.qat import freeze_batch_norm, quantize_aware
from kdlite.compress.recipes import Recipe, recipe
from kdlite.compress.shrink import shrunken
from kdlite.compress.summary import summary
from kdlite.lite.calibration import random_samples
from kdlite.lite.convert import ConversionError, export
from kdlite.lite.runtime import measure_latency
from kdlite.lite.serving import serve
from kdlite.lite.tflite_reader import inspect
from kdlite.lite.verification import VerificationError
from kdlite.working_folder import working_folder

logger = logging.getLogger(__name__)

# Widths are tried in steps of a 64th of the teacher's.
STEPS = 64
# A file that needs this much of a limit is near enough: each export takes seconds.
_CLOSE = 0.95
# Bytes that a trained student may have more: what it answers is in the file as text.
_ROOM = 512
_SAMPLES = 4
_RUNS = 50
# Any release with per-channel dense kernels, which make the larger file.
_NEW_RUNTIME = "2.17.0"
_FLOAT_BYTES = 4
# What a channel has beside its weights (a bias of 4 bytes, a scale of 4, a zero point
# of 8), and a layer beside its channels (shapes, names, indices).
_CHANNEL_BYTES = 16
_LAYER_BYTES = 700
_COARSE = 15.0


@dataclass(frozen=True)
class Limits:
    """What a student's exported file may cost at most; None is no limit.

    Attributes:
        max_bytes: The size of the file.
        max_macs: Multiply-accumulates of one run.
        max_latency_ms: Time of one run in LiteRT on this computer, 1 thread, the
            fastest of several.
    """

    max_bytes: int | None = None
    max_macs: int | None = None
    max_latency_ms: float | None = None

    def __str__(self) -> str:
        texts = []
        if self.max_bytes is not None:
            texts.append(f"{self.max_bytes:,} bytes")
        if self.max_macs is not None:
            texts.append(f"{self.max_macs:,} MACs")
        if self.max_latency_ms is not None:
            texts.append(f"{self.max_latency_ms:g} ms")
        return ", ".join(texts)


@dataclass(frozen=True)
class Candidate:
    """One student that was exported and measured.

    Attributes:
        width: Factor on the teacher's widths.
        depth: The share of its blocks that stayed.
        separable: Whether its convolutions became depthwise-separable.
        params: Numbers that the student holds.
        macs: Multiply-accumulates of one run of the file.
        size_bytes: Size of the file.
        latency_ms: Time of one run in LiteRT on this computer, 1 thread, the fastest of
            several.
        fits: Whether it keeps the limits.
    """

    width: float
    depth: float
    separable: bool
    params: int
    macs: int
    size_bytes: int
    latency_ms: float
    fits: bool
    _teacher: keras.Model = field(repr=False, compare=False)

    def build(self) -> keras.Model:
        """Builds the student anew, with new weights."""
        return shrunken(
            self._teacher, self.width, depth=self.depth, separable=self.separable
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        names = [name for name in self.__dataclass_fields__ if name != "_teacher"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Candidates:
    """Students of one teacher, and what their files cost.

    Attributes:
        limits: What was asked.
        teacher_bytes: Size of the teacher's float32 file.
        rows: The students: of each kind the widest that keeps the limits, or else the
            narrowest that there is.
    """

    limits: Limits
    teacher_bytes: int
    rows: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The first that keeps the limits.

        Raises:
            ValueError: If none does.
        """
        for row in self.rows:
            if row.fits:
                return row
        least = min(self.rows, key=lambda row: row.size_bytes)
        raise ValueError(
            f"A student must keep the limits. Received: at most {self.limits}, where "
            f"the smallest has {least.size_bytes:,} bytes, {least.macs:,} MACs and "
            f"takes {least.latency_ms:.3g} ms. Raise the limit, or allow depth=0.5 or "
            "separable=True."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "limits": asdict(self.limits),
            "teacher_bytes": self.teacher_bytes,
            "rows": [row.to_dict() for row in self.rows],
        }

    def __str__(self) -> str:
        lines = [
            f"at most {self.limits}; the teacher's float32 file has "
            f"{self.teacher_bytes:,} bytes",
            "width  depth  separable      params        MACs       bytes  times  "
            "ms, 1 thread",
        ]
        lines += [
            f"{row.width:5.3f}  {row.depth:5.2f}  {'yes' if row.separable else 'no':>9}"
            f"  {row.params:>10,}  {row.macs:>10,}  {row.size_bytes:>10,}  "
            f"{self.teacher_bytes / row.size_bytes:>5.1f}  {row.latency_ms:>12.3f}"
            + ("" if row.fits else "  beyond the limit")
            for row in self.rows
        ]
        lines.append("LiteRT on this computer; a phone differs.")
        return "\n".join(lines)


def shrink(
    teacher: keras.Model,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_macs: int | None = None,
    max_latency_ms: float | None = None,
    depth: float = 1.0,
    separable: bool = False,
    quantization: str = "int8",
    labels: Sequence[str] | None = None,
) -> keras.Model:
    """Makes an untrained student from a teacher, whose exported file keeps a limit.

    The student is the teacher with fewer channels in every layer: tensors that are
    added or gated keep one width, and inputs and outputs keep theirs. Widths, in steps
    of a 64th, are exported and measured until a `.tflite` keeps the limits and either
    needs 95 % of one, or no wider one would keep them.

    Args:
        teacher: A built Functional or Sequential model.
        ratio: How many times smaller the student's file is than the teacher's float32
            `.tflite`, at least. At 10 an int8 student has about 2/5 of the teacher's
            numbers, as each takes a quarter of the room.
        max_bytes: Most bytes of the file.
        max_macs: Most multiply-accumulates of one run.
        max_latency_ms: Longest time of one run in LiteRT on this computer, on
            1 thread. A phone differs.
        depth: The share of blocks that stay, see `shrunken`.
        separable: Whether convolutions become depthwise-separable.
        quantization: Of the file that is measured, as `export` takes it.
        labels: Class names, which are in the file and count.

    Returns:
        The student, a Functional model in float32 with new weights. Layers keep the
        teacher's names.

    Raises:
        TypeError: If `teacher` is not a Keras model.
        ValueError: If there is no limit, one is not above 0, no width keeps it, or a
            layer of the teacher cannot be made narrower; it is named.
        ConversionError: If the student cannot be exported.

    Example:
        ``student = kdlite.shrink(teacher, ratio=10)``
    """
    found = shrink_candidates(
        teacher,
        ratio=ratio,
        max_bytes=max_bytes,
        max_macs=max_macs,
        max_latency_ms=max_latency_ms,
        depths=(depth,),
        separable=(separable,),
        quantization=quantization,
        labels=labels,
    )
    logger.info("%s", found)
    return found.best.build()


def shrink_candidates(
    teacher: keras.Model,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_macs: int | None = None,
    max_latency_ms: float | None = None,
    depths: Sequence[float] = (1.0, 0.5),
    separable: Sequence[bool] = (False, True),
    quantization: str = "int8",
    labels: Sequence[str] | None = None,
) -> Candidates:
    """Finds students of several kinds that keep a limit, and what each costs.

    Args:
        teacher: A built Functional or Sequential model.
        ratio: See `shrink`, as for the next three.
        max_bytes: Most bytes of the file.
        max_macs: Most multiply-accumulates of one run.
        max_latency_ms: Longest time of one run.
        depths: Shares of blocks that stay.
        separable: Whether convolutions become depthwise-separable.
        quantization: Of the file that is measured, as `export` takes it.
        labels: Class names, which are in the file and count.

    Returns:
        For each depth and kind of convolution the widest student that keeps the limits;
        prints as a table. Kinds that the teacher cannot be made into are left out.

    Raises:
        TypeError: As `shrink`.
        ValueError: As `shrink`, but for limits that no width keeps.
        ConversionError: As `shrink`.

    Example:
        ``print(kdlite.shrink_candidates(teacher, max_bytes=500_000))``
    """
    limits = _checked_limits(max_bytes, max_macs, max_latency_ms, ratio)
    chosen = recipe(quantization)
    if not depths or not separable:
        raise ValueError(
            "`depths` and `separable` must each have a value. Received: "
            f"depths={depths!r}, separable={separable!r}. Use (1.0,) and (False,)."
        )
    # The first kind is built before anything is exported: it finds what is wrong.
    for step in (1, STEPS):
        shrunken(teacher, step / STEPS, depth=depths[0], separable=separable[0])
    with working_folder("shrink") as folder:
        path = folder / "model.tflite"
        teacher_bytes = _teacher_bytes(teacher, path)
        if ratio is not None:
            by_ratio = math.floor(teacher_bytes / ratio)
            most = by_ratio if max_bytes is None else min(by_ratio, max_bytes)
            limits = replace(limits, max_bytes=most)
        searches: dict[_Costs, _Search] = {}
        for depth, kind in ((d, s) for d in depths for s in separable):
            search = _Search(teacher, limits, depth, kind, chosen, labels, path)
            if (depth, kind) == (depths[0], separable[0]) or _can_be(search):
                # A kind that costs the same is the same: nothing was to be changed.
                searches.setdefault(search.costs(STEPS // 2), search)
        rows = tuple(search.widest() for search in searches.values())
    return Candidates(limits, teacher_bytes, rows)


def _can_be(search: _Search) -> bool:
    """Whether there is any student of this kind."""
    try:
        search.costs(STEPS)
    except ValueError as err:
        logger.info("left out: %s", err)
        return False
    return True


def _checked_limits(
    max_bytes: Any, max_macs: Any, max_latency_ms: Any, ratio: Any
) -> Limits:
    given = {
        "ratio": ratio,
        "max_bytes": max_bytes,
        "max_macs": max_macs,
        "max_latency_ms": max_latency_ms,
    }
    if all(value is None for value in given.values()):
        raise ValueError(
            "A student needs a limit. Received: none of "
            f"{', '.join(f'`{name}`' for name in given)}. Give for example ratio=10."
        )
    for name, value in given.items():
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(
                f"`{name}` must be a number above 0. Received: {name}={value!r}. Give "
                "for example ratio=10, or max_bytes=500_000."
            )
    return Limits(max_bytes, max_macs, max_latency_ms)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Costs:
    """What is expected of a student before it is exported."""

    params: int
    macs: int
    size_bytes: int


@dataclass(frozen=True)
class _File:
    """What an exported student was measured to cost."""

    size_bytes: float
    macs: float
    latency_ms: float


class _Search:
    """The search for the widest student of one kind."""

    def __init__(
        self,
        teacher: keras.Model,
        limits: Limits,
        depth: float,
        separable: bool,
        chosen: Recipe,
        labels: Sequence[str] | None,
        path: Path,
    ) -> None:
        self._teacher = teacher
        self._limits = limits
        self._depth = depth
        self._separable = separable
        self._recipe = chosen
        self._labels = labels
        self._path = path
        self._costs: dict[int, _Costs] = {}
        self._files: dict[int, _File] = {}

    def costs(self, step: int) -> _Costs:
        """Returns what the student of a width of `step` 64ths is expected to cost."""
        if step not in self._costs:
            student = self._build(step)
            counted = summary(student)
            self._costs[step] = _Costs(
                counted.params, counted.macs, self._expected_bytes(student)
            )
        return self._costs[step]

    def _expected_bytes(self, student: keras.Model) -> int:
        """Returns about what a file has; the first export says how wrong it is."""
        kernels = [w.shape for w in student.weights if len(w.shape) > 1]
        return sum(
            math.prod(shape) * self._recipe.weight_bits // 8
            + _CHANNEL_BYTES * shape[-1]
            + _LAYER_BYTES
            for shape in kernels
        )

    def widest(self) -> Candidate:
        """Exports students until one comes close to the limits, or none wider fits."""
        fits, beyond = 0, STEPS + 1
        while beyond - fits > 1:
            step = self._likely(fits, beyond)
            if step is None:
                break
            file = self._measure(step)
            if not self._keeps(file, 1.0):
                beyond = step
                continue
            fits = step
            if not self._keeps(file, _CLOSE):
                break
        step = fits or 1
        file, costs = self._measure(step), self.costs(step)
        return Candidate(
            width=step / STEPS,
            depth=self._depth,
            separable=self._separable,
            params=costs.params,
            macs=int(file.macs),
            size_bytes=int(file.size_bytes),
            latency_ms=file.latency_ms,
            fits=bool(fits),
            _teacher=self._teacher,
        )

    def _build(self, step: int) -> keras.Model:
        return shrunken(
            self._teacher,
            step / STEPS,
            depth=self._depth,
            separable=self._separable,
        )

    def _likely(self, fits: int, beyond: int) -> int | None:
        """Returns the widest that is expected to fit, strictly between the two.

        If none is, the next that is wider: only measuring shows that it does not. None
        if there is no wider one, as not every step changes a layer.
        """
        if not self._files and self._limits.max_latency_ms is not None:
            return (fits + beyond) // 2  # nothing to expect anything by
        low, high = fits, beyond
        while high - low > 1:
            middle = (low + high) // 2
            if self._keeps(self._expected(middle), 1.0):
                low = middle
            else:
                high = middle
        while fits and low < beyond and self.costs(low) == self.costs(fits):
            low += 1
        return max(low, 1) if low < beyond else None

    def _expected(self, step: int) -> _File:
        """Returns what a file is expected to cost, by those measured beside it."""
        costs = self.costs(step)
        nearest = sorted(self._files, key=lambda measured: abs(measured - step))
        if not nearest:
            return _File(costs.size_bytes, costs.macs, 0.0)
        file, known = self._files[nearest[0]], self.costs(nearest[0])
        other = self._files[nearest[1]] if len(nearest) > 1 else None
        far = self.costs(nearest[1]) if len(nearest) > 1 else known

        def along(name: str, by: str, slope: float) -> float:
            begin, reach = getattr(known, by), getattr(far, by) - getattr(known, by)
            if other is not None and reach:
                slope = (getattr(other, name) - getattr(file, name)) / reach
            value: float = getattr(file, name) + slope * (getattr(costs, by) - begin)
            return value

        return _File(
            along("size_bytes", "size_bytes", 1.0),
            along("macs", "macs", 1.0),
            along("latency_ms", "macs", file.latency_ms / max(1, known.macs)),
        )

    def _keeps(self, file: _File, share: float) -> bool:
        """Whether a file costs no more than a share of each limit."""
        limits = self._limits
        return all(
            # A limit of 0 is one: what a ratio leaves of a small teacher.
            limit is None or cost <= share * limit
            for cost, limit in (
                (file.size_bytes + _ROOM, limits.max_bytes),
                (file.macs, limits.max_macs),
                (file.latency_ms, limits.max_latency_ms),
            )
        )

    def _measure(self, step: int) -> _File:
        if step not in self._files:
            _export(self._build(step), self._path, self._recipe.name, self._labels)
            file = _File(
                self._path.stat().st_size,
                inspect(self._path).macs,
                measure_latency([self._path], runs=_RUNS)[0].min_ms,
            )
            logger.info("width %d/%d: %s", step, STEPS, file)
            self._files[step] = file
        return self._files[step]


def _teacher_bytes(teacher: keras.Model, path: Path) -> int:
    try:
        _export(teacher, path, "float32", None)
    except (ConversionError, VerificationError, ValueError) as err:
        logger.warning(
            "the teacher has no .tflite; its numbers count %d bytes each: %s",
            _FLOAT_BYTES,
            err,
        )
        return int(teacher.count_params()) * _FLOAT_BYTES
    return path.stat().st_size


def _export(
    model: keras.Model, path: Path, quantization: str, labels: Sequence[str] | None
) -> None:
    """Exports a model that was not trained, of which only the costs are wanted."""
    specs = [
        replace(spec, low_high=(0.0, 255.0)) if len(spec.shape) == 3 else spec
        for spec in serve(model).input_specs
    ]
    samples = random_samples(specs, _SAMPLES)
    options: dict[str, Any] = {"labels": labels, "overwrite": True}
    if not recipe(quantization).integer:
        export(model, path, quantization, verify_data=samples, **options)
        return
    try:
        trained = quantize_aware(model, quantization)
    except ValueError as err:
        # Calibration takes more layers, and gives a file of the same size.
        logger.info("measured by calibration: %s", err)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`calibration_data` should have at least")
            options["min_runtime"] = _NEW_RUNTIME
            export(model, path, quantization, calibration_data=samples, **options)
        return
    freeze_batch_norm(trained)
    for layer in _last_ranges(trained):
        # What an untrained net answers all but cancels. In coarse steps the file can
        # be proven to compute the same, whatever that is.
        layer.margin = _COARSE
    flat = [samples[spec.name] for spec in specs]
    trained(keras.tree.pack_sequence_as(trained.input, flat), training=True)
    export(trained, path, quantization, verify_data=samples, **options)


def _last_ranges(model: keras.Model) -> Iterator[FakeQuant]:
    """Yields the ranges that the outputs are in."""
    waiting = list(model.outputs)
    while waiting:
        layer = waiting.pop()._keras_history.operation
        if isinstance(layer, FakeQuant):
            yield layer
        else:
            waiting += keras.tree.flatten(layer.input)
