"""All that can be told of a `.tflite` without running it: for people and machines."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kdlite.lite.arena import arena_bytes
from kdlite.lite.delegates import DelegateEstimate, delegates
from kdlite.lite.metadata import Metadata, read_metadata
from kdlite.lite.op_versions import NeededRuntime, needed_runtime
from kdlite.lite.tflite_file import Op, TensorInfo, TFLiteFile
from kdlite.lite.tflite_reader import inspect_bytes
from kdlite.terminal import in_a_line, indented


@dataclass(frozen=True)
class FileReport:
    """What is inside a file, and what follows from it.

    Attributes:
        content: Operations, tensors and sizes, as `kdlite.inspect` has them.
        metadata: What the file says of itself.
        runtime: The oldest TFLite runtime that knows its operations.
        arena_bytes: Memory that a run needs for tensors; where a length is open, for 1.
        delegates: What delegates are likely to take.
    """

    content: TFLiteFile
    metadata: Metadata
    runtime: NeededRuntime
    arena_bytes: int
    delegates: tuple[DelegateEstimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            **self.content.to_dict(),
            "min_runtime": self.runtime.release,
            "min_runtime_in_file": self.metadata.min_runtime_version,
            "arena_bytes": self.arena_bytes,
            "delegates": [estimate.to_dict() for estimate in self.delegates],
            "tensors": [
                {**tensor.to_dict(), "constant": tensor.constant}
                for tensor in self.content.tensors
            ],
            "metadata": self.metadata.to_dict(),
        }

    def __str__(self) -> str:
        because = f", for {self.runtime.op}" if self.runtime.op else ""
        runtime = self.runtime.release or "newer than kdlite knows"
        is_open = any(-1 in tensor.shape for tensor in self.content.tensors)
        open_lengths = ", at 1 for each length that is open" if is_open else ""
        lines = [
            str(self.content),
            f"  runs on TFLite {runtime} and newer{because}",
            f"  {self.arena_bytes:,} bytes of memory for tensors{open_lengths}",
            *(f"  {estimate}" for estimate in self.delegates),
        ]
        about = self.metadata
        told = {
            "name": about.name,
            "description": about.description,
            "author": about.author,
            "license": about.license,
        }
        lines += [f"  {name}: {indented(text)}" for name, text in told.items() if text]
        for output in about.outputs:
            if output.labels:
                few = ", ".join(output.labels[:5])
                more = ", ..." if len(output.labels) > 5 else ""
                told_of = f"{len(output.labels)} labels of {output.name}: {few}{more}"
                lines.append(f"  {in_a_line(told_of)}")
        return "\n".join(lines)

    def to_html(self) -> str:
        """Returns a page of its own: the figures, and the graph from top to bottom."""
        title = html.escape(in_a_line(self.content.name) or "model.tflite")
        figures = html.escape(str(self))
        ops = [(n, op) for n, op in enumerate(self.content.ops) if op.subgraph == 0]
        made = {index for _, op in ops for index in op.outputs}
        rows = "\n".join(self._row(number, op, made) for number, op in ops)
        about = html.escape(json.dumps(self.metadata.to_dict(), indent=1))
        return _PAGE.format(title=title, figures=figures, rows=rows, about=about)

    def _row(self, number: int, op: Op, made: Collection[int]) -> str:
        tensors = self.content.tensors_of(op)
        read, written = tensors[: len(op.inputs)], tensors[len(op.inputs) :]
        values = [t for t in read if t and not t.constant]
        constants = [t for t in read if t and t.constant]
        cells = [
            _list([_name(tensor, tensor.index in made) for tensor in values]),
            f"<b>{html.escape(in_a_line(op.name))}</b> v{op.version}"
            + (f"<br>{op.macs:,} MACs" if op.macs else ""),
            _list([html.escape(_told(tensor)) for tensor in constants]),
            _list([_anchor(tensor) for tensor in written if tensor]),
        ]
        kind = ' class="float"' if op.float_compute else ""
        return (
            f"<tr{kind}><td>{number}</td><td>" + "</td><td>".join(cells) + "</td></tr>"
        )


def describe(file: str | os.PathLike[str] | bytes) -> FileReport:
    """Looks into any `.tflite`, and says what follows.

    Args:
        file: The path of the file, or its bytes.

    Returns:
        The report; prints as some lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no `.tflite`, is cut short, or contradicts itself.

    Example:
        ``print(describe("student.tflite"))``
    """
    content, blob = inspect_bytes(file)
    return FileReport(
        content=content,
        metadata=read_metadata(blob),
        runtime=needed_runtime(content),
        arena_bytes=arena_bytes(content),
        delegates=delegates(content),
    )


def _told(tensor: TensorInfo) -> str:
    text = str(tensor)
    if len(tensor.scales) > 1:
        text += f", {len(tensor.scales)} scales on axis {tensor.axis}"
    return text


def _anchor(tensor: TensorInfo) -> str:
    return f'<span id="t{tensor.index}">{html.escape(_told(tensor))}</span>'


def _name(tensor: TensorInfo, made: bool) -> str:
    """The name, which leads to the row that makes it: of inputs there is none."""
    name = html.escape(in_a_line(tensor.name) or "?")
    return f'<a href="#t{tensor.index}">{name}</a>' if made else name


def _list(items: list[str]) -> str:
    return "<br>".join(items)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ border-bottom: 1px solid #8886; padding: .4em; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }}
tr.float b {{ color: #d18f00; }}
:target {{ background: #2a78d644; }}
pre {{ white-space: pre-wrap; }}
</style>
<h1>{title}</h1>
<pre>{figures}</pre>
<h2>Operations, in the order that they run</h2>
<p>Those that compute in float are in amber. A name leads to the row that makes it.</p>
<table>
<tr><th></th><th>reads</th><th>operation</th><th>constants</th><th>makes</th></tr>
{rows}
</table>
<h2>Metadata</h2>
<pre>{about}</pre>
</html>
"""
