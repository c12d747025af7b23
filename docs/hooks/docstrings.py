"""Docstrings as the site is to read them, where Griffe and Markdown read otherwise.

Doctests are code, and not quotations. "Call arguments" is a section of arguments.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# The lines from a prompt to the next empty one, and more that go on after that.
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n+\1>>> .*|\n\1(?! *$).*)*", re.MULTILINE)


_CALL_ARGUMENTS = re.compile(r"^( *)Call arguments:$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Griffe's extension, which sees each object as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of an object."""
        if obj.docstring:
            text = _DOCTEST.sub(
                lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```",
                obj.docstring.value,
            )
            obj.docstring.value = _CALL_ARGUMENTS.sub(
                r"\1Other Parameters: Call arguments", text
            )
