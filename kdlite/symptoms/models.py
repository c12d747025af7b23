"""What shows in models and their inputs that a distillation would go wrong.

Each test looks at a `Case` and returns a `Finding`, or `None` where nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from kdlite.compress.met_statistics import met_statistics
from kdlite.distill.samples import not_finite
from kdlite.distill.targets import UNLABELLED
from kdlite.lite.calibration import check_pixels
from kdlite.symptoms.case import (
    BATCH,
    Array,
    Case,
    Finding,
    Role,
    better,
    rows,
    run,
)

# The means of a few samples, all of one class perhaps, are nearer.
_MEAN_SHIFT = 4.0
_SMALL_BATCH = 8


def not_finite_logits(case: Case) -> list[Finding]:
    """Models that give NaN or infinities for samples that have none."""
    found = []
    roles: tuple[Role, ...] = ("student", "teacher")
    for role in roles:
        logits = case.student_logits if role == "student" else case.teacher_logits
        odd = not_finite([logits])
        if odd.any():
            found.append(
                Finding(
                    "not-finite",
                    "error",
                    f"The logits of {case.name(role)} are NaN or infinite for "
                    f"{int(odd.sum())} of {len(odd)} samples, though the inputs are "
                    "finite.",
                    "Look for a logarithm, root or quotient out of its range in the "
                    "model, and at the range of the data.",
                )
            )
    return found


def training_mode(case: Case) -> Finding | None:
    """A teacher whose outputs are random, or hang on the rest of the batch."""
    teacher = case.teacher
    if teacher is None:
        return None
    few = rows(case.x, slice(0, BATCH // 2))
    count = len(keras.tree.flatten(few)[0])
    once = np.asarray(teacher(few))
    # Far beyond rounding, in half precision too; far below any dropout.
    tolerance = 0.02 * float(once.std()) + 1e-5
    differs = float(np.abs(np.asarray(teacher(few)) - once).max())
    what = "when asked again"
    if differs <= tolerance and count > 1:
        # Other company: the sizes of its parts differ, so that no two means agree.
        cut = 1 + count // 3
        parts = [
            teacher(rows(few, slice(0, cut))),
            teacher(rows(few, slice(cut, None))),
        ]
        differs = float(np.abs(np.concatenate([*map(np.asarray, parts)]) - once).max())
        what = "with other samples in the batch"
    if differs <= tolerance:
        return None
    return Finding(
        "teacher-training-mode",
        "error",
        f"The {case.name('teacher')} gives the same sample other logits {what}, though "
        f"called with training=False: they differ by up to {differs:.3g}, where logits "
        f"vary by {once.std():.3g}.",
        "Hand the `training` argument of the teacher's call() on to dropout and batch "
        "normalization.",
    )


def input_range(case: Case) -> Finding | None:
    """Inputs in other units than a model takes, or was trained with."""
    arrays = keras.tree.flatten(case.x)
    if len(arrays) == 1 and arrays[0].dtype.kind in "fiu":
        highest = float(np.abs(arrays[0]).max())
        try:
            for model in (case.student, case.teacher):
                if model is not None:
                    check_pixels(model.model, highest, "the data")
        except ValueError as err:
            return Finding.of("input-range", err)
    if case.teacher is None:
        return None
    return _rescued(case) or _unlike_statistics(case)


def _rescued(case: Case) -> Finding | None:
    """The teacher is right far more often when the inputs are scaled."""
    x = case.x
    labelled = case.labels != UNLABELLED
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiu" or not labelled.any():
        return None
    if case.student_logits.ndim != 2 or case.teacher is None:
        return None
    values = x[labelled].astype("float32")
    low, high = float(values.min()), float(values.max())
    scalings: dict[str, Callable[[Array], Array]] = {}
    if high > 1.5 and low >= 0.0:
        scalings = {
            "x / 255": lambda v: v / 255,
            "x / 127.5 - 1": lambda v: v / 127.5 - 1,
        }
    elif low >= 0.0:
        scalings = {"255 * x": lambda v: v * 255, "2 * x - 1": lambda v: v * 2 - 1}
    elif low >= -1.0 and high <= 1.0:
        scalings = {
            "127.5 * (x + 1)": lambda v: (v + 1) * 127.5,
            "(x + 1) / 2": lambda v: (v + 1) / 2,
        }
    right = case.right("teacher")
    best, best_right = "", right
    for name, scaled in scalings.items():
        logits = run(case.teacher, scaled(values))
        found = logits.argmax(-1) == case.labels[labelled]
        if found.sum() > best_right.sum():
            best, best_right = name, found
    # A right scale is no small gain, and makes a good teacher of it: one that is weak
    # in its own units, of unsettled averages say, may be less so in others by chance.
    guessing = 1 / case.classes
    least = max(
        right.mean() + 0.1,
        guessing + 2 * (right.mean() - guessing),
        guessing + 0.5 * (1 - guessing),
    )
    if not better(best_right, right) or best_right.mean() < least:
        return None
    return Finding(
        "input-range",
        "error",
        f"The {case.name('teacher')} is right on {right.mean():.1%} of {right.size} "
        f"samples, whose values lie in {low:.4g}..{high:.4g}, and on "
        f"{best_right.mean():.1%} if it is given {best}.",
        f"Give the data as {best}, or begin the teacher with a Rescaling that does it.",
    )


def _unlike_statistics(case: Case) -> Finding | None:
    """The first normalization of the teacher meets values it has never seen."""
    teacher = case.teacher
    if teacher is None:
        return None
    # From all over: samples are often sorted by class.
    step = -(-len(case.teacher_logits) // BATCH)
    met = met_statistics(teacher.model, rows(case.x, slice(None, None, step)), teacher)
    if met is None or (met.near and met.mean_shift < _MEAN_SHIFT):
        return None
    return Finding(
        "input-range",
        "error",
        f"What reaches layer '{met.layer}' of {case.name('teacher')} has "
        f"{met.variance_ratio:.3g} times the variance that it was trained with, and "
        f"means {met.mean_shift:.3g} standard deviations from those.",
        "Give the data in the units and with the normalisation of the teacher's "
        "training.",
    )


def small_batches(case: Case) -> Finding | None:
    """Batch normalization over a handful of samples."""
    size = case.batch_size
    if size is None or size >= _SMALL_BATCH:
        return None
    trained = [
        layer.name
        for layer in case.student.model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if not trained:
        return None
    return Finding(
        "small-batch-norm",
        "warning",
        f"Student '{case.student.name}' has {len(trained)} BatchNormalization layers "
        f"(first '{trained[0]}'), whose statistics come from batches of {size}.",
        "Train with batches of 32 or more, or set trainable=False on these layers of a "
        "pretrained student.",
    )


def student_larger(case: Case) -> Finding | None:
    """A student with more weights than its teacher."""
    if case.teacher is None:
        return None
    sizes = {
        role: model.model.count_params()
        for role, model in (("student", case.student), ("teacher", case.teacher))
    }
    if sizes["student"] <= sizes["teacher"]:
        return None
    return Finding(
        "student-larger",
        "warning",
        f"Student '{case.student.name}' has {sizes['student']:,} parameters, teacher "
        f"'{case.teacher.name}' {sizes['teacher']:,}.",
        "Check the order of the arguments (student first), or take a smaller student.",
    )
