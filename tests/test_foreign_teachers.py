"""Functions on numpy batches as teachers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdlite import SoftLabels
from kdlite.distill.distiller import Distiller
from kdlite.distill.foreign_teachers import Function
from kdlite.distill.losses import Regression
from kdlite.distill.taps import LogitsModel
from kdlite.distill.teachers import Ensemble

N, FEATURES, CLASSES = 10, 4, 3


def model(activation=None):
    dense = layers.Dense(CLASSES, activation=activation)
    return keras.Sequential([keras.Input((FEATURES,), name="features"), dense])


def soft_loss(student, teacher, x, **options):
    """The soft loss of one epoch in which nothing is learnt, in no compiled code."""
    distiller = Distiller(student, teacher, None, 0.0, 1.0)
    distiller.compile(keras.optimizers.SGD(0.0), **(options or {"run_eagerly": True}))
    return distiller.fit(x, batch_size=4, verbose=0).history["soft_loss"][0]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(3)
    return model()


class TestFunction:
    @pytest.mark.parametrize("kind", ["logits", "probabilities"])
    def test_it_teaches_with_numpy_batches(self, x, network, kind):
        seen = []

        def scores(batch):
            seen.append(batch)
            logits = batch @ network.get_weights()[0].astype("float64")
            return logits if kind == "logits" else np.asarray(keras.ops.softmax(logits))

        teacher, student = Function(scores, (CLASSES,), kind), model()
        loss = soft_loss(student, teacher, x, run_eagerly=kind == "logits")
        assert loss == pytest.approx(soft_loss(student, network, x), rel=1e-4)
        assert all(isinstance(batch, np.ndarray) for batch in seen)
        assert [len(batch) for batch in seen] == [4, 4, 2]

    def test_structures_of_inputs_and_positions(self):
        def scores(batch):
            return np.stack([batch["a"], batch["b"]], axis=-1)

        inputs = {name: keras.Input((5,), name=name) for name in "ab"}
        stacked = layers.Concatenate()(
            [layers.Reshape((5, 1))(inputs[name]) for name in "ab"]
        )
        student = keras.Model(inputs, layers.Dense(2)(stacked))
        x = {name: np.ones((4, 5), "float32") for name in "ab"}
        teacher = Function(scores, (None, 2), "logits")
        assert teacher(x).shape == (4, 5, 2)
        assert np.isfinite(soft_loss(student, teacher, x))

    def test_several_steps_an_execution_and_an_ensemble(self, x, network):
        def scores(batch):
            return batch @ network.get_weights()[0]

        teacher, student = Function(scores, (CLASSES,), "logits"), model()
        expected = soft_loss(student, network, x)
        assert soft_loss(student, teacher, x, steps_per_execution=2) == pytest.approx(
            expected, rel=1e-4
        )
        both = Ensemble([teacher, network])
        assert soft_loss(student, both, x) == pytest.approx(expected, rel=1e-4)

    def test_zero_probabilities_are_no_infinities(self):
        certain = Function(lambda x: np.eye(3)[:2], (3,), "probabilities")
        logits = np.asarray(LogitsModel(certain)(np.zeros((2, 4), "float32")))
        assert np.isfinite(logits).all()
        np.testing.assert_array_equal(logits.argmax(-1), [0, 1])

    def test_stored_labels_know_its_version(self, x, tmp_path):
        def scores(batch):
            return batch[:, :CLASSES]

        def made(version):
            return Function(scores, (CLASSES,), "logits", version=version)

        with pytest.raises(ValueError, match="by its version. Received: function='sc"):
            SoftLabels.build(made(None), x, tmp_path)
        soft = SoftLabels.build(made("1"), x, tmp_path)
        np.testing.assert_array_equal(soft.logits(), x[:, :CLASSES])
        SoftLabels.load(tmp_path, made("1"))
        with pytest.raises(ValueError, match="another teacher"):
            SoftLabels.build(made("2"), x, tmp_path)

    def test_errors(self, x):
        with pytest.raises(TypeError, match="`function` must be a function of a batch"):
            Function("model", (3,), "logits")
        with pytest.raises(ValueError, match="'values'. Received: outputs='softmax'"):
            Function(len, (3,), "softmax")
        for shape in ((), (0,)):
            with pytest.raises(ValueError, match="one sample gives, classes last. Rec"):
                Function(len, shape, "logits")
        narrow = Function(lambda batch: batch[:, :2], (3,), "logits")
        # In the graph TensorFlow wraps the error, with its text.
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"Received: \(4, 2\)"):
            soft_loss(model(), narrow, x, run_eagerly=False)
        with pytest.raises(ValueError, match=r"must return \(10, 3\) for 10 samples"):
            narrow(x)
        logits = Function(lambda batch: batch[:, :3], (3,), "probabilities")
        with pytest.raises(ValueError, match="at least 0 and sum to 1. Received: from"):
            logits(x)
        tags = Function(lambda batch: 3.0 * batch, (4,), "sigmoid")
        with pytest.raises(ValueError, match="at least 0 and be at most 1. Received"):
            tags(np.ones((2, 4), "float32"))
        five = Function(lambda batch: batch, (5,), "logits")
        student = model()
        before = student.get_weights()
        with pytest.raises(ValueError, match=r"number of classes. .*with \(.*5\)"):
            soft_loss(student, five, x, run_eagerly=False)
        assert all(map(np.array_equal, before, student.get_weights()))

    @pytest.mark.parametrize("kind", ["logits", "probabilities", "values"])
    def test_what_is_not_finite_teaches_nobody(self, x, kind):
        def saying(wrong):
            def scores(batch):
                said = np.full((len(batch), CLASSES), 1 / CLASSES)
                said[1, 0] = wrong
                return said

            return Function(scores, (CLASSES,), kind, name="broken")

        text = "NaN or infinity from teacher 'broken' for 1 of"
        for wrong in (np.inf, -np.inf):
            with pytest.raises(ValueError, match=text):
                saying(wrong)(x)

        student = model()
        before = student.get_weights()
        needs = {} if kind != "values" else {"soft_loss": Regression(bounded=False)}
        distiller = Distiller(student, saying(np.nan), **needs)
        distiller.compile("sgd")
        with pytest.raises(tf.errors.OpError, match=f"{text} 4"):
            distiller.fit(x, batch_size=4, verbose=0)
        for ours, theirs in zip(before, student.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
