"""A Keras model as a phone is to see it: named inputs and outputs, float32, raw pixels.

Between any Keras model and its `.tflite` lie a few differences that must hold in one
place only, since the file is converted from them and checked against them: outputs by
name (by position the converter scrambles them), mixed precision undone, normalisation
inside.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.compress.fake_quant import FakeQuant
from kdlite.compress.graph import CallGraph
from kdlite.compress.qat import for_export, is_quantize_aware, trained_bits
from kdlite.compress.rounded_results import Result, rounded_results
from kdlite.compress.sums import astray, own_sum
from kdlite.copies import cloned, layer_again, settle
from kdlite.lite._converter import ConversionError
from kdlite.lite.calibration import InputSpec
from kdlite.lite.input_types import HALF, file_dtype, is_graph
from kdlite.lite.layer_names import layer_of
from kdlite.lite.names import check_names, graph_names, output_names

Tensor = Any
Range = tuple[float, float]


def serve(
    model: keras.Model,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    input_range: Range | None = None,
) -> ServingModel:
    """Makes the model that a file is converted from and checked against.

    Args:
        model: Any built Keras model, for one input if it is subclassed.
        mean: What the model was trained with: its images were `(pixels - mean) / std`.
            One number, or one a channel. None: it takes pixels as they are. This and
            the next two are of the image inputs (four axes, the last of length 1 or 3),
            or else of the only input.
        std: Goes with `mean`.
        input_range: The least and the greatest value that these inputs take. None:
            unknown, or 0 to 255 for an input of dtype uint8.

    Returns:
        The model, in float32 and with the normalisation inside.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built, `quantize()` has been called on it, or `mean`,
            `std` or `input_range` do not fit it.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((1,), name="x"), keras.layers.ReLU(name="y")]
        ... )
        >>> float(serve(model, mean=2.0, std=4.0)(np.array([[10.0]]))["y"][0, 0])
        2.0
    """
    _check_model(model)
    specs = _input_specs(model)
    if getattr(model, "outputs", None):
        _by_name(model, _outputs_of(model))
    images = _images(specs)
    if not images and (mean, std, input_range) != (None, None, None):
        raise ValueError(
            "`mean`, `std` and `input_range` need an image input, or a single input. "
            f"Received: inputs {', '.join(repr(spec.name) for spec in specs)}. Leave "
            "them out, and put the normalisation into the model."
        )
    affine = _affine(mean, std, images)
    if input_range is not None:
        ranged = _checked_range(input_range)
        specs = [replace(s, low_high=ranged) if s in images else s for s in specs]
    return ServingModel(
        model if is_quantize_aware(model) else as_float32(model),
        tuple(specs),
        {spec.name: affine for spec in images} if affine is not None else {},
    )


class ServingModel(keras.Model):
    """A model that takes what the file takes, and returns its outputs by name.

        outputs[name] = model(inputs * scale + offset)[name]

    Made by `serve()`.

    Args:
        model: The model inside.
        input_specs: What its inputs take here.
        affine: By input name `scale` and `offset`.
        rounding: By input name the layers that round the input, and its product with
            the scale.

    Call arguments:
        inputs: Mapping from input name to array; a list, or for one input an array,
            will do as well.
    """

    def __init__(
        self,
        model: keras.Model,
        input_specs: tuple[InputSpec, ...],
        affine: Mapping[str, tuple[Tensor, Tensor]],
        rounding: Mapping[str, list[FakeQuant]] | None = None,
    ) -> None:
        super().__init__(name=model.name, dtype="float32")
        self.model = model
        self.input_specs = input_specs
        self._affine = dict(affine)
        self._rounding = dict(rounding or {})
        self.built = True

    @property
    def image_range(self) -> Range | None:
        """The range of the image inputs, or of the only input; None if not known."""
        ranges = {spec.low_high for spec in _images(self.input_specs)}
        return ranges.pop() if len(ranges) == 1 else None

    def with_ranges(self, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
        """Returns the inputs with the values that training met, where none are set."""
        if not self.quantize_aware:
            return tuple(specs)

        def met(name: str) -> Range | None:
            return self._trained_range(name, FakeQuant.value_range)

        return tuple(
            replace(spec, low_high=spec.low_high or met(spec.name)) for spec in specs
        )

    @property
    def quantize_aware(self) -> bool:
        """Whether ranges are known from training."""
        return is_quantize_aware(self.model)

    def call(self, inputs: Tensor, training: bool = False) -> dict[str, Tensor]:
        """Normalises the inputs and runs the model in inference mode."""
        flat = self._inside(inputs)
        structure = flat[0]
        if getattr(self.model, "inputs", None):
            structure = keras.tree.pack_sequence_as(_inputs_of(self.model), flat)
        return _by_name(self.model, self.model(structure, training=False))

    def _inside(self, inputs: Tensor) -> list[Tensor]:
        """Returns what the model inside is called on."""
        if isinstance(inputs, Mapping):
            inputs = [inputs[spec.name] for spec in self.input_specs]
        elif not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
        return [
            self._normalised(
                spec.name, keras.ops.convert_to_tensor(x, dtype=spec.dtype)
            )
            for spec, x in zip(self.input_specs, inputs, strict=True)
        ]

    def layer_results(self, inputs: Tensor) -> list[Result]:
        """Returns what each layer of a quantization-aware model gives, by its name."""
        return rounded_results(self.model, self._inside(inputs))

    def _normalised(self, name: str, x: Tensor) -> Tensor:
        rounding = self._rounding.get(name, [])
        for layer in rounding[:1]:
            x = layer(x)
        if name in self._affine:
            scale, offset = self._affine[name]
            x = x * scale
            for layer in rounding[1:]:
                x = layer(x)
            x = x + offset
        return x

    def for_conversion(self, round_inputs: bool = True) -> ServingModel:
        """Returns the model that the converter gets.

        Args:
            round_inputs: Whether inputs whose range is known are rounded to 8 bits.

        It computes the same, but for rounding: a quantization-aware model has become
        the one with plain kernels, and inputs are rounded to the levels of their range
        where that is known, so that 8-bit pixels are the integer input as they are.
        """
        rounding = {}
        inside = graph_names(spec.name for spec in self.input_specs)
        for spec in self.input_specs:
            low_high, name = spec.low_high, inside[spec.name]
            if not self.quantize_aware:
                if round_inputs and low_high is not None and spec.dtype == "float32":
                    rounding[spec.name] = [_fake_quant(low_high, f"{name}_rounded")]
            elif spec.name in self._affine:
                # The model rounds its input, which is behind the normalisation: that
                # would be computed in float, were it not rounded as well.
                levels = self._trained_range(spec.name, lambda x, _: x.level_range)
                low_high = low_high or levels or (0.0, 1.0)
                scaled = np.multiply.outer(low_high, self._affine[spec.name][0])
                bits = trained_bits(self.model)[1]
                rounding[spec.name] = [
                    _fake_quant(low_high, f"{name}_rounded", bits),
                    _fake_quant(
                        (float(scaled.min()), float(scaled.max())),
                        f"{name}_scaled_rounded",
                        bits,
                    ),
                ]
        return ServingModel(
            for_export(self.model) if self.quantize_aware else self.model,
            self.input_specs,
            self._affine,
            rounding,
        )

    def _trained_range(
        self, name: str, of: Callable[[FakeQuant, int | None], Range]
    ) -> Range | None:
        """What training found of an input, as it is before normalisation."""
        graph = CallGraph(self.model, "An integer file")
        places = dict(zip(_input_names(self.model), graph.inputs, strict=True))
        for call in graph.users(places[name]):
            if isinstance(call.operation, FakeQuant):
                site = call.arguments.kwargs.get("site")
                scale, offset = self._affine.get(name, (np.ones(1), np.zeros(1)))
                raw = np.subtract.outer(of(call.operation, site), offset) / scale
                return float(raw.min()), float(raw.max())
        return None

    def save_for_conversion(
        self,
        folder: str | os.PathLike[str],
        specs: Sequence[InputSpec],
        batch_size: int = 1,
    ) -> dict[str, tuple[int, ...]]:
        """Writes a SavedModel with one signature of fixed batch, by `graph_names`.

        Args:
            folder: Where to.
            specs: The inputs; lengths that are not known may change in the file.
            batch_size: How many samples a run takes.

        Returns:
            By output name the shape of one sample's output.

        Raises:
            ConversionError: If a layer's own code has a sum that Keras does otherwise
                in this batch than in all.
        """
        # Not by `self(inputs)`, which would put its name before every tensor's. And not
        # kept in the module, where saving would trace it again.
        inside = graph_names(spec.name for spec in specs)
        shapes: dict[str, tuple[int, ...]] = {}

        def by_graph_name(**inputs: Tensor) -> dict[str, Tensor]:
            outputs = self.call({name: inputs[key] for name, key in inside.items()})
            shapes.update((name, tuple(x.shape[1:])) for name, x in outputs.items())
            keys = graph_names(outputs)
            return {keys[name]: x for name, x in outputs.items()}

        run = tf.function(by_graph_name).get_concrete_function(
            **{
                inside[spec.name]: tf.TensorSpec(
                    (batch_size, *spec.shape), spec.dtype, name=inside[spec.name]
                )
                for spec in specs
            }
        )
        self._check_sums(run.graph)
        module = tf.Module()
        # All that the graph reads, wherever the model keeps it.
        module.state = list(run.graph.variables)
        with _no_notices():
            tf.saved_model.save(module, os.fspath(folder), signatures=run)
        return shapes

    def _check_sums(self, graph: Any) -> None:
        """Raises ConversionError for sums that batches of other sizes have not."""
        captured = {x.name for x in graph.internal_captures}
        given = [x for x in graph.inputs if x.name not in captured]
        if found := astray(graph, given):
            layer = layer_of(found[0], self.model)
            raise ConversionError(
                "A sum in a file must be along the axes of its tensors, and of a batch "
                "that is known Keras takes a tensor of one longer axis for a bias, "
                "along the last. Received: "
                + (f"layer {layer!r}" if layer else f"{found[0]!r}")
                + f" of model={self.name!r}, which calls keras.ops.add or "
                "keras.layers.Add. Fix: write `a + b` there, or build the model as "
                "keras.Model(inputs, outputs), which is exported with sums that do."
            )


@contextlib.contextmanager
def _no_notices() -> Iterator[None]:
    """In notebooks TensorFlow tells of each folder it writes: not of a passing one."""
    told = tf.get_logger()
    level = told.level
    told.setLevel(max(told.getEffectiveLevel(), logging.WARNING))
    try:
        yield
    finally:
        told.setLevel(level)


def as_float32(model: keras.Model) -> keras.Model:
    """Returns a float32 clone of a model in mixed precision; others as they are.

    Inputs of dtype uint8 become float32 too, of the same values, where the model makes
    floats of them: a cast would be left to float operations. And sums are along their
    own axes, whatever the batch.

    Args:
        model: Any built model.

    Returns:
        A model of the same architecture, names and weights; `model` stays as it is.

    Raises:
        ValueError: If the model is subclassed and cannot be made again in float32.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((2,)), keras.layers.Dense(1, dtype="mixed_float16")]
        ... )
        >>> as_float32(model).compute_dtype
        'float32'
    """
    widened = [
        x
        for x in getattr(model, "inputs", None) or []
        if file_dtype(model, x) != x.dtype
    ]
    half, graph = _half_layers(model), is_graph(model)
    if not widened and not half and not (graph and _has_mistakable_sum(model)):
        return model
    if not graph:
        return _subclass_as_float32(model)
    pairs: list[tuple[keras.Layer, keras.Layer]] = []

    @functools.cache
    def plain(layer: keras.Operation) -> keras.Operation:
        if isinstance(layer, keras.Model) and is_graph(layer):
            return cloned(layer, clone_function=plain)
        clone = layer_again(layer, _float32_config, own_sum(layer))
        # Of `keras.ops` and operators, such as `a + b`, there is nothing to copy.
        if isinstance(layer, keras.Layer):
            pairs.append((clone, layer))
        return clone

    inputs = keras.tree.map_structure(
        lambda x: keras.Input(
            batch_shape=x.shape, dtype=file_dtype(model, x), name=x.name
        ),
        _inputs_of(model),
    )
    clone = cloned(model, input_tensors=inputs, clone_function=plain)
    for new, old in pairs:
        new.set_weights(old.get_weights())
    settle(clone)
    return clone


def _has_mistakable_sum(model: keras.Model) -> bool:
    return any(
        own_sum(op) is not None
        for layer in model._flatten_layers()
        for op in getattr(layer, "operations", ())
    )


def _subclass_as_float32(model: keras.Model) -> keras.Model:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        clone = type(model).from_config(_float32_config(model.get_config()))
        clone.build_from_config(model.get_build_config())
        clone.set_weights(model.get_weights())
    except Exception as err:
        reason = str(err).strip().partition("\n")[0]
        raise ValueError(
            "A subclassed model in mixed precision must be possible to make again in "
            f"float32, by `get_config`. Received: model={model.name!r} ({reason}). "
            "Build it with the policy float32 and copy the weights: "
            "new.set_weights(model.get_weights())."
        ) from err
    finally:
        keras.config.set_dtype_policy(policy)
    if left := _half_layers(clone):
        raise ValueError(
            "A subclassed model in mixed precision must take its dtype from the global "
            f"policy. Received: model={model.name!r}, where layer {left[0]!r} sets its "
            "own. Build it in float32 and copy the weights."
        )
    return clone


def _half_layers(model: keras.Model) -> list[str]:
    """Returns the names of layers and operations that are not of float32."""
    found = []
    for layer in model._flatten_layers():
        if layer.compute_dtype in HALF or layer.variable_dtype in HALF:
            found.append(layer.name)
        for op in getattr(layer, "operations", ()):
            made = [x.dtype for node in op._inbound_nodes for x in node.outputs]
            if not isinstance(op, keras.Layer) and not set(HALF).isdisjoint(made):
                found.append(op.name)
    return found


def _float32_config(config: Any) -> Any:
    """Returns a layer's configuration with float32 for any other float policy."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(_float32_config, config))
    if not isinstance(config, dict):
        return config
    return {
        key: "float32" if key == "dtype" and _is_half(value) else _float32_config(value)
        for key, value in config.items()
    }


def _is_half(policy: Any) -> bool:
    if isinstance(policy, dict):
        policy = policy.get("config", {}).get("name")
    return isinstance(policy, str) and policy.removeprefix("mixed_") in HALF


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a Keras model. Received: "
            f"model={type(model).__name__}. Pass the keras.Model; load a file with "
            "keras.models.load_model."
        )
    quantized = [
        layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "quantization_mode", None)
    ]
    if quantized:
        raise ValueError(
            "`model` must not be changed by Keras's `quantize()`, whose layers the "
            f"converter computes in float, or wrongly. Received: {model.name!r}, with "
            f"layer {quantized[0]!r}. Pass the model before it, and "
            "quantization='int8'."
        )


def _input_specs(model: keras.Model) -> list[InputSpec]:
    pixels = set()
    if getattr(model, "inputs", None):
        names = _input_names(model)
        check_names("inputs", names)
        pixels = {
            name
            for name, x in zip(names, model.inputs, strict=True)
            if x.dtype == "uint8"
        }
        listed = [
            (name, tuple(x.shape[1:]), file_dtype(model, x))
            for name, x in zip(names, model.inputs, strict=True)
        ]
    else:
        shape: Any = (model.get_build_config() or {}).get("input_shape")
        if not model.built or not _is_shape(shape):
            raise ValueError(
                "`model` must be built, and have one input unless it is Functional. "
                f"Received: model={model.name!r}, whose input shapes are not known. "
                "Call it on a batch of data, or give it a keras.Input."
            )
        listed = [("x", tuple(shape[1:]), "float32")]
    for name, _, dtype in listed:
        if dtype == "string":
            raise ValueError(
                f"Inputs must be numbers. Received: input {name!r} of dtype string, in "
                f"model {model.name!r}. Keep the vocabulary outside the model, and "
                "give it the ids."
            )
    vocabularies = _vocabularies(model)
    return [
        InputSpec(name, shape, dtype, (0.0, 255.0), whole=True)
        if name in pixels
        else InputSpec(name, shape, dtype, vocabulary=vocabularies.get(name))
        for name, shape, dtype in listed
    ]


def _vocabularies(model: keras.Model) -> dict[str, tuple[str, int]]:
    """Returns by input the smallest Embedding that takes it: its name and rows."""
    try:
        graph = CallGraph(model, "Looking for embeddings")
    except ValueError:
        return {}  # a `call` of one's own hides them
    found = {}
    for name, x in zip(_input_names(model), graph.inputs, strict=True):
        takers = [
            getattr(call.operation, "layer", call.operation) for call in graph.users(x)
        ]
        sizes = [
            (taker.input_dim, taker.name)
            for taker in takers
            if isinstance(taker, keras.layers.Embedding)
        ]
        if sizes:
            rows, embedding = min(sizes)
            found[name] = (embedding, rows)
    return found


def _input_names(model: keras.Model) -> list[str]:
    """Returns the names of the inputs as `fit()` and `predict()` take them.

    Of a mapping these are its keys, whatever the tensors in it are called.
    """
    return [
        path[0] if len(path) == 1 and isinstance(path[0], str) else x.name
        for path, x in keras.tree.flatten_with_path(_inputs_of(model))
    ]


def _outputs_of(model: keras.Model) -> Any:
    return model.outputs[0] if isinstance(model, keras.Sequential) else model.output


def _inputs_of(model: keras.Model) -> Any:
    """Returns the structure of inputs; a Sequential has none until it is called."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _images(specs: Sequence[InputSpec]) -> list[InputSpec]:
    """The inputs that preprocessing is of: the same as in the file's metadata."""
    images = [s for s in specs if len(s.shape) == 3 and s.shape[-1] in (1, 3)]
    return images or (list(specs) if len(specs) == 1 else [])


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, (list, tuple)) and all(
        n is None or isinstance(n, int) for n in shape
    )


def _checked_range(input_range: Any) -> Range:
    try:
        low, high = (float(bound) for bound in input_range)
        valid = -np.inf < low < high < np.inf
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "`input_range` must be two finite numbers, the lower first. Received: "
            f"input_range={input_range!r}. Give for example (0.0, 255.0)."
        )
    return low, high


def _affine(
    mean: Any, std: Any, inputs: Sequence[InputSpec]
) -> tuple[Tensor, Tensor] | None:
    """Returns `scale` and `offset` for which `x * scale + offset` normalises."""
    if (mean is None) != (std is None):
        raise ValueError(
            f"`mean` and `std` go together. Received: mean={mean!r}, std={std!r}. Give "
            "both, or none."
        )
    if mean is None:
        return None
    mean, std = (
        _per_channel(name, given, inputs)
        for name, given in (("mean", mean), ("std", std))
    )
    return (1.0 / std).astype("float32"), (-mean / std).astype("float32")


def _per_channel(name: str, given: Any, inputs: Sequence[InputSpec]) -> Tensor:
    try:
        array = np.atleast_1d(np.asarray(given, np.float64))
    except (TypeError, ValueError):
        array = np.zeros((0, 0))
    channels = {spec.shape[-1] if spec.shape else 1 for spec in inputs}
    valid = array.ndim == 1 and np.isfinite(array).all() and array.size
    valid = valid and (len(array) == 1 or channels == {len(array)})
    if not valid or (name == "std" and (array <= 0).any()):
        raise ValueError(
            f"`{name}` must be a finite number{' above 0' if name == 'std' else ''}, "
            f"or one for each channel. Received: {name}={given!r} for input "
            f"{inputs[0].name!r} of shape {inputs[0].shape}. Give what the model was "
            "trained with."
        )
    return array


def _fake_quant(low_high: Range, name: str, bits: int = 8) -> FakeQuant:
    # Named, so that the bytes of the file do not depend on what ran before.
    return FakeQuant(
        bits=bits, sites=0, fixed_range=low_high, for_converter=True, name=name
    )


def _by_name(model: keras.Model, outputs: Any) -> dict[str, Tensor]:
    """Returns the outputs under unique names: a layer's, or the path in a structure."""
    if isinstance(model, keras.Sequential):
        layers = [model.layers[-1].name]
    else:
        layers = getattr(model, "output_names", None) or []
    paths, tensors = [], []
    for index, (path, tensor) in enumerate(keras.tree.flatten_with_path(outputs)):
        if not any(isinstance(key, str) for key in path):
            path = (layers[index] if layers else f"output_{index}",)
        paths.append(tuple(map(str, path)))
        tensors.append(tensor)
    names = output_names(paths)
    check_names("outputs", names)
    return dict(zip(names, tensors, strict=True))
