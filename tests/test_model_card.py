from __future__ import annotations

import hashlib
import re

import keras
import numpy as np
import pytest

from kdlite.lite import convert, proof
from kdlite.lite.convert import export
from kdlite.lite.model_card import card_path, model_card
from kdlite.lite.verification import VerificationError, VerificationReport

layers = keras.layers


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            layers.Flatten(),
            layers.Dense(3, name="scores"),
        ],
        name="tiny_digits",
    )


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (128, 6, 6, 1)).astype("float32"), np.arange(128) % 3


@pytest.fixture(scope="module")
def exported(model, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "tiny.tflite"
    result = export(
        model,
        path,
        "int8",
        calibration_data=data[0],
        verify_data=data,
        input_range=(0.0, 255.0),
        labels=["one|two", "<b>", "three"],
        description="Digits,\nas `drawn`",
        author="A. N. Author",
        license="MIT",
        intended_use="For *tests*, never for cheques.",
        accuracy={"teacher": 0.9421},
    )
    assert result.card == path.parent / "MODEL_CARD.md"
    return result, result.card.read_text()


def test_the_card_says_what_the_file_is(exported, model) -> None:
    result, card = exported
    assert "# tiny\\_digits" in card
    assert "Digits, as \\`drawn\\`" in card
    assert "For *tests*, never for cheques." in card
    assert "| author | A. N. Author |" in card and "| licence | MIT |" in card
    assert f"`tiny.tflite`, {result.size_bytes:,} bytes" in card
    assert "| computes in | int8 |" in card
    assert f"TFLite {result.min_runtime} or newer" in card
    assert "8-bit pixels go in as (pixel - 0) / 1" in card
    # What users name is text, in a table's cells too.
    assert "one\\|two, \\<b\\>, three" in card


def test_the_card_has_the_figures_of_the_verification(exported, data, model) -> None:
    result, card = exported
    output = result.verification.outputs[0]
    assert "| teacher | top-1 | 94.21 % |" in card
    by_keras = (model(data[0]).numpy().argmax(-1) == data[1]).mean()
    assert f"made from | top-1 | {100 * by_keras:.2f} % |" in card
    assert f"| this file | top-1 | {100 * output.file_metric:.2f} % |" in card
    for run in result.verification.kernels:
        assert f"| scores | {run} |".replace(" kernels and ", ", ") in card
    assert f"{output.largest_steps:.1f} steps of" in card
    assert "11 dB below how much the output varies" in card


def test_the_card_says_how_to_make_the_file_again(exported) -> None:
    result, card = exported
    digest = hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert digest in card
    assert (
        'kdlite.export(model, "tiny.tflite", "int8", calibration_data=..., labels='
        in card
    )
    for words in ("fingerprint of the model", "fingerprint of the calibration data"):
        assert re.search(rf"\| {words} \| \w{{16,}}", card), words


def test_a_table_has_as_many_cells_in_every_row(exported) -> None:
    lines = exported[1].splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        if before.startswith("|") and line.startswith("|"):
            cells = [len(re.findall(r"(?<!\\)\|", text)) for text in (before, line)]
            assert cells[0] == cells[1], line


@pytest.fixture(scope="module")
def bare(model, tmp_path_factory) -> bytes:
    """A file of which nothing is told."""
    path = tmp_path_factory.mktemp("bare") / "m.tflite"
    export(model, path)
    return path.read_bytes()


@pytest.fixture
def quick(bare, monkeypatch) -> None:
    """Lets `export` make that file, without the converter's process."""

    class Made:
        outputs = {"scores": (3,)}

        def __init__(self, *args) -> None: ...
        def __enter__(self):
            return self

        def __exit__(self, *args) -> None: ...
        def run(self, kept) -> bytes:
            return bare

    monkeypatch.setattr(proof, "Conversion", Made)
    monkeypatch.setattr(convert, "write_metadata", lambda blob, **told: blob)


def test_what_is_not_known_is_said(bare) -> None:
    card = model_card(
        "m.tflite", bare, VerificationReport("m", 1, 0, (), (), ""), rule=""
    )
    assert card.count("not stated") == 3  # what it does, author, licence
    assert "Not stated (`intended_use=`, or `--intended-use`, states it)." in card
    assert "Not measured: `kdlite.export` was given no labels" in card
    assert "was not run against its Keras model" in card


def test_equal_exports_have_equal_cards(model, quick, tmp_path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        export(model, tmp_path / folder / "m.tflite")
    cards = [(tmp_path / name / "MODEL_CARD.md").read_bytes() for name in ("a", "b")]
    assert cards[0] == cards[1]


# --- where it goes


def test_each_of_several_files_has_its_own_card(model, quick, tmp_path) -> None:
    for name in ("first", "second"):
        export(model, tmp_path / f"{name}.tflite")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "MODEL_CARD.md",
        "first.tflite",
        "second.MODEL_CARD.md",
        "second.tflite",
    ]
    for name, card in (("first", names[0]), ("second", names[2])):
        assert f"`{name}.tflite`" in (tmp_path / card).read_text()
    # Made again, each keeps its place.
    for name in ("second", "first"):
        export(model, tmp_path / f"{name}.tflite", intended_use="New.", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for card in (names[0], names[2]):
        assert "New." in (tmp_path / card).read_text()


def test_a_card_of_anyone_else_is_never_touched(model, quick, tmp_path) -> None:
    (tmp_path / "MODEL_CARD.md").write_text("# Mine\n")
    export(model, tmp_path / "m.tflite")
    assert (tmp_path / "MODEL_CARD.md").read_text() == "# Mine\n"
    assert card_path(tmp_path / "m.tflite").name == "m.MODEL_CARD.md"
    (tmp_path / "n.MODEL_CARD.md").write_bytes(b"\xff\xfe")
    with pytest.raises(FileExistsError, match="needs a place beside it.*n.tflite"):
        export(model, tmp_path / "n.tflite")
    assert not (tmp_path / "n.tflite").exists()


def test_without_the_file_there_is_no_card(model, quick, tmp_path, monkeypatch) -> None:
    (tmp_path / "old.tflite").write_text("old")
    wrong = ["output 'scores' is off"]
    monkeypatch.setattr(proof.Proof, "problems", lambda *args: wrong)
    with pytest.raises(VerificationError, match="is off"):
        export(model, tmp_path / "old.tflite", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.tflite"]


@pytest.mark.parametrize(
    ("accuracy", "error", "text"),
    [
        (0.9, TypeError, "`accuracy` must be a mapping.*Received: accuracy=0.9"),
        ({"teacher": float("nan")}, ValueError, "finite number by name.*nan for 'te"),
        ({"teacher": True}, ValueError, "finite number by name.*True for 'teacher'"),
    ],
)
def test_accuracies_that_are_none_are_named(model, tmp_path, accuracy, error, text):
    with pytest.raises(error, match=text):
        export(model, tmp_path / "m.tflite", accuracy=accuracy)
    assert list(tmp_path.iterdir()) == []


def test_what_others_say_does_not_spoil_the_card(model, tmp_path) -> None:
    for number, use in enumerate(("<!-- hidden", "```\ncode", "~~~")):
        path = tmp_path / f"{number}" / "m.tflite"
        path.parent.mkdir()
        export(model, path, intended_use=use, accuracy={"big_teacher": 0.9})
        card = (path.parent / "MODEL_CARD.md").read_text()
        said = card.partition("## Intended use")[2].partition("## Input")[0]
        assert "<!--" not in said
        assert said.count("```") % 2 == said.count("~~~") % 2 == 0
        assert r"| big\_teacher | as given to the export | 90.00 % |" in card
        assert "| model | metric | value |" in card


def test_names_of_any_signs_stay_in_their_place(bare) -> None:
    card = model_card(
        "we`ird |na``me.tflite",
        bare,
        VerificationReport("m", 1, 0, (), (), ""),
        rule="",
        intended_use="Not\r\n\u202ethis",
        accuracy={"a\u202eb": 0.25, "`<i>|": 0.125},
    )
    assert "| file | ``` we`ird \\|na``me.tflite ```, " in card
    assert "| a\\\\u202eb |" in card and "\u202e" not in card
    assert "\nNot\n\\u202ethis\n" in card
    assert r"| \`\<i\>\| |" in card  # no code span, though it begins as one
