"""Features of a teacher's layers, stored beside its logits, one folder a layer.

Each folder is a store like that of the logits, of a teacher that returns the layer's
features, in float16: built in one more run of the teacher, resumed, sharded, checked
and mapped from disk in the same way.
"""

from __future__ import annotations

import dataclasses
import math
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdlite.distill.feature_taps import FeatureTaps
from kdlite.distill.label_manifest import Origin
from kdlite.distill.label_store import FEATURES
from kdlite.distill.samples import Structure
from kdlite.distill.taps import LogitsModel
from kdlite.distill.teachers import Teacher, Transformed, serialized

Tensor = Any

FEATURE_DTYPE = "float16"


class Tapped(Teacher):
    """A teacher that returns what one of its layers does.

    Args:
        reader: The teacher.
        layer: The layer's path, see `FeatureTaps`.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(self, reader: LogitsModel, layer: str) -> None:
        super().__init__("values", name=_plain(layer))
        self._reader = reader
        self.model = reader.model
        self.layer = layer
        tapped = self.model
        while isinstance(tapped, Transformed):  # the one that sees what it is shown
            tapped = tapped.teacher
        self._taps = FeatureTaps(tapped, [layer], role="teacher")

    def call(self, inputs: Structure) -> Tensor:
        """Returns the layer's features; the teacher runs in inference mode.

        Args:
            inputs: What the teacher takes.

        Returns:
            `(batch, ...)`.
        """
        with self._taps.recording() as features:
            self.model(inputs, training=False)
        return features[self.layer]

    def get_config(self) -> dict[str, Any]:
        """Returns what it is known again by."""
        return {"teacher": serialized(self._reader), "layer": self.layer}


def feature_models(
    teacher: LogitsModel, layers: Sequence[str]
) -> dict[str, LogitsModel]:
    """Returns teachers that return features.

    Args:
        teacher: The teacher.
        layers: Paths of its layers.

    Returns:
        By path.

    Raises:
        TypeError: If paths are not texts.
        ValueError: If there is no such layer, or one is named twice.
    """
    if isinstance(layers, str) or not all(isinstance(name, str) for name in layers):
        raise TypeError(
            f"`features` are paths of layers. Received: features={layers!r}. Fix: "
            f"('backbone/block3',), as in feature_losses."
        )
    twice = [name for name in layers if list(layers).count(name) > 1]
    if twice:
        raise ValueError(
            f"Each of `features` is stored once. Received: {twice[0]!r} twice. Fix: "
            f"name it once, for all losses that read it."
        )
    return {
        name: LogitsModel(Tapped(teacher, name), needs="values", role="teacher")
        for name in layers
    }


def check_size(
    models: Mapping[str, LogitsModel],
    samples: int,
    few: Structure,
    views: int,
    most_bytes: float,
) -> None:
    """Checks that the features will not take more room than is allowed.

    Args:
        models: What returns them, by path.
        samples: How many samples there will be.
        few: A few of them, as the teacher takes them.
        views: Views of each.
        most_bytes: The limit.

    Raises:
        ValueError: If they would.
    """
    each = np.dtype(FEATURE_DTYPE).itemsize * views
    bytes_of = {
        name: samples * each * math.prod(model(few).shape[1:])
        for name, model in models.items()
    }
    total = sum(bytes_of.values())
    if total > most_bytes:
        listed = ", ".join(f"{name!r} {size:,}" for name, size in bytes_of.items())
        raise ValueError(
            f"Stored features must stay within `max_feature_bytes`. Received: "
            f"{total:,} bytes for {samples:,} samples in {views} views ({listed}), "
            f"where {most_bytes:,.0f} are allowed. Fix: layers behind a pooling, fewer "
            f"views, or a higher limit."
        )


def check_same_labels(layer: str, origin: Origin, of_logits: Origin) -> None:
    """Checks that features are those of the samples and views of the logits.

    Args:
        layer: The layer's path.
        origin: What the features were made from.
        of_logits: What the logits were made from.

    Raises:
        ValueError: If they are not.
    """
    alike = ("teacher", "dtype", "top_k", "outputs")
    changed = dataclasses.replace(
        origin, **{name: getattr(of_logits, name) for name in alike}
    ).changes(of_logits)
    if changed:
        raise ValueError(
            f"Stored features are those of the samples and views of the logits. "
            f"Received: for layer {layer!r} {', '.join(changed)}. Fix: build them "
            f"again with overwrite=True."
        )


def feature_folder(path: Path, layer: str) -> Path:
    """Returns where the features of a layer are.

    Args:
        path: The folder of the logits.
        layer: The layer's path.
    """
    return path / FEATURES / urllib.parse.quote(layer, safe="")


def feature_folders(path: Path) -> dict[str, Path]:
    """Returns where features are stored, by the layer's path.

    Args:
        path: The folder of the logits.
    """
    folders = sorted((path / FEATURES).glob("*/"))
    return {urllib.parse.unquote(folder.name): folder for folder in folders}


def _plain(layer: str) -> str:
    return "features_of_" + "".join(c if c.isalnum() else "_" for c in layer)
