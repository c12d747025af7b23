"""What a ``.tflite`` says of itself: labels, preprocessing, provenance inside the file.

By the published schema of TFLite Metadata, which MediaPipe Tasks, ML Kit, Android
Studio and ``org.tensorflow:tensorflow-lite-metadata`` read. Such a file is::

    the model's flatbuffer, with an entry "TFLITE_METADATA"
        in its buffer: the metadata's flatbuffer
    a zip archive: labels.txt, kdlite.json

Reading trusts nothing: each offset is checked against the file, work and sizes are
bounded, and nothing is written to disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdlite.lite import associated_files
from kdlite.lite.flatbuffer import (
    ALIGNMENT,
    Builder,
    Place,
    Table,
    add_content,
    add_table,
    add_vector,
    with_new_root,
)
from kdlite.lite.metadata_schema import (
    MIN_PARSER_VERSION,
    PROVENANCE_FILE,
    Metadata,
    SignatureMetadata,
    TensorMetadata,
    decode,
    encode,
)
from kdlite.lite.signatures import of_signature

Range = tuple[float, float]

__all__ = ["Metadata", "TensorMetadata", "read_metadata", "write_metadata"]

_ENTRY = "TFLITE_METADATA"
_LAST_MODEL_SLOT = 9
# In the provenance, of all that is before the archive.
_SEAL = "sha256_before_archive"


def read_metadata(file: str | os.PathLike[str] | bytes) -> Metadata:
    """Reads what a ``.tflite`` says of itself.

    Any ``.tflite`` will do; one without metadata gives an empty ``Metadata``. Nothing
    is run, and the associated files are returned, never written.

    Args:
        file: The path of the file, or its bytes.

    Returns:
        Names, preprocessing, labels, provenance and the associated files.

    Raises:
        ValueError: If the file is no ``.tflite`` or cut short, an offset leads outside,
            or the archive cannot be trusted.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "notes.txt")
        >>> _ = path.write_text("not a model")
        >>> read_metadata(path)
        Traceback (most recent call last):
        ...
        ValueError: A .tflite must be a whole, well-formed file. Received: ...

    Reference:
        The TFLite Metadata schema, version 1.0.0, of TensorFlow Lite Support.
    """
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    try:
        return _parse(data)
    except ValueError as err:
        name = f"{len(data)} bytes" if isinstance(file, bytes) else repr(str(file))
        raise ValueError(
            "A .tflite must be a whole, well-formed file. Received: "
            f"{name}, where {err}. Do not use it; copy or export it again."
        ) from err


def _parse(data: bytes) -> Metadata:
    model = Table.root(data, b"TFL3")
    entries = {entry.string(0): entry.number(1, "I") for entry in model.tables(6)}
    contents = {}
    for name in ("min_runtime_version", _ENTRY):
        if name in entries:
            contents[name] = _buffer(model, entries[name])
    about = Metadata()
    if _ENTRY in contents:
        about = decode(contents[_ENTRY], associated_files.unpack(data))
    version = contents.get("min_runtime_version", b"").rstrip(b"\0")
    return replace(about, min_runtime_version=version.decode("ascii", "replace"))


def _buffer(model: Table, index: int) -> bytes:
    buffers = model.tables(4)
    if index >= len(buffers):
        raise ValueError(f"buffer {index} is named, of {len(buffers)}")
    return buffers[index].content(0)


class _Tensor(NamedTuple):
    """An input or output of the model, as its signature has it."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The length of the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def color_space(self) -> str:
        spaces = {1: "grayscale", 3: "rgb"}
        return spaces.get(self.size, "") if len(self.shape) == 4 else ""


def write_metadata(
    model: bytes,
    *,
    name: str,
    description: str = "",
    version: str = "",
    author: str = "",
    license: str = "",
    labels: Any = None,
    score_meaning: str | Mapping[str, str] = "",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    input_range: Range | Mapping[str, Range | None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns the model with metadata inside; equal arguments give equal bytes.

    The model stays as it is, to the byte: a new root is put before it, which knows one
    buffer more.

    ``mean``, ``std`` and ``input_range`` are of the image inputs (four axes, the last
    of length 1 or 3), or else of the only input. They say what an app does with 8-bit
    pixels *before* it hands them over: ``(pixel - mean) / std``. Where only
    ``input_range`` is given, 0 to 255 is spread over it: a model that takes raw pixels
    has ``input_range=(0.0, 255.0)``, from which follow mean 0 and std 1.

    Of a model with several signatures, each of ``labels``, ``score_meaning``, ``mean``,
    ``std`` and ``input_range`` may be a mapping by signature name.

    Args:
        model: A ``.tflite`` as the converter makes it, without metadata.
        name: The model's name.
        description: What it does, for people.
        version: The model's version.
        author: Who made it.
        license: Under which terms.
        labels: Class names in the order of an output's last axis: a list for the only
            output with so many values, or such lists by output name.
        score_meaning: What the labelled outputs hold (without labels: all outputs), for
            example "probability of each class".
        mean: One for each channel, or one for all; goes with ``std``.
        std: One for each channel, or one for all; not 0.
        input_range: The least and the greatest value that the model is made for.
        provenance: What is put into ``kdlite.json``; plain JSON. The SHA-256 of the
            model with its metadata is added.

    Returns:
        The bytes of the new ``.tflite``.

    Raises:
        ValueError: If the model is no well-formed ``.tflite`` without metadata, or an
            argument does not fit it.

    Example:
        ``write_metadata(model, name="Digits", labels=list("0123456789"),
        score_meaning="logit of each class", input_range=(0.0, 255.0))``

    Reference:
        The TFLite Metadata schema, version 1.0.0, of TensorFlow Lite Support.
    """
    try:
        root = Table.root(model, b"TFL3")
        graphs = _graphs(root)
        _check_unlabelled(model, root)
    except ValueError as err:
        raise ValueError(
            "`model` must be a .tflite as the converter makes it. Received: "
            f"{len(model):,} bytes, where {err}. Convert the Keras model again."
        ) from err
    if not name:
        raise ValueError(
            f"A model must have a name. Received: name={name!r}. Say in a few words "
            "what it is."
        )
    names = [graph.name for graph in graphs if graph.name]
    label_files: dict[tuple[str, str], str] = {}
    files: dict[str, bytes] = {}
    described = []
    for graph in graphs:

        def its(value: Any, name: str = graph.name) -> Any:
            return of_signature(value, name, names)

        labels_of = _labels_by_output(its(labels), graph.outputs)
        for output, texts in labels_of.items():
            file = f"labels_{len(files)}.txt" if files else "labels.txt"
            label_files[graph.name, output] = file
            files[file] = "\n".join(texts).encode()
        labelled = labels_of or {output.name for output in graph.outputs}
        described.append(
            SignatureMetadata(
                graph.name,
                _describe_inputs(graph.inputs, its(mean), its(std), its(input_range)),
                tuple(
                    TensorMetadata(
                        name=output.name,
                        description=(
                            its(score_meaning) if output.name in labelled else ""
                        ),
                        content="features",
                    )
                    for output in graph.outputs
                ),
            )
        )
    if provenance is not None:
        files[PROVENANCE_FILE] = _provenance_json(provenance)
    about = Metadata(
        name=name,
        description=description,
        version=version,
        author=author,
        license=license,
        min_parser_version=MIN_PARSER_VERSION,
        files=files,
    )
    spliced = _splice(model, root, encode(about, described, label_files))
    if provenance is not None:
        sealed = {**provenance, _SEAL: hashlib.sha256(spliced).hexdigest()}
        files[PROVENANCE_FILE] = _provenance_json(sealed)
    return associated_files.attach(spliced, files)


def changed_since_written(file: bytes) -> str:
    """Says whether a file is another than `write_metadata` made.

    The SHA-256 of the model and of what the metadata say of it is in ``kdlite.json``. A
    bit of a weight or a step that is another is no matter of tolerances then.

    Args:
        file: The bytes of a ``.tflite``.

    Returns:
        What is wrong; nothing if nothing is, or the file tells of no SHA-256.

    Raises:
        ValueError: As `read_metadata` does.
    """
    told = (read_metadata(file).provenance or {}).get(_SEAL)
    found = hashlib.sha256(associated_files.model_part(file)).hexdigest()
    if not isinstance(told, str) or told == found:
        return ""
    return (
        "the file is not the one that was exported: its model, steps or metadata were "
        f"changed since (SHA-256 {found[:12]}..., exported as {told[:12]}...)"
    )


class _Graph(NamedTuple):
    """A graph of the model that a signature runs; without a name if it is the only."""

    name: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]


def _graphs(root: Table) -> list[_Graph]:
    """The graphs up to the last that a signature runs, in the file's order."""
    subgraphs = root.tables(2)
    if not subgraphs:
        raise ValueError("there is no graph")
    signatures = root.tables(7)
    numbers = [signature.number(4, "I") for signature in signatures]
    several = len(set(numbers)) > 1
    graphs = []
    for number, subgraph in enumerate(subgraphs[: max(numbers, default=0) + 1]):
        tensors = subgraph.tables(0)
        its = [table for table in signatures if table.number(4, "I") == number]
        # An inner graph, of a loop, has nothing to be said of.
        inputs, outputs = (
            _edges(
                subgraph.integers(slot),
                tensors,
                [entry for signature in its for entry in signature.tables(slot - 1)],
            )
            if its or not number
            else []
            for slot in (1, 2)
        )
        name = its[0].string(2) if several and its else ""
        graphs.append(_Graph(name, inputs, outputs))
    return graphs


def _edges(
    indices: Sequence[int], tensors: Sequence[Table], entries: Sequence[Table]
) -> list[_Tensor]:
    if not all(0 <= index < len(tensors) for index in indices):
        raise ValueError("a tensor is named that is not there")
    # Signatures keep the names that Keras gave; a tensor's own is the converter's. Two
    # outputs may be one tensor.
    names: dict[int, list[str]] = {}
    for entry in entries:
        names.setdefault(entry.number(1, "I"), []).append(entry.string(0))
    edges = []
    for index in indices:
        its = names.get(index) or [""]
        name = (its.pop(0) if len(its) > 1 else its[0]) or tensors[index].string(3)
        edges.append(_Tensor(name, tensors[index].integers(0)))
    return edges


def _check_unlabelled(model: bytes, root: Table) -> None:
    """Raises unless the model can be put behind a new root, and has no metadata."""
    if any(entry.string(0) == _ENTRY for entry in root.tables(6)):
        raise ValueError("metadata is there already")
    if associated_files.present(model):
        raise ValueError("an archive is attached already")
    if any(slot > _LAST_MODEL_SLOT for slot in root.slots()):
        raise ValueError("there are fields that TFLite's schema did not have yet")
    # Past 2 GiB, buffers lie behind the flatbuffer, counted from the file's start.
    if any(buffer.number(1, "Q") > 1 for buffer in root.tables(4)):
        raise ValueError("weights lie outside the flatbuffer")


def _labels_by_output(
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None, outputs: list[_Tensor]
) -> dict[str, list[str]]:
    if labels is None:
        return {}
    there = ", ".join(f"{output.name!r} of {output.size}" for output in outputs)
    sizes = {output.name: output.size for output in outputs}
    if not isinstance(labels, Mapping):
        fitting = [name for name, size in sizes.items() if size == len(labels)]
        if isinstance(labels, str) or len(fitting) != 1:
            raise ValueError(
                "`labels` must be as many as one output has values. Received: "
                f"{len(labels)} labels, outputs {there}. Give one label a class, or "
                "labels={output: [...]}."
            )
        labels = {fitting[0]: labels}
    for name, texts in labels.items():
        if sizes.get(name) != len(texts):
            raise ValueError(
                "`labels` must go by output name, as many as it has values. Received: "
                f"{len(texts)} labels for {name!r}, outputs {there}. Give one label a "
                "class."
            )
        for text in texts:
            if not isinstance(text, str) or text.splitlines() != [text]:
                raise ValueError(
                    "A label must be one line of text. Received: "
                    f"{text!r} for {name!r}. Give each class a name."
                )
    return {name: list(labels[name]) for name in sizes if name in labels}


def _provenance_json(provenance: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(
            dict(provenance), allow_nan=False, indent=1, sort_keys=True
        ).encode()
    except (TypeError, ValueError) as err:
        raise ValueError(
            "`provenance` must be plain JSON. Received: a value that is not "
            f"({err}). Turn arrays into lists, and NaN into None."
        ) from err


def _describe_inputs(
    inputs: list[_Tensor],
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    input_range: tuple[float, float] | None,
) -> tuple[TensorMetadata, ...]:
    prepared = [tensor for tensor in inputs if tensor.color_space]
    if not prepared and len(inputs) == 1:
        prepared = inputs
    if not prepared and (mean, std, input_range) != (None, None, None):
        raise ValueError(
            "`mean`, `std` and `input_range` need an image input, or a single input. "
            f"Received: inputs {[tensor.name for tensor in inputs]}. Leave them out."
        )
    if (mean is None) != (std is None):
        raise ValueError(
            f"`mean` and `std` go together. Received: mean={mean!r}, std={std!r}. Give "
            "both, or none."
        )
    low_high = None
    if input_range is not None:
        low_high = tuple(float(bound) for bound in input_range)
        if len(low_high) != 2 or not -math.inf < low_high[0] < low_high[1] < math.inf:
            raise ValueError(
                "`input_range` must be two finite numbers, the lower first. Received: "
                f"input_range={input_range!r}. Give for example (0.0, 255.0)."
            )

    def described(tensor: _Tensor) -> TensorMetadata:
        about = TensorMetadata(
            name=tensor.name,
            content="image" if tensor.color_space else "features",
            color_space=tensor.color_space,
        )
        if tensor not in prepared:
            return about
        if low_high is not None:
            low, high = low_high
            about = replace(about, minimum=(low,), maximum=(high,))
            if tensor.color_space:
                # (pixel - mean) / std = low + pixel * (high - low) / 255
                scale = 255 / (high - low)
                about = replace(about, mean=(-low * scale + 0.0,), std=(scale,))
        if mean is not None and std is not None:
            about = replace(
                about,
                mean=_per_channel("mean", mean, tensor),
                std=_per_channel("std", std, tensor),
            )
        return about

    return tuple(described(tensor) for tensor in inputs)


def _per_channel(
    name: str, values: float | Sequence[float], tensor: _Tensor
) -> tuple[float, ...]:
    array = np.atleast_1d(np.asarray(values, np.float64))
    usable = np.isfinite(array).all() and (name == "mean" or (array != 0).all())
    if array.ndim != 1 or len(array) not in (1, tensor.size) or not usable:
        raise ValueError(
            f"`{name}` must be one finite number, or one for each of {tensor.size} "
            f"channels{', and not 0' if name == 'std' else ''}. Received: "
            f"{name}={values!r} for input {tensor.name!r}. Give the numbers that the "
            "model was trained with."
        )
    return tuple(array.tolist())


def _splice(model: bytes, root: Table, about: bytes) -> bytes:
    """Puts the metadata in, as one buffer more that a new root knows."""

    def with_metadata(builder: Builder, old: Place) -> dict[int, int]:
        content = add_content(builder, about, ALIGNMENT)
        buffers = [old(table.position) for table in root.tables(4)]
        entries = [old(table.position) for table in root.tables(6)]
        name = builder.CreateString(_ENTRY)
        entries.append(add_table(builder, {0: name}, words={1: len(buffers)}))
        buffers.append(add_table(builder, {0: content}))
        return {4: add_vector(builder, buffers), 6: add_vector(builder, entries)}

    return with_new_root(model, root, with_metadata)
