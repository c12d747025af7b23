"""What users give is rewritten as in any pipeline of TensorFlow's, and nothing else."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from kdlite.distill.augment import Mixup
from kdlite.distill.tracing import as_written, rewritten, status
from kdlite.distill.views import Views

X = np.arange(12, dtype="int64").reshape(6, 2)


def doubled(x, times):
    for _ in tf.range(times):  # of a tensor: a loop in the graph
        x = 2 * x
    return x


def branching(x, seed, least=1):
    if x[0] % 4 == 0:
        return x + least
    return doubled(x, seed[0] % 3)


class Branching:
    def __call__(self, x, seed):
        return branching(x, seed)

    def method(self, x, seed):
        return branching(x, seed, 5)


class OwnMixup(Mixup):
    def mix(self, x, partners, seeds):
        if tf.reduce_sum(x) > 0:
            x = x + partners
        return x, tf.ones(tf.shape(x)[:1])


USERS = {
    "function": branching,
    "partial": functools.partial(branching, least=7),
    "object": Branching(),
    "method": Branching().method,
    "lambda": lambda x, seed: branching(x, seed) + 1,
}


@pytest.mark.parametrize("user", USERS)
def test_an_augment_is_rewritten_as_by_dataset_map(user):
    augment, numbers = USERS[user], np.arange(len(X))
    seeds = []

    def noted(x, seed):
        seeds.append(seed)
        return x

    Views(noted, 1, 3).view(numbers, 0 * numbers, tf.constant(X))  # eagerly
    expected = tf.data.Dataset.from_tensor_slices((X, tf.stack(seeds))).map(augment)
    whole = tf.data.Dataset.from_tensors((numbers, 0 * numbers, X))
    (seen,) = whole.map(as_written(Views(augment, 1, 3).view))
    np.testing.assert_array_equal(seen, list(expected.as_numpy_iterator()))
    assert (seen.numpy() != X).any()


def test_a_users_own_mixing_is_rewritten():
    whole = tf.data.Dataset.from_tensors((np.arange(6), np.zeros(6, int), X, X))
    (both,) = whole.map(as_written(Views(OwnMixup(), 1, 0).mixed))
    np.testing.assert_array_equal(both[0], 2 * X)


def test_what_a_user_will_not_have_rewritten_is_not():
    kept = tf.autograph.experimental.do_not_convert(branching)
    data = tf.data.Dataset.from_tensors((X[0], X[0]))
    for function in (kept, as_written(branching)):
        with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
            data.map(as_written(rewritten(function, status())))

    @tf.autograph.experimental.do_not_convert
    def pipeline():
        return data.map(as_written(rewritten(branching, status())))

    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        pipeline()
