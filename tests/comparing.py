"""What pages and model cards are made of, from made-up outputs."""

from __future__ import annotations

import numpy as np

from kdlite.reporting.comparison import Comparison, contend
from kdlite.reporting.costs import Cost
from kdlite.reporting.energy import EnergyUse
from kdlite.reporting.tasks import read_task

LABELS = ["coat & <hat>", "bag", "shirt"]


def three_seeds() -> Comparison:
    """Teacher, baseline, student and file of three seeds, with all there may be."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    task = read_task("", (3,), y, LABELS)
    teacher = rng.normal(size=(300, 3)) + 4 * np.eye(3)[y]
    student = [teacher + rng.normal(size=(300, 3)) for _ in range(3)]
    base = [teacher + rng.normal(scale=2.0, size=(300, 3)) for _ in range(3)]
    int8 = [outputs + rng.normal(scale=0.4, size=(300, 3)) for outputs in student]
    used = EnergyUse(12.0, 0.01, 0.004, ("Estimated for a test.",))
    decided = {"": task.decided(teacher)}

    def of(name, role, runs, cost):
        runs = [{"": outputs} for outputs in runs]
        return contend(name, role, runs, {"": task}, decided, cost)

    small = Cost(params=40_000, macs=1_400_000, training=used)
    return Comparison(
        title="A report",
        tasks={"": task},
        contenders=(
            of("teacher", "teacher", [teacher], Cost(10**6, 4 * 10**7, 4 * 10**6, 2.0)),
            of("student without teacher", "baseline", base, small),
            of("student", "student", student, small),
            of("int8 file", "file", int8, Cost(40_000, 10**6, 64_000, 0.05, 10**6)),
        ),
        inputs=rng.integers(0, 256, (300, 8, 8, 1)).astype("uint8"),
        history={"student": {"loss": [2.0, 1.0], "val_accuracy": [0.5, 0.8]}},
        notes={
            "Gates": [["gate", "limit"], ["<b>size</b>", "50"]],
            "Settings": [
                ["setting", "value"],
                ["hard loss", "SparseCategoricalCrossentropy"],
                ["samples", "train 4,000, validation 500, test 1,000"],
            ],
        },
    )
