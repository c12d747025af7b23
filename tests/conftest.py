"""What every test shares: quiet, few threads, fixed seeds.

The environment is set before TensorFlow is imported, here and in the processes that
tests start.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")
# What a test starts is to have its own, so that sets have other orders there.
os.environ.pop("PYTHONHASHSEED", None)

import gc
import random
import signal
import sys
from collections.abc import Iterator

import numpy as np
import pytest

# A shell lets what it runs in the background ignore Ctrl-C, which tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SEED = 20240229
# TensorFlow's and Keras's modules are a million objects that live on, and a trace makes
# many more: Python would look through all of them time and again.
gc.set_threshold(50_000, 20, 20)
FROZEN: list[bool] = []


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in each test, in any order and on its own."""
    random.seed(SEED)
    np.random.seed(SEED)
    # Tests of modules without TensorFlow stay quick: seeded only once it is loaded.
    if "keras" in sys.modules:
        if not FROZEN:
            FROZEN.append(True)  # gc.get_freeze_count() would count them one by one
            gc.collect()
            gc.freeze()
        sys.modules["keras"].utils.set_random_seed(SEED)
    if converter := sys.modules.get("kdlite.lite._converter"):
        # Not ended between two files of tests that export.
        converter._SERVERS._settings["idle_s"] = 900.0


@pytest.fixture(autouse=True)
def names_go_on() -> Iterator[None]:
    """A test that clears Keras's state (Keras Tuner does) leaves the names counted on.

    Else layers that other tests' modules hold would meet new ones of their names.
    """
    before = dict(names_given())
    yield
    after = names_given()
    for name, count in before.items():
        after[name] = max(count, after.get(name, 0))


def names_given() -> dict[str, int]:
    """Keras's own count of each name that layers were given."""
    if "keras" not in sys.modules:
        return {}
    from keras.src.backend.common import global_state

    return global_state.get_global_attribute("object_name_uids", {})


@pytest.fixture
def step_by_step(monkeypatch) -> None:
    """Models run eagerly, whatever they are told: less than tracing for few steps."""
    import keras

    yes = property(lambda model: True, lambda model, value: None)
    monkeypatch.setattr(keras.Model, "run_eagerly", yes)


@pytest.fixture
def rng() -> np.random.Generator:
    """A random generator of the test's own."""
    return np.random.default_rng(SEED)
