"""Runs of a `.tflite` in a process of its own, which LiteRT may crash.

LiteRT believes a file more than it should: an index that leads outside, a length that
is wrong, an option that makes no sense, and the process is gone, with all that a user
had in it. So a file that is run for the first time runs in a copy of a process that has
LiteRT in memory (`fork_server.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdlite.lite.fork_server import ForkServers
from kdlite.lite.runtime import TFLiteModel
from kdlite.lite.tflite_file import TFLiteFile
from kdlite.progress import Progress
from kdlite.working_folder import working_folder

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

_SERVERS = ForkServers(("kdlite.lite.isolated_runs",))
# Samples go through files of so many bytes, however many there are, and progress is
# told after so much work.
_CHUNK_BYTES, _CHUNK_MACS = 2**27, 10**11
# Nothing takes that long but a loop without an end: time for what has no arithmetic,
# multiply-accumulates a second of the slowest kernels, and what a file may claim.
_LEAST_TIME_S, _SLOWEST, _MOST_TIME_S = 600.0, 1e7, 86_400.0
_FILE, _INPUTS, _JOB = "file", "inputs.npz", "job.json"


@dataclass(frozen=True)
class Run:
    """One way to run a file.

    Attributes:
        kernels: As `TFLiteModel` takes it.
        threads: How many threads a run can use.
        samples: On how many samples, the first ones.
    """

    kernels: str
    threads: int
    samples: int

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        return f"{self.kernels} kernels and {self.threads} thread{plural}"


def isolated_runs(
    content: TFLiteFile,
    blob: bytes,
    x: Mapping[str, Array],
    runs: Sequence[Run],
    signature: str | None = None,
) -> list[Outputs | ValueError]:
    """Runs samples through a file in one way after the other.

    Args:
        content: What is inside the file.
        blob: The file.
        x: By input name `(samples, ...)`, real values, as `TFLiteModel.predict` takes.
        runs: The ways, those with reference kernels last.
        signature: Which of the file's signatures runs, that `content` is of; None for
            its first graph.

    Returns:
        For each way the outputs by name, `(samples, ...)`, or why LiteRT cannot run
        the file in that way; a crash of the reference kernels is such a reason.

    Raises:
        ValueError: If it crashes LiteRT's other kernels, or never ends.

    Example:
        ``isolated_runs(*inspect_bytes(file), {"x": x}, [Run("xnnpack", 1, len(x))])``
    """
    received = content.name or f"{len(blob)} bytes"
    parts: list[list[Outputs]] = [[] for _ in runs]
    refused: dict[int, ValueError] = {}
    with working_folder("run") as folder:
        (folder / _FILE).mkdir()
        (folder / _FILE / received).write_bytes(blob)
        count = len(next(iter(x.values())))
        progress = Progress(f"running {received}", count, "sample", "auto")
        for start, chunk in _chunks(x, content.macs):
            left = {
                number: replace(run, samples=_left(run, start, chunk))
                for number, run in enumerate(runs)
                if number not in refused and _left(run, start, chunk)
            }
            _write(folder / _INPUTS, chunk)
            told = {number: asdict(run) for number, run in left.items()}
            job = {"signature": signature, "runs": told}
            (folder / _JOB).write_text(json.dumps(job))
            samples = sum(run.samples for run in left.values())
            limit = _LEAST_TIME_S + min(content.macs * samples / _SLOWEST, _MOST_TIME_S)
            ended = _SERVERS.run("kdlite.lite.isolated_runs:run_all", folder, limit)
            for number, run in left.items():
                outputs, refusal = folder / f"{number}.npz", folder / f"{number}.txt"
                if refusal.is_file():
                    refused[number] = ValueError(refusal.read_text("utf-8"))
                elif outputs.is_file():
                    parts[number].append(_read(outputs))
                    outputs.unlink()
                elif run.kernels == "reference" and ended.returncode < 0:
                    # No phone has them: the file is no worse for it. They abort on
                    # int8 files of MobileNetV3, whoever made these.
                    refused[number] = ValueError(f"LiteRT, by its {run}, {ended}.")
                else:
                    says = ended.error or str(ended)
                    if ended.stopped:
                        says = f"was not done after {limit:,.0f} s, and was stopped"
                    raise ValueError(
                        "A .tflite must be one that LiteRT can run. Received: "
                        f"{received}, with which LiteRT, by its {run}, {says}. Make or "
                        "copy the file again, and trust none that a stranger made."
                    )
            progress.update(start + len(next(iter(chunk.values()))))
        progress.close()
    return [
        refused[number] if number in refused else _joined(outputs)
        for number, outputs in enumerate(parts)
    ]


def run_all(folder: Path) -> None:
    """Runs what `isolated_runs` has written down; to be called in a process apart.

    Args:
        folder: Has the file, the samples and the ways. For each way there will be the
            outputs, or why there are none.
    """
    (file,) = (folder / _FILE).iterdir()
    samples = _read(folder / _INPUTS)
    job = json.loads((folder / _JOB).read_text())
    for number, run in job["runs"].items():
        count = run["samples"]
        try:
            model = TFLiteModel(
                file, run["threads"], run["kernels"], signature=job["signature"]
            )
            told = model.predict({name: x[:count] for name, x in samples.items()})
        except ValueError as err:
            (folder / f"{number}.txt").write_text(str(err), "utf-8")
            continue
        if not isinstance(told, dict):
            told = {model.outputs[0].name: told}
        # Whole or not there.
        _write(folder / "part.npz", told)
        (folder / "part.npz").rename(folder / f"{number}.npz")


def _chunks(
    x: Mapping[str, Array], macs: int
) -> Iterator[tuple[int, dict[str, Array]]]:
    count = len(next(iter(x.values())))
    bytes_each = sum(array.nbytes for array in x.values()) // count
    step = min(_CHUNK_BYTES // max(1, bytes_each), _CHUNK_MACS // max(1, macs))
    step = max(1, step)
    for start in range(0, count, step):
        yield start, {name: array[start : start + step] for name, array in x.items()}


def _left(run: Run, start: int, chunk: Mapping[str, Array]) -> int:
    """How many of a chunk's samples are run."""
    count = len(next(iter(chunk.values())))
    return min(count, max(0, run.samples - start))


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    """By number: `savez` would take some names for its own arguments."""
    np.savez(path, np.array(list(arrays)), *arrays.values())


def _read(path: Path) -> dict[str, Array]:
    with np.load(path) as file:
        names, *arrays = file.values()
    return dict(zip(map(str, names), arrays, strict=True))


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
