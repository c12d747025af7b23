"""Heads: what an output of a model is, and how it is read as a loss needs it.

A loss on outputs says what it `needs`: class logits (one of several classes),
independent logits (any of several labels), or the values themselves. The graph of a
model says what its outputs are. Where one ends in a softmax or a sigmoid, the logits
are one step before it: softening what has been squashed once more would flatten the
teacher's message to almost nothing. A head that does not fit the loss is an error
before the first step.

>>> import keras
>>> tags = keras.Sequential(
...     [keras.Input((4,)), keras.layers.Dense(3, activation="sigmoid")]
... )
>>> find_head(tags, needs="independent logits").outputs
'sigmoid'
>>> find_head(tags, needs="class logits")
Traceback (most recent call last):
    ...
ValueError: A loss over classes needs class logits or a softmax. ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import layers, ops

Tensor = Any
#: What an output of a model is: real numbers of either sign; probabilities behind a
#: softmax over the last axis; independent probabilities, each behind a sigmoid; or
#: numbers of any other kind.
Outputs = Literal["logits", "probabilities", "sigmoid", "values"]
#: What a loss is over.
Needs = Literal["class logits", "independent logits", "values"]

# Layers whose output is a real number of either sign when they have no activation.
_REAL_VALUED = (
    layers.Dense,
    layers.EinsumDense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
)
# Layers that average or pass on: logits stay logits, probabilities probabilities.
_AVERAGING = (
    layers.Identity,
    layers.Dropout,
    layers.ActivityRegularization,
    layers.Average,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
)
# Layers that move entries: as above, for a softmax as long as its axis stays the last.
_MOVING = (layers.Reshape, layers.Flatten)
# Layers and operations of `keras.ops` after which logits are still logits.
_LOGIT_ARITHMETIC = (
    layers.Add,
    layers.Subtract,
    layers.Concatenate,
    layers.Rescaling,
    layers.Permute,
)
_LOGIT_OPS = frozenset(
    "Add Subtract Negative Mean Average Cast Reshape Squeeze Concatenate".split()
)
_LOGIT_SCALING_OPS = frozenset({"Multiply", "Divide", "TrueDivide"})

# Layers of quantization-aware training, by their registered names: this package does
# not import the one they are in.
_FAKE_QUANT = "kdlite>FakeQuant"
_FOLDED = "kdlite>FoldedLayer"

_FITTING: dict[str, tuple[str, ...]] = {
    "class logits": ("logits", "probabilities"),
    "independent logits": ("logits", "sigmoid"),
    "values": ("logits", "sigmoid", "values"),
    "logits": ("logits", "probabilities", "sigmoid"),  # of whatever has them
}
_RULES = {
    "class logits": "A loss over classes needs class logits or a softmax",
    "independent logits": "A loss over independent labels needs logits or sigmoids",
    "values": "A loss over values needs numbers that are no class probabilities",
    "logits": "Soft labels of classes need logits, a softmax or sigmoids",
}
_ENDS = {
    "logits": "which ends in logits",
    "probabilities": "which ends in a softmax",
    "sigmoid": "which ends in a sigmoid",
    "values": "which returns values",
}
_LOSS_FOR = {
    "logits": "leave the declaration out",
    "probabilities": "kdlite.losses.SoftTargets, for one of several classes",
    "sigmoid": "kdlite.losses.MultiLabelSoftTargets, for independent labels, or a head "
    "of one logit a class with a softmax or none",
    "values": "kdlite.losses.Regression, for numbers",
}


class _Opaque(Exception):
    """The graph does not say what the output is; the text says where it ended."""


class _Unreadable(Exception):
    """The output is known, and its logits are lost or not where they must be."""


@dataclasses.dataclass(frozen=True)
class Head:
    """One output of a model, read as a loss needs it.

    Attributes:
        described: The output and its model, for messages.
        outputs: What the output is.
        needs: What it is read as; `None` for the logits of whatever has them.
    """

    described: str
    outputs: Outputs
    needs: Needs | None = "class logits"

    def read(self, output: Tensor) -> Tensor:
        """Returns what the loss needs behind an output, without running the model.

        Args:
            output: What the model returned, that very tensor: Keras keeps the input of
                a softmax and of a sigmoid on its output. Without it the logits are
                `log(p)`, or `log(p / (1 - p))` for a sigmoid, as far as float32 goes.

        Returns:
            float32 logits or values of the shape of the output, with its mask.

        Raises:
            ValueError: If it is no tensor, or probabilities in half precision whose
                logits are lost.
        """
        if not ops.is_tensor(output) and not keras.backend.is_keras_tensor(output):
            raise ValueError(
                f"A loss on outputs compares one tensor with another. Received: "
                f"{self.described}, which returns {type(output).__name__}. Fix: name "
                f"the outputs, or give a model that returns one alone."
            )
        before = getattr(output, "_keras_logits", None)
        if self.needs == "values" or self.outputs in ("logits", "values"):
            read = ops.cast(output, "float32")
        elif before is not None:
            read = ops.cast(before, "float32")
        else:
            read = self._unsquashed(output)
        mask = getattr(output, "_keras_mask", None)
        if mask is not None:
            read._keras_mask = mask
        return read

    def _unsquashed(self, probabilities: Tensor) -> Tensor:
        dtype = keras.backend.standardize_dtype(probabilities.dtype)
        if dtype not in ("float32", "float64"):
            # Half precision has lost every probability below 6e-8, and with it what
            # the teacher knows about the unlikely classes.
            raise ValueError(
                f"Logits cannot be recovered from half-precision probabilities. "
                f"Received: {self.described} returns {dtype}. Fix: give its last layer "
                f"dtype='float32', or let the model return logits."
            )
        float32 = np.finfo("float32")
        p = ops.maximum(ops.cast(probabilities, "float32"), float(float32.tiny))
        if self.outputs == "probabilities":
            return ops.log(p)
        return ops.log(p) - ops.log1p(-ops.minimum(p, 1.0 - float(float32.epsneg)))


def find_head(
    model: keras.Model,
    declared: Outputs | None = None,
    *,
    needs: Needs | None = "class logits",
    role: str = "model",
    index: int | None = None,
    name: str | None = None,
    loss: str | None = None,
) -> Head:
    """Returns one output of a model, read as a loss needs it.

    Args:
        model: The model.
        declared: What the output is, where the graph does not say; `None` to find out.
        needs: What it is to be read as; `None` for the logits of whatever has them.
        role: How error messages call the model: the prefix of the argument that
            declares its outputs.
        index: Which of several outputs, in the order of `keras.tree.flatten`.
        name: How error messages call the output, where there are several.
        loss: How error messages call the loss.

    Returns:
        The head.

    Raises:
        ValueError: If the output does not fit, cannot be read, or if it cannot be
            known what it is.
    """
    if declared is not None and declared not in get_args(Outputs):
        raise ValueError(
            f"`{role}_outputs` must be 'logits', 'probabilities', 'sigmoid', 'values' "
            f"or None. Received: {role}_outputs={declared!r}."
        )
    described = f"{role} '{model.name}'"
    if name is not None:
        described = f"output '{name}' of {described}"
    received = f"{loss} for {described}" if loss else described
    found = _declared_or_found(model, index, declared, needs, role, received)
    if found not in _FITTING[needs or "logits"]:
        raise ValueError(
            f"{_RULES[needs or 'logits']}. Received: {received}, {_ENDS[found]}. Fix: "
            f"{_LOSS_FOR[found]}."
        )
    return Head(described, found, needs)


def _declared_or_found(
    model: keras.Model,
    index: int | None,
    declared: Outputs | None,
    needs: Needs | None,
    role: str,
    received: str,
) -> Outputs:
    try:
        found = _outputs_of_model(model, index)
    except _Unreadable as reason:
        if needs == "values":
            return "values"
        raise ValueError(
            f"The logits of the {role} must be at hand. Received: {received}, {reason}."
        ) from None
    except _Opaque as reason:
        if declared is not None:
            return declared
        if needs == "values":
            return "values"
        fitting = _FITTING[needs or "logits"]
        raise ValueError(
            f"It must be known whether the {role} returns {' or '.join(fitting)}. "
            f"Received: {received}, {reason}. Fix: say it, with {role}_outputs="
            f"{' or '.join(repr(kind) for kind in fitting)}."
        ) from None
    if declared in (None, found):
        return found
    if declared == "values" and found != "probabilities":
        return declared  # numbers of either sign, or between 0 and 1
    raise ValueError(
        f"The declaration must agree with the model. Received: {role}_outputs="
        f"{declared!r}, but the graph of '{model.name}' ends in {found}. Fix: leave "
        f"the declaration out."
    )


def _outputs_of_model(model: keras.Model, index: int | None = None) -> Outputs:
    # A class with a `call` of its own does what that says, whatever graph it carries.
    if not type(model).call.__module__.startswith("keras."):
        if hasattr(model, "returns"):  # as those of kdlite.teachers say
            return model.returns
        raise _Opaque(f"whose class {type(model).__name__} has its own call()")
    if isinstance(model, keras.Sequential) and not model.built:
        return _outputs_of_stack(model.layers)
    outputs = keras.tree.flatten(model.outputs)
    if index is None and len(outputs) > 1:
        names = ", ".join(repr(name) for name in model.output_names)
        raise _Unreadable(
            f"which has {len(outputs)} outputs ({names}). Fix: give a model with the "
            f"class output alone, keras.Model(model.inputs, model.outputs[i])"
        )
    return _outputs_of_tensor(outputs[index or 0])


def _outputs_of_stack(stack: list[layers.Layer]) -> Outputs:
    if not stack:
        raise _Opaque("which has no layers before its output")
    return _outputs_of_operation(
        stack[-1], lambda: [_outputs_of_stack(stack[:-1])], None
    )


def _outputs_of_tensor(tensor: Tensor) -> Outputs:
    operation, node_index, tensor_index = tensor._keras_history
    if isinstance(operation, keras.Model):
        return _outputs_of_model(operation, tensor_index)
    node = operation._inbound_nodes[node_index]

    def sources() -> list[Outputs]:
        return [_outputs_of_tensor(source) for source in node.input_tensors]

    return _outputs_of_operation(operation, sources, node)


def _outputs_of_operation(
    operation: Any, sources: Callable[[], list[Outputs]], node: Any
) -> Outputs:
    if isinstance(operation, keras.Model):
        return _outputs_of_model(operation)
    if isinstance(operation, layers.Wrapper):
        return _outputs_of_operation(operation.layer, sources, node)
    if isinstance(operation, layers.Softmax):
        return _softmax_over(operation.axis, operation)
    if isinstance(operation, (*_AVERAGING, *_MOVING)):
        return _passed_on(operation, sources(), node)
    if isinstance(operation, _LOGIT_ARITHMETIC):
        return _only_logits(operation, sources(), node)
    if isinstance(operation, layers.Activation):
        return _after_activation(operation, sources, node)
    if isinstance(operation, _REAL_VALUED):
        return _after_activation(operation, lambda: ["logits"], node)
    if not isinstance(operation, layers.Layer):
        return _outputs_of_op(operation, sources, node)
    registered = keras.saving.get_registered_name(type(operation))
    if registered == _FAKE_QUANT:
        return _only_logits(operation, sources(), node)
    if registered == _FOLDED:
        return "logits"
    raise _Opaque(f"which ends in {_described(operation)}")


def _outputs_of_op(op: Any, sources: Callable[[], list[Outputs]], node: Any) -> Outputs:
    """The same for an operation of `keras.ops` in the graph."""
    name = type(op).__name__
    if name == "Softmax":
        return _softmax_over(op.axis, op)
    if name == "LogSoftmax":  # logits, shifted
        return "logits"
    if name == "Sigmoid":
        return "sigmoid"
    if name in _LOGIT_OPS:
        return _only_logits(op, sources(), node)
    if name in _LOGIT_SCALING_OPS and len(kinds := sources()) == 1:
        return _only_logits(op, kinds, node)
    raise _Opaque(f"which ends in {_described(op)}")


def _after_activation(
    layer: layers.Layer, sources: Callable[[], list[Outputs]], node: Any
) -> Outputs:
    activation = getattr(layer, "activation", None)
    if activation in (None, keras.activations.linear):
        return _passed_on(layer, sources(), node)
    if activation is keras.activations.softmax:
        return "probabilities"
    if activation is keras.activations.log_softmax:  # logits, shifted
        return "logits"
    if activation is keras.activations.sigmoid:
        return "sigmoid"
    if isinstance(activation, layers.Layer):  # an activation given as a layer
        return _outputs_of_operation(activation, sources, node)
    name = getattr(activation, "__name__", type(activation).__name__)
    raise _Opaque(f"which ends in the activation '{name}' of {_described(layer)}")


def _softmax_over(axis: int | tuple[int, ...] | list[int], operation: Any) -> Outputs:
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    rank = len(operation.output.shape) if operation._inbound_nodes else 0
    if axes in ((-1,), (rank - 1,)):
        return "probabilities"
    raise _Unreadable(
        f"which ends in a softmax over axis {axis} ({_described(operation)}). Fix: the "
        f"classes must be on the last axis"
    )


def _passed_on(operation: Any, kinds: list[Outputs], node: Any) -> Outputs:
    """What comes out of an operation that averages or moves what goes in."""
    if len(set(kinds)) != 1:
        raise _Opaque(f"which ends in {_described(operation)} of logits and of others")
    if kinds[0] == "logits":
        return "logits"
    entering = [] if node is None else node.input_tensors
    if kinds[0] == "probabilities" and isinstance(operation, _MOVING):
        leaving = [] if node is None else node.outputs
        axes = [[tensor.shape[-1] for tensor in side] for side in (entering, leaving)]
        if not entering or axes[0] != axes[1]:
            raise _Opaque(f"whose {_described(operation)} moves the class axis")
    if not isinstance(operation, layers.Identity) and any(
        tensor.dtype in ("float16", "bfloat16") for tensor in entering
    ):
        # Behind this operation only log(p) is left, and p has lost every value
        # below 6e-8: most of what a teacher knows about the unlikely classes.
        squashing = "softmax" if kinds[0] == "probabilities" else "sigmoid"
        raise _Unreadable(
            f"whose {squashing} runs in half precision before {_described(operation)}. "
            f"Fix: give the {squashing} layer dtype='float32', or return logits"
        )
    return kinds[0]


def _only_logits(operation: Any, kinds: list[Outputs], node: Any) -> Outputs:
    if set(kinds) == {"sigmoid"} and type(operation).__name__ == "Concatenate":
        return _passed_on(operation, kinds, node)  # labels, each from its own layer
    if set(kinds) != {"logits"}:
        raise _Opaque(f"which ends in {_described(operation)} of probabilities")
    return "logits"


def _described(operation: Any) -> str:
    return f"{type(operation).__name__} '{operation.name}'"
