from __future__ import annotations

import io
import logging

import pytest

from kdlite import progress
from kdlite.progress import Progress, verbosity


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("verbose", "stream", "level"),
    [
        ("auto", Terminal, 1),
        ("auto", io.StringIO, 2),
        (0, Terminal, 0),
        (1, io.StringIO, 1),
        (2, Terminal, 2),
    ],
)
def test_a_bar_is_for_terminals_unless_asked_for(
    verbose, stream, level, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdout", stream())
    assert verbosity(verbose) == level


@pytest.mark.parametrize("verbose", ["yes", 3, None, -1])
def test_another_verbosity_is_refused(verbose) -> None:
    with pytest.raises(ValueError, match="must be 'auto', 0, 1 or 2. Received: verbos"):
        Progress("labelling", 3, "sample", verbose)


def test_a_log_has_a_line_each_half_minute(clock, caplog, capsys) -> None:
    caplog.set_level(logging.INFO)
    work = Progress("labelling", 10_000, "sample")
    for done in range(1000, 10_001, 1000):
        clock(10)
        work.update(done)
    work.close()
    assert lines(caplog) == [
        "labelling: 3,000 of 10,000 samples, 1 min 10 s left",
        "labelling: 6,000 of 10,000 samples, 40 s left",
        "labelling: 9,000 of 10,000 samples, 10 s left",
        "labelling: 10,000 samples in 1 min 40 s",
    ]
    assert capsys.readouterr() == ("", "")


def test_time_that_is_left_is_that_of_this_run(clock, caplog) -> None:
    caplog.set_level(logging.INFO)
    work = Progress("labelling", 40_000, "sample", done=10_000)
    clock(60)
    work.update(10_000)
    clock(3600)
    work.update(20_000)
    assert lines(caplog) == [
        "labelling: 10,000 of 40,000 samples",
        "labelling: 20,000 of 40,000 samples, 2 h 2 min left",
    ]


def test_how_many_there_are_need_not_be_known(clock, caplog) -> None:
    caplog.set_level(logging.INFO)
    work = Progress("labelling", None, "sample")
    clock(31)
    work.update(500)
    assert lines(caplog) == ["labelling: 500 samples"]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_work_of_a_moment_says_nothing(clock, caplog, monkeypatch, stream) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stdout", stream())
    work = Progress("reading", 3, "image")
    for done in (1, 2, 3):
        clock(0.3)
        work.update(done)
    work.close()
    assert progress.sys.stdout.getvalue() == "" and not lines(caplog)


@pytest.mark.parametrize(("total", "shown"), [(200, "150/200"), (None, "150/Unknown")])
def test_a_terminal_has_a_bar_that_ends(total, shown, clock, monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    work = Progress("tuning", total, "trial")
    clock(2)
    work.update(150, accuracy=0.25)
    work.close()
    text = terminal.getvalue()
    assert shown in text and "accuracy: 0.2500" in text
    assert text.endswith("\n") and text.count("\n") == 1


def test_silence_is_silence(clock, caplog, capsys) -> None:
    caplog.set_level(logging.INFO)
    work = Progress("labelling", 3, "sample", verbose=0)
    clock(1000)
    work.update(3)
    work.close()
    assert not lines(caplog) and capsys.readouterr() == ("", "")
