"""Whole numbers that users give: epochs, samples, threads."""

from __future__ import annotations

import operator
from typing import Any

_END = 2**63  # of what TensorFlow and numpy count with


def checked_count(
    name: str, value: Any, least: int = 1, fix: str = "give such a number"
) -> int:
    """Returns an argument as a whole number; numpy's are some too, True is none.

    Args:
        name: Its name.
        value: What was given.
        least: The least that it may be.
        fix: What to do otherwise.

    Returns:
        The number.

    Raises:
        ValueError: If it is none, or too small or large.

    Example:
        >>> checked_count("epochs", 3)
        3
        >>> checked_count("epochs", 2.5)
        Traceback (most recent call last):
        ...
        ValueError: `epochs` must be a whole number from 1 on. Received: epochs=2.5. ...
    """
    number = None
    if str(getattr(value, "dtype", type(value).__name__)) != "bool":
        try:
            number = operator.index(value)
        except TypeError:
            pass
    if number is None or not least <= number < _END:
        end = "" if number is None or number < _END else ", below 2**63"
        raise ValueError(
            f"`{name}` must be a whole number from {least} on{end}. Received: "
            f"{name}={value!r}. Fix: {fix}."
        )
    return number
