"""Gates: what a run must reach, and whether it did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Gates:
    """What the quantized file must reach; None asks for nothing.

    Attributes:
        teacher_drop_points: Most points of top-1 that it may lose to the teacher.
        quantization_drop_points: Most points that it may lose to the float student.
        size_ratio: Least number of times that it must be smaller than the teacher's
            float32 file.
        speed_ratio: Least number of times that it must be faster than that file, in
            LiteRT on this computer, 1 thread, same run.
        max_bytes: Most bytes that it may have.

    Raises:
        ValueError: A gate is no finite number.
    """

    teacher_drop_points: float | None = None
    quantization_drop_points: float | None = 1.0
    size_ratio: float | None = None
    speed_ratio: float | None = None
    max_bytes: float | None = None

    def __post_init__(self) -> None:
        """Refuses limits that no figure could be held against."""
        for name, limit in asdict(self).items():
            if limit is None:
                continue
            if (
                isinstance(limit, bool)
                or not isinstance(limit, Real)
                or not math.isfinite(limit)
            ):
                raise ValueError(
                    "A gate must be a finite number or None. Received: "
                    f"{name}={limit!r}. Leave it out to ask for nothing."
                )
            # NumPy's numbers, too, are to go into a report as JSON takes them.
            plain = int(limit) if isinstance(limit, Integral) else float(limit)
            object.__setattr__(self, name, plain)

    def with_size(self, ratio: float | None, max_bytes: float | None) -> Gates:
        """Returns these with limits of size, where they have none.

        Args:
            ratio: For `size_ratio`.
            max_bytes: For `max_bytes`.

        Returns:
            The gates.

        Example:
            >>> Gates(size_ratio=50).with_size(10, 9_000).max_bytes
            9000
        """
        return replace(
            self,
            size_ratio=ratio if self.size_ratio is None else self.size_ratio,
            max_bytes=max_bytes if self.max_bytes is None else self.max_bytes,
        )

    def judge(self, report: Mapping[str, Any]) -> tuple[Gate, ...]:
        """Holds the figures of a report against the gates.

        Args:
            report: The content of `report.json`.

        Returns:
            One `Gate` for each limit that is set, in their order.
        """
        teacher, int8 = report["teacher"], report["tflite"]["int8"]
        float32 = report["tflite"]["float32"]

        def ratio(key: str) -> float | None:
            # A teacher that cannot be a .tflite has neither bytes nor latency.
            return teacher[key] / int8[key] if key in teacher else None

        measured = {
            "teacher_drop_points": 100 * (teacher["top1"] - int8["top1"]),
            "quantization_drop_points": 100 * (float32["top1"] - int8["top1"]),
            "size_ratio": ratio("bytes"),
            "speed_ratio": ratio("latency_ms"),
            "max_bytes": int8["bytes"],
        }
        gates = []
        for name, limit in asdict(self).items():
            if limit is not None:
                value = measured[name]
                busy = name == "speed_ratio" and bool(int8.get("busy"))
                note = "on a busy computer" if busy and value is not None else ""
                gates.append(Gate(name, limit, value, _kept(name, limit, value), note))
        return tuple(gates)


def _kept(name: str, limit: float, value: float | None) -> bool:
    if value is None:
        return False
    # A loss has an upper limit, a ratio a lower one. Top-1 differs by whole samples, so
    # the allowance below a thousandth of a point only undoes float rounding.
    return value >= limit if name.endswith("_ratio") else value <= limit + 1e-6


@dataclass(frozen=True)
class Gate:
    """One gate as it came out.

    Attributes:
        name: What was asked, one of the fields of `Gates`.
        required: The limit.
        measured: The figure, or None where it could not be measured.
        passed: Whether the figure keeps the limit.
        note: What to know of the figure, if anything.
    """

    name: str
    required: float
    measured: float | None
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        """The gate in words."""
        bound = "at least" if self.name.endswith("_ratio") else "at most"
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}"
        measured += f" {self.note}" if self.note else ""
        verdict = "kept" if self.passed else "MISSED"
        name = self.name.replace("_", " ")
        return f"{name} {bound} {self.required:g}: {measured}, {verdict}"
