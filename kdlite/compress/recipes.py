"""Quantization recipes: what each quantization name means, in bits.

A recipe says how many bits the weights and the activations of the finished `.tflite`
have; everything that follows from that (is calibration needed, may a float op be left)
is asked of the recipe and not of its name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_FLOAT = 32
_WEIGHT_BITS = (4, 8, 16, 32)
_ACTIVATION_BITS = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Weights are quantized symmetrically, activations asymmetrically with an exact zero.
    32 bits stands for float32 and, for weights, 16 bits for float16.

    Attributes:
        name: The recipe's name, as `recipe()` takes it.
        weight_bits: Bits of a weight: 4, 8, 16 or 32.
        activation_bits: Bits of an activation: 8, 16 or 32.

    Raises:
        ValueError: For an empty name, or bits that no recipe can have.

    Example:
        >>> Recipe("int8", weight_bits=8, activation_bits=8).integer
        True
    """

    name: str
    weight_bits: int
    activation_bits: int

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

    @property
    def quantized(self) -> bool:
        """Whether anything at all is stored or computed below float32."""
        return self.weight_bits < _FLOAT

    @property
    def integer(self) -> bool:
        """Whether activations are integers, so that their ranges must be known."""
        return self.activation_bits < _FLOAT

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a plain, JSON-ready dictionary."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        def kind(bits: int, float16: bool) -> str:
            is_float = bits == _FLOAT or (float16 and bits == 16)
            return f"{'float' if is_float else 'int'}{bits}"

        weights = kind(self.weight_bits, float16=True)
        activations = kind(self.activation_bits, float16=False)
        return f"{self.name}: {weights} weights, {activations} activations"


_RECIPES = {
    known.name: known
    for known in (
        Recipe("float32", weight_bits=32, activation_bits=32),
        Recipe("int8", weight_bits=8, activation_bits=8),
    )
}


def recipe(name: str | Recipe) -> Recipe:
    """Returns the recipe of a name; a `Recipe` is returned as it is.

    Args:
        name: `"float32"` or `"int8"` (per-channel int8 weights, int8 activations,
            int32 biases), or a `Recipe`.

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
    if not isinstance(name, str) or name not in _RECIPES:
        raise ValueError(
            f"No recipe has this name. Received: name={name!r}. Use one of "
            f"{', '.join(map(repr, _RECIPES))}."
        )
    return _RECIPES[name]
