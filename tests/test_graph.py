from __future__ import annotations

import keras
import pytest
from keras import layers

from kdlite.compress.graph import CallGraph, functional


def two_towers():
    """A tower that is called twice, in a model with an operation of `keras.ops`."""
    tower = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="hidden"), layers.ReLU(name="relu")],
        name="tower",
    )
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    joined = layers.Add(name="add")([tower(a, training=False), tower(b)])
    outputs = layers.Dense(2, name="head")(keras.ops.relu(joined))
    return keras.Model([a, b], outputs, name="towers")


def test_nested_models_are_opened_for_each_call() -> None:
    graph = CallGraph(two_towers(), "A test")
    paths = [call.path for call in graph.calls]
    assert sorted(paths[:-2]) == sorted([*["tower/hidden", "tower/relu"] * 2, "add"])
    # An operation of `keras.ops`, numbered by Keras, is a call too.
    assert paths[-2].startswith("relu") and paths[-1] == "head"
    assert [graph.shapes[x] for x in graph.inputs] == [(None, 4)] * 2
    assert [graph.shapes[x] for x in graph.outputs] == [(None, 2)]
    (add,) = [call for call in graph.calls if call.path == "add"]
    assert len(set(add.inputs)) == 2
    assert [call.path for call in graph.users(add.outputs[0])] == [paths[-2]]
    # Held in inference mode from outside, and the other call not.
    hidden = [call.training for call in graph.calls if call.path == "tower/hidden"]
    assert sorted(map(str, hidden)) == ["False", "None"]


def test_every_tensor_is_made_before_it_is_used() -> None:
    graph = CallGraph(two_towers(), "A test")
    known = set(graph.inputs)
    for call in graph.calls:
        assert known.issuperset(call.inputs)
        known.update(call.outputs)
    assert known.issuperset(graph.outputs)


def test_a_model_without_a_graph_is_an_error() -> None:
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="A test needs the graph.*subclass Own"):
        functional(Own(name="own"), "A test")
    with pytest.raises(ValueError, match="must be built. Received: model='empty'"):
        CallGraph(keras.Sequential([layers.Dense(1)], name="empty"), "A test")
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match="subclass Own"):
        CallGraph(keras.Model(inputs, Own()(inputs)), "A test")


def test_a_layers_own_default_of_training_holds_it_in_no_mode():
    inputs = keras.Input((8, 8, 3))
    x = layers.Dropout(0.5)(layers.RandomFlip()(inputs))
    x = layers.BatchNormalization()(x)
    inner = keras.Model(inputs, x)
    held = CallGraph(keras.Model(inputs, inner(inputs, training=False)), "It")
    free = CallGraph(keras.Model(inputs, inner(inputs)), "It")
    assert [call.training for call in free.calls] == [None] * 3
    assert [call.training for call in held.calls] == [False] * 3
    forced = keras.Model(inputs, layers.Dropout(0.5)(inputs, training=True))
    assert [call.training for call in CallGraph(forced, "It").calls] == [True]
