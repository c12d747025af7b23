"""Which Python TensorFlow rewrites when it traces a pipeline: what users give, alone.

`tf.data` has AutoGraph rewrite each function it is given, and all that is called in it,
so that Python's `if` and `for` may go by tensors. Nothing of kdlite's own needs that,
and it takes longer than all else of a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

Function = TypeVar("Function", bound=Callable[..., Any])


def as_written(function: Function) -> Function:
    """Returns a function of kdlite's that is traced as it is.

    Args:
        function: What goes into a pipeline. What users gave and it calls must be
            `rewritten`.
    """
    kept: Function = tf.autograph.experimental.do_not_convert(function)
    return kept


def status() -> Any:
    """Returns whether functions are rewritten here: not so in a user's `as_written`."""
    return tf.__internal__.autograph.control_status_ctx()


def rewritten(function: Function, where: Any) -> Function:
    """Returns a user's function as `tf.data.Dataset.map` would have it.

    Args:
        function: The user's.
        where: The `status` of where the pipeline is made.
    """
    converted: Function = tf.__internal__.autograph.tf_convert(function, where)
    return converted
