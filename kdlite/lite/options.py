"""The arguments of `kdlite.export`: what fits together, before anything is done."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import keras

from kdlite.compress.recipes import RECIPES, Recipe
from kdlite.compress.recipes import recipe as find_recipe
from kdlite.counts import checked_count
from kdlite.lite.labels import is_unicode
from kdlite.lite.layer_names import matching
from kdlite.lite.tflite_reader import builtin_ops

_KEPT = ("float16", "float32")


def checked_recipe(quantization: Any) -> Recipe:
    """Returns the recipe that `quantization` names, or is.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(quantization, Recipe):
        return quantization
    if not isinstance(quantization, str) or quantization not in RECIPES:
        raise ValueError(
            f"`quantization` must be one of {', '.join(map(repr, RECIPES))}. Received: "
            f"quantization={quantization!r}. Use 'int8' for the smallest file that "
            "every phone is fast with."
        )
    return find_recipe(quantization)


def checked_models(model: Any) -> dict[str, Any]:
    """Returns by signature name the model of each; "" for one that stands alone.

    Raises:
        ValueError: If there are none, or a name is none.
    """
    if not isinstance(model, Mapping):
        return {"": model}
    odd = [
        name for name in model if not isinstance(name, str) or not name.isidentifier()
    ]
    if odd or not model:
        raise ValueError(
            "Signatures must have names of letters, digits and underscores. Received: "
            f"{repr(odd[0]) if odd else 'none'}. Write for example "
            "{'classify': model, 'embed': embedder}."
        )
    return dict(model)


def checked_options(
    recipe: Recipe, io: Any, min_runtime: Any, allow_float_ops: Any, batch_size: Any
) -> frozenset[str]:
    """Checks the plain options.

    Returns:
        The names of the allowed float operations.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If it breaks a rule.
    """
    if io not in recipe.io:
        known = {name: None for each in RECIPES.values() for name in each.io}
        fitting = [each.name for each in RECIPES.values() if io in each.io]
        raise ValueError(
            f"`io` must be one of {', '.join(map(repr, recipe.io))} for "
            f"{recipe.name}. Received: io={io!r}. "
            + (
                f"Use io='float32', or quantization={' or '.join(map(repr, fitting))}."
                if io in known
                else "Use 'float32' for values as the Keras model has them."
            )
        )
    if not isinstance(min_runtime, str) or not re.match(r"\d+\.\d+", min_runtime):
        raise ValueError(
            "`min_runtime` must be a release of TFLite. Received: "
            f"min_runtime={min_runtime!r}. Give for example '2.16.1'."
        )
    if isinstance(allow_float_ops, str):
        raise TypeError(
            "`allow_float_ops` must be a collection of names. Received: "
            f"allow_float_ops={allow_float_ops!r}. Write ({allow_float_ops!r},)."
        )
    fix = "use 1: a phone sees one sample at a time"
    checked_count("batch_size", batch_size, fix=fix)
    return frozenset(map(_checked_op, allow_float_ops))


def _checked_op(name: Any) -> str:
    """Returns the name of an operation as files have it, or raises ValueError."""
    name = str(name)
    if name.startswith("Flex"):  # TensorFlow's own, with allow_select_tf_ops
        return name
    known, wanted = builtin_ops(), name.upper()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, sorted(known), 3, 0.5)
        raise ValueError(
            "`allow_float_ops` must name operations that TFLite has. Received: "
            f"{name!r}. "
            + (f"Near it are {', '.join(near)}. " if near else "")
            + "Fix: the names that kdlite.inspect and the converter's errors show."
        )
    return wanted


def check_prose(**texts: Any) -> None:
    """Checks what a file is to say of itself.

    Args:
        **texts: By argument what was given.

    Raises:
        TypeError: If one is no text.
        ValueError: If UTF-8 cannot hold one.
    """
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(
                f"`{name}` must be a text. Received: {name}={text!r}. Leave it out "
                "for none."
            )
        if not is_unicode(text):
            raise ValueError(
                f"`{name}` must be text that UTF-8 can hold. Received: {name}={text!r}."
                " Fix: leave out what starts with \\ud, half of a character."
            )


def check_limits(time_limit_s: float, memory_limit_bytes: float | None) -> None:
    """Raises ValueError for limits that let nothing through."""
    if not time_limit_s > 0:
        raise ValueError(
            "`time_limit_s` must be above 0. Received: "
            f"time_limit_s={time_limit_s!r}. Most models convert in 10 seconds."
        )
    if memory_limit_bytes is not None and not memory_limit_bytes > 0:
        raise ValueError(
            "`memory_limit_bytes` must be above 0. Received: "
            f"memory_limit_bytes={memory_limit_bytes!r}. TensorFlow alone takes half a "
            "billion."
        )


def checked_engine(engine: str | None, recipe: Recipe, trained: bool, io: str) -> str:
    """Returns the engine to use.

    Args:
        engine: The one that was asked for; None for the recipe's own.
        recipe: What it is to make.
        trained: Whether the model is quantization-aware.
        io: The dtype of float inputs and outputs.

    Raises:
        ValueError: If it cannot make that, or is not installed.
    """
    # Ranges that were found in training are in the graph, where the converter sees
    # them; measured ones it has no 4-bit weights for.
    able = [
        name
        for name in recipe.engines
        if (name == "tflite" if trained else recipe.weight_bits != 4 or name == "aeq")
    ]
    if engine is None:
        engine = able[0]
    elif engine not in able:
        raise ValueError(
            f"`engine` must be one that makes {recipe.name} of this model: "
            f"{', '.join(map(repr, able))}. Received: engine={engine!r}. Leave it out."
        )
    if engine == "aeq":
        if importlib.util.find_spec("ai_edge_quantizer") is None:
            raise ValueError(
                f"{recipe.name} by engine='aeq' needs ai-edge-quantizer. Received: no "
                'such package. Run: pip install "kdlite[aeq]".'
            )
        if io == "uint8":
            raise ValueError(
                "ai-edge-quantizer makes no uint8 inputs and outputs. Received: "
                f"io='uint8' with quantization={recipe.name!r}. Use io='int8'."
            )
    return engine


def checked_overrides(
    overrides: Any, model: keras.Model, recipe: Recipe, trained: bool, engine: str
) -> dict[str, str]:
    """Returns by layer what it is to be kept in.

    Raises:
        TypeError: If `overrides` is no mapping.
        ValueError: If a pattern fits no layer, or the engine cannot do it.
    """
    if not overrides:
        return {}
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "`overrides` must be a mapping from layer name or pattern. Received: "
            f"overrides={overrides!r}. Write {{'head/*': 'float32'}}."
        )
    if trained:
        raise _made_mixed(f"overrides={dict(overrides)!r}")
    able = _KEPT if engine == "aeq" else ("float32",)
    for pattern, kind in overrides.items():
        if kind not in able:
            raise ValueError(
                f"`overrides` must give {' or '.join(map(repr, able))} with "
                f"engine={engine!r}. Received: {kind!r} for {pattern!r}. "
                + (
                    "Use engine='aeq'."
                    if kind in _KEPT
                    else "Leave the rest to `quantization`."
                )
            )
    _check_mixable(recipe, engine)
    return matching(overrides, model)


def checked_auto_mixed(
    auto_mixed: Any, recipe: Recipe, trained: bool, engine: str
) -> dict[str, float]:
    """Returns what a mixed file must reach besides being right.

    Raises:
        TypeError: If `auto_mixed` is neither a bool nor a mapping.
        ValueError: If it asks for something unknown, or the engine cannot mix.
    """
    if not auto_mixed:
        return {}
    if not isinstance(auto_mixed, (bool, Mapping)):
        raise TypeError(
            "`auto_mixed` must be True, or what must be reached. Received: "
            f"auto_mixed={auto_mixed!r}. Write {{'top1_agreement': 0.99}}."
        )
    if trained:
        raise _made_mixed(f"auto_mixed={auto_mixed!r}")
    _check_mixable(recipe, engine)
    wanted = {} if isinstance(auto_mixed, bool) else dict(auto_mixed)
    # Not of steps: an output that is kept in float has none.
    able = ("top1_agreement", "max_drop_points")
    unknown = [name for name in wanted if name not in able]
    if unknown:
        raise ValueError(
            f"`auto_mixed` must give some of {', '.join(map(repr, able))}. Received: "
            f"{unknown[0]!r}. Write {{'top1_agreement': 0.99}}."
        )
    return wanted


def _made_mixed(received: str) -> ValueError:
    # Before all else: no other recipe or engine makes a file of such a model.
    return ValueError(
        "Layers of a quantization-aware model are kept in float when it is made. "
        f"Received: {received}. Leave it out; to leave layers in float, train what "
        "quantize_aware(student, ..., overrides={'layer': 'float32'}) gives."
    )


def _check_mixable(recipe: Recipe, engine: str) -> None:
    if not recipe.quantized or (engine == "tflite" and recipe.activation_bits != 8):
        raise ValueError(
            "Layers are kept in float only of a recipe that the engine can mix. "
            f"Received: quantization={recipe.name!r} with engine={engine!r}. Use "
            "'int8', or engine='aeq'."
        )


def release(text: str) -> tuple[int, ...]:
    """Returns `"2.16.1"` as `(2, 16, 1)`."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def check_quantization(
    name: str,
    recipe: Recipe,
    trained: tuple[int, int] | None,
    calibration_data: Any,
) -> None:
    """Raises ValueError if the recipe and what is known of ranges do not fit.

    Args:
        name: The model's name.
        recipe: What is asked for.
        trained: The bits of weights and activations that the model was trained for;
            None for a plain model.
        calibration_data: What ranges are to be measured on.
    """
    if trained and trained != (recipe.weight_bits, recipe.activation_bits):
        made = [
            known.name
            for known in RECIPES.values()
            if (known.weight_bits, known.activation_bits) == trained
        ]
        raise ValueError(
            f"A quantization-aware model is made for one recipe, this for {made[0]}. "
            f"Received: model={name!r} with quantization={recipe.name!r}. Use "
            f"quantization={made[0]!r}, or export the student that it was made from."
        )
    if recipe.integer and not trained and calibration_data is None:
        raise ValueError(
            f"{recipe.name} needs the ranges of all activations. Received: "
            f"calibration_data=None and the plain model {name!r}. Pass "
            "`calibration_data`, typical samples"
            + (
                ", or train the model that kdlite.quantize_aware(model) returns, and "
                "export that."
                if recipe.integer
                else "."
            )
        )
