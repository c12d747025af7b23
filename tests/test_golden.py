from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from converting import converted

import kdlite
from kdlite.lite.associated_files import unpack
from kdlite.lite.golden import _fitting, golden_pixels, golden_vectors
from kdlite.lite.runtime import TFLiteModel


def oracle(k: int, count: int) -> list[int]:
    """The formula, written out: the state after n steps in closed form."""
    values = []
    for n in range(1, count + 1):
        power = pow(1664525, n, 2**32)
        total = sum(pow(1664525, i, 2**32) for i in range(n))
        values.append(((power * (k + 1) + 1013904223 * total) % 2**32) >> 24)
    return values


def test_the_first_vector_is_the_generator_row_by_row() -> None:
    pixels = golden_pixels((28, 28, 1))
    assert (pixels.shape, pixels.dtype) == ((8, 28, 28, 1), np.uint8)
    assert pixels[0].ravel()[:60].tolist() == oracle(0, 60)
    assert pixels[4].ravel()[:60].tolist() == oracle(4, 60)


@pytest.mark.parametrize("k, side", [(0, 2), (1, 4), (2, 8), (3, 16), (5, 4)])
def test_squares_grow_and_are_cut_at_the_edge(k: int, side: int) -> None:
    image = golden_pixels((64, 71, 3))[k]
    values = oracle(k, 12)
    columns = -(-71 // side)
    assert image[0, 0].tolist() == values[:3]
    assert image[side - 1, side - 1].tolist() == values[:3]
    assert image[0, side].tolist() == values[3:6]
    assert image[side, 0].tolist() == oracle(k, 3 * columns + 3)[-3:]


def classifier(channels: int = 1) -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6, 6, channels), name="image"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="scores"),
        ]
    )


def test_a_float_file_gives_what_keras_gives() -> None:
    model = classifier()
    blob = converted(model)
    golden = golden_vectors(blob, (0.0, 255.0))
    assert golden is not None
    assert (golden["pattern"], golden["count"]) == ("squares-1", 8)
    told = np.array(golden["outputs"]["scores"])
    wanted = model(golden_pixels((6, 6, 1)).astype(np.float32), training=False)
    # Float arithmetic in another order.
    np.testing.assert_allclose(told, wanted, atol=1e-5)
    assert golden["steps"] == {"scores": None}
    # Nine digits say which float32 it was.
    again = TFLiteModel(blob).predict(golden_pixels((6, 6, 1)).astype(np.float32))
    np.testing.assert_array_equal(told.astype(np.float32), again)


def test_pixels_go_in_as_the_range_says() -> None:
    model = keras.Sequential([keras.Input((2, 2, 1), name="x"), keras.layers.ReLU()])
    golden = golden_vectors(converted(model), (-1.0, 3.0))
    assert golden is not None
    pixels = golden_pixels((2, 2, 1)).reshape(8, 4)
    wanted = np.maximum(pixels / 255 * 4 - 1, 0)
    (values,) = golden["outputs"].values()
    np.testing.assert_allclose(values, wanted, atol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2)])
def test_other_files_have_none(shape: tuple[int, ...]) -> None:
    model = keras.Sequential([keras.Input(shape, name="x"), keras.layers.ReLU()])
    assert golden_vectors(converted(model), (0.0, 255.0)) is None


def test_a_file_of_unknown_range_has_none() -> None:
    assert golden_vectors(converted(classifier()), None) is None


@pytest.mark.parametrize(("bright", "vectors"), [(0.9, 0), (0.46, 4)])
def test_what_is_no_number_is_no_vector(
    tmp_path: Path, bright: float, vectors: int
) -> None:
    image = keras.Input((8, 8, 1), name="image")
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(3)(keras.ops.log(mean - bright)))
    means = golden_pixels((8, 8, 1), 8).mean((1, 2, 3)) / 255
    assert int(np.cumprod(means > bright).sum()) == vectors
    path, pixels = tmp_path / "m.tflite", np.full((4, 8, 8, 1), 250, np.float32)
    kdlite.export(
        model, path, verify_data=pixels, labels=["a", "b", "c"], input_range=(0, 255)
    )
    golden = kdlite.read_metadata(path).provenance["golden"]
    assert (golden["count"] if golden else 0) == vectors


def test_an_exported_file_has_them_inside(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    images = np.random.default_rng(0).integers(0, 256, (120, 6, 6, 3))
    kdlite.export(
        classifier(3), path, "int8", calibration_data=images.astype(np.float32)
    )
    about = kdlite.read_metadata(path)
    assert (about.inputs[0].mean, about.inputs[0].std) == ((0.0,), (1.0,))
    assert about.provenance is not None
    golden = about.provenance["golden"]
    # What is inside is true of the file that it is in.
    told = TFLiteModel(path).predict(golden_pixels((6, 6, 3)).astype(np.float32))
    np.testing.assert_array_equal(
        np.array(golden["outputs"]["scores"], np.float32), told
    )
    step = golden["steps"]["scores"]
    levels = np.array(golden["outputs"]["scores"]) / step
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


def mask(side: int, channels: int = 1) -> keras.Model:
    """A value a pixel and channel from next to no weights."""
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((side, side, 3), name="image"),
            keras.layers.Conv2D(channels, 1, name="mask"),
        ]
    )


def told_bytes(path: Path) -> tuple[int, dict[str, Any]]:
    """What a file says of itself: its size, and its golden vectors' part."""
    about = unpack(path.read_bytes())["kdlite.json"]
    return len(about), json.loads(about)["golden"]


def test_masks_do_not_outgrow_their_model(tmp_path: Path) -> None:
    # The largest of these had 115 MB of outputs, more than a file may bring with it.
    sizes, counts = {}, {}
    for side, channels in [(8, 1), (64, 1), (192, 21)]:
        path = tmp_path / f"{side}.tflite"
        kdlite.export(mask(side, channels), path, input_range=(0.0, 255.0))
        sizes[side], golden = told_bytes(path)
        counts[side] = golden and golden["count"]
        assert kdlite.read_metadata(path).provenance is not None
        assert path.stat().st_size < 10_000
    assert counts == {8: 3, 64: None, 192: None}
    assert max(sizes.values()) < 4_096 + sizes[192]


def test_a_large_input_alone_takes_no_room(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((384, 384, 3), name="image"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    path = tmp_path / "model.tflite"
    kdlite.export(model, path, input_range=(0.0, 255.0))
    size, golden = told_bytes(path)
    assert golden["count"] == 8 and size < 4_096


def test_a_classifier_beside_a_mask_keeps_its_vectors() -> None:
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 32, 3), name="image")
    seen = keras.layers.Conv2D(4, 3, padding="same", name="mask")(image)
    scores = keras.layers.GlobalAveragePooling2D(name="scores")(seen)
    golden = golden_vectors(
        converted(keras.Model(image, {"mask": seen, "scores": scores})), (0.0, 255.0)
    )
    assert golden is not None
    assert golden["outputs"].keys() == golden["steps"].keys() == {"scores"}
    assert (golden["count"], len(golden["outputs"]["scores"])) == (8, 8)


@pytest.mark.parametrize(
    ("sizes", "model_bytes", "names", "count"),
    [
        ({"a": 10}, 71_472, {"a"}, 8),
        ({"a": 25}, 0, {"a"}, 8),  # the floor: 204 values
        ({"a": 26}, 0, {"a"}, 7),
        ({"a": 204}, 0, {"a"}, 1),
        ({"a": 205}, 0, set(), 8),
        ({"a": 205}, 100_000, {"a"}, 3),  # an eighth of the model
        ({"a": 1000}, 10**8, {"a"}, 3),  # the ceiling: 3,276 values
        ({"a": 3277}, 10**8, set(), 8),
        ({"b": 150, "a": 50, "c": 60}, 0, {"a", "c"}, 1),
    ],
)
def test_fewer_vectors_then_fewer_outputs(
    sizes: dict[str, int], model_bytes: int, names: set[str], count: int
) -> None:
    assert _fitting(sizes, model_bytes) == (names, count)
