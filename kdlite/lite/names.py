"""Names of inputs and outputs: in Keras, inside TensorFlow's graph, in the file.

TensorFlow renames what goes into a signature: "left.img" and "left_img" are one there,
and so are "x" and "X". Two inputs of one name become one input, without a word. So the
graph that is converted has names of its own here, each once; and the signature of the
file gets those that Keras has, whatever characters they are of.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from kdlite.lite.flatbuffer import (
    Builder,
    Place,
    Table,
    add_table,
    add_vector,
    with_new_root,
)
from kdlite.lite.labels import is_unicode

# The fields' numbers in the tables of TFLite's schema, version 3.
_SIGNATURES = 7
_INPUTS, _OUTPUTS, _KEY, _GRAPH = 0, 1, 2, 4
_NAME, _TENSOR = 0, 1


def identifier(name: str) -> str:
    """Returns a Keras name as TensorFlow has it in a signature.

    Args:
        name: A name, for example of an input.

    Returns:
        The name with `_` for whatever no identifier can have, and `arg_` before one
        that does not begin with a letter.

    Example:
        >>> identifier("input-1/rgb")
        'input_1_rgb'
        >>> identifier("<rgb>")
        'arg__rgb_'
    """
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return plain if plain[:1].isalpha() else f"arg_{plain}"


def graph_names(names: Iterable[str]) -> dict[str, str]:
    """Returns what inputs, or outputs, are called inside TensorFlow's graph.

    Args:
        names: Those in Keras, each once, in any order.

    Returns:
        By name in Keras an identifier, each once even without its capitals. Plain names
        stay as they are.

    Example:
        >>> graph_names(["cls-top", "cls_top"])
        {'cls_top': 'cls_top', 'cls-top': 'cls_top_1'}
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    # The same whatever the order: it is asked for more than once.
    for name in sorted(names, key=lambda name: (identifier(name) != name, name)):
        found[name] = base = identifier(name)
        count = 0
        while found[name].lower() in taken:
            count += 1
            found[name] = f"{base}_{count}"
        taken.add(found[name].lower())
    return found


def output_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns a name for each output, each once.

    Args:
        paths: Of each output the layer that it is of, or its place in a structure.

    Returns:
        The parts of a path, joined by `_`. Of outputs that would have one name, the
        first keeps it, and before all others the one whose path it is.

    Example:
        >>> output_names([("a", "0"), ("a_0",), ("lstm",), ("lstm",)])
        ['a_0_1', 'a_0', 'lstm', 'lstm_1']
    """
    bases = ["_".join(path) for path in paths]
    taken = set(bases)
    found: dict[str, int] = {}
    for index in sorted(range(len(paths)), key=lambda index: len(paths[index])):
        name = bases[index]
        count = 0
        while name in found or (count and name in taken):
            count += 1
            name = f"{bases[index]}_{count}"
        found[name] = index
    return sorted(found, key=found.__getitem__)


def check_names(side: str, names: Sequence[str]) -> None:
    """Refuses names that no file can keep apart.

    Args:
        side: "inputs" or "outputs", for the message.
        names: Those in Keras.

    Raises:
        ValueError: If one is there twice, is empty, or has characters that are no text:
            TFLite ends a name at a zero.

    Example:
        >>> check_names("inputs", ["left", "left"])
        Traceback (most recent call last):
        ...
        ValueError: The model's inputs must have names that differ. Received: 'left' ...
    """
    for name in names:
        if not name or any(map(_is_control, name)) or not is_unicode(name):
            raise ValueError(
                f"The model's {side} must have names of one line of text, not empty. "
                f"Received: {name!r}. Fix: give it another name."
            )
        if names.count(name) > 1:
            raise ValueError(
                f"The model's {side} must have names that differ. Received: {name!r} "
                f"{names.count(name)} times. Fix: give each another name."
            )


def by_name(names: Sequence[str], given: Collection[str]) -> dict[str, str]:
    """Finds which name is meant for which.

    Args:
        names: Those of a model's inputs or outputs.
        given: Those of arrays, or of a file made elsewhere.

    Returns:
        By name of the model the given one: the same, or else the only one left over
        that TensorFlow makes of it, as arrays of an `.npz` may be called. Names without
        one are left out.

    Example:
        >>> by_name(["left.img", "ids"], ["ids", "left_img"])
        {'left.img': 'left_img', 'ids': 'ids'}
    """
    left = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    found = {}
    for name in names:
        meant = [name]
        if name in missing:
            alike = [other for other in missing if _alike(other, name)]
            meant = [other for other in left if _alike(other, name)]
            if len(alike) != 1 or len(meant) != 1:
                continue
        found[name] = meant[0]
    return found


def named(blob: bytes, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> bytes:
    """Writes names into the signatures of a file.

    Args:
        blob: A `.tflite` as the converter makes it.
        inputs: By name of an input in the file the one that it is to have.
        outputs: Likewise of outputs.

    Returns:
        The file with a new root, the rest as it is, to the byte; `blob` itself where
        all names are as they are to be.

    Example:
        ``named(blob, {"left_img": "left.img"}, {"scores": "scores"})``
    """
    if all(old == new for old, new in [*inputs.items(), *outputs.items()]):
        return blob
    root = Table.root(blob, b"TFL3")

    def renamed(builder: Builder, old: Place) -> dict[int, int]:
        def edges(entries: Iterable[Table], names: Mapping[str, str]) -> int:
            return add_vector(
                builder,
                [
                    add_table(
                        builder,
                        {_NAME: builder.CreateString(names[entry.string(_NAME)])},
                        words={_TENSOR: entry.number(_TENSOR, "I")},
                    )
                    for entry in entries
                ],
            )

        signatures = []
        for signature in root.tables(_SIGNATURES):
            sides = {
                _INPUTS: edges(signature.tables(_INPUTS), inputs),
                _OUTPUTS: edges(signature.tables(_OUTPUTS), outputs),
                _KEY: old(signature.target(_KEY)),
            }
            graph = {_GRAPH: signature.number(_GRAPH, "I")}
            signatures.append(add_table(builder, sides, words=graph))
        return {_SIGNATURES: add_vector(builder, signatures)}

    return with_new_root(blob, root, renamed)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc"


def _alike(name: str, other: str) -> bool:
    return identifier(name) == identifier(other)
