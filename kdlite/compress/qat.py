"""Quantization-aware training in Keras 3, without tensorflow-model-optimization.

`quantize_aware()` builds a student again as a Functional model that rounds, with a
`FakeQuant` wherever an integer tensor has a range of its own; `for_export()` turns the
trained result into the plain model from which the converter makes integer operations,
without calibration data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kdlite.compress.fake_quant import (
    FakeQuant,
    InFloat,
    checked_range,
)
from kdlite.compress.folded_layer import FoldedLayer
from kdlite.compress.integer_graph import IntegerGraph
from kdlite.compress.integer_layers import Range, clone, override
from kdlite.compress.recipes import Recipe
from kdlite.compress.recipes import recipe as find_recipe
from kdlite.compress.rounded_model import RoundedModel
from kdlite.compress.stand_ins import Apart, stand_in
from kdlite.compress.wide_operations import In16Bits, table_name, widest_step
from kdlite.copies import cloned

Tensor = Any

# Of weights and activations: what TFLite has kernels for.
_BITS = ((8, 8), (8, 16), (4, 8))
_RANGES = ("ema", "learned")
_SUMS = (keras.layers.Add, keras.layers.Subtract)
# TFLite's kernel brings inputs to a step of which 2^15 are twice the widest input's,
# and multiplies sums of these by less than 1.
_NARROWEST_SUM = 2**14
_FOLLOWING = ("input_step", "input_steps", "output_step", "half_away", "half_up")


def quantize_aware(
    student: keras.Model,
    recipe: str | Recipe = "int8",
    input_range: Range | Mapping[str, Range] | None = None,
    overrides: Mapping[str, str] | None = None,
    ranges: str = "ema",
) -> keras.Model:
    """Returns a trainable copy of `student` that rounds as its integer model will.

    The result is a Functional model with the student's inputs, outputs and weights;
    the student itself is neither changed nor shared. Train it for a short time, with
    `fit()` or in a `Distiller`, at a small learning rate; exporting it then needs no
    calibration data.

    Weights are int8 (with `"int4"` those of convolutions and dense layers int4) per
    output channel, symmetric; activations int8 (with `"int16x8"` int16) per tensor; a
    ReLU or ReLU6 is fused with the layer before it, and batch normalization folded into
    it (`FoldedLayer` says how; `freeze_batch_norm` fixes its statistics). A layer keeps
    its name where its output keeps its meaning: of `conv -> bn -> relu` remain `bn` and
    `relu`, and the logits of `Dense(name="p", activation="softmax")` are `p_linear`. A
    final softmax or sigmoid is left unrounded, since a loss must not see a probability
    rounded to zero; the integer model rounds it to multiples of 1/256.

    Activation ranges are measured in training. Until the first training step there are
    none, the model computes in float what the student does, and exporting it is an
    error. Only a fixed `input_range` applies from the start.

    Supported are convolutions (1D and 2D; depthwise, separable, transposed, dilated,
    grouped), Dense, BatchNormalization, the activations that TFLite has in int8,
    pooling, resizing and upsampling, sums, products and concatenations, layers that
    only move values, and models of these; docs/compression.md has the whole table.
    Sigmoid, tanh and softmax inside a model are rounded from the start, as their ranges
    are part of the operations.

    Args:
        student: A built Functional or Sequential model in float32.
        recipe: `"int8"`, `"int16x8"` or `"int4"`, by name or itself.
        input_range: `(lo, hi)` of the input's values, or a mapping from input name to
            it. `(0.0, 255.0)` suits raw pixels: the integer input then is the pixel
            itself. Without it, the smallest and largest value seen in training count;
            for an input of dtype uint8 it is `(0.0, 255.0)`.
        overrides: Layers that are left in float, by name or pattern:
            `{"head/*": "float32"}`; `"head"` alone means the layer, or all that is in
            the model of that name. Any layer with one output can be. One in a nested
            model goes by its name alone too, if no other layer fits.
        ranges: `"ema"`: an activation's range is a mean over the last batches, and a
            channel of weights is rounded over all that it has. `"learned"`: a factor on
            each, which starts at 1, is trained along; with few bits it pays to cut off
            what is rare. `FakeQuant` and `FoldedLayer` say how.

    Returns:
        The quantization-aware `keras.Model`, not compiled.

    Raises:
        TypeError: If `student` is not a Keras model.
        ValueError: If the recipe has no integer activations, or the student is
            subclassed, not built, not float32, quantization-aware already, or has a
            layer that is not supported.

    Example:
        >>> student = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Rescaling(1 / 255),
        ...     keras.layers.Conv2D(4, 3, activation="relu"),
        ...     keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(2),
        ... ])
        >>> qat = quantize_aware(student, input_range=(0.0, 255.0))
        >>> qat.compile("sgd", "mse")
        >>> images = np.full((2, 8, 8, 1), 128.0)
        >>> history = qat.fit(images, np.zeros((2, 2)), verbose=0)
        >>> ready = for_export(qat)

    Reference:
        Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877; Esser et al., 2019,
        "Learned Step Size Quantization", arXiv:1902.08153.
    """
    chosen = find_recipe(recipe)
    if not chosen.integer:
        raise ValueError(
            "Quantization-aware training needs a recipe with integer activations. "
            f"Received: recipe={chosen.name!r}. Use 'int8', or export the student "
            "directly."
        )
    bits = (chosen.weight_bits, chosen.activation_bits)
    if bits not in _BITS:
        raise ValueError(
            "Quantization-aware training has 8-bit weights with activations of 8 or 16 "
            "bits, and 4-bit weights with activations of 8, as TFLite's kernels do. "
            f"Received: recipe={chosen.name!r} with {bits[0]}-bit weights and "
            f"{bits[1]}-bit activations. Use 'int8', 'int16x8' or 'int4'."
        )
    if ranges not in _RANGES:
        raise ValueError(
            f"`ranges` must be one of {', '.join(map(repr, _RANGES))}. Received: "
            f"ranges={ranges!r}. Use 'ema'."
        )
    policy = keras.config.dtype_policy().name
    if policy != "float32":
        raise ValueError(
            "Quantization-aware training needs the global dtype policy float32. "
            f"Received: {policy!r}. Call `keras.config.set_dtype_policy('float32')`."
        )
    if not isinstance(student, keras.Model):
        raise TypeError(
            "`student` must be a Keras model. Received: "
            f"student={type(student).__name__}. Pass the `keras.Model` to quantize."
        )
    if is_quantize_aware(student):
        raise ValueError(
            "`student` is quantization-aware already. Received: "
            f"student={student.name!r}. Pass the float student."
        )
    in_float = _checked_overrides(overrides)
    graph = IntegerGraph(student, in_float, chosen.activation_bits)
    known = _input_ranges(graph.functional.inputs, input_range)
    model = RoundedModel(graph, chosen, known, ranges == "learned").build(student.name)
    if not is_quantize_aware(model):
        raise ValueError(
            "A quantization-aware model must compute or pass on integers somewhere. "
            f"Received: model {student.name!r}, whose layers are left in float or give "
            "their inputs back. Leave fewer in float, or export the student with "
            "'float32'."
        )
    return model


def _checked_overrides(overrides: Any) -> list[str]:
    if overrides is None:
        return []
    if not isinstance(overrides, Mapping):
        raise TypeError(
            "`overrides` must be a mapping from layer name or pattern. Received: "
            f"overrides={overrides!r}. Write {{'head/*': 'float32'}}."
        )
    for pattern, kind in overrides.items():
        if kind != "float32":
            raise ValueError(
                "`overrides` must leave layers in 'float32'. Received: "
                f"{kind!r} for {pattern!r}. Leave the rest to `recipe`."
            )
    return list(overrides)


def float_layers(model: keras.Model) -> tuple[str, ...]:
    """Returns the names of the layers that a quantization-aware model has in float.

    Args:
        model: Any Keras model.

    Returns:
        The names of those that `quantize_aware(overrides=...)` left, and of the outputs
        that are theirs.
    """
    return tuple(
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, InFloat)
        or (isinstance(layer, keras.layers.Identity) and _made_in_float(layer))
    )


def _made_in_float(layer: keras.Layer) -> bool:
    if not layer._inbound_nodes:
        return False  # it was left in float itself, and is called by what left it
    made_by = getattr(layer.input, "_keras_history", None)
    return made_by is not None and isinstance(made_by.operation, InFloat)


def is_quantize_aware(model: keras.Model) -> bool:
    """Whether `model` has layers that `quantize_aware()` made.

    Args:
        model: Any Keras model.

    Returns:
        True for the result of `quantize_aware()`, trained or not, and models around it;
        False for a float model and for the result of `for_export()`.

    Example:
        >>> is_quantize_aware(keras.Sequential([keras.Input((2,))]))
        False
    """
    return any(
        isinstance(layer, (FoldedLayer, In16Bits))
        or (isinstance(layer, FakeQuant) and not layer.for_converter)
        for layer in model._flatten_layers()
    )


def trained_bits(model: keras.Model) -> tuple[int, int]:
    """Returns the bits of weights and activations that a model was made for.

    Args:
        model: A model from `quantize_aware()`.

    Returns:
        The fewest bits of a kernel, and those of an activation.

    Raises:
        ValueError: If the model is not quantization-aware.

    Example:
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> trained_bits(quantize_aware(student, "int16x8"))
        (8, 16)
    """
    _require_quantize_aware(model)
    found = list(model._flatten_layers())
    weights = [layer.bits for layer in found if isinstance(layer, FoldedLayer)]
    activations = [layer.bits for layer in found if isinstance(layer, FakeQuant)]
    return min(weights, default=8), max(activations, default=8)


def freeze_batch_norm(model: keras.Model) -> None:
    """Makes training use the moving statistics of batch normalization, from now on.

    Gamma and beta go on learning. Good for the last part of quantization-aware
    training, and for small batches: training then computes just what the exported model
    will. Call `compile()` after it.

    Args:
        model: A model from `quantize_aware()`; changed in place.

    Raises:
        ValueError: If the model is not quantization-aware.

    Example:
        >>> student = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(2),
        ...     keras.layers.BatchNormalization(),
        ... ])
        >>> freeze_batch_norm(quantize_aware(student))
    """
    _require_quantize_aware(model)
    for layer in model._flatten_layers():
        if isinstance(layer, FoldedLayer):
            layer.frozen_statistics = True


def for_export(model: keras.Model) -> keras.Model:
    """Returns the plain model that the converter turns into integer operations.

    It computes what `model` computes in inference: every `FoldedLayer` has become one
    Keras layer with a bias, its kernel on the integer levels and without fake
    quantization (of which the converter finds the same levels, per channel, and which
    it refuses on the kernel of a Dense), and every range is a constant. Inputs are
    float32. `model` stays as it is.

    Args:
        model: A trained model from `quantize_aware()`.

    Returns:
        A Functional model with the same inputs and outputs.

    Raises:
        ValueError: If the model is not quantization-aware, a range was never measured
            because it was not trained, or with 16-bit activations a bias or the inputs
            of a table are too large for TFLite's kernel.
    """
    _require_quantize_aware(model)
    unset = [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, FakeQuant) and not layer.has_range
    ]
    if unset:
        raise ValueError(
            "Every activation range must have been measured in training. Received: "
            f"model={model.name!r} with {len(unset)} ranges not set, the first of "
            f"{unset[0]!r}. Train it with `fit()` for one batch at least."
        )
    weights: list[tuple[keras.Layer, list[np.ndarray]]] = []
    bits = trained_bits(model)[1]
    if bits == 16:
        _require_kernels(model)

    def plain(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, FakeQuant):
            return layer.frozen()
        if standing := stand_in(layer, bits):
            return standing
        if isinstance(layer, FoldedLayer):
            copy, values = layer.plain(bits)
        elif isinstance(layer, InFloat):
            inner = clone(layer.layer, name=layer.name)
            copy, values = _apart(layer, inner), layer.get_weights()
        elif isinstance(layer, In16Bits):
            copy, values = clone(layer.layer, name=layer.name), layer.get_weights()
        else:
            copy, values = clone(layer, name=layer.name), layer.get_weights()
        weights.append((copy, values))
        return copy

    inputs = keras.tree.map_structure(
        lambda x: keras.Input(
            batch_shape=x.shape,
            dtype="int32" if x.dtype == "int32" else "float32",
            name=x.name,
        ),
        model.input,
    )

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Tensor:
        # What follows the integer operations closer is not for the converter.
        return layer(*args, **{k: v for k, v in kwargs.items() if k not in _FOLLOWING})

    exported = cloned(
        model,
        input_tensors=inputs,
        clone_function=plain,
        call_function=call,
        recursive=True,
    )
    for copy, values in weights:
        copy.set_weights(values)
    return exported


def _apart(layer: InFloat, inner: keras.Layer) -> Apart:
    makers = [
        x._keras_history.operation
        for node in layer._inbound_nodes
        for x in node.input_tensors
    ]
    users = [node.operation for node in layer._outbound_nodes]
    return Apart(
        inner,
        before=not all(isinstance(maker, InFloat) for maker in makers),
        behind=any(isinstance(user, FakeQuant) for user in users),
        name=layer.name,
    )


def _require_quantize_aware(model: keras.Model) -> None:
    if not is_quantize_aware(model):
        raise ValueError(
            "`model` must be quantization-aware. Received: "
            f"model={model.name!r}. Make it with `kdlite.quantize_aware(student)`."
        )


def _require_kernels(model: keras.Model) -> None:
    """Raises ValueError for what the kernels of 16 bits would cut off."""
    for layer in model._flatten_layers():
        if isinstance(layer, FoldedLayer):
            name = layer.layer.name
            for step in _input_steps(layer):
                if channels := layer.cut_channels(step):
                    raise ValueError(
                        "With 16-bit activations a bias has 32 bits, in steps of the "
                        "weights times those of the input. Received: channels "
                        f"{channels[:8]} of layer {name!r}, with weights that are too "
                        "small beside it, or 0. Take them out, train towards a mean of "
                        "0 and add that behind the model, leave the layer in float, "
                        f"{override(name)}, or use recipe='int8'."
                    )
        elif isinstance(layer, In16Bits) and (widest := widest_step(layer.layer)):
            for step in _input_steps(layer):
                if step > widest:
                    limit = f"{widest * 2**15:,.0f}"
                    raise ValueError(
                        f"With 16-bit activations a {table_name(layer.layer)} takes "
                        f"inputs within -{limit}..{limit}. Received: layer "
                        f"{layer.name.removesuffix('_float')!r} with inputs as far as "
                        f"{step * 2**15:,.0f}. Scale them down, leave the layer in "
                        "float with overrides, or use recipe='int8'."
                    )
        elif isinstance(layer, In16Bits) and isinstance(layer.layer, _SUMS):
            widest = max(_input_steps(layer))
            step = _step(layer._inbound_nodes[0].arguments.kwargs["output_step"])
            if widest >= _NARROWEST_SUM * step:
                raise ValueError(
                    "With 16-bit activations the inputs of a sum or difference are "
                    f"less than {_NARROWEST_SUM:,} times as wide as it. Received: "
                    f"layer {layer.name.removesuffix('_float')!r} with inputs as far "
                    f"as {widest * 2**15:.3g} and results within {step * 2**15:.3g}. "
                    "Take it out if it is always 0, leave the layer in float with "
                    "overrides, or use recipe='int8'."
                )


def _input_steps(layer: keras.Layer) -> list[float]:
    """Returns how wide a step is of the inputs of each call of a layer."""
    found = []
    for node in layer._inbound_nodes:
        given = node.arguments.kwargs
        steps = given.get("input_steps") or [given.get("input_step")]
        found += [_step(step) for step in steps if step is not None]
    return found


def _step(symbolic: keras.KerasTensor) -> float:
    """Returns the step that a `FakeQuant` has given a layer in a model."""
    quantizer = symbolic._keras_history.operation
    return float(quantizer(keras.ops.zeros(()), step=True))


def _input_ranges(
    inputs: list[Tensor], given: Range | Mapping[str, Range] | None
) -> list[Range | None]:
    by_name: dict[str, Any] = {
        x.name: (0.0, 255.0) for x in inputs if x.dtype == "uint8"
    }
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - {x.name for x in inputs})
        if unknown:
            raise ValueError(
                "`input_range` names an input the student does not have. Received: "
                f"{unknown[0]!r}. Inputs: {', '.join(repr(x.name) for x in inputs)}."
            )
        by_name.update(given)
    elif given is not None:
        by_name.update({x.name: given for x in inputs})
    return [
        checked_range(by_name[x.name]) if x.name in by_name else None for x in inputs
    ]
