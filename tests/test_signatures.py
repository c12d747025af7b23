"""Several models in one file: merged, run, verified, described."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from converting import converted
from keras import layers

from kdlite.lite.convert import ConversionError, export
from kdlite.lite.metadata import read_metadata
from kdlite.lite.runtime import TFLiteModel
from kdlite.lite.signatures import merged
from kdlite.lite.tflite_reader import inspect
from kdlite.lite.verification import VerificationError
from kdlite.lite.verify import verify

NAMES = ["cat", "dog", "eel", "fox", "gnu"]
DATA = np.random.default_rng(0).uniform(0, 255, (120, 8, 8, 3)).astype("float32")
MEAN, STD = 127.5, [60.0, 61.0, 62.0]


@pytest.fixture(scope="module")
def models() -> dict[str, keras.Model]:
    """A classifier and the embedding that it is made on, of shared layers."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(32, 3, activation="relu", name="conv")(inputs)
    x = layers.Conv2D(64, 3, activation="relu", name="deep")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    scores = layers.Dense(5, name="scores")(x)
    return {
        "classify": keras.Model(inputs, scores, name="net"),
        "embed": keras.Model(inputs, layers.Dense(4, name="vector")(x), name="net"),
    }


def test_kernels_that_not_every_signature_has() -> None:
    made = {
        "plain": keras.Sequential([keras.Input((3,), name="x"), layers.ReLU()]),
        "elu": keras.Sequential([keras.Input((3,), name="x"), layers.ELU()]),
    }
    files = {name: converted(model) for name, model in made.items()}
    for order in (("plain", "elu"), ("elu", "plain")):
        blob = merged({name: files[name] for name in order})
        report = verify(blob, made, np.eye(3, dtype="float32"))
        assert len(report.outputs) == 2 and report.passed
        assert [run.kernels for run in report.kernels] == ["xnnpack", *["built-in"] * 2]


@pytest.fixture(scope="module")
def of_kinds(models) -> dict[str, tuple[keras.Model, bytes]]:
    """Models with and without a loop, and the file of each."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5, 3), name="steps")
    loop = keras.Model(inputs, layers.LSTM(4, name="lstm")(inputs), name="loop")
    kinds = {"classify": models["classify"], "loop": loop}
    return {name: (model, converted(model)) for name, model in kinds.items()}


@pytest.mark.parametrize("order", [("classify", "loop", "again"), ("loop", "classify")])
def test_graphs_of_any_kind_run_side_by_side(of_kinds, order) -> None:
    of_name = {**of_kinds, "again": of_kinds["loop"]}
    known = {name: of_name[name][0] for name in order}
    files = {name: of_name[name][1] for name in order}
    blob = merged(files)
    assert blob == merged(files)
    content = inspect(blob)
    assert [signature.name for signature in content.signatures] == list(order)
    # An independent reader of the schema sees the same, and can run each.
    theirs = Interpreter(model_content=blob)
    assert set(theirs.get_signature_list()) == set(order)
    for name in order:
        (shape,) = [tuple(tensor.shape) for tensor in known[name].inputs]
        x = np.random.default_rng(3).normal(size=(2, *shape[1:])).astype("float32")
        run = TFLiteModel(blob, signature=name)
        assert run.inputs == inspect(blob, name).inputs
        wanted = known[name](x, training=False)
        np.testing.assert_allclose(run.predict(x), wanted, atol=1e-5)
        (told,) = theirs.get_signature_runner(name)(
            **{run.inputs[0].name: x[:1]}
        ).values()
        np.testing.assert_allclose(told, wanted[:1], atol=1e-5)
        alone = inspect(files[name])
        assert run.content.macs == alone.macs and run.content.quantization == "float32"
        assert [op.name for op in run.content.ops if not op.subgraph] == [
            op.name for op in alone.ops if not op.subgraph
        ]
    assert "in   steps" in str(content) and "signature loop" in str(content)


def test_numbers_that_are_equal_are_stored_once(models) -> None:
    alone = {name: converted(model, "int8") for name, model in models.items()}
    blob = merged(alone)
    content = inspect(blob)
    # int8 kernels depend on weights alone: other ranges of activations change none.
    kernels = [content.tensors_of(op)[1] for op in content.ops if op.macs]
    first, second = (
        [
            k.buffer
            for op, k in zip(_with_kernel(content), kernels, strict=True)
            if op.subgraph == graph
        ]
        for graph in (0, 1)
    )
    assert first[:2] == second[:2] and first[2] != second[2]
    assert len(blob) < sum(map(len, alone.values())) - 32 * 64 * 9
    model = schema.Model.GetRootAs(blob, 0)
    for index in {*first, *second}:
        data = model.Buffers(index).DataAsNumpy().tobytes()
        # TFLite wants them at multiples of 16 bytes.
        assert blob.find(data) % 16 == 0


def _with_kernel(content) -> list:
    return [op for op in content.ops if op.macs]


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    return export(
        models,
        tmp_path_factory.mktemp("signatures") / "both.tflite",
        "int8",
        io="uint8",
        calibration_data={"classify": DATA, "embed": DATA[:110]},
        mean=MEAN,
        std=STD,
        input_range=(0.0, 255.0),
        labels={"classify": NAMES},
        verify_data={"classify": (DATA, np.zeros(120, int)), "embed": DATA},
        overwrite=True,
    )


def test_an_exported_file_has_each_function(models, exported) -> None:
    content = inspect(exported.path)
    assert [s.name for s in content.signatures] == ["classify", "embed"]
    assert {t.name for t in exported.inputs} == {"classify/image", "embed/image"}
    assert {t.name: t.dtype for t in exported.outputs} == {
        "classify/scores": "uint8",
        "embed/vector": "uint8",
    }
    assert not content.float_ops and exported.verification.quantization == "int8"
    found = {o.name: o for o in exported.verification.outputs}
    assert found["classify/scores"].metric == "top-1"
    assert found["classify/scores"].largest_steps < 9
    assert found["embed/vector"].metric == ""
    assert "classify/scores" in str(exported)
    normalised = ((DATA - MEAN) / STD).astype("float32")
    for name, model in models.items():
        told = TFLiteModel(exported.path, signature=name).predict(DATA)
        step = inspect(exported.path, name).step(model.output_names[0])
        assert np.abs(told - model(normalised, training=False)).max() < 9 * step


def test_it_says_of_each_what_it_takes_and_gives(exported) -> None:
    about = read_metadata(exported.path)
    assert [signature.name for signature in about.signatures] == ["classify", "embed"]
    classify, embed = about.signatures
    assert classify.outputs[0].labels == about.labels == tuple(NAMES)
    assert not embed.outputs[0].labels
    for signature in about.signatures:
        (image,) = signature.inputs
        assert (image.color_space, image.maximum) == ("rgb", (255.0,))
    assert {t.name for t in about.all_outputs} == {"classify/scores", "embed/vector"}
    assert "output classify/scores: features; 5 labels" in str(about)
    origins = about.provenance["signatures"]
    assert origins["embed"]["calibration_samples"] == 110
    fingerprints = {origin["model_fingerprint"] for origin in origins.values()}
    assert len(fingerprints) == 2 and about.provenance["golden"]["count"] == 8
    card = exported.path.with_name("MODEL_CARD.md").read_text()
    assert "| embed/vector | uint8 |" in card and "labels of classify/scores" in card


def test_a_file_is_compared_with_a_model_for_each(models, exported) -> None:
    report = verify(exported.path, models, DATA)
    assert report.of("embed").outputs[0].name == "embed/vector"
    assert len(report.of("embed").outputs) == len(report.kernels[0].outputs) // 2 == 1
    report.require(top1_agreement=0.9)
    one = verify(exported.path, {"embed": models["embed"]}, DATA)
    assert [output.name for output in one.outputs] == ["embed/vector"]
    with pytest.raises(ValueError, match="several signatures.*'classify', 'embed'.*Gi"):
        verify(exported.path, models["embed"], DATA)
    with pytest.raises(ValueError, match="must be one that the file has.*'other'"):
        verify(exported.path, {"other": models["embed"]}, DATA)
    with pytest.raises(ValueError, match="have a model for a signature.*empty mapping"):
        verify(exported.path, {}, DATA)
    # Another model under the name: not what the file does.
    swapped = {"embed": keras.models.clone_model(models["embed"])}
    with pytest.raises(VerificationError, match="embed/vector"):
        verify(exported.path, swapped, DATA).require(max_steps=9)


@pytest.mark.parametrize(
    ("names", "text"),
    [([], "Received: none.*'classify': model"), (["a b"], "letters.*Received: 'a b'")],
)
def test_what_is_no_signature(models, tmp_path, names, text) -> None:
    with pytest.raises(ValueError, match=text):
        export(dict.fromkeys(names, models["embed"]), tmp_path / "m.tflite")


def test_all_models_are_looked_at_before_the_first_is_converted(
    models, of_kinds, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("kdlite.lite.proof.Conversion", None)
    both = {"embed": models["embed"], "loop": of_kinds["loop"][0]}
    steps = np.ones((120, 5, 3), "float32") * np.arange(120)[:, None, None]
    data = {"embed": DATA, "loop": steps.astype("float32")}
    with pytest.raises(ConversionError, match="layers without a loop.*'lstm'"):
        export(both, tmp_path / "m.tflite", "int8", calibration_data=data)
    with pytest.raises(ValueError, match="`verify_data`.*'steps'"):
        export(both, tmp_path / "m.tflite", verify_data=DATA)


def test_tensors_are_kept_of_the_first_graph_only(exported) -> None:
    with pytest.raises(ValueError, match="first graph only.*signature='embed'"):
        TFLiteModel(exported.path, keep_tensors=True, signature="embed")
