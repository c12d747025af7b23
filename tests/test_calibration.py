from __future__ import annotations

import logging
import pathlib
import re

import keras
import numpy as np
import pytest

from kdlite.lite.calibration import (
    MOST_SAMPLES,
    InputSpec,
    check_scale,
    load_samples,
    observed_range,
    random_samples,
    with_shapes,
)

IMAGE = InputSpec("image", (2, 2, 1), low_high=(0.0, 255.0))
FREE = InputSpec("free", (3,))
IDS = InputSpec("ids", (4,), "int32")


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.integers(0, 256, (12, 2, 2, 1)).astype("uint8")


# --- the forms


def test_every_form_gives_the_same_samples(images, tmp_path) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, x=images, y=np.arange(12))
    named = tmp_path / "named.npz"
    np.savez(named, image=images)
    halves = [images[:5], images[5:]]
    forms = [
        images,
        images.astype("float64"),
        images.tolist(),
        [images],
        {"image": images},
        (images, np.arange(12)),
        (images, np.arange(12), np.ones(12)),
        ({"image": images}, np.arange(12)),
        halves,
        iter(halves),
        (half for half in halves),
        lambda: iter(halves),
        [{"image": half} for half in halves],
        [(half, np.arange(len(half))) for half in halves],
        [[half] for half in halves],  # as TFLite's representative data sets have it
        path,
        str(named),
    ]
    for form in forms:
        samples = load_samples(form, [IMAGE])
        assert list(samples) == ["image"]
        assert samples["image"].dtype == np.float32
        np.testing.assert_array_equal(samples["image"], images)


def test_data_sets_of_tensorflow(images) -> None:
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(12)))
    samples = load_samples(dataset.batch(5), [IMAGE])
    np.testing.assert_array_equal(samples["image"], images)
    np.testing.assert_array_equal(
        load_samples(tf.constant(images), [IMAGE])["image"], images
    )
    with pytest.raises(ValueError, match="must end.*repeats for ever.*take"):
        load_samples(dataset.batch(5).repeat(), [IMAGE])
    with pytest.raises(ValueError, match=r"sample 0.*dataset.batch\(32\)"):
        load_samples(dataset, [IMAGE])


def test_several_inputs_by_name_and_by_order(images) -> None:
    ids = np.arange(48).reshape(12, 4)
    for form in (
        {"ids": ids, "image": images},
        [images, ids],
        ([images, ids], np.arange(12)),
        [[images[:6], ids[:6]], [images[6:], ids[6:]]],
    ):
        samples = load_samples(form, [IMAGE, IDS])
        np.testing.assert_array_equal(samples["image"], images)
        np.testing.assert_array_equal(samples["ids"], ids)
        assert samples["ids"].dtype == np.int32


def test_no_more_than_most_are_used_and_it_is_said(images, caplog) -> None:
    with caplog.at_level(logging.INFO, "kdlite"):
        spread = load_samples(images, [IMAGE], most=3)["image"]
        first = load_samples(iter([images[:4]] * 1000), [IMAGE], most=6)["image"]
    # Of an array evenly spaced, as it may be sorted by class; of batches the first.
    np.testing.assert_array_equal(spread, images[[0, 5, 11]])
    np.testing.assert_array_equal(first, images[[0, 1, 2, 3, 0, 1]])
    assert "3 of 12 samples" in caplog.text and "first 6 samples" in caplog.text
    assert MOST_SAMPLES == 1000


def test_open_lengths_take_any_length_but_one(rng) -> None:
    spec = InputSpec("x", (None, None, 3))
    samples = load_samples(rng.random((5, 4, 6, 3)), [spec])
    assert with_shapes([spec], samples)[0].shape == (4, 6, 3)
    batches = [rng.random((2, 4, 6, 3)), rng.random((2, 4, 5, 3))]
    with pytest.raises(ValueError, match=r"one shape.*\(4, 5, 3\) in sample 2 of.*'x'"):
        load_samples(batches, [spec])


def test_random_samples_lie_in_the_range_and_repeat() -> None:
    first = random_samples([IMAGE, FREE, IDS], 50)
    again = random_samples([IMAGE, FREE, IDS], 50)
    assert first["image"].shape == (50, 2, 2, 1)
    assert 200 < first["image"].max() <= 255 and 0 <= first["image"].min() < 50
    assert first["free"].max() <= 1 and first["free"].dtype == np.float32
    assert set(np.unique(first["ids"])) == {0, 1} and first["ids"].dtype == np.int32
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    spec = InputSpec("pixels", (9,), low_high=(0.0, 255.0), whole=True)
    pixels = random_samples([spec], 20)["pixels"]
    assert pixels.dtype == np.float32 and pixels.max() > 200
    np.testing.assert_array_equal(pixels, np.rint(pixels))
    # Of an even draw no sample's mean comes near an end; a fault may show only there.
    spec = InputSpec("far", (500,), low_high=(-1.0, 3.0))
    far = random_samples([spec], 20, ends=True)["far"].astype(float)
    assert far.min() >= -1 and far.max() <= 3
    ends = far.mean(axis=1)
    assert np.sum(ends < -0.4) == np.sum(ends > 2.4) == 5
    assert np.sum(abs(ends - 1) < 0.3) == 10


# --- what is wrong with samples, said in one sentence with sample and input


def broken(images: np.ndarray, value: float) -> np.ndarray:
    array = images.astype("float32")
    array[7, 1, 0, 0] = value
    return array


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.nan, "must be finite. Received: nan in sample 7 of input 'image'"),
        (np.inf, "must be finite. Received: inf in sample 7 of input 'image'"),
        (-np.inf, "must be finite. Received: -inf in sample 7 of input 'image'"),
        (
            255.5,
            "must lie in `input_range`. Received: 255.5 in sample 7 of input 'image', "
            "whose range is 0 to 255",
        ),
        (-0.5, "must lie in `input_range`. Received: -0.5 in sample 7"),
    ],
)
def test_one_bad_value_is_named(images, value, text) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`calibration_data` {text}")):
        load_samples(broken(images, value), [IMAGE])


def test_numbers_beyond_float32_are_infinite() -> None:
    with pytest.raises(ValueError, match="Received: inf in sample 1 of input 'free'"):
        load_samples(np.array([[1, 2, 3], [1, 2, 1e39]]), [FREE])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (np.zeros((0, 3)), "must hold samples. Received: none for input 'free'"),
        (
            [],
            "must hold samples. Received: no batches at all, so none for input 'free'",
        ),
        (iter([]), "must hold samples. Received: no batches at all"),
        (lambda: iter([]), "a generator can be used up only once"),
        (
            np.zeros((5, 4)),
            "must have the shape of the input. Received: (5, 4) (sample 0 is (4,)) for "
            "input 'free', which takes (samples, 3)",
        ),
        (np.zeros(3), "Add the batch axis"),
        (np.zeros((5, 3, 1)), "Received: (5, 3, 1) (sample 0 is (3, 1))"),
        (np.float32(3), "Received: () (sample 0 is ())"),
        (np.array([["a", "b", "c"]]), "must be numbers. Received: dtype <U1 for input"),
        (np.zeros((2, 3), complex), "must be numbers. Received: dtype complex128"),
        (np.array([[None] * 3]), "must be numbers. Received: dtype object"),
        (
            {"fre": np.zeros((2, 3))},
            "must name the model's inputs. Received: no 'free', unknown 'fre', from "
            "sample 0 on. Inputs: 'free'.",
        ),
        (
            [[np.zeros((2, 3)), np.zeros((2, 3))]],
            "must have an array for each input. Received: 2 for 1 inputs ('free')",
        ),
    ],
)
def test_wrong_samples(data, text) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        load_samples(data, [FREE], role="verify_data")
    assert str(caught.value).startswith("`verify_data` ")


def test_several_inputs_must_all_be_there_and_as_many(images) -> None:
    with pytest.raises(ValueError, match="no 'ids'.*Inputs: 'image', 'ids'"):
        load_samples({"image": images}, [IMAGE, IDS])
    with pytest.raises(ValueError, match="1 for 2 inputs"):
        load_samples(images, [IMAGE, IDS])
    ids = np.zeros((11, 4), int)
    with pytest.raises(ValueError, match="12 for input 'image', 11 for input 'ids'"):
        load_samples([images, ids], [IMAGE, IDS])


def test_integer_inputs_take_integers_that_fit() -> None:
    assert load_samples(np.array([[1.0, 2, 3, 4]]), [IDS])["ids"].dtype == np.int32
    with pytest.raises(ValueError, match="1.5 in sample 1 of input 'ids'.*takes int32"):
        load_samples(np.array([[1, 2, 3, 4], [1, 1.5, 2, 3]]), [IDS])
    with pytest.raises(ValueError, match=r"must fit the dtype.*4294967296 in sample 0"):
        load_samples(np.array([[0, 0, 0, 2**32]]), [IDS])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.0, 250.0], (0.0, 255.0)),
        ([90, 140], (0.0, 255.0)),  # whole: pixels, of an image without contrast
        ([90.5, 140.0], None),
        ([0, 16], None),  # whole, but of four bits
        ([-3, 140], None),
        ([0.05, 0.9], (0.0, 1.0)),
        ([0.0, 0.5], None),
        ([-0.9, 0.9], (-1.0, 1.0)),
    ],
)
def test_what_pixels_became_is_told_by_their_looks(values, told) -> None:
    image = InputSpec("image", (1, 2, 1))
    samples = {"image": np.array(values).reshape(1, 1, 2, 1)}
    assert observed_range(samples, [image]) == told


def test_samples_that_are_all_the_same_find_no_range() -> None:
    zeros = np.zeros((150, 3))
    with pytest.raises(
        ValueError,
        match="must vary. Received: 0.0 everywhere, from sample 0 to 149 of .*'free'",
    ):
        load_samples(zeros, [FREE], varied=True)
    # To compare on, they will do; and ids may well be all the same.
    assert load_samples(zeros, [FREE])["free"].shape == (150, 3)
    assert load_samples(np.ones((9, 4)), [IDS], varied=True)["ids"].max() == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (7, "must be arrays, an iterable of batches.*Received: int"),
        (lambda: 7, "Received: int"),
        ([np.zeros((2, 3)), "no"], "must give batches of arrays.*str for sample 2"),
        (iter([3]), "Received: int for sample 0"),
    ],
)
def test_what_holds_no_samples_is_a_type_error(data, text) -> None:
    with pytest.raises(TypeError, match=text):
        load_samples(data, [FREE])


def test_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be a file that exists.*none.npz"):
        load_samples(tmp_path / "none.npz", [FREE])
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    with pytest.raises(ValueError, match="must be an .npz of plain arrays.*text.npz"):
        load_samples(text, [FREE])
    single = tmp_path / "single.npy"
    np.save(single, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="must be an .npz of plain arrays.*single.npy"):
        load_samples(single, [FREE])
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, a=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no 'free', unknown 'a'"):
        load_samples(wrong, [FREE])


def test_samples_in_the_units_of_the_range() -> None:
    pixels = InputSpec("image", (2,), low_high=(0.0, 255.0))
    for role in ("calibration_data", "verify_data"):
        with pytest.raises(
            ValueError, match=f"`{role}` must be in the units.*up to 1 "
        ):
            load_samples(np.array([[0.0, 1.0], [0.5, 1.0]]), [pixels], role=role)
    load_samples(np.array([[0.0, 3.0]]), [pixels])
    load_samples(np.array([[0.0, 0.0]]), [pixels])


@pytest.mark.parametrize("scale", [255.0, 1 / 255])
def test_calibration_of_another_scale_than_what_it_stands_for(rng, scale) -> None:
    dense = keras.layers.Dense(4)
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((6,), name="x"), dense, norm])
    x = rng.uniform(size=(64, 6)).astype("float32")
    rule = "in the units that the model is used with. Received: "
    with pytest.raises(ValueError, match=f"{rule}for input 'x' values from"):
        check_scale(model, {"x": x * scale}, {"x": x})
    check_scale(model, {"x": x}, {"x": x[::-1]})
    # Of few samples nothing follows.
    check_scale(model, {"x": x * scale}, {"x": x[:2]})
    # The same on both sides: what the model remembers of its training tells.
    norm.moving_variance.assign(np.asarray(dense(x)).var(0))
    check_scale(model, {"x": x}, {"x": x})
    with pytest.raises(ValueError, match=rf"{rule}samples .* reach layer 'norm'"):
        check_scale(model, {"x": x * scale}, {"x": x * scale})
