"""What Keras makes in a training's first step, made before that step is traced.

`tf.function` traces anew where the first trace made variables, and Keras leaves those
of the optimizer and the metrics to it: a training began with two traces of both models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Step = Callable[[Any], Any]


def prepared(
    step: Step, then: Callable[[Step], None], build: Callable[[Any], None]
) -> Step:
    """Returns Keras's step over an iterator, with its variables made in the first call.

    Args:
        step: What Keras's trainer made.
        then: Takes that step, for the calls to come.
        build: Makes the variables, told what a batch is.
    """

    def first(iterator: Any) -> Any:
        then(step)
        if isinstance(iterator, tf.data.Iterator):
            build(iterator.element_spec)
        return step(iterator)

    return first


def build_optimizer(model: keras.Model) -> None:
    """Makes the optimizer's variables, unless a layer is still to make its weights.

    Args:
        model: A compiled model.
    """
    optimizer = model.optimizer
    if optimizer is None or optimizer.built:
        return
    if all(layer.built for layer in model._flatten_layers(include_self=False)):
        with keras.name_scope(optimizer.name):
            optimizer.build(model.trainable_variables)


def build_metrics(model: keras.Model, student: keras.Model, labels: Any) -> None:
    """Makes the variables of metrics, where there is one output whose form is known.

    Args:
        model: A compiled model.
        student: The model whose output is compared with labels.
        labels: What labels of a batch are: a `tf.TensorSpec`, if there is one output.
    """
    metrics = model._compile_metrics
    if metrics is None or metrics.built:
        return
    output = getattr(getattr(student, "_functional", student), "_outputs_struct", None)
    # Several outputs have means of their losses too, which Keras makes in the trace.
    if not isinstance(output, keras.KerasTensor):
        return
    if isinstance(labels, tf.TensorSpec) and labels.shape.rank is not None:
        told = keras.KerasTensor(tuple(labels.shape), labels.dtype.name)
        metrics.build(told, output)
