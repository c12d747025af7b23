"""Whether a difference separates: tests on one seed's samples, and over seeds.

No SciPy: it is no dependency of kdlite, and both tests have short exact forms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Equal differences of floats are apart by less than this part of them.
_ROUNDED = 1e-12


def mcnemar(first: Array, second: Array) -> float:
    """Exact McNemar test: do two models get other samples right more often?

    Of the `n = b + c` samples that only one of them gets right, `b` are the first's.
    If neither was better, `b` would be binomial with probability 1/2, so that

        p = min(1, 2 sum_{i <= min(b, c)} C(n, i) / 2^n)

    Args:
        first: Whether each sample is right, `(samples,)`.
        second: Likewise, of the other model on the same samples.

    Returns:
        The two-sided p-value.

    Example:
        >>> right = np.ones(8, bool)
        >>> round(mcnemar(right, np.array([True] * 2 + [False] * 6)), 5)  # 2 / 2 ** 6
        0.03125

    Reference:
        McNemar 1947, Psychometrika 12; the exact form: Dietterich 1998, Neural
        Computation 10, section 3.1.
    """
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    n, least = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    # Logarithms: C(n, i) has thousands of digits.
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    i = np.arange(least + 1)
    logs = factorial[n] - factorial[i] - factorial[n - i] - n * math.log(2)
    highest = logs.max()
    total = math.exp(highest) * float(np.exp(logs - highest).sum())
    return min(1.0, 2 * total)


def paired_t(differences: Array, step: float = 0.0) -> float:
    """Paired t test: is the mean of the differences another than 0?

    `t = mean / (sd / sqrt(n))` with `n - 1` degrees of freedom, two-sided.

    Shares of few samples are often equally far apart in each pair, and a deviation of 0
    would make any difference sure. So it counts as no less than what rounding two
    shares to whole samples gives, `step / sqrt(6)`. Where nothing was rounded and there
    is no spread, the t test says nothing; of the `2^n` ways to give the differences
    their signs two are as far from 0 then, so that `p = 2 / 2^n`.

    Args:
        differences: One for each pair, `(pairs,)`, two or more.
        step: What each of the two differs by at least, as `1 / samples` of an accuracy;
            0 of numbers that may be any.

    Returns:
        The p-value.

    Example:
        >>> round(paired_t(np.array([1.0, 2.0, 3.0])), 4)
        0.0742
        >>> round(paired_t(np.array([0.01, 0.01]), step=0.01), 4)
        0.1789

    Reference:
        The variance `step^2 / 12` of rounding: Sheppard 1898, Proceedings of the London
        Mathematical Society 29. Signs given at random: Fisher 1935, The Design of
        Experiments, section 21.
        Student's t for whole degrees of freedom: Abramowitz and Stegun 1964, Handbook
        of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    n = len(differences)
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if mean == 0.0:
        return 1.0
    sd = max(sd, step / math.sqrt(6))
    if sd <= _ROUNDED * abs(mean):
        return 2.0 ** (1 - n)
    # A sum of rounded terms may be above 1.
    return max(0.0, 1.0 - _within(abs(mean) / sd * math.sqrt(n), n - 1))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval that a share of a sample leaves for that of all, with 95 % surety.

    Args:
        share: What was found, 0 to 1.
        count: In how many.

    Returns:
        Its ends, `(share + z^2 / 2n -+ z sqrt(share (1 - share) / n + z^2 / 4n^2)) /
        (1 + z^2 / n)` with `z = 1.96`.

    Example:
        >>> [round(end, 3) for end in wilson(0.0, 1)], round(wilson(0.0, 50)[1], 3)
        ([0.0, 0.793], 0.071)

    Reference:
        Wilson 1927, Journal of the American Statistical Association 22.
    """
    z2 = 1.959964**2
    middle = share + z2 / (2 * count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    whole = 1 + z2 / count
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def _within(t: float, degrees: int) -> float:
    """The probability that Student's t is from -t to t."""
    theta = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    # 26.7.3: cos + 2/3 cos^3 + 2*4/(3*5) cos^5 ...; 26.7.4: 1 + 1/2 cos^2 + ...
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    if odd:
        return 2 / math.pi * (theta + sine * total)
    return sine * total
