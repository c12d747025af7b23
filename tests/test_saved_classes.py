"""What kdlite saves, Keras loads wherever kdlite was imported, whichever came first."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import kdlite
from kdlite.compress.sums import Sum
from kdlite.distill.adapters import Adapter
from kdlite.saved_classes import CLASSES

ROOT = Path(__file__).resolve().parent.parent
HOMES = {name: module for module, names in CLASSES.items() for name in names}
# A Keras file does not hold them, and they say so.
FOREIGN = ("Function", "ONNX", "SavedModel", "TFLite")


def run_python(code: str, *arguments: str, path: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([path, str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_has_every_class_that_is_registered() -> None:
    for found in pkgutil.walk_packages(kdlite.__path__, "kdlite."):
        if "__main__" not in found.name:
            importlib.import_module(found.name)
    registered = {
        key.removeprefix("kdlite>"): known.__module__
        for key, known in keras.saving.get_custom_objects().items()
        if key.startswith("kdlite>")
    }
    assert registered == HOMES


# --- a process that has imported no more than it must

LOAD = """
import kdlite, keras, json, sys, zipfile
import numpy as np
from pathlib import Path

assert not any(name.startswith("kdlite.distill") for name in sys.modules)
folder = Path(sys.argv[1])
x = np.load(folder / "x.npy")
for path in sorted(folder.glob("*.keras")):
    model = keras.models.load_model(path)
    expected = np.load(path.with_suffix(".npy"))
    given = np.concatenate(keras.tree.flatten(model(x)))
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
for config in json.loads((folder / "configs.json").read_text()):
    made = keras.saving.deserialize_keras_object(config)
    assert type(made).__name__ == config["class_name"]
    again = json.loads(json.dumps(keras.saving.serialize_keras_object(made)))
    assert again == config, (again, config)
for config in json.loads((folder / "foreign.json").read_text()):
    try:
        keras.saving.deserialize_keras_object(config)
    except ValueError as err:
        print(err)
"""


def network(*stack: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 1)), *stack])


def net(channels: int) -> keras.Model:
    conv = layers.Conv2D(channels, 3, activation="relu", name="conv")
    pool = layers.GlobalAveragePooling2D(name="pool")
    return network(conv, pool, layers.Dense(3, name="logits"))


def models() -> dict[str, keras.Model]:
    """What kdlite saves as files."""
    convolution = layers.Conv2D(4, 3, use_bias=False)
    plain = network(convolution, layers.BatchNormalization(), layers.ReLU())
    stack = (*plain.layers, layers.Flatten(), layers.UnitNormalization())
    distiller = kdlite.Distiller(
        net(4),
        kdlite.teachers.MeanTeacher(0.9),
        kdlite.losses.SoftTargets(kdlite.schedules.Cosine(4.0, 1.0, over=9)),
        soft_loss_weight=kdlite.schedules.Linear(0.1, 0.9, over=9),
    )
    features = kdlite.Distiller(
        net(4), net(6), feature_losses={("conv", "conv"): kdlite.losses.Hint()}
    )
    for model in (distiller, features):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    scaled = kdlite.teachers.Transformed(net(4), layers.Rescaling(2.0))
    return {
        "qat": kdlite.quantize_aware(
            network(*stack, layers.LeakyReLU(), layers.Dense(3)),
            overrides={"unit_*": "float32"},
        ),
        "qat_16": kdlite.quantize_aware(
            network(layers.Dense(3, activation="softmax")), "int16x8"
        ),
        "distiller": distiller,
        "features": features,
        "mutual": kdlite.teachers.MutualLearning([net(3), net(4)]),
        "ensemble": kdlite.teachers.Ensemble([scaled, net(4)]),
    }


def parts() -> list[object]:
    """What such files hold, each on its own."""
    schedules = kdlite.schedules
    decay = keras.optimizers.schedules.CosineDecay(0.1, 9)
    losses = [
        getattr(kdlite.losses, name)()
        for name, module in HOMES.items()
        if module.startswith("kdlite.distill.losses.")
    ]
    return [
        *losses,
        schedules.Linear(1.0, 0.5, over=3),
        schedules.Piecewise([3], [1.0, 0.5]),
        schedules.Custom(decay),
        Adapter(),
        Sum(),
    ]


def test_a_new_process_loads_whatever_holds_them(tmp_path) -> None:
    x = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    np.save(tmp_path / "x.npy", x)
    held = set()
    for name, model in models().items():
        expected = np.concatenate(keras.tree.flatten(model(x)))
        np.save(tmp_path / f"{name}.npy", expected)
        model.save(tmp_path / f"{name}.keras")
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as file:
            held |= set(re.findall(r"kdlite>(\w+)", file.read("config.json").decode()))
    configs = [keras.saving.serialize_keras_object(part) for part in parts()]
    (tmp_path / "configs.json").write_text(json.dumps(configs))
    held |= set(re.findall(r"kdlite>(\w+)", json.dumps(configs)))
    foreign = [
        {
            "class_name": name,
            "module": HOMES[name],
            "registered_name": f"kdlite>{name}",
            "config": {"name": "odd"},
        }
        for name in FOREIGN
    ]
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    assert held | set(FOREIGN) == set(HOMES)
    refused = run_python(LOAD, str(tmp_path)).splitlines()
    for name, text in zip(FOREIGN, refused, strict=True):
        assert re.search(f"is not loaded with Keras. Received: 'odd', a {name}", text)


# --- whichever came first

KERAS = """
known = {"kdlite>NKD": "another's"}

class saving:
    @staticmethod
    def get_custom_objects():
        return known

class backend:
    @staticmethod
    def backend():
        return "tensorflow"
"""
SAYS = "; import sys; print(len(keras.known), keras.known['kdlite>NKD'])"


@pytest.mark.parametrize(
    "code",
    [
        "import keras, kdlite",
        "import kdlite, keras",
        "import kdlite, keras.inner; import keras",
        # Asked for, and imported later.
        "import kdlite, importlib.util as u; u.find_spec('keras'); import keras",
        "import sys; sys.modules['keras'] = None; import kdlite"
        "; del sys.modules['keras']; import keras",
        "import kdlite, importlib, keras; importlib.reload(keras)"
        "; importlib.reload(kdlite)",
    ],
)
def test_whichever_is_imported_first(code, tmp_path) -> None:
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text(KERAS)
    (tmp_path / "keras" / "inner.py").write_text("")
    told = run_python(code + SAYS, path=str(tmp_path))
    assert told == f"{len(HOMES)} another's\n"


def test_an_import_of_keras_that_fails_fails_as_ever(tmp_path) -> None:
    code = """
import kdlite, pathlib, sys
for _ in range(2):
    try:
        import keras
    except ImportError as err:
        print(err)
path = pathlib.Path(sys.argv[1], "keras.py")
path.write_text("1 / 0")
import importlib; importlib.invalidate_caches()
try:
    import keras
except ZeroDivisionError as err:
    print(err)
path.write_text(pathlib.Path(sys.argv[1], "good.txt").read_text())
import keras
print(len(keras.known))
print([finder for finder in sys.meta_path if "_KerasWatch" in repr(finder)])
"""
    (tmp_path / "good.txt").write_text(KERAS)
    # Nothing but the standard library and kdlite is there to be imported.
    done = run_python(
        f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
        f"\n{code}",
        str(tmp_path),
        path=str(tmp_path),
    ).splitlines()
    assert done[:2] == ["No module named 'keras'"] * 2
    assert done[2:] == ["division by zero", str(len(HOMES)), "[]"]
