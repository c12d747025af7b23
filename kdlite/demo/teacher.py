"""The demo's trained teacher: shipped as float16 weights, and how they were trained."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.backup import Backup
from kdlite.datasets import FashionMNIST
from kdlite.demo.augment import erase, shift_and_flip
from kdlite.demo.models import build_teacher

logger = logging.getLogger(__name__)

_WEIGHTS = "teacher_float16.npz"
_BATCH = 128


@dataclass(frozen=True)
class _Round:
    """One cosine of the learning rate, with a warm-up of one epoch."""

    epochs: int
    peak_learning_rate: float
    erase: bool


# Erasing makes images harder: the second round takes more out of the same data.
_ROUNDS = (_Round(16, 3e-3, erase=False), _Round(10, 2e-3, erase=True))


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
    data: FashionMNIST,
    backup: str | Path | None = None,
    rounds: Sequence[_Round] = _ROUNDS,
) -> keras.Model:
    """Trains the teacher anew, as the shipped one was: AdamW in two cosines.

    Random shift and flip, and in the second round random erasing. More than an hour on
    two cores. The last epoch is taken; validation data only show how it goes.

    Args:
        data: Fashion-MNIST; its test part is not touched.
        backup: Folder to go on from when training was stopped, or None.
        rounds: Epochs, peak learning rate and augmentation of each round.

    Returns:
        The trained `keras.Model`.
    """
    model = build_teacher()
    for number, settings in enumerate(rounds):
        folder = Path(backup) / f"round{number}" if backup else None
        _train_round(model, data, settings, number, folder)
    return model


def _train_round(
    model: keras.Model,
    data: FashionMNIST,
    settings: _Round,
    seed: int,
    folder: Path | None,
) -> None:
    whole = folder / "whole.weights.h5" if folder else None
    if whole is not None and whole.exists():
        model.load_weights(whole)
        return
    keras.utils.set_random_seed(seed)
    steps = len(data.train.x) // _BATCH
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, (settings.epochs - 1) * steps),
            warmup_target=settings.peak_learning_rate,
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
    backup = Backup(folder / "backup") if folder else None
    model.fit(
        _augmented(data, settings.erase, seed),
        epochs=settings.epochs,
        initial_epoch=backup.restore(model) if backup else 0,
        validation_data=tuple(data.validation),
        validation_batch_size=500,
        callbacks=[backup] if backup else [],
        shuffle=False,
    )
    if whole is not None:
        unfinished = whole.with_name("unfinished.weights.h5")
        model.save_weights(unfinished)
        os.replace(unfinished, whole)
    if backup is not None:
        backup.remove()


def _augmented(data: FashionMNIST, erasing: bool, seed: int) -> tf.data.Dataset:
    def augment(sample: tuple[Any, Any], seed: Any) -> tuple[Any, Any]:
        image, label = sample
        seed = tf.cast(seed, tf.int64)
        image = shift_and_flip(image, seed)
        return erase(image, seed + 2) if erasing else image, label

    samples = tf.data.Dataset.from_tensor_slices(tuple(data.train))
    samples = samples.shuffle(len(data.train.x), seed=seed)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    train = tf.data.Dataset.zip(samples, seeds.batch(2)).map(augment)
    return train.batch(_BATCH, drop_remainder=True).prefetch(4)
