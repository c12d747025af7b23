"""A Keras 3 model written down so that tf_keras can build the same.

tf_keras reads no config and no file of Keras 3: layers changed arguments, and some
changed what they compute under an old name. A `Twin` is a list of tf_keras layers by
class and arguments, of the calls between them and of their weights, as plain data for
the process that has tf_keras (`_tfmot_process.py`), which builds the model and checks
that it computes the same.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from kdlite.compress.graph import Call, CallGraph
from kdlite.compress.integer_layers import as_layer, scale_and_offset, separated
from kdlite.copies import cloned, settle

Array = np.ndarray[Any, Any]

_CONV = ("kernel_size", "strides", "padding", "data_format", "dilation_rate")
_KERNEL = (*_CONV, "activation", "use_bias", "bias_regularizer", "bias_constraint")
_OWN = ("kernel_regularizer", "kernel_constraint")
_DEPTHWISE = ("depthwise_regularizer", "depthwise_constraint")
_POINTWISE = ("pointwise_regularizer", "pointwise_constraint")
_NORM = ("epsilon", "center", "scale")
_AFFINE = tuple(f"{x}_{y}" for x in ("beta", "gamma") for y in ("regularizer",))
_POOL = ("pool_size", "strides", "padding", "data_format")
_RECURRENT = (
    *("units", "activation", "use_bias", "dropout", "recurrent_dropout"),
    *("return_sequences", "go_backwards", "unroll", "bias_regularizer"),
    *("kernel_regularizer", "recurrent_regularizer", "bias_constraint"),
    *("kernel_constraint", "recurrent_constraint"),
)
# The arguments that a layer has in tf_keras too, with the same meaning.
_ARGUMENTS: dict[type, tuple[str, ...]] = {
    layers.Conv1D: ("filters", "groups", *_KERNEL, *_OWN),
    layers.Conv2D: ("filters", "groups", *_KERNEL, *_OWN),
    layers.Conv3D: ("filters", "groups", *_KERNEL, *_OWN),
    layers.Conv1DTranspose: ("filters", "output_padding", *_KERNEL, *_OWN),
    layers.Conv2DTranspose: ("filters", "output_padding", *_KERNEL, *_OWN),
    layers.DepthwiseConv1D: ("depth_multiplier", *_KERNEL, *_DEPTHWISE),
    layers.DepthwiseConv2D: ("depth_multiplier", *_KERNEL, *_DEPTHWISE),
    layers.SeparableConv1D: (
        *("filters", "depth_multiplier"),
        *(*_KERNEL, *_DEPTHWISE, *_POINTWISE),
    ),
    layers.Dense: (
        *("units", "activation", "use_bias", *_OWN),
        *("bias_regularizer", "bias_constraint"),
    ),
    layers.EinsumDense: ("equation", "output_shape", "bias_axes", "activation", *_OWN),
    layers.Embedding: (
        *("input_dim", "output_dim"),
        *("embeddings_regularizer", "embeddings_constraint"),
    ),
    layers.LSTM: ("recurrent_activation", *_RECURRENT),
    layers.GRU: ("recurrent_activation", "reset_after", *_RECURRENT),
    layers.SimpleRNN: _RECURRENT,
    layers.BatchNormalization: ("axis", "momentum", *_NORM, *_AFFINE),
    layers.LayerNormalization: ("axis", *_NORM, *_AFFINE),
    layers.GroupNormalization: ("groups", "axis", *_NORM, *_AFFINE),
    layers.UnitNormalization: ("axis",),
    layers.Rescaling: ("scale", "offset"),
    layers.Activation: ("activation",),
    layers.ReLU: ("max_value", "negative_slope", "threshold"),
    layers.ELU: ("alpha",),
    layers.PReLU: ("shared_axes", "alpha_regularizer", "alpha_constraint"),
    layers.Softmax: ("axis",),
    layers.MaxPooling1D: _POOL,
    layers.MaxPooling2D: _POOL,
    layers.MaxPooling3D: _POOL,
    layers.AveragePooling1D: _POOL,
    layers.AveragePooling2D: _POOL,
    layers.AveragePooling3D: _POOL,
    layers.GlobalMaxPooling1D: ("data_format", "keepdims"),
    layers.GlobalMaxPooling2D: ("data_format", "keepdims"),
    layers.GlobalAveragePooling1D: ("data_format", "keepdims"),
    layers.GlobalAveragePooling2D: ("data_format", "keepdims"),
    layers.Flatten: ("data_format",),
    layers.Reshape: ("target_shape",),
    layers.Permute: ("dims",),
    layers.RepeatVector: ("n",),
    layers.ZeroPadding1D: ("padding",),
    layers.ZeroPadding2D: ("padding", "data_format"),
    layers.Cropping1D: ("cropping",),
    layers.Cropping2D: ("cropping", "data_format"),
    layers.UpSampling1D: ("size",),
    layers.UpSampling2D: ("size", "data_format", "interpolation"),
    layers.Identity: (),
    layers.Add: (),
    layers.Subtract: (),
    layers.Multiply: (),
    layers.Average: (),
    layers.Maximum: (),
    layers.Minimum: (),
    layers.Concatenate: ("axis",),
    layers.Dot: ("axes", "normalize"),
    layers.Dropout: ("rate", "noise_shape", "seed"),
    layers.SpatialDropout1D: ("rate",),
    layers.SpatialDropout2D: ("rate",),
    layers.GaussianNoise: ("stddev",),
    layers.GaussianDropout: ("rate",),
}
_DROPPED_IN_INFERENCE = (
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
    *(layers.GaussianNoise, layers.GaussianDropout),
)
# Built otherwise than by arguments of the same name.
_TRANSLATED = (layers.LeakyReLU, layers.Normalization, layers.SeparableConv2D)
_KNOWN = (*_ARGUMENTS, *_TRANSLATED)
_RULE = (
    "A student for tensorflow-model-optimization needs layers that tf_keras has, and "
    "computes alike."
)
# Keras's name, and that in tf_keras. `relu6` becomes a layer; others, hard sigmoid and
# hard swish for one, are other functions there.
_ACTIVATIONS = {
    **{
        name: name
        for name in (
            *("linear", "relu", "sigmoid", "softmax", "tanh", "elu", "selu", "gelu"),
            *("softplus", "softsign", "exponential", "mish"),
        )
    },
    "silu": "swish",
    "swish": "swish",
}
_REGULARIZERS = ("L1", "L2", "L1L2", "OrthogonalRegularizer")
_CONSTRAINTS = ("MaxNorm", "NonNeg", "UnitNorm", "MinMaxNorm")


@dataclasses.dataclass(frozen=True)
class TwinLayer:
    """A layer of the twin.

    Attributes:
        path: The student's layer, after those of the models it is in.
        kind: Its class in `tf_keras.layers`.
        arguments: Its arguments, JSON-plain.
        source: The student's layer; None where it has no weights.
        weights: Which of that layer's weights it has, by place.
    """

    path: str
    kind: str
    arguments: dict[str, Any]
    source: Any = None
    weights: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class TwinCall:
    """One call of a layer of the twin.

    Attributes:
        layer: Which one, by place.
        inputs: Numbers of the tensors that it takes.
        output: Number of the tensor that it returns.
        inference: Whether batch normalization uses its moving statistics in training.
    """

    layer: int
    inputs: tuple[int, ...]
    output: int
    inference: bool


class Twin:
    """A student as tf_keras can build it, the models in it opened.

    Args:
        student: A built Functional or Sequential model in float32 with one output, of
            logits or a softmax over classes.

    Attributes:
        student: The student.
        functional: Its graph, with the structure of the inputs.
        layers: The twin's layers.
        calls: Their calls, in order.
        inputs: Numbers of the input tensors, with shape and dtype.
        output: Number of the output tensor.
        logits: Number of the tensor before a final softmax; else the output.

    Raises:
        ValueError: If there is no twin, because of a layer that is named, or the
            student has several outputs or a sigmoid at the end.

    Example:
        >>> student = keras.Sequential(
        ...     [keras.Input((4,)), layers.Dense(2, activation="silu", name="head")]
        ... )
        >>> twin = Twin(student)
        >>> twin.layers[0].kind, twin.layers[0].arguments["activation"]
        ('Dense', 'swish')
    """

    def __init__(self, student: keras.Model) -> None:
        graph = CallGraph(student, "tensorflow-model-optimization")
        if len(graph.outputs) != 1:
            raise ValueError(
                "tensorflow-model-optimization is given a student of one output. "
                f"Received: {student.name!r} with {len(graph.outputs)}. Fix: compress "
                "a model of each output, or use kdlite.quantize_aware."
            )
        self.student = student
        self.layers: list[TwinLayer] = []
        self.calls: list[TwinCall] = []
        self._known: dict[tuple[int, str], int] = {}
        self._count = len(graph.shapes)
        self.functional = graph.functional
        self.inputs = [
            (number, x.shape[1:], x.dtype)
            for number, x in zip(graph.inputs, self.functional.inputs, strict=True)
        ]
        tensors = {number: number for number in graph.inputs}
        for call in graph.calls:
            tensors[call.outputs[0]] = self._read(
                call, [tensors[x] for x in call.inputs]
            )
        self.output = tensors[graph.outputs[0]]
        self.logits = self._before_softmax()
        self._copy()  # what cannot be copied is found out before the training

    def matching(self, pattern: str) -> list[int]:
        """Returns the places of the layers that a name or pattern fits.

        Args:
            pattern: A layer's path, a pattern of it, or the name of a model inside.

        Raises:
            ValueError: If none does.
        """
        found = [
            place
            for place, layer in enumerate(self.layers)
            if fnmatch.fnmatchcase(layer.path, pattern)
            or layer.path.startswith(f"{pattern}/")
        ]
        if not found:
            paths = dict.fromkeys(layer.path for layer in self.layers)
            raise ValueError(
                f"Each pattern must fit a layer. Received: {pattern!r} for model "
                f"{self.student.name!r}. Fix: use of its layers "
                f"{', '.join(map(repr, paths))}."
            )
        return found

    def weights(self) -> list[list[Array]]:
        """Returns the weights of each layer."""
        return [
            [layer.source.get_weights()[place] for place in layer.weights]
            for layer in self.layers
        ]

    def with_weights(self, weights: Iterable[list[Array]]) -> keras.Model:
        """Returns a copy of the student that has the weights of a trained twin.

        Args:
            weights: For each of `layers` its weights.

        Returns:
            A new model; the student is left as it is.
        """
        copy = self._copy()
        targets = {}
        for old, new in zip(
            self.student._flatten_layers(), copy._flatten_layers(), strict=True
        ):
            targets[id(old)] = new
        for layer, values in zip(self.layers, weights, strict=True):
            if layer.weights:
                target = targets[id(layer.source)]
                all_values = target.get_weights()
                for place, value in zip(layer.weights, values, strict=True):
                    all_values[place] = value
                target.set_weights(all_values)
        return copy

    def plan(self) -> dict[str, Any]:
        """Returns what the other process builds it from, as plain data."""
        return {
            "inputs": self.inputs,
            "layers": [(layer.kind, layer.arguments) for layer in self.layers],
            "calls": [dataclasses.astuple(call) for call in self.calls],
            "output": self.output,
            "logits": self.logits,
        }

    def _copy(self) -> keras.Model:
        copy = cloned(self.student)
        weights = self.student.get_weights()
        if len(copy.weights) != len(weights):
            raise ValueError(
                "A student must be one that Keras can copy. Received: "
                f"{self.student.name!r}, whose copy has {len(copy.weights)} of its "
                f"{len(weights)} weights. Fix: use a layer in one model only, the "
                "student or a model inside it."
            )
        copy.set_weights(weights)
        settle(copy)
        return copy

    def _read(self, call: Call, inputs: list[int]) -> int:
        layer = as_layer(call)
        path, kind = call.path, type(layer)
        if kind not in _KNOWN:
            known = ", ".join(layer.__name__ for layer in _KNOWN)
            raise ValueError(
                f"{_RULE} Received: layer {path!r} of class {kind.__name__}. Fix: "
                f"build the student from {known}; or use kdlite.quantize_aware, or "
                "export with calibration_data."
            )
        if problem := _problem(layer, call):
            raise ValueError(
                f"{_RULE} Received: layer {path!r}, {kind.__name__} with {problem}."
            )
        if kind in _DROPPED_IN_INFERENCE and call.training is False:
            return inputs[0]
        if kind is layers.SeparableConv2D:
            depthwise, pointwise = separated(layer)
            (between,) = self._emit(path, depthwise, inputs, source=layer, weights=(0,))
            rest = tuple(range(1, len(layer.weights)))
            (found,) = self._emit(
                path, pointwise, [between], source=layer, weights=rest
            )
            return self._activated(path, layer, found)
        held = kind is layers.BatchNormalization and call.training is False
        (found,) = self._emit(path, layer, inputs, inference=held)
        return self._activated(path, layer, found)

    def _activated(self, path: str, layer: Any, tensor: int) -> int:
        """Adds the activation that is not left to the layer itself."""
        if isinstance(layer, layers.Activation):
            return tensor
        function = _activation_name(layer)
        if not _is_own_layer(layer, function):
            return tensor
        made: dict[str, Any] = {"activation": function}
        kind = "Activation"
        if function == "relu6":
            kind, made = "ReLU", {"max_value": 6.0}
        return self._call(self._place(layer, path, kind, made, part=function), [tensor])

    def _emit(
        self,
        path: str,
        layer: Any,
        inputs: list[int],
        source: Any = None,
        weights: tuple[int, ...] | None = None,
        inference: bool = False,
    ) -> tuple[int]:
        source = layer if source is None else source
        if weights is None:
            weights = tuple(range(len(layer.weights)))
        kind, arguments = _translated(layer, path)
        if kind == "Rescaling":
            weights = ()  # a Normalization's are among the arguments
        part = "" if source is layer else kind
        place = self._place(source, path, kind, arguments, part, weights)
        return (self._call(place, inputs, inference),)

    def _place(
        self,
        source: Any,
        path: str,
        kind: str,
        arguments: dict[str, Any],
        part: str = "",
        weights: tuple[int, ...] = (),
    ) -> int:
        key = (id(source), part)
        if key not in self._known:  # a layer that is called twice is one layer
            self._known[key] = len(self.layers)
            self.layers.append(TwinLayer(path, kind, arguments, source, weights))
        return self._known[key]

    def _call(self, place: int, inputs: list[int], inference: bool = False) -> int:
        self._count += 1
        self.calls.append(TwinCall(place, tuple(inputs), self._count, inference))
        return self._count

    def _before_softmax(self) -> int:
        made_by = {call.output: call for call in self.calls}
        last = made_by.get(self.output)
        if last is None:
            return self.output
        layer = self.layers[last.layer]
        function = layer.arguments.get("activation")
        if layer.kind == "Softmax" or function == "softmax":
            return last.inputs[0]
        if function == "sigmoid":
            raise ValueError(
                "A student for tensorflow-model-optimization gives logits or a softmax "
                f"over classes. Received: {self.student.name!r}, whose last layer "
                f"{layer.path!r} is a sigmoid. Fix: two classes with a softmax, or "
                "kdlite.quantize_aware and Distiller, which take sigmoids."
            )
        return self.output


def _activation_name(layer: Any) -> str:
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    name = keras.activations.serialize(function)
    return name if isinstance(name, str) else getattr(function, "__name__", "custom")


def _is_own_layer(layer: Any, function: str) -> bool:
    """Whether an activation inside a layer is a layer of its own in the twin."""
    if isinstance(layer, layers.SeparableConv2D):
        return function != "linear"
    # A softmax is cut off where the student is trained on its logits.
    return function in ("softmax", "relu6", "sigmoid") and not isinstance(
        layer, (layers.LSTM, layers.GRU, layers.SimpleRNN)
    )


def _problem(layer: Any, call: Call) -> str | None:
    """Returns what about a layer has no twin, and what to do."""
    if len(call.outputs) != 1:
        return "several outputs. Fix: return_state=False"
    if call.training:
        return "training=True in its call. Fix: call it without"
    if layer.dtype_policy.name != "float32":
        return (
            f"the dtype policy {layer.dtype_policy.name!r}. Fix: rebuild the student "
            "in float32 and copy its weights"
        )
    if layer.activity_regularizer is not None:
        return "an activity regularizer. Fix: remove it"
    if isinstance(layer, layers.Embedding) and layer.mask_zero:
        return "mask_zero=True. Fix: mask_zero=False, and a mean over all places"
    if isinstance(layer, layers.LayerNormalization) and layer.get_config().get(
        "rms_scaling"
    ):
        return "rms_scaling=True. Fix: leave it out"
    if isinstance(layer, layers.BatchNormalization) and layer.renorm:
        return "renorm=True. Fix: leave it out"
    if isinstance(layer, layers.Normalization) and (
        layer.invert or any(size != 1 for size in layer.mean.shape[:-1])
    ):
        return "an axis other than the last, or invert. Fix: use the last axis"
    for attribute in ("activation", "recurrent_activation"):
        function = getattr(layer, attribute, None)
        if function is None:
            continue
        name = keras.activations.serialize(function)
        if name not in _ACTIVATIONS and name != "relu6":
            known = ", ".join(map(repr, (*_ACTIVATIONS, "relu6")))
            shown = name if isinstance(name, str) else getattr(function, "__name__", "")
            return f"{attribute}={shown!r}. Fix: use one of {known}"
    return None


def _translated(layer: Any, path: str) -> tuple[str, dict[str, Any]]:
    """Returns the class and the arguments in tf_keras."""
    kind = type(layer)
    if kind is layers.Normalization:
        scale, offset = scale_and_offset(layer)
        return "Rescaling", {"scale": scale.tolist(), "offset": offset.tolist()}
    if kind is layers.LeakyReLU:
        return "LeakyReLU", {"alpha": float(layer.negative_slope)}
    if kind is layers.Activation and _activation_name(layer) == "relu6":
        return "ReLU", {"max_value": 6.0}
    config = layer.get_config()
    arguments = {}
    for key in (*_ARGUMENTS[kind], "trainable"):
        # Spatial dropouts leave it out of their configuration.
        value = config.get(key, getattr(layer, key, None))
        if key in ("activation", "recurrent_activation"):
            value = _ACTIVATIONS.get(value, "linear")
            if key == "activation" and kind is not layers.Activation:
                own = _is_own_layer(layer, _activation_name(layer))
                value = "linear" if own else value
        elif key.endswith(("_regularizer", "_constraint")):
            value = _legacy_object(value, key, path)
        arguments[key] = _plain(value)
    return kind.__name__, arguments


def _plain(value: Any) -> Any:
    """Returns lists for Keras's own, which cannot be sent to another process."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        made = [_plain(item) for item in value]
        return tuple(made) if isinstance(value, tuple) else made
    return value


def _legacy_object(value: Any, key: str, path: str) -> Any:
    if value is None:
        return None
    known = _REGULARIZERS if key.endswith("_regularizer") else _CONSTRAINTS
    name = value.get("class_name") if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or name not in known:
        raise ValueError(
            f"{_RULE} Received: layer {path!r} with {key}={name!r}. Fix: use one of "
            f"{', '.join(known)}, or none."
        )
    return {"class_name": name, "config": value["config"]}
