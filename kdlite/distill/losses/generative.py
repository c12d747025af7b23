"""A loss that rebuilds the teacher's features from a part of the student's."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from kdlite.distill.losses.features import (
    FeatureLoss,
    Over,
    Shape,
    checked_over,
    sample_mean,
)
from kdlite.distill.schedules import checked_number

Tensor = Any


@keras.saving.register_keras_serializable(package="kdlite")
class MaskedGenerative(FeatureLoss):
    r"""The teacher's features, rebuilt from a random part of the student's (MGD).

    $$ L = \frac{1}{n} \sum_{p, c} (t_{pc} - G(s \cdot m)_{pc})^2, \quad
       G(x) = W_2 * \mathrm{ReLU}(W_1 * x) $$

    over all `n` positions and channels, with a new random mask `m` for each sample and
    step: a share `ratio` of the positions (or channels) is zeroed. The generator `G`,
    two layers of 3x3 convolution (of 3 steps for sequences, dense for vectors), is
    trained with the student and left out of it. The student must hold what is needed
    to fill the gaps, and need not copy. The paper has the sum; the mean keeps a
    weight's meaning from one layer size to the next.

    Args:
        ratio: Share that is zeroed, in [0, 1).
        over: `"positions"`, or `"channels"`, as the paper's code does for classifiers.
            Vectors have channels only.
        seed: Seed of the masks. Their state is saved with the distiller.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ..., channels)`.
        y_pred: Student features of the same shape.
        sample_weight: Weights of shape `(batch,)`.

    Raises:
        TypeError: If `ratio` is no number.
        ValueError: If an argument is out of its range, or the shapes differ.

    Example:
        >>> import numpy as np
        >>> loss = MaskedGenerative(ratio=0.5, seed=0)
        >>> features = np.ones((2, 4, 4, 3), "float32")
        >>> bool(loss(features, features) > 0)
        True

    Reference:
        Yang et al.: Masked Generative Distillation, 2022, arXiv:2205.01529,
        equations 3 to 5.
    """

    def __init__(
        self,
        ratio: float = 0.5,
        over: Over = "positions",
        seed: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "masked_generative",
    ) -> None:
        super().__init__(reduction, name)
        self.ratio = checked_number("ratio", ratio)
        if self.ratio >= 1.0:
            raise ValueError(
                f"`ratio` must be below 1. Received: ratio={ratio}. Fix: 0.5 hides "
                f"half of the student's features."
            )
        self.over = checked_over(over)
        self.seed = seed

    def make(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Makes the generator."""
        self.generator = _Generator(self.ratio, self.over, self.seed, name="generator")
        self.generator.build(teacher_shape)

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        return sample_mean(ops.square(teacher - self.generator(student)), mask)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        return {
            **super().get_config(),
            "ratio": self.ratio,
            "over": self.over,
            "seed": self.seed,
        }


class _Generator(layers.Layer):
    """Zeroes a random part and fills it again from what is left."""

    def __init__(self, ratio: float, over: Over, seed: int | None, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self._ratio, self._over = ratio, over
        self._seeds = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Shape) -> None:
        width, rank = input_shape[-1], len(input_shape)
        kind = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}.get(rank)
        for name, activation in (("hidden", "relu"), ("output", None)):
            arguments = {"activation": activation, "dtype": "float32", "name": name}
            layer = (
                layers.Dense(width, **arguments)
                if kind is None
                else kind(width, 3, padding="same", **arguments)
            )
            layer.build(input_shape)
            setattr(self, f"{name}_layer", layer)

    def call(self, features: Tensor) -> Tensor:
        drawn = list(ops.shape(features))
        if self._over == "positions" and len(drawn) > 2:
            drawn[-1] = 1
        else:
            drawn[1:-1] = [1] * (len(drawn) - 2)
        numbers = keras.random.uniform(drawn, seed=self._seeds, dtype="float32")
        kept = ops.cast(numbers >= self._ratio, "float32")
        return self.output_layer(self.hidden_layer(features * kept))
