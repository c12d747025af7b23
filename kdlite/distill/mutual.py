"""Mutual learning: several students teach each other while all of them learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kdlite.distill.distiller import Distiller
from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.losses.outputs import compatible_shapes
from kdlite.distill.schedules import from_config
from kdlite.distill.taps import check_model

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class MutualLearning(Distiller):
    r"""Students without a teacher: each learns from the labels and from its peers.

    A `kdlite.Distiller` of several students at once. Of `K` students with logits $s_k$
    each minimises

    $$ w_h \, L_h(y, s_k) + \frac{w_s}{K - 1} \sum_{j \ne k} L_s(\bar{s}_j, s_k) $$

    in which what a peer says, $\bar{s}_j$, is a constant. Each student runs once a
    step, in training mode, and all are updated together (the paper updates them in
    turns). The sum over students is one loss for one optimizer; their gradients do not
    mix.

    `compile()`, `fit()` and `evaluate()` take one loss, one list of metrics and one set
    of labels, which are for every student. Logs: `loss`, `hard_loss` and `soft_loss`
    over all students, and for each, under its name, its own: `a_loss` (on the labels),
    `a_soft_loss`, `a_accuracy`. `predict()` returns a dict by name. What else a
    `Distiller` has, schedules and saving say, works as there.

    Args:
        students: Two models or more with the same inputs and classes, each with a name
            of its own.
        soft_loss: The loss on the peers' outputs. Defaults to
            `SoftTargets(temperature=1.0)`, as in the paper.
        hard_loss_weight: Weight $w_h \ge 0$: a number or a schedule.
        soft_loss_weight: Weight $w_s \ge 0$, likewise.
        **kwargs: As for `kdlite.Distiller`; `student_outputs` by the students' names.

    Attributes:
        students: The students, plain models to save and export.

    Raises:
        TypeError: If a student is no model.
        ValueError: If there are fewer than two, two have one name or share weights, one
            is not built, or they differ in inputs, classes or positions.

    Example:
        >>> import keras, numpy as np
        >>> def network(name):
        ...     dense = keras.layers.Dense(3)
        ...     return keras.Sequential([keras.Input((4,)), dense], name=name)
        >>> mutual = MutualLearning([network("a"), network("b")])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> mutual.compile("adam", loss, metrics=["accuracy"])
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> history = mutual.fit(x, y, verbose=0)
        >>> sorted(name for name in history.history if name.startswith("a_"))
        ['a_accuracy', 'a_loss', 'a_soft_loss']

    Reference:
        Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, 2018, arXiv:1706.00384,
        equations 5 to 8.
    """

    def __init__(
        self,
        students: Iterable[keras.Model],
        soft_loss: keras.distillation.DistillationLoss | None = None,
        hard_loss_weight: float | LearningRateSchedule = 1.0,
        soft_loss_weight: float | LearningRateSchedule = 1.0,
        **kwargs: Any,
    ) -> None:
        students = list(students)
        _check_students(students)
        kwargs.setdefault("dtype", students[0].dtype_policy)
        super().__init__(
            _side_by_side(students),
            None,
            SoftTargets(temperature=1.0) if soft_loss is None else soft_loss,
            hard_loss_weight,
            soft_loss_weight,
            **kwargs,
        )

    @property
    def students(self) -> list[keras.Model]:
        """The students, in the order given."""
        return [self.student.get_layer(name) for name in self._pairs.names]

    @property
    def teacher(self) -> None:
        """None: the students are their own teachers."""

    @teacher.setter
    def teacher(self, teacher: Any) -> None:
        if teacher is not None:
            raise ValueError(
                f"Students that teach each other have no teacher. Received: teacher="
                f"{teacher!r}. Fix: kdlite.Distiller(student, teacher) for each."
            )

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Compiles as every `keras.Model`, with metrics for each student.

        Args:
            optimizer: As for every `keras.Model`.
            loss: One loss on the labels, for every student.
            *args: As for every `keras.Model`.
            **kwargs: As for every `keras.Model`; `metrics` and `weighted_metrics` are
                lists, for every student.
        """
        for name in ("metrics", "weighted_metrics"):
            given = kwargs.get(name)
            if given is not None and not isinstance(given, Mapping):
                kwargs[name] = {
                    student.name: [_again(m, place > 0) for m in given]
                    for place, student in enumerate(self.students)
                }
        super().compile(optimizer, loss, *args, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as it was; Keras leaves that to models with their own compile()."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Returns a batch's loss, summed over the students; see `Distiller`."""
        return super().compute_loss(
            x, self._for_each(y), y_pred, sample_weight, training
        )

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> dict[str, Tensor]:
        """Updates and returns the metrics of each student."""
        return super().compute_metrics(x, self._for_each(y), y_pred, sample_weight)

    def _for_each(self, labels: Tensor) -> Tensor:
        names = {student.name for student in self.students}
        if labels is None or (isinstance(labels, Mapping) and set(labels) == names):
            return labels
        return dict.fromkeys(names, labels)

    def _check_source(self, x: Tensor) -> None:
        """Nothing: the students learn from each other."""

    def _taught(
        self, x: Tensor, y: Tensor, said: dict[str, Tensor], sample_weight: Tensor
    ) -> dict[str, Tensor]:
        names = list(said)
        constant = {name: ops.stop_gradient(word) for name, word in said.items()}
        rounds = []
        for shift in range(1, len(names)):  # each is taught by each other once
            peers = names[shift:] + names[:shift]
            words = {n: constant[peer] for n, peer in zip(names, peers, strict=True)}
            rounds.append(self._pairs.values(words, said, y, sample_weight))
        return {name: sum(r[name] for r in rounds) / len(rounds) for name in names}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make it again."""
        config = super().get_config()
        for name in ("student", "teacher", "teacher_outputs"):
            config.pop(name)
        students = map(keras.saving.serialize_keras_object, self.students)
        return {**config, "students": list(students)}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> MutualLearning:
        """Returns it from its config."""
        config = dict(config)
        made, *students = (
            keras.saving.deserialize_keras_object(each, custom_objects=custom_objects)
            for each in (config["soft_loss"], *config["students"])
        )
        config.update(soft_loss=made, students=students)
        for name in ("hard_loss_weight", "soft_loss_weight"):
            config[name] = from_config(config[name])
        return cls(**config)


def _side_by_side(students: list[keras.Model]) -> keras.Model:
    """One model of all students, with an output for each under its name."""
    first = students[0]
    inputs = keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
        first.inputs[0] if len(first.inputs) == 1 else first.input,
    )
    outputs = {student.name: student(inputs) for student in students}
    return keras.Model(inputs, outputs, name="students")


def _check_students(students: list[Any]) -> None:
    for student in students:
        check_model(student, "students")
        if not getattr(student, "inputs", None):
            raise ValueError(
                f"Students of mutual learning say what they take. Received: student "
                f"'{student.name}', which does not. Fix: give it a keras.Input, or "
                f"keras.Model(inputs, model(inputs))."
            )
    names = [student.name for student in students]
    if len(students) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"Mutual learning is between two students or more, each with a name of "
            f"its own. Received: {names}. Fix: keras.Model(..., name=...)."
        )
    seen: dict[int, str] = {}
    for student in students:
        for variable in student.trainable_variables:
            if seen.setdefault(id(variable), student.name) != student.name:
                raise ValueError(
                    f"Students of mutual learning have weights of their own. Received: "
                    f"'{seen[id(variable)]}' and '{student.name}', which share "
                    f"{variable.path}. Fix: clone one of them."
                )
    for side in ("inputs", "outputs"):
        first, *others = ([tuple(t.shape) for t in getattr(s, side)] for s in students)
        for student, shapes in zip(students[1:], others, strict=True):
            if len(shapes) != len(first) or not all(
                map(compatible_shapes, shapes, first)
            ):
                raise ValueError(
                    f"Students of mutual learning have the same {side}. Received: "
                    f"'{names[0]}' with {first}, '{student.name}' with {shapes}. Fix: "
                    f"give students of the same data and classes."
                )


def _again(metric: Any, copy: bool) -> Any:
    """A metric for another student: a copy, where it is an object with a state."""
    if copy and isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric
