"""Against scikit-learn, and against plain loops written from the papers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from kdlite.reporting.scores import (
    METRICS,
    average_precision,
    reliability,
    roc_auc,
    score,
)
from kdlite.reporting.tasks import probabilities, read_task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sklearn import metrics as sk


@pytest.fixture
def classes(rng) -> tuple[np.ndarray, np.ndarray]:
    y = rng.integers(0, 12, 400)
    return rng.normal(size=(400, 12)) + 2.0 * np.eye(12)[y], y


# --- classes


def test_classes_against_plain_formulas(classes) -> None:
    logits, y = classes
    scores = score(read_task("", (12,), y), logits)
    assert scores.metrics["top1"] == pytest.approx((logits.argmax(-1) == y).mean())
    assert scores.metrics["top5"] == pytest.approx(
        sk.top_k_accuracy_score(y, logits, k=5)
    )
    assert scores.metrics["nll"] == pytest.approx(
        -log_softmax(logits, -1)[np.arange(400), y].mean(), rel=1e-12
    )
    # Guo et al. 2017, equations 2 and 3, one bin after the other.
    known = softmax(logits, -1)
    sure, right = known.max(-1), known.argmax(-1) == y
    expected = 0.0
    for m in range(1, 16):
        inside = (sure > (m - 1) / 15) & (sure <= m / 15)
        if inside.any():
            gap = abs(right[inside].mean() - sure[inside].mean())
            expected += inside.sum() / 400 * gap
    assert scores.metrics["ece"] == pytest.approx(expected, rel=1e-12)


def test_parts_and_confusion_are_scikit_learns(classes) -> None:
    logits, y = classes
    scores = score(read_task("", (12,), y), logits)
    told = logits.argmax(-1)
    np.testing.assert_array_equal(scores.confusion, sk.confusion_matrix(y, told))
    found = sk.precision_recall_fscore_support(y, told)
    for place, part in enumerate(scores.parts):
        assert part.figures["precision"] == pytest.approx(found[0][place])
        assert part.figures["recall"] == pytest.approx(found[1][place])
        assert part.figures["f1"] == pytest.approx(found[2][place])
        assert part.count == found[3][place]


def test_logits_and_probabilities_give_the_same(classes) -> None:
    logits, y = classes
    task = read_task("", (12,), y)
    one, other = score(task, logits), score(task, softmax(logits, -1))
    assert one.metrics == pytest.approx(other.metrics)
    # As an int8 file has them: rounded to 1/256, some rows sum up to less than 1.
    rounded = np.round(softmax(logits, -1) * 256) / 256
    assert score(task, rounded).metrics["nll"] < 2 * one.metrics["nll"]
    told = probabilities(task, rounded)
    np.testing.assert_allclose(told.sum(-1), 1)
    # A row of zeros says nothing, and is no division by 0.
    np.testing.assert_allclose(probabilities(task, np.zeros((400, 12)), False), 1 / 12)


def test_agreement_is_with_the_teacher(classes) -> None:
    logits, y = classes
    task = read_task("", (12,), y)
    teacher = task.decided(np.roll(logits, 1, axis=-1))
    assert score(task, logits, teacher).metrics["agreement"] == pytest.approx(
        (logits.argmax(-1) == np.roll(logits, 1, axis=-1).argmax(-1)).mean()
    )
    assert "agreement" not in score(task, logits).metrics


def test_a_sample_of_several_positions_is_as_right_as_they_are() -> None:
    y = np.array([[0, 1], [1, 1]])
    scores = score(read_task("", (2, 2), y), np.eye(2)[[[0, 0], [1, 1]]] * 5)
    np.testing.assert_allclose(scores.per_sample, [0.5, 1.0])
    assert scores.metrics["top1"] == 0.75


# --- other heads


@pytest.mark.parametrize("squashed", [False, True])
def test_binary_against_scikit_learn(rng, squashed) -> None:
    y = rng.integers(0, 2, 300)
    logits = rng.normal(size=(300, 1)) + 2 * y[:, None] - 1
    p = 1 / (1 + np.exp(-logits))
    task = read_task("", (1,), y)
    found = score(task, p if squashed else logits).metrics
    told = (logits > 0).ravel()
    assert found["accuracy"] == pytest.approx((told == y).mean())
    assert found["auc"] == pytest.approx(sk.roc_auc_score(y, logits.ravel()))
    assert found["f1"] == pytest.approx(sk.f1_score(y, told))
    assert found["nll"] == pytest.approx(sk.log_loss(y, p.ravel()), rel=1e-9)
    assert "top1" not in found


def test_labels_against_scikit_learn(rng) -> None:
    y = rng.integers(0, 2, (200, 4))
    y[:, 3] = 0  # never there: it has no average precision
    logits = rng.normal(size=(200, 4)) + y
    found = score(read_task("", (4,), y), logits).metrics
    each = [sk.average_precision_score(y[:, i], logits[:, i]) for i in range(3)]
    assert found["mean_average_precision"] == pytest.approx(np.mean(each))
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(y, logits > 0))
    assert found["f1"] == pytest.approx(
        sk.f1_score(y, logits > 0, average="macro", zero_division=0)
    )


def test_values_have_errors_and_never_an_accuracy(rng) -> None:
    y = rng.normal(size=(50, 2))
    told, teacher = y + rng.normal(size=y.shape), y + 0.1
    scores = score(read_task("", (2,), y), told, teacher)
    assert set(scores.metrics) == {"mae", "rmse", "r2", "teacher_distance"}
    assert scores.metrics["mae"] == pytest.approx(sk.mean_absolute_error(y, told))
    assert scores.metrics["rmse"] == pytest.approx(
        np.sqrt(sk.mean_squared_error(y, told))
    )
    assert scores.metrics["r2"] == pytest.approx(
        sk.r2_score(y, told, multioutput="variance_weighted")
    )
    assert scores.metrics["teacher_distance"] == pytest.approx(
        np.abs(told - teacher).mean()
    )
    assert scores.reliability is None and scores.confusion is None


def test_ties_and_what_is_not_there() -> None:
    y, same = np.array([True, False, True]), np.zeros(3)
    assert roc_auc(y, same) == 0.5
    assert average_precision(y, same) == pytest.approx(
        sk.average_precision_score(y, same)
    )
    assert np.isnan(roc_auc(np.ones(3, bool), same))
    # What cannot be told is left out.
    assert "auc" not in score(read_task("", (1,), [1, 1]), np.ones((2, 1))).metrics


def test_confidences_at_the_edge_of_a_bin() -> None:
    bins = reliability(np.array([0.0, 1 / 15, 1.0]), np.array([True, True, False]))
    assert bins.counts[0] == 2 and bins.counts[-1] == 1
    assert bins.counts.sum() == 3


def test_deviations_have_no_more_digits_than_are_known() -> None:
    assert METRICS["top1"].spread(0.03731) == "3.73"
    assert METRICS["mae"].spread(0.0099354) == "0.0099"
