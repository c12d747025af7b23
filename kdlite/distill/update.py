"""An existing student learns from an updated teacher, without all of the old data."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kdlite.counts import checked_count
from kdlite.distill.augment import Augment, check_unmixed
from kdlite.distill.distiller import Distiller
from kdlite.distill.growth import copy_student, fit_new_rows
from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.replay import ReplayBuffer, predict, probabilities
from kdlite.distill.samples import DataSet, Samples
from kdlite.distill.schedules import checked_number
from kdlite.distill.soft_labels import SoftLabels
from kdlite.distill.taps import LogitsModel, logits_model
from kdlite.distill.targets import UNLABELLED, check_label_range, class_indices
from kdlite.working_folder import working_folder

Array = np.ndarray[Any, Any]

# How far to go from the weights that training began with to those it ended with; the
# middle remembers more, and often knows as much.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


@dataclass(frozen=True)
class ClassScore:
    """How one class fared.

    Attributes:
        index: The class.
        samples: Number of validation samples of it.
        before: Part of them that the student got right, in 0..1; 0 for a new class.
        after: The same of the updated student.
    """

    index: int
    samples: int
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class UpdateResult:
    """An updated student, what it gained and lost, and what that took.

    Attributes:
        student: The updated student, a plain `keras.Model`; the one given stays as it
            was.
        old_classes: Number of classes that the student had.
        classes: Number that it has now; new ones come last.
        per_class: By class, before and after; empty without validation data.
        top1_before: Of the old student on all validation samples, in 0..1, or None.
        top1_after: Of the updated one.
        old_top1_before: On the samples of old classes alone.
        old_top1_after: Of the updated one. A sample taken for a new class counts as
            lost.
        max_forgetting_points: The gate: how many points of `old_top1` it may lose.
        share: How far the weights went from those at the start of training to those at
            its end, in 0.5..1.
        new_samples: Number of new samples used.
        replay_samples: Number of old ones.
        student_samples: Samples that the student was trained on, over all epochs.
        teacher_samples: Samples that a teacher was run on.
        seconds: How long it took.
    """

    student: keras.Model = field(repr=False)
    old_classes: int
    classes: int
    per_class: tuple[ClassScore, ...]
    top1_before: float | None
    top1_after: float | None
    old_top1_before: float | None
    old_top1_after: float | None
    max_forgetting_points: float | None
    share: float
    new_samples: int
    replay_samples: int
    student_samples: int
    teacher_samples: int
    seconds: float

    @property
    def forgotten_points(self) -> float | None:
        """Points of top-1 lost on old classes; less than 0 is a gain."""
        if self.old_top1_before is None or self.old_top1_after is None:
            return None
        return 100.0 * (self.old_top1_before - self.old_top1_after)

    @property
    def passed(self) -> bool:
        """Whether the gate is kept, or there is none."""
        forgotten, limit = self.forgotten_points, self.max_forgetting_points
        # A hair for the rounding of a difference of means.
        return limit is None or (forgotten is not None and forgotten <= limit + 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the student, as JSON takes it."""
        fields = {
            name: value for name, value in vars(self).items() if name != "student"
        }
        fields["per_class"] = [vars(score) for score in self.per_class]
        return {
            **fields,
            "forgotten_points": self.forgotten_points,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        """A table by class, and what it took."""
        lines = []
        if self.per_class:
            lines.append("class  samples  before   after")
            lines += [
                f"{s.index:5}  {s.samples:7,}  {s.before:6.1%}  {s.after:6.1%}"
                + ("  new" if s.index >= self.old_classes else "")
                for s in self.per_class
            ]
            told = f"all: {self.top1_before:.2%} before, {self.top1_after:.2%} after"
            if self.forgotten_points is not None:  # there were samples of old classes
                told += (
                    f"; {self.forgotten_points:+.2f} points forgotten on old classes"
                )
            lines.append(told)
        lines.append(
            f"{self.new_samples:,} new samples, {self.replay_samples:,} old ones; "
            f"{self.student_samples:,} training samples, {self.seconds:.0f} s"
        )
        return "\n".join(lines)


class ForgettingError(RuntimeError):
    """The updated student lost more on old classes than is allowed.

    Attributes:
        result: What it gained and lost; its `student` is the one that was refused.
    """

    def __init__(self, result: UpdateResult) -> None:
        self.result = result
        old = [s.samples for s in result.per_class if s.index < result.old_classes]
        super().__init__(
            "An updated student must not forget its old classes. Received: "
            f"{result.forgotten_points:.2f} points of top-1 lost on {sum(old):,} "
            f"samples of old classes, where {result.max_forgetting_points:g} are "
            "allowed. The student given is unchanged. Fix: a larger replay buffer, "
            "fewer epochs, or a smaller learning rate; or allow more with "
            f"max_forgetting_points.\n{result}"
        )


def update(
    student: keras.Model,
    new_teacher: keras.Model | LogitsModel,
    new_data: DataSet,
    *,
    replay: ReplayBuffer | None = None,
    old_teacher: keras.Model | LogitsModel | None = None,
    validation_data: tuple[Array, Array] | None = None,
    max_forgetting_points: float | None = 0.5,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    soft_loss: keras.distillation.DistillationLoss | None = None,
    hard_loss_weight: float = 0.1,
    soft_loss_weight: float = 0.9,
    difference_weight: float = 1.0,
    augment: Augment | None = None,
    views: int = 1,
    seed: int = 0,
    verbose: str | int = "auto",
) -> UpdateResult:
    r"""Teaches an existing student what an updated teacher knows better, or more.

    The student goes on from where it is, on new data and a few old samples, both
    labelled by the new teacher. It need not see all of the old data again.

    - A teacher with more classes makes the student's head grow: old rows stay as they
      are, new ones begin where a regression puts them (`kdlite.distill.growth`).
    - A sample counts the more, the more the teachers differ about it. With the
      Jensen-Shannon divergence in units of $\log 2$, which lies in 0..1,

      $$ w = 1 + d \, \mathrm{JS}(p_{old}, p_{new}) / \log 2 $$

      brought to a mean of 1, with `difference_weight` as `d`. The old teacher's word is
      stored in the replay buffer; of new samples `old_teacher` is asked, or else the
      student as it was.
    - Weights between those at the start and those at the end of training remember more,
      and often know as much. Of six such averages, the one that is best on validation
      data is taken among those that keep the gate: the student may lose so many points
      on old classes and no more. If none keeps it, the student is refused.

    Args:
        student: The trained student; it is not changed. Float, with one input.
        new_teacher: The updated teacher. Its first classes are the student's, in the
            same order; more may follow.
        new_data: `x` or `(x, y)` in any form that `SoftLabels.build` takes, held in
            memory. Without `y`, or where it is -1, the teacher alone teaches.
        replay: Old samples, from `ReplayBuffer.build`. Without them a student forgets
            what is not in the new data.
        old_teacher: The teacher of then, if it is at hand.
        validation_data: `(x, y)` of all classes, for the average, the gate and the
            table: arrays, y class indices. Without it the weights at the end are taken.
        max_forgetting_points: Most points of top-1 on old classes that may be lost;
            `None` for no gate.
        epochs: Passes over new and old samples.
        batch_size: Samples a step.
        learning_rate: Highest one; it falls along a cosine, after a warm-up over a
            tenth of the steps.
        soft_loss: As for `Distiller`, on class logits; `SoftTargets(1.0)` by default,
            which did better than higher temperatures where it was measured.
        hard_loss_weight: Weight of the labels, if there are any.
        soft_loss_weight: Weight of the teacher.
        difference_weight: `d` >= 0 above; 0 weighs all samples alike.
        augment: Stateless augmentation, as for `SoftLabels.build`.
        views: Augmented views of each sample, each labelled once.
        seed: For the order of samples.
        verbose: As for `fit`; `"auto"` says nothing but on a terminal.

    Returns:
        The updated student in `result.student`, with the figures; it prints well.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the teacher has fewer classes than the student, samples, labels
            and models do not fit together, a number is out of range, or there is a
            gate and no validation data of old classes; before any training.
        ForgettingError: If the gate is missed.

    Example:
        >>> import keras, numpy as np
        >>> def net(units):
        ...     return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
        >>> old, student, new = net(2), net(2), net(3)
        >>> for model, units in ((old, 2), (student, 2), (new, 3)):
        ...     model.set_weights([6.0 * np.eye(3, units), np.zeros(units)])
        >>> y = np.arange(90) % 3
        >>> x = np.eye(3)[y] + 0.1 * np.random.default_rng(0).normal(size=(90, 3))
        >>> replay = ReplayBuffer.build(old, (x[y < 2], y[y < 2]), size=20)
        >>> result = update(
        ...     student, new, x[y == 2], replay=replay, validation_data=(x, y),
        ...     verbose=0,
        ... )
        >>> result.student.output_shape, result.forgotten_points
        ((None, 3), 0.0)

    Reference:
        Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal; van de Ven
        and Tolias 2019, Three scenarios for continual learning, arXiv:1904.07734, on
        why replay is needed where classes must be told apart; Wortsman et al. 2021,
        Robust fine-tuning of zero-shot models, arXiv:2109.01903, on the average.
    """
    began = time.monotonic()
    check_unmixed(augment, "update")
    checked_number("difference_weight", difference_weight)
    checked_number("learning_rate", learning_rate, above=0.0)
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        checked_count(name, value, fix="leave it out for the default")
    before = logits_model(student, role="student")
    teacher = logits_model(new_teacher, role="new_teacher")
    old_classes, classes = _classes(before, teacher)
    x, y = _in_memory(new_data, before, classes)
    gate = _Gate(before, old_classes, classes, validation_data, max_forgetting_points)
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(
            "New samples must be finite. Received: new_data with NaN or infinity. Fix: "
            "clean or drop these samples."
        )
    if replay is not None:
        _check_replay(replay, x, old_classes, classes)
        everything = np.concatenate([x, replay.x.astype(x.dtype, copy=False)])
        labels = np.concatenate([y, replay.y])
    else:
        everything, labels = x, y

    grown = copy_student(student, classes)
    with working_folder("update") as folder:
        soft = SoftLabels.build(
            teacher,
            everything,
            folder / "labels",
            augment=augment,
            views=views,
            seed=seed,
            verbose=0,
        )
        plain = predict(teacher, everything) if augment else soft.logits()
        if classes > old_classes:
            fit_new_rows(grown, everything, plain, old_classes)
        old_logits = _old_word(old_teacher, before, x, replay)
        weights = _difference_weights(old_logits, plain, difference_weight)
        distiller = Distiller(
            grown,
            soft_loss=soft_loss or SoftTargets(1.0),
            # The hard loss is a mean over those that have a label: by their share, a
            # label counts as much whether others have one or not.
            hard_loss_weight=hard_loss_weight * float((labels != UNLABELLED).mean()),
            soft_loss_weight=soft_loss_weight,
        )
        steps = -(-len(everything) // batch_size) * epochs
        warmup = max(1, steps // 10)
        distiller.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(
                    0.0,
                    decay_steps=max(1, steps - warmup),
                    warmup_target=learning_rate,
                    warmup_steps=warmup,
                )
            ),
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=logits_model(grown).outputs == "logits",
                ignore_class=UNLABELLED,
            ),
        )
        train = soft.attach(
            (everything, labels, weights),
            batch_size=batch_size,
            augment=augment,
            seed=seed,
        )
        start = grown.get_weights()
        distiller.fit(train, epochs=epochs, shuffle=False, verbose=_verbosity(verbose))
    result = gate.best_average(
        grown,
        start,
        new_samples=len(x),
        replay_samples=0 if replay is None else len(replay),
        student_samples=len(everything) * epochs,
        teacher_samples=len(everything) * (views + bool(augment))
        + (len(x) if old_teacher is not None else 0),
        seconds=time.monotonic() - began,
    )
    if not result.passed:
        raise ForgettingError(result)
    return result


class _Gate:
    """Validation data, with what the student made of them before."""

    def __init__(
        self,
        before: LogitsModel,
        old_classes: int,
        classes: int,
        data: tuple[Array, Array] | None,
        limit: float | None,
    ) -> None:
        self._counts = (old_classes, classes)
        self._limit = limit
        self._data: tuple[Array, Array] | None = None
        if limit is not None:
            checked_number("max_forgetting_points", limit)
        if data is None:
            if limit is None:
                return
            raise ValueError(
                "A gate on forgetting needs labelled samples of the old classes. "
                f"Received: max_forgetting_points={limit:g}, validation_data=None. "
                "Fix: give validation_data=(x, y), or max_forgetting_points=None."
            )
        x, y = np.asarray(data[0]), class_indices(np.asarray(data[1]), classes)
        check_label_range(y, classes, name="validation_data")
        if limit is not None and not (y < old_classes).any():
            raise ValueError(
                "A gate on forgetting needs labelled samples of the old classes. "
                f"Received: validation_data with none of the {old_classes} first "
                "classes. Fix: add some, or give max_forgetting_points=None."
            )
        self._data = x, y
        self._right = predict(before, x).argmax(-1) == y

    def best_average(
        self, student: keras.Model, start: list[Array], **what_it_took: Any
    ) -> UpdateResult:
        """Sets the weights that do best of those that keep the gate.

        Args:
            student: After training.
            start: Its weights before.
            **what_it_took: Fields of the result.

        Returns:
            The result; if no average keeps the gate, that of the one that forgot least.
        """
        end = student.get_weights()

        def set_weights(share: float) -> None:
            student.set_weights(
                [share * e + (1 - share) * s for e, s in zip(end, start, strict=True)]
                if share < 1.0
                else end
            )

        results = []
        for share in _SHARES if self._data is not None else _SHARES[:1]:
            set_weights(share)
            results.append(self._judge(student, share=share, **what_it_took))
        kept = [result for result in results if result.passed]
        if kept:
            best = max(kept, key=lambda result: result.top1_after or 0.0)
        else:
            best = min(results, key=lambda result: result.forgotten_points or 0.0)
        set_weights(best.share)
        return best

    def _judge(self, student: keras.Model, **what_it_took: Any) -> UpdateResult:
        """Returns the result of a student as it is now."""
        old_classes, classes = self._counts
        scores: list[ClassScore] = []
        figures: list[float | None] = [None] * 4
        if self._data is not None:
            x, y = self._data
            right = predict(logits_model(student), x).argmax(-1) == y
            for index in range(classes):
                of = y == index
                if of.any():
                    rates = float(self._right[of].mean()), float(right[of].mean())
                    scores.append(ClassScore(index, int(of.sum()), *rates))
            old = y < old_classes
            figures = [float(self._right.mean()), float(right.mean())]
            figures += [
                float(r[old].mean()) if old.any() else None
                for r in (self._right, right)
            ]
        return UpdateResult(
            student=student,
            old_classes=old_classes,
            classes=classes,
            per_class=tuple(scores),
            top1_before=figures[0],
            top1_after=figures[1],
            old_top1_before=figures[2],
            old_top1_after=figures[3],
            max_forgetting_points=self._limit,
            **what_it_took,
        )


def _classes(student: LogitsModel, teacher: LogitsModel) -> tuple[int, int]:
    old, new = (int(model.model.output_shape[-1]) for model in (student, teacher))
    if new < old:
        raise ValueError(
            "An updated teacher must know the student's classes, and may know more. "
            f"Received: teacher '{teacher.name}' with {new}, student '{student.name}' "
            f"with {old}. Fix: give the teacher all old classes, first and in order."
        )
    return old, new


def _in_memory(
    data: DataSet, student: LogitsModel, classes: int
) -> tuple[Array, Array]:
    """Returns `x` and class indices of a data set in any form."""
    inputs = getattr(student.model, "inputs", None)
    samples = Samples(data, len(inputs[0].shape) if inputs else None)
    chunks = [
        keras.tree.map_structure(np.asarray, parts) for _, parts in samples.read()
    ]
    x, *rest = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *chunks)
    if not isinstance(x, np.ndarray):
        raise TypeError(
            "`update` is for students with one input. Received: x of type "
            f"{type(x).__name__}. Fix: use kdlite.Distiller on new and old data."
        )
    y = np.full(len(x), UNLABELLED)
    if rest:
        y = class_indices(rest[0], classes).reshape(-1)
        check_label_range(y, classes, UNLABELLED, name="new_data")
    return x, y


def _check_replay(replay: ReplayBuffer, x: Array, old: int, classes: int) -> None:
    if not isinstance(replay, ReplayBuffer):
        raise TypeError(
            f"`replay` must be a ReplayBuffer. Received: replay={replay!r}. Fix: "
            "ReplayBuffer.load(path), or ReplayBuffer.build(old_teacher, old_data)."
        )
    if replay.x.shape[1:] != x.shape[1:]:
        raise ValueError(
            "Old and new samples must have the same shape. Received: replay with "
            f"{replay.x.shape[1:]}, new_data with {x.shape[1:]}. Fix: resize one of "
            "them."
        )
    if replay.classes > classes:
        raise ValueError(
            "A replay buffer's classes must be the student's. Received: logits of "
            f"{replay.classes} classes for a student with {old} and a teacher with "
            f"{classes}. Fix: give the buffer that was built for this student."
        )


def _old_word(
    old_teacher: keras.Model | LogitsModel | None,
    student: LogitsModel,
    x: Array,
    replay: ReplayBuffer | None,
) -> Array:
    """What was known before: of new samples and of old ones, as probabilities."""
    teacher = student
    if old_teacher is not None:
        teacher = logits_model(old_teacher, role="old_teacher")
    words = [predict(teacher, x)]
    if replay is not None:
        words.append(replay.logits)
    classes = max(logits.shape[1] for logits in words)
    return np.concatenate([probabilities(logits, classes) for logits in words])


def _difference_weights(old: Array, new_logits: Array, factor: float) -> Array:
    """One weight a sample, of mean 1: more where old and new word differ."""
    p, q = probabilities(new_logits), np.zeros((len(old), new_logits.shape[1]))
    q[:, : old.shape[1]] = old
    mean = (p + q) / 2

    def divergence(a: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(a > 0, a * np.log(a / mean), 0.0).sum(-1)

    weights = 1.0 + factor * (divergence(p) + divergence(q)) / 2 / np.log(2.0)
    return (weights / weights.mean()).astype("float32")


def _verbosity(verbose: str | int) -> str | int:
    if verbose != "auto":
        return verbose
    return 1 if sys.stdout.isatty() else 0
