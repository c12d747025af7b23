"""The files that travel with a ``.tflite``: a zip archive after the model.

A model runtime reads from the front and never sees it; a zip reader starts at the end.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

# What zipfile raises for broken archives, beside ValueError: its own, those of `struct`
# and `zlib` below it, and those for encryption and versions that it cannot read.
_BROKEN = (
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
)
# What is taken from a file that may be hostile.
_MAX_BYTES = 64 * 2**20
_MAX_FILES = 1_000


def attach(model: bytes, files: Mapping[str, bytes]) -> bytes:
    """The model with the files behind it. Equal arguments give equal bytes.

    Raises:
        ValueError: If they are more than `unpack` takes from a file.
    """
    if not files:
        return model
    total = sum(map(len, files.values()))
    if len(files) > _MAX_FILES or total > _MAX_BYTES:
        largest = max(files, key=lambda name: len(files[name]))
        raise ValueError(
            f"What travels with a model must be at most {_MAX_BYTES:,} bytes in "
            f"{_MAX_FILES:,} files. Received: {total:,} in {len(files):,}, the largest "
            f"{largest}. Fix: give fewer labels, or a smaller `provenance`."
        )
    whole = io.BytesIO(model)
    # The archive counts from the start of the model, as the Java reader wants it; other
    # readers find its start themselves.
    whole.seek(len(model))
    # Not compressed: MediaPipe takes files as they lie.
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as writer:
        for name, content in files.items():
            # Neither the time nor the system shows in the bytes.
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            writer.writestr(entry, content)
    return whole.getvalue()


def present(data: bytes) -> bool:
    """Whether there is an archive at the end."""
    return zipfile.is_zipfile(io.BytesIO(data))


def model_part(data: bytes) -> bytes:
    """What is before the archive: all of it where there is none.

    Raises:
        ValueError: If the archive is broken.
    """
    if not present(data):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            starts = [entry.header_offset for entry in archive.infolist()]
    except _BROKEN as err:
        raise ValueError(f"its archive is broken ({err})") from err
    return data[: min(starts, default=len(data))]


def unpack(data: bytes) -> dict[str, bytes]:
    """The files at the end of ``data``, in memory; none where there is no archive.

    Raises:
        ValueError: If the archive is broken, unpacks to too much, or has a name that
            leads out of a folder or is there twice.
    """
    # Only a zip64 archive has more than 65,535 entries to wade through.
    if b"PK\x06\x07" in data[-(2**16 + 64) :]:
        raise ValueError("its archive is a zip64, larger than labels can need")
    files: dict[str, bytes] = {}
    try:
        if not present(data):
            return files
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > _MAX_FILES or total > _MAX_BYTES:
                raise ValueError(
                    f"its archive unpacks to {total:,} bytes in {len(entries):,} "
                    f"files, over {_MAX_BYTES:,} or {_MAX_FILES:,}"
                )
            for entry in entries:
                name = entry.orig_filename  # not yet cut at a zero byte
                if not _is_plain(name) or name in files:
                    raise ValueError(
                        f"its archive has a file named {name!r}, which leads elsewhere "
                        "or is there twice"
                    )
                # Of other compressions zipfile unpacks more than it is asked for.
                if entry.compress_type not in (
                    zipfile.ZIP_STORED,
                    zipfile.ZIP_DEFLATED,
                ):
                    raise ValueError(f"its archive packs {name!r} in an unusual way")
                with archive.open(entry) as file:
                    files[name] = file.read(entry.file_size)
    except _BROKEN as err:
        raise ValueError(f"its archive is broken ({err})") from err
    return files


def _is_plain(name: str) -> bool:
    """Whether a name stays in the folder that it is unpacked into, on any system."""
    return (
        name.isprintable()
        and not {"", ".", ".."} & set(name.split("/"))
        and not {"\\", ":"} & set(name)
    )
