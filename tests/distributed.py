"""A short training as one worker, replica or process of many has it.

`test_replicas.py` runs it in processes of their own, as devices and clusters are set up
before TensorFlow begins.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import traceback
from pathlib import Path

import numpy as np
import tensorflow as tf

from kdlite.lite.fork_server import _end_with

PAGE = Path(__file__).parent.parent / "docs" / "distributed.md"
N, BATCH, EPOCHS = 40, 4, 2  # ten batches: see docs/distributed.md
rng = np.random.default_rng(0)
X = rng.normal(size=(N, 6)).astype("float32")
Y = rng.integers(0, 3, N)
W = rng.uniform(0.5, 2.0, N).astype("float32")


def strategy(kind):
    if kind == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    if kind == "one":
        return tf.distribute.get_strategy()
    return tf.distribute.MultiWorkerMirroredStrategy()


def network(seed):
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, activation="tanh", kernel_regularizer="l2", name="hidden"),
            layers.Dense(3),
        ]
    )
    weights = np.random.default_rng(seed)
    model.set_weights([weights.normal(size=v.shape) for v in model.weights])
    return model


def train(scope, case, labels, loop=False, eagerly=False):
    """Trains a student; returns what was logged and its weights."""
    import keras

    import kdlite

    with scope.scope():
        teacher = None if case == "stored" else network(1)
        student, options = network(2), {}
        if case == "keras_loss":
            kl = keras.losses.KLDivergence()
            options["soft_loss"] = keras.distillation.LogitsDistillation(loss=kl)
        if case == "keras_function":  # one that divides by no number of replicas
            options["soft_loss"] = keras.distillation.LogitsDistillation(loss="mse")
        if case == "features":
            options["feature_losses"] = {("hidden", "hidden"): kdlite.losses.Hint()}
        distiller = kdlite.Distiller(student, teacher, **options)
        distiller.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            run_eagerly=eagerly,
        )
    # Keras's own losses give one value a batch, which weights cannot act on.
    parts = (X, Y) if case.startswith("keras") else (X, Y, W)
    data = tf.data.Dataset.from_tensor_slices(parts).batch(BATCH)
    if case == "stored":
        data = kdlite.SoftLabels.load(labels).attach(parts, BATCH, seed=1)
    if loop:
        history = _loop(scope, distiller, data)
    else:
        history = distiller.fit(data, epochs=EPOCHS, shuffle=False, verbose=0).history
    weights = [variable.numpy().tolist() for variable in student.weights]
    return {"history": history, "weights": weights}


def programs():
    """The examples of the page that take two processes."""
    there = r"<!-- not run: here, but by tests/test_replicas.py in two processes"
    there += r"[^\n]*-->\n"
    return re.findall(there + r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def _loop(scope, distiller, data):
    """The loop of docs/distributed.md, for a strategy that Keras cannot fit with."""
    distributed = scope.experimental_distribute_dataset(data)

    @tf.function
    def step(batch):
        scope.run(distiller.train_step, args=(batch,))

    history = {}
    for _ in range(EPOCHS):
        distiller.reset_metrics()
        for batch in distributed:
            step(batch)
        for name, value in distiller.get_metrics_result().items():
            history.setdefault(name, []).append(float(value))
    return history


def run(folder, index=0):
    """What one process does: what it trained is in `folder/<index>.json`."""
    told = json.loads((folder / "told.json").read_text())
    if told["kind"] == "page":
        os.chdir(folder)
        exec(compile(told["program"], PAGE.name, "exec"), {"__name__": "__main__"})
        return
    scope = strategy(told["kind"])
    loop = told["kind"] == "multi_worker"
    trained = {c: train(scope, c, told["labels"], loop) for c in told["cases"]}
    (folder / f"{index}.json").write_text(json.dumps(trained))


def run_two(folder):
    """Two workers on this machine; `folder/codes.json` says how they ended."""
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("localhost", 0))
        ports = [each.getsockname()[1] for each in (one, two)]
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    started = [_start_worker(folder, cluster, index) for index in (0, 1)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    (folder / "codes.json").write_text(json.dumps(codes))


def _start_worker(folder, cluster, index):
    this = os.getpid()
    pid = os.fork()  # TensorFlow is imported, and has not begun
    if pid:
        return pid
    code = 1
    try:
        _end_with(this)
        task = {"type": "worker", "index": index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        run(folder, index)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
