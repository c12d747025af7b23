from __future__ import annotations

import numpy as np
import pytest

from kdlite.reporting.tasks import read_task


@pytest.mark.parametrize(
    ("shape", "target", "kind"),
    [
        ((3,), [0, 2, 1, 1], "classes"),
        ((3,), [[0], [2], [1], [1]], "classes"),
        ((3,), [0.0, 2.0, 1.0, 1.0], "classes"),
        ((3,), np.eye(3)[[0, 2, 1, 1]], "classes"),
        ((3,), [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]], "labels"),
        ((3,), [[1.5, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]], "values"),
        ((1,), [0, 1, 1, 0], "binary"),
        ((1,), [[0.0], [1.0], [1.0], [0.0]], "binary"),
        ((), [True, False, True, True], "binary"),
        ((1,), [0.5, 1, 2, 3], "values"),
        ((1,), [0, 1, 2, 3], "values"),
        ((2, 3), [[0, 2], [1, 1], [0, 0], [2, 2]], "classes"),
        ((2, 2, 1), np.ones((4, 2, 2)), "binary"),
    ],
)
def test_the_task_is_found_from_the_numbers(shape, target, kind) -> None:
    task = read_task("", shape, target)
    assert task.kind == kind
    assert len(task.target) == 4 * task.positions


def test_a_task_that_the_numbers_do_not_say_can_be_named() -> None:
    one_hot = np.eye(3)[[0, 2, 1]]
    assert read_task("", (3,), one_hot, kind="labels").kind == "labels"
    assert read_task("", (3,), one_hot, kind="values").kind == "values"
    assert read_task("", (1,), [0, 1, 1], kind="values").kind == "values"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((3,), ["a", "b"]), "Targets must be numbers. Received: dtype <U1 for output"),
        (((3,), np.zeros((0,), int)), "There must be samples to measure on"),
        (((3,), [np.nan, 1.0]), "Targets must be finite. Received: 1 NaN or infinite"),
        (((3,), [0, 3]), "Class indices must be from 0 to 2. Received: 0 to 3"),
        (((3,), [-1, 1]), "Class indices must be from 0 to 2. Received: -1 to 1"),
        (((3,), [0.5, 1.0]), "Targets must fit the output.*float64 .2,."),
        (((3,), np.zeros((2, 4))), r"Targets must fit the output.*\(2, 4\)"),
        (((3,), [0, 1], ["a", "b"]), "a label for each of 3.*Received: 2 labels"),
        (((1,), [0, 1], ["a"]), "a label for each of 2: no and yes"),
        (((3,), [0, 1], None, "sort"), "`task` must be one of 'classes'.*'sort'"),
        (((3,), [0, 1], None, "values"), "Targets must fit the output.*as 'classes'"),
        (((1,), [0.5, 1], None, "binary"), "Targets must fit.*as 'binary'"),
    ],
)
def test_targets_that_do_not_fit_are_named(arguments, text) -> None:
    with pytest.raises(ValueError, match=f"{text}(?s:.*)Fix: "):
        read_task("head", *arguments)
