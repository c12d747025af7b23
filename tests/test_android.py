from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest

import kdlite
from kdlite import android, datasets
from kdlite.android import to_android
from kdlite.cli import main

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "android_demo"
MAIN = DEMO / "app/src/main"


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
        "import pathlib, sys\npathlib.Path(sys.argv[2]).write_text(sys.argv[1])\n"
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
            file.write_bytes(f"{label} {number}".encode())
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
    contents = {(assets / "images" / s["file"]).read_text() for s in samples}
    assert len(contents) == 20 and "not one" not in contents


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


def test_a_build_that_fails_says_why(folder: Path, app: Path, tmp_path: Path) -> None:
    (app / "ci/chain.py").write_text("raise SystemExit('no compiler')")
    with pytest.raises(RuntimeError, match="(?s)exit code 1 of .*no compiler"):
        to_android(folder / "student_int8.tflite", app, build_apk=tmp_path / "demo.apk")


# --- what the app cannot run is found before anything changes


def exported(path: Path, shape: tuple[int, ...], data, **options) -> Path:
    model = keras.Sequential(
        [keras.Input(shape, name="x"), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
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
    ]
    before = sorted(app.rglob("*"))
    for path, why in cases:
        with pytest.raises(ValueError, match=f"app can run. Received: .*{why}"):
            to_android(path, app)
    assert sorted(app.rglob("*")) == before


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


# --- the app as it lies in the tree


def strings(language: str) -> dict[str, str]:
    root = ET.parse(MAIN / f"res/values{language}/strings.xml").getroot()
    return {
        node.attrib["name"]: "".join(node.itertext())
        for node in root
        if node.tag == "string"
    }


@pytest.mark.parametrize("language", ["-de", "-ar"])
def test_every_language_says_everything(language: str) -> None:
    english, other = strings(""), strings(language)
    assert other.keys() == english.keys()
    for name, text in english.items():
        holes = r"%\d\$[.\d]*[sdf]|%%"
        assert sorted(re.findall(holes, other[name])) == sorted(
            re.findall(holes, text)
        ), name
        assert other[name].strip()


def test_the_manifest_asks_for_the_camera_only() -> None:
    name = "{http://schemas.android.com/apk/res/android}"
    root = ET.parse(MAIN / "AndroidManifest.xml").getroot()
    asked = [node.attrib[f"{name}name"] for node in root.iter("uses-permission")]
    assert asked == ["android.permission.CAMERA"]
    exported = {
        node.attrib[f"{name}name"]: node.attrib[f"{name}exported"]
        for node in root.iter("activity")
    }
    assert [key for key, value in exported.items() if value == "true"] == [
        ".ui.MainActivity"
    ]
    (application,) = root.iter("application")
    assert application.attrib[f"{name}allowBackup"] == "false"


def test_core_knows_nothing_of_android() -> None:
    for file in (MAIN / "kotlin/org/kdlite/demo/core").glob("*.kt"):
        assert not re.search(r"\bandroidx?\.", file.read_text()), file


def test_the_bundled_model_is_one_that_kdlite_exports(app: Path) -> None:
    model = MAIN / "assets/model.tflite"
    about = kdlite.read_metadata(model)
    assert about.labels == datasets.FASHION_MNIST_CLASSES
    assert kdlite.inspect(model).quantization == "int8"
    assert android._problem(kdlite.inspect(model), about) == ""
    card = json.loads((MAIN / "assets/card.json").read_text())
    assert card["model_fingerprint"] == about.provenance["model_fingerprint"]
    golden = about.provenance["golden"]
    assert len(golden["outputs"]["logits"]) == golden["count"] == 8


# --- Gradle, which is not run here, says what the offline build did

GRADLE = (DEMO / "app/build.gradle.kts").read_text()
CATALOG = tomllib.loads((DEMO / "gradle/libs.versions.toml").read_text())
MAVEN = "{http://maven.apache.org/POM/4.0.0}"


@pytest.fixture
def ci(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the app's chain, for this test alone."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(DEMO / "ci"))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(DEMO / "ci") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def maven_versions() -> dict[str, set[str]]:
    root = ET.parse(DEMO / "ci/pom.xml").getroot()
    versions: dict[str, set[str]] = {}
    for item in [*root.iter(f"{MAVEN}artifactItem"), *root.iter(f"{MAVEN}dependency")]:
        group, name, version = (
            item.findtext(f"{MAVEN}{tag}", "")
            for tag in ("groupId", "artifactId", "version")
        )
        versions.setdefault(f"{group}:{name}", set()).add(version)
    return versions


def test_gradle_and_the_offline_build_have_the_same_versions() -> None:
    maven = maven_versions()
    compared = set()
    for library in CATALOG["libraries"].values():
        if library["module"] in maven:
            version = CATALOG["versions"][library["version"]["ref"]]
            assert maven[library["module"]] == {version}
            compared.add(library["module"])
    assert len(compared) == 4  # all but litert, which Maven Central does not have
    kotlin = CATALOG["versions"]["kotlin"]
    assert maven["org.jetbrains.kotlin:kotlin-stdlib"] == {kotlin}
    assert maven["org.jetbrains.kotlin:kotlin-compiler-embeddable"] == {kotlin}
    assert maven["org.tensorflow:tensorflow-lite"] == {android.RUNTIME}


def test_gradle_and_the_offline_build_make_the_same_app(ci) -> None:
    chain = ci("chain")

    def value(name: str) -> str:
        return re.search(rf'\b{name} = "?([\w.]+)"?$', GRADLE, re.MULTILINE)[1]

    assert value("namespace") == value("applicationId") == chain.PACKAGE
    assert int(value("minSdk")) == chain.MIN_SDK
    assert int(value("targetSdk")) == int(value("compileSdk")) == chain.TARGET_SDK
    assert int(value("versionCode")) == chain.VERSION_CODE
    assert value("versionName") == chain.VERSION_NAME
    listed = re.search(r"abiFilters \+= listOf\((.*)\)", GRADLE)[1]
    assert tuple(re.findall(r'"(.+?)"', listed)) == chain.ABIS
    assert 'noCompress += "tflite"' in GRADLE
    assert "useLegacyPackaging = true" in GRADLE
    assert 'proguardFiles("proguard-rules.pro")' in GRADLE
    for name in re.findall(r"libs\.([\w.]+)\)", GRADLE):
        kind, _, key = name.rpartition("plugins.")
        known = CATALOG["plugins" if "plugins." in name else "libraries"]
        assert key.replace(".", "-") in known, (kind, name)


def test_the_gradle_wrapper_is_the_published_one() -> None:
    jar = (DEMO / "gradle/wrapper/gradle-wrapper.jar").read_bytes()
    # Gradle's published checksum of the wrapper of 8.13.
    assert hashlib.sha256(jar).hexdigest() == (
        "81a82aaea5abcc8ff68b3dfcb58b3c3c429378efd98e7433460610fecd7ae45f"
    )
    properties = (DEMO / "gradle/wrapper/gradle-wrapper.properties").read_text()
    assert "gradle-8.13-bin.zip" in properties
    assert "distributionSha256Sum=20f1b1176237254a" in properties


def test_everything_fetched_has_a_checksum(ci) -> None:
    listed = ci("tools").Tools().listed
    names = {name.split("/")[1] for _, name in listed}
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256, _ in listed)
    for module, versions in maven_versions().items():
        for version in versions:
            assert names & {
                f"{module.partition(':')[2]}-{version}.{kind}"
                for kind in ("jar", "aar")
            }, module


def test_components_that_others_can_reach_are_found(ci) -> None:
    def dumped(*components: tuple[str, str, str]) -> str:
        return "".join(
            f"    E: {kind} (line=1)\n"
            f'      A: android:name(0x01010003)="{name}" (Raw: "{name}")\n'
            f"      {exported}\n"
            "      E: intent-filter (line=2)\n"
            '        A: android:name(0x01010003)="MAIN"\n'
            for kind, name, exported in components
        )

    yes, no = (
        f"A: android:exported(0x01010010)=(type 0x12)0x{bits}"
        for bits in ("ffffffff", "0")
    )
    exported = ci("apk_check")._exported
    assert exported(dumped(("activity", ".A", yes), ("activity", ".B", no))) == [".A"]
    # Without a word, a filter makes it reachable.
    assert exported(dumped(("service", ".S", ""), ("provider", ".P", no))) == [".S"]


def test_a_program_that_is_missing_is_named(
    ci, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = ci("tools")
    with pytest.raises(tools.ChainError, match="apt-get install -y aapt apksigner"):
        tools.Tools().fetch()


def test_a_file_that_is_not_the_one_expected_is_refused(
    ci, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = ci("tools")
    monkeypatch.setattr(tools, "missing", lambda programs: [])
    monkeypatch.setenv("KDLITE_ANDROID_CACHE", str(tmp_path))
    chosen = tools.Tools()
    for _, name in chosen.listed:
        chosen.path(name).parent.mkdir(exist_ok=True)
        chosen.path(name).write_bytes(b"something else")
    with pytest.raises(tools.ChainError, match="must have the sha256 .*Received: "):
        chosen.fetch()
    assert not chosen.path(chosen.listed[0][1]).exists()


def missing_programs() -> list[str]:
    sys.path.insert(0, str(DEMO / "ci"))
    try:
        tools = importlib.import_module("tools")
        return list(tools.missing({**tools.NEEDED, **tools.PROOF_NEEDS}))
    finally:
        sys.path.remove(str(DEMO / "ci"))
        sys.modules.pop("tools", None)


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing_programs()) and not os.environ.get("KDLITE_ANDROID_REQUIRED"),
    reason=f"Debian's {', '.join(missing_programs())} are not here",
)
def test_the_app_is_proven(tmp_path: Path) -> None:
    """All of android_demo/ci: build, checks, tests on the JVM, under qemu, screens."""
    for words in (
        [DEMO / "ci/make_data.py", tmp_path / "data"],
        [DEMO / "ci/chain.py", "check", "--data", tmp_path / "data"],
    ):
        done = subprocess.run(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout[-20_000:])
        assert done.returncode == 0, done.stdout[-5_000:]
