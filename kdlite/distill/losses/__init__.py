"""Distillation losses."""

from kdlite.distill.losses.batches import Correlation as Correlation
from kdlite.distill.losses.batches import ProbabilisticTransfer as ProbabilisticTransfer
from kdlite.distill.losses.batches import RelationalKD as RelationalKD
from kdlite.distill.losses.batches import SimilarityPreserving as SimilarityPreserving
from kdlite.distill.losses.classes import HardLabel as HardLabel
from kdlite.distill.losses.classes import LogitMSE as LogitMSE
from kdlite.distill.losses.classes import SoftTargets as SoftTargets
from kdlite.distill.losses.contrastive import Contrastive as Contrastive
from kdlite.distill.losses.decoupled import NKD as NKD
from kdlite.distill.losses.decoupled import DecoupledKD as DecoupledKD
from kdlite.distill.losses.features import Hint as Hint
from kdlite.distill.losses.features import (
    VariationalInformation as VariationalInformation,
)
from kdlite.distill.losses.generative import MaskedGenerative as MaskedGenerative
from kdlite.distill.losses.labels import MultiLabelSoftTargets as MultiLabelSoftTargets
from kdlite.distill.losses.maps import AttentionTransfer as AttentionTransfer
from kdlite.distill.losses.maps import ChannelWise as ChannelWise
from kdlite.distill.losses.maps import Gram as Gram
from kdlite.distill.losses.positions import PixelSoftTargets as PixelSoftTargets
from kdlite.distill.losses.positions import SequenceSoftTargets as SequenceSoftTargets
from kdlite.distill.losses.regression import Regression as Regression
from kdlite.distill.losses.relations import DIST as DIST

__all__ = [
    "AttentionTransfer",
    "ChannelWise",
    "Contrastive",
    "Correlation",
    "DIST",
    "DecoupledKD",
    "Gram",
    "HardLabel",
    "Hint",
    "LogitMSE",
    "MaskedGenerative",
    "MultiLabelSoftTargets",
    "NKD",
    "PixelSoftTargets",
    "ProbabilisticTransfer",
    "Regression",
    "RelationalKD",
    "SequenceSoftTargets",
    "SimilarityPreserving",
    "SoftTargets",
    "VariationalInformation",
]
