"""Balance: soft losses that pull on the student's outputs as hard as the labels do.

Losses come in units of their own: a divergence times T squared, a squared error in
pixels. By how much each moves the student is said by its gradient on the output:

>>> import tensorflow as tf
>>> from kdlite.distill.losses import LogitMSE
>>> from kdlite.distill.pairs import OutputPairs
>>> import keras
>>> head = keras.layers.Dense(2, name="class")
>>> student = keras.Sequential([keras.Input((2,)), head])
>>> pairs = OutputPairs(student, LogitMSE())
>>> logits = tf.constant([[3.0, 0.0]])
>>> with GradientBalance(pairs, logits) as balance:
...     hard = 10.0 * tf.reduce_sum(balance.outputs)
...     soft = {"class": LogitMSE()(tf.constant([[1.0, 0.0]]), balance.outputs)}
>>> round(float(balance.scales(hard, soft)["class"]), 3)  # 10 sqrt(2) / 2
7.071
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from kdlite.distill.output_names import named
from kdlite.distill.pairs import OutputPairs

Tensor = Any
Structure = Any

# A student that says what the teacher says has a gradient of rounding errors, which
# must not be blown up to the size of a message.
_LARGEST_SCALE = 1e4


class GradientBalance:
    r"""What scales the soft loss of each output so that its gradient equals the hard's.

    $$ b_o = \frac{\lVert \partial L_h / \partial z_o \rVert_2}
                  {\lVert \partial L_{s,o} / \partial z_o \rVert_2} $$

    with the norm over a whole batch of the student's logits (or values) $z_o$ of output
    `o`. It is computed anew for each batch and is itself no part of the gradient. The
    hard loss, by which the learning rate was chosen, stays as it is. Where there is no
    hard loss on an output, or no gradient, the scale is 1; it is 10,000 at most.

    A context: the losses that it is asked about are to be computed within, from
    `outputs`.

    Args:
        pairs: The outputs that are taught.
        y_pred: What the student returned.

    Attributes:
        outputs: The same outputs in float32, made anew from the logits that Keras keeps
            on them.
    """

    def __init__(self, pairs: OutputPairs, y_pred: Structure) -> None:
        # Neither the teacher nor any variable has a part in these gradients.
        self._tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self._pairs = pairs
        self._y_pred = y_pred
        self._watched: dict[str, Tensor] = {}
        self.outputs: Structure = None

    def __enter__(self) -> GradientBalance:
        """Begins to record."""
        self._tape.__enter__()
        by_name = named(self._y_pred, self._pairs.names)
        for name, kind in self._pairs.kinds.items():
            if name in by_name:
                by_name[name] = self._anew(name, by_name[name], kind)
        leaves = list(by_name.values())
        self.outputs = keras.tree.pack_sequence_as(self._y_pred, leaves)
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends recording."""
        self._tape.__exit__(*error)

    def _anew(self, name: str, output: Tensor, kind: str) -> Tensor:
        logits = getattr(output, "_keras_logits", None)
        squash = {"probabilities": ops.softmax, "sigmoid": ops.sigmoid}.get(kind)
        if logits is None or squash is None:
            logits, squash = output, ops.identity
        mask = getattr(output, "_keras_mask", None)
        watched = tf.identity(ops.cast(logits, "float32"))
        self._tape.watch(watched)
        self._watched[name] = watched
        # As an output of the model has it: the losses look for the logits there.
        anew = tf.identity(watched) if squash is ops.identity else squash(watched)
        if mask is not None:
            anew._keras_mask = mask
        return anew

    def scales(
        self, hard_loss: Tensor | None, soft_losses: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns what to multiply each soft loss with.

        Args:
            hard_loss: The loss on the labels, or `None` without labels.
            soft_losses: The soft loss of each output, by name.

        Returns:
            float32 scalars by name.
        """
        return {
            name: self._scale(hard_loss, loss, self._watched[name])
            for name, loss in soft_losses.items()
        }

    def _scale(self, hard_loss: Tensor, soft_loss: Tensor, z: Tensor) -> Tensor:
        if hard_loss is None:
            return ops.ones(())
        hard, soft = (
            tf.norm(self._tape.gradient(loss, z, unconnected_gradients="zero"))
            for loss in (hard_loss, soft_loss)
        )
        ratio = ops.minimum(tf.math.divide_no_nan(hard, soft), _LARGEST_SCALE)
        return ops.stop_gradient(ops.where(ratio > 0.0, ratio, 1.0))
