"""Equal models, data and versions give equal bytes, in any process, by any recipe."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from processes import run_in_copy

import kdlite
from kdlite.compress.recipes import RECIPES


def digests(cases: dict) -> dict[str, str]:
    """Exports one model by each case."""
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
    found = {}
    for name, options in cases.items():
        arguments = {"quantization": "int8", **named, **options}
        exported = model
        if name == "quantize_aware":
            exported = trained
        if name == "signatures":
            exported = {"classify": model, "embed": embedder}
            arguments["labels"] = {"classify": arguments["labels"]}
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder, "model.tflite")
            kdlite.export(exported, path, **arguments)
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def digests_in_copy(folder: Path) -> None:
    cases = json.loads((folder / "told.json").read_text())["cases"]
    told = {"digests": digests(cases), "hash": hash("name")}
    (folder / "digests.json").write_text(json.dumps(told))


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


def _check(cases: dict, folder: Path) -> None:
    # Names and random numbers are used up here, and none where the others are made.
    keras.layers.Dense(3)(np.random.normal(size=(1, 2)))
    first = digests(cases)
    ended = run_in_copy("test_reproducible:digests_in_copy", folder, cases=cases)
    assert ended.returncode == 0, ended.printed
    told = json.loads((folder / "digests.json").read_text())
    assert told["digests"] == first
    assert told["hash"] != hash("name")  # its sets have other orders
    # Each of them is a file of its own.
    assert len(set(first.values())) == len(cases)


def test_the_same_bytes_in_another_process(tmp_path) -> None:
    _check({"int8": _CASES["int8"]}, tmp_path)


@pytest.mark.slow
def test_the_same_bytes_by_every_recipe(tmp_path) -> None:
    _check(_CASES, tmp_path)
