"""The Android app as it lies in the tree, and the chain that proves it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

import kdlite
from kdlite import android, datasets

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "android_demo"
MAIN = DEMO / "app/src/main"


def strings(language: str) -> dict[str, str]:
    root = ET.parse(MAIN / f"res/values{language}/strings.xml").getroot()
    return {
        node.attrib["name"]: "".join(node.itertext())
        for node in root
        if node.tag == "string"
    }


def plurals(language: str) -> dict[str, dict[str, str]]:
    root = ET.parse(MAIN / f"res/values{language}/strings.xml").getroot()
    return {
        node.attrib["name"]: {item.attrib["quantity"]: item.text or "" for item in node}
        for node in root.iter("plurals")
    }


def holes(text: str) -> list[str]:
    return sorted(re.findall(r"%\d\$[.\d]*[sdf]|%%", text))


@pytest.mark.parametrize("language", ["-de", "-ar"])
def test_every_language_says_everything(language: str) -> None:
    english, other = strings(""), strings(language)
    assert other.keys() == english.keys()
    for name, text in english.items():
        assert holes(other[name]) == holes(text), name
        assert other[name].strip()


# By CLDR, of whole numbers.
ARABIC = {"zero", "one", "two", "few", "many", "other"}


@pytest.mark.parametrize(
    ("language", "forms"),
    [("", {"one", "other"}), ("-de", {"one", "other"}), ("-ar", ARABIC)],
)
def test_every_language_counts_in_its_forms(language: str, forms: set[str]) -> None:
    english, other = plurals(""), plurals(language)
    assert other.keys() == english.keys()
    for name, texts in other.items():
        assert texts.keys() == forms, name
        wanted = holes(english[name]["other"])
        assert holes(texts["other"]) == wanted, name
        for text in texts.values():
            assert text.strip()
            # "One run" needs no number.
            assert set(holes(text)) <= set(wanted), name


@pytest.mark.parametrize("language", ["", "-de", "-ar"])
def test_nouns_after_a_number_agree_with_it(language: str) -> None:
    # Those of sizes and units do not: 28 × 28 pixels, 256 MB.
    counted = re.compile(r"(?<!× )%\d\$d (?!×|MB|ميغا|von)[^\W\d]{3,}")
    texts = strings(language).items()
    assert not [name for name, text in texts if counted.search(text)]


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


def test_the_bundled_model_is_one_that_kdlite_exports() -> None:
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


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Could not transfer artifact a:b:jar:1: transfer failed: Unknown host x", 75),
        ("Connect to x:443 failed: Connection refused", 75),
        ("Could not find artifact a:b:jar:1 in central", 1),
    ],
)
def test_a_registry_that_is_not_reached_is_told_from_a_failure(
    ci,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    said: str,
    code: int,
) -> None:
    maven = tmp_path / "bin/mvn"
    maven.parent.mkdir()
    maven.write_text(f"#!/bin/sh\necho '[ERROR] {said}'\nexit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{maven.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KDLITE_ANDROID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ci("tools"), "missing", lambda programs: [])
    assert ci("chain").main(["fetch"]) == code
    told = capsys.readouterr().err
    assert said in told
    assert ("KDLITE_ANDROID_CACHE names the folder" in told) == (code == 75)


@pytest.mark.parametrize("program", ["java", "javac"])
def test_an_old_java_is_found_before_the_build(
    ci,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    program: str,
) -> None:
    said = {"java": 'openjdk version "17.0.1" 2021', "javac": "javac 17.0.1"}
    said[program] = {"java": 'java version "1.8.0_392"', "javac": "javac 11.0.2"}[
        program
    ]
    for name, words in said.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{words}' >&2\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(ci("tools"), "missing", lambda programs: [])
    assert ci("chain").main(["fetch"]) == 1
    told = capsys.readouterr().err
    number = {"java": 8, "javac": 11}[program]
    assert "The build needs Java 17 or later. Received: " in told
    assert f"{program} of version {number}, {tmp_path / program}" in told


def test_one_process_at_a_time_fills_the_cache(
    ci, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = ci("tools")
    monkeypatch.setenv("KDLITE_ANDROID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tools, "missing", lambda programs: [])
    monkeypatch.setattr(tools, "check_jdk", lambda: None)
    inside, most, calls = [], [], []

    def fetch(its) -> None:
        inside.append(its)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(its)
        calls.append(its)
        (its.cache / "verified").write_text((tools.HERE / "checksums.txt").read_text())

    monkeypatch.setattr(tools.Tools, "_fetch", fetch)
    threads = [Thread(target=tools.Tools().fetch) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The others find it done.
    assert max(most) == len(calls) == 1


def test_every_text_is_used() -> None:
    sources = [*(MAIN / "kotlin").rglob("*.kt"), *MAIN.rglob("*.xml")]
    text = "\n".join(file.read_text() for file in sources)
    for name in strings(""):
        assert re.search(rf"R\.string\.{name}\b|@string/{name}\b", text), name
    for name in plurals(""):
        assert f"R.plurals.{name}" in text, name


def run_ci(name: str, *words: object) -> int:
    """Runs a script of the app's; what it says is pytest's to keep or to show."""
    script = str(DEMO / "ci" / name)
    return subprocess.run([sys.executable, script, *map(str, words)]).returncode


def test_the_app_is_proven(ci, tmp_path: Path) -> None:
    """All of android_demo/ci: build, checks, tests on the JVM, under qemu, screens."""
    required = os.environ.get("KDLITE_ANDROID_REQUIRED")
    tools = ci("tools")
    packages = tools.missing({**tools.NEEDED, **tools.PROOF_NEEDS})
    if packages and not required:
        pytest.skip(f"the Android app needs Debian's {' '.join(packages)}")
    if datasets.find_fashion_mnist() is None and not required:
        pytest.skip("Fashion-MNIST is not here")
    fetched = run_ci("chain.py", "fetch")
    if fetched == os.EX_TEMPFAIL and not required:
        pytest.skip("Maven Central, which the Android build is from, is not reached")
    assert fetched == 0
    assert run_ci("make_data.py", tmp_path / "data") == 0
    assert run_ci("chain.py", "check", "--data", tmp_path / "data") == 0
