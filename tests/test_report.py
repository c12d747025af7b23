from __future__ import annotations

import copy
from html.parser import HTMLParser

import numpy as np
import pytest

from kdlite import report

CURVE = {"loss": [2.0, 1.0], "accuracy": [0.5, 0.8], "val_accuracy": [0.6, 0.7]}


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
    text = report.table(figures)
    lines = text.splitlines()
    assert lines[1].split()[:3] == ["teacher,", "float32", "94.30"]
    assert "91.90 ±0.20" in text
    assert "4,640,000" in text and "1.40 M" in text
    # 4,640,000 / 64,000, 2.0 / 0.05, 94.3 - 91.9 and 92.0 - 91.0.
    assert "72 times smaller and 40 times faster" in text
    assert "2.40 points below it" in text
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
    assert report._times(ratio, word) == text


def test_table_without_baseline_and_teacher_file(figures) -> None:
    bare = copy.deepcopy(figures)
    bare["baseline"] = None
    bare["seeds"] = [{"seed": 0}]
    for key in ("bytes", "latency_ms", "macs"):
        del bare["teacher"][key]
    text = report.table(bare)
    assert "without teacher" not in text
    assert "times smaller" not in text
    assert "±" not in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings = 0

    def handle_starttag(self, tag, attrs) -> None:
        self.headings += tag == "h2"
        self.sources += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def page(figures, shape=(8, 8, 1), **changes) -> tuple[str, _Page]:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 90)
    teacher = rng.normal(size=(90, 3)) + 3 * np.eye(3)[y]
    student = teacher + rng.normal(size=(90, 3))
    given = {
        "x": rng.integers(0, 255, (90, *shape)).astype("uint8"),
        "y": y,
        "teacher": teacher,
        "student": student,
        "int8": student + rng.normal(scale=0.1, size=(90, 3)),
        "curves": {"student": CURVE, "baseline": CURVE, "student_qat": CURVE},
        **changes,
    }
    text = report.page(figures, **given)
    parsed = _Page()
    parsed.feed(text)
    assert parsed.open == []
    return text, parsed


def test_page_is_whole_and_fetches_nothing(figures) -> None:
    text, parsed = page(figures)
    assert parsed.headings == 7
    assert parsed.sources and all(s.startswith("data:") for s in parsed.sources)
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    # What users name is text, never markup.
    assert "<b>coat" not in text and "&lt;b&gt;coat" in text
    assert "not measured" in text and "missed" in text


def test_page_counts_what_int8_changed(figures) -> None:
    y = np.array([0, 1, 2] * 30)
    student = np.eye(3)[y] * 5.0
    int8 = student.copy()
    int8[:4] = np.roll(int8[:4], 1, axis=-1)
    text, _ = page(figures, y=y, student=student, int8=int8)
    assert "int8 changed 4 of 90 predictions: 4 that were right became wrong" in text


def test_page_without_curves_images_or_differences(figures) -> None:
    same = np.eye(3)[np.array([0, 1, 2] * 30)]
    text, parsed = page(
        figures, shape=(5,), curves={}, teacher=same, student=same, int8=same
    )
    assert parsed.headings == 6
    assert "always agree" in text


def test_page_with_constant_outputs_and_many_classes(figures) -> None:
    many = {**figures, "labels": [f"class {i}" for i in range(40)]}
    flat = np.zeros((90, 40))
    page(many, y=np.arange(90) % 40, teacher=flat, student=flat, int8=flat)
