"""Functions, ONNX files and SavedModels as teachers: real files, made here."""

from __future__ import annotations

import sys

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from kdlite import SoftLabels
from kdlite.distill.distiller import Distiller
from kdlite.distill.foreign_teachers import ONNX, Function, SavedModel
from kdlite.distill.taps import LogitsModel
from kdlite.distill.teachers import Ensemble, Transformed

N, FEATURES, CLASSES = 10, 4, 3


def model(activation=None):
    dense = layers.Dense(CLASSES, activation=activation)
    return keras.Sequential([keras.Input((FEATURES,), name="features"), dense])


def soft_loss(student, teacher, x, **options):
    """The soft loss of one epoch in which nothing is learnt."""
    distiller = Distiller(student, teacher, None, 0.0, 1.0)
    distiller.compile(keras.optimizers.SGD(0.0), **options)
    return distiller.fit(x, batch_size=4, verbose=0).history["soft_loss"][0]


def save_onnx(path, network, softmax=False, batch="batch", outputs=1, dtype="float32"):
    """Writes a dense network as ONNX."""
    kernel, bias = network.get_weights()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["features"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["cast", "kernel"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    names = ["logits"]
    if softmax or outputs > 1:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=-1))
        names = ["scores"] if outputs == 1 else ["logits", "scores"]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("features", kind, [batch, FEATURES])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, CLASSES])
            for name in names
        ],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("kernel", kernel), ("bias", bias))
        ],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(N, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(3)
    return model()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """The network as SavedModels, by what they return."""
    folder = tmp_path_factory.mktemp("saved")
    squashed = model("softmax")
    squashed.set_weights(network.get_weights())
    for name, made in (("logits", network), ("probabilities", squashed)):
        made.export(folder / name, verbose=False)
    return folder


class TestFunction:
    @pytest.mark.parametrize("kind", ["logits", "probabilities"])
    def test_it_teaches_with_numpy_batches(self, x, network, kind):
        seen = []

        def scores(batch):
            seen.append(batch)
            logits = batch @ network.get_weights()[0].astype("float64")
            return logits if kind == "logits" else np.asarray(keras.ops.softmax(logits))

        teacher, student = Function(scores, (CLASSES,), kind), model()
        loss = soft_loss(student, teacher, x)
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
            soft_loss(model(), narrow, x)
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
        with pytest.raises(ValueError, match=r"shape of the student's. .*labels \(.*5"):
            soft_loss(student, five, x)
        assert all(map(np.array_equal, before, student.get_weights()))


class TestONNX:
    @pytest.mark.parametrize("softmax", [False, True])
    @pytest.mark.parametrize("batch", ["batch", 3])
    def test_it_says_what_the_network_says(self, x, network, tmp_path, softmax, batch):
        path = save_onnx(tmp_path / "t.onnx", network, softmax, batch)
        teacher, student = ONNX(path, threads=1), model()
        assert teacher.returns == ("probabilities" if softmax else "logits")
        loss = soft_loss(student, teacher, x)
        assert loss == pytest.approx(soft_loss(student, network, x), rel=1e-4)

    def test_inputs_are_cast_and_outputs_chosen(self, x, network, tmp_path):
        path = save_onnx(tmp_path / "t.onnx", network, outputs=2, dtype="float64")
        for output in ("logits", "scores"):
            teacher = ONNX(path, output=output)
            said = keras.ops.softmax(LogitsModel(teacher)(x))
            np.testing.assert_allclose(said, keras.ops.softmax(network(x)), rtol=1e-4)
        with pytest.raises(
            ValueError, match="one of 'logits', 'scores'. Received: out"
        ):
            ONNX(path)

    def test_another_layout_is_a_transform(self, network, tmp_path, x):
        path = save_onnx(tmp_path / "t.onnx", network)
        turned = Transformed(ONNX(path), lambda x: x[:, ::-1])
        np.testing.assert_allclose(turned(x), network(x[:, ::-1]), atol=1e-5)

    def test_stored_labels_refuse_a_changed_file(self, x, network, tmp_path):
        path = save_onnx(tmp_path / "t.onnx", network)
        soft = SoftLabels.build(ONNX(path), x, tmp_path / "labels")
        np.testing.assert_allclose(soft.logits(), network(x), atol=1e-5)
        SoftLabels.load(tmp_path / "labels", ONNX(path))
        save_onnx(path, model())
        with pytest.raises(ValueError, match="another teacher"):
            SoftLabels.build(ONNX(path), x, tmp_path / "labels")

    def test_errors(self, x, network, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match="file must be there. Received: no"):
            ONNX("none.onnx")
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        with pytest.raises(
            ValueError, match="that onnxruntime can run. Received: .*bad"
        ):
            ONNX(tmp_path / "bad.onnx")
        path = save_onnx(tmp_path / "t.onnx", network)
        pair = [x, x]
        with pytest.raises(
            ValueError, match="takes 'features'. Received: 2 inputs. Fix"
        ):
            ONNX(path)(pair)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ImportError, match=r"Fix: pip install 'kdlite\[onnx\]'"):
            ONNX(path)


class TestSavedModel:
    @pytest.mark.parametrize("kind", ["logits", "probabilities"])
    def test_it_says_what_the_model_says(self, x, network, exported, kind):
        teacher, student = SavedModel(exported / kind), model()
        assert teacher.returns == kind
        expected = soft_loss(student, network, x)
        assert soft_loss(student, teacher, x) == pytest.approx(expected, rel=1e-4)

    def test_it_is_compiled_by_xla(self, x, network, exported):
        teacher, student = SavedModel(exported / "logits"), model()
        expected = soft_loss(student, network, x)
        compiled = soft_loss(student, teacher, x, jit_compile=True)
        assert compiled == pytest.approx(expected, rel=1e-4)

    def test_it_is_no_part_of_what_is_saved(self, x, exported, tmp_path):
        distiller = Distiller(model(), SavedModel(exported / "logits"))
        distiller.compile("sgd")
        distiller.fit(x, verbose=0)
        assert len(distiller.student.variables) == 2
        checkpoint = tf.train.Checkpoint(model=distiller)
        names = [
            n for n, _ in tf.train.list_variables(checkpoint.save(tmp_path / "ckpt"))
        ]
        assert not any("teacher" in name or "signature" in name for name in names)

    def test_several_inputs_go_by_name(self, tmp_path):
        inputs = {name: keras.Input((2,), name=name) for name in "ba"}
        outputs = layers.Dense(CLASSES)(
            layers.Concatenate()([inputs["a"], inputs["b"]])
        )
        network = keras.Model(inputs, outputs)
        network.export(tmp_path / "saved", verbose=False)
        teacher = SavedModel(tmp_path / "saved", outputs="logits")
        x = {"a": np.zeros((3, 2), "float32"), "b": np.ones((3, 2), "float32")}
        np.testing.assert_allclose(teacher(x), network(x), atol=1e-6)
        with pytest.raises(ValueError, match="takes 'b', 'a'. Received: 'a', 'c'. Fix"):
            teacher({"a": x["a"], "c": x["b"]})

    def test_stored_labels_refuse_a_changed_model(self, x, network, exported, tmp_path):
        soft = SoftLabels.build(SavedModel(exported / "logits"), x, tmp_path / "labels")
        np.testing.assert_allclose(soft.logits(), network(x), atol=1e-5)
        changed = model()
        changed.export(tmp_path / "changed", verbose=False)
        with pytest.raises(ValueError, match="another teacher"):
            SoftLabels.build(SavedModel(tmp_path / "changed"), x, tmp_path / "labels")

    def test_errors(self, exported, tmp_path):
        with pytest.raises(
            FileNotFoundError, match="folder with a saved_model.pb. Rec"
        ):
            SavedModel(tmp_path)
        with pytest.raises(
            ValueError, match="one of .*'serving_default'.*signature='no"
        ):
            SavedModel(exported / "logits", signature="none")
        with pytest.raises(ValueError, match="`output` must be one of .*output='none'"):
            SavedModel(exported / "logits", output="none")
        model("sigmoid").export(tmp_path / "sigmoid", verbose=False)
        with pytest.raises(ValueError, match="from 0 to 1 that do not sum to 1. Fix"):
            SavedModel(tmp_path / "sigmoid")
        assert SavedModel(tmp_path / "sigmoid", "sigmoid").returns == "sigmoid"
        signature = [keras.InputSpec(shape=(1, FEATURES), dtype="float32")]
        fixed = model()
        fixed.export(tmp_path / "fixed", input_signature=signature, verbose=False)
        with pytest.raises(
            ValueError, match="batches of any size. .* is \\(1, 4\\). Fix"
        ):
            SavedModel(tmp_path / "fixed")
