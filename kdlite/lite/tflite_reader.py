"""Reads a `.tflite`, which is not run.

Nothing in the file is trusted: an offset that leads outside, or an index of no tensor,
is an error.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from kdlite.lite.flatbuffer import Table
from kdlite.lite.loops import Graph, with_loops
from kdlite.lite.tflite_file import FLOATS, Op, Signature, TensorInfo, TFLiteFile

_IDENTIFIER = b"TFL3"
_CUSTOM = schema.BuiltinOperator.CUSTOM
# More than NumPy takes. Without a limit, sizes can be numbers of a million digits.
_MOST_AXES = 64


def inspect(
    file: str | os.PathLike[str] | bytes, signature: str | None = None
) -> TFLiteFile:
    """Looks into a `.tflite`: any one, whoever made it.

    Args:
        file: The path of the file, or its bytes.
        signature: Of which signature inputs, outputs, tensors and operations are wanted
            where there are several; None for the first, with the operations of all.

    Returns:
        Its operations, inputs and outputs, sizes, and what is left in float; prints as
        a few lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no `.tflite`, is cut short, contradicts itself, or has no
            such signature.

    Example:
        >>> inspect(b"not a model")
        Traceback (most recent call last):
        ...
        ValueError: A .tflite must be a whole, well-formed file. Received: ...
    """
    return inspect_bytes(file, signature)[0]


def inspect_bytes(
    file: str | os.PathLike[str] | bytes, signature: str | None = None
) -> tuple[TFLiteFile, bytes]:
    """Returns what `inspect` does and the bytes that it is true of.

    Args:
        file: The path of the file, or its bytes.
        signature: As `inspect` takes it.

    Returns:
        What is inside, and the bytes: who goes on with them is safe from a file that
        changes in between.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `inspect`.

    Example:
        ``content, blob = inspect_bytes("student.tflite")``
    """
    if isinstance(file, bytes):
        name, blob = "", file
    else:
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(
                f"`file` must be a .tflite that exists. Received: {str(path)!r}, which "
                f"is {'a folder' if path.is_dir() else 'not there'}. Check the path."
            )
        name, blob = path.name, path.read_bytes()
    received = repr(str(file)) if name else f"{len(blob)} bytes"
    try:
        content = _read(name, blob, signature)
    except ValueError as err:
        raise ValueError(
            "A .tflite must be a whole, well-formed file. Received: "
            f"{received}: {err}. Name a .tflite file, or make or copy it again."
        ) from err
    names = [known.name for known in content.signatures]
    if signature is not None and signature not in names:
        raise ValueError(
            "`signature` must be one that the file has. Received: "
            f"signature={signature!r} for {received}, which has "
            f"{', '.join(map(repr, names)) or 'none'}. Choose one of these, or leave "
            "it out."
        )
    return content, blob


# The fields' numbers in the tables of TFLite's schema, version 3.
_MODEL = {"codes": 1, "graphs": 2, "buffers": 4, "signatures": 7}
_CODE = {"short": 0, "custom": 1, "version": 2, "builtin": 3}
_GRAPH = {"tensors": 0, "inputs": 1, "outputs": 2, "operators": 3}
_TENSOR = {"shape": 0, "type": 1, "buffer": 2, "name": 3, "quantization": 4, "free": 7}
_QUANTIZATION = {"scale": 2, "zero_point": 3, "axis": 6}
_OPERATOR = {"code": 0, "inputs": 1, "outputs": 2, "options": 4}
_SIGNATURE = {"inputs": 0, "outputs": 1, "key": 2, "graph": 4}
_BUFFER = {"data": 0, "offset": 1, "size": 2}


class _Code:
    """One entry of the file's list of the operations that it uses."""

    def __init__(self, table: Table) -> None:
        # Codes above 127 came later, in a field of their own.
        code = max(
            table.number(_CODE["short"], "b"), table.number(_CODE["builtin"], "i")
        )
        self.custom = code == _CUSTOM
        self.version = table.number(_CODE["version"], "i") or 1
        if self.custom:
            self.name = table.string(_CODE["custom"]) or "CUSTOM"
        else:
            self.name = _names(schema.BuiltinOperator).get(code, f"BUILTIN_{code}")


def _read(name: str, blob: bytes, wanted: str | None) -> TFLiteFile:
    if len(blob) < 8:
        raise ValueError("it is too short for one")
    model = Table.root(blob, _IDENTIFIER)
    codes = [_Code(table) for table in model.tables(_MODEL["codes"])]
    # What a model of more than 2 GB keeps behind the flatbuffer has a size, not data.
    buffers = model.tables(_MODEL["buffers"])
    stored = [
        bool(
            table.length(_BUFFER["data"]) or (table.number(_BUFFER["offset"], "Q") > 1)
        )
        for table in buffers
    ]
    graphs = model.tables(_MODEL["graphs"])
    if not graphs:
        raise ValueError("it has no graph")
    all_tensors = [
        [
            _tensor(table, index, stored)
            for index, table in enumerate(graph.tables(_GRAPH["tensors"]))
        ]
        for graph in graphs
    ]
    signatures: list[tuple[int, Signature]] = []
    for table in model.tables(_MODEL["signatures"]):
        graph = table.number(_SIGNATURE["graph"], "I")
        if graph >= len(graphs):
            raise ValueError(f"graph {graph} is named, of {len(graphs)}")
        inputs, outputs = (
            _named_edges(table.tables(_SIGNATURE[side]), all_tensors[graph])
            for side in ("inputs", "outputs")
        )
        key = table.string(_SIGNATURE["key"])
        signatures.append((graph, Signature(key, inputs, outputs)))
    fitting = [
        (graph, signature)
        for graph, signature in signatures
        if (not graph if wanted is None else signature.name == wanted)
    ]
    main, chosen = fitting[0] if fitting else (0, None)
    order = [main, *(number for number in range(len(graphs)) if number != main)]
    # What other signatures run is none of the one that was asked for.
    others = {graph for graph, _ in signatures if wanted is not None and graph != main}
    tensors_of = [all_tensors[number] for number in order]
    tables_of = [
        [] if number in others else graphs[number].tables(_GRAPH["operators"])
        for number in order
    ]
    ops_of = [
        [_op(table, codes, tensors_of[place], place) for table in tables]
        for place, tables in enumerate(tables_of)
    ]
    ops = with_loops(
        ops_of,
        [
            Graph(
                tensors_of[place],
                graphs[number].integers(_GRAPH["inputs"]),
                graphs[number].integers(_GRAPH["outputs"]),
                _loops(tables_of[place], ops_of[place], order),
            )
            for place, number in enumerate(order)
        ],
        lambda tensor: _integer(tensor, buffers),
    )
    edges = (
        (chosen.inputs, chosen.outputs)
        if chosen
        else tuple(
            _edges(graphs[main].integers(_GRAPH[side]), tensors_of[0])
            for side in ("inputs", "outputs")
        )
    )
    return TFLiteFile(
        name=name,
        size_bytes=len(blob),
        ops=tuple(ops),
        inputs=edges[0],
        outputs=edges[1],
        tensors=tuple(tensors_of[0]),
        inner_tensors=tuple(map(tuple, tensors_of[1:])),
        signatures=tuple(signature for _, signature in signatures),
        parameters=_parameters(ops, tensors_of),
        graph_outputs=_edges(graphs[main].integers(_GRAPH["outputs"]), tensors_of[0]),
    )


def _tensor(table: Table, index: int, stored: Sequence[bool]) -> TensorInfo:
    buffer = table.number(_TENSOR["buffer"], "I")
    if stored and buffer >= len(stored):
        raise ValueError(f"tensor {index} is in buffer {buffer} of {len(stored)}")
    quantization = table.table(_TENSOR["quantization"])
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis = 0
    if quantization is not None:
        scales = quantization.floats(_QUANTIZATION["scale"])
        zero_points = quantization.integers(_QUANTIZATION["zero_point"], "q")
        axis = quantization.number(_QUANTIZATION["axis"], "i")
        if len(zero_points) != len(scales):
            zero_points = (0,) * len(scales)
    code = table.number(_TENSOR["type"], "b")
    dtype = _names(schema.TensorType).get(code, f"type_{code}").lower()
    if dtype in FLOATS or scales == (0.0,):
        # Floats are what they are; and 0 is how LiteRT says "not quantized".
        scales = zero_points = ()
    bad = next((scale for scale in scales if not 0 <= scale < math.inf), None)
    if bad is not None:
        raise ValueError(f"tensor {index} has a scale of {bad}")
    shape = table.integers(_TENSOR["shape"])
    free = table.integers(_TENSOR["free"])
    if len(shape) > _MOST_AXES:
        raise ValueError(f"tensor {index} has {len(shape)} axes")
    return TensorInfo(
        name=table.string(_TENSOR["name"]),
        dtype=dtype,
        shape=free if len(free) == len(shape) else shape,
        scales=scales,
        zero_points=zero_points,
        axis=axis,
        constant=bool(stored) and stored[buffer],
        index=index,
        buffer=buffer,
    )


def _op(
    table: Table, codes: Sequence[_Code], tensors: Sequence[TensorInfo], graph: int
) -> Op:
    number = table.number(_OPERATOR["code"], "I")
    if number >= len(codes):
        raise ValueError(f"an operation has code {number} of {len(codes)}")
    code = codes[number]
    inputs = table.integers(_OPERATOR["inputs"])
    outputs = table.integers(_OPERATOR["outputs"])
    for index in (*inputs, *outputs):
        if index != -1:
            _check_index(index, tensors)
    read = [tensors[index] if index >= 0 else None for index in inputs]
    written = [tensors[index] for index in outputs if index >= 0]
    floats = {t.dtype in FLOATS for t in (*read, *written) if t is not None}
    # From float to integer or back, an edge; between float types, a computation.
    edge = code.name in ("QUANTIZE", "DEQUANTIZE") and (
        floats == {True, False} or (code.name == "DEQUANTIZE" and _constant(read))
    )
    return Op(
        name=code.name,
        version=code.version,
        tensor=written[0].name if written else "",
        inputs=inputs,
        outputs=outputs,
        float_compute=True in floats and not edge,
        macs=_macs(code.name, read, written, table.table(_OPERATOR["options"])),
        subgraph=graph,
        custom=code.custom,
    )


def _loops(
    tables: Sequence[Table], ops: Sequence[Op], order: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """Returns by the place of a loop the graphs of its condition and its body."""
    loops = {}
    for place, (table, op) in enumerate(zip(tables, ops, strict=True)):
        options = table.table(_OPERATOR["options"]) if op.name == "WHILE" else None
        if options is not None:
            numbers = [options.number(slot, "i") for slot in (0, 1)]
            if all(0 <= number < len(order) for number in numbers):
                loops[place] = (order.index(numbers[0]), order.index(numbers[1]))
    return loops


def _integer(tensor: TensorInfo, buffers: Sequence[Table]) -> int | None:
    """Returns the value of a constant that is one whole number."""
    size = {"int32": 4, "int64": 8}.get(tensor.dtype)
    if not tensor.constant or tensor.scales or size is None:
        return None
    buffer = buffers[tensor.buffer]
    if buffer.length(_BUFFER["data"]) != size:
        return None
    return int.from_bytes(buffer.content(_BUFFER["data"]), "little", signed=True)


def _constant(tensors: Iterable[TensorInfo | None]) -> bool:
    return all(tensor is not None and tensor.constant for tensor in tensors)


def _macs(
    name: str,
    read: Sequence[TensorInfo | None],
    written: Sequence[TensorInfo],
    options: Table | None,
) -> int:
    """Returns the multiply-accumulates of one operation."""
    first, kernel = (*read, None, None)[:2]
    if first is None or kernel is None or not written:
        return 0
    result = written[0].size
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D") and len(kernel.shape) == 4:
        # Kernels are (filters, height, width, channels of a group) and
        # (1, height, width, filters).
        _, height, width, last = kernel.shape
        taps = height * width
        return result * taps * (last if name == "CONV_2D" else 1)
    if name == "FULLY_CONNECTED" and kernel.shape:
        return result * kernel.shape[-1]
    if name == "BATCH_MATMUL" and len(first.shape) >= 2:
        transposed = options is not None and options.number(0, "b")
        return result * max(1, first.shape[-2 if transposed else -1])
    if name == "CONV_3D" and len(kernel.shape) == 5:
        return result * math.prod(kernel.shape[:4])
    if name == "TRANSPOSE_CONV" and len(kernel.shape) == 4 and len(read) > 2:
        # Its inputs: the output's shape, the kernel (filters, height, width, channels),
        # the values; each of these meets the whole kernel.
        values = read[2]
        return 0 if values is None else values.size * math.prod(kernel.shape[:3])
    return 0


def _named_edges(
    entries: Iterable[Table], tensors: Sequence[TensorInfo]
) -> tuple[TensorInfo, ...]:
    """Returns the inputs or outputs of a signature."""
    edges = []
    for entry in entries:
        name, (tensor,) = entry.string(0), _edges([entry.number(1, "I")], tensors)
        edges.append(replace(tensor, name=name or tensor.name))
    return tuple(edges)


def _edges(
    indices: Iterable[int], tensors: Sequence[TensorInfo]
) -> tuple[TensorInfo, ...]:
    edges = []
    for index in indices:
        _check_index(index, tensors)
        edges.append(tensors[index])
    return tuple(edges)


def _check_index(index: int, tensors: Sequence[TensorInfo]) -> None:
    if not 0 <= index < len(tensors):
        raise ValueError(f"tensor {index} is named, of {len(tensors)}")


def _parameters(ops: Sequence[Op], tensors_of: Sequence[Sequence[TensorInfo]]) -> int:
    """Counts the stored numbers that operations compute with, each buffer once."""
    used = {(op.subgraph, index) for op in ops for index in op.inputs if index >= 0}
    tensors = (tensors_of[graph][index] for graph, index in used)
    # Graphs of several signatures have tensors of their own in the same buffers.
    size_of = {
        tensor.buffer: tensor.size
        for tensor in tensors
        # Shapes, axes and paddings are plain integers.
        if tensor.constant and (tensor.dtype in FLOATS or tensor.scales)
    }
    return sum(size_of.values())


@functools.cache
def builtin_ops() -> frozenset[str]:
    """Returns the names of the operations that TFLite has, such as "CONV_2D"."""
    return frozenset(_names(schema.BuiltinOperator).values()) - {"CUSTOM"}


def _names(enum: type) -> Mapping[int, str]:
    """Returns the names of one of the schema's enumerations, by number."""
    return {value: name for name, value in vars(enum).items() if type(value) is int}
