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


def network(width: int) -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(width, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )


def test_python_example_makes_a_file_that_knows_the_classes(
    tmp_path, monkeypatch, capsys
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    for name, count in (("train", 480), ("test", 200)):
        y = rng.integers(0, 2, count)
        # Dark images and bright ones.
        x = rng.integers(0, 140, (count, 6, 6, 1)) + 100 * y[:, None, None, None]
        np.savez(f"{name}.npz", x=x.astype("uint8"), y=y)
    with np.load("train.npz") as file:
        data = dict(file)
    teacher = network(16)
    teacher.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    teacher.fit(data["x"], data["y"], epochs=6, verbose=0)
    teacher.save("teacher.keras")
    network(4).save("student.keras")

    made: dict[str, Any] = {"__name__": "example"}
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
