"""Models that nobody wrote, and damaged files: a few of those of the benchmark."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import keras
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import fuzz  # noqa: E402
import random_models  # noqa: E402
from mutations import MUTATIONS, mutated  # noqa: E402
from random_models import CALLS, Case, exports  # noqa: E402

FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
SIDES = {"image": (9, 9, 2), "series": (9, 2), "vector": (4,), "ids": (9, 4)}


@pytest.fixture
def the_same_everywhere(monkeypatch) -> None:
    """Hypothesis also draws numbers that stand in the modules imported so far."""
    none = providers.Constants()
    monkeypatch.setattr(providers, "_get_local_constants", lambda: none)
    providers.CONSTANTS_CACHE.cache.clear()


@pytest.mark.usefixtures("the_same_everywhere")
@settings(FIXED, max_examples=12)
@given(exports())
def test_a_random_model_is_proven_or_refused(case: Case) -> None:
    ended = fuzz.export_case(case)
    assert ended["end"] in fuzz.GOOD, ended["text"]


@pytest.mark.parametrize("kind", CALLS)
def test_each_layer_that_may_be_drawn_is_one(kind) -> None:
    made = set()

    @settings(FIXED, max_examples=1)
    @given(st.tuples(*CALLS[kind]))
    def make(calls: tuple[random_models.Call, ...]) -> None:
        for name, arguments in calls:
            x = keras.Input(SIDES[kind])
            made.add(random_models.called(name, arguments, x, "float32") is not x)

    make()
    assert made == {True}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> fuzz.DamagedFiles:
    folder = tmp_path_factory.mktemp("files")
    fuzz.files_to_damage(folder, ["classifier_int8", "towers_float32"])
    return fuzz.DamagedFiles(folder)


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_a_damaged_file_is_read_or_refused(damaged, first) -> None:
    ends = set()
    for seed in range(first, first + 50):
        ended = damaged.case(seed)
        assert ended["end"] in fuzz.GOOD, (seed, ended)
        ends.add(ended["end"])
    assert ends == {"answers", "clean errors"}  # else the mutations would be too weak


def test_a_mutation_is_the_same_each_time_and_another_file() -> None:
    blob = struct.pack("<256I", *range(256))
    kinds = {mutation.__name__ for mutation in MUTATIONS} - {"edit_field"}
    found = set()
    for seed in range(4 * len(MUTATIONS)):
        if MUTATIONS[seed % len(MUTATIONS)].__name__ == "edit_field":
            continue  # of a real file
        kind, changed = mutated(blob, seed)
        assert (kind, changed) == mutated(blob, seed)
        found.add(kind)
    assert found == kinds


@pytest.mark.slow
@pytest.mark.parametrize("what", ["models", "files"])
def test_the_whole_of_it(tmp_path, monkeypatch, what) -> None:
    arguments = ["fuzz.py", what, "--work", str(tmp_path / "log.jsonl")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert fuzz.main() == 0
