"""Colours where a person looks on: on a terminal, unless NO_COLOR is set."""

from __future__ import annotations

import os
import re
from typing import Any, TextIO

_COLOURS = {"red": 31, "green": 32, "yellow": 33}
# What moves the cursor, colours or turns text around: of the C0 and C1 controls all but
# the line's end and the tab, and the marks of writing direction.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
_ANY_COLOUR = re.compile(r"\x1b\[[\d;]*m")
# What results say of themselves: the verdict of a gate, the weight of a finding.
_VERDICTS = (
    ("red", re.compile(r"(?m)\bMISSED$|^error(?= [\w-]+: )")),
    ("green", re.compile(r"(?m)(?<=, )kept$|^no findings\b")),
    ("yellow", re.compile(r"(?m)^warning(?= [\w-]+: )")),
)


def has_colours(stream: TextIO) -> bool:
    """Returns whether colours may be written to a stream.

    As no-color.org and force-color.org have it: never with NO_COLOR, always with
    FORCE_COLOR, else on a terminal that is not dumb.

    Args:
        stream: Where to.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """Returns a text in a colour, where the stream has any.

    Args:
        text: What is to stand out.
        colour: `"red"`, `"green"` or `"yellow"`.
        stream: Where it will be written.
    """
    if not has_colours(stream):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def plain(text: str) -> str:
    r"""Returns a text with the characters that nobody sees written out.

    Names in a file may be anybody's: turned around or erased by a terminal, they would
    read as others.

    Args:
        text: Any text.

    Example:
        >>> print(plain("left\u202etfel"))
        left\u202etfel
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def in_a_line(text: str) -> str:
    r"""Returns a name as `plain` does, on one line.

    Results show what files call their parts by this, wherever they are printed: a line
    of its own in a name would read as one of the result's.

    Args:
        text: A name.

    Example:
        >>> print(in_a_line("x: float32\n  out  y"))
        x: float32\u000a  out  y
    """
    return re.sub("[\n\t]", lambda found: f"\\u{ord(found[0]):04x}", plain(text))


def indented(text: str) -> str:
    r"""Returns a text of several lines as `plain` does, the others further in.

    Args:
        text: Such as a description.

    Example:
        >>> print(indented("of the hand\nfor the hand"))
        of the hand
            for the hand
    """
    return plain(text).replace("\n", "\n    ")


def with_verdicts(text: str, stream: TextIO) -> str:
    """Returns a result's text, what it says of itself in colours.

    Args:
        text: The result as it prints.
        stream: Where it will be written.
    """
    text = plain(text)
    for colour, verdict in _VERDICTS:
        text = verdict.sub(coloured(r"\g<0>", colour, stream), text)
    return text


class Uncoloured:
    """A stream without the colours that others write, such as Keras's progress bar.

    Args:
        stream: Where the rest goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text, and leaves out its colours.

        Args:
            text: The text.
        """
        return self._stream.write(_ANY_COLOUR.sub("", text))
