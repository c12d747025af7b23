"""Weights and temperatures that change over training, by steps or by epochs."""

from kdlite.distill.schedules import *  # noqa: F403 - its __all__
from kdlite.distill.schedules import __all__ as __all__
