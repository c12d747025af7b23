"""Stored soft labels: each sample has its own teacher logits, always, or is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from processes import run_in_copy

from kdlite.distill import label_store, training_batches
from kdlite.distill.distiller import Distiller
from kdlite.distill.label_manifest import Manifest
from kdlite.distill.label_store import LabelWriter
from kdlite.distill.losses import MultiLabelSoftTargets, Regression
from kdlite.distill.soft_labels import SoftLabels
from kdlite.distill.taps import LogitsModel

N, SIDE, CLASSES, VIEWS = 50, 4, 3, 3
rng = np.random.default_rng(0)
X = rng.integers(0, 256, (N, SIDE, SIDE, 1), dtype="uint8")
Y = rng.integers(0, CLASSES, N)
W = rng.uniform(0.5, 2.0, N).astype("float32")


def shift(x, seed):
    return tf.image.stateless_random_flip_left_right(
        tf.roll(x, tf.random.stateless_uniform([2], seed, 0, SIDE, tf.int32), [0, 1]),
        seed + 1,
    )


def other_shift(x, seed):
    return tf.roll(x, 1 + tf.random.stateless_uniform([], seed, 0, 2, tf.int32), 0)


def linear(activation=None, seed=0, name=None):
    """A teacher whose logits reveal which sample, and which view of it, it saw."""
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dropout(0.5, seed=1),
            layers.Dense(
                CLASSES,
                activation=activation,
                kernel_initializer=keras.initializers.RandomNormal(seed=seed),
            ),
        ],
        name=name,
    )


@pytest.fixture(scope="module")
def teacher():
    return linear(name="teacher")


@pytest.fixture(scope="module")
def oracle(teacher):
    """What the teacher says, in float64 numpy."""
    kernel, bias = (w.numpy().astype("float64") for w in teacher.weights)
    return lambda x: np.reshape(x, (len(x), -1)) / 255.0 @ kernel + bias


@pytest.fixture(scope="module")
def plain(teacher, tmp_path_factory):
    return SoftLabels.build(teacher, (X, Y), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def viewed(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("viewed")
    return SoftLabels.build(teacher, X, path, augment=shift, views=VIEWS)


def batches(*parts, size=8):
    parts = parts if len(parts) > 1 else parts[0]
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


class Batches(keras.utils.PyDataset):
    def __getitem__(self, index):
        rows = slice(7 * index, 7 * index + 7)
        return X[rows], Y[rows]

    def __len__(self):
        return -(-N // 7)


def check_aligned(train, oracle):
    """Every batch of an epoch: the logits are the teacher's for these very inputs."""
    inputs, samples = [], 0
    for batch in train.as_numpy_iterator():
        x = batch[0]["inputs"]
        np.testing.assert_allclose(batch[0]["soft_labels"], oracle(x), atol=1e-5)
        inputs.append(x)
        samples += len(x)
    return np.concatenate(inputs)


class TestBuild:
    def test_logits_are_the_teachers(self, plain, viewed, oracle):
        assert len(plain) == N and plain.views == 1 and plain.classes == CLASSES
        np.testing.assert_allclose(plain.logits(), oracle(X), atol=1e-5)
        assert plain.logits().shape == (N, CLASSES)
        assert plain.logits().dtype == np.float32
        assert viewed.views == VIEWS
        for view in range(VIEWS):  # all are augmented, the first as well
            assert np.abs(viewed.logits(view) - oracle(X)).max() > 1e-2
        assert np.abs(viewed.logits(0) - viewed.logits(1)).max() > 1e-2

    @pytest.mark.parametrize("where", ["plain", "viewed"])
    def test_places_are_those_of_samples(self, where, plain, viewed):
        soft = {"plain": plain, "viewed": viewed}[where]
        every = soft.logits()
        for places in ([3, 0, 3], np.array([1], "uint8"), slice(2, 9, 3), 4):
            np.testing.assert_array_equal(soft.logits(places=places), every[places])
        assert soft.logits(places=[]).shape == (0, CLASSES)
        for wrong in ([-1], [0, N], -1, np.int64(N), np.array([[0, N + 5]])):
            with pytest.raises(ValueError, match=rf"counted from 0. .* of {N} samples"):
                soft.logits(places=wrong)
        for wrong in ([0.0], np.ones(N, bool), ["a"]):
            with pytest.raises(
                TypeError, match="`places` must be integers, or a slice"
            ):
                soft.logits(places=wrong)

    @pytest.mark.parametrize("head", ["logits", "probabilities"])
    def test_it_is_told_what_the_logits_were_read_from(self, head, tmp_path):
        class Opaque(keras.Model):
            def call(self, x):
                x = keras.ops.reshape(keras.ops.cast(x, "float32"), (-1, X[0].size))
                return keras.ops.softmax(x[:, :CLASSES] / 100)

        teacher = Opaque()
        teacher.build((None, *X.shape[1:]))
        read = LogitsModel(teacher, outputs=head)
        soft = SoftLabels.build(read, X, tmp_path)
        assert (
            soft.to_dict()["outputs"] == SoftLabels.load(tmp_path).to_dict()["outputs"]
        )
        assert soft.to_dict()["outputs"] == head
        other = {"logits": "probabilities", "probabilities": "logits"}[head]
        with pytest.raises(ValueError, match=rf"of another head \(of {other}, stored"):
            SoftLabels.build(LogitsModel(teacher, outputs=other), X, tmp_path)

    def test_a_softmax_head_is_not_stored(self, tmp_path, oracle, teacher):
        softmax = linear("softmax")
        softmax.set_weights(teacher.get_weights())
        soft = SoftLabels.build(softmax, X, tmp_path)
        np.testing.assert_allclose(soft.logits(), oracle(X), atol=1e-5)

    def test_a_subclassed_teacher(self, tmp_path, oracle, teacher):
        class Subclassed(keras.Model):
            def call(self, x):
                return teacher(x)

        model = Subclassed()
        model(X[:1])
        soft = SoftLabels.build(LogitsModel(model, "logits"), X, tmp_path)
        np.testing.assert_allclose(soft.logits(), oracle(X), atol=1e-5)
        SoftLabels.load(tmp_path, LogitsModel(model, "logits"))

    @pytest.mark.parametrize(
        "dataset",
        [
            batches(X, Y),
            batches(X, Y).unbatch(),
            tf.data.Dataset.from_tensor_slices(X),
            batches(X, Y, W, size=N),
            Batches(),
            (X, Y, W),
            tf.constant(X),
        ],
        ids="batched unbatched x one-batch PyDataset weighted tensor".split(),
    )
    def test_every_form_gives_the_same_store(self, dataset, plain, teacher, tmp_path):
        soft = SoftLabels.build(teacher, dataset, tmp_path, batch_size=16)
        np.testing.assert_allclose(soft.logits(), plain.logits(), atol=1e-6)
        # What is compared with the data when labels are attached.
        ours, theirs = (Manifest.read(each.path).origin for each in (soft, plain))
        assert ours == theirs
        ours, theirs = ((s.path / "samples.u64").read_bytes() for s in (soft, plain))
        assert ours == theirs

    def test_labels_of_the_data_are_of_any_shape(self, teacher, plain, tmp_path):
        def padded():  # in each batch as wide as its longest
            yield X[:20], np.zeros((20, 3), "int64")
            yield X[20:], np.zeros((N - 20, 5), "int64")

        spec = tf.TensorSpec((None, *X.shape[1:]), tf.uint8)
        stream = tf.data.Dataset.from_generator(
            padded, output_signature=(spec, tf.TensorSpec((None, None), tf.int64))
        )
        soft = SoftLabels.build(teacher, stream, tmp_path)
        np.testing.assert_allclose(soft.logits(), plain.logits(), atol=1e-6)

    def test_views_do_not_depend_on_batches_or_form(self, teacher, viewed, tmp_path):
        for size, dataset in ((1, batches(X[:9])), (7, X), (1000, Batches())):
            soft = SoftLabels.build(
                teacher, dataset, tmp_path / str(size), shift, VIEWS, size
            )
            for view in range(VIEWS):
                ours, theirs = soft.logits(view), viewed.logits(view)
                np.testing.assert_allclose(ours, theirs[: len(ours)], atol=1e-6)

    def test_several_inputs_and_dense_predictions(self, tmp_path):
        a, b = keras.Input((5, 2), name="a"), keras.Input((5, 1), name="b")
        outputs = layers.Dense(4)(layers.Concatenate()([a, b]))
        model = keras.Model({"a": a, "b": b}, outputs)
        x = {"b": rng.normal(size=(6, 5, 1)), "a": rng.normal(size=(6, 5, 2))}
        soft = SoftLabels.build(model, x, tmp_path)
        assert soft.logits().shape == (6, 5, 4) and soft.classes == 4
        (batch,) = soft.attach((x, np.arange(6)), batch_size=6)
        inputs, y = batch
        expected = model.predict_on_batch(inputs["inputs"])
        np.testing.assert_allclose(inputs["soft_labels"], expected, atol=1e-5)
        np.testing.assert_allclose(inputs["inputs"]["a"], x["a"][y], rtol=1e-6)
        stream = tf.data.Dataset.from_tensor_slices(x)
        x32 = {key: value.astype("float32") for key, value in x.items()}
        stream = tf.data.Dataset.from_tensor_slices(x32)
        SoftLabels.build(model, stream, tmp_path)  # not batched: found by the names

    def test_the_teacher_is_traced_once_and_not_changed(
        self, teacher, tmp_path, monkeypatch
    ):
        traces = []
        call = LogitsModel.__call__

        def counted(self, x, training=False):
            traces.append((tuple(x.shape), training))
            return call(self, x, training)

        monkeypatch.setattr(LogitsModel, "__call__", counted)
        before = [v.numpy() for v in teacher.variables], teacher.trainable
        SoftLabels.build(teacher, batches(X, size=9), tmp_path, batch_size=16)
        assert traces == [((16, SIDE, SIDE, 1), False)]  # 50 is no multiple of 16
        for variable, value in zip(teacher.variables, before[0], strict=True):
            np.testing.assert_array_equal(variable, value)
        assert teacher.trainable == before[1]

    def test_again_it_checks_and_returns(self, teacher, plain, monkeypatch):
        monkeypatch.setattr(LabelWriter, "append", None)
        files = {f.name: f.stat().st_mtime_ns for f in plain.path.iterdir()}
        files.pop("lock")
        soft = SoftLabels.build(teacher, X, plain.path)
        assert len(soft) == N
        SoftLabels.build(teacher, batches(X), plain.path)
        for name, time in files.items():
            assert (plain.path / name).stat().st_mtime_ns == time
        for other, text in ((X[:9], "9 samples, labelled 50"), (X[:9], "must be the")):
            with pytest.raises(ValueError, match=text):
                SoftLabels.build(teacher, other, plain.path)
        late = X.copy()
        late[-1] += 1
        with pytest.raises(ValueError, match="1 of 50 samples .* at 49"):
            SoftLabels.build(teacher, late, plain.path)

    def test_overwriting(self, teacher, tmp_path, oracle):
        SoftLabels.build(linear(seed=5), X[:7], tmp_path)
        with pytest.raises(ValueError, match="another teacher, for the store at"):
            SoftLabels.build(teacher, X, tmp_path)
        soft = SoftLabels.build(teacher, X, tmp_path, overwrite=True)
        np.testing.assert_allclose(soft.logits(), oracle(X), atol=1e-5)

    def test_the_progress_bar(self, teacher, tmp_path, capsys):
        SoftLabels.build(teacher, X, tmp_path / "quiet")
        assert capsys.readouterr().out == ""
        SoftLabels.build(teacher, X, tmp_path / "1", verbose=1)
        assert "50/50" in capsys.readouterr().out
        SoftLabels.build(teacher, batches(X), tmp_path / "2", shift, 2, verbose=1)
        assert "100/Unknown" in capsys.readouterr().out

    def test_a_pipeline_that_shuffles_is_found(self, teacher, tmp_path):
        shuffled = batches(X).unbatch().shuffle(N, seed=1)
        with pytest.raises(ValueError, match="data set|same order"):
            SoftLabels.build(teacher, shuffled, tmp_path)
            SoftLabels.build(teacher, shuffled, tmp_path)


ARGUMENTS = dict(augment=shift, views=2, batch_size=10)


@pytest.fixture(scope="module")
def stopped_once(teacher, tmp_path_factory):
    """A store that was stopped after 20 of 50 samples."""
    path = tmp_path_factory.mktemp("stopped")
    append, count = LabelWriter.append, 0

    def interrupted(writer, *rows):
        nonlocal count
        count += 1
        if count > 4:
            raise OSError("no space left")
        append(writer, *rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_store, "_SECONDS_BETWEEN_COMMITS", 0.0)
        patch.setattr(LabelWriter, "append", interrupted)
        with pytest.raises(OSError, match="no space"):
            SoftLabels.build(teacher, X, path, **ARGUMENTS)
    assert Manifest.read(path).samples == 20
    return path


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return SoftLabels.build(teacher, X, path, **ARGUMENTS)


def divided(x, seed):
    return x / x[0, 0, 0]


@pytest.mark.parametrize("shard", [(1, 1), (2, 3)])
def test_an_augment_that_fails_on_a_later_sample_is_named(teacher, tmp_path, shard):
    x = 1 + X.astype("float32")
    x[40, 0, 0] = 0  # of the second shard of three
    with pytest.raises(
        ValueError,
        match="infinity in view 0 of sample 40, by augment=divided. Fix: look for a",
    ):
        SoftLabels.build(
            teacher, x, tmp_path, augment=divided, views=2, shard=shard, batch_size=6
        )


class TestGoingOn:
    """Interrupted builds; what the files go through is in test_label_store.py."""

    @pytest.fixture
    def stopped(self, stopped_once, tmp_path):
        return shutil.copytree(stopped_once, tmp_path / "stopped")

    @pytest.mark.parametrize("form", [lambda x: x, batches])
    def test_only_the_rest_is_labelled(
        self, form, stopped, whole, teacher, monkeypatch
    ):
        with pytest.raises(ValueError, match="first 20 samples are done"):
            SoftLabels.load(stopped)
        append, sizes = LabelWriter.append, []

        def counted(writer, logits, prints):
            sizes.append(len(logits))
            append(writer, logits, prints)

        monkeypatch.setattr(LabelWriter, "append", counted)
        soft = SoftLabels.build(teacher, form(X), stopped, **ARGUMENTS)
        assert sum(sizes) == 30
        for name in ("logits.f32", "samples.u64"):
            ours, theirs = (s.path / name for s in (soft, whole))
            assert ours.read_bytes() == theirs.read_bytes()

    @pytest.mark.parametrize(
        "change, text",
        [
            ({"views": 3}, "another views"),
            ({"seed": 1}, "another seed"),
            ({"augment": other_shift}, "another augment, for"),
            ({"augment": None, "views": 1}, "another views.*another augment"),
        ],
    )
    def test_other_arguments(self, change, text, stopped, teacher):
        with pytest.raises(ValueError, match=f"{text}.*overwrite=True"):
            SoftLabels.build(teacher, X, stopped, **{**ARGUMENTS, **change})

    @pytest.mark.parametrize(
        "changed, form",
        [
            ("teacher", np.asarray),
            (0, np.asarray),
            (15, batches),
            ("shorter", np.asarray),
            ("type", batches),
        ],
    )
    def test_another_teacher_or_data_set(self, changed, form, stopped, teacher):
        x, text = X.copy(), "another data set"
        if changed == "teacher":
            teacher, text = linear(seed=3), "another teacher"
        elif changed == "shorter":
            x, text = x[:15], "15 samples, when 20 are labelled"
        elif changed == "type":
            x = x.astype("float32")
        else:
            x[changed] += 1
            text = text if changed == 0 else "another sample 15 than before"
        with pytest.raises(ValueError, match=text):
            SoftLabels.build(teacher, form(x), stopped, **ARGUMENTS)

    def test_killed(self, teacher, oracle, tmp_path):
        """`kill -9` at several places of real builds, each going on from the last."""
        done = []
        for kill_after in (1, 3):
            ended = run_in_copy(
                "test_soft_labels:build_and_die", tmp_path, kill_after=kill_after
            )
            assert ended.returncode == -signal.SIGKILL, ended.printed
            done.append(Manifest.read(tmp_path / "labels").samples)
            with pytest.raises(ValueError, match="Only finished"):
                SoftLabels.load(tmp_path / "labels")
        assert done == [8, 32]
        soft = SoftLabels.build(teacher, X, tmp_path / "labels", batch_size=8)
        np.testing.assert_allclose(soft.logits(), oracle(X), atol=1e-5)


def build_and_die(folder: Path) -> None:
    kill_after = json.loads((folder / "told.json").read_text())["kill_after"]
    label_store._SECONDS_BETWEEN_COMMITS = 0.0
    append, calls = label_store.LabelWriter.append, []

    def deadly(writer, *rows):
        calls.append(None)
        append(writer, *rows)
        if len(calls) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    label_store.LabelWriter.append = deadly
    SoftLabels.build(linear(), X, folder / "labels", batch_size=8)  # as always


class TestLoad:
    def test_it_is_the_same(self, plain, teacher):
        soft = SoftLabels.load(str(plain.path), teacher)
        np.testing.assert_array_equal(soft.logits(), plain.logits())
        assert isinstance(soft.logits(), np.memmap)
        assert soft.teacher_fingerprint == plain.teacher_fingerprint
        with pytest.raises(ValueError, match="read-only"):
            soft.logits()[0] = 0

    def test_a_reloaded_teacher_is_the_same(self, plain, teacher, tmp_path):
        teacher.save(tmp_path / "teacher.keras")
        SoftLabels.load(plain.path, keras.models.load_model(tmp_path / "teacher.keras"))

    def test_another_teacher(self, plain):
        with pytest.raises(ValueError, match="the given teacher's.*teacher 'other'"):
            SoftLabels.load(plain.path, linear(seed=9, name="other"))

    def test_what_it_says(self, plain, viewed):
        print12 = plain.teacher_fingerprint[:12]
        assert repr(plain) == (
            f"SoftLabels('{plain.path}', samples=50, views=1, classes=3, "
            f"teacher='{print12}')"
        )
        assert str(viewed).startswith(
            f"Soft labels of 50 samples x 3 views, 3 classes, by teacher {print12}: "
        )
        assert json.loads(json.dumps(viewed.to_dict())) == {
            "path": str(viewed.path),
            "samples": 50,
            "views": 3,
            "classes": 3,
            "augmented": True,
            "dtype": "float32",
            "top_k": None,
            "shard": None,
            "bytes": 50 * 3 * 3 * 4,
            "teacher": viewed.teacher_fingerprint,
            "outputs": "logits",
            "features": {},
        }

    def test_views_that_are_not_there(self, viewed):
        with pytest.raises(ValueError, match="one of those stored.*view=3, stored 0"):
            viewed.logits(3)
        with pytest.raises(ValueError, match="`view` must be a whole number from 0 on"):
            viewed.logits(-1)


class TestForms:
    """What is told again of other forms is in test_label_forms.py."""

    def test_half_precision(self, teacher, oracle, tmp_path):
        soft = SoftLabels.build(teacher, X, tmp_path, dtype="float16")
        told = soft.logits()
        assert told.dtype == np.float32 and soft.to_dict()["bytes"] == N * CLASSES * 2
        bound = 2**-11 * np.abs(oracle(X)) + 1e-5
        assert (np.abs(told - oracle(X)) <= bound).all()
        for (inputs,) in soft.attach(X).as_numpy_iterator():
            expected = oracle(inputs["inputs"]).astype("float16")
            np.testing.assert_allclose(inputs["soft_labels"], expected, rtol=2**-10)

    def test_the_likeliest_and_the_rest(self, teacher, oracle, tmp_path):
        soft = SoftLabels.build(teacher, X, tmp_path, top_k=1)
        assert soft.to_dict()["bytes"] == N * (2 * 4 + 1)

        def told(x):  # of two others each has half of their mass
            z = oracle(x)
            rest = np.sort(z)[:, :2]
            each = np.log(np.exp(rest).sum(-1, keepdims=True) / 2)
            return np.where(z == z.max(-1, keepdims=True), z, each)

        np.testing.assert_allclose(soft.logits(), told(X), atol=1e-5)
        np.testing.assert_allclose(soft.logits(0, [3, 1]), told(X[[3, 1]]), atol=1e-5)
        for form in (X, batches(X)):
            for (inputs,) in soft.attach(form).as_numpy_iterator():
                expected = told(inputs["inputs"])
                np.testing.assert_allclose(inputs["soft_labels"], expected, atol=1e-5)

    @pytest.mark.parametrize(
        "form, text",
        [
            ({"dtype": "float16"}, r"another dtype \(dtype=float16, stored float32\)"),
            ({"top_k": 2}, r"another top_k \(top_k=2, stored None\)"),
        ],
    )
    def test_another_form_is_another_store(self, form, text, plain, teacher):
        with pytest.raises(ValueError, match=text):
            SoftLabels.build(teacher, X, plain.path, **form)

    def test_a_form_that_leaves_no_rest(self, teacher, tmp_path):
        with pytest.raises(ValueError, match="below the number of classes.*top_k=3"):
            SoftLabels.build(teacher, X, tmp_path, top_k=3)
        SoftLabels.build(teacher, X, tmp_path, top_k=2)  # nothing was lost
        with pytest.raises(ValueError, match="share one mass.*outputs='sigmoid'"):
            SoftLabels.build(linear("sigmoid"), X, tmp_path / "b", top_k=2)


class TestShards:
    """What the files go through is in test_label_shards.py."""

    @pytest.mark.parametrize(
        "form, augment, views", [(batches, None, 1), (np.asarray, shift, VIEWS)]
    )
    def test_together_they_are_the_whole(
        self, form, augment, views, teacher, plain, viewed, tmp_path
    ):
        whole, last = viewed if augment else plain, views - 1
        for i in (2, 3, 1):
            shard = SoftLabels.build(
                teacher, form(X), tmp_path, augment, views, shard=(i, 3)
            )
            assert len(shard) == len(range(i - 1, N, 3))
            ours, theirs = shard.logits(last), whole.logits(last)[i - 1 :: 3]
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        with pytest.raises(ValueError, match="merged before they are used.*3 shards"):
            SoftLabels.load(tmp_path)
        soft = SoftLabels.merge(tmp_path)
        for view in range(views):
            ours, theirs = soft.logits(view), whole.logits(view)
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert len(list(soft.attach(form(X), 10, augment=augment))) == 5
        SoftLabels.build(teacher, X, tmp_path, augment, views)  # it is all there

    @pytest.mark.parametrize("form", [lambda x: x, batches])
    def test_a_shard_goes_on_and_knows_its_samples(
        self, form, teacher, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(label_store, "_SECONDS_BETWEEN_COMMITS", 0.0)
        append, sizes = LabelWriter.append, []

        def interrupted(writer, logits, prints):
            if len(sizes) == 2:
                sizes.append(0)
                raise OSError("no space left")
            sizes.append(len(logits))
            append(writer, logits, prints)

        monkeypatch.setattr(LabelWriter, "append", interrupted)
        arguments = {"batch_size": 5, "shard": (2, 2)}
        with pytest.raises(OSError, match="no space"):
            SoftLabels.build(teacher, form(X), tmp_path, **arguments)
        changed = X.copy()
        changed[6] += 1  # not of this shard
        changed[9] += 1
        with pytest.raises(ValueError, match="another sample 9 than before"):
            SoftLabels.build(teacher, form(changed), tmp_path, **arguments)
        soft = SoftLabels.build(teacher, form(X), tmp_path, **arguments)
        assert sizes == [5, 5, 0, 5, 5, 5] and len(soft) == 25
        with pytest.raises(ValueError, match="samples that are others, the first at 9"):
            SoftLabels.build(teacher, form(changed), tmp_path, **arguments)

    def test_a_shard_is_not_attached(self, teacher, tmp_path):
        shard = SoftLabels.build(teacher, X, tmp_path, shard=(1, 2))
        with pytest.raises(ValueError, match="those of shard 1 of 2. Fix: Soft"):
            shard.attach((X, Y))

    def test_more_shards_than_samples(self, teacher, tmp_path):
        for i in (1, 2, 3):
            shard = SoftLabels.build(teacher, X[:2], tmp_path, shard=(i, 3))
        assert len(shard) == 0 and "0 samples" in str(shard)
        assert len(SoftLabels.merge(tmp_path)) == 2

    @pytest.mark.parametrize(
        "shard, error",
        [
            ((0, 4), ValueError),
            ((5, 4), ValueError),
            (3, TypeError),
            ("1/4", TypeError),
        ],
    )
    def test_shards_that_are_none(self, shard, error, teacher, tmp_path):
        with pytest.raises(error, match="`shard` must be.*Received: shard="):
            SoftLabels.build(teacher, X, tmp_path / "a", shard=shard)


FORMS = {
    "arrays": (X, Y),
    "batched": batches(X, Y),
    "unbatched": batches(X, Y).unbatch(),
    "PyDataset": Batches(),
}


class TestAlignment:
    @pytest.mark.parametrize("form", FORMS)
    def test_each_epoch(self, form, plain, oracle):
        train, orders = plain.attach(FORMS[form], batch_size=7, seed=3), set()
        for _ in range(3):
            x = check_aligned(train, oracle)
            assert x.shape == X.shape and x.dtype == X.dtype
            orders.add(x.tobytes())
            np.testing.assert_array_equal(np.sort(x, 0), np.sort(X, 0))
        assert len(orders) == 3 and X.tobytes() not in orders

    @pytest.mark.parametrize("form", ["arrays", "batched"])
    def test_labels_go_with_their_samples(self, form, plain):
        of = {x.tobytes(): y for x, y in zip(X, Y, strict=True)}
        for _ in range(2):
            for inputs, y in plain.attach(FORMS[form]).as_numpy_iterator():
                assert [of[x.tobytes()] for x in inputs["inputs"]] == y.tolist()

    @pytest.mark.parametrize("form", ["arrays", "batched"])
    def test_views_of_each_epoch(self, form, viewed, oracle):
        train = viewed.attach(FORMS[form], 7, seed=1, augment=shift, shuffle=False)
        seen = np.stack([check_aligned(train, oracle) for _ in range(VIEWS + 1)])
        for sample in range(N):
            logits = np.sort([viewed.logits(v)[sample] for v in range(VIEWS)], 0)
            np.testing.assert_allclose(
                np.sort(oracle(seen[:VIEWS, sample]), 0), logits, atol=1e-5
            )
        np.testing.assert_array_equal(seen[0], seen[VIEWS])  # and from the first again
        check_aligned(viewed.attach(FORMS[form], 7, seed=1, augment=shift), oracle)

    @pytest.mark.parametrize("form", ["arrays", "batched"])
    def test_repeat(self, form, viewed, oracle):
        train = viewed.attach(FORMS[form], 8, augment=shift).repeat(2)
        assert len(check_aligned(train, oracle)) == 2 * N

    @pytest.mark.parametrize("form", ["arrays", "batched"])
    def test_it_is_deterministic(self, form, viewed):
        def epochs(count, **arguments):
            tf.random.set_seed(arguments.pop("global_seed", 0))
            train = viewed.attach(FORMS[form], 8, augment=shift, **arguments)
            return [
                [(x["inputs"].tobytes(), y.tolist()) for x, y in epoch]
                for epoch in (list(train.as_numpy_iterator()) for _ in range(count))
            ]

        first = epochs(3, seed=4)
        assert epochs(2, seed=4, global_seed=77) == first[:2]
        assert epochs(2, seed=4, initial_epoch=1) == first[1:]
        assert epochs(1, seed=5) != first[:1]


class TestAttach:
    def test_a_planted_misalignment_is_found(self, plain, oracle, monkeypatch):
        """The check above does see logits that are shifted by one sample."""
        rows = SoftLabels._rows
        monkeypatch.setattr(
            SoftLabels, "_rows", lambda self, i, v: rows(self, (i + 1) % N, v)
        )
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            check_aligned(plain.attach((X, Y)), oracle)

    def test_a_planted_wrong_view_is_found(self, viewed, oracle, monkeypatch):
        rows = SoftLabels._rows
        monkeypatch.setattr(
            SoftLabels, "_rows", lambda self, i, v: rows(self, i, (v + 1) % VIEWS)
        )
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            check_aligned(viewed.attach((X, Y), augment=shift), oracle)

    @pytest.mark.parametrize(
        "parts, form, augmented",
        [
            ((X,), None, False),
            ((X, Y), batches, False),
            ((X, Y, W), None, True),
        ],
    )
    def test_elements(self, parts, form, augmented, plain, viewed):
        soft = viewed if augmented else plain
        augment = shift if augmented else None
        data = form(*parts) if form else parts
        train = soft.attach(data, 8, augment=augment, drop_remainder=True)
        inputs, *others = train.element_spec
        assert inputs == {
            "inputs": tf.TensorSpec((8, SIDE, SIDE, 1), tf.uint8),
            "soft_labels": tf.TensorSpec((8, CLASSES), tf.float32),
        }
        assert [spec.shape for spec in others] == [(8,)] * (len(parts) - 1)
        batch = next(iter(train))
        assert isinstance(batch, tuple) and len(batch) == len(parts)

    @pytest.mark.parametrize(
        "dataset, given, expected, drop",
        [
            ((X, Y), None, 32, True),
            ((X, Y), 7, 7, False),
            ((X, Y), 5, 5, True),
            (batches(X), None, 8, False),
            (batches(X).unbatch(), None, 32, True),
            (Batches(), None, 7, False),
        ],
    )
    def test_batch_size_and_remainder(self, dataset, given, expected, drop, plain):
        train = plain.attach(dataset, given, drop_remainder=drop)
        sizes = [len(batch[0]["inputs"]) for batch in train.as_numpy_iterator()]
        full, rest = divmod(N, expected)
        assert sizes == [expected] * full + ([rest] if rest and not drop else [])
        assert int(train.cardinality()) == len(sizes)

    def test_other_labels_are_free(self, plain):
        unknown = np.full(N, -1)
        labels = [y for _, y in plain.attach((X, unknown)).as_numpy_iterator()]
        assert (np.concatenate(labels) == -1).all()

    @pytest.mark.parametrize(
        "x, text",
        [
            (X[:40], "Received: 40 samples, labelled 50. Fix: give the same samples"),
            (X[::-1], "the same samples in another order.*leave shuffling"),
            (np.concatenate([X[:-1], X[:1]]), "1 of 50 samples that are others"),
            (X.astype("float32"), r"samples of float32 \(4, 4, 1\), labelled uint8"),
        ],
    )
    @pytest.mark.parametrize("form", [lambda x: (x, np.zeros(len(x))), batches])
    def test_another_data_set(self, x, text, form, plain):
        with pytest.raises(ValueError, match=f"the one that was labelled.*{text}"):
            plain.attach(form(x))

    def test_a_pipeline_that_shuffles_each_pass(self, plain):
        shuffled = batches(X, Y).unbatch().shuffle(N)
        with pytest.raises(ValueError, match="another order.*reshuffle_each_iteration"):
            plain.attach(shuffled)

    def test_a_pipeline_that_augments(self, plain):
        augmented = batches(X, Y).map(
            lambda x, y: (tf.image.random_brightness(x, 9), y)
        )
        with pytest.raises(ValueError, match="samples that are others"):
            plain.attach(augmented)

    def test_a_pipeline_that_changes_later_stops_the_training(self, plain):
        passes = iter(range(9))  # opened, compared, begun again, then trained on
        changing = tf.data.Dataset.range(1).flat_map(
            lambda _: tf.data.Dataset.from_tensor_slices(
                tf.roll(
                    X, tf.numpy_function(lambda: next(passes) // 4, [], tf.int64), 0
                )
            )
        )
        train = plain.attach(changing)
        assert len(list(train)) == 2
        with pytest.raises(tf.errors.InvalidArgumentError, match="another sample 0"):
            list(train)

    @pytest.mark.parametrize(
        "augment, text",
        [
            (None, "augment=None, for labels of augmented views"),
            (other_shift, "an augment that makes other views of the first samples"),
        ],
    )
    def test_another_augment(self, augment, text, viewed):
        with pytest.raises(ValueError, match=f"must be the one.*: {text}. Fix"):
            viewed.attach((X, Y), augment=augment)

    def test_an_augment_for_plain_samples(self, plain):
        with pytest.raises(ValueError, match="an augment, for labels of the plain"):
            plain.attach((X, Y), augment=shift)

    @pytest.mark.parametrize(
        "arguments, error, text",
        [
            ({"batch_size": 0}, ValueError, "`batch_size` must be a whole number"),
            ({"batch_size": 2.5}, ValueError, "`batch_size` must be a whole number"),
            ({"seed": -1}, ValueError, "`seed` must be .*Received: seed=-1"),
            ({"initial_epoch": True}, ValueError, "`initial_epoch` must be a whole n"),
            ({"augment": 3}, TypeError, "`augment` must be a function.*augment=3"),
            (
                {"batch_size": 64, "drop_remainder": True},
                ValueError,
                "must be a full batch if the rest is left out. Received: batch_size=64",
            ),
        ],
    )
    def test_arguments(self, arguments, error, text, plain):
        with pytest.raises(error, match=text):
            plain.attach((X, Y), **arguments)

    def test_the_buffer_holds_so_many_bytes(self, plain, monkeypatch):
        sizes = []
        shuffle = tf.data.Dataset.shuffle

        def spied(self, buffer_size, *args, **kwargs):
            sizes.append(buffer_size)
            return shuffle(self, buffer_size, *args, **kwargs)

        room = 10 * (SIDE * SIDE + training_batches._TENSOR_BYTES)
        monkeypatch.setattr(tf.data.Dataset, "shuffle", spied)
        plain.attach(batches(X))
        monkeypatch.setattr(training_batches, "_SHUFFLE_BUFFER_BYTES", room)
        monkeypatch.setattr(training_batches, "_SHUFFLE_BUFFER_SAMPLES", 2)
        plain.attach(batches(X))
        assert sizes == [N, 10]


class TestArguments:
    @pytest.mark.parametrize(
        "arguments, error, text",
        [
            (
                {"views": 2},
                ValueError,
                "differ by augmentation. Received: views=2, aug",
            ),
            ({"views": 0}, ValueError, "`views` must be .*Received: views=0"),
            ({"batch_size": "8"}, ValueError, "`batch_size` must be a whole number"),
            ({"seed": 2**63}, ValueError, "whole number from 0 on, below 2..63. Rec"),
            (
                {"augment": "flip"},
                TypeError,
                "`augment` must be a function of a sample",
            ),
            ({"verbose": "yes"}, ValueError, "`verbose` must be 'auto', 0, 1 or 2"),
            ({"augment": lambda x, s: x[1:]}, ValueError, "must keep the shape"),
            (
                {"augment": lambda x, s: x / 2},
                ValueError,
                "structure and type",
            ),
        ],
    )
    def test_refused_before_anything_is_written(
        self, arguments, error, text, teacher, tmp_path
    ):
        with pytest.raises(error, match=text):
            SoftLabels.build(teacher, X, tmp_path / "labels", **arguments)
        assert not (tmp_path / "labels").exists()

    def test_a_folder_of_something_else(self, teacher, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(FileExistsError, match="in a folder of their own"):
            SoftLabels.build(teacher, X, tmp_path, overwrite=True)

    def test_a_teacher_that_is_none(self, tmp_path):
        with pytest.raises(TypeError, match="`teacher` must be a keras.Model"):
            SoftLabels.build("teacher", X, tmp_path)
        unbuilt = keras.Sequential([layers.Dense(3)])
        with pytest.raises(ValueError, match="must be built"):
            SoftLabels.build(unbuilt, X, tmp_path)

    @pytest.mark.parametrize("form", ["arrays", "stream"])
    def test_samples_that_are_not_finite(self, tmp_path, form):
        # A ReLU makes a number of NaN: the logits do not show it.
        deaf = keras.Sequential([keras.Input((2,)), layers.ReLU(), layers.Dense(3)])
        x = np.ones((9, 2), "float32")
        x[7, 1] = np.nan
        data = x if form == "arrays" else tf.data.Dataset.from_tensor_slices(x).batch(4)
        with pytest.raises(ValueError, match="finite. Received: NaN .* in sample 7. F"):
            SoftLabels.build(deaf, data, tmp_path)
        # Nothing was labelled yet: the same place takes the data mended.
        assert len(SoftLabels.build(deaf, np.nan_to_num(x), tmp_path)) == 9

    def test_logits_that_are_none(self, tmp_path, teacher):
        broken = linear()
        broken.layers[-1].bias.assign([0.0, np.nan, 0.0])
        with pytest.raises(ValueError, match="must be finite. Received: NaN or inf"):
            SoftLabels.build(broken, X, tmp_path)
        single = keras.Sequential(
            [keras.Input((SIDE, SIDE, 1)), layers.Flatten(), layers.Dense(1)]
        )
        # Nothing was labelled yet, so another teacher may take the place.
        with pytest.raises(ValueError, match=r"over two classes or more.*\(50, 1\)"):
            SoftLabels.build(single, X, tmp_path)
        SoftLabels.build(teacher, X, tmp_path)


def student():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(2, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def distiller(teacher=None, run_eagerly=True, accumulation=None, **options):
    # A few steps are sooner taken than traced.
    model = Distiller(student(), teacher)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(
        0.1, momentum=0.9, gradient_accumulation_steps=accumulation
    )
    options = {"jit_compile": False, "run_eagerly": run_eagerly, **options}
    model.compile(optimizer, loss, **options)
    return model


class TestTraining:
    @pytest.mark.parametrize(
        "parts, accumulation, eager", [((X,), None, True), ((X, Y, W), 3, False)]
    )
    def test_it_equals_training_with_the_teacher(
        self, parts, accumulation, eager, plain, teacher
    ):
        online = distiller(teacher, accumulation=accumulation)
        stored = distiller(run_eagerly=eager, accumulation=accumulation)
        online.fit(batches(parts, size=17), epochs=2, **FIT)
        stored.fit(plain.attach(parts, 17, shuffle=False), epochs=2, **FIT)
        check_equal(online, stored)

    def test_each_epoch_of_fit_is_an_epoch(self, viewed):
        """Keras opens iterators that it does not read; they must not count."""

        def attached():
            return viewed.attach((X, Y), 17, seed=2, augment=shift)

        by_hand, train = distiller(), attached()
        for _ in range(3):
            for x, y in train:
                by_hand.train_on_batch(x, y)
        for options in ({}, {"run_eagerly": False, "steps_per_execution": 2}):
            train = attached()
            fitted = distiller(**options)
            fitted.fit(train, epochs=3, **FIT)
            check_equal(fitted, by_hand)

    def test_going_on_at_an_epoch(self, viewed, tmp_path):
        def run(model, epochs, initial_epoch=0):
            train = viewed.attach(
                (X, Y), 25, augment=shift, initial_epoch=initial_epoch
            )
            model.fit(train, epochs=epochs, initial_epoch=initial_epoch, **FIT)
            return model

        whole = run(distiller(), 3)
        run(distiller(), 1).save(tmp_path / "part.keras")
        check_equal(whole, run(keras.models.load_model(tmp_path / "part.keras"), 3, 1))

    @pytest.mark.parametrize(
        ("units", "activation", "needs", "loss"),
        [
            (CLASSES, "sigmoid", None, MultiLabelSoftTargets(2.0)),
            (1, "sigmoid", None, MultiLabelSoftTargets(2.0)),
            (1, None, "independent logits", MultiLabelSoftTargets(2.0)),
            (1, None, "values", Regression(bounded=False)),
            (2, "sigmoid", "values", Regression(bounded=False)),
        ],
    )
    def test_other_heads_than_classes_are_stored_too(
        self, tmp_path, units, activation, needs, loss
    ):
        def head():
            return keras.Sequential(
                [
                    keras.Input((SIDE, SIDE, 1)),
                    layers.Rescaling(1 / 255),
                    layers.Flatten(),
                    layers.Dense(units, activation=activation),
                ]
            )

        taught, teaching = head(), head()
        read = teaching if needs is None else LogitsModel(teaching, needs=needs)
        soft = SoftLabels.build(read, X, tmp_path, verbose=0)
        logs = []
        for source, data in (
            (teaching, tf.data.Dataset.from_tensor_slices((X,)).batch(N)),
            (None, soft.attach(X, N, shuffle=False)),
        ):
            model = Distiller(taught, source, loss)
            model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
            logs.append(model.fit(data, **FIT).history["soft_loss"][0])
        assert logs[0] == pytest.approx(logs[1], rel=1e-5) and logs[0] > 0.0


FIT = {"shuffle": False, "verbose": 0}


def check_equal(one, other):
    for a, b in zip(one.student.weights, other.student.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)
