"""Several models in one `.tflite`, each a signature, with the weights that they share.

Each model becomes a file of its own first, so that every recipe is there for every one
of them, with its own calibration. Their graphs are put side by side, and numbers that
are equal, as the kernels of layers that the models share, are stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from kdlite.lite.flatbuffer import ALIGNMENT, add_content, add_table, add_vector

_IDENTIFIER = b"TFL3"
_VERSION = 3
_SIZE_BYTES = 4096

T = TypeVar("T")


def of_signature(
    value: T | Mapping[str, T] | None, name: str, names: Iterable[str]
) -> Any:
    """Returns what an argument says of one signature.

    Args:
        value: Something for all signatures, or a mapping of which every key is the name
            of one.
        name: The signature.
        names: All of them; none where a file has only one.

    Returns:
        What is for this one, None where a mapping leaves it out.

    Example:
        >>> of_signature({"embed": 1}, "embed", ["classify", "embed"])
        1
        >>> of_signature({"image": 1}, "embed", ["classify", "embed"])
        {'image': 1}
    """
    if isinstance(value, Mapping) and value and set(value) <= set(names):
        return value.get(name)
    return value


def merged(files: Mapping[str, bytes]) -> bytes:
    """Puts files of one signature each into one of several.

    Args:
        files: By signature name a `.tflite` as the converter makes it, without
            metadata.

    Returns:
        The bytes of a `.tflite` whose first graph is the first file's. Equal arguments
        give equal bytes.

    Example:
        ``merged({"classify": classifier_bytes, "embed": embedder_bytes})``
    """
    codes: dict[tuple[Any, ...], int] = {}
    contents: dict[bytes, int] = {b"": 0}  # the first is empty by TFLite's schema
    whole = schema.ModelT(operatorCodes=[], subgraphs=[], metadata=[], signatureDefs=[])
    for name, file in files.items():
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file, 0))
        first = len(whole.subgraphs)
        buffers = [
            contents.setdefault(_content(buffer), len(contents))
            for buffer in model.buffers
        ]
        code_of = []
        for code in model.operatorCodes:
            key = tuple(vars(code).values())
            if key not in codes:
                codes[key] = len(codes)
                whole.operatorCodes.append(code)
            code_of.append(codes[key])
        for graph in model.subgraphs:
            for tensor in graph.tensors or []:
                tensor.buffer = buffers[tensor.buffer]
            for operator in graph.operators or []:
                operator.opcodeIndex = code_of[operator.opcodeIndex]
                _renumber_graphs(operator, first)
        whole.subgraphs += model.subgraphs
        for signature in model.signatureDefs:
            signature.signatureKey = name
            signature.subgraphIndex += first
        whole.signatureDefs += model.signatureDefs
        known = {entry.name for entry in whole.metadata}
        for entry in model.metadata or []:
            entry.buffer = buffers[entry.buffer]
            if entry.name not in known:
                whole.metadata.append(entry)
    return _packed(whole, list(contents))


def _content(buffer: Any) -> bytes:
    return b"" if buffer.data is None else bytes(buffer.data)


def _renumber_graphs(operator: Any, first: int) -> None:
    """Loops and branches name the graphs that they run."""
    for options in (operator.builtinOptions, operator.builtinOptions2):
        for field in vars(options) if options else ():
            if field.lower().endswith("subgraphindex"):
                setattr(options, field, getattr(options, field) + first)


def _packed(model: Any, contents: list[bytes]) -> bytes:
    builder = flatbuffers.Builder(_SIZE_BYTES + sum(map(len, contents)))
    # The generated code does not align what it packs.
    buffers = [
        add_table(
            builder,
            {0: add_content(builder, content, ALIGNMENT)} if content else {},
        )
        for content in contents
    ]

    def packed(parts: Iterable[Any]) -> int:
        return add_vector(builder, [int(part.Pack(builder)) for part in parts])

    targets = {
        1: packed(model.operatorCodes),
        2: packed(model.subgraphs),
        3: int(builder.CreateString("kdlite")),
        4: add_vector(builder, buffers),
        6: packed(model.metadata),
        7: packed(model.signatureDefs),
    }
    builder.Finish(add_table(builder, targets, words={0: _VERSION}), _IDENTIFIER)
    return bytes(builder.Output())
