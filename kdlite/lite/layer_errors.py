"""Where the error of a quantized file enters, operation by operation.

The file and its twin in float32 run on the same samples, with every tensor kept. What
an operation's result is off by, less what its inputs were off by already, is what it
adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from kdlite.lite.layer_names import layers_of
from kdlite.lite.runtime import TFLiteModel

Array = np.ndarray[Any, Any]

_SAMPLES = 16
_EDGES = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class LayerError:
    """How exact the result of one operation is.

    Attributes:
        layer: The Keras layer that it comes from; empty where the file does not tell.
        op: The operation.
        noise: The mean square of the error, over the variance of the result.
        added: The part of `noise` that its inputs did not have.
        reads: The layers that its inputs come from: where an operation is to be exact,
            so must be what it reads.
    """

    layer: str
    op: str
    noise: float
    added: float
    reads: tuple[str, ...] = ()

    @property
    def snr_db(self) -> float:
        """The signal-to-noise ratio of the result, in decibels."""
        return float(-10 * np.log10(max(self.noise, 1e-12)))

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {**asdict(self), "reads": list(self.reads), "snr_db": self.snr_db}

    def __str__(self) -> str:
        return (
            f"{self.layer or '?'} ({self.op}): {self.snr_db:.1f} dB, "
            f"{self.added:.2%} noise added"
        )


def layer_errors(
    blob: bytes, floats: bytes, samples: Mapping[str, Array], model: keras.Model
) -> tuple[LayerError, ...]:
    """Measures how exact every operation of a quantized file is.

    Args:
        blob: The file.
        floats: The same model in float32, made by the same converter: equal tensors
            have equal names.
        samples: By input name `(samples, ...)`; the first few are used.
        model: The Keras model that both come from.

    Returns:
        One entry for each operation whose result both files have, in the order that
        they run.

    Example:
        ``max(layer_errors(blob, floats, samples, model), key=lambda e: e.added).layer``
    """
    few = {name: array[:_SAMPLES] for name, array in samples.items()}
    file = TFLiteModel(blob, kernels="built-in", keep_tensors=True)
    twin = TFLiteModel(floats, kernels="built-in", keep_tensors=True)
    told, wanted = file.tensors(few), twin.tensors(few)
    of_output = {tensor.name: tensor.index for tensor in twin.outputs}
    place = {tensor.name: tensor.index for tensor in twin.content.tensors}
    # The last tensor of the twin has another name where the file goes on to an edge.
    place |= {
        _before(file, tensor.index): of_output[tensor.name]
        for tensor in file.outputs
        if tensor.name in of_output
    }
    by_op = layers_of(file.content, model)
    noise: dict[int, float] = {}
    layer_of: dict[int, str] = {}
    found = []
    for op in file.content.ops:
        if op.subgraph or not op.outputs:
            continue
        layer = next(iter(by_op[op]), "")
        reads = tuple(dict.fromkeys(layer_of[i] for i in op.inputs if i in layer_of))
        if op.name in _EDGES and reads:
            layer = reads[0]
        if layer:
            layer_of[op.outputs[0]] = layer
        inputs = [noise.get(index, 0.0) for index in op.inputs]
        before = max(inputs, default=0.0)
        index = op.outputs[0]
        there = place.get(file.content.tensors[index].name)
        result = wanted.get(there) if there is not None else None
        if result is None or index not in told or told[index].shape != result.shape:
            noise[index] = before
            continue
        # In floats, as comparisons give booleans and indices wrap around.
        here, result = told[index].astype(float), result.astype(float)
        variance = float(np.var(result)) or 1e-12
        error = float(np.mean((here - result) ** 2))
        noise[index] = error / variance
        if op.name not in _EDGES:
            added = max(0.0, noise[index] - before)
            others = tuple(name for name in reads if name != layer)
            found.append(LayerError(layer, op.name, noise[index], added, others))
    return tuple(found)


def noisiest(errors: Sequence[LayerError], least: float = 0.0) -> list[str]:
    """Returns the layers by how much noise they add, the most first.

    Args:
        errors: Of `layer_errors`.
        least: Leave out layers that add less than this share of what the first adds.

    Returns:
        Their names, each once; behind each those that it reads, since what an operation
        adds is often what a rounded input does not tell.

    Example:
        >>> a, b = LayerError("a", "ADD", 0.2, 0.1), LayerError("b", "MUL", 0.9, 0.7)
        >>> noisiest([a, b]), noisiest([a, b], least=0.5)
        (['b', 'a'], ['b'])
    """
    ordered = sorted(errors, key=lambda error: -error.added)
    most = ordered[0].added if ordered else 0.0
    return list(
        dict.fromkeys(
            layer
            for error in ordered
            if error.added >= least * most
            for layer in (error.layer, *error.reads)
            if layer
        )
    )


def _before(file: TFLiteModel, index: int) -> str:
    """Returns the name of the tensor that an edge makes an output from."""
    tensors = file.content.tensors
    for op in file.content.ops:
        if op.subgraph == 0 and op.name in _EDGES and index in op.outputs:
            return tensors[op.inputs[0]].name
    return tensors[index].name
