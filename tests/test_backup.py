"""Training goes on from whole files alone."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kdlite.backup import Backup

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True)
    return model


def trained(model: keras.Model, backup: Backup, epochs: int) -> list[np.ndarray]:
    model.fit(
        X,
        Y,
        epochs=epochs,
        initial_epoch=backup.restore(model),
        batch_size=8,
        shuffle=False,
        callbacks=[backup],
        verbose=0,
    )
    return model.get_weights()


def test_it_ends_where_training_without_a_stop_does(tmp_path) -> None:
    whole = trained(network(), Backup(tmp_path / "whole"), epochs=4)
    trained(network(), Backup(tmp_path / "backup"), epochs=2)
    again = Backup(tmp_path / "backup")
    assert again.epochs == 2
    model = network()
    for a, b in zip(trained(model, again, epochs=4), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations.numpy()) == 4 * 3
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["4.weights.h5"]
    again.remove()
    assert again.epochs == 0 and not (tmp_path / "backup").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError(28, "no space left")])
def test_what_stops_a_write_loses_one_epoch_and_no_more(
    tmp_path, monkeypatch, end
) -> None:
    backup = Backup(tmp_path / "backup")
    trained(network(), backup, epochs=1)

    def half_written(self, path, overwrite) -> None:
        path.write_bytes(b"half a fi")
        raise end

    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "save_weights", half_written)
        with pytest.raises(type(end) if isinstance(end, OSError) else end):
            trained(network(), backup, epochs=3)
    assert Backup(tmp_path / "backup").epochs == 1
    trained(network(), Backup(tmp_path / "backup"), epochs=2)
    assert backup.epochs == 2


def test_between_two_files_the_later_counts(tmp_path) -> None:
    backup = Backup(tmp_path)
    trained(network(), backup, epochs=10)
    (tmp_path / "9.weights.h5").write_bytes(b"of the epoch before, not yet removed")
    assert backup.epochs == 10
    assert backup.restore(network()) == 10
    trained(network(), backup, epochs=11)
    assert [path.name for path in tmp_path.iterdir()] == ["11.weights.h5"]
