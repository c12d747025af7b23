"""What a distillation step costs, as ratios within one run.

    python benchmarks/step_cost.py [--rounds 30] [--steps 10]

All variants train the demo's student on the same samples, shuffled; they take turns, so
that a busy moment of the machine hits all alike. Of each variant the fastest round
counts, since whatever else runs can only slow it; the spread is that of the ratio in a
round (10th to 90th percentile).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from versions import versions

import kdlite

if TYPE_CHECKING:
    import keras

BATCH = 128


def compiled(model: keras.Model) -> keras.Model:
    import keras

    model.compile(
        keras.optimizers.AdamW(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def variants(steps: int) -> dict[str, Callable[[], Any]]:
    import keras
    import tensorflow as tf

    from kdlite.demo.models import build_student
    from kdlite.demo.teacher import load_teacher

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (BATCH * steps, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, BATCH * steps)
    teacher = load_teacher()
    soft = kdlite.SoftLabels.build(teacher, (x, y), tempfile.mkdtemp(), verbose=0)
    labelled = soft.attach((x, y), batch_size=BATCH)
    plain = compiled(build_student())
    stored = compiled(kdlite.Distiller(build_student()))
    online = compiled(kdlite.Distiller(build_student(), teacher))
    theirs = compiled(
        keras.distillation.Distiller(
            teacher,
            build_student(),
            keras.distillation.LogitsDistillation(
                temperature=4.0, loss=keras.losses.KLDivergence()
            ),
            student_loss_weight=0.1,
        )
    )
    forward = tf.function(lambda batch: teacher(batch, training=False))

    batches = tf.data.Dataset.from_tensor_slices(x).batch(BATCH).prefetch(2)

    def teacher_forward() -> None:
        for batch in batches:
            forward(batch)

    def fit(model: keras.Model) -> Callable[[], Any]:
        return lambda: model.fit(x, y, batch_size=BATCH, verbose=0)

    def evaluate(model: keras.Model) -> Callable[[], Any]:
        return lambda: model.evaluate(x, y, batch_size=BATCH, verbose=0)

    return {
        "plain step": fit(plain),
        "kdlite step, stored soft labels": lambda: stored.fit(
            labelled, verbose=0, shuffle=False
        ),
        "teacher forward": teacher_forward,
        "kdlite step, teacher online": fit(online),
        "keras.distillation step": fit(theirs),
        "student.evaluate": evaluate(plain),
        "kdlite evaluate": evaluate(online),
        "keras.distillation evaluate": evaluate(theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        help="measurements of each variant (default %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="batches of a measurement (default %(default)s)",
    )
    args = parser.parse_args()
    runs = variants(args.steps)
    for run in runs.values():  # traces, and warms the caches
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - started) / args.steps)
    taken = {name: np.array(values) * 1e3 for name, values in times.items()}
    bases = {
        "plain step": ["plain step"],
        "teacher forward + plain step": ["teacher forward", "plain step"],
        "student.evaluate": ["student.evaluate"],
    }
    print(f"{'':34}  ms/batch  ratio   10-90 %      to")
    for name, base in (
        ("plain step", "plain step"),
        ("kdlite step, stored soft labels", "plain step"),
        ("kdlite step, teacher online", "teacher forward + plain step"),
        ("keras.distillation step", "teacher forward + plain step"),
        ("kdlite evaluate", "student.evaluate"),
        ("keras.distillation evaluate", "student.evaluate"),
    ):
        fastest = taken[name].min()
        ratio = fastest / sum(taken[part].min() for part in bases[base])
        in_rounds = taken[name] / sum(taken[part] for part in bases[base])
        low, high = np.quantile(in_rounds, [0.1, 0.9])
        print(
            f"{name:34}  {fastest:8.1f}  {ratio:5.2f}  {low:5.2f}-{high:.2f}   {base}"
        )
    print(versions())


if __name__ == "__main__":
    main()
