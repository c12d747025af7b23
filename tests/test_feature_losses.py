"""Feature losses in the distiller: read, adapted, trained, logged, saved."""

from __future__ import annotations

import functools
import json
import logging
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import kdlite
from kdlite import losses
from kdlite.distill.adapters import Adapter
from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import (
    AttentionTransfer,
    ChannelWise,
    Contrastive,
    Hint,
    MaskedGenerative,
    RelationalKD,
    SimilarityPreserving,
    SoftTargets,
    VariationalInformation,
)
from kdlite.distill.mean_teacher import MeanTeacher
from kdlite.distill.schedules import Linear
from kdlite.distill.taps import INPUTS_KEY, SOFT_LABELS_KEY, LogitsModel
from kdlite.distill.teachers import Ensemble

N, BATCH, CLASSES = 16, 8, 3


@keras.saving.register_keras_serializable("kdlite_tests")
class Counting(layers.Layer):
    """Counts its calls in a variable, so in compiled code too."""

    def build(self, input_shape):
        self.calls = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls"
        )

    def call(self, inputs):
        self.calls.assign_add(1)
        return inputs


@keras.saving.register_keras_serializable("kdlite_tests")
class Distance(keras.distillation.DistillationLoss):
    """Another's loss, one value for each sample."""

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return ops.mean(ops.square(teacher_outputs - student_outputs), axis=-1)

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def network(width, seed=0, name=None, counting=False, noisy=True, stride=2):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(width, 3, padding="same", name="first"),
            *([layers.BatchNormalization(name="bn")] if noisy else []),
            layers.ReLU(name="relu"),
            *([Counting(name="counting")] if counting else []),
            layers.Conv2D(width + 1, 3, strides=stride, padding="same", name="second"),
            layers.GlobalAveragePooling2D(name="pooled"),
            *([layers.Dropout(0.4)] if noisy else []),
            layers.Dense(CLASSES, name="logits"),
        ],
        name=name,
    )


def compiled(distiller, learning_rate=0.05, **kwargs):
    kwargs.setdefault("optimizer", keras.optimizers.SGD(learning_rate, momentum=0.9))
    kwargs.setdefault("metrics", ["accuracy"])
    # A step or two are sooner taken than traced; TestModels has every way to execute.
    kwargs.setdefault("run_eagerly", True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(loss=loss, **kwargs)
    return distiller


def fit(distiller, *data, **kwargs):
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    return distiller.fit(*data, **kwargs).history


def difference(first, second):
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def output_of(model, name, x):
    inner = keras.Model(model.inputs[0], model.get_layer(name).output)
    return np.asarray(inner(x, training=False), "float64")


def squares(teacher, student, name, x):
    return np.square(output_of(teacher, name, x) - output_of(student, name, x))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, 6, 6, 1)).astype("float32")


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(2).integers(0, CLASSES, N)


@pytest.fixture(scope="module")
def teacher():
    return network(5, seed=7, name="big")


class TestWhatIsMinimised:
    def test_the_losses_are_the_weighted_ones_of_the_oracle(self, x, y, teacher):
        student = network(5, noisy=False)
        pairs = {
            ("first", "first"): (Hint(), 0.3),
            ("second", "second"): (AttentionTransfer(), 1.5),
        }
        distiller = Distiller(student, teacher, feature_losses=pairs)
        logs = fit(compiled(distiller, 0.0), x, y)
        features = [[output_of(m, n, x) for m in (teacher, student)]
                    for n in ("first", "second")]  # fmt: skip
        hint = ((features[0][0] - features[0][1]) ** 2).mean()
        energy = [(f**2).sum(-1).reshape(N, -1) for f in features[1]]
        energy = [q / np.linalg.norm(q, axis=1, keepdims=True) for q in energy]
        attention = ((energy[0] - energy[1]) ** 2).sum(1).mean()
        assert logs["hint_loss"][0] == pytest.approx(hint, rel=1e-5)
        assert logs["attention_transfer_loss"][0] == pytest.approx(attention, rel=1e-5)
        weighted = 0.1 * logs["hard_loss"][0] + 0.9 * logs["soft_loss"][0]
        assert logs["loss"][0] == pytest.approx(
            weighted + 0.3 * hint + 1.5 * attention, rel=1e-5
        )

    def test_features_alone_teach(self, x, y, teacher):
        student = network(2, noisy=False)
        before = student.get_weights()
        distiller = Distiller(
            student,
            teacher,
            hard_loss_weight=0.0,
            soft_loss_weight=0.0,
            feature_losses={("relu", "relu"): Hint()},
        )
        compiled(distiller, optimizer=keras.optimizers.Adam(0.05))
        first, *_, last = fit(distiller, x, y, epochs=15, batch_size=N)["hint_loss"]
        assert last < 0.5 * first
        moved = [np.abs(a - b).max() for a, b in zip(before, student.get_weights(),
                                                     strict=True)]  # fmt: skip
        assert min(moved[:2]) > 1e-3
        assert max(moved[2:]) == 0.0  # layers after the tap have no gradient
        adapter = distiller.feature_losses["relu", "relu"].adapter
        assert np.abs(adapter.projection.get_weights()[1]).max() > 1e-3

    def test_weights_of_samples_act(self, x, y, teacher):
        student = network(5, noisy=False)
        pairs = {("first", "first"): Hint()}
        distiller = compiled(Distiller(student, teacher, feature_losses=pairs), 0.0)
        values = np.square(
            output_of(teacher, "first", x) - output_of(student, "first", x)
        )
        values = values.mean((1, 2, 3))
        weights = np.linspace(0.0, 3.0, N).astype("float32")
        logs = fit(distiller, x, y, sample_weight=weights)
        assert logs["hint_loss"][0] == pytest.approx((weights * values).mean(), 1e-5)
        logs = fit(distiller, x, y, class_weight={0: 0.0, 1: 2.0, 2: 0.5})
        weights = np.array([0.0, 2.0, 0.5])[y]
        assert logs["hint_loss"][0] == pytest.approx((weights * values).mean(), 1e-5)

    def test_weights_of_positions_are_averaged(self, rng):
        inputs = keras.Input((2, 4))
        models = [
            keras.Model(inputs, layers.Dense(CLASSES, name="d")(inputs))
            for _ in range(2)
        ]
        distiller = compiled(
            Distiller(*models, feature_losses={("d", "d"): Hint()}), 0.0
        )
        x = rng.normal(size=(2, 2, 4)).astype("float32")
        weights = np.array([[0.0, 1.0], [3.0, 5.0]], "float32")
        logs = fit(distiller, x, np.zeros((2, 2)), sample_weight=weights)
        values = np.square(np.subtract(*(m(x).numpy() for m in models))).mean((1, 2))
        assert logs["hint_loss"][0] == pytest.approx(
            (np.array([0.5, 4.0]) * values).mean(), rel=1e-5
        )

    def test_masked_steps_are_not_taught(self):
        def tagger(seed):
            keras.utils.set_random_seed(seed)
            tokens = keras.Input((5,), dtype="int32")
            hidden = layers.Embedding(9, 4, mask_zero=True, name="e")(tokens)
            return keras.Model(tokens, layers.Dense(CLASSES)(hidden))

        tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
        student, teacher = tagger(0), tagger(1)
        pairs = {("e", "e"): Hint()}
        distiller = compiled(Distiller(student, teacher, feature_losses=pairs), 0.0)
        logs = fit(distiller, tokens, np.ones((2, 5), "int32"))
        values = squares(teacher, student, "e", tokens).mean(-1)
        expected = [values[i][tokens[i] > 0].mean() for i in range(2)]
        assert logs["hint_loss"][0] == pytest.approx(np.mean(expected), rel=1e-5)

    def test_weights_move_within_compiled_training(self, x, y, teacher):
        class Mover(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                pair = self.model.feature_losses["second", "second"]
                pair.weight = [0.0, 2.0][epoch]

        student = network(5, noisy=False)
        pairs = {
            ("first", "first"): (Hint(), Linear(0.0, 1.0, over=1, unit="epochs")),
            ("second", "second"): RelationalKD(),
        }
        distiller = Distiller(student, teacher, None, 0.0, 0.0, feature_losses=pairs)
        compiled(distiller, 0.0, run_eagerly=False)
        logs = fit(distiller, x, y, epochs=2, callbacks=[Mover()])
        assert logs["hint_loss_weight"] == [0.0, 1.0]
        hint, relational = logs["hint_loss"][0], logs["relational_kd_loss"][0]
        assert logs["loss"] == pytest.approx([0.0, hint + 2.0 * relational], rel=1e-5)
        assert "val_hint_loss_weight" not in logs

    def test_temperatures_follow_schedules_too(self, x, y, teacher):
        schedule = Linear(1.0, 5.0, over=1, unit="epochs")
        pairs = {("first", "first"): ChannelWise(schedule)}
        distiller = Distiller(network(5), teacher, feature_losses=pairs)
        logs = fit(compiled(distiller), x, y, epochs=2, validation_data=(x, y))
        assert logs["channel_wise_loss_temperature"] == [1.0, 5.0]
        assert not {name for name in logs if name.startswith("val_channel")}

    def test_any_distillation_loss_is_taken(self, x, y, teacher):
        student = network(5, noisy=False)
        for loss in (Distance(), keras.distillation.FeatureDistillation("mse")):
            pairs = {("first", "first"): loss}
            distiller = compiled(Distiller(student, teacher, feature_losses=pairs), 0.0)
            logs = fit(distiller, x, y)
            expected = squares(teacher, student, "first", x).mean()
            name = f"{type(loss).__name__.lower()}_loss"
            assert logs[name][0] == pytest.approx(expected, rel=1e-5)
        with pytest.raises(ValueError, match="one value for the batch"):
            fit(distiller, x, y, sample_weight=np.ones(N))

    def test_without_labels(self, x, teacher):
        pairs = {("first", "first"): Hint()}
        distiller = Distiller(network(2), teacher, feature_losses=pairs)
        logs = fit(compiled(distiller), x)
        assert set(logs) == {"loss", "soft_loss", "hint_loss"}


class TestWhatRunsAndWhatIsLeftAlone:
    def test_one_forward_of_each_model_a_step(self, x, y):
        # Keras runs the student twice for features: statistics move twice as far.
        plain, student = network(2, counting=True), network(2, counting=True)
        teacher = network(5, seed=7, counting=True)
        before = teacher.get_weights()
        losses = (Hint(), AttentionTransfer(), SimilarityPreserving())
        pairs = {
            pair: (loss, 0.0)
            for pair, loss in zip(
                [("first", "bn"), ("relu", "relu"), ("second", "pooled")],
                losses,
                strict=True,
            )
        }
        fit(compiled(plain), x, y, epochs=2)
        distiller = Distiller(student, teacher, None, 1.0, 0.0, feature_losses=pairs)
        compiled(distiller)
        fit(distiller, x, y, epochs=2, validation_data=(x, y))
        steps = 2 * N // BATCH
        assert int(teacher.get_layer("counting").calls) == steps
        assert int(student.get_layer("counting").calls) == 2 * steps  # and validation
        student.get_layer("counting").calls.assign(steps)
        assert difference(plain, student) == 0.0
        after = teacher.get_weights()
        moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert sum(moved) == 1  # the count

    def test_the_teacher_is_in_inference_mode(self, x, y, teacher):
        student = network(5, noisy=False)
        pairs = {("relu", "relu"): Hint()}
        logs = fit(
            compiled(Distiller(student, teacher, feature_losses=pairs), 0.0), x, y
        )
        expected = squares(teacher, student, "relu", x).mean()
        assert logs["hint_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_evaluation_runs_no_adapter(self, x, y, teacher, monkeypatch):
        def refuse(*args):
            raise InterruptedError

        pairs = {("first", "first"): Hint()}
        distiller = Distiller(network(2), teacher, feature_losses=pairs)
        monkeypatch.setattr(Adapter, "adapt", refuse)
        compiled(distiller)
        assert len(distiller.evaluate(x, y, verbose=0)) == 3
        distiller.predict(x, verbose=0)
        with pytest.raises(InterruptedError):
            fit(distiller, x, y)

    def test_the_student_has_no_part_of_it(self, x, y, teacher, tmp_path):
        student = network(2)
        names = [v.path for v in student.variables]
        pairs = {("first", "first"): Hint(), ("bn", "bn"): VariationalInformation()}
        distiller = compiled(Distiller(student, teacher, feature_losses=pairs))
        fit(distiller, x, y)
        assert distiller.student is student
        assert [v.path for v in student.variables] == names
        assert all("call" not in vars(layer) for layer in student._flatten_layers())
        own = {id(v) for v in student.trainable_variables}
        trained = {id(v) for v in distiller.trainable_variables}
        assert own < trained and len(trained - own) == 2 + 2 + 1
        assert not trained & {id(v) for v in teacher.variables}
        student.save(tmp_path / "student.keras")
        with zipfile.ZipFile(tmp_path / "student.keras") as archive:
            assert "kdlite" not in archive.read("config.json").decode()
        loaded = keras.models.load_model(tmp_path / "student.keras")
        np.testing.assert_array_equal(loaded(x), student(x))


@pytest.fixture(scope="module")
def executed(x, y, teacher):
    @functools.cache
    def trained(options):
        pairs = {
            ("first", "first"): Hint(),
            ("pooled", "pooled"): Contrastive(4, bank=6),
        }
        distiller = Distiller(network(2, noisy=False), teacher, feature_losses=pairs)
        compiled(distiller, **{"run_eagerly": False, **dict(options)})
        fit(distiller, x, y, epochs=2)
        return distiller

    return lambda options: trained(tuple(options.items()))


class TestModels:
    def test_nested_and_shared_layers(self, x, y, teacher):
        inner = network(2)
        body = keras.Model(inner.inputs, inner.get_layer("relu").output, name="body")
        inputs = keras.Input((6, 6, 1))
        shared = layers.Conv2D(2, 3, padding="same", name="shared")
        maps = shared(shared(body(inputs)))
        logits = layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(maps))
        student = keras.Model(inputs, logits)
        pairs = {
            ("body/bn", "bn"): Hint(),
            ("shared:0", "first"): AttentionTransfer(),
            ("shared", "second"): SimilarityPreserving(),
        }
        distiller = compiled(Distiller(student, teacher, feature_losses=pairs))
        first, last = fit(distiller, x, y, epochs=2)["hint_loss"]
        assert last < first

    def test_students_built_by_their_data(self, x, y, teacher):
        student = keras.Sequential(
            [
                layers.Conv2D(2, 3, name="first"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(CLASSES),
            ]
        )
        pairs = {("first", "first"): Hint()}
        distiller = compiled(Distiller(student, teacher, feature_losses=pairs))
        pair = distiller.feature_losses["first", "first"]
        assert not student.built and not pair.built
        before = None
        for _ in range(2):
            fit(distiller, x, y)
            kernel = pair.adapter.projection.get_weights()[0]
            assert kernel.shape == (1, 1, 2, 5)
            assert before is None or np.abs(kernel - before).max() > 0.0
            before = kernel

    def test_subclassed_models_that_tell_their_features(self, x, y, teacher):
        class Telling(keras.Model):
            def __init__(self, width):
                super().__init__()
                self.conv = layers.Conv2D(width, 3, padding="same")
                self.pool = layers.GlobalAveragePooling2D()
                self.head = layers.Dense(CLASSES)

            def features(self, inputs, training=None):
                maps = self.conv(inputs)
                return self.head(self.pool(maps)), {"maps": maps}

            def call(self, inputs, training=None):
                return self.features(inputs, training)[0]

        declared = {"student_outputs": "logits", "teacher_outputs": "logits"}
        student, taught = Telling(2), Telling(4)
        pairs = {("maps", "maps"): Hint()}
        distiller = compiled(
            Distiller(student, taught, feature_losses=pairs, **declared)
        )
        first, last = fit(distiller, x, y, epochs=2)["hint_loss"]
        assert last < first
        distiller.evaluate(x, y, verbose=0)

    def test_an_average_of_the_student(self, x, y):
        pairs = {("relu", "relu"): Hint(), ("pooled", "pooled"): SimilarityPreserving()}
        teacher = kdlite.teachers.MeanTeacher(0.9)
        distiller = Distiller(network(2), teacher, feature_losses=pairs)
        logs = fit(compiled(distiller, 0.1), x, y, epochs=2)
        assert logs["hint_loss"][1] > 0.0
        assert distiller.feature_losses["relu", "relu"].adapter.projection is None

    def test_students_of_half_precision(self, x, y, teacher):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            student = network(2)
        finally:
            keras.config.set_dtype_policy("float32")
        pairs = {
            ("first", "first"): Hint(),
            ("bn", "bn"): MaskedGenerative(),
            ("pooled", "pooled"): Contrastive(4),
        }
        distiller = Distiller(student, teacher, feature_losses=pairs)
        compiled(distiller, 0.01)
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
        logs = fit(distiller, x, y)
        assert np.isfinite(logs["loss"]).all()
        assert all(v.dtype == "float32" for v in distiller.trainable_variables)
        seen = student.compute_dtype
        assert seen == "float16"

    @pytest.mark.parametrize(
        "options",
        [{"steps_per_execution": 2}, {"jit_compile": True}, {"run_eagerly": True}],
    )
    def test_every_way_to_execute_trains_the_same(self, x, y, executed, options):
        assert difference(executed({}), executed(options)) < 1e-4

    def test_a_student_that_rounds(self, x, y, teacher):
        qat = kdlite.quantize_aware(network(2, noisy=False))
        pairs = {("relu", "relu"): Hint()}
        distiller = compiled(Distiller(qat, teacher, feature_losses=pairs))
        first, last = fit(distiller, x, y, epochs=2)["hint_loss"]
        assert last < first

    def test_a_teacher_read_as_logits(self, x, y, teacher):
        pairs = {("first", "first"): Hint()}
        distiller = Distiller(network(2), LogitsModel(teacher), feature_losses=pairs)
        assert "hint_loss" in fit(compiled(distiller), x, y)

    def test_a_teacher_that_sees_larger_images(self, x, y):
        keras.utils.set_random_seed(3)
        teacher = keras.Sequential(
            [
                keras.Input((12, 12, 1)),
                layers.Conv2D(4, 3, padding="same", name="wide"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(CLASSES),
            ]
        )
        student = network(4, noisy=False)
        distiller = Distiller(
            student,
            teacher,
            feature_losses={("first", "wide"): Hint()},
            teacher_transform=layers.UpSampling2D(2),
        )
        logs = fit(compiled(distiller, 0.0), x, y)
        wide = output_of(teacher, "wide", layers.UpSampling2D(2)(x))
        pooled = wide.reshape(N, 6, 2, 6, 2, 4).mean((2, 4))
        expected = np.square(pooled - output_of(student, "first", x)).mean()
        assert logs["hint_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_a_teacher_without_a_head(self, x, y, teacher, tmp_path):
        backbone = keras.Model(teacher.inputs[0], teacher.get_layer("relu").output)
        student = network(5, noisy=False)
        distiller = Distiller(
            student,
            backbone,
            {"logits": None},
            feature_losses={("relu", "relu"): Hint()},
        )
        logs = fit(compiled(distiller, 0.0), x, y)
        expected = squares(teacher, student, "relu", x).mean()
        assert logs["hint_loss"][0] == pytest.approx(expected, rel=1e-5)
        assert logs["loss"][0] == pytest.approx(0.1 * logs["hard_loss"][0] + expected)
        distiller.save(tmp_path / "d.keras")
        loaded = keras.models.load_model(tmp_path / "d.keras")
        loaded.teacher = backbone
        assert fit(loaded, x, y)["hint_loss"] == pytest.approx(logs["hint_loss"])

    def test_students_with_several_outputs(self, x, y, teacher):
        inputs = keras.Input((6, 6, 1))
        maps = layers.Conv2D(2, 3, padding="same", name="first")(inputs)
        pooled = layers.GlobalAveragePooling2D()(maps)
        heads = [layers.Dense(CLASSES, name=name)(pooled) for name in ("a", "b")]
        student, taught = keras.Model(inputs, heads), keras.Model(inputs, heads)
        taught = keras.models.clone_model(taught)
        distiller = Distiller(
            student,
            taught,
            [SoftTargets(), None],
            feature_losses={("first", "first"): Hint()},
        )
        distiller.compile("sgd", [None, "mse"], run_eagerly=True)
        weights = [np.ones(N), np.linspace(0.0, 1.0, N)]
        targets = [np.zeros((N, CLASSES)), np.zeros((N, CLASSES))]
        logs = fit(distiller, x, targets, sample_weight=weights)
        assert logs["hint_loss"][0] > 0.0


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise InterruptedError


def random_run(teacher, seed=0):
    """All that such a run can carry: adapters, a generator, a variance, a bank."""
    student = network(2, seed=seed)
    pairs = {
        ("first", "first"): (MaskedGenerative(), 0.3),
        ("bn", "bn"): (VariationalInformation(), Linear(0.0, 1.0, over=3)),
        ("second", "second"): Hint(),
        ("pooled", "pooled"): Contrastive(4, bank=10),
    }
    distiller = Distiller(
        student, teacher, SoftTargets(2.0), 0.2, 0.8, feature_losses=pairs
    )
    optimizer = keras.optimizers.Adam(0.01)
    return compiled(distiller, optimizer=optimizer)


@pytest.fixture(scope="module")
def whole(x, y, teacher):
    distiller = random_run(teacher)
    fit(distiller, x, y, epochs=2)
    return distiller


class TestGoingOn:
    """An interrupted run ends on the very weights of one that was not."""

    def test_after_backup_and_restore(self, x, y, teacher, whole, tmp_path):
        def backup():
            return keras.callbacks.BackupAndRestore(tmp_path / "backup")

        first = random_run(teacher)
        with pytest.raises(InterruptedError):
            fit(first, x, y, epochs=2, callbacks=[backup(), Stop()])
        second = random_run(teacher, seed=99)  # another start and other random states
        second.feature_losses["second", "second"].weight = 9.0
        logs = fit(second, x, y, epochs=2, callbacks=[backup()])
        assert len(logs["loss"]) == 1
        assert difference(whole, second) == 0.0
        assert float(second.feature_losses["second", "second"].weight) == 1.0

    def test_after_saving_and_loading(self, x, y, teacher, whole, tmp_path):
        first = random_run(teacher)
        fit(first, x, y)
        first.save(tmp_path / "d.keras")
        with zipfile.ZipFile(tmp_path / "d.keras") as archive:
            assert '"big"' not in archive.read("config.json").decode()
        loaded = keras.models.load_model(tmp_path / "d.keras")
        assert difference(first, loaded) == 0.0
        assert list(loaded.feature_losses) == list(first.feature_losses)
        configs = [json.loads(json.dumps(d.get_config())) for d in (loaded, first)]
        assert configs[0] == configs[1]
        assert loaded.evaluate(x, y, verbose=0) == pytest.approx(
            first.evaluate(x, y, verbose=0)
        )
        loaded.teacher = teacher
        fit(loaded, x, y, epochs=2, initial_epoch=1)
        assert difference(whole, loaded) == 0.0

        whole.save_weights(tmp_path / "d.weights.h5")
        first.load_weights(tmp_path / "d.weights.h5")
        assert difference(whole, first) == 0.0


class TestNames:
    def test_losses_of_one_kind_are_told_apart(self, x, y, teacher):
        pairs = {
            ("first", "first"): Hint(),
            ("second", "second"): Hint(),
            ("bn", "bn"): Hint(name="norm"),
        }
        distiller = Distiller(network(2), teacher, feature_losses=pairs)
        logs = fit(compiled(distiller), x, y)
        names = {name for name in logs if name.startswith(("first", "second", "norm"))}
        assert names == {
            "first_first_hint_loss",
            "second_second_hint_loss",
            "norm_loss",
        }
        assert repr(distiller.feature_losses) == (
            "{('first', 'first'): <Hint, weight=1.0>, ('second', 'second'): <Hint, "
            "weight=1.0>, ('bn', 'bn'): <Hint, weight=1.0>}"
        )

    def test_auto_says_what_it_chose(self, x, y, teacher, caplog):
        with caplog.at_level(logging.INFO, "kdlite"):
            distiller = Distiller(network(2), teacher, feature_losses="auto")
        assert list(distiller.feature_losses) == [
            ("relu", "relu"),
            ("second", "second"),
        ]
        assert "relu learns from relu by AttentionTransfer" in caplog.text
        logs = fit(compiled(distiller), x, y)
        assert "relu_relu_attention_transfer_loss" in logs


class TestErrors:
    def test_names(self, teacher):
        for pair, role in (
            (("frst", "first"), "student"),
            (("first", "frst"), "teach"),
        ):
            with pytest.raises(ValueError, match=rf"'frst' for {role}.*Near: 'first'"):
                Distiller(network(2), teacher, feature_losses={pair: Hint()})

    @pytest.mark.parametrize(
        "given, text",
        [
            ("all", "must be a dict or 'auto'. Received: feature_losses='all'"),
            ([Hint()], "must be a dict or 'auto'"),
            ({"first": Hint()}, "must be pairs of layer names. Received: 'first'"),
            ({("a", 2): Hint()}, r"must be pairs of layer names. Received: \('a', 2\)"),
            ({("a", "b"): "mse"}, r"A feature loss must be .*'mse' for \('a', 'b'\)"),
            ({("a", "b"): (Hint(), 1, 2)}, "A feature loss must be"),
            ({("a", "b"): (Hint(), "much")}, "`weight` must be a number"),
        ],
    )
    def test_types(self, teacher, given, text):
        with pytest.raises(TypeError, match=text):
            Distiller(network(2), teacher, feature_losses=given)

    def test_weights(self, teacher):
        with pytest.raises(ValueError, match="`weight` must be 0 or more"):
            Distiller(
                network(2), teacher, feature_losses={("first", "first"): (Hint(), -1.0)}
            )

    def test_losses_with_weights_are_for_one_pair(self, teacher):
        loss = VariationalInformation()
        pairs = {("first", "first"): loss, ("second", "second"): loss}
        with pytest.raises(ValueError, match="VariationalInformation for 2 pairs. Fix"):
            Distiller(network(2), teacher, feature_losses=pairs)

    def test_names_in_the_logs(self, teacher):
        pairs = {("first", "first"): Hint(name="soft")}
        with pytest.raises(ValueError, match="name of its own. Received: 'soft_loss'"):
            Distiller(network(2), teacher, feature_losses=pairs)

    def test_without_a_teacher(self, x, y, teacher):
        pairs = {("first", "first"): Hint()}
        distiller = compiled(Distiller(network(2), feature_losses=pairs))
        soft = teacher(x).numpy()
        with pytest.raises(
            ValueError, match=r"need the teacher itself.*1 feature losses, teacher=None"
        ):
            fit(distiller, {INPUTS_KEY: x, SOFT_LABELS_KEY: soft}, y)
        with pytest.raises(TypeError, match="layers of a Keras model. Received: teach"):
            Distiller(network(2), feature_losses="auto")

    def test_another_teacher(self, teacher):
        pairs = {("first", "first"): Hint()}
        distiller = Distiller(network(2), teacher, feature_losses=pairs)
        distiller.teacher = network(5, seed=1)
        with pytest.raises(
            ValueError, match=r"'first' and 'first' of widths \(2, 6\), after \(2, 5\)"
        ):
            distiller.teacher = network(6)

    def test_features_that_do_not_fit(self, teacher):
        with pytest.raises(ValueError, match=r"same axes of positions"):
            inputs = keras.Input((6, 6, 1))
            rows = layers.Reshape((36, 1), name="rows")(inputs)
            head = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(rows))
            student = keras.Model(inputs, head)
            Distiller(student, teacher, feature_losses={("rows", "first"): Hint()})

    def test_outputs_that_no_pass_made(self, x, y, teacher):
        pairs = {("first", "first"): Hint()}
        distiller = compiled(Distiller(network(2), teacher, feature_losses=pairs))
        with pytest.raises(ValueError, match="its own forward pass"):
            distiller.compute_loss(x, y, tf.zeros((N, CLASSES)), training=True)


class TestWhatIsNoPairOfLayers:
    @pytest.mark.parametrize(
        "loss",
        [SoftTargets(), losses.LogitMSE(), losses.DIST(), losses.Regression()],
        ids=lambda loss: type(loss).__name__,
    )
    def test_losses_on_outputs_are_refused(self, loss):
        for given in (loss, (loss, 0.5)):
            with pytest.raises(
                TypeError, match=rf"features of layers. .*{type(loss).__name__} for \("
            ):
                Distiller(
                    *(network(2), network(3)),
                    feature_losses={("first", "first"): given},
                )

    def test_a_mean_teacher_has_the_layers_of_its_student(self):
        pairs = Distiller(
            network(2), MeanTeacher(0.9), feature_losses="auto"
        ).feature_losses
        assert pairs and all(ours == theirs for ours, theirs in pairs)

    def test_a_teacher_without_layers_of_its_own_is_named(self):
        ensemble = Ensemble([network(2), network(3)], name="both")
        for given in ("auto", {("first", "first"): losses.Hint()}):
            with pytest.raises(TypeError, match="both.*, Ensemble, which has none"):
                Distiller(network(2), ensemble, feature_losses=given)
