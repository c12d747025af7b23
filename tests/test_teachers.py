"""Teachers made of others, and a .tflite as a teacher."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from converting import converted
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import layers

from kdlite import SoftLabels
from kdlite.distill.distiller import Distiller
from kdlite.distill.losses import MultiLabelSoftTargets
from kdlite.distill.taps import LogitsModel
from kdlite.fingerprint import model_fingerprint
from kdlite.teachers import Ensemble, Function, TFLite, Transformed

N, FEATURES, CLASSES = 24, 4, 3


def model(activation=None, scale=1.0, name=None, classes=CLASSES, body=()):
    stack = [layers.Dense(5, activation="relu"), *body]
    head = layers.Dense(classes, activation=activation)
    made = keras.Sequential([keras.Input((FEATURES,)), *stack, head], name=name)
    made.set_weights([scale * w for w in made.get_weights()])
    return made


def distilled(
    student, teacher, x, learning_rate=0.0, epochs=1, run_eagerly=True, **kwargs
):
    # A few steps are sooner taken than traced; where compiled code matters it is asked
    # for.
    distiller = Distiller(student, teacher, None, 0.0, 1.0, **kwargs)
    distiller.compile(keras.optimizers.SGD(learning_rate), run_eagerly=run_eagerly)
    logs = distiller.fit(x, epochs=epochs, batch_size=8, shuffle=False, verbose=0)
    return distiller, logs.history["soft_loss"]


def softmax(logits):
    shifted = np.asarray(logits, "float64")
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def soft_loss(teacher, student, temperature=4.0):
    p, q = (softmax(np.asarray(v, "float64") / temperature) for v in (teacher, student))
    return (p * np.log(p / q)).sum(axis=-1).mean() * temperature**2


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture
def members():
    return [model(), model("softmax", scale=2.0), model(scale=0.5)]


def oracle(logits, weights, average, by_confidence):
    """The class docstring's formulas in float64, as probabilities."""
    logits = np.asarray(logits, "float64")
    weights = np.asarray(weights, "float64") / np.sum(weights)
    weights = np.broadcast_to(weights[:, None, None], (*logits.shape[:2], 1))
    if by_confidence:
        weights = weights * softmax(logits).max(axis=-1, keepdims=True)
        weights = weights / weights.sum(axis=0)
    if average == "probabilities":
        return (weights * softmax(logits)).sum(axis=0)
    return softmax((weights * logits).sum(axis=0))


class TestEnsemble:
    @pytest.mark.parametrize("average", ["logits", "probabilities"])
    @pytest.mark.parametrize("by_confidence", [False, True])
    @pytest.mark.parametrize("weights", [None, (1.0, 5.0, 2.0)])
    def test_it_is_the_formula(self, x, members, average, by_confidence, weights):
        teacher = Ensemble(members, weights, average, by_confidence)
        logits = [LogitsModel(member)(x) for member in members]
        expected = oracle(logits, weights or (1, 1, 1), average, by_confidence)
        np.testing.assert_allclose(softmax(teacher(x)), expected, rtol=1e-5)

    def test_logits_hold_at_every_temperature_and_probabilities_at_one(
        self, x, members
    ):
        logits = np.stack([LogitsModel(member)(x) for member in members])
        for temperature in (1.0, 4.0, 20.0):
            geometric = np.prod(softmax(logits / temperature) ** (1 / 3), axis=0)
            geometric /= geometric.sum(axis=-1, keepdims=True)
            softened = softmax(np.asarray(Ensemble(members)(x)) / temperature)
            np.testing.assert_allclose(softened, geometric, rtol=1e-5)
        mixture = np.asarray(Ensemble(members, average="probabilities")(x))
        np.testing.assert_allclose(softmax(mixture), softmax(logits).mean(0), rtol=1e-5)
        assert np.abs(softmax(mixture / 4) - softmax(logits / 4).mean(0)).max() > 1e-3

    @given(
        logits=arrays(np.float32, (3, 2, 4), elements=st.floats(-1e4, 1e4, width=32)),
        shift=st.floats(-1e3, 1e3, width=32),
        average=st.sampled_from(["logits", "probabilities"]),
        by_confidence=st.booleans(),
    )
    @settings(max_examples=25, deadline=None)
    def test_whatever_members_say(self, logits, shift, average, by_confidence):
        def said(words, weights):
            members = [Function(lambda x, w=w: w, (4,), "logits") for w in words]
            teacher = Ensemble(members, weights, average, by_confidence)
            return softmax(teacher(np.zeros((2, 1), "float32")))

        expected = said(logits, [1, 2, 3])
        assert np.isfinite(expected).all()
        # In float32 logits of 1e4 are known to 1e-3.
        near = {"rtol": 0.0, "atol": 1e-2}
        np.testing.assert_allclose(said(logits[::-1], [3, 2, 1]), expected, **near)
        moved = logits + np.array([shift, 0.0, 0.0], "float32")[:, None, None]
        np.testing.assert_allclose(said(moved, [1, 2, 3]), expected, **near)
        same = np.stack([logits[0]] * 3)
        np.testing.assert_allclose(said(same, [1, 2, 3]), softmax(logits[0]), **near)

    def test_confidence_decides_sample_by_sample(self):
        # Of two members each is sure of one of the samples, and vague about the other.
        weights = np.diag([40.0, 0.0, 0.0, 0.0])[:, :CLASSES]
        first, second = (
            keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])
            for _ in range(2)
        )
        first.set_weights([weights, np.zeros(CLASSES)])
        second.set_weights([np.roll(weights, 1, axis=(0, 1)), np.zeros(CLASSES)])
        x = np.eye(FEATURES, dtype="float32")[:2]
        p = softmax(Ensemble([first, second], None, "probabilities", True)(x))
        # Confidence 1 and 1/3: three quarters of the sure, a quarter of the vague.
        sure = 0.75 * softmax([40.0, 0, 0])[0] + 0.25 / 3
        np.testing.assert_allclose([p[0, 0], p[1, 1]], sure, rtol=1e-5)

    @pytest.mark.parametrize("average", ["logits", "probabilities"])
    def test_extreme_logits_stay_finite(self, average):
        members = [model(scale=1e4) for _ in range(2)]
        x = np.full((2, FEATURES), 1e4, "float32")
        for by_confidence in (False, True):
            logits = Ensemble(members, None, average, by_confidence)(x)
            assert np.isfinite(logits).all()

    def test_it_teaches(self, x, members):
        teacher, student = Ensemble(members, [1, 2, 3]), model()
        _, (loss,) = distilled(student, teacher, x)
        assert loss == pytest.approx(soft_loss(teacher(x), student(x)), rel=1e-4)
        _, losses = distilled(student, teacher, np.tile(x, (4, 1)), 0.5, epochs=3)
        assert losses[-1] < 0.3 * losses[0]

    def test_members_are_in_inference_mode_unchanged_and_not_saved(self, x, tmp_path):
        noisy = [
            model(body=(layers.BatchNormalization(), layers.Dropout(0.5)))
            for _ in range(2)
        ]
        teacher, student = Ensemble(noisy), model()
        before = [v.numpy() for member in noisy for v in member.variables]
        expected = soft_loss(teacher(x), student(x))
        distiller, (loss,) = distilled(student, teacher, x)
        assert loss == pytest.approx(expected, rel=1e-4)
        distilled(student, teacher, x, 0.1)
        after = [v.numpy() for member in noisy for v in member.variables]
        assert all(map(np.array_equal, before, after))
        assert all(member.trainable for member in noisy)
        mine = {id(v) for v in distiller.variables}
        assert not mine & {id(v) for v in teacher.variables}
        distiller.save(tmp_path / "d.keras")
        assert keras.models.load_model(tmp_path / "d.keras").teacher is None

    def test_an_ensemble_of_ensembles_in_xla_and_mixed_precision(self, x, members):
        inner = Ensemble(members[:2])
        teacher = Ensemble([inner, members[2]], [2, 1])
        np.testing.assert_allclose(
            softmax(teacher(x)), softmax(Ensemble(members)(x)), rtol=1e-5
        )
        keras.config.set_dtype_policy("mixed_float16")
        try:
            # Made under a half-precision policy it still sees and speaks float32.
            again = Ensemble([inner, members[2]], [2, 1])
            np.testing.assert_array_equal(again(x), teacher(x))
        finally:
            keras.config.set_dtype_policy("float32")
        student = model()
        distiller = Distiller(student, teacher)
        distiller.compile("sgd", jit_compile=True)
        distiller.fit(x, batch_size=8, verbose=0)
        assert distiller.jit_compile

    def test_sigmoids_are_averaged_label_by_label(self, x):
        members = [model("sigmoid", scale=k) for k in (1.0, 3.0)]
        teacher = Ensemble([*members, model()], [1, 1, 2])
        assert teacher.returns == "sigmoid"
        read = LogitsModel(teacher, needs="independent logits")(x)
        logits = [
            LogitsModel(member, needs=None)(x).numpy() for member in teacher.members
        ]
        expected = np.average(logits, axis=0, weights=[1, 1, 2])
        np.testing.assert_allclose(read, expected, atol=1e-5)
        with pytest.raises(
            ValueError, match="are over classes. Received: members that"
        ):
            Ensemble(members, average="probabilities")
        with pytest.raises(
            ValueError, match="the same kind of head. Received: 's.*with"
        ):
            Ensemble([*members, model("softmax")])

    def test_keras_evaluates_it(self, x, members):
        teacher = Ensemble(members)
        y = np.asarray(teacher(x)).argmax(-1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        teacher.compile(loss=loss, metrics=["accuracy"], run_eagerly=True)
        assert teacher.evaluate(x, y, verbose=0)[-1] == 1.0

    def test_it_is_saved_and_known_again(self, x, members, tmp_path):
        teacher = Ensemble(members, [1, 2, 3], "probabilities", True)
        teacher.save(tmp_path / "t.keras")
        loaded = keras.models.load_model(tmp_path / "t.keras")
        np.testing.assert_allclose(loaded(x), teacher(x), rtol=1e-6)
        known = model_fingerprint(teacher)
        assert model_fingerprint(loaded) == known
        others = [
            Ensemble(members, [1, 2, 4], "probabilities", True),
            Ensemble(members, [1, 2, 3], "logits", True),
            Ensemble(members, [1, 2, 3], "probabilities"),
            Ensemble(members[::-1], [1, 2, 3], "probabilities", True),
        ]
        assert known not in map(model_fingerprint, others)
        members[1].layers[0].bias.assign_add(np.ones(5))
        assert model_fingerprint(teacher) != known

    def test_soft_labels(self, x, members, tmp_path):
        teacher = Ensemble(members)
        soft = SoftLabels.build(teacher, x, tmp_path)
        np.testing.assert_allclose(soft.logits(), teacher(x), atol=1e-6)
        SoftLabels.load(tmp_path, Ensemble(members))
        with pytest.raises(ValueError, match="must be the given teacher's. Received"):
            SoftLabels.load(tmp_path, Ensemble(members, [1, 1, 2]))
        with pytest.raises(ValueError, match="another teacher"):
            SoftLabels.build(Ensemble(members[:2]), x, tmp_path)

    def test_errors(self, members):
        with pytest.raises(ValueError, match="two members or more. Received: 1. Fix"):
            Ensemble(members[:1])
        with pytest.raises(
            TypeError, match="`teacher` must be a keras.Model. Received"
        ):
            Ensemble([*members, "teacher.keras"])
        with pytest.raises(ValueError, match="Received: average='vote'. Fix: 'logits'"):
            Ensemble(members, average="vote")
        with pytest.raises(ValueError, match="Received: 2 weights for 3 members. Fix"):
            Ensemble(members, [1, 2])
        for weights in ([1, 1, 0], [1, 1, -1], [1, 1, np.nan]):
            with pytest.raises(
                ValueError, match="`member_weights` must be (above|finite)"
            ):
                Ensemble(members, weights)
        with pytest.raises(TypeError, match="`member_weights` must be a number"):
            Ensemble(members, "123")
        with pytest.raises(
            ValueError, match=r"same classes and positions. Received: 's.*'other' with"
        ):
            Ensemble([*members, model(classes=7, name="other")])
        with pytest.raises(ValueError, match=r"share .*kernel"):
            Distiller(members[0], Ensemble(members))


class TestTransformed:
    def images(self):
        return np.random.default_rng(3).normal(size=(6, 4, 4, 1)).astype("float32")

    def network(self, size):
        return keras.Sequential(
            [keras.Input((size, size, 1)), layers.Flatten(), layers.Dense(CLASSES)]
        )

    def test_the_teacher_sees_another_resolution_and_normalisation(self):
        x, teacher, student = self.images(), self.network(8), self.network(4)

        def enlarged(x):
            return keras.ops.image.resize(x, (8, 8), "nearest") / 255.0

        larger = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2) / 255.0
        for taught in (
            {"teacher": Transformed(teacher, enlarged)},
            {"teacher": teacher, "teacher_transform": enlarged},
        ):
            distiller, (loss,) = distilled(student, x=x, **taught)
            expected = soft_loss(teacher(larger), student(x))
            assert loss == pytest.approx(expected, rel=1e-4)
            assert distiller.teacher.teacher is teacher
        with pytest.raises(
            ValueError, match="must take the student's inputs. Received"
        ):
            Distiller(student, teacher)

    def test_it_sees_the_very_view_that_the_student_sees(self, tmp_path):
        def noisy(x, seed):
            return x + tf.random.stateless_normal(x.shape, seed)

        x, teacher = self.images(), self.network(4)
        soft = SoftLabels.build(
            Transformed(teacher, lambda x: 2.0 * x, version="twice"),
            x,
            tmp_path,
            augment=noisy,
            views=3,
        )
        for (inputs,) in soft.attach(x, batch_size=6, augment=noisy):
            np.testing.assert_allclose(
                inputs["soft_labels"], teacher(2.0 * inputs["inputs"]), atol=1e-5
            )

    def test_what_the_teacher_returns_can_be_declared(self):
        class Subclassed(keras.Model):
            def call(self, x):
                return keras.ops.softmax(x[:, :CLASSES] / 2.0)

        student, x = model(), np.ones((8, FEATURES), "float32")
        distiller, (loss,) = distilled(
            student,
            Subclassed(),
            x,
            run_eagerly=False,
            teacher_outputs="probabilities",
            teacher_transform=lambda x: 2.0 * x,
        )
        assert loss == pytest.approx(soft_loss(x[:, :CLASSES], student(x)), rel=1e-4)
        assert distiller.get_config()["teacher_outputs"] is None

    def test_a_layer_runs_in_inference_mode_and_is_saved(self, tmp_path):
        x, teacher = self.images(), self.network(8)
        transform = keras.Sequential([layers.Resizing(8, 8), layers.Dropout(0.9)])
        made = Transformed(teacher, transform)
        expected = teacher(layers.Resizing(8, 8)(x))
        np.testing.assert_allclose(made(x), expected, atol=1e-6)
        made.save(tmp_path / "t.keras")
        loaded = keras.models.load_model(tmp_path / "t.keras")
        np.testing.assert_allclose(loaded(x), expected, atol=1e-6)
        assert model_fingerprint(loaded) == model_fingerprint(made)
        other = Transformed(teacher, layers.Rescaling(2.0))
        assert model_fingerprint(other) != model_fingerprint(made)

    def test_a_function_is_known_by_its_version(self, x, tmp_path):
        teacher = model()
        plain = Transformed(teacher, lambda x: x)
        with pytest.raises(
            ValueError, match="known again by its version. Received: tr"
        ):
            SoftLabels.build(plain, x, tmp_path / "plain")
        SoftLabels.build(Transformed(teacher, lambda x: x, "1"), x, tmp_path / "v")
        with pytest.raises(ValueError, match="another teacher"):
            SoftLabels.build(Transformed(teacher, lambda x: -x, "2"), x, tmp_path / "v")
        with pytest.raises(ValueError, match=r"Fix: save its teacher, and make Transf"):
            Transformed(teacher, lambda x: x, "1").save(tmp_path / "t.keras")
            keras.models.load_model(tmp_path / "t.keras")

    def test_errors(self, x):
        with pytest.raises(
            TypeError, match="`transform` must be a function of a batch"
        ):
            Transformed(model(), 224)
        with pytest.raises(
            TypeError, match="`teacher` must be a keras.Model. Received"
        ):
            Distiller(model(), teacher_transform=lambda x: x)
        student = model()
        before = student.get_weights()
        with pytest.raises(
            ValueError, match=r"batch of the student's inputs. .*'cut' "
        ):

            def cut(x):
                return x[:, :, :2]

            distilled(student, Transformed(model(), cut), x, 0.1)
        assert all(map(np.array_equal, before, student.get_weights()))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network as .tflite files: with and without softmax, in float and in int8."""
    folder = tmp_path_factory.mktemp("files")
    network = model("softmax", scale=3.0)
    logits = keras.Sequential([*network.layers[:-1], layers.Dense(CLASSES)])
    logits.build((None, FEATURES))
    logits.set_weights(network.get_weights())
    for name, made in (("probabilities", network), ("logits", logits)):
        for quantization in ("float32", "int8"):
            path = folder / f"{name}_{quantization}.tflite"
            path.write_bytes(converted(made, quantization))
    return folder, logits


# Calibrated, in `converting`, on samples between 0 and 1.
CALIBRATED = np.random.default_rng(5).uniform(size=(N, FEATURES)).astype("float32")


class TestTFLite:
    @pytest.mark.parametrize("kind", ["logits", "probabilities"])
    def test_it_says_what_the_keras_model_says(self, files, kind):
        folder, network = files
        teacher = TFLite(folder / f"{kind}_float32.tflite")
        assert teacher.returns == kind
        np.testing.assert_allclose(
            softmax(LogitsModel(teacher)(CALIBRATED)),
            softmax(network(CALIBRATED)),
            atol=1e-5,
        )

    @pytest.mark.parametrize("kind", ["logits", "probabilities"])
    def test_integers_are_dequantized(self, files, kind):
        folder, network = files
        teacher = TFLite(folder / f"{kind}_int8.tflite")
        assert teacher.returns == kind
        said = np.asarray(LogitsModel(teacher)(CALIBRATED))
        error = np.abs(softmax(said) - softmax(network(CALIBRATED))).max()
        # int8 logits span some ten units, so a step of 1/25; a few add up in the file.
        assert error < 0.08
        if kind == "probabilities":
            # A softmax of int8 moves in steps of 1/256; none is half a step.
            levels = np.exp(said) * 256
            np.testing.assert_allclose(
                levels, np.maximum(np.round(levels), 0.5), rtol=1e-5
            )

    def test_it_teaches_in_compiled_training(self, files):
        folder, network = files
        teacher, student = TFLite(folder / "logits_float32.tflite"), model()
        distiller = Distiller(student, teacher, None, 0.0, 1.0)
        distiller.compile(keras.optimizers.SGD(0.0), steps_per_execution=2)
        logs = distiller.fit(CALIBRATED, batch_size=8, verbose=0).history
        expected = soft_loss(network(CALIBRATED), student(CALIBRATED))
        assert logs["soft_loss"] == [pytest.approx(expected, rel=1e-3)]

    def test_xla_is_left_out_with_a_word(self, files):
        teacher = TFLite(files[0] / "logits_float32.tflite")
        distiller = Distiller(model(), teacher)
        with pytest.warns(UserWarning, match="Proceeding with `jit_compile=False`"):
            distiller.compile("sgd", jit_compile=True)
        distiller = Distiller(model(), model())
        distiller.compile("sgd", jit_compile=True)
        with pytest.warns(UserWarning, match="Proceeding with `jit_compile=False`"):
            distiller.teacher = teacher
        distiller.fit(CALIBRATED, verbose=0)

    def test_evaluation_and_files_know_nothing_of_it(self, files, tmp_path):
        teacher = TFLite(files[0] / "logits_float32.tflite")
        distiller = Distiller(model(), teacher)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile("sgd", loss, run_eagerly=True)
        teacher._model = None  # it would fail if it ran
        distiller.evaluate(CALIBRATED, np.zeros(N), verbose=0)
        distiller.predict(CALIBRATED, verbose=0)
        distiller.save(tmp_path / "d.keras")
        assert keras.models.load_model(tmp_path / "d.keras").teacher is None

    def test_sigmoids_teach_independent_labels(self, tmp_path):
        network = model("sigmoid")
        (tmp_path / "t.tflite").write_bytes(converted(network))
        teacher, loss = TFLite(tmp_path / "t.tflite"), MultiLabelSoftTargets()
        assert teacher.returns == "sigmoid"
        losses = []
        for source in (teacher, network):
            distiller = Distiller(model("sigmoid"), source, loss, 0.0, 1.0)
            distiller.student.set_weights([w * 0 for w in network.get_weights()])
            distiller.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
            losses.append(distiller.fit(CALIBRATED, verbose=0).history["soft_loss"][0])
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        with pytest.raises(
            ValueError, match="needs class logits or a softmax. Received"
        ):
            Distiller(model(), teacher)

    def test_soft_labels_refuse_a_changed_file(self, files, tmp_path):
        folder, network = files
        teacher = TFLite(folder / "logits_float32.tflite")
        soft = SoftLabels.build(teacher, CALIBRATED, tmp_path / "labels")
        np.testing.assert_allclose(soft.logits(), network(CALIBRATED), atol=1e-5)
        copied = tmp_path / "copy.tflite"
        copied.write_bytes((folder / "logits_float32.tflite").read_bytes())
        SoftLabels.load(tmp_path / "labels", TFLite(copied))
        changed = TFLite(folder / "logits_int8.tflite")
        with pytest.raises(ValueError, match="another teacher"):
            SoftLabels.build(changed, CALIBRATED, tmp_path / "labels")

    def test_errors(self, files, tmp_path):
        folder, _ = files
        file = folder / "probabilities_float32.tflite"
        with pytest.raises(
            FileNotFoundError, match="file must be there. Received: none"
        ):
            TFLite("none.tflite")
        with pytest.raises(
            ValueError, match="Received: outputs='softmax'. Fix: 'proba"
        ):
            TFLite(file, outputs="softmax")
        with pytest.raises(
            ValueError, match="`output` must be one of .*Received: output"
        ):
            TFLite(file, output="none")
        ends = tmp_path / "relu.tflite"
        ends.write_bytes(converted(model("tanh")))
        with pytest.raises(ValueError, match="whose output .* comes from TANH. Fix"):
            TFLite(ends)
        declared = TFLite(ends, outputs="probabilities")
        with pytest.raises(ValueError, match=r"at least 0 and sum to 1. .*'tf_lite"):
            declared(CALIBRATED)
        ensemble = Ensemble([TFLite(file), model()])
        ensemble.save(tmp_path / "e.keras")
        with pytest.raises(ValueError, match="no Keras model is not loaded with Keras"):
            keras.models.load_model(tmp_path / "e.keras")


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: x[:, :2],
        lambda x: keras.ops.reshape(x, (-1, FEATURES, 1, 1)),
        lambda x: [x, x],
        layers.Flatten(data_format="channels_first"),
        lambda x: "text",
    ],
)
def test_a_transform_of_the_wrong_shape_is_named(x, transform):
    if isinstance(transform, layers.Flatten):
        transform = keras.Sequential([transform, layers.RepeatVector(2)])
    teacher = model(name="wide")
    made = Transformed(teacher, transform)
    with pytest.raises(
        ValueError, match=r"What the transform returns must be .*'wide' raised"
    ):
        made(x)
    distiller = Distiller(model(), teacher, teacher_transform=transform)
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="What the transform returns must be what the"):
        distiller.fit(x, verbose=0)
