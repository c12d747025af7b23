"""Fake quantization: a float layer that already rounds as the integer model will.

`FakeQuant` rounds a tensor to the levels of an integer type. Beside it, a
quantization-aware model is made of `FoldedLayer`s.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.masking import set_keras_mask

Tensor = Any

# A tensor that is zero throughout has no range of its own, and a scale near zero makes
# the integer kernels overflow; any range represents its zeros. It is given 1. LiteRT
# ends the process where an input of a sum is 2^19 times as wide as the sum, so that
# nothing narrower than 2^-19 can be alive beside it.
_DEAD_RANGE = 1e-5
# So many steps take a value that is just between two levels to one of them.
_TIE = 1e-3
# With 16 bits float32 has no less.
_TIE_OF_16_BITS = 2.0**-7
# TFLite has tanh and sigmoid of inputs in -8..8 and -16..16, or so near to it, by
# another kernel that is further off, as it can shift them. No range is one of these.
_SHIFTED = (3, 4)
_NEAR = 2e-3
_BEYOND = np.float32(1.004)
# TFLite's int16 has its zero in the middle.
_SYMMETRIC_BITS = 16


@keras.saving.register_keras_serializable(package="kdlite")
class FakeQuant(keras.layers.Layer):
    """Rounds a tensor to the levels of an integer type, in a range it measures.

    With the range `[lo, hi]`, moved so that zero is exactly a level:

        scale = (hi - lo) / (2^bits - 1)
        y = scale * round(clip(x, lo, hi) / scale)

    The gradient is that of `clip` (straight-through). The range is measured in training
    only: the first batch sets it, later ones move it by an exponential mean. It always
    contains zero. Until it has been measured the layer passes its input on unchanged.
    With `trainable = False` the range stays as it is. 16 bits are symmetric, as TFLite
    has them: `lo = -hi * 32768 / 32767`.

    A learned range is the measured one times `exp(stretch)`, a number for each end that
    starts at 0 and follows the loss. The gradient is that of learned step sizes:

        dy/dscale = round(x / scale) - x / scale    within the range
        dy/dlo = 1 below it,  dy/dhi = 1 above it

    As a factor, a step of the optimizer changes wide and narrow ranges alike.

    Tensors that must have one range, such as the inputs of a concatenation, share one
    layer: each has a site of its own, and the range is the union over the sites.

    Args:
        bits: Bits of the integer type.
        sites: Number of tensors that are measured. 0 measures none.
        fixed_range: `(lo, hi)` that the range always includes; with `sites=0` it is the
            range.
        momentum: Weight of the old range in the exponential mean, in `[0, 1)`. `None`
            keeps the smallest and largest value ever seen.
        margin: The range is widened by this fraction of itself.
        learned: Whether the ends of the range are trained.
        for_converter: Whether to be the one operation that TFLite's converter takes a
            range from, which with 16 bits counts worse.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor of any shape.
        site: Which site the tensor is, or `None` to use the range without measuring.
        step: Whether to return how wide a step is, a number, in place of the values.
        half_away: Whether values between two levels go away from the integer 0, as
            TFLite's average pooling has it, and not up.
        half_up: Whether what is between two levels but for float arithmetic goes up.
        training: Whether to measure.

    Raises:
        ValueError: If an argument is out of range, neither `sites` nor `fixed_range`
            gives a range, or one that is fixed is to be learned.

    Example:
        >>> quantizer = FakeQuant(sites=0, fixed_range=(0.0, 255.0))
        >>> quantizer(np.array([-3.0, 0.4, 254.6])).numpy().tolist()
        [0.0, 0.0, 255.0]

    Reference:
        Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877, section 3; Esser et al.,
        2019, "Learned Step Size Quantization", arXiv:1902.08153, equation 3.
    """

    def __init__(
        self,
        bits: int = 8,
        sites: int = 1,
        fixed_range: tuple[float, float] | None = None,
        momentum: float | None = 0.95,
        margin: float = 0.0,
        learned: bool = False,
        for_converter: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if bits not in range(2, 17):
            raise ValueError(
                f"`bits` must be from 2 to 16. Received: bits={bits!r}. Use 8 for int8."
            )
        if sites < 0 or (sites == 0 and fixed_range is None):
            raise ValueError(
                "A range must come from measured sites or from `fixed_range`. "
                f"Received: sites={sites!r}, fixed_range={fixed_range!r}. Pass "
                "`sites=1`, or a `fixed_range`."
            )
        if momentum is not None and not 0.0 <= momentum < 1.0:
            raise ValueError(
                "`momentum` must be in [0, 1) or None. Received: "
                f"momentum={momentum!r}. Use 0.95."
            )
        if margin < 0.0:
            raise ValueError(
                f"`margin` must not be negative. Received: margin={margin!r}. Use 0."
            )
        if learned and fixed_range is not None:
            raise ValueError(
                "A range is fixed or learned. Received: "
                f"fixed_range={fixed_range!r}, learned=True. Leave out one of them."
            )
        self.bits = bits
        self.sites = sites
        self.fixed_range = None if fixed_range is None else checked_range(fixed_range)
        self.momentum = momentum
        self.margin = margin
        self.learned = learned
        self.for_converter = for_converter

    def build(self, input_shape: Any) -> None:
        """Creates one measured minimum and maximum for each site."""
        if self.sites:
            # A minimum above its maximum marks a site that has seen nothing yet.
            self.minimum = self.add_weight(
                shape=(self.sites,),
                initializer="ones",
                trainable=False,
                name="minimum",
            )
            self.maximum = self.add_weight(
                shape=(self.sites,),
                initializer=keras.initializers.Constant(-1.0),
                trainable=False,
                name="maximum",
            )
        if self.learned:
            self.stretch = self.add_weight(
                shape=(2,), initializer="zeros", name="stretch"
            )

    def call(
        self,
        inputs: Tensor,
        site: int | None = 0,
        step: bool = False,
        half_away: bool = False,
        half_up: bool = False,
        training: bool | None = None,
    ) -> Tensor:
        """Rounds `inputs`."""
        if step:
            return self._exact_step()
        inputs = ops.cast(inputs, self.compute_dtype)
        measured = bool(training and self.trainable and self.sites and site is not None)
        if measured:
            self._measure(inputs, site)
        lowest, highest = self._range()
        if half_away or half_up:
            middle = lowest + 2.0 ** (self.bits - 1) * self._step()
            away = ops.sign(inputs - ops.stop_gradient(middle)) if half_away else 1.0
            tie = _TIE_OF_16_BITS if self.bits == _SYMMETRIC_BITS else _TIE
            inputs = inputs + tie * self._step() * away
        if not self.for_converter and self._starts_on_level():
            outputs = self._on_levels(inputs, lowest, highest)
        else:
            outputs = keras.quantizers.fake_quant_with_min_max_vars(
                inputs,
                ops.stop_gradient(lowest),
                ops.stop_gradient(highest),
                num_bits=self.bits,
            )
        if self.learned:
            learning = learned_rounding(inputs, lowest, highest, 2**self.bits - 1)
            outputs = learning + ops.stop_gradient(outputs - learning)
        if measured or not self.sites:
            return outputs
        return ops.where(ops.any(self._seen()), outputs, inputs)

    def compute_output_spec(
        self, inputs: Tensor, *args: Any, step: bool = False, **kwargs: Any
    ) -> keras.KerasTensor:
        """Returns what `call` does without a trace of it, which takes far longer."""
        if step:
            return keras.KerasTensor((), "float64")
        return keras.KerasTensor(inputs.shape, self.compute_dtype)

    def _step(self) -> Tensor:
        return ops.cast(self._exact_step(), "float32")

    def _exact_step(self) -> Tensor:
        """Returns the step as the converter has it, before it is a float32."""
        lowest, highest = (ops.cast(end, "float64") for end in self._range())
        return ops.stop_gradient(highest - lowest) / (2**self.bits - 1)

    def _starts_on_level(self) -> bool:
        """Whether the range is known to start on a level, without moving it."""
        if self.bits == _SYMMETRIC_BITS:
            return True
        if self.sites:
            return False
        lowest, highest = map(np.float64, self._range())
        return bool((lowest / (highest - lowest) * (2**self.bits - 1)).is_integer())

    def _on_levels(self, inputs: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """Rounds, counting from zero as TFLite does.

        TensorFlow counts from the lowest level. With 16 bits float32 has 8 bits of 24
        left there for what is between two levels, and so takes one value in 250 to the
        wrong one; with 8 bits all tanh(1 / 256), by a hair below half a step.
        """
        values = ops.clip(inputs, ops.stop_gradient(lowest), ops.stop_gradient(highest))
        # TFLite's QUANTIZE, too, multiplies by the reciprocal; of 16 bits it takes
        # ties to even.
        scaled = values * (1.0 / self._step())
        wide = self.bits == _SYMMETRIC_BITS
        rounded = ops.round(scaled) if wide else ops.floor(scaled + 0.5)
        rounded = rounded * self._step()
        return values + ops.stop_gradient(rounded - values)

    def _measure(self, inputs: Tensor, site: int | None) -> None:
        inputs = ops.stop_gradient(inputs)
        seen = self._seen()
        for variable, new, extreme in (
            (self.minimum, ops.min(inputs), ops.minimum),
            (self.maximum, ops.max(inputs), ops.maximum),
        ):
            if self.momentum is None:
                moved = extreme(variable, new)
            else:
                moved = variable + (1.0 - self.momentum) * (new - variable)
            moved = ops.where(seen, moved, new)
            if self.sites > 1:
                here = np.arange(self.sites) == site
                moved = ops.where(here, moved, variable)
            variable.assign(moved)

    def _seen(self) -> Tensor:
        return ops.less_equal(self.minimum, self.maximum)

    def _range(self) -> tuple[Tensor, Tensor]:
        lowest: Tensor
        highest: Tensor
        lowest, highest = map(np.float32, self.fixed_range or (0.0, 0.0))
        # Without what is measured they are numbers, and no part of the graph.
        math = ops if self.sites else np
        if self.sites:
            seen = self._seen()
            lowest = ops.minimum(lowest, ops.min(ops.where(seen, self.minimum, 0.0)))
            highest = ops.maximum(highest, ops.max(ops.where(seen, self.maximum, 0.0)))
            lowest, highest = ops.cast(lowest, "float32"), ops.cast(highest, "float32")
        if self.margin:
            lowest = lowest * (1.0 + self.margin)
            highest = highest * (1.0 + self.margin)
        if self.learned:
            stretch = ops.exp(self.stretch)
            lowest, highest = lowest * stretch[0], highest * stretch[1]
        highest = math.where(highest - lowest < _DEAD_RANGE, np.float32(1.0), highest)
        if self.bits == _SYMMETRIC_BITS:
            more = 2.0 ** (self.bits - 1) / (2.0 ** (self.bits - 1) - 1.0)
            highest = math.maximum(highest, -lowest * (1.0 / more))
            for power in _SHIFTED:
                near = math.abs(math.log2(highest) - power) < _NEAR
                highest = highest * math.where(near, _BEYOND, np.float32(1.0))
            lowest = -highest * more
        return lowest, highest

    @property
    def has_range(self) -> bool:
        """Whether the range is known."""
        return not self.sites or bool(ops.any(self._seen()))

    @property
    def level_range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        lowest, highest = self._range()
        return float(lowest), float(highest)

    def value_range(self, site: int | None = 0) -> tuple[float, float]:
        """Returns the least and the greatest value of a tensor, as far as is known.

        Args:
            site: Which site the tensor is. Levels may reach further: to 0, to the
                values of other sites, and with 16 bits as far below 0 as above.
        """
        if site is not None and self.sites:
            lowest, highest = float(self.minimum[site]), float(self.maximum[site])
            if lowest < highest:
                return lowest, highest
        return self.fixed_range or self.level_range

    def frozen(self) -> FakeQuant:
        """Returns one for the converter, of this name and this range as a constant."""
        return FakeQuant(
            bits=self.bits,
            sites=0,
            fixed_range=self.level_range,
            for_converter=True,
            name=self.name,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "bits": self.bits,
            "sites": self.sites,
            "fixed_range": self.fixed_range,
            "momentum": self.momentum,
            "margin": self.margin,
            "learned": self.learned,
            "for_converter": self.for_converter,
        }


def learned_rounding(
    values: Tensor, lowest: Tensor, highest: Tensor, levels: int
) -> Tensor:
    """Rounds to levels in a range, with the gradients of learned step sizes.

    Args:
        values: Tensor of any shape.
        lowest: Where the range starts: a number, or one that fits `values` each.
        highest: Where it ends.
        levels: How many steps it has; zero must be on one of them.

    Returns:
        The rounded values.

    Reference:
        Esser et al., 2019, "Learned Step Size Quantization", arXiv:1902.08153,
        equation 3.
    """
    step = (highest - lowest) / levels
    scaled = ops.clip(values, lowest, highest) / step
    return step * (scaled + ops.stop_gradient(ops.round(scaled) - scaled))


def rounded_once(
    values: Tensor, unit: Tensor, step: Tensor, half_away: bool = False
) -> Tensor:
    """Rounds sums as TFLite's kernels do before they round them to levels.

    A kernel multiplies an integer sum with the mantissa of `unit / step`, in `[1/2,
    1)`, rounds, and divides by a power of two: half up, or half away from 0.

    Args:
        values: Sums.
        unit: What 1 in the sum stands for: a number, or one for each channel.
        step: How wide a level is that they are rounded to next.
        half_away: Whether the kernel is the plain one, which has no other for groups.

    Returns:
        Values that lie between two levels more often than the sums do.
    """
    finer = ops.power(2.0, ops.cast(floor_log2(unit / step), "float32") + 1.0)
    finer = ops.minimum(finer, 1.0) * step
    tie = _TIE * ops.sign(values) if half_away else _TIE
    rounded = (ops.round(values / finer) + tie) * finer
    return values + ops.stop_gradient(rounded - values)


def floor_log2(values: Tensor) -> Tensor:
    """Returns the highest power of two in positive numbers, as float64.

    The logarithm is a quotient, and a graph multiplies by a reciprocal in its place: of
    64 it may be a hair below 6.
    """
    return ops.floor(ops.log2(ops.cast(values, "float64")) + 1e-12)


class Unmasked(keras.layers.Wrapper):
    """A wrapper that hands on no mask.

    Of a Functional model each mask is among what a layer is called with.

    Args:
        layer: Any layer with one output.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Has none, whatever came in."""

    def unmasked(self, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the layer, and takes away the mask that it makes."""
        outputs = self.layer(*args, **kwargs)
        set_keras_mask(outputs, None)
        return outputs


@keras.saving.register_keras_serializable(package="kdlite")
class InFloat(Unmasked):
    """A layer of a quantization-aware model that is left in float.

    It computes what `layer` does; that it is one of these says so to the export.

    Args:
        layer: Any layer with one output.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        *args: What `layer` takes.
        **kwargs: What `layer` takes.

    Example:
        >>> InFloat(keras.layers.ReLU())(np.array([-1.0, 2.0])).numpy().tolist()
        [0.0, 2.0]
    """

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, unless it is: one of several inputs must be before."""
        if not self.layer.built:
            self.layer.build(input_shape)
        self.built = True

    def call(self, *args: Any, **kwargs: Any) -> Tensor:
        """Calls the layer."""
        return self.unmasked(*args, **kwargs)


def checked_range(bounds: Any) -> tuple[float, float]:
    """Returns `(lo, hi)` as floats, or raises ValueError for what is no range."""
    try:
        lowest, highest = (float(bound) for bound in bounds)
        valid = np.isfinite(lowest) and np.isfinite(highest) and lowest < highest
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "A range must be two finite numbers, the lower one first. Received: "
            f"range={bounds!r}. Pass for example (0.0, 255.0) for raw pixels."
        )
    if np.float32(max(highest, 0.0)) - np.float32(min(lowest, 0.0)) < _DEAD_RANGE:
        raise ValueError(
            f"A range must be at least {_DEAD_RANGE:g} wide, 0 included, as integer "
            "kernels overflow of narrower steps. Received: "
            f"range={bounds!r}. Give the model larger values: multiply them by 1000, "
            "say, and train on that."
        )
    return lowest, highest
