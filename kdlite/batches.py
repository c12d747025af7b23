"""How many samples a model is run on at once, where nobody has said it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# Of inputs. Run layer by layer, MobileNetV2 keeps 150 times as many values as it reads:
# of so many inputs 1.2 GB, where 256 photographs would take 23.
_VALUES = 2**21


def samples_at_once(x: Any, most: int) -> int:
    """Returns a batch size at which the results of all layers fit into memory.

    Args:
        x: Arrays of samples `(samples, ...)`, in any structure.
        most: What is right for small samples.

    Returns:
        From 1 to `most`: fewer of larger samples.

    Example:
        >>> photographs = np.zeros((500, 224, 224, 3), "uint8")
        >>> samples_at_once(photographs, 256)
        13
    """
    each = sum(int(np.prod(array.shape[1:])) for array in keras.tree.flatten(x))
    return max(1, min(most, _VALUES // max(1, each)))
