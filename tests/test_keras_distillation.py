"""docs/keras-distillation.md: each row of its table, measured on both sides."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdlite

N, FEATURES, CLASSES, BATCH = 16, 4, 3, 8
PAGE = Path(__file__).parent.parent / "docs" / "keras-distillation.md"
TEMPERATURE = 3.0


@keras.saving.register_keras_serializable("kdlite_tests")
class Calls(layers.Layer):
    """Counts its calls in a variable, so in compiled code too."""

    def build(self, input_shape):
        self.calls = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.calls.assign_add(1)
        return inputs


def model(seed, activation=None, body=(), l2=0.0):
    keras.utils.set_random_seed(seed)
    head = layers.Dense(
        CLASSES,
        activation=activation,
        kernel_regularizer=keras.regularizers.L2(l2) if l2 else None,
    )
    first = layers.Dense(6, activation="relu", name="first")
    return keras.Sequential([keras.Input((FEATURES,)), first, *body, head])


def theirs(student, teacher, loss=None, weight=0.0, learning_rate=0.0, **kwargs):
    """Keras's distiller, by default with Keras's default loss."""
    loss = loss or keras.distillation.LogitsDistillation(temperature=TEMPERATURE)
    distiller = keras.distillation.Distiller(
        teacher, student, loss, student_loss_weight=weight
    )
    return compiled(distiller, learning_rate, **kwargs)


def ours(student, teacher, loss=None, weight=0.0, learning_rate=0.0, **kwargs):
    loss = loss or kdlite.losses.SoftTargets(TEMPERATURE)
    distiller = kdlite.Distiller(student, teacher, loss, weight, 1.0 - weight)
    return compiled(distiller, learning_rate, **kwargs)


def compiled(distiller, learning_rate, from_logits=True, run_eagerly=True):
    # A few steps are sooner taken than traced; where compiled code is the matter it is
    # asked for.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    optimizer = keras.optimizers.SGD(learning_rate)
    distiller.compile(optimizer, loss, run_eagerly=run_eagerly)
    return distiller


def fit(distiller, x, y=None, **kwargs):
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    return distiller.fit(x, y, **kwargs).history


def soft(logs):
    return logs["soft_loss" if "soft_loss" in logs else "distillation_loss"][-1]


def hinton(teacher, student):
    """T^2 KL(softmax(t / T) || softmax(s / T)) in float64."""
    scaled = [np.asarray(v, "float64") / TEMPERATURE for v in (teacher, student)]
    log_p, log_q = (v - np.log(np.exp(v).sum(-1, keepdims=True)) for v in scaled)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1).mean() * TEMPERATURE**2


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(2).integers(0, CLASSES, N)


@pytest.fixture
def student():
    return model(0)


@pytest.fixture
def teacher():
    return model(7)


@pytest.mark.parametrize("name", ["LogitsDistillation", "FeatureDistillation"])
def test_losses_of_keras_run_in_kdlite(x, y, student, teacher, name):
    kl, mse = keras.losses.KLDivergence(), keras.losses.MeanSquaredError()
    loss, expected = {
        "LogitsDistillation": (
            keras.distillation.LogitsDistillation(TEMPERATURE, kl),
            hinton(teacher(x), student(x)),
        ),
        "FeatureDistillation": (
            keras.distillation.FeatureDistillation(mse),
            np.square(teacher(x) - student(x)).mean(),
        ),
    }[name]
    logs = fit(ours(student, teacher, loss), x, y)
    assert soft(logs) == pytest.approx(expected, rel=1e-4)


def test_a_loss_of_keras_on_features_runs_in_kdlite(x, y, student, teacher):
    loss = keras.distillation.FeatureDistillation(keras.losses.MeanSquaredError())
    pairs = {("first", "first"): loss}
    made = kdlite.Distiller(student, teacher, None, 0.0, 0.0, feature_losses=pairs)
    features = [m.layers[0](x) for m in (teacher, student)]
    expected = float(np.square(features[0] - features[1]).mean())
    assert fit(compiled(made, 0.0), x, y)["loss"][0] == pytest.approx(
        expected, rel=1e-4
    )


ROWS = {}


def row(title):
    """Names the row of the page's table that a test is the measurement of."""

    def named(test):
        ROWS[title] = test
        return test

    return named


def test_every_row_of_the_page_is_measured_here():
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE)
    assert rows[0] == "what"
    assert set(rows[1:]) - {"---"} == set(ROWS)


@row("default loss on logits (5, 1, -2) and (1, 4, 0), T = 3")
def test_default_loss():
    logits = ops.array([[5.0, 1.0, -2.0]]), ops.array([[1.0, 4.0, 0.0]])
    default = keras.distillation.LogitsDistillation(temperature=3.0)
    assert float(default.compute_loss(*logits)) == pytest.approx(0.7324, abs=1e-4)
    loss = kdlite.losses.SoftTargets(temperature=3.0)
    assert float(loss(*logits)) == pytest.approx(hinton(*logits))
    assert float(loss(*logits)) == pytest.approx(5.2828, abs=1e-4)


@row("models that end in a softmax")
def test_softmax_heads(x, y):
    student, teacher = model(0, "softmax"), model(7, "softmax")
    plain, big = model(0), model(7)
    expected = hinton(big(x), plain(x))
    kl = keras.distillation.LogitsDistillation(TEMPERATURE, keras.losses.KLDivergence())
    softened_again = hinton(teacher(x), student(x))
    logs = fit(theirs(student, teacher, kl, from_logits=False), x, y)
    assert soft(logs) == pytest.approx(softened_again, rel=1e-3)
    assert softened_again < expected / 4
    logs = fit(ours(student, teacher, from_logits=False), x, y)
    assert soft(logs) == pytest.approx(expected, rel=1e-4)


@row("`sample_weight`, `class_weight`")
def test_sample_weights(x, y, student, teacher):
    zeros = {"sample_weight": np.zeros(N)}
    plain, zeroed = (
        fit(theirs(student, teacher, weight=0.5), x, y, **w)["loss"][0]
        for w in ({}, zeros)
    )
    assert zeroed == pytest.approx(plain) and plain > 0.1
    assert fit(ours(student, teacher, weight=0.5), x, y, **zeros)["loss"] == [0.0]


@row("the student's regularizers and `add_loss`")
def test_regularizers(x, y, teacher):
    student = model(0, l2=10.0)
    penalty = float(sum(student.losses))
    logs = fit(theirs(student, teacher), x, y)
    assert logs["loss"][0] == pytest.approx(soft(logs)) and penalty > 10.0
    logs = fit(ours(student, teacher), x, y)
    assert logs["loss"][0] == pytest.approx(soft(logs) + penalty, rel=1e-4)


@row("student forward passes a step, with a loss on features")
def test_forward_passes(x, y, teacher):
    theirs_loss = keras.distillation.FeatureDistillation(
        student_layer_name="first", teacher_layer_name="first"
    )
    student = model(0, body=(Calls(),))
    fit(theirs(student, teacher, theirs_loss, weight=0.5), x, y)
    assert int(student.layers[1].calls) == 2 * N // BATCH
    student = model(0, body=(Calls(),))
    losses = {("first", "first"): kdlite.losses.Hint()}
    made = kdlite.Distiller(student, teacher, feature_losses=losses)
    fit(compiled(made, 0.0), x, y)
    assert int(student.layers[1].calls) == N // BATCH


@row("features of another width than the teacher's")
def test_widths(x, y, student):
    wide = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(9, activation="relu", name="wide"),
            layers.Dense(CLASSES),
        ]
    )
    with pytest.raises(ValueError, match="Dimensions must be equal"):
        fit(
            theirs(
                student,
                wide,
                keras.distillation.FeatureDistillation(
                    student_layer_name="first", teacher_layer_name="wide"
                ),
                run_eagerly=False,
            ),
            x,
            y,
        )
    losses = {("first", "wide"): kdlite.losses.Hint()}
    made = kdlite.Distiller(student, wide, feature_losses=losses)
    assert np.isfinite(fit(compiled(made, 0.0), x, y)["loss"][0])


class Projected(keras.distillation.DistillationLoss):
    def __init__(self):
        self.projection = layers.Dense(CLASSES)
        self.projection.build((None, CLASSES))

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        error = teacher_outputs - self.projection(student_outputs)
        return ops.mean(ops.square(error))


@row("a layer inside a loss")
def test_layers_in_losses(x, y, student, teacher):
    for make, trained in ((theirs, False), (ours, True)):
        loss = Projected()
        before = loss.projection.get_weights()[0]
        fit(make(student, teacher, loss, learning_rate=0.1), x, y)
        assert np.array_equal(before, loss.projection.get_weights()[0]) != trained


@row("weights and temperature that change in training")
def test_schedules(x, y, student, teacher):
    class Moved(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            loss = getattr(self.model, "soft_loss", None)
            if loss is None:
                self.model.student_loss_weight = float(epoch)
                self.model.distillation_losses[0].temperature = 1.0 + 8.0 * epoch
            else:
                self.model.hard_loss_weight = float(epoch)
                loss.temperature.assign(1.0 + 8.0 * epoch)

    for make, moved in ((theirs, False), (ours, True)):
        distiller = make(student, teacher, weight=0.5, run_eagerly=False)
        logs = fit(distiller, x, y, epochs=2, callbacks=[Moved()])
        first, second = logs["loss"]
        assert (second != pytest.approx(first, rel=1e-3)) == moved


@row("weights of the losses")
def test_weights(student, teacher):
    with pytest.raises(ValueError, match=r"student_loss_weight.*between 0.0 and 1.0"):
        theirs(student, teacher, weight=1.5)
    single = keras.distillation.Distiller(
        teacher,
        student,
        keras.distillation.LogitsDistillation(),
        distillation_loss_weights=[0.1],
    )
    assert single.distillation_loss_weights == [1.0]
    made = kdlite.Distiller(student, teacher, None, 1.5, 0.1)
    assert [float(w) for w in (made.hard_loss_weight, made.soft_loss_weight)] == [
        pytest.approx(1.5),
        pytest.approx(0.1),
    ]


@row("the teacher in `evaluate()` and validation")
def test_evaluation(x, y, student):
    for make, calls in ((theirs, N // BATCH), (ours, 0)):
        teacher = model(7, body=(Calls(),))
        distiller = make(student, teacher)
        distiller.evaluate(x, y, batch_size=BATCH, verbose=0)
        assert int(teacher.layers[1].calls) == calls


@row("a mixed-precision student of a float32 teacher")
def test_mixed_precision(x, y, teacher):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = model(0)
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match="dtypes must match"):
        theirs(student, teacher)
    assert np.isfinite(soft(fit(ours(student, teacher), x, y)))


@row("padded positions of sequences")
def test_masks():
    def tagger(seed):
        keras.utils.set_random_seed(seed)
        tokens = keras.Input((5,), dtype="int32")
        hidden = layers.Embedding(9, 4, mask_zero=True)(tokens)
        return keras.Model(tokens, layers.Dense(CLASSES)(hidden))

    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
    labels, mask = np.ones((2, 5), "int32"), tokens > 0
    student, teacher = tagger(0), tagger(1)
    teacher.set_weights([20.0 * w for w in teacher.get_weights()])
    scores = np.asarray(teacher(tokens)), np.asarray(student(tokens))
    kl = keras.distillation.LogitsDistillation(TEMPERATURE, keras.losses.KLDivergence())
    everywhere = soft(fit(theirs(student, teacher, kl), tokens, labels))
    assert everywhere == pytest.approx(hinton(*scores), rel=1e-3)
    real = soft(fit(ours(student, teacher), tokens, labels))
    assert real == pytest.approx(hinton(*(s[mask] for s in scores)), rel=1e-3)
    assert everywhere != pytest.approx(real, rel=0.05)


@row("what a saved `.keras` file holds")
def test_files(x, y, student, teacher, tmp_path):
    for make, has_teacher in ((theirs, True), (ours, False)):
        file = tmp_path / "distiller.keras"
        distiller = make(student, teacher)
        fit(distiller, x, y)
        distiller.save(file)
        with zipfile.ZipFile(file) as archive:
            config = archive.read("config.json").decode()
        assert (f'"{teacher.name}"' in config) == has_teacher


@row("training on after loading")
def test_going_on(x, y, student, teacher, tmp_path):
    files = [tmp_path / "theirs.keras", tmp_path / "ours.keras"]
    for make, file in zip((theirs, ours), files, strict=True):
        distiller = make(student, teacher)
        fit(distiller, x, y)
        distiller.save(file)
    with pytest.warns(UserWarning, match="was not called as part of model loading"):
        loaded = keras.models.load_model(files[0])
    with pytest.raises(AttributeError):
        fit(loaded, x, y)
    loaded = keras.models.load_model(files[1])
    loaded.teacher = teacher
    assert np.isfinite(soft(fit(loaded, x, y)))


@row("the teacher's `trainable` afterwards")
def test_the_teacher_is_left_alone(student):
    for make, trainable in ((theirs, False), (ours, True)):
        teacher = model(7)
        make(student, teacher)
        assert teacher.trainable == trainable


@row("another input resolution for the teacher")
def test_resolutions():
    def network(size):
        inputs = keras.Input((size, size, 1))
        return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(inputs)))

    student, teacher, x = network(2), network(4), np.ones((4, 2, 2, 1), "float32")
    with pytest.raises(ValueError, match="input shapes are incompatible"):
        theirs(student, teacher)
    distiller = kdlite.Distiller(
        student, teacher, teacher_transform=layers.Resizing(4, 4)
    )
    distiller.compile("sgd", run_eagerly=True)
    assert np.isfinite(soft(fit(distiller, x)))


@row("several teachers, files and functions as teachers")
def test_other_teachers(x, y, student, teacher):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        theirs(student, [teacher, model(8)])
    both = kdlite.teachers.Ensemble([teacher, model(8)])
    assert np.isfinite(soft(fit(ours(student, both), x, y)))


@row("stored teacher outputs")
def test_stored_outputs(x, y, student, teacher, tmp_path):
    assert not hasattr(keras.distillation, "SoftLabels")
    calls = Calls()
    counted = keras.Sequential([keras.Input((FEATURES,)), calls, *teacher.layers])
    labels = kdlite.SoftLabels.build(counted, x, tmp_path, verbose=0)
    before = int(calls.calls)
    distiller = ours(student, None)
    distiller.fit(labels.attach((x, y), BATCH), epochs=3, shuffle=False, verbose=0)
    assert int(calls.calls) == before
