"""The search for the layers that are to stay exact."""

from __future__ import annotations

import pytest

from kdlite.lite.mixed import smallest_set

LAYERS = ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.mark.parametrize(
    "needed", [["a"], ["h"], ["c", "d"], ["a", "e"], ["b", "d", "f"]], ids="".join
)
def test_what_is_needed_is_found_and_little_else(needed) -> None:
    asked = []

    def holds(layers) -> bool:
        asked.append(list(layers))
        return set(needed) <= set(layers)

    found = smallest_set(LAYERS, holds)
    assert found is not None and set(needed) <= set(found)
    # Once all, three halvings of eight, and each of at most six left out.
    assert len(asked) <= 1 + 3 + 5
    last = LAYERS.index(needed[-1]) + 1
    assert found == needed if last <= 6 else len(found) <= last


def test_not_even_all_will_do() -> None:
    assert smallest_set(LAYERS, lambda layers: False) is None
    assert smallest_set([], lambda layers: True) is None
