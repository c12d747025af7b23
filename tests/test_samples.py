"""Samples: one sequence, in whatever form the data come, and the same each time."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kdlite.distill.samples import Samples, Witness, check_same_samples, first_samples

N = 10
X = np.arange(N * 4, dtype="float32").reshape(N, 4)
Y = np.arange(N)
W = np.linspace(0, 1, N, dtype="float32")


class Batches(keras.utils.PyDataset):
    """Batches of three; between epochs it shuffles, as many do."""

    def __init__(self, *parts, count=-1):
        super().__init__()
        self.parts = parts
        self.order = np.arange(len(keras.tree.flatten(parts)[0]))
        self.count = -(-len(self.order) // 3) if count == -1 else count

    def __getitem__(self, index):
        rows = self.order[3 * index : 3 * index + 3]
        batch = keras.tree.map_structure(lambda array: array[rows], self.parts)
        return batch if len(batch) > 1 else batch[0]

    @property
    def num_batches(self):
        return self.count

    def on_epoch_end(self):
        np.random.default_rng().shuffle(self.order)


def slices(*parts):
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0])


def read(samples):
    """All places and parts, stacked."""
    places, parts = zip(*samples.numbered().as_numpy_iterator(), strict=True)
    return list(places), [
        np.stack(part) for part in zip(*map(tf.nest.flatten, parts), strict=True)
    ]


FORMS = {
    "array": (X, [X]),
    "tuple of one": ((X,), [X]),
    "x, y": ((X, Y), [X, Y]),
    "x, y, w": ((X, Y, W), [X, Y, W]),
    "dict": ({"b": Y, "a": X}, [X, Y]),
    "list": ([X, Y], [X, Y]),
    "dict, y": (({"b": W, "a": X}, Y), [X, W, Y]),
    "x, nested y": ((X, [Y, W]), [X, Y, W]),
    "x, rows as lists": ((X, X.tolist()), [X, X]),
    "tensor": ((tf.constant(X), tf.constant(Y)), [X, Y]),
    "batched": (slices(X, Y).batch(4), [X, Y]),
    "batched by one": (slices(X, Y).batch(1), [X, Y]),
    "unbatched": (slices(X, Y), [X, Y]),
    "unbatched x": (slices(X), [X]),
    "unbatched dict": (slices({"b": W, "a": X}), [X, W]),
    "batched dict, y": (slices({"b": W, "a": X}, Y).batch(3), [X, W, Y]),
    "x, y, w batched": (slices(X, Y, W).batch(3), [X, Y, W]),
    "PyDataset": (Batches(X, Y), [X, Y]),
    "PyDataset of x": (Batches(X), [X]),
    "PyDataset of lists": (Batches([X, W], Y), [X, W, Y]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_in_order(form):
    dataset, expected = FORMS[form]
    samples = Samples(dataset, batch_rank=2)
    for _ in range(2):
        places, parts = read(samples)
        assert places == list(range(N))
        for part, array in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(part, array)


def test_all_forms_of_the_same_samples_have_the_same_fingerprints():
    datasets = [
        X,
        X.astype("float64"),
        (X, Y),
        slices(X).batch(3),
        slices(X, Y),
        Batches(X, Y),
    ]
    first, *others = [Samples(dataset, 2) for dataset in datasets]
    prints = first.fingerprints()
    assert len(np.unique(prints)) == N
    for other in others:
        assert other.spec == first.spec == [["float32", [4]]]
        np.testing.assert_array_equal(other.fingerprints(), prints)
        check_same_samples(other, first.spec, prints)
    np.testing.assert_array_equal(first_samples(others[-1]), X[:4])


def test_strings_are_samples_too():
    texts = np.array([["a"], ["bc"], ["d"]])
    for dataset in (texts, texts.astype(object), slices(texts)):
        samples = Samples(dataset, 2)
        assert samples.spec == [["string", [1]]]
        np.testing.assert_array_equal(
            samples.fingerprints(), Samples(texts).fingerprints()
        )


def test_what_is_known_beforehand():
    assert Samples(X).count == N and Samples(X).batch_size is None
    assert Samples(slices(X).batch(4)).batch_size == 4
    assert Samples(Batches(X)).batch_size == 3
    assert Samples(slices(X), 2).batch_size is None


def test_shapes_are_known_to_the_graph():
    ragged = tf.data.Dataset.from_generator(
        lambda: iter([X[:3], X[3:]]), output_signature=tf.TensorSpec(None, tf.float32)
    )
    for dataset in (X, slices(X).batch(4), Batches(X, Y), ragged):
        _, parts = Samples(dataset, 2).numbered().element_spec
        assert parts[0].shape == (4,)


@pytest.mark.parametrize(
    "dataset, error, text",
    [
        ((), TypeError, "x, or a tuple .x,., .x, y. or"),
        ((X, Y, W, W), TypeError, "Received: a tuple of 4"),
        ((X, None), TypeError, r"Received: a tuple of 2, \['...', None\]"),
        (tf.data.Dataset.zip((slices(X),) * 4), TypeError, "a tuple of 4"),
        ((X, Y[:3]), ValueError, r"same number of samples.*\(10, 4\), \(3,\)"),
        (np.float32(1), ValueError, "same number of samples"),
        ({}, ValueError, "same number of samples"),
        (X[:0], ValueError, "must have samples. Received: none"),
        (slices(X[:0]).batch(2), ValueError, "must have samples. Received: none"),
        (Batches(X, count=0), ValueError, "must have samples. Received: none"),
        (slices(X).repeat(), ValueError, "must end. Received: an endless"),
        (Batches(X, count=None), ValueError, "must end.*num_batches=None"),
        (slices(Y), ValueError, "in batches, or its samples must have the shape"),
        (np.array([{}, {}]), TypeError, "arrays of numbers or strings.*ndarray of obj"),
        (object(), TypeError, "arrays of numbers or strings. Received: object"),
        (
            slices(X).map(tf.sparse.from_dense).batch(2),
            TypeError,
            "must be dense tensors",
        ),
    ],
)
def test_what_is_no_data_set(dataset, error, text):
    with pytest.raises(error, match=text):
        Samples(dataset)


class Loader:
    """Batches of a loader that is no PyDataset, such as PyTorch's."""

    def __iter__(self):
        return iter([(X, Y)])

    def __len__(self):
        return 1


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ((x for x in X), "generator"),
        (((x for x in X), Y), "generator"),
        (iter([X]), "list_iterator"),
        (map(np.sqrt, X), "map"),
        (lambda: iter([X]), "function"),
        (Loader(), "Loader"),
    ],
)
def test_what_cannot_be_read_again(dataset, name):
    text = (
        "found again by its place. Received: a "
        f"{name}, which gives its samples once.*put them into arrays, or give tf.data."
    )
    with pytest.raises(TypeError, match=text):
        Samples(dataset)


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, y=Y)
    with np.load(tmp_path / "train.npz") as data:
        for given in (data, (data, Y)):
            with pytest.raises(TypeError, match="NpzFile with 'x', 'y'.*data.'x'."):
                Samples(given)


class TestSame:
    def check(self, dataset, labelled=X):
        known = Samples(labelled)
        check_same_samples(Samples(dataset, 2), known.spec, known.fingerprints())

    @pytest.mark.parametrize(
        "changed, text",
        [
            (X[:7], "Received: 7 samples, labelled 10. Fix: give the same samples in"),
            (
                X[::-1],
                "same samples in another order, sample 0 being .* Fix: leave shuf",
            ),
            (X.astype("int32"), r"samples of int32 \(4,\), labelled float32 \(4,\)"),
            (X[:, :3], r"samples of float32 \(3,\), labelled"),
        ],
    )
    @pytest.mark.parametrize("form", [lambda x: x, slices, Batches])
    def test_others_are_refused(self, changed, text, form):
        with pytest.raises(ValueError, match=f"must be the one that was lab.*{text}"):
            self.check(form(changed))

    def test_one_changed_value(self):
        changed = X.copy()
        changed[6, 2] += 1e-3
        with pytest.raises(ValueError, match="1 of 10 samples that are others.* at 6"):
            self.check(changed)

    def test_a_pipeline_that_shuffles(self):
        shuffled = slices(X).shuffle(N, seed=3)
        with pytest.raises(ValueError, match="another order.*tf.data pipeline"):
            self.check(shuffled)
        self.check(slices(X).shuffle(1))

    def test_a_pipeline_that_first_comes_as_labelled(self):
        # As a shuffle with a seed does in a new process: alike once, then never again.
        passes = itertools.count()

        def turned(_):
            # Opening reads a first time, fingerprints a second time.
            by = tf.numpy_function(lambda: np.int64(next(passes) > 1), [], tf.int64)
            return slices(tf.roll(X, by, 0))

        changing = tf.data.Dataset.range(1).flat_map(turned)
        with pytest.raises(
            ValueError, match="another sample 0 than before.*Fix: leave"
        ):
            self.check(changing)


class TestWitness:
    SPEC = [["float32", [4]]]

    def test_it_notes_what_it_saw(self):
        witness = Witness(self.SPEC)
        for start in range(0, N, 3):
            witness(start, X[start : start + 3])
        prints = Samples(X).fingerprints()
        assert witness.count == N
        np.testing.assert_array_equal(witness.take(2, 5), prints[2:7])
        np.testing.assert_array_equal(witness.take(7, 3), prints[7:])

    def test_it_compares(self):
        witness = Witness(self.SPEC, Samples(X).fingerprints()[:4])
        witness(0, X[:3])
        witness(3, X[3:6])
        with pytest.raises(ValueError, match="another sample 2 than before"):
            witness(0, X[[0, 1, 3]])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("shard", [(1, 1), (2, 3)])
    def test_samples_that_are_not_finite(self, bad, shard):
        x = X.copy()
        x[4, 1] = bad
        own = Samples(X).fingerprints()[shard[0] - 1 :: shard[1]]
        known = own[:1]
        for given in (X, x):  # finite, and where nobody asks
            Witness(self.SPEC, known, shard=shard, finite=given is X)(0, given)
        witness = Witness(self.SPEC, known, shard=shard, finite=True)
        witness(0, x[:3])
        with pytest.raises(
            ValueError, match="must be finite. Received: .* in sample 4. Fix: clean"
        ):
            witness(3, x[3:])

    def test_more_than_all(self):
        witness = Witness(self.SPEC, Samples(X).fingerprints()[:4], complete=True)
        witness(0, X[:4])
        with pytest.raises(ValueError, match="another sample 4 than before"):
            witness(3, X[3:5])

    def test_samples_of_several_shapes(self):
        parts = [X[:3], X[3:6, :2]]
        dataset = tf.data.Dataset.from_generator(
            lambda: iter(parts), output_signature=tf.TensorSpec([None, None])
        )
        with pytest.raises(
            ValueError,
            match=r"have the same shape.*float32 \(2,\) from sample 3 on, bef",
        ):
            Samples(dataset, 2).fingerprints()
