"""Writes what the app's tests compare with: what Python makes of models and images.

python android_demo/ci/make_data.py FOLDER

FOLDER/models/NAME/        model.tflite, pixels.u8, outputs.f32: one a recipe
FOLDER/models/cases.json   their names, and how far the app's runtime may be off
FOLDER/models/*.tflite     files that the app is to refuse, or to read without vectors
FOLDER/preprocessing/      images as ARGB, and what Keras reads them as
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import flatbuffers
import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from PIL import Image

import kdlite
from kdlite import datasets
from kdlite.lite import metadata
from kdlite.lite.metadata import write_metadata
from kdlite.lite.runtime import TFLiteModel

ASSETS = Path(__file__).resolve().parent.parent / "app/src/main/assets"
LABELS = ["circle", "square", "cross"]
IMAGES = 1_000
# Float arithmetic of another release, in another order.
FLOAT_TOLERANCE = 1e-4
# Integers are equal to the bit where XNNPACK computes all of them. TFLite 2.16.1 leaves
# 16-bit activations and the mean over places to kernels of its own, which round a few
# values the other way than those of LiteRT: on Linux, too.
STEPS = 1.01
UNEQUAL = {"int16x8": 10, "bundled": 10}


def main(folder: Path) -> None:
    """Writes all of it."""
    keras.utils.set_random_seed(0)
    _models(folder / "models")
    _preprocessing(folder / "preprocessing")


def _tiny(channels: int = 1, softmax: bool = False) -> keras.Model:
    layers = keras.layers
    inputs = keras.Input((12, 10, channels), name="image")
    x = inputs if softmax else layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, strides=2, activation="relu")(x)
    x = layers.Flatten()(x)
    outputs = layers.Dense(3, activation="softmax" if softmax else None, name="scores")(
        x
    )
    model = keras.Model(inputs, outputs, name="tiny")
    # Scores of some size, as a trained model's.
    model.set_weights([w * 3 for w in model.get_weights()])
    return model


def _models(folder: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (200, 12, 10, 1)).astype(np.float32)
    colours = generator.uniform(-1, 1, (200, 12, 10, 3)).astype(np.float32)
    colours[0, 0, 0] = [-1, 0, 1]
    qat = kdlite.quantize_aware(_tiny())
    qat.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    qat.fit(pixels, np.arange(200) % 3, epochs=1, verbose=0)
    cases = []

    def add(name: str, model: keras.Model, data: object, **options: object) -> None:
        path = folder / name / "model.tflite"
        path.parent.mkdir(parents=True)
        keyword = {"labels": LABELS, "verify_data": data, **options}
        kdlite.export(model, path, **keyword)  # type: ignore[arg-type]
        cases.append(_case(path, generator))

    calibrated = {
        "quantization": "int8",
        "calibration_data": pixels,
        "input_range": (0.0, 255.0),
    }
    add("float32", _tiny(), pixels)
    add("colour_softmax", _tiny(3, softmax=True), colours)
    add("int8", _tiny(), pixels, **calibrated)
    add("int8_int8", _tiny(), pixels, io="int8", **calibrated)
    add("int8_uint8", _tiny(), pixels, io="uint8", **calibrated)
    add("int8_trained", qat, pixels, quantization="int8")
    add("float16", _tiny(), pixels, quantization="float16")
    add("dynamic", _tiny(), pixels, quantization="dynamic")
    add(
        "int16x8",
        _tiny(),
        pixels,
        quantization="int16x8",
        calibration_data=pixels,
    )
    # One step of training each: half of the weights zero, or four values a layer.
    trained = (pixels, np.arange(200) % 3)
    logits = {"batch_size": 200, "epochs": 1, "learning_rate": 1e-4}
    pruned = kdlite.tfmot.prune(_tiny(), trained, 0.5, ramp=1.0, **logits)
    add("pruned", pruned, pixels, **calibrated)
    clustered = kdlite.tfmot.cluster(_tiny(), trained, 4, **logits)
    add("clustered", clustered, pixels, **calibrated)
    if (bundled := ASSETS / "model.tflite").exists():
        path = folder / "bundled/model.tflite"
        path.parent.mkdir()
        path.write_bytes(bundled.read_bytes())
        test = datasets.fashion_mnist().test.x[:IMAGES]
        cases.append(_case(path, generator, test))
    (folder / "cases.json").write_text(json.dumps(cases))
    _foreign(folder, pixels)
    _not_a_number(folder)
    _refused(folder)


def _case(
    path: Path, generator: np.random.Generator, pixels: np.ndarray | None = None
) -> dict[str, object]:
    model = TFLiteModel(path)
    about = kdlite.read_metadata(path).inputs[0]
    if pixels is None:
        shape = (IMAGES, *model.inputs[0].shape[1:])
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
    mean, std = np.float32(about.mean), np.float32(about.std)
    outputs = np.asarray(model.predict((pixels.astype(np.float32) - mean) / std))
    (path.parent / "pixels.u8").write_bytes(pixels.tobytes())
    (path.parent / "outputs.f32").write_bytes(np.float32(outputs).tobytes())
    step = model.content.step(model.outputs[0].name)
    largest = float(np.abs(outputs).max())
    return {
        "name": path.parent.name,
        # One number for all channels, in all of these.
        "mean": about.mean[0],
        "std": about.std[0],
        "step": step,
        "tolerance": (step or 0) * STEPS or FLOAT_TOLERANCE * largest,
        # How many values of all may be a step off; of floats, each by a little.
        "unequal": UNEQUAL.get(path.parent.name, 0) if step else outputs.size,
    }


def _packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(2**20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _unlabelled(file: Path) -> bytes:
    """A file without its metadata, as others' are."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes()))
    model.metadata = None
    return _packed(model)


def _foreign(folder: Path, pixels: np.ndarray) -> None:
    """Files whose metadata others wrote: with other words, or hardly any."""

    def write(name: str, plain: bytes, **said: Any) -> None:
        told = write_metadata(
            plain, name=name, labels=LABELS, input_range=(0.0, 255.0), **said
        )
        (folder / f"{name}.tflite").write_bytes(told)

    plain = _unlabelled(folder / "float32/model.tflite")
    words = "Probabilities of the 3 labels respectively."
    write("said_probabilities", plain, score_meaning=words)
    write("said_logits", plain, score_meaning="Logits: a softmax makes probabilities.")
    for end in ("softmax", "sigmoid"):
        for kind in ("float32", "int8"):
            model = keras.Sequential([*_tiny().layers, keras.layers.Activation(end)])
            file = folder / f"{end}_{kind}.tflite"
            given = {"calibration_data": pixels} if kind == "int8" else {}
            kdlite.export(model, file, kind, verify_data=pixels, **given)
            unsaid = _unlabelled(file)
            write(f"unsaid_{end}_{kind}", unsaid)
            write(f"said_logits_{end}_{kind}", unsaid, score_meaning="logits")
    for end in (None, "softmax"):
        # A name that is older than the activation; and one that the words deny.
        layers = [*_tiny().layers[:-1], keras.layers.Dense(3, end, name="logits")]
        file = folder / f"logits_{end}.tflite"
        kdlite.export(keras.Sequential(layers), file, verify_data=pixels, labels=LABELS)
    named = _unlabelled(folder / "logits_None.tflite")
    write("logits_said_probabilities", named, score_meaning=words)
    checked = {"checked": {"samples": 7, "within_one_step": 0.99}}
    write("checked_without_vectors", plain, provenance=checked)
    with mock.patch.object(metadata, "_provenance_json", return_value=b'{"x": NaN}'):
        write("broken_origin", plain, provenance={})


def _not_a_number(folder: Path) -> None:
    """Files that give it: on dark images, and where pixels overflow."""
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.ops.log(keras.layers.GlobalAveragePooling2D()(x) - 0.2)
    model = keras.Model(inputs, keras.layers.Dense(3, name="scores")(x), name="bright")
    bright = np.random.default_rng(2).integers(100, 256, (50, 8, 8, 1))
    data = bright.astype(np.float32)
    kdlite.export(model, folder / "bright.tflite", verify_data=data, labels=LABELS)
    plain = _unlabelled(folder / "float32/model.tflite")
    (scores,) = kdlite.read_metadata(folder / "float32/model.tflite").outputs
    golden = {"pattern": "squares-1", "outputs": {scores.name: [[1.0, 2.0, 3.0]]}}
    told = write_metadata(
        plain,
        name="odd",
        labels=LABELS,
        mean=0.0,
        std=12345.0,
        provenance={"golden": golden},
    )
    for name, std in {"tiny": 1e-45, "zero": 0.0, "infinite": np.inf}.items():
        (folder / f"std_{name}.tflite").write_bytes(
            told.replace(np.float32(12345).tobytes(), np.float32(std).tobytes())
        )


def _refused(folder: Path) -> None:
    plain = _unlabelled(folder / "float32/model.tflite")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(plain))
    (folder / "no_metadata.tflite").write_bytes(plain)
    (folder / "no_normalisation.tflite").write_bytes(
        write_metadata(plain, name="odd", labels=LABELS)
    )
    # As of a mask, whose outputs have no room in the file; and as kdlite never says it.
    (scores,) = kdlite.read_metadata(folder / "float32/model.tflite").outputs
    empty = {"pattern": "squares-1", "count": 0, "outputs": {scores.name: []}}
    for name, golden in {"no_vectors": None, "empty_vectors": empty}.items():
        (folder / f"{name}.tflite").write_bytes(
            write_metadata(
                plain,
                name=name,
                labels=LABELS,
                input_range=(0.0, 255.0),
                provenance={"golden": golden},
            )
        )
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].customCode = "NoSuchOp"
    (folder / "custom_op.tflite").write_bytes(
        write_metadata(
            _packed(model),
            name="custom",
            labels=LABELS,
            input_range=(0.0, 255.0),
        )
    )
    features = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    kdlite.export(features, folder / "features.tflite", labels=["a", "b"])


def _preprocessing(folder: Path) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    cases = []
    sizes = [(28, 28), (40, 64), (97, 33), (9, 7), (300, 201)]
    for index, (height, width) in enumerate(sizes):
        # Smooth with some noise, as photographs are.
        rows, columns = np.mgrid[0:height, 0:width]
        waves = np.stack([rows * 3 + columns, rows + columns * 2, rows * columns], -1)
        noise = generator.integers(0, 40, (height, width, 3))
        image = ((waves + noise) % 256).astype(np.uint8)
        for target, channels, crop in [
            ((28, 28), 1, False),
            ((12, 10), 3, False),
            ((24, 32), 3, True),
        ]:
            name = f"{index}_{channels}_{'crop' if crop else 'whole'}"
            values = _read_by_keras(image, (*target, channels), crop)
            mean, std = (
                ([0.0], [1.0]) if channels == 1 else ([120.0, 110.0, 100.0], [58.0])
            )
            wanted = (values - np.float32(mean)) / np.float32(std)
            (folder / f"{name}.f32").write_bytes(np.float32(wanted).tobytes())
            alpha = np.full((height, width, 1), 255, np.uint8)
            argb = np.concatenate([image[..., ::-1], alpha], -1)
            (folder / f"{name}.argb").write_bytes(argb.tobytes())
            cases.append(
                {
                    "name": name,
                    "height": height,
                    "width": width,
                    "target_height": target[0],
                    "target_width": target[1],
                    "channels": channels,
                    "crop": crop,
                    "mean": mean,
                    "std": std,
                }
            )
    (folder / "cases.json").write_text(json.dumps(cases))
    _sideways_photo(folder / "sideways.jpg")
    Image.new("L", (40, 30)).save(folder / "black.png")
    _transparent(folder / "transparent")


def _sideways_photo(path: Path) -> None:
    """A photo, its upper half red when upright, as a camera held upright stores it."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :45] = [200, 0, 0]
    pixels[:, 45:] = [0, 0, 200]
    exif = Image.Exif()
    exif[0x0112] = 6  # the file's left side is the top
    Image.fromarray(pixels).save(path, quality=95, exif=exif)


def _transparent(folder: Path) -> None:
    """PNGs of each kind that can be transparent, NAME.png, and NAME_CHANNELS.f32."""
    colours = np.random.default_rng(3).integers(0, 256, (9, 7, 4), np.uint8)
    colours[:3, :, 3], colours[3:6, :, 3] = 0, 255
    image = Image.fromarray(colours)
    palette = image.convert("RGB").quantize(16)
    key = tuple(colours[8, 0, :3].tolist())
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgba": (image, {}),
        "la": (image.convert("LA"), {}),
        "palette": (palette, {"transparency": bytes(range(0, 256, 16))}),
        "key": (image.convert("RGB"), {"transparency": key}),
    }
    folder.mkdir()
    for name, (kind, options) in kinds.items():
        kind.save(folder / f"{name}.png", **options)
        with tempfile.TemporaryDirectory() as alone:
            Path(alone, "any").mkdir()
            kind.save(Path(alone, "any/image.png"), **options)
            for channels in (1, 3):
                values = datasets.load(alone, (9, 7, channels)).x[0]
                (folder / f"{name}_{channels}.f32").write_bytes(
                    np.float32(values).tobytes()
                )


def _read_by_keras(
    image: np.ndarray, shape: tuple[int, int, int], crop: bool
) -> np.ndarray:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "any")
        folder.mkdir()
        keras.utils.save_img(folder / "image.png", image, scale=False)
        if not crop:
            return datasets.load(name, shape).x[0]
        dataset = keras.utils.image_dataset_from_directory(
            name,
            labels=None,
            image_size=shape[:2],
            color_mode="grayscale" if shape[-1] == 1 else "rgb",
            crop_to_aspect_ratio=True,
            verbose=False,
        )
        return next(iter(dataset.as_numpy_iterator()))[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
