"""`kdlite demo`: `distill_to_tflite` on Fashion-MNIST."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdlite.android import to_android
from kdlite.datasets import FashionMNIST, Split, fashion_mnist
from kdlite.demo.augment import flip
from kdlite.demo.models import build_student
from kdlite.demo.teacher import load_teacher, train_teacher
from kdlite.gates import Gates
from kdlite.pipeline import PipelineResult, distill_to_tflite
from kdlite.reporting.energy import check_country
from kdlite.result_folder import check_free

logger = logging.getLogger(__name__)

# The quick run shows that all works, not how well: a part of the data, few epochs.
_QUICK_SAMPLES = {"train": 4_000, "validation": 500, "test": 1_000}


def run_demo(
    out: str | Path = "out",
    *,
    quick: bool = False,
    seeds: int = 1,
    retrain_teacher: bool = False,
    country: str | None = None,
    overwrite: bool = False,
    verbose: str | int = "auto",
) -> PipelineResult:
    """Distils Fashion-MNIST's teacher into a student for the phone.

    In a clone of kdlite, where Java is there to build it, the whole demo ends by
    putting its student into the Android app, as `kdlite android` does.

    Args:
        out: Folder to write, see `distill_to_tflite`.
        quick: Whether to use a part of the data only: a minute or two.
        seeds: Repetitions of student and baseline.
        retrain_teacher: Whether to train the teacher anew (an hour or more) instead of
            loading the one that comes with kdlite.
        country: Has energy and CO2 estimated, see `distill_to_tflite`.
        overwrite: Whether to replace `out`.
        verbose: As in Keras's `fit`.

    Returns:
        The files, the figures and the gates.
    """
    # Again in `distill_to_tflite`, but that would be after the teacher's hour.
    check_free(Path(out), overwrite)
    check_country(country)
    data = fashion_mnist()
    kept = Path(f"{out}.teacher")
    teacher = _trained_anew(data, kept) if retrain_teacher else load_teacher()
    if quick:
        data = _part(data)
    settings: dict[str, Any] = (
        {"epochs": 2, "views": 1} if quick else {"epochs": 6, "views": 2}
    )
    result = distill_to_tflite(
        teacher,
        tuple(data.train),
        build_student,
        validation=tuple(data.validation),
        test=tuple(data.test),
        labels=data.class_names,
        # Shifted images teach more, but not in so few epochs.
        augment=flip,
        qat_epochs=1,
        # Found on validation data, with the student in its fourth epoch.
        learning_rate=6e-3,
        temperature=2.0,
        hard_loss_weight=0.5,
        soft_loss_weight=0.5,
        seeds=seeds,
        # A student of two epochs is unsure of much, so int8 moves more predictions.
        gates=Gates(
            quantization_drop_points=2.0 if quick else 0.3,
            size_ratio=50,
            speed_ratio=10,
        ),
        description="Which of ten kinds of clothing a 28x28 grey picture shows.",
        author="kdlite demo",
        license="Apache-2.0",
        intended_use=(
            "To try kdlite and its Android app. It knows Fashion-MNIST's pictures, "
            "white on black, and no others: not for photographs, and not for a product."
        ),
        country=country,
        out=out,
        overwrite=overwrite,
        verbose=verbose,
        **settings,
    )
    if retrain_teacher:
        shutil.rmtree(kept, ignore_errors=True)
    if not quick:  # whose student is too weak to be shown
        into_app(result.tflite)
    return result


def into_app(model: Path, app: Path = Path("android_demo")) -> None:
    """Puts the student into the Android app, if it is here and can be built.

    Args:
        model: The student's `.tflite`.
        app: The folder of the Android project.
    """
    if shutil.which("java") is None or not (app / "ci" / "chain.py").is_file():
        return
    try:
        logger.info("%s", to_android(model, app))
    except (ValueError, OSError) as err:  # what was trained is there all the same
        logger.warning("the student is not in the app: %s", err)


def _trained_anew(data: FashionMNIST, folder: Path) -> keras.Model:
    """An hour's work: kept until the whole demo is done, should it be stopped."""
    path = folder / "teacher.keras"
    if not path.exists():
        teacher = train_teacher(data, folder / "backup")
        folder.mkdir(parents=True, exist_ok=True)
        teacher.save(folder / "unfinished.keras")
        os.replace(folder / "unfinished.keras", path)
    return keras.models.load_model(path)


def _part(data: FashionMNIST) -> FashionMNIST:
    def head(name: str) -> Split:
        split: Split = getattr(data, name)
        count = _QUICK_SAMPLES[name]
        return Split(np.ascontiguousarray(split.x[:count]), split.y[:count])

    return FashionMNIST(
        head("train"), head("validation"), head("test"), data.class_names, data.folder
    )
