"""Numbers that are drawn as functions of others: the same in any order and process.

TensorFlow's stateless operations take one seed for a whole tensor. Here each sample of
a batch has its own, and each number is but a hash of what it is drawn for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any
Array = np.ndarray[Any, Any]

_STEP = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def uint64(numbers: Any) -> Tensor:
    """Returns whole numbers as uint64.

    Args:
        numbers: A Python integer or a tensor.
    """
    if isinstance(numbers, int):
        return tf.constant(numbers, tf.uint64)
    return tf.cast(numbers, tf.uint64)


def mixed(state: Any) -> Tensor:
    """Returns the number that SplitMix64 gives from a state, uint64.

    Args:
        state: uint64, or what can be made so.

    Reference:
        Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators,
        OOPSLA, section 4 (as its authors' Java code has it since).
    """
    z = uint64(state) + uint64(_STEP)
    for shift, factor in _ROUNDS:
        z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, uint64(shift)))
        z *= uint64(factor)
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, uint64(31)))


def hashed(first: Any, *others: Any) -> Tensor:
    """Returns a number drawn for some whole numbers, or tensors of such, uint64.

    Args:
        first: The first of them.
        *others: The others; their order counts.
    """
    state = mixed(first)
    for number in others:
        state = mixed(state + uint64(number))
    return state


def hashed_array(first: Any, *others: Any) -> Array:
    """Returns what `hashed` does, for arrays instead of tensors.

    A graph of TensorFlow's takes longer to be traced than numpy takes to calculate it.

    Args:
        first: Whole numbers, or arrays of such.
        *others: The same.
    """
    state: Array = np.zeros(1, np.uint64)
    for number in (first, *others):
        z = np.asarray(number).astype(np.uint64) + state
        z = z + np.uint64(_STEP)
        for shift, factor in _ROUNDS:
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        state = z ^ (z >> np.uint64(31))
    return state


def seeds(first: Any, *others: Any) -> Tensor:
    """Returns seeds as `tf.random.stateless_*` take them, each word good by itself.

    TensorFlow's own folding takes one sample at a time, and longer than a flip.

    Args:
        first: What they are drawn for: whole numbers, or tensors of such.
        *others: The same.

    Returns:
        int64 `(..., 2)`.
    """
    word = hashed(first, *others)
    return tf.bitcast(tf.stack([word, mixed(word)], axis=-1), tf.int64)


def derived(from_seeds: Tensor, purpose: int) -> Tensor:
    """Returns other seeds, int64 `(..., 2)`.

    Args:
        from_seeds: int64 `(..., 2)`.
        purpose: What they are for: a number of the caller's own.
    """
    return seeds(tf.bitcast(from_seeds[..., 0], tf.uint64), purpose)


def natural(words: Tensor) -> Tensor:
    """Returns numbers from 0 to 2^63 - 1, int64.

    Args:
        words: Drawn, int64 or uint64.
    """
    bits = tf.bitcast(words, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(bits, uint64(1)), tf.int64)


def unit(words: Tensor) -> Tensor:
    """Returns numbers from 0 up to 1, without it, float32.

    Args:
        words: Drawn, int64 or uint64.
    """
    bits = tf.bitcast(words, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(bits, uint64(40)), tf.float32) * 2.0**-24
