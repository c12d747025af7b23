"""Files side by side: shapes and names of what is measured, never how long."""

from __future__ import annotations

import json
import sys

import keras
import pytest
from converting import converted
from keras import layers

from kdlite.lite.benchmark import benchmark
from kdlite.lite.runtime import Times


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, units in (("small", 4), ("large", 1000)):
        model = keras.Sequential([keras.Input((1000,)), layers.Dense(units)])
        (folder / f"{name}.tflite").write_bytes(converted(model))
    return [folder / "small.tflite", folder / "large.tflite"]


def test_what_is_measured(files) -> None:
    small, large = benchmark(files, runs=25, warmup=2).files
    assert (small.ratio, small.ratio_p10, small.ratio_p90) == (1.0, 1.0, 1.0)
    assert 0 < large.ratio_p10 <= large.ratio <= large.ratio_p90
    for times in (small, large):
        assert times.load_ms > 0 and times.first_ms > 0
        assert times.latency.runs == 25
        assert times.size_bytes == times.file.stat().st_size
    # Its weights are 4 MB, which are in memory when it has run.
    assert large.memory_bytes > small.memory_bytes + 2_000_000


def test_it_prints_and_is_plain_json(files) -> None:
    report = benchmark(files, runs=10, warmup=0)
    text = str(report)
    assert "large.tflite takes " in text and "in eight of ten turns" in text
    assert text.endswith("a phone differs.")
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain[str(files[1])]["ratio"] == report.files[1].ratio
    assert plain[str(files[0])]["p90_ms"] > 0


@pytest.mark.parametrize("processor", [1.0, 0.25])
def test_runs_that_were_held_up_do_not_count_and_are_told(
    files, monkeypatch, processor
) -> None:
    # Most runs of the second file meet another program, which holds them up.
    def timed(models, runs, warmup):
        slow = [[40.0, 2.0, 41.0, 39.0], [2.0, 44.0, 38.0, 45.0]]
        return Times([[[1.0] * 4] * 2, slow][: len(models)], processor)

    module = sys.modules["kdlite.lite.benchmark"]
    monkeypatch.setattr(
        module,
        "times_ms",
        lambda models, runs, warmup: (
            Times([[[1.0]]], 1.0) if runs == 1 else timed(models, runs, warmup)
        ),
    )
    report = benchmark(files, runs=8)
    assert report.files[1].ratio == 2.0
    assert report.files[1].latency.p50_ms > 38
    assert ("The computer was busy: these runs had 25 %" in str(report)) == (
        processor == 0.25
    )


def test_wrong_use(files, tmp_path) -> None:
    with pytest.raises(ValueError, match="`files` must have a file.*none"):
        benchmark([])
    with pytest.raises(TypeError, match="`files` must be a list"):
        benchmark(files[0])
    with pytest.raises(ValueError, match="`runs` must be a whole number from 1 on"):
        benchmark(files, runs=0)
    with pytest.raises(FileNotFoundError, match="nowhere.tflite"):
        benchmark([tmp_path / "nowhere.tflite"])
