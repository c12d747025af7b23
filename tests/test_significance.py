"""Against SciPy, which kdlite itself does without."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdlite.reporting.significance import mcnemar, paired_t, wilson


@pytest.mark.parametrize("samples", [1, 7, 40, 900, 20_000])
@pytest.mark.parametrize("second", [0.55, 0.8, 0.95])
def test_mcnemar_is_the_binomial_test_of_what_differs(rng, samples, second) -> None:
    a, b = rng.random(samples) < 0.8, rng.random(samples) < second
    only, other = int((a & ~b).sum()), int((~a & b).sum())
    expected = stats.binomtest(only, only + other).pvalue if only + other else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(b, a) == mcnemar(a, b)


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 8, 9, 100, 3001])
@pytest.mark.parametrize("shift", [0.0, -0.2, 3.0])
def test_paired_t_is_scipys(rng, pairs, shift) -> None:
    first, second = rng.normal(shift, 1, pairs), rng.normal(0, 1, pairs)
    expected = stats.ttest_rel(first, second).pvalue
    assert paired_t(first - second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("pairs", [4, 1001, 3002])
def test_the_surest_is_never_below_nothing(pairs) -> None:
    half = np.arange(pairs) % 2
    for mean in np.logspace(-1, 6, 40):
        assert 0.0 <= paired_t(mean + half) <= 1.0


def test_differences_without_spread() -> None:
    assert paired_t(np.zeros(3)) == 1.0
    assert mcnemar(np.ones(4, bool), np.ones(4, bool)) == 1.0
    # Of all ways to give equal differences their signs, two are as far from 0.
    for pairs in (2, 3, 6, 12):
        signs = np.array(np.meshgrid(*[[-1, 1]] * pairs)).reshape(pairs, -1)
        extreme = np.abs(signs.mean(0)) >= 1.0
        assert paired_t(np.full(pairs, 0.25)) == extreme.mean()
        # Neither is what floats make of equal differences a spread.
        noise = 0.25 + 1e-17 * np.arange(pairs)
        assert paired_t(noise + np.array([0.1, 0.0] + [0.0] * (pairs - 2)) * 1e-15) == (
            pytest.approx(extreme.mean())
        )


@pytest.mark.parametrize("gain", [1, 3, 9])
@pytest.mark.parametrize("pairs", [2, 3, 5])
def test_shares_of_samples_have_no_less_spread_than_rounding(gain, pairs) -> None:
    shares = np.arange(90, 90 + pairs) / 100
    equal = (shares + gain / 100) - shares
    spread = np.sqrt(2 * 0.01**2 / 12)  # of two that are each rounded to 1 / 100
    expected = 2 * stats.t.sf(gain / 100 / (spread / np.sqrt(pairs)), pairs - 1)
    assert paired_t(equal, step=0.01) == pytest.approx(expected, rel=1e-9)
    wide = equal + 0.03 * np.arange(pairs)  # what there is counts where it is more
    assert paired_t(wide, step=0.01) == paired_t(wide)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 7), (40, 90)])
def test_wilson_is_scipys(right, count) -> None:
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx(tuple(expected), abs=1e-6)
