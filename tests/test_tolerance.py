"""What is too far from the Keras model."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from kdlite.compress.recipes import RECIPES, recipe
from kdlite.lite.output_report import compare
from kdlite.lite.tolerance import Tolerance, problems, rule


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
        # Tables of 16 bits are off by some steps; of 8 bits nothing is.
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
    words = rule(RECIPES[name], trained).replace("at most two quantization", "2")
    numbers = Tolerance(RECIPES[name], trained).to_dict()
    if "within_one_step" in numbers:
        numbers["within_one_step"] *= 100
    # 65,536 is how many steps 16 bits have, and one is one.
    told = re.findall(r"[\d.]*\d", words.replace(" of 65,536", ""))
    assert sorted(map(float, told)) == pytest.approx(sorted(numbers.values()), abs=0.5)
