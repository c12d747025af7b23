"""Which widths belong together, and what each becomes."""

from __future__ import annotations

import keras
import pytest
from keras import layers

from kdlite.compress.graph import CallGraph
from kdlite.compress.widths import Widths, narrowed


@pytest.mark.parametrize("size", [1, 3, 4, 10, 24, 64, 513])
def test_a_width_shrinks_evenly_and_not_to_nothing(size) -> None:
    sizes = [narrowed(size, k / 64) for k in range(1, 65)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= min(size, 4)
    assert sizes[-1] == size or size - sizes[-1] < 8
    assert all(n % 8 == 0 for n in sizes if n > 32 and n != size)


def widths(model):
    graph = CallGraph(model, "A test")
    return graph, Widths(graph)


def test_what_is_added_is_one_and_what_is_joined_is_a_sum() -> None:
    inputs = keras.Input((12,))
    a, b, c = (
        layers.Dense(n, name=x)(inputs) for x, n in (("a", 40), ("b", 40), ("c", 80))
    )
    joined = layers.Concatenate(name="joined")([a, b])
    total = layers.Add(name="total")([joined, c])
    graph, found = widths(keras.Model(inputs, layers.Dense(3, name="head")(total)))
    made = {call.path: found.made_by(call.operation, 0.5) for call in graph.calls}
    assert made == {"a": 20, "b": 20, "c": 40, "joined": None, "total": None, "head": 3}
    of = {call.path: found.of(call.outputs[0], 0.5) for call in graph.calls}
    assert of["joined"] == of["total"] == 40
    assert found.free


def test_a_sum_with_an_input_or_an_output_stays() -> None:
    inputs = keras.Input((12,))
    hidden = layers.Dense(12, name="hidden")(inputs)
    graph, found = widths(keras.Model(inputs, layers.Add()([hidden, inputs])))
    assert not found.free
    assert found.made_by(graph.calls[0].operation, 0.25) == 12


def test_layers_that_share_weights_share_widths() -> None:
    inputs = keras.Input((12,))
    twice = layers.Dense(32, name="twice")
    a = layers.Dense(48, name="a")(inputs)
    b = layers.Dense(48, name="b")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(twice(a) + twice(b)))
    graph, found = widths(model)
    made = {call.path: found.made_by(call.operation, 0.3) for call in graph.calls}
    assert made["twice"] == narrowed(32, 0.3)
    assert made["a"] == made["b"] == narrowed(48, 0.3)
