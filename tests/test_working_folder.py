from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kdlite.working_folder import working_folder

HOLDS = """
import sys, time
from kdlite.working_folder import working_folder
with working_folder("export") as folder:
    (folder / "saved_model").mkdir()
    (folder / "saved_model" / "weights").write_bytes(bytes(100))
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def holding() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_folder_is_gone_after_the_work_and_after_an_error(temporary: Path) -> None:
    with working_folder("run") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "x").write_text("x")
        assert folder.parent == temporary and folder.name.startswith("kdlite-run-")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(temporary.iterdir())
    with pytest.raises(KeyError), working_folder("run"):
        raise KeyError
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(temporary: Path) -> None:
    dead, left = holding()
    living, held = holding()
    end(dead)
    assert (left / "saved_model" / "weights").exists()
    with working_folder("export"):
        assert not left.exists()
        assert (held / "saved_model" / "weights").exists()
    end(living)
    with working_folder("run"):
        assert not held.exists()
    assert not list(temporary.iterdir())


def test_nothing_else_is_touched(temporary: Path, tmp_path_factory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / ".lock").touch()
    (outside / "kept").touch()
    # A link to a folder, a lock that is one, a folder without, another's name, a file.
    (temporary / "kdlite-export-link").symlink_to(outside)
    for name in ("kdlite-export-a", "kdlite-export-b", "other-1", "kdlite-export-c"):
        (temporary / name).mkdir()
    (temporary / "kdlite-export-a" / ".lock").symlink_to(outside / ".lock")
    (temporary / "other-1" / ".lock").touch()
    os.mkfifo(temporary / "kdlite-export-c" / ".lock")
    (temporary / "kdlite-export-d").touch()
    # What is dead goes, and links in it, but not what they lead to.
    dead = temporary / "kdlite-export-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    (dead / "link").symlink_to(outside)
    before = sorted(path.name for path in temporary.iterdir() if path != dead)
    with working_folder("export"):
        pass
    assert sorted(path.name for path in temporary.iterdir()) == before
    assert (outside / "kept").exists() and (outside / ".lock").exists()


def test_anothers_folder_stays(temporary: Path, monkeypatch) -> None:
    dead = temporary / "kdlite-export-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    monkeypatch.setattr(os, "getuid", lambda: dead.stat().st_uid + 1)
    with working_folder("export"):
        assert dead.exists()
    monkeypatch.undo()


def test_without_locks_folders_are_as_before(temporary: Path, monkeypatch) -> None:
    monkeypatch.setattr("kdlite.working_folder.fcntl", None)
    with working_folder("run") as folder:
        assert not list(folder.iterdir())
    assert not folder.exists()
