from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.distill.replay import ReplayBuffer, probabilities


def pool(counts: list[int], seed: int = 0):
    """Samples of so many a class, and logits that name it with a random margin."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    logits = rng.random((len(y), len(counts))).astype("float32") * 0.1
    logits[np.arange(len(y)), y] += rng.random(len(y)) * 5
    return np.arange(len(y), dtype="float32")[:, None], y, logits


def test_classes_are_balanced_as_far_as_there_are_samples() -> None:
    x, y, logits = pool([50, 3, 40, 20])
    for size, expected in (
        (40, [13, 3, 12, 12]),
        (8, [2, 2, 2, 2]),
        (500, [50, 3, 40, 20]),
    ):
        buffer = ReplayBuffer.build(logits, (x, y), size)
        counts = np.bincount(buffer.y, minlength=4)
        assert len(buffer) == min(size, len(x)) == counts.sum()
        assert sorted(counts) == sorted(expected)
        # Each with what belongs to it.
        places = buffer.x[:, 0].astype(int)
        assert len(set(places)) == len(places)
        np.testing.assert_array_equal(buffer.y, y[places])
        np.testing.assert_array_equal(buffer.logits, logits[places])


def test_doubtful_samples_are_those_with_the_smallest_margin() -> None:
    x, y, logits = pool([60, 60])
    buffer = ReplayBuffer.build(logits, (x, y), 20, uncertain=1.0)
    top = np.sort(probabilities(logits), axis=-1)
    margin = top[:, -1] - top[:, -2]
    for c in range(2):
        expected = np.flatnonzero(y == c)[np.argsort(margin[y == c])[:10]]
        chosen = buffer.x[buffer.y == c, 0].astype(int)
        assert set(chosen) == set(expected)
    half = ReplayBuffer.build(logits, (x, y), 20, uncertain=0.5)
    doubtful = set(np.argsort(margin)[:20])
    assert 8 <= len(doubtful & set(half.x[:, 0].astype(int))) < 20


def test_seed_draws_the_rest() -> None:
    x, y, logits = pool([60, 60])

    def drawn(seed: int) -> list[float]:
        buffer = ReplayBuffer.build(logits, (x, y), 20, uncertain=0.0, seed=seed)
        return buffer.x[:, 0].tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_without_labels_the_first_choice_is_the_class() -> None:
    x, y, logits = pool([50, 10])
    buffer = ReplayBuffer.build(logits, x, 20)
    assert (buffer.y == -1).all()
    assert np.bincount(buffer.logits.argmax(-1)).tolist() == [10, 10]
    some = np.where(np.arange(len(y)) % 2, y, -1)
    partly = ReplayBuffer.build(logits, (x, some), 20)
    np.testing.assert_array_equal(partly.y, some[partly.x[:, 0].astype(int)])


def test_a_teacher_is_asked_for_its_logits() -> None:
    teacher = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(2, activation="softmax")]
    )
    x, y, _ = pool([20, 20])
    buffer = ReplayBuffer.build(teacher, (x, y), 10)
    dense = teacher.layers[-1]
    expected = buffer.x @ dense.kernel.numpy() + dense.bias.numpy()
    np.testing.assert_allclose(buffer.logits, expected, rtol=1e-5, atol=1e-5)


def test_it_says_how_much_it_holds() -> None:
    x, y, logits = pool([20, 20])
    y[:3] = -1
    buffer = ReplayBuffer.build(logits, (x, y), 40)
    told = (
        f"40 samples of {x.shape[1:]} {x.dtype}, 37 labelled, {logits.shape[1]} class"
    )
    assert told in repr(buffer) and told in str(buffer)
    held = buffer.x.nbytes + buffer.y.nbytes + buffer.logits.nbytes
    assert buffer.nbytes == held and f"{held / 1024:,.0f} KiB" in repr(buffer)


def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch) -> None:
    buffer = ReplayBuffer(
        np.zeros((2, 3), "float32"), np.arange(2), np.zeros((2, 2), "float32")
    )
    path = tmp_path / "replay.npz"
    link = tmp_path / "link.npz"
    buffer.save(path)
    link.symlink_to(path)
    buffer.save(link, overwrite=True)
    assert link.is_symlink() and not path.is_symlink()
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="must be possible to write.*Make room"):
        buffer.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.npz", "replay.npz"]
    with pytest.raises(ValueError, match="a folder"):
        buffer.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="The folder of `path` must exist"):
        buffer.save(tmp_path / "none" / "replay.npz")


def test_saved_and_loaded(tmp_path) -> None:
    x, y, logits = pool([20, 20])
    buffer = ReplayBuffer.build(logits, (x, y), 10)
    path = tmp_path / "replay.npz"
    buffer.save(path)
    again = ReplayBuffer.load(path)
    for name in ("x", "y", "logits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(buffer, name))
    assert [file.name for file in tmp_path.iterdir()] == ["replay.npz"]
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="must not exist.*overwrite=True"):
        ReplayBuffer.build(logits, (x, y), 4).save(path)
    assert path.read_bytes() == before
    ReplayBuffer.build(logits, (x, y), 4).save(path, overwrite=True)
    assert len(ReplayBuffer.load(path)) == 4
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="must be an .npz with x, y and logits"):
        ReplayBuffer.load(path)
    np.savez(path, x=x)
    with pytest.raises(ValueError, match="must be an .npz with x, y and logits"):
        ReplayBuffer.load(path)
    with pytest.raises(FileNotFoundError):
        ReplayBuffer.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"size": 0},
            ValueError,
            "`size` must be a whole number from 1 on. Received: size=0",
        ),
        ({"uncertain": 1.5}, ValueError, "must lie in 0..1. Received: uncertain=1.5"),
        ({"x": [1.0]}, TypeError, "chosen from arrays. Received: x of type list"),
        ({"y": np.zeros(3, int)}, ValueError, "one label a sample. Received: labels"),
        ({"y": np.full(40, 2)}, ValueError, "must lie in 0..1.*from 2 to 2"),
        ({"logits": np.zeros((3, 2))}, ValueError, "one row of logits for each sample"),
        ({"logits": np.full((40, 2), np.nan)}, ValueError, "must be finite. Received"),
    ],
)
def test_wrong_use_is_told(change, error, text) -> None:
    x, y, logits = pool([20, 20])
    given = {"x": x, "y": y, "logits": logits, "size": 10, "uncertain": 0.5, **change}
    with pytest.raises(error, match=text):
        ReplayBuffer.build(
            given["logits"],
            (given["x"], given["y"]),
            given["size"],
            uncertain=given["uncertain"],
        )


def test_of_no_samples_nothing_is_chosen() -> None:
    teacher = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"must be samples. Received:.*\(0, 1\). Fix"):
        ReplayBuffer.build(teacher, np.zeros((0, 1), "float32"))
    with pytest.raises(ValueError, match="must have samples. Received: none"):
        ReplayBuffer.build(np.zeros((0, 2)), np.zeros((0, 1), "float32"))


def test_arrays_must_belong_together() -> None:
    with pytest.raises(ValueError, match="of the same samples. Received: shapes"):
        ReplayBuffer(np.zeros((3, 1)), np.zeros(2, int), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="must have samples. Received: none"):
        ReplayBuffer(np.zeros((0, 1)), np.zeros(0, int), np.zeros((0, 2)))
