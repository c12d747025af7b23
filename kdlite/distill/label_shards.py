"""Stores that many workers made, each of its share of the samples, put into one.

Shard i of n holds the samples i, i + n, i + 2n, ... of the data set, counted from 1, in
a folder `shard-i-of-n` in that of the whole: a store by itself, with its own manifest
and digests.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kdlite.distill.label_manifest import Manifest, Origin
from kdlite.distill.label_store import LabelStore, LabelWriter, shard_folders

Array = np.ndarray[Any, Any]

_SAMPLES_AT_ONCE = 1024


def merge_shards(path: Path, overwrite: bool = False) -> None:
    """Puts the shards in a folder together to the whole store, which is there then.

    They are left where they are. Killed at any moment, the same call goes on.

    Args:
        path: The folder of the whole, in which those of the shards are.
        overwrite: Throw away a store of the whole that is there.

    Raises:
        FileNotFoundError: If there are no shards.
        ValueError: If one is missing, doubled, unfinished, damaged, or of other labels
            than the rest; all such are named.
    """
    stores, whole = _checked(path)
    with LabelWriter(path, whole, overwrite) as writer:
        if writer.manifest.finished:
            return
        filled = [store for store in stores if store.manifest.samples]  # all but last
        for first in range(
            writer.manifest.samples // len(filled),  # only whole rounds are written
            filled[0].manifest.samples,
            _SAMPLES_AT_ONCE,
        ):
            parts = [store.block(first, _SAMPLES_AT_ONCE) for store in filled]
            rows = {
                name: _interleaved([rows[name] for rows, _ in parts])
                for name in whole.form.files
            }
            prints = _interleaved([prints for _, prints in parts])
            writer.append_stored(rows, prints, filled[0].manifest.logits_shape)
        writer.commit(filled[0].manifest.dataset_samples)


def _interleaved(parts: list[Array]) -> Array:
    """What the parts have first, then what they have second, and so on."""
    shortest = min(map(len, parts))
    together = np.stack([part[:shortest] for part in parts], axis=1)
    together = together.reshape(-1, *parts[0].shape[1:])
    rest = [part[shortest:] for part in parts]  # of the last round, if that is not full
    return np.concatenate([together, *rest])


def _checked(path: Path) -> tuple[list[LabelStore], Origin]:
    """The stores of all shards, in order, and the origin of the whole."""
    folders = shard_folders(path)
    if not folders:
        raise FileNotFoundError(
            f"Shards are merged in the folder they were made in. Received: "
            f"path={path}, where there is no folder shard-i-of-n. Fix: build them with "
            f"shard=(i, n), or put their folders there."
        )
    stores: dict[int, LabelStore] = {}
    manifests: dict[str, Manifest] = {}
    problems: list[str] = []
    for folder in folders:
        try:
            manifest = Manifest.read(folder)
            if manifest is None or manifest.origin.shard is None:
                problems.append(f"{folder.name} holds no shard")
                continue
            manifests[folder.name] = manifest
            if manifest.finished:
                stores[manifest.origin.part[0]] = LabelStore(folder)
            else:
                problems.append(f"{folder.name} is unfinished")
        except (ValueError, OSError) as err:
            problems.append(f"{folder.name} is damaged ({err})")
    problems += _missing_or_doubled(manifests) + _of_others(manifests)
    if problems:
        raise ValueError(
            f"The shards must be whole, each there once, and of one labelling. "
            f"Received: at {path}, {'; '.join(problems)}. Fix: build what is missing "
            f"or damaged again with shard=(i, n), and take away what is too much."
        )
    whole = dataclasses.replace(stores[1].manifest.origin, shard=None)
    return [stores[index] for index in sorted(stores)], whole


def _missing_or_doubled(manifests: dict[str, Manifest]) -> list[str]:
    """Names the shards that are not there once each."""
    if not manifests:
        return []
    holders: dict[int, list[str]] = {}
    for name, manifest in manifests.items():
        holders.setdefault(manifest.origin.part[0], []).append(name)
    count = max(manifest.origin.part[1] for manifest in manifests.values())
    missing = [f"{i} of {count}" for i in range(1, count + 1) if i not in holders]
    problems = [f"missing are {', '.join(missing)}"] if missing else []
    return problems + [
        f"shard {index} is doubled, in {' and '.join(names)}"
        for index, names in sorted(holders.items())
        if len(names) > 1
    ]


def _of_others(manifests: dict[str, Manifest]) -> list[str]:
    """Names the shards that are of another labelling than the first."""
    problems = []
    for name, manifest in manifests.items():
        first = next(iter(manifests.values()))
        origin = dataclasses.replace(manifest.origin, shard=first.origin.shard)
        changed = origin.changes(first.origin)
        for what, mine, theirs in (
            ("number of shards", manifest.origin.part[1], first.origin.part[1]),
            ("number of samples", manifest.dataset_samples, first.dataset_samples),
            ("logits' shape", manifest.logits_shape, first.logits_shape),
        ):
            if mine and theirs and mine != theirs:
                changed.append(f"another {what} ({mine}, not {theirs})")
        if changed:
            problems.append(
                f"{name} is of another labelling than {next(iter(manifests))}: "
                f"{', '.join(changed)}"
            )
    return problems
