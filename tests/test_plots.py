from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from kdlite.reporting.plots import Plots
from kdlite.reporting.scores import reliability

NAMES = ["teacher", "student"]


def every_plot(rng) -> list[str]:
    plots = Plots(NAMES)
    bins = reliability(rng.random(50), rng.random(50) < 0.5)
    points = {"teacher": (4e6, 94.0, 0.0), "student": (7e4, 91.0, 0.4)}
    return [
        plots.points(points, ["student", "teacher"], ("KiB", "top-1"), "a <b>", 90.0),
        plots.lines({"student": [1.0, float("nan"), 0.5]}, "epoch", "loss", "words"),
        plots.reliability("teacher", bins, "words"),
        plots.histogram(rng.normal(size=90), "x", "y", "student", "words"),
        plots.bars(np.arange(4), np.arange(3), ("x", "y"), "student", "words"),
        plots.scatter(rng.normal(size=9), {"student": rng.normal(size=9)}, "words"),
        plots.heat(np.eye(30), 300, "words"),
    ]


def test_plots_are_whole_fetch_nothing_and_say_what_they_show(rng) -> None:
    for svg in every_plot(rng):
        root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
        assert root.get("role") == "img" and root.get("aria-label")
        assert "http" not in svg and "<style" not in svg and "<metadata" not in svg
        # Only variables of the page, so that both themes have their colours.
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'href="[^"]*"', "", svg))
    assert every_plot(rng)[0].startswith('<svg role="img" aria-label="a &lt;b&gt;"')


def test_ids_of_one_page_differ_and_each_reference_has_its_own(rng) -> None:
    page = "".join(every_plot(rng))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', page)) == set(ids)


def test_equal_plots_have_equal_bytes(rng) -> None:
    bins = reliability(np.array([0.3, 0.9]), np.array([True, False]))
    one, other = (Plots(NAMES).reliability("student", bins, "w") for _ in range(2))
    assert one == other


def test_colours_and_shapes_stay_with_their_series() -> None:
    plots = Plots([f"series {i}" for i in range(10)])
    signs = [plots.series(f"series {i}") for i in range(8)]
    assert len(set(signs)) == 8
    assert plots.series("series 8") == signs[0]


def test_settings_of_the_user_neither_matter_nor_change() -> None:
    plain = Plots(NAMES).lines({"student": [1.0, 2.0]}, "epoch", "loss", "w")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert (
            Plots(NAMES).lines({"student": [1.0, 2.0]}, "epoch", "loss", "w") == plain
        )
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("costs", [(5.0, 5.0), (1.0, 9e8), (3.0, 4.0)])
def test_costs_of_any_range_have_ticks(costs) -> None:
    points = dict(zip(NAMES, [(cost, 90.0, 0.0) for cost in costs], strict=True))
    svg = Plots(NAMES).points(points, [], ("KiB", "top-1"), "w")
    assert len(re.findall("<text", svg)) > 3


@pytest.mark.parametrize("start", [0.0018, 5.3, 7e4, 3.3e6])
@pytest.mark.parametrize("ratio", [1.0, 1.2, 2.4, 2.6, 4.9, 8, 33, 1e4])
def test_costs_beside_each_other_can_be_read(start, ratio) -> None:
    points = {"teacher": (ratio * start, 90.0, 0.0), "student": (start, 91.0, 0.0)}
    svg = Plots(NAMES).points(points, [], ("cost", "top-1"), "w")
    ticks = re.findall(
        r'anchor: middle[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([\d.,]+)<', svg
    )
    assert len({height for _, height, _ in ticks}) == 1
    # Digits are 0.64 of the letters' 10 points wide.
    ends = [(float(x), 3.2 * len(text)) for x, _, text in ticks]
    assert len(ends) > 1
    for (left, half), (right, other) in zip(ends, ends[1:], strict=False):
        assert left + half + 3 < right - other, ticks
