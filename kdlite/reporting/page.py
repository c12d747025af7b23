"""The report as one HTML page: nothing fetched, no script, light and dark, on paper."""

from __future__ import annotations

import html
from typing import Any

from kdlite.reporting import figures
from kdlite.reporting.comparison import Comparison
from kdlite.reporting.costs import Cost
from kdlite.reporting.figures import Rows
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
            *(
                table(*figures.scores(comparison, task))
                for task in comparison.tasks.values()
            ),
            _figures(figures.costs(comparison)),
            bullets(figures.notes(comparison)),
        ),
        *_each(
            comparison,
            "Does the difference separate?",
            _separations,
            words=figures.TESTS,
        ),
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
            section(heading, table(rows[0], rows[1:], heading, named_above=True))
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
        mean = f" in the mean of {about.seeds} seeds" if about.seeds > 1 else ""
        parts[0] += f": {metric.title} {metric.told(value)}{unit}{mean}"
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
        single = any(file.seeds == 1 for file in comparison.of("file"))
        files = "; files of one seed are of that one" if single else ""
        parts.insert(0, paragraph(f"Of {comparison.shown}{files}."))
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


def _figures(rows: Rows | None) -> str:
    return "" if rows is None else table(*rows)


def _separations(comparison: Comparison, task: Task) -> list[str]:
    rows = figures.separations(comparison, task)
    return [table(*rows)] if rows else []


def _energy(comparison: Comparison) -> str:
    rows, words = figures.energy(comparison)
    told = bullets(words) if rows else paragraph(*words)
    return section("Energy and CO2", _figures(rows), told)
