from __future__ import annotations

import keras
import pytest

from kdlite.lite import convert
from kdlite.lite.labels import check_counts, check_texts, score_meaning

SHAPES = {"animal": (2,), "size": (3,), "colour": (3,), "one": ()}


def test_good_labels() -> None:
    check_texts(None)
    check_texts(["cat", "dog"])
    check_texts({"animal": ("cat", "dog"), "size": ["s", "m", "l"]})
    check_counts(None, SHAPES)
    check_counts(["cat", "dog"], SHAPES)
    check_counts({"animal": ["cat", "dog"], "size": ["s", "m", "l"]}, SHAPES)


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (["a", "a"], ValueError, "must differ from each other. Received: 'a' 2 tim"),
        (["a", "b\n"], ValueError, r"one line of text. Received: 'b.n' for class 1"),
        (["a\rb", "c"], ValueError, r"one line of text. Received: 'a.rb' for class 0"),
        (["a", " "], ValueError, "not empty. Received: ' ' for class 1"),
        (["a", 3], ValueError, "must be a text.*Received: 3 for class 1"),
        (["a", "b\ud83d"], ValueError, r"UTF-8 can hold.*'b.ud83d' for class 1.*Fix:"),
        ("ab", TypeError, "must be a list of class names.*Received: str"),
        ({"animal": "ab"}, TypeError, "must be a list of class names.*Received: str"),
        ({"a", "b"}, TypeError, "must be a list of class names.*Received: set"),
    ],
)
def test_texts(labels, error, text) -> None:
    with pytest.raises(error, match=text):
        check_texts(labels)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (
            ["a"] * 4,
            "as many as one output has classes. Received: 4 labels; .*2 of 'an",
        ),
        (
            ["s", "m", "l"],
            "Received: 3 labels; .*3 of 'size', 3 of 'colour'.*by output",
        ),
        ({"size": ["s", "m"]}, "Received: 2 for 'size'; classes: 2 of 'animal'"),
        ({"shape": ["s", "m"]}, "Received: 2 for 'shape'; classes: 2 of 'animal'"),
    ],
)
def test_counts(labels, text) -> None:
    with pytest.raises(ValueError, match=text):
        check_counts(labels, SHAPES)


@pytest.mark.parametrize(
    ("last", "meaning"),
    [
        (keras.layers.Dense(2, activation="softmax"), "probability of each class"),
        (keras.layers.Dense(2, activation="sigmoid"), "probability of each class"),
        (keras.layers.Softmax(), "probability of each class"),
        # A name that is older than the activation says nothing.
        (keras.layers.Softmax(name="logits"), "probability of each class"),
        (keras.layers.Dense(2), "score of each class"),
    ],
)
def test_meaning(last, meaning) -> None:
    inputs = keras.Input((2,))
    assert score_meaning(keras.Model(inputs, last(inputs))) == meaning
    assert score_meaning(keras.Sequential([keras.layers.ReLU(), last])) == meaning


@pytest.mark.parametrize("name", ["description", "author", "license", "intended_use"])
@pytest.mark.parametrize("text", [None, 3, ["a"]])
def test_what_a_file_says_of_itself_is_text(tmp_path, monkeypatch, name, text) -> None:
    """Found before anything is converted."""
    monkeypatch.setattr(convert, "Proof", None)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(TypeError, match=f"`{name}` must be a text. Received: {name}="):
        convert.export(model, tmp_path / "m.tflite", **{name: text})
    with pytest.raises(ValueError, match=f"`{name}` must be .*UTF-8.*{name}='a.ud83d'"):
        convert.export(model, tmp_path / "m.tflite", **{name: "a\ud83d"})


def test_a_file_that_its_card_cannot_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(convert, "Proof", None)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`path` must be .*UTF-8.*path='.udcff.tflite"):
        convert.export(model, tmp_path / "\udcff.tflite")
