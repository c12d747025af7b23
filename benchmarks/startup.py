"""What kdlite adds to importing Keras, and how soon its command answers.

    python benchmarks/startup.py [--rounds 10]

Each case is a process of its own; they take turns, so that a busy moment of the
machine hits all alike. Figures are medians over the rounds, ratios and
differences to Keras those within a round, with the least and the largest. CPU
seconds, user and system, are what the processes took; on a busy machine they
took longer by the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time

import numpy as np
from versions import versions

CASES = {
    "import keras": ["-c", "import keras"],
    "import keras, kdlite": ["-c", "import keras, kdlite"],
    "... and every public name": ["-c", "import keras; from kdlite import *"],
    "kdlite --help": ["-m", "kdlite", "--help"],
    "kdlite --version": ["-m", "kdlite", "--version"],
    "python alone": ["-c", ""],
}


def measured(arguments: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    clock = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, used


def spread(values: np.ndarray, form: str) -> str:
    low, middle, high = (format(f(values), form) for f in (np.min, np.median, np.max))
    return f"{middle} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=10,
        help="processes of each case (default %(default)s)",
    )
    rounds = parser.parse_args().rounds
    for arguments in CASES.values():
        measured(arguments)  # files come into the system's cache
    taken = np.array([[measured(a) for a in CASES.values()] for _ in range(rounds)])
    print(f"{'':26}  clock s   CPU s  CPU, ratio to keras   CPU s more than it")
    for place, name in enumerate(CASES):
        clock, used = taken[:, place].T
        keras = taken[:, 0, 1]
        print(
            f"{name:26}{np.median(clock):9.2f}{np.median(used):8.2f}  "
            f"{spread(used / keras, '.2f'):22}{spread(used - keras, '+.2f')}"
        )
    print(versions())


if __name__ == "__main__":
    main()
