"""The report of a distillation: a table for the terminal and one HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
Report = Mapping[str, Any]

_ROWS = (
    ("teacher", "teacher, float32"),
    ("baseline", "student without teacher"),
    ("student", "student, distilled"),
    ("float32", "student .tflite, float32"),
    ("int8", "student .tflite, int8"),
)
# Colours that keep apart on white and on black, and for the colour-blind.
_COLOURS = {
    "teacher": "#7a7f87",
    "baseline": "#d18f00",
    "student": "#2a78d6",
    "float32": "#5aa9e6",
    "int8": "#0b8f6a",
    "student_qat": "#0b8f6a",
}
_EXAMPLES = 10


def table(report: Report) -> str:
    """Renders the figures of a run as one plain-text table.

    Args:
        report: The content of `report.json`.

    Returns:
        One row a model or file; a dash where a figure does not apply.
    """
    header = ["", "top-1 %", "agree %", "params", "MACs", "bytes", "ms, 1 thread"]
    lines = [header, *_cells(report)]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    text = []
    for row in lines:
        first, *rest = row
        text.append(
            "  ".join(
                [
                    first.ljust(widths[0]),
                    *(
                        cell.rjust(width)
                        for cell, width in zip(rest, widths[1:], strict=True)
                    ),
                ]
            ).rstrip()
        )
    return "\n".join([*text, *_ratios(report)])


def _figures(report: Report, name: str) -> Mapping[str, Any] | None:
    found = report["tflite"].get(name) if name in report["tflite"] else report.get(name)
    return found or None


def _cells(report: Report) -> list[list[str]]:
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
                _number(figures, "macs", lambda v: f"{v / 1e6:.2f} M"),
                _number(figures, "bytes", lambda v: f"{v:,}"),
                _number(figures, "latency_ms", lambda v: f"{v:.3f}"),
            ]
        )
    return cells


def _number(figures: Mapping[str, Any], key: str, form: Any) -> str:
    return form(figures[key]) if figures.get(key) is not None else "-"


def _times(ratio: float, word: str) -> str:
    if ratio < 1.0:
        opposite = {"small": "larger", "fast": "slower"}[word]
        return f"{1 / ratio:.1f} times {opposite}"
    comparative = {"small": "smaller", "fast": "faster"}[word]
    return f"{ratio:.{0 if ratio >= 10 else 1}f} times {comparative}"


def _ratios(report: Report) -> list[str]:
    teacher, int8 = report["teacher"], report["tflite"]["int8"]
    lines = []
    lost = 100 * (teacher["top1"] - int8["top1"])
    if teacher.get("bytes"):
        lines.append(
            f"int8 student: {_times(teacher['bytes'] / int8['bytes'], 'small')} and "
            f"{_times(teacher['latency_ms'] / int8['latency_ms'], 'fast')} than the "
            "teacher's float file (LiteRT on this computer; a phone differs), "
            f"{abs(lost):.2f} points {'below' if lost >= 0 else 'above'} it"
        )
    if report.get("baseline"):
        gain = 100 * (report["student"]["top1"] - report["baseline"]["top1"])
        lines.append(
            f"the teacher's part: {gain:+.2f} points over the same student trained "
            f"without it at the same budget ({len(report['seeds'])} seed"
            f"{'s' if len(report['seeds']) > 1 else ''})"
        )
    samples = report["settings"]["samples"]
    on = report["settings"]["measured_on"]
    lines.append(f"measured on {samples[on]:,} {on} samples")
    return lines


def page(
    report: Report,
    *,
    x: Array,
    y: Array,
    teacher: Array,
    student: Array,
    int8: Array,
    curves: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    """Renders a run as one self-contained HTML page.

    Args:
        report: The content of `report.json`.
        x: The samples that the figures were taken on, `(samples, ...)`.
        y: Their class indices, `(samples,)`.
        teacher: The teacher's logits, `(samples, classes)`.
        student: The float student's outputs, `(samples, classes)`.
        int8: The int8 file's outputs, `(samples, classes)`.
        curves: Learning curves: model to column to one value an epoch.

    Returns:
        The page's HTML: no script, nothing fetched.
    """
    labels = report["labels"]
    sections = [
        _section("What was gained, and what it cost", _html_table(report)),
        _section(
            "Accuracy against size and latency",
            _image(_plot_trade_off(report), "top-1 against bytes and milliseconds"),
            "Up and to the left is better. Latency is this computer's, one thread, all "
            "files in one run: it ranks the files, it does not tell a phone's time.",
        ),
    ]
    if curves:
        sections.append(
            _section(
                "How it learned",
                _image(_plot_curves(curves), "learning curves"),
                "The distilled student and the baseline saw the same images in the "
                "same order.",
            )
        )
    sections += [
        _section(
            "Where the int8 student is wrong",
            _image(_plot_confusion(y, int8.argmax(-1), labels), "confusion matrix"),
            "Each row is a true class; the numbers are per cent of its samples.",
        ),
        _section(
            "What int8 changed",
            _image(_plot_int8(student, int8), "difference of int8 and float"),
            _int8_words(student, int8, y),
        ),
        _section(
            "Where teacher and student differ",
            _examples(x, y, teacher, student, int8, labels),
        ),
        _section("Settings and gates", _settings(report)),
    ]
    return _PAGE.format(
        summary=html.escape(" ".join(_ratios(report)[:1])), body="\n".join(sections)
    )


def _section(title: str, *parts: str) -> str:
    body = "\n".join(
        part if part.startswith("<") else f"<p>{html.escape(part)}</p>"
        for part in parts
    )
    return f"<section><h2>{html.escape(title)}</h2>\n{body}\n</section>"


def _html_table(report: Report) -> str:
    header = ["", "top-1 %", "agreement %", "parameters", "MACs", "bytes"]
    header.append("ms, 1 thread")
    head = "".join(f"<th>{cell}</th>" for cell in header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in _cells(report)
    )
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in _ratios(report))
    return (
        f"<div class='wide'><table><tr>{head}</tr>{rows}</table></div><ul>{notes}</ul>"
    )


def _settings(report: Report) -> str:
    gates = "".join(
        f"<tr><td>{html.escape(gate['name'].replace('_', ' '))}</td>"
        f"<td>{gate['required']:g}</td><td>"
        + ("not measured" if gate["measured"] is None else f"{gate['measured']:.2f}")
        + f"</td><td>{'kept' if gate['passed'] else '<b>missed</b>'}</td></tr>"
        for gate in report["gates"]
    )
    settings = "".join(
        f"<tr><td>{html.escape(key.replace('_', ' '))}</td>"
        f"<td>{html.escape(_plain(value))}</td></tr>"
        for key, value in report["settings"].items()
    )
    return (
        "<div class='pair'><table><tr><th>gate</th><th>limit</th><th>measured</th>"
        f"<th></th></tr>{gates}</table><table>{settings}</table></div>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {count:,}" for key, count in value.items())
    return str(value)


def _figure(columns: int, width: float, height: float) -> tuple[Figure, Any]:
    # A figure of its own, not pyplot's: no display, no global state of the user's.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _image(figure: Figure, words: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{html.escape(words)}' src='data:image/png;base64,{data}'>"


def _plot_trade_off(report: Report) -> Figure:
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _figure(2, 9.5, 3.6)
    for axis, key, title in (
        (axes[0], "bytes", "file size, KiB"),
        (axes[1], "latency_ms", "latency, ms (1 thread, this computer)"),
    ):
        for name, words in _ROWS:
            figures = _figures(report, name)
            if not figures or key not in figures:
                continue
            value = figures[key] / (1024 if key == "bytes" else 1)
            axis.errorbar(
                value,
                100 * figures["top1"],
                yerr=100 * figures.get("top1_sd", 0.0),
                fmt="o",
                markersize=9,
                color=_COLOURS[name],
                label=words,
            )
        if report.get("baseline"):
            axis.axhline(
                100 * report["baseline"]["top1"],
                color=_COLOURS["baseline"],
                linestyle="--",
                linewidth=1.2,
                label="student without teacher",
            )
        axis.set_xscale("log")
        # 200 and 0.05, where a log axis would say powers of ten.
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.15, y=0.2)
        axis.set_xlabel(title)
        axis.set_ylabel("top-1, %")
        axis.grid(alpha=0.25)
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _plot_curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    titles = {
        "student": "distilled",
        "baseline": "without teacher",
        "student_qat": "distilled, quantization-aware",
    }
    figure, axes = _figure(2, 9.5, 3.4)
    longest = max(len(curve["loss"]) for curve in curves.values())
    for name, curve in curves.items():
        # The quantization-aware epochs follow on those of the float student.
        start = longest if name == "student_qat" else 0
        for axis, keys in (
            (axes[0], ("val_accuracy", "accuracy")),
            (axes[1], ("loss",)),
        ):
            key = next((key for key in keys if key in curve), None)
            if key is None:
                continue
            values = np.asarray(curve[key]) * (100 if "accuracy" in key else 1)
            axis.plot(
                start + 1 + np.arange(len(values)),
                values,
                marker="o",
                markersize=3,
                color=_COLOURS[name],
                label=titles[name],
            )
    held_out = any("val_accuracy" in curve for curve in curves.values())
    axes[0].set_ylabel(f"top-1 on {'validation' if held_out else 'training'} data, %")
    axes[1].set_ylabel("training loss (of its own kind)")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(frameon=False)
    return figure


def _plot_confusion(y: Array, predicted: Array, labels: Sequence[str]) -> Figure:
    classes = len(labels)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (y, predicted), 1)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(9.0, 2.6 + 0.45 * classes)
    figure, axes = _figure(1, size * 1.2, size)
    axis = axes[0]
    # The square root keeps the rare confusions, which are the news, visible.
    axis.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=10)
    if classes <= 30:
        axis.set_xticks(range(classes), labels, rotation=45, ha="right")
        axis.set_yticks(range(classes), labels)
    if classes <= 15:
        for row, column in np.argwhere(share >= 0.5):
            value = share[row, column]
            axis.text(
                column,
                row,
                f"{value:.0f}" if value >= 10 else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 45 else "black",
            )
    axis.set_xlabel("predicted by the int8 file")
    axis.set_ylabel("true class")
    return figure


def _plot_int8(student: Array, int8: Array) -> Figure:
    difference = (int8 - student).ravel()
    spread = float(student.max() - student.min()) or 1.0
    figure, axes = _figure(2, 9.5, 3.2)
    axes[0].hist(100 * difference / spread, bins=81, color=_COLOURS["int8"])
    axes[0].set_yscale("log")
    axes[0].set_xlabel("int8 minus float output, % of the outputs' range")
    axes[0].set_ylabel("outputs")
    top = np.sort(student, axis=-1)
    margin = top[:, -1] - top[:, -2]
    changed = int8.argmax(-1) != student.argmax(-1)
    edges = np.linspace(0, float(np.quantile(margin, 0.98)) or 1.0, 21)
    total, _ = np.histogram(margin, edges)
    moved, _ = np.histogram(margin[changed], edges)
    axes[1].bar(
        edges[:-1],
        100 * moved / np.maximum(total, 1),
        width=np.diff(edges),
        align="edge",
        color=_COLOURS["int8"],
    )
    axes[1].set_xlabel("how sure the float student was: first minus second output")
    axes[1].set_ylabel("predictions changed, %")
    return figure


def _int8_words(student: Array, int8: Array, y: Array) -> str:
    before, after = student.argmax(-1), int8.argmax(-1)
    changed = before != after
    mended = changed & (after == y)
    broken = changed & (before == y)
    return (
        f"int8 changed {int(changed.sum())} of {len(y):,} predictions: "
        f"{int(broken.sum())} that were right became wrong, {int(mended.sum())} that "
        "were wrong became right, mostly where the float student was unsure."
    )


def _examples(
    x: Array,
    y: Array,
    teacher: Array,
    student: Array,
    int8: Array,
    labels: Sequence[str],
) -> str:
    told = [outputs.argmax(-1) for outputs in (teacher, student, int8)]
    differing = np.flatnonzero(told[0] != told[1])[:_EXAMPLES]
    if not len(differing):
        return "<p>On these samples teacher and student always agree.</p>"
    cells = []
    for index in differing:
        picture = _picture(x[index])
        words = "".join(
            f"<div class='{'right' if outputs[index] == y[index] else 'wrong'}'>"
            f"{who}: {html.escape(labels[outputs[index]])}</div>"
            for who, outputs in zip(("teacher", "student", "int8"), told, strict=True)
        )
        cells.append(
            f"<figure>{picture}<figcaption><b>{html.escape(labels[y[index]])}</b>"
            f"{words}</figcaption></figure>"
        )
    share = 100 * float((told[0] != told[1]).mean())
    return (
        f"<p>They differ on {share:.1f} % of the samples; the first "
        f"{len(differing)} of them, the true class in bold.</p>"
        f"<div class='examples'>{''.join(cells)}</div>"
    )


def _picture(sample: Array) -> str:
    """A sample as an image where it has the shape of one, else nothing."""
    if sample.ndim != 3 or sample.shape[-1] not in (1, 3):
        return ""
    from matplotlib.image import imsave

    low, high = float(sample.min()), float(sample.max())
    shown = (np.asarray(sample, "float32") - low) / ((high - low) or 1.0)
    if shown.shape[-1] == 1:
        shown = np.repeat(shown, 3, axis=-1)
    buffer = io.BytesIO()
    imsave(buffer, shown, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img class='sample' alt='' src='data:image/png;base64,{data}'>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kdlite report</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }}
h1 {{ margin-bottom: .2rem; }}
h2 {{ margin: 2.2rem 0 .6rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--line);
         text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
section > img {{ max-width: 100%; background: white; border-radius: 6px; }}
.pair {{ display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }}
.examples {{ display: grid; gap: 1rem;
            grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }}
figure {{ margin: 0; padding: .6rem; background: var(--soft); border-radius: 6px; }}
.sample {{ width: 84px; image-rendering: pixelated; }}
figcaption {{ font-size: .85rem; }}
.right::after {{ content: " \\2713"; color: #0b8f6a; }}
.wrong::after {{ content: " \\2717"; color: #d1453b; }}
@media print {{ section {{ break-inside: avoid; }} body {{ margin: 0; }} }}
</style></head><body>
<h1>kdlite report</h1>
<p>{summary}</p>
{body}
</body></html>
"""
