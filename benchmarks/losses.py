"""Which loss teaches best: every kind, at equal budget, on Fashion-MNIST.

    python benchmarks/losses.py --work losses [--samples N] [--views 4] ...
    python benchmarks/losses.py --work losses --only DIST NKD  # beside others

The demo's student learns from `--samples` training images in `--views`
augmented views, each seen once: the same images in the same order and from the
same initial weights for every method of a seed. The weight of each loss is
chosen on validation data, with a seed that is not reported; the last step is
measured on the test set. Results are kept in `--work`, a line each, so a run
that was stopped goes on, and several processes with an `--only` each share it;
without it, what is missing is trained and the table printed.

A method "separates" from plain training where the 95 % confidence interval of
its mean gain (paired by seed, Student's t) leaves out zero.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from versions import versions

import kdlite
from kdlite.datasets import fashion_mnist

if TYPE_CHECKING:
    import keras

Array = np.ndarray[Any, Any]

BATCH = 128
SELECTION_SEED = 1000

# The last layer before pooling of either network, and one in the middle.
LAST = ("block5_add", "block4_relu")
MIDDLE = ("block3_add", "block3_relu")

# Loss on outputs -> how it is made.
OUTPUT_LOSSES: dict[str, Callable[[], Any]] = {
    "SoftTargets, T=1": lambda: kdlite.losses.SoftTargets(temperature=1.0),
    "SoftTargets, T=2": lambda: kdlite.losses.SoftTargets(temperature=2.0),
    "SoftTargets, T=4": lambda: kdlite.losses.SoftTargets(temperature=4.0),
    "SoftTargets, reverse": lambda: kdlite.losses.SoftTargets(
        2.0, divergence="reverse"
    ),
    "SoftTargets, standardized": lambda: kdlite.losses.SoftTargets(
        2.0, standardize=True
    ),
    "LogitMSE": lambda: kdlite.losses.LogitMSE(),
    "HardLabel": lambda: kdlite.losses.HardLabel(),
    "DecoupledKD": lambda: kdlite.losses.DecoupledKD(),
    "NKD": lambda: kdlite.losses.NKD(),
    "DIST": lambda: kdlite.losses.DIST(),
}
# Soft-loss weights that are tried; the hard loss has 1 minus it, or what is given.
OUTPUT_WEIGHTS = (0.3, 0.9)
# Beside SoftTargets at T=2 with equal weights, at these weights of the feature loss.
FEATURE_LOSSES: dict[str, Callable[[], dict[tuple[str, str], Any]]] = {
    "Hint": lambda: {MIDDLE: kdlite.losses.Hint()},
    "AttentionTransfer": lambda: {
        MIDDLE: kdlite.losses.AttentionTransfer(),
        LAST: kdlite.losses.AttentionTransfer(),
    },
    "SimilarityPreserving": lambda: {LAST: kdlite.losses.SimilarityPreserving()},
    "RelationalKD": lambda: {LAST: kdlite.losses.RelationalKD()},
    "ProbabilisticTransfer": lambda: {LAST: kdlite.losses.ProbabilisticTransfer()},
    "Contrastive": lambda: {LAST: kdlite.losses.Contrastive()},
}
FEATURE_WEIGHTS = (0.1, 1.0)


class Bench:
    """The data, the teachers' word for it, and the results so far.

    Args:
        work: Where results, logits and plain students are kept.
        samples: Of the training images, the first so many.
        views: Of each image.
        seeds: That are reported.
    """

    def __init__(self, work: Path, samples: int, views: int, seeds: int) -> None:
        import tensorflow as tf

        from kdlite.demo.augment import shift_and_flip
        from kdlite.demo.teacher import load_teacher

        work.mkdir(parents=True, exist_ok=True)
        self.work, self.seeds = work, range(seeds)
        data = fashion_mnist()
        self.validation, self.test = tuple(data.validation), tuple(data.test)
        x, y = data.train.x[:samples], data.train.y[:samples]
        seed_pairs = tf.random.stateless_uniform(
            (views, len(x), 2), (7, 7), None, None, tf.int64
        )
        self.x = np.concatenate(
            [
                tf.map_fn(
                    lambda pair: shift_and_flip(*pair),
                    (x, seed_pairs[view]),
                    fn_output_signature=tf.uint8,
                ).numpy()
                for view in range(views)
            ]
        )
        self.y = np.tile(y, views)
        self.teacher = load_teacher()

    def result(self, key: str, split: str, make: Callable[[], keras.Model]) -> float:
        """Top-1 in percent, from the results file or by a training."""
        import keras

        log = self.work / "results.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        known = dict(json.loads(line) for line in lines)
        if key not in known:
            x, y = self.test if split == "test" else self.validation
            scores = make().predict(x, batch_size=500, verbose=0)
            known[key] = 100 * float((scores.argmax(-1) == y).mean())
            with log.open("a") as file:  # one short write, as others write too
                file.write(json.dumps([key, known[key]]) + "\n")
            keras.backend.clear_session()
            print(f"  {key}: {known[key]:.2f}", flush=True)
        return float(known[key])

    def of(self, method: Method) -> tuple[float, Array]:
        """The weight that is best on validation data, and each seed's top-1 with it."""
        weight = method.weights[0]
        if len(method.weights) > 1:
            weight = max(
                method.weights,
                key=lambda weight: self.result(
                    f"{method.name} | weight {weight} | validation",
                    "validation",
                    lambda: method.train(self, SELECTION_SEED, weight),
                ),
            )
        top1 = [
            self.result(
                f"{method.name} | weight {weight} | seed {seed}",
                "test",
                lambda seed=seed: method.train(self, seed, weight),
            )
            for seed in self.seeds
        ]
        return weight, np.array(top1)

    def fit(self, model: keras.Model, x: Any, seed: int) -> None:
        """Sees each view once, in the order of this seed."""
        import keras

        steps = len(self.y) // BATCH
        rows = np.random.default_rng(seed).permutation(len(self.y))[: steps * BATCH]
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, steps - steps // 10, warmup_target=6e-3, warmup_steps=steps // 10
        )
        model.compile(
            keras.optimizers.AdamW(schedule, weight_decay=1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(
            keras.tree.map_structure(lambda array: array[rows], x),
            self.y[rows],
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
        )

    def plain(self, seed: int) -> keras.Model:
        """A student that had no teacher."""
        import keras

        from kdlite.demo.models import build_student

        path = self.work / f"plain_{seed}.weights.h5"
        keras.utils.set_random_seed(seed)
        student = build_student()
        if path.exists():
            student.load_weights(path)
        else:
            self.fit(student, self.x, seed)
            partial = path.with_name(f"{os.getpid()}.weights.h5")
            student.save_weights(partial)
            partial.replace(path)
        return student

    def word(self, of: str) -> Array:
        """The logits of a teacher for all that is trained on, `(images, classes)`."""
        path = self.work / f"logits_{of}.npy"
        if not path.exists():
            # Students of other seeds than those that learn of them.
            others = [SELECTION_SEED + 1 + number for number in self.seeds]
            teacher = {
                "teacher": lambda: self.teacher,
                "one student": lambda: self.plain(others[0]),
                "students": lambda: kdlite.teachers.Ensemble(
                    [self.plain(seed) for seed in others]
                ),
            }[of]()
            logits = teacher.predict(self.x, batch_size=500, verbose=0)
            partial = path.with_name(f"{os.getpid()}.npy")
            np.save(partial, logits.astype("float32"))
            partial.replace(path)
        return np.load(path)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: Of the row.
        train: Makes a student of a seed, with a weight of the loss.
        weights: That are tried; one alone is taken.
    """

    name: str
    train: Callable[[Bench, int, float], keras.Model]
    weights: tuple[float, ...] = OUTPUT_WEIGHTS


def taught(name: str, loss: Callable[[], Any], by: str = "teacher") -> Method:
    """Learns from logits."""

    def train(bench: Bench, seed: int, weight: float) -> keras.Model:
        import keras

        from kdlite.demo.models import build_student

        word = bench.word(by)
        keras.utils.set_random_seed(seed)
        distiller = kdlite.Distiller(
            build_student(),
            soft_loss=loss(),
            hard_loss_weight=1.0 - weight,
            soft_loss_weight=weight,
        )
        bench.fit(distiller, {"inputs": bench.x, "soft_labels": word}, seed)
        return distiller.student

    return Method(name, train)


def shown(name: str, features: Callable[[], dict[tuple[str, str], Any]]) -> Method:
    """Learns from logits and from features."""

    def train(bench: Bench, seed: int, weight: float) -> keras.Model:
        import keras

        from kdlite.demo.models import build_student

        keras.utils.set_random_seed(seed)
        pairs = features()
        distiller = kdlite.Distiller(
            build_student(),
            bench.teacher,
            soft_loss=kdlite.losses.SoftTargets(temperature=2.0),
            hard_loss_weight=0.5,
            soft_loss_weight=0.5,
            feature_losses={
                pair: (loss, weight / len(pairs)) for pair, loss in pairs.items()
            },
        )
        bench.fit(distiller, bench.x, seed)
        return distiller.student

    return Method(f"SoftTargets, T=2 + {name}", train, FEATURE_WEIGHTS)


PLAIN = Method("plain", lambda bench, seed, _: bench.plain(seed), (0.0,))
SOFT_TARGETS = OUTPUT_LOSSES["SoftTargets, T=2"]
METHODS = [
    PLAIN,
    *(taught(name, loss) for name, loss in OUTPUT_LOSSES.items()),
    taught("born again: of one student", SOFT_TARGETS, by="one student"),
    taught("ensemble of students", SOFT_TARGETS, by="students"),
    *(shown(name, features) for name, features in FEATURE_LOSSES.items()),
]


def table(bench: Bench, methods: Sequence[Method]) -> str:
    """A row a method, with its gain over plain training."""
    from scipy import stats

    plain = bench.of(PLAIN)[1]
    lines = [f"{'method':42} weight  top-1 %       gain over plain, 95 % interval"]
    for method in methods:
        weight, top1 = bench.of(method)
        line = (
            f"{method.name:42} {weight:6g}  {top1.mean():.2f} ± {top1.std(ddof=1):.2f}"
        )
        if method is not PLAIN:
            gains = top1 - plain
            half = float(
                stats.t.ppf(0.975, len(gains) - 1)
                * gains.std(ddof=1)
                / np.sqrt(len(gains))
            )
            verdict = "separates" if abs(gains.mean()) > half else "does not separate"
            line += f"  {gains.mean():+.2f} ± {half:.2f}  {verdict}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder to go on in")
    parser.add_argument(
        "--samples",
        type=int,
        default=10_000,
        help="training images (default %(default)s)",
    )
    parser.add_argument(
        "--views",
        type=int,
        default=4,
        help="augmented views of each image (default %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="trainings of each method, 2 at least (default %(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        help="methods whose name has one of these parts (default: all)",
    )
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds is at least 2, for a spread. Received: {args.seeds}.")
    bench = Bench(args.work, args.samples, args.views, args.seeds)
    methods = [
        method
        for method in METHODS
        if args.only is None or any(part in method.name for part in args.only)
    ]
    print(table(bench, methods))
    print(versions())


if __name__ == "__main__":
    main()
