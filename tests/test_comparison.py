from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from kdlite.reporting.comparison import Comparison, contend, pareto, separation
from kdlite.reporting.costs import Cost
from kdlite.reporting.tasks import read_task

Y = np.arange(120) % 3
TASK = read_task("", (3,), Y)
TASKS = {"": TASK}


def told(wrong: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Outputs with so many wrong ones."""
    outputs = 4.0 * np.eye(3)[Y]
    rows = np.random.default_rng(seed).permutation(120)[:wrong]
    outputs[rows] = np.roll(outputs[rows], 1, axis=-1)
    return {"": outputs}


def test_figures_are_means_over_seeds_and_the_sample_deviation() -> None:
    student = contend("s", "student", [told(12), told(24, 1), told(36, 2)], TASKS)
    figures = student.figures(TASK)
    assert figures["top1"] == pytest.approx(0.8)
    assert figures["top1_sd"] == pytest.approx(0.1)
    one = contend("s", "student", [told(12)], TASKS, cost=Cost(params=7))
    assert one.figures(TASK)["top1_sd"] is None  # not known
    assert one.figures(TASK)["params"] == 7 and "bytes" not in one.figures(TASK)


def test_the_teacher_is_not_compared_with_itself() -> None:
    decided = {"": TASK.decided(told(0)[""])}
    teacher = contend("t", "teacher", [told(0)], TASKS, decided)
    assert {"agreement", "top1_sd"}.isdisjoint(teacher.figures(TASK))


def test_separation_over_seeds_and_over_samples() -> None:
    better = [told(n, i) for i, n in enumerate((6, 8, 7))]
    worse = [told(n, 9 + i) for i, n in enumerate((30, 29, 34))]
    a, b = (
        contend("a", "student", better, TASKS),
        contend("b", "baseline", worse, TASKS),
    )
    found = separation(TASK, a, b)
    gains = np.array([30 - 6, 29 - 8, 34 - 7]) / 120
    assert found.gain == pytest.approx(gains.mean())
    expected = stats.ttest_1samp(gains, 0).pvalue
    assert found.over_seeds == pytest.approx(expected, rel=1e-9)
    only_a = int(
        ((better[0][""].argmax(-1) == Y) & (worse[0][""].argmax(-1) != Y)).sum()
    )
    only_b = int(
        ((better[0][""].argmax(-1) != Y) & (worse[0][""].argmax(-1) == Y)).sum()
    )
    assert found.over_samples == pytest.approx(
        stats.binomtest(only_a, only_a + only_b).pvalue
    )
    assert found.verdict == "separates"


def test_a_teacher_of_one_run_is_compared_with_each_seed() -> None:
    teacher = contend("t", "teacher", [told(3)], TASKS)
    student = contend("s", "student", [told(12), told(24, 1)], TASKS)
    found = separation(TASK, student, teacher)
    assert found.over_seeds == pytest.approx(
        stats.ttest_1samp([-9 / 120, -21 / 120], 0).pvalue
    )


@pytest.mark.parametrize("role", ["file", "student", "baseline"])
def test_others_of_one_run_are_not_of_each_seed(role) -> None:
    one = contend("a", role, [told(3)], TASKS)
    several = contend("b", "student", [told(12), told(24, 1), told(18, 2)], TASKS)
    for first, second in ((one, several), (several, one)):
        found = separation(TASK, first, second)
        assert found.over_seeds is None and found.over_samples is None
        assert found.verdict == "not tested"
        assert abs(found.gain) == pytest.approx((18 - 3) / 120)


def test_equal_gains_of_two_seeds_are_not_sure() -> None:
    better = contend("a", "student", [told(9), told(8, 1)], TASKS)
    worse = contend("b", "baseline", [told(10, 2), told(9, 3)], TASKS)
    found = separation(TASK, better, worse)
    assert found.gain == pytest.approx(1 / 120)
    assert 0.1 < found.over_seeds < 0.3 and found.verdict == "does not separate"


def test_a_file_is_held_against_the_seeds_that_it_was_made_from() -> None:
    student = contend("student", "student", [told(12), told(24, 1)], TASKS)
    second = contend("second", "student", [told(24, 1)], TASKS)
    files = (
        contend("of second", "file", [told(24, 1)], TASKS, origin=second),
        contend("unknown", "file", [told(24, 1)], TASKS),
        contend("of each", "file", [told(12), told(24, 1)], TASKS, origin=student),
    )
    found = {
        s.first: s
        for s in Comparison("page", TASKS, (student, *files)).separations(TASK)
    }
    assert found["of second"].second == "second" and found["of second"].gain == 0.0
    assert found["of second"].over_samples == 1.0
    assert found["unknown"].second == "student"
    assert found["unknown"].verdict == "not tested"
    assert found["of each"].over_seeds == 1.0


def test_labels_are_tested_by_what_is_a_mean_over_samples() -> None:
    y = np.random.default_rng(0).random((60, 4)) < 0.4
    task = read_task("", (4,), y)
    right = np.where(y, 2.0, -2.0)
    worse = right.copy()
    worse[:20] *= -1
    found = separation(
        task,
        contend("a", "student", [{"": right}], {"": task}),
        contend("b", "baseline", [{"": worse}], {"": task}),
    )
    assert found.samples_metric == "label_accuracy" and found.over_samples < 1e-4
    assert found.verdict == "separates in labels right, in one seed"


def test_one_seed_has_no_test_over_seeds() -> None:
    a, b = (
        contend("a", "student", [told(0)], TASKS),
        contend("b", "file", [told(60)], TASKS),
    )
    assert separation(TASK, a, b).over_seeds is None
    assert separation(TASK, a, b).verdict == "separates, in one seed"
    assert separation(TASK, a, a).verdict == "does not separate"


def test_positions_of_a_sample_are_no_samples() -> None:
    task = read_task("", (2, 3), Y.reshape(60, 2))
    outputs = {"": told(10)[""].reshape(60, 2, 3)}
    one = contend("a", "student", [outputs], {"": task})
    assert separation(task, one, one).over_samples is None
    assert separation(task, one, one).verdict == "not tested"


def test_fewer_errors_are_a_gain(rng) -> None:
    y = rng.normal(size=200)
    task = read_task("", (1,), y)
    near = contend("a", "student", [{"": y[:, None] + 0.1}], {"": task})
    far = contend(
        "b", "baseline", [{"": y[:, None] + rng.normal(1, 1, (200, 1))}], {"": task}
    )
    found = separation(task, near, far)
    assert found.gain > 0 and found.over_samples < 1e-6


def test_pareto_front_has_all_that_nobody_beats() -> None:
    points = {"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9), "d": (3, 0.8), "e": (1, 0.5)}
    assert pareto(points) == ("a", "e", "c")


def test_outputs_that_are_no_numbers_are_named() -> None:
    broken = told(0)
    broken[""][3, 1] = np.nan
    with pytest.raises(
        ValueError, match="finite. Received: 1 NaN.*of the student. Fix"
    ):
        contend("the student", "student", [broken], TASKS)


def test_pairs_are_those_that_matter() -> None:
    roles = ("teacher", "baseline", "student", "file", "file")
    contenders = tuple(
        contend(f"{i}", role, [told(3 * i)], TASKS) for i, role in enumerate(roles)
    )
    comparison = Comparison("t", TASKS, contenders)
    pairs = [(s.first, s.second) for s in comparison.separations(TASK)]
    assert pairs == [("2", "1"), ("2", "0"), ("3", "2"), ("4", "2")]
    json.dumps(comparison.to_dict(), allow_nan=False)
