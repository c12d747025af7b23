"""A `.tflite` as a network, a disk or a stranger may leave it.

`mutated` changes a file by a seed: bytes, lengths, offsets, numbers that tables hold,
whole fields of its schema, and the zip archive at its end. Some of the results are
still files; what is asked of all is that reading and running them is an answer or a
clean error, by `fuzz.py`, of which this is a part.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Random = np.random.Generator
# What overflows, is negative, or is just outside.
_ODD_NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 4095, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4, 2**30, 2**24),
)


def flip_bytes(blob: bytes, rng: Random) -> bytes:
    """Gives a few bytes other values."""
    changed = bytearray(blob)
    for place in rng.integers(len(changed), size=2 ** rng.integers(6)):
        changed[place] = rng.integers(256)
    return bytes(changed)


def flip_bit(blob: bytes, rng: Random) -> bytes:
    """Turns one bit around, most often in the tables at the front or the end."""
    changed = bytearray(blob)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def truncate(blob: bytes, rng: Random) -> bytes:
    """Cuts the file short."""
    return blob[: rng.integers(len(blob))]


def cut_out(blob: bytes, rng: Random) -> bytes:
    """Takes a piece away, so that all that follows is elsewhere."""
    start = int(rng.integers(len(blob)))
    return blob[:start] + blob[start + int(rng.integers(1, 64)) :]


def repeat_piece(blob: bytes, rng: Random) -> bytes:
    """Writes a piece of the file over another."""
    length = int(rng.integers(4, 64))
    source, target = (int(place) for place in rng.integers(len(blob), size=2))
    piece = blob[source : source + length]
    return blob[:target] + piece + blob[target + len(piece) :]


def edit_number(blob: bytes, rng: Random) -> bytes:
    """Writes an odd number over an aligned one."""
    changed = bytearray(blob)
    number = _ODD_NUMBERS[rng.integers(len(_ODD_NUMBERS))]
    struct.pack_into("<I", changed, 4 * int(rng.integers(len(blob) // 4)), number)
    return bytes(changed)


def edit_offset(blob: bytes, rng: Random) -> bytes:
    """Lets what may be an offset lead elsewhere."""
    changed = bytearray(blob)
    words = np.frombuffer(blob[: len(blob) // 4 * 4], "<i4")
    places = np.flatnonzero((np.abs(words) < len(blob)) & (words != 0))
    place = 4 * int(rng.choice(places))
    (offset,) = struct.unpack_from("<i", changed, place)
    moved = offset + int(rng.integers(-64, 65))
    if rng.random() < 0.3:
        moved = int(rng.integers(-len(blob), 2 * len(blob)))
    struct.pack_into("<i", changed, place, moved)
    return bytes(changed)


def edit_field(blob: bytes, rng: Random) -> bytes:
    """Gives a field of the schema another value, and writes a whole file again.

    Nothing is wrong with the bytes: what they say makes no sense.
    """
    model = schema.ModelT.InitFromPackedBuf(blob, 0)
    for _ in range(int(rng.integers(1, 4))):
        fields = list(_fields(model))
        owner, name = fields[rng.integers(len(fields))]
        setattr(owner, name, _other(getattr(owner, name), rng))
    builder = flatbuffers.Builder(1024)
    try:
        builder.Finish(model.Pack(builder), b"TFL3")
    except Exception:  # a number that its field cannot hold
        return edit_number(blob, rng)
    return bytes(builder.Output())


def splice_archive(blob: bytes, rng: Random) -> bytes:
    """Puts another archive at the end, broken or hostile."""
    end = io.BytesIO()
    names = ["labels.txt", "kdlite.json", "../out.txt", "/etc/out", "a/b", "", "C:\\x"]
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(end, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        warnings.simplefilter("ignore")  # a name may be there twice
        for _ in range(int(rng.integers(1, 4))):
            name = names[rng.integers(len(names))]
            size = int(rng.choice([0, 10, 1000, 100_000, 20_000_000]))
            content = [bytes(size), rng.bytes(min(size, 1000)), b'{"golden": [1]}']
            archive.writestr(
                zipfile.ZipInfo(name or "x"), content[rng.integers(len(content))]
            )
    tail = end.getvalue()
    for _ in range(int(rng.integers(3))):
        if len(tail) > 8:
            tail = ARCHIVE[rng.integers(len(ARCHIVE))](tail, rng)
    start = blob.find(b"PK\x03\x04")
    kept = blob[:start] if start > 0 and rng.random() < 0.7 else blob
    return kept + tail


def edit_archive(blob: bytes, rng: Random) -> bytes:
    """Damages the archive that is there."""
    start = blob.find(b"PK\x03\x04")
    if start < 0:
        return splice_archive(blob, rng)
    return blob[:start] + ARCHIVE[rng.integers(len(ARCHIVE))](blob[start:], rng)


# What damages any bytes, and so an archive too.
ARCHIVE: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip_bytes,
    flip_bit,
    truncate,
    cut_out,
    repeat_piece,
    edit_number,
)
MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    *ARCHIVE,
    edit_offset,
    edit_field,
    edit_field,
    edit_field,
    splice_archive,
    edit_archive,
)


def mutated(blob: bytes, seed: int) -> tuple[str, bytes]:
    """Changes a file.

    Args:
        blob: The file.
        seed: Which of its mutations.

    Returns:
        The name of what was done, and the bytes.
    """
    rng = np.random.default_rng(seed)
    mutate = MUTATIONS[seed % len(MUTATIONS)]
    return mutate.__name__, mutate(blob, rng)


def _fields(table: Any, depth: int = 0) -> Any:
    """All fields of a table of the schema and of those below it."""
    for name, value in vars(table).items():
        yield table, name
        below = value if isinstance(value, list) else [value]
        for item in below:
            if hasattr(item, "Pack"):
                yield from _fields(item, depth + 1)


def _other(value: Any, rng: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, np.integer)):
        near = int(value) + int(rng.integers(-3, 4))
        return near if rng.random() < 0.6 else _signed(rng)
    if isinstance(value, float):
        odd = [0.0, -1.0, float("nan"), float("inf"), 1e-45, 1e38, -value]
        return odd[rng.integers(len(odd))]
    if isinstance(value, np.ndarray) and value.size:
        changed = value.copy()
        if rng.random() < 0.3:
            return changed[: rng.integers(len(changed))]
        place = rng.integers(len(changed))
        changed[place] = np.asarray(_signed(rng)).astype(changed.dtype)
        return changed
    if isinstance(value, list) and value:
        changed = list(value)
        place = int(rng.integers(len(changed)))
        kind = rng.integers(4)
        if kind == 0:
            del changed[place]
        elif kind == 1:
            changed.append(changed[place])
        elif isinstance(changed[place], (int, float, np.integer)):
            changed[place] = _other(changed[place], rng)
        else:
            changed.reverse()
        return changed
    return None


def _signed(rng: Random) -> int:
    number = _ODD_NUMBERS[rng.integers(len(_ODD_NUMBERS))]
    return number - 2**32 if number >= 2**31 else number
