"""Which layers are to stay exact, so that the whole is: as few as are found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

# Beyond so many, leaving out one by one takes more conversions than it is worth.
_ONE_BY_ONE = 6


def smallest_set(
    candidates: Sequence[str], holds: Callable[[Sequence[str]], bool]
) -> list[str] | None:
    """Searches a small set of layers with which a condition holds.

    The shortest beginning of `candidates` that will do is found by halving, as if more
    layers were never worse; then each layer of it is tried without.

    Args:
        candidates: Layers, the most promising first.
        holds: Whether the condition holds with these layers kept exact: one conversion
            each, so it is asked seldom.

    Returns:
        The layers in the order of `candidates`; None if not even all will do.

    Example:
        >>> smallest_set(["a", "b", "c", "d"], lambda kept: "c" in kept)
        ['c']
    """
    if not candidates or not holds(candidates):
        return None
    too_few, enough = 0, len(candidates)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        logger.info("auto_mixed: %d of %d layers", middle, len(candidates))
        if holds(candidates[:middle]):
            enough = middle
        else:
            too_few = middle
    kept = list(candidates[:enough])
    # The last is needed, or a shorter beginning would have done.
    for layer in kept[-2::-1] if len(kept) <= _ONE_BY_ONE else []:
        without = [name for name in kept if name != layer]
        if holds(without):
            kept = without
    return kept
