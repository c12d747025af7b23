"""One student after another: each learns from the one before it.

>>> import keras, numpy as np
>>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
>>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
>>> def train(model):
...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
...     return model.fit(x, y, epochs=2, verbose=0)
>>> lineage = born_again(student, train, generations=3)
>>> len(lineage.students), lineage.student is lineage.students[-1]
(3, True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kdlite.counts import checked_count
from kdlite.distill.distiller import Distiller
from kdlite.distill.mean_teacher import copied
from kdlite.distill.teachers import Ensemble

#: Compiles and fits a model: a student by itself, or the distiller that teaches it.
Train = Callable[[keras.Model], Any]


@dataclass(frozen=True)
class Lineage:
    """Students in the order they were taught, each by the one before.

    Attributes:
        students: The models.
        logs: Of each, the last epoch's values of what was logged.
    """

    students: tuple[keras.Model, ...]
    logs: tuple[dict[str, float], ...]

    @property
    def student(self) -> keras.Model:
        """The last one."""
        return self.students[-1]

    def ensemble(self, **kwargs: Any) -> Ensemble:
        """Returns all of them as one teacher.

        Args:
            **kwargs: As for `kdlite.teachers.Ensemble`.
        """
        return Ensemble(self.students, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns who was taught and what was logged, as plain JSON."""
        return {
            "students": [
                {"name": student.name, "params": student.count_params(), **logs}
                for student, logs in zip(self.students, self.logs, strict=True)
            ]
        }

    def __str__(self) -> str:
        return "\n".join(
            f"{place}. {entry.pop('name')}, {entry.pop('params'):,} parameters"
            + "".join(f", {name} {value:.4g}" for name, value in entry.items())
            for place, entry in enumerate(self.to_dict()["students"], 1)
        )


def assistant_chain(
    teacher: keras.Model,
    students: Sequence[keras.Model],
    train: Train,
    **options: Any,
) -> Lineage:
    """Teaches a chain of ever smaller students: the teacher the first, that the next.

    A student much smaller than its teacher may learn more from an assistant of a size
    between the two.

    Args:
        teacher: The first teacher, a Keras model or one of `kdlite.teachers`.
        students: The assistants and then the student, which are trained.
        train: `train(model)` compiles and fits a model: it is called once for each
            student, with its `Distiller`. What Keras's `fit` returned, and it returns,
            is kept in the logs.
        **options: For every `kdlite.Distiller`: `soft_loss`, `hard_loss_weight` and so
            on. A loss that learns, or whose temperature follows a schedule, is shared.

    Returns:
        The students, and what was logged.

    Raises:
        TypeError: If `train` is not callable, or a model is none.
        ValueError: If there is no student, one is named twice, or two that follow each
            other do not fit; before the first is trained.

    Example:
        >>> import keras, numpy as np
        >>> Dense = keras.layers.Dense
        >>> def network(width):
        ...     return keras.Sequential([keras.Input((4,)), Dense(width), Dense(3)])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
        >>> def train(model):
        ...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        ...     return model.fit(x, y, verbose=0)
        >>> lineage = assistant_chain(network(16), [network(8), network(2)], train)
        >>> lineage.student.count_params()
        19

    Reference:
        Mirzadeh et al.: Improved Knowledge Distillation via Teacher Assistant, 2020,
        arXiv:1902.03393.
    """
    _check_train(train)
    students = tuple(students)
    if not students or len({id(student) for student in students}) < len(students):
        raise ValueError(
            f"A chain has students, each once. Received: "
            f"{[getattr(student, 'name', student) for student in students]}. Fix: "
            f"assistant_chain(teacher, [assistant, student], train)."
        )
    teachers = (teacher, *students[:-1])
    # Made before the first is trained, so that a pair that does not fit is found now.
    distillers = [
        Distiller(student, source, **options)
        for student, source in zip(students, teachers, strict=True)
    ]
    return Lineage(students, tuple(_logs(train(each)) for each in distillers))


def born_again(
    student: keras.Model, train: Train, generations: int = 3, **options: Any
) -> Lineage:
    """Teaches a student by its own kind, generation after generation.

    The first generation learns from the labels alone, each other one from the labels
    and the generation before it, all from new initial weights and with the same
    `train`. Often a later one is better than the first, and all together
    (`Lineage.ensemble()`) better than each.

    Args:
        student: The architecture, a built model that can be made from its config; its
            own weights are neither used nor changed.
        train: `train(model)` compiles and fits a model: it is called once for each
            generation, with the first student and then with `Distiller`s.
        generations: How many students there are to be, the first one included.
        **options: For every `kdlite.Distiller`: `soft_loss`, `hard_loss_weight` and so
            on.

    Returns:
        The generations, and what was logged.

    Raises:
        TypeError: If `train` is not callable.
        ValueError: If `generations` is below 2, or the student cannot be copied.

    Example:
        >>> import keras, numpy as np
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
        >>> def train(model):
        ...     model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        ...     return model.fit(x, y, verbose=0)
        >>> print(born_again(student, train, generations=2))
        1. sequential..., 15 parameters, loss ...
        2. sequential..., 15 parameters, hard_loss ..., loss ..., soft_loss ...

    Reference:
        Furlanello et al.: Born-Again Neural Networks, 2018, arXiv:1805.04770.
    """
    _check_train(train)
    fix = "3 are the first and two born again; train(student) trains one alone"
    count = checked_count("generations", generations, 2, fix)
    students = tuple(copied(student) for _ in range(count))
    distillers = [
        Distiller(pupil, source, **options)
        for pupil, source in zip(students[1:], students[:-1], strict=True)
    ]
    models = (students[0], *distillers)
    return Lineage(students, tuple(_logs(train(model)) for model in models))


def _check_train(train: Any) -> None:
    if not callable(train) or isinstance(train, keras.Model):
        raise TypeError(
            f"`train` must be a function that compiles and fits a model. Received: "
            f"train={train!r}. Fix: def train(model): model.compile(...); return "
            f"model.fit(...)."
        )


def _logs(history: Any) -> dict[str, float]:
    """The last values of what `train` returned, if that is a History."""
    values = getattr(history, "history", None) or {}
    return {name: float(each[-1]) for name, each in sorted(values.items())}
