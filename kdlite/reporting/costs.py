"""What models and files cost: numbers, bytes, time, memory, energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kdlite.compress.summary import summary
from kdlite.lite.benchmark import benchmark
from kdlite.lite.runtime import BUSY, TFLiteModel
from kdlite.lite.tflite_reader import inspect
from kdlite.reporting.energy import EnergyUse, energy_of

#: How many samples make one turn while energy is measured.
INFERENCES = 100


@dataclass(frozen=True)
class Cost:
    """What a model or file costs; None where it does not apply or was not measured.

    Attributes:
        params: Numbers that it holds.
        macs: Multiply-accumulates for one sample.
        bytes: Its size as a file; of a Keras model what its parameters take in float32.
        latency_ms: The fastest run of a file, one sample, one thread, on this computer.
        latency_p90_ms: Nine of ten runs were faster than this.
        processor: Which share of a processor there was for these runs.
        memory_bytes: By how much running it raised the peak of a process.
        training: Time and energy of its training.
        inference: Time and energy of 1,000 samples, one after the other.
    """

    params: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    latency_p90_ms: float | None = None
    processor: float | None = None
    memory_bytes: int | None = None
    training: EnergyUse | None = None
    inference: EnergyUse | None = None

    @property
    def busy(self) -> bool:
        """Whether other programs held up the runs that its latency is of."""
        return self.processor is not None and self.processor < BUSY

    def to_dict(self) -> dict[str, Any]:
        """Returns what is known, as JSON takes it."""
        told: dict[str, Any] = {
            "params": self.params,
            "macs": self.macs,
            "bytes": self.bytes,
            "latency_ms": self.latency_ms,
            "latency_p90_ms": self.latency_p90_ms,
            "busy": None if self.processor is None else self.busy,
            "memory_bytes": self.memory_bytes,
            "training": self.training and self.training.to_dict(),
            "per_1000_inferences": self.inference and self.inference.to_dict(),
        }
        return {name: value for name, value in told.items() if value is not None}


def model_cost(model: keras.Model) -> Cost:
    """Counts what a Keras model holds and computes.

    Args:
        model: A built model.

    Returns:
        Parameters and their bytes in float32, and multiply-accumulates where each
        layer's are known.

    Example:
        >>> dense = keras.layers.Dense(2, use_bias=False)
        >>> model_cost(keras.Sequential([keras.Input((3,)), dense])).macs
        6
    """
    try:
        counted = summary(model)
        macs = None if counted.unknown else counted.macs
    except (TypeError, ValueError):  # subclassed, or not built
        macs = None
    params = model.count_params() if model.built else None
    return Cost(params, macs, None if params is None else 4 * params)


def file_costs(
    paths: Mapping[str, Path], x: Any, country: str | None = None
) -> dict[str, Cost]:
    """Measures files side by side.

    Args:
        paths: Files by name.
        x: Some samples, for their energy.
        country: As `track_energy` takes it; None leaves energy out.

    Returns:
        By name bytes, multiply-accumulates, latency, memory and energy.

    Raises:
        ValueError: If a file cannot be run.

    Example:
        ``file_costs({"int8": Path("student.tflite")}, x_test[:100])["int8"].bytes``
    """
    timed = benchmark(list(paths.values()), threads=1).files
    costs = {}
    for (name, path), times in zip(paths.items(), timed, strict=True):
        content = inspect(path)
        costs[name] = Cost(
            params=content.parameters,
            macs=content.macs,
            bytes=times.size_bytes,
            latency_ms=times.latency.min_ms,
            latency_p90_ms=times.latency.p90_ms,
            processor=times.latency.processor,
            memory_bytes=times.memory_bytes,
            inference=None if country is None else _inference(path, x, country),
        )
    return costs


def _inference(path: Path, x: Any, country: str) -> EnergyUse:
    """What 1,000 samples take, one after the other."""
    model = TFLiteModel(path)
    used, turns = energy_of(lambda: model.predict(x), country)
    first = next(iter(x.values())) if isinstance(x, Mapping) else x
    return used.times(1000 / (turns * len(first)))
