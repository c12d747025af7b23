"""Pruning, clustering and quantization-aware training by tfmot, for Keras 3 models."""

from kdlite.compress.tfmot import *  # noqa: F403 - its __all__
from kdlite.compress.tfmot import __all__ as __all__
