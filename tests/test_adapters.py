"""Adapters: one width and size for student and teacher."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite.distill.adapters import Adapter


def adapted(student, teacher, masks=(None, None), **kwargs):
    adapter = Adapter(**kwargs)
    shapes = [(None, *x.shape[1:]) for x in (student, teacher)]
    adapter.build(*shapes)
    tensors = [tf.constant(x, "float32") for x in (student, teacher)]
    for tensor, mask in zip(tensors, masks, strict=True):
        if mask is not None:
            tensor._keras_mask = tf.constant(mask)
    return adapter, *adapter.adapt(*tensors)


def area_average(x, axis, size):
    """By the definition: each new position is an interval of the old axis."""
    x = np.moveaxis(np.asarray(x, "float64"), axis, 0)
    ratio = len(x) / size
    out = np.zeros((size, *x.shape[1:]))
    for j in range(size):
        for i in range(len(x)):
            overlap = min(i + 1, (j + 1) * ratio) - max(i, j * ratio)
            out[j] += max(overlap, 0.0) / ratio * x[i]
    return np.moveaxis(out, 0, axis)


def test_whole_ratios_are_average_pooling(rng):
    student, teacher = rng.normal(size=(2, 8, 6, 3)), rng.normal(size=(2, 4, 3, 3))
    _, s, t = adapted(student, teacher)
    pooled = keras.layers.AveragePooling2D(2)(student.astype("float32"))
    np.testing.assert_allclose(s, pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(t, teacher.astype("float32"))


@pytest.mark.parametrize("sizes", [((7, 5), (4, 3)), ((3, 8), (5, 2))])
def test_the_larger_side_is_averaged_by_area(rng, sizes):
    student, teacher = (rng.normal(size=(2, *size, 3)) for size in sizes)
    _, s, t = adapted(student, teacher)
    smaller = np.minimum(*sizes)
    for x, y in ((student, s), (teacher, t)):
        expected = area_average(area_average(x, 1, smaller[0]), 2, smaller[1])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_sizes_that_only_the_batch_tells(rng):
    adapter = Adapter()
    adapter.build((None, None, None, 3), (None, None, 2, 3))
    student, teacher = rng.normal(size=(2, 6, 4, 3)), rng.normal(size=(2, 3, 2, 3))
    spec = tf.TensorSpec((None, None, None, 3))
    s, t = tf.function(adapter.adapt, input_signature=[spec, spec])(
        *(tf.constant(x, "float32") for x in (student, teacher))
    )
    np.testing.assert_allclose(s, student.reshape(2, 3, 2, 2, 2, 3).mean((2, 4)), 1e-4)
    np.testing.assert_allclose(t, teacher, rtol=1e-6)


@pytest.mark.parametrize(
    "shape, kind",
    [((2, 4, 4, 3), "Conv2D"), ((2, 5, 3), "Dense"), ((2, 3), "Dense")],
)
def test_widths_are_projected(rng, shape, kind):
    student, teacher = rng.normal(size=shape), rng.normal(size=(*shape[:-1], 6))
    adapter, s, t = adapted(student, teacher)
    assert type(adapter.projection).__name__ == kind
    kernel, bias = adapter.projection.get_weights()
    expected = student @ kernel.reshape(3, 6).astype("float64") + bias
    np.testing.assert_allclose(s, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(t, teacher.astype("float32"))


def test_nothing_is_made_where_nothing_is_needed(rng):
    same, other = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 2, 2, 5))
    assert adapted(same, same)[0].projection is None
    assert adapted(same, same, always_projected=True)[0].projection is not None
    adapter, s, t = adapted(same, other, same_width=False, same_size=False)
    assert adapter.projection is None and not adapter.weights
    assert s.shape == same.shape and t.shape == other.shape
    _, s, t = adapted(same, other, same_width=False)
    assert (s.shape, t.shape) == ((2, 2, 2, 3), (2, 2, 2, 5))
    _, s, t = adapted(same, other, same_size=False)
    assert (s.shape, t.shape) == ((2, 4, 4, 5), (2, 2, 2, 5))


def test_a_vector_is_met_by_the_mean_over_positions(rng):
    maps, vector = rng.normal(size=(2, 4, 3, 3)), rng.normal(size=(2, 3))
    for pair in ((maps, vector), (vector, maps)):
        sides = adapted(*pair)[1:]
        for x, y in zip(pair, sides, strict=True):
            expected = x.mean((1, 2)) if x.ndim == 4 else x
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


class TestMasks:
    def test_masked_steps_have_no_part_in_an_average(self, rng):
        steps, shorter = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 3, 3))
        mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
        for masks, pair in (
            ((mask, None), (steps, shorter)),
            ((None, mask), (shorter, steps)),
        ):
            _, s, t = adapted(*pair, masks)
            y = s if masks[1] is None else t
            np.testing.assert_allclose(y[0, 0], steps[0, :2].mean(0), rtol=1e-5)
            np.testing.assert_allclose(y[0, 1], steps[0, 2], rtol=1e-5)
            np.testing.assert_allclose(y[1, 2], steps[1, 4:].mean(0), rtol=1e-5)
            np.testing.assert_array_equal(
                s._keras_mask, [[True, True, False], [True, True, True]]
            )

    def test_a_mask_of_one_side_is_that_of_both(self, rng):
        steps, mask = rng.normal(size=(1, 4, 3)), np.array([[1, 1, 0, 0]], bool)
        for masks in ((mask, None), (None, mask)):
            _, s, _ = adapted(steps, steps, masks)
            np.testing.assert_array_equal(s._keras_mask, mask)
            vector = rng.normal(size=(1, 3))
        _, s, _ = adapted(steps, vector, (mask, None))
        np.testing.assert_allclose(s, steps[:, :2].mean(1), rtol=1e-5)
        assert getattr(s, "_keras_mask", None) is None

    def test_a_mask_reaches_behind_the_projection(self, rng):
        steps, mask = rng.normal(size=(1, 4, 3)), np.array([[1, 1, 0, 0]], bool)
        _, s, _ = adapted(steps, rng.normal(size=(1, 4, 5)), (mask, None))
        np.testing.assert_array_equal(s._keras_mask, mask)


def test_it_is_made_again_from_its_config():
    adapter = Adapter(same_size=False, always_projected=True)
    adapter.build((None, 4, 3), (None, 4, 3))
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(adapter)
    )
    assert copy.get_config() == adapter.get_config()
    assert [w.shape for w in copy.weights] == [w.shape for w in adapter.weights]


def test_errors():
    with pytest.raises(ValueError, match=r"same axes of positions\. Received: student"):
        Adapter().build((None, 4, 3), (None, 2, 2, 3))
    with pytest.raises(ValueError, match=r"widths of features must be known\. Rec"):
        Adapter().build((None, 4, None), (None, 4, 3))
    Adapter(same_size=False).build((None, 4, 3), (None, 2, 2, 3))
