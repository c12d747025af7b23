"""What every command does with a result or an error, whatever the command."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from kdlite import cli


@dataclass(frozen=True)
class Told:
    figures: Any

    def to_dict(self) -> dict[str, Any]:
        return {"figures": self.figures}


@pytest.fixture
def command(monkeypatch):
    """A command that loads nothing, and does what it is told."""

    def command(run: Any, *flags: str) -> int:
        monkeypatch.setitem(cli._RUN, "completion", lambda args: run())
        return cli.main(["completion", "bash", *flags])

    return command


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_json_is_json_whatever_was_measured(command, capsys, odd) -> None:
    figures = {"rows": [{"snr": odd, "seeds": (1.5, odd)}], "count": 3, "name": "é"}

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert command(lambda: Told(figures), "--json") == 0
    told = json.loads(capsys.readouterr().out, parse_constant=refused)
    rows = [{"snr": None, "seeds": [1.5, None]}]
    assert told == {"figures": {"rows": rows, "count": 3, "name": "é"}}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "Received: too little. Fix: give less data"),
        (MemoryError("Unable to allocate 9. TiB"), "Received: unable to allocate 9. T"),
    ],
)
def test_too_little_memory_is_said_in_a_sentence(command, capsys, error, text) -> None:
    def run() -> None:
        raise error

    assert command(run) == 2
    assert f"completion: There must be memory for the data. {text}" in (
        capsys.readouterr().err
    )


def test_a_package_that_is_missing_is_said_in_a_sentence(
    command, capsys, monkeypatch
) -> None:
    # The check for a failed comparison needs that very package.
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    for name in [name for name in sys.modules if name.startswith("kdlite.lite")]:
        monkeypatch.delitem(sys.modules, name)

    def run() -> None:
        raise ImportError("No module named 'ai_edge_litert'")

    assert command(run) == 2
    told = capsys.readouterr().err
    assert told.endswith("kdlite completion: No module named 'ai_edge_litert'\n")
