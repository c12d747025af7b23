"""Whether samples are like those that a model was trained on, as far as it remembers.

A normalization remembers the mean and the variance of what reached it in training.
Pixels of 0..255 where 0..1 belong differ from these by a variance of 65,000 to one,
whatever the model is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

Array = np.ndarray[Any, Any]

# The statistics of a trained BatchNormalization and those of a few samples of its own
# data, all of one class perhaps, differ by less.
_VARIANCE_RATIO = 1000.0


class MetStatistics(NamedTuple):
    """What reaches the first normalization of a model, beside what did in training.

    Attributes:
        layer: The name of the normalization.
        variance_ratio: The median over its channels of the variance now to that in
            training.
        mean_shift: The median over its channels of the distance of the means, in
            standard deviations of training.
    """

    layer: str
    variance_ratio: float
    mean_shift: float

    @property
    def near(self) -> bool:
        """Whether the samples are of the scale of the training data."""
        return 1 / _VARIANCE_RATIO < self.variance_ratio < _VARIANCE_RATIO


def met_statistics(
    model: keras.Model, x: Any, call: Callable[[Any], Any] | None = None
) -> MetStatistics | None:
    """Runs samples up to the first normalization that remembers its training.

    Args:
        model: A built model.
        x: A batch of samples, as the model takes them.
        call: What runs the model on `x`, if not the model itself.

    Returns:
        What was met there; None where no normalization was trained, or none runs.

    Example:
        >>> import keras, numpy as np
        >>> norm = keras.layers.Normalization(mean=0.5, variance=0.1, name="norm")
        >>> net = keras.Sequential([keras.Input((2,)), norm])
        >>> met_statistics(net, 255 * np.random.rand(64, 2)).near
        False
    """
    met = _first_normalization(model, x, call or model)
    if met is None:
        return None
    layer, mean, variance, values = met
    axes = tuple(range(values.ndim - 1))
    found_mean, found_variance = values.mean(axes), values.var(axes)
    epsilon = 1e-6 * float(np.median(variance)) + 1e-12
    ratio = float(np.median((found_variance + epsilon) / (variance + epsilon)))
    shift = float(np.median(np.abs(found_mean - mean) / np.sqrt(variance + epsilon)))
    return MetStatistics(layer.name, ratio, shift)


def _first_normalization(
    model: keras.Model, x: Any, call: Callable[[Any], Any]
) -> tuple[keras.layers.Layer, Array, Array, Array] | None:
    """The first layer with statistics of the training data, these, and its input."""

    def watched(layer: Any) -> Callable[..., Any]:
        def seen(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            raise _Met(layer, *known[layer], np.asarray(inputs, "float64"))

        return seen

    known = {
        layer: statistics
        for layer in model._flatten_layers()
        if (statistics := _statistics(layer)) is not None
    }
    # Functional models run layer by layer when called eagerly: `call` can be watched.
    for layer in known:
        object.__setattr__(layer, "call", watched(layer))
    try:
        if known:
            call(x)
    except _Met as met:
        return met.found
    finally:
        for layer in known:
            object.__delattr__(layer, "call")
    return None


class _Met(BaseException):  # Keras writes into the text of every Exception
    """Ends a run at the first normalization: what comes after takes time and memory."""

    def __init__(self, *found: Any) -> None:
        self.found = found


def _statistics(layer: Any) -> tuple[Array, Array] | None:
    """Mean and variance by channel that a layer was trained with, if it has such."""
    if isinstance(layer, keras.layers.BatchNormalization) and layer.built:
        rank = len(layer.input_spec.axes or {}) and layer.input_spec.ndim
        if layer.axis not in (-1, (rank or 0) - 1):
            return None
        mean, variance = (
            np.asarray(v, "float64") for v in (layer.moving_mean, layer.moving_variance)
        )
    elif isinstance(layer, keras.layers.Normalization) and layer.built:
        mean, variance = (
            np.asarray(v, "float64").reshape(-1) for v in (layer.mean, layer.variance)
        )
    else:
        return None
    if not mean.any() and (variance == 1.0).all():  # never trained
        return None
    return mean, variance
