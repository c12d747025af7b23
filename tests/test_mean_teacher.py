"""The mean teacher: what it averages, and that it is taken up again."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kdlite.distill.distiller import Distiller
from kdlite.distill.losses.classes import SoftTargets
from kdlite.distill.mean_teacher import MeanTeacher

N, FEATURES, CLASSES, BATCH = 24, 4, 3, 8


def model(seed=0, body=(), name=None):
    keras.utils.set_random_seed(seed)
    first = layers.Dense(6, activation="relu")
    stack = [keras.Input((FEATURES,)), first, *body, layers.Dense(CLASSES)]
    return keras.Sequential(stack, name=name)


def compiled(distiller, optimizer=None, **kwargs):
    # A few steps are sooner taken than traced; TestAverage has compiled code too.
    kwargs.setdefault("run_eagerly", True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(optimizer or keras.optimizers.SGD(0.5), loss, **kwargs)
    return distiller


class Watch(keras.callbacks.Callback):
    """Keeps the student's weights after each batch."""

    def __init__(self, student):
        self.weights = [student.get_weights()]
        self.student = student

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.student.get_weights())


def averaged(watched, decay, every=1):
    """The recursion of the docstring in float64, from weights after each update."""
    mean = [w.astype("float64") for w in watched[0]]
    for t, weights in enumerate(watched[every::every], 1):
        alpha = min(decay, t / (t + 1))
        mean = [alpha * m + (1 - alpha) * w for m, w in zip(mean, weights, strict=True)]
    return mean


def fit(distiller, x, y, **kwargs):
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    return distiller.fit(x, y, **kwargs).history


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(2).integers(0, CLASSES, N)


class TestAverage:
    @pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
    def test_it_is_the_recursion(self, x, y, decay):
        student = model(body=(layers.BatchNormalization(momentum=0.5),))
        distiller = compiled(Distiller(student, MeanTeacher(decay)))
        watch = Watch(student)
        fit(distiller, x, y, epochs=2, callbacks=[watch])
        average = distiller.teacher.average.get_weights()
        for mine, expected in zip(average, averaged(watch.weights, decay), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
        spread = np.abs(watch.weights[0][0] - watch.weights[-1][0]).max()
        assert spread > 0.1

    def test_at_first_it_is_the_plain_mean(self, x, y):
        student = model()
        distiller = compiled(Distiller(student, MeanTeacher()))
        watch = Watch(student)
        fit(distiller, x, y, callbacks=[watch])
        mean = np.mean([weights[0] for weights in watch.weights], axis=0)
        average = distiller.teacher.average.get_weights()[0]
        np.testing.assert_allclose(average, mean, rtol=1e-5)

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_compiled_code_does_the_same(self, x, y, jit_compile):
        student = model()
        distiller = Distiller(student, MeanTeacher(0.6))
        compiled(distiller, run_eagerly=False, jit_compile=jit_compile)
        watch = Watch(student)
        fit(distiller, x, y, callbacks=[watch])
        expected = averaged(watch.weights, 0.6)[0]
        average = distiller.teacher.average.get_weights()[0]
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)

    def test_accumulated_gradients_are_one_update(self, x, y):
        optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
        student = model()
        distiller = Distiller(student, MeanTeacher(0.6))
        compiled(distiller, optimizer, run_eagerly=False)
        watch = Watch(student)
        fit(distiller, x, y, epochs=2, callbacks=[watch])
        np.testing.assert_array_equal(watch.weights[0][0], watch.weights[1][0])
        expected = averaged(watch.weights, 0.6, every=2)[0]
        average = distiller.teacher.average.get_weights()[0]
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)

    def test_what_is_no_float_is_copied(self, x, y):
        @keras.saving.register_keras_serializable("kdlite_tests")
        class Counting(layers.Layer):
            def build(self, input_shape):
                self.calls = self.add_weight(
                    shape=(), dtype="int32", initializer="zeros", trainable=False
                )

            def call(self, inputs, training=False):
                if training:
                    self.calls.assign_add(1)
                return inputs

        student = model(body=(Counting(),))
        distiller = compiled(Distiller(student, MeanTeacher()))
        fit(distiller, x, y)
        counts = [m.layers[1].calls for m in (student, distiller.teacher.average)]
        assert [int(count) for count in counts] == [N // BATCH] * 2


class TestTeaching:
    def test_the_average_before_the_step_teaches(self, x, y):
        student = model(body=(layers.Dropout(0.5, seed=1),))
        distiller = compiled(Distiller(student, MeanTeacher(), SoftTargets(1.0)))
        seen = []

        class Spy(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                teacher = distiller.teacher.average(x[:BATCH])
                seen.append(keras.ops.log_softmax(teacher))

            def on_train_batch_end(self, batch, logs=None):
                seen.append(logs["soft_loss"])

        fit(distiller, x[:BATCH], y[:BATCH], callbacks=[Spy()])
        # The student's dropout is the only random thing, and its masks the same.
        again = Distiller(
            model(body=(layers.Dropout(0.5, seed=1),)), None, SoftTargets(1.0)
        )
        compiled(again, keras.optimizers.SGD(0.0))
        labels = {"inputs": x[:BATCH], "soft_labels": np.asarray(seen[0])}
        assert fit(again, labels, y[:BATCH])["soft_loss"][0] == pytest.approx(seen[1])

    def test_students_with_several_outputs(self, x, y):
        inputs = keras.Input((FEATURES,))
        outputs = {name: layers.Dense(CLASSES, name=name)(inputs) for name in "ab"}
        student = keras.Model(inputs, outputs)
        losses = {name: SoftTargets() for name in "ab"}
        distiller = Distiller(student, MeanTeacher(0.5), losses)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(
            keras.optimizers.SGD(0.5), {name: loss for name in "ab"}, run_eagerly=True
        )
        logs = fit(distiller, x, {name: y for name in "ab"}, epochs=2)
        assert logs["a_soft_loss"][1] > 0.0 and logs["b_soft_loss"][1] > 0.0

    def test_a_softmax_head_is_read_as_the_students(self, x, y):
        student = keras.Sequential(
            [keras.Input((FEATURES,)), layers.Dense(CLASSES, activation="softmax")]
        )
        distiller = Distiller(student, MeanTeacher())
        loss = keras.losses.SparseCategoricalCrossentropy()
        distiller.compile("sgd", loss, metrics=["accuracy"], run_eagerly=True)
        logs = fit(distiller, x, y, validation_data=(x, y))
        # At the first step teacher and student are one.
        assert logs["soft_loss"][0] < 1e-3 and "val_accuracy" in logs

    def test_the_average_is_no_part_of_the_distiller(self, x, y, tmp_path):
        student = model(body=(layers.Dropout(0.5),))
        distiller = compiled(Distiller(student, MeanTeacher()))
        fit(distiller, x, y)
        mine = {id(v) for v in distiller.variables}
        assert not mine & {id(v) for v in distiller.teacher.weights}
        assert all(id(v) in mine for v in student.trainable_variables)
        distiller.teacher.average.save(tmp_path / "average.keras")
        loaded = keras.models.load_model(tmp_path / "average.keras")
        np.testing.assert_array_equal(loaded(x), distiller.teacher.average(x))


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


def run(seed=0):
    body = (layers.BatchNormalization(), layers.Dropout(0.5, seed=seed))
    distiller = Distiller(model(seed, body), MeanTeacher(0.9))
    # An epoch of three steps ends amid an accumulation.
    optimizer = keras.optimizers.Adam(0.02, gradient_accumulation_steps=4)
    return compiled(distiller, optimizer)


def states(distiller):
    means = [np.asarray(weight) for weight in distiller.teacher.weights]
    return [*distiller.student.get_weights(), *means]


@pytest.fixture(scope="module")
def whole(x, y):
    distiller = run()
    fit(distiller, x, y, epochs=3)
    return states(distiller)


class TestGoingOn:
    def test_after_backup_and_restore(self, x, y, whole, tmp_path):
        def backup():
            return keras.callbacks.BackupAndRestore(tmp_path / "backup")

        with pytest.raises(InterruptedError):
            fit(run(), x, y, epochs=3, callbacks=[backup(), Stop()])
        second = run(seed=99)
        fit(second, x, y, epochs=3, callbacks=[backup()])
        assert all(map(np.array_equal, whole, states(second)))

    def test_after_saving_and_loading(self, x, y, whole, tmp_path):
        first = run()
        fit(first, x, y, epochs=2)
        first.save(tmp_path / "d.keras")
        loaded = keras.models.load_model(tmp_path / "d.keras")
        assert isinstance(loaded.teacher, MeanTeacher) and loaded.teacher.decay == 0.9
        fit(loaded, x, y, epochs=3, initial_epoch=2)
        assert all(map(np.array_equal, whole, states(loaded)))

    def test_a_file_without_an_average_is_refused(self, x, y, tmp_path):
        plain = compiled(Distiller(model(), model(1)))
        plain.save_weights(tmp_path / "plain.weights.h5")
        mean = compiled(Distiller(model(), MeanTeacher()))
        with pytest.raises(ValueError, match="goes on from its own weights. Received"):
            mean.load_weights(tmp_path / "plain.weights.h5")
        # The other way round it is a change of the teacher.
        mean.save_weights(tmp_path / "mean.weights.h5")
        plain.load_weights(tmp_path / "mean.weights.h5")


class TestErrors:
    def test_decay(self):
        for decay in (1.0, -0.1, np.nan):
            with pytest.raises(
                ValueError, match="`decay` must be (below 1|0 or|finite)"
            ):
                MeanTeacher(decay)
        with pytest.raises(TypeError, match="`decay` must be a number. Received"):
            MeanTeacher("slow")

    def test_students(self, x):
        teacher = MeanTeacher()
        assert repr(teacher) == "MeanTeacher(decay=0.999, of no student yet)"
        Distiller(model(name="s"), teacher)
        with pytest.raises(
            ValueError, match="average of one student. Received: student"
        ):
            Distiller(model(name="other"), teacher)
        unbuilt = keras.Sequential([layers.Dense(CLASSES)])
        with pytest.raises(
            ValueError, match="must be built. Received: model 'seq.*Fix"
        ):
            Distiller(unbuilt, MeanTeacher())

        class Closed(keras.Model):
            def __init__(self, width):
                super().__init__()
                self.dense = layers.Dense(width)

            def call(self, x):
                return self.dense(x)

        closed = Closed(CLASSES)
        closed(x)
        with pytest.raises(
            ValueError, match=r"of class Closed, which cannot be .*Fix:"
        ):
            Distiller(closed, MeanTeacher(), student_outputs="logits")
