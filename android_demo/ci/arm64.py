"""The library of phones, arm64-v8a, under qemu against what Python makes of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bionic
from tools import HERE, ChainError, Tools, run

# Emulated: a few images a model are enough to tell.
IMAGES = 20


def check(tools: Tools, data: Path, folder: Path) -> None:
    """Runs every recipe's model; raises where one is off by more than it may be."""
    compiler = "aarch64-linux-gnu-gcc"
    bionic.make_loadable(tools.native("arm64-v8a"), folder, compiler)
    program = folder / "run"
    run(compiler, "-O1", "-o", program, HERE / "arm64/run.c", "-ldl", "-lm")
    for case in json.loads((data / "models/cases.json").read_text()):
        files = data / "models" / case["name"]
        said = run(
            *("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"),
            *("-E", f"LD_LIBRARY_PATH={folder}", program),
            *(files / "model.tflite", files / "pixels.u8", files / "outputs.f32"),
            *(IMAGES, case["mean"], case["std"]),
        )
        version, images, same, unequal, worst = said.split()[-5:]
        print(
            f"arm64, TFLite {version}, {case['name']}: {same} of {images} of the same "
            f"class, {unequal} values not equal to the bit, off by {worst} at most "
            f"(limit {case['tolerance']:.3g})",
            file=sys.stderr,
        )
        wrong = float(worst) > case["tolerance"] or int(same) < int(images) - 1
        wrong |= int(unequal) > case["unequal"]
        if wrong or version != "2.16.1":
            raise ChainError(f"The arm64 library must do what LiteRT does. {said}")
