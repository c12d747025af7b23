from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from converting import converted

import kdlite
from kdlite.lite.golden import golden_pixels, golden_vectors
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
