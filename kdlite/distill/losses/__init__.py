"""Distillation losses."""

from kdlite.distill.losses.outputs import SoftTargets as SoftTargets
