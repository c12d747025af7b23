"""The sdist and the wheel, as someone gets them who has no clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kdlite import datasets

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 6_000_000

pytestmark = pytest.mark.slow  # the wheel's requirements are half a gigabyte


def run(*command: object, folder: Path, seconds: float = 1800) -> str:
    """A command that knows nothing of this clone."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The folder with both files; the wheel is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, folder=out)
    return out


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory) -> Path:
    """The programs of an environment that had nothing, and now the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment, folder=environment)
    (wheel,) = dist.glob("*.whl")
    constraints = ROOT / "constraints.txt"
    pip = [environment / "bin" / "pip", "--disable-pip-version-check", "install", "-q"]
    run(*pip, "-c", constraints, wheel, folder=environment)
    return environment / "bin"


def test_both_are_whole_and_small(dist: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "kdlite"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.split("\n") if name}
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert max(wheel.stat().st_size, sdist.stat().st_size) < MOST_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    own = {name for name in names if ".dist-info/" not in name}
    assert own == tracked >= {"kdlite/py.typed", "kdlite/demo/teacher_float16.npz"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked < inside
    assert not any(name.startswith(("tests", "notebooks", "out")) for name in inside)


def test_the_command_is_there_and_quick_to_answer(installed: Path, tmp_path) -> None:
    assert "kdlite demo" in run(installed / "kdlite", "--help", folder=tmp_path)
    told = run(installed / "kdlite", "--version", folder=tmp_path)
    assert "not installed" not in told
    assert "complete" in run(installed / "kdlite", "completion", "zsh", folder=tmp_path)


def test_an_installed_wheel_runs_the_quick_demo(installed: Path, tmp_path) -> None:
    if datasets.find_fashion_mnist() is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    command = [installed / "kdlite", "demo", "--quick", "--out", "out", "--json"]
    report = json.loads(run(*command, folder=tmp_path))
    assert report["tflite"]["int8"]["top1"] > 0.7
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"student_int8.tflite", "report.html", "report.json"} <= written
