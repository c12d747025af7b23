"""ONNX files and SavedModels as teachers: real files, made here."""

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
from kdlite.distill.taps import LogitsModel
from kdlite.distill.teacher_files import ONNX, SavedModel
from kdlite.distill.teachers import Transformed

N, FEATURES, CLASSES = 10, 4, 3


def model(activation=None):
    dense = layers.Dense(CLASSES, activation=activation)
    return keras.Sequential([keras.Input((FEATURES,), name="features"), dense])


def soft_loss(student, teacher, x, **options):
    """The soft loss of one epoch in which nothing is learnt, in no compiled code."""
    distiller = Distiller(student, teacher, None, 0.0, 1.0)
    distiller.compile(keras.optimizers.SGD(0.0), **(options or {"run_eagerly": True}))
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


class TestONNX:
    @pytest.mark.parametrize(
        ("softmax", "batch", "options"),
        [(False, 3, {"jit_compile": False}), (True, "batch", {}), (True, 3, {})],
    )
    def test_it_says_what_the_network_says(
        self, x, network, tmp_path, softmax, batch, options
    ):
        path = save_onnx(tmp_path / "t.onnx", network, softmax, batch)
        teacher, student = ONNX(path, threads=1), model()
        assert teacher.returns == ("probabilities" if softmax else "logits")
        loss = soft_loss(student, teacher, x, **options)
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
            ValueError, match="takes 'features'. Received: 2 unnamed. Fix"
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
        distiller.compile("sgd", run_eagerly=True)
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
        with pytest.raises(ValueError, match="takes 'a', 'b'. Received: 'a', 'c'. Fix"):
            teacher({"a": x["a"], "c": x["b"]})
        with pytest.raises(
            ValueError, match="takes 'a', 'b'. Received: 2 unnamed. Fix"
        ):
            teacher([x["a"], x["b"]])

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
