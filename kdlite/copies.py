"""A model or layer again, with weights of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

Config = dict[str, Any]


def copy_of(model: keras.Model) -> keras.Model:
    """Returns a copy that computes what a model does.

    Args:
        model: A built model that Keras can clone.
    """
    copy = cloned(model, clone_function=layer_again)
    copy.set_weights(model.get_weights())
    settle(copy)
    return copy


def cloned(model: keras.Model, **arguments: Any) -> keras.Model:
    """Returns what `keras.models.clone_model` makes of a model, not compiled.

    Keras would look up the loss, the metrics and the optimizer by name, as in a file,
    and find none that a user wrote in a notebook.

    Args:
        model: A built model.
        **arguments: Of `keras.models.clone_model`.
    """
    with _not_compiled(model):
        return keras.models.clone_model(model, **arguments)


@contextlib.contextmanager
def _not_compiled(model: keras.Model) -> Iterator[None]:
    compiled = [
        layer for layer in model._flatten_layers() if getattr(layer, "compiled", False)
    ]
    for layer in compiled:
        layer.compiled = False
    try:
        yield
    finally:
        for layer in compiled:
            layer.compiled = True


def layer_again(
    layer: keras.Layer,
    change: Callable[[Config], Config] = dict,
    kind: type[keras.Operation] | None = None,
) -> keras.Layer:
    """Returns a new layer of the same configuration, not built.

    A `Lambda` keeps its function, which Keras does not make again from a configuration
    (that of a file could be anybody's; this one is in the process already).

    Args:
        layer: Any layer.
        change: From its configuration to that of the new one.
        kind: Of what class the new one is; None for its own.

    Raises:
        ValueError: If it cannot be made again.

    Example:
        >>> twice = layer_again(keras.layers.Lambda(lambda x: 2 * x))
        >>> float(twice(keras.ops.ones(())))
        2.0
    """
    try:
        if type(layer) is keras.layers.Lambda:
            return keras.layers.Lambda(
                layer.function,
                output_shape=layer._output_shape,
                mask=layer.mask,
                arguments=layer.arguments,
                **change(keras.layers.Layer.get_config(layer)),
            )
        config = change(layer.get_config())
        if type(layer) is keras.layers.RandomShear:
            # Keras writes a factor f as (-f, f), and does not read that.
            config.update(
                (key, config[key][1])
                for key in ("x_factor", "y_factor")
                if config[key][0] < 0
            )
        return (kind or type(layer)).from_config(config)
    except Exception as err:
        *_, reason = str(err).strip().split("\n")
        if "safe_mode" in str(err):
            reason = "it holds a Python lambda, which Keras makes again from no config"
        raise ValueError(
            "A layer is copied from its configuration. Received: layer "
            f"{layer.name!r} of class {type(layer).__name__}, which cannot be "
            f"({reason}). Fix: give its class a get_config() with all of its "
            "arguments; instead of a lambda inside another layer write a layer of "
            "your own."
        ) from err


def settle(model: keras.Model) -> None:
    """Has layers compute with the weights that they were given.

    `keras.layers.Normalization` computes with constants that it makes of its weights
    when it adapts and when it is loaded, but not in `set_weights()`.

    Args:
        model: A built model.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
