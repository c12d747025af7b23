from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kdlite.gates import Gates


def report(teacher: float, float32: float, int8: float, **teacher_costs: float) -> dict:
    return {
        "teacher": {"top1": teacher, **teacher_costs},
        "tflite": {
            "float32": {"top1": float32},
            "int8": {"top1": int8, "bytes": 100, "latency_ms": 0.5},
        },
    }


def test_each_gate_is_held_against_its_own_figure() -> None:
    gates = Gates(
        teacher_drop_points=1.0,
        quantization_drop_points=0.3,
        size_ratio=50,
        speed_ratio=10,
    ).judge(report(0.94, 0.935, 0.931, bytes=5100, latency_ms=4.0))
    assert [gate.name for gate in gates] == [
        "teacher_drop_points",
        "quantization_drop_points",
        "size_ratio",
        "speed_ratio",
    ]
    assert [gate.measured for gate in gates] == pytest.approx([0.9, 0.4, 51, 8])
    assert [gate.passed for gate in gates] == [True, False, True, False]
    assert str(gates[1]) == "quantization drop points at most 0.3: 0.40, MISSED"
    assert str(gates[2]) == "size ratio at least 50: 51.00, kept"


def test_a_speed_that_a_busy_computer_gave_says_so() -> None:
    found = report(0.94, 0.935, 0.931, bytes=5100, latency_ms=8.0)
    found["tflite"]["int8"]["busy"] = True
    size, speed = Gates(
        quantization_drop_points=None, size_ratio=50, speed_ratio=10
    ).judge(found)
    assert str(size) == "size ratio at least 50: 51.00, kept"
    assert str(speed) == "speed ratio at least 10: 16.00 on a busy computer, kept"


def test_what_was_not_measured_is_missed_not_kept() -> None:
    (gate,) = Gates(quantization_drop_points=None, size_ratio=10).judge(
        report(0.9, 0.9, 0.9)
    )
    assert gate.measured is None
    assert not gate.passed
    assert "not measured, MISSED" in str(gate)


def test_a_gain_keeps_every_drop_gate() -> None:
    (gate,) = Gates(quantization_drop_points=0.0).judge(report(0.9, 0.9, 0.91))
    assert gate.passed


def test_limit_itself_is_kept_despite_rounding() -> None:
    # 100 * (0.9 - 0.897) is 0.30000000000000027 in floats.
    (gate,) = Gates(quantization_drop_points=0.3).judge(report(0.9, 0.9, 0.897))
    assert gate.passed


@pytest.mark.parametrize(
    ("limit", "plain"), [(np.int64(7), 7), (np.float32(0.5), 0.5), (7, 7), (0.5, 0.5)]
)
def test_limits_are_numbers_that_json_takes(limit, plain) -> None:
    gates = Gates(max_bytes=limit).with_size(limit, limit)
    told = [gate.required for gate in gates.judge(report(0.9, 0.9, 0.9))]
    assert json.loads(json.dumps(told)) == [1.0, plain, plain]
    assert type(gates.max_bytes) is type(plain)


def test_a_limit_of_nothing_is_one() -> None:
    assert Gates(size_ratio=0, max_bytes=0).with_size(10, 20) == Gates(
        size_ratio=0, max_bytes=0
    )


@pytest.mark.parametrize("limit", [math.nan, math.inf, "9000", True])
def test_a_limit_must_be_finite(limit) -> None:
    with pytest.raises(ValueError, match="must be a finite number.*size_ratio="):
        Gates(size_ratio=limit)


def test_sizes_are_gates() -> None:
    gates = Gates(quantization_drop_points=None, speed_ratio=2).with_size(4, 90)
    found = gates.judge(report(0.9, 0.9, 0.9, bytes=500, latency_ms=2.0))
    assert [gate.name for gate in found] == ["size_ratio", "speed_ratio", "max_bytes"]
    assert [gate.passed for gate in found] == [True, True, False]
    assert str(found[2]) == "max bytes at most 90: 100.00, MISSED"
    # What was asked already stays.
    assert Gates(size_ratio=50).with_size(10, None) == Gates(size_ratio=50)
