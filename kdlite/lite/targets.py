"""What a model should say of samples: the targets that come with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdlite.datasets import read_npz

Array = np.ndarray[Any, Any]


def read_once(data: Any) -> Any:
    """Returns batches as a list: a second time they may be others, or used up."""
    whole = isinstance(data, (str, bytes, os.PathLike, Mapping, tuple, list))
    if whole or hasattr(data, "shape"):
        return data
    if callable(data) and not isinstance(data, Iterable):
        data = data()
    cardinality = getattr(data, "cardinality", None)
    endless = cardinality is not None and int(cardinality()) == -1
    return list(data) if isinstance(data, Iterable) and not endless else data


def read_targets(
    data: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, Array]:
    """Returns the targets that come with samples.

    Args:
        data: In the forms that `verify` takes, batches as `read_once` returns them.
        inputs: The names of the model's inputs.
        outputs: Those of its outputs.

    Returns:
        The targets by output name; empty if there are none.

    Raises:
        ValueError: If it cannot be told which target is for which output.
    """
    y: Any = None
    if isinstance(data, (str, os.PathLike)):
        # An input may be called `y` as well.
        y = None if "y" in inputs else read_npz(data).get("y")
    elif _has_targets(data):
        y = data[1]
    elif isinstance(data, list) and all(map(_has_targets, data)):
        y = _joined([batch[1] for batch in data], len(outputs))
    if y is None:
        return {}
    if isinstance(y, Mapping):
        unknown = sorted(set(y) - set(outputs))
        if unknown:
            raise ValueError(
                f"Targets must be named like the outputs "
                f"{', '.join(map(repr, outputs))}. Received: "
                f"{', '.join(map(repr, unknown))}. Rename them."
            )
        return {name: np.asarray(target) for name, target in y.items()}
    if isinstance(y, (list, tuple)) and 1 < len(outputs) == len(y):
        return {
            name: np.asarray(target) for name, target in zip(outputs, y, strict=True)
        }
    if len(outputs) > 1:
        raise ValueError(
            "Targets of several outputs must be a mapping by name. Received: "
            f"{type(y).__name__} for outputs {', '.join(map(repr, outputs))}. Give for "
            f"example {{{outputs[0]!r}: y}}."
        )
    return {outputs[0]: np.asarray(y)}


def _has_targets(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) in (2, 3) and data[1] is not None


def _joined(batches: Sequence[Any], outputs: int) -> Any:
    """Joins the targets of batches: mappings, lists with one an output, or arrays."""
    if outputs > 1 and isinstance(batches[0], (list, tuple)):
        return [_joined(parts, 1) for parts in zip(*batches, strict=True)]
    if isinstance(batches[0], Mapping):
        return {
            name: np.concatenate([np.asarray(batch[name]) for batch in batches])
            for name in batches[0]
        }
    return np.concatenate([np.asarray(batch) for batch in batches])
