"""The demo's trained teacher: shipped as float16 weights, and how they were trained."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.datasets import FashionMNIST
from kdlite.demo.augment import shift_and_flip
from kdlite.demo.models import build_teacher

logger = logging.getLogger(__name__)

_WEIGHTS = "teacher_float16.npz"
_EPOCHS = 16
_BATCH = 128
_PEAK_LEARNING_RATE = 3e-3


def load_teacher() -> keras.Model:
    """Loads the trained teacher that comes with kdlite.

    Half precision halves the download and moves no prediction that matters: the test
    of the shipped file measures its accuracy.

    Returns:
        A float32 `keras.Model`: pixels `(batch, 28, 28, 1)` in 0..255 to logits
        `(batch, 10)`.
    """
    model = build_teacher()
    with (
        resources.files("kdlite.demo").joinpath(_WEIGHTS).open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        for variable in model.weights:
            variable.assign(stored[variable.path].astype("float32"))
    return model


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Writes the teacher's weights as `load_teacher` reads them: float16, by name."""
    arrays: dict[str, Any] = {
        variable.path: np.asarray(variable.value).astype("float16")
        for variable in model.weights
    }
    np.savez_compressed(path, **arrays)


def train_teacher(
    data: FashionMNIST, backup: str | Path | None = None, epochs: int = _EPOCHS
) -> keras.Model:
    """Trains the teacher anew: random shift and flip, AdamW, one cosine.

    About an hour on two cores. The last epoch is taken; validation data only show how
    it goes.

    Args:
        data: Fashion-MNIST; its test part is not touched.
        backup: Folder to go on from when training was stopped, or None.
        epochs: Passes over the training images.

    Returns:
        The trained `keras.Model`.
    """
    keras.utils.set_random_seed(0)
    model = build_teacher()
    steps = len(data.train.x) // _BATCH
    seeds = tf.data.Dataset.random(seed=0, rerandomize_each_iteration=True).batch(2)
    samples = tf.data.Dataset.from_tensor_slices(tuple(data.train))
    samples = samples.shuffle(len(data.train.x), seed=0)
    train = tf.data.Dataset.zip(samples, seeds).map(
        lambda sample, seed: (
            shift_and_flip(sample[0], tf.cast(seed, tf.int64)),
            sample[1],
        )
    )
    train = train.batch(_BATCH, drop_remainder=True).prefetch(4)
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, (epochs - 1) * steps),
            warmup_target=_PEAK_LEARNING_RATE,
            warmup_steps=steps,
        ),
        weight_decay=0.05,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # The regular convolutions' gradients are about twice as fast under XLA here.
        jit_compile=True,
    )
    callbacks = [keras.callbacks.BackupAndRestore(str(backup))] if backup else []
    model.fit(
        train,
        epochs=epochs,
        validation_data=tuple(data.validation),
        validation_batch_size=500,
        callbacks=callbacks,
        shuffle=False,
    )
    return model
