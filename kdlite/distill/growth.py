"""A student with more classes: the old ones stay, bit for bit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kdlite.batches import samples_at_once
from kdlite.copies import cloned, copy_of, layer_again, settle
from kdlite.distill.replay import predict, probabilities
from kdlite.distill.taps import logits_model

Array = np.ndarray[Any, Any]

_BATCH = 256
# Of the mean square of the features: next to nothing, but enough for unused ones.
_RIDGE = 1e-3
# The odds of a new class are kept within e^8, 3000 to 1: surer says nothing more, and
# a regression would spend itself on it.
_LARGEST_LOG_ODDS = 8.0
# What may come between the last Dense layer and the output.
_AFTER_HEAD = (keras.layers.Softmax, keras.layers.Activation, keras.layers.Identity)


def copy_student(student: keras.Model, classes: int) -> keras.Model:
    """Returns a copy of a student, with room for more classes.

    Old classes keep their place, and their rows of the last Dense layer their bits;
    new rows are zero.

    Args:
        student: A Functional or Sequential classifier that ends in a Dense layer, with
            or without a softmax; with as many classes as it has, any Keras model that
            can be cloned.
        classes: Number of classes of the copy, not fewer than the student's.

    Returns:
        The copy, with weights of its own.

    Raises:
        ValueError: If classes are to be added and the student does not end so.

    Example:
        >>> import keras
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> grown = copy_student(student, 3)
        >>> grown.output_shape
        (None, 3)
        >>> kernel, bias = grown.layers[-1].get_weights()
        >>> bool((kernel[:, :2] == student.layers[-1].get_weights()[0]).all())
        True
    """
    if classes == student.output_shape[-1]:
        return copy_of(student)
    head = head_of(student)

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        more = {"units": classes} if layer is head else {}
        return layer_again(layer, lambda config: {**config, **more})

    grown = cloned(student, clone_function=clone)
    for new, old in zip(grown.layers, student.layers, strict=True):
        weights = old.get_weights()
        if old is head:
            more = classes - head.units
            weights = [
                np.pad(w, [(0, 0)] * (w.ndim - 1) + [(0, more)]) for w in weights
            ]
        new.set_weights(weights)
    settle(grown)
    return grown


def head_of(student: keras.Model) -> keras.layers.Dense:
    """Returns the Dense layer that gives a student's logits.

    Args:
        student: A Functional or Sequential model.

    Raises:
        ValueError: If there is none at the end.
    """
    outputs = getattr(student, "outputs", None) or []
    tensor = outputs[0] if len(outputs) == 1 else None
    while tensor is not None:
        operation, node_index, _ = tensor._keras_history
        if isinstance(operation, keras.layers.Dense):
            return operation
        if not isinstance(operation, _AFTER_HEAD):
            break
        tensor = operation._inbound_nodes[node_index].input_tensors[0]
    raise ValueError(
        "New classes need a head that can grow: a student that ends in a Dense layer, "
        f"with or without a softmax. Received: '{student.name}', which ends in "
        f"{_described(student)}. Fix: build the student so, or give it the classes "
        "yourself and copy the weights."
    )


def fit_new_rows(
    grown: keras.Model, x: Array, teacher_logits: Array, old_classes: int
) -> None:
    r"""Sets the new rows of a head by one regression, without a step of training.

    With the old rows as they are, a sample's new logit that gives class `c` the
    probability $p_c$ that the new teacher gives it is

    $$ s_c = \log \sum_{k \in old} e^{s_k} + \log \frac{p_c}{\sum_{k \in old} p_k} $$

    and the rows are the ridge regression of it on the head's input.

    Args:
        grown: From `copy_student`; its last Dense layer is changed in place.
        x: Samples of old and new classes `(samples, ...)`.
        teacher_logits: The new teacher's, `(samples, classes)`.
        old_classes: How many of the classes come first and are old.
    """
    head = head_of(grown)
    inside = keras.Model(grown.inputs[0], head.input)
    size = samples_at_once(x, _BATCH)
    features = np.concatenate(
        [np.asarray(inside(x[i : i + size]), "float64") for i in range(0, len(x), size)]
    )
    old = predict(logits_model(grown), x)[:, :old_classes].astype("float64")
    p = probabilities(teacher_logits)
    floor = np.exp(-_LARGEST_LOG_ODDS)
    odds = np.maximum(p[:, old_classes:], 1e-30) / np.maximum(
        p[:, :old_classes].sum(-1, keepdims=True), 1e-30
    )
    targets = np.logaddexp.reduce(old, -1, keepdims=True) + np.log(
        np.clip(odds, floor, 1 / floor)
    )
    weights = _ridge(features, targets, bool(head.use_bias))
    kernel, *bias = head.get_weights()
    kernel[:, old_classes:] = weights[: features.shape[1]]
    if bias:
        bias[0][old_classes:] = weights[-1]
    head.set_weights([kernel, *bias])


def _ridge(features: Array, targets: Array, bias: bool) -> Array:
    ones = np.ones((len(features), 1))
    columns = np.concatenate([features, ones], 1) if bias else features
    penalty = np.full(columns.shape[1], _RIDGE * np.square(features).mean() * len(ones))
    if bias:
        penalty[-1] = 0.0
    normal = columns.T @ columns + np.diag(penalty + 1e-12)
    return np.linalg.lstsq(normal, columns.T @ targets, rcond=None)[0]


def _described(student: keras.Model) -> str:
    layers = getattr(student, "layers", [])
    return f"{type(layers[-1]).__name__} '{layers[-1].name}'" if layers else "no layer"
