"""A Keras model on its way through a converter: saved once, converted once or more."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdlite.compress.recipes import RECIPES, Recipe
from kdlite.in_place import lack_of_room
from kdlite.lite._converter import ConversionError, Converter
from kdlite.lite.calibration import InputSpec
from kdlite.lite.layer_names import layers_of, places
from kdlite.lite.names import graph_names, named
from kdlite.lite.serving import ServingModel
from kdlite.lite.stored_types import as_trained
from kdlite.lite.tflite_file import Op
from kdlite.lite.tflite_reader import inspect
from kdlite.working_folder import working_folder

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Settings:
    """What a converter is told, beside the model.

    Attributes:
        recipe: How the file is to be quantized.
        engine: "tflite" or "aeq".
        io: Dtype of float inputs and outputs.
        batch_size: How many samples a run takes.
        per_channel_dense: Whether Dense kernels have steps by channel.
        float_ops: Whether operations may stay in float.
        select_tf_ops: Whether operations may be TensorFlow's own.
        time_limit_s: Seconds that it may take.
        memory_limit_bytes: Memory that it may take.
    """

    recipe: Recipe
    engine: str
    io: str
    batch_size: int
    per_channel_dense: bool
    float_ops: bool
    select_tf_ops: bool
    time_limit_s: float
    memory_limit_bytes: float | None


class Conversion:
    """One model that is converted; to be used in a `with` statement.

    Args:
        serving: The model.
        specs: Its inputs.
        settings: How it is converted.
        samples: By input name what ranges are measured on; None if they are not.

    Attributes:
        outputs: By output name the shape of one sample's output.

    Raises:
        ConversionError: On entering, if the model is no TensorFlow graph.
    """

    def __init__(
        self,
        serving: ServingModel,
        specs: Sequence[InputSpec],
        settings: Settings,
        samples: Mapping[str, Array] | None,
    ) -> None:
        self.settings = settings
        self.outputs: dict[str, tuple[int, ...]] = {}
        self._serving = serving
        self._specs = specs
        self._samples = samples
        self._inside = graph_names(spec.name for spec in specs)

    def __enter__(self) -> Conversion:
        self._temporary = working_folder("export")
        self._folder = self._temporary.__enter__()
        self._floats = b""
        self._runs = 0
        try:
            # It loads TensorFlow while the model is saved.
            self._converter = Converter()
            self._save()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.__exit__(None, None, None)

    def run(self, kept: Mapping[str, str]) -> bytes:
        """Converts the model.

        Args:
            kept: By layer "float16" or "float32", for those that are to be more exact
                than the recipe says.

        Returns:
            The bytes of the `.tflite`.

        Raises:
            ConversionError: If the converter makes none.
        """
        try:
            return self._run(self.settings, self._kept_tensors(kept) if kept else {})
        except ConversionError as err:
            if not err.ops:
                raise
            found = self._places(err.ops)
            named = (
                f"{op} ({', '.join(found[op])})" if found[op] else op for op in err.ops
            )
            text = str(err).replace(
                f": {', '.join(err.ops)}.", f": {', '.join(named)}."
            )
            raise ConversionError(text, err.ops) from err

    def _places(self, ops: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Says by operation where it is in the model, if that can be told."""
        found: dict[str, tuple[str, ...]] = dict.fromkeys(ops, ())
        settings = replace(self._plain(), select_tf_ops=True)
        try:
            content = inspect(self._run(settings, {}))
        except (ConversionError, ValueError):
            return found
        for op, place in places(content, self._serving.model).items():
            name = op.name.removeprefix("Flex")
            if name in found and place:
                found[name] = tuple(dict.fromkeys((*found[name], place)))
        return found

    def _kept_tensors(self, kept: Mapping[str, str]) -> dict[str, str]:
        # By tensor, as converters know nothing of layers.
        keep: dict[str, str] = {}
        by_op = layers_of(inspect(self.floats()), self._serving.model)
        for op, layers in by_op.items():
            kinds = [kept[layer] for layer in layers if layer in kept]
            if kinds and op.tensor:
                # Of these words, the more exact. Without weights an operation has none
                # to make float16, and has to be told to stay in float.
                keep[op.tensor] = max(kinds) if _has_weights(op) else "float32"
        return keep

    def _plain(self) -> Settings:
        plain = RECIPES["float32"]
        return replace(self.settings, recipe=plain, engine="tflite", io="float32")

    def floats(self) -> bytes:
        """Returns the model in float32, which has the same tensors under equal names.

        Raises:
            ConversionError: If the converter makes none.
        """
        if not self._floats:
            self._floats = self._run(self._plain(), {})
        return self._floats

    def _run(self, settings: Settings, keep: Mapping[str, str]) -> bytes:
        recipe, calibrated = settings.recipe, self._samples is not None
        options = {
            "saved_model": str(self._folder / "saved_model"),
            "calibration": str(self._folder / "calibration.npz"),
            "inputs": [self._inside[name] for name in self._samples or {}],
            "engine": settings.engine,
            "weight_bits": recipe.weight_bits,
            "activation_bits": recipe.activation_bits,
            "dequantized": recipe.dequantized,
            "io": settings.io,
            "calibrated": recipe.integer and calibrated,
            "batch_size": settings.batch_size,
            "float_ops": settings.float_ops,
            "select_tf_ops": settings.select_tf_ops,
            "per_channel_dense": settings.per_channel_dense,
            "keep": dict(keep),
        }
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        (folder / "options.json").write_text(json.dumps(options))
        blob = self._converter.run(
            folder,
            self._serving.name,
            settings.time_limit_s,
            settings.memory_limit_bytes,
        )
        if self._serving.quantize_aware:
            blob = as_trained(blob, recipe)
        inputs, outputs = (
            {inside: name for name, inside in names.items()}
            for names in (self._inside, graph_names(self.outputs))
        )
        return named(blob, inputs, outputs)

    def _save(self) -> None:
        if self._samples is not None:
            # By number: `savez` would take some names for its own arguments.
            np.savez(self._folder / "calibration.npz", *self._samples.values())
        settings = self.settings
        # ai-edge-quantizer measures the input as all else, and 16 bits are enough for
        # pixels wherever they are.
        rounded = settings.recipe.activation_bits == 8 and settings.engine == "tflite"
        converted = self._serving.for_conversion(round_inputs=rounded)
        try:
            self.outputs = converted.save_for_conversion(
                self._folder / "saved_model", self._specs, settings.batch_size
            )
        except ConversionError:
            raise
        except Exception as err:  # whatever a model's own code raises when traced
            if full := lack_of_room(err):
                raise OSError(
                    "There must be room for the files of a conversion. Received: "
                    f"{full}, in {self._folder}. Fix: free some, raise the limit, or "
                    "set the environment variable TMPDIR to another folder."
                ) from err
            raise ConversionError(
                "The model must run as a TensorFlow graph of batch "
                f"{settings.batch_size}. Received: model={self._serving.name!r}, which "
                f"raised {_in_one_line(err)} Keep what is not numbers, such as "
                "vocabularies, outside the model."
            ) from err


def _has_weights(op: Op) -> bool:
    return bool(op.macs) or op.name in ("EMBEDDING_LOOKUP", "GATHER")


def _in_one_line(err: Exception) -> str:
    """Returns what an exception says, without what Keras and TensorFlow put around."""
    text = re.sub(r"\x1b\[\d*m", "", str(err))
    text = text.partition("Exception encountered when calling")[2] or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(err).__name__}: {' '.join(lines[:2])}"
