"""Which layers of a student and a teacher belong together."""

from __future__ import annotations

import math
from typing import Any

import keras

from kdlite.distill.feature_taps import Shape, forward_shapes
from kdlite.distill.losses.batches import SimilarityPreserving
from kdlite.distill.losses.features import FeatureLoss
from kdlite.distill.losses.maps import AttentionTransfer

Shapes = dict[str, tuple[Any, Shape]]

# Layers that make no features of their own: the layer before them ends the stage.
_PASSING = (
    "Padding",
    "Cropping",
    "Pooling",
    "UpSampling",
    "Dropout",
    "Noise",
    "FakeQuant",
    "Rescaling",
    "Resizing",
)


def match_stages(
    student: keras.Model, teacher: keras.Model
) -> dict[tuple[str, str], FeatureLoss]:
    """Pairs layers of two models that stand at the same stage.

    In models with maps a stage is a resolution, counted in halvings of the largest one;
    its layer is the last that computes at it. Stages that both models have are paired,
    by `AttentionTransfer`. In models without maps, layers with weights are paired by
    their relative depth, the head left out, by `SimilarityPreserving`. Neither loss
    hangs on widths or scales, so nothing more need be chosen.

    Args:
        student: A model with a graph: Functional, Sequential, nested.
        teacher: Another.

    Returns:
        A dict for `Distiller(feature_losses=...)`, to change as you like.

    Raises:
        ValueError: If a model does not know its inputs, or nothing matches.

    Example:
        >>> def model(width):
        ...     return keras.Sequential([
        ...         keras.Input((8, 8, 1)),
        ...         keras.layers.Conv2D(width, 3, padding="same", name="fine"),
        ...         keras.layers.MaxPooling2D(),
        ...         keras.layers.Conv2D(width, 3, padding="same", name="coarse"),
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(3),
        ...     ])
        >>> list(match_stages(model(4), model(16)))
        [('fine', 'fine'), ('coarse', 'coarse')]
    """
    shapes = [_shapes(student, "student"), _shapes(teacher, "teacher")]
    maps = [_by_resolution(model) for model in shapes]
    stages = sorted(set(maps[0]) & set(maps[1]))
    if stages:
        return {(maps[0][s], maps[1][s]): AttentionTransfer() for s in stages}
    blocks = [_blocks(model) for model in shapes]
    if any(maps) or not all(blocks):
        raise ValueError(
            f"`feature_losses='auto'` must find layers of the same stage. Received: "
            f"student '{student.name}' with {_told(maps[0], blocks[0])}, teacher "
            f"'{teacher.name}' with {_told(maps[1], blocks[1])}. Fix: name pairs of "
            f"layers, {{('student_layer', 'teacher_layer'): kdlite.losses.Hint()}}."
        )
    pairs = {}
    for place, block in enumerate(blocks[0], start=1):
        deep = math.ceil(place * len(blocks[1]) / len(blocks[0]))
        pairs[block, blocks[1][deep - 1]] = SimilarityPreserving()
    return pairs


def _told(maps: dict[int, str], blocks: list[str]) -> str:
    if maps:
        return f"maps at {len(maps)} resolutions (halvings {sorted(maps)})"
    return f"{len(blocks)} layers before the head"


def _shapes(model: keras.Model, role: str) -> Shapes:
    shapes = forward_shapes(model)
    if shapes is None:
        raise ValueError(
            f"`feature_losses='auto'` needs models that know their inputs. Received: "
            f"{role} '{model.name}', a subclassed model, or one that is not built. "
            f"Fix: name pairs of layers."
        )
    return shapes


def _by_resolution(shapes: Shapes) -> dict[int, str]:
    """The last layer at each resolution, by how often that was halved."""
    sizes = {
        path: shape[1] * shape[2]
        for path, (_, shape) in shapes.items()
        if len(shape) == 4 and shape[1] is not None and shape[2] is not None
    }
    largest = max(sizes.values(), default=1)
    stages: dict[int, str] = {}
    learnt = False
    for path, (node, _) in shapes.items():
        learnt = learnt or bool(getattr(node, "weights", ()))
        passing = any(kind in type(node).__name__ for kind in _PASSING)
        # A single position has no attention: squeezed maps, pooled ones.
        if learnt and not passing and sizes.get(path, 1) > 1:
            stages[round(math.log2(largest / sizes[path]) / 2)] = path
    return stages


def _blocks(shapes: Shapes) -> list[str]:
    """Layers with weights before the head."""
    found = [
        path
        for path, (node, shape) in shapes.items()
        if getattr(node, "weights", ())
        and "Normalization" not in type(node).__name__
        and len(shape) in (2, 3)
    ]
    return found[:-1]
