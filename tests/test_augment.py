"""Mixup and CutMix: the papers' formulas, drawn by place and view, labels too."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_draws import splitmix

from kdlite.distill.augment import CutMix, Mixup, check_unmixed, mixed_targets
from kdlite.distill.distiller import Distiller
from kdlite.distill.draws import seeds
from kdlite.distill.soft_labels import SoftLabels
from kdlite.distill.update import update
from kdlite.distill.views import Views

N, SIDE, CLASSES, VIEWS = 24, 6, 4, 3
rng = np.random.default_rng(0)
Y = rng.integers(0, CLASSES, N)
ROWS = np.eye(CLASSES, dtype="float32")[Y]
# Each pixel says its image's class in its channels: so the image tells its label.
X = np.repeat(np.repeat(ROWS[:, None, None], SIDE, 1), SIDE, 2)
W = rng.uniform(0.5, 2.0, N).astype("float32")


def brighter(x, seed):
    return x + tf.random.stateless_uniform([], seed)


def draw(seed, place, view, *purposes):
    """What is drawn for a view of a sample, in Python's integers."""
    words = [seed, place, view]
    state = splitmix(words[0])
    for word in words[1:]:
        state = splitmix((state + word) % 2**64)
    for purpose in purposes:
        state = splitmix((splitmix(state) + purpose) % 2**64)
    return state


def partner_of(place, view, seed, first, size):
    step = 1 + (splitmix(draw(seed, place, view)) >> 1) % (size - 1)
    return first + (place - first + step) % size


@pytest.mark.parametrize("among", [None, 5])
def test_partners_are_others_of_the_block(among):
    looks = Views(Mixup(among=among), VIEWS, 3)
    places, views = np.mgrid[:N, :VIEWS].reshape(2, -1)
    partners = looks.partners(places, views, N).numpy()
    for place, view, partner in zip(places, views, partners, strict=True):
        first = 0 if among is None else place // among * among
        size = N if among is None else min(among, N - first)
        assert partner == partner_of(int(place), int(view), 3, int(first), int(size))
        assert first <= partner < first + size and partner != place
    assert len(set(partners.tolist())) > N / 2
    # A block knows its own end, not how many samples there are.
    block = looks.partners(places[places < 5], views[places < 5], 5 if among else N)
    np.testing.assert_array_equal(block, partners[places < 5])


def test_a_sample_that_is_alone_is_its_own_partner():
    assert Views(Mixup(), 1, 0).partners(np.zeros(1, "int64"), [0], 1).numpy() == [0]
    looks = Views(Mixup(among=5), 1, 0)
    assert looks.partners(np.array([25]), [0], 26).numpy() == [25]


def test_mixup_is_the_papers_formula():
    x = rng.normal(size=(N, 3)).astype("float32")
    looks, places, views = Views(Mixup(), 2, 9), np.arange(N), np.arange(N) % 2
    partners = looks.partners(places, views, N).numpy()
    seen, shares = looks.mixed(places, views, tf.constant(x), tf.constant(x[partners]))
    for place in range(N):
        share = (draw(9, place, place % 2, 2) >> 40) / 2**24
        assert shares.numpy()[place] == np.float32(share)
        expected = share * x[place].astype("float64") + (1 - share) * x[partners[place]]
        # Three roundings of float32, of values up to 4.
        np.testing.assert_allclose(seen[place], expected, rtol=1e-6, atol=1e-6)


def test_whole_numbers_are_rounded():
    x, others = (rng.integers(0, 256, (N, 8), dtype="uint8") for _ in range(2))
    seen, shares = Views(Mixup(), 1, 0).mixed(
        np.arange(N), np.zeros(N, "int64"), tf.constant(x), tf.constant(others)
    )
    assert seen.dtype == tf.uint8
    share = shares.numpy()[:, None].astype("float64")
    exact = share * x + (1 - share) * others
    assert np.abs(seen.numpy() - exact).max() <= 0.5 + 1e-4  # float32 at 255


def test_cutmix_is_the_papers_rectangle():
    x = rng.normal(size=(60, 9, 7, 2)).astype("float32")
    others = rng.normal(size=x.shape).astype("float32")
    seen, shares = Views(CutMix(), 1, 4).mixed(
        np.arange(60), np.zeros(60, "int64"), tf.constant(x), tf.constant(others)
    )
    sizes = set()
    for place in range(60):
        side = np.sqrt(np.float32(1 - (draw(4, place, 0, 2) >> 40) / 2**24))
        bounds = []
        for length, purpose in ((9, 3), (7, 4)):
            half = int(side * np.float32(length)) // 2
            middle = (draw(4, place, 0, purpose) >> 1) % length
            bounds.append((max(middle - half, 0), min(middle + half, length)))
        (top, bottom), (left, right) = bounds
        expected = x[place].copy()
        expected[top:bottom, left:right] = others[place, top:bottom, left:right]
        np.testing.assert_array_equal(seen[place], expected)
        own = 1 - (bottom - top) * (right - left) / 63
        np.testing.assert_allclose(shares[place], own, rtol=1e-6)
        sizes.add((bottom - top, right - left))
    assert len(sizes) > 10


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_drawn_from_beta(alpha):
    drawn = seeds(0, tf.range(3000, dtype=tf.int64))
    shares = tf.function(Mixup(alpha).shares)(drawn)  # one by one: slow if eager
    shares = shares.numpy().astype("float64")
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2a + 1)).
    variance = 1 / (4 * (2 * alpha + 1))
    assert 0 <= shares.min() and shares.max() <= 1
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / 3000)
    # Its square has at most the range 1/4, so this is at least 4 sd of a variance.
    assert abs(shares.var() - variance) < 4 * np.sqrt(variance / 4 / 3000)


def test_the_smallest_alpha_hardly_mixes():
    drawn = seeds(0, tf.range(300, dtype=tf.int64))
    shares = tf.function(Mixup(0.01).shares)(drawn).numpy()
    mixed = (shares > 0.01) & (shares < 0.99)
    # Beta(a, a) has the density a / 2s next to 0: a log 99 = 4.6 % of it in between.
    assert np.isfinite(shares).all() and mixed.mean() < 0.1
    assert 0.4 < (shares > 0.5).mean() < 0.6


class TestTargets:
    shares = np.array([0.25, 1.0, 0.0, 0.5], "float32")

    @pytest.mark.parametrize("form", ["numbers", "column", "rows"])
    def test_rows_of_shares(self, form):
        a, b = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 0])
        eye = np.eye(3, dtype="float32")
        ya, yb = {
            "numbers": (a, b),
            "column": (a[:, None], b[:, None]),
            "rows": (eye[a], eye[b]),
        }[form]
        (rows,) = mixed_targets((ya,), (yb,), self.shares, (3,))
        expected = [[0.25, 0.75, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]
        np.testing.assert_allclose(rows, expected)

    def test_the_weighted_loss_is_that_of_both_labels(self):
        a, b = np.array([0, 1, 2, 0]), np.array([1, 2, 0, -1])
        wa, wb = np.array([1.0, 2, 0, 3]), np.array([4.0, 0, 0.5, 0])
        logits = rng.normal(size=(4, 3))
        rows, weights = mixed_targets((a, wa), (b, wb), self.shares, (3,))
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss = -(weights.numpy()[:, None] * rows.numpy() * log_p).sum(-1)
        share, n = self.shares, np.arange(4)
        expected = -share * wa * log_p[n, a] - (1 - share) * wb * log_p[n, b]
        np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(weights, share * wa + (1 - share) * wb)

    def test_no_label_adds_nothing(self):
        rows = mixed_targets(
            (np.array([-1]),), (np.array([2]),), self.shares[:1], (3,)
        )[0]
        np.testing.assert_allclose(rows, [[0, 0, 0.75]])
        nothing = (np.array([1]), np.zeros(1))
        rows, weights = mixed_targets(nothing, nothing, np.array([0.5], "f"), (3,))
        np.testing.assert_array_equal(rows, np.zeros((1, 3)))
        np.testing.assert_array_equal(weights, [0])

    def test_a_value_is_a_row_of_one(self):
        for one in (np.array([2.0, 0, 4, 1]), np.array([[2.0], [0], [4], [1]])):
            (rows,) = mixed_targets((one,), (one + 1,), self.shares, (1,))
            np.testing.assert_allclose(rows, [[2.75], [0], [5], [1.5]])

    @pytest.mark.parametrize(
        "targets, shape, text",
        [
            (
                (np.zeros((4, 2)),),
                (3,),
                r"rows of 3 classes.*labels of \[\(2",
            ),
            (({"a": np.zeros(4), "b": np.zeros(4)},), (3,), "must be class numbers"),
            ((np.zeros(4), np.zeros((4, 2))), (3,), r"one for each.*of \[\(2,\)\]"),
            ((np.zeros(4),), (5, 3), r"distribution each.*logits of shape \(5, 3\)"),
        ],
    )
    def test_others_are_refused(self, targets, shape, text):
        with pytest.raises(ValueError, match=text):
            mixed_targets(targets, targets, self.shares, shape)


@pytest.fixture(scope="module")
def teacher():
    """Not linear, so that the mean of two outputs is not that of the mixed image."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, CLASSES)),
            keras.layers.Conv2D(3, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )


def batched(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(7)


def check(train, teacher, views, weighted=False):
    """The image, what the teacher says of it, and its label belong to each other."""
    shown = []
    for _ in range(views):
        for inputs, y, *_ in train.as_numpy_iterator():
            x = inputs["inputs"]
            expected = np.asarray(teacher(x))
            np.testing.assert_allclose(inputs["soft_labels"], expected, atol=1e-5)
            if not weighted:
                np.testing.assert_allclose(x.mean((1, 2)), y, atol=1e-6)
            shown += [image.tobytes() for image in x]
    return shown


# A stream has no partners from all over: that is refused, see below.
@pytest.mark.parametrize(
    ("mix", "form", "among"),
    [
        (Mixup, "arrays", None),
        (CutMix, "arrays", None),
        (Mixup, "arrays", 10),
        (CutMix, "stream", 10),
    ],
)
def test_student_and_teacher_see_the_same(mix, form, among, teacher, tmp_path):
    augment = mix(among=among)
    data = (X, Y) if form == "arrays" else batched(X, Y)
    soft = SoftLabels.build(teacher, data, tmp_path, augment, VIEWS, batch_size=10)
    train = soft.attach(data, 5, seed=2, augment=augment)
    shown = check(train, teacher, VIEWS)
    assert len(set(shown)) > len(shown) / 2 and len(shown) == N * VIEWS
    assert sorted(shown[:N]) == sorted(check(train, teacher, 1))  # from the first again
    other = (X, Y) if form == "stream" else batched(X, Y)
    if among:  # the other form has the same views
        again = soft.attach(other, 8, seed=5, augment=augment)
        assert sorted(check(again, teacher, VIEWS)) == sorted(shown)
        labels = SoftLabels.build(teacher, other, tmp_path / "2", augment, VIEWS)
        np.testing.assert_allclose(labels.logits(1), soft.logits(1), atol=1e-5)


def test_a_planted_shift_of_partners_is_found(teacher, tmp_path, monkeypatch):
    soft = SoftLabels.build(teacher, X, tmp_path, Mixup())
    partners = Mixup.partners
    monkeypatch.setattr(
        "kdlite.distill.augment.Mixing.partners",
        lambda self, places, seeds, end: (partners(self, places, seeds, end) + 1) % end,
    )
    # The first samples are looked at with the right ones: so not even an attach.
    with pytest.raises(ValueError, match="makes other views of the first samples"):
        soft.attach((X, Y), augment=Mixup())
    monkeypatch.setattr(SoftLabels, "_check_augment", lambda *_: None)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(soft.attach((X, Y), augment=Mixup()), teacher, 1)


def test_single_samples_are_augmented_before(teacher, tmp_path):
    augment = Mixup(augment=brighter)
    soft = SoftLabels.build(teacher, X, tmp_path, augment, views=2)
    for _ in range(2):
        for (inputs,) in soft.attach(X, augment=augment).as_numpy_iterator():
            expected = np.asarray(teacher(inputs["inputs"]))
            np.testing.assert_allclose(inputs["soft_labels"], expected, atol=1e-5)
            # No two are made brighter alike, and none not at all.
            assert len(np.unique(inputs["inputs"][:, 0, 0].min(-1))) == N
    for other in (Mixup(), Mixup(augment=lambda x, seed: x), None):
        with pytest.raises(ValueError, match="`augment` must be the one"):
            soft.attach(X, augment=other)


def test_a_student_learns_from_mixed_samples_with_weights(teacher, tmp_path):
    soft = SoftLabels.build(teacher, X, tmp_path, Mixup(), VIEWS)
    train = soft.attach((X, Y, W), 8, augment=Mixup())
    check(train, teacher, 1, weighted=True)
    distiller = Distiller(keras.models.clone_model(teacher))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    # A few steps are sooner taken than traced.
    distiller.compile(
        keras.optimizers.Adam(0.05), loss, metrics=["accuracy"], run_eagerly=True
    )
    history = distiller.fit(train, epochs=6, shuffle=False, verbose=0).history
    assert history["soft_loss"][-1] < 0.5 * history["soft_loss"][0]


@pytest.mark.parametrize("form", ["arrays", "stream"])
def test_shards_of_mixed_samples(form, teacher, tmp_path):
    augment = Mixup(among=10)
    data = X if form == "arrays" else batched(X).map(lambda x: x)
    whole = SoftLabels.build(teacher, data, tmp_path / "1", augment, 2)
    for i in (1, 2, 3):
        SoftLabels.build(teacher, data, tmp_path / "3", augment, 2, shard=(i, 3))
    merged = SoftLabels.merge(tmp_path / "3")
    np.testing.assert_allclose(merged.logits(1), whole.logits(1), atol=1e-5)


def test_a_stream_has_no_far_partners(teacher, tmp_path):
    text = r"only in memory. Received: Mixup\(.*among=None\).*Mixup\(among=4096\)"
    with pytest.raises(ValueError, match=text):
        SoftLabels.build(teacher, batched(X), tmp_path / "a", Mixup())
    assert not (tmp_path / "a").exists()
    soft = SoftLabels.build(teacher, X, tmp_path / "b", Mixup())
    with pytest.raises(ValueError, match=text):
        soft.attach(batched(X), augment=Mixup())


def test_how_far_partners_are_is_part_of_what_is_stored(teacher, tmp_path):
    soft = SoftLabels.build(teacher, X, tmp_path, Mixup(among=8))
    with pytest.raises(ValueError, match="`augment` must be the one"):
        soft.attach(X, augment=Mixup(among=9))


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"alpha": 0}, ValueError, "`alpha` of Mixup must be at least 0.01.*alpha=0"),
        ({"alpha": float("nan")}, ValueError, "0.01 and finite"),
        ({"alpha": "1"}, TypeError, "`alpha` of Mixup must be a number"),
        ({"augment": 3}, TypeError, "`augment` of Mixup must be a function"),
        ({"among": 1}, ValueError, "`among` must be a whole number from 2 on"),
        ({"among": 2.5}, ValueError, "`among` must be .*Received: among=2.5"),
    ],
)
def test_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        Mixup(**arguments)


@pytest.mark.parametrize(
    "mix, x, text",
    [
        (Mixup(), np.zeros((2, 3), "int64"), "samples that are meas.*Received: int64"),
        (Mixup(), np.array([["a"], ["b"]]), "samples that are measurements"),
        (CutMix(), np.zeros((2, 3)), r"one image.*of \[\(3,\)\]. Fix: Mixup"),
        (CutMix(), {"a": X, "b": X}, "one image"),
        (CutMix(), np.zeros((2, 3, 3, 1), "int32"), "CutMix takes samples that are m"),
    ],
)
def test_samples_that_cannot_be_mixed(mix, x, text):
    with pytest.raises(ValueError, match=text):
        Views(mix, 1, 0).check(x)


def test_what_it_says_of_itself():
    assert (
        repr(Mixup(0.2, brighter, 9)) == "Mixup(alpha=0.2, augment=brighter, among=9)"
    )
    assert repr(CutMix()) == "CutMix(alpha=1.0, augment=None, among=None)"


def test_what_takes_class_numbers_takes_no_mixed_samples():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"of update is .*Received: augment=Mixup\("):
        update(model, model, np.zeros((4, 3)), replay=None, augment=Mixup())
    check_unmixed(None, "update")
    check_unmixed(brighter, "update")
    with pytest.raises(ValueError, match="of distill_to_tflite is a function of one"):
        check_unmixed(CutMix(), "distill_to_tflite")
