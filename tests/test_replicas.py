"""Several replicas and workers train what one does at the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from distributed import X, network, train

from kdlite.distill.replicas import share, whole
from kdlite.distill.soft_labels import SoftLabels

SCRIPT = Path(__file__).parent / "distributed.py"


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels")
    SoftLabels.build(network(1), X, path)
    return path


def start(*arguments, **env):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers(kind, folder, labels):
    """Runs two workers on this machine; returns exit codes and what they said."""
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("localhost", 0))
        ports = [each.getsockname()[1] for each in (one, two)]
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    started = [
        start(
            kind,
            folder / f"{index}.json",
            labels,
            TF_CONFIG=json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=500)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


def check_equal(told, labels):
    for case, result in told.items():
        one = train(tf.distribute.get_strategy(), case, labels)
        assert set(one["history"]) == set(result["history"])
        # Sums in another order: a few units of float32 at values up to 10, and what
        # 20 steps make of them.
        for name, values in one["history"].items():
            np.testing.assert_allclose(
                result["history"][name], values, rtol=2e-5, err_msg=f"{case} {name}"
            )
        for ours, theirs in zip(result["weights"], one["weights"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=case)


def test_mirrored_over_two_devices(labels, tmp_path):
    process = start("mirrored", tmp_path / "out.json", labels)
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said
    check_equal(json.loads((tmp_path / "out.json").read_text()), labels)


def test_two_workers_in_a_loop_of_train_steps(labels, tmp_path):
    codes, said = workers("multi_worker", tmp_path, labels)
    assert codes == [0, 0], said
    first, second = (
        json.loads((tmp_path / f"{index}.json").read_text()) for index in (0, 1)
    )
    assert first == second
    check_equal(first, labels)


def test_keras_itself_cannot_fit_with_two_workers(labels, tmp_path):
    """When this fails, Keras has learned it: docs/distributed.md is to be changed."""
    codes, said = workers("keras_fit", tmp_path, labels)
    assert 0 not in codes
    assert any("PerReplica" in text and "to a Tensor" in text for text in said), said


def test_without_a_strategy_a_loss_is_itself():
    loss = tf.constant(3.0)
    assert share(loss) is loss and whole(loss) is loss
