"""The figures of a run as plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdlite.reporting.figures import millions
from kdlite.reporting.page import times

RunReport = Mapping[str, Any]

# Of these, one is a point of top-1 or more, as what is compared differs by.
FEW_SAMPLES = 100

_ROWS = (
    ("teacher", "teacher, float32"),
    ("baseline", "student without teacher"),
    ("student", "student, distilled"),
    ("float32", "student .tflite, float32"),
    ("int8", "student .tflite, int8"),
)


def table(report: RunReport) -> str:
    """Renders the figures of a run as one plain-text table.

    Args:
        report: The content of `report.json`.

    Returns:
        One row a model or file; a dash where a figure does not apply.
    """
    header = ["", "top-1 %", "agree %", "params", "MACs", "bytes", "ms, 1 thread"]
    lines = [header, *_cells(report)]
    return "\n".join([aligned(lines), *_ratios(report)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Puts cells into columns, the first to the left and the others to the right.

    Args:
        rows: Cells, as many in each row.

    Returns:
        One line a row.

    Example:
        >>> print(aligned([["", "bytes"], ["student", "9"]]))
                 bytes
        student      9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if index else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _figures(report: RunReport, name: str) -> Mapping[str, Any] | None:
    found = report["tflite"].get(name) if name in report["tflite"] else report.get(name)
    return found or None


def _cells(report: RunReport) -> list[list[str]]:
    cells = []
    for name, title in _ROWS:
        figures = _figures(report, name)
        if figures is None:
            continue
        top1 = f"{100 * figures['top1']:.2f}"
        if len(report["seeds"]) > 1 and "top1_sd" in figures:
            top1 += f" ±{100 * figures['top1_sd']:.2f}"
        cells.append(
            [
                title,
                top1,
                _number(figures, "agreement", lambda v: f"{100 * v:.2f}"),
                _number(figures, "params", lambda v: f"{v:,}"),
                _number(figures, "macs", millions),
                _number(figures, "bytes", lambda v: f"{v:,}"),
                _number(figures, "latency_ms", lambda v: f"{v:.3f}"),
            ]
        )
    return cells


def _number(figures: Mapping[str, Any], key: str, form: Any) -> str:
    return form(figures[key]) if figures.get(key) is not None else "-"


def _ratios(report: RunReport) -> list[str]:
    teacher, int8 = report["teacher"], report["tflite"]["int8"]
    lines = []
    seeds = len(report["seeds"])
    mean = f" in the mean of {seeds} seeds" if seeds > 1 else ""
    lost = 100 * (teacher["top1"] - int8["top1"])
    if teacher.get("bytes"):
        lines.append(
            f"int8 student: {times(teacher['bytes'] / int8['bytes'], 'small')} and "
            f"{times(teacher['latency_ms'] / int8['latency_ms'], 'fast')} than the "
            "teacher's float file (LiteRT on this computer"
            f"{', which was busy' if int8.get('busy') else ''}; a phone differs), "
            f"{abs(lost):.2f} points {'below' if lost >= 0 else 'above'} it{mean}"
        )
    if report.get("baseline"):
        gain = 100 * (report["student"]["top1"] - report["baseline"]["top1"])
        lines.append(
            f"the teacher's part: {gain:+.2f} points over the same student trained "
            f"without it at the same budget ({seeds} seed{'s' if seeds > 1 else ''})"
        )
    on = report["settings"]["measured_on"]
    count = report["settings"]["samples"][on]
    measured = f"measured on {count:,} {on} sample{'' if count == 1 else 's'}"
    if count < FEW_SAMPLES:
        measured += f", where one is {100 / count:.3g} points: too few to tell by"
    return [*lines, measured]
