from __future__ import annotations

import errno
import json
import os

import pytest

from kdlite import outcomes
from kdlite.reporting.energy import EnergyUse


def curve(path, rows) -> None:
    for epoch, loss in rows:
        # A new one each time, as after a stop.
        callback = outcomes.Curve(path)
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {"loss": loss})


def test_learning_curve_keeps_the_last_of_a_repeated_epoch(tmp_path) -> None:
    curve(tmp_path / "c.csv", ((0, 3.0), (1, 9.0), (1, 2.0)))
    assert outcomes.read_curve(tmp_path / "c.csv") == {"loss": [3.0, 2.0]}


@pytest.mark.parametrize("full_at", ["row", "energy"])
def test_a_full_disk_leaves_what_can_be_gone_on_with(
    tmp_path, monkeypatch, full_at
) -> None:
    curve(tmp_path / "student.csv", ((0, 3.0),))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            if full_at == "row":
                curve(tmp_path / "student.csv", ((1, 2.0),))
            else:
                outcomes.store_energy(tmp_path / "student", EnergyUse(3.0))
    assert [file.name for file in tmp_path.iterdir()] == ["student.csv"]
    curve(tmp_path / "student.csv", ((1, 1.0),))
    assert outcomes.read_curve(tmp_path / "student.csv") == {"loss": [3.0, 1.0]}
    assert outcomes._training(tmp_path, "student").kwh is None


def test_training_time_is_that_of_all_epochs(tmp_path) -> None:
    (tmp_path / "student.csv").write_text("epoch,seconds,loss\n0,2.5,1\n1,1.5,1\n")
    used = outcomes._training(tmp_path, "student")
    assert used == EnergyUse(4.0)
    assert outcomes._training(tmp_path, "baseline") is None
    # The int8 file took both trainings.
    (tmp_path / "student_qat.csv").write_text("epoch,seconds,loss\n0,1,1\n")
    assert outcomes._training(tmp_path, "int8") == EnergyUse(5.0)


def test_energy_is_kept_beside_the_curve(tmp_path) -> None:
    (tmp_path / "student.csv").write_text("epoch,seconds,loss\n0,2.5,1\n")
    used = EnergyUse(3.0, 0.5, 0.25, ("Estimated.",))
    outcomes.store_energy(tmp_path / "student", used)
    assert outcomes._training(tmp_path, "student") == used
    assert json.loads((tmp_path / "student.energy.json").read_text())["kwh"] == 0.5


def test_quantization_aware_epochs_follow_on_the_others(tmp_path) -> None:
    curve(tmp_path / "student.csv", ((0, 3.0), (1, 2.0)))
    curve(tmp_path / "student_qat.csv", ((0, 1.0),))
    history = outcomes._history(tmp_path)
    assert history["student"] == {"loss": [3.0, 2.0]}
    later = history["quantization-aware student"]["loss"]
    assert later == pytest.approx([float("nan")] * 2 + [1.0], nan_ok=True)
