"""Files side by side on this computer: how long they take, and how much memory.

Their ratio says more than their times: another computer, and a phone even more, has
other times, and ratios that differ less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdlite.lite.runtime import (
    Latency,
    TFLiteModel,
    busy_words,
    check_timing,
    latency_of,
    times_ms,
)

_MEMORY_RUNS = 5

# In a process of its own: what one file takes is not given back before the next.
_MEMORY = """
import json, numpy, re, sys
from ai_edge_litert.interpreter import Interpreter
# The system's own counter, as getrusage counts the process that started this one too.
status = lambda: open("/proc/self/status").read()
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status())[1])
before = peak()
path, threads, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
interpreter = Interpreter(model_path=path, num_threads=threads)
interpreter.allocate_tensors()
for told in interpreter.get_input_details():
    interpreter.set_tensor(told["index"], numpy.zeros(told["shape"], told["dtype"]))
for _ in range(runs):
    interpreter.invoke()
print(json.dumps(peak() - before))
"""


@dataclass(frozen=True)
class FileTimes:
    """How one file fared.

    Attributes:
        file: Its path.
        size_bytes: Its size.
        load_ms: Reading and preparing it, once.
        first_ms: The first run, in which kernels are set up.
        latency: The runs after the warm-up.
        memory_bytes: By how much it raised the peak of a process that ran it alone;
            None where the system has no `/proc`.
        ratio: Its time by that of the first file, of each turn the fastest run, the
            median over turns; below 1 is faster.
        ratio_p10: In nine of ten turns the ratio was higher.
        ratio_p90: In nine of ten turns it was lower.
    """

    file: Path
    size_bytes: int
    load_ms: float
    first_ms: float
    latency: Latency
    memory_bytes: int | None
    ratio: float
    ratio_p10: float
    ratio_p90: float

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            **self.latency.to_dict(),
            "size_bytes": self.size_bytes,
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "memory_bytes": self.memory_bytes,
            "ratio": self.ratio,
            "ratio_p10": self.ratio_p10,
            "ratio_p90": self.ratio_p90,
        }

    def __str__(self) -> str:
        latency = replace(self.latency, processor=1.0)  # said once, of all
        text = (
            f"{self.file}: {latency}; first {self.first_ms:.2f} ms, loaded in "
            f"{self.load_ms:.1f} ms, {self.size_bytes:,} bytes"
        )
        if self.memory_bytes is None:
            return text
        return f"{text}, {self.memory_bytes:,} bytes of memory"


@dataclass(frozen=True)
class Benchmark:
    """How files fared side by side; prints as a line for each.

    Attributes:
        files: One entry a file, in order.
    """

    files: tuple[FileTimes, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it, by file."""
        return {str(times.file): times.to_dict() for times in self.files}

    def __str__(self) -> str:
        first, *others = self.files
        lines = [str(times) for times in self.files]
        lines += [
            f"{times.file} takes {times.ratio:.2f} of the time of {first.file} "
            f"({times.ratio_p10:.2f} to {times.ratio_p90:.2f} in eight of ten turns)"
            for times in others
        ]
        if first.latency.busy:
            words = busy_words(first.latency.processor)
            lines.append(f"{words[0].upper()}{words[1:]}. Time again when it is not.")
        return "\n".join([*lines, "LiteRT on this computer; a phone differs."])


def benchmark(
    files: Sequence[str | os.PathLike[str]],
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
) -> Benchmark:
    """Times files side by side, in turns, and measures the memory of each.

    Args:
        files: Paths of `.tflite` files.
        threads: Threads that one run may use.
        runs: Runs of each file that are timed.
        warmup: Runs of each before that, which do not count.

    Returns:
        By file times, memory and the ratio to the first file. Which operation takes how
        long is not in it: LiteRT's Python package does not tell.

    Raises:
        TypeError: If `files` is one file.
        ValueError: If there is no file, `runs` or `warmup` is out of range, or a file
            cannot be run.
        FileNotFoundError: If a file is not there.

    Example:
        ``print(benchmark(["teacher.tflite", "student.tflite"], threads=4))``
    """
    check_timing(files, runs, warmup)
    paths = [Path(file) for file in files]
    if not paths:
        raise ValueError(
            "`files` must have a file to time. Received: none. Name at least one."
        )
    models, loads, firsts = [], [], []
    for path in paths:
        started = time.perf_counter()
        model = TFLiteModel(path, threads)
        loads.append(1000 * (time.perf_counter() - started))
        [[[first]]] = times_ms([model], runs=1, warmup=0).turns
        models.append(model)
        firsts.append(first)
    turns, processor = times_ms(models, runs, warmup)
    # The fastest of a turn is the one that other programs met least.
    fastest = [[min(turn) for turn in of_file] for of_file in turns]
    found = []
    for number, path in enumerate(paths):
        ratios = np.divide(fastest[number], fastest[0])
        found.append(
            FileTimes(
                file=path,
                size_bytes=path.stat().st_size,
                load_ms=loads[number],
                first_ms=firsts[number],
                latency=latency_of(turns[number], threads, processor),
                memory_bytes=_memory_bytes(path, threads),
                ratio=float(np.median(ratios)),
                ratio_p10=float(np.percentile(ratios, 10)),
                ratio_p90=float(np.percentile(ratios, 90)),
            )
        )
    return Benchmark(tuple(found))


def _memory_bytes(path: Path, threads: int) -> int | None:
    if not Path("/proc/self/status").exists():
        return None
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path), str(threads), str(_MEMORY_RUNS)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise ValueError(
            "A .tflite must be one that LiteRT can run. Received: "
            f"{str(path)!r}, on which it ended with {done.returncode}: "
            f"{(done.stderr.strip().splitlines() or ['no word'])[-1]} Look at "
            "kdlite.inspect(file).custom_ops."
        )
    return int(json.loads(done.stdout.splitlines()[-1]))
