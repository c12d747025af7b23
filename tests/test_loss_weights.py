"""Weights of losses: numbers or schedules, for all outputs or by output."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.distill import Distiller
from kdlite.distill.loss_weights import LossWeights
from kdlite.distill.losses import SoftTargets
from kdlite.distill.schedules import Linear, from_config


def made(hard=0.25, soft=0.5, outputs=("a", "b")):
    return LossWeights(hard, soft, outputs, keras.layers.Layer().add_weight)


def numbers(weights):
    return {name: float(variable) for name, variable in weights.of_outputs.items()}


def test_one_number_is_for_all_outputs():
    weights = made()
    assert float(weights.hard) == 0.25 and float(weights.soft) == 0.5
    assert weights.of_outputs["a"] is weights.of_outputs["b"] is weights.soft
    weights.set_soft(2.0)
    weights.set_hard(1.0)
    assert numbers(weights) == {"a": 2.0, "b": 2.0}
    assert weights.get_config() == {"hard_loss_weight": 1.0, "soft_loss_weight": 2.0}
    with pytest.raises(TypeError, match="`soft_loss_weight` must be a number"):
        weights.set_soft({"a": 1.0, "b": 1.0})


def test_each_output_may_have_its_own():
    weights = made(soft={"a": 0.5, "b": Linear(1.0, 3.0, over=2)})
    assert numbers(weights) == {"a": 0.5, "b": 1.0}
    assert list(weights.scheduled()) == ["b_soft_loss_weight"]
    again = weights.get_config()["soft_loss_weight"]
    copy = made(soft=from_config(again))
    assert copy.get_config() == weights.get_config()
    weights.set_soft({"a": 1.5, "b": 2.5})  # a number ends a schedule
    assert numbers(weights) == {"a": 1.5, "b": 2.5} and not weights.scheduled()
    weights.set_soft(0.0)
    assert numbers(weights) == {"a": 0.0, "b": 0.0}
    with pytest.raises(TypeError, match="`b_soft_loss_weight` must be a number"):
        weights.set_soft({"a": 1.0})


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ({"a": 1.0, "b": -2.0}, ValueError, "`b_soft_loss_weight` must be 0 or more"),
        ({"a": 1.0}, TypeError, "`b_soft_loss_weight` must be a number"),
    ],
)
def test_wrong_numbers_set_nothing(value, error, text):
    weights = made(soft={"a": 0.5, "b": Linear(1.0, 3.0, over=2)})
    with pytest.raises(error, match=text):
        weights.set_soft(value)
    assert numbers(weights) == {"a": 0.5, "b": 1.0} and weights.scheduled()


def test_schedules_of_one_for_all():
    weights = made(hard=Linear(0.0, 1.0, over=4), soft=Linear(2.0, 0.0, over=4))
    assert sorted(weights.scheduled()) == ["hard_loss_weight", "soft_loss_weight"]
    assert float(weights.hard) == 0.0 and float(weights.soft) == 2.0
    weights.set_hard(0.5)
    assert list(weights.scheduled()) == ["soft_loss_weight"]


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_numbers_are_checked(bad):
    with pytest.raises(ValueError, match="`hard_loss_weight` must be (0 or more|fin)"):
        made(hard=bad)
    with pytest.raises(ValueError, match="`a_soft_loss_weight` must be (0 or more|fi)"):
        made(soft={"a": bad, "b": 1.0})


def network():
    inputs = keras.Input((4,))
    heads = {name: keras.layers.Dense(3, name=name)(inputs) for name in ("a", "b", "c")}
    return keras.Model(inputs, heads)


def test_a_distiller_is_assigned_what_it_is_made_with():
    losses = {"a": SoftTargets(), "b": SoftTargets(), "c": None}
    given = {"a": 0.5, "b": 0.25, "c": 0.0}  # one that is not taught may be named
    distiller = Distiller(network(), network(), losses, soft_loss_weight=given)
    for wrong, text in (
        ({**given, "box": 3.0}, "'box' for student.*Available: 'a', 'b', 'c'"),
        ({"a": 1.0}, "each output that is taught.*without 'b'"),
    ):
        with pytest.raises(ValueError, match=text):
            Distiller(network(), network(), losses, soft_loss_weight=wrong)
        with pytest.raises(ValueError, match=text):
            distiller.soft_loss_weight = wrong
    found = {name: float(w) for name, w in distiller.soft_loss_weight.items()}
    assert found == {"a": 0.5, "b": 0.25}
    distiller.soft_loss_weight = {**given, "a": 2.0}
    assert float(distiller.soft_loss_weight["a"]) == 2.0
