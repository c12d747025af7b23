"""Several replicas and workers train what one does at the same global batch."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from distributed import X, network, programs, train
from processes import run_in_copy

from kdlite.distill.replicas import share, whole
from kdlite.distill.soft_labels import SoftLabels


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels")
    SoftLabels.build(network(1), X, path)
    return path


@pytest.fixture(scope="module")
def on_one_device(labels):
    """What this process makes of a case; step by step, which needs no tracing."""
    strategy = tf.distribute.get_strategy()
    return functools.cache(lambda case: train(strategy, case, labels, eagerly=True))


def check_equal(told, on_one_device):
    for case, result in told.items():
        one = on_one_device(case)
        assert set(one["history"]) == set(result["history"])
        # Sums in another order: a few units of float32 at values up to 10, and what
        # 20 steps make of them.
        for name, values in one["history"].items():
            np.testing.assert_allclose(
                result["history"][name], values, rtol=2e-5, err_msg=f"{case} {name}"
            )
        for ours, theirs in zip(result["weights"], one["weights"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=case)


def test_mirrored_over_two_devices(labels, on_one_device, tmp_path):
    # With "features" as with "online" there is a teacher, and a loss on its outputs.
    cases = ["stored", "keras_loss", "keras_function", "features"]
    told = {"kind": "mirrored", "labels": str(labels), "cases": cases}
    ended = run_in_copy("distributed:run", tmp_path, **told)
    assert ended.returncode == 0, ended.printed
    trained = json.loads((tmp_path / "0.json").read_text())
    assert list(trained) == cases
    check_equal(trained, on_one_device)


def test_two_workers_in_a_loop_of_train_steps(labels, on_one_device, tmp_path):
    told = {"kind": "multi_worker", "labels": str(labels)}
    told["cases"] = ["online", "stored"]
    ended = run_in_copy("distributed:run_two", tmp_path, **told)
    assert json.loads((tmp_path / "codes.json").read_text()) == [0, 0], ended.printed
    first, second = (
        json.loads((tmp_path / f"{index}.json").read_text()) for index in (0, 1)
    )
    assert first == second and list(first) == told["cases"]
    check_equal(first, on_one_device)


def test_the_loop_of_the_page_trains_with_two_workers(tmp_path, monkeypatch):
    program = programs()[1]
    monkeypatch.chdir(tmp_path)
    made = {}
    data = program[program.index("def network") : program.index("with strategy")]
    exec("import keras, numpy as np, kdlite\n" + data, made)
    SoftLabels.build(made["network"](16), made["x"], "labels", verbose=0)
    told = {"kind": "page", "program": program}
    ended = run_in_copy("distributed:run_two", tmp_path, **told)
    assert json.loads((tmp_path / "codes.json").read_text()) == [0, 0], ended.printed
    assert (tmp_path / "student.keras").exists()


def test_keras_itself_cannot_fit_with_two_workers(tmp_path):
    """When this fails, Keras has learned it: docs/distributed.md is to be changed."""
    told = {"kind": "page", "program": programs()[0]}
    ended = run_in_copy("distributed:run_two", tmp_path, **told)
    assert 0 not in json.loads((tmp_path / "codes.json").read_text())
    assert "PerReplica" in ended.printed and "to a Tensor" in ended.printed


def test_without_a_strategy_a_loss_is_itself():
    loss = tf.constant(3.0)
    assert share(loss) is loss and whole(loss) is loss
