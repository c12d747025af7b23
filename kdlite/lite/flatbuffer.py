"""Flatbuffers by their schema's field numbers, called slots: read with care, and built.

The ``flatbuffers`` library follows what a file says, and a file from anywhere may say
anything. So reading is done here: each offset is checked, and so is the work.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers

# Objects may be shared, so that a small file can unfold into a huge one. This much more
# than the file's own size is followed from one root, and nothing beyond: a few hundred
# KiB are shared in real models.
_MAX_BYTES = 8 * 2**20
# A table costs this much at least: what is made of it takes memory and time, even if it
# shares all that it has.
_TABLE_BYTES = 64


class Table:
    """A table of a flatbuffer that may be hostile.

    A table starts with the distance back to its vtable. The vtable holds, after two
    sizes, where in the table each field is, or 0 where it is absent. Strings, vectors
    and other tables are reached by a distance forward. Numbers are little-endian.

    Attributes:
        position: Where the table starts, in bytes.
    """

    def __init__(self, data: bytes, position: int, spent: list[int]) -> None:
        self._data = data
        self._spent = spent
        self.position = position
        self._vtable = position - self._unpack("i", position)
        self._vtable_bytes = self._unpack("H", self._vtable)
        self._spend(max(self._vtable_bytes, _TABLE_BYTES))

    @classmethod
    def root(cls, data: bytes, identifier: bytes) -> Table:
        """The root table of a flatbuffer with this file identifier.

        Raises:
            ValueError: If the identifier is another; everywhere in this class, if an
                offset leads outside or there is too much to follow.
        """
        if data[4:8] != identifier:
            raise ValueError(
                f"its identifier is {data[4:8]!r}, where {identifier!r} should be"
            )
        (position,) = struct.unpack_from("<I", data)
        return cls(data, position, [-len(data)])

    def slots(self) -> list[int]:
        """The slots that are present."""
        fields = range((self._vtable_bytes - 4) // 2)
        return [slot for slot in fields if self._field(slot)]

    def number(self, slot: int, form: str) -> int:
        """An integer, ``form`` as in ``struct``; 0 where absent."""
        position = self._field(slot)
        return self._unpack(form, position) if position else 0

    def target(self, slot: int) -> int:
        """Where the object of the slot starts, in bytes; 0 where absent."""
        position = self._field(slot)
        return position + self._unpack("I", position) if position else 0

    def table(self, slot: int) -> Table | None:
        """Another table."""
        position = self.target(slot)
        return Table(self._data, position, self._spent) if position else None

    def tables(self, slot: int) -> list[Table]:
        """A vector of tables; empty where absent, as are the ones below."""
        first, count = self._vector(slot, 4)
        places = range(first, first + 4 * count, 4)
        return [
            Table(self._data, place + self._unpack("I", place), self._spent)
            for place in places
        ]

    def integers(self, slot: int, form: str = "i") -> tuple[int, ...]:
        """A vector of integers, ``form`` as in ``struct``: by default 32 bits."""
        first, count = self._vector(slot, struct.calcsize(f"<{form}"))
        return struct.unpack_from(f"<{count}{form}", self._data, first)

    def length(self, slot: int) -> int:
        """How many bytes a vector of bytes has, without reading them."""
        return self._vector(slot, 1, spend=False)[1]

    def floats(self, slot: int) -> tuple[float, ...]:
        """A vector of 32-bit floats."""
        first, count = self._vector(slot, 4)
        return struct.unpack_from(f"<{count}f", self._data, first)

    def string(self, slot: int) -> str:
        """A string."""
        first, count = self._vector(slot, 1)
        try:
            return self._data[first : first + count].decode()
        except UnicodeDecodeError as err:
            raise ValueError(f"the text at byte {first} is not UTF-8") from err

    def content(self, slot: int) -> bytes:
        """A vector of bytes, however long."""
        first, count = self._vector(slot, 1, spend=False)
        return self._data[first : first + count]

    def _vector(self, slot: int, item: int, spend: bool = True) -> tuple[int, int]:
        position = self.target(slot)
        if not position:
            return 0, 0
        first, count = position + 4, self._unpack("I", position)
        if first + item * count > len(self._data):
            raise ValueError(f"the list at byte {position} runs past the end")
        if spend:
            self._spend(item * count)
        return first, count

    def _field(self, slot: int) -> int:
        place = 4 + 2 * slot
        if place + 2 > self._vtable_bytes:
            return 0
        within = self._unpack("H", self._vtable + place)
        return self.position + within if within else 0

    def _unpack(self, form: str, position: int) -> int:
        if not 0 <= position <= len(self._data) - struct.calcsize(f"<{form}"):
            raise ValueError(f"an offset leads to byte {position}, past the end")
        return int(struct.unpack_from(f"<{form}", self._data, position)[0])

    def _spend(self, count: int) -> None:
        self._spent[0] += count
        if self._spent[0] > _MAX_BYTES:
            raise ValueError(
                f"its tables unfold to more than {_MAX_BYTES:,} bytes beyond its size"
            )


Builder = Any  # flatbuffers.Builder, which is untyped
#: From where something is in a flatbuffer to its place as a builder counts.
Place = Callable[[int], int]

#: TFLite wants a buffer's data at a multiple of so many bytes (`force_align` in its
#: schema).
ALIGNMENT = 16


def add_table(
    builder: Builder,
    targets: Mapping[int, int],
    *,
    bytes_: Mapping[int, int] | None = None,
    words: Mapping[int, int] | None = None,
) -> int:
    """Adds a table, and returns its place as the builder counts, from the end.

    Args:
        builder: A ``flatbuffers.Builder``.
        targets: Slot to the place of a string, vector or table; 0 for absent.
        bytes_: Slot to a number of 8 bits; unions have their kind in such a slot.
        words: Slot to a number of 32 bits.
    """
    bytes_, words = bytes_ or {}, words or {}
    builder.StartObject(max([*targets, *bytes_, *words], default=-1) + 1)
    for slot, place in targets.items():
        builder.PrependUOffsetTRelativeSlot(slot, place, 0)
    for slot, number in words.items():
        builder.PrependUint32Slot(slot, number, 0)
    for slot, number in bytes_.items():
        builder.PrependUint8Slot(slot, number, 0)
    return int(builder.EndObject())


def add_vector(builder: Builder, places: Sequence[int]) -> int:
    """Adds a vector of tables, and returns its place; 0 where there are none."""
    if not places:
        return 0
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return int(builder.EndVector())


def add_content(builder: Builder, content: bytes, alignment: int) -> int:
    """Adds a vector of bytes, the first at a multiple of ``alignment`` in the end."""
    builder.Prep(alignment, len(content))
    return int(builder.CreateByteVector(content))


def with_new_root(
    model: bytes, root: Table, changed: Callable[[Builder, Place], Mapping[int, int]]
) -> bytes:
    """Puts a new root before a ``.tflite``, which stays as it is behind it.

    Flatbuffers are built from the end, and refer only forward. So the model, as it is,
    can be the end, and a new root refers to all that the old root did.

    Args:
        model: The bytes of the ``.tflite``.
        root: Its root.
        changed: Adds what is new; returns slot to place of what the new root has
            instead, or besides.

    Returns:
        The bytes of the new ``.tflite``.
    """
    builder = flatbuffers.Builder(len(model) + 4096)
    end = model + bytes(-len(model) % ALIGNMENT)
    add_content(builder, end, ALIGNMENT)

    def old(position: int) -> int:
        return len(end) - position

    targets = {slot: old(root.target(slot)) for slot in root.slots() if slot}
    targets |= changed(builder, old)
    version = root.number(0, "I")
    builder.Finish(add_table(builder, targets, words={0: version}), b"TFL3")
    return bytes(builder.Output())
