"""Whether the app uses public Android API alone: android-all has hidden members too.

The public API is that of the PyPI package chaquopy-stubs-android, Python stubs that are
made from the SDK's own android.jar.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections import defaultdict
from functools import cache
from pathlib import Path

from tools import run

# What every object has, and what compilers make.
_ALWAYS = {"<init>", "equals", "hashCode", "toString", "getClass", "close"}
_ALWAYS |= {"name", "ordinal", "values", "valueOf", "notifyAll", "notify", "wait"}


class PublicApi:
    """The classes of the public API and their members."""

    def __init__(self, stubs: Path) -> None:
        self._members: dict[str, set[str]] = defaultdict(set)
        self._bases: dict[str, list[str]] = {}
        with zipfile.ZipFile(stubs) as wheel:
            for name in wheel.namelist():
                if name.startswith("android-stubs") and name.endswith("/__init__.pyi"):
                    path = name.removeprefix("android-stubs").removesuffix(
                        "__init__.pyi"
                    )
                    package = "android" + path.replace("/", ".")
                    self._read(ast.parse(wheel.read(name)).body, package)

    def _read(self, nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if not isinstance(node, ast.ClassDef):
                continue
            name = prefix + node.name
            self._bases[name] = [ast.unparse(base) for base in node.bases]
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    self._members[name].add(member.name)
                elif isinstance(member, ast.AnnAssign):
                    self._members[name].add(ast.unparse(member.target))
                elif isinstance(member, ast.Assign):
                    self._members[name] |= {ast.unparse(t) for t in member.targets}
            self._read(node.body, name + "$")

    def has_class(self, name: str) -> bool:
        return name in self._bases

    def members(self, name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        """Own and inherited ones."""
        found = set(self._members.get(name, ()))
        package = name.rpartition(".")[0]
        for base in self._bases.get(name, ()):
            plain = re.sub(r"\[.*", "", base)
            if plain.startswith("java."):
                found |= _java_members(plain)
            for candidate in (
                plain,
                f"{package}.{plain}",
                f"{package}.{plain.replace('.', '$')}",
            ):
                if candidate in self._bases and candidate not in seen:
                    found |= self.members(candidate, seen | {candidate})
                    break
        return found


@cache
def _java_members(name: str) -> set[str]:
    return set(re.findall(r"(\w+)\(", run("javap", "-protected", name)))


def hidden_uses(classes: Path, stubs: Path) -> list[str]:
    """Returns the classes and members of Android that are used and not public."""
    api = PublicApi(stubs)
    said = run("javap", "-v", "-p", *sorted(classes.rglob("*.class")))
    used = set(re.findall(r"= Class\s+\S+\s+// \"?\[*L?(android/[\w/$]+)", said))
    references = set(
        re.findall(
            r"= (?:Interface)?(?:Method|Field)ref\s+\S+\s+"
            r"// (android/[\w/$]+)\.\"?([<>\w$]+)\"?:",
            said,
        )
    )
    if len(used) < 20 or not api.has_class("android.app.Activity"):
        return ["nothing was found to compare: javap or the stubs have changed"]
    hidden = [
        name for name in sorted(used) if not api.has_class(name.replace("/", "."))
    ]
    for name, member in sorted(references):
        dotted = name.replace("/", ".")
        # Python's own words have an underscore more.
        if api.has_class(dotted) and member not in _ALWAYS:
            if not {member, f"{member}_"} & api.members(dotted):
                hidden.append(f"{name}.{member}")
    return hidden
