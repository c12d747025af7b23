from __future__ import annotations

import io
import json
import os
import re

import keras
import numpy as np
import pytest
from processes import KdliteCopy, OnTerminal

from kdlite.gates import Gate
from kdlite.symptoms.case import Finding
from kdlite.terminal import Uncoloured, coloured, has_colours, plain, with_verdicts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("stream", "environment", "colours"),
    [
        (Terminal, {}, True),
        (io.StringIO, {}, False),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"NO_COLOR": ""}, True),
        (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"FORCE_COLOR": "1"}, True),
        (io.StringIO, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_where_there_are_colours(stream, environment, colours, monkeypatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_colours(stream()) == colours
    assert (coloured("x", "red", stream()) != "x") == colours


def test_a_result_shows_its_verdicts_in_colours() -> None:
    text = "\n".join(
        [
            f"gate: {Gate('size_ratio', 50, 66.5, True)}",
            f"gate: {Gate('speed_ratio', 10, 3.5, False)}",
            str(Finding("label-range", "error", "Labels kept, MISSED none.", "Count.")),
            str(Finding("student-larger", "warning", "It is.", "Shrink it.")),
        ]
    )
    red, green, yellow, plain = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
    shown = with_verdicts(text, Terminal())
    assert f"66.50, {green}kept{plain}\n" in shown
    assert f"3.50, {red}MISSED{plain}\n" in shown
    assert f"\n{red}error{plain} label-range: Labels kept, MISSED none.\n" in shown
    assert f"\n{yellow}warning{plain} student-larger" in shown
    assert with_verdicts(text, io.StringIO()) == text


def test_characters_that_nobody_sees_are_written_out() -> None:
    hidden = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    for mark in hidden + "\x1b\r\x00\x7f\x9b\u2028":
        told = f"labels: cat{mark}dog"
        assert plain(told) == f"labels: cat\\u{ord(mark):04x}dog"
        assert with_verdicts(told, io.StringIO()) == plain(told)
    seen = "two lines\n\tof Sac à main, 靴, עברית"
    assert plain(seen) == seen


def test_colours_of_others_are_left_out() -> None:
    terminal = Terminal()
    stream = Uncoloured(terminal)
    stream.write("\r\x1b[1m 3/10\x1b[0m \x1b[32m━━\x1b[0m\x1b[38;2;1;2;3m!")
    assert terminal.getvalue() == "\r 3/10 ━━!"
    assert stream.isatty()


# --- real processes, on terminals and into files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("terminal")
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(path / "model.keras")
    x = np.random.default_rng(0).normal(size=(200_000, 4)).astype("float32")
    y = model.predict(x[:3000], verbose=0).argmax(-1)
    np.savez(path / "many.npz", x=x)
    np.savez(path / "some.npz", x=x[:3000], y=y)
    return path


def stopped(command, ready, **options) -> str:
    """What a command shows that is stopped by Ctrl-C when something is so."""
    with OnTerminal(*command, **options) as process:
        process.until(lambda: ready(process))
        process.press_ctrl_c()
        assert process.end() == 130, process.shown
        assert process.leaves_nothing_running()
    # Of kdlite's code; what TensorFlow was at it may show of its own.
    assert not re.search(r'File "[^"]*kdlite/[a-z_/]+\.py"', process.shown)
    return process.shown


def test_a_stopped_label_goes_on_and_a_log_has_lines(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    command = ["label", "model.keras", "--data", "many.npz", "-o", "labels"]
    shown = stopped(command, lambda process: "/200000" in process.shown)
    assert "\r" in shown and "\x1b[1m" in shown
    assert (
        "\x1b[33mkdlite label:\x1b[0m stopped. What is done is kept in labels" in shown
    )
    done = json.loads((folder / "labels" / "manifest.json").read_text())
    assert 0 < done["samples"] < 200_000 and not done["finished"]
    (folder / "log.txt").touch()
    again = KdliteCopy(command, str(folder / "log.txt"), dict(os.environ)).wait()
    written = (folder / "log.txt").read_text()
    assert again == 0, written
    assert not set(written) & {"\r", "\b", "\x1b"}
    assert f"going on after {done['samples']} samples" in written
    assert "Soft labels of 200,000 samples" in written


def test_a_stopped_export_leaves_nothing(folder, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(folder)
    (tmp_path / "out").mkdir()

    def converting(process) -> bool:
        # Before, TensorFlow itself may log a Ctrl-C that it meets, traceback and all.
        return any(tmp_path.glob("kdlite-export-*/saved_model/saved_model.pb"))

    command = ["export", "model.keras", "-o", str(tmp_path / "out" / "model.tflite")]
    shown = stopped(command, converting, TMPDIR=str(tmp_path), NO_COLOR="1")
    assert "kdlite export: stopped. Nothing was left half-done" in shown
    assert "\x1b" not in shown
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_a_stopped_training_says_where_it_goes_on(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    command = ["distill", "model.keras", "--student", "model.keras", "-o", "new"]
    command += ["--data", "some.npz", "--epochs", "1000", "--no-baseline"]

    def training(process) -> bool:
        return "Epoch 3/1000" in process.shown

    shown = stopped(command, training, fresh=True, NO_COLOR="1")
    assert "stopped. What is done is kept in new.partial: give the same" in shown
    assert "\r" in shown and "\x1b" not in shown  # Keras's bar, without its colours
    assert not (folder / "new").exists()
    assert (folder / "new.partial" / "run.json").exists()
