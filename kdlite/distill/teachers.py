"""Teachers that are made of others: ensembles, and teachers with eyes of their own.

They are Keras models, so they go wherever a teacher goes, to `kdlite.Distiller` and to
`kdlite.SoftLabels.build`, can be evaluated by Keras, and can be saved:

>>> import keras, numpy as np
>>> first, second = (
...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)
... )
>>> both = Ensemble([first, second])
>>> x = np.ones((2, 4), "float32")
>>> bool(np.allclose(both(x), (first(x) + second(x)) / 2, atol=1e-6))
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import keras
from keras import ops

from kdlite.distill.heads import Needs, Outputs
from kdlite.distill.losses.outputs import compatible_shapes
from kdlite.distill.schedules import checked_number
from kdlite.distill.taps import LogitsModel, logits_model

Tensor = Any
Structure = Any  # a tensor, or a dict, tuple or list of such
Average = Literal["logits", "probabilities"]


class Teacher(keras.Model):
    """A Keras model that speaks float32, runs in inference mode and has no graph.

    Args:
        returns: What it returns, see `LogitsModel`.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        returns: As given: so a model without a graph says it itself.
    """

    def __init__(self, returns: Outputs, **kwargs: Any) -> None:
        # What the teacher is shown must not be rounded, whatever the student's policy.
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.returns: Outputs = returns
        self.built = True

    def build(self, input_shape: Any) -> None:
        """Has nothing to build: its parts are built already."""

    def get_config(self) -> dict[str, Any]:
        """Returns what all have in common."""
        return {"name": self.name, "trainable": self.trainable}


@keras.saving.register_keras_serializable(package="kdlite")
class Transformed(Teacher):
    r"""A teacher that sees the sample otherwise than the student.

    The same augmented image at another resolution, or normalised as the teacher was
    trained: the transform gets what the student sees, in the graph of the step.

    Args:
        teacher: A `keras.Model`, or a `LogitsModel` if it has no graph.
        transform: A function of a batch of the student's inputs, written with
            TensorFlow or `keras.ops`; or a Keras layer or model, run in inference mode,
            with which this teacher can be saved.
        version: What a function is known by in stored soft labels. They are refused
            where it is another, so it must change with what the function does.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        teacher: The teacher.
        transform: The transform.

    Raises:
        TypeError: If `transform` is not callable, or `teacher` no model.
        ValueError: If it cannot be known what the teacher returns.

    Example:
        >>> import keras, numpy as np
        >>> teacher = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        >>> teacher.add(keras.layers.Dense(3))
        >>> larger = Transformed(teacher, keras.layers.Resizing(8, 8))
        >>> larger(np.ones((2, 4, 4, 1), "float32")).shape.as_list()
        [2, 3]
    """

    def __init__(
        self,
        teacher: keras.Model | LogitsModel,
        transform: Callable[[Structure], Structure],
        version: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not callable(transform):
            raise TypeError(
                f"`transform` must be a function of a batch of inputs. Received: "
                f"transform={transform!r}. Fix: lambda x: "
                f"keras.ops.image.resize(x, (224, 224)), or a Keras layer."
            )
        reader = logits_model(teacher, needs=None, role="teacher")
        super().__init__(reader.outputs, **kwargs)
        self._reader = reader
        self.teacher = reader.model
        self.transform = transform
        self.version = version

    def call(self, inputs: Structure) -> Tensor:
        """Returns what the teacher says of the transformed inputs.

        Args:
            inputs: The student's inputs.

        Returns:
            The teacher's output, `(batch, ..., classes)`.

        Raises:
            ValueError: If the transform fails, or returns what the teacher does not
                take.
        """
        is_layer = isinstance(self.transform, keras.layers.Layer)
        try:
            seen = self.transform(inputs, **({"training": False} if is_layer else {}))
        except Exception as err:
            shapes = keras.tree.map_structure(lambda leaf: tuple(leaf.shape), inputs)
            raise ValueError(
                f"`transform` must take a batch of the student's inputs. Received: "
                f"inputs of {shapes} for teacher '{self._reader.name}', at which "
                f"{called(self.transform)} raised {type(err).__name__}: {err} Fix: def "
                f"transform(x), with operations of TensorFlow or keras.ops."
            ) from err
        try:
            return self.teacher(seen, training=False)
        except Exception as err:
            given, shapes = (
                keras.tree.map_structure(
                    lambda leaf: getattr(leaf, "shape", type(leaf)), structure
                )
                for structure in (inputs, seen)
            )
            raise ValueError(
                f"What the transform returns must be what the teacher takes. Received: "
                f"{called(self.transform)} makes {shapes} of inputs {given}, at which "
                f"teacher '{self._reader.name}' raised {type(err).__name__}: {err} "
                f"Fix: return what the teacher was trained on, its size and channels."
            ) from err

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make it again; of a function its version."""
        config = {
            **super().get_config(),
            "teacher": serialized(self._reader),
            "version": self.version,
        }
        if isinstance(self.transform, keras.layers.Layer):
            config["transform"] = keras.saving.serialize_keras_object(self.transform)
        elif self.version is None:
            raise ValueError(unversioned("transform", self.transform))
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Transformed:
        """Returns it from its config, if its transform is a Keras layer or model."""
        if "transform" not in config:
            raise ValueError(
                f"A teacher is loaded with its transform if that is a Keras layer. "
                f"Received: '{config['name']}', whose transform is a function. Fix: "
                f"save its teacher, and make Transformed(teacher, transform) anew."
            )
        transform = keras.saving.deserialize_keras_object(
            config["transform"], custom_objects=custom_objects
        )
        teacher = deserialized(config["teacher"], custom_objects)
        return cls(**{**config, "teacher": teacher, "transform": transform})


@keras.saving.register_keras_serializable(package="kdlite")
class Ensemble(Teacher):
    r"""Several teachers that speak as one.

    With members' logits $t_k$, weights $w_k$ that sum to 1 and
    $p_k = \mathrm{softmax}(t_k)$, the logits are, up to a shift that no softmax sees,

    $$ \text{"logits": } \sum_k w_k t_k \qquad
       \text{"probabilities": } \log \sum_k w_k p_k $$

    computed in float32 and in the log domain. The mean of logits is the geometric mean
    of the distributions, and the default: softening commutes with it, so that at every
    temperature the ensemble says what its softened members say together, also from
    stored soft labels whose temperature is chosen later. The mean of probabilities is
    the mixture, the vote of all; it is softened after mixing, and a class that one
    member finds likely stays likely.

    `by_confidence` lets each member count, sample by sample (and position by position),
    as much as it is sure: in place of $w_k$

    $$ a_k = \frac{w_k \max_c p_{kc}}{\sum_j w_j \max_c p_{jc}} $$

    Members that end in sigmoids say something of each label by itself: the mean of
    their logits is squashed again, and the other options, for classes, are refused.

    Args:
        members: Two or more `keras.Model`s, or `LogitsModel`s for those without a
            graph, with the same classes in the same order.
        member_weights: Positive numbers, one a member, brought to the sum 1. `None`:
            equal ones.
        average: `"logits"` or `"probabilities"`.
        by_confidence: Whether members also count by their confidence.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        members: The models.
        member_weights: Their weights, which sum to 1.

    Raises:
        TypeError: If a member is no model, or a weight no number.
        ValueError: If there is one member or none, a weight is not positive, or members
            are known to differ in their classes, their positions or their kind of head.

    Example:
        >>> import keras, numpy as np
        >>> members = [
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        ...     for _ in range(3)
        ... ]
        >>> teacher = Ensemble(members, [2, 1, 1], average="probabilities")
        >>> x = np.ones((1, 4), "float32")
        >>> mixture = sum(
        ...     weight * keras.ops.softmax(member(x))
        ...     for weight, member in zip(teacher.member_weights, members)
        ... )
        >>> bool(np.allclose(keras.ops.softmax(teacher(x)), mixture, atol=1e-6))
        True

    Reference:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015,
        arXiv:1503.02531, section 1 (arithmetic or geometric mean). The largest
        probability as confidence: Hendrycks, Gimpel, 2017, arXiv:1610.02136.
    """

    def __init__(
        self,
        members: Iterable[keras.Model | LogitsModel],
        member_weights: Sequence[float] | None = None,
        average: Average = "logits",
        by_confidence: bool = False,
        **kwargs: Any,
    ) -> None:
        readers = tuple(
            logits_model(member, needs=None, role="teacher") for member in members
        )
        if len(readers) < 2:
            raise ValueError(
                f"An ensemble has two members or more. Received: {len(readers)}. Fix: "
                f"let the one teach by itself."
            )
        if average not in get_args(Average):
            raise ValueError(
                f"`average` must be 'logits' or 'probabilities'. Received: "
                f"average={average!r}. Fix: 'logits', which holds at every temperature."
            )
        _check_members(readers)
        weights = _normalized(member_weights, len(readers))
        labels = "sigmoid" in {reader.outputs for reader in readers}
        if labels and (average != "logits" or by_confidence):
            raise ValueError(
                f"A mean of probabilities and confidence are over classes. Received: "
                f"members that end in sigmoids, with average={average!r} and "
                f"by_confidence={by_confidence}. Fix: average='logits', "
                f"by_confidence=False."
            )
        super().__init__("sigmoid" if labels else "logits", **kwargs)
        self._readers = readers
        self.members = [reader.model for reader in readers]
        self.member_weights = weights
        self.average = average
        self.by_confidence = bool(by_confidence)

    def call(self, inputs: Structure) -> Tensor:
        """Returns the ensemble's word; the members run in inference mode.

        Args:
            inputs: What the members take.

        Returns:
            float32 logits of shape `(batch, ..., classes)`, squashed if members are.
        """
        logits = [reader(inputs, training=False) for reader in self._readers]
        log_p = [ops.log_softmax(word, axis=-1) for word in logits]
        log_weights: list[Any] = [math.log(weight) for weight in self.member_weights]
        if self.by_confidence:
            sure = [ops.max(word, axis=-1, keepdims=True) for word in log_p]
            log_weights = [w + s for w, s in zip(log_weights, sure, strict=True)]
            total = ops.logsumexp(ops.stack(log_weights), axis=0)
            log_weights = [weight - total for weight in log_weights]
        if self.average == "probabilities":
            mixed = [w + p for w, p in zip(log_weights, log_p, strict=True)]
            return ops.logsumexp(ops.stack(mixed), axis=0)
        first, *others = (
            ops.exp(weight) * word
            for weight, word in zip(log_weights, logits, strict=True)
        )
        mean = sum(others, first)
        return keras.activations.sigmoid(mean) if self.returns == "sigmoid" else mean

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make it again."""
        return {
            **super().get_config(),
            "members": [serialized(reader) for reader in self._readers],
            "member_weights": list(self.member_weights),
            "average": self.average,
            "by_confidence": self.by_confidence,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Ensemble:
        """Returns an ensemble from its config."""
        members = [deserialized(c, custom_objects) for c in config["members"]]
        return cls(**{**config, "members": members})


def _check_members(readers: Sequence[LogitsModel]) -> None:
    known = [
        (reader.name, tuple(output.shape))
        for reader in readers
        for output in (getattr(reader.model, "outputs", None) or ())[:1]
    ]
    kinds = {reader.outputs: reader.name for reader in readers}
    if {"sigmoid", "probabilities"} <= set(kinds):
        raise ValueError(
            f"Members of an ensemble must have the same kind of head. Received: "
            f"'{kinds['sigmoid']}' with sigmoids, '{kinds['probabilities']}' with a "
            f"softmax. Fix: give teachers of one task."
        )
    for name, shape in known[1:]:
        first_name, first = known[0]
        if not compatible_shapes(shape, first):
            raise ValueError(
                f"Members of an ensemble must have the same classes and positions. "
                f"Received: '{first_name}' with {first}, '{name}' with {shape}. Fix: "
                f"give teachers of the same classes in the same order."
            )


def _normalized(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise ValueError(
            f"`member_weights` must have one number a member. Received: {len(given)} "
            f"weights for {count} members. Fix: member_weights=None for equal ones."
        )
    numbers = [checked_number("member_weights", each, above=0.0) for each in given]
    return tuple(number / math.fsum(numbers) for number in numbers)


# --- how teachers are known again, and loaded


def serialized(reader: LogitsModel) -> dict[str, Any]:
    """Returns the config of a model and of how it is read.

    Args:
        reader: The model, read at its logits.
    """
    model = keras.saving.serialize_keras_object(reader.model)
    return {"model": model, "outputs": reader.outputs}


def deserialized(
    config: dict[str, Any], custom_objects: dict[str, Any] | None
) -> LogitsModel:
    """Returns what `serialized` made a config of.

    Args:
        config: The config.
        custom_objects: Classes by name, as in `keras.saving`.
    """
    model = keras.saving.deserialize_keras_object(
        config["model"], custom_objects=custom_objects
    )
    outputs = config["outputs"]
    needs: Needs | None = "values" if outputs == "values" else None
    return logits_model(model, outputs, needs=needs, role="teacher")


def called(code: Any) -> str:
    """Returns how messages call a function or layer.

    Args:
        code: It.
    """
    name = getattr(code, "__name__", None) or getattr(code, "name", None)
    return repr(str(name or type(code).__name__))


def unversioned(argument: str, code: Any) -> str:
    """Returns what is wrong with storing what code without a version made.

    Args:
        argument: The argument it was given as.
        code: The code.
    """
    return (
        f"A function is known again by its version. Received: {argument}="
        f"{called(code)} without one. Fix: version='1', and another whenever it "
        f"computes something else."
    )
