from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.doctor import check_inputs


def net(classes: int = 3, shape: tuple[int, ...] = (4,), rescale: bool = False):
    layers = [keras.Input(shape)]
    if rescale:
        layers.append(keras.layers.Rescaling(1 / 255))
    if len(shape) > 1:
        layers.append(keras.layers.Flatten())
    return keras.Sequential([*layers, keras.layers.Dense(classes)], name="net")


def split(rng: np.random.Generator, rows: int = 12, scale: float = 1.0):
    x = rng.random((rows, 4)).astype("float32") * scale
    return x, np.arange(rows) % 3


def test_good_inputs_pass(rng) -> None:
    check_inputs(net(), net(), {"train": split(rng), "test": split(rng)}, list("abc"))


def test_models_must_be_keras_models(rng) -> None:
    with pytest.raises(TypeError, match="teacher must be a keras.Model.*function"):
        check_inputs(net(), lambda x: x, {"train": split(rng)})


def test_classes_must_agree(rng) -> None:
    with pytest.raises(ValueError, match="same classes.*'net' with 4.*with 3"):
        check_inputs(net(3), net(4), {"train": split(rng)})


def test_output_must_be_one_vector(rng) -> None:
    image = keras.Input((4,))
    map_model = keras.Model(image, keras.layers.Reshape((2, 2))(image))
    with pytest.raises(ValueError, match=r"student must have one output of shape"):
        check_inputs(map_model, net(), {"train": split(rng)})
    two = keras.Model(image, [keras.layers.Dense(3)(image) for _ in range(2)])
    with pytest.raises(ValueError, match="one output here.*2 outputs"):
        check_inputs(net(), two, {"train": split(rng)})


def test_a_frozen_student_is_refused(rng) -> None:
    frozen = net()
    frozen.trainable = False
    with pytest.raises(ValueError, match="must have weights to train.*'net'"):
        check_inputs(frozen, net(), {"train": split(rng)})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_that_are_no_numbers(rng, role, bad) -> None:
    models = {"student": net(), "teacher": net()}
    models[role].layers[-1].bias.assign([0.0, bad, 0.0])
    what = "1 NaN" if np.isnan(bad) else "1 times infinity"
    with pytest.raises(
        ValueError, match=f"The {role}'s weights .* Received: 'net' with {what} in '.*/"
    ):
        check_inputs(*models.values(), {"train": split(rng)})


def test_names_that_are_not_one_a_class_are_shown(rng) -> None:
    with pytest.raises(
        ValueError, match=r"Received: 6 \(a, b, c, d, e, \.\.\.\) for 3"
    ):
        check_inputs(net(), net(), {"train": split(rng)}, list("abcdef"))


def test_unbuilt_model_is_named(rng) -> None:
    raw = keras.Sequential([keras.layers.Dense(3)], name="raw")
    with pytest.raises(
        ValueError, match="must say the shapes.*'raw', a Sequential without a g"
    ):
        check_inputs(net(), raw, {"train": split(rng)})


def test_one_input_only(rng) -> None:
    a, b = keras.Input((4,)), keras.Input((4,))
    two = keras.Model([a, b], keras.layers.Dense(3)(keras.layers.Add()([a, b])))
    with pytest.raises(ValueError, match="one input here.*2 inputs"):
        check_inputs(net(), two, {"train": split(rng)})


def test_labels_name_each_class(rng) -> None:
    with pytest.raises(ValueError, match=r"Received: 2 \(.*\) for 3 classes"):
        check_inputs(net(), net(), {"train": split(rng)}, ["a", "b"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, y: (x, y[:-1]), "one label a sample.*12 samples, 11 labels"),
        (lambda x, y: (x, np.eye(3)[y]), r"integer class indices.*argmax"),
        (lambda x, y: (x, y.astype("float32")), r"integer class.*float32.*np.unique"),
        (lambda x, y: (x, y.astype("float32")), "integer class indices.*float32"),
        (lambda x, y: (x, y + 1), r"lie in 0\.\.2.*from 1 to 3.*Count from 0"),
        (lambda x, y: (x, y - 1), r"lie in 0\.\.2.*from -1 to 1"),
        (lambda x, y: (x[:0], y[:0]), "must hold samples"),
        (lambda x, y: (x.astype("U4"), y), "must be numbers"),
        (lambda x, y: (x[:, :3], y), r"samples of \(3,\).*'net' takes \(4,\)"),
        (lambda x, y: (x[:, :, None], y), r"samples of \(4, 1\)"),
    ],
)
def test_bad_splits_are_named(rng, change, text) -> None:
    with pytest.raises(ValueError, match=f"`validation`.*{text}"):
        check_inputs(
            net(), net(), {"train": split(rng), "validation": change(*split(rng))}
        )


def test_split_must_be_a_pair(rng) -> None:
    with pytest.raises(TypeError, match=r"tuple \(x, y\)"):
        check_inputs(net(), net(), {"train": split(rng)[0]})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_first_sample_that_is_not_finite_is_named(rng, bad) -> None:
    x, y = split(rng)
    x[7, 2] = bad
    with pytest.raises(ValueError, match="finite.*1 samples, the first at index 7"):
        check_inputs(net(), net(), {"train": (x, y)})


def test_splits_in_other_units_are_refused(rng) -> None:
    data = {"train": split(rng, scale=255), "test": split(rng)}
    with pytest.raises(ValueError, match="same units.*`test` up to .*`train` up to"):
        check_inputs(net(), net(), data)


def test_normalized_pixels_into_a_model_that_rescales(rng) -> None:
    with pytest.raises(
        ValueError, match="up to 0.9.*begins with Rescaling.*raw pixels"
    ):
        check_inputs(net(rescale=True), net(), {"train": split(rng)})


def test_overlap_of_train_and_test_is_a_warning(rng) -> None:
    x, y = split(rng)
    with pytest.warns(UserWarning, match=r"50.0% of the `test` samples are in `train`"):
        check_inputs(
            net(),
            net(),
            {
                "train": (x, y),
                "test": (np.concatenate([x[:6], x[:6] + 0.5]), y),
            },
        )


def test_any_size_of_image_passes_where_the_model_takes_it(rng) -> None:
    image = keras.Input((None, None, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    free = keras.Model(image, keras.layers.Dense(3)(pooled))
    x = rng.random((12, 5, 7, 1)).astype("float32")
    check_inputs(free, free, {"train": (x, np.arange(12) % 3)})
