from __future__ import annotations

import re
import shlex

import pytest
from processes import run_light

from kdlite import cli
from kdlite.arguments import parser


def test_every_example_in_help_is_a_valid_call() -> None:
    root = parser()
    (choices,) = [a.choices for a in root._actions if a.dest == "command"]
    assert set(choices) == set(cli._RUN)
    examples = []
    for name, command in choices.items():
        lines = command.epilog.replace("\\\n", "").split("\n  ")
        assert lines[0] == "examples:" and f"kdlite {name} " in command.epilog
        examples += lines[1:]
    examples += re.findall(r"^  (kdlite [a-z].*)$", root.epilog, flags=re.MULTILINE)
    assert len(examples) > 20
    for example in examples:
        # As a shell reads it: the command, and not where its output goes.
        (call,) = re.findall(r"kdlite [^>|)#]*", example)
        assert root.parse_args(shlex.split(call)[1:]).command in cli._RUN


COMMANDS = tuple(cli._RUN)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does(command) -> None:
    root = parser()
    (choices,) = [a.choices for a in root._actions if a.dest == "command"]
    for action in choices[command]._actions:
        told = re.sub(r"\(.*?\)|%\(default\)s|default", "", action.help or "")
        assert len(re.findall(r"[a-z]{2,}", told)) > 1, action.option_strings
        if type(action.default) in (int, float) and action.type:
            assert "(default %(default)s)" in action.help, action.option_strings


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(command, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []


@pytest.fixture
def complete(tmp_path):
    """What a shell is told at a tab, by a process that can load nothing heavy."""
    for name in ("teacher.keras", "teacher.tflite", "train.npz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "images").mkdir()

    def complete(line: str) -> list[str]:
        found = tmp_path / "found"
        shell = {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(found),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        }
        done = run_light(tmp_path, **shell)
        assert (done.returncode, done.stderr) == (0, "")
        words = found.read_text().split("\n")
        return [word.rstrip() for word in words if word[:1] != "-"]

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kdlite ex", ["export"]),
        ("kdlite label t", ["teacher.keras"]),
        ("kdlite label x.keras --data ", ["images/", "train.npz"]),
        ("kdlite verify ", ["images/", "teacher.tflite"]),
        ("kdlite export x.keras --io ", ["float32", "int8", "uint8", "int16"]),
        ("kdlite completion ", ["bash", "zsh", "fish"]),
        ("kdlite benchmark --nonsense", []),
    ],
)
def test_a_shell_is_offered_what_fits(complete, line, words) -> None:
    assert [word for word in complete(line) if word] == words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500KB", 500_000),
        ("500 kB", 500_000),
        ("1.5MB", 1_500_000),
        ("64KiB", 65_536),
        ("4GB", 4_000_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("7000", 7000),
    ],
)
def test_sizes_are_read_in_their_units(text, size) -> None:
    arguments = ["distill", "t.keras", "--data", "d.npz", "-o", "o", "--max-bytes"]
    assert parser().parse_args([*arguments, text]).max_bytes == size


def test_sizes_are_read_alike_by_every_flag() -> None:
    label = ["label", "t.keras", "--data", "d.npz", "-o", "o"]
    assert parser().parse_args(label).max_feature_bytes == 4_000_000_000
    export = ["export", "m.keras", "-o", "m.tflite", "--memory-limit-bytes", "2GiB"]
    assert parser().parse_args(export).memory_limit_bytes == 2**31


@pytest.mark.parametrize("text", ["first", "1", "1/", "1/4/2", "0.5/2", "-1/2"])
def test_a_shard_that_is_none(text, capsys) -> None:
    label = ["label", "t.keras", "--data", "d.npz", "-o", "o"]
    assert parser().parse_args([*label, "--shard", "2/4"]).shard == (2, 4)
    with pytest.raises(SystemExit) as stop:
        cli.main([*label, f"--shard={text}"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert f"A shard must be like 1/4, the first of four. Received: {text!r}." in told


@pytest.mark.parametrize("text", ["much", "5XB", "0", "1.2.3KB", "-5KB"])
def test_a_size_that_is_none(text, capsys) -> None:
    arguments = ["distill", "t.keras", "--data", "d.npz", "-o", "o"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, f"--max-bytes={text}"])
    assert stop.value.code == 2
    assert "A size must be like 500KB, 1.5MB, 4GB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--student", "s.keras", "--ratio", "10"])
    assert "not allowed with argument --student" in capsys.readouterr().err
