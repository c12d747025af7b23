"""What each layer of a Keras model costs: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
from keras import layers
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
from keras.src.layers.convolutional.base_depthwise_conv import BaseDepthwiseConv
from keras.src.layers.convolutional.base_separable_conv import BaseSeparableConv

from kdlite.compress.graph import Call, CallGraph, Shape


@dataclass(frozen=True)
class LayerCost:
    """One layer of a model.

    Attributes:
        name: Its name, after those of the models it is in: `"backbone/conv1"`.
        kind: Its class.
        output_shape: `(batch, ...)`.
        params: Numbers that it holds; 0 where it is called again.
        macs: Multiply-accumulates for one sample; None where they are not known.
    """

    name: str
    kind: str
    output_shape: Shape
    params: int
    macs: int | None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {**asdict(self), "output_shape": list(self.output_shape)}


@dataclass(frozen=True)
class Summary:
    """What the layers of a model cost.

    Attributes:
        name: The model's name.
        layers: Its calls of layers in order; a shared layer has a row for each call.
    """

    name: str
    layers: tuple[LayerCost, ...]

    @property
    def params(self) -> int:
        """Numbers that the model holds."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample, of the layers where they are known."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Layers with kernels whose multiply-accumulates are not known."""
        return tuple(layer.name for layer in self.layers if layer.macs is None)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "name": self.name,
            "params": self.params,
            "macs": self.macs,
            "unknown": list(self.unknown),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __str__(self) -> str:
        rows = [("layer", "class", "output", "params", "MACs")]
        for layer in self.layers:
            shape = ", ".join("?" if n is None else str(n) for n in layer.output_shape)
            macs = "?" if layer.macs is None else f"{layer.macs:,}"
            rows.append(
                (layer.name, layer.kind, f"({shape})", f"{layer.params:,}", macs)
            )
        least = "at least " if self.unknown else ""
        rows.append((self.name, "", "", f"{self.params:,}", f"{least}{self.macs:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                text.ljust(width) if index < 3 else text.rjust(width)
                for index, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def summary(model: keras.Model) -> Summary:
    """Counts parameters and multiply-accumulates, layer by layer.

    A multiply-accumulate is one product of a weight (or, in attention, of a value) and
    a value that is added to a sum; `kdlite.inspect(file).macs` counts the same in a
    `.tflite`. Convolutions, dense layers, recurrent layers, attention and matrix
    products have them; normalization, activations, pooling and sums count 0. Layers of
    your own with a kernel are not known, and neither is anything whose size depends on
    a length that is not.

    Args:
        model: A built Functional or Sequential model; models inside it are opened.

    Returns:
        One `LayerCost` a call, and the sums; prints as a table.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it, or a model inside it, is not built or subclassed.

    Example:
        >>> model = keras.Sequential(
        ...     [
        ...         keras.Input((8, 8, 3)),
        ...         keras.layers.Conv2D(4, 3, padding="same", name="conv"),
        ...         keras.layers.Flatten(name="flat"),
        ...         keras.layers.Dense(2, name="head"),
        ...     ],
        ...     name="tiny",
        ... )
        >>> print(summary(model))
        layer  class    output        params   MACs
        conv   Conv2D   (?, 8, 8, 4)     112  6,912
        flat   Flatten  (?, 256)           0      0
        head   Dense    (?, 2)           514    512
        tiny                             626  7,424
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a Keras model. Received: {type(model).__name__}. Load a "
            "file with keras.models.load_model, or see kdlite.inspect for a .tflite."
        )
    graph = CallGraph(model, "Counting by layer")
    counted: set[int] = set()
    rows = []
    for call in graph.calls:
        layer = call.operation
        weights = [] if id(layer) in counted else getattr(layer, "weights", [])
        counted.add(id(layer))
        rows.append(
            LayerCost(
                name=call.path,
                kind=type(layer).__name__,
                output_shape=graph.shapes[call.outputs[0]],
                params=sum(math.prod(weight.shape) for weight in weights),
                macs=_call_macs(call, graph),
            )
        )
    return Summary(model.name, tuple(rows))


def _call_macs(call: Call, graph: CallGraph) -> int | None:
    try:
        return _macs(
            call.operation,
            [graph.shapes[x] for x in call.inputs],
            [graph.shapes[x] for x in call.outputs],
        )
    except TypeError:  # a product with a length that is None
        return None


def _macs(layer: Any, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Returns the multiply-accumulates of one call for a batch of one."""
    first, result = inputs[0], outputs[0]
    if isinstance(layer, BaseSeparableConv):
        kernels = math.prod(layer.depthwise_kernel.shape) + math.prod(
            layer.pointwise_kernel.shape
        )
        return math.prod(result[1:-1]) * kernels
    if isinstance(layer, (BaseConv, BaseDepthwiseConv)):
        return _pixels(layer, result) * math.prod(layer.kernel.shape)
    if isinstance(layer, BaseConvTranspose):
        # Each value that comes in meets the whole kernel.
        return _pixels(layer, first) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.Dense):
        return math.prod(first[1:-1]) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.EinsumDense):
        return _einsum_macs(layer, first)
    if isinstance(layer, layers.Bidirectional):
        parts = (layer.forward_layer, layer.backward_layer)
        return sum(_recurrent_macs(part, first) for part in parts)
    if isinstance(layer, (layers.LSTM, layers.GRU, layers.SimpleRNN)):
        return _recurrent_macs(layer, first)
    if isinstance(layer, layers.TimeDistributed):
        (steps, *rest) = first[1:]
        inner = _macs(layer.layer, [(None, *rest)], [(None, *result[2:])])
        return None if inner is None else steps * inner
    if isinstance(layer, layers.MultiHeadAttention):
        return _attention_macs(layer, inputs)
    if isinstance(layer, layers.Attention):
        query, value = first, inputs[1]
        return query[1] * value[1] * (query[-1] + value[-1])
    if isinstance(layer, layers.Embedding):
        return 0
    kind = type(layer).__name__
    if kind == "Matmul" and len(inputs) == 2:
        return math.prod(result[1:]) * first[-1]
    if isinstance(layer, layers.Dot) and isinstance(layer.axes, int):
        return math.prod(result[1:]) * first[layer.axes]
    kernels = [w for w in getattr(layer, "weights", []) if len(w.shape) > 1]
    return None if kernels or kind in ("Dot", "Einsum", "Tensordot", "Conv") else 0


def _pixels(layer: Any, shape: Shape) -> int:
    """Returns the number of places in an image or a sequence of channels."""
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return math.prod(shape[1:-1] if last else shape[2:])


def _einsum_macs(layer: Any, shape: Shape) -> int:
    taken, _, rest = layer.equation.partition(",")
    kernel = rest.partition("->")[0]
    letters = taken.replace("...", "")
    named, free = len(letters), shape[len(letters) :]
    lengths = shape[:named]
    if taken.startswith("..."):
        lengths, free = shape[len(shape) - named :], shape[1 : len(shape) - named]
    else:  # the batch has a letter of its own
        letters, lengths = letters[1:], lengths[1:]
    kept = [n for a, n in zip(letters, lengths, strict=True) if a not in kernel]
    return math.prod((*free, *kept)) * math.prod(layer.kernel.shape)


def _recurrent_macs(layer: Any, shape: Shape) -> int:
    cell = layer.cell
    kernels = math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape)
    return shape[1] * kernels


def _attention_macs(layer: Any, inputs: Sequence[Shape]) -> int | None:
    query, value, *rest = inputs
    key = rest[0] if rest else value
    if len(query) != 3 or len(value) != 3:
        return None
    config = layer.get_config()
    width = config["num_heads"] * (config["key_dim"] + config["value_dim"])
    projections = (
        (query, layer._query_dense),
        (key, layer._key_dense),
        (value, layer._value_dense),
        (query, layer._output_dense),
    )
    return query[1] * value[1] * width + sum(
        shape[1] * math.prod(dense.kernel.shape) for shape, dense in projections
    )
