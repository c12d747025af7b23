"""The commands in benchmarks/: quick to say what they do, and known to their page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from processes import ROOT, SLOW, run_light

BENCHMARKS = ROOT / "benchmarks"
PAGE = (BENCHMARKS / "README.md").read_text()
SOURCES = {path: path.read_text() for path in sorted(BENCHMARKS.glob("*.py"))}
COMMANDS = [path for path, text in SOURCES.items() if "__main__" in text]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_help_says_each_option_before_anything_slow_is_loaded(path, tmp_path) -> None:
    done = run_light(
        tmp_path, "--help", program=(str(path),), without=SLOW, COLUMNS="80"
    )
    assert done.returncode == 0, done.stderr or done.returncode
    options = re.findall(r'add_argument\(\s*"(--[\w-]+)"(?!.*SUPPRESS)', SOURCES[path])
    assert options
    assert [option for option in options if option not in done.stdout] == []
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    usage, _, listed = re.split(
        r"^(positional arguments|options):\n", done.stdout, maxsplit=1, flags=re.M
    )
    # An entry begins with two blanks; its words come after two more, or a line below.
    for entry in re.split(r"^  (?=\S)", listed, flags=re.M)[1:]:
        named, *words = re.split(r"\s{2,}", entry.strip(), maxsplit=1)
        assert words, f"{named} has no help"
        name, *value = named.split(" ", 1)
        if value and f"[{name} " in usage:
            assert "(default" in words[0], f"{named} does not say its default"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_each_says_the_versions_and_has_its_row_on_the_page(path) -> None:
    assert re.search(r"print\(.*versions\(", SOURCES[path])
    assert f"| `.venv/bin/python benchmarks/{path.name}" in PAGE


def test_the_page_and_the_parts_name_files_that_are_there() -> None:
    for name in re.findall(r"benchmarks/(\w+\.py)", PAGE):
        assert BENCHMARKS / name in COMMANDS, name
    for path, text in SOURCES.items():
        if path not in COMMANDS and path.stem != "versions":
            of = re.search(r"part\s+of\s+`(\w+\.py)`|by `(\w+\.py)`", text)
            assert of and Path(BENCHMARKS, of[1] or of[2]) in COMMANDS, path
