"""What a quantization name means."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kdlite.compress.recipes import Recipe, recipe


@pytest.mark.parametrize(
    ("name", "bits", "quantized", "integer"),
    [("float32", (32, 32), False, False), ("int8", (8, 8), True, True)],
)
def test_known_recipes(name, bits, quantized, integer):
    found = recipe(name)
    assert (found.name, found.weight_bits, found.activation_bits) == (name, *bits)
    assert (found.quantized, found.integer) == (quantized, integer)


@pytest.mark.parametrize(
    ("bits", "quantized", "integer", "text"),
    [
        ((16, 32), True, False, "r: float16 weights, float32 activations"),
        ((8, 32), True, False, "r: int8 weights, float32 activations"),
        ((8, 16), True, True, "r: int8 weights, int16 activations"),
        ((4, 8), True, True, "r: int4 weights, int8 activations"),
    ],
)
def test_other_recipes_can_be_described(bits, quantized, integer, text):
    described = Recipe("r", *bits)
    assert (described.quantized, described.integer) == (quantized, integer)
    assert str(described) == text


def test_a_recipe_is_frozen_plain_and_passed_through():
    int8 = recipe("int8")
    assert recipe(int8) is int8
    assert Recipe(**json.loads(json.dumps(int8.to_dict()))) == int8
    with pytest.raises(dataclasses.FrozenInstanceError):
        int8.weight_bits = 4


@pytest.mark.parametrize("name", ["int7", "INT8", None, 8])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(ValueError, match=r"No recipe.*name=.*'float32', 'int8'"):
        recipe(name)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("", 8, 8), "needs a name. Received: name=''"),
        ((None, 8, 8), "needs a name. Received: name=None"),
        (("r", 7, 8), "`weight_bits` must be one of 4, 8, 16, 32. .*weight_bits=7"),
        (("r", True, 8), "`weight_bits` must be .*weight_bits=True"),
        (("r", 8, 4), "`activation_bits` must be one of 8, 16, 32. .*_bits=4"),
        (("r", 32, 8), "cannot have fewer bits than weights.*weight_bits=32"),
    ],
)
def test_an_impossible_recipe_is_an_error(fields, text):
    with pytest.raises(ValueError, match=text):
        Recipe(*fields)
