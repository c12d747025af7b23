"""The pages in docs/ say what is there, their examples run, and the site builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kdlite
from kdlite import teachers
from kdlite.distill import augment, schedules

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def hook(name: str) -> Any:
    """One of the site's hooks, which are no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


error_index = hook("error_index")

# --- examples, by page; a comment says of one that is not run why


def examples(text: str) -> Iterator[tuple[int, str]]:
    """The line that each example of a page begins on, and its code."""
    for block in re.finditer(r"^([^\n]*)\n```python\n(.*?)```", text, re.M | re.S):
        if not block[1].startswith("<!-- not run: "):
            yield text.count("\n", 0, block.start(2)), block[2]


def dense(width: int, classes: int = 3) -> keras.Model:
    layers = keras.layers
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(width, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(classes)(hidden))


def torch_file() -> None:
    """What torch.onnx.export writes of the page's network, in an example not run."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = {"conv": (8, 3, 3, 3), "kernel": (8, 10), "bias": (10,)}
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "kernel", "bias"], ["logits"]),
    ]
    values = {"image": ["batch", 3, 32, 32], "logits": ["batch", 10]}
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in values.items()
    )
    stored = [
        numpy_helper.from_array(rng.normal(size=shape).astype("float32"), name)
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(nodes, "network", [image], [logits], stored)
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), "teacher.onnx")


WITH_EXAMPLES = [page for page in PAGES if any(examples(page.read_text()))]
# What trains often, for a few steps each: most of the time would go by tracing them.
STEP_BY_STEP = {"losses", "soft-labels", "teachers"}


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch, request) -> None:
    if page.stem in STEP_BY_STEP:
        request.getfixturevalue("step_by_step")
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    if page.stem == "pytorch":
        torch_file()
    namespace = {"__name__": "example"}  # all else is what the page itself makes
    for line, code in examples(page.read_text()):
        # An error names the line of the page.
        exec(compile("\n" * line + code, page.name, "exec"), namespace)


def test_every_page_with_examples_is_run_or_says_why_not() -> None:
    for page in PAGES:
        text = page.read_text()
        left_out = re.findall(r"<!-- not run: (.+?) -->\n```python\n", text)
        assert len(left_out) + len(list(examples(text))) == text.count("```python\n")
        assert all(len(reason.split()) > 3 for reason in left_out), page


# --- what is there is on its page


def test_every_teacher_is_on_its_page() -> None:
    text = (DOCS / "teachers.md").read_text()
    assert [name for name in teachers.__all__ if f"`{name}" not in text] == []
    assert all(getattr(teachers, name).__doc__ for name in teachers.__all__)


def losses() -> list[str]:
    found = vars(kdlite.losses).items()
    return [name for name, value in found if isinstance(value, type)]


def test_every_loss_is_on_its_page() -> None:
    text = (DOCS / "losses.md").read_text()
    assert len(losses()) > 20
    assert [name for name in losses() if f"| `{name}` |" not in text] == []


def test_every_recipe_is_on_its_page() -> None:
    from kdlite.compress.recipes import RECIPES

    text = (DOCS / "conversion.md").read_text()
    assert [name for name in RECIPES if f"| `{name}` |" not in text] == []


def public_names() -> list[str]:
    modules = {"augment", "losses", "schedules", "teachers", "datasets"}
    names = [f"kdlite.{name}" for name in kdlite.__all__ if not name.startswith("_")]
    inside = {
        "losses": losses(),
        "teachers": teachers.__all__,
        "augment": [n for n in vars(augment) if n in {"Mixup", "CutMix"}],
    }
    names = [name for name in names if name.split(".")[1] not in modules]
    return [*names, *(f"kdlite.{m}.{n}" for m, ns in inside.items() for n in ns)]


def test_every_public_name_has_its_entry_in_the_api_pages() -> None:
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    entries = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert [name for name in public_names() if name not in entries] == []
    shown = re.search(r"::: kdlite.schedules\n.*\n.*members: \[(.*)\]", text)[1]
    classes = [
        name
        for name, value in vars(schedules).items()
        if isinstance(value, type) and value.__module__ == schedules.__name__
    ]
    plain = {name for name in classes if not name.startswith("_")}
    assert set(shown.split(", ")) == plain - {"Schedule"}


# --- the error index


def errors() -> list[Any]:
    return error_index.errors()


def test_every_module_with_errors_has_its_place_on_the_page() -> None:
    rooms = error_index.rooms((DOCS / "errors.md").read_text())
    assert len(rooms) == len(set(rooms))
    homeless = {e.module for e in errors() if not error_index.room_of(e.module, rooms)}
    assert homeless == set()


def test_every_error_says_what_it_received_and_what_to_do() -> None:
    known = errors()
    assert len(known) > 400
    for error in known:
        # The fix of a few is in a variable, behind what was received.
        assert error.rule and (error.fix or error_index.GAP in error.received), error


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: kdlite.losses.SoftTargets(temperature=-1.0),
        lambda: kdlite.Distiller(dense(2), dense(4), balance="no"),
        lambda: kdlite.Distiller(dense(2), dense(4, classes=5)),
        lambda: kdlite.export(dense(2), "x.tflite", "int8"),
        lambda: kdlite.inspect("missing.tflite"),
        lambda: kdlite.SoftLabels.build(dense(2), np.zeros((0, 6)), "labels"),
        lambda: teachers.ONNX("missing.onnx"),
    ],
)
def test_what_is_raised_is_on_the_page(wrong, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        wrong()
    text = str(caught.value)

    def fits(part: str) -> bool:
        pattern = ".*".join(map(re.escape, part.split(error_index.GAP)))
        return re.search(pattern, text, re.DOTALL) is not None

    assert any(fits(e.rule) and fits(e.received) and fits(e.fix) for e in errors())


def test_the_page_is_filled_with_them() -> None:
    page = error_index.filled((DOCS / "errors.md").read_text())
    assert "<!-- errors" not in page
    assert page.count("<small>Received") > 350
    assert "Select TF ops can run no other" in page


# --- the site


def test_the_site_builds_and_fetches_nothing(tmp_path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package, reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
        + ["--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {
        str(path.relative_to(tmp_path / "site")): path.read_text()
        for path in (tmp_path / "site").rglob("*.html")
    }
    fetched = r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"'
    assert {name: re.findall(fetched, text) for name, text in pages.items()} == {
        name: [] for name in pages
    }
    api = pages["docs/api/losses.html"]
    assert "<math" in api and "arithmatex" not in api
    assert "Select TF ops can run no other" in pages["docs/errors.html"]
    code = re.findall(r"<code>(.*?)</code>", pages["docs/errors.html"], re.DOTALL)
    assert "class_map" in code and not [text for text in code if "&amp;#" in text]
    assert "data:image/png;base64," in pages["notebooks/01_distil_in_fit.html"]
