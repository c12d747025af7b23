"""Notebooks as pages: what is in `notebooks/`, with its outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """MkDocs's hook: adds a page for each notebook."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        page = as_markdown(json.loads(path.read_text()))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs's hook: in the repository links lead to notebooks, here to their pages."""
    return re.sub(r"(\]\([^)\s]*notebooks/\w+)\.ipynb\)", r"\1.md)", markdown)


def as_markdown(notebook: dict[str, Any]) -> str:
    """Returns text, code, and what was printed and drawn."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif picture := output.get("data", {}).get("image/png"):
                data = "".join(picture).replace("\n", "")
                parts.append(f"![plot](data:image/png;base64,{data})")
    return "\n\n".join(parts)
