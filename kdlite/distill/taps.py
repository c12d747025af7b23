"""Taps: a model with one output, read at its logits.

Soft targets are made from logits. `logits_model()` finds out from the graph whether a
model returns them or what a softmax made of them (see `kdlite.distill.heads`), and
reads the logits in the same forward pass:

>>> import keras, numpy as np
>>> teacher = keras.Sequential(
...     [keras.Input((4,)), keras.layers.Dense(3, activation="softmax")]
... )
>>> logits = logits_model(teacher)
>>> logits.outputs
'probabilities'
>>> x = np.ones((2, 4), "float32")
>>> logits(x).shape.as_list()
[2, 3]
>>> bool(np.allclose(keras.ops.softmax(logits(x)), teacher(x)))
True
"""

from __future__ import annotations

from typing import Any

import keras

from kdlite.distill.heads import Needs, Outputs, find_head

Tensor = Any

#: The two keys of `x` in data that bring the teacher's logits along:
#: `({INPUTS_KEY: student inputs, SOFT_LABELS_KEY: logits}, y, sample_weight)`.
INPUTS_KEY = "inputs"
SOFT_LABELS_KEY = "soft_labels"
#: A third, where features of the teacher are stored too: a dict by the layers' paths.
FEATURES_KEY = "features"


def brings_soft_labels(x: Any) -> bool:
    """Returns whether `x` of a batch has the keys of data that bring soft labels.

    Args:
        x: As `fit()` gets it.

    Example:
        >>> brings_soft_labels({"inputs": 1, "soft_labels": 2, "features": {}})
        True
    """
    keys = {INPUTS_KEY, SOFT_LABELS_KEY}
    return isinstance(x, dict) and set(x) - {FEATURES_KEY} == keys


class LogitsModel:
    """A model with one output, read at its logits.

    Shares the model's weights and changes nothing about it, its `trainable` flag
    included. It is a callable, not a layer: what holds it does not track the model.

    Args:
        model: A `keras.Model` with one output, classes on the last axis.
        outputs: What the model returns: `"logits"`, `"probabilities"`, `"sigmoid"` for
            independent probabilities, `"values"` for other numbers, or `None` to find
            out from the graph. A subclassed model has no graph and needs the
            declaration. From declared probabilities the logits are those that Keras
            remembers behind a softmax or sigmoid, else `log(p)`, which equals them up
            to a shift that no softmax sees (for a sigmoid `log(p / (1 - p))`).
        needs: What is read: `"class logits"`, `"independent logits"`, `"values"`, or
            `None` for the logits of whatever has them.
        role: How error messages call the model.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model has several outputs, does not return what is needed,
            or if it cannot be shown what it returns.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> LogitsModel(model).outputs
        'logits'
    """

    def __init__(
        self,
        model: keras.Model,
        outputs: Outputs | None = None,
        *,
        needs: Needs | None = "class logits",
        role: str = "model",
    ) -> None:
        check_model(model, role)
        self.model = model
        self._head = find_head(model, outputs, needs=needs, role=role)

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.model.name)

    @property
    def outputs(self) -> Outputs:
        """What the model returns."""
        return self._head.outputs

    @property
    def needs(self) -> Needs | None:
        """What is read."""
        return self._head.needs

    def __call__(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Runs the model once and returns its logits.

        Args:
            inputs: What the model takes.
            training: Passed to the model; `False` is inference mode.

        Returns:
            float32 logits of shape `(batch, ..., classes)`.
        """
        return self.read(self.model(inputs, training=training))

    def read(self, model_outputs: Tensor) -> Tensor:
        """Returns the logits behind an output of the model, without running it.

        Args:
            model_outputs: What the model returned, that very tensor.

        Returns:
            float32 logits of shape `(batch, ..., classes)`, with the output's mask.

        Raises:
            ValueError: If the model returned several tensors, or probabilities in half
                precision whose logits are lost.
        """
        return self._head.read(model_outputs)

    def __repr__(self) -> str:
        """Names the model and what it returns."""
        return f"LogitsModel({self.name!r}, outputs={self.outputs!r})"


def check_model(model: Any, role: str) -> None:
    """Checks that an argument is a Keras model.

    Args:
        model: What was given.
        role: The argument's name.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{role}` must be a keras.Model. Received: {role}={model!r} of type "
            f"{type(model).__name__}. Fix: keras.models.load_model(path) for a file, "
            f"or one of kdlite.teachers for what else can teach."
        )


def logits_model(
    model: keras.Model | LogitsModel,
    outputs: Outputs | None = None,
    *,
    needs: Needs | None = "class logits",
    role: str = "model",
) -> LogitsModel:
    """Returns a callable from inputs to float32 logits, sharing the model's weights.

    A softmax or sigmoid at the end (as an activation, a layer, or the end of a nested
    model) is recognised and the logits before it are read, in the one forward pass.

    Args:
        model: A `keras.Model` with one output, or a `LogitsModel`, returned as it is.
        outputs: What the model returns, or `None` to find out from its graph. See
            `LogitsModel`.
        needs: What is read. See `LogitsModel`.
        role: How error messages call the model.

    Returns:
        The callable: `logits_model(model)(inputs, training=False)` has the shape
        `(batch, ..., classes)`.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model's output is not, or cannot be shown to be, what is
            needed.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> logits_model(model)(np.zeros((2, 4))).shape.as_list()
        [2, 3]
    """
    if not isinstance(model, LogitsModel):
        return LogitsModel(model, outputs, needs=needs, role=role)
    if outputs is not None and outputs != model.outputs:
        raise ValueError(
            f"`{role}` is already read as {model.outputs}. Received: {role}_outputs="
            f"{outputs!r}. Fix: leave the declaration to one of the two."
        )
    return model
