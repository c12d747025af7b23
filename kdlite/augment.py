"""Augmentations that mix samples: what `augment=` of `SoftLabels.build` takes."""

from kdlite.distill.augment import *  # noqa: F403 - its __all__
from kdlite.distill.augment import __all__ as __all__
