"""Runs notebooks: `make notebooks` renews their outputs, the tests see that they work.

A cell tagged `parameters` says how much is done; other values can be put in after it.
Several can share one kernel, which forgets everything between them, so that TensorFlow
is loaded once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What TensorFlow and LiteRT say of the processor, and guess of what is slow.
_CHATTER = re.compile(
    r"WARNING: All log messages before absl::|INFO: Created TensorFlow Lite XNNPACK|"
    r"WARNING:tensorflow:.* triggered tf\.function retracing"
)
_FORGET = "get_ipython().run_line_magic('reset', '-f')"


@contextlib.contextmanager
def kernel() -> Iterator[KernelManager]:
    """A kernel whose plots go into the notebook, in the notebooks' folder."""
    manager = KernelManager(kernel_name="python3")
    inline = "module://matplotlib_inline.backend_inline"
    manager.start_kernel(env={**os.environ, "MPLBACKEND": inline}, cwd=str(FOLDER))
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def run(path: Path, manager: KernelManager, parameters: str = "") -> Any:
    """Returns a notebook with the outputs of a run.

    Args:
        path: The notebook.
        manager: The kernel.
        parameters: Code to run after the cell with the parameters.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    asked = [i for i, cell in enumerate(notebook.cells) if has_parameters(cell)]
    more = [nbformat.v4.new_code_cell(code) for code in (_FORGET, parameters)]
    notebook.cells.insert(asked[0] + 1, more[1])
    notebook.cells.insert(0, more[0])
    client = NotebookClient(notebook, km=manager, timeout=3600)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    notebook.cells = [cell for cell in notebook.cells if cell not in more]
    return notebook


def has_parameters(cell: Any) -> bool:
    """Whether a cell is the one with the parameters."""
    return "parameters" in cell.metadata.get("tags", [])


def cleaned(notebook: Any) -> Any:
    """Returns the notebook with nothing of the machine or the moment in it.

    What is printed and drawn stays; values that a cell ends in are not shown.
    """
    root = f"{FOLDER.parent}{os.sep}"
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type != "code":
            continue
        cell.outputs = [
            output
            for output in cell.outputs
            if output.output_type != "execute_result"
            and not _CHATTER.match(output.get("text", ""))
        ]
        for output in cell.outputs:
            output.pop("metadata", None)
            if output.output_type == "stream":
                output.text = output.text.replace(root, "")
            else:
                output.metadata = {}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
    return notebook


def main() -> None:
    """Runs all notebooks, or those named, and keeps their outputs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    for path in parser.parse_args().notebooks:
        start = time.monotonic()
        with kernel() as manager:
            nbformat.write(cleaned(run(path, manager)), path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
