"""Plots as inline SVG that takes the colours of the page, light or dark.

Matplotlib draws with marker colours that stand for variables of the page's style sheet;
the SVG it gives is then stripped of what a page does not need.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlite.reporting.scores import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

#: Shapes, so that series are told apart without colours, and their look in text.
MARKERS = {
    "s": "■",
    "^": "▲",
    "o": "●",
    "D": "◆",
    "v": "▼",
    "P": "✚",
    "X": "✖",
    "p": "⬟",
}
_SHAPES = tuple(MARKERS)
# Colours that nothing else has: each stands for a variable of the style sheet.
_SERIES = [f"#0000{160 + i:02x}" for i in range(len(_SHAPES))]
_INK, _FAINT, _ACCENT = "#0000f0", "#0000f1", "#0000f2"
_VARIABLES = {
    **{colour: f"var(--s{i})" for i, colour in enumerate(_SERIES)},
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _ACCENT: "var(--accent)",
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: read aloud, found, in the page's font
    "svg.hashsalt": "kdlite",
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _FAINT,
    "grid.alpha": 0.35,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

_MARGIN = 0.15  # of an axis of costs, at each end
_AS_IT_IS = ",.10g"  # 200 and 0.05, where a log axis would say powers of ten


class Plots:
    """Draws for one page: colours stay with their series, ids are unique.

    Args:
        names: The series in order; each keeps its colour and its shape.

    Example:
        >>> plots = Plots(["student"])
        >>> svg = plots.lines({"student": [1.0, 2.0]}, "epoch", "loss", "up")
        >>> svg.startswith('<svg role="img" aria-label="up"'), "var(--s0)" in svg
        (True, True)
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._place = {name: i % len(_SHAPES) for i, name in enumerate(names)}
        self._count = 0

    def series(self, name: str) -> tuple[str, str]:
        """Returns the style variable and the sign of a series."""
        place = self._place[name]
        return f"var(--s{place})", MARKERS[_SHAPES[place]]

    def _drawn(self, name: str) -> dict[str, Any]:
        place = self._place[name]
        return {"color": _SERIES[place], "marker": _SHAPES[place]}

    def points(
        self,
        values: Mapping[str, tuple[float, float, float]],
        front: Sequence[str],
        labels: tuple[str, str],
        words: str,
        level: float | None = None,
    ) -> str:
        """Draws a cost against a merit, with the Pareto front as a line.

        Args:
            values: By series its cost, merit and the merit's deviation.
            front: The series on the front, the cheapest first.
            labels: Of the two axes.
            words: What the plot shows, for those who do not see it.
            level: A merit to draw across, that of the baseline.

        Returns:
            The SVG.
        """

        def draw(axis: Axes) -> None:
            from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

            if len(front) > 1:
                line = [values[name][:2] for name in front]
                axis.plot(*zip(*line, strict=True), color=_FAINT, zorder=1)
            if level is not None:
                axis.axhline(level, color=_FAINT, linestyle=(0, (4, 3)), zorder=1)
            for name, (cost, merit, sd) in values.items():
                drawn = self._drawn(name)
                shape = drawn.pop("marker")
                axis.errorbar(
                    cost, merit, yerr=sd or None, fmt=shape, markersize=9, **drawn
                )
            axis.set_xscale("log")
            ticks = _log_ticks([cost for cost, *_ in values.values()])
            # A narrow range has hardly any round number of a log axis.
            axis.xaxis.set_major_locator(
                FixedLocator(ticks) if ticks else MaxNLocator(3, steps=[1, 2, 5, 10])
            )
            axis.xaxis.set_major_formatter(f"{{x:{_AS_IT_IS}}}")
            axis.xaxis.set_minor_locator(NullLocator())
            axis.margins(x=_MARGIN, y=0.2)

        return self._svg(draw, labels, words, size=(4.6, 3.2))

    def lines(
        self, curves: Mapping[str, Sequence[float]], x: str, y: str, words: str
    ) -> str:
        """Draws learning curves.

        Args:
            curves: One value an epoch, by series.
            x: What the epochs are called.
            y: What the values are.
            words: What the plot shows.

        Returns:
            The SVG.
        """

        def draw(axis: Axes) -> None:
            from matplotlib.ticker import MaxNLocator

            for name, values in curves.items():
                count = len(values)
                axis.plot(
                    1 + np.arange(count),
                    values,
                    markersize=4,
                    markevery=max(1, count // 12),
                    **self._drawn(name),
                )
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))

        return self._svg(draw, (x, y), words)

    def reliability(self, name: str, bins: Reliability, words: str) -> str:
        """Draws accuracy over confidence, and how many predictions are how sure.

        Args:
            name: The series.
            bins: Its bins.
            words: What the plot shows.

        Returns:
            The SVG.
        """

        def draw(axis: Axes) -> None:
            filled = bins.counts > 0
            width = float(bins.edges[1] - bins.edges[0])
            share = bins.counts / max(1, bins.counts.sum())
            axis.bar(
                bins.edges[:-1], share, width, align="edge", color=_FAINT, alpha=0.35
            )
            axis.plot([0, 1], [0, 1], color=_FAINT, linestyle=(0, (4, 3)))
            axis.plot(
                bins.confidence[filled],
                bins.accuracy[filled],
                markersize=5,
                clip_on=False,
                **self._drawn(name),
            )
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1)

        return self._svg(draw, ("confidence", "share right"), words, size=(3.3, 3.0))

    def histogram(self, values: Array, x: str, y: str, name: str, words: str) -> str:
        """Draws how often which difference is.

        Args:
            values: The differences.
            x: What they are.
            y: What is counted.
            name: The series whose colour it has.
            words: What the plot shows.

        Returns:
            The SVG.
        """

        def draw(axis: Axes) -> None:
            axis.hist(values, bins=41, color=_SERIES[self._place[name]])
            axis.set_yscale("log")

        return self._svg(draw, (x, y), words)

    def bars(
        self,
        edges: Array,
        heights: Array,
        labels: tuple[str, str],
        name: str,
        words: str,
    ) -> str:
        """Draws a height for each bin.

        Args:
            edges: Of the bins.
            heights: One a bin.
            labels: Of the two axes.
            name: The series whose colour it has.
            words: What the plot shows.

        Returns:
            The SVG.
        """

        def draw(axis: Axes) -> None:
            axis.bar(
                edges[:-1],
                heights,
                width=np.diff(edges),
                align="edge",
                color=_SERIES[self._place[name]],
            )

        return self._svg(draw, labels, words)

    def scatter(self, target: Array, told: Mapping[str, Array], words: str) -> str:
        """Draws what was said over what is right.

        Args:
            target: What is right, `(points,)`.
            told: What was said, by series.
            words: What the plot shows.

        Returns:
            The SVG.
        """

        def draw(axis: Axes) -> None:
            ends = [float(target.min()), float(target.max())]
            axis.plot(ends, ends, color=_FAINT, linestyle=(0, (4, 3)))
            for name, values in told.items():
                axis.plot(
                    target, values, linestyle="", markersize=3, **self._drawn(name)
                )

        return self._svg(draw, ("right", "said"), words)

    def heat(self, share: Array, classes: int, words: str) -> str:
        """Draws a matrix of shares, for more classes than a table shows.

        Args:
            share: `(true, predicted)`, each from 0 to 1: of classes, or of blocks of
                neighbouring ones.
            classes: How many classes there are.
            words: What the plot shows.

        Returns:
            The SVG.
        """

        def draw(axis: Axes) -> None:
            # One colour of more or less strength is right on white and on black. The
            # square root keeps the rare confusions, which are the news, visible.
            colour = np.array([0.24, 0.52, 0.86])
            image = np.concatenate(
                [
                    np.broadcast_to(colour, (*share.shape, 3)),
                    np.sqrt(np.clip(share, 0, 1))[..., None],
                ],
                axis=-1,
            )
            edge = classes - 0.5
            axis.imshow(image, interpolation="nearest", extent=(-0.5, edge, edge, -0.5))
            axis.grid(False)

        return self._svg(draw, ("predicted class", "true class"), words, size=(5, 4.6))

    def _svg(
        self,
        draw: Any,
        labels: tuple[str, str],
        words: str,
        size: tuple[float, float] = (3.7, 2.8),
    ) -> str:
        import matplotlib
        from matplotlib.figure import Figure

        # Neither pyplot's figures nor the user's settings, and these are left alone.
        settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
        settings.pop("backend", None)
        with matplotlib.rc_context(settings):
            figure: Figure = Figure(figsize=size, layout="constrained")
            axis = figure.subplots()
            draw(axis)
            axis.set_xlabel(labels[0])
            axis.set_ylabel(labels[1])
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True)
        self._count += 1
        return _inline(buffer.getvalue(), words, f"p{self._count}-")


def _log_ticks(costs: Sequence[float]) -> list[float]:
    """As many round numbers as have room for their labels; none where not two have.

    Example:
        >>> _log_ticks([30.0, 1000.0])
        [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
    """
    decades = math.log10(max(costs) / min(costs))
    start = math.log10(min(costs)) - _MARGIN * decades
    span = (1 + 2 * _MARGIN) * decades
    for subs, every in (
        ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 1),
        ((1.0, 2.0, 5.0), 1),
        ((1.0, 3.0), 1),
        *(((1.0,), every) for every in (1, 2, 3)),
    ):
        powers = range(math.floor(start), math.ceil(start + span) + 1)
        ticks = [s * 10.0**p for p in powers if p % every == 0 for s in subs]
        ticks = [t for t in ticks if start <= math.log10(t) <= start + span]
        if len(ticks) < 2:
            continue
        # In points: of the axis, and of digits in letters of 10.
        places = [280 * (math.log10(t) - start) / span for t in ticks]
        halves = [3.2 * len(f"{t:{_AS_IT_IS}}") + 4 for t in ticks]
        if all(
            places[i] + halves[i] < places[i + 1] - halves[i + 1]
            for i in range(len(ticks) - 1)
        ):
            return ticks
    return []


def _inline(svg: str, words: str, prefix: str) -> str:
    """A page's own SVG: no foreign names, its variables for colours, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', svg)
    width = re.search(r'width="([\d.]+)pt"', svg)
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', svg))

    def own(match: re.Match[str]) -> str:
        return f' id="{prefix}{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\s+id="([\w.-]+)"', own, svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    # The page's own: its font, in place of a list of those that may be installed, and
    # a rule that is meant for all of an SVG and would be for all of the page.
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg)
    largest = 4 / 3 * float(width[1] if width else 0)  # points, as CSS's pixels
    return (
        f'<svg role="img" aria-label="{html.escape(words)}" '
        f'viewBox="{view and view[1]}" style="max-width: {largest:.0f}px">{svg}'
    )
