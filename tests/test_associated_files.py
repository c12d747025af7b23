from __future__ import annotations

import io
import struct
import zipfile

import pytest

from kdlite.lite import associated_files
from kdlite.lite.associated_files import attach, present, unpack

MODEL = b"a model, of any length" * 9
FILES = {"labels.txt": b"a\nb", "notes/readme.md": b"\0\xff" * 50}


def behind(
    name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED, model: bytes = MODEL
) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as writer:
        # Straight into the field: the constructor would mend the name.
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        entry.compress_type = method
        writer.writestr(entry, content)
    return model + archive.getvalue()


def test_what_was_attached_is_unpacked() -> None:
    whole = attach(MODEL, FILES)
    assert whole.startswith(MODEL)
    assert unpack(whole) == FILES
    assert list(unpack(whole)) == list(FILES)
    assert present(whole)
    assert attach(MODEL, FILES) == whole


def test_files_lie_uncompressed_at_places_counted_from_the_models_start() -> None:
    whole = attach(MODEL, FILES)
    for name, content in FILES.items():
        assert name.encode() + content in whole
    end = whole.rindex(b"PK\x05\x06")
    (central,) = struct.unpack("<I", whole[end + 16 : end + 20])
    assert whole[central : central + 4] == b"PK\x01\x02"
    (first,) = struct.unpack("<I", whole[central + 42 : central + 46])
    assert first == len(MODEL)


def test_no_files() -> None:
    assert attach(MODEL, {}) == MODEL
    assert not present(MODEL)
    assert unpack(MODEL) == {}


@pytest.mark.parametrize(
    "name",
    [
        "../labels.txt",
        "a/../../labels.txt",
        "/labels.txt",
        "./labels.txt",
        "a//b",
        "a\\..\\b",
        "C:labels.txt",
        "labels\n.txt",
        "labels.txt\0.exe",
        "folder/",
        "",
    ],
)
def test_a_name_that_leads_elsewhere(name: str) -> None:
    with pytest.raises(
        ValueError, match="its archive has a file named .*, which leads"
    ):
        unpack(behind(name, b"x"))


def test_a_name_that_is_there_twice() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            writer.writestr("a", b"2")
    with pytest.raises(ValueError, match="file named 'a', which leads elsewhere or is"):
        unpack(MODEL + archive.getvalue())


def test_an_archive_that_unpacks_to_too_much() -> None:
    bomb = behind("zeros", bytes(65 * 2**20))
    assert len(bomb) < 100_000
    with pytest.raises(
        ValueError,
        match="its archive unpacks to 68,157,440 bytes in 1 files, over 67,108,864 or",
    ):
        unpack(bomb)


def test_an_archive_that_lies_about_its_size() -> None:
    bomb = bytearray(behind("zeros", bytes(40 * 2**20)))
    for signature, field in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = bomb.rindex(signature) + field
        bomb[at : at + 4] = (10).to_bytes(4, "little")
    with pytest.raises(ValueError, match="its archive is broken .*CRC"):
        unpack(bytes(bomb))


def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attach(MODEL, FILES)
    monkeypatch.setattr(associated_files, "_MAX_FILES", 1)
    with pytest.raises(ValueError, match="in 2 files, over 67,108,864 or 1"):
        unpack(whole)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(method: int) -> None:
    with pytest.raises(ValueError, match="its archive packs 'a' in an unusual way"):
        unpack(behind("a", b"x" * 100, method))


def test_zip64() -> None:
    whole = attach(MODEL, FILES)
    end = whole.rindex(b"PK\x05\x06")
    with pytest.raises(ValueError, match="its archive is a zip64, larger than labels"):
        unpack(whole[:end] + b"PK\x06\x07" + bytes(16) + whole[end:])


def test_contents_that_were_changed() -> None:
    whole = bytearray(attach(MODEL, FILES))
    whole[whole.index(b"a\nb")] ^= 1
    with pytest.raises(ValueError, match="its archive is broken .*CRC"):
        unpack(bytes(whole))


def test_encrypted() -> None:
    whole = bytearray(attach(MODEL, {"a": b"x"}))
    for signature, field in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        whole[whole.rindex(signature) + field] |= 1
    with pytest.raises(ValueError, match="its archive is broken .*encrypted"):
        unpack(bytes(whole))


def test_deflated_files_are_read() -> None:
    content = b"label\n" * 1_000
    assert unpack(behind("labels.txt", content)) == {"labels.txt": content}


def test_no_more_is_attached_than_is_taken_from_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(associated_files, "_MAX_BYTES", 110)
    with pytest.raises(
        ValueError,
        match=r"at most 110 bytes in 1,000 files. Received: 113 in 3, the largest "
        r"notes/readme.md. Fix: give fewer labels, or a smaller `provenance`",
    ):
        attach(MODEL, {**FILES, "kdlite.json": b"{1 2 3 4}\n"})
    monkeypatch.setattr(associated_files, "_MAX_BYTES", 113)
    whole = attach(MODEL, {**FILES, "kdlite.json": b"{1 2 3 4}\n"})
    assert len(unpack(whole)) == 3
