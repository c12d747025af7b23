"""tfmot's quantization-aware training of the demo's student, as its guide shows it.

tfmot takes models of tf_keras alone. So this builds the student anew there, from the
same source, gives it the weights that it has in Keras 3, trains it on and converts it.
It is a part of `peers.py`, which runs it in a process of its own: tfmot makes Keras 2
of `tf.keras` for the whole of one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import kdlite
from kdlite.datasets import fashion_mnist

PIXEL = 1 / 255


def student(weights: list[Any]) -> Any:
    """The demo's student by its own source, where `keras` is tf_keras."""
    source = Path(kdlite.__file__).parent / "demo" / "models.py"
    spec = importlib.util.spec_from_file_location("models", source)
    models = importlib.util.module_from_spec(spec)
    sys.modules["keras"] = tf_keras
    spec.loader.exec_module(models)
    whole = models.build_student()
    whole.set_weights(weights)
    # tfmot refuses Rescaling: pixels come as 0..1, and so the file takes them.
    return tf_keras.Model(whole.get_layer("rescale").output, whole.output)


def main(folder: Path, samples: int, batch: int, epochs: int, rate: float) -> None:
    """Makes `folder/model.tflite` of the student whose weights are in `folder`."""
    with np.load(folder / "weights.npz") as kept:
        model = student([kept[name] for name in kept.files])
    train = fashion_mnist().train
    x, y = PIXEL * train.x[:samples].astype("float32"), train.y[:samples]
    tf_keras.utils.set_random_seed(0)
    aware = tfmot.quantization.keras.quantize_model(model)
    steps = epochs * (samples // batch)
    schedule = tf_keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=rate, warmup_steps=steps // 10
    )
    aware.compile(
        tf_keras.optimizers.AdamW(schedule, weight_decay=1e-3),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    aware.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
    converter = tf.lite.TFLiteConverter.from_keras_model(aware)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    (folder / "model.tflite").write_bytes(converter.convert())
