"""Equal models, data and versions give equal bytes, in any process, by any recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdlite.compress.recipes import RECIPES

_DIGESTS = """
import hashlib, json, sys, tempfile, warnings
from pathlib import Path

import keras
import numpy as np

import kdlite

warnings.simplefilter("ignore")
if sys.argv[1] == "later":  # names and random numbers are used up
    keras.layers.Dense(3)(np.random.normal(size=(1, 2)))
keras.utils.set_random_seed(0)
inputs = keras.Input((8, 8, 3), name="image")
x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
x = keras.layers.BatchNormalization(name="norm")(x)
x = keras.layers.Flatten(name="flat")(x)
hidden = keras.layers.Dense(64, name="hidden", activation="relu")(x)
outputs = {
    "zeta": keras.layers.Dense(5, name="first")(hidden),
    "alpha": keras.layers.Dense(5, name="second")(x),
}
model = keras.Model(inputs, outputs, name="net")
embedder = keras.Model(inputs, hidden, name="embedder")
data = np.random.default_rng(0).uniform(0, 1, (100, 8, 8, 3)).astype("float32")
trained = kdlite.quantize_aware(model)
trained(data, training=True)
named = {"calibration_data": data, "labels": {"zeta": list("pqrst")}}
for name, options in json.loads(sys.argv[2]).items():
    arguments = {"quantization": "int8", **named, **options}
    exported = model
    if name == "quantize_aware":
        exported = trained
    if name == "signatures":
        exported = {"classify": model, "embed": embedder}
        arguments["labels"] = {"classify": arguments["labels"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        kdlite.export(exported, path, **arguments)
        print(name, hashlib.sha256(path.read_bytes()).hexdigest(), flush=True)
"""
_CASES = {
    **{name: {"quantization": name} for name in RECIPES},
    "int8, uint8 in and out": {"io": "uint8", "input_range": [0.0, 1.0]},
    "int8, batch 4": {"batch_size": 4},
    "int8, Dense by channel": {"min_runtime": "2.17"},
    "int8 by aeq": {"engine": "aeq"},
    "int16x8 by aeq": {"quantization": "int16x8", "engine": "aeq"},
    "float16 by aeq": {"quantization": "float16", "engine": "aeq"},
    "mixed": {"overrides": {"hidden": "float32"}},
    "mixed by aeq": {"engine": "aeq", "overrides": {"hidden": "float16"}},
    "quantize_aware": {},
    "signatures": {},
}


def digests(when: str, seed: int, cases: dict) -> dict[str, str]:
    """Exports one model by each case, in a process of its own."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", _DIGESTS, when, json.dumps(cases)],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONHASHSEED": str(seed),
            "PYTHONPATH": os.pathsep.join([root, *sys.path]),
        },
    )
    found = dict(
        line.rsplit(" ", 1) for line in done.stdout.splitlines() if len(line) > 64
    )
    assert found.keys() == cases.keys(), done.stderr[-2000:]
    return found


def _check(cases: dict) -> None:
    first = digests("now", 1, cases)
    assert digests("later", 2, cases) == first
    # Each of them is a file of its own.
    assert len(set(first.values())) == len(cases)


def test_the_same_bytes_in_another_process() -> None:
    _check({"int8": _CASES["int8"]})


@pytest.mark.slow
def test_the_same_bytes_by_every_recipe() -> None:
    _check(_CASES)
