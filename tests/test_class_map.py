"""Class maps: orders, merged classes and classes that the teacher lacks."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlite.distill.class_map import ClassMap


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_an_order_is_a_permutation(rng):
    logits = rng.normal(size=(4, 3)).astype("float32")
    order = ClassMap([2, 0, 1])
    np.testing.assert_array_equal(order.of_teacher(logits), logits[:, [2, 0, 1]])
    assert order.of_student(logits) is logits


def test_merged_classes_have_the_sum_of_probabilities(rng):
    logits = rng.normal(scale=4.0, size=(2, 5, 4)).astype("float32")
    p = softmax(logits.astype("float64"))
    merged = softmax(np.asarray(ClassMap([(0, 3), 2, 1]).of_teacher(logits)))
    expected = np.stack([p[..., 0] + p[..., 3], p[..., 2], p[..., 1]], axis=-1)
    np.testing.assert_allclose(merged, expected, rtol=2e-6)


def test_what_the_teacher_lacks_and_the_student_lacks_is_left_out(rng):
    logits = rng.normal(size=(4, 3)).astype("float32")
    some = ClassMap([None, 2, None, 0])
    assert some.known == (1, 3) and some.least_classes == 3
    np.testing.assert_array_equal(some.of_teacher(logits), logits[:, [2, 0]])
    student = rng.normal(size=(4, 4)).astype("float32")
    np.testing.assert_array_equal(some.of_student(student), student[:, [1, 3]])
    labels = some.of_labels(np.array([0, 1, 2, 3]), student)
    assert labels.numpy().tolist() == [-1, 0, -1, 1]
    others = some.of_labels(np.array([-1, 3, 255, 1]), student)
    assert others.numpy().tolist() == [-1, 1, 255, 0]
    rows = some.of_labels(np.eye(4)[[3, 0, 1, 2]], student)
    assert rows.numpy().tolist() == [1, -1, 0, -1]


def test_masks_stay(rng):
    logits = tf.convert_to_tensor(rng.normal(size=(2, 3, 4)).astype("float32"))
    logits._keras_mask = tf.ones((2, 3), "bool")
    for entries in ([3, 1, 0, 2], [(0, 1), 2, 3, None]):
        for part in (ClassMap(entries).of_teacher, ClassMap(entries).of_student):
            assert part(logits)._keras_mask is logits._keras_mask


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(6)),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.lists(st.floats(-1e9, 1e9, width=32) | st.just(-np.inf), min_size=6, max_size=6),
)
def test_any_map_gives_numbers_and_keeps_probability(order, kinds, logits):
    # Neighbours of one kind in this order are merged; those of kind 2 are left out.
    groups: list[list[int]] = []
    for index, kind in zip(order, kinds, strict=True):
        if kind == 1 and groups:
            groups[-1].append(index)
        elif kind != 2:
            groups.append([index])
    if not groups:
        return
    given = np.array([logits], "float32")
    values = np.asarray(ClassMap([tuple(g) for g in groups]).of_teacher(given))
    assert np.isfinite(values).all() or np.isinf(given).any()
    assert not np.isnan(values).any()
    largest = [max(given[0][g]) for g in groups]
    np.testing.assert_allclose(
        np.maximum(values[0], -1e30),
        np.maximum(largest, -1e30),
        atol=np.log(6.0) + 1e-3,
        rtol=1e-6,
    )


def test_names():
    by_name = ClassMap.from_names(
        ["cat", "dog", "robot"],
        ["dog", "tabby", "car", "siamese"],
        merged={"cat": ["tabby", "siamese"]},
    )
    assert by_name == ClassMap([(1, 3), 0, None])
    assert hash(by_name) == hash(ClassMap([[1, 3], 0, None]))
    assert by_name.to_list() == [[1, 3], 0, None]
    assert ClassMap(by_name.to_list()) == by_name
    assert repr(by_name) == "ClassMap([(1, 3), 0, None])"
    for merged in ({"wolf": ["dog"]}, {"cat": ["lion"]}):
        with pytest.raises(ValueError, match=r"which is none\. Fix: names of the stu"):
            ClassMap.from_names(["cat"], ["dog"], merged)
    with pytest.raises(ValueError, match="'a' twice among the teacher's"):
        ClassMap.from_names(["a"], ["a", "b", "a"])


@pytest.mark.parametrize(
    "entries, kind, text",
    [
        ([], ValueError, "must name classes of the teacher"),
        ([None, None], ValueError, "must name classes of the teacher"),
        ([0, (1, 0)], ValueError, r"one of the student at most.*0 twice"),
        ([0, -1], ValueError, "counted from 0. Received: -1"),
        ([0, ()], ValueError, "must have a class in it"),
        ([0, "dog"], TypeError, "'dog'.*from_names"),
        ([0, True], TypeError, "True"),
        ([0, 1.5], TypeError, "1.5"),
    ],
)
def test_entries_are_checked(entries, kind, text):
    with pytest.raises(kind, match=text):
        ClassMap(entries)
