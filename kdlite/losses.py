"""Distillation losses: what `soft_loss` and `feature_losses` of a `Distiller` take."""

from kdlite.distill.losses import *  # noqa: F403 - its __all__
from kdlite.distill.losses import __all__ as __all__
