"""The demo's augmentation: what a shop's photo of the same piece might look like."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Tensor = Any

_SHIFT_PIXELS = 2
_LEAST_ERASED = 4
_SIZES = 9


def shift_and_flip(image: Tensor, seed: Tensor) -> Tensor:
    """Shifts an image by up to two pixels each way and flips it left to right.

    Stateless: the same image and seed give the same result, so teacher and student can
    be shown the very same view.

    Args:
        image: One image, `(height, width, channels)`.
        seed: Two integers, as `tf.image.stateless_*` takes them.

    Returns:
        An image of the same shape and dtype; what is shifted in is 0.
    """
    pad = [[_SHIFT_PIXELS, _SHIFT_PIXELS], [_SHIFT_PIXELS, _SHIFT_PIXELS], [0, 0]]
    shifted = tf.image.stateless_random_crop(tf.pad(image, pad), tf.shape(image), seed)
    return flip(shifted, seed + 1)


def flip(image: Tensor, seed: Tensor) -> Tensor:
    """Flips every other image left to right. Stateless, like `shift_and_flip`.

    Args:
        image: One image, `(height, width, channels)`.
        seed: Two integers.

    Returns:
        An image of the same shape and dtype.
    """
    return tf.image.stateless_random_flip_left_right(image, seed)


def erase(image: Tensor, seed: Tensor) -> Tensor:
    """Blackens a random rectangle of 4 to 12 pixels each way in every other image.

    Stateless, like `shift_and_flip`.

    Args:
        image: One image, `(height, width, channels)`, at least 12 pixels each way.
        seed: Two integers.

    Returns:
        An image of the same shape and dtype.

    Reference:
        Zhong et al. 2017, Random Erasing Data Augmentation, arXiv:1708.04896.
    """
    height, width = image.shape[0], image.shape[1]
    drawn = tf.random.stateless_uniform([5], seed)
    tall, wide = (_LEAST_ERASED + tf.cast(drawn[k] * _SIZES, tf.int32) for k in (0, 1))

    def within(start: Tensor, length: Tensor, full: int) -> Tensor:
        first = tf.cast(start * tf.cast(full + 1 - length, tf.float32), tf.int32)
        place = tf.range(full)
        return (place >= first) & (place < first + length)

    rows, columns = within(drawn[2], tall, height), within(drawn[3], wide, width)
    hole = rows[:, None, None] & columns[None, :, None] & (drawn[4] < 0.5)
    return tf.where(hole, tf.zeros_like(image), image)
