"""What a quantization name means."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from kdlite.compress.recipes import RECIPES, Recipe, recipe


@pytest.mark.parametrize(
    ("name", "bits", "quantized", "integer"),
    [
        ("float32", (32, 32), False, False),
        ("float16", (16, 32), True, False),
        ("weight_only", (8, 32), True, False),
        ("dynamic", (8, 32), True, False),
        ("int8", (8, 8), True, True),
        ("int16x8", (8, 16), True, True),
        ("int4", (4, 8), True, True),
    ],
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


def test_rows_differ_in_what_a_file_shows():
    # So `kdlite.inspect` can name the recipe of any file.
    shown = [
        (r.weight_bits, r.activation_bits, r.dequantized) for r in RECIPES.values()
    ]
    assert len(set(shown)) == len(RECIPES)


@pytest.mark.parametrize(
    ("name", "decibels"),
    # 20 log10 of: 127 sqrt(12) / 4, 2^11 sqrt(3); less 30 dB, but 3 dB at least.
    [("int8", 10.83), ("int16x8", 10.83), ("float16", 41.0), ("int4", 3.0)],
)
def test_the_noise_of_rounding(name, decibels):
    assert recipe(name).least_snr_db == pytest.approx(decibels, abs=0.01)
    if name == "int4":
        return
    # The noise of rounding alone, measured on normal values: 30 dB of room are left.
    values = np.random.default_rng(0).normal(size=100_000).clip(-4, 4)
    if name == "float16":
        rounded = values.astype("float16")
    else:
        levels = 2 ** (recipe(name).weight_bits - 1) - 1
        rounded = np.rint(values / 4 * levels) * 4 / levels
    ratio = 20 * np.log10(values.std() / (values - rounded).std())
    # Of float16 the bound is that of the coarsest numbers, just above a power of two.
    assert decibels <= ratio - 30 + 1.0
    assert ratio - 30 <= decibels + 3.0


def test_float32_has_no_noise():
    assert recipe("float32").least_snr_db is None


@pytest.mark.parametrize("name", ["int7", "INT8", None, 8])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(ValueError, match=r"No recipe.*name=.*'float32', 'float16'"):
        recipe(name)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("", 8, 8), "needs a name. Received: name=''"),
        ((None, 8, 8), "needs a name. Received: name=None"),
        (("r", 7, 8), "`weight_bits` must be one of 4, 8, 16, 32. .*weight_bits=7"),
        (("r", True, 8), "`weight_bits` must be .*weight_bits=True"),
        (("r", 8, 4), "`activation_bits` must be one of 8, 16, 32. .*_bits=4"),
        (("r", 8, 8, False, ("torch",)), "`engines` must be some of .*'torch'"),
        (("r", 32, 8), "cannot have fewer bits than weights.*weight_bits=32"),
    ],
)
def test_an_impossible_recipe_is_an_error(fields, text):
    with pytest.raises(ValueError, match=text):
        Recipe(*fields)
