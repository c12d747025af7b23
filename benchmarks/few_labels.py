"""Where distillation matters most: few labels, many unlabelled images, a good teacher.

    python benchmarks/few_labels.py [--shares 0.01 0.1] [--epochs 3] [--seeds 3]

For 1 % and 10 % of the labels of Fashion-MNIST's training set, two students of the same
architecture take the same number of steps: one sees the labelled images alone, the
other all images with the teacher's soft labels, and the labels where there are any. The
teacher was trained on all labels: it stands for the model that a user already has.
Nothing is chosen here; the last epoch is measured on the test set.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from versions import versions

import kdlite
from kdlite.datasets import fashion_mnist

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

BATCH = 128
UNLABELLED = -1


def compiled(model: keras.Model, steps: int) -> keras.Model:
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=6e-3, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-3),
        # Unlabelled images have no hard loss.
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=UNLABELLED
        ),
    )
    return model


def labelled_part(y: np.ndarray, share: float) -> np.ndarray:
    """As many of each class, the first ones: a mask of `(samples,)`."""
    chosen = np.zeros(len(y), bool)
    for label in range(10):
        rows = np.flatnonzero(y == label)
        chosen[rows[: round(share * len(rows))]] = True
    return chosen


def plain_batches(x: np.ndarray, y: np.ndarray, seed: int) -> tf.data.Dataset:
    import tensorflow as tf

    from kdlite.demo.augment import shift_and_flip

    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    samples = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed).repeat()
    pairs = tf.data.Dataset.zip(samples, seeds.batch(2))
    return (
        pairs.map(
            lambda sample, draw: (
                shift_and_flip(sample[0], tf.cast(draw, tf.int64)),
                sample[1],
            )
        )
        .batch(BATCH)
        .prefetch(2)
    )


def top1(model: keras.Model, data: tuple[np.ndarray, np.ndarray]) -> float:
    scores = model.predict(data[0], batch_size=500, verbose=0)
    return 100 * float((scores.argmax(-1) == data[1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.01, 0.1],
        metavar="SHARE",
        help="of the labels that are known (default 0.01 0.1)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=3,
        help="over all images; those with few take as many steps (default %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="trainings of each student (default %(default)s)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="folder to keep the soft labels in (default: a temporary one)",
    )
    args = parser.parse_args()
    import keras

    from kdlite.demo.augment import shift_and_flip
    from kdlite.demo.models import build_student
    from kdlite.demo.teacher import load_teacher

    data = fashion_mnist()
    work = args.work or Path(tempfile.mkdtemp())
    soft = kdlite.SoftLabels.build(
        load_teacher(),
        tuple(data.train),
        work / "labels",
        augment=shift_and_flip,
        views=2,
    )
    steps = len(data.train.x) // BATCH * args.epochs
    print("labels   images   plain        distilled    gain")
    for share in args.shares:
        chosen = labelled_part(data.train.y, share)
        figures = []
        for seed in range(args.seeds):
            keras.utils.set_random_seed(seed)
            plain = compiled(build_student(), steps)
            plain.fit(
                plain_batches(data.train.x[chosen], data.train.y[chosen], seed),
                steps_per_epoch=steps // args.epochs,
                epochs=args.epochs,
                verbose=0,
                shuffle=False,
            )
            keras.utils.set_random_seed(seed)
            distiller = compiled(
                kdlite.Distiller(
                    build_student(),
                    soft_loss=kdlite.losses.SoftTargets(temperature=2.0),
                    # The hard loss is a mean over the labelled images of a batch:
                    # by their share, a label counts as much as the teacher's word.
                    hard_loss_weight=0.5 * share,
                    soft_loss_weight=0.5,
                ),
                steps,
            )
            known = np.where(chosen, data.train.y, UNLABELLED)
            distiller.fit(
                soft.attach(
                    (data.train.x, known),
                    batch_size=BATCH,
                    seed=seed,
                    augment=shift_and_flip,
                    drop_remainder=True,
                ),
                epochs=args.epochs,
                verbose=0,
                shuffle=False,
            )
            figures.append((top1(plain, data.test), top1(distiller.student, data.test)))
        plain_top1, distilled = np.array(figures).T
        deviation = [
            np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in (plain_top1, distilled)
        ]
        print(
            f"{share:6.0%}  {chosen.sum():7,}"
            f"   {plain_top1.mean():.2f} ±{deviation[0]:.2f}"
            f"  {distilled.mean():.2f} ±{deviation[1]:.2f}"
            f"  {(distilled - plain_top1).mean():+.2f}",
            flush=True,
        )
    print(versions())


if __name__ == "__main__":
    main()
