"""Quantization recipes: what each quantization name means, in bits.

A recipe says how many bits the weights and the activations of the finished `.tflite`
have; everything that follows from that (is calibration needed, may a float op be left,
how exact is the result) is asked of the recipe and not of its name.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

_FLOAT = 32
_WEIGHT_BITS = (4, 8, 16, 32)
_ACTIVATION_BITS = (8, 16, 32)
_ENGINES = ("tflite", "aeq")
_INTEGER_IO = ("float32", "int8", "uint8")
# Values of weights and activations reach to about so many standard deviations.
_PEAK = 4.0
# A hundred roundings, whose noise adds up, are 20 dB; values that peak three times as
# high, as those of trained networks may, another 10.
_ROOM_DB = 30.0
# Beyond this, the noise is more than half of the signal.
_LEAST_DB = 3.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Weights are quantized symmetrically, activations asymmetrically with an exact zero
    (with 16 bits symmetrically). 32 bits stands for float32 and, for weights, 16 bits
    for float16.

    Attributes:
        name: The recipe's name, as `recipe()` takes it.
        weight_bits: Bits of a weight: 4, 8, 16 or 32.
        activation_bits: Bits of an activation: 8, 16 or 32.
        dequantized: Whether weights are made floats again before they are used, so
            that all arithmetic is in float32. Otherwise 8-bit weights meet activations
            that are 8-bit, or are rounded to 8 bits in each run.
        engines: Which converters can make it, the preferred one first: "tflite", or
            "aeq" for ai-edge-quantizer.
        io: The dtypes that the file's float inputs and outputs may have.

    Raises:
        ValueError: For an empty name, or bits or engines that no recipe can have.

    Example:
        >>> Recipe("int8", weight_bits=8, activation_bits=8).integer
        True
    """

    name: str
    weight_bits: int
    activation_bits: int
    dequantized: bool = False
    engines: tuple[str, ...] = ("tflite",)
    io: tuple[str, ...] = ("float32",)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(
                f"A recipe needs a name. Received: name={self.name!r}. Pass a "
                "non-empty string such as 'int8'."
            )
        for field, allowed in (
            ("weight_bits", _WEIGHT_BITS),
            ("activation_bits", _ACTIVATION_BITS),
        ):
            bits = getattr(self, field)
            if isinstance(bits, bool) or bits not in allowed:
                choices = ", ".join(map(str, allowed))
                raise ValueError(
                    f"`{field}` must be one of {choices}. Received: "
                    f"{field}={bits!r}. Use 32 for float32."
                )
        if self.activation_bits < self.weight_bits:
            raise ValueError(
                "Activations cannot have fewer bits than weights. Received: "
                f"weight_bits={self.weight_bits}, "
                f"activation_bits={self.activation_bits}. Raise `activation_bits` or "
                "lower `weight_bits`."
            )
        for field in ("engines", "io"):  # JSON has lists only
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.engines or not set(self.engines) <= set(_ENGINES):
            raise ValueError(
                f"`engines` must be some of {', '.join(map(repr, _ENGINES))}. "
                f"Received: engines={self.engines!r}. Use ('tflite',)."
            )

    @property
    def quantized(self) -> bool:
        """Whether anything at all is stored or computed below float32."""
        return self.weight_bits < _FLOAT

    @property
    def integer(self) -> bool:
        """Whether activations are integers, so that their ranges must be known."""
        return self.activation_bits < _FLOAT

    @property
    def least_snr_db(self) -> float | None:
        """The least signal-to-noise ratio, in dB, that an output can be good with.

        Rounding to integers of b bits leaves noise of `step / sqrt(12)`, where values
        reach to `2^(b-1) - 1` steps and to 4 standard deviations: 41 dB with 8 bits, 16
        with 4. Rounding to float16 has a relative error of `2^-11 / sqrt(3)`: 71 dB.
        From the coarser of weights and activations 30 dB are taken off: roundings add
        up over layers, and ranges are wider than they need be. It tells files that say
        nothing any more from those that do, not good from very good. None for float32,
        which rounds nothing.

        Example:
            >>> round(recipe("int8").least_snr_db, 1)
            10.8
        """
        if not self.quantized:
            return None
        if self.weight_bits == 16:
            one = 20 * math.log10(2**11 * math.sqrt(3))
        else:
            bits = min(self.weight_bits, self.activation_bits)
            one = 20 * math.log10(math.sqrt(12) * (2 ** (bits - 1) - 1) / _PEAK)
        return max(one - _ROOM_DB, _LEAST_DB)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain, JSON-ready dictionary."""
        plain = dataclasses.asdict(self)
        return {**plain, "engines": list(self.engines), "io": list(self.io)}

    def __str__(self) -> str:
        def kind(bits: int, float16: bool) -> str:
            is_float = bits == _FLOAT or (float16 and bits == 16)
            return f"{'float' if is_float else 'int'}{bits}"

        weights = kind(self.weight_bits, float16=True)
        activations = kind(self.activation_bits, float16=False)
        return f"{self.name}: {weights} weights, {activations} activations"


RECIPES = {
    known.name: known
    for known in (
        Recipe("float32", weight_bits=32, activation_bits=32),
        Recipe("float16", 16, 32, dequantized=True, engines=("tflite", "aeq")),
        Recipe("weight_only", 8, 32, dequantized=True, engines=("aeq",)),
        Recipe("dynamic", 8, 32, engines=("tflite", "aeq")),
        Recipe("int8", 8, 8, engines=("tflite", "aeq"), io=_INTEGER_IO),
        Recipe("int16x8", 8, 16, engines=("tflite", "aeq"), io=("float32", "int16")),
        Recipe("int4", 4, 8, engines=("aeq", "tflite"), io=_INTEGER_IO),
    )
}


def recipe(name: str | Recipe) -> Recipe:
    """Returns the recipe of a name; a `Recipe` is returned as it is.

    Args:
        name: Of `RECIPES`, or a `Recipe`:

            - `"float32"`: nothing is rounded.
            - `"float16"`: float16 weights, computed in float32.
            - `"weight_only"`: int8 weights by channel, computed in float32.
            - `"dynamic"`: int8 weights; activations are rounded to 8 bits in each run.
            - `"int8"`: int8 weights by channel, int8 activations, int32 biases.
            - `"int16x8"`: int8 weights, int16 activations.
            - `"int4"`: int4 weights of convolutions and Dense layers, int8 activations.

    Returns:
        The `Recipe`.

    Raises:
        ValueError: If no recipe has that name.

    Example:
        >>> print(recipe("int8"))
        int8: int8 weights, int8 activations
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(
            f"No recipe has this name. Received: name={name!r}. Use one of "
            f"{', '.join(map(repr, RECIPES))}."
        )
    return RECIPES[name]
