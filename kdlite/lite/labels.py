"""Labels: the names of an output's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

Labels = Sequence[str] | Mapping[str, Sequence[str]]


def check_texts(labels: Labels | None) -> None:
    """Checks what can be checked without the model.

    Args:
        labels: Class names, or such by output name.

    Raises:
        TypeError: If they are no lists.
        ValueError: If one is empty, no text or no single line, has half of a character
            (a lone surrogate), or is there twice.

    Example:
        >>> check_texts(["cat", "dog", "cat"])
        Traceback (most recent call last):
        ...
        ValueError: Labels must differ from each other. Received: 'cat' 2 times...
    """
    if labels is None:
        return
    groups = labels.values() if isinstance(labels, Mapping) else [labels]
    for texts in groups:
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(
                "`labels` must be a list of class names, or such by output name. "
                f"Received: {type(texts).__name__}. Give one name a class."
            )
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"Every label must be a text that is not empty. Received: {text!r} "
                    f"for class {index}. Give each class a name."
                )
            if text.splitlines() != [text]:
                raise ValueError(
                    f"Every label must be one line of text. Received: {text!r} for "
                    f"class {index}. Read names with text.splitlines(), which leaves "
                    "no line ends in them."
                )
            if not is_unicode(text):
                raise ValueError(
                    "Every label must be text that UTF-8 can hold. Received: "
                    f"{text!r} for class {index}. Fix: read names with "
                    "encoding='utf-8', and no `errors`."
                )
        names = list(texts)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Labels must differ from each other. Received: {twice[0]!r} "
                f"{names.count(twice[0])} times. Give each class a name of its own."
            )


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text: not a lone surrogate, half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_counts(labels: Labels | None, outputs: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that there is a label for each class.

    Args:
        labels: Class names, for the only output with so many classes, or such by output
            name.
        outputs: The shape of one sample's output by name; the last axis is of classes.

    Raises:
        ValueError: If an output is not there, or has another number of classes.

    Example:
        >>> check_counts(["cat", "dog"], {"animal": (2,), "size": (3,)})
    """
    if labels is None:
        return
    sizes = {name: shape[-1] if shape else 1 for name, shape in outputs.items()}
    there = ", ".join(f"{size} of {name!r}" for name, size in sizes.items())
    if isinstance(labels, Mapping):
        counts = {name: len(texts) for name, texts in labels.items()}
        wrong = {n: count for n, count in counts.items() if sizes.get(n) != count}
        received = ", ".join(f"{count} for {name!r}" for name, count in wrong.items())
    else:
        wrong = {"": len(labels)}
        if list(sizes.values()).count(len(labels)) == 1:
            wrong = {}
        received = f"{len(labels)} labels"
    if wrong:
        raise ValueError(
            "`labels` must be as many as one output has classes. Received: "
            f"{received}; classes: {there}. Give one label a class, by output name "
            "where several outputs have as many."
        )


def class_count(model: keras.Model) -> int | None:
    """Returns the number of classes of a classifier of one output.

    Args:
        model: The model.

    Returns:
        The number; None of other models, or where the model does not say.

    Example:
        >>> class_count(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        3
    """
    outputs: Any = getattr(model, "outputs", None) or ()
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        return None
    classes = outputs[0].shape[-1]
    # A single score is of two classes, or of none.
    return int(classes) if classes and classes > 1 else None


def score_meaning(model: keras.Model) -> str:
    """Returns what the outputs hold, by the activation that they come out of.

    Args:
        model: Any Keras model.

    Returns:
        A few words for people who read the file's metadata.

    Example:
        >>> score_meaning(keras.Sequential([keras.layers.Softmax()]))
        'probability of each class'
    """
    names = getattr(model, "output_names", None) or []
    ends = [layer for layer in model._flatten_layers() if layer.name in names]
    if isinstance(model, keras.Sequential):
        ends = model.layers[-1:]
    probabilities = (keras.activations.softmax, keras.activations.sigmoid)
    for end in ends:
        if isinstance(end, keras.layers.Softmax):
            return "probability of each class"
        if getattr(end, "activation", None) in probabilities:
            return "probability of each class"
    return "score of each class"
