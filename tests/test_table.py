from __future__ import annotations

import copy

import pytest

from kdlite.reporting.page import times
from kdlite.reporting.table import table


@pytest.fixture(scope="module")
def figures() -> dict:
    costs = {"params": 40_000, "macs": 1_400_000}
    return {
        "teacher": {
            "top1": 0.943,
            "params": 1_158_378,
            "macs": 41_500_000,
            "bytes": 4_640_000,
            "latency_ms": 2.0,
        },
        "baseline": {"top1": 0.91, "top1_sd": 0.001, "agreement": 0.93, **costs},
        "student": {"top1": 0.92, "top1_sd": 0.002, "agreement": 0.95, **costs},
        "tflite": {
            kind: {
                "top1": top1,
                "top1_sd": 0.002,
                "agreement": 0.95,
                **costs,
                "bytes": size,
                "latency_ms": ms,
            }
            for kind, top1, size, ms in (
                ("float32", 0.92, 170_000, 0.2),
                ("int8", 0.919, 64_000, 0.05),
            )
        },
        "seeds": [{"seed": 0}, {"seed": 1}],
        "settings": {
            "epochs": 2,
            "measured_on": "test",
            "samples": {"train": 600, "test": 90},
        },
        "labels": ["<b>coat", "bag", "shirt"],
        "gates": [
            {"name": "size_ratio", "required": 50, "measured": 72.5, "passed": True},
            {"name": "speed_ratio", "required": 90, "measured": None, "passed": False},
        ],
    }


def test_table_says_what_was_gained_and_lost(figures) -> None:
    text = table(figures)
    lines = text.splitlines()
    assert lines[1].split()[:3] == ["teacher,", "float32", "94.30"]
    assert "91.90 ±0.20" in text
    assert "4,640,000" in text and "1.40 M" in text
    # 4,640,000 / 64,000, 2.0 / 0.05, 94.3 - 91.9 and 92.0 - 91.0.
    assert "72 times smaller and 40 times faster" in text
    assert "2.40 points below it in the mean of 2 seeds" in text
    alone = table({**figures, "seeds": [{"seed": 0}]})
    assert "2.40 points below it\n" in alone
    assert "+1.00 points over the same student" in text
    assert "2 seeds" in text and "measured on 90 test samples" in text
    # All rows of the table proper are aligned.
    assert len({len(line) for line in lines[1:2]}) == 1


@pytest.mark.parametrize(
    "ratio, word, text",
    [
        (66.5, "small", "66 times smaller"),
        (1.36, "fast", "1.4 times faster"),
        (0.8, "fast", "1.2 times slower"),
        (0.5, "small", "2.0 times larger"),
    ],
)
def test_ratios_are_said_as_they_are(ratio, word, text) -> None:
    assert times(ratio, word) == text


def test_speed_on_a_busy_computer_says_so(figures) -> None:
    busy = copy.deepcopy(figures)
    busy["tflite"]["int8"]["busy"] = True
    words = "LiteRT on this computer, which was busy; a phone differs"
    assert words in table(busy) and "busy" not in table(figures)


def test_table_without_baseline_and_teacher_file(figures) -> None:
    bare = copy.deepcopy(figures)
    bare["baseline"] = None
    bare["seeds"] = [{"seed": 0}]
    for key in ("bytes", "latency_ms", "macs"):
        del bare["teacher"][key]
    text = table(bare)
    assert "without teacher" not in text
    assert "times smaller" not in text
    assert "±" not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "on 1 test sample, where one is 100 points: too few to tell by"),
        (90, "on 90 test samples, where one is 1.11 points: too few to tell by"),
        (100, "on 100 test samples"),
    ],
)
def test_what_was_measured_on_too_few_says_so(figures, count, text) -> None:
    few = copy.deepcopy(figures)
    few["settings"]["samples"]["test"] = count
    assert table(few).endswith(f"measured {text}")
