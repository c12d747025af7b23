"""Compression of a student that stays a Keras model.

Each name is loaded when it is first used: a file can be looked into without Keras.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdlite.compress.fake_quant import FakeQuant as FakeQuant
    from kdlite.compress.folded_layer import FoldedLayer as FoldedLayer
    from kdlite.compress.qat import float_layers as float_layers
    from kdlite.compress.qat import for_export as for_export
    from kdlite.compress.qat import freeze_batch_norm as freeze_batch_norm
    from kdlite.compress.qat import is_quantize_aware as is_quantize_aware
    from kdlite.compress.qat import quantize_aware as quantize_aware
    from kdlite.compress.recipes import Recipe as Recipe
    from kdlite.compress.recipes import recipe as recipe

_HOMES = {
    "FakeQuant": "fake_quant",
    "FoldedLayer": "folded_layer",
    "float_layers": "qat",
    "for_export": "qat",
    "freeze_batch_norm": "qat",
    "is_quantize_aware": "qat",
    "quantize_aware": "qat",
    "Recipe": "recipes",
    "recipe": "recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = resolve_name(f"{__name__}.{_HOMES[name]}:{name}")
    return value
