"""Whole numbers: one rule for all arguments."""

from __future__ import annotations

import numpy as np
import pytest

from kdlite.counts import checked_count


@pytest.mark.parametrize("given", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_a_whole_number_of_any_kind(given) -> None:
    number = checked_count("epochs", given)
    assert number == 3 and type(number) is int
    assert checked_count("warmup", given, 3) == 3


@pytest.mark.parametrize(
    "given", [0, -1, 2.0, np.float32(2), "2", None, True, np.True_, [2], 2**63]
)
def test_what_is_none(given) -> None:
    with pytest.raises(ValueError) as caught:
        checked_count("epochs", given, fix="leave it out")
    end = ", below 2**63" if type(given) is int and given > 9 else ""
    assert str(caught.value) == (
        f"`epochs` must be a whole number from 1 on{end}. Received: epochs={given!r}. "
        "Fix: leave it out."
    )
