"""Teachers that are no Keras models: what they have in common, and functions.

Each is wrapped into a Keras model, and goes wherever one goes:

>>> import numpy as np
>>> def vote(x):
...     return np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1)
>>> teacher = Function(vote, output_shape=(2,), outputs="logits", version="1")
>>> teacher(np.ones((3, 4), "float32")).numpy().tolist()
[[4.0, -4.0], [4.0, -4.0], [4.0, -4.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kdlite.distill.heads import Outputs
from kdlite.distill.teachers import Teacher, called, unversioned

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any  # an array or tensor, or a dict, tuple or list of such

# How far from 1 the sum of a softmax in float32, or in half precision, may be.
SUM_TOLERANCE = 5e-3


class ForeignTeacher(Teacher):
    """A teacher whose word comes from elsewhere than a Keras model.

    Args:
        outputs: What it returns, see `LogitsModel`.
        known_by: What stored soft labels know it by, in plain JSON.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        known_by: As given.
    """

    def __init__(
        self, outputs: Outputs, known_by: dict[str, str], **kwargs: Any
    ) -> None:
        super().__init__(outputs, **kwargs)
        self.known_by = known_by

    def get_config(self) -> dict[str, Any]:
        """Returns what it is known by."""
        config = super().get_config()
        return {**config, **self.known_by, "outputs": self.returns}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ForeignTeacher:
        """Refuses: a Keras file does not hold what is not Keras."""
        raise ValueError(
            f"A teacher that is no Keras model is not loaded with Keras. Received: "
            f"'{config['name']}', a {cls.__name__}. Fix: make it anew, and what it was "
            f"a part of."
        )


class NumpyTeacher(ForeignTeacher):
    """A teacher that runs outside TensorFlow, on a batch of numpy arrays.

    It cannot be a part of a step compiled by XLA: with it Keras trains with
    `jit_compile=False`, and says so where XLA was asked for.

    Args:
        output_shape: The shape of what it returns for one sample, classes last; `None`
            for a free length.
        outputs: See `ForeignTeacher`.
        known_by: See `ForeignTeacher`.
        smallest: The least probability that it can tell from none, and from 1.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Raises:
        ValueError: If `outputs` is none of these, or `output_shape` not a shape.
    """

    def __init__(
        self,
        output_shape: Sequence[int | None],
        outputs: Outputs,
        known_by: dict[str, str],
        smallest: float = 0.0,
        **kwargs: Any,
    ) -> None:
        checked_kind(outputs)
        shape = tuple(output_shape)
        if not shape or not all(n is None or n > 0 for n in shape):
            raise ValueError(
                f"`output_shape` is the shape of what one sample gives, classes last. "
                f"Received: output_shape={output_shape!r}. Fix: (10,) for ten classes, "
                f"(None, 10) for ten at each position."
            )
        super().__init__(outputs, known_by, **kwargs)
        self.supports_jit = False
        self._sample_shape = shape
        self._smallest = smallest

    def predict_numpy(self, x: Structure) -> Array:
        """Runs a batch.

        Args:
            x: Arrays `(batch, ...)` in the structure of the student's inputs.

        Returns:
            `(batch, ..., classes)`.
        """
        raise NotImplementedError

    def call(self, inputs: Structure) -> Tensor:
        """Returns what it says of a batch.

        Args:
            inputs: The student's inputs.

        Returns:
            float32 of shape `(batch, ..., classes)`.
        """
        leaves = [ops.convert_to_tensor(leaf) for leaf in keras.tree.flatten(inputs)]

        def run(*arrays: Array) -> Array:
            x = keras.tree.pack_sequence_as(inputs, list(arrays))
            return self._checked(self.predict_numpy(x), len(arrays[0]))

        outputs = tf.numpy_function(run, leaves, tf.float32)
        outputs.set_shape([leaves[0].shape[0], *self._sample_shape])
        return outputs

    def _checked(self, outputs: Any, count: int) -> Array:
        array = np.asarray(outputs)
        wanted = (count, *self._sample_shape)
        if array.ndim != len(wanted) or any(
            length not in (None, given)
            for length, given in zip(wanted, array.shape, strict=True)
        ):
            raise ValueError(
                f"Teacher '{self.name}' must return {wanted} for {count} samples. "
                f"Received: {array.shape}. Fix: output_shape= the shape of one sample."
            )
        array = array.astype(np.float32)
        # As in `SoftLabels.build`: a student of NaN is NaN from the first step on.
        if not np.isfinite(array).all():
            wrong = int((~np.isfinite(array.reshape(count, -1))).any(1).sum())
            raise ValueError(
                f"A teacher must return finite numbers. Received: NaN or infinity from "
                f"teacher '{self.name}' for {wrong} of {count} samples. Fix: look at "
                f"what it is shown, its type and range, and at its own weights."
            )
        squashed = self.returns in ("probabilities", "sigmoid")
        tolerance = SUM_TOLERANCE + array.shape[-1] * self._smallest
        if (squashed and (array.min() < 0.0 or array.max() > 1.0)) or (
            self.returns == "probabilities" and not sums_to_one(array, tolerance)
        ):
            rule = "sum to 1" if self.returns == "probabilities" else "be at most 1"
            raise ValueError(
                f"Probabilities must be at least 0 and {rule}. Received: from "
                f"teacher '{self.name}' values from {array.min():g} to "
                f"{array.max():g} with sums from {array.sum(-1).min():g} to "
                f"{array.sum(-1).max():g}. Fix: outputs='logits', if it returns these."
            )
        if squashed and self._smallest:
            array = np.clip(array, self._smallest, 1.0 - self._smallest)
        return array


@keras.saving.register_keras_serializable(package="kdlite")
class Function(NumpyTeacher):
    """Any Python function on numpy batches, as a teacher.

    It runs on the host in each step, or once for all in `SoftLabels.build`: a model of
    another framework, a remote service, a tree ensemble.

    Args:
        function: Takes the student's inputs as numpy arrays `(batch, ...)`, in their
            structure, and returns an array `(batch, ..., classes)`.
        output_shape: The shape of what it returns for one sample, classes last, such as
            `(10,)`; `None` for a free length.
        outputs: What it returns: `"logits"`, `"probabilities"` of classes, `"sigmoid"`
            for independent ones, or `"values"`.
        version: What it is known by in stored soft labels. They are refused where it is
            another, so it must change with what the function computes.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Raises:
        TypeError: If `function` is not callable.
        ValueError: If `outputs` is none of these, or `output_shape` not a shape.

    Example:
        >>> import numpy as np
        >>> forest = Function(
        ...     lambda x: np.full((len(x), 3), 1 / 3), (3,), "probabilities"
        ... )
        >>> forest(np.zeros((2, 5), "float32")).shape.as_list()
        [2, 3]
    """

    def __init__(
        self,
        function: Callable[[Structure], Any],
        output_shape: Sequence[int | None],
        outputs: Outputs,
        version: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not callable(function):
            raise TypeError(
                f"`function` must be a function of a batch. Received: function="
                f"{function!r}. Fix: def function(x), of numpy arrays (batch, ...)."
            )
        known_by = {"function": called(function)}
        super().__init__(output_shape, outputs, known_by, **kwargs)
        self.function = function
        self.version = version

    def predict_numpy(self, x: Structure) -> Array:
        """Runs the function, see `NumpyTeacher`."""
        return self.function(x)

    def get_config(self) -> dict[str, Any]:
        """Returns what it is known by."""
        if self.version is None:
            raise ValueError(unversioned("function", self.function))
        return {**super().get_config(), "version": self.version}


def checked_kind(outputs: Any, or_none: bool = False) -> None:
    """Checks what a teacher is said to return.

    Args:
        outputs: What was given.
        or_none: Whether `None` finds out.

    Raises:
        ValueError: If it is none of these.
    """
    if outputs not in get_args(Outputs) and not (or_none and outputs is None):
        kinds = ", ".join(map(repr, get_args(Outputs)))
        raise ValueError(
            f"`outputs` must be {kinds}{' or None' if or_none else ''}. Received: "
            f"outputs={outputs!r}. Fix: 'probabilities' for what comes out of a "
            f"softmax."
        )


def sums_to_one(rows: Array, tolerance: float = SUM_TOLERANCE) -> bool:
    """Tells whether each row is never below 0 and sums to 1.

    Args:
        rows: `(..., classes)`.
        tolerance: How far from 1.
    """
    return bool(
        (rows >= 0.0).all() and (np.abs(rows.sum(axis=-1) - 1.0) <= tolerance).all()
    )
