from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from processes import OnTerminal

import kdlite
from kdlite import android, datasets
from kdlite.android import to_android
from kdlite.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was exported, with a report beside it."""
    folder = tmp_path_factory.mktemp("out")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, strides=4, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="logits"),
        ],
        name="small",
    )
    images = np.random.default_rng(0).integers(0, 256, (120, 28, 28, 1))
    kdlite.export(
        model,
        folder / "student_int8.tflite",
        "int8",
        calibration_data=images.astype(np.float32),
        labels=datasets.FASHION_MNIST_CLASSES,
    )
    report = {
        "teacher": {"top1": 0.9},
        "student": {"top1": 0.8},
        "tflite": {"int8": {"top1": 0.7}},
        "settings": {"measured_on": "test", "samples": {"test": 500}},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app that cannot be built, but filled."""
    app = tmp_path / "android_demo"
    assets = app / "app/src/main/assets"
    assets.mkdir(parents=True)
    (assets / "left_over.txt").write_text("of the model before")
    (app / "ci").mkdir()
    (app / "ci/chain.py").write_text(
        "import pathlib, sys\n"
        "if sys.argv[1] != 'fetch': pathlib.Path(sys.argv[2]).write_text(sys.argv[1])\n"
    )
    return app


# --- filling the app


def test_the_model_takes_the_place_of_the_one_before(folder: Path, app: Path) -> None:
    result = to_android(folder / "student_int8.tflite", app)
    assets = app / "app/src/main/assets"
    names = {file.name for file in assets.iterdir()}
    assert names == {"model.tflite", "card.json", "samples.json", "images"}
    told = (assets / "model.tflite").read_bytes()
    assert told == (folder / "student_int8.tflite").read_bytes()
    assert (result.model, result.quantization) == ("small", "int8")
    assert result.golden_vectors == 8
    assert result.next_command == f"cd {app} && ./gradlew installDebug"
    assert list(assets.parent.iterdir()) == [assets]
    assert str(result).startswith("small, int8, with ")
    assert json.loads(json.dumps(result.to_dict()))["apk"] is None


@pytest.mark.parametrize("golden", [None, {"count": 8, "outputs": {"mask": [[0.0]]}}])
def test_vectors_are_those_of_the_scores(
    folder: Path, app: Path, monkeypatch: pytest.MonkeyPatch, golden: object
) -> None:
    model = folder / "student_int8.tflite"
    about = kdlite.read_metadata(model)
    about = replace(about, provenance={**about.provenance, "golden": golden})
    monkeypatch.setattr(android, "read_metadata", lambda _: about)
    assert to_android(model, app).golden_vectors == 0


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("err", [OSError("busy"), KeyboardInterrupt()])
def test_what_was_there_stays_where_it_cannot_be_replaced(
    folder: Path, app: Path, monkeypatch, fails_at, err
) -> None:
    rename, calls = Path.rename, []

    def failing(path: Path, to: Path) -> Path:
        calls.append(path.name)
        if len(calls) == fails_at:
            raise err
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(err)):
        to_android(folder / "student_int8.tflite", app)
    assets = app / "app/src/main/assets"
    assert calls[fails_at - 1] == ("assets", "new")[fails_at - 1]
    assert (assets / "left_over.txt").read_text() == "of the model before"
    assert list(assets.parent.iterdir()) == [assets]


def test_the_card_has_what_the_report_says(folder: Path, app: Path) -> None:
    to_android(folder / "student_int8.tflite", app)
    card = json.loads((app / "app/src/main/assets/card.json").read_text())
    about = kdlite.read_metadata(folder / "student_int8.tflite")
    assert card == {
        "model_fingerprint": about.provenance["model_fingerprint"],
        "teacher_top1": 0.9,
        "student_top1": 0.8,
        "file_top1": 0.7,
        "images": 500,
    }


def test_figures_that_are_none_are_left_out(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "student_int8.tflite", tmp_path)
    report = json.loads((folder / "report.json").read_text())
    report["teacher"]["top1"], report["student"]["top1"] = float("nan"), float("inf")
    (tmp_path / "report.json").write_text(json.dumps(report))
    to_android(tmp_path / "student_int8.tflite", app)
    text = (app / "app/src/main/assets/card.json").read_text()
    card = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert card.keys() == {"model_fingerprint", "file_top1", "images"}


def test_without_a_report_the_card_is_empty(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "student_int8.tflite", tmp_path)
    to_android(tmp_path / "student_int8.tflite", app)
    assert json.loads((app / "app/src/main/assets/card.json").read_text()) == {}


@pytest.mark.skipif(
    datasets.find_fashion_mnist() is None, reason="Fashion-MNIST is not here"
)
def test_fashion_mnists_student_brings_an_image_of_each_class(
    folder: Path, app: Path
) -> None:
    assert to_android(folder / "student_int8.tflite", app).images == 10
    assets = app / "app/src/main/assets"
    samples = json.loads((assets / "samples.json").read_text())
    assert [s["label"] for s in samples] == list(datasets.FASHION_MNIST_CLASSES)
    test = datasets.fashion_mnist().test
    for index, sample in enumerate(samples):
        image = keras.utils.load_img(
            assets / "images" / sample["file"], color_mode="grayscale"
        )
        first = test.x[test.y == index][0, :, :, 0]
        np.testing.assert_array_equal(np.asarray(image), first)


def test_images_of_ones_own(folder: Path, app: Path, tmp_path: Path) -> None:
    for label in ("Bag", "Dress", "unknown"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(9):
            file = tmp_path / "images" / label / f"{number}.PNG"
            Image.new("L", (2, 2), len(label) * 10 + number).save(file)
    for name in ("notes.txt", "Bag/._1.png", ".trash/2.png"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_text("not one")
    result = to_android(folder / "student_int8.tflite", app, images=tmp_path / "images")
    assert result.images == 20
    assets = app / "app/src/main/assets"
    samples = json.loads((assets / "samples.json").read_text())
    assert samples[0] == {"file": "00.png", "label": "Bag"}
    # A folder that is no class of the model names none.
    assert {s["label"] for s in samples} == {"Bag", "Dress", None}
    contents = {(assets / "images" / s["file"]).read_bytes() for s in samples}
    assert len(contents) == 20 and "not one" not in contents


def bundled(app: Path) -> dict[str, Image.Image]:
    files = sorted((app / "app/src/main/assets/images").iterdir())
    return {file.name: Image.open(file) for file in files}


def test_photos_are_made_upright_and_no_larger_than_a_phone_needs(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.zeros((1200, 1600, 3), np.uint8)
    pixels[:, :800] = [200, 0, 0]
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        name = f"{orientation}.jpg"
        Image.fromarray(pixels).save(images / name, quality=95, exif=exif)
    model = folder / "student_int8.tflite"
    to_android(model, app, images=images)
    # Where the red half, the left one in the file, is to be by the EXIF standard.
    red = ["left", "right", "right", "left", "top", "top", "bottom", "bottom"]
    for (name, image), side in zip(bundled(app).items(), red, strict=True):
        upright = side in ("left", "right")
        assert image.size == ((1024, 768) if upright else (768, 1024)), name
        assert image.getexif().get(0x0112, 1) == 1
        width, height = image.size
        places = {
            "left": (5, height // 2),
            "right": (width - 5, height // 2),
            "top": (width // 2, 5),
            "bottom": (width // 2, height - 5),
        }
        other = dict(zip(places, ("right", "left", "bottom", "top"), strict=True))
        assert image.getpixel(places[side])[0] > 190, name
        assert image.getpixel(places[other[side]])[0] < 10, name


def test_what_needs_no_change_is_taken_as_it_is(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1024, 700, 3), np.uint8)
    for name in ("a.jpg", "b.png", "c.webp", "d.bmp", "e.gif"):
        Image.fromarray(noise[: 1024 if name == "b.png" else 40]).save(images / name)
    to_android(folder / "student_int8.tflite", app, images=images)
    told = sorted((app / "app/src/main/assets/images").iterdir())
    wanted = [file.read_bytes() for file in sorted(images.iterdir())]
    assert [file.read_bytes() for file in told] == wanted


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "PPM", "TGA", "ICO"])
def test_what_android_does_not_read_becomes_a_png(
    folder: Path, app: Path, tmp_path: Path, kind
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    red = Image.new("RGB", (32, 32), (200, 0, 0))
    with open(images / "named.png", "wb") as file:
        red.save(file, kind)
    to_android(folder / "student_int8.tflite", app, images=images)
    (told,) = (app / "app/src/main/assets/images").iterdir()
    with Image.open(told) as image:
        assert (told.suffix, image.format) == (".png", "PNG")
        assert image.convert("RGB").tobytes() == red.tobytes()


@pytest.mark.parametrize(
    ("mode", "size", "wanted"),
    [
        ("L", (3000, 1500), (1024, 512)),
        ("1", (3000, 1500), (1024, 512)),
        ("P", (2048, 2048), (1024, 1024)),
        ("RGBA", (2048, 1024), (1024, 512)),
        ("LA", (2048, 1024), (1024, 512)),
        ("I;16", (2048, 1024), (1024, 512)),
        # No side below the model's input, 28 x 28.
        ("RGB", (2048, 28), (2048, 28)),
        ("RGB", (2048, 42), (1365, 28)),
    ],
)
def test_images_of_every_kind_keep_their_colour(
    folder: Path, app: Path, tmp_path: Path, mode, size, wanted
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    if mode == "I;16":
        image = Image.fromarray(np.full(size[::-1], 200 * 256, np.uint16))
    else:
        image = Image.new("RGB", size, (200, 200, 200)).convert(mode)
    image.save(images / "a.png")
    to_android(folder / "student_int8.tflite", app, images=images)
    (told,) = bundled(app).values()
    assert told.size == wanted
    mean = np.asarray(told.convert("RGB"), np.float64).mean()
    # Black and white are dithered; all else is the colour itself.
    assert mean == pytest.approx(200, abs={"1": 3, "P": 1}.get(mode, 0))


def test_an_apk_is_built_by_the_apps_own_chain(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    apk = tmp_path / "demo.apk"
    result = to_android(folder / "student_int8.tflite", app, build_apk=apk)
    assert apk.read_text() == "build"
    assert result.next_command == f"adb install -r {apk}"
    with pytest.raises(FileExistsError, match="`build_apk` must not exist. Received"):
        to_android(folder / "student_int8.tflite", app, build_apk=apk)
    to_android(folder / "student_int8.tflite", app, build_apk=apk, overwrite=True)
    with pytest.raises(ValueError, match="`build_apk` must be a file. Received"):
        to_android(folder / "student_int8.tflite", app, build_apk=app, overwrite=True)
    # What is printed can be pasted, and a folder that is not there is made.
    apk = tmp_path / "my builds" / "demo.apk"
    result = to_android(folder / "student_int8.tflite", app, build_apk=apk)
    assert result.next_command == f"adb install -r '{apk}'"
    assert apk.exists()


@pytest.mark.parametrize("parent", ["file", "file/deeper", "/proc/kdlite"])
def test_an_apk_that_cannot_be_is_refused_before_anything_changes(
    folder: Path, app: Path, tmp_path: Path, parent
) -> None:
    (tmp_path / "file").touch()
    before = sorted(app.rglob("*"))
    apk = tmp_path / parent / "demo.apk"
    with pytest.raises(OSError, match="The folder of `build_apk` must be there"):
        to_android(folder / "student_int8.tflite", app, build_apk=apk)
    assert sorted(app.rglob("*")) == before


def test_a_stopped_build_leaves_neither_compilers_nor_files(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    started, temporary = tmp_path / "compiler", tmp_path / "temporary"
    temporary.mkdir()
    (app / "ci/chain.py").write_text(
        "import pathlib, subprocess, sys, tempfile\n"
        "if sys.argv[1] == 'build':\n"
        "    pathlib.Path(tempfile.mkdtemp(), 'half').touch()\n"
        "    compiler = subprocess.Popen(['sleep', '1000'])\n"
        f"    pathlib.Path({str(started)!r}).write_text(f'{{compiler.pid}}\\n')\n"
        "    compiler.wait()\n"
    )
    model, apk = folder / "student_int8.tflite", tmp_path / "demo.apk"
    command = "android", str(model), "--app", str(app), "--build-apk", str(apk)
    with OnTerminal(*command, TMPDIR=str(temporary)) as process:
        process.until(lambda: started.exists() and "\n" in started.read_text())
        process.press_ctrl_c()
        assert process.end() == 130, process.shown
    stat = Path("/proc", started.read_text().strip(), "stat")
    end = time.monotonic() + 60
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "the compiler goes on"
        time.sleep(0.05)
    assert not apk.exists() and not list(temporary.iterdir())


def test_an_image_that_cannot_be_read_is_named(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (9, 9)).save(images / "whole.png")
    whole = (images / "whole.png").read_bytes()
    before = sorted(app.rglob("*"))
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (images / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match="can be read. Received: .*broken.png"):
            to_android(folder / "student_int8.tflite", app, images=images)
        assert sorted(app.rglob("*")) == before


def test_a_build_that_fails_says_why(folder: Path, app: Path, tmp_path: Path) -> None:
    (app / "ci/chain.py").write_text(
        "import sys\nif sys.argv[1] == 'build': raise SystemExit('no compiler')"
    )
    apk = tmp_path / "demo.apk"
    apk.write_text("the one before")
    with pytest.raises(RuntimeError, match="(?s)exit code 1 of .*no compiler"):
        to_android(folder / "student_int8.tflite", app, build_apk=apk, overwrite=True)
    assert apk.read_text() == "the one before"


def test_what_a_build_lacks_is_said_before_anything_changes(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    (app / "ci/chain.py").write_text(
        "import sys\nif sys.argv[1] == 'fetch': raise SystemExit('no Java')"
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="(?s)exit code 1 of .*no Java"):
        to_android(
            folder / "student_int8.tflite", app, build_apk=tmp_path / "new/demo.apk"
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_apk_that_cannot_be_written_whole_leaves_the_one_before(
    folder: Path, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    apk = tmp_path / "out/demo.apk"
    apk.write_text("the one before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="must be possible to write.*No space left"):
        to_android(folder / "student_int8.tflite", app, build_apk=apk, overwrite=True)
    assert apk.read_text() == "the one before"
    assert list(apk.parent.iterdir()) == [apk]


# --- what the app cannot run is found before anything changes


def exported(
    path: Path, shape: tuple[int, ...], data, *head: keras.Layer, **options
) -> Path:
    head = head or (keras.layers.Flatten(), keras.layers.Dense(2))
    model = keras.Sequential([keras.Input(shape, name="x"), *head])
    kdlite.export(model, path, verify_data=data, **options)
    return path


def test_a_model_that_the_app_cannot_run_is_refused(app: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.uniform(0, 255, (20, 6, 6, 1)).astype(np.float32)
    numbers = generator.normal(size=(20, 4)).astype(np.float32)
    cases = [
        (exported(tmp_path / "a", (4,), numbers, labels=["a", "b"]), "no image"),
        (exported(tmp_path / "b", (6, 6, 1), pixels), "has no labels"),
        (
            exported(tmp_path / "c", (6, 6, 1), pixels - 99, labels=["a", "b"]),
            "does not say how pixels become its input",
        ),
        (
            exported(
                *(tmp_path / "d", (6, 6, 1), pixels),
                *(keras.layers.Flatten(), keras.layers.Dense(1)),
                labels=["a"],
            ),
            r"gives \[1, 1\] scores for 1 labels. Export a classifier",
        ),
        (
            exported(
                *(tmp_path / "e", (6, 6, 1), pixels, keras.layers.Conv2D(3, 3)),
                labels=["a", "b", "c"],
            ),
            r"gives \[1, 4, 4, 3\] scores for 3 labels",
        ),
    ]
    before = sorted(app.rglob("*"))
    for path, why in cases:
        with pytest.raises(ValueError, match=f"app can run. Received: .*{why}"):
            to_android(path, app)
    assert sorted(app.rglob("*")) == before


def test_scores_beside_another_output_are_those_with_labels(
    app: Path, tmp_path: Path
) -> None:
    # The signature lists outputs by name, metadata in the order of the model's.
    image = keras.Input((8, 8, 1), name="image")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    heads = {
        "size": keras.layers.Dense(2, name="size")(flat),
        "kind": keras.layers.Dense(3, name="kind")(flat),
    }
    pixels = np.random.default_rng(0).uniform(0, 255, (20, 8, 8, 1)).astype(np.float32)
    for name, outputs in (("one", heads), ("two", dict(reversed(heads.items())))):
        path = tmp_path / f"{name}.tflite"
        model = keras.Model(image, outputs)
        for labels in ({"kind": ["a", "b", "c"]}, {"size": ["small", "large"]}):
            kdlite.export(
                model, path, verify_data=pixels, labels=labels, overwrite=True
            )
            assert to_android(path, app).golden_vectors > 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"std": (0.0,)}, "does not say how pixels become its input"),
        ({"mean": (float("nan"),)}, "does not say how pixels become its input"),
        ({"content": "features"}, "no image"),
    ],
)
def test_what_the_app_would_refuse_is_refused_before(
    folder: Path, app: Path, monkeypatch: pytest.MonkeyPatch, change, why
) -> None:
    model = folder / "student_int8.tflite"
    about = kdlite.read_metadata(model)
    about = replace(about, inputs=(replace(about.inputs[0], **change),))
    monkeypatch.setattr(android, "read_metadata", lambda _: about)
    with pytest.raises(ValueError, match=why):
        to_android(model, app)


@pytest.mark.parametrize("shape", [(6, 6, 4), (6, 6, 2), (6, 6)])
def test_images_are_grey_or_of_three_colours(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape
) -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (20, *shape)).astype(np.float32)
    layers = keras.layers.Flatten(), keras.layers.Dense(2)
    path = exported(tmp_path / "a", shape, pixels, *layers, labels=["a", "b"])
    about = kdlite.read_metadata(path)
    told = replace(about.inputs[0], content="image", mean=(0.0,), std=(1.0,))
    about = replace(about, inputs=(told,))
    monkeypatch.setattr(android, "read_metadata", lambda _: about)
    with pytest.raises(ValueError, match="no image"):
        to_android(path, app)


def test_a_foreign_model_without_a_name_is_called_as_its_file(
    folder: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder / "student_int8.tflite"
    about = replace(kdlite.read_metadata(model), name="", provenance=None)
    monkeypatch.setattr(android, "read_metadata", lambda _: about)
    assert to_android(model, app).model == "student_int8"


def test_a_model_for_a_later_runtime_is_refused(
    folder: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android, "RUNTIME", "2.2")
    with pytest.raises(ValueError, match="needs TFLite 2.3.*, where the app has 2.2"):
        to_android(folder / "student_int8.tflite", app)


def test_names_that_lead_nowhere_are_refused(
    folder: Path, app: Path, tmp_path: Path
) -> None:
    model = folder / "student_int8.tflite"
    with pytest.raises(FileNotFoundError, match="`app` must be kdlite's Android"):
        to_android(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="`images` must be a folder that"):
        to_android(model, app, images=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`images` must have images. Received"):
        to_android(model, app, images=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="must be a .tflite that exists"):
        to_android(tmp_path / "nothing.tflite", app)


def test_the_command_line(
    folder: Path, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(folder / "student_int8.tflite")
    assert main(["android", model, "--app", str(app), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "small"
    assert main(["android", model, "--app", str(app / "nothing")]) == 2
    assert "`app` must be kdlite's Android project" in capsys.readouterr().err
