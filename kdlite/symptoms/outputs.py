"""What shows in outputs and losses that a distillation would go wrong.

Each test looks at a `Case` and returns a `Finding`, or `None` where nothing is wrong.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.losses.outputs import TemperedLoss, weighted_loss
from kdlite.distill.targets import UNLABELLED, check_label_range, class_indices
from kdlite.symptoms.case import (
    BATCH,
    Array,
    Case,
    Finding,
    Role,
    better,
    rows,
)

# A class whose samples are mostly called another counts as exchanged at so many
# standard deviations from a half. By chance a whole circle of such classes is far
# rarer, but for one of the only two.
_EXCHANGED = 1.0
_EXCHANGED_OF_TWO = 2.0
# Below this the soft label of a sample is its hard label.
_LEAST_SOFT_MASS = 1e-3
# Below 1 a temperature sharpens: this much of what the teacher says beside its first
# choice must be left.
_LEAST_LEFT = 0.25
# The softened logits' standard deviation at which every class gets about 1 / C: most
# probabilities are within a tenth of it.
_LEAST_SPREAD = 0.1
# A teacher whose probabilities move less over the samples says the same of all.
_LEAST_MOVED = 0.01
# Mean mass off the first choice to aim at: the teacher is heard, and not flat.
_GOOD_SOFT_MASS = 0.1
# So many classes without a sample are put down to chance.
_BY_CHANCE = 0.01
# Gradients of KL are differences of probabilities: this is rounding.
_DEAD_GRADIENT = 1e-6


def probabilities_as_logits(case: Case, role: Role) -> Finding | None:
    """A model said to return logits that returns probabilities."""
    model = case.model(role)
    if model is not None and model.outputs == "probabilities":
        return None
    if not _are_probabilities(case.logits(role)):
        return None
    if model is not None:
        fix = f"Say {role}_outputs='probabilities', or let the model return logits."
    else:
        fix = "Store logits, as SoftLabels.build does; log(p) are logits too."
    return Finding(
        "probabilities-as-logits",
        "error",
        f"The logits of {case.name(role)} are probabilities: all of "
        f"{len(case.logits(role))} rows lie in 0..1 with a sum of 1. A softmax over "
        "them is almost flat.",
        fix,
    )


def double_softmax(case: Case, role: Role) -> Finding | None:
    """A softmax of a softmax."""
    model = case.model(role)
    if model is None or model.outputs != "probabilities":
        return None
    logits = case.logits(role)
    # log(softmax(p)) is p up to a shift: the one that makes its sum 1 shows it, if the
    # model is sure at times. Small logits of any kind look the same.
    shifted = logits + (1.0 - logits.sum(-1, keepdims=True)) / logits.shape[-1]
    sure = _are_probabilities(shifted) and shifted.max(-1).mean() > 0.5
    if not sure and not _are_probabilities(logits):
        return None
    largest = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True)).max()
    return Finding(
        "double-softmax",
        "error",
        f"The {case.name(role)} applies a softmax to probabilities: none of "
        f"{case.classes} classes ever gets more than {largest:.2f}.",
        "Take one of the two softmax away: the activation of the last Dense layer, or "
        "the layer after it.",
    )


def loss_and_head(case: Case) -> Finding | None:
    """A loss on the labels that takes what the student does not return."""
    from_logits = _from_logits(case.hard_loss)
    outputs = case.student.outputs
    if from_logits is None or from_logits == (outputs == "logits"):
        return None
    code = "probabilities-as-logits" if from_logits else "logits-as-probabilities"
    return Finding(
        code,
        "error",
        f"The loss takes {'logits' if from_logits else 'probabilities'}, and student "
        f"'{case.student.name}' returns {outputs}.",
        f"Give the loss from_logits={not from_logits}.",
    )


def unlabelled(case: Case, y: Array | None) -> Finding | None:
    """Rows without a label that the hard loss would take for one.

    Args:
        case: The case.
        y: All labels that are known, not only those of the case's samples.
    """
    if y is None:
        return None
    indices = class_indices(y, case.classes)
    without = indices == UNLABELLED
    ignored = getattr(case.hard_loss, "ignore_class", None)
    if ignored is not None and np.shape(y) == indices.shape:
        without &= np.asarray(y) != ignored
    if not without.any():
        return None
    return Finding(
        "unlabelled",
        "error",
        f"{without.sum():,} of {without.size:,} labels say nothing (negative, NaN or a "
        f"row of zeros), the first at {int(np.argmax(without.reshape(-1)))}. A plain "
        "loss fails on them, or learns from them.",
        "compile(loss=SparseCategoricalCrossentropy(..., ignore_class=-1)) with -1 for "
        "these rows, and check(loss=...) with it; or leave out y altogether.",
    )


def label_range(case: Case, y: Array | None) -> Finding | None:
    """Labels of classes that the models do not have.

    Args:
        case: The case.
        y: All labels that are known.
    """
    if y is None:
        return None
    each = case.student_logits[0].size // case.classes
    if class_indices(y, case.classes).size != len(y) * each:
        return Finding(
            "label-range",
            "error",
            f"Labels of shape {y.shape[1:]} a sample are neither class indices nor "
            f"rows of {case.classes} classes.",
            "Give one index, or one row of the models' classes, for each sample (and "
            "position).",
        )
    if y.ndim == case.student_logits.ndim and y.shape[-1] == case.classes:
        return None
    known = y[class_indices(y, case.classes).reshape(y.shape) != UNLABELLED]
    if y.dtype.kind == "f" and (known != np.rint(known)).any():
        return Finding(
            "label-range",
            "error",
            f"Labels are no class indices: {known[known != np.rint(known)][0]:g} is "
            "among them.",
            "Give integer class indices, or a probability for each class.",
        )
    try:
        check_label_range(known, case.classes)
    except ValueError as err:
        return Finding.of("label-range", err)
    return None


def classes_without_samples(case: Case, y: Array | None) -> Finding | None:
    """Classes that no sample is of, where by chance each would have some.

    Args:
        case: The case.
        y: The labels of all samples.
    """
    if y is None:
        return None
    indices = class_indices(y, case.classes)
    if (indices == UNLABELLED).any():  # which may be of any class
        return None
    there = np.isin(np.arange(case.classes), indices)
    if y.ndim == case.student_logits.ndim and y.shape[-1] == case.classes:
        there |= (y.reshape(-1, case.classes) > 0).any(0)
    count = indices.size
    missing = np.flatnonzero(~there)
    # Of samples drawn evenly, the classes that are expected to get none.
    if not missing.size or case.classes * np.exp(-count / case.classes) > _BY_CHANCE:
        return None
    named = ", ".join(
        [*map(str, missing[:10]), *(["..."] if missing.size > 10 else [])]
    )
    return Finding(
        "class-without-samples",
        "warning",
        f"Of {case.classes} classes {missing.size} "
        f"{'has' if missing.size == 1 else 'have'} no sample among {count:,} labels: "
        f"{named}.",
        "Add samples of these classes, or leave them out of the student: "
        "class_map= of a Distiller says which of the teacher's it has.",
    )


def class_order(case: Case) -> Finding | None:
    """A teacher whose classes are those of the labels in another order."""
    labelled = case.labels != UNLABELLED
    labels = case.labels[labelled]
    if not labels.size:
        return None
    chosen = case.logits("teacher")[labelled].argmax(-1)
    counts = np.zeros((case.classes, case.classes), int)
    np.add.at(counts, (chosen, labels), 1)
    total, most = counts.sum(1), counts.max(1)
    sure = _EXCHANGED if case.classes > 2 else _EXCHANGED_OF_TWO
    clear = most > total / 2 + sure * np.sqrt(total) / 2
    meant = np.where(clear, counts.argmax(1), np.arange(case.classes))
    exchanged = [c for c in range(case.classes) if _in_cycle(meant, c)]
    if not exchanged:
        return None
    meant = np.where(
        np.isin(np.arange(case.classes), exchanged), meant, range(case.classes)
    )
    among = np.isin(chosen, exchanged)
    before, after = (
        float((order[chosen[among]] == labels[among]).mean())
        for order in (np.arange(case.classes), meant)
    )
    pairs = ", ".join(f"{c} is {meant[c]}" for c in exchanged[:5])
    return Finding(
        "class-order",
        "error",
        f"The classes of {case.name('teacher')} are in another order than the labels: "
        f"{len(exchanged)} of {case.classes} are exchanged (its {pairs}). In these it "
        f"is right on {before:.1%}, in the right order on {after:.1%} of "
        f"{among.sum()} samples.",
        "Number the labels as in the teacher's training, or give class_map="
        f"{np.argsort(meant).tolist()}.",
    )


def teacher_ability(case: Case) -> Finding | None:
    """A teacher that guesses, or knows less than its student."""
    right = {role: case.right(role) for role in ("student", "teacher")}
    count = right["teacher"].size
    if not count:
        return None
    teacher, student = (float(right[role].mean()) for role in ("teacher", "student"))
    guessing = 1.0 / case.classes
    # Above chance by half, or by more than a guesser mostly is: what is merely not
    # proven to be better is no finding.
    doubt = np.sqrt(guessing * (1 - guessing) / count)
    if count >= 30 and teacher < guessing + min(0.5 * guessing, doubt):
        return Finding(
            "teacher-guesses",
            "error",
            f"The {case.name('teacher')} is right on {teacher:.1%} of {count} labelled "
            f"samples, where guessing gives {guessing:.1%}.",
            "Compare the classes and the input's units with those of its training; is "
            "it trained?",
        )
    if not better(right["student"], right["teacher"]):
        return None
    return Finding(
        "teacher-worse",
        "warning",
        f"The {case.name('teacher')} is right on {teacher:.1%} of {count} labelled "
        f"samples, {case.name('student')} on {student:.1%}: more than chance explains.",
        "Train a better teacher, or give the labels more weight (hard_loss_weight).",
    )


def temperature(case: Case) -> Finding | None:
    """A temperature at which soft labels are hard, or all alike."""
    loss = case.soft_loss
    if not isinstance(loss, TemperedLoss):
        return None
    value = float(loss.temperature.numpy())
    logits = case.logits("teacher").astype("float64")
    if getattr(loss, "standardize", False):
        deviation = np.maximum(logits.std(-1, keepdims=True), 1e-6)
        logits = (logits - logits.mean(-1, keepdims=True)) / deviation
    spread = float(logits.std(-1).mean())
    mass = _soft_mass(logits, value)
    if spread / value < _LEAST_SPREAD:
        code, said = "temperature-high", "each class gets about the same probability"
    elif isinstance(loss, SoftTargets) and (
        mass < _LEAST_SOFT_MASS
        or (value < 1.0 and mass < _LEAST_LEFT * _soft_mass(logits, 1.0))
    ):
        code = "temperature-low"
        said = f"all classes but the first share {mass:.1e}, so soft labels are hard"
    else:
        return None
    better = _temperature_of(logits)
    fix = (
        f"temperature={better:.2g} would leave the classes but the first "
        f"{_soft_mass(logits, better):.0%}."
    )
    moved = float(np.ptp(_softmax(case.logits("teacher").astype("float64")), 0).max())
    if moved < _LEAST_MOVED:
        fix = (
            f"Look at the teacher: its probabilities differ by at most {moved:.1g} "
            "from sample to sample, which no temperature mends. Was it trained, and do "
            "its inputs have the range it was trained on?"
        )
    return Finding(
        code,
        "warning",
        f"Logits of {case.name('teacher')} vary by {spread:.3g} over the classes; at "
        f"temperature {value:g} {said}.",
        fix,
    )


def dead_gradient(case: Case) -> Finding | None:
    """A soft loss that does not move the student, though the two differ."""
    few = rows(case.x, slice(0, BATCH))
    teacher_logits = case.teacher_logits[:BATCH]
    labels = None if case.y is None else case.y[:BATCH]
    weights = case.student.model.trainable_variables
    with tf.GradientTape() as tape:
        student_logits = case.student(few, training=True)
        loss = weighted_loss(
            case.soft_loss, teacher_logits, student_logits, labels=labels
        )
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    known = [np.asarray(g).reshape(-1) for g in gradients if g is not None]
    norm = float(np.linalg.norm(np.concatenate(known))) if known else 0.0
    distance = float(
        np.abs(_softmax(teacher_logits) - _softmax(np.asarray(student_logits))).max()
    )
    if np.isfinite(norm) and (norm > _DEAD_GRADIENT or distance < 1e-3):
        return None
    name = getattr(case.soft_loss, "name", type(case.soft_loss).__name__)
    return Finding(
        "dead-soft-loss",
        "error",
        f"The soft loss '{name}' of {float(loss):.4g} has a gradient of norm "
        f"{norm:.3g} in the weights of student '{case.student.name}', though its "
        f"probabilities are up to {distance:.2f} from the teacher's.",
        "Let the loss be computed from the student's outputs by differentiable "
        "operations (no stop_gradient, argmax or numpy); look for NaN in the logits.",
    )


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _are_probabilities(rows: Array) -> bool:
    # Half a percent for half precision; logits of a whole batch never add up so.
    return bool((rows >= -5e-3).all() and (np.abs(rows.sum(-1) - 1) < 5e-3).all())


def _from_logits(loss: Any) -> bool | None:
    """Whether a cross-entropy takes logits; `None` where it is something else."""
    if isinstance(loss, str):
        return False if loss.endswith("categorical_crossentropy") else None
    if isinstance(
        loss,
        (
            keras.losses.SparseCategoricalCrossentropy,
            keras.losses.CategoricalCrossentropy,
        ),
    ):
        return bool(loss.from_logits)
    return None


def _in_cycle(meant: Array, start: int) -> bool:
    """Whether a class comes back to itself by way of others."""
    if meant[start] == start:
        return False
    place = int(meant[start])
    for _ in range(len(meant)):
        if place == start:
            return True
        place = int(meant[place])
    return False


def _soft_mass(logits: Array, value: float) -> float:
    """Mean probability off the first choice, at a temperature."""
    return float((1.0 - _softmax(logits / value).max(-1)).mean())


def _temperature_of(logits: Array) -> float:
    """The temperature with a good mass off the first choice: it grows with it."""
    low, high = 1e-3, 1e4
    for _ in range(50):
        middle = float(np.sqrt(low * high))
        if _soft_mass(logits, middle) < _GOOD_SOFT_MASS:
            low = middle
        else:
            high = middle
    return high
