from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kdlite
from kdlite.compress import FoldedLayer, is_quantize_aware, tfmot, twin_training
from kdlite.compress._tfmot_process import TfmotProcess
from kdlite.compress.tfmot import CompressionError

CLUSTERS = 6


def net(head: str | None = None) -> keras.Model:
    """A net with what phone students have, a model inside it too."""
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Rescaling(0.5)(inputs)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(momentum=0.5, name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    block = keras.Sequential(
        [
            keras.Input((8, 8, 8)),
            layers.DepthwiseConv2D(3, padding="same", name="dw"),
            layers.Conv2D(8, 1, name="pw"),
        ],
        name="block",
    )
    x = layers.Add(name="add")([x, block(x)])
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(3, activation=head, name="head")(x))


def data(count: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, count)
    x = rng.normal(0, 1, (count, 8, 8, 4)).astype("float32")
    x[np.arange(count), :, :, y] += 1.0
    return x, y


@pytest.fixture(scope="module")
def student() -> keras.Model:
    keras.utils.set_random_seed(1)
    return net(head="softmax")


@pytest.fixture(scope="module")
def soft(student, tmp_path_factory) -> tf.data.Dataset:
    """Data with the soft labels of a teacher: what `Distiller.fit` takes."""
    teacher = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )
    teacher.layers[-1].set_weights([8 * np.eye(4)[:, :3], np.zeros(3)])
    folder = tmp_path_factory.mktemp("labels") / "soft"
    labels = kdlite.SoftLabels.build(teacher, data(), folder)
    return labels.attach(data(), batch_size=16)


@pytest.fixture(scope="module")
def pruned(student, soft) -> keras.Model:
    before = student.get_weights()
    legacy = tf.keras, dict(os.environ)
    made = tfmot.prune(
        student, soft, {"*": 0.5, "hidden": 0.75}, epochs=3, learning_rate=1e-2, seed=5
    )
    # Nothing here changes: not the student, not Keras, not the environment.
    for a, b in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tf.keras, dict(os.environ)) == legacy
    assert tf.keras.layers.Dense is keras.layers.Dense
    assert not {"tf_keras", "tensorflow_model_optimization"} & set(sys.modules)
    return made


@pytest.fixture(scope="module")
def clustered(pruned, soft) -> keras.Model:
    return tfmot.cluster(
        pruned, soft, CLUSTERS, keep_zeros=True, epochs=2, learning_rate=1e-3
    )


@pytest.fixture(scope="module")
def answered() -> Iterator[list[tuple]]:
    """What the other process answered at the end, and the batches that it had."""
    answers = []

    def kept(*arguments):
        answers.append((run(*arguments), arguments[1]))
        return answers[-1][0]

    run, tfmot.train_twin = tfmot.train_twin, kept
    yield answers
    tfmot.train_twin = run


@pytest.fixture(scope="module")
def quantized(clustered, soft, answered) -> keras.Model:
    return tfmot.quantize_aware(
        clustered, soft, keep_zeros=True, keep_clusters=True, learning_rate=1e-4
    )


def kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {
        layer.name: np.asarray(layer.kernel)
        for layer in model._flatten_layers()
        if hasattr(layer, "kernel")
    }


def shares(model: keras.Model) -> dict[str, float]:
    """The part of each kernel that is zero."""
    return {name: float((k == 0).mean()) for name, k in kernels(model).items()}


SPARSITY = {"conv": 0.5, "pw": 0.5, "hidden": 0.75, "head": 0.5, "dw": 0.0}


def exported(model, folder, recipe="int8", **options):
    """The report on an exported file: what the file itself holds."""
    x, _ = data()
    if not is_quantize_aware(model) and recipe != "float32":
        options["calibration_data"] = np.concatenate([x, x])
    path = folder / f"{recipe}.tflite"
    kdlite.export(model, path, recipe, verify_data=x[:16], overwrite=True, **options)
    report = kdlite.size_report(path)
    assert report.size_bytes == path.stat().st_size
    # In the order of the graph.
    return dict(
        zip(("conv", "dw", "pw", "hidden", "head"), report.weights, strict=True)
    )


def test_pruned_kernels_have_just_so_many_zeros(student, pruned) -> None:
    assert shares(pruned) == SPARSITY
    names = [[x.name for x in model._flatten_layers()] for model in (student, pruned)]
    assert names[0] == names[1]


def test_training_taught_the_student(student, pruned) -> None:
    x, y = data()

    def loss(model):
        scores = np.asarray(model(x, training=False))
        return float(-np.log(scores[np.arange(len(y)), y]).mean())

    assert loss(pruned) < 0.7 * loss(student)


def test_zeros_and_clusters_are_in_the_int8_files(pruned, clustered, tmp_path) -> None:
    for model in (pruned, clustered):
        found = exported(model, tmp_path)
        for name, share in SPARSITY.items():
            # Rounding adds zeros, and takes none.
            assert found[name].zeros >= share
            if model is clustered and name != "dw":
                assert found[name].values_per_channel <= CLUSTERS


@pytest.mark.slow
def test_they_are_in_the_float_files(pruned, clustered, tmp_path) -> None:
    found = exported(pruned, tmp_path, "float32")
    assert {name: weights.zeros for name, weights in found.items()} == SPARSITY
    found = exported(clustered, tmp_path, "float32")
    for name in ("pw", "hidden", "head"):
        assert found[name].values <= CLUSTERS
    # Batch normalization scales each channel.
    assert CLUSTERS < found["conv"].values <= 8 * CLUSTERS


def test_clusters_are_counted_and_keep_zeros(clustered) -> None:
    for name, kernel in kernels(clustered).items():
        if name != "dw":
            assert len(np.unique(kernel)) <= CLUSTERS
            assert (kernel == 0).mean() >= SPARSITY[name]


def test_what_is_quantized_keeps_zeros_and_clusters(quantized, tmp_path) -> None:
    assert is_quantize_aware(quantized)
    found = exported(quantized, tmp_path)
    for name, share in SPARSITY.items():
        assert found[name].dtype == "int8"
        assert found[name].zeros >= share
        if name != "dw":
            assert found[name].values_per_channel <= CLUSTERS


def test_it_is_the_model_that_was_trained(quantized, answered) -> None:
    answer, batches = answered[-1]
    wanted = tf.nn.softmax(answer["outputs"]).numpy()
    found = np.asarray(quantized(batches.probe[0], training=False))
    # A Dense kernel has finer steps here: within the noise of a few roundings to 8 bits
    # of logits that reach to some 4.
    assert np.abs(found - wanted).max() < 0.05
    assert np.abs(wanted - 1 / 3).max() > 0.2


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(student, soft, pruned) -> None:
    # `attach` shows each pass in another order, so arrays.
    first, second = (
        tfmot.prune(student, data(), 0.5, schedule="constant", seed=2) for _ in range(2)
    )
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_two_of_four_are_zero_in_the_file(student, tmp_path) -> None:
    made = tfmot.prune(student, data(), pattern="2:4")
    for recipe in ("float32", "int8"):
        found = exported(made, tmp_path, recipe)
        assert [k for k, w in found.items() if w.two_of_four] == [
            *("conv", "pw", "hidden", "head")
        ]


@pytest.mark.slow
def test_channels_that_are_not_in_fours_are_told() -> None:
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, name="three")(inputs)
    x = layers.Conv2D(7, 3, name="six")(x)
    x = layers.Conv2D(8, 3, name="seven")(x)
    x = layers.Conv2D(5, 1, name="eight")(x)
    x = layers.Dense(3, name="five")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    images, y = data()
    told = (
        r"'three' with 3 \(33% zeros\), 'six' with 6 \(33% zeros\), "
        r"'seven' with 7 \(43% zeros\), 'five' with 5 \(40% zeros\)\. Fix: leave"
    )
    with pytest.warns(UserWarning, match=told):
        made = tfmot.prune(model, (images[..., :3], y), pattern="2:4")
    assert shares(made) == pytest.approx(
        {"three": 1 / 3, "six": 2 / 6, "seven": 3 / 7, "eight": 1 / 2, "five": 2 / 5}
    )


@pytest.mark.slow
def test_blocks_are_zero_together(student) -> None:
    made = tfmot.prune(student, data(), 0.5, pattern=(4, 1))
    hidden = kernels(made)["hidden"]  # (8, 12)
    blocks = (hidden.reshape(2, 4, 12) == 0).sum(1)
    assert set(np.unique(blocks)) == {0, 4}
    assert (hidden == 0).mean() == 0.5
    assert shares(made)["conv"] == 0.0


@pytest.mark.slow
def test_plain_labels_weights_and_several_inputs(capsys) -> None:
    x, y = data()
    inputs = [keras.Input((8, 8, 4), name=name) for name in ("b", "a")]
    pools = [layers.GlobalAveragePooling2D()(z) for z in inputs]
    scores = layers.Dense(3, name="head")(layers.Concatenate()(pools))
    model = keras.Model(inputs, scores)
    shares = np.eye(3, dtype="float32")[y]
    weighted = tf.data.Dataset.from_tensor_slices(
        ({"a": x, "b": -x}, shares, np.ones(len(y), "float32"))
    )
    # The first order of a dict is not that of the inputs.
    made = tfmot.prune(model, weighted.batch(32), 0.5, verbose=2, epochs=2)
    printed = capsys.readouterr().out
    assert "Epoch 1/2" in printed and "Epoch 2/2" in printed
    assert "loss:" in printed and "accuracy:" in printed
    assert (np.asarray(made.get_layer("head").kernel) == 0).mean() == 0.5


# --- what is refused, before anything is started


@pytest.fixture
def no_process(monkeypatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(twin_training, "TfmotProcess", started)


PRUNE_ERRORS = {
    "a sparsity of all": (
        {"sparsity": 1.0},
        r"`sparsity` must be a number above 0 and below 1\. Received: sparsity=1\.0",
    ),
    "a sparsity in percent": ({"sparsity": 75}, "Received: sparsity=75. Fix:"),
    "no such layer": (
        {"sparsity": {"cnov": 0.5}},
        r"Each pattern must fit a layer\. Received: 'cnov'.*'conv'",
    ),
    "a layer without such weights": (
        {"sparsity": {"gap": 0.5}},
        r"Received: 'gap', which is layer 'gap' of class GlobalAveragePooling2D",
    ),
    "no layer at all": ({"sparsity": {}}, "Received: an empty mapping"),
    "an unknown pattern": (
        {"pattern": "1:2"},
        r"'2:4' or \(height, width\) of a block\. Received: pattern='1:2'",
    ),
    "2:4 of three quarters": (
        {"pattern": "2:4", "sparsity": 0.8},
        r"half of the weights are zero\. Received: sparsity=0\.8\. Fix: sparsity=0\.5",
    ),
    "an unknown schedule": (
        {"schedule": "linear"},
        r"'polynomial' or 'constant'\. Received: schedule='linear'",
    ),
    "a ramp that never ends": (
        {"ramp": 2},
        r"`ramp` must be a number above 0 and at most 1\. Received: ramp=2",
    ),
    "no epochs": ({"epochs": 0}, "`epochs` must be a whole number from 1 on"),
    "a negative rate": ({"learning_rate": -1.0}, "`learning_rate` must be a number ab"),
    "no temperature": ({"temperature": 0}, "`temperature` must be a number above 0"),
    "no loss": (
        {"hard_loss_weight": 0, "soft_loss_weight": 0},
        "One of the losses must count",
    ),
    "a wrong verbose": ({"verbose": "loud"}, "Received: verbose='loud'. Fix: 1 for"),
    "no time": ({"time_limit_s": 0}, "`time_limit_s` must be a number above 0"),
}


@pytest.mark.parametrize("case", PRUNE_ERRORS)
def test_wrong_arguments_are_refused(case, student, no_process) -> None:
    options, text = PRUNE_ERRORS[case]
    with pytest.raises(ValueError, match=text):
        tfmot.prune(student, data(), **options)


def test_an_unknown_argument_is_refused(student, no_process) -> None:
    with pytest.raises(TypeError, match=r"Received: 'epoch'\. Fix: epochs\."):
        tfmot.prune(student, data(), epoch=2)


def with_nan(values: np.ndarray, index: int) -> np.ndarray:
    values = values.copy()
    values[index].flat[1] = np.nan if index != 5 else np.inf
    return values


DATA_ERRORS = {
    "no labels": (
        lambda x, y: tf.data.Dataset.from_tensor_slices(x).batch(8),
        ValueError,
        r"labels, soft labels or both\. Received: batches of inputs alone",
    ),
    "an array": (lambda x, y: x, TypeError, "Received: data of type ndarray"),
    "labels beyond the classes": (
        lambda x, y: (x, y + 7),
        ValueError,
        r"classes of the student, 0 to 2\. Received: 7 to 9",
    ),
    "float class numbers": (
        lambda x, y: (x, y.astype("float32")),
        ValueError,
        r"Received: float32 of shape .*Fix: cast class numbers to int32",
    ),
    "NaN in a sample": (
        lambda x, y: (with_nan(x, 71), y),
        ValueError,
        "inputs with NaN or infinity in 1 of 96 samples, the first of index 71. Fix: ",
    ),
    "infinity in a dataset": (
        lambda x, y: tf.data.Dataset.from_tensor_slices((with_nan(x, 5), y)).batch(8),
        ValueError,
        "inputs with NaN or infinity in 1 of 8 samples, the first of index 5. Fix: ",
    ),
    "NaN in class shares": (
        lambda x, y: (x, with_nan(np.eye(3, dtype="float32")[y], 9)),
        ValueError,
        "labels with NaN or infinity in 1 of 96 samples, the first of index 9. Fix: ",
    ),
    "fewer labels": (lambda x, y: (x, y[:9]), ValueError, "lengths 9, 96"),
    "other images": (
        lambda x, y: (x[:, :4], y),
        ValueError,
        r"input 'image' of shape \(batch, 8, 8, 4\)\. Received: \(32, 4, 8, 4\)",
    ),
    "another input's name": (
        lambda x, y: ({"img": x}, y),
        ValueError,
        "Received: 'img', without 'image'",
    ),
    "no end": (
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat(),
        ValueError,
        "a dataset of unknown or endless batches",
    ),
}


@pytest.mark.parametrize("case", DATA_ERRORS)
def test_wrong_data_are_refused(case, student, no_process) -> None:
    make, error, text = DATA_ERRORS[case]
    with pytest.raises(error, match=text):
        tfmot.prune(student, make(*data()))


def test_soft_labels_are_attached_first(student, soft, tmp_path, no_process) -> None:
    labels = kdlite.SoftLabels.build(net(), data()[0], tmp_path / "labels")
    with pytest.raises(TypeError, match=r"Fix: soft_labels\.attach\(\(x, y\)\)"):
        tfmot.prune(student, (data()[0], labels))
    other = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Flatten(), layers.Dense(5, name="five")]
    )
    with pytest.raises(ValueError, match=r"student's shape \(16, 5\)\. Received: \(16"):
        tfmot.prune(other, soft)


def test_only_keras_models_are_taken(student, soft, no_process) -> None:
    with pytest.raises(TypeError, match="Received: student=str"):
        tfmot.prune("student.keras", soft)
    distiller = kdlite.Distiller(student)
    with pytest.raises(TypeError, match=r"which trains one\. Fix: its \.student"):
        tfmot.cluster(distiller, soft)


def test_wrong_clusters_are_refused(student, soft, no_process) -> None:
    for clusters in (1, 2.5, True):
        with pytest.raises(ValueError, match="`clusters` must be a whole number from"):
            tfmot.cluster(student, soft, clusters)
    with pytest.raises(ValueError, match="number from 3 on. Received: clusters=2. F"):
        tfmot.cluster(student, soft, 2, keep_zeros=True)
    with pytest.raises(ValueError, match="fewer than a layer has weights"):
        tfmot.cluster(student, soft, 10_000)


def test_there_must_be_something_to_keep(student, soft, no_process) -> None:
    with pytest.raises(ValueError, match="no kernel of which has a zero. Fix: prune"):
        tfmot.cluster(student, soft, keep_zeros=True)
    with pytest.raises(ValueError, match="`keep_zeros` is for a pruned student"):
        tfmot.quantize_aware(student, soft, keep_zeros=True)
    with pytest.raises(ValueError, match="whose kernels share no values. Fix: cluster"):
        tfmot.quantize_aware(student, soft, keep_clusters=True)


def test_layers_that_cannot_be_quantized_are_named(soft, no_process) -> None:
    inputs = keras.Input((8, 8, 4))

    def refused(x, text):
        x = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
        with pytest.raises(ValueError, match=text):
            tfmot.quantize_aware(keras.Model(inputs, x), soft)

    norm = layers.BatchNormalization(name="bn")
    refused(norm(inputs), "'bn' of class BatchNormalization, which follows input and")
    conv = layers.Conv2D(4, 1)(inputs)
    norm = layers.BatchNormalization(name="bn")
    refused(norm(conv, training=False), "'bn' .*held at its moving statistics")
    twice = layers.Conv2D(4, 1, name="twice")
    refused(twice(twice(inputs)), r"layer 'twice' .*called twice\. Fix: two layers")
    refused(layers.LayerNormalization(name="ln")(inputs), "layer 'ln'")


def test_missing_packages_are_named(student, soft, monkeypatch, no_process) -> None:
    find = tfmot.importlib.util.find_spec
    monkeypatch.setattr(
        tfmot.importlib.util,
        "find_spec",
        lambda name: None if name == "tf_keras" else find(name),
    )
    with pytest.raises(ImportError, match=r'no tf_keras\. Fix: pip install "kdlite\['):
        tfmot.prune(student, soft)


# --- the other process


def test_what_tfmot_refuses_is_named_before_the_first_step(soft) -> None:
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 1)(inputs)
    x = layers.PReLU(shared_axes=(1, 2), name="prelu")(x)
    x = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x, name="net")
    text = "Received: model='net', of which tfmot's .* PReLU: layer 'prelu'. Fix:"
    with pytest.raises(ValueError, match=text):
        tfmot.quantize_aware(model, soft)


@pytest.mark.parametrize("form", ["functional", "sequential"])
def test_a_twin_that_computes_otherwise_is_refused(form, student) -> None:
    if form == "sequential":
        student = keras.Sequential(
            [keras.Input((8, 8, 4)), layers.Flatten(), layers.Dense(3)]
        )
    twin = tfmot.Twin(student)
    options = tfmot.Training(seed=0, batch_size=32)
    batches = twin_training.Batches(data(), twin, options)
    outputs = np.array(student(batches.probe[0], training=False))
    scale = max(1.0, np.abs(outputs).max())
    twin_training._check_equal(twin, batches, outputs + 0.9e-5 * scale)
    for wrong in (outputs + 1.1e-5 * scale, outputs * np.nan):
        with pytest.raises(ValueError, match="must be equal within 1e-05 of the larg"):
            twin_training._check_equal(twin, batches, wrong)


@pytest.fixture
def started(monkeypatch) -> list[TfmotProcess]:
    """The processes that are started."""
    processes = []

    class Known(TfmotProcess):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            processes.append(self)

    monkeypatch.setattr(twin_training, "TfmotProcess", Known)
    return processes


def test_the_time_limit_stops_it(student, soft, started) -> None:
    with pytest.raises(CompressionError, match=r"done within 0\.5 s, and was stopped"):
        tfmot.prune(student, soft, 0.5, time_limit_s=0.5)
    assert started[0]._process.returncode == -signal.SIGKILL


def meanwhile(started, act) -> threading.Thread:
    def wait() -> None:
        while not started:
            time.sleep(0.05)
        act(started[0]._process.pid)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_process_that_dies_is_an_error(student, soft, started) -> None:
    killer = meanwhile(started, lambda pid: os.kill(pid, signal.SIGSEGV))
    with pytest.raises(CompressionError, match="was ended by signal 11"):
        tfmot.prune(student, soft, 0.5)
    killer.join()


def test_an_interrupt_leaves_nothing(student, soft, started) -> None:
    before = student.get_weights()
    stopper = meanwhile(started, lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        tfmot.prune(student, soft, 0.5)
    stopper.join()
    assert started[0]._process.returncode == -signal.SIGKILL
    for a, b in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_no_number_stops_the_training(caplog) -> None:
    options = twin_training.checked_training({"verbose": 0, "epochs": 2})
    with caplog.at_level(logging.INFO):
        progress = twin_training._Progress(1, options, 2)
        progress.add({"loss": 1.0, "accuracy": 0.5})
        progress.add({"loss": 3.0, "accuracy": 1.0})
        progress.close()
    assert "epoch 2/2: {'loss': 2.0, 'accuracy': 0.75}" in caplog.text
    with pytest.raises(ValueError, match="Received: loss=nan in epoch 2/2, step 1."):
        twin_training._Progress(1, options, 2).add({"loss": float("nan")})


@pytest.mark.slow
def test_the_example_in_the_docs_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "compression.md").read_text()
    (block,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "kdlite.tfmot" in block
    )
    exec(compile(block, "compression.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert printed.count("Epoch 1/") == 3
    assert "\npcqat.tflite: " in printed


@pytest.mark.slow
def test_zeros_are_kept_where_there_are_some(student, soft) -> None:
    pruned = tfmot.prune(student, soft, {"block/pw": 0.5, "hidden": 0.75})
    kept = {"conv": 0.0, "dw": 0.0, "pw": 0.5, "hidden": 0.75, "head": 0.0}
    assert shares(pruned) == kept
    clustered = tfmot.cluster(pruned, soft, CLUSTERS, keep_zeros=True)
    qat = tfmot.quantize_aware(clustered, soft, keep_zeros=True, keep_clusters=True)
    found = {
        layer.layer.name: np.asarray(layer.layer.kernel)
        for layer in qat._flatten_layers()
        if isinstance(layer, FoldedLayer)
    }
    for name, share in kept.items():
        for kernel in (kernels(clustered)[name], found[name]):
            assert (kernel == 0).mean() >= share
            assert share or kernel.all()
            # From here on, each channel of a convolution trains its own values.
            for channel in np.moveaxis(kernel, -1, 0):
                assert name == "dw" or len(np.unique(channel)) <= CLUSTERS
