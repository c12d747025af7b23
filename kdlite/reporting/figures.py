"""The figures of a comparison as rows of cells: the page and the model card have them.

Both are made of these, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kdlite.lite.runtime import busy_words
from kdlite.reporting.comparison import Comparison
from kdlite.reporting.scores import METRICS
from kdlite.reporting.tasks import Task

_NAN = "-"

#: What the tests behind `separations` are, and what follows from them.
TESTS = (
    "Over samples: on those of the run that is shown, which tells two trained models "
    "apart; the exact McNemar test (1947) where a sample is right or wrong, else a "
    "paired t test, and none where a sample has several decisions, which depend on "
    "each other. Over seeds: a paired t test, which tells two ways of training apart, "
    "and counts more where there is one. None where the two are not of the same seeds: "
    "how far apart seeds are by chance would count as a difference. A difference "
    "separates where p is below 0.05; of many differences one in twenty does by chance."
)


class Rows(NamedTuple):
    """A table of plain text.

    Attributes:
        header: Of the columns.
        rows: Cells, as many in each row; the first says what the row is of.
        caption: What the table shows.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def scores(comparison: Comparison, task: Task) -> Rows:
    """Returns what each scored: means over seeds, with the headline's deviation."""
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
                cell += f" ± {METRICS[name].spread(sd)}"
            row.append(cell)
        rows.append(row)
    on = f"Measured on {task.samples:,} {comparison.measured_on} samples"
    if task.name:
        on = f"{task.name}: {on[0].lower()}{on[1:]}"
    seeds = max(c.seeds for c in comparison.contenders)
    if seeds > 1:
        on += f"; means over {seeds} seeds, ± standard deviation"
    return Rows(["", *(METRICS[name].heading for name in used)], rows, on)


def costs(comparison: Comparison) -> Rows | None:
    """Returns what each costs, or None where nothing of it is known."""
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
    return Rows(header, rows, caption) if len(header) > 1 else None


def notes(comparison: Comparison) -> list[str]:
    """Returns how scores and costs are to be read, a sentence or two each."""
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


def separations(comparison: Comparison, task: Task) -> Rows | None:
    """Returns the differences that matter, each tested; None where there are none."""
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
        return None
    of = METRICS[test.samples_metric].title
    return Rows(
        [
            "",
            "verdict",
            f"gain in {metric.title}",
            "p over samples" if of == metric.title else f"p over samples, of {of}",
            "p over seeds",
        ],
        rows,
        "How likely chance alone gives a difference as large",
    )


def _p(value: float | None) -> str:
    if value is None:
        return _NAN
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def energy(comparison: Comparison) -> tuple[Rows | None, list[str]]:
    """Returns the energy and CO2 of each, and what these estimates rest on.

    Args:
        comparison: What was measured.

    Returns:
        None and how to have them measured, where they were not.
    """
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
    if not rows:
        return None, [
            "Not measured. With country= or --country (three letters, where the "
            'electricity comes from) and pip install "kdlite[energy]", CodeCarbon '
            "estimates both."
        ]
    header = [
        "",
        "training, Wh",
        "training, g CO2",
        "training, mean W",
        "1,000 inferences, Wh",
        "1,000 inferences, g CO2",
        "1,000 inferences, mean W",
    ]
    return Rows(header, rows, "Estimates, not readings of a meter"), [
        *assumptions,
        "Training is that of the model itself: neither the teacher's, nor the "
        "labelling by it, nor what was tried before.",
        "1,000 inferences: one after the other on this computer, one thread.",
    ]


def millions(count: int) -> str:
    """Writes multiply-accumulates as they are read: "2.08 M", of fewer "14,112"."""
    return f"{count / 1e6:,.2f} M" if count >= 1_000_000 else f"{count:,}"
