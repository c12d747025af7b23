"""The examples in docs/ run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest

from kdlite import teachers

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


def test_every_teacher_is_on_its_page() -> None:
    text = (DOCS / "teachers.md").read_text()
    assert [name for name in teachers.__all__ if f"`{name}" not in text] == []
    assert all(getattr(teachers, name).__doc__ for name in teachers.__all__)
