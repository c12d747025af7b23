"""Weights of losses: numbers or schedules, for all outputs or by output."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.distill.loss_weights import LossWeights
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
