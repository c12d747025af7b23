"""A Keras model as the list of calls it makes, with the models inside it opened."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
from keras import layers
from keras.src.models.functional import Functional

Shape = tuple[Any, ...]

# Layers that do something in training, and in inference nothing.
IN_TRAINING_ALONE: tuple[type[keras.Layer], ...] = (
    *(layers.Dropout, layers.AlphaDropout, layers.GaussianDropout),
    *(layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianNoise, layers.ActivityRegularization),
    *(layers.RandomCrop, layers.RandomFlip, layers.RandomRotation),
    *(layers.RandomTranslation, layers.RandomZoom, layers.RandomShear),
    *(layers.RandomPerspective, layers.RandomElasticTransform),
    *(layers.RandomBrightness, layers.RandomContrast, layers.RandomSaturation),
    *(layers.RandomHue, layers.RandomGrayscale, layers.RandomColorJitter),
    *(layers.RandomColorDegeneration, layers.RandomInvert, layers.RandomPosterization),
    *(layers.RandomSharpness, layers.RandomGaussianBlur, layers.RandomErasing),
    *(layers.Solarization, layers.AugMix, layers.CutMix, layers.MixUp),
    layers.RandAugment,
)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer, or of an operation of `keras.ops`.

    Attributes:
        operation: What is called.
        path: Its name, after those of the models it is in: `"backbone/conv1"`.
        arguments: The symbolic arguments, as Keras keeps them.
        inputs: Numbers of the tensors among the arguments, in their order.
        outputs: Numbers of the tensors that it returns.
        training: Whether it is held in training mode (True), in inference mode (False),
            or follows the model (None).
    """

    operation: Any
    path: str
    arguments: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    training: bool | None


class CallGraph:
    """The calls of a model in the order of computation.

    Args:
        model: A built Functional or Sequential model.
        purpose: What needs the graph, for the message that there is none.

    Attributes:
        functional: The model's own graph, with the structure of inputs and outputs.
        calls: The calls, those inside nested models in the place of these.
        inputs: Numbers of the input tensors.
        outputs: Numbers of the output tensors.
        shapes: By number the shape of each tensor, `(batch, ...)`.

    Raises:
        ValueError: If the model, or one inside it, is not built or subclassed.
    """

    def __init__(self, model: keras.Model, purpose: str) -> None:
        self._purpose = purpose
        self.functional = functional(model, purpose)
        self.calls: list[Call] = []
        self.shapes: list[Shape] = []
        self.inputs = self._tensors(self.functional.inputs)
        self.outputs = self._read(self.functional, self.inputs, "", None)

    def users(self, tensor: int) -> list[Call]:
        """Returns the calls that take a tensor."""
        return [call for call in self.calls if tensor in call.inputs]

    def _tensors(self, symbolic: list[Any]) -> list[int]:
        first = len(self.shapes)
        self.shapes += [tuple(x.shape) for x in symbolic]
        return list(range(first, len(self.shapes)))

    def _read(
        self, model: keras.Model, inputs: list[int], path: str, training: bool | None
    ) -> list[int]:
        graph = functional(model, self._purpose)
        tensors = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                operation, arguments = node.operation, node.arguments
                name = f"{path}{operation.name}"
                taken = [tensors[id(x)] for x in arguments.keras_tensors]
                pinned = held_in_training(node)
                pinned = training if pinned is None else pinned
                if isinstance(operation, keras.Model):
                    results = self._read(operation, taken, f"{name}/", pinned)
                else:
                    results = self._tensors(node.outputs)
                    self.calls.append(
                        Call(
                            operation,
                            name,
                            arguments,
                            tuple(taken),
                            tuple(results),
                            pinned,
                        )
                    )
                tensors.update(zip(map(id, node.outputs), results, strict=True))
        return [tensors[id(x)] for x in graph.outputs]


def held_in_training(node: Any) -> bool | None:
    """Returns whether a call is held in training mode (True) or in inference mode.

    Keras keeps the default of a layer's `call` like an argument that was given: False
    of Dropout, True of augmentation. That is None here, and follows the model, as it
    does in Keras.

    Args:
        node: A call in a Functional model's graph.
    """
    given = node.arguments.kwargs.get("training")
    own = inspect.signature(node.operation.call).parameters.get("training")
    return None if own is not None and given is own.default else given


def functional(model: keras.Model, purpose: str) -> Functional:
    """Returns the graph of a Functional or Sequential model.

    Args:
        model: The model.
        purpose: What needs it, the subject of the error's first sentence.

    Returns:
        The model, or the one inside a Sequential.

    Raises:
        ValueError: If it is a Sequential that is not built, or a subclass with a `call`
            of its own.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if graph is None:
        raise ValueError(
            f"A Sequential model must be built. Received: model={model.name!r}, not "
            "built. Put a `keras.Input` first, or call it on data."
        )
    if not isinstance(graph, Functional) or type(graph).call is not Functional.call:
        raise ValueError(
            f"{purpose} needs the graph of a Functional or Sequential model. Received: "
            f"{model.name!r} of the subclass {type(model).__name__}, with a `call` of "
            "its own. Rebuild it as `keras.Model(inputs, outputs)`."
        )
    return graph
