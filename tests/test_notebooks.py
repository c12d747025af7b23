"""The notebooks run, in a short form, and are committed with outputs of a real run.

One runs in a kernel, as `make notebooks` has them run. The others' cells run here: a
kernel is a process that imports TensorFlow, and converts by one more that does.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import pytest

from kdlite import datasets

pytest.importorskip("nbclient", reason="the extra `notebooks` is not installed")
nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)

#: By notebook what is done in the tests: the same steps, hardly any data. Those that
#: learn from the same images find the soft labels of the one before.
SHORT = {
    "01_distil_in_fit": "samples, epochs = 128, 1",
    "02_choose_the_loss": "samples, epochs, losses = 128, 1, ('DIST',)\n"
    "temperatures, weights = (2.0,), (0.9,)",
    "03_quantize_and_export": "samples, epochs, recipes = 128, 1, ('int8',)",
    "04_update_a_student": "samples, epochs, remembered, new_samples = 160, 1, 40, 40\n"
    "allowed_points = 100.0",
    "05_to_the_phone": "samples, epochs = 128, 1",
    "06_bring_your_own_teacher": "samples, epochs, trees = 128, 1, 10",
    "07_what_int8_does": "samples, epochs, calibration = 128, 1, (100,)",
}

#: Once for all of them: so many images are all that there are.
FEW = """
import dataclasses, keras, kdlite
whole = kdlite.datasets.fashion_mnist()
splits = {"train": 1000, "validation": 100, "test": 100}
parts = {
    name: kdlite.datasets.Split(*(part[:count] for part in getattr(whole, name)))
    for name, count in splits.items()
}
few = dataclasses.replace(whole, **parts)
kdlite.datasets.fashion_mnist = lambda few=few: few  # names are forgotten
# Of a few steps each, most of the time would go by tracing them.
keras.Model.run_eagerly = property(lambda model: True, lambda model, value: None)
"""


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module", autouse=True)
def fashion_mnist() -> None:
    if datasets.find_fashion_mnist() is None:
        pytest.skip("Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


IN_KERNEL = FOLDER / "04_update_a_student.ipynb"
HERE = [path for path in runner.NOTEBOOKS if path != IN_KERNEL]


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_notebook_runs(path, out, monkeypatch, capsys) -> None:
    monkeypatch.chdir(FOLDER)
    for owner, name in ((datasets, "fashion_mnist"), (keras.Model, "run_eagerly")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # set back at the end
    exec(FEW, {})
    namespace = {"__name__": "__main__"}
    with plt.rc_context({"figure.dpi": 30}):
        for number, cell in enumerate(read(path).cells):
            if cell.cell_type == "code":
                name = f"{path.stem}, cell {number}"
                exec(compile(cell.source, name, "exec"), namespace)
            if runner.has_parameters(cell):
                exec(f"{SHORT[path.stem]}\nout = {str(out)!r}", namespace)
            for figure in map(plt.figure, plt.get_fignums()):
                figure.canvas.draw()  # as at the end of a cell
            plt.close("all")
    # A warning, which is an error here, is something to mend; as are other words.
    assert capsys.readouterr().err == ""


def test_notebook_runs_in_a_kernel(out) -> None:
    with runner.kernel() as kernel:
        client = kernel.client()
        client.start_channels()
        client.wait_for_ready()
        assert client.execute_interactive(FEW)["content"]["status"] == "ok"
        client.stop_channels()
        parameters = f"{SHORT[IN_KERNEL.stem]}\nout = {str(out)!r}"
        notebook = runner.cleaned(runner.run(IN_KERNEL, kernel, parameters))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {o.output_type for o in outputs} == {"stream", "display_data"}
    # A warning is something to mend, or to explain to the reader.
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_every_notebook_has_a_short_form() -> None:
    assert {path.stem for path in runner.NOTEBOOKS} == set(SHORT)


@pytest.mark.parametrize("path", runner.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_whole_and_of_no_machine(path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert sum(map(runner.has_parameters, notebook.cells)) == 1
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    plots = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(plots) >= 1
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert not re.search(r"(^|[\s'\"(])/\w", printed)
    # What is committed is what a run leaves.
    assert runner.cleaned(read(path)) == notebook


@pytest.mark.parametrize("path", runner.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_logic_of_its_own(path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE)
            assert "kdlite._" not in cell.source
            assert len(cell.source.splitlines()) < 60
