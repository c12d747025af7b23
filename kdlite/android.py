"""From a `.tflite` to the Android app: checked, put into its assets, and built."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlite import datasets
from kdlite.in_place import check_target, put_in_place
from kdlite.lite.metadata import Metadata, read_metadata
from kdlite.lite.op_versions import needed_runtime
from kdlite.lite.tflite_file import TFLiteFile
from kdlite.lite.tflite_reader import inspect
from kdlite.working_folder import working_folder

if TYPE_CHECKING:
    from PIL import Image

# What `org.tensorflow:tensorflow-lite` is in the app.
RUNTIME = "2.16.1"
_TYPES = ("float32", "int8", "uint8")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# What Android reads, whatever the file is called.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF")
_MOST_IMAGES = 20
# Of a test image, in pixels: enough to look at, and 20 of them are a few megabytes.
_MOST_SIDE = 1024
_JPEG = {"quality": 95, "subsampling": 0}  # colours as fine as the rest
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
_MOST_BYTES = 256 * 2**20
_MOST_VALUES = 2**24


@dataclass(frozen=True)
class AndroidApp:
    """A model that is in the app.

    Attributes:
        model: The model's name.
        quantization: How it computes.
        assets: The folder that was filled.
        images: How many test images went with it.
        golden_vectors: How many the file has for the app's self-test.
        apk: The APK that was built, or None.
        next_command: What to do next, as a shell takes it.
    """

    model: str
    quantization: str
    assets: Path
    images: int
    golden_vectors: int
    apk: Path | None
    next_command: str

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        apk = None if self.apk is None else str(self.apk)
        return {**asdict(self), "assets": str(self.assets), "apk": apk}

    def __str__(self) -> str:
        built = f"built {self.apk}\n" if self.apk else ""
        return (
            f"{self.model}, {self.quantization}, with {self.images} test images and "
            f"{self.golden_vectors} golden vectors is in {self.assets}\n"
            f"{built}next: {self.next_command}"
        )


def to_android(
    model: str | os.PathLike[str],
    app: str | os.PathLike[str] = "android_demo",
    *,
    images: str | os.PathLike[str] | None = None,
    build_apk: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> AndroidApp:
    """Puts a model into the Android app, in place of the one that is there.

    Labels, preprocessing and golden vectors are in the file, as `kdlite.export` wrote
    them. A `report.json` beside the file, as `kdlite demo` and `kdlite distill` write,
    gives the accuracies of the model card.

    Args:
        model: The `.tflite`: an image classifier that kdlite exported.
        app: The folder of the Android project.
        images: Images to try it on, at most 20 of them: a folder of PNG, JPEG, WebP,
            BMP or GIF files, or with one subfolder a class. Photos are made upright,
            and no larger than the app needs. By default, ten test images where the
            labels are Fashion-MNIST's, else none.
        build_apk: An APK to build, for a phone to install; without Gradle, see
            `android_demo/README.md`. It appears whole or not at all.
        overwrite: Whether a file at `build_apk` may be replaced.

    Returns:
        What is in the app now, and what to do next.

    Raises:
        ValueError: If the app cannot run the model, or an image cannot be read;
            nothing is changed then.
        FileNotFoundError: If there is no such file, or no app.
        FileExistsError: If there is a file at `build_apk`, and `overwrite` is False.
        OSError: If there can be no file; nothing is changed then.
        RuntimeError: If the APK cannot be built. Where that is for want of programs or
            downloads, nothing is changed.

    Example:
        ``to_android("out/student_int8.tflite", build_apk="demo.apk")``
    """
    path, app = Path(model), Path(app)
    chain = app / "ci" / "chain.py"
    if not chain.is_file():
        raise FileNotFoundError(
            f"`app` must be kdlite's Android project. Received: {str(app)!r}, without "
            "ci/chain.py. Name the folder android_demo of a clone of kdlite."
        )
    apk = None if build_apk is None else Path(build_apk)
    if apk is not None and apk.exists() and not overwrite:
        raise FileExistsError(
            f"`build_apk` must not exist. Received: {str(apk)!r}. Choose another name, "
            "or pass overwrite=True to replace it."
        )
    if apk is not None and apk.is_dir():
        raise ValueError(
            f"`build_apk` must be a file. Received: {str(apk)!r}, which is a folder. "
            "Name a file in it, such as demo.apk."
        )
    if apk is not None and apk.parent.is_dir():
        check_target(apk, overwrite)
    content, about = inspect(path), read_metadata(path)
    if problem := _problem(content, about):
        raise ValueError(
            f"The model must be one that the app can run. Received: {path}, which "
            f"{problem}"
        )
    found = dict(_labelled_images(images, about.labels, content.inputs[0].shape[1:3]))
    if apk is not None:
        # What a build needs is looked for, and fetched, before anything is changed.
        _run(chain, "fetch")
        try:
            apk.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OSError(
                "The folder of `build_apk` must be there, or possible to make. "
                f"Received: {str(apk)!r}, where {err}. Choose another."
            ) from err
    assets = app / "app" / "src" / "main" / "assets"
    with tempfile.TemporaryDirectory(dir=assets.parent, prefix=".assets-") as name:
        new = Path(name, "new")
        _fill(new, path, about, found)
        old = Path(name, "old")
        try:
            if assets.exists():
                assets.rename(old)
            new.rename(assets)
        except BaseException:  # also Ctrl-C: what was there is gone with the folder
            if old.exists() and not assets.exists():
                old.rename(assets)
            raise
    if apk is not None:
        with working_folder("android") as folder:
            _run(chain, "build", made := folder / "app.apk", folder=folder)
            put_in_place(apk, made.read_bytes(), overwrite)
    golden = (about.provenance or {}).get("golden") or {}
    scores = next(output.name for output in about.outputs if output.labels)
    return AndroidApp(
        model=about.name or path.stem,
        quantization=content.quantization,
        assets=assets,
        images=len(found),
        golden_vectors=len(golden.get("outputs", {}).get(scores, ())),
        apk=apk,
        next_command=(
            f"adb install -r {shlex.quote(str(apk))}"
            if apk
            else f"cd {shlex.quote(str(app))} && ./gradlew installDebug"
        ),
    )


def _problem(content: TFLiteFile, about: Metadata) -> str:
    """Returns why the app cannot run a file and what to do, or nothing."""
    if content.size_bytes > _MOST_BYTES:
        return f"has {content.size_bytes:,} bytes, over 256 MiB. Export a smaller one."
    if not about.inputs:
        return "has no metadata. Export it with kdlite.export(...)."
    if len(content.inputs) != 1:
        return f"has {len(content.inputs)} inputs. Export a model that takes one image."
    image, told = content.inputs[0], about.inputs[0]
    if image.size > _MOST_VALUES:
        return (
            f"takes {image.size:,} values, over {_MOST_VALUES:,}. Make images smaller."
        )
    is_image = len(image.shape) == 4 and image.shape[3] in (1, 3)
    if told.content != "image" or not is_image or image.shape[0] != 1:
        return (
            f"takes {image.dtype} {list(image.shape)}, no image. Export a model that "
            "takes (height, width, 1 or 3)."
        )
    if min(image.shape) < 1:
        return (
            f"takes images of {image.shape[1]} x {image.shape[2]}, of no size. Export "
            "it without dynamic_shape."
        )
    numbers = np.array([*told.mean, *told.std])
    if not told.mean or not np.isfinite(numbers).all() or 0 in told.std:
        return (
            "does not say how pixels become its input. Export it with `input_range`, "
            "or with `mean` and `std`."
        )
    labelled = [i for i, out in enumerate(about.outputs) if out.labels]
    if not labelled:
        return "has no labels. Export it with labels=[...]."
    # Metadata goes by the graph's order, not by that of the signature's names.
    scores = content.graph_outputs[labelled[0]]
    classes = about.outputs[labelled[0]].labels
    if scores.size != len(classes) or len(classes) < 2:
        return (
            f"gives {list(scores.shape)} scores for {len(classes)} labels. Export a "
            "classifier: (1, classes), of two classes or more, each with a label."
        )
    for tensor in (image, scores):
        if tensor.dtype not in _TYPES:
            return (
                f"has {tensor.dtype} for {tensor.name!r}. Export it with io='float32', "
                "'int8' or 'uint8'."
            )
    if content.custom_ops:
        listed = ", ".join(sorted({op.name for op in content.custom_ops}))
        return f"needs {listed}, not built into TFLite. Replace the layers."
    needed = needed_runtime(content)
    if not needed.runs_on(RUNTIME):
        release = needed.release or "a later release"
        what = f" for {needed.op}" if needed.op else ""
        return (
            f"needs TFLite {release}{what}, where the app has {RUNTIME}. Export it "
            f"with min_runtime={RUNTIME!r}."
        )
    return ""


def _labelled_images(
    folder: str | os.PathLike[str] | None,
    labels: tuple[str, ...],
    needed: tuple[int, ...],
) -> Iterator[tuple[str, tuple[str | None, bytes]]]:
    """Yields by file name the label, if known, and the content of each image."""
    if folder is None:
        yield from _fashion_images(labels)
        return
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"`images` must be a folder that exists. Received: {str(root)!r}. Name a "
            "folder of PNG or JPEG files."
        )
    files = datasets.image_files(root, _IMAGE_SUFFIXES)
    if not files:
        raise ValueError(
            f"`images` must have images. Received: {str(root)!r} without any "
            f"{', '.join(_IMAGE_SUFFIXES)}. Put some in, or leave `images` out."
        )
    # Evenly over the classes, whose folders come one after another.
    chosen = np.linspace(0, len(files) - 1, min(len(files), _MOST_IMAGES)).astype(int)
    for index, file in enumerate(files[i] for i in chosen):
        label = file.parent.name if file.parent != root else None
        suffix, content = _image(file, needed)
        yield f"{index:02d}{suffix}", (label if label in labels else None, content)


def _image(file: Path, needed: tuple[int, ...]) -> tuple[str, bytes]:
    """Returns the suffix and the content of an image as the app is to have it.

    Args:
        file: A photo, or any other image; one that is fit already is taken to the byte.
        needed: `(height, width)` of the model's input.

    Raises:
        ValueError: If it cannot be read: a broken one would leave the app without any.
    """
    from PIL import Image

    content = file.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format in _FORMATS and _is_fit(image, needed):
                return file.suffix.lower(), content
            fit, out = _fit(image, needed), io.BytesIO()
            if image.format in ("JPEG", "MPO"):  # several in one, as phones have it
                fit.save(out, "jpeg", **_JPEG)
                return ".jpg", out.getvalue()
            fit.save(out, "png")
            return ".png", out.getvalue()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise ValueError(
            f"`images` must have images that can be read. Received: {file}, which is "
            "none. Remove it, or save it anew."
        ) from err


def _share(size: tuple[int, int], needed: tuple[int, ...]) -> float:
    """How much of `(width, height)` is left; no side falls below the model's."""
    width, height = size
    largest = _MOST_SIDE / max(width, height)
    return min(1.0, max(largest, needed[1] / width, needed[0] / height))


def _is_fit(image: Image.Image, needed: tuple[int, ...]) -> bool:
    """Whether an image is upright, and has no more pixels than a phone needs."""
    turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    return not turned and _share(image.size, needed) == 1


def _fit(image: Image.Image, needed: tuple[int, ...]) -> Image.Image:
    """Makes an image upright, plain, and no larger than a phone needs."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, of which the upper 8 count
        upright = upright.point(lambda value: value / 256)
    plain = upright.convert("L" if upright.mode[0] in "1LI" else "RGB")
    share = _share(plain.size, needed)
    if share == 1:
        return plain
    size = max(1, round(plain.width * share)), max(1, round(plain.height * share))
    return plain.resize(size, Image.Resampling.LANCZOS)


def _fashion_images(
    labels: tuple[str, ...],
) -> Iterator[tuple[str, tuple[str | None, bytes]]]:
    """The first test image of each class, where the model is of Fashion-MNIST."""
    if labels != datasets.FASHION_MNIST_CLASSES or not datasets.find_fashion_mnist():
        return
    from PIL import Image

    test = datasets.fashion_mnist().test
    for index, label in enumerate(labels):
        first = int(np.flatnonzero(test.y == index)[0])
        png = io.BytesIO()
        Image.fromarray(test.x[first, :, :, 0]).save(png, "png", optimize=True)
        yield f"{index:02d}.png", (label, png.getvalue())


def _fill(
    folder: Path,
    model: Path,
    about: Metadata,
    images: Mapping[str, tuple[str | None, bytes]],
) -> None:
    (folder / "images").mkdir(parents=True)
    shutil.copyfile(model, folder / "model.tflite")
    for name, (_, content) in images.items():
        (folder / "images" / name).write_bytes(content)
    samples = [{"file": name, "label": label} for name, (label, _) in images.items()]
    (folder / "samples.json").write_text(json.dumps(samples, indent=1) + "\n")
    card = json.dumps(_card(model, about), indent=1, allow_nan=False)
    (folder / "card.json").write_text(card + "\n")


def _card(model: Path, about: Metadata) -> dict[str, Any]:
    """What was measured of the file where it was made, by the report beside it."""
    try:
        report = json.loads((model.parent / "report.json").read_text())
        # `distill_to_tflite` calls its files student_float32.tflite and so on.
        measured = report["tflite"][model.stem.removeprefix("student_")]
        on = report["settings"]["measured_on"]
        figures = {
            "teacher_top1": report["teacher"]["top1"],
            "student_top1": report["student"]["top1"],
            "file_top1": measured["top1"],
            "images": report["settings"]["samples"][on],
        }
        known = {name: told for name, told in figures.items() if math.isfinite(told)}
        return {"model_fingerprint": (about.provenance or {})["model_fingerprint"]} | (
            known
        )
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _run(chain: Path, *words: str | Path, folder: Path | None = None) -> None:
    """Runs the app's own build; what it leaves in temporary files, in `folder`."""
    with subprocess.Popen(
        [sys.executable, str(chain), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **({"TMPDIR": str(folder)} if folder else {})},
        start_new_session=True,
    ) as build:
        try:
            told, _ = build.communicate()
        except BaseException:  # Ctrl-C: compilers that it started end with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(build.pid, signal.SIGKILL)
            raise
    if build.returncode:
        raise RuntimeError(
            "The APK must be possible to build. Received: exit code "
            f"{build.returncode} of {chain}, which says:\n{told.strip()[-2000:]}"
        )
