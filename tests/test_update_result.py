"""What an update says of itself, whatever classes the validation data have."""

from __future__ import annotations

import pytest

from kdlite.distill.update import ClassScore, ForgettingError, UpdateResult


def result(classes: list[int], forgotten: tuple[float, float] | None) -> UpdateResult:
    """Of three old classes and two new ones, `classes` have ten samples each."""
    before, after = (0.5, 0.75) if classes else (None, None)
    return UpdateResult(
        student=None,
        old_classes=3,
        classes=5,
        per_class=tuple(ClassScore(index, 10, 0.5, 0.75) for index in classes),
        top1_before=before,
        top1_after=after,
        old_top1_before=None if forgotten is None else forgotten[0],
        old_top1_after=None if forgotten is None else forgotten[1],
        max_forgetting_points=None if forgotten is None else 1.0,
        share=1.0,
        new_samples=4,
        replay_samples=0,
        student_samples=40,
        teacher_samples=4,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("classes", "forgotten", "text"),
    [
        ([], None, "4 new samples"),
        ([3, 4], None, "all: 50.00% before, 75.00% after\n"),
        ([0, 3], (0.9, 0.8), "75.00% after; +10.00 points forgotten on old classes"),
        ([0, 1, 2], (0.8, 0.9), "; -10.00 points forgotten"),
    ],
)
def test_it_prints_with_and_without_old_classes(classes, forgotten, text) -> None:
    told = result(classes, forgotten)
    assert text in str(told)
    assert told.to_dict()["forgotten_points"] == told.forgotten_points
    assert [line[-3:] == "new" for line in str(told).splitlines()].count(True) == sum(
        index >= 3 for index in classes
    )


@pytest.mark.parametrize("classes", [[0, 3], [2, 3, 4], [0, 1, 2, 3, 4]])
def test_only_samples_of_old_classes_count_as_forgotten(classes) -> None:
    error = ForgettingError(result(classes, (0.9, 0.8)))
    old = 10 * sum(index < 3 for index in classes)
    assert f"lost on {old} samples of old classes, where 1 are allowed" in str(error)
