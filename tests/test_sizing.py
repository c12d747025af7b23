"""Students of a wanted size, as their exported files are."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kdlite import sizing
from kdlite.compress.widths import narrowed
from kdlite.lite.convert import export
from kdlite.lite.metadata import read_metadata
from kdlite.lite.tflite_reader import inspect
from kdlite.sizing import Candidate, Candidates, Limits, shrink, shrink_candidates

DOCS = Path(__file__).parent.parent / "docs" / "compression.md"


def teacher():
    """A convolutional net on raw pixels, with a softmax."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    for k, filters in enumerate((32, 64, 128)):
        x = layers.Conv2D(filters, 3, strides=2, use_bias=False, name=f"conv{k}")(x)
        x = layers.BatchNormalization(name=f"norm{k}")(x)
        x = layers.ReLU(name=f"relu{k}")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="classes")(x))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the example in the documentation makes."""
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (example,) = (text for text in examples if "kdlite.shrink" in text)
    folder = tmp_path_factory.mktemp("docs")
    names: dict = {}
    with contextlib.chdir(folder):
        exec(compile(example, DOCS.name, "exec"), names)
    assert names["student"].count_params() == names["candidates"].best.params
    return names["candidates"]


def test_each_candidate_keeps_the_limit_and_comes_close(found) -> None:
    assert found.limits.max_bytes == found.teacher_bytes // 12
    assert [row.separable for row in found.rows] == [False, True]
    for row in found.rows:
        assert row.fits
        assert row.size_bytes <= found.limits.max_bytes
        # A width in steps of 8 channels; a separable one has no more to give.
        assert row.size_bytes > 0.75 * found.limits.max_bytes or row.width == 1.0


def test_the_students_own_file_is_what_was_measured(found, tmp_path) -> None:
    row = found.best
    student = row.build()
    assert student.count_params() == row.params
    path = tmp_path / "student.tflite"
    shape = (100, *student.input_shape[1:])
    x = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    export(student, path, "int8", calibration_data=x, min_runtime="2.17.0")
    # The other way to int8: some bytes of quantization parameters apart.
    assert path.stat().st_size == pytest.approx(row.size_bytes, rel=0.05)
    assert inspect(path).macs == row.macs
    assert inspect(path).quantization == "int8"


def test_the_table_has_every_candidate(found) -> None:
    lines = str(found).splitlines()
    assert len(lines) == 3 + len(found.rows)
    assert f"{found.rows[1].size_bytes:,}" in lines[3]
    told = json.loads(json.dumps(found.to_dict()))
    assert told["limits"]["max_bytes"] == found.limits.max_bytes
    assert [row["macs"] for row in told["rows"]] == [row.macs for row in found.rows]


def dense_teacher():
    return keras.Sequential(
        [keras.Input((20,)), layers.Dense(96, "relu"), layers.Dense(4, name="y")]
    )


def test_multiply_accumulates_and_float_files(caplog) -> None:
    with caplog.at_level(logging.INFO, "kdlite"):
        student = shrink(dense_teacher(), max_macs=1_000, quantization="float32")
    # 40 units: 20 x 40 + 40 x 4.
    assert student.layers[1].units == 40
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if text.startswith("at most 1,000 MACs")]) == 1


class Pretended:
    """Costs that are a function of the width, and not what was expected."""

    def __init__(self, monkeypatch) -> None:
        self.exports = self.params = 0
        monkeypatch.setattr(sizing, "_export", self.export)
        monkeypatch.setattr(sizing, "_CLOSE", 1.0)
        monkeypatch.setattr(sizing, "_ROOM", 0)
        monkeypatch.setattr(sizing, "inspect", lambda _: self)
        monkeypatch.setattr(sizing, "measure_latency", lambda *_, **__: (self,))

    def export(self, model, path, quantization, labels) -> None:
        self.params = model.count_params()
        self.exports += 1
        path.write_bytes(b"0" * (300 + 2 * self.params))

    @property
    def macs(self) -> int:
        return 3 * self.params

    @property
    def min_ms(self) -> float:
        return 1 + self.params / 1e3


def test_a_limit_that_no_width_keeps(monkeypatch) -> None:
    pretended = Pretended(monkeypatch)
    with pytest.raises(ValueError, match="at most 100 bytes, where the smallest has 5"):
        shrink(dense_teacher(), max_bytes=100)
    # The teacher and the narrowest.
    assert pretended.exports == 2


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e9])
def test_a_ratio_that_no_width_keeps(monkeypatch, ratio) -> None:
    Pretended(monkeypatch)
    with pytest.raises(ValueError, match="at most [0-9]+ bytes, where the smallest"):
        shrink(dense_teacher(), ratio=ratio)


def test_the_search_ends_at_the_widest_whatever_is_limited(monkeypatch) -> None:
    pretended = Pretended(monkeypatch)
    model = dense_teacher()
    widths = {narrowed(96, k / 64) for k in range(1, 65)}
    sizes = [(20 + 1) * units + (units + 1) * 4 for units in widths]
    for limit, kept in (
        ({"max_bytes": 3_000}, lambda n: 300 + 2 * n <= 3_000),
        ({"max_macs": 4_000}, lambda n: 3 * n <= 4_000),
        ({"max_latency_ms": 2.4}, lambda n: 1 + n / 1e3 <= 2.4),
        ({"max_bytes": 3_000, "max_macs": 1_500}, lambda n: n <= 500),
        ({"max_bytes": 10**9}, lambda n: True),
    ):
        pretended.exports = 0
        assert shrink(model, **limit).count_params() == max(filter(kept, sizes))
        assert pretended.exports <= 6


def test_labels_are_in_the_measured_file(tmp_path) -> None:
    path = tmp_path / "m.tflite"
    sizing._export(dense_teacher(), path, "int8", list("abcd"))
    assert list(read_metadata(path).labels) == list("abcd")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "needs a limit. Received: none of `ratio`, `max_bytes`"),
        ({"ratio": 0}, "`ratio` must be a number above 0. Received: ratio=0"),
        ({"max_bytes": "500KB"}, "`max_bytes` must be a number.*'500KB'"),
        ({"max_latency_ms": float("nan")}, "`max_latency_ms` must be.*nan"),
        ({"ratio": 2, "quantization": "int3"}, "'int3'"),
        ({"ratio": 2, "depth": 0.5}, "`depth` needs blocks"),
    ],
)
def test_wrong_use_is_found_before_anything_is_exported(
    arguments, text, monkeypatch
) -> None:
    monkeypatch.delattr(sizing, "export")
    with pytest.raises(ValueError, match=text):
        shrink(teacher(), **arguments)


def test_at_least_one_kind() -> None:
    with pytest.raises(ValueError, match="`depths` and `separable` must each have"):
        shrink_candidates(teacher(), ratio=2, depths=())


def test_no_candidate_that_fits() -> None:
    row = Candidate(0.1, 1.0, False, 10, 20, 300, 0.1, False, None)
    with pytest.raises(ValueError, match="at most 5 MACs, 0.1 ms, where the smallest"):
        _ = Candidates(Limits(None, 5, 0.1), 1000, (row,)).best
    assert "beyond the limit" in str(Candidates(Limits(9), 1000, (row,)))
