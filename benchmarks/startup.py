"""What kdlite adds to importing Keras, and how soon its command answers.

    python benchmarks/startup.py [--rounds 10]

Each case is a process of its own; they take turns, so that a busy moment of the machine
hits all alike. Figures are medians over the rounds; ratios and differences to Keras are
those within a round, with their 10th and 90th percentile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import numpy as np

CASES = {
    "import keras": ["-c", "import keras"],
    "import keras, kdlite": ["-c", "import keras, kdlite"],
    "... and every public name": ["-c", "import keras; from kdlite import *"],
    "kdlite --help": ["-m", "kdlite", "--help"],
    "kdlite --version": ["-m", "kdlite", "--version"],
    "python alone": ["-c", ""],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    for arguments in CASES.values():
        seconds(arguments)  # files come into the system's cache
    taken = np.array([[seconds(a) for a in CASES.values()] for _ in range(rounds)])
    keras = taken[:, :1]
    print(f"{'':27}seconds  ratio to keras       seconds more than keras")
    for name, own, ratio, more in zip(
        CASES, taken.T, (taken / keras).T, (taken - keras).T, strict=True
    ):
        print(
            f"{name:26}{np.median(own):8.2f}  {np.median(ratio):5.2f} "
            f"({np.percentile(ratio, 10):.2f} to {np.percentile(ratio, 90):.2f})  "
            f"{np.median(more):+6.2f} ({np.percentile(more, 10):+.2f} to "
            f"{np.percentile(more, 90):+.2f})"
        )


if __name__ == "__main__":
    main()
