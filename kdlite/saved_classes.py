"""kdlite's classes in saved models, which Keras can load wherever kdlite was imported.

Keras looks up a class by the name that it was registered under, and that happens when
its module is imported: here not before it is used. So Keras gets a stand-in under each
name, that imports the class when a file has it; importing the class puts it in place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

# By module the classes that are registered there, under "kdlite>" and their names.
CLASSES = {
    "kdlite.compress.fake_quant": ("FakeQuant", "InFloat"),
    "kdlite.compress.folded_layer": ("FoldedLayer",),
    "kdlite.compress.sums": ("Sum",),
    "kdlite.compress.wide_operations": ("In16Bits", "In8Bits"),
    "kdlite.distill.adapters": ("Adapter",),
    "kdlite.distill.distiller": ("Distiller",),
    "kdlite.distill.feature_losses": ("FeaturePair",),
    "kdlite.distill.foreign_teachers": ("Function",),
    "kdlite.distill.losses.batches": (
        "Correlation",
        "ProbabilisticTransfer",
        "RelationalKD",
        "SimilarityPreserving",
    ),
    "kdlite.distill.losses.classes": ("HardLabel", "LogitMSE", "SoftTargets"),
    "kdlite.distill.losses.contrastive": ("Contrastive",),
    "kdlite.distill.losses.decoupled": ("DecoupledKD", "NKD"),
    "kdlite.distill.losses.features": ("Hint", "VariationalInformation"),
    "kdlite.distill.losses.generative": ("MaskedGenerative",),
    "kdlite.distill.losses.labels": ("MultiLabelSoftTargets",),
    "kdlite.distill.losses.maps": ("AttentionTransfer", "ChannelWise", "Gram"),
    "kdlite.distill.losses.positions": ("PixelSoftTargets", "SequenceSoftTargets"),
    "kdlite.distill.losses.regression": ("Regression",),
    "kdlite.distill.losses.relations": ("DIST",),
    "kdlite.distill.mean_teacher": ("MeanTeacher",),
    "kdlite.distill.mutual": ("MutualLearning",),
    "kdlite.distill.schedules": ("Cosine", "Custom", "Linear", "Piecewise"),
    "kdlite.distill.teacher_files": ("ONNX", "SavedModel"),
    "kdlite.distill.teachers": ("Ensemble", "Transformed"),
    "kdlite.teachers": ("TFLite",),
}


class StandIn:
    """What Keras takes for a class until a file has it.

    Args:
        home: Where the class is, `module:name`.
    """

    def __init__(self, home: str) -> None:
        self._home = home

    def from_config(self, config: dict[str, Any]) -> Any:
        """Makes an object of the class itself, imported now."""
        return resolve_name(self._home).from_config(config)


def announce() -> None:
    """Tells Keras of all classes: now, or as soon as it is imported."""
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "saving"):
        _register(keras)
    else:  # or kept from being imported, as in a process that only converts
        sys.meta_path.insert(0, _KerasWatch())


def _register(keras: ModuleType) -> None:
    known = keras.saving.get_custom_objects()
    for module, names in CLASSES.items():
        for name in names:
            known.setdefault(f"kdlite>{name}", StandIn(f"{module}:{name}"))


class _KerasWatch:
    """Finds Keras as all other finders do, to be there when it has been imported."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Returns where Keras is, to be loaded with a word to kdlite at the end."""
        if name != "keras":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            if module.__name__ == "keras" and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
