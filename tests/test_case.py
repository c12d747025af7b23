"""What a check reads of data, in every form that soft labels bring."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kdlite
from kdlite.distill.losses import SoftTargets
from kdlite.distill.taps import logits_model
from kdlite.symptoms.case import examine


def network() -> keras.Model:
    hidden = keras.layers.Dense(5, name="hidden")
    return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])


@pytest.mark.parametrize("features", [(), ("hidden",)])
def test_stored_soft_labels_are_the_teachers_word(tmp_path, features) -> None:
    x, y = np.eye(4, dtype="float32"), np.arange(4) % 3
    teacher = network()
    soft = kdlite.SoftLabels.build(teacher, x, tmp_path, features=features, verbose=0)
    data = soft.attach((x, y), batch_size=4, shuffle=False)
    case, labels = examine(
        *(logits_model(network()), None, None, data),
        *(4, SoftTargets(), None, None),
    )
    assert case.teacher is None and case.batch_size == 4
    np.testing.assert_allclose(case.teacher_logits, teacher(x), atol=1e-5)
    np.testing.assert_array_equal(case.x, x)
    np.testing.assert_array_equal(labels, y)
    checked = kdlite.check(network(), None, data, quantization=None, loss=None)
    assert "data" not in {finding.code for finding in checked.findings}
