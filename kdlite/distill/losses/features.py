"""Losses on intermediate features: the teacher's are copied, regressed or rebuilt.

Features are the outputs of layers: `(batch, channels)`, `(batch, steps, channels)`,
`(batch, height, width, channels)`, channels last. `Distiller(feature_losses=...)` reads
them from the two models and brings the student's to the teacher's width and size; a
loss compares them, in float32, and gives one value for each sample. Positions that a
mask hides have no part in it.

>>> import numpy as np
>>> from kdlite.distill.losses import AttentionTransfer, Hint
>>> teacher = np.ones((2, 4, 4, 8), "float32")
>>> float(Hint()(teacher, teacher + 0.5))
0.25
>>> float(AttentionTransfer()(teacher, 3.0 * teacher[..., :2]))
0.0
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import layers, ops

from kdlite.distill.losses.outputs import compatible_shapes
from kdlite.distill.losses.teacher_loss import TeacherLoss, trained_layers
from kdlite.distill.schedules import checked_number

Tensor = Any
Shape = tuple[int | None, ...]

# Infinite features become this: beyond every real one, and small enough that sums of
# its fourth power are finite in float32.
LARGEST_FEATURE = 1e8
# Of a squared norm: below it a vector has no direction.
SMALLEST_SQUARE = 1e-24


class FeatureLoss(TeacherLoss):
    """A loss between features of two layers, one value for each sample.

    A loss defines `values(teacher, student, mask)`, and `make(teacher, student)` where
    parts of it are trained with the student.

    Args:
        reduction: As in `keras.losses.Loss`. `"sum_over_batch_size"` is the weighted
            sum over the number of samples.
        name: Name of the loss; the distiller logs it as `<name>_loss`.
    """

    #: Whether it compares channel by channel. An adapter then projects the student's
    #: features where widths differ.
    same_width = True
    #: Whether it compares position by position. The larger map is then pooled.
    same_size = True
    #: Whether the student's features are projected also where widths agree.
    always_projected = False
    #: Whether it is about where in a map something is: of one position it says nothing.
    about_positions = False

    def __init__(self, reduction: str | None, name: str) -> None:
        super().__init__(reduction, name)
        self._shapes: tuple[Shape, Shape] | None = None

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample.

        Args:
            teacher: float32, finite, of shape `(batch, ..., channels)`.
            student: The same of the student; zero where masked, as the teacher's.
            mask: 1.0 at positions that count, else 0.0, of shape `(batch, ..., 1)`, or
                `None` where all do.

        Returns:
            float32 values of shape `(batch,)`.
        """
        raise NotImplementedError

    def make(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Makes the layers that are trained with the student; here there are none.

        Args:
            teacher_shape: Shape of the teacher's features, `None` for the batch.
            student_shape: That of the student's.
        """

    def build(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Checks the shapes and makes what is trained; once, before the first call.

        `Distiller` does it. Alone, a loss does it when it is first called.

        Args:
            teacher_shape: Shape of the teacher's features, `None` for the batch.
            student_shape: That of the student's.

        Raises:
            ValueError: If the shapes do not fit together, or the loss has trained parts
                that are made for others.
        """
        shapes = tuple(teacher_shape), tuple(student_shape)
        self._check(*shapes)
        if self._shapes is None:
            self.make(*shapes)
        elif trained_layers(self) and not all(
            map(compatible_shapes, _features_of(self._shapes), _features_of(shapes))
        ):
            raise ValueError(
                f"`{type(self).__name__}` has weights, which are made for one pair of "
                f"layers. Received: features {shapes[0]} and {shapes[1]} for a loss of "
                f"{self._shapes[0]} and {self._shapes[1]}. Fix: give each pair a loss "
                f"of its own."
            )
        self._shapes = shapes

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        """Returns the loss of a batch.

        Args:
            y_true: Teacher features of shape `(batch, ..., channels)`.
            y_pred: Student features; their Keras mask, else the teacher's, counts.
            sample_weight: Weights of shape `(batch,)`.

        Returns:
            A float32 scalar, or `(batch,)` without reduction.
        """
        masks = [
            # A mask of as many axes as a vector is that of steps which are gone.
            x._keras_mask
            for x in (y_pred, y_true)
            if 0 < _rank(getattr(x, "_keras_mask", None)) < _rank(x)
        ]
        # The values are the samples' own: Keras must not weigh them by position.
        y_true, y_pred = (
            ops.copy(x) if hasattr(x, "_keras_mask") else x for x in (y_true, y_pred)
        )
        if masks:
            y_pred = (y_pred, masks[0])
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one value for each sample.

        Args:
            y_true: Teacher features of shape `(batch, ..., channels)`.
            y_pred: Student features, or a pair of these and a mask of positions.

        Returns:
            float32 values of shape `(batch,)`.
        """
        mask = None
        if isinstance(y_pred, (tuple, list)):
            y_pred, mask = y_pred
        self.validate_outputs(y_true, y_pred)
        if self._shapes is None:
            self.build(_unbatched(y_true), _unbatched(y_pred))
        teacher, student = (
            ops.clip(ops.cast(x, "float32"), -LARGEST_FEATURE, LARGEST_FEATURE)
            for x in (y_true, y_pred)
        )
        if mask is not None:
            mask = ops.cast(mask, "float32")
            while len(mask.shape) < len(student.shape):
                mask = ops.expand_dims(mask, -1)
            teacher, student = teacher * mask, student * mask
        return self.values(teacher, student, mask)

    def validate_outputs(
        self, teacher_outputs: Tensor, student_outputs: Tensor
    ) -> None:
        """Checks that the loss can compare these features.

        Args:
            teacher_outputs: Teacher features.
            student_outputs: Student features.

        Raises:
            ValueError: If either is not one tensor, or the shapes do not fit.
        """
        shapes = []
        for role, features in (
            ("teacher", teacher_outputs),
            ("student", student_outputs),
        ):
            if not hasattr(features, "shape"):
                raise ValueError(
                    f"`{type(self).__name__}` compares one tensor of each model. "
                    f"Received: {role} features of type {type(features).__name__}. "
                    f"Fix: tap a layer that returns one tensor."
                )
            shapes.append(tuple(features.shape))
        self._check(*shapes)

    def _check(self, teacher: Shape, student: Shape) -> None:
        parts = {
            (True, True): ("shape", 0, None),
            (False, True): ("positions", 0, -1),
            (True, False): ("channels", -1, None),
            (False, False): ("batch", 0, 1),
        }
        rule, start, stop = parts[self.same_width, self.same_size]
        if min(len(teacher), len(student)) < 2 or not compatible_shapes(
            teacher[start:stop], student[start:stop]
        ):
            raise ValueError(
                f"`{type(self).__name__}` compares features (batch, ..., channels) of "
                f"the same {rule}. Received: teacher {teacher}, student {student}. "
                f"Fix: Distiller(feature_losses=...), which adapts the student's."
            )
        if self.about_positions and set(teacher[1:-1]) <= {1}:
            raise ValueError(
                f"`{type(self).__name__}` compares positions of a map or sequence, "
                f"features (batch, ..., channels). Received: teacher {teacher}, "
                f"student {student}, which have one at most. Fix: layers before the "
                f"pooling, or kdlite.losses.Hint."
            )


def _rank(tensor: Tensor | None) -> int:
    return len(getattr(tensor, "shape", ()))


def _unbatched(features: Tensor) -> Shape:
    return (None, *features.shape[1:])


def _features_of(shapes: tuple[Shape, Shape]) -> list[Shape]:
    """What trained parts are made for: ranks and channels, not positions."""
    return [(*(None for _ in shape[:-1]), shape[-1]) for shape in shapes]


Over = Literal["positions", "channels"]


def checked_over(over: Any) -> Over:
    """Returns an argument that names an axis of features.

    Args:
        over: What was given.

    Returns:
        It.

    Raises:
        ValueError: If it is neither of the two.
    """
    if over not in get_args(Over):
        raise ValueError(
            f"`over` must be 'positions' or 'channels'. Received: over={over!r}. Fix: "
            f"give one of the two."
        )
    return over


def sample_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the mean for each sample, over positions that count.

    Args:
        values: Of shape `(batch, ..., channels)`.
        mask: Of shape `(batch, ..., 1)`, or `None`.

    Returns:
        Of shape `(batch,)`; zero where no position counts.
    """
    axes = tuple(range(1, len(values.shape)))
    if mask is None:
        return ops.mean(values, axis=axes)
    share = ops.broadcast_to(mask, ops.shape(values))
    total = ops.sum(values * share, axis=axes)
    return total / ops.maximum(ops.sum(share, axis=axes), 1.0)


def as_positions(features: Tensor) -> Tensor:
    """Returns features as `(batch, positions, channels)`.

    Args:
        features: Of shape `(batch, ..., channels)`; a vector is one position.

    Returns:
        The same values, positions in one axis.
    """
    sizes, known = ops.shape(features), features.shape
    count = 1
    for size, static in zip(sizes[1:-1], known[1:-1], strict=True):
        count = count * (size if static is None else static)
    return ops.reshape(features, (sizes[0], count, known[-1]))


@keras.saving.register_keras_serializable(package="kdlite")
class Hint(FeatureLoss):
    r"""Mean squared difference of features: the student's layer copies the teacher's.

    $$ L = \frac{1}{n} \sum_{p, c} (t_{pc} - r(s)_{pc})^2 $$

    over all `n` positions and channels, where `r` is the adapter that brings the
    student to the teacher's width. Zero at equality. The paper has half the *sum*; the
    mean keeps a weight's meaning from one layer size to the next.

    Args:
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ..., channels)`.
        y_pred: Student features of the same shape.
        sample_weight: Weights of shape `(batch,)`.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import numpy as np
        >>> float(Hint()(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]])))
        2.0

    Reference:
        Romero et al.: FitNets: Hints for Thin Deep Nets, 2014, arXiv:1412.6550,
        equation 3.
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str = "hint"
    ) -> None:
        super().__init__(reduction, name)

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        return sample_mean(ops.square(teacher - student), mask)


@keras.saving.register_keras_serializable(package="kdlite")
class VariationalInformation(FeatureLoss):
    r"""Negative log-likelihood of the teacher's features, given the student's (VID).

    $$ L = \frac{1}{n} \sum_{p, c} \left( \frac{1}{2} \log \sigma_c^2
         + \frac{(t_{pc} - \mu(s)_{pc})^2}{2 \sigma_c^2} \right), \quad
       \sigma_c^2 = \log(1 + e^{\alpha_c}) + \epsilon $$

    over `n` positions and channels. The mean $\mu$ is the adapter, here always there;
    the variance of each channel is learnt with it, so that channels the student cannot
    predict weigh less. It is a bound on the mutual information of the two, up to a
    constant, and not zero at equality: it may be negative.

    Args:
        initial_variance: $\sigma^2$ before training, above $\epsilon$.
        smallest_variance: $\epsilon > 0$.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Call arguments:
        y_true: Teacher features of shape `(batch, ..., channels)`.
        y_pred: Student features of the same shape.
        sample_weight: Weights of shape `(batch,)`.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of its range, or the shapes differ.

    Example:
        >>> import numpy as np
        >>> loss = VariationalInformation(initial_variance=1.0)
        >>> features = np.zeros((2, 3), "float32")
        >>> round(abs(float(loss(features, features + 2.0))), 4)
        2.0

    Reference:
        Ahn et al.: Variational Information Distillation for Knowledge Transfer, 2019,
        arXiv:1904.05835, equations 4 to 6.
    """

    always_projected = True

    def __init__(
        self,
        initial_variance: float = 5.0,
        smallest_variance: float = 1e-5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "variational_information",
    ) -> None:
        super().__init__(reduction, name)
        least = checked_number("smallest_variance", smallest_variance, above=0.0)
        self.smallest_variance = least
        self.initial_variance = checked_number(
            "initial_variance", initial_variance, above=least
        )

    def make(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Makes the variances."""
        excess = self.initial_variance - self.smallest_variance
        # The inverse of log(1 + exp(x)), for large and small numbers.
        start = excess + np.log(-np.expm1(-excess))
        self.variance = _Softplus(start, self.smallest_variance, name="variance")
        self.variance.build(teacher_shape)

    def values(self, teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one value for each sample, see `FeatureLoss`."""
        variance = self.variance.value()
        error = ops.square(teacher - student) / variance
        return sample_mean(0.5 * (ops.log(variance) + error), mask)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make the loss again."""
        return {
            **super().get_config(),
            "initial_variance": self.initial_variance,
            "smallest_variance": self.smallest_variance,
        }


class _Softplus(layers.Layer):
    """A positive number for each channel, learnt."""

    def __init__(self, start: float, least: float, name: str) -> None:
        super().__init__(name=name, dtype="float32")
        self._start, self._least = float(start), least

    def build(self, input_shape: Shape) -> None:
        self.raw = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self._start),
            name="raw",
        )

    def value(self) -> Tensor:
        return ops.softplus(self.raw) + self._least
