"""Markdown in which what others wrote stays in its place, and is read as they meant it.

Raw HTML is where a text ends its place: what it opens swallows all that comes after.
So there is none here, outside of code, where it is no HTML.

Reference:
    CommonMark 0.31.2, sections 4.5 (fenced code), 6.1 (code spans), 6.6 (raw HTML).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdlite.terminal import plain as seen

# What begins HTML: a tag, its end, a comment, a declaration. "a < b" does not, nor
# "<3", a link in angle brackets, or what has a backslash before it.
_LINK = r"(?:[A-Za-z][\w+.-]+:[^\s<>`]*|[\w.+-]+@[\w.-]+)>"
_HTML = re.compile(rf"(\\.)|<(?=[A-Za-z/!?])(?!{_LINK})")
_FENCE = re.compile(r"`{3,}(?=[^`]*$)|~{3,}")
# One in a list or a quotation, with which it ends.
_INNER_FENCE = re.compile(r"^((?:[\s>]|(?:[-*+]|\d+[.)])\s)+)(?=```|~~~)")


class Ready(str):
    """A cell that is Markdown already."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Writes a table.

    Args:
        header: Of the columns.
        rows: Cells, as many in each row: plain text, or `Ready`.

    Example:
        >>> print(table(["name"], [["a_b"]]))
        | name |
        | --- |
        | a\_b |
    """
    lines = [[_cell(cell) for cell in header], ["---"] * len(header)]
    lines += [[_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|") if isinstance(text, Ready) else escaped(text)


def bullets(lines: Sequence[str]) -> str:
    """Writes a list of plain texts."""
    return "\n".join(f"- {escaped(line)}" for line in lines)


def escaped(text: str) -> str:
    r"""Returns a text as one line that Markdown does not take for its own.

    Example:
        >>> print(escaped("a_b <i>"))
        a\_b \<i\>
    """
    line = seen(" ".join(text.split()))
    line = re.sub(r"[\\`*_<>|\[\]#~]", r"\\\g<0>", line)
    return re.sub(r"&(?=#?\w+;)", r"\\&", line)  # "&lt;" is not to become "<"


def code(text: str) -> str:
    """Returns a text as a code span: its marks are longer than any backticks inside.

    Example:
        >>> print(code("a`b"))
        `` a`b ``
    """
    inner = seen(" ".join(text.split()))
    if "`" not in inner:
        return f"`{inner}`"
    marks = "`" * (1 + max(map(len, re.findall("`+", inner))))
    return f"{marks} {inner} {marks}"


def closed(markdown: str) -> str:
    """Returns someone's Markdown so that it cannot swallow what comes after it.

    HTML becomes text that looks the same; in code it stays as it is, where it is sure
    that it is code. Code that was left open is closed.

    Example:
        >>> print(closed("For *tests*, of `<b>`. <details>"))
        For *tests*, of `<b>`. &lt;details>
    """
    done: list[str] = []
    block: list[str] = []
    fence = ""

    def end_of_block() -> None:
        sure = all(_all_code_ends(line) for line in block)
        done.extend(_without_html(line, sure) for line in block)
        block.clear()

    for line in seen("\n".join(markdown.splitlines())).split("\n"):
        if fence:
            done.append(line)
            if re.fullmatch(rf" {{0,3}}{fence[0]}{{{len(fence)},}}\s*", line):
                fence = ""
        elif found := _FENCE.match(line):
            end_of_block()
            fence = found[0]
            done.append(line)
        else:
            block.append(_INNER_FENCE.sub(r"\1\\", line))
            if not line.strip():
                end_of_block()
    end_of_block()
    return "\n".join([*done, *([fence] if fence else [])])


def _parts(line: str) -> list[tuple[str, str]]:
    r"""Splits a line at its code spans: "text", "code", and "open" for what has no end.

    Example:
        >>> _parts("a `b` c")
        [('text', 'a '), ('code', '`b`'), ('text', ' c')]
    """
    parts: list[tuple[str, str]] = []
    start = 0
    marks = re.compile(r"\\.|(`+)")
    found = marks.search(line)
    while found:
        here = found.end()
        if found[1]:
            end = re.compile(rf"(?<!`){found[1]}(?!`)").search(line, here)
            if not end:
                return [*parts, ("open", line[start:])]
            here = end.end()
            parts += [("text", line[start : found.start()])]
            parts += [("code", line[found.start() : here])]
            start = here
        found = marks.search(line, here)
    return [*parts, ("text", line[start:])]


def _all_code_ends(line: str) -> bool:
    # A table's cell ends, whatever is open in it.
    return "|" not in line and all(kind != "open" for kind, _ in _parts(line))


def _without_html(line: str, sure: bool) -> str:
    """A line without HTML; with `sure`, code spans begin and end in their lines."""
    parts = _parts(line) if sure else [("text", line)]
    return "".join(
        part if kind == "code" else _HTML.sub(lambda m: m[1] or "&lt;", part)
        for kind, part in parts
    )
