"""Features of the teacher's layers that are stored beside its logits."""

from __future__ import annotations

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdlite import SoftLabels, losses
from kdlite.distill.distiller import Distiller
from kdlite.distill.stored_features import feature_folder
from kdlite.distill.teachers import Transformed

N, SIDE, CLASSES, VIEWS = 30, 6, 3, 2
X = np.random.default_rng(0).normal(size=(N, SIDE, SIDE, 1)).astype("float32")
Y = np.arange(N) % CLASSES
MAPS, POOLED = "body/second", "pooled"
QUIET = {"verbose": 0}


def flip(x, seed):
    return tf.image.stateless_random_flip_left_right(x, seed)


def network(width, name, seed=0):
    keras.utils.set_random_seed(seed)
    body = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1)),
            layers.Conv2D(width, 3, padding="same", activation="relu", name="first"),
            layers.Conv2D(width, 3, strides=2, padding="same", name="second"),
        ],
        name="body",
    )
    inputs = keras.Input((SIDE, SIDE, 1))
    pooled = layers.GlobalAveragePooling2D(name="pooled")(body(inputs))
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(pooled), name=name)


@pytest.fixture(scope="module")
def teacher():
    return network(5, "teacher", seed=7)


@pytest.fixture(scope="module")
def soft(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels")
    return SoftLabels.build(
        teacher, X, path, flip, VIEWS, features=(MAPS, POOLED), **QUIET
    )


@pytest.fixture(scope="module")
def plain(teacher, tmp_path_factory):
    """Without views."""
    path = tmp_path_factory.mktemp("plain")
    return SoftLabels.build(teacher, X, path, features=[MAPS, POOLED], **QUIET)


@pytest.fixture(scope="module")
def told_live(teacher):
    """What is logged of a student with the teacher in memory."""
    return logged(distiller(network(5, "s"), teacher), X, Y, batch_size=N)


def features_of(teacher, x):
    """By the layers themselves, without taps."""
    body = teacher.get_layer("body")
    maps = body.get_layer("second")(body.get_layer("first")(x))
    return {MAPS: np.asarray(maps), POOLED: np.asarray(maps).mean((1, 2))}


def distiller(student, teacher=None, pairs=None, run_eagerly=True):
    made = Distiller(
        student,
        teacher,
        feature_losses=pairs
        or {(MAPS, MAPS): losses.Hint(), (POOLED, POOLED): losses.RelationalKD()},
    )
    made.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=run_eagerly,
    )
    return made


def logged(made, *data, **options):
    options = {"shuffle": False, "verbose": 0, **options}
    return {name: v[-1] for name, v in made.fit(*data, **options).history.items()}


def test_they_are_those_of_the_views_that_the_student_sees(teacher, soft) -> None:
    assert soft.features == (MAPS, POOLED)
    for _ in range(VIEWS):  # an epoch each
        seen = 0
        for x, _ in soft.attach((X, Y), 8, augment=flip):
            expected = features_of(teacher, x["inputs"])
            for name, values in x["features"].items():
                # float16 has 11 bits; the rest is the order of sums.
                np.testing.assert_allclose(
                    values, expected[name], rtol=2.0**-11, atol=1e-5
                )
            seen += len(x["inputs"])
        assert seen == N
    told = soft.to_dict()["features"]
    half = SIDE // 2
    assert told[MAPS] == {"shape": [half, half, 5], "bytes": N * VIEWS * half**2 * 10}
    assert f"KiB of features of '{POOLED}'" in str(soft)


@pytest.mark.parametrize("eager", [True, False])
def test_a_student_learns_from_them_what_it_would_from_the_teacher(
    plain, told_live, eager
) -> None:
    batches = plain.attach((X, Y), N, shuffle=False)
    # Of the teacher's width: nothing random is made between the two.
    ours = logged(distiller(network(5, "s"), run_eagerly=eager), batches)
    assert {"hint_loss", "relational_kd_loss"} <= set(ours) == set(told_live)
    for name, value in told_live.items():
        assert ours[name] == pytest.approx(value, rel=2e-3), name


def test_it_trains_what_is_between_and_goes_on_from_a_file(soft, tmp_path) -> None:
    made = distiller(network(3, "s"), pairs={(MAPS, MAPS): losses.Hint()})
    made.optimizer.learning_rate = 0.1
    batches = soft.attach((X, Y), 10, augment=flip)
    first = logged(made, batches)["hint_loss"]
    last = logged(made, batches, epochs=4)["hint_loss"]
    assert last < 0.8 * first
    made.save(tmp_path / "distiller.keras")
    again = keras.saving.load_model(tmp_path / "distiller.keras")
    assert logged(again, batches)["hint_loss"] < 0.9 * first
    assert np.isfinite(made.evaluate(X, Y, verbose=0)).all()


def test_they_come_to_labels_that_are_there(teacher, tmp_path) -> None:
    plain = SoftLabels.build(teacher, X, tmp_path, **QUIET)
    assert plain.features == () and "features" not in next(iter(plain.attach(X)))
    before = (tmp_path / "logits.f32").stat().st_mtime_ns
    more = SoftLabels.build(teacher, X, tmp_path, features=[POOLED], **QUIET)
    assert more.features == (POOLED,)
    assert (tmp_path / "logits.f32").stat().st_mtime_ns == before
    assert SoftLabels.load(tmp_path, teacher).features == (POOLED,)


def test_of_a_transformed_teacher_and_in_shards(teacher, tmp_path) -> None:
    sees_half = Transformed(teacher, layers.Rescaling(0.5))
    for shard in (1, 2, 3):
        SoftLabels.build(
            sees_half, X, tmp_path, features=[MAPS], shard=(shard, 3), **QUIET
        )
    soft = SoftLabels.merge(tmp_path)
    ((x,),) = soft.attach(X, N, shuffle=False)
    expected = features_of(teacher, X / 2)[MAPS]
    values = x["features"][MAPS]
    np.testing.assert_allclose(values, expected, rtol=2.0**-11, atol=1e-5)


def generated():
    def batches():
        for start in range(0, N, 7):
            yield X[start : start + 7]

    spec = tf.TensorSpec((None, *X.shape[1:]), tf.float32)
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def test_what_they_take_is_known_before(teacher, soft, tmp_path) -> None:
    needed = 2 * N * VIEWS * ((SIDE // 2) ** 2 * 5 + 5)
    arguments = {"augment": flip, "views": VIEWS, "features": (MAPS, POOLED), **QUIET}
    text = rf"{needed:,} bytes for {N} samples in {VIEWS} views \('body/second' "
    with pytest.raises(ValueError, match=text):
        SoftLabels.build(
            teacher, X, tmp_path / "a", max_feature_bytes=needed - 1, **arguments
        )
    assert not (tmp_path / "a").exists()
    # Where the number of samples is not known the labels tell it.
    with pytest.raises(ValueError, match=text):
        SoftLabels.build(
            teacher,
            generated(),
            tmp_path / "b",
            max_feature_bytes=needed - 1,
            **arguments,
        )
    assert SoftLabels.load(tmp_path / "b").features == ()
    soft = SoftLabels.build(  # that is there, as large
        teacher, X, soft.path, max_feature_bytes=needed, **arguments
    )
    assert sum(each["bytes"] for each in soft.to_dict()["features"].values()) == needed


@pytest.mark.parametrize(
    ("features", "error", "text"),
    [
        (["secnd"], ValueError, "Near: 'body/second'"),
        ([POOLED, POOLED], ValueError, "stored once. Received: 'pooled' twice"),
        (POOLED, TypeError, "are paths of layers. Received: features='pooled'"),
        ([3], TypeError, "are paths of layers"),
    ],
)
def test_layers_that_are_none(teacher, tmp_path, features, error, text) -> None:
    with pytest.raises(error, match=text):
        SoftLabels.build(teacher, X, tmp_path, features=features, **QUIET)
    assert not list(tmp_path.iterdir())


def test_a_loss_on_what_is_not_stored_is_told_what_is(teacher, tmp_path) -> None:
    soft = SoftLabels.build(teacher, X, tmp_path, features=[POOLED], **QUIET)
    batches = soft.attach((X, Y), 10)
    with pytest.raises(ValueError, match=r"'body/second', with stored .*\['pooled'\]"):
        logged(distiller(network(3, "s")), batches)
    shutil.rmtree(tmp_path / "features")
    batches = SoftLabels.load(tmp_path).attach((X, Y), 10)
    with pytest.raises(ValueError, match=r"or its features in the data.*features=\("):
        logged(distiller(network(3, "s")), batches)


def test_features_of_other_samples_are_refused(teacher, tmp_path) -> None:
    for name, x in (("a", X), ("b", X + 1)):
        SoftLabels.build(teacher, x, tmp_path / name, features=[POOLED], **QUIET)
    theirs = feature_folder(tmp_path / "b", POOLED)
    ours = feature_folder(tmp_path / "a", POOLED)
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    with pytest.raises(ValueError, match="layer 'pooled' another data set"):
        SoftLabels.load(tmp_path / "a")


def test_too_large_for_half_precision_is_an_error(teacher, tmp_path) -> None:
    loud = network(5, "loud")
    loud.get_layer("body").get_layer("second").bias.assign([1e5] * 5)
    with pytest.raises(ValueError, match="float16 must be below 65,504"):
        SoftLabels.build(loud, X, tmp_path, features=[MAPS], **QUIET)
