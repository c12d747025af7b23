"""Folders that work is done in, gone after it, even where a process was killed.

What holds a lock on a file in its folder lives. Where a process was killed, the system
lets go of the lock, and the next that needs a folder removes what was left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: there folders of the killed stay
    fcntl = None  # type: ignore[assignment]

_PREFIX = "kdlite-"
_LOCK = ".lock"


@contextlib.contextmanager
def working_folder(purpose: str) -> Iterator[Path]:
    """Gives an empty folder among the temporary ones, and removes it afterwards.

    Folders of kdlite whose process was killed are removed before: of this user alone,
    no links, and none that a process still holds.

    Args:
        purpose: A word for its name.

    Example:
        >>> with working_folder("example") as folder:
        ...     _ = (folder / "part").write_text("done")
        >>> folder.exists()
        False
    """
    _remove_left_behind(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
    lock = None
    try:
        lock = _locked(folder)
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Makes the lock of a new folder; None where there is no such thing.

    It gets its name when it is held: a folder with a lock that nobody holds is dead.
    """
    if fcntl is None:
        return None
    unnamed = folder / f"{_LOCK}.new"
    lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(unnamed, folder / _LOCK)
    except OSError:  # a file system without locks
        os.close(lock)
        return None
    return lock


def _remove_left_behind(among: Path) -> None:
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(among) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                # Another may remove it at the same time, or not be allowed to.
                with contextlib.suppress(OSError):
                    _remove_if_dead(Path(entry.path))


def _remove_if_dead(folder: Path) -> None:
    if folder.lstat().st_uid != os.getuid():
        return
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(lock)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Removes a folder; the lock last, by which the next finds what is left of it."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if entry.name == _LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
        shutil.rmtree(folder, ignore_errors=True)
