"""What the build needs: Debian's programs, and files of Maven Central, checked."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).resolve().parent
LEAST_JDK = 17
STUBS_VERSION = "36.20260406"
# By its whole name: Maven would not say that it could not ask for a short one.
MAVEN_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"

NEEDED = {
    "java": "openjdk-17-jdk-headless",
    "javac": "openjdk-17-jdk-headless",
    "mvn": "maven",
    "gcc": "gcc",
    "nm": "binutils",
    "apksigner": "apksigner",
    "zipalign": "zipalign",
    "aapt": "aapt",
}
PROOF_NEEDS = {
    "enjarify": "enjarify",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
    "/usr/aarch64-linux-gnu/lib/crt1.o": "libc6-dev-arm64-cross",
}
# What Maven and pip say where there is no network, or none to what they fetch from.
_NOT_REACHED = re.compile(
    r"unknown host|unreachable|refused|timed? ?out|no route to host|connection reset|"
    r"name resolution|name or service not known|failed to establish a new connection|"
    r"status code: 5\d\d",
    re.IGNORECASE,
)


class ChainError(RuntimeError):
    """A step failed, or something that it needs is missing."""


class NotReachedError(ChainError):
    """What is to be downloaded cannot be: the registry does not answer."""


def missing(programs: dict[str, str]) -> list[str]:
    """Returns the Debian packages of the programs, or files, that are not here."""
    return sorted(
        {
            package
            for name, package in programs.items()
            if not (Path(name).exists() if name[0] == "/" else shutil.which(name))
        }
    )


def check_jdk() -> None:
    """Raises if Java is older than the build's programs need."""
    for program in ("java", "javac"):
        told = re.search(r'(?:version "|javac )(?:1\.)?(\d+)', run(program, "-version"))
        if told and int(told[1]) < LEAST_JDK:
            raise ChainError(
                f"The build needs Java {LEAST_JDK} or later. Received: {program} of "
                f"version {told[1]}, {shutil.which(program)}. On Debian: apt-get "
                f"install -y {NEEDED[program]}. Where it is installed, let PATH begin "
                "with its folder bin."
            )


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Says how long a step took."""
    start = time.monotonic()
    yield
    print(f"[{name}] {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def run(*command: object, **kwargs: object) -> str:
    """Runs a command; its output is returned, or put into the error."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise ChainError(
            f"{' '.join(words[:6])} ... failed ({done.returncode}):\n"
            f"{done.stdout[-20_000:]}"
        )
    return str(done.stdout)


def _download(*command: object) -> None:
    try:
        run(*command)
    except ChainError as err:
        if _NOT_REACHED.search(str(err)):
            raise NotReachedError(
                "The downloads of the build must be here, or be reached. Received: "
                f"{err}\nRun `chain.py fetch` where there is a network; "
                "KDLITE_ANDROID_CACHE names the folder that they are kept in."
            ) from err
        raise


def joined(*paths: object) -> str:
    """A Java class path."""
    return os.pathsep.join(str(path) for path in paths)


class Tools:
    """What is downloaded, and what is unpacked from it."""

    def __init__(self) -> None:
        named = os.environ.get("KDLITE_ANDROID_CACHE")
        self.cache = Path(named or "~/.cache/kdlite-android").expanduser()
        self.listed = [
            line.split("  ", 1)
            for line in (HERE / "checksums.txt").read_text().splitlines()
        ]

    def fetch(self) -> None:
        """Downloads what is not there, and compares all with the checksums, once."""
        if packages := missing(NEEDED):
            raise ChainError(
                "The build needs programs that are not here. Received: none of "
                f"{', '.join(packages)}. On Debian: apt-get install -y "
                f"{' '.join(packages)}"
            )
        check_jdk()
        if not self._is_verified():
            with self.locked():
                # Another process may have done it meanwhile.
                if not self._is_verified():
                    self._fetch()

    def _is_verified(self) -> bool:
        stamp = self.cache / "verified"
        wanted = (HERE / "checksums.txt").read_text()
        return stamp.is_file() and stamp.read_text() == wanted

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one process at a time change the folder; the others wait."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another that fills {self.cache}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fetch(self) -> None:
        absent = {n.split("/")[0] for _, n in self.listed if not self.path(n).exists()}
        for folder, goal in (
            ("tools", "copy"),
            ("tests", "copy-dependencies"),
            ("kotlin", "copy-dependencies"),
        ):
            if folder in absent:
                _download(
                    # -U: what was not reached before is asked for again.
                    *("mvn", "-B", "-q", "-U", "-f", HERE / "pom.xml", f"-P{folder}"),
                    f"-Dcache={self.cache / folder}",
                    f"{MAVEN_PLUGIN}:{goal}",
                )
        if "pip" in absent:
            _download(
                *(sys.executable, "-m", "pip", "download", "-q", "--no-deps"),
                *("-d", self.path("pip"), f"chaquopy-stubs-android=={STUBS_VERSION}"),
            )
        for sha256, name in self.listed:
            path = self.path(name)
            told = (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
            )
            if told != sha256:
                path.unlink(missing_ok=True)
                raise ChainError(
                    f"{name} must have the sha256 {sha256}. Received: "
                    f"{told or 'no such file'}. It was removed; run again to fetch it."
                )
        self._unpack()
        (self.cache / "verified").write_text((HERE / "checksums.txt").read_text())

    def path(self, name: str) -> Path:
        return self.cache / name

    def _unpack(self) -> None:
        for sort in ("", "-api"):
            with zipfile.ZipFile(
                self.path(f"tools/tensorflow-lite{sort}-2.16.1.aar")
            ) as z:
                z.extractall(self.path(f"unpacked/tensorflow-lite{sort}"))
        with zipfile.ZipFile(self.path("tools/apktool-lib-3.0.3.jar")) as z:
            self.aapt2.write_bytes(z.read("prebuilt/linux/aapt2"))
        self.aapt2.chmod(0o755)
        for aar in self.path("tests").glob("*.aar"):
            with zipfile.ZipFile(aar) as z:
                jar = self.path("unpacked") / f"{aar.stem}.jar"
                jar.write_bytes(z.read("classes.jar"))

    @property
    def aapt2(self) -> Path:
        return self.path("unpacked/aapt2")

    @property
    def android(self) -> Path:
        return self.path("tools/android-all-15-robolectric-13954326.jar")

    @property
    def android_least(self) -> Path:
        return self.path("tools/android-all-8.0.0_r4-robolectric-r1.jar")

    @property
    def stubs(self) -> Path:
        name = f"chaquopy_stubs_android-{STUBS_VERSION}-py3-none-any.whl"
        return self.path(f"pip/{name}")

    @property
    def r8(self) -> Path:
        return self.path("tools/r8-8.13.19.jar")

    def native(self, abi: str) -> Path:
        folder = self.path("unpacked/tensorflow-lite/jni")
        return folder / abi / "libtensorflowlite_jni.so"

    @cached_property
    def libraries(self) -> list[Path]:
        """What is in the app beside its own classes."""
        return [
            self.path("unpacked/tensorflow-lite/classes.jar"),
            self.path("unpacked/tensorflow-lite-api/classes.jar"),
            self.path("tools/tensorflow-lite-metadata-0.4.4.jar"),
            self.path("tools/flatbuffers-java-1.12.0.jar"),
            self.path("tools/kotlin-stdlib-2.2.21.jar"),
        ]

    @cached_property
    def junit(self) -> list[Path]:
        return [
            self.path("tests/junit-4.13.2.jar"),
            self.path("tests/hamcrest-core-1.3.jar"),
        ]

    @cached_property
    def robolectric(self) -> list[Path]:
        unpacked = self.path("unpacked")
        return [
            *sorted(self.path("tests").glob("*.jar")),
            *sorted(unpacked.glob("*.jar")),
        ]

    def kotlinc(
        self, sources: Sequence[Path], classpath: str, out: Path, *options: str
    ) -> None:
        compiler = joined(*sorted(self.path("kotlin").glob("*.jar")))
        said = run(
            *("java", "-Xmx1g", "-XX:TieredStopAtLevel=1", "-cp", compiler),
            "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
            *("-no-stdlib", "-no-reflect", "-jvm-target", "1.8", "-Werror"),
            # The SDK's android.jar does not have them; android-all does.
            "-Xnullability-annotations=@android.annotation:ignore",
            *("-jdk-home", java_home(), "-classpath", classpath, "-d", out),
            *options,
            *sources,
        )
        if said.strip():
            print(said, file=sys.stderr)


def java_home() -> Path:
    javac = shutil.which("javac") or "javac"
    return Path(javac).resolve().parent.parent
