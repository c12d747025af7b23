"""The README's example runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from kdlite import arguments, cli
from kdlite.lite.runtime import TFLiteModel

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = README.partition("## From the command line")[2].split("```")[1]


def test_python_examples_make_a_file_that_knows_the_classes(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    made: dict[str, Any] = {"__name__": "example"}
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(example, "README.md", "exec"), made)

    assert "within one step" in capsys.readouterr().out
    with made["train"], made["test"] as file:  # read at need, and closed by nobody
        test = dict(file)
    told = np.asarray(TFLiteModel("student.tflite").predict(test["x"])).argmax(-1)
    assert (told == test["y"]).mean() > 0.9


@pytest.mark.parametrize(
    "line", re.findall(r"^kdlite [^#\n]*", COMMANDS, re.MULTILINE), ids=str.strip
)
def test_every_command_of_the_readme_is_understood(line) -> None:
    args = arguments.parser().parse_args(line.split()[1:])
    assert args.command in cli._RUN


def test_every_file_that_the_readme_names_is_there() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / target).exists(), target
