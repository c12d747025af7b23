"""Sections of the page that show: plots, matrices, samples."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdlite.reporting.comparison import Comparison, Contender, pareto
from kdlite.reporting.examples import Group, differing, picture, text_of
from kdlite.reporting.markup import (
    bullets,
    figure,
    figures_in_a_row,
    paragraph,
    section,
    table,
)
from kdlite.reporting.plots import Plots
from kdlite.reporting.scores import METRICS, Part
from kdlite.reporting.significance import wilson
from kdlite.reporting.tasks import Task

Array = np.ndarray[Any, Any]

_TABLE_CLASSES = 20  # a confusion matrix of more is a picture
_HEAT_POINTS = 100  # a side, as many as the picture has room for
_WORST = 10
_POINTS = 300
_CURVES = 6
_NAN = "-"


def focus(comparison: Comparison) -> Contender:
    """Returns the contender that the page is about: the last file, else the student."""
    for role in ("file", "student", "teacher"):
        if found := comparison.of(role):
            return found[-1]
    return comparison.contenders[-1]


def trade_off(comparison: Comparison, task: Task, plots: Plots) -> list[str]:
    """Accuracy over size and over latency, with the Pareto front."""
    metric = METRICS[task.headline]
    factor = 100 if metric.share else 1
    baseline = comparison.of("baseline")
    level = baseline[0].mean(task.name, task.headline) if baseline else None
    figures = []
    for key, unit, scale in (
        ("bytes", "file size, KiB", 1 / 1024),
        ("latency_ms", "latency, ms", 1.0),
    ):
        values, merits = {}, {}
        for contender in comparison.contenders:
            cost = getattr(contender.cost, key)
            merit = contender.mean(task.name, task.headline)
            if not cost or merit is None:
                continue
            sd = contender.sd(task.name, task.headline) or 0.0
            values[contender.name] = (cost * scale, factor * merit, factor * sd)
            merits[contender.name] = (cost, merit if metric.up else -merit)
        if len(values) < 2:
            continue
        front = pareto(merits)
        words = f"{metric.title} over {unit}: " + "; ".join(
            f"{name} {merit:.4g} at {cost:.4g}"
            for name, (cost, merit, _) in values.items()
        )
        figures.append(
            figure(
                plots.points(
                    values,
                    front,
                    (unit, metric.heading),
                    words,
                    None if level is None else factor * level,
                ),
                f"On the Pareto front of {unit.split(',')[0]}: {', '.join(front)}.",
            )
        )
    if not figures:
        return []
    better = "Up" if metric.up else "Down"
    words = f"{better} and to the left is better; the line is the Pareto front."
    if level is not None:
        words += " The dashed line is the student without a teacher."
    return [figures_in_a_row(figures, large=True), paragraph(words)]


def curves(comparison: Comparison, plots: Plots) -> str:
    """Learning curves: metrics, held out ones where there are any, then losses."""
    history = comparison.history
    told: dict[str, dict[str, Sequence[float]]] = {}
    for key in sorted({key for columns in history.values() for key in columns}):
        shown = {
            name: columns[key] for name, columns in history.items() if key in columns
        }
        twin = "loss" not in key and any(f"val_{key}" in c for c in history.values())
        if any(shown.values()) and not twin:
            told[key] = shown
    first = {"val_loss": 1, "loss": 2}
    order = sorted(
        told, key=lambda key: (first.get(key, 3) if "loss" in key else 0, key)
    )
    # What is drawn, with what would repeat it: often one loss is all of another.
    repeats: dict[str, list[str]] = {}
    for key in order:
        same = (drawn for drawn in repeats if _is_in(told[key], told[drawn]))
        repeats.setdefault(next(same, key), []).append(key)
    figures = []
    for key, (_, *equal) in list(repeats.items())[:_CURVES]:
        title = key.replace("_", " ")
        words = f"{title}: "
        words += "; ".join(f"{name} {_ends(v)}" for name, v in told[key].items())
        if equal:
            words += f"; equal to {', '.join(equal).replace('_', ' ')}"
        svg = plots.lines(told[key], "epoch", title, words)
        figures.append(figure(svg, f"{words}."))
    if not figures:
        return ""
    # What a caller gives may be of any seed.
    of = paragraph(f"Of {comparison.shown}.") if comparison.run else ""
    return section(
        "How it learned", of if comparison.shown else "", figures_in_a_row(figures)
    )


def _is_in(
    curves: Mapping[str, Sequence[float]], others: Mapping[str, Sequence[float]]
) -> bool:
    """Whether each curve is, figure for figure, that of the same model among others."""
    return all(
        name in others and np.array_equal(values, others[name], equal_nan=True)
        for name, values in curves.items()
    )


def _ends(values: Sequence[float]) -> str:
    known = [f"{value:.4g}" for value in values if np.isfinite(value)]
    if len(known) < 2:
        return known[0] if known else "not known"
    return f"from {known[0]} to {known[-1]}"


def calibration(comparison: Comparison, task: Task, plots: Plots) -> list[str]:
    """Reliability of each contender."""
    figures = []
    for contender in comparison.contenders:
        bins = contender.scores[task.name][0].reliability
        if bins is None:
            continue
        total = max(1, bins.counts.sum())
        sure = float((bins.confidence * bins.counts).sum() / total)
        right = float((bins.accuracy * bins.counts).sum() / total)
        words = (
            f"{contender.name}: {100 * sure:.1f} % sure on average, "
            f"{100 * right:.1f} % right; calibration error {100 * bins.ece:.2f} %"
        )
        figures.append(
            figure(plots.reliability(contender.name, bins, words), f"{words}.")
        )
    return [figures_in_a_row(figures)] if figures else []


def wrong(comparison: Comparison, task: Task, plots: Plots) -> list[str]:
    """The worst classes, the confusion, or values said over right ones."""
    about = focus(comparison)
    scores = about.scores[task.name][0]
    parts = [_worst(task, about)]
    if scores.confusion is not None:
        parts += _confusion(task, about, scores.confusion, plots)
    if task.kind == "values":
        parts.append(_scatter(comparison, task, plots))
    return [part for part in parts if part]


def _worst(task: Task, about: Contender) -> str:
    scores = about.scores[task.name][0]
    key = {"values": "mae", "labels": "f1"}.get(task.kind, "recall")

    def bad(part: Part) -> float:
        value = part.figures[key]
        # What a single sample says of its class may be chance; what many say is worse.
        return wilson(value, part.count)[1] if key == "recall" else value

    parts = [part for part in scores.parts if part.count]
    parts.sort(key=bad, reverse=key == "mae")
    if len(parts) < 2:
        return ""
    header = [
        "",
        "samples",
        *(METRICS[k].heading if k in METRICS else f"{k}, %" for k in parts[0].figures),
    ]
    header = [f"{h} (95 % interval)" if h == "recall, %" else h for h in header]
    taken = scores.confusion is not None and len(task.labels) > 2
    header += ["most often taken for"] if taken else []
    rows = []
    for part in parts[:_WORST]:
        row = [part.name, f"{part.count:,}"]
        for name, value in part.figures.items():
            if np.isnan(value):
                row.append(_NAN)
            elif name == "mae":
                row.append(f"{value:.4g}")
            else:
                row.append(f"{100 * value:.1f}")
            if name == "recall":
                low, high = wilson(value, part.count)
                row[-1] += f" ({100 * low:.0f} to {100 * high:.0f})"
        if taken and scores.confusion is not None:
            wrong = scores.confusion[task.labels.index(part.name)].copy()
            wrong[task.labels.index(part.name)] = 0
            most = int(wrong.argmax())
            # Isolated: a name that is read from the right takes no number along.
            name = f"\u2068{task.labels[most]}\u2069"
            row.append(f"{name} ({wrong[most]:,})" if wrong[most] else _NAN)
        rows.append(row)
    what = {"values": "values", "labels": "labels"}.get(task.kind, "classes")
    caption = f"The worst {what} of {about.name}"
    if key == "recall":
        caption += ", by what recall is at best, at the upper end of its interval"
    return table(header, rows, caption)


def _confusion(task: Task, about: Contender, counts: Array, plots: Plots) -> list[str]:
    if len(task.labels) > _TABLE_CLASSES:
        right = float(np.trace(counts) / max(1, counts.sum()))
        words = f"Confusion of {about.name}: {100 * right:.1f} % right"
        blocks, size = _blocks(counts)
        if size > 1:
            words += (
                f"; each point is {size} true by {size} predicted classes, "
                f"{100 * np.trace(blocks) / max(1, blocks.sum()):.1f} % on the diagonal"
            )
        drawn = plots.heat(_shares(blocks), len(task.labels), words)
        return [
            _most_confused(task, about, counts),
            figures_in_a_row([figure(drawn, f"{words}.")], large=True),
        ]
    share = _shares(counts)
    head = "".join(
        f'<th scope="col">{html.escape(label)}</th>' for label in task.labels
    )
    rows = []
    for i, label in enumerate(task.labels):
        cells = []
        for j in range(len(task.labels)):
            value = 100 * share[i, j]
            told = (
                ""
                if counts[i, j] == 0
                else f"{value:.0f}"
                if value >= 10
                else f"{value:.1f}"
            )
            # The square root keeps the rare confusions, which are the news, visible.
            cells.append(f'<td style="--v: {np.sqrt(share[i, j]):.2f}">{told}</td>')
        rows.append(
            f'<tr><th scope="row">{html.escape(label)}</th>{"".join(cells)}</tr>'
        )
    caption = html.escape(
        f"Confusion of {about.name}: rows are true classes, columns predicted ones, in "
        "per cent of the row"
    )
    return [
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}">'
        f'<table class="heat"><caption>{caption}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    ]


def _shares(counts: Array) -> Array:
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _blocks(counts: Array) -> tuple[Array, int]:
    """Adds up neighbouring classes, so that a picture has a point for each block."""
    size = -(-len(counts) // _HEAT_POINTS)
    padded = np.pad(counts, (0, -len(counts) % size))
    blocks = len(padded) // size
    return padded.reshape(blocks, size, blocks, size).sum((1, 3)), size


def _most_confused(task: Task, about: Contender, counts: Array) -> str:
    """The pairs of classes that were confused most often, and more than once."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_WORST]
    rows = []
    for true, said in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if (count := int(wrong[true, said])) > 1:
            of = int(counts[true].sum())
            share = f"{100 * count / of:.1f}"
            names = [task.labels[true], task.labels[said]]
            rows.append([*names, f"{count:,} of {of:,}", share])
    header = ["class", "taken for", "samples", "of the class, %"]
    caption = f"What {about.name} confused most often"
    return table(header, rows, caption) if rows else ""


def _scatter(comparison: Comparison, task: Task, plots: Plots) -> str:
    last = len(task.target) - 1
    shown = np.linspace(0, last, min(_POINTS, last + 1)).astype(int)
    figures = []
    for i, label in enumerate(task.labels[:4]):
        told = {
            c.name: task.rows(c.outputs[task.name])[shown, i]
            for c in comparison.contenders
            if c.role in ("student", "file")
        } or {
            c.name: task.rows(c.outputs[task.name])[shown, i]
            for c in comparison.contenders
        }
        words = f"What was said over what is right, value {label}, {len(shown)} samples"
        figures.append(
            figure(plots.scatter(task.target[shown, i], told, words), f"{words}.")
        )
    return figures_in_a_row(figures)


def changed(comparison: Comparison, task: Task, plots: Plots) -> list[str]:
    """What each file changed beside the model that it was made from."""
    models = comparison.of("student") or comparison.of("teacher")
    files = comparison.of("file")
    if not models or not files:
        return []
    rows, moved, words = [], {}, []
    befores = {}
    for file in files:
        before = file.origin or models[-1]
        if file.origin is None:
            words.append(_of_another(file, before))
        if before.seeds != file.seeds:
            continue
        befores[file.name] = before
        was = task.rows(before.outputs[task.name])
        now = task.rows(file.outputs[task.name])
        moved[file.name] = float(np.sqrt(((now - was) ** 2).mean()))
        row = [file.name, before.name]
        if task.kind != "values":
            a = before.scores[task.name][0].per_sample
            b = file.scores[task.name][0].per_sample
            other = (
                before.scores[task.name][0].decided != file.scores[task.name][0].decided
            )
            row += [
                f"{int(other.sum()):,} of {other.size:,}",
                f"{int((b < a).sum()):,}",
                f"{int((b > a).sum()):,}",
            ]
        row += [f"{moved[file.name]:.3g}", f"{float(np.abs(now - was).max()):.3g}"]
        rows.append(row)
    if not rows:
        return [bullets(words)]
    header = ["", "beside"]
    if task.kind != "values":
        header += ["decisions changed", "samples worse", "samples better"]
    header += ["output apart, RMS", "at most"]
    most = max(moved, key=lambda name: moved[name])
    caption = "Each beside the model that it was made from, sample by sample"
    parts = [table(header, rows, caption), bullets(words)]
    if moved[most] > 0:
        parts.append(
            figures_in_a_row(
                _change_plots(comparison, task, plots, befores[most], most)
            )
        )
    return parts


def _of_another(file: Contender, model: Contender) -> str:
    """Says that it is not known from which model a file was made."""
    if file.seeds == model.seeds:
        return (
            f"{file.name} was made from another model than {model.name} as it is here, "
            "as its provenance says; from the quantization-aware one, say. So what "
            "changed is that model's training, too."
        )
    return (
        f"{file.name} is not held against {model.name} sample by sample: from which of "
        f"its {model.seeds} seeds it was made is not known. It is where these are "
        "given as Keras models, or a file for each."
    )


def _change_plots(
    comparison: Comparison, task: Task, plots: Plots, before: Contender, name: str
) -> list[str]:
    file = next(c for c in comparison.contenders if c.name == name)
    was, now = (task.rows(c.outputs[task.name]) for c in (before, file))
    spread = float(was.max() - was.min()) or 1.0
    words = f"{name}: how far its outputs are from those of {before.name}"
    figures = [
        figure(
            plots.histogram(
                100 * (now - was).ravel() / spread,
                "difference, % of the outputs' range",
                "outputs",
                name,
                words,
            ),
            f"{words}.",
        )
    ]
    changed = now.argmax(-1) != was.argmax(-1)
    if task.kind == "classes" and changed.any():
        top = np.sort(was, axis=-1)
        margin = top[:, -1] - top[:, -2]
        # As far as decisions changed, and some way on where they did not.
        reach = 1.5 * margin[changed].max()
        edges = np.linspace(0, float(min(reach, margin.max())) or 1.0, 21)
        total, _ = np.histogram(margin, edges)
        other, _ = np.histogram(margin[changed], edges)
        words = f"{name}: decisions changed, by how sure {before.name} was"
        figures.append(
            figure(
                plots.bars(
                    edges,
                    100 * other / np.maximum(total, 1),
                    ("first minus second output", "decisions changed, %"),
                    name,
                    words,
                ),
                f"{words}.",
            )
        )
    return figures


def examples(comparison: Comparison, task: Task) -> list[str]:
    """Samples on which teacher, student and files differ."""
    groups = differing(comparison, task)
    if groups is None:
        return []
    if not groups:
        return [paragraph("On these samples all of them agree.")]
    return [_group(comparison, task, group) for group in groups]


def _group(comparison: Comparison, task: Task, group: Group) -> str:
    cards = []
    for index in group.samples:
        image = picture(comparison.inputs, index)
        right = task.told(task.target[index]) if task.positions == 1 else ""
        alt = html.escape(f"Sample {index}, {right}".rstrip(", "))
        if image:
            shown = f'<img class="sample" alt="{alt}" src="{image}">'
        else:
            shown = f"<code>{html.escape(text_of(comparison.inputs, index))}</code>"
        lines = []
        for contender in group.contenders:
            said, sign = _said(task, contender, index)
            sign = f'<span class="{sign}">{sign}</span>' if sign else ""
            lines.append(
                f"<li><bdi>{html.escape(contender.name)}</bdi>: "
                f"<b><bdi>{html.escape(said)}</bdi></b> {sign}</li>"
            )
        head = f"right: <b><bdi>{html.escape(right)}</bdi></b> " if right else ""
        cards.append(
            f"<figure>{shown}<figcaption>{head}<small>(sample {index})</small>"
            f"<ul>{''.join(lines)}</ul></figcaption></figure>"
        )
    return (
        f"<h4>{html.escape(group.title)}</h4>"
        f'<div class="examples">{"".join(cards)}</div>'
    )


def _said(task: Task, contender: Contender, index: int) -> tuple[str, str]:
    """What a contender says of a sample, and whether that is right."""
    scores = contender.scores[task.name][0]
    if task.positions > 1:
        good = scores.per_sample[index]
        if task.kind == "values":
            return f"{-good:.4g} off on average", ""
        return f"{100 * good:.1f} % of {task.positions:,} positions right", ""
    said = scores.decided[index]
    if task.kind == "values":
        return task.told(said), ""
    good = np.all(said == task.target[index])
    return task.told(said), "right" if good else "wrong"
