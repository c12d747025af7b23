"""What others write, read by another implementation of CommonMark with GFM's tables."""

from __future__ import annotations

import random

import pytest
from markdown_it import MarkdownIt

from kdlite.lite.markdown import Ready, bullets, closed, code, escaped, table

READER = MarkdownIt("gfm-like", {"linkify": False})
# What opens something, ends it, or makes another of it.
BITS = """<details> <!-- --> </b> <?x <div <a\thref=" <script> <![CDATA[ <https://a.b>
` `` ``` ```` ~~~ ~~~~ \\ | - + > 1. # * ~~ $$ --- === [x](y) ![ ] &lt; word""".split()
SPACES = ["", " ", " ", "    ", "\t", "\n", "\n\n", "\n  ", "\n| a | b |\n| - | - |\n"]


def shown(text: str) -> str:
    """What a reader sees of plain text, of which nothing may become markup."""
    tokens = READER.parse(text)
    assert [t.type for t in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children} <= {"text", "text_special"}
    return "".join(child.content for child in tokens[1].children)


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [
        "".join(rng.choice(BITS) + rng.choice(SPACES) for _ in range(rng.randint(1, 9)))
        for _ in range(count)
    ]


def test_nothing_swallows_what_comes_after_it() -> None:
    for text in texts(2000):
        tokens = READER.parse(f"{closed(text)}\n\n## Input\n\nthe rest\n")
        kinds = [t.type for t in tokens]
        kinds += [child.type for t in tokens for child in t.children or []]
        assert "html_block" not in kinds and "html_inline" not in kinds, text
        last = [(t.type, t.level, t.content) for t in tokens[-6:]]
        assert last == [
            ("heading_open", 0, ""),
            ("inline", 1, "Input"),
            ("heading_close", 0, ""),
            ("paragraph_open", 0, ""),
            ("inline", 1, "the rest"),
            ("paragraph_close", 0, ""),
        ], text


@pytest.mark.parametrize(
    "text",
    [
        "For *tests*, **never** for [cheques](https://a.b), a < b, <3, ~x~ & y.",
        "- one\n- two\n\n> said\n\n| a | b |\n| --- | --- |\n| 1 | 2 |",
        "A tag like `<b>` or ``<i>`</i>`` in a sentence,\nand `code` in the next.",
        "```html\n<details>\n<!-- as it is -->\n```\n\nthen",
        "~~~\n```\n<b>\n~~~",
        "See <https://a.b/c?d=e> or <me@a.b>, \\<b> and 1 \\< 2.",
    ],
)
def test_what_swallows_nothing_stays_as_it_is(text) -> None:
    assert closed(text) == text


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("<details> for all", "&lt;details> for all"),
        ("a <!-- note\nand <b", "a &lt;!-- note\nand &lt;b"),
        # Where the code ends is in doubt: it may be text.
        ("`a\nb` <i> `c`", "`a\nb` &lt;i> `c`"),
        ("| `<b> | <i>` |", "| `&lt;b> | &lt;i>` |"),
        ("````\n```\ncode", "````\n```\ncode\n````"),
        ("- ```\n  code", "- \\```\n  code"),
        ("\u202e<b>\r\nx", "\\u202e&lt;b>\nx"),
    ],
)
def test_what_would_is_text(text, after) -> None:
    assert closed(text) == after


def test_plain_text_reads_as_it_was_written() -> None:
    for text in texts(500):
        assert shown(f"x {escaped(text)} x") == " ".join(f"x {text} x".split())


def test_a_table_has_its_cells() -> None:
    rows = [[text, Ready(code(text))] for text in texts(200)]
    tokens = READER.parse(table(["a|b", ""], rows))
    cells = [
        "".join(child.content for child in tokens[i + 1].children)
        for i, token in enumerate(tokens)
        if token.type in ("th_open", "td_open")
    ]
    told = [" ".join(cell.split()) for cell in cells[2:]]
    assert cells[:2] == ["a|b", ""]
    for (text, _), plain, span in zip(rows, told[::2], told[1::2], strict=True):
        assert plain == span == " ".join(text.split())


def test_a_list_has_its_lines() -> None:
    assert bullets(["a", "*b*\n\n- c"]) == "- a\n- \\*b\\* - c"
