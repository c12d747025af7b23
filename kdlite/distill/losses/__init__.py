"""Distillation losses."""

from kdlite.distill.losses.classes import HardLabel as HardLabel
from kdlite.distill.losses.classes import LogitMSE as LogitMSE
from kdlite.distill.losses.classes import SoftTargets as SoftTargets
from kdlite.distill.losses.decoupled import NKD as NKD
from kdlite.distill.losses.decoupled import DecoupledKD as DecoupledKD
from kdlite.distill.losses.relations import DIST as DIST
