"""A file that is written whole or not at all, and never over another unasked.

A link is followed: the file that it leads to is written, and the link stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path

_FULL = {
    errno.ENOSPC: "a full disk",
    errno.EDQUOT: "a full quota",
    errno.EFBIG: "a file larger than one may be here",
}

_KINDS = {
    stat.S_ISREG: "a file",
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
}


def check_target(path: Path, overwrite: bool, example: str = "model.tflite") -> None:
    """Raises if a file cannot be put there, before the work that makes it.

    Args:
        path: Where the file is to be.
        overwrite: Whether one that is there may be replaced.
        example: A name for such a file.

    Raises:
        ValueError: If it is a folder, or anything else that is no regular file, or a
            longer name than the file system takes.
        FileExistsError: If there is a file and `overwrite` is False.
        FileNotFoundError: If the folder does not exist.
        PermissionError: If the folder cannot be written.
    """
    place = _followed(path)
    if _kind(path) == "a folder":
        raise ValueError(
            f"`path` must be a file. Received: {str(path)!r}, a folder. Give it a name "
            f"such as {example!r}."
        )
    _check_free(path, overwrite)
    if not place.parent.is_dir():
        raise FileNotFoundError(
            f"The folder of `path` must exist. Received: {str(path)!r}. Make "
            f"{str(place.parent)!r} first."
        )
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"The folder of `path` must be writable. Received: {str(path)!r}. Choose "
            "another, or change its permissions."
        )


def put_in_place(
    path: Path, blob: bytes, overwrite: bool, beside: Mapping[Path, bytes] | None = None
) -> None:
    """Writes a file whole, and what belongs to it, or leaves everything as it was.

    Args:
        path: Where the file is to be.
        blob: What is to be in it.
        overwrite: Whether one that is there may be replaced.
        beside: Files that come and go with it, in its folder, which are replaced.

    Raises:
        OSError: If one cannot be written.
        FileExistsError: If there is a file by now and `overwrite` is False.
        ValueError: If there is by now what is no regular file.
    """
    # The file last: where it is, all that belongs to it is.
    contents = {_followed(each): told for each, told in (beside or {}).items()}
    contents[_followed(path)] = blob
    # Not after its file: with that name and more it may be too long.
    written = {place: place.parent / f".{uuid.uuid4().hex}.tmp" for place in contents}
    try:
        for place, temporary in written.items():
            _write(place, temporary, contents[place])
        # It may have come into being since the start.
        for each in beside or {}:
            _check_free(each, overwrite=True)
        _check_free(path, overwrite)
        for place, temporary in written.items():
            os.replace(temporary, place)
    finally:
        for temporary in written.values():
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def lack_of_room(err: BaseException) -> str:
    """Says what is full, if that is what an error is about.

    Args:
        err: Of any library: h5py and TensorFlow have the system's number or words in
            their text alone.

    Returns:
        A few words; empty for any other error.

    Example:
        >>> lack_of_room(OSError(errno.EFBIG, "File too large"))
        'a file larger than one may be here'
    """
    text = str(err)
    for number, what in _FULL.items():
        words = f"errno = {number},", f"[Errno {number}]", f"; {os.strerror(number)}"
        if getattr(err, "errno", None) == number or any(map(text.__contains__, words)):
            return what
    return ""


def _write(place: Path, temporary: Path, content: bytes) -> None:
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise OSError(
            f"`path` must be possible to write. Received: {str(place)!r}, "
            f"{len(content):,} bytes ({err.strerror}). Make room, or choose another "
            "folder."
        ) from err


def _followed(path: Path) -> Path:
    """Where a link leads to, and what is no link is."""
    return Path(os.path.realpath(path))


def _check_free(path: Path, overwrite: bool) -> None:
    kind = _kind(path)
    if kind not in ("", "a file"):
        raise ValueError(
            "`path` must be a new file, or a regular one. Received: "
            f"{str(path)!r}, {kind}. Fix: give another name."
        )
    if kind and not overwrite:
        raise FileExistsError(
            f"`path` must not exist. Received: {str(path)!r}. Choose another name, or "
            "pass overwrite=True to replace it."
        )


def _kind(path: Path) -> str:
    """What there is, links followed; empty for nothing."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as err:
        if err.errno == errno.ELOOP:
            return "a link that leads back to itself"
        if err.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(
            "`path` must have names that the file system takes. Received: a name of "
            f"{max(len(os.fsencode(part)) for part in path.parts)} bytes, "
            f"{str(path)[:40]!r}... Fix: give a shorter one, of 255 bytes at most.",
        ) from err
    return next((what for test, what in _KINDS.items() if test(mode)), "a device")
