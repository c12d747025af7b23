from __future__ import annotations

import pytest

from kdlite import cli
from kdlite.arguments import parser


def test_every_example_in_help_is_a_valid_call() -> None:
    root = parser()
    (choices,) = [a.choices for a in root._actions if a.dest == "command"]
    assert set(choices) == set(cli._RUN)
    for command in choices.values():
        example = command.epilog.split("\n")[1].split()
        assert root.parse_args(example[1:]).command in cli._RUN


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500KB", 500_000),
        ("500 kB", 500_000),
        ("1.5MB", 1_500_000),
        ("64KiB", 65_536),
        ("7000", 7000),
    ],
)
def test_sizes_are_read_in_their_units(text, size) -> None:
    arguments = ["distill", "t.keras", "--data", "d.npz", "-o", "o", "--max-bytes"]
    assert parser().parse_args([*arguments, text]).max_bytes == size


@pytest.mark.parametrize("text", ["much", "5XB", "0", "1.2.3KB", "-5KB"])
def test_a_size_that_is_none(text, capsys) -> None:
    arguments = ["distill", "t.keras", "--data", "d.npz", "-o", "o"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, f"--max-bytes={text}"])
    assert stop.value.code == 2
    assert "A size must be like 500KB, 1.5MB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--student", "s.keras", "--ratio", "10"])
    assert "not allowed with argument --student" in capsys.readouterr().err
