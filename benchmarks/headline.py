"""The headline run: how far a patient student gets, against an equal-budget baseline.

    python benchmarks/headline.py --out headline [--seeds 3] [--epochs 30] ...

Hours on two cores. A run that was stopped goes on where it was with the same arguments.
Prints the table of the report, and per-seed figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from versions import versions

import kdlite
from kdlite.datasets import fashion_mnist
from kdlite.gates import Gates

AUGMENTATIONS = ("flip", "shift", "erase", "shift+erase")


def augmentation(name: str) -> Callable[[Any, Any], Any]:
    from kdlite.demo.augment import erase, flip, shift_and_flip

    first = shift_and_flip if name.startswith("shift") else flip
    if not name.endswith("erase"):
        return first
    return lambda image, seed: erase(first(image, seed), seed + 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write, or to go on in"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="trainings of student and baseline (default %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=30,
        help="of student and baseline (default %(default)s)",
    )
    parser.add_argument(
        "--views",
        type=int,
        default=4,
        help="augmented views of each image (default %(default)s)",
    )
    parser.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="erase",
        help="of the views; all flip (default %(default)s)",
    )
    parser.add_argument(
        "--width",
        type=float,
        default=1.2,
        help="factor on the channels of the demo's student (default %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=6e-3,
        help="at its highest (default %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=2.0,
        help="of the soft labels (default %(default)s)",
    )
    parser.add_argument(
        "--hard-loss-weight",
        type=float,
        default=0.5,
        help="of the labels; the teacher has the rest to 1 (default %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew where there are results"
    )
    args = parser.parse_args()
    from kdlite.demo.models import build_student
    from kdlite.demo.teacher import load_teacher

    data = fashion_mnist()
    result = kdlite.distill_to_tflite(
        load_teacher(),
        tuple(data.train),
        lambda: build_student(args.width),
        validation=tuple(data.validation),
        test=tuple(data.test),
        labels=data.class_names,
        epochs=args.epochs,
        qat_epochs=2,
        learning_rate=args.learning_rate,
        temperature=args.temperature,
        hard_loss_weight=args.hard_loss_weight,
        soft_loss_weight=1.0 - args.hard_loss_weight,
        augment=augmentation(args.augment),
        views=args.views,
        seeds=args.seeds,
        gates=Gates(
            teacher_drop_points=1.0,
            quantization_drop_points=0.3,
            size_ratio=50,
            speed_ratio=10,
        ),
        out=args.out,
        overwrite=args.overwrite,
        verbose=2,
    )
    print(result)
    for scores in result.report["seeds"]:
        words = ", ".join(
            f"{name} {100 * scores[name]['top1']:.2f}"
            for name in ("baseline", "student", "float32", "int8")
        )
        print(f"seed {scores['seed']}: {words}")
    gains = [
        100 * (scores["student"]["top1"] - scores["baseline"]["top1"])
        for scores in result.report["seeds"]
    ]
    print(
        f"gain over the baseline by seed: {np.mean(gains):+.2f} points, "
        f"from {min(gains):+.2f} to {max(gains):+.2f}"
    )
    print(versions())
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
