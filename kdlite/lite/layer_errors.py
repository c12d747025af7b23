"""Where the error of a quantized file enters, operation by operation.

The file and its twin in float32, or the quantization-aware model that it comes from,
run on the same samples, with every tensor kept. What an operation's result is off by,
less what its inputs were off by already, is what it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from kdlite.lite.layer_names import layers_of
from kdlite.lite.runtime import TFLiteModel
from kdlite.lite.serving import ServingModel
from kdlite.lite.tflite_file import Op

Array = np.ndarray[Any, Any]
# By operation the layers that it comes from, the last first, and its right result.
_Twin = Callable[[Op, Array], tuple[tuple[str, ...], Array | None]]

_SAMPLES = 16
# Roundings on the other side make less of it, all together.
_A_STEP = 1.0
_EDGES = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class LayerError:
    """How exact the result of one operation is.

    Attributes:
        layer: The Keras layer that it comes from; empty where the file does not tell.
        op: The operation.
        noise: The mean square of the error, over the variance of the result.
        added: The part of `noise` that its inputs did not have.
        reads: Other layers that it takes to make it exact: those that its inputs come
            from, of a quantization-aware model those that are one operation with it.
        steps: Of a quantization-aware model, which rounds as its file does, the error
            in steps of the result (root mean square); None where it has none.
        steps_before: The most that one of its inputs was off by.
    """

    layer: str
    op: str
    noise: float
    added: float
    reads: tuple[str, ...] = ()
    steps: float | None = None
    steps_before: float = 0.0

    @property
    def enters(self) -> bool:
        """Whether more than a step is wrong here, and nowhere before."""
        return (self.steps or 0.0) > _A_STEP >= self.steps_before

    @property
    def snr_db(self) -> float:
        """The signal-to-noise ratio of the result, in decibels."""
        return float(-10 * np.log10(max(self.noise, 1e-12)))

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {**asdict(self), "reads": list(self.reads), "snr_db": self.snr_db}

    def __str__(self) -> str:
        text = f"{self.layer or '?'} ({self.op}): "
        if self.steps is not None:
            text += f"off by {self.steps:.2f} steps, its inputs by "
            return text + f"{self.steps_before:.2f}"
        return text + f"{self.snr_db:.1f} dB, {self.added:.2%} noise added"


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
    wanted = twin.tensors(few)
    of_output = {tensor.name: tensor.index for tensor in twin.outputs}
    place = {tensor.name: tensor.index for tensor in twin.content.tensors}
    # The last tensor of the twin has another name where the file goes on to an edge.
    place |= {
        _before(file, tensor.index): of_output[tensor.name]
        for tensor in file.outputs
        if tensor.name in of_output
    }
    by_op = layers_of(file.content, model)

    def of_twin(op: Op, here: Array) -> tuple[tuple[str, ...], Array | None]:
        there = place.get(file.content.tensors[op.outputs[0]].name)
        result = wanted.get(there) if there is not None else None
        fits = result is not None and here.shape == result.shape
        return by_op[op][:1], result if fits else None

    return _errors(file, file.tensors(few), of_twin)


def trained_layer_errors(
    blob: bytes, samples: Mapping[str, Array], serving: ServingModel
) -> tuple[LayerError, ...]:
    """Measures in steps how far a file is from the model that was trained to be it.

    Args:
        blob: The file.
        samples: By input name `(samples, ...)`; the first few are used.
        serving: The quantization-aware model that it comes from.

    Returns:
        One entry for each operation whose result is integers that the model has too, in
        the order that they run, by the names that the student's layers have.

    Example:
        ``next(e.layer for e in trained_layer_errors(blob, x, serving) if e.enters)``
    """
    file = TFLiteModel(blob, kernels="built-in", keep_tensors=True)
    batch = max(1, *file.inputs[0].shape[:1])
    count = min(_SAMPLES, len(next(iter(samples.values()))))
    # Whole batches, as the file's tensors are.
    rows = np.minimum(np.arange(-(-count // batch) * batch), count - 1)
    few = {name: array[rows] for name, array in samples.items()}
    results = serving.layer_results(few)
    by_op = layers_of(file.content, serving.model)

    def of_model(op: Op, here: Array) -> tuple[tuple[str, ...], Array | None]:
        # In float there is no telling which operation of a layer gives its result:
        # that shows where it is rounded.
        if file.content.tensors[op.outputs[0]].scale is None:
            return (), None
        # Of layers that are one operation, and calls of one layer, the nearest.
        fitting = [
            (result.layers, result.values.reshape(here.shape))
            for result in results
            if result.path in by_op[op] and result.values.size == here.size
        ]
        nearest = min(fitting, key=lambda pair: _error(here, pair[1]), default=None)
        return nearest or ((), None)

    return _errors(file, file.tensors(few), of_model, trained=True)


def _errors(
    file: TFLiteModel,
    told: Mapping[int, Array],
    twin: _Twin,
    trained: bool = False,
) -> tuple[LayerError, ...]:
    noise: dict[int, float] = {}
    steps: dict[int, float] = {}
    layer_of: dict[int, str] = {}
    found = []
    for op in file.content.ops:
        if op.subgraph or not op.outputs:
            continue
        index = op.outputs[0]
        here = told.get(index)
        layers, result = twin(op, here) if here is not None else ((), None)
        layer = next(iter(layers), "")
        reads = tuple(dict.fromkeys(layer_of[i] for i in op.inputs if i in layer_of))
        if op.name in _EDGES and reads:
            layer = reads[0]
        if layer:
            layer_of[index] = layer
        before = max((noise.get(i, 0.0) for i in op.inputs), default=0.0)
        steps_before = max((steps.get(i, 0.0) for i in op.inputs), default=0.0)
        noise[index], steps[index] = before, steps_before
        if here is None or result is None:
            continue
        variance = float(np.var(result.astype(float))) or 1e-12
        error = _error(here, result)
        noise[index] = error / variance
        scale = file.content.tensors[index].scale if trained else None
        if scale:
            steps[index] = error**0.5 / scale
        if op.name not in _EDGES or (trained and layer):
            others = layers[1:] if trained else reads
            found.append(
                LayerError(
                    layer,
                    op.name,
                    noise[index],
                    added=max(0.0, noise[index] - before),
                    reads=tuple(name for name in others if name != layer),
                    steps=steps[index] if scale else None,
                    steps_before=steps_before,
                )
            )
    return tuple(found)


def _error(here: Array, result: Array) -> float:
    # In floats, as comparisons give booleans and indices wrap around.
    return float(np.mean((here.astype(float) - result.astype(float)) ** 2))


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
