"""Draws: functions of their numbers alone, that look like chance."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from kdlite.distill import draws


def splitmix(state):
    """SplitMix64 in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_it_is_the_published_generator():
    assert splitmix(0) == 0xE220A8397B1DCDAF
    states = [0, 1, 2**63 - 1]
    assert draws.mixed(np.array(states, "uint64")).tolist() == [*map(splitmix, states)]
    expected = splitmix((splitmix((splitmix(7) + 2**40) % 2**64) + 3) % 2**64)
    assert draws.hashed(7, np.array([2**40, 1]), 3)[0] == expected
    words = draws.seeds(7, 2**40, 3).numpy().view("uint64")
    np.testing.assert_array_equal(
        words, np.array([expected, splitmix(expected)], "uint64")
    )
    other = draws.derived(tf.constant(words.view("int64")), 5).numpy().view("uint64")
    assert int(other[0]) == splitmix((splitmix(expected) + 5) % 2**64)


def test_numbers_are_even_and_of_their_range():
    words = draws.hashed(3, tf.range(20_000, dtype=tf.int64))
    numbers = draws.unit(words).numpy()
    assert numbers.dtype == np.float32 and 0 <= numbers.min() <= numbers.max() < 1
    # Counts in 16 bins differ from 1250 by chance, sd 34: 5 sd allowed.
    counts = np.histogram(numbers, 16, (0, 1))[0]
    assert np.abs(counts - 1250).max() < 5 * 34.2
    whole = draws.natural(words).numpy()
    assert whole.dtype == np.int64 and whole.min() >= 0
    assert abs((whole % 2).mean() - 0.5) < 5 * 0.5 / 20_000**0.5
    assert float(draws.unit(tf.constant(2**64 - 1, tf.uint64))) < 1
    signed = tf.constant(-1, tf.int64)
    assert int(draws.natural(signed)) == 2**63 - 1
