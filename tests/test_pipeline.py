from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite import pipeline, stages
from kdlite.distill.label_store import locked
from kdlite.gates import Gates
from kdlite.lite.metadata import read_metadata
from kdlite.lite.runtime import TFLiteModel
from kdlite.pipeline import distill_to_tflite

CLASSES = ("left", "right", "none")
SETTINGS = {
    "labels": CLASSES,
    "epochs": 2,
    "qat_epochs": 1,
    "batch_size": 32,
    "input_range": (0.0, 250.0),
    "description": "Left or right",
    "author": "A. N. Author",
    "license": "MIT",
    "intended_use": "For tests alone.",
    "verbose": 0,
}


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey 8x8 images whose left or right half is brighter, or neither."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = rng.integers(0, 120, (count, 8, 8, 1))
    x[y == 0, :, :4] += 110
    x[y == 1, :, 4:] += 110
    return x.astype("uint8"), y.astype("int64")


def network(width: int, name: str, softmax: bool = False) -> keras.Model:
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Rescaling(1 / 255, name="rescale")(inputs)
    x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name="conv")(
        x
    )
    x = layers.BatchNormalization(momentum=0.9, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Flatten(name="flat")(x)
    activation = "softmax" if softmax else None
    head = layers.Dense(3, activation=activation, name="head")(x)
    return keras.Model(inputs, head, name=name)


def build_student() -> keras.Model:
    return network(4, "small")


@pytest.fixture(scope="module")
def data() -> dict:
    return {
        "train": images(320, 0),
        "validation": images(96, 1),
        "test": images(128, 2),
    }


@pytest.fixture(scope="module")
def teacher(data) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = network(16, "big", softmax=True)
    model.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    model.fit(*data["train"], epochs=12, verbose=0)
    return model


def run(data, teacher, out):
    """The whole way; XLA, which most of the time would go to, compiles nothing."""
    with pytest.MonkeyPatch.context() as patched:
        no = property(lambda model: False, lambda model, value: None)
        patched.setattr(keras.Model, "jit_compile", no)
        return distill_to_tflite(
            teacher,
            data["train"],
            build_student,
            validation=data["validation"],
            test=data["test"],
            out=out,
            gates=Gates(size_ratio=1.0, teacher_drop_points=100.0),
            **SETTINGS,
        )


@pytest.fixture(scope="module")
def result(data, teacher, tmp_path_factory):
    return run(data, teacher, tmp_path_factory.mktemp("run") / "out")


def test_writes_the_promised_files_and_nothing_else(result) -> None:
    assert sorted(path.name for path in result.out.iterdir()) == [
        "MODEL_CARD.md",
        "report.html",
        "report.json",
        "student.keras",
        "student_float32.MODEL_CARD.md",
        "student_float32.tflite",
        "student_int8.tflite",
        "student_qat.keras",
        "teacher.keras",
    ]
    assert [path.name for path in result.out.parent.iterdir()] == ["out"]


def test_report_has_the_promised_keys(result) -> None:
    report = json.loads((result.out / "report.json").read_text())
    assert report == result.report
    costs = {"params", "macs", "bytes", "latency_ms", "memory_bytes"}
    costs |= {"latency_p90_ms", "busy"}
    scores = {"top1", "top1_sd", "agreement", "ece", "nll"}
    assert set(report["teacher"]) == {"top1", "ece", "nll", *costs}
    assert set(report["tflite"]["float32"]) == {*scores, *costs}
    assert set(report["tflite"]["int8"]) == {*scores, *costs, "training"}
    for name in ("student", "baseline"):
        assert set(report[name]) == {*scores, "params", "macs", "training"}
    assert report["student"]["training"]["kwh"] is None  # no country was given
    both = report["tflite"]["int8"]["training"]["seconds"]
    assert both > report["student"]["training"]["seconds"] > 0
    assert {s["second"] for s in report["separations"]} == {
        "student without teacher",
        "teacher",
        "student",
        "quantization-aware student",
    }
    assert len(report["seeds"]) == 1
    assert {gate["name"] for gate in report["gates"]} == {
        "size_ratio",
        "teacher_drop_points",
        "quantization_drop_points",
    }


def test_figures_are_those_of_the_files(result, data, teacher) -> None:
    x, y = data["test"]
    report = result.report
    student = keras.models.load_model(result.student)
    assert report["student"]["top1"] == pytest.approx(
        (student.predict(x, verbose=0).argmax(-1) == y).mean()
    )
    told = np.asarray(TFLiteModel(result.tflite).predict(x)).argmax(-1)
    assert report["tflite"]["int8"]["top1"] == pytest.approx((told == y).mean())
    by_teacher = teacher.predict(x, verbose=0).argmax(-1)
    assert report["teacher"]["top1"] == pytest.approx((by_teacher == y).mean())
    assert report["tflite"]["int8"]["agreement"] == pytest.approx(
        (told == by_teacher).mean()
    )
    assert report["tflite"]["int8"]["bytes"] == result.tflite.stat().st_size
    # 8x8 halved by the stride: 16 positions, a 3x3 kernel, 4 filters; then 64 x 3.
    assert report["student"]["macs"] == 16 * 9 * 4 + 64 * 3
    assert report["teacher"]["top1"] > 0.9 and report["student"]["top1"] > 0.6


def test_page_is_made_of_the_same_figures(result) -> None:
    text = result.html.read_text()
    assert "http" not in text and "<script" not in text
    for kind in ("float32", "int8"):
        assert f"{result.report['tflite'][kind]['bytes']:,}" in text
    assert f"{100 * result.report['tflite']['int8']['top1']:.2f}" in text
    for heading in ("Gates", "Settings", "How it learned", "Energy and CO2"):
        assert f"<h2>{heading}</h2>" in text
    assert "quantization-aware student" in text
    assert len(text) < 2_000_000


def test_files_say_who_made_them_and_for_what(result, data, teacher) -> None:
    about = read_metadata(result.tflite)
    assert (about.description, about.author) == ("Left or right", "A. N. Author")
    assert about.license == "MIT"
    card = (result.out / "MODEL_CARD.md").read_text()
    assert "`student_int8.tflite`" in card and "For tests alone." in card
    assert (
        f"| teacher | top-1 | {100 * result.report['teacher']['top1']:.2f} % |" in card
    )
    assert (
        f"file | top-1 | {100 * result.report['tflite']['int8']['top1']:.2f} %" in card
    )
    other = (result.out / "student_float32.MODEL_CARD.md").read_text()
    assert "`student_float32.tflite`" in other
    for kind in ("int8", "float32"):
        (image,) = read_metadata(result.out / f"student_{kind}.tflite").inputs
        # Of pixels from 0 to 255, as `input_range` had it, not as the samples look.
        assert image.std == pytest.approx((255 / 250,)) and image.mean == (0.0,)


def test_cards_have_the_figures_of_the_report(result) -> None:
    report = result.report
    for card, own in (
        ("MODEL_CARD.md", "int8"),
        ("student_float32.MODEL_CARD.md", "float32"),
    ):
        text = (result.out / card).read_text()
        head, _, told = text.partition("## How it compares, and how it was trained")
        assert head.startswith("<!-- kdlite: the model card of") and told
        assert f"this file is the {own} file" in told
        for name, figures in (
            ("teacher", report["teacher"]),
            ("student without teacher", report["baseline"]),
            ("student", report["student"]),
            ("float32 file", report["tflite"]["float32"]),
            ("int8 file", report["tflite"]["int8"]),
        ):
            scores = [f"{100 * figures['top1']:.2f}"]
            agreement = figures.get("agreement")
            scores.append("-" if agreement is None else f"{100 * agreement:.2f}")
            scores += [f"{100 * figures['ece']:.2f}", f"{figures['nll']:.4g}"]
            assert f"| {name} | {' | '.join(scores)} |" in told
            if "training" in figures:
                assert f"| {figures['training']['seconds']:,.1f} |" in told
        assert f"| {report['tflite'][own]['latency_ms']:.3f} |" in told
        for row in (
            "hard loss | SparseCategoricalCrossentropy",
            "soft loss | SoftTargets",
            "epochs | 2",
            "temperature | 4.0",
            "samples | train 320, validation 96, test 128",
        ):
            assert f"| {row} |" in told


def test_result_prints_table_and_gates(result) -> None:
    text = str(result)
    assert "student .tflite, int8" in text
    assert "gate: size ratio at least 1" in text
    assert str(result.out) in text
    assert result.to_dict()["passed"] is result.passed


def test_finished_folder_is_not_overwritten_unasked(result, data, teacher) -> None:
    before = result.tflite.read_bytes()
    with pytest.raises(FileExistsError, match="must not exist.*overwrite=True"):
        distill_to_tflite(
            teacher,
            data["train"],
            build_student,
            test=data["test"],
            out=result.out,
            **SETTINGS,
        )
    assert result.tflite.read_bytes() == before


def test_without_a_student_one_of_the_wanted_size_is_made(
    data, teacher, tmp_path
) -> None:
    """As users run it, with XLA."""
    made = distill_to_tflite(
        teacher,
        data["train"],
        max_bytes=5_600,
        test=data["test"],
        baseline=False,
        out=tmp_path / "out",
        gates=Gates(quantization_drop_points=None),
        **SETTINGS,
    )
    student = keras.models.load_model(made.student)
    assert 4 <= student.get_layer("conv").filters < 16
    assert made.tflite.stat().st_size <= 5_600
    assert [str(gate) for gate in made.gates] == [
        f"max bytes at most 5600: {made.tflite.stat().st_size}.00, kept"
    ]


class _Stop(BaseException):
    """What a kill looks like from inside."""


def test_stopped_run_goes_on_and_ends_alike(
    result, data, teacher, tmp_path, monkeypatch
) -> None:
    """Stopped in each stage, it goes on there; the files equal those of one run."""
    out = tmp_path / "out"
    fit, save = keras.Model.fit, stages._save_whole

    class StopAfter(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None) -> None:
            if epoch == 1:
                raise _Stop

    def stopping_fit(self, *args, **kwargs):
        kwargs["callbacks"] = [*kwargs["callbacks"], StopAfter()]
        return fit(self, *args, **kwargs)

    # In the second epoch of the student.
    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "fit", stopping_fit)
        with pytest.raises(_Stop):
            run(data, teacher, out)
    assert not out.exists()

    # After quantization-aware training, before its result is whole.
    def stopping_save(model, path):
        if path.name == "student_qat.keras":
            raise _Stop
        save(model, path)

    with monkeypatch.context() as patched:
        patched.setattr(stages, "_save_whole", stopping_save)
        with pytest.raises(_Stop):
            run(data, teacher, out)
    assert not out.exists()

    # While the last files are written.
    with monkeypatch.context() as patched:
        patched.setattr(stages, "page", lambda *_: (_ for _ in ()).throw(_Stop))
        with pytest.raises(_Stop):
            run(data, teacher, out)
    assert not out.exists()

    # Nothing that was done is done again.
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(
            keras.Model, "fit", lambda self, *_, **__: calls.append(self.name)
        )
        again = run(data, teacher, out)
    assert calls == []
    ours = keras.models.load_model(again.student).get_weights()
    theirs = keras.models.load_model(result.student).get_weights()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.tflite.read_bytes() == result.tflite.read_bytes()


def test_other_settings_do_not_mix_with_a_stopped_run(data, teacher, tmp_path) -> None:
    work = tmp_path / "out.partial"
    work.mkdir()
    (work / "run.json").write_text(json.dumps({"epochs": 9, "teacher": "other"}))
    with pytest.raises(FileExistsError, match="same settings.*epochs.*teacher"):
        distill_to_tflite(
            teacher,
            data["train"],
            build_student,
            test=data["test"],
            out=tmp_path / "out",
            **SETTINGS,
        )


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"quantization": "int9"}, ValueError, "`quantization` must be one of"),
        ({"epochs": 0}, ValueError, "`epochs` must be a whole number from 1 on"),
        ({"qat_epochs": 1.5}, ValueError, "`qat_epochs` must be a whole number"),
        ({"epochs": True}, ValueError, "`epochs` must be a whole number from 1 on"),
        ({"seeds": 2}, ValueError, "`seeds` above 1 needs the student as a function"),
        (
            {"seeds": 2, "student": build_student},
            ValueError,
            "`seeds` above 1 needs `validation`.*nothing on `test`",
        ),
        ({"train": None}, TypeError, "`train` must be.*Received: None"),
        ({"gates": 3}, TypeError, "`gates` must be kdlite.Gates or None. Received: 3"),
        ({"description": 3}, TypeError, "`description` must be a text.*description=3"),
        ({"labels": "abc"}, TypeError, "`labels` must be a list.*'abc'"),
        ({"labels": [1, 2, 3]}, TypeError, r"`labels` must be a list.*\[1, 2, 3\]"),
        ({"labels": ["a", "b", "a"]}, ValueError, "must differ.*'a' 2 times"),
        ({"learning_rate": "a"}, ValueError, "`learning_rate` must be.*'a'"),
        ({"test": None}, ValueError, "neither `validation` nor `test`"),
        ({"ratio": 10}, ValueError, "`ratio` and `max_bytes` make a student, so"),
        ({"test": {"x": 1}}, TypeError, "`test` must be .*Received: dict"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"input_range": (1.0, 0.0)}, ValueError, "two finite numbers"),
        ({"input_range": (0.0, 1.0)}, ValueError, r"`train` must lie.*\(0, 1\)"),
        ({"views": 2}, ValueError, "augment"),
        ({"learning_rate": float("nan")}, ValueError, "`learning_rate` must be finite"),
        ({"learning_rate": -1.0}, ValueError, "above 0.*learning_rate=-1.0"),
        ({"country": "XX"}, ValueError, "`country` must be three letters.*'XX'"),
        ({"weight_decay": -1.0}, ValueError, "0 or more.*weight_decay=-1.0"),
        ({"hard_loss_weight": -1.0}, ValueError, "0 or more"),
        (
            {"hard_loss_weight": 0, "soft_loss_weight": 0},
            ValueError,
            "One of the two losses must count",
        ),
    ],
)
def test_wrong_arguments_fail_before_anything_is_written(
    data, teacher, tmp_path, changes, error, text
) -> None:
    given = {"train": data["train"], "student": build_student(), "test": data["test"]}
    with pytest.raises(error, match=text):
        distill_to_tflite(
            teacher, out=tmp_path / "out", **{**given, **SETTINGS, **changes}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_int8_cannot_take_is_refused_before_training(
    data, teacher, tmp_path
) -> None:
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Reshape((8, 8))(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.LSTM(4, name="memory")(x)
    student = keras.Model(image, keras.layers.Dense(3)(x))
    with pytest.raises(ValueError, match="does not have this layer.*'memory'"):
        distill_to_tflite(
            teacher,
            data["train"],
            student,
            test=data["test"],
            out=tmp_path / "out",
            **SETTINGS,
        )
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(data, teacher, tmp_path) -> None:
    work = tmp_path / "out.partial"
    work.mkdir()
    with (
        locked(work, "A run is"),
        pytest.raises(RuntimeError, match="A run is written by one process at a time"),
    ):
        distill_to_tflite(
            teacher,
            data["train"],
            build_student,
            test=data["test"],
            out=tmp_path / "out",
            overwrite=True,
            **SETTINGS,
        )


def test_a_teacher_that_guesses_is_refused(data, tmp_path) -> None:
    keras.utils.set_random_seed(3)
    blind = network(4, "blind")
    blind.set_weights([np.zeros_like(w) for w in blind.get_weights()])
    x, y = data["test"]
    one_class = (x, np.full_like(y, 2))
    told = "must know the task.*'blind' with 0.0% right on 128 samples of `test`"
    with pytest.raises(ValueError, match=told):
        distill_to_tflite(
            blind,
            data["train"],
            build_student,
            test=one_class,
            out=tmp_path / "out",
            **SETTINGS,
        )


def test_a_weak_teacher_of_two_classes_may_teach() -> None:
    class Told(keras.Model):
        def predict(self, x, **kwargs):
            return np.eye(2)[x]

    y = np.arange(200) % 2
    right = np.random.default_rng(0).random(200) < 0.65
    data = {"validation": (np.where(right, y, 1 - y), y)}
    stages.check_knows_the_task(Told(), data, ("a", "b"))
    with pytest.raises(ValueError, match="40.5% right.*guessing gives 50.0%"):
        other = {"validation": (np.where(right, 1 - y, y), y)}
        stages.check_knows_the_task(Told(), other, ("a", "b"))


def test_data_sets_of_every_kind_become_arrays(data) -> None:
    x, y = data["test"]

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index):
            rows = slice(32 * index, 32 * index + 32)
            return x[rows], y[rows]

    single = tf.data.Dataset.from_tensor_slices((x, y))
    for given in (
        (x, y),
        (x.tolist(), y.tolist()),
        single,
        single.batch(50),
        Batches(),
    ):
        got_x, got_y = pipeline._as_arrays(given, "train")
        np.testing.assert_array_equal(got_x, x)
        np.testing.assert_array_equal(got_y, y)


def test_data_sets_that_cannot_be_arrays_are_named(data) -> None:
    single = tf.data.Dataset.from_tensor_slices(data["test"])
    with pytest.raises(ValueError, match="`train` must end"):
        pipeline._as_arrays(single.repeat(), "train")
    with pytest.raises(ValueError, match=r"`train` must give \(x, y\)"):
        pipeline._as_arrays(single.map(lambda x, y: x), "train")
    with pytest.raises(ValueError, match="`train` must hold samples"):
        pipeline._as_arrays(single.take(0), "train")
