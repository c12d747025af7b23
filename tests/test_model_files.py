"""Model files that load, and each kind that does not, in a sentence."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from kdlite import teachers
from kdlite.lite.labels import class_count
from kdlite.model_files import load_model, sample_shape, takes_several


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model_files")


@pytest.fixture(scope="module")
def model(folder: Path) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(folder / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the old format
        model.save(folder / "model.h5")
    return model


@keras.saving.register_keras_serializable(package="own")
class Own(keras.Model):
    """Says nothing of its shapes but what it was built with."""

    def __init__(self, **others) -> None:
        super().__init__(**others)
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


@keras.saving.register_keras_serializable(package="own")
class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def test_both_formats_are_loaded(folder, model) -> None:
    x = np.ones((2, 4), "float32")
    for name in ("model.keras", "model.h5"):
        np.testing.assert_allclose(load_model(folder / name)(x), model(x), rtol=1e-6)


def damaged(data: bytes, how: str) -> bytes:
    if how == "flipped":
        middle = data.index(b"model.weights.h5") + 200
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return {"empty": b"", "cut": data[: len(data) // 2], "begun": data[:3]}[how]


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        *((".keras", how) for how in ("empty", "cut", "begun", "flipped")),
        (".h5", "cut"),
        (".h5", "empty"),
    ],
)
def test_damaged_files_are_called_so(folder, model, tmp_path, suffix, how) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(damaged((folder / f"model{suffix}").read_bytes(), how))
    with pytest.raises(
        ValueError,
        match=r"a whole file. Received: .*, which is damaged \(.*[^. ]\)\. Copy it",
    ):
        load_model(path)


def test_what_is_no_model_file(folder, model, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="must exist.*none.keras.*not there"):
        load_model(tmp_path / "none.keras")
    with pytest.raises(ValueError, match="must be a .keras file.*which is a folder"):
        load_model(tmp_path)
    (tmp_path / "text.keras").write_text("some words")
    with pytest.raises(
        ValueError, match="must be a .keras file.*which is another file"
    ):
        load_model(tmp_path / "text.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_class_that_no_command_knows_is_named(
    folder, model, tmp_path, suffix, monkeypatch
) -> None:
    path = tmp_path / f"own{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras.Sequential([keras.Input((4,)), Doubling()]).save(path)
    known = keras.saving.get_custom_objects()
    monkeypatch.delitem(known, "own>Doubling")
    with pytest.raises(
        ValueError,
        match="Received: .*, which has 'Doubling', a class of your own that no command "
        "can import. Fix: build",
    ) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1 and "config" not in str(
        caught.value
    )


def test_what_keras_says_is_one_sentence_of_its_own(folder, model, tmp_path) -> None:
    path = tmp_path / "function.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x)]).save(path)
    with pytest.raises(
        ValueError, match="Keras says: Requested the deserial"
    ) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1
    assert re.search(r"[^.]\. Save it with", str(caught.value))


def test_what_a_model_takes_and_how_many_classes_it_has(model) -> None:
    assert (sample_shape(model), class_count(model)) == ((4,), 3)
    image = keras.Input((None, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    for outputs, classes in (
        (image, None),
        (keras.layers.Dense(1)(pooled), None),
        ([pooled, pooled], None),
        (pooled, 3),
    ):
        each = keras.Model(image, outputs)
        assert (sample_shape(each), class_count(each)) == ((None, 8, 3), classes)


def test_subclassed_models_say_what_they_were_built_with(folder) -> None:
    own = Own()
    assert sample_shape(own) is None
    own(np.zeros((2, 4), "float32"))
    own.save(folder / "own.keras")
    again = load_model(folder / "own.keras")
    assert (sample_shape(again), class_count(again)) == ((4,), None)


def test_teachers_of_kdlite_are_known(folder, model) -> None:
    ensemble = teachers.Ensemble([model, keras.models.clone_model(model)])
    ensemble(np.zeros((2, 4), "float32"))
    ensemble.save(folder / "ensemble.keras")
    assert isinstance(load_model(folder / "ensemble.keras"), teachers.Ensemble)


def test_several_inputs_are_refused() -> None:
    inputs = {name: keras.Input((4,), name=name) for name in ("left", "right")}
    added = keras.layers.Add()(list(inputs.values()))
    for given in (inputs, list(inputs.values())):
        model = keras.Model(given, added, name="two")
        assert takes_several(model)
        with pytest.raises(
            ValueError,
            match="one input. Received: model 'two' with 2 inputs. Fix: in Python, "
            "give a mapping from input name to array to kdlite.SoftLabels.build",
        ):
            sample_shape(model)
