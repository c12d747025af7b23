"""Pairs: which output of a teacher teaches which of a student, and by which loss.

Outputs go by name: the keys of a dict, else the names of the layers they come from.
What does not fit is found out before the first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kdlite.distill.class_map import ClassMap
from kdlite.distill.heads import Head, Outputs, find_head
from kdlite.distill.losses.features import FeatureLoss
from kdlite.distill.losses.outputs import compatible_shapes, needs_of, weighted_loss
from kdlite.distill.output_names import (
    Shape,
    named,
    output_names,
    output_shapes,
    output_structure,
)
from kdlite.distill.taps import LogitsModel, check_model

Tensor = Any
Structure = Any  # a tensor, or a dict, list or tuple of such


@dataclasses.dataclass(frozen=True)
class OutputPair:
    """One output of the student, the teacher's that it learns from, and how.

    Attributes:
        head: The student's output.
        loss: The loss between the two.
        class_map: Which classes are which, if they are not the same.
    """

    head: Head
    loss: keras.distillation.DistillationLoss
    class_map: ClassMap | None

    def value(
        self, taught: Tensor, student: Tensor, labels: Tensor, sample_weight: Tensor
    ) -> Tensor:
        """Returns the loss of a batch.

        Args:
            taught: What the teacher says: logits or values.
            student: What the student says.
            labels: Labels of this output, or `None`.
            sample_weight: Weights for this output, or `None`.

        Returns:
            A scalar.

        Raises:
            ValueError: If the two do not fit.
        """
        self.check_shapes(
            tuple(student.shape), tuple(taught.shape), "the teacher or the soft labels"
        )
        class_map = self.class_map
        if class_map is not None:
            taught = class_map.of_teacher(taught)
            if labels is not None and len(class_map.known) < len(class_map.entries):
                labels = self._labels_of_known(class_map, labels, student)
            student = class_map.of_student(student)
        self.loss.validate_outputs(taught, student)
        return weighted_loss(self.loss, taught, student, sample_weight, labels)

    def _labels_of_known(
        self, class_map: ClassMap, labels: Tensor, student: Tensor
    ) -> Tensor:
        if self.head.needs != "class logits":  # a label for each value
            return ops.take(labels, list(class_map.known), axis=-1)
        if hasattr(self.loss, "ignore_class"):  # asks which samples count, no more
            return labels
        return class_map.of_labels(labels, student)

    def check_shapes(self, student: Shape, teacher: Shape, by: str) -> None:
        """Checks that the classes and positions of the two are the same.

        Args:
            student: Shape of the student's output.
            teacher: Shape of the teacher's.
            by: How error messages call the teacher.

        Raises:
            ValueError: If they are not.
        """
        received = f"Received: {self.head.described} with {student}, {by} with "
        received += f"{teacher}."
        if self.head.needs == "class logits" and 1 in (student[-1], teacher[-1]):
            raise ValueError(
                f"A loss over classes is over two or more. {received} Fix: two logits "
                f"for two classes; for a single unit kdlite.losses.Regression if it is "
                f"a number, MultiLabelSoftTargets if it is a logit or a sigmoid."
            )
        if self.class_map is not None:
            self._check_mapped(self.class_map, student[-1], teacher[-1], received)
        elif not compatible_shapes(student[-1:], teacher[-1:]):
            values = self.head.needs == "values"
            one, several = ("value", "values") if values else ("class", "classes")
            raise ValueError(
                f"Student and teacher must have the same number of {several}. "
                f"{received} Fix: class_map=[...], which says for each {one} of the "
                f"student the teacher's."
            )
        if not compatible_shapes(student[:-1], teacher[:-1]):
            raise ValueError(
                f"Student and teacher outputs must have the same shape. {received} "
                f"Fix: pool or resize one of them to the positions of the other."
            )

    def _check_mapped(
        self,
        class_map: ClassMap,
        classes: int | None,
        teachers: int | None,
        received: str,
    ) -> None:
        entries, least = len(class_map.entries), class_map.least_classes
        one, several = "class", "classes"
        if self.head.needs == "values":  # whose order may differ as well
            one, several = "value", "values"
        if classes not in (None, entries) or (teachers or least) < least:
            raise ValueError(
                f"`class_map` has an entry for each {one} of the student, of {several} "
                f"that the teacher has. {received} {entries} entries, the largest "
                f"{least - 1}. Fix: one entry for each {one}, counted from 0."
            )
        if self.head.needs == "class logits" and len(class_map.known) < 2:
            raise ValueError(
                f"A loss over classes is over two or more. {received} A class map with "
                f"one of them. Fix: map two or more."
            )
        if self.head.needs != "class logits" and class_map.merges:
            raise ValueError(
                f"Only classes that exclude each other can be merged into one. "
                f"{received} {class_map}. Fix: one of the teacher for each of the "
                f"student, for a loss over {self.head.needs}."
            )


class OutputPairs:
    """All outputs of a student that are taught.

    Args:
        student: The student.
        soft_loss: A loss for every output, or a structure like the student's outputs,
            or a dict by their names, of losses and `None`.
        declared: What the outputs are, where the graph does not say: for all, or a
            dict by their names.
        output_map: From names of the student's outputs to names of the teacher's.
        class_map: A class map for every output, or a dict by their names.
        needed: Whether an output must be taught; not where layers are.

    Raises:
        TypeError: If a loss is none.
        ValueError: If a name is none of the student's, or a head does not fit its loss.
    """

    def __init__(
        self,
        student: keras.Model,
        soft_loss: Structure,
        declared: Outputs | Mapping[str, Outputs] | None = None,
        output_map: Mapping[str, str] | None = None,
        class_map: Any = None,
        needed: bool = True,
    ) -> None:
        check_model(student, "student")
        self.student = student
        self.names = output_names(student) or _names_of(soft_loss)
        taken = sorted({"hard", "soft"} & set(self.names)) if self.several else []
        if taken:
            raise ValueError(
                f"Losses are logged by the names of outputs. Received: output "
                f"'{taken[0]}' of student '{student.name}', whose loss would be logged "
                f"in the place of {taken[0]}_loss. Fix: give it another name."
            )
        losses = self._by_output("soft_loss", soft_loss)
        maps = self._by_output("class_map", class_map, each=_class_map)
        self.class_maps: dict[str, ClassMap] = {n: m for n, m in maps.items() if m}
        self.output_map = dict(output_map or {})
        self._check_names("output_map", self.output_map)
        kinds = self._by_output("student_outputs", declared)
        self._pairs: dict[str, OutputPair] = {}
        for index, name in enumerate(self.names):
            loss = losses.get(name)
            if loss is None:
                continue
            if not isinstance(loss, keras.distillation.DistillationLoss):
                raise TypeError(
                    f"`soft_loss` must be a keras.distillation.DistillationLoss, or "
                    f"one for each output. Received: soft_loss={loss!r}. Fix: "
                    f"kdlite.losses.SoftTargets(), or student.fit() to train without "
                    f"a teacher."
                )
            if isinstance(loss, FeatureLoss):
                raise TypeError(
                    f"`soft_loss` must be a loss on outputs. Received: "
                    f"{type(loss).__name__}, which is on features of layers. Fix: "
                    f"feature_losses={{(student_layer, teacher_layer): loss}}."
                )
            head = find_head(
                student,
                kinds.get(name),
                needs=needs_of(loss),
                role="student",
                index=index if self.several else None,
                name=name if self.several else None,
                loss=type(loss).__name__,
            )
            self._pairs[name] = OutputPair(head, loss, self.class_maps.get(name))
        if needed and not self._pairs:
            raise ValueError(
                f"A teacher needs an output to teach. Received: soft_loss={soft_loss} "
                f"for the outputs {list(self.names)} of student '{student.name}'. Fix: "
                f"a loss for one of them, or student.fit() to train without a teacher."
            )

    @property
    def several(self) -> bool:
        """Whether the student has several outputs."""
        return len(self.names) > 1

    @property
    def losses(self) -> dict[str, keras.distillation.DistillationLoss]:
        """The losses of the outputs that are taught, by name."""
        return {name: pair.loss for name, pair in self._pairs.items()}

    @property
    def kinds(self) -> dict[str, Outputs]:
        """What the outputs are that are taught, by name."""
        return {name: pair.head.outputs for name, pair in self._pairs.items()}

    def read(self, y_pred: Structure) -> dict[str, Tensor]:
        """Returns what the losses need of the student's outputs.

        Args:
            y_pred: What the student returned, those very tensors.

        Returns:
            Logits or values by name, of the outputs that are taught.

        Raises:
            ValueError: If the outputs are not those that there are losses for.
        """
        outputs = named(y_pred, self.names)
        missing = [name for name in self._pairs if name not in outputs]
        if missing or (len(outputs) > 1 and not self.several):
            raise ValueError(
                f"`soft_loss` must have a loss, or None, for each output of the "
                f"student. Received: student '{self.student.name}', which returns "
                f"{list(outputs)}, and soft_loss for {list(self._pairs)}. Fix: a dict "
                f"from the names of its outputs."
            )
        return {
            name: pair.head.read(outputs[name]) for name, pair in self._pairs.items()
        }

    def values(
        self,
        taught: dict[str, Tensor],
        student: dict[str, Tensor],
        y: Any,
        weights: Any,
    ) -> dict[str, Tensor]:
        """Returns the loss of each output that is taught.

        Args:
            taught: What the teacher says, by the student's names.
            student: What `read` returned.
            y: Labels as `fit()` got them, or `None`.
            weights: Sample weights as `fit()` got them, or `None`.

        Returns:
            Scalars by name.

        Raises:
            ValueError: If the two do not fit, or a loss lacks its labels.
        """
        labels = self._labels(y)
        weights = self._of_data(weights, shared=True)
        return {
            name: pair.value(
                taught[name], student[name], labels.get(name), weights.get(name)
            )
            for name, pair in self._pairs.items()
        }

    def _labels(self, y: Structure) -> dict[str, Tensor]:
        asking = [
            name
            for name, pair in self._pairs.items()
            if getattr(pair.loss, "uses_labels", False)
        ]
        count = len(keras.tree.flatten(y))
        if asking and y is not None and not isinstance(y, dict):
            if count != len(self.names):
                raise ValueError(
                    f"The soft loss of '{asking[0]}' uses its labels. Received: "
                    f"{count} labels for the outputs {list(self.names)} of student "
                    f"'{self.student.name}'. Fix: labels for each output, or a dict "
                    f"by their names."
                )
        return self._of_data(y)

    def _of_data(self, structure: Structure, shared: bool = False) -> dict[str, Tensor]:
        """Labels or weights by name; those that are not told apart are for all."""
        if structure is None:
            return {}
        if not keras.tree.is_nested(structure):
            return dict.fromkeys(
                self.names if shared or not self.several else (), structure
            )
        return named(structure, self.names)

    def soft_labels(self, labels: Structure) -> dict[str, Tensor]:
        """Returns soft labels from the data, by name.

        Args:
            labels: In the structure of the student's outputs, or a dict by their names;
                outputs that are not taught may be left out.

        Returns:
            float32 logits or values by name.

        Raises:
            ValueError: If one is missing.
        """
        by_name = named(labels, self.names)
        missing = [name for name in self._pairs if name not in by_name]
        if missing:
            raise ValueError(
                f"Each output that is taught needs soft labels. Received: soft labels "
                f"{list(by_name)} for the outputs {list(self._pairs)} of student "
                f"'{self.student.name}'. Fix: soft labels for '{missing[0]}', or None "
                f"as its soft_loss."
            )
        return {name: ops.cast(by_name[name], "float32") for name in self._pairs}

    def taught_by(
        self,
        teacher: keras.Model | LogitsModel,
        declared: Outputs | Mapping[str, Outputs] | None,
    ) -> TeacherOutputs:
        """Returns a teacher read at what it teaches.

        Args:
            teacher: The teacher.
            declared: What its outputs are, where the graph does not say: for all, or a
                dict by their names.

        Returns:
            A callable from inputs to logits or values, by the student's names.

        Raises:
            TypeError: If it is no model.
            ValueError: If it cannot teach this student.
        """
        if isinstance(teacher, LogitsModel):
            if declared not in (None, teacher.outputs):
                raise ValueError(
                    f"`teacher` is already read as {teacher.outputs}. Received: "
                    f"teacher_outputs={declared!r}. Fix: leave the declaration to one "
                    f"of the two."
                )
            teacher, declared = teacher.model, teacher.outputs
        check_model(teacher, "teacher")
        _check_apart(self.student, teacher)
        own = output_names(teacher)
        names = self._teacher_names(teacher, own)
        heads = {}
        for name, pair in self._pairs.items():
            several = own is not None and len(own) > 1
            heads[name] = find_head(
                teacher,
                declared.get(names[name])
                if isinstance(declared, Mapping)
                else declared,
                needs=pair.head.needs,
                role="teacher",
                index=own.index(names[name]) if own and several else None,
                name=names[name] if several else None,
                loss=type(pair.loss).__name__,
            )
        self._check_shapes(teacher, names, heads)
        return TeacherOutputs(teacher, own or tuple(names.values()), names, heads)

    def _teacher_names(
        self, teacher: keras.Model, own: tuple[str, ...] | None
    ) -> dict[str, str]:
        """The name of the teacher's output for each output that is taught."""
        wanted = {name: self.output_map.get(name, name) for name in self._pairs}
        if own is None or not set(wanted.values()) - set(own):
            return wanted
        if not self.output_map:
            if len(own) == len(self.names) == 1:
                return dict(zip(self.names, own, strict=True))
            structures = (output_structure(model) for model in (self.student, teacher))
            if len(own) == len(self.names) and not any(
                isinstance(structure, dict) for structure in structures
            ):  # two lists: names are only those of layers
                return dict(zip(self.names, own, strict=True))
        missing = next(name for name in wanted if wanted[name] not in own)
        raise ValueError(
            f"Each output that is taught needs one of the teacher. Received: student "
            f"'{self.student.name}' with outputs {list(self.names)}, teacher "
            f"'{teacher.name}' with {list(own)}; there is no '{wanted[missing]}'. Fix: "
            f"output_map={{'{missing}': <the teacher's>}}, or None as the soft_loss of "
            f"'{missing}'."
        )

    def _check_shapes(
        self, teacher: keras.Model, names: dict[str, str], heads: dict[str, Head]
    ) -> None:
        own, theirs = output_shapes(self.student), output_shapes(teacher)
        for name, pair in self._pairs.items():
            if name in own and names[name] in theirs:
                pair.check_shapes(own[name], theirs[names[name]], heads[name].described)

    def _by_output(self, what: str, value: Any, each: Any = None) -> dict[str, Any]:
        """What was given for all outputs, or by name, by name."""
        if what == "soft_loss" and keras.tree.is_nested(value):
            value = named(value, self.names)
        if not isinstance(value, Mapping):
            value = dict.fromkeys(self.names, value)
        self._check_names(what, value)
        return {name: each(one) if each else one for name, one in value.items()}

    def check_all_named(self, what: str, by_name: Mapping[str, Any]) -> None:
        """Checks that there is something for each output that is taught, and no more.

        Args:
            what: The argument's name.
            by_name: What was given.

        Raises:
            ValueError: If one is missing, or unknown.
        """
        self._check_names(what, by_name)
        missing = [name for name in self._pairs if name not in by_name]
        if missing:
            raise ValueError(
                f"`{what}` must have each output that is taught. Received: "
                f"{list(by_name)} without '{missing[0]}'. Fix: a number for it."
            )

    def _check_names(self, what: str, by_name: Mapping[str, Any]) -> None:
        unknown = [name for name in by_name if name not in self.names]
        if unknown:
            raise ValueError(
                f"`{what}` goes by the names of the student's outputs. Received: "
                f"'{unknown[0]}' for student '{self.student.name}'. Available: "
                f"{', '.join(repr(name) for name in self.names)}."
            )


@dataclasses.dataclass(frozen=True)
class TeacherOutputs:
    """A teacher, read at the outputs that teach.

    It is a callable, not a layer: what holds it does not track the model.

    Attributes:
        model: The teacher.
        outputs: The names of its outputs, as far as they are known.
        names: From names of the student's outputs to the teacher's.
        heads: The teacher's outputs, by the student's names.
    """

    model: keras.Model
    outputs: tuple[str, ...]
    names: dict[str, str]
    heads: dict[str, Head]

    @property
    def name(self) -> str:
        """The teacher's name."""
        return str(self.model.name)

    def __call__(self, inputs: Structure, training: bool = False) -> dict[str, Tensor]:
        """Runs the teacher once.

        Args:
            inputs: What it takes.
            training: Passed to it; `False` is inference mode.

        Returns:
            float32 logits or values, by the student's names.

        Raises:
            ValueError: If an output is missing.
        """
        by_name = named(self.model(inputs, training=training), self.outputs)
        missing = [name for name in self.names.values() if name not in by_name]
        if missing:
            raise ValueError(
                f"The teacher must return the outputs that teach. Received: teacher "
                f"'{self.name}', which returns {list(by_name)}, not '{missing[0]}'. "
                f"Fix: output_map= from the student's names to these."
            )
        return {
            name: head.read(by_name[self.names[name]])
            for name, head in self.heads.items()
        }


def _names_of(soft_loss: Structure) -> tuple[str, ...]:
    """The names of the outputs of a model without a graph: what is said of them."""
    return tuple(named(soft_loss, ()))


def _class_map(value: Any) -> ClassMap | None:
    if value is None or isinstance(value, ClassMap):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"`class_map` must be a list with an entry for each class of the student, "
            f"a kdlite.ClassMap, or a dict of these by output. Received: class_map="
            f"{value!r}. Fix: for example [2, 0, 1]."
        )
    return ClassMap(value)


def _check_apart(student: keras.Model, teacher: keras.Model) -> None:
    """Checks that a teacher is another model than the student, with the same inputs."""
    parts = {id(layer) for layer in student._flatten_layers()}
    if id(teacher) in parts:
        raise ValueError(
            f"The teacher must be another model than the student or a part of it. "
            f"Received: teacher '{teacher.name}' in student '{student.name}'. Fix: "
            f"teach with a copy, keras.models.clone_model() with the weights set."
        )
    trained = {id(variable) for variable in student.trainable_variables}
    shared = [v.path for v in teacher.variables if id(v) in trained]
    if shared:
        raise ValueError(
            f"The student must not train weights of the teacher. Received: student "
            f"'{student.name}' and teacher '{teacher.name}', which share {shared[0]}. "
            f"Fix: freeze the shared layers, or clone them."
        )
    taken, needed = (
        [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or ()]
        for model in (student, teacher)
    )
    if (taken and needed) and (
        len(taken) != len(needed) or not all(map(compatible_shapes, taken, needed))
    ):
        raise ValueError(
            f"The teacher must take the student's inputs. Received: student "
            f"'{student.name}' with inputs {taken}, teacher '{teacher.name}' with "
            f"inputs {needed}. Fix: put the resizing or the selection of inputs into "
            f"one of the models."
        )
