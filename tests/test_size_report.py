from __future__ import annotations

import gzip

import keras
import numpy as np
import pytest
from keras import layers

import kdlite
from kdlite.lite.size_report import _levels, _two_of_four
from kdlite.lite.tflite_file import TensorInfo


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A net whose kernels have known zeros and values."""
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 4), name="x"),
            layers.Conv2D(8, 3, name="conv", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="head"),
        ],
        name="net",
    )
    conv = rng.choice([-0.5, 0.25, 0.5], (3, 3, 4, 8))
    conv[:, :, ::2] = 0.0
    head = rng.normal(size=(8, 3))
    head[:5] = 0.0
    model.set_weights([conv, np.ones(8), head, np.ones(3)])
    return model


@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_zeros_and_values_are_those_in_the_file(model, recipe, tmp_path) -> None:
    path = tmp_path / "net.tflite"
    x = np.random.default_rng(1).normal(size=(128, 6, 6, 4)).astype("float32")
    options = {"calibration_data": x} if recipe == "int8" else {"verify_data": x}
    kdlite.export(model, path, recipe, **options)
    report = kdlite.size_report(path)
    conv, head = report.weights
    assert conv.dtype == head.dtype == recipe
    assert (conv.shape, head.shape) == ((8, 3, 3, 4), (3, 8))
    assert (conv.zeros, head.zeros) == (0.5, 0.625)
    assert report.zeros == pytest.approx((0.5 * 288 + 0.625 * 24) / 312)
    # -0.5, 0, 0.25 and 0.5, in steps of 0.5 / 127 for each channel.
    assert (conv.values, conv.values_per_channel) == (4, 4)
    assert conv.two_of_four and not head.two_of_four
    blob = path.read_bytes()
    assert report.size_bytes == len(blob)
    assert abs(report.compressed_bytes - len(gzip.compress(blob))) < 40
    assert kdlite.size_report(blob).weights == report.weights
    assert str(report).startswith(f"net.tflite: {len(blob):,} bytes, ")
    assert "50.0% 2:4" in str(report)
    as_json = report.to_dict()
    assert as_json["weights"][0]["shape"] == [8, 3, 3, 4]
    assert as_json["compressed_bytes"] == report.compressed_bytes


def tensor(dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo("w", dtype, shape, (1.0,), (0,), 0, True, 0)


def test_packed_integers_are_unpacked_lowest_first() -> None:
    # 0x1f is -1, then 1; the last half byte is padding.
    levels = _levels(tensor("int4", (1, 3)), bytes([0x1F, 0x08]), "")
    assert levels.tolist() == [[-1, 1, -8]]
    levels = _levels(tensor("uint4", (1, 3)), bytes([0x1F, 0x08]), "")
    assert levels.tolist() == [[15, 1, 8]]
    levels = _levels(tensor("int2", (2, 2)), bytes([0b10_01_00_11]), "")
    assert levels.tolist() == [[-1, 0], [1, -2]]


def test_neighbours_on_the_last_axis() -> None:
    rows = np.array([[1, 1, 0, 0, 0, 1, 0, 1, 1, 1]])
    assert _two_of_four(rows == 0)  # the last two are no group
    assert not _two_of_four(np.array([[1, 1, 1, 0]]) == 0)
    assert not _two_of_four(np.zeros((4, 3)) == 0)


def test_a_tensor_without_all_its_values_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'w' of 6 values has 5\. Fix: name a"):
        _levels(tensor("int8", (2, 3)), bytes(5), "net.tflite")


def test_what_is_no_file_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="not there"):
        kdlite.size_report(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="whole, well-formed file"):
        kdlite.size_report(b"no model at all")
