"""Stored forms of logits: what the student is told again, against float64 oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdlite.distill.label_forms import LabelForm

SHAPES = [(5, 1, 4), (3, 2, 7, 10), (2, 3, 300)]


def softmax(z):
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def again(form, logits):
    return form.decode(form.encode(logits), logits.shape[-1])


@pytest.fixture(params=SHAPES, ids=str)
def logits(request, rng):
    return rng.normal(0, 6, request.param).astype("float32")


def test_whole_logits_come_back_as_they_were(logits):
    np.testing.assert_array_equal(again(LabelForm(), logits), logits)


def test_float16_moves_a_logit_by_its_last_bit(logits):
    told = again(LabelForm("float16"), logits).astype("float64")
    assert told.dtype == "float64" and (told != logits).any()
    # 11 significant bits, half a unit of the last; below 2^-14 they are not relative.
    assert (np.abs(told - logits) <= 2**-11 * np.maximum(np.abs(logits), 2**-14)).all()
    factor = softmax(told) / softmax(logits.astype("float64"))
    assert np.abs(np.log(factor)).max() <= 2**-10 * np.abs(logits).max()


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_keeps_probabilities_and_the_rest_mass(k, logits):
    told = again(LabelForm(top_k=k), logits)
    assert told.dtype == np.float32 and told.shape == logits.shape
    classes = logits.shape[-1]
    for row, expected in zip(
        told.reshape(-1, classes), logits.reshape(-1, classes).tolist(), strict=True
    ):
        largest = sorted(range(classes), key=lambda i: (-expected[i], i))[:k]
        others = [i for i in range(classes) if i not in largest]
        mass = math.fsum(math.exp(expected[i]) for i in others)
        rebuilt = np.full(classes, math.log(mass / len(others)))
        rebuilt[largest] = [expected[i] for i in largest]
        np.testing.assert_allclose(row, rebuilt, rtol=1e-6, atol=1e-6)
        p, q = softmax(np.array(expected)), softmax(row.astype("float64"))
        np.testing.assert_allclose(q[largest], p[largest], rtol=1e-5)
        np.testing.assert_allclose(q[others].sum(), p[others].sum(), rtol=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 8.0])
def test_a_temperature_above_1_gives_the_others_no_less_than_they_have(
    temperature, logits
):
    told = again(LabelForm(top_k=2), logits).astype("float64")
    others = np.argsort(-logits, axis=-1)[..., 2:]
    p, q = (
        np.take_along_axis(softmax(z / temperature), others, -1).sum(-1)
        for z in (logits.astype("float64"), told)
    )
    assert (q >= p * (1 - 1e-6)).all()


def test_top_k_with_float16(logits):
    exact, told = (again(LabelForm(d, 3), logits) for d in ("float32", "float16"))
    # The mass of the others is rounded as the logits are, and then shared out.
    bound = 2**-11 * (np.abs(exact) + math.log(logits.shape[-1])) + 1e-6
    assert (np.abs(told - exact) <= bound).all()


def test_extreme_logits_stay_finite():
    logits = np.array([[[3e4, -3e4, 0.0, 2.9e4, -1e4]]], np.float32)
    for form in (LabelForm(top_k=1), LabelForm(top_k=4), LabelForm("float16", 2)):
        told = again(form, logits)
        assert np.isfinite(told).all() and told.argmax() == 0


def test_of_equal_logits_the_first_class_is_first():
    stored = LabelForm(top_k=3).encode(np.array([[[1.0, 5.0, 5.0, 5.0, 0.0]]]))
    assert stored["classes.bin"].tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    "form, classes, size_bytes",
    [
        (LabelForm(), 1000, 4000),
        (LabelForm("float16"), 1000, 2000),
        (LabelForm("float16", top_k=10), 1000, 42),
        (LabelForm("float32", top_k=3), 10, 19),
        (LabelForm("float32", top_k=3), 257, 22),
        (LabelForm("float32", top_k=3), 70_000, 28),
    ],
)
def test_sizes(form, classes, size_bytes, rng):
    stored = form.encode(rng.normal(size=(2, 1, classes)))
    assert set(stored) == set(form.files) == set(form.layout([classes]))
    assert sum(array.nbytes for array in stored.values()) == 2 * size_bytes


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"dtype": "int8"}, "`dtype` of stored logits.*Received: dtype='int8'"),
        ({"top_k": 0}, "`top_k` must be a whole number from 1 on. Received: top_k=0"),
    ],
)
def test_forms_that_are_none(arguments, text):
    with pytest.raises(ValueError, match=text):
        LabelForm(**arguments)


def test_logits_that_do_not_fit():
    with pytest.raises(ValueError, match=r"below 65,504. Received: 70000.*float32"):
        LabelForm("float16").encode(np.array([[[70000.0, 0.0]]]))
    with pytest.raises(ValueError, match="below the number of classes.*3 classes"):
        LabelForm(top_k=3).encode(np.zeros((1, 1, 3)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_was_planted_in_a_file_is_named(dtype, rng):
    form = LabelForm(dtype, top_k=2)
    rows = form.encode(rng.normal(size=(4, 1, 5)))
    rows["classes.bin"][1, 0, 1] = 5
    with pytest.raises(ValueError, match="Received: class 5 in classes.bin"):
        form.decode(rows, 5)
    values = form.files[0]
    rows[values][2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"NaN or infinity in {values}"):
        form.decode(rows, 5)
