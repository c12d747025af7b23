"""Losses under `tf.distribute`: each replica has a share of the global batch.

The gradients of all replicas are added up, so each divides its loss by their number, as
every `keras.losses.Loss` does. What is logged is the loss before that.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Tensor = Any


def share(loss: Tensor) -> Tensor:
    """Returns a replica's part of a loss: divided by the number of replicas.

    Args:
        loss: The mean over the samples that the replica has.
    """
    count = tf.distribute.get_strategy().num_replicas_in_sync
    return loss / tf.cast(count, loss.dtype) if count > 1 else loss


def whole(loss: Tensor) -> Tensor:
    """Returns the loss of which a replica has a part, to be logged.

    Args:
        loss: What `share` or a `keras.losses.Loss` returned.
    """
    count = tf.distribute.get_strategy().num_replicas_in_sync
    return loss * tf.cast(count, loss.dtype) if count > 1 else loss
