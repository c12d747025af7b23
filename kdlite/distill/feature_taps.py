"""Feature taps: what layers of a model return, read while the model runs.

A layer is named by its path: `"conv_3"`, and `"backbone/block3"` for one in a nested
model or composite layer. A tap needs no model of its own: for the time of a forward
pass the layer's `call` is watched, so the one pass gives outputs and features, and the
model stays what it was.

>>> import keras, numpy as np
>>> model = keras.Sequential(
...     [keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)]
... )
>>> taps = FeatureTaps(model, ["hidden"])
>>> with taps.recording() as features:
...     outputs = model(np.ones((5, 4)))
>>> features["hidden"].shape.as_list(), outputs.shape.as_list()
([5, 3], [5, 2])
"""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

Tensor = Any
Shape = tuple[int | None, ...]
# A layer, or an operation of `keras.ops` in a graph.
Node = Any


class _Pass:
    """What the watched layers of a model returned in its last forward pass."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.calls: list[tuple[Node, Any]] = []  # in their order


_current: contextvars.ContextVar[_Pass | None] = contextvars.ContextVar(
    "current", default=None
)
_lock = threading.RLock()


class FeatureTaps:
    """Named layers of a model, read in its forward pass.

    A name is the path of a layer, or of an operation such as the sum of a shortcut,
    from the model down through nested models and layers, joined by `/`. Of a layer that
    is called several times, the last call counts; `"shared:0"` is the first.

    A model or layer with a method `features` says itself what its features are, and
    needs no layers for them. The method takes what `call` takes, and returns what
    `call` returns together with a dict from names to tensors; a forward pass with taps
    runs it in place of `call`:

        class Student(keras.Model):
            def features(self, inputs, training=None):
                maps = self.stem(inputs, training=training)
                return self.head(maps), {"maps": maps}

            def call(self, inputs, training=None):
                return self.features(inputs, training)[0]

    Args:
        model: Any `keras.Model`.
        names: Names of features; the model may not have been built.
        role: How error messages call the model.

    Raises:
        ValueError: If there is no such layer. Near matches are named.
    """

    def __init__(
        self, model: keras.Model, names: Iterable[str], *, role: str = "model"
    ) -> None:
        self.model = model
        self._role = role
        self._taps = {name: self._find(name) for name in names}

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Reads the features of the forward passes within.

        Yields:
            A dict that has the features by name once the model has run, those of the
            last pass, with their Keras masks; empty if it did not run.

        Raises:
            ValueError: If the model ran, but not one of the layers, or a layer did not
                return one tensor.
        """
        features: dict[str, Tensor] = {}
        with _watched(self.model, [node for node, *_ in self._taps.values()]) as seen:
            yield features
        if seen.calls:
            for name in self._taps:
                features[name] = self._one_tensor(name, seen)

    def shapes(self) -> dict[str, Shape] | None:
        """Returns the features' shapes, `None` for the batch, without data.

        Returns:
            Shapes by name, or `None` for a model that does not know its inputs yet.

        Raises:
            ValueError: As `recording()` does.
        """
        inputs = model_inputs(self.model)
        if inputs is None:
            return None
        with self.recording() as features:
            symbolically(lambda x: self.model(x, training=False), inputs)
        return {name: tuple(tensor.shape) for name, tensor in features.items()}

    def _find(self, name: str) -> tuple[Node, str | None, int]:
        """Returns the node to watch, the key of its `features`, and which call."""
        path, call = name, -1
        if (numbered := re.fullmatch(r"(.+):(\d+)", name)) is not None:
            path, call = numbered[1], int(numbered[2])
        node, parts = self.model, path.split("/")
        for depth, part in enumerate(parts):
            if _tells_features(node):
                return node, "/".join(parts[depth:]), call
            child = children(node).get(part)
            if child is None:
                raise self._unknown(name, path)
            node = child
        return node, None, call

    def _unknown(self, name: str, path: str) -> ValueError:
        paths = [path for path, _ in nodes_of(self.model)]
        near = [other for other in paths if other.endswith(f"/{path}")]
        near += difflib.get_close_matches(path, paths, n=5, cutoff=0.5)
        near = list(dict.fromkeys(near))
        found = ("Near: " if near else "It has: ") + ", ".join(
            map(repr, near or paths[:8])
        )
        if not near and len(paths) > 8:
            found += f" and {len(paths) - 8} more"
        return ValueError(
            f"A feature must be a layer of the model, named by its path. Received: "
            f"{name!r} for {self._role} '{self.model.name}'. {found}. Fix: take one of "
            f"these, or print [layer.name for layer in {self._role}.layers]."
        )

    def _one_tensor(self, name: str, seen: _Pass) -> Tensor:
        node, key, call = self._taps[name]
        returned = [outputs for called, outputs in seen.calls if called is node]
        where = f"Received: {name!r} of {self._role} '{self.model.name}'"
        if not -1 <= call < len(returned) or not returned:
            raise ValueError(
                f"A tapped layer must be part of the forward pass. {where}, which was "
                f"called {len(returned)} times. Fix: tap a layer that the model's "
                f"outputs are computed by."
            )
        features = returned[call]
        if key is not None:
            if key not in features:
                raise ValueError(
                    f"A feature must be one that features() returns. {where}, where "
                    f"features() of '{node.name}' returns {sorted(features)}. Fix: "
                    f"take one of these names."
                )
            features = features[key]
        elif isinstance(features, (list, tuple)) and len(features) == 1:
            features = features[0]
        if not hasattr(features, "shape"):
            raise ValueError(
                f"A feature must be one tensor. {where}, which is of type "
                f"{type(features).__name__}. Fix: tap a layer inside it, "
                f"'{name}/<layer>', or one before or after."
            )
        return features


def model_inputs(model: keras.Model) -> Any | None:
    """Returns symbolic inputs of a model, or `None` if it does not know them.

    Args:
        model: Any model.

    Returns:
        Keras tensors in the structure that the model takes.
    """
    if not getattr(model, "inputs", None):
        return None
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, x.dtype), inputs
    )


def symbolically(run: Callable[..., Any], *inputs: Any) -> Any:
    """Runs a function on symbolic tensors: nothing is computed, and no state moves.

    Args:
        run: A function of tensors.
        *inputs: Structures of Keras tensors.

    Returns:
        Keras tensors, of the shapes and dtypes that it returns.
    """

    class Run(keras.Operation):
        def call(self, *tensors: Any) -> Any:
            return run(*tensors)

    return Run().compute_output_spec(*inputs)


def children(node: Node) -> dict[str, Node]:
    """Returns what a model or layer is made of, by name.

    Args:
        node: A model, layer or operation.

    Returns:
        Layers, and the other operations of a graph, in their order; no inputs.
    """
    if isinstance(node, keras.Sequential):
        parts = node.layers
    elif isinstance(node, keras.Model) and hasattr(node, "operations"):
        parts = node.operations
    elif isinstance(node, keras.layers.Layer):
        parts = node._flatten_layers(include_self=False, recursive=False)
    else:
        parts = []
    named: dict[str, Node] = {}
    for part in parts:
        if not isinstance(part, keras.layers.InputLayer):
            named.setdefault(part.name, part)
    return named


def nodes_of(
    node: Node, path: str = "", *, within: type = keras.layers.Layer
) -> Iterator[tuple[str, Node]]:
    """Yields all that a model is made of, outer before inner.

    Args:
        node: A model or layer.
        path: Its own path.
        within: What is gone into; `keras.Model` leaves composite layers whole.

    Yields:
        Paths and layers or operations.
    """
    for name, child in children(node).items():
        below = f"{path}/{name}" if path else name
        yield below, child
        if isinstance(child, within):
            yield from nodes_of(child, below, within=within)


def forward_shapes(model: keras.Model) -> dict[str, tuple[Node, Shape]] | None:
    """Returns what the layers of a model return, in the order of its forward pass.

    Args:
        model: A model; layers of models in it count, those of composite layers do not.

    Returns:
        Layers and output shapes by path, where the output is one tensor; or `None` for
        a model that does not know its inputs.
    """
    inputs = model_inputs(model)
    if inputs is None:
        return None
    nodes = {
        id(node): (path, node)
        for path, node in nodes_of(model, within=keras.Model)
        if not isinstance(node, keras.Model)
    }
    with _watched(model, [node for _, node in nodes.values()]) as seen:
        symbolically(lambda x: model(x, training=False), inputs)
    found: dict[str, tuple[Node, Shape]] = {}
    for node, outputs in seen.calls:
        path, _ = nodes.get(id(node), (None, None))
        if path is not None and hasattr(outputs, "shape"):
            found.pop(path, None)  # of a shared layer the last call counts
            found[path] = node, tuple(outputs.shape)
    return found


def _tells_features(node: Node) -> bool:
    return callable(getattr(type(node), "features", None))


@contextlib.contextmanager
def _watched(model: keras.Model, nodes: Iterable[Node]) -> Iterator[_Pass]:
    seen = _Pass(model)
    with contextlib.ExitStack() as stack:
        # The model's own call tells that it ran, and where a pass begins.
        for node in {id(node): node for node in (*nodes, model)}.values():
            stack.enter_context(_hooked(node))
        token = _current.set(seen)
        try:
            yield seen
        finally:
            _current.reset(token)


@contextlib.contextmanager
def _hooked(node: Node) -> Iterator[None]:
    """Puts a recorder in the place of a node's `call`.

    Replicas of a distribution strategy run the same layers in threads that take turns:
    the first to come puts it there, the last to go takes it away, and each records its
    own pass.
    """
    with _lock:
        recorder = vars(node).get("call")
        if not isinstance(recorder, _Recorder):
            recorder = _Recorder(node)
            # Past Keras's tracking of attributes.
            object.__setattr__(node, "call", recorder)
        recorder.users += 1
    try:
        yield
    finally:
        with _lock:
            recorder.users -= 1
            if not recorder.users:
                recorder.leave()


class _Recorder:
    """Runs a node's `call` and notes what it returned."""

    def __init__(self, node: Node) -> None:
        self.users = 0
        self._node = node
        self._call = node.call
        self._own = vars(node).get("call")  # a user's, on the instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        seen = _current.get()
        if seen is None:  # in another thread than the recording
            return self._call(*args, **kwargs)
        if self._node is seen.model:
            seen.calls.clear()  # those of a pass before it, to build the model say
        if _tells_features(self._node):
            outputs, features = self._node.features(*args, **kwargs)
            seen.calls.append((self._node, features))
        else:
            outputs = self._call(*args, **kwargs)
            seen.calls.append((self._node, outputs))
        return outputs

    def leave(self) -> None:
        """Gives the node its `call` back."""
        object.__delattr__(self._node, "call")
        if self._own is not None:
            object.__setattr__(self._node, "call", self._own)
