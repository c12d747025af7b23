"""The demo's augmentation: what a shop's photo of the same piece might look like."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Tensor = Any

_SHIFT_PIXELS = 2


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
    return tf.image.stateless_random_flip_left_right(shifted, seed + 1)
