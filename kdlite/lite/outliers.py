"""Values so far from the rest of an input that these share one quantization level.

The levels of an input are spread from its least to its greatest calibrated value. A
missing value written as -9999, or one broken sensor reading, leaves a level or two to
all that the model is made for; and since the file is right about the outlier, whose
outputs are as far from the rest, no figure of all samples shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# As many quartile ranges, or steps if they are wider, beyond the quartiles: Tukey's
# "far out".
_FAR = 3.0
_FEWEST = 16
_MOST_VALUES = 2**22


@dataclass(frozen=True)
class Outliers:
    """What outliers do to an input.

    Attributes:
        input: Its name.
        step: The width of its quantization step.
        lowest: Its least value.
        highest: Its greatest.
        quartiles: Between which the middle half lies, of the channel (place along the
            last axis) where it is widest of those that share a level.
        samples: How many samples have outliers.
        others: The places of the other samples.
    """

    input: str
    step: float
    lowest: float
    highest: float
    quartiles: tuple[float, float]
    samples: int
    others: Array = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns all but `others`, as JSON takes it."""
        return {
            "input": self.input,
            "step": self.step,
            "lowest": self.lowest,
            "highest": self.highest,
            "quartiles": list(self.quartiles),
            "samples": self.samples,
        }

    def __str__(self) -> str:
        low, high = self.quartiles
        return (
            f"input {self.input!r} reaches from {self.lowest:.4g} to "
            f"{self.highest:.4g} here, so that a step of it is {self.step:.3g} wide, "
            f"and half of its values lie between {low:.3g} and {high:.3g}, on one or "
            "two levels. Clip or replace the outliers before the model, in the app and "
            "in `calibration_data`, or scale the input (a logarithm); or use "
            "quantization='float16'"
        )


def outliers(
    samples: Mapping[str, Array], steps: Mapping[str, float | None]
) -> Outliers | None:
    """Finds an input whose outliers leave no levels to the rest of its values.

    The middle half of the values of at least half of its channels that vary at all must
    lie within one step; an outlier is what is three steps and three quartile ranges
    beyond the quartiles of its channel.

    Args:
        samples: By input name `(samples, ...)`.
        steps: By input name the width of its quantization step, None where it has none.

    Returns:
        What is found; None if nothing is, or if fewer than 16 samples are without.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> outliers({"x": x}, {"x": 0.03}) is None
        True
        >>> x[3, 1] = 1e4
        >>> outliers({"x": x}, {"x": 39.2}).samples
        1

    Reference:
        Tukey 1977, Exploratory Data Analysis, section 2D (fences).
    """
    for name, values in samples.items():
        step = steps.get(name)
        if not step or values.dtype.kind != "f" or values.ndim < 2:
            continue
        # Quartiles need no more than some, of samples from the first to the last.
        each = max(1, values.size // _MOST_VALUES)
        channels = values[::each].reshape(-1, values.shape[-1])
        low, high = np.quantile(channels, (0.25, 0.75), axis=0)
        width = high - low
        varied = width > 0
        if not varied.any() or np.mean(width[varied] < step) < 0.5:
            continue
        fence = _FAR * np.maximum(width, step)
        far = (values < low - fence) | (values > high + fence)
        with_some = far.reshape(len(values), -1).any(axis=1)
        others = np.flatnonzero(~with_some)
        if not with_some.any() or len(others) < _FEWEST:
            continue
        narrow = np.where(varied & (width < step), width, -1.0).argmax()
        return Outliers(
            name,
            step,
            float(values.min()),
            float(values.max()),
            (float(low[narrow]), float(high[narrow])),
            int(with_some.sum()),
            others,
        )
    return None
