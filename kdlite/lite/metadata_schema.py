"""TFLite Metadata: what its schema can say, and its flatbuffer form.

The field numbers are those of ``metadata_schema.fbs``, version 1.0.0, file identifier
``M001``, as published with TensorFlow Lite Support.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import flatbuffers
import numpy as np

from kdlite.lite.flatbuffer import Builder, Table, add_table, add_vector
from kdlite.terminal import in_a_line, indented

PROVENANCE_FILE = "kdlite.json"
# All that is written here is of the schema's first version, which any parser knows.
MIN_PARSER_VERSION = "1.0.0"
_IDENTIFIER = b"M001"

# Enumerations and unions of the schema, by their published numbers.
_CONTENTS = {"features": 1, "image": 2, "bounding boxes": 3, "audio": 4}
_COLOR_SPACES = {"rgb": 1, "grayscale": 2}
_NORMALIZATION = 1
_DESCRIPTIONS, _TENSOR_AXIS_LABELS = 1, 2


@dataclass(frozen=True)
class TensorMetadata:
    """What a file says of one input or output.

    Attributes:
        name: The name in the model's signature.
        description: For people; of an output, what its scores mean.
        content: ``"image"``, ``"features"``, ``"bounding boxes"``, ``"audio"``, ``""``.
        color_space: ``"rgb"`` or ``"grayscale"`` for images, else ``""``.
        mean: Subtracted from 8-bit pixel values before they go in; per channel, or one.
        std: Divided by afterwards: ``(pixel - mean) / std``.
        minimum: The least value that is meant to go in or come out.
        maximum: The greatest.
        labels: The names along the last axis, or empty.
    """

    name: str = ""
    description: str = ""
    content: str = ""
    color_space: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.color_space} {self.content}".strip()]
        if self.mean:
            mean, std = (
                ", ".join(map("{:g}".format, v)) for v in (self.mean, self.std)
            )
            parts.append(f"(x - [{mean}]) / [{std}]")
        if self.labels:
            few = ", ".join(self.labels[:3]) + (" ..." if len(self.labels) > 3 else "")
            parts.append(f"{len(self.labels)} labels: {few}")
        parts.append(self.description)
        text = "; ".join(part for part in parts if part)
        return in_a_line(f"{self.name}: {text}")


@dataclass(frozen=True)
class SignatureMetadata:
    """What a file says of one of its graphs that has a name: a signature.

    Attributes:
        name: The signature's name.
        inputs: One for each input, in the file's order.
        outputs: One for each output.
    """

    name: str
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


@dataclass(frozen=True)
class Metadata:
    """What a ``.tflite`` says of itself; all empty where it says nothing.

    Attributes:
        name: The model's name.
        description: What it does, for people.
        version: The model's version.
        author: Who made it.
        license: Under which terms.
        min_parser_version: The least version of a metadata parser that understands it.
        min_runtime_version: The least TFLite runtime by the word of the converter,
            which is known to set it too low.
        inputs: One for each input of the main subgraph, in the file's order.
        outputs: One for each output.
        signatures: What it says of each signature, where there are several.
        files: The associated files, name to content.
        provenance: What ``kdlite.json`` holds, or None.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    min_parser_version: str = ""
    min_runtime_version: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()
    signatures: tuple[SignatureMetadata, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def all_inputs(self) -> tuple[TensorMetadata, ...]:
        """The inputs of all signatures, "signature/input" where there are several."""
        return self.inputs if not self.signatures else _renamed(self, "inputs")

    @property
    def all_outputs(self) -> tuple[TensorMetadata, ...]:
        """The outputs of all signatures, likewise."""
        return self.outputs if not self.signatures else _renamed(self, "outputs")

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the first output that has any."""
        return next((out.labels for out in self.outputs if out.labels), ())

    def __str__(self) -> str:
        about = {
            "description": self.description,
            "version": self.version,
            "author": self.author,
            "license": self.license,
        }
        return "\n".join(
            [
                in_a_line(self.name) or "(no name)",
                *(f"  {key}: {indented(text)}" for key, text in about.items() if text),
                *(f"  input {tensor}" for tensor in self.all_inputs),
                *(f"  output {tensor}" for tensor in self.all_outputs),
                *(
                    f"  file {in_a_line(name)}: {len(d):,} bytes"
                    for name, d in self.files.items()
                ),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it; of files, their sizes in bytes."""
        sizes = {name: len(content) for name, content in self.files.items()}
        return {**asdict(self), "files": sizes}


def _renamed(about: Metadata, side: str) -> tuple[TensorMetadata, ...]:
    return tuple(
        replace(tensor, name=f"{signature.name}/{tensor.name}")
        for signature in about.signatures
        for tensor in getattr(signature, side)
    )


def decode(data: bytes, files: Mapping[str, bytes]) -> Metadata:
    """Reads a metadata flatbuffer that may be hostile.

    Args:
        data: The flatbuffer.
        files: The associated files beside it.

    Raises:
        ValueError: If it is malformed, or names a file that is not there.
    """
    about = Table.root(data, _IDENTIFIER)

    @cache  # many tensors may name one file
    def labels_in(name: str) -> tuple[str, ...]:
        lines = _decode(files[name], name).removesuffix("\n").split("\n")
        return tuple(line.removesuffix("\r") for line in lines)

    def tensors(subgraph: Table | None, slot: int) -> tuple[TensorMetadata, ...]:
        tables = subgraph.tables(slot) if subgraph else []
        return tuple(_read_tensor(table, files, labels_in) for table in tables)

    graphs = about.tables(3)
    subgraph = next(iter(graphs), None)
    for table in [*about.tables(6), *(subgraph.tables(4) if subgraph else [])]:
        _associated_file(table, files)
    return Metadata(
        name=about.string(0),
        description=about.string(1),
        version=about.string(2),
        author=about.string(4),
        license=about.string(5),
        min_parser_version=about.string(7),
        inputs=tensors(subgraph, 2),
        outputs=tensors(subgraph, 3),
        signatures=tuple(
            SignatureMetadata(name, tensors(graph, 2), tensors(graph, 3))
            for graph in graphs
            if (name := graph.string(0))
        ),
        files=files,
        provenance=_read_provenance(files),
    )


def _read_tensor(
    table: Table,
    files: Mapping[str, bytes],
    labels_in: Callable[[str], tuple[str, ...]],
) -> TensorMetadata:
    kind, color_space = "", ""
    if content := table.table(3):
        kind = _name_of(content.number(0, "B"), _CONTENTS)
        if kind == "image" and (image := content.table(1)):
            color_space = _name_of(image.number(0, "b"), _COLOR_SPACES)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in table.tables(4):
        options = unit.table(1)
        if unit.number(0, "B") == _NORMALIZATION and options:
            mean, std = options.floats(0), options.floats(1)
    stats = table.table(5)
    labels: tuple[str, ...] = ()
    for associated in table.tables(6):
        name = _associated_file(associated, files)
        if associated.number(2, "b") == _TENSOR_AXIS_LABELS and not labels:
            labels = labels_in(name)
    return TensorMetadata(
        name=table.string(0),
        description=table.string(1),
        content=kind,
        color_space=color_space,
        mean=mean,
        std=std,
        minimum=stats.floats(1) if stats else (),
        maximum=stats.floats(0) if stats else (),
        labels=labels,
    )


def _name_of(number: int, names: Mapping[str, int]) -> str:
    return next((name for name, value in names.items() if value == number), "")


def _associated_file(table: Table, files: Mapping[str, bytes]) -> str:
    name = table.string(0)
    if name not in files:
        raise ValueError(f"the associated file {name!r} is missing")
    return name


def _read_provenance(files: Mapping[str, bytes]) -> Mapping[str, Any] | None:
    if PROVENANCE_FILE not in files:
        return None
    try:
        provenance = json.loads(_decode(files[PROVENANCE_FILE], PROVENANCE_FILE))
    except (json.JSONDecodeError, RecursionError) as err:
        raise ValueError(f"{PROVENANCE_FILE} is no JSON ({err})") from err
    if not isinstance(provenance, dict):
        raise ValueError(f"{PROVENANCE_FILE} holds no JSON object")
    return provenance


def _decode(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as err:
        raise ValueError(f"{what} is no UTF-8 text") from err


def encode(
    about: Metadata,
    graphs: Sequence[SignatureMetadata],
    label_files: Mapping[tuple[str, str], str],
) -> bytes:
    """The metadata as a flatbuffer.

    Args:
        about: All but inputs and outputs.
        graphs: Those, graph by graph in the model's order; one without a name is no
            signature of several.
        label_files: By signature and output name.
    """
    builder = flatbuffers.Builder(1024)
    subgraphs = []
    for graph in graphs:
        inputs = [_pack_tensor(builder, tensor, None) for tensor in graph.inputs]
        outputs = [
            _pack_tensor(builder, tensor, label_files.get((graph.name, tensor.name)))
            for tensor in graph.outputs
        ]
        sides = {2: add_vector(builder, inputs), 3: add_vector(builder, outputs)}
        if graph.name:
            sides[0] = _pack_text(builder, graph.name)
        subgraphs.append(sides)
    others = [
        _pack_file(builder, name, _DESCRIPTIONS)
        for name in about.files
        if name not in label_files.values()
    ]
    root = {
        0: _pack_text(builder, about.name),
        1: _pack_text(builder, about.description),
        2: _pack_text(builder, about.version),
        3: add_vector(builder, [add_table(builder, sides) for sides in subgraphs]),
        4: _pack_text(builder, about.author),
        5: _pack_text(builder, about.license),
        6: add_vector(builder, others),
        7: _pack_text(builder, about.min_parser_version),
    }
    builder.Finish(add_table(builder, root), _IDENTIFIER)
    return bytes(builder.Output())


def _pack_tensor(
    builder: Builder, tensor: TensorMetadata, label_file: str | None
) -> int:
    color = _COLOR_SPACES.get(tensor.color_space, 0)
    properties = {1: add_table(builder, {}, bytes_={0: color})}
    kind = _CONTENTS[tensor.content]
    fields = {3: add_table(builder, properties, bytes_={0: kind})}
    if tensor.mean:
        mean, std = (_pack_floats(builder, v) for v in (tensor.mean, tensor.std))
        options = {1: add_table(builder, {0: mean, 1: std})}
        unit = add_table(builder, options, bytes_={0: _NORMALIZATION})
        fields[4] = add_vector(builder, [unit])
    if tensor.minimum:
        limits = (_pack_floats(builder, v) for v in (tensor.maximum, tensor.minimum))
        fields[5] = add_table(builder, dict(enumerate(limits)))
    if label_file:
        file = _pack_file(builder, label_file, _TENSOR_AXIS_LABELS)
        fields[6] = add_vector(builder, [file])
    fields[0] = _pack_text(builder, tensor.name)
    fields[1] = _pack_text(builder, tensor.description)
    return add_table(builder, fields)


def _pack_file(builder: Builder, name: str, kind: int) -> int:
    return add_table(builder, {0: _pack_text(builder, name)}, bytes_={2: kind})


def _pack_text(builder: Builder, text: str) -> int:
    return int(builder.CreateString(text)) if text else 0


def _pack_floats(builder: Builder, values: Sequence[float]) -> int:
    return int(builder.CreateNumpyVector(np.asarray(values, np.float32)))
