"""What `kdlite COMMAND` takes: the arguments of each command, and how they are read.

Nothing of kdlite is imported here: a shell asks for completions at each tab.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")


_ROOT_EPILOG = """\
examples:
  kdlite demo --quick --out out
  kdlite distill teacher.keras --data train.npz --test-data test.npz -o out
  kdlite inspect out/student_int8.tflite
  kdlite COMMAND --help

Exit codes: 0 done, 1 a gate or check failed, 2 wrong use, 130 stopped by Ctrl-C.
Completion by tab: kdlite completion --help."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `kdlite COMMAND ...`; `args.command` is the command."""
    root = argparse.ArgumentParser(
        prog="kdlite",
        description="Distil a Keras teacher into a small student and a proven .tflite.",
        epilog=_ROOT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action=_Version, nargs=0, help="print versions")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, words: str, *examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=words,
            description=words,
            epilog="\n  ".join(["examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.add_argument(
            "-v", "--verbose", action="count", default=0, help="say more, twice: all"
        )
        return sub

    def overwritable(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--overwrite", action="store_true", help="replace what is there"
        )

    def described(sub: argparse.ArgumentParser) -> None:
        for name, words in (
            ("description", "what the model does"),
            ("author", "who made it"),
            ("license", "under which terms"),
        ):
            told = f"{words}, in the metadata and the model card"
            sub.add_argument(f"--{name}", default="", help=told)
        sub.add_argument(
            "--intended-use",
            default="",
            help="what it is for and what not, in the model card",
        )

    def ranged(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--input-range",
            type=float,
            nargs=2,
            metavar=("LO", "HI"),
            help="what pixels from 0 to 255 become before they go into the model, such "
            "as 0 1 (what the samples look like)",
        )

    def measured(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--country",
            help="where the electricity comes from, such as FRA: estimate energy and "
            "CO2 (pip install 'kdlite[energy]')",
        )

    demo = command(
        "demo",
        "Distil Fashion-MNIST to an int8 .tflite, with a report.",
        "kdlite demo --quick --out out",
        "kdlite demo --seeds 3 --out out --json > figures.json",
        "kdlite demo --train-teacher --out out --overwrite",
    )
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder to write")
    demo.add_argument(
        "--quick", action="store_true", help="a part of the data: a minute or two"
    )
    demo.add_argument(
        "--seeds", type=int, default=1, help="repetitions (default %(default)s)"
    )
    demo.add_argument(
        "--train-teacher",
        action="store_true",
        help="train the teacher anew, an hour or more",
    )
    measured(demo)
    overwritable(demo)

    distill = command(
        "distill",
        "Distil your own teacher to an int8 .tflite, with a report.",
        "kdlite distill teacher.keras --student student.keras --data train.npz "
        "--test-data test.npz -o out",
        "kdlite distill teacher.keras --max-bytes 500KB --data images --labels "
        "labels.txt -o out",
        "kdlite distill teacher.keras --ratio 20 --epochs 60 --temperature 2 --data "
        "train.npz --validation-data held_back.npz -o out --overwrite",
    )
    distill.add_argument("teacher", type=Path, help="the trained model, a .keras file")
    size = distill.add_mutually_exclusive_group()
    size.add_argument("--student", type=Path, help="the model to train, a .keras file")
    size.add_argument(
        "--ratio",
        type=float,
        help="without --student: how many times smaller the int8 file is to be than "
        "the teacher's float32 file (10)",
    )
    size.add_argument(
        "--max-bytes",
        type=_size,
        help="without --student: most bytes of the int8 file, such as 500KB",
    )
    distill.add_argument(
        "--data",
        type=Path,
        required=True,
        help="an .npz with x and y, or a folder with one subfolder of images a class",
    )
    distill.add_argument("--validation-data", type=Path, help="like --data")
    distill.add_argument("--test-data", type=Path, help="like --data")
    distill.add_argument("--labels", type=Path, help="class names, one a line")
    distill.add_argument("--epochs", type=int, default=30, help="(%(default)s)")
    distill.add_argument("--qat-epochs", type=int, default=2, help="(%(default)s)")
    distill.add_argument("--batch-size", type=int, default=128, help="(%(default)s)")
    distill.add_argument(
        "--learning-rate", type=float, default=3e-3, help="(%(default)s)"
    )
    distill.add_argument("--temperature", type=float, default=4.0, help="(%(default)s)")
    distill.add_argument(
        "--hard-loss-weight", type=float, default=0.1, help="(%(default)s)"
    )
    distill.add_argument(
        "--soft-loss-weight", type=float, default=0.9, help="(%(default)s)"
    )
    distill.add_argument(
        "--quantization", choices=["int8"], default="int8", help="(%(default)s)"
    )
    distill.add_argument(
        "--no-baseline",
        dest="baseline",
        action="store_false",
        help="do not train the same student without a teacher beside it",
    )
    ranged(distill)
    described(distill)
    measured(distill)
    distill.add_argument(
        "-o", "--out", type=Path, required=True, help="folder to write"
    )
    overwritable(distill)

    label = command(
        "label",
        "Store a teacher's outputs on a data set.",
        "kdlite label teacher.keras --data train.npz -o labels",
        "kdlite label teacher.keras --data train.npz -o labels --top-k 10 --dtype "
        "float16",
        "kdlite label teacher.keras --data train.npz -o labels --shard 1/4",
        "kdlite label --merge -o labels",
    )
    label.add_argument(
        "teacher", type=Path, nargs="?", help="the trained model, a .keras file"
    )
    label.add_argument("--data", type=Path, help=".npz or image folder")
    label.add_argument("--labels", type=Path, help="class names, one a line")
    label.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="(%(default)s)",
    )
    label.add_argument(
        "--top-k", type=int, metavar="K", help="store the K likeliest classes (all)"
    )
    label.add_argument(
        "--feature",
        action="append",
        default=[],
        metavar="LAYER",
        help="a layer whose features are stored too, such as backbone/block3; "
        "repeatable",
    )
    label.add_argument(
        "--max-feature-bytes",
        type=_size,
        default="4GB",
        help="most bytes of these, such as 500MB (%(default)s)",
    )
    label.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="label every N-th sample from the I-th on, 1/N to N/N: for N workers",
    )
    label.add_argument(
        "--merge", action="store_true", help="put the shards in --out together"
    )
    label.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    overwritable(label)

    export = command(
        "export",
        "Convert a Keras model to a .tflite that was checked against it.",
        "kdlite export student.keras -o student.tflite",
        "kdlite export student.keras -o student.tflite --quantization int8 "
        "--calibration-data calib.npz --labels labels.txt",
        "kdlite export student.keras -o student.tflite --quantization int8 "
        "--calibration-data images --io uint8 --verify-data test.npz --overwrite",
        "kdlite export student.keras -o student.tflite --quantization int8 "
        "--calibration-data calib.npz --override 'head/*=float32'",
    )
    export.add_argument("model", type=Path, help="a .keras file")
    export.add_argument(
        "-o", "--out", type=Path, required=True, help=".tflite to write"
    )
    export.add_argument(
        "--quantization",
        choices=[
            *("float32", "float16", "weight_only", "dynamic"),
            *("int8", "int16x8", "int4"),
        ],
        default="float32",
        help="(%(default)s)",
    )
    export.add_argument("--calibration-data", type=Path, help=".npz or image folder")
    export.add_argument("--verify-data", type=Path, help=".npz or image folder")
    export.add_argument("--labels", type=Path, help="class names, one a line")
    export.add_argument(
        "--io",
        choices=["float32", "int8", "uint8", "int16"],
        default="float32",
        help="type of the file's input and output (%(default)s)",
    )
    export.add_argument(
        "--min-runtime",
        default="2.16.1",
        help="oldest TensorFlow Lite that must run it (%(default)s)",
    )
    export.add_argument(
        "--allow-float-op",
        action="append",
        default=[],
        metavar="OP",
        help="an op that may stay float in int8, such as NEG; repeatable",
    )
    export.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="LAYER=TYPE",
        help="a layer, or a pattern such as 'head/*', that stays in float32 or "
        "float16; repeatable",
    )
    export.add_argument(
        "--engine", choices=["tflite", "aeq"], help="what quantizes (the recipe's own)"
    )
    export.add_argument("--batch-size", type=int, default=1, help="(%(default)s)")
    export.add_argument(
        "--dynamic-shape",
        action="store_true",
        help="leave lengths open that the model leaves open",
    )
    export.add_argument(
        "--allow-select-tf-ops",
        action="store_true",
        help="allow operations for which an app needs the Select TF ops library",
    )
    ranged(export)
    for name in ("mean", "std"):
        export.add_argument(
            f"--{name}",
            type=float,
            nargs="+",
            metavar="X",
            help="the model was trained on (pixels - mean) / std, and the file is to "
            "take the pixels: one number, or one a channel",
        )
    described(export)
    export.add_argument(
        "--time-limit-s", type=float, default=600.0, help="(%(default)s)"
    )
    export.add_argument(
        "--memory-limit-bytes",
        type=_size,
        help="most memory of the converter, such as 4GB (none)",
    )
    overwritable(export)

    inspect = command(
        "inspect",
        "Show what is inside a .tflite.",
        "kdlite inspect student.tflite",
        "kdlite inspect student.tflite --html student.html",
        "kdlite inspect student.tflite --json > student.json",
    )
    inspect.add_argument("file", type=Path, help="any .tflite")
    inspect.add_argument("--html", type=Path, help="also write a page with the graph")
    overwritable(inspect)

    verify = command(
        "verify",
        "Check a .tflite against its Keras model.",
        "kdlite verify student.tflite student.keras --data test.npz",
        "kdlite verify student.tflite student.keras --data images --top1-agreement "
        "0.995",
    )
    verify.add_argument("file", type=Path, help="the .tflite")
    verify.add_argument("model", type=Path, help="the .keras file it came from")
    verify.add_argument("--data", type=Path, required=True, help=".npz or image folder")
    verify.add_argument(
        "--labels", type=Path, help="class names, one a line (those in the file)"
    )
    verify.add_argument(
        "--top1-agreement",
        type=float,
        help="least share of equal predictions (0.99 where outputs are scores)",
    )

    doctor = command(
        "doctor",
        "Look for every known failure before training: no finding, exit code 0.",
        "kdlite doctor teacher.keras --student student.keras --data train.npz",
        "kdlite doctor teacher.keras --student student.keras --data train.npz --allow "
        "student-larger --samples 1024",
    )
    doctor.add_argument("teacher", type=Path, help="the trained model, a .keras file")
    doctor.add_argument(
        "--student", type=Path, required=True, help="the model to train, a .keras file"
    )
    doctor.add_argument("--data", type=Path, required=True, help=".npz or image folder")
    doctor.add_argument("--labels", type=Path, help="class names, one a line")
    doctor.add_argument("--batch-size", type=int, default=128, help="(%(default)s)")
    doctor.add_argument("--temperature", type=float, default=4.0, help="(%(default)s)")
    doctor.add_argument(
        "--quantization",
        choices=["float32", "int8"],
        default="int8",
        help="what the student will be exported as (%(default)s)",
    )
    doctor.add_argument(
        "--samples",
        type=int,
        default=256,
        help="how many to run both models on (%(default)s)",
    )
    doctor.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CODE",
        help="a finding to leave out, such as student-larger; repeatable",
    )

    benchmark = command(
        "benchmark",
        "Time .tflite files in LiteRT on this computer, interleaved.",
        "kdlite benchmark teacher.tflite student.tflite",
        "kdlite benchmark teacher.tflite student.tflite --threads 4 --runs 1000",
    )
    benchmark.add_argument("files", type=Path, nargs="+", help=".tflite files")
    benchmark.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    benchmark.add_argument("--runs", type=int, default=200, help="(%(default)s)")
    benchmark.add_argument(
        "--warmup", type=int, default=20, help="runs that do not count (%(default)s)"
    )

    android = command(
        "android",
        "Put a .tflite into the Android app, and build it.",
        "kdlite android out/student_int8.tflite --build-apk demo.apk",
        "kdlite android out/student_int8.tflite --app android_demo --images photos",
    )
    android.add_argument("model", type=Path, help="a .tflite that kdlite exported")
    android.add_argument(
        "--app",
        type=Path,
        default=Path("android_demo"),
        help="the Android project (%(default)s)",
    )
    android.add_argument("--images", type=Path, help="folder of images to try it on")
    android.add_argument("--build-apk", type=Path, help="APK to build")
    overwritable(android)

    completion = command(
        "completion",
        "Print what a shell needs to complete kdlite's commands by tab.",
        'eval "$(kdlite completion bash)"    # in ~/.bashrc',
        'eval "$(kdlite completion zsh)"     # in ~/.zshrc, after compinit',
        "kdlite completion fish | source     # in ~/.config/fish/config.fish",
    )
    completion.add_argument("shell", choices=SHELLS, help="which one")
    for sub in commands.choices.values():
        for action in sub._actions:
            if action.type is Path:
                _complete_files(action)
    return root


def _complete_files(action: argparse.Action) -> None:
    """Has shells offer, beside folders, the files that an argument's help names."""
    suffixes = re.findall(r"\.(keras|tflite|npz)\b", action.help or "")

    def complete(prefix: str, **_: Any) -> list[str]:
        from argcomplete.completers import FilesCompleter  # loaded at a tab alone

        return FilesCompleter(suffixes)(prefix)

    action.completer = complete  # type: ignore[attr-defined]


def _shard(text: str) -> tuple[int, int]:
    """Reads `i/n`; what is out of range, `SoftLabels.build` says."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"A shard must be like 1/4, the first of four. Received: {text!r}."
        )
    return int(match[1]), int(match[2])


def _size(text: str) -> int:
    """Reads a size in bytes; a KB is 1000 of them, and a KiB 1024."""
    match = re.fullmatch(r"([\d.]+)\s*(?:([kMG])(i?)B)?", text.replace("K", "k"))
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if not match or not number:
        raise argparse.ArgumentTypeError(
            "A size must be like 500KB, 1.5MB, 4GB, 64KiB or 500000. Received: "
            f"{text!r}."
        )
    power = {None: 0, "k": 1, "M": 2, "G": 3}[match[2]]
    return int(number * (1024 if match[3] else 1000) ** power)


class _Version(argparse.Action):
    """Prints the versions that matter, without loading any of the packages."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        for name in ("kdlite", "tensorflow", "keras", "ai-edge-litert", "numpy"):
            try:
                print(name, version(name))
            except PackageNotFoundError:
                print(name, "not installed")
        print("python", sys.version.split()[0])
        parser.exit()
