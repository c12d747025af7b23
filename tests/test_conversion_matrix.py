"""The matrix of models and recipes: its own words, and (slowly) every cell of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import conversion_matrix  # noqa: E402
from zoo import ZOO  # noqa: E402


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Received: model='net' with 'norm' (ELU), of which ELU. Use ReLU", True),
        ("model='net', of which stay in float: NEG (layer 'norm'). Replace it", True),
        ("Not built in: BitwiseAnd. Replace the layers that use them", True),
        ("The converter crashed (SIGSEGV). Received: model='net'. Its last", False),
        ("Received: model='net' with 'norm'. Too bad.", False),
    ],
)
def test_what_is_a_way_out(text, is_one) -> None:
    assert conversion_matrix.way_out(text) is is_one


def test_the_table_has_what_was_run_and_each_sentence_once() -> None:
    ended = {"end": "refused", "text": "model='net' with 'a' (ELU). Use ReLU."}
    verified = {"end": "verified", "decibels": 40.4}
    names = list(ZOO)
    table = conversion_matrix.table(
        {
            f"{names[0]} | float32": verified,
            f"{names[0]} | int8": ended,
            f"{names[1]} | int8": ended,
        }
    )
    assert table.count("40 dB") == 1 and table.count("(1)") == 2
    assert table.count("Use ReLU") == 1
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0][2:] for row in rows] == ["model", *names[:2]]


# One of each kind of model, of recipe and of end: what can be had in half a minute.
@pytest.mark.parametrize(
    ("name", "column", "end"),
    [
        ("twelve heads", "int8, uint8 io", "verified"),
        ("detection: boxes and scores", "int8, int8 io", "verified"),
        ("text: Embedding", "int4", "verified"),
        ("two towers", "mixed", "verified"),
        ("ViT block", "weight_only", "verified"),
        ("inverted residual", "int16x8", "verified"),
        ("LSTM", "dynamic", "verified"),
        ("GRU", "int8", "refused"),
        ("decoder: nearest", "int16x8", "refused"),
        ("ConvNeXt block", "int8", "refused"),
        ("argmax inside", "float16", "refused"),
        ("text: TextVectorization", "float32", "refused"),
    ],
)
def test_a_cell_of_each_kind(name, column, end) -> None:
    ended = conversion_matrix.cell(name, column)
    assert ended["end"] == end, ended.get("text")


# Keras says so of the text model with a mask that no convolution takes.
@pytest.mark.filterwarnings("ignore:Layer 'conv' .* was passed an input with a mask")
@pytest.mark.slow
@pytest.mark.parametrize("column", conversion_matrix.COLUMNS)
@pytest.mark.parametrize("name", ZOO)
def test_a_cell_is_verified_or_refused_with_a_way_out(name, column) -> None:
    ended = conversion_matrix.cell(name, column)
    assert ended["end"] in conversion_matrix.GOOD, ended["text"]
