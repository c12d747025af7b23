"""Distil a trained Keras teacher into a small, proven ``.tflite`` student.

The public names, each loaded when it is first used: ``import kdlite`` costs nothing, so
that the command line answers before TensorFlow is in memory.

kdlite runs on Keras 3 with the TensorFlow backend, since ``.tflite`` files come from
TensorFlow's converter. Any other backend is an ``ImportError``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from kdlite.saved_classes import announce

if TYPE_CHECKING:
    from kdlite import augment, datasets, losses, schedules, teachers, tfmot
    from kdlite.android import to_android
    from kdlite.compress.qat import quantize_aware
    from kdlite.compress.summary import summary
    from kdlite.distill.class_map import ClassMap
    from kdlite.distill.distiller import Distiller
    from kdlite.distill.replay import ReplayBuffer
    from kdlite.distill.soft_labels import SoftLabels
    from kdlite.distill.trials import TuneResult
    from kdlite.distill.tune import tune
    from kdlite.distill.update import ForgettingError, UpdateResult, update
    from kdlite.doctor import check
    from kdlite.lite.convert import ExportResult, export
    from kdlite.lite.metadata import read_metadata
    from kdlite.lite.size_report import size_report
    from kdlite.lite.tflite_reader import inspect
    from kdlite.lite.verification import VerificationError
    from kdlite.lite.verify import verify
    from kdlite.pipeline import PipelineResult, distill_to_tflite
    from kdlite.reporting.energy import track_energy
    from kdlite.reporting.report import Report, report
    from kdlite.sizing import shrink, shrink_candidates

    __version__: str

__all__ = [
    "ClassMap",
    "Distiller",
    "ExportResult",
    "ForgettingError",
    "PipelineResult",
    "ReplayBuffer",
    "Report",
    "SoftLabels",
    "TuneResult",
    "UpdateResult",
    "VerificationError",
    "__version__",
    "augment",
    "check",
    "datasets",
    "distill_to_tflite",
    "export",
    "inspect",
    "losses",
    "quantize_aware",
    "read_metadata",
    "report",
    "schedules",
    "shrink",
    "shrink_candidates",
    "size_report",
    "summary",
    "teachers",
    "tfmot",
    "to_android",
    "track_energy",
    "update",
    "tune",
    "verify",
]

# Where each comes from: `module:name`, or `module:` for the module itself.
_HOMES = {
    "ClassMap": "kdlite.distill.class_map:ClassMap",
    "Distiller": "kdlite.distill.distiller:Distiller",
    "ExportResult": "kdlite.lite.convert:ExportResult",
    "ForgettingError": "kdlite.distill.update:ForgettingError",
    "PipelineResult": "kdlite.pipeline:PipelineResult",
    "ReplayBuffer": "kdlite.distill.replay:ReplayBuffer",
    "Report": "kdlite.reporting.report:Report",
    "SoftLabels": "kdlite.distill.soft_labels:SoftLabels",
    "TuneResult": "kdlite.distill.trials:TuneResult",
    "UpdateResult": "kdlite.distill.update:UpdateResult",
    "VerificationError": "kdlite.lite.verification:VerificationError",
    "augment": "kdlite.augment:",
    "check": "kdlite.doctor:check",
    "datasets": "kdlite.datasets:",
    "distill_to_tflite": "kdlite.pipeline:distill_to_tflite",
    "export": "kdlite.lite.convert:export",
    "inspect": "kdlite.lite.tflite_reader:inspect",
    "losses": "kdlite.losses:",
    "quantize_aware": "kdlite.compress.qat:quantize_aware",
    "read_metadata": "kdlite.lite.metadata:read_metadata",
    "report": "kdlite.reporting.report:report",
    "schedules": "kdlite.schedules:",
    "shrink": "kdlite.sizing:shrink",
    "shrink_candidates": "kdlite.sizing:shrink_candidates",
    "size_report": "kdlite.lite.size_report:size_report",
    "summary": "kdlite.compress.summary:summary",
    "teachers": "kdlite.teachers:",
    "tfmot": "kdlite.tfmot:",
    "to_android": "kdlite.android:to_android",
    "track_energy": "kdlite.reporting.energy:track_energy",
    "update": "kdlite.distill.update:update",
    "tune": "kdlite.distill.tune:tune",
    "verify": "kdlite.lite.verify:verify",
}


def _keras_backend() -> str:
    """Keras's backend, known without importing Keras (which takes seconds).

    Keras itself is asked if it is loaded; else the places it will look in.
    """
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "backend"):
        return str(keras.backend.backend())
    if named := os.environ.get("KERAS_BACKEND"):
        return named
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    try:
        config = json.loads((home / "keras.json").read_text())
        return str(config.get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


def _require_tensorflow() -> None:
    backend = _keras_backend()
    if backend != "tensorflow":
        raise ImportError(
            "kdlite needs Keras on the TensorFlow backend. "
            f"Received: backend={backend!r}. Set the environment variable "
            'KERAS_BACKEND=tensorflow, or "backend": "tensorflow" in '
            "~/.keras/keras.json, before Keras is imported."
        )


if not TYPE_CHECKING:  # else every misspelled name would be one, of type Any

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version  # slow, and rarely asked for

            value: Any = version("kdlite")
        elif name in _HOMES:
            # Keras may have been loaded, on another backend, since kdlite was.
            _require_tensorflow()
            value = resolve_name(_HOMES[name])
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_require_tensorflow()
announce()
