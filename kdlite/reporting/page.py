"""The report as one HTML page: nothing fetched, no script, light and dark, on paper."""

from __future__ import annotations

import html
from typing import Any

from kdlite.lite.runtime import busy_words
from kdlite.reporting.comparison import Comparison
from kdlite.reporting.costs import Cost
from kdlite.reporting.markup import PAGE, bullets, paragraph, section, table
from kdlite.reporting.plots import Plots
from kdlite.reporting.scores import METRICS
from kdlite.reporting.sections import (
    calibration,
    changed,
    curves,
    examples,
    focus,
    trade_off,
    wrong,
)
from kdlite.reporting.tasks import Task

_NAN = "-"
_TESTS = (
    "Over samples: on those of the run that is shown, which tells two trained models "
    "apart; the exact McNemar test (1947) where a sample is right or wrong, else a "
    "paired t test, and none where a sample has several decisions, which depend on "
    "each other. Over seeds: a paired t test, which tells two ways of training apart, "
    "and counts more where there is one. None where the two are not of the same seeds: "
    "how far apart seeds are by chance would count as a difference. A difference "
    "separates where p is below 0.05; of many differences one in twenty does by chance."
)
_RELIABILITY = (
    "A model that is as often right as it is sure lies on the dashed line; below it, "
    "it is too sure. The bars say how many predictions are how sure."
)


def page(comparison: Comparison) -> str:
    """Renders a comparison as one self-contained HTML page.

    Args:
        comparison: What was measured.

    Returns:
        The page's HTML.

    Example:
        ``Path("report.html").write_text(page(comparison), encoding="utf-8")``
    """
    plots = Plots(comparison.series)
    sections = [
        section(
            "What was gained, and what it cost",
            *(_scores_table(comparison, task) for task in comparison.tasks.values()),
            _cost_table(comparison, plots),
            bullets(_notes(comparison)),
        ),
        *_each(comparison, "Does the difference separate?", _separations, words=_TESTS),
        *_each(comparison, "Against size and latency", trade_off, plots),
        curves(comparison, plots),
        *_each(
            comparison,
            "How sure, and how right",
            calibration,
            plots,
            words=_RELIABILITY,
            of_one=True,
        ),
        *_each(comparison, "Where it is wrong", wrong, plots, of_one=True),
        *_each(comparison, "What the files changed", changed, plots, of_one=True),
        *_each(comparison, "Where they differ", examples, of_one=True),
        _energy(comparison),
        *(
            section(heading, table(rows[0], rows[1:], heading))
            for heading, rows in comparison.notes.items()
        ),
    ]
    return PAGE.format(
        title=html.escape(comparison.title),
        summary=html.escape(summary(comparison)),
        legend=_legend(comparison, plots),
        body="\n".join(section for section in sections if section),
    )


def summary(comparison: Comparison) -> str:
    """Says in a sentence what came out.

    Args:
        comparison: What was measured.

    Returns:
        The figure of the contender that the page is about, beside the teacher's.
    """
    task = next(iter(comparison.tasks.values()))
    metric = METRICS[task.headline]
    about, teachers = focus(comparison), comparison.of("teacher")
    value = about.mean(task.name, task.headline)
    parts = [about.name]
    if value is not None:
        unit = " %" if metric.share else ""
        parts[0] += f": {metric.title} {metric.told(value)}{unit}"
        if teachers and teachers[0] is not about:
            theirs = teachers[0].mean(task.name, task.headline)
            if theirs is not None:
                gain = (value - theirs) * (1 if metric.up else -1)
                parts.append(f"{_apart(metric.share, gain)} the teacher")
    before = teachers[0].cost if teachers else Cost()
    if about.cost.bytes:
        parts.append(f"{about.cost.bytes:,} bytes")
        if before.bytes and teachers[0] is not about:
            parts[-1] += f", {times(before.bytes / about.cost.bytes, 'small')}"
    if about.cost.latency_ms and before.latency_ms and teachers[0] is not about:
        faster = times(before.latency_ms / about.cost.latency_ms, "fast")
        parts.append(f"{faster}, by a busy computer" if about.cost.busy else faster)
    return "; ".join(parts) + f". On {task.samples:,} {comparison.measured_on} samples."


def _apart(share: bool, gain: float) -> str:
    size = f"{100 * abs(gain):.2f} points" if share else f"{abs(gain):.3g}"
    if gain == 0:
        return "equal to"
    if share:
        return f"{size} {'above' if gain > 0 else 'below'}"
    return f"{size} {'better' if gain > 0 else 'worse'} than"


def millions(count: int) -> str:
    """Writes multiply-accumulates as they are read: "2.08 M", of fewer "14,112"."""
    return f"{count / 1e6:,.2f} M" if count >= 1_000_000 else f"{count:,}"


def times(ratio: float, word: str) -> str:
    """Says a ratio of sizes or times as it is.

    Args:
        ratio: How many times the first is the second.
        word: "small" or "fast": what the second is where the ratio is above 1.

    Returns:
        Such as "66 times smaller", or "1.2 times slower".
    """
    if ratio < 1.0:
        opposite = {"small": "larger", "fast": "slower"}[word]
        return f"{1 / ratio:.1f} times {opposite}"
    comparative = {"small": "smaller", "fast": "faster"}[word]
    return f"{ratio:.{0 if ratio >= 10 else 1}f} times {comparative}"


# --- parts of the page


def _each(
    comparison: Comparison,
    title: str,
    make: Any,
    *more: Any,
    words: str = "",
    of_one: bool = False,
) -> list[str]:
    """One section, with a part for each output that has something to say.

    With `of_one` it says that it is of one seed, where there are several.
    """
    parts = []
    for task in comparison.tasks.values():
        made = make(comparison, task, *more)
        if made and len(comparison.tasks) > 1:
            parts.append(f"<h3>{html.escape(task.name)}</h3>")
        parts += made
    if parts and words:
        parts.append(paragraph(words))
    if parts and of_one and comparison.shown:
        parts.insert(0, paragraph(f"Of {comparison.shown}."))
    return [section(title, *parts)] if parts else []


def _legend(comparison: Comparison, plots: Plots) -> str:
    items = []
    for name in comparison.series:
        colour, sign = plots.series(name)
        items.append(
            f'<li><span aria-hidden="true" style="color: {colour}">{sign}</span> '
            f"{html.escape(name)}</li>"
        )
    return "".join(items)


def _scores_table(comparison: Comparison, task: Task) -> str:
    used = [
        name
        for name in METRICS
        if any(c.mean(task.name, name) is not None for c in comparison.contenders)
    ]
    rows = []
    for contender in comparison.contenders:
        row = [contender.name]
        for name in used:
            mean, sd = contender.mean(task.name, name), contender.sd(task.name, name)
            cell = _NAN if mean is None else METRICS[name].told(mean)
            # The teacher agrees with itself, which says nothing.
            if contender.role == "teacher" and name in (
                "agreement",
                "teacher_distance",
            ):
                cell = _NAN
            elif sd is not None and name == task.headline:
                cell += f" ± {METRICS[name].told(sd)}"
            row.append(cell)
        rows.append(row)
    on = f"Measured on {task.samples:,} {comparison.measured_on} samples"
    if task.name:
        on = f"{task.name}: {on[0].lower()}{on[1:]}"
    seeds = max(c.seeds for c in comparison.contenders)
    if seeds > 1:
        on += f"; means over {seeds} seeds, ± standard deviation"
    return table(["", *(METRICS[name].heading for name in used)], rows, on)


def _cost_table(comparison: Comparison, plots: Plots) -> str:
    forms: dict[str, tuple[str, Any]] = {
        "params": ("parameters", lambda v: f"{v:,}"),
        "macs": ("MACs", millions),
        "bytes": ("bytes", lambda v: f"{v:,}"),
        "latency_ms": ("latency, ms", lambda v: f"{v:.3f}"),
        "latency_p90_ms": ("nine of ten runs within, ms", lambda v: f"{v:.3f}"),
        "memory_bytes": ("peak memory, KiB", lambda v: f"{v / 1024:,.0f}"),
    }
    known = [
        key
        for key in forms
        if any(getattr(c.cost, key) is not None for c in comparison.contenders)
    ]
    trained = any(c.cost.training for c in comparison.contenders)
    header = ["", *(forms[key][0] for key in known)]
    header += ["training, s"] if trained else []
    rows = []
    for contender in comparison.contenders:
        row = [contender.name]
        for key in known:
            value = getattr(contender.cost, key)
            row.append(_NAN if value is None else forms[key][1](value))
        if trained:
            used = contender.cost.training
            row.append(f"{used.seconds:,.1f}" if used else _NAN)
        rows.append(row)
    caption = f"Costs, of {comparison.shown}" if comparison.shown else "Costs"
    return table(header, rows, caption) if len(header) > 1 else ""


def _notes(comparison: Comparison) -> list[str]:
    lines = []
    if any(c.cost.latency_ms is not None for c in comparison.contenders):
        lines.append(
            "Latency: the fastest of many single runs in LiteRT on this computer, one "
            "thread, all files in turns: the one that other programs met least. It "
            "ranks the files; a phone has other times."
        )
    if busy := [c.cost.processor for c in comparison.contenders if c.cost.busy]:
        lines.append(
            f"Take the latencies, and how many times faster, with care: "
            f"{busy_words(min(filter(None, busy), default=0.0))}."
        )
    models = [c.cost for c in comparison.contenders if c.cost.latency_ms is None]
    if any(cost.bytes for cost in models):
        lines.append(
            "Bytes of a Keras model: its parameters in float32, a little less than a "
            "file of it. For its latency and memory export it (kdlite.export), and "
            "give that file, too."
        )
    if any(c.cost.memory_bytes is not None for c in comparison.contenders):
        lines.append(
            "Peak memory: by how much loading and running a file raised that of a "
            "process of its own."
        )
    if any(
        "ece" in s.metrics
        for c in comparison.contenders
        for r in c.scores.values()
        for s in r
    ):
        lines.append(
            "Calibration error: expected calibration error in 15 bins (Guo et al. "
            "2017, arXiv:1706.04599); 0 is best."
        )
    return lines


def _separations(comparison: Comparison, task: Task) -> list[str]:
    metric = METRICS[task.headline]
    rows = []
    for test in comparison.separations(task):
        gain = f"{100 * test.gain:+.2f} points" if metric.share else f"{test.gain:+.4g}"
        rows.append(
            [
                f"{test.first} over {test.second}",
                test.verdict,
                gain,
                _p(test.over_samples),
                _p(test.over_seeds),
            ]
        )
    if not rows:
        return []
    of = METRICS[test.samples_metric].title
    return [
        table(
            [
                "",
                "verdict",
                f"gain in {metric.title}",
                "p over samples" if of == metric.title else f"p over samples, of {of}",
                "p over seeds",
            ],
            rows,
            "How likely chance alone gives a difference as large",
        ),
    ]


def _p(value: float | None) -> str:
    if value is None:
        return _NAN
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _energy(comparison: Comparison) -> str:
    rows, assumptions = [], []
    for contender in comparison.contenders:
        cost = contender.cost
        cells = [contender.name]
        for used in (cost.training, cost.inference):
            if used is None or used.kwh is None or used.co2_kg is None:
                cells += [_NAN] * 3
            else:
                cells += [
                    f"{1000 * used.kwh:.3g}",
                    f"{1000 * used.co2_kg:.3g}",
                    f"{used.watts or 0:.1f}",
                ]
                assumptions += [
                    text for text in used.assumptions if text not in assumptions
                ]
        if set(cells[1:]) != {_NAN}:
            rows.append(cells)
    title = "Energy and CO2"
    if not rows:
        return section(
            title,
            paragraph(
                "Not measured. With country=... (three letters, where the electricity "
                'comes from) and pip install "kdlite[energy]", CodeCarbon estimates '
                "both."
            ),
        )
    header = [
        "",
        "training, Wh",
        "training, g CO2",
        "training, mean W",
        "1,000 inferences, Wh",
        "1,000 inferences, g CO2",
        "1,000 inferences, mean W",
    ]
    return section(
        title,
        table(header, rows, "Estimates, not readings of a meter"),
        bullets(
            [
                *assumptions,
                "Training is that of the model itself: neither the teacher's, nor the "
                "labelling by it, nor what was tried before.",
                "1,000 inferences: one after the other on this computer, one thread.",
            ]
        ),
    )
