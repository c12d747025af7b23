"""Epochs: orders and views are functions of seed and epoch, however data are read."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from kdlite.distill.epochs import Epochs

N, VIEWS, BATCH, BATCHES = 20, 3, 6, 4


def attached(epochs, stream=False):
    places = tf.data.Dataset.range(N).map(lambda i: (i, i))
    if stream:
        rows = epochs.shuffled(lambda _: places, 8)
    else:
        rows = epochs.places().map(lambda epoch, place: (epoch, place, place))
    rows = rows.map(lambda epoch, place, _: (epoch, place, epochs.view(epoch, place)))
    batches = rows.batch(BATCH).map(lambda e, p, v: (e[0], (e, p, v)))
    return epochs.counted(batches.prefetch(tf.data.AUTOTUNE), BATCHES)


def read(data):
    """Epoch, places and views of one iteration."""
    epochs, places, views = (
        np.concatenate(part) for part in zip(*data.as_numpy_iterator(), strict=True)
    )
    assert len(set(epochs.tolist())) == 1
    return int(epochs[0]), places, views


@pytest.fixture(params=[False, True], ids=["memory", "stream"])
def stream(request):
    return request.param


def test_each_iteration_is_an_epoch(stream):
    data = attached(Epochs(N, VIEWS, seed=1, shuffle=True, epoch=0), stream)
    seen, orders = np.zeros((N, VIEWS), int), []
    for number in range(2 * VIEWS):
        epoch, places, views = read(data)
        assert epoch == number
        np.testing.assert_array_equal(np.sort(places), np.arange(N))
        seen[places, views] += 1
        orders.append(tuple(places))
        if number == 0:
            assert len(set(views.tolist())) == VIEWS  # not all at the same view
        if number == VIEWS - 1:
            assert (seen == 1).all()
    assert (seen == 2).all()
    assert len({*orders, tuple(range(N))}) == 2 * VIEWS + 1


def test_it_is_a_function_of_seed_and_epoch(stream):
    def three(seed, epoch=0, global_seed=0):
        tf.random.set_seed(global_seed)
        data = attached(Epochs(N, VIEWS, seed, True, epoch), stream)
        return [[part.tolist() for part in read(data)[1:]] for _ in range(3)]

    first = three(5)
    assert three(5, global_seed=9) == first
    assert three(5, epoch=1)[:2] == first[1:]
    assert three(6) != first


def test_without_shuffling_the_views_change_all_the_same(stream):
    data = attached(Epochs(N, VIEWS, 0, False, 0), stream)
    views = []
    for _ in range(VIEWS):
        _, places, view = read(data)
        np.testing.assert_array_equal(places, np.arange(N))
        views.append(view)
    assert (np.sort(views, axis=0) == np.arange(VIEWS)[:, None]).all()


def test_what_is_not_read_to_its_end_does_not_count(stream):
    data = attached(Epochs(N, VIEWS, 0, True, 0), stream)
    for _ in range(3):
        iter(data)
        next(iter(data))
        for batch in data.take(BATCHES - 1):
            assert int(batch[0][0]) == 0
    # Nor is the end pulled for behind the last batch: Keras does not do that.
    iterator = iter(data)
    for _ in range(BATCHES):
        next(iterator)
    assert read(data)[0] == 1


def test_repeat_goes_through_the_epochs(stream):
    data = attached(Epochs(N, VIEWS, 0, True, 4), stream).repeat(2)
    epochs = np.concatenate([batch[0] for batch in data.as_numpy_iterator()])
    np.testing.assert_array_equal(epochs, np.repeat([4, 5], N))


def test_two_at_once_are_the_same_epoch(stream):
    data = attached(Epochs(N, VIEWS, 0, True, 0), stream)
    for left, right in zip(data, data, strict=True):
        np.testing.assert_array_equal(left[1], right[1])
    assert read(data)[0] == 1


def test_the_number_of_batches_is_known(stream):
    assert int(attached(Epochs(N, 1, 0, True, 0), stream).cardinality()) == BATCHES


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097])
def test_each_order_is_a_permutation(samples):
    epochs = Epochs(samples, 1, seed=3, shuffle=True, epoch=0)
    positions = np.arange(samples)
    for epoch in range(3):
        order = epochs.order(epoch, positions)
        np.testing.assert_array_equal(np.sort(order), np.arange(samples))
        rest = epochs.order(epoch, positions[samples // 2 :])
        np.testing.assert_array_equal(rest, order[samples // 2 :])  # no table needed


def test_orders_look_like_chance():
    """Where a sample comes and which follows it is even over many epochs."""
    samples, times = 12, 1200
    epochs = Epochs(samples, 1, seed=0, shuffle=True, epoch=0)
    orders = [epochs.order(epoch, np.arange(samples)) for epoch in range(times)]
    at, follows = np.zeros((2, samples, samples))
    for order in orders:
        at[np.arange(samples), order] += 1
        follows[order[:-1], order[1:]] += 1
    # Counts of about 100, sd 9.6: 5 sd allowed.
    assert np.abs(at - times / samples).max() < 5 * 9.6
    expected = times * (samples - 1) / (samples * (samples - 1))
    off = ~np.eye(samples, dtype=bool)
    assert np.abs(follows[off] - expected).max() < 5 * 9.6


def test_no_number_of_samples_takes_memory():
    epochs = Epochs(10**15, 7, seed=0, shuffle=True, epoch=0)
    few = list(epochs.places().take(3000).as_numpy_iterator())
    places = {int(place) for _, place in few}
    assert len(places) == len(few) == 3000 and max(places) > 9 * 10**14
    view = epochs.view(tf.constant(5, tf.int64), tf.constant([10**15 - 1], tf.int64))
    assert 0 <= int(view[0]) < 7
