"""Whether MediaPipe Tasks reads the files that kdlite writes.

    python benchmarks/mediapipe_reader.py [--work FOLDER] [--mediapipe 1.2.3]

MediaPipe cannot be installed beside TensorFlow 2.21, so this makes a virtual
environment of its own in the work folder (by pip from the index that it is set
to, some 200 MB), exports classifiers of RGB images, loads each there with
`ImageClassifier`, and compares categories, their order and their scores with
what LiteRT makes of the same pixels. MediaPipe takes preprocessing, labels and
score meaning from the metadata alone: nothing but the file's path and the
pixels is handed over.

MediaPipe loads system libraries that a bare machine lacks; on Debian and
Ubuntu: `apt install libegl1 libgles2 libgl1`. Exits with 1 if any file is read
wrongly.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

# Neither in the order of the alphabet, nor all of ASCII.
LABELS = ["zebra", "ant", "fir tree", "Café", "bus, red", "owl"]
HEIGHT, WIDTH = 20, 24
IMAGES = 16


def read(folder: Path) -> None:
    """Classifies the images by each file; runs where MediaPipe is."""
    import mediapipe as mp
    from mediapipe.tasks.python import vision
    from mediapipe.tasks.python.core.base_options import BaseOptions

    images = np.load(folder / "images.npy")
    told: dict[str, Any] = {}
    for path in sorted(folder.glob("*.tflite")):
        try:
            options = vision.ImageClassifierOptions(BaseOptions(str(path)))
            with vision.ImageClassifier.create_from_options(options) as classifier:
                results = [
                    classifier.classify(mp.Image(mp.ImageFormat.SRGB, image))
                    for image in images
                ]
        except (RuntimeError, ValueError) as err:
            told[path.name] = str(err)
            continue
        told[path.name] = [
            [
                (category.category_name, category.index, category.score)
                for category in result.classifications[0].categories
            ]
            for result in results
        ]
    (folder / "told.json").write_text(json.dumps(told))


def classifier(softmax: bool, low: float, high: float) -> Any:
    """An untrained net, whose classes differ by image."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    stack = [
        keras.Input((HEIGHT, WIDTH, 3), name="image"),
        layers.Rescaling(2 / (high - low), -(high + low) / (high - low), name="scale"),
        layers.Conv2D(16, 3, strides=2, activation="relu", name="conv"),
        layers.Flatten(name="flat"),
        layers.Dense(
            len(LABELS), kernel_initializer=keras.initializers.RandomNormal(stddev=0.1)
        ),
    ]
    return keras.Sequential([*stack, *([layers.Softmax()] if softmax else [])])


def export_all(folder: Path, images: Any) -> None:
    """Writes a file for each way of taking pixels and of giving scores."""
    import kdlite

    # Trained with pixels that were normalised, which is then inside the file.
    inside = {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}
    uint8 = {"quantization": "int8", "io": "uint8"}
    # Name -> softmax or logits, the range of the input, more arguments of `export`.
    kinds: dict[str, tuple[bool, float, float, dict[str, Any]]] = {
        "float32": (True, 0, 255, {}),
        "float32_logits": (False, 0, 255, {}),
        "float32_normalised": (True, 0, 255, inside),
        "float32_0_to_1": (True, 0, 1, {}),
        "float32_-1_to_1": (True, -1, 1, {}),
        "float16": (True, -1, 1, {"quantization": "float16"}),
        "dynamic": (True, 0, 255, {"quantization": "dynamic"}),
        "int8_float_io": (True, 0, 255, {"quantization": "int8"}),
        "uint8": (True, 0, 255, uint8),
        "uint8_logits": (False, 0, 255, uint8),
        "uint8_normalised": (True, 0, 255, {**uint8, **inside}),
        "uint8_0_to_1": (True, 0, 1, uint8),
        "uint8_-1_to_1": (True, -1, 1, uint8),
    }
    for name, (softmax, low, high, options) in kinds.items():
        samples = low + images * np.float32((high - low) / 255)
        model = classifier(softmax, *((-2, 2) if "mean" in options else (low, high)))
        kdlite.export(
            model,
            folder / f"{name}.tflite",
            calibration_data=np.tile(samples, (8, 1, 1, 1)),
            verify_data=samples,
            labels=LABELS,
            input_range=(low, high),
            **options,
        )


def wrong(path: Path, told: Any, images: Any) -> str:
    """Says in what MediaPipe's categories are not those of the file."""
    import kdlite
    from kdlite.lite.runtime import TFLiteModel, dequantize

    if isinstance(told, str):
        return f"MediaPipe does not take it: {told}"
    file = TFLiteModel(path)
    about = kdlite.read_metadata(path).inputs[0]
    if file.inputs[0].dtype == "uint8":
        # The levels are the pixels, which is what MediaPipe hands over. Where zero lies
        # between two of them, as in -1..1, this is half a level beside the range.
        scores = dequantize(np.asarray(file.predict_raw(images)), file.outputs[0])
    else:
        # As an app prepares pixels, by the numbers in the metadata.
        mean, std = np.float32(about.mean), np.float32(about.std)
        scores = np.asarray(file.predict((images.astype("float32") - mean) / std))
    step = file.content.step(file.outputs[0].name) or 0.0
    for categories, wanted in zip(told, scores, strict=True):
        named = {name: LABELS[index] for name, index, _ in categories}
        if list(named) != list(named.values()) or set(named) != set(LABELS):
            return f"the labels are {named}"
        by_label = {name: score for name, _, score in categories}
        # Kernels and resizing of its own: a step, or float arithmetic.
        room = max(1.01 * step, 1e-4 * float(np.abs(scores).max()))
        off = max(abs(by_label[n] - s) for n, s in zip(LABELS, wanted, strict=True))
        if off > room:
            return f"scores are off by {off:.3g}, more than {room:.3g}"
        ordered = [by_label[name] for name in named]
        if ordered != sorted(ordered, reverse=True):
            return f"categories are not in the order of their scores: {by_label}"
    best = {categories[0][0] for categories in told}
    return "" if len(best) > 1 else f"all images are {best}: they tell nothing"


def environment(folder: Path, version: str) -> Path:
    """Returns the Python of an environment that has MediaPipe, made once."""
    python = folder / "bin" / "python"
    if not (folder / f"mediapipe-{version}").exists():
        print(f"installing mediapipe {version}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"mediapipe=={version}"], check=True)
        (folder / f"mediapipe-{version}").touch()
    return python


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("mediapipe"),
        help="folder for the environment and the files (default %(default)s)",
    )
    parser.add_argument(
        "--mediapipe", default="1.2.3", help="its version (default %(default)s)"
    )
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read)
        return 0
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    python = environment(args.work.resolve() / "environment", args.mediapipe)
    rng = np.random.default_rng(0)
    # Large areas, so that images differ in more than noise.
    areas = rng.integers(0, 256, (IMAGES, HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    images = areas.repeat(4, 1).repeat(4, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", images)
        export_all(folder, images)
        done = subprocess.run(
            [str(python), "-P", str(Path(__file__).resolve()), "--read", name],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            print(f"MediaPipe could not be run. {__doc__}", file=sys.stderr)
            return 2
        told = json.loads((folder / "told.json").read_text())
        found = {n: wrong(folder / n, told[n], images) for n in sorted(told)}
    from versions import versions  # which the other Python does not have

    for name, text in found.items():
        print(f"{name}: {text or 'read as it was written'}")
    print(f"mediapipe {args.mediapipe}, {versions()}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
