"""`kdlite.report` on models, arrays and files of every kind of head."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest

import kdlite
from kdlite.lite.convert import export
from kdlite.lite.runtime import TFLiteModel
from kdlite.reporting import report as report_module
from kdlite.reporting.energy import EnergyUse, track_energy
from kdlite.reporting.plots import Plots

layers = keras.layers
COUNT = 60
Y = np.arange(COUNT) % 3


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 90, (COUNT, 6, 6, 1))
    images += 50.0 * Y[:, None, None, None]
    return images.astype("float32")


def network(name: str, outputs: int = 3) -> keras.Model:
    keras.utils.set_random_seed(len(name))
    return keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(outputs, name="scores"),
        ],
        name=name,
    )


@pytest.fixture(scope="module")
def student(x) -> keras.Model:
    model = network("student")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=True)
    model.fit(x, Y, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def file(student, x, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "student.tflite"
    export(student, path, verify_data=(x, Y), labels=["a", "b", "c"])
    return path


def told(wrong: int, seed: int = 0, y=Y, classes: int = 3) -> np.ndarray:
    outputs = 4.0 * np.eye(classes)[y]
    rows = np.random.default_rng(seed).permutation(len(y))[:wrong]
    outputs[rows] = np.roll(outputs[rows], 1, axis=-1)
    return outputs


def contenders(made) -> dict:
    return made.figures["outputs"][""]["contenders"]


# --- models, arrays, files


def test_models_arrays_and_files_side_by_side(student, file, x, tmp_path) -> None:
    history = keras.callbacks.History()
    history.history = {"loss": [2.0, 1.0], "val_accuracy": [0.5, 0.6]}
    made = kdlite.report(
        student=student,
        teacher=told(2),
        baseline=told(30),
        files=[file],
        test=(x, Y),
        labels=["a", "<i>b</i>", "c"],
        history={"student": history, "baseline": {"loss": [2.0, 1.5]}},
        training={"student": EnergyUse(12.5, 0.25, 0.125, ("By a meter.",))},
        title="Letters",
        path=tmp_path / "page.html",
    )
    found = contenders(made)
    assert list(found) == [
        "teacher",
        "student without teacher",
        "student",
        "student.tflite",
    ]
    top1 = (student.predict(x, verbose=0).argmax(-1) == Y).mean()
    assert found["student"]["top1"] == pytest.approx(top1)
    assert found["teacher"]["top1"] == pytest.approx(58 / 60)
    by_file = np.asarray(TFLiteModel(file).predict(x)).argmax(-1)
    teacher = told(2).argmax(-1)
    assert found["student.tflite"]["agreement"] == (by_file == teacher).mean()
    assert found["student"]["params"] == 36 * 3 + 3
    assert found["student"]["macs"] == 36 * 3
    costs = {"bytes", "latency_ms", "memory_bytes", "macs", "params"}
    assert costs <= set(found["student.tflite"])
    assert found["student.tflite"]["bytes"] == file.stat().st_size
    json.dumps(made.to_dict(), allow_nan=False)
    page = (tmp_path / "page.html").read_text()
    assert "<title>Letters</title>" in page
    assert "&lt;i&gt;b&lt;/i&gt;" in page and "<i>" not in page
    assert "data:image/png;base64" in page  # the samples are images
    assert "By a meter." in page and "250" in page  # Wh
    assert "student without teacher" in str(made) and "page.html" in str(made)


def test_lists_are_seeds(x, tmp_path) -> None:
    made = kdlite.report(
        student=[told(6), told(12, 1), told(9, 2)],
        baseline=[told(20), told(26, 1), told(23, 2)],
        test=(x, Y),
        path=tmp_path / "r.html",
    )
    student = contenders(made)["student"]
    assert student["top1"] == pytest.approx(1 - 9 / 60)
    assert student["top1_sd"] == pytest.approx(3 / 60)
    (test,) = made.figures["outputs"][""]["separations"]
    assert test["verdict"] == "separates" and test["p_over_seeds"] < 0.01
    text = (tmp_path / "r.html").read_text()
    assert "means over 3 seeds" in text
    assert re.search(r"^student  +85.00 ±5.00 ", str(made), re.M)
    for heading in ("How sure, and how right", "Where it is wrong"):
        assert f"<h2>{heading}</h2>\n<p>Of the first of 3 seeds.</p>" in text


@pytest.fixture(scope="module")
def seeds_and_files(x, tmp_path_factory):
    """Two students and a file of each."""
    folder = tmp_path_factory.mktemp("seeds")
    students, files = [], []
    for name, wrong in (("good", 0.0), ("poor", 9.0)):
        model = network(name)
        kernel = np.zeros((36, 3), "float32")
        # Brightness says the class; the poor one always says the last.
        kernel[:] = np.array([-1.0, 0.0, 1.0])
        bias = np.array([14.0, 0.0, -19.0 + 3 * wrong])
        model.layers[-1].set_weights([kernel, bias])
        export(model, folder / f"{name}.tflite", verify_data=(x, Y))
        students.append(model)
        files.append(folder / f"{name}.tflite")
    return students, files


@pytest.mark.parametrize("place", [0, 1])
def test_a_file_is_held_against_its_own_seed(
    seeds_and_files, x, tmp_path, place
) -> None:
    students, files = seeds_and_files
    made = kdlite.report(
        student=students,
        files={"exported": files[place]},
        test=(x, Y),
        path=tmp_path / "r.html",
    )
    (test,) = made.figures["outputs"][""]["separations"]
    assert test["second"] == f"student, seed {place + 1} of 2"
    assert test["gain"] == 0.0 and test["p_over_seeds"] is None
    assert test["verdict"] == "does not separate"
    page = (tmp_path / "r.html").read_text()
    row = rf">exported</th><td.*?>student, seed {place + 1} of 2</td><td>0 of 60"
    assert re.search(row, page)
    assert "Of the first of 2 seeds; files of one seed are of that one." in page


def test_files_of_each_seed_go_with_it_in_any_order(
    seeds_and_files, x, tmp_path
) -> None:
    students, files = seeds_and_files
    made = kdlite.report(
        student=students,
        files={"exported": files[::-1]},
        test=(x, Y),
        path=tmp_path / "r.html",
    )
    (test,) = made.figures["outputs"][""]["separations"]
    assert test["second"] == "student" and test["gain"] == 0.0
    assert test["p_over_seeds"] == 1.0  # 0 in each pair


def test_a_file_of_an_unknown_seed_separates_from_none(
    seeds_and_files, x, tmp_path
) -> None:
    students, files = seeds_and_files
    made = kdlite.report(
        student=[model.predict(x, verbose=0) for model in students],
        files={"exported": files[0]},
        test=(x, Y),
        path=tmp_path / "r.html",
    )
    (test,) = made.figures["outputs"][""]["separations"]
    assert test["second"] == "student" and test["verdict"] == "not tested"
    assert test["p_over_seeds"] is None and test["p_over_samples"] is None
    top1 = contenders(made)
    assert test["gain"] == pytest.approx(
        top1["exported"]["top1"] - top1["student"]["top1"]
    )
    assert test["gain"] > 0.1
    text = (tmp_path / "r.html").read_text()
    assert "from which of its 2 seeds it was made is not known" in text


def test_a_file_of_another_model_says_so(seeds_and_files, x, tmp_path) -> None:
    students, files = seeds_and_files
    for student, said in ((students[0], True), (students[1], False)):
        kdlite.report(
            student=student,
            files={"exported": files[1]},
            test=(x, Y),
            path=tmp_path / "r.html",
            overwrite=True,
        )
        text = (tmp_path / "r.html").read_text()
        assert ("exported was made from another model than student" in text) == said


def test_text_from_the_right_ends_with_itself(x, tmp_path) -> None:
    kdlite.report(
        student=told(6),
        teacher=told(0),
        test=(x, Y),
        labels=["a", "b", "c \u202e d"],
        path=tmp_path / "r.html",
    )
    text = (tmp_path / "r.html").read_text()
    examples = text[text.index("<h2>Where they differ") :]
    assert "<bdi>c \u202e d</bdi>" in examples
    assert "\u202e" not in re.sub('<bdi>.*?</bdi>|alt="[^"]*"', "", examples)


def test_several_outputs_each_have_their_own_part(tmp_path) -> None:
    rng = np.random.default_rng(0)
    inputs = keras.Input((4,), name="x")
    model = keras.Model(
        inputs,
        {
            "kind": layers.Dense(3, name="kind")(inputs),
            "size": layers.Dense(1, name="size")(inputs),
        },
    )
    x = rng.normal(size=(COUNT, 4)).astype("float32")
    size = rng.normal(size=COUNT)
    made = kdlite.report(
        student=model,
        teacher={"kind": told(3), "size": size[:, None]},
        test=(x, {"kind": Y, "size": size}),
        labels={"kind": ["a", "b", "c"]},
        path=tmp_path / "r.html",
    )
    outputs = made.figures["outputs"]
    assert {name: part["task"] for name, part in outputs.items()} == {
        "kind": "classes",
        "size": "values",
    }
    assert "top1" in outputs["kind"]["contenders"]["student"]
    assert "top1" not in outputs["size"]["contenders"]["student"]
    page = (tmp_path / "r.html").read_text()
    assert "<h3>kind</h3>" in page and "<h3>size</h3>" in page
    assert "<code>" in page  # samples that are no images are text


@pytest.mark.parametrize(
    ("y", "outputs", "metric"),
    [
        (np.arange(COUNT) % 2, np.linspace(-1, 1, COUNT)[:, None], "accuracy"),
        (np.eye(3, dtype=int)[Y] | 1, told(5), "mean_average_precision"),
        (np.linspace(0, 9, COUNT), np.linspace(0, 8, COUNT)[:, None], "mae"),
        (np.stack([Y, Y], 1), np.stack([told(3), told(9)], 1), "top1"),
        (np.arange(COUNT) % 30, told(9, 0, np.arange(COUNT) % 30, 30), "top5"),
    ],
    ids=["binary", "labels", "values", "positions", "many classes"],
)
def test_every_head_has_metrics_that_suit_it(y, outputs, metric, tmp_path) -> None:
    made = kdlite.report(
        student=outputs,
        teacher=outputs * 1.1,
        baseline=outputs[::-1].copy(),
        test=(np.zeros((COUNT, 5)), y),
        path=tmp_path / "r.html",
    )
    found = contenders(made)["student"]
    assert metric in found
    if metric == "mae":
        assert found.keys().isdisjoint({"top1", "accuracy", "ece", "agreement"})
    page = (tmp_path / "r.html").read_text()
    assert ("How sure, and how right" in page) == (metric != "mae")
    assert "nan" not in re.sub(r"data:[^']*", "", page).lower().replace("finance", "")


def test_labels_that_are_never_there_have_no_precision(tmp_path) -> None:
    y = np.zeros((COUNT, 3), int)
    made = kdlite.report(
        student=told(2),
        teacher=told(3),
        test=(np.zeros((COUNT, 2)), y),
        task="labels",
        path=tmp_path / "r.html",
    )
    assert "mean_average_precision" not in contenders(made)["student"]
    assert made.figures["outputs"][""]["separations"] == []
    json.dumps(made.to_dict(), allow_nan=False)
    assert made.summary.startswith("student.") and "label_accuracy" in str(
        sorted(contenders(made)["student"])
    )


def test_decisions_that_did_not_change_are_not_drawn(
    student, file, x, tmp_path
) -> None:
    for wrong in (0, 5):
        path = tmp_path / f"{wrong}.html"
        # The file's outputs are apart from these, by much or by nearly nothing.
        outputs = student.predict(x, verbose=0) + 1e-5
        outputs[:wrong] = -outputs[:wrong]
        kdlite.report(student=outputs, files={"file": file}, test=(x, Y), path=path)
        page = path.read_text()
        assert "how far its outputs are from those of student" in page
        assert ("by how sure student was" in page) is bool(wrong)


def test_models_that_always_agree_and_are_always_right(x, tmp_path) -> None:
    kdlite.report(
        student=told(0), teacher=told(0), test=(x, Y), path=tmp_path / "r.html"
    )
    page = (tmp_path / "r.html").read_text()
    assert "On these samples all of them agree." in page
    assert "does not separate" in page
    assert "Not measured. With country= or --country" in page


def test_energy_of_inference_is_measured_with_a_country(
    file, x, tmp_path, monkeypatch
) -> None:
    asked = []

    def measured(work, country):
        work()
        asked.append(country)
        return EnergyUse(4.0, 0.002, 0.001, ("Assumed.",)), 10

    monkeypatch.setattr(report_module, "check_country", lambda country: country)
    monkeypatch.setattr("kdlite.reporting.costs.energy_of", measured)
    made = kdlite.report(
        files={"phone": file}, test=(x, Y), country="FRA", path=tmp_path / "r.html"
    )
    # 10 turns of 60 samples took 2 Wh: 1,000 samples take 3.33 Wh.
    used = contenders(made)["phone"]["per_1000_inferences"]
    assert asked == ["FRA"] and used["kwh"] == pytest.approx(0.002 / 600 * 1000)
    page = (tmp_path / "r.html").read_text()
    assert "3.33" in page and "Estimates, not readings" in page and "Assumed." in page


def test_trackers_and_seconds_are_training(x, tmp_path) -> None:
    with track_energy(None) as tracker:
        pass
    made = kdlite.report(
        student=told(3),
        baseline=told(5),
        test=(x, Y),
        training={"student": 7, "baseline": tracker},
        path=tmp_path / "r.html",
    )
    assert contenders(made)["student"]["training"]["seconds"] == 7.0
    assert "training" in contenders(made)["student without teacher"]


# --- what is wrong is said before anything is run


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"test": Y}, TypeError, r"`test` must be \(x, y\). Received: ndarray"),
        ({"student": None}, ValueError, "something to report on.*no student"),
        ({"student": "s.keras"}, TypeError, "`student` must be a keras.Model.*str"),
        ({"student": []}, ValueError, "`student` must be a model or one a seed"),
        ({"teacher": [told(0)] * 2}, ValueError, "`teacher` must be one model.*of 2"),
        ({"student": told(0)[:5]}, ValueError, "those of the test samples.*5 rows"),
        (
            {"student": told(0).tolist()},
            ValueError,
            "3 rows of student.*as one array: a list has one entry a seed",
        ),
        (
            {"student": np.ones((COUNT, 1)), "task": "classes"},
            ValueError,
            r"Classes need an output of two values.*\('samples', 1\). Fix: leave",
        ),
        ({"path": "."}, ValueError, "must be a file.*such as 'report.html'"),
        (
            {"teacher": np.zeros((COUNT, 4))},
            ValueError,
            "same outputs.*4,.*of teacher.*3,",
        ),
        ({"files": 3}, TypeError, "`files` must be paths.*int"),
        ({"files": {"a": []}}, ValueError, "`files` must name a path.*'a'"),
        ({"files": ["none.tflite"]}, FileNotFoundError, "none.tflite"),
        ({"labels": ["a", "b"]}, ValueError, "as many as one output.*2 labels"),
        ({"labels": ["a", "a", "b"]}, ValueError, "Labels must differ"),
        ({"task": {"other": "classes"}}, ValueError, "`task` must go by output"),
        ({"task": "values"}, ValueError, "Targets must fit the output"),
        ({"history": 5}, TypeError, "`history` must be what fit.. returned.*5"),
        ({"history": {"loss": 5}}, TypeError, "`history` must be what fit.. returned"),
        ({"training": 5}, TypeError, "`training` must be a mapping.*int"),
        ({"training": {"me": 5}}, ValueError, "`training` must go by model.*'me'"),
        ({"training": {"student": -1}}, ValueError, "seconds. Received: -1"),
        ({"country": "XX"}, (ValueError, ModuleNotFoundError), "country='XX'"),
        ({"path": "no/r.html"}, FileNotFoundError, "folder of `path` must exist"),
    ],
)
def test_wrong_arguments_are_named(x, tmp_path, monkeypatch, changes, error, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        kdlite.report(**{"student": told(1), "test": (x, Y), **changes})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("test", "text"),
    [
        (
            (np.zeros((0, 2)), Y),
            "must be an array .samples, .... Received|at least one",
        ),
        (({"a": np.zeros(3), "b": np.zeros(4)}, Y), "as many samples each.*'a' .3,"),
        (
            (np.zeros((COUNT, 2)), Y[:9]),
            "target for each sample.*9 targets.*60 samples",
        ),
        ((np.zeros((COUNT, 2)), Y + 7), "Class indices must be from 0 to 2"),
    ],
)
def test_wrong_data_are_named(tmp_path, test, text) -> None:
    with pytest.raises(ValueError, match=text):
        kdlite.report(student=told(1), test=test, path=tmp_path / "r.html")


def test_a_model_that_does_not_take_the_samples_is_named(student, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"take the test samples.*student.*\(60, 2\)"):
        kdlite.report(
            student=student, test=(np.zeros((COUNT, 2)), Y), path=tmp_path / "r.html"
        )


def test_a_page_is_replaced_only_if_asked(x, tmp_path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        kdlite.report(student=told(1), test=(x, Y), path=path)
    assert path.read_text() == "old"
    kdlite.report(student=told(1), test=(x, Y), path=path, overwrite=True)
    assert path.read_text().startswith("<!doctype html>")


def test_a_student_that_diverged_is_named(x, tmp_path) -> None:
    outputs = told(1)
    outputs[0] = np.nan
    with pytest.raises(ValueError, match="finite. Received: 3 NaN.*student"):
        kdlite.report(student=outputs, test=(x, Y), path=tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_names_from_the_right_and_costs_of_tiny_models(tmp_path) -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("float32"), rng.integers(0, 3, 60)
    layers = [keras.Input((4,)), keras.layers.Dense(3)]
    kdlite.report(
        student=keras.Sequential(layers),
        test=(x, y),
        labels=["<script>1</script>", "\u05d7\u05ea\u05d5\u05dc", "c"],
        path=tmp_path / "report.html",
    )
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert re.search(r"<td>\u2068[^<>]+\u2069 \(\d+\)</td>", text)
    assert "<td>12</td>" in text and "0.00 M" not in text


@pytest.mark.parametrize("classes", [37, 100, 101, 1000])
def test_every_confusion_is_in_the_picture_of_many_classes(
    tmp_path, monkeypatch, classes
) -> None:
    drawn = []
    heat = Plots.heat
    monkeypatch.setattr(
        Plots, "heat", lambda self, *a: drawn.append(a) or heat(self, *a)
    )
    y = np.arange(3 * classes) % classes
    outputs = np.eye(classes)[y]
    # One class is wrong twice and in the same way, another once.
    outputs[[5, 5 + classes]] = np.eye(classes)[classes - 1]
    outputs[9] = np.eye(classes)[20]
    kdlite.report(
        student=outputs, test=(np.zeros((len(y), 1)), y), path=tmp_path / "r.html"
    )
    ((shares, count, words),) = drawn
    size = -(-classes // 100)
    assert count == classes and len(shares) == -(-classes // size) <= 100
    assert shares.sum(1) == pytest.approx(np.ones(len(shares)))
    of_block = 3 * min(size, classes)
    assert shares[5 // size, -1] == pytest.approx(2 / of_block)
    assert shares[9 // size, 20 // size] > 0
    assert ("each point is" in words) == (size > 1)
    text = (tmp_path / "r.html").read_text()
    pair = f">5</th><td>{classes - 1}</td><td>2 of 3</td><td>66.7</td>"
    assert pair in text and ">9</th><td>20</td>" not in text


def test_what_one_sample_says_of_its_class_is_not_the_worst(tmp_path) -> None:
    y = np.array([0] * 40 + [1] * 40 + [2])
    outputs = np.eye(3)[y]
    outputs[:20] = np.eye(3)[1]  # half of the first class
    outputs[80] = np.eye(3)[0]  # the only one of the last
    kdlite.report(
        student=outputs, test=(np.zeros((81, 1)), y), path=tmp_path / "r.html"
    )
    text = (tmp_path / "r.html").read_text()
    table = text[text.index("The worst classes of student") :]
    rows = re.findall(r'<th scope="row">(\d)</th><td>(\d+)</td><td>(.*?)</td>', table)
    assert rows[:2] == [("0", "40", "50.0 (35 to 65)"), ("2", "1", "0.0 (0 to 79)")]


def test_keras_models_are_on_the_plot_of_sizes(student, file, x, tmp_path) -> None:
    made = kdlite.report(
        teacher=network("wide"),
        student=student,
        files=[file],
        test=(x, Y),
        path=tmp_path / "r.html",
    )
    found = contenders(made)
    assert found["teacher"]["bytes"] == found["student"]["bytes"] == 4 * 111
    assert "latency_ms" not in found["student"]
    text = (tmp_path / "r.html").read_text()
    plot = re.search(r'aria-label="top-1 over file size.*?"', text)[0]
    assert "teacher" in plot and "student" in plot
    assert "Bytes of a Keras model: its parameters in float32" in text
