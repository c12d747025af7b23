"""A model again, with weights of its own."""

from __future__ import annotations

import keras


def copy_of(model: keras.Model) -> keras.Model:
    """Returns a copy that computes what a model does.

    Args:
        model: A built model that Keras can clone.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    settle(copy)
    return copy


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
