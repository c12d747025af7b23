from __future__ import annotations

import flatbuffers
import pytest

from kdlite.lite import flatbuffer
from kdlite.lite.flatbuffer import Table, add_content, add_table, add_vector


def built(*, words: int = 7) -> bytes:
    """A root with a byte, a word, a text, two tables, numbers and content."""
    builder = flatbuffers.Builder(64)
    content = add_content(builder, b"0123456789", 16)
    text = builder.CreateString("größe")
    children = [add_table(builder, {}, bytes_={1: n}) for n in (4, 5)]
    builder.StartVector(4, 2, 4)
    builder.PrependInt32(-2)
    builder.PrependInt32(1)
    integers = builder.EndVector()
    targets = {
        2: text,
        3: add_vector(builder, children),
        4: integers,
        5: content,
        6: children[1],
        7: 0,
    }
    root = add_table(builder, targets, bytes_={0: 200}, words={1: words})
    builder.Finish(root, b"TEST")
    return bytes(builder.Output())


def test_what_was_built_is_read() -> None:
    data = built()
    root = Table.root(data, b"TEST")
    assert root.slots() == [0, 1, 2, 3, 4, 5, 6]
    assert (root.number(0, "B"), root.number(1, "I")) == (200, 7)
    assert root.string(2) == "größe"
    assert [child.number(1, "B") for child in root.tables(3)] == [4, 5]
    assert root.integers(4) == (1, -2)
    assert root.content(5) == b"0123456789"
    assert (root.target(5) + 4) % 16 == 0
    child = root.table(6)
    assert child is not None
    assert child.number(1, "B") == 5


def test_what_is_absent_is_empty() -> None:
    root = Table.root(built(), b"TEST")
    for slot in (7, 8, 500):
        assert root.number(slot, "I") == 0
        assert root.target(slot) == 0
        assert root.table(slot) is None
        assert root.tables(slot) == []
        assert root.integers(slot) == root.floats(slot) == ()
        assert root.string(slot) == ""
        assert root.content(slot) == b""


def test_an_empty_vector_is_no_place() -> None:
    assert add_vector(flatbuffers.Builder(8), []) == 0


@pytest.mark.parametrize("data", [b"", b"1234567", b"\x08\0\0\0TESU"])
def test_another_identifier(data: bytes) -> None:
    with pytest.raises(ValueError, match="its identifier is b'.*', where b'TEST' sho"):
        Table.root(data, b"TEST")


@pytest.mark.parametrize("position", [8, 2**31, 2**32 - 1])
def test_an_offset_past_the_end(position: int) -> None:
    data = position.to_bytes(4, "little") + b"TEST"
    with pytest.raises(ValueError, match=f"an offset leads to byte {position}, past"):
        Table.root(data, b"TEST")


def test_an_offset_before_the_start() -> None:
    data = b"\x08\0\0\0TEST" + (100).to_bytes(4, "little")
    with pytest.raises(ValueError, match="an offset leads to byte -92, past the end"):
        Table.root(data, b"TEST")


def test_a_list_past_the_end() -> None:
    data = bytearray(built())
    place = Table.root(bytes(data), b"TEST").target(4)
    data[place : place + 4] = (2**30).to_bytes(4, "little")
    with pytest.raises(ValueError, match=f"the list at byte {place} runs past the end"):
        Table.root(bytes(data), b"TEST").integers(4)


def test_text_that_is_none() -> None:
    data = bytearray(built())
    place = Table.root(bytes(data), b"TEST").target(2) + 4
    data[place] = 0xFF
    with pytest.raises(ValueError, match=f"the text at byte {place} is not UTF-8"):
        Table.root(bytes(data), b"TEST").string(2)


def test_a_small_file_cannot_unfold_into_a_huge_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A thousand tables in the outer list, all of them the same one.
    builder = flatbuffers.Builder(64)
    inner = add_vector(builder, [add_table(builder, {}, bytes_={0: 1})] * 1_000)
    outer = add_vector(builder, [add_table(builder, {0: inner})] * 1_000)
    builder.Finish(add_table(builder, {0: outer}), b"TEST")
    data = bytes(builder.Output())
    monkeypatch.setattr(flatbuffer, "_MAX_BYTES", 100_000)
    tables = Table.root(data, b"TEST").tables(0)
    with pytest.raises(ValueError, match="its tables unfold to more than 100,000 byte"):
        for table in tables:
            table.tables(0)
