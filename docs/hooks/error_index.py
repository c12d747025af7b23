"""The texts of all errors, read from the code: docs/errors.md shows them by topic.

Each `<!-- errors: ROOM ... -->` of that page becomes a table of what these rooms raise.
A room is a module or the beginning of one's path, such as `distill/label_`; the longest
that fits has the module. An error's text has three parts: what must hold, what was
received, what to do.
"""

from __future__ import annotations

import ast
import functools
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "kdlite"
PAGE = "docs/errors.md"
_MARKER = re.compile(r"<!-- errors: ([^>]+?) -->")
_Names = dict[str, ast.expr]
_Made = tuple[str, ast.Call, _Names]
#: Stands for what differs from case to case.
GAP = "…"


@dataclass(frozen=True)
class ErrorText:
    """One `raise` of the package.

    Attributes:
        module: Its module, as `distill/pairs`.
        line: Where it is.
        kind: The exception's class.
        rule: What must hold.
        received: What did not, with its label "Received:"; may be empty.
        fix: What to do; may be empty.
    """

    module: str
    line: int
    kind: str
    rule: str
    received: str
    fix: str


@functools.cache
def errors() -> list[ErrorText]:
    """Returns all errors that a user can meet, in the order of the code."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        for kind, call, names in _made(ast.parse(path.read_text()), {}):
            text = " ".join(_text(part, names) for part in call.args)
            text = re.sub(rf"{GAP}(\s*{GAP})+", GAP, " ".join(text.split()))
            rule, received, fix = _parts(text)
            # Others are reasons, which the text of another error takes up.
            if rule != GAP and (received or (rule[:1].isupper() and fix)):
                found.append(ErrorText(module, call.lineno, kind, rule, received, fix))
    return found


def _made(node: ast.AST, names: _Names, owner: str = "") -> Iterator[_Made]:
    """Exceptions that are raised, returned for another to raise, or name themselves.

    Each with the values of the names that its text may be made of: those that have one.
    """
    if isinstance(node, ast.ClassDef):
        owner = node.name
    if isinstance(node, ast.Module | ast.FunctionDef):
        names = {**names, **_values(node)}
    made: ast.AST | None = None
    if isinstance(node, ast.Raise):
        made = node.exc
    elif isinstance(node, ast.Return | ast.Expr):
        made = node.value
    if isinstance(made, ast.Call):
        called = ast.unparse(made.func)
        if called == "argparse.ArgumentTypeError":
            yield "usage", made, names
        elif called == "super().__init__" and owner.endswith("Error"):
            yield owner, made, names
        elif called[:1].isupper() and called.endswith("Error"):
            yield called, made, names
        elif isinstance(node, ast.Raise) and called == "type(err)":
            yield "OSError", made, names
    for child in ast.iter_child_nodes(node):
        yield from _made(child, names, owner)


def _values(scope: ast.Module | ast.FunctionDef) -> _Names:
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope) if isinstance(scope, ast.FunctionDef) else scope.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                assigned.setdefault(ast.unparse(target), []).append(node.value)
    return {name: values[0] for name, values in assigned.items() if len(values) == 1}


def _text(node: ast.expr, names: _Names) -> str:
    """What an expression says, with a gap for what is not known before it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, names)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, names) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, names) + _text(node.right, names)
    if isinstance(node, ast.IfExp):
        # What may be left out is shown, of two the one is as likely as the other.
        one, other = _text(node.body, names), _text(node.orelse, names)
        return GAP if min(len(one), len(other)) > 1 else max(one, other, key=len)
    if isinstance(node, ast.Name) and node.id in names:
        others = {name: value for name, value in names.items() if name != node.id}
        return _text(names[node.id], others)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "format":
            return re.sub(r"\{.*?\}", GAP, _text(node.func.value, names))
    return GAP


def _parts(text: str) -> tuple[str, str, str]:
    rule, labelled, rest = text.partition(" Received: ")
    if not labelled:
        rule, _, rest = text.partition(". ")
        return rule.rstrip("."), "", rest.rpartition("Fix: ")[2].removeprefix(f"{GAP} ")
    received, marked, fix = rest.partition(" Fix: ")
    if not marked and (end := re.search(rf"(?:[.]|{GAP}) ?(?=[A-Z`]\w)", rest)):
        received, fix = rest[: end.end()].strip(), rest[end.end() :]
    return rule.rstrip("."), f"Received: {received.rstrip('.')}", fix


def rooms(page: str) -> list[str]:
    """Returns the rooms that a page has tables for."""
    return [room for found in _MARKER.findall(page) for room in found.split()]


def room_of(module: str, named: list[str]) -> str | None:
    """Returns the one of these rooms that has a module."""
    return max((r for r in named if module.startswith(r)), key=len, default=None)


def filled(page: str) -> str:
    """Returns the page with a table in the place of each marker."""
    named, everything = rooms(page), errors()

    def table(marker: re.Match[str]) -> str:
        here = marker[1].split()
        rows = {
            f"| {_cell(error.rule)}<br><small>{_cell(error.received)}</small> "
            f"| {_cell(error.fix)} |": None
            for error in everything
            if room_of(error.module, named) in here
        }
        return "\n".join(["| it says | do |", "|---|---|", *sorted(rows)])

    return _MARKER.sub(table, page)


def _cell(text: str) -> str:
    """Text as it is, but for code: nothing else in it is Markdown."""
    # What stands between backticks is shown as it is anyway, entities too.
    return "".join(
        part if index % 2 else _plain(part)
        for index, part in enumerate(re.split(r"(`[^`]+`)", text))
    )


def _plain(text: str) -> str:
    escaped = html.escape(text, quote=False)
    return re.sub(r"([|*_\[\]{}$\\])", lambda sign: f"&#{ord(sign[1])};", escaped)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs's hook."""
    return filled(markdown) if page.file.src_uri == PAGE else markdown
