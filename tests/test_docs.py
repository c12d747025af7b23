"""The examples in docs/ run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest

DOCS = Path(__file__).parent.parent / "docs"


# Pages whose examples need nothing that is not on them.
@pytest.mark.parametrize("page", ["keras-distillation", "soft-labels", "teachers"])
def test_examples_run(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    namespace = {"__name__": "example"}
    text = (DOCS / f"{page}.md").read_text()
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        # An error names the line of the page.
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], f"{page}.md", "exec"), namespace)
