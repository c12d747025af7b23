"""What is too far from the Keras model."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from kdlite.compress.recipes import RECIPES, recipe
from kdlite.lite.output_report import compare
from kdlite.lite.tolerance import Tolerance, caution, problems, rule, unresolved


def output(**figures) -> SimpleNamespace:
    good = dict(
        name="y",
        nan_count=0,
        largest_value=2.0,
        largest_difference=0.0,
        rms_difference=0.0,
        spread=1.0,
        step=0.01,
        within_one_step=1.0,
        histogram=(1000,),
        largest_steps=9.0,
        samples=100,
        varies=1.0,
        follows_db=40.0,
        fixed_step=False,
        lost_gain=0.0,
    )
    return SimpleNamespace(**{**good, **figures})


@pytest.mark.parametrize(
    ("quantization", "trained", "figures", "text"),
    [
        ("float32", False, {"largest_difference": 1.9e-4}, None),
        ("float32", False, {"largest_difference": 2.1e-4}, "'y' differs by 0.00021"),
        # Where everything is 0, a difference of nothing is none.
        ("float32", False, {"largest_value": 0.0, "largest_difference": 1e-7}, None),
        ("float32", False, {"nan_count": 3}, "'y' has 3 NaN"),
        ("int8", True, {"within_one_step": 0.99, "largest_difference": 1.0}, None),
        ("int8", True, {"within_one_step": 0.98}, "only 98.0% are within one"),
        # Left in float by name: it has no steps to be within.
        ("int8", True, {"step": None, "within_one_step": 0.0}, None),
        ("int8", True, {"step": None, "rms_difference": 0.3}, "'y' is off by 0.3"),
        # Float arithmetic takes one in some hundred of 65,536 to another level.
        ("int16x8", True, {"within_one_step": 0.9, "rms_difference": 0.019}, None),
        ("int16x8", True, {"within_one_step": 0.9, "rms_difference": 0.021}, "90.0%"),
        ("int4", True, {"within_one_step": 0.9, "rms_difference": 0.01}, "90.0%"),
        ("int8", False, {"rms_difference": 0.28, "within_one_step": 0.1}, None),
        ("int8", False, {"rms_difference": 0.3}, "'y' is off by 0.3 .*than 0.288"),
        # An output that hardly varies cannot be on finer levels than there are.
        ("int8", False, {"rms_difference": 0.019, "spread": 0.001}, None),
        ("int8", False, {"rms_difference": 0.021, "spread": 0.001}, "more than 0.02"),
        ("int8", False, {"nan_count": 1}, "'y' has 1 NaN"),
        # 41 dB are a factor of 112.
        ("float16", False, {"rms_difference": 0.008, "step": None}, None),
        ("float16", False, {"rms_difference": 0.01, "step": None}, "than 0.0089"),
        # 3 dB: the noise is at most half of the signal.
        ("int4", False, {"rms_difference": 0.7}, None),
        ("int4", False, {"rms_difference": 0.71}, "more than 0.708"),
        # An output that does not vary at all, as float arithmetic has it.
        ("dynamic", False, {"spread": 0, "step": None, "rms_difference": 1e-4}, None),
        (
            "dynamic",
            False,
            {"spread": 0, "step": None, "rms_difference": 3e-4},
            "0.0002",
        ),
    ],
)
def test_what_counts_as_wrong(quantization, trained, figures, text) -> None:
    found = problems([output(**figures)], recipe(quantization), trained)
    if text is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(text, found[0])


@pytest.mark.parametrize("step", [None, 0.01])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("quantization", ["float32", "float16", "dynamic", "int8"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_on_one_side_alone(quantization, trained, step, odd) -> None:
    levels = np.arange(40.0).reshape(20, 2) / 100
    broken = np.where(levels < 0.1, odd, levels)  # of some samples
    chosen = recipe(quantization)

    def wrong(by_file, by_keras) -> list[str]:
        report = compare("y", by_file, by_keras, step=step)
        return problems([report], chosen, trained)

    assert wrong(broken, levels) and not wrong(levels, levels)
    if np.isnan(odd) or step:
        # What Keras gives is none that the file could be held to.
        for by_file in (broken, levels):
            with pytest.raises(ValueError, match="must give numbers"):
                wrong(by_file, broken)
    else:
        assert wrong(levels, broken) and not wrong(broken, broken)


@pytest.mark.parametrize(
    ("values", "off", "passes"),
    [
        # One of few, by two steps; not by three, and not two of them.
        (16, [2], True),
        (16, [-2], True),
        (16, [3], False),
        (16, [2, 2], False),
        (99, [2], True),
        (100, [2], True),
        # Of many, one in a hundred by any number of steps.
        (1000, [9] * 10, True),
        (1000, [2] * 11, False),
    ],
)
def test_one_value_of_few_may_be_two_steps_off(rng, values, off, passes) -> None:
    wanted = rng.integers(-100, 100, (values, 1)) * 0.5
    told = wanted.copy()
    told[: len(off), 0] += np.array(off) * 0.5
    found = problems([compare("y", told, wanted, step=0.5)], recipe("int8"), True)
    assert (not found) is passes


@pytest.mark.parametrize("quantization", ["float32", "float16", "dynamic"])
def test_an_infinity_on_one_side_alone_is_said(quantization) -> None:
    wanted = np.array([[1.0, -np.inf], [2.0, -np.inf]])
    assert not problems([compare("y", wanted, wanted)], recipe(quantization))
    told = np.where(np.isinf(wanted), -65504.0, wanted)
    for a, b in ((told, wanted), (wanted, told)):
        (problem,) = problems([compare("y", a, b)], recipe(quantization))
        assert "'y' is infinite in one of file and model alone" in problem


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_numbers_and_words_of_a_tolerance_are_the_same(
    name: str, trained: bool
) -> None:
    words = rule(RECIPES[name], trained)
    if trained:
        # Other kernels are held to what files of other models are.
        words, _, others = words.partition("; in float, and with other kernels or more")
        assert rule(RECIPES[name]) == f"no NaN, and {others.removeprefix(' threads, ')}"
    words = words.replace("at most two quantization", "2")
    numbers = Tolerance(RECIPES[name], trained).to_dict()
    if "within_one_step" in numbers:
        numbers["within_one_step"] *= 100
    # 65,536 is how many steps 16 bits have, and one is one.
    told = re.findall(r"[\d.]*\d", words.replace(" of 65,536", ""))
    assert sorted(map(float, told)) == pytest.approx(sorted(numbers.values()), abs=0.5)


# --- a file that says nothing


def years(rng, samples=128, spread=3.0, step=11.0):
    """A regression whose offset is in the range that its steps are spread over."""
    wanted = rng.normal(2000.0, spread, (samples, 1))
    return np.round(wanted / step) * step, wanted


@pytest.mark.parametrize("quantization", ["int8", "int16x8", "int4"])
def test_two_steps_will_not_do_where_a_step_is_wider_than_the_samples_differ(
    rng, quantization
) -> None:
    report = compare("y", *years(rng), step=11.0)
    assert report.rms_difference < 2 * 11.0 and report.within_one_step == 1.0
    (problem,) = problems([report], recipe(quantization))
    assert "'y' varies by" in problem and "a quantization step is 11" in problem
    assert "(its values reach 200" in problem and "over 128 samples" in problem
    # Trained with these very steps, the model has them too.
    assert problems([report], recipe(quantization), True) == []


@pytest.mark.parametrize(
    ("figures", "fixed"),
    [
        ({"samples": 15}, False),  # few: nobody knows how they vary
        ({"spread": 12.0}, False),
        ({"spread": 0.01}, False),  # 5e-6 of the values: float arithmetic
        ({"spread": 0.0}, False),
        ({}, True),  # the step is the operation's own
    ],
)
def test_a_file_that_follows_what_can_be_followed_passes(rng, figures, fixed) -> None:
    report = compare("y", *years(rng, **figures), step=7.9, fixed_step=fixed)
    assert problems([report], recipe("int8")) == []


@pytest.mark.parametrize(
    ("spread", "told"),
    [(0.01, True), (0.0005, False), (0.0, False), (12.0, False)],
)
def test_what_float_arithmetic_may_have_made_is_told(rng, spread, told) -> None:
    apart = years(rng, spread=spread)
    report = compare("y", *apart, step=7.9)
    assert problems([report], recipe("int8")) == []
    assert bool(unresolved(report)) is told
    if told:
        assert "'y' varies by 0.01" in unresolved(report)
        assert "7.9 wide. Where so little counts, let" in unresolved(report)
    # Targets say what is lost.
    assert not unresolved(compare("y", *apart, step=7.9, target=apart[1]))


def test_noise_of_weights_is_not_held_to_what_the_samples_differ_by(rng) -> None:
    # Values far apart that hardly vary: the decibels of all are what is asked for.
    wanted = rng.normal(size=(64, 8)) * 0.1 + np.arange(8.0)
    told = wanted + rng.normal(size=wanted.shape) * 0.2
    report = compare("y", told, wanted, step=0.03)
    assert report.follows_db < 0 and problems([report], recipe("int8")) == []
    assert "of what the samples differ by (0.09" in str(report)


def test_how_much_values_vary_over_the_samples(rng) -> None:
    wanted, noise = rng.normal(size=(50, 3, 2)), rng.normal(size=(50, 3, 2))
    report = compare("y", wanted + noise + 5.0, wanted + np.arange(2.0) * 9)
    apart = noise - np.arange(2.0) * 9
    assert report.varies == pytest.approx(np.sqrt(wanted.var(axis=0).mean()))
    assert report.unfollowed == pytest.approx(np.sqrt(apart.var(axis=0).mean()))
    assert report.follows_db == pytest.approx(
        20 * np.log10(report.varies / report.unfollowed)
    )
    assert report.samples == 50


def labelled(wrong: int, of: int = 1000, keras_wrong: int = 60):
    """Two classes; the model errs in some, the file in others too."""
    y = np.tile([0, 1], of // 2)

    def scores(mistakes: slice):
        given = y.copy()
        given[mistakes] = 1 - given[mistakes]
        return np.eye(2)[given]

    told = scores(slice(0, keras_wrong + wrong))
    return compare("y", told, scores(slice(0, keras_wrong)), target=y)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (5, ""),  # half a point
        (20, ""),
        (30, "caution"),  # of 44 points above one answer for all
        (219, "caution"),
        (221, "problem"),
        (760, "problem"),
    ],
)
def test_what_may_be_lost_of_the_metric(name, trained, wrong, told) -> None:
    report = labelled(wrong)
    # Whatever the outputs are off by: float files are refused for that alone.
    report = dataclasses.replace(report, largest_difference=0.0, rms_difference=0.0)
    found = problems([report], recipe(name), trained)
    assert bool(found) is (told == "problem")
    assert bool(caution(report)) is (told == "caution")
    for text in (*found, *filter(None, [caution(report)])):
        assert "'y' loses" in text and "where Keras has 0.9400" in text


@pytest.mark.parametrize("model", ["untrained", "few samples", "better"])
def test_a_loss_that_may_be_chance_is_none(model, rng) -> None:
    y = rng.integers(0, 2, 400)
    if model == "untrained":
        a, b = rng.normal(size=(2, 400, 2))
    elif model == "few samples":
        y, a = y[:8], np.eye(2)[y[:8]]
        b = 1 - a
    else:
        a, b = rng.normal(size=(400, 2)), np.eye(2)[y]
    report = compare("y", b, a, target=y)
    assert report.lost_gain == 0.0 and not caution(report)


def test_lost_errors_are_those_of_mcnemar(rng) -> None:
    y = rng.integers(0, 5, 300)
    wanted, told = np.eye(5)[y], np.eye(5)[y]
    wanted[:7] = np.roll(wanted[:7], 1, axis=1)
    told[4:40] = np.roll(told[4:40], 1, axis=1)
    by_keras = wanted.argmax(1) == y
    by_file = told.argmax(1) == y
    b, c = np.sum(by_keras & ~by_file), np.sum(by_file & ~by_keras)
    report = compare("y", told, wanted, target=y)
    assert report.lost_errors == pytest.approx((b - c) / np.sqrt(b + c))
    assert report.chance_metric == np.bincount(y).max() / 300


def test_a_regression_that_is_no_better_than_one_answer_is_wrong(rng) -> None:
    told, wanted = years(rng)
    y = wanted + rng.normal(0, 0.2, wanted.shape)
    report = compare("y", np.full_like(told, 2000.0), wanted, target=y)
    assert report.chance_metric == pytest.approx(np.abs(y - np.median(y)).mean())
    assert "mean absolute error 2." in "".join(problems([report], recipe("dynamic")))
    half = 0.6 * wanted + 0.4 * np.median(y)
    report = compare("y", half, wanted, target=y)
    assert 0.2 < report.lost_gain < 0.5 and "'y' loses" in caution(report)
