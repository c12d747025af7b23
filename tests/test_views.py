"""Views: the same sample, place and number give the same view, in any process."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tensorflow as tf

from kdlite.distill.augment import Mixup
from kdlite.distill.views import Views

IMAGES = np.arange(4 * 4 * 4 * 2, dtype="uint8").reshape(4, 4, 4, 2)


def flip(x, seed):
    return tf.image.stateless_random_flip_left_right(x, seed)


def noise(x, seed):
    return x + tf.random.stateless_normal(tf.shape(x), seed)


def made(views, keys, x):
    """Views of one sample, at each place and number."""
    batch = (*np.array(keys).T, np.array([x] * len(keys)))
    data = tf.data.Dataset.from_tensors(batch)
    return next(data.map(views.view).as_numpy_iterator())


def test_each_view_is_its_own_and_stays_the_same():
    x = np.zeros(3, "float32")
    keys = [(place, view) for place in (0, 2**40) for view in (0, 1)]
    first, other, again = (made(Views(noise, 3, s), keys, x) for s in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    alone = made(Views(noise, 3, 0), keys[-1:], x)
    np.testing.assert_array_equal(first[-1:], alone)
    assert len(np.unique([*first, *other], axis=0)) == 2 * len(keys)


def test_the_seeds_stay_the_same_between_versions():
    # A store made today must be usable tomorrow: these numbers are part of its format.
    def keep(x, seed):
        return x * 0 + tf.reshape(seed, [2])

    def mixed(state):  # SplitMix64 in Python's integers
        z = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert mixed(0) == 0xE220A8397B1DCDAF  # as published
    for seed, place, view in ((7, 0, 0), (7, 5, 1), (2**63 - 1, 2**40, 3)):
        first = mixed((mixed((mixed(seed) + place) % 2**64) + view) % 2**64)
        expected = np.array([first, mixed(first)], "uint64").view("int64")
        (seen,) = made(Views(keep, 2, seed), [(place, view)], np.zeros(2, "int64"))
        np.testing.assert_array_equal(seen, expected)


def test_no_augment_is_the_sample_itself():
    image = IMAGES[0]
    assert Views(None, 1, 0).view(0, 0, image) is image
    assert Views(None, 1, 0).fingerprint(IMAGES) is None
    Views(None, 1, 0).check(IMAGES)


def test_structures_and_static_shapes():
    def both(x, seed):
        return {"image": flip(x["image"], seed), "other": noise(x["other"], seed)}

    x = {"image": IMAGES, "other": np.zeros((4, 3), "float32")}
    Views(both, 2, 0).check(x)
    assert len(Views(both, 2, 0).fingerprint(x)) == 64

    def cropped(x, seed):
        return tf.image.stateless_random_crop(
            tf.pad(x, [[1, 1]] * 2 + [[0, 0]]), x.shape, seed
        )

    data = tf.data.Dataset.from_tensor_slices(IMAGES).enumerate().batch(2)
    views = Views(lambda x, seed: tf.reshape(cropped(x, seed), tf.shape(x)), 1, 0)
    seen = data.map(lambda place, x: views.view(place, place * 0, x))
    assert seen.element_spec == tf.TensorSpec((None, 4, 4, 2), tf.uint8)


def test_the_fingerprint_tells_augmentations_apart():
    prints = [
        Views(flip, 2, 0).fingerprint(IMAGES),
        Views(flip, 2, 1).fingerprint(IMAGES),
        Views(lambda x, seed: x, 2, 0).fingerprint(IMAGES),
        Views(lambda x, seed: x + tf.constant(1, x.dtype), 2, 0).fingerprint(IMAGES),
    ]
    assert len(set(prints)) == 4
    assert prints[0] == Views(flip, 2, 0).fingerprint(IMAGES)


def with_python_branches(x, seed):
    if tf.random.stateless_uniform([], seed) > 0.5:
        x = tf.reverse(x, [0])
    return x


def test_an_augment_may_branch_as_in_any_tf_function():
    views = Views(with_python_branches, 2, 0)
    views.check(IMAGES)
    seen = made(views, [(place, 0) for place in range(9)], IMAGES[0])
    assert len({(view == IMAGES[0]).all() for view in seen}) == 2


def drawn(x, seed):
    return tf.image.random_flip_left_right(x)


def drawn_by_numpy(x, seed):
    return x + tf.cast(
        tf.numpy_function(lambda: np.float64(random.randrange(9)), [], "float64"),
        x.dtype,
    )


def drawn_while_traced(x, seed):
    return x + tf.constant(random.randrange(200), x.dtype)


def with_one_argument(x):
    return x


def that_raises(x, seed):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    "augment, text",
    [
        (with_one_argument, "augment=with_one_argument, which raised TypeError"),
        (that_raises, "augment=that_raises, which raised KeyError.*no such thing"),
    ],
)
def test_what_an_augment_raises_is_one_sentence(augment, text):
    with pytest.raises(ValueError, match=text) as caught:
        Views(augment, 1, 0).check(IMAGES)
    assert "in user code" not in str(caught.value)


@pytest.mark.parametrize("augment", [drawn, drawn_by_numpy, drawn_while_traced])
@pytest.mark.parametrize("global_seed", [None, 3])
def test_a_stateful_augment(augment, global_seed):
    if global_seed is not None:
        tf.random.set_seed(global_seed)
    with pytest.raises(
        ValueError, match=f"must be stateless.*augment={augment.__name__}"
    ):
        Views(augment, 1, 0).check(IMAGES)


@pytest.mark.parametrize(
    "augment, text",
    [
        (
            lambda x, seed: tf.cast(x, "float32"),
            "uint8 in, float32 out. Fix: cast back",
        ),
        (lambda x, seed: {"x": x}, "keep the structure and type.*uint8 in, uint8 out"),
        (lambda x, seed: None, "keep the structure and type.*uint8 in, NoneType out"),
        (lambda x, seed: x[:2], r"keep the shape.*\(4, 4, 2\) in, \(2, 4, 2\) out"),
        (
            lambda x, seed: x[None],
            r"keep the shape.*\(4, 4, 2\) in, \(1, 4, 4, 2\) out",
        ),
        (
            lambda x, seed: x[
                : 1 + tf.random.stateless_uniform([], seed, 0, 3, tf.int32)
            ],
            r"keep the shape.*\(4, 4, 2\) in",
        ),
    ],
)
def test_an_augment_that_changes_the_kind_of_sample(augment, text):
    with pytest.raises(ValueError, match=text) as caught:
        Views(augment, 2, 0).check(IMAGES)
    assert "in user code" not in str(caught.value)


def divided(x, seed):
    return x / tf.reduce_max(x[0])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_views_that_are_no_numbers(count, mixed):
    images = IMAGES.astype("float32")
    images[2, 0] = 0  # 0/0 in a part of it
    augment = Mixup(augment=divided) if mixed else divided
    with pytest.raises(
        ValueError,
        match="finite values for finite samples. Received: NaN or infinity in view 0 "
        "of sample 2, by augment=divided",
    ):
        Views(augment, count, 0).check(images)
    # A sample that is none itself is not the augmentation's fault, and is found later.
    Views(flip, count, 0).check(np.where(images == 0, np.nan, images))
