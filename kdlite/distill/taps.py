"""Taps: where a model's class logits are, and how to read them.

Soft targets are made from logits. A model that ends in a softmax has them one step
before its output; softening the *output* of that softmax once more would flatten the
teacher's message to almost nothing. `logits_model()` finds out from the graph which of
the two a model returns and reads the logits in the same forward pass:

>>> import keras, numpy as np
>>> teacher = keras.Sequential(
...     [keras.Input((4,)), keras.layers.Dense(3, activation="softmax")]
... )
>>> logits = logits_model(teacher)
>>> logits.outputs
'probabilities'
>>> x = np.ones((2, 4), "float32")
>>> logits(x).shape.as_list()
[2, 3]
>>> bool(np.allclose(keras.ops.softmax(logits(x)), teacher(x)))
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import layers, ops

Tensor = Any
Outputs = Literal["logits", "probabilities"]

#: The two keys of `x` in data that bring the teacher's logits along:
#: `({INPUTS_KEY: student inputs, SOFT_LABELS_KEY: logits}, y, sample_weight)`.
INPUTS_KEY = "inputs"
SOFT_LABELS_KEY = "soft_labels"

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
# Layers that move entries: as above as long as the class axis stays the last.
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


class _Opaque(Exception):
    """The graph does not say what the output is; the text says where it ended."""


class _NotClasses(Exception):
    """The output is known, and it is not a distribution over classes."""


class LogitsModel:
    """A model read at its class logits.

    Shares the model's weights and changes nothing about it, its `trainable` flag
    included. It is a callable, not a layer: what holds it does not track the model.

    Args:
        model: A `keras.Model` with one output, classes on the last axis.
        outputs: What the model returns: `"logits"`, `"probabilities"`, or `None` to
            find out from the graph. A subclassed model has no graph and needs the
            declaration. From declared probabilities the logits are those that Keras
            remembers behind a softmax, else `log(p)`, which equals them up to a shift
            that no softmax sees.
        role: How error messages call the model.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model has several outputs, ends in a sigmoid or another
            bounded activation, or if it cannot be shown what it returns.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> LogitsModel(model).outputs
        'logits'
    """

    def __init__(
        self,
        model: keras.Model,
        outputs: Outputs | None = None,
        *,
        role: str = "model",
    ) -> None:
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"`{role}` must be a keras.Model. Received: {role}={model!r} of type "
                f"{type(model).__name__}."
            )
        self.model = model
        self.outputs: Outputs = _find_outputs(model, outputs, role)

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.model.name)

    def __call__(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Runs the model once and returns its logits.

        Args:
            inputs: What the model takes.
            training: Passed to the model; `False` is inference mode.

        Returns:
            float32 logits of shape `(batch, ..., classes)`.
        """
        return self.read(self.model(inputs, training=training))

    def read(self, model_outputs: Tensor) -> Tensor:
        """Returns the logits behind an output of the model, without running it.

        Args:
            model_outputs: What the model returned, that very tensor: Keras keeps the
                input of a softmax on its output.

        Returns:
            float32 logits of shape `(batch, ..., classes)`, with the output's mask.

        Raises:
            ValueError: If the model returned several tensors, or probabilities in half
                precision whose logits are lost.
        """
        if not ops.is_tensor(model_outputs) and not keras.backend.is_keras_tensor(
            model_outputs
        ):
            raise ValueError(
                f"Distillation of outputs needs one output tensor. Received: model "
                f"'{self.name}' returns {type(model_outputs).__name__}. Fix: give a "
                f"model that returns the class output alone."
            )
        before_softmax = getattr(model_outputs, "_keras_logits", None)
        if self.outputs == "logits":
            logits = ops.cast(model_outputs, "float32")
        elif before_softmax is not None:
            logits = ops.cast(before_softmax, "float32")
        else:
            logits = self._log(model_outputs)
        mask = getattr(model_outputs, "_keras_mask", None)
        if mask is not None:
            logits._keras_mask = mask
        return logits

    def _log(self, probabilities: Tensor) -> Tensor:
        dtype = keras.backend.standardize_dtype(probabilities.dtype)
        if dtype not in ("float32", "float64"):
            # Half precision has lost every probability below 6e-8, and with it what
            # the teacher knows about the unlikely classes.
            raise ValueError(
                f"Logits cannot be recovered from half-precision probabilities. "
                f"Received: model '{self.name}' returns {dtype}. Fix: give the softmax "
                f"layer dtype='float32', or let the model return logits."
            )
        smallest = float(np.finfo("float32").tiny)
        return ops.log(ops.maximum(ops.cast(probabilities, "float32"), smallest))

    def __repr__(self) -> str:
        """Names the model and what it returns."""
        return f"LogitsModel({self.name!r}, outputs={self.outputs!r})"


def logits_model(
    model: keras.Model | LogitsModel,
    outputs: Outputs | None = None,
    *,
    role: str = "model",
) -> LogitsModel:
    """Returns a callable from inputs to float32 logits, sharing the model's weights.

    A softmax at the end (as an activation, a layer, or the end of a nested model) is
    recognised and the logits before it are read, in the one forward pass.

    Args:
        model: A `keras.Model` with one output, or a `LogitsModel`, returned as it is.
        outputs: What the model returns: `"logits"`, `"probabilities"`, or `None` to
            find out from its graph. See `LogitsModel`.
        role: How error messages call the model.

    Returns:
        The callable: `logits_model(model)(inputs, training=False)` has the shape
        `(batch, ..., classes)`.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model's output is not, or cannot be shown to be, class
            logits or class probabilities.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> logits_model(model)(np.zeros((2, 4))).shape.as_list()
        [2, 3]
    """
    if not isinstance(model, LogitsModel):
        return LogitsModel(model, outputs, role=role)
    if outputs is not None and outputs != model.outputs:
        raise ValueError(
            f"`{role}` is already read as {model.outputs}. Received: {role}_outputs="
            f"{outputs!r}. Fix: leave the declaration to one of the two."
        )
    return model


def _find_outputs(model: keras.Model, declared: Outputs | None, role: str) -> Outputs:
    if declared is not None and declared not in get_args(Outputs):
        raise ValueError(
            f"`{role}_outputs` must be 'logits', 'probabilities' or None. Received: "
            f"{role}_outputs={declared!r}."
        )
    try:
        found = _outputs_of_model(model)
    except _NotClasses as reason:
        raise ValueError(
            f"The {role} must return class logits or class probabilities. Received: "
            f"{role} '{model.name}', {reason}."
        ) from None
    except _Opaque as reason:
        if declared is not None:
            return declared
        raise ValueError(
            f"It must be known whether the {role} returns logits or probabilities. "
            f"Received: {role} '{model.name}', {reason}. Fix: say it, with "
            f"{role}_outputs='logits' or 'probabilities', or give "
            f"LogitsModel(model, 'logits') or LogitsModel(model, 'probabilities')."
        ) from None
    if declared is not None and declared != found:
        raise ValueError(
            f"The declaration must agree with the model. Received: {role}_outputs="
            f"{declared!r}, but the graph of '{model.name}' ends in {found}. Fix: "
            f"leave the declaration out."
        )
    return found


def _outputs_of_model(model: keras.Model, index: int | None = None) -> Outputs:
    # A class with a `call` of its own does what that says, whatever graph it carries.
    if not type(model).call.__module__.startswith("keras."):
        raise _Opaque(f"whose class {type(model).__name__} has its own call()")
    if isinstance(model, keras.Sequential) and not model.built:
        return _outputs_of_stack(model.layers)
    outputs = keras.tree.flatten(model.outputs)
    if index is None and len(outputs) > 1:
        names = ", ".join(repr(name) for name in model.output_names)
        raise _NotClasses(
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
        return _only_logits(operation, sources())
    if isinstance(operation, layers.Activation):
        return _after_activation(operation, sources, node)
    if isinstance(operation, _REAL_VALUED):
        return _after_activation(operation, lambda: ["logits"], node)
    if not isinstance(operation, layers.Layer):
        return _outputs_of_op(operation, sources)
    registered = keras.saving.get_registered_name(type(operation))
    if registered == _FAKE_QUANT:
        return _only_logits(operation, sources())
    if registered == _FOLDED:
        return "logits"
    raise _Opaque(f"which ends in {_described(operation)}")


def _outputs_of_op(op: Any, sources: Callable[[], list[Outputs]]) -> Outputs:
    """The same for an operation of `keras.ops` in the graph."""
    name = type(op).__name__
    if name == "Softmax":
        return _softmax_over(op.axis, op)
    if name == "LogSoftmax":  # logits, shifted
        return "logits"
    if name == "Sigmoid":
        raise _NotClasses(_SIGMOID.format(_described(op)))
    if name in _LOGIT_OPS:
        return _only_logits(op, sources())
    if name in _LOGIT_SCALING_OPS and len(kinds := sources()) == 1:
        return _only_logits(op, kinds)
    raise _Opaque(f"which ends in {_described(op)}")


_SIGMOID = (
    "which ends in the sigmoid of {}: independent labels, not one of several classes. "
    "Fix: give it one logit a class and a softmax, or none; for two classes two logits"
)


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
        raise _NotClasses(_SIGMOID.format(_described(layer)))
    if isinstance(activation, layers.Layer):  # an activation given as a layer
        return _outputs_of_operation(activation, sources, node)
    name = getattr(activation, "__name__", type(activation).__name__)
    raise _Opaque(f"which ends in the activation '{name}' of {_described(layer)}")


def _softmax_over(axis: int | tuple[int, ...] | list[int], operation: Any) -> Outputs:
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    rank = len(operation.output.shape) if operation._inbound_nodes else 0
    if axes in ((-1,), (rank - 1,)):
        return "probabilities"
    raise _NotClasses(
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
    if isinstance(operation, _MOVING):
        leaving = [] if node is None else node.outputs
        axes = [[tensor.shape[-1] for tensor in side] for side in (entering, leaving)]
        if not entering or axes[0] != axes[1]:
            raise _Opaque(f"whose {_described(operation)} moves the class axis")
    if not isinstance(operation, layers.Identity) and any(
        tensor.dtype in ("float16", "bfloat16") for tensor in entering
    ):
        # Behind this operation only log(p) is left, and p has lost every value
        # below 6e-8: most of what a teacher knows about the unlikely classes.
        raise _NotClasses(
            f"whose softmax runs in half precision before {_described(operation)}. "
            f"Fix: give the softmax layer dtype='float32', or return logits"
        )
    return "probabilities"


def _only_logits(operation: Any, kinds: list[Outputs]) -> Outputs:
    if set(kinds) != {"logits"}:
        raise _Opaque(f"which ends in {_described(operation)} of probabilities")
    return "logits"


def _described(operation: Any) -> str:
    return f"{type(operation).__name__} '{operation.name}'"
