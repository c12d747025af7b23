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


def mixed(state: Array) -> Array:
    """Returns the number that SplitMix64 gives from each state, uint64.

    Args:
        state: uint64, an array.

    Reference:
        Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators,
        OOPSLA, section 4 (as its authors' Java code has it since).
    """
    z = state + np.uint64(_STEP)
    for shift, factor in _ROUNDS:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    mixed: Array = z ^ (z >> np.uint64(31))
    return mixed


def hashed(first: Any, *others: Any) -> Array:
    """Returns a number drawn for some whole numbers, or arrays of such, uint64.

    Args:
        first: The first of them.
        *others: The others; their order counts.
    """
    state: Array = np.zeros(1, np.uint64)
    for number in (first, *others):
        state = mixed(np.asarray(number).astype(np.uint64) + state)
    return state


def seeds(first: Any, *others: Any) -> Tensor:
    """Returns seeds as `tf.random.stateless_*` take them, each word good by itself.

    TensorFlow's own folding takes one sample at a time, and longer than a flip; and a
    graph of this arithmetic takes longer to be traced than numpy takes to calculate it.

    Args:
        first: What they are drawn for: whole numbers below 2^63, or tensors of such.
        *others: The same, of one shape, or numbers.

    Returns:
        int64 `(..., 2)`.
    """

    def drawn(*numbers: Array) -> Array:
        word = hashed(*numbers)
        words = np.stack([word, mixed(word)], axis=-1).view(np.int64)
        return words.reshape(*np.broadcast_shapes(*map(np.shape, numbers)), 2)

    numbers = [
        number if tf.is_tensor(number) else np.asarray(number, np.int64)
        for number in (first, *others)
    ]
    shape = tf.TensorShape([])
    for number in numbers:
        shape = tf.broadcast_static_shape(shape, tf.TensorShape(number.shape))
    words = tf.numpy_function(drawn, numbers, tf.int64)
    words.set_shape([*shape, 2])
    return words


def derived(from_seeds: Tensor, purpose: int) -> Tensor:
    """Returns other seeds, int64 `(..., 2)`.

    Args:
        from_seeds: int64 `(..., 2)`.
        purpose: What they are for: a number of the caller's own.
    """
    return seeds(from_seeds[..., 0], purpose)


def natural(words: Tensor) -> Tensor:
    """Returns numbers from 0 to 2^63 - 1, int64.

    Args:
        words: Drawn, int64 or uint64.
    """
    bits = tf.bitcast(words, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(1, tf.uint64)), tf.int64)


def unit(words: Tensor) -> Tensor:
    """Returns numbers from 0 up to 1, without it, float32.

    Args:
        words: Drawn, int64 or uint64.
    """
    bits = tf.bitcast(words, tf.uint64)
    return (
        tf.cast(tf.bitwise.right_shift(bits, tf.constant(40, tf.uint64)), tf.float32)
        * 2.0**-24
    )
