"""Builds, checks and tests the app without Gradle and without the Android SDK.

    chain.py missing                Debian's packages that are not here
    chain.py fetch                  download all that is needed, once
    chain.py build OUT.apk          an installable debug APK
    chain.py test --data FOLDER     tests of core and inference; FOLDER by make_data.py
    chain.py check --data FOLDER    the whole proof

Compilers, Android's classes, the runtime and the test libraries come from Maven Central
by Maven, as listed in pom.xml, each compared with checksums.txt; they are kept in
$KDLITE_ANDROID_CACHE, by default ~/.cache/kdlite-android. The rest are Debian's:
openjdk-17-jdk-headless maven gcc binutils apksigner zipalign aapt, and for the release
APK's tests and arm64 enjarify gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apk_check
import arm64
import bionic
from from_dex import jvm_classes
from public_api import hidden_uses
from tools import (
    HERE,
    NEEDED,
    PROOF_NEEDS,
    ChainError,
    NotReachedError,
    Tools,
    java_home,
    joined,
    missing,
    run,
    step,
)

APP = HERE.parent / "app"
MAIN = APP / "src" / "main"
PICTURES = APP / "src" / "test" / "pictures"
PACKAGE = "org.kdlite.demo"
MIN_SDK, TARGET_SDK = 26, 35
ABIS = ("arm64-v8a", "armeabi-v7a", "x86_64")
VERSION_CODE, VERSION_NAME = 1, "1.0"


class Build:
    """One build of the app, in a folder of its own.

    Args:
        tools: What was downloaded.
        folder: Where to work; what is there stays only if it is up to date.
        assets: The model and what lies beside it.
    """

    def __init__(self, tools: Tools, folder: Path, assets: Path) -> None:
        self.tools = tools
        self.folder = folder
        self.assets = assets
        self.classes = folder / "classes"
        self.test_classes = folder / "test-classes"
        self.manifest = folder / "AndroidManifest.xml"
        self.shim = folder / "shim"
        folder.mkdir(parents=True, exist_ok=True)

    def sources(self, *packages: str) -> list[Path]:
        kotlin = MAIN / "kotlin" / PACKAGE.replace(".", "/")
        return [
            file for name in packages for file in sorted((kotlin / name).glob("*.kt"))
        ]

    def link(self) -> Path:
        """Compiles the resources; returns an APK without code."""
        resources, base = self.folder / "resources.zip", self.folder / "base.apk"
        generated = self.folder / "generated"
        # Gradle puts these into the manifest, from its own files.
        text = (MAIN / "AndroidManifest.xml").read_text()
        text = text.replace("<manifest ", f'<manifest package="{PACKAGE}" ', 1)
        text = text.replace(
            "<application", '<application android:extractNativeLibs="true"', 1
        )
        self.manifest.write_text(text)
        run(self.tools.aapt2, "compile", "--dir", MAIN / "res", "-o", resources)
        run(
            *(self.tools.aapt2, "link", "-I", self.tools.android),
            *("--manifest", self.manifest, "--java", generated, "-A", self.assets),
            *("--min-sdk-version", MIN_SDK, "--target-sdk-version", TARGET_SDK),
            *("--version-code", VERSION_CODE, "--version-name", VERSION_NAME),
            *("--auto-add-overlay", "-0", ".tflite", "-0", ".png"),
            *("--proguard", self.folder / "aapt.pro", "-o", base, resources),
        )
        self.classes.mkdir(exist_ok=True)
        run(
            *("javac", "--release", "8", "-Xlint:-options", "-nowarn"),
            *("-d", self.classes, *sorted(generated.rglob("*.java"))),
        )
        return base

    def compile(self, *packages: str) -> None:
        """Compiles the app, or some of its packages."""
        classpath = joined(self.classes, *self.tools.libraries, self.tools.android)
        self.classes.mkdir(exist_ok=True)
        self.tools.kotlinc(self.sources(*packages), classpath, self.classes)

    def check_least_sdk(self) -> None:
        """Compiles all but Platform.kt, which asks for the level, against Android 8."""
        sources = [
            file
            for file in self.sources("core", "inference", "ui")
            if file.name != "Platform.kt"
        ]
        classpath = joined(
            self.classes, *self.tools.libraries, self.tools.android_least
        )
        out = self.folder / "least-sdk"
        self.tools.kotlinc(sources, classpath, out)

    def compile_tests(self, *packages: str) -> None:
        kotlin = APP / "src/test/kotlin" / PACKAGE.replace(".", "/")
        files = [f for name in packages for f in sorted((kotlin / name).glob("*.kt"))]
        classpath = joined(
            self.classes,
            *self.tools.libraries,
            *self.tools.robolectric,
            self.tools.android,
        )
        self.test_classes.mkdir(exist_ok=True)
        self.tools.kotlinc(files, classpath, self.test_classes)

    def test_names(self, *packages: str) -> list[str]:
        kotlin = APP / "src/test/kotlin" / PACKAGE.replace(".", "/")
        return [
            f"{PACKAGE}.{name}.{file.stem}"
            for name in packages
            for file in sorted((kotlin / name).glob("*Test.kt"))
        ]

    def make_loadable(self) -> None:
        if not (self.shim / "libc.so").exists():
            bionic.make_loadable(self.tools.native("x86_64"), self.shim)

    def run_jvm_tests(self, data: Path) -> None:
        """Runs the tests of core and inference on a JVM, with the app's runtime."""
        classpath = joined(
            self.test_classes, self.classes, *self.tools.libraries, *self.tools.junit
        )
        said = run(
            *("java", "-Xmx1g", f"-Djava.library.path={self.shim}"),
            *(f"-Dkdlite.data={data}", "-cp", classpath, "org.junit.runner.JUnitCore"),
            *self.test_names("core", "inference"),
            env={**os.environ, "LD_LIBRARY_PATH": str(self.shim)},
        )
        print(said, file=sys.stderr)

    def run_stress(self, data: Path, minutes: float) -> None:
        """Opens, runs and closes models for so long; raises at a fault or a growth."""
        classpath = joined(self.test_classes, self.classes, *self.tools.libraries)
        words = [
            *("java", "-Xmx256m", f"-Djava.library.path={self.shim}"),
            *(f"-Dkdlite.data={data}", "-cp", classpath),
            *(f"{PACKAGE}.inference.StressKt", str(minutes)),
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.shim)}
        log = self.folder / "stress.log"
        with log.open("w") as errors:  # two lines a model, of XNNPACK
            ended = subprocess.run(words, env=environment, stderr=errors, check=False)
        if ended.returncode:
            said = [x for x in log.read_text().splitlines() if "XNNPack" not in x]
            raise ChainError(
                "Models must be opened and closed without fault or growth. Received: "
                + "\n".join(said[-20:])
            )

    def dex(self, release: bool) -> Path:
        """Turns classes into what Android runs; a release is shrunk by R8."""
        out = self.folder / ("dex-release" if release else "dex-debug")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        jar = self.folder / "app.jar"
        with zipfile.ZipFile(jar, "w") as z:
            for file in sorted(self.classes.rglob("*")):
                if file.is_file():
                    z.write(file, file.relative_to(self.classes))
        words: list[object] = ["java", "-Xmx1500m", "-cp", self.tools.r8]
        if release:
            rules = [APP / "proguard-rules.pro", self.folder / "aapt.pro"]
            words += ["com.android.tools.r8.R8", "--release"]
            words += [word for rule in rules for word in ("--pg-conf", rule)]
        else:
            words += ["com.android.tools.r8.D8", "--debug"]
        run(
            *words,
            *("--min-api", MIN_SDK, "--lib", self.tools.android, "--lib", java_home()),
            *("--output", out, jar, *self.tools.libraries),
        )
        return out

    def package(self, base: Path, dex: Path, out: Path) -> None:
        """Puts code and native libraries into an APK, aligns and signs it."""
        plain = self.folder / "plain.apk"
        shutil.copyfile(base, plain)
        with zipfile.ZipFile(plain, "a", zipfile.ZIP_DEFLATED) as z:
            files = {file.name: file for file in sorted(dex.glob("classes*.dex"))}
            for abi in ABIS:
                library = self.tools.native(abi)
                files[f"lib/{abi}/{library.name}"] = library
            for name, file in files.items():
                # Compressed, libraries too, for Android to unpack: half the size to
                # download. Without a time, so that equal sources give equal files.
                entry = zipfile.ZipInfo(name)
                entry.compress_type = zipfile.ZIP_DEFLATED
                z.writestr(entry, file.read_bytes())
        aligned = self.folder / "aligned.apk"
        run("zipalign", "-f", "-p", "4", plain, aligned)
        run(
            *(
                "apksigner",
                "sign",
                "--ks",
                self._debug_key(),
                "--ks-pass",
                "pass:android",
            ),
            *("--min-sdk-version", MIN_SDK, "--out", out, aligned),
        )

    def _debug_key(self) -> Path:
        """Android's usual debug key, made once: updates must have the same one."""
        store = self.tools.path("debug.keystore")
        with self.tools.locked():
            if not store.exists():
                made = self.folder / "debug.keystore"
                run(
                    *("keytool", "-genkeypair", "-keystore", made),
                    *("-storetype", "PKCS12", "-storepass", "android"),
                    *("-alias", "androiddebugkey", "-keyalg", "RSA"),
                    *("-keysize", "2048", "-validity", "10000"),
                    *("-dname", "CN=Android Debug,O=Android,C=US"),
                )
                shutil.copyfile(made, made := store.with_suffix(".new"))
                made.replace(store)
        return store

    def run_ui_tests(
        self,
        data: Path,
        shots: Path,
        apk: Path | None = None,
        record: bool = False,
        only: Sequence[str] = (),
    ) -> None:
        """Runs the screens in Robolectric, with real pixels and the real runtime.

        Args:
            data: See make_data.py.
            shots: Where screenshots go.
            apk: Run what is in this APK, its dex turned back to classes.
            record: Whether the screenshots are new pictures, not to be compared.
            only: Classes of tests to run, by default all.
        """
        dependencies = self.folder / "robolectric"
        dependencies.mkdir(exist_ok=True)
        name = "android-all-instrumented-15-robolectric-13954326-i7.jar"
        link = dependencies / name
        if not link.exists():
            link.symlink_to(self.tools.path(f"tools/{name}"))
        config = self.folder / "robolectric-config"
        properties = config / "com/android/tools/test_config.properties"
        properties.parent.mkdir(parents=True, exist_ok=True)
        assets = self.assets if apk is None else self._unpacked(apk)
        properties.write_text(
            f"android_merged_manifest={self.manifest}\n"
            f"android_resource_apk={apk or self.folder / 'base.apk'}\n"
            f"android_merged_assets={assets}\n"
            f"android_custom_package={PACKAGE}\n"
        )
        shots.mkdir(parents=True, exist_ok=True)
        code: list[Path] = [self.classes, *self.tools.libraries]
        options: list[str] = []
        if apk is not None:
            # Kotlin's library is shrunk to what the app uses; the tests use more.
            *_, kotlin = self.tools.libraries
            code = [kotlin, jvm_classes(apk, self.folder / "from-dex.jar")]
            options = [
                "-XX:+UnlockDiagnosticVMOptions",
                "-XX:-BytecodeVerificationRemote",
            ]
        classpath = joined(
            config,
            self.test_classes,
            *code,
            *self.tools.robolectric,
            self.tools.android,
        )
        said = run(
            *("java", "-Xmx2g", "-XX:TieredStopAtLevel=1", *options),
            f"-Djava.library.path={self.shim}",
            *(f"-Dkdlite.data={data}", f"-Dkdlite.shots={shots}"),
            f"-Dkdlite.pictures={PICTURES}",
            *(["-Dkdlite.record=1"] if record else []),
            *("-Drobolectric.enabledSdks=35", "-Drobolectric.offline=true"),
            f"-Drobolectric.dependency.dir={dependencies}",
            "--add-opens=java.base/java.io=ALL-UNNAMED",
            *("-cp", classpath, "org.junit.runner.JUnitCore"),
            *(only or self.test_names("ui")),
            env={**os.environ, "LD_LIBRARY_PATH": str(self.shim)},
        )
        print(said[-3000:], file=sys.stderr)

    def _unpacked(self, apk: Path) -> Path:
        """The assets of an APK; its native library must be the one that tests load."""
        folder = self.folder / "from-apk"
        with zipfile.ZipFile(apk) as z:
            names = [name for name in z.namelist() if name.startswith("assets/")]
            z.extractall(folder, names)
            library = z.read("lib/x86_64/libtensorflowlite_jni.so")
        if library != (self.shim / "libtensorflowlite_jni.so").read_bytes():
            raise ChainError("The APK must have the native library that tests load.")
        return folder / "assets"


def build(out: Path, folder: Path, assets: Path, release: bool = False) -> None:
    """Makes an APK: whole, or none."""
    tools = Tools()
    with step("fetch"):
        tools.fetch()
    made = Build(tools, folder, assets)
    with step("resources"):
        base = made.link()
    with step("kotlin"):
        made.compile("core", "inference", "ui")
    with step("dex"):
        dex = made.dex(release)
    with step("package"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as beside:
            whole = Path(beside, "app.apk")
            made.package(base, dex, whole)
            os.replace(whole, out)


def test(data: Path, folder: Path) -> None:
    """Runs the tests of the app's core and inference."""
    tools = Tools()
    with step("fetch"):
        tools.fetch()
    made = Build(tools, folder, MAIN / "assets")
    with step("kotlin"):
        made.compile("core", "inference")
    with step("kotlin, tests"):
        made.compile_tests("core", "inference")
    made.make_loadable()
    with step("tests"):
        made.run_jvm_tests(data)


def stress(data: Path, folder: Path, minutes: float) -> None:
    """Opens, runs and closes models in several threads."""
    tools = Tools()
    with step("fetch"):
        tools.fetch()
    made = Build(tools, folder, MAIN / "assets")
    with step("kotlin"):
        made.compile("core", "inference")
        made.compile_tests("core", "inference")
    made.make_loadable()
    made.run_stress(data, minutes)


def check(data: Path, folder: Path, shots: Path, record: bool = False) -> None:
    """The proof: everything that is said of the app is looked at.

    Args:
        data: See make_data.py.
        folder: Where to work.
        shots: Where screenshots go.
        record: Whether these become the pictures to compare with.
    """
    if packages := missing(PROOF_NEEDS):
        raise ChainError(
            "The proof needs programs that are not here. Received: none of "
            f"{', '.join(packages)}. On Debian: apt-get install -y "
            f"{' '.join(packages)}"
        )
    tools = Tools()
    with step("fetch"):
        tools.fetch()
    made = Build(tools, folder, MAIN / "assets")
    with step("resources"):
        base = made.link()
    with step("kotlin"):
        made.compile("core", "inference", "ui")
    apk = folder / "release.apk"

    def make_release() -> None:
        with step("R8"):
            dex = made.dex(release=True)
        with step("package"):
            made.package(base, dex, apk)
        with step("APK"):
            apk_check.check(apk)
        with step("public API"):
            if hidden := hidden_uses(made.classes, tools.stubs):
                raise ChainError(
                    f"The app must use public API alone. Received: {hidden}"
                )
        with step("least SDK"):
            made.check_least_sdk()

    # Neither uses more than one processor for long.
    with ThreadPoolExecutor(1) as beside:
        release = beside.submit(make_release)
        with step("kotlin, tests"):
            made.compile_tests("core", "inference", "ui")
        made.make_loadable()
        with step("JVM tests"):
            made.run_jvm_tests(data)
        with step("arm64"):
            arm64.check(tools, data, folder / "arm64")
        with step("screens"):
            made.run_ui_tests(data, shots, record=record)
        release.result()
    if record:
        store(shots)
    with step("screens, from the release APK"):
        made.run_ui_tests(data, folder / "shots", apk)


def store(shots: Path) -> None:
    """Makes screenshots the pictures to compare with; 256 colours are enough to."""
    from PIL import Image

    for old in PICTURES.glob("*.png"):
        old.unlink()
    for file in sorted(shots.glob("*.png")):
        with Image.open(file) as image:
            few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(PICTURES / file.name, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 done, 1 a step failed, 75 a registry was not reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("missing", help="print Debian's packages that are not here")
    commands.add_parser("fetch", help="download all that is needed, once")
    make = commands.add_parser("build", help="make an installable APK")
    make.add_argument("out", type=Path)
    make.add_argument("--release", action="store_true", help="shrunk by R8")
    for name, words in (
        ("test", "run the tests of core and inference"),
        ("stress", "open, run and close models in several threads, for long"),
        ("check", "the whole proof"),
    ):
        prove = commands.add_parser(name, help=words)
        prove.add_argument("--data", type=Path, required=True, help="see make_data.py")
        if name == "stress":
            prove.add_argument("--minutes", type=float, default=10.0)
    prove.add_argument("--shots", type=Path, help="folder for the screenshots")
    prove.add_argument(
        "--record", action="store_true", help="store them as those to compare with"
    )
    args = parser.parse_args(argv)
    try:
        if args.command == "missing":
            for package in missing({**NEEDED, **PROOF_NEEDS}):
                print(package)
            return 0
        if args.command == "fetch":
            Tools().fetch()
            return 0
        with tempfile.TemporaryDirectory(prefix="kdlite-android-") as name:
            if args.command == "build":
                build(args.out, Path(name), MAIN / "assets", args.release)
            elif args.command == "test":
                test(args.data.resolve(), Path(name))
            elif args.command == "stress":
                stress(args.data.resolve(), Path(name), args.minutes)
            else:
                shots = args.shots or Path(name, "shots")
                check(args.data.resolve(), Path(name), shots.resolve(), args.record)
    except ChainError as err:
        print(err, file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(err, NotReachedError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
