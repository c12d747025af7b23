"""The figures of a run in a model card: those of the page, and no one's markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from comparing import three_seeds
from markdown_it import MarkdownIt

from kdlite.reporting.card import run_section
from kdlite.reporting.comparison import Comparison
from kdlite.reporting.page import page

Table = list[list[str]]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return three_seeds()


class _Tables(HTMLParser):
    """The tables of a page, without the pictures that are tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Table] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "table":
            self.found.append([])
        elif tag == "tr":
            self.found[-1].append([])
        elif tag in ("th", "td"):
            self.found[-1][-1].append("")
        self.inside = tag in ("th", "td")

    def handle_endtag(self, tag) -> None:
        self.inside = False

    def handle_data(self, data) -> None:
        if self.inside:
            self.found[-1][-1][-1] += data


def tables_of(card: str) -> list[Table]:
    found: list[Table] = []
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(card)
    for token, after in zip(tokens, tokens[1:], strict=False):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append("".join(c.content for c in after.children))
    return found


def test_the_card_has_the_tables_of_the_page(comparison) -> None:
    on_the_page = _Tables(page(comparison)).found
    in_the_card = tables_of(run_section(comparison, "int8 file"))
    assert all(table in on_the_page for table in in_the_card)
    first_cells = [table[0][1] for table in in_the_card]
    assert first_cells == [
        "top-1, %",
        "parameters",
        "verdict",
        "training, Wh",
        "limit",
        "value",
    ]
    scores = in_the_card[0]
    assert [row[0] for row in scores[1:]] == [c.name for c in comparison.contenders]
    for heading in ("agreement with the teacher, %", "calibration error (ECE), %"):
        assert heading in scores[0]
    # Over three seeds; of the teacher there is one.
    assert ["±" in row[1] for row in scores[1:]] == [False, True, True, True]


def test_the_card_says_how_its_figures_are_to_be_read(comparison) -> None:
    card = run_section(comparison, "int8 file")
    assert "this file is the int8 file" in card
    assert "means over 3 seeds, ± standard deviation:" in card
    assert "Costs, of the first of 3 seeds:" in card
    assert "on this computer" in card and "a phone has other times" in card
    assert "Estimates, not readings of a meter:" in card
    assert "- Estimated for a test." in card
    assert r"| \<b\>size\</b\> | 50 |" in card and "<b>" not in card
    assert "busy" not in card


def test_a_busy_computer_and_energy_that_was_not_measured_are_told(comparison) -> None:
    contenders = tuple(
        replace(c, cost=replace(c.cost, training=None, processor=0.31))
        for c in comparison.contenders
    )
    card = run_section(replace(comparison, contenders=contenders, notes={}), "student")
    assert "- Take the latencies" in card and "had 31 % of a processor" in card
    assert "\n\nNot measured. With country= or --country (three" in card
    assert [table[0][1] for table in tables_of(card)][-1] == "verdict"


def test_without_seeds_costs_and_differences_there_is_no_word_of_them(
    comparison,
) -> None:
    alone = replace(
        comparison.contenders[2],
        scores={"": comparison.contenders[2].scores[""][:1]},
        cost=replace(comparison.contenders[2].cost, training=None),
    )
    card = run_section(replace(comparison, contenders=(alone,), notes={}), "student")
    assert "seeds" not in card and "McNemar" not in card and "Latency" not in card
    assert len(tables_of(card)) == 2
