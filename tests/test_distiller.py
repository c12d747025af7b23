"""Distiller: what it minimises, what it leaves alone, and that it can go on."""

from __future__ import annotations

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import MultiLabelSoftTargets, SoftTargets
from kdlite.distill.taps import INPUTS_KEY, SOFT_LABELS_KEY, LogitsModel

N, FEATURES, CLASSES, BATCH = 24, 4, 3, 8


@keras.saving.register_keras_serializable("kdlite_tests")
class Probe(layers.Layer):
    """Counts its calls in a variable, so in compiled code too, and adds a loss."""

    def build(self, input_shape):
        self.calls = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls"
        )

    def call(self, inputs):
        self.calls.assign_add(1)
        self.add_loss(0.25 * ops.mean(ops.square(inputs)))
        return inputs


@keras.saving.register_keras_serializable("kdlite_tests")
class MeanSquares(keras.distillation.DistillationLoss):
    """One value for each sample."""

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return ops.mean(ops.square(teacher_outputs - student_outputs), axis=-1)

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def model(activation=None, seed=0, body=(), name=None, l2=0.0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(6, activation="relu"),
            *(body() if callable(body) else body),
            layers.Dense(
                CLASSES,
                activation=activation,
                kernel_regularizer=keras.regularizers.L2(l2) if l2 else None,
            ),
        ],
        name=name,
    )


def noisy():
    """Layers that behave in training as they do not in inference."""
    return (layers.BatchNormalization(), layers.Dropout(0.5))


def compiled(distiller, learning_rate=0.1, from_logits=True, **kwargs):
    kwargs.setdefault("optimizer", keras.optimizers.SGD(learning_rate, momentum=0.9))
    kwargs.setdefault("metrics", ["accuracy"])
    # A few steps are sooner taken than traced; where compiled code matters it is asked
    # for, and TestData has every way to execute.
    kwargs.setdefault("run_eagerly", True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    distiller.compile(loss=loss, **kwargs)
    return distiller


def fit(distiller, *data, **kwargs):
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    return distiller.fit(*data, **kwargs).history


def difference(first, second):
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def log_softmax(logits):
    shifted = np.asarray(logits, "float64")
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def soft_oracle(teacher, student, temperature=4.0):
    log_p, log_q = (
        log_softmax(teacher / temperature),
        log_softmax(student / temperature),
    )
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1) * temperature**2


def hard_oracle(y, student):
    return -np.take_along_axis(log_softmax(student), y[:, None], axis=-1)[:, 0]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(2).integers(0, CLASSES, N)


@pytest.fixture(scope="module")
def teacher():
    return model(seed=7, name="big")


@pytest.fixture(scope="module")
def logits(teacher, x):
    return np.asarray(teacher(x))


@pytest.fixture(scope="module")
def expected(x, y, teacher):
    """The logs and the student of two epochs in the plainest way."""
    distiller = compiled(Distiller(model(), teacher))
    return fit(distiller, x, y, epochs=2), distiller.student


class TestWhatIsMinimised:
    def test_the_losses_are_the_weighted_ones_of_the_oracle(
        self, x, y, teacher, logits
    ):
        student = model(l2=0.5)
        distiller = Distiller(student, teacher, SoftTargets(2.0), 0.3, 1.7)
        logs = fit(compiled(distiller, 0.0), x, y)
        hard = hard_oracle(y, student(x)).mean()
        soft = soft_oracle(logits, student(x), 2.0).mean()
        penalty = 0.5 * np.square(student.layers[-1].kernel).sum()
        assert set(logs) == {"loss", "hard_loss", "soft_loss", "accuracy"}
        assert logs["hard_loss"][0] == pytest.approx(hard, rel=1e-5)
        assert logs["soft_loss"][0] == pytest.approx(soft, rel=1e-4)
        assert logs["loss"][0] == pytest.approx(0.3 * hard + 1.7 * soft + penalty, 1e-4)

    def test_without_the_soft_loss_it_is_plain_training(self, x, y, teacher):
        plain = compiled(model(body=noisy, l2=0.1))
        distiller = compiled(
            Distiller(model(body=noisy, l2=0.1), teacher, None, 1.0, 0.0)
        )
        expected, logs = fit(plain, x, y, epochs=2), fit(distiller, x, y, epochs=2)
        assert difference(plain, distiller.student) == 0.0
        assert logs["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert logs["accuracy"] == expected["accuracy"]

    def test_the_gradient_of_the_soft_loss_reaches_the_student(self, x, y, teacher):
        # IntelLabs distiller detached the student's logits: nothing was learnt.
        student = model()
        distiller = Distiller(student, teacher, SoftTargets(1.0), 0.0, 1.0)
        compiled(distiller, 0.5)
        first, *_, last = fit(distiller, x, y, epochs=12, batch_size=N)["soft_loss"]
        assert last < 0.3 * first

    def test_one_step_is_the_closed_form(self, x, y, logits):
        student = model()
        hidden = np.asarray(student.layers[0](x), "float64")
        before, probabilities = student.get_weights(), np.exp(log_softmax(student(x)))
        p, q = (np.exp(log_softmax(v / 4.0)) for v in (logits, student(x)))
        gradient = (
            0.1 * (probabilities - np.eye(CLASSES)[y]) + 0.9 * 4.0 * (q - p)
        ) / N
        data = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits}
        fit(compiled(Distiller(student), 1.0), data, y, batch_size=N)
        step = before[2] - student.get_weights()[2]
        np.testing.assert_allclose(step, hidden.T @ gradient, atol=1e-6)

    @pytest.mark.parametrize("heads", [("softmax", None), (None, "softmax")])
    def test_a_softmax_head_changes_nothing(self, x, y, expected, heads):
        # Keras softens the output of a softmax again: a signal of 0.30 for 5.28.
        student_head, teacher_head = heads
        distiller = Distiller(model(student_head), model(teacher_head, seed=7))
        compiled(distiller, from_logits=student_head is None)
        logs = fit(distiller, x, y, epochs=2)
        assert difference(expected[1], distiller.student) < 1e-6
        assert logs["soft_loss"] == pytest.approx(expected[0]["soft_loss"], rel=1e-5)

    def test_weights_of_samples_act_on_both_losses(self, x, y, teacher, logits):
        student = model()
        weights = np.linspace(0.0, 3.0, N).astype("float32")
        distiller = compiled(Distiller(student, teacher), 0.0)
        logs = fit(distiller, x, y, sample_weight=weights)
        hard, soft = hard_oracle(y, student(x)), soft_oracle(logits, student(x))
        assert logs["hard_loss"][0] == pytest.approx((weights * hard).mean(), rel=1e-5)
        assert logs["soft_loss"][0] == pytest.approx((weights * soft).mean(), rel=1e-4)
        logs = fit(distiller, x, y, class_weight={0: 0.0, 1: 2.0, 2: 0.5})
        weights = np.array([0.0, 2.0, 0.5])[y]
        assert logs["hard_loss"][0] == pytest.approx((weights * hard).mean(), rel=1e-5)
        assert logs["soft_loss"][0] == pytest.approx((weights * soft).mean(), rel=1e-4)

    def test_losses_of_the_student_count_once(self, x, y, teacher):
        body = (
            Probe(),
            layers.ActivityRegularization(l2=0.3),
            layers.Dense(5, bias_regularizer="l2", bias_initializer="ones"),
        )
        student = model(body=body, l2=0.2)
        distiller = compiled(Distiller(student, teacher), 0.0)
        logs = fit(distiller, x, y, batch_size=N)
        student(x)
        weighted = 0.1 * logs["hard_loss"][0] + 0.9 * logs["soft_loss"][0]
        assert float(sum(student.losses)) > 0.05
        assert logs["loss"][0] - weighted == pytest.approx(
            float(sum(student.losses)), rel=1e-5
        )

    def test_losses_of_the_teacher_do_not_count(self, x, y, expected):
        body = (Probe(), layers.ActivityRegularization(l2=9.0))
        teacher = model(seed=7, body=body, l2=9.0)
        logs = fit(compiled(Distiller(model(), teacher)), x, y)
        for name, (first, _) in expected[0].items():
            assert logs[name] == [pytest.approx(first)]

    @pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", None])
    def test_without_labels_the_teacher_alone_teaches(self, x, logits, teacher, loss):
        student = model(l2=0.1)
        distiller = Distiller(student, teacher)
        distiller.compile(
            keras.optimizers.SGD(0.0), loss, metrics=["accuracy"], run_eagerly=True
        )
        logs = fit(distiller, x)
        soft = soft_oracle(logits, student(x)).mean()
        penalty = 0.1 * np.square(student.layers[-1].kernel).sum()
        assert set(logs) == {"loss", "soft_loss"}
        assert logs["soft_loss"][0] == pytest.approx(soft, rel=1e-4)
        assert logs["loss"][0] == pytest.approx(0.9 * soft + penalty, rel=1e-4)

    def test_masked_positions_are_not_distilled(self):
        def tagger(seed):
            keras.utils.set_random_seed(seed)
            tokens = keras.Input((5,), dtype="int32")
            hidden = layers.Embedding(9, 4, mask_zero=True)(tokens)
            return keras.Model(
                tokens, layers.Dense(CLASSES, activation="softmax")(hidden)
            )

        tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
        student, teacher = tagger(0), tagger(1)
        teacher.set_weights([20.0 * w for w in teacher.get_weights()])
        distiller = Distiller(student, teacher)
        compiled(distiller, 0.0, from_logits=False)
        labels, mask = np.ones((2, 5), "int32"), tokens > 0
        logs = fit(distiller, tokens, labels)
        read = [np.asarray(LogitsModel(m)(tokens)) for m in (teacher, student)]
        assert logs["soft_loss"][0] == pytest.approx(
            soft_oracle(*read)[mask].mean(), rel=1e-4
        )

    def test_a_weight_of_a_sample_is_that_of_all_its_positions(self, rng):
        inputs = keras.Input((2, FEATURES))
        student, teacher = (
            keras.Model(inputs, layers.Dense(CLASSES)(inputs)) for _ in range(2)
        )
        x = rng.normal(size=(2, 2, FEATURES)).astype("float32")

        def unlabelled():
            yield x, None, np.array([0.0, 3.0], "float32")

        distiller = compiled(Distiller(student, teacher), 0.0)
        logs = fit(distiller, unlabelled(), batch_size=None, steps_per_epoch=1)
        expected = 3.0 * soft_oracle(teacher(x), student(x))[1].sum() / 4
        assert logs["soft_loss"][0] == pytest.approx(expected, rel=1e-4)

    def test_weights_and_temperature_move_within_compiled_training(self, x, y, teacher):
        # Keras bakes them into the graph: a callback that sets them is not heard.
        class Schedule(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.model.hard_loss_weight.assign([2.0, 0.0, 0.0][epoch])
                self.model.soft_loss_weight = [0.0, 3.0, 0.0][epoch]
                self.model.soft_loss.temperature.assign([1.0, 1.0, 0.1][epoch])

        distiller = Distiller(model(), teacher, SoftTargets(1.0))
        compiled(distiller, 0.0, run_eagerly=False)
        logs = fit(distiller, x, y, epochs=3, callbacks=[Schedule()])
        hard, soft = logs["hard_loss"], logs["soft_loss"]
        assert logs["loss"] == pytest.approx([2.0 * hard[0], 3.0 * soft[1], 0.0])
        assert soft[0] == soft[1] != pytest.approx(soft[2], rel=0.01)

    def test_any_distillation_loss_is_taken(self, x, y, teacher, logits):
        student = model()
        weights = np.linspace(0.0, 2.0, N).astype("float32")
        distiller = compiled(Distiller(student, teacher, MeanSquares()), 0.0)
        values = np.square(logits - np.asarray(student(x))).mean(axis=-1)
        logs = fit(distiller, x, y, sample_weight=weights)
        assert logs["soft_loss"][0] == pytest.approx(
            (weights * values).mean(), rel=1e-5
        )
        loss = keras.distillation.LogitsDistillation(4.0, keras.losses.KLDivergence())
        distiller = compiled(Distiller(student, teacher, loss), 0.0)
        soft = soft_oracle(logits, student(x)).mean()
        assert fit(distiller, x, y)["soft_loss"][0] == pytest.approx(soft, rel=1e-4)
        with pytest.raises(ValueError, match="one value.*Received: sample_weight with"):
            fit(distiller, x, y, sample_weight=weights)

    def test_a_layer_in_a_loss_is_trained(self, x, y, teacher):
        class Projected(MeanSquares):
            def __init__(self):
                self.projection = layers.Dense(CLASSES)
                self.projection.build((None, CLASSES))

            def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
                projected = self.projection(student_outputs)
                return super().compute_loss(teacher_outputs, projected)

        loss = Projected()
        before = loss.projection.get_weights()[0]
        fit(compiled(Distiller(model(), teacher, loss)), x, y)
        assert np.abs(before - loss.projection.get_weights()[0]).max() > 1e-3


class TestWhatRunsAndWhatIsLeftAlone:
    def test_one_student_forward_a_step_in_compiled_code(self, x, y):
        # Keras runs the student twice: batch normalization moves twice as far.
        plain, student = (model(body=(Probe(), layers.BatchNormalization()))
                          for _ in range(2))  # fmt: skip
        teacher = model(seed=7, body=(Probe(),))
        fit(compiled(plain, 0.0), x, y)
        fit(compiled(Distiller(student, teacher), 0.0, run_eagerly=False), x, y)
        assert int(student.layers[1].calls) == N // BATCH
        assert int(teacher.layers[1].calls) == N // BATCH
        assert difference(plain, student) < 1e-6

    def test_the_teacher_runs_once_a_step_and_never_in_evaluation(self, x, y):
        probe = Probe()
        teacher = model(seed=7, body=(probe,))
        distiller = compiled(Distiller(model(), teacher))
        fit(distiller, x, y, epochs=2, validation_data=(x, y))
        assert int(probe.calls) == 2 * N // BATCH
        distiller.evaluate(x, y, verbose=0)
        distiller.predict(x, verbose=0)
        assert int(probe.calls) == 2 * N // BATCH

    def test_the_teacher_is_in_inference_mode_and_unchanged(self, x, y):
        # Intel's TF path trains with the teacher's dropout and batch statistics.
        teacher = model(seed=7, body=noisy)
        before, flags = teacher.get_weights(), [v.trainable for v in teacher.weights]
        states = [v.numpy() for v in teacher.variables]
        student = model()
        distiller = compiled(Distiller(student, teacher), 0.0)
        logs = fit(distiller, x, y)
        soft = soft_oracle(np.asarray(teacher(x, training=False)), student(x)).mean()
        assert logs["soft_loss"][0] == pytest.approx(soft, rel=1e-4)
        fit(compiled(distiller, 0.5), x, y)
        assert all(map(np.array_equal, before, teacher.get_weights()))
        assert all(map(np.array_equal, states, (v.numpy() for v in teacher.variables)))
        assert teacher.trainable and flags == [v.trainable for v in teacher.weights]

    def test_the_teacher_is_no_part_of_the_distiller(self, teacher, tmp_path):
        distiller = compiled(Distiller(model(), teacher))
        mine = {id(v) for v in distiller.variables}
        assert distiller.teacher is teacher
        assert not mine & {id(v) for v in teacher.variables}
        assert teacher not in distiller._flatten_layers()
        assert distiller.trainable_variables == distiller.student.trainable_variables
        checkpoint = tf.train.Checkpoint(model=distiller)
        names = [
            n for n, _ in tf.train.list_variables(checkpoint.save(tmp_path / "ckpt"))
        ]
        assert not any("teacher" in name for name in names)

    def test_evaluate_is_that_of_the_student(self, x, y, teacher):
        student = model(body=lambda: (Probe(), *noisy()), l2=0.3)
        distiller = compiled(Distiller(student, teacher))
        logs = fit(distiller, x, y, validation_data=(x, y))
        before = student.get_weights()
        weights = np.linspace(0.0, 2.0, N).astype("float32")
        results = distiller.evaluate(
            x, y, sample_weight=weights, batch_size=BATCH, verbose=0, return_dict=True
        )
        after = student.get_weights()
        moved = [np.abs(a - b).max() for a, b in zip(before, after, strict=True)]
        assert [m for m in moved if m] == [N // BATCH]  # the probe's count
        assert set(results) == {"loss", "hard_loss", "accuracy"}
        assert set(logs) >= {"val_loss", "val_hard_loss", "val_accuracy"}
        assert "val_soft_loss" not in logs
        compiled(student)
        own = student.evaluate(
            x, y, sample_weight=weights, batch_size=BATCH, verbose=0, return_dict=True
        )
        assert results["accuracy"] == own["accuracy"]
        assert results["loss"] == pytest.approx(own["loss"], rel=1e-6)
        assert results["hard_loss"] < results["loss"]
        assert distiller.evaluate(x, y, verbose=0)[:2] == pytest.approx(
            student.evaluate(x, y, verbose=0), rel=1e-6
        )

    def test_predict_and_call_are_the_students(self, x, logits, teacher):
        student = model("softmax")
        expected = student.predict(x, verbose=0)
        data = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits}
        for distiller, inputs in (
            (Distiller(student, teacher), x),
            (Distiller(student), x),
            (Distiller(student), data),
        ):
            np.testing.assert_array_equal(distiller(inputs), student(x))
            predicted = distiller.predict(inputs, verbose=0)
            np.testing.assert_allclose(predicted, expected, atol=1e-7)


class TestData:
    @pytest.mark.parametrize("form", ["numpy", "tf.data", "PyDataset", "generator"])
    @pytest.mark.parametrize("stored", [False, True])
    def test_every_form_trains_the_same(
        self, x, y, teacher, logits, expected, form, stored
    ):
        inputs = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits} if stored else x

        def batch(index):
            rows = slice(index * BATCH, (index + 1) * BATCH)
            return keras.tree.map_structure(lambda a: a[rows], inputs), y[rows]

        class Rows(keras.utils.PyDataset):
            def __len__(self):
                return N // BATCH

            def __getitem__(self, index):
                return batch(index)

        def generator():
            while True:
                yield from map(batch, range(N // BATCH))

        data, steps = {
            "numpy": ((inputs, y), None),
            "tf.data": (
                (tf.data.Dataset.from_tensor_slices((inputs, y)).batch(BATCH),),
                None,
            ),
            "PyDataset": ((Rows(),), None),
            "generator": ((generator(),), N // BATCH),
        }[form]
        distiller = compiled(Distiller(model(), None if stored else teacher))
        size = BATCH if form == "numpy" else None
        logs = fit(distiller, *data, epochs=2, batch_size=size, steps_per_epoch=steps)
        assert difference(expected[1], distiller.student) < 1e-6
        assert logs["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)

    @pytest.mark.parametrize(
        "options",
        [{"jit_compile": False}, {"steps_per_execution": 2}, {"jit_compile": True}],
    )
    def test_every_way_to_execute_trains_the_same(
        self, x, y, teacher, expected, options
    ):
        distiller = Distiller(model(), teacher)
        compiled(distiller, run_eagerly=False, **options)
        fit(distiller, x, y, epochs=2)
        assert difference(expected[1], distiller.student) < 1e-5

    def test_stored_logits_stay_with_their_samples_when_shuffled(
        self, x, y, teacher, logits
    ):
        # A well-known tutorial reads its cache in order, beside a shuffling loader.
        students = []
        for source, data in (
            (teacher, x),
            (None, {INPUTS_KEY: x, SOFT_LABELS_KEY: logits.astype("float32")}),
        ):
            distiller = compiled(Distiller(model(), source))
            keras.utils.set_random_seed(3)
            fit(distiller, data, y, epochs=2, shuffle=True)
            students.append(distiller.student)
        assert difference(*students) < 1e-6

    def test_labels_weights_and_validation_go_with_soft_labels(self, x, y, logits):
        data = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits}
        distiller = compiled(Distiller(model()))
        weights = {"class_weight": {0: 2.0, 1: 0.0, 2: 1.0}}
        logs = fit(distiller, data, y, validation_data=(x, y), **weights)
        again = fit(distiller, data, y, validation_split=0.25)
        assert set(logs) == set(again) and "val_loss" in logs
        assert set(fit(distiller, data)) == {"loss", "soft_loss"}
        attached, plain = (distiller.evaluate(d, y, verbose=0) for d in (data, x))
        assert attached == plain

    def test_students_with_several_inputs(self, x, y, teacher):
        first, second = keras.Input((2,), name="a"), keras.Input((2,), name="b")
        hidden = layers.Concatenate()([first, second])
        parts = {"a": x[:, :2], "b": x[:, 2:]}

        def wide():
            return keras.Model({"a": first, "b": second}, layers.Dense(CLASSES)(hidden))

        student, twin = wide(), wide()
        labels = np.asarray(twin(parts))
        for distiller, data in (
            (Distiller(student, twin), parts),
            (Distiller(student), {INPUTS_KEY: parts, SOFT_LABELS_KEY: labels}),
        ):
            logs = fit(compiled(distiller, 0.0), data, y)
            assert logs["soft_loss"][0] == pytest.approx(
                soft_oracle(labels, student(parts)).mean(), rel=1e-4
            )

    def test_students_are_built_by_their_data(self, x, y, logits, teacher):
        data = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits}
        for source, inputs in ((teacher, x), (None, data)):
            student = keras.Sequential([layers.Dense(5), layers.Dense(CLASSES)])
            # Traced and not: Keras builds a model before it traces its step.
            distiller = compiled(Distiller(student, source), run_eagerly=not source)
            assert not distiller.built
            assert "soft_loss" in fit(distiller, inputs, y)
            assert student.count_params() == 43

    def test_batch_methods_of_keras(self, x, y, teacher):
        distiller = compiled(Distiller(model(), teacher))
        logs = distiller.train_on_batch(x, y, return_dict=True)
        assert set(logs) == {"loss", "hard_loss", "soft_loss", "accuracy"}
        logs = distiller.test_on_batch(x, y, return_dict=True)
        assert set(logs) == {"loss", "hard_loss", "accuracy"}

    def test_accumulated_gradients(self, x, y, teacher):
        students = []
        for size, steps in ((N, None), (BATCH, N // BATCH)):
            optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=steps)
            distiller = compiled(Distiller(model(), teacher), optimizer=optimizer)
            fit(distiller, x, y, batch_size=size)
            students.append(distiller.student)
        assert difference(*students) < 1e-5


@pytest.fixture
def half_student():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return model("softmax", body=lambda: (layers.ActivityRegularization(l2=0.1),))
    finally:
        keras.config.set_dtype_policy("float32")


class TestMixedPrecision:
    def test_with_a_float32_teacher(self, half_student, x, y, teacher, tmp_path):
        distiller = compiled(Distiller(half_student, teacher), 0.01, from_logits=False)
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
        first, last = fit(distiller, x, y, epochs=2)["soft_loss"]
        assert np.isfinite(last) and last < first
        distiller.save(tmp_path / "d.keras")
        loaded = keras.models.load_model(tmp_path / "d.keras")
        assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)

    def test_inputs_and_soft_labels_are_not_rounded(self, half_student, y):
        seen = []

        class Spy(MeanSquares):
            def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
                seen.extend([teacher_outputs, student_outputs])
                return super().compute_loss(teacher_outputs, student_outputs)

        distiller = compiled(Distiller(half_student, None, Spy()))
        labels = np.full((BATCH, CLASSES), 2049.0, "float32")  # 2048 in half precision
        data = {INPUTS_KEY: np.zeros((BATCH, FEATURES)), SOFT_LABELS_KEY: labels}
        fit(distiller, data, y[:BATCH])
        assert [t.dtype for t in seen] == [tf.float32, tf.float32]
        np.testing.assert_array_equal(seen[0], labels)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


def random_run(teacher, seed=0):
    """All that a run can carry: random layers, moments, a schedule, accumulation."""

    def body():
        return *noisy(), layers.GaussianNoise(0.1)

    rate = keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.9)
    # An epoch of three steps ends amid an accumulation.
    optimizer = keras.optimizers.Adam(rate, gradient_accumulation_steps=4)
    student = model(body=body, seed=seed)
    distiller = Distiller(student, teacher, SoftTargets(2.0), 0.2, 0.8)
    return compiled(distiller, optimizer=optimizer)


@pytest.fixture(scope="module")
def whole(x, y, teacher):
    distiller = random_run(teacher)
    fit(distiller, x, y, epochs=3)
    return distiller


class TestGoingOn:
    """An interrupted run ends on the very weights of one that was not."""

    def test_after_backup_and_restore(self, x, y, teacher, whole, tmp_path):
        def backup():
            return keras.callbacks.BackupAndRestore(tmp_path / "backup")

        first = random_run(teacher)
        first.hard_loss_weight, first.soft_loss.temperature = 0.2, 2.0
        with pytest.raises(InterruptedError):
            fit(first, x, y, epochs=3, callbacks=[backup(), Stop()])
        second = random_run(teacher, seed=99)  # another start and other random states
        second.hard_loss_weight, second.soft_loss.temperature = 7.0, 7.0
        logs = fit(second, x, y, epochs=3, callbacks=[backup()])
        assert len(logs["loss"]) == 1
        assert difference(whole.student, second.student) == 0.0
        assert float(second.hard_loss_weight) == pytest.approx(0.2)
        assert float(second.soft_loss.temperature) == 2.0

    def test_after_saving_and_loading(self, x, y, teacher, whole, tmp_path):
        first = random_run(teacher)
        fit(first, x, y, epochs=2)
        first.save(tmp_path / "d.keras")
        loaded = keras.models.load_model(tmp_path / "d.keras")
        assert loaded.teacher is None and loaded.compiled
        loaded.teacher = teacher
        fit(loaded, x, y, epochs=3, initial_epoch=2)
        assert difference(whole.student, loaded.student) == 0.0

    def test_what_was_saved_is_what_there_is(self, x, y, teacher, tmp_path):
        distiller = random_run(teacher)
        distiller.hard_loss_weight, distiller.soft_loss_weight = 0.5, 1.5
        distiller.soft_loss.temperature = 3.0
        fit(distiller, x, y)
        distiller.save(tmp_path / "d.keras")
        with zipfile.ZipFile(tmp_path / "d.keras") as archive:
            assert '"big"' not in archive.read("config.json").decode()
        loaded = keras.models.load_model(tmp_path / "d.keras")
        configs = [json.loads(json.dumps(d.get_config())) for d in (loaded, distiller)]
        assert configs[0] == configs[1]
        config = loaded.get_config()
        assert (config["hard_loss_weight"], config["soft_loss_weight"]) == (0.5, 1.5)
        assert float(loaded.soft_loss.temperature) == 3.0
        before = distiller.evaluate(x, y, verbose=0)
        assert loaded.evaluate(x, y, verbose=0) == pytest.approx(before)
        loaded.save_weights(tmp_path / "d.weights.h5")
        distiller.load_weights(tmp_path / "d.weights.h5")
        assert difference(loaded, distiller) == 0.0

    def test_the_student_is_a_plain_keras_model(self, x, whole, tmp_path):
        # MMRazor's checkpoints mix teacher and student.
        whole.student.save(tmp_path / "student.keras")
        with zipfile.ZipFile(tmp_path / "student.keras") as archive:
            config = json.loads(archive.read("config.json"))
        assert "kdlite" not in json.dumps(config)
        loaded = keras.models.load_model(tmp_path / "student.keras")
        np.testing.assert_array_equal(loaded(x), whole.student(x))

    def test_other_losses_are_saved_too(self, x, y, teacher, tmp_path):
        for loss in (
            MeanSquares(),
            keras.distillation.LogitsDistillation(2.0, keras.losses.KLDivergence()),
        ):
            distiller = compiled(Distiller(model(), teacher, loss))
            fit(distiller, x, y)
            distiller.save(tmp_path / "d.keras")
            loaded = keras.models.load_model(tmp_path / "d.keras")
            assert type(loaded.soft_loss) is type(loss)
            with pytest.raises(ValueError, match="needs a teacher or soft labels"):
                fit(loaded, x, y)

    @pytest.mark.parametrize("run_eagerly", [False, True])
    def test_without_a_source_nothing_moves(self, x, y, run_eagerly):
        body = (layers.Dropout(0.5), layers.BatchNormalization())
        distiller = compiled(Distiller(model(body=body)), run_eagerly=run_eagerly)
        distiller.build(x.shape)
        before = [np.array(v) for v in distiller.student.variables]
        with pytest.raises(ValueError, match="needs a teacher or soft labels"):
            fit(distiller, x, y)
        for variable, value in zip(distiller.student.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)

    def test_a_teacher_may_change_after_compiling(self, x, y, logits):
        distiller = Distiller(model(), model(seed=1))
        fit(compiled(distiller, 0.0, run_eagerly=False), x, y)
        distiller.teacher = model(seed=7)
        soft = soft_oracle(logits, distiller.student(x)).mean()
        assert fit(distiller, x, y)["soft_loss"][0] == pytest.approx(soft, rel=1e-4)

    def test_another_student_is_refused(self, x, y, teacher, tmp_path):
        first = compiled(Distiller(model(body=(layers.Dropout(0.5),)), teacher))
        first.save_weights(tmp_path / "d.weights.h5")
        other = compiled(Distiller(model(), teacher))
        with pytest.raises(ValueError, match="1 saved random states for the 0 random"):
            other.load_weights(tmp_path / "d.weights.h5")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(CLASSES)

    def call(self, x):
        return self.dense(x)


class TestErrors:
    def test_models(self, teacher):
        with pytest.raises(
            TypeError, match="`student` must be a keras.Model. Received"
        ):
            Distiller("student.keras", teacher)
        with pytest.raises(
            TypeError, match="`teacher` must be a keras.Model. Received"
        ):
            Distiller(model(), teacher=lambda x: x)
        with pytest.raises(TypeError, match="Fix: give its model, and what it returns"):
            Distiller(LogitsModel(model()))

    def test_the_teacher_must_be_another_model(self):
        student = model(name="s")
        with pytest.raises(
            ValueError, match=r"another model.*teacher 's' in student 's'"
        ):
            Distiller(student, student)
        whole = keras.Sequential([keras.Input((FEATURES,)), student])
        with pytest.raises(ValueError, match="or a part of it. Received: teacher 's'"):
            Distiller(whole, student)

    def test_the_teacher_must_keep_its_weights(self):
        student = model(name="s")
        hidden = student.layers[0]
        teacher = keras.Sequential(
            [keras.Input((FEATURES,)), hidden, layers.Dense(CLASSES)], name="t"
        )
        with pytest.raises(
            ValueError, match=r"'s' and teacher 't', which share .*kernel"
        ):
            Distiller(student, teacher)
        hidden.trainable = False
        assert Distiller(student, teacher).teacher is teacher

    @pytest.mark.parametrize(
        ("make", "text"),
        [
            (
                lambda: layers.Dense(5),
                r"same number of classes\. Received: student 's' with \(None, 3\), "
                r"teacher 't' with \(None, 5\)",
            ),
            (lambda: layers.Dense(1), "over two or more. Received: student 's'"),
            (
                lambda: keras.Sequential(
                    [layers.Reshape((2, 2)), layers.Dense(CLASSES)]
                ),
                r"outputs must have the same shape\. .*teacher 't' with \(None, 2, 3\)",
            ),
        ],
    )
    def test_classes_and_positions_must_match(self, make, text):
        teacher = keras.Sequential([keras.Input((FEATURES,)), make()], name="t")
        distiller = Distiller(model(name="s"))
        with pytest.raises(ValueError, match=text):
            distiller.teacher = teacher
        assert distiller.teacher is None

    def test_inputs_must_match(self):
        teacher = keras.Sequential([keras.Input((9,)), layers.Dense(CLASSES)], name="t")
        with pytest.raises(
            ValueError,
            match=r"take the student's inputs\..*'t' with inputs \[\(None, 9",
        ):
            Distiller(model(), teacher)

    def test_heads(self, teacher):
        with pytest.raises(
            ValueError, match=r"over classes.*student 'seq.*a sigmoid\. Fix"
        ):
            Distiller(model("sigmoid"), teacher)
        with pytest.raises(
            ValueError, match=r"independent .*student 'seq.*softmax\. Fix"
        ):
            Distiller(model("softmax"), teacher, MultiLabelSoftTargets())
        with pytest.raises(ValueError, match=r"whether the teacher .*teacher_outputs="):
            Distiller(model(), Subclassed())
        with pytest.raises(ValueError, match=r"whether the student .*student_outputs="):
            Distiller(Subclassed(), teacher)
        inputs = keras.Input((FEATURES,))
        two = keras.Model(inputs, [layers.Dense(CLASSES)(inputs), inputs])
        with pytest.raises(
            ValueError, match="SoftTargets for output 'input.*of student"
        ):
            Distiller(two, teacher)

    def test_declared_models_train(self, x, y, teacher):
        declared = {"student_outputs": "logits", "teacher_outputs": "logits"}
        distiller = compiled(Distiller(Subclassed(), Subclassed(), **declared))
        assert "soft_loss" in fit(distiller, x, y)
        config = distiller.get_config()
        assert {key: config[key] for key in declared} == declared
        taught = Distiller(model(), LogitsModel(Subclassed(), "logits"))
        assert isinstance(taught.teacher, Subclassed)

    def test_a_loss_needs_something_known(self, teacher):
        loss = MeanSquares()
        loss.needs = "tokens"
        with pytest.raises(ValueError, match=r"one of .*MeanSquares\.needs='tokens'"):
            Distiller(model(), teacher, loss)

    def test_the_soft_loss_must_be_one(self, teacher):
        with pytest.raises(TypeError, match=r"`soft_loss` must be a keras\.dist.*'kl'"):
            Distiller(model(), teacher, "kl")

    @pytest.mark.parametrize("name", ["hard_loss_weight", "soft_loss_weight"])
    def test_weights(self, teacher, name):
        for bad in (-0.1, np.nan, np.inf):
            with pytest.raises(
                ValueError, match=f"`{name}` must be (0 or more|finite)"
            ):
                Distiller(model(), teacher, **{name: bad})
            with pytest.raises(
                ValueError, match=f"`{name}` must be (0 or more|finite)"
            ):
                setattr(Distiller(model(), teacher), name, bad)
        with pytest.raises(TypeError, match=f"`{name}` must be a number. Received"):
            Distiller(model(), teacher, **{name: "much"})

    def test_data_without_a_teacher(self, x, y):
        distiller = compiled(Distiller(model()))
        before = distiller.student.get_weights()
        with pytest.raises(ValueError, match=r"Fix: distiller\.teacher = teacher, or"):
            fit(distiller, x, y)
        assert all(map(np.array_equal, before, distiller.student.get_weights()))

    def test_soft_labels_with_a_teacher(self, x, y, teacher, logits):
        data = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits}
        with pytest.raises(ValueError, match=r"Received: both, with teacher 'big'"):
            fit(compiled(Distiller(model(), teacher)), data, y)

    def test_soft_labels_of_other_classes(self, x, y):
        for width in (1, 5):  # 1 would broadcast
            data = {INPUTS_KEY: x, SOFT_LABELS_KEY: np.zeros((N, width), "float32")}
            with pytest.raises(
                ValueError, match=rf"\(8, 3\), .*soft labels with \(8, {width}\)\."
            ):
                distiller = Distiller(model(), None, MeanSquares())
                fit(compiled(distiller, run_eagerly=False), data, y)

    def test_a_student_with_inputs_of_these_names(self, x, y, logits):
        def named():
            inputs = keras.Input((FEATURES,), name=INPUTS_KEY)
            other = keras.Input((CLASSES,), name=SOFT_LABELS_KEY)
            outputs = layers.Dense(CLASSES)(layers.Concatenate()([inputs, other]))
            return keras.Model({INPUTS_KEY: inputs, SOFT_LABELS_KEY: other}, outputs)

        data = {INPUTS_KEY: x, SOFT_LABELS_KEY: logits}
        with pytest.raises(ValueError, match="whose own inputs have these names. Fix"):
            fit(compiled(Distiller(named())), data, y)
        taught = compiled(Distiller(named(), named()))
        assert "soft_loss" in fit(taught, data, y)

    def test_labels_and_losses(self, x, y, teacher):
        distiller = Distiller(model(), teacher)
        distiller.compile("sgd")
        with pytest.raises(
            ValueError, match=r"Labels need a loss\. Received: compile\("
        ):
            fit(distiller, x, y)
        with pytest.raises(ValueError, match=r"compare with labels\. Received: y=None"):
            compiled(distiller).evaluate(x, verbose=0)
