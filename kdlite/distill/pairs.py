"""Whether a teacher can teach a student: found out before the first step."""

from __future__ import annotations

from typing import Any

import keras

from kdlite.distill.heads import Needs
from kdlite.distill.losses.outputs import compatible_shapes
from kdlite.distill.taps import LogitsModel

Tensor = Any


def check_pair(
    student: LogitsModel, teacher: LogitsModel, needs: Needs = "class logits"
) -> None:
    """Checks that a teacher can teach a student, as far as their shapes are known.

    Args:
        student: The student, read at its logits.
        teacher: The teacher, likewise.
        needs: What the loss between them is over.

    Raises:
        ValueError: If one is in the other, they share weights that are trained, or
            their inputs or outputs do not fit.
    """
    pair = f"student '{student.name}'", f"teacher '{teacher.name}'"
    parts = {id(layer) for layer in student.model._flatten_layers()}
    if id(teacher.model) in parts:
        raise ValueError(
            f"The teacher must be another model than the student or a part of it. "
            f"Received: teacher '{teacher.name}' in student '{student.name}'. Fix: "
            f"teach with a copy, keras.models.clone_model() with the weights set."
        )
    trained = {id(variable) for variable in student.model.trainable_variables}
    shared = [v.path for v in teacher.model.variables if id(v) in trained]
    if shared:
        raise ValueError(
            f"The student must not train weights of the teacher. Received: {pair[0]} "
            f"and {pair[1]}, which share {shared[0]}. Fix: freeze the shared layers, "
            f"or clone them."
        )
    taught, teaching = (_shapes(model.model, "outputs") for model in (student, teacher))
    if taught and teaching:
        _check_outputs(pair, taught[0], teaching[0], needs)
    taken, needed = (_shapes(model.model, "inputs") for model in (student, teacher))
    if (taken and needed) and (
        len(taken) != len(needed) or not all(map(compatible_shapes, taken, needed))
    ):
        raise ValueError(
            f"The teacher must take the student's inputs. Received: {pair[0]} with "
            f"inputs {taken}, {pair[1]} with inputs {needed}. Fix: put the "
            f"resizing or the selection of inputs into one of the models."
        )


def _check_outputs(
    pair: tuple[str, str], student: Any, teacher: Any, needs: Needs
) -> None:
    received = f"Received: {pair[0]} with {student}, {pair[1]} with {teacher}."
    if needs == "class logits" and 1 in (student[-1], teacher[-1]):
        raise ValueError(
            f"A loss over classes is over two or more. {received} Fix: give two "
            f"logits, or distil a single one with kdlite.losses.MultiLabelSoftTargets."
        )
    if not compatible_shapes(student[-1:], teacher[-1:]):
        raise ValueError(
            f"Student and teacher must have the same number of classes. {received} "
            f"Fix: give both the last axis of the same classes in the same order."
        )
    if not compatible_shapes(student, teacher):
        raise ValueError(
            f"Student and teacher outputs must have the same shape. {received} Fix: "
            f"pool or resize one of them to the positions of the other."
        )


def _shapes(model: keras.Model, side: str) -> list[tuple[int | None, ...]]:
    """Returns the shapes of a model's "inputs" or "outputs"; none without a graph."""
    return [tuple(tensor.shape) for tensor in getattr(model, side, None) or ()]


def check_logits(teacher_logits: Tensor, student_logits: Tensor) -> None:
    """Checks the shapes in a batch: broadcasting would hide that they do not match.

    Args:
        teacher_logits: Logits, or soft labels from the data.
        student_logits: Logits.

    Raises:
        ValueError: If the shapes differ.
    """
    shapes = tuple(teacher_logits.shape), tuple(student_logits.shape)
    if not compatible_shapes(*shapes):
        raise ValueError(
            f"The teacher's logits must have the shape of the student's. Received: "
            f"teacher logits or soft labels {shapes[0]}, student logits {shapes[1]}. "
            f"Fix: use the soft labels of the same classes."
        )
