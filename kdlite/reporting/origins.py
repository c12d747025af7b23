"""Which of the models on a page a file was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import keras

from kdlite.fingerprint import model_fingerprint
from kdlite.lite.metadata import read_metadata
from kdlite.reporting.entrants import Entrant


def with_origins(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Finds from which model each file was made: by its provenance, else by its place.

    A file that `kdlite.export` made holds the fingerprint of its model. Of others the
    only file is of the only student, and of several the first is of its first seed.

    Args:
        entrants: Who is measured.

    Returns:
        Likewise, where it is known with the `seeds` that files were made from; files of
        several seeds in the order of these.

    Example:
        ``with_origins(entrants(student=[first, second], files={"int8": [file]}, ...))``
    """
    models = [e for role in ("student", "teacher") for e in entrants if e.role == role]
    if not models:
        return list(entrants)
    of = models[0]
    prints = [
        model_fingerprint(source)
        if isinstance(source, keras.Model) and source.built
        else None
        for source in of.sources
    ]
    return [
        _with_origin(entrant, prints) if entrant.role == "file" else entrant
        for entrant in entrants
    ]


def _with_origin(file: Entrant, prints: Sequence[str | None]) -> Entrant:
    told = [
        (read_metadata(path).provenance or {}).get("model_fingerprint")
        for path in file.paths
    ]
    seeds = [prints.index(own) for own in told if own and own in prints]
    if len(seeds) == len(told) == len(set(seeds)):
        order = sorted(range(len(seeds)), key=lambda place: seeds[place])
        return replace(
            file,
            sources=tuple(file.sources[place] for place in order),
            paths=tuple(file.paths[place] for place in order),
            seeds=tuple(sorted(seeds)),
        )
    if None not in prints and any(told):  # of a model that is not here
        return file
    if len(told) == len(prints):
        return replace(file, seeds=tuple(range(len(prints))))
    return file
