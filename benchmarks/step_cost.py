"""What a distillation step costs, as ratios within one run.

    python benchmarks/step_cost.py [--rounds 15] [--steps 20]

All variants train the demo's student on the same batches; they take turns, so that a
busy moment of the machine hits all alike. Of each variant the median over the rounds is
taken; the spread is that of the ratio between neighbouring turns (10th to 90th
percentile).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kdlite
from kdlite.demo.models import build_student
from kdlite.demo.teacher import load_teacher

BATCH = 128


def compiled(model: keras.Model) -> keras.Model:
    model.compile(
        keras.optimizers.AdamW(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def variants(steps: int) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (BATCH * steps, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, BATCH * steps)
    teacher = load_teacher()
    logits = teacher.predict(x, batch_size=500, verbose=0)

    def dataset(*parts: Any) -> tf.data.Dataset:
        data = tf.data.Dataset.from_tensor_slices(parts).batch(BATCH)
        return data.cache().prefetch(2)

    plain_data = dataset(x, y)
    stored_data = dataset({"inputs": x, "soft_labels": logits}, y)
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

    def teacher_forward() -> None:
        for batch, _ in plain_data:
            forward(batch)

    def fit(model: keras.Model, data: tf.data.Dataset) -> Callable[[], Any]:
        return lambda: model.fit(data, verbose=0, shuffle=False)

    def evaluate(model: keras.Model) -> Callable[[], Any]:
        return lambda: model.evaluate(plain_data, verbose=0)

    return {
        "plain step": fit(plain, plain_data),
        "kdlite step, stored soft labels": fit(stored, stored_data),
        "teacher forward": teacher_forward,
        "kdlite step, teacher online": fit(online, plain_data),
        "keras.distillation step": fit(theirs, plain_data),
        "student.evaluate": evaluate(plain),
        "kdlite evaluate": evaluate(online),
        "keras.distillation evaluate": evaluate(theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
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
    both = taken["plain step"] + taken["teacher forward"]
    print(
        f"kdlite {kdlite.__version__}, keras {keras.__version__}, TF {tf.__version__}"
    )
    print(f"{'':34}  ms/batch  ratio   10-90 %      to")
    for name, base, base_name in (
        ("plain step", taken["plain step"], "plain step"),
        ("kdlite step, stored soft labels", taken["plain step"], "plain step"),
        ("kdlite step, teacher online", both, "teacher forward + plain step"),
        ("keras.distillation step", both, "teacher forward + plain step"),
        ("kdlite evaluate", taken["student.evaluate"], "student.evaluate"),
        ("keras.distillation evaluate", taken["student.evaluate"], "student.evaluate"),
    ):
        ratio = taken[name] / base
        low, high = np.quantile(ratio, [0.1, 0.9])
        print(
            f"{name:34}  {np.median(taken[name]):8.1f}  {np.median(ratio):5.2f}  "
            f"{low:5.2f}-{high:.2f}   {base_name}"
        )


if __name__ == "__main__":
    main()
