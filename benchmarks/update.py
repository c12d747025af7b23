"""An updated teacher, an existing student: what a tenth of the data and compute gains.

    python benchmarks/update.py --out update [--seeds 3] [--epochs 10] [--images N]

On Fashion-MNIST, two updates of a student that was distilled before (three strided
convolutions, 24,282 parameters, quick to train):

- classes: its teacher knew the first eight classes, and now knows all ten. The old
  teacher is the first eight logits of the demo's teacher.
- better: its teacher was trained on a tenth of the images, and taught without labels;
  the new one is the demo's teacher, trained on all of them.

Each student is updated by `kdlite.update`, on a tenth of the images (new ones and a
replay buffer) for a tenth of the training samples that full retraining takes, with its
gate on the 5,000 validation images; by plain fine-tuning on the labels of the new
images; by LwF (labels of the new images, and the old student's own outputs on them);
and it is trained anew on everything. What each of the two limits costs, `kdlite.update`
shows with all images for a tenth of the compute, and with a tenth of them for all of
it. All learn at the same temperature. Nothing is chosen on the test set. Stopped, the
same command goes on where it was.

Reference: Li and Hoiem 2016, Learning without Forgetting, arXiv:1606.09282.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
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

OLD_CLASSES, CLASSES, BATCH = 8, 10, 128
SCENARIOS = ("classes", "better")
METHODS = (
    "old student",
    "kdlite.update",
    "with all images",
    "with all compute",
    "fine-tuning",
    "LwF",
    "full retraining",
)


class Bench:
    """Models, data and figures of a run, each of which is made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        from kdlite.demo.teacher import load_teacher

        self.args = args
        self.out = args.out
        self.out.mkdir(parents=True, exist_ok=True)
        data = fashion_mnist()
        count = args.images or len(data.train.y)
        self.x, self.y = data.train.x[:count].astype("float32"), data.train.y[:count]
        self.validation = data.validation.x.astype("float32"), data.validation.y
        self.test = data.test.x.astype("float32"), data.test.y
        self.teacher = load_teacher()
        self.logits = self.kept("teacher_logits.npy", self.teacher_logits)
        self.settings = {
            name: getattr(args, name)
            for name in ("epochs", "images", "share", "learning_rate", "temperature")
        }
        settings = self.out / "settings.json"
        if not settings.exists():
            settings.write_text(json.dumps(self.settings))
        if json.loads(settings.read_text()) != self.settings:
            raise SystemExit(f"{self.out} is of other settings: take another folder")

    def kept(self, name: str, make: Callable[[], Array]) -> Array:
        path = self.out / name
        if not path.exists():
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, make())
            os.replace(temporary, path)
        return np.load(path)

    def model(self, name: str, make: Callable[[], keras.Model]) -> keras.Model:
        import keras

        path = self.out / f"{name.replace(' ', '_')}.keras"
        if path.exists():
            return keras.models.load_model(path)
        model = make()
        temporary = path.with_suffix(".tmp.keras")
        model.save(temporary)
        os.replace(temporary, path)
        return model

    def teacher_logits(self) -> Array:
        return self.teacher.predict(self.x, batch_size=500, verbose=0)

    def first_classes(self) -> keras.Model:
        """The old teacher of `classes`: all that it says of the first eight."""
        import keras

        head = self.teacher.layers[-1]
        old = keras.layers.Dense(OLD_CLASSES, name="old_logits")
        model = keras.Model(self.teacher.input, old(head.input))
        kernel, bias = head.get_weights()
        old.set_weights([kernel[:, :OLD_CLASSES], bias[:OLD_CLASSES]])
        return model

    def weak_teacher(self) -> keras.Model:
        """The old teacher of `better`: as many steps, on a tenth of the images."""
        import keras

        def make() -> keras.Model:
            rows = np.arange(0, len(self.y), 10)
            keras.utils.set_random_seed(1000)
            model = network(2, CLASSES)
            compiled(model, len(rows), self.args.epochs, 6e-3)
            model.fit(
                self.x[rows],
                self.y[rows],
                batch_size=BATCH,
                epochs=self.args.epochs,
                verbose=0,
            )
            return model

        return self.model("weak_teacher", make)

    def distilled(
        self, name: str, rows: Array, logits: Array, seed: int, labels: bool
    ) -> keras.Model:
        """A student trained on all of its data, from nothing."""
        import keras

        def make() -> keras.Model:
            keras.utils.set_random_seed(seed)
            student = network(1, logits.shape[1])
            distiller = kdlite.Distiller(
                student,
                soft_loss=kdlite.losses.SoftTargets(self.args.temperature),
                hard_loss_weight=0.1 if labels else 0.0,
            )
            compiled(distiller, len(rows), self.args.epochs, 6e-3)
            x = {"inputs": self.x[rows], "soft_labels": logits}
            distiller.fit(
                x, self.y[rows], batch_size=BATCH, epochs=self.args.epochs, verbose=0
            )
            return student

        return self.model(name, make)

    def old_student(self, scenario: str, seed: int) -> keras.Model:
        name = f"{scenario}_old_{seed}"
        if scenario == "classes":
            rows = np.flatnonzero(self.y < OLD_CLASSES)
            return self.distilled(
                name, rows, self.logits[rows, :OLD_CLASSES], seed, labels=True
            )
        rows = np.arange(len(self.y))
        weak = self.kept(
            "weak_logits.npy",
            lambda: self.weak_teacher().predict(self.x, batch_size=500, verbose=0),
        )
        return self.distilled(name, rows, weak, seed, labels=False)

    def full(self, scenario: str, seed: int) -> keras.Model:
        # One and the same training in both scenarios: all images, the new teacher.
        return self.distilled(
            f"full_{seed}", np.arange(len(self.y)), self.logits, seed, labels=True
        )

    def parts(self, scenario: str, seed: int, share: float) -> tuple[Array, Array]:
        """Rows of the new images, and of the old ones to choose a replay buffer from.

        Together with the buffer the new ones are a share of all images.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.y))
        budget = round(share * len(self.y))
        if scenario == "better":
            return order[: budget // 2], order[budget // 2 :]
        new = order[self.y[order] >= OLD_CLASSES]
        share = (CLASSES - OLD_CLASSES) / CLASSES
        return new[: round(budget * share)], order[self.y[order] < OLD_CLASSES]

    def updated(
        self, scenario: str, seed: int, share: float, epochs: int
    ) -> kdlite.UpdateResult:
        new, old = self.parts(scenario, seed, share)
        old_teacher = (
            self.first_classes() if scenario == "classes" else self.weak_teacher()
        )
        old_logits = (
            self.logits[:, :OLD_CLASSES]
            if scenario == "classes"
            else np.load(self.out / "weak_logits.npy")
        )
        replay = kdlite.ReplayBuffer.build(
            old_logits[old],
            (self.x[old], self.y[old]),
            size=round(share * len(self.y)) - len(new),
            uncertain=self.args.uncertain,
            seed=seed,
        )
        return kdlite.update(
            self.old_student(scenario, seed),
            self.teacher,
            (self.x[new], self.y[new]),
            replay=replay,
            old_teacher=old_teacher,
            soft_loss=kdlite.losses.SoftTargets(self.args.temperature),
            validation_data=self.validation,
            max_forgetting_points=self.args.gate,
            epochs=epochs,
            learning_rate=self.args.learning_rate,
            difference_weight=self.args.difference_weight,
            seed=seed,
            verbose=0,
        )

    def without_replay(self, scenario: str, seed: int, lwf: bool) -> keras.Model:
        """Fine-tuning on the labels of a tenth of the images, all of them new."""
        import keras

        from kdlite.distill.growth import copy_student

        new, old = self.parts(scenario, seed, self.args.share)
        if scenario == "better":
            new = np.concatenate([new, old])[: round(self.args.share * len(self.y))]
        else:
            new = np.flatnonzero(self.y >= OLD_CLASSES)
            new = new[: round(self.args.share * len(self.y))]
        before = self.old_student(scenario, seed)
        classes = before.output_shape[-1]
        keras.utils.set_random_seed(seed)
        student = copy_student(before, CLASSES)
        if not lwf:
            compiled(student, len(new), self.args.epochs, self.args.learning_rate)
            student.fit(
                self.x[new],
                self.y[new],
                batch_size=64,
                epochs=self.args.epochs,
                verbose=0,
            )
            return student
        words = before.predict(self.x[new], batch_size=500, verbose=0)
        distiller = kdlite.Distiller(
            student,
            soft_loss=soft_targets_of_first(classes, self.args.temperature),
            hard_loss_weight=1.0,
            soft_loss_weight=1.0,
        )
        compiled(distiller, len(new), self.args.epochs, self.args.learning_rate)
        # The loss looks at the old classes alone; the others are there for the shape.
        padded = np.pad(words, ((0, 0), (0, CLASSES - classes)))
        distiller.fit(
            {"inputs": self.x[new], "soft_labels": padded},
            self.y[new],
            batch_size=64,
            epochs=self.args.epochs,
            verbose=0,
        )
        return student

    def scores(self, scenario: str, method: str, seed: int) -> dict[str, float]:
        """Top-1 in percent on the test set, of all classes and of old ones."""
        path = self.out / "scores.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        name = f"{scenario}, {method}, {seed}"
        if name not in known:
            if method == "old student":
                model = self.old_student(scenario, seed)
            elif method == "full retraining":
                model = self.full(scenario, seed)
            elif method in ("kdlite.update", "with all images", "with all compute"):
                share, epochs = self.args.share, self.args.epochs
                if method == "with all images":
                    share, epochs = 1.0, max(1, round(epochs * share))
                elif method == "with all compute":
                    epochs = round(epochs / share)
                try:
                    result = self.updated(scenario, seed, share, epochs)
                except kdlite.ForgettingError as refused:
                    result = refused.result
                    print("refused by the gate on validation data")
                model = result.student
            else:
                model = self.without_replay(scenario, seed, lwf=method == "LwF")
            known[name] = {
                split: measured(model, data, scenario)
                for split, data in (
                    ("test", self.test),
                    ("validation", self.validation),
                )
            }
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(known, indent=1))
            os.replace(temporary, path)
            print(name, known[name], flush=True)
        return known[name][self.args.split]


def soft_targets_of_first(classes: int, temperature: float) -> Any:
    """LwF's loss: soft targets over the old classes."""

    class FirstClasses(kdlite.losses.SoftTargets):
        def values(self, teacher_logits: Any, student_logits: Any, targets: Any) -> Any:
            cut = [v[..., :classes] for v in (teacher_logits, student_logits)]
            return super().values(*cut, targets)

    return FirstClasses(temperature)


def measured(
    model: keras.Model, data: tuple[Array, Array], scenario: str
) -> dict[str, float]:
    right = model.predict(data[0], batch_size=500, verbose=0).argmax(-1) == data[1]
    old = data[1] < (OLD_CLASSES if scenario == "classes" else CLASSES)
    return {"all": 100 * float(right.mean()), "old": 100 * float(right[old].mean())}


def network(width: int, classes: int) -> keras.Model:
    import keras

    layers = keras.layers
    x = inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255.0)(x)
    for filters in (16, 32, 64):
        x = layers.Conv2D(
            width * filters, 3, strides=2, padding="same", use_bias=False
        )(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x))


def compiled(
    model: keras.Model, samples: int, epochs: int, learning_rate: float
) -> None:
    import keras

    steps = max(1, samples // BATCH * epochs)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                0.0,
                max(1, steps - steps // 10),
                warmup_target=learning_rate,
                warmup_steps=max(1, steps // 10),
            )
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def table(scores: dict[str, list[dict[str, float]]], scenario: str) -> str:
    old, full = (scores[name] for name in ("old student", "full retraining"))
    lines = [f"{scenario:17}  all classes   old classes   of the gain   lost on old"]
    for method in METHODS:
        rows = scores[method]
        values = {key: np.array([row[key] for row in rows]) for key in ("all", "old")}
        gain = [
            100 * (row["all"] - o["all"]) / (f["all"] - o["all"])
            for row, o, f in zip(rows, old, full, strict=True)
        ]
        lost = [o["old"] - row["old"] for row, o in zip(rows, old, strict=True)]
        lines.append(
            f"{method:17}  {spread(values['all'])}  {spread(values['old'])}"
            f"  {np.mean(gain):10.1f}%  {np.mean(lost):+8.2f} (worst {max(lost):+.2f})"
        )
    return "\n".join(lines)


def spread(values: Array) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():6.2f} ±{deviation:4.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to go on in")
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="trainings of each method (default %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=10,
        help="over the images that a method has (default %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.1,
        help="of the data and the compute that an update has (default %(default)s)",
    )
    parser.add_argument(
        "--images", type=int, help="of the training set, for a short run (default: all)"
    )
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=2e-3,
        help="of updates (default %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="of all soft targets (default %(default)s)",
    )
    parser.add_argument(
        "--gate",
        type=float,
        default=0.5,
        help="points that an update may lose on validation data (default %(default)s)",
    )
    parser.add_argument(
        "--difference-weight",
        type=float,
        default=1.0,
        help="weight of what the two teachers differ in (default %(default)s)",
    )
    parser.add_argument(
        "--uncertain",
        type=float,
        default=0.25,
        help="part of the replay in which the teacher is unsure (default %(default)s)",
    )
    parser.add_argument(
        "--scenario",
        choices=SCENARIOS,
        action="append",
        help="may be given again (default: both)",
    )
    parser.add_argument(
        "--split",
        choices=["test", "validation"],
        default="test",
        help="the images that figures are of (default %(default)s)",
    )
    args = parser.parse_args()
    bench = Bench(args)
    for scenario in args.scenario or SCENARIOS:
        scores = {
            method: [bench.scores(scenario, method, s) for s in range(args.seeds)]
            for method in METHODS
        }
        print(f"\n{table(scores, scenario)}\n", flush=True)
    print(versions())


if __name__ == "__main__":
    main()
