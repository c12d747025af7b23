"""Class maps: which class of a student is which of a teacher.

A teacher may have its classes in another order, more of them, finer ones, or lack some.
A map says, for each class of the student, the teacher's class:

>>> import numpy as np
>>> finer = ClassMap.from_names(
...     student=["cat", "dog", "robot"],
...     teacher=["dog", "tabby", "siamese", "car"],
...     merged={"cat": ["tabby", "siamese"]},
... )
>>> finer
ClassMap([(1, 2), 0, None])
>>> teacher = np.log([[0.5, 0.2, 0.1, 0.2]])
>>> finer.of_teacher(teacher).shape.as_list()  # cat and dog: it knows no robot
[1, 2]
>>> np.exp(finer.of_teacher(teacher)).round(3).tolist()
[[0.3..., 0.5]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from kdlite.distill.losses.outputs import LARGEST_LOGIT, class_indices

Tensor = Any
#: For a class of the student: the teacher's class, those that are merged into it, or
#: `None` where the teacher has none.
Entry = int | Sequence[int] | None


class ClassMap:
    """For each class of the student, the class or classes of the teacher.

    - One class: its logit is taken.
    - Several: they are merged into one, whose probability is the sum of theirs; its
      logit is their log-sum-exp. Only classes that exclude each other can be merged.
    - `None`: the teacher lacks the class and has no word on it. The losses compare the
      other classes among themselves, and what the student thinks of this one is left to
      the labels.

    Classes of the teacher that are in no entry are left out in the same way.

    Args:
        entries: One for each class of the student, in its order.

    Raises:
        TypeError: If an entry is neither an index, nor several, nor `None`.
        ValueError: If there is no class in it, an index is negative, or one class of
            the teacher is named twice.

    Example:
        >>> ClassMap([2, 0, 1]).known
        (0, 1, 2)
        >>> ClassMap([2, None, (0, 1)]).known
        (0, 2)
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(_checked_entry(entry) for entry in entries)
        named = [index for entry in self.entries for index in entry or ()]
        if not named:
            raise ValueError(
                f"A class map must name classes of the teacher. Received: "
                f"{list(entries)}. Fix: one index for each class of the student."
            )
        twice = sorted({index for index in named if named.count(index) > 1})
        if twice:
            raise ValueError(
                f"Each class of the teacher goes to one of the student at most: how "
                f"much of it would belong to each is not known. Received: {twice[0]} "
                f"twice in {list(entries)}. Fix: merge the student's classes, or put "
                f"None for one."
            )

    @classmethod
    def from_names(
        cls,
        student: Sequence[str],
        teacher: Sequence[str],
        merged: Mapping[str, Sequence[str]] | None = None,
    ) -> ClassMap:
        """Returns the map of classes by their names.

        Args:
            student: The student's classes, in the order of its outputs.
            teacher: The teacher's, in the order of its outputs.
            merged: For a class of the student, the teacher's classes that make it up.
                Other classes are found by their own name; a class that the teacher has
                not is `None` in the map.

        Returns:
            The map.

        Raises:
            ValueError: If a name is there twice, or one in `merged` not at all.
        """
        merged = dict(merged or {})
        for role, names in (("student", student), ("teacher", teacher)):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            if twice:
                raise ValueError(
                    f"Names of classes must differ. Received: {twice[0]!r} twice "
                    f"among the {role}'s. Fix: number them apart."
                )
        place = {name: index for index, name in enumerate(teacher)}
        missing = [name for name in merged if name not in student]
        missing += [n for names in merged.values() for n in names if n not in place]
        if missing:
            raise ValueError(
                f"`merged` is from classes of the student to classes of the teacher. "
                f"Received: {missing[0]!r}, which is none. Fix: names of the student's "
                f"{list(student)}, and of the teacher's {list(teacher)}."
            )
        return cls(
            [
                [place[n] for n in merged[name]] if name in merged else place.get(name)
                for name in student
            ]
        )

    @property
    def known(self) -> tuple[int, ...]:
        """The student's classes that the teacher has."""
        return tuple(i for i, entry in enumerate(self.entries) if entry is not None)

    @property
    def merges(self) -> bool:
        """Whether classes are merged."""
        return any(entry is not None and len(entry) > 1 for entry in self.entries)

    @property
    def least_classes(self) -> int:
        """How many classes a teacher must have at least."""
        return 1 + max(max(entry) for entry in self.entries if entry is not None)

    def of_teacher(self, logits: Tensor) -> Tensor:
        """Returns a teacher's logits of the known classes, in the student's order.

        Args:
            logits: float32 logits or values of shape `(batch, ..., teacher classes)`.

        Returns:
            `(batch, ..., known classes)`, with the mask of the logits.
        """
        known = [entry for entry in self.entries if entry is not None]
        if not self.merges:
            taken = ops.take(logits, [entry[0] for entry in known], axis=-1)
            return _masked_as(logits, taken)
        # Rows of one length, filled up with classes that do not count.
        length = max(map(len, known))
        rows = np.array([[*entry, *[-1] * (length - len(entry))] for entry in known])
        logits_or_less = ops.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)
        grouped = ops.take(logits_or_less, np.maximum(rows, 0), axis=-1)
        grouped = ops.where(rows >= 0, grouped, -2.0 * LARGEST_LOGIT)
        return _masked_as(logits, ops.logsumexp(grouped, axis=-1))

    def of_student(self, logits: Tensor) -> Tensor:
        """Returns a student's logits of the known classes.

        Args:
            logits: float32 logits or values of shape `(batch, ..., classes)`.

        Returns:
            `(batch, ..., known classes)`, with the mask of the logits.
        """
        if len(self.known) == len(self.entries):
            return logits
        return _masked_as(logits, ops.take(logits, list(self.known), axis=-1))

    def of_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Returns labels as indices among the known classes.

        Args:
            labels: Class indices or one-hot rows of the student's classes.
            logits: The student's logits `(batch, ..., classes)`.

        Returns:
            Indices of shape `(batch, ...)`, -1 for a class that the teacher lacks.
        """
        labels = ops.cast(class_indices(labels, logits), "int32")
        table = np.full(len(self.entries), -1, "int32")
        table[list(self.known)] = np.arange(len(self.known))
        inside = ops.clip(labels, 0, len(table) - 1)
        return ops.where(labels == inside, ops.take(table, inside), labels)

    def to_list(self) -> list[int | list[int] | None]:
        """Returns the entries in plain types."""
        return [
            entry if entry is None else entry[0] if len(entry) == 1 else list(entry)
            for entry in self.entries
        ]

    def __eq__(self, other: object) -> bool:
        """Tells whether another map is the same."""
        return isinstance(other, ClassMap) and self.entries == other.entries

    def __hash__(self) -> int:
        """The same for maps that are equal."""
        return hash(self.entries)

    def __repr__(self) -> str:
        """Shows the entries."""
        shown = [
            entry[0] if entry is not None and len(entry) == 1 else entry
            for entry in self.entries
        ]
        return f"ClassMap({shown})"


def _checked_entry(entry: Any) -> tuple[int, ...] | None:
    if entry is None:
        return None
    indices = list(entry) if isinstance(entry, (list, tuple)) else [entry]
    for index in indices:
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise TypeError(
                f"An entry of a class map is a class of the teacher, several, or None. "
                f"Received: {entry!r}. Fix: an index, such as 3, or "
                f"ClassMap.from_names(student, teacher) for names."
            )
        if int(index) < 0:
            raise ValueError(
                f"Classes of the teacher are counted from 0. Received: {index} in a "
                f"class map. Fix: None for a class that the teacher has not."
            )
    if not indices:
        raise ValueError(
            "An entry of a class map must have a class in it. Received: an empty one. "
            "Fix: None for a class that the teacher has not."
        )
    return tuple(int(index) for index in indices)


def _masked_as(logits: Tensor, taken: Tensor) -> Tensor:
    mask = getattr(logits, "_keras_mask", None)
    if mask is not None:
        taken._keras_mask = mask
    return taken
