"""What `kdlite COMMAND` takes: the arguments of each command, and how they are read.

Nothing of kdlite is imported here: a shell asks for completions at each tab.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")


_ROOT_EPILOG = """\
examples:
  kdlite demo --quick --out out
  kdlite distill teacher.keras --data train.npz --test-data test.npz -o out
  kdlite inspect out/student_int8.tflite
  kdlite COMMAND --help

Exit codes: 0 done, 1 a gate or check failed, 2 wrong use, 130 Ctrl-C.
Completion by tab: kdlite completion --help."""


class _Command(argparse.ArgumentParser):
    """What one command takes, said in few words; `--help` says all of it."""

    def switch(self, flag: str, words: str) -> None:
        self.add_argument(flag, action="store_true", help=words)

    def number(self, flag: str, start: float, words: str) -> None:
        """A number, whole where its default is."""
        whole = isinstance(start, int)
        self.add_argument(
            flag,
            type=int if whole else float,
            metavar="N" if whole else "X",
            default=start,
            help=f"{words} (default %(default)s)",
        )

    def size(self, flag: str, words: str, **more: Any) -> None:
        self.add_argument(flag, type=_size, metavar="SIZE", help=words, **more)

    def path(self, flag: str, kind: str, words: str, **more: Any) -> None:
        self.add_argument(flag, type=Path, metavar=kind, help=words, **more)

    def out(self, kind: str, words: str) -> None:
        self.add_argument(
            "-o", "--out", type=Path, metavar=kind, required=True, help=words
        )

    def choice(self, flag: str, choices: Sequence[str], start: str, words: str) -> None:
        many = len(choices) > 4  # too wide a usage
        self.add_argument(
            flag,
            choices=choices,
            metavar="TYPE" if many else None,
            default=start,
            help=f"{words}{': ' + ', '.join(choices) if many else ''} (default "
            "%(default)s)",
        )

    def repeatable(self, flag: str, kind: str, words: str) -> None:
        self.add_argument(
            flag, action="append", default=[], metavar=kind, help=f"{words}; repeatable"
        )

    # What several commands have.

    def overwritable(self) -> None:
        self.switch("--overwrite", "replace what is there")

    def labels(self, otherwise: str) -> None:
        words = "class names in the order of the outputs, one a line"
        self.path("--labels", "FILE", f"{words} (default: {otherwise})")

    def described(self) -> None:
        for flag, words in (
            (
                "--description",
                "what the model does, in the metadata and the model card",
            ),
            ("--author", "who made it, in the metadata and the model card"),
            ("--license", "under which terms, in the metadata and the model card"),
            ("--intended-use", "what it is for and what not, in the model card"),
        ):
            self.add_argument(flag, metavar="TEXT", default="", help=words)

    def ranged(self) -> None:
        self.add_argument(
            "--input-range",
            type=float,
            nargs=2,
            metavar=("LO", "HI"),
            help="what pixels from 0 to 255 become before they go into the model, such "
            "as 0 1 (default: what the samples look like)",
        )

    def measured(self) -> None:
        self.add_argument(
            "--country",
            metavar="ABC",
            help="where the electricity comes from, such as FRA: estimate energy and "
            "CO2 (pip install 'kdlite[energy]')",
        )

    def seeds(self, where: str = "") -> None:
        self.number(
            "--seeds",
            1,
            "trainings, each with its own start and order: means and standard "
            "deviations in the report, the files of the one that is best on validation "
            f"data{where}",
        )


_LABELLED = "an .npz with x and y, or a folder with one subfolder of images a class"
_SAMPLES = "an .npz with x, or a folder of images"
_NAMES_OF_FOLDER = "the folder's names, else numbers"


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `kdlite COMMAND ...`; `args.command` is the command."""
    root = argparse.ArgumentParser(
        prog="kdlite",
        description="Distil a Keras teacher into a small student and a proven .tflite.",
        epilog=_ROOT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action=_Version, nargs=0, help="print versions")
    commands = root.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Command
    )

    def command(name: str, words: str, *examples: str) -> _Command:
        sub = commands.add_parser(
            name,
            help=words,
            description=words,
            epilog="\n  ".join(["examples:", *map(_wrapped, examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.switch("--json", "print the result as JSON")
        sub.add_argument(
            "-v", "--verbose", action="count", default=0, help="say more, twice: all"
        )
        return sub

    demo = command(
        "demo",
        "Distil Fashion-MNIST to an int8 .tflite, with a report.",
        "kdlite demo --quick --out out",
        "kdlite demo --seeds 3 --out out --json > figures.json",
        "kdlite demo --train-teacher --out out --overwrite",
    )
    demo.path(
        "--out", "FOLDER", "folder to write (default %(default)s)", default=Path("out")
    )
    demo.switch("--quick", "a part of the data: a minute or two")
    demo.seeds()
    demo.switch("--train-teacher", "train the teacher anew, an hour or more")
    demo.measured()
    demo.overwritable()

    distill = command(
        "distill",
        "Distil your own teacher to an int8 .tflite, with a report.",
        "kdlite distill teacher.keras --student student.keras --data train.npz "
        "--test-data test.npz -o out",
        "kdlite distill teacher.keras --max-bytes 500KB --data images --labels "
        "labels.txt -o out",
        "kdlite distill teacher.keras --ratio 20 --epochs 60 --temperature 2 --data "
        "train.npz --validation-data held_back.npz -o out --overwrite",
        "kdlite distill teacher.keras --seeds 3 --data train.npz --test-data test.npz "
        "-o out",
    )
    distill.add_argument("teacher", type=Path, help="the trained model, a .keras file")
    size = distill.add_mutually_exclusive_group()
    size.add_argument(
        "--student",
        type=Path,
        metavar="FILE",
        help="the model to train, a .keras file (default: one made from the teacher)",
    )
    size.add_argument(
        "--ratio",
        type=float,
        metavar="X",
        help="without --student: how many times smaller the int8 file is to be than "
        "the teacher's float32 file (default 10)",
    )
    size.add_argument(
        "--max-bytes",
        type=_size,
        metavar="SIZE",
        help="without --student: most bytes of the int8 file, such as 500KB",
    )
    distill.path("--data", "DATA", f"to train on: {_LABELLED}", required=True)
    distill.path(
        "--validation-data",
        "DATA",
        "like --data: watched during training; the best of several --seeds is chosen "
        "on it (default: a tenth of --data, where it is needed)",
    )
    distill.path(
        "--test-data",
        "DATA",
        "like --data: what the report's figures are taken on (default: the validation "
        "data)",
    )
    distill.labels(_NAMES_OF_FOLDER)
    distill.number("--epochs", 30, "passes over --data, 1 or more")
    distill.number("--qat-epochs", 2, "more of them with int8 rounding, 1 or more")
    distill.number("--batch-size", 128, "samples a step; fewer take less memory")
    distill.number(
        "--learning-rate",
        3e-3,
        "the largest of AdamW's steps, above 0; less where a loss rises or is NaN",
    )
    distill.number(
        "--temperature",
        4.0,
        "what logits are divided by in the soft loss, above 0: more tells more of how "
        "alike the wrong classes are",
    )
    distill.number("--hard-loss-weight", 0.1, "how much labels count, 0 or more")
    distill.number(
        "--soft-loss-weight", 0.9, "how much the teacher's outputs count, 0 or more"
    )
    distill.choice(
        "--quantization",
        ["int8"],
        "int8",
        "what the file computes in; there is a float32 one beside it",
    )
    distill.seeds("; not with --student, which has one start")
    distill.add_argument(
        "--no-baseline",
        dest="baseline",
        action="store_false",
        help="do not train the same student without a teacher beside it",
    )
    distill.ranged()
    distill.described()
    distill.measured()
    distill.out("FOLDER", "folder to write")
    distill.overwritable()

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
    label.path("--data", "DATA", f"what the teacher is run on: {_SAMPLES}")
    label.labels(_NAMES_OF_FOLDER)
    label.choice(
        "--dtype",
        ["float32", "float16"],
        "float32",
        "how outputs are stored; float16 takes half the space",
    )
    label.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="store the K likeliest classes, and the mass of the rest (default: all)",
    )
    label.repeatable(
        "--feature",
        "LAYER",
        "a layer whose features are stored too, such as backbone/block3",
    )
    label.size(
        "--max-feature-bytes",
        "most bytes of these, such as 500MB (default %(default)s)",
        default="4GB",
    )
    label.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="label every N-th sample from the I-th on, 1/N to N/N: for N workers",
    )
    label.switch("--merge", "put the shards in --out together")
    label.out("FOLDER", "folder to write")
    label.overwritable()

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
    export.out("FILE", ".tflite to write; its model card goes beside it")
    export.choice(
        "--quantization",
        [
            *("float32", "float16", "weight_only", "dynamic"),
            *("int8", "int16x8", "int4"),
        ],
        "float32",
        "what weights are stored and computed in",
    )
    export.path(
        "--calibration-data",
        "DATA",
        f"{_SAMPLES}: 100 or more as the app will see, which show int8, int16x8 and "
        "int4 the ranges of values",
    )
    export.path(
        "--verify-data",
        "DATA",
        f"{_SAMPLES}: what file and model are compared on, and how often each is right "
        "where there is y or a subfolder a class (default: --calibration-data, else "
        "random values)",
    )
    export.labels("none in the file")
    export.choice(
        "--io",
        ["float32", "int8", "uint8", "int16"],
        "float32",
        "type of the file's input and output",
    )
    export.add_argument(
        "--min-runtime",
        metavar="VERSION",
        default="2.16.1",
        help="oldest TensorFlow Lite that must run it (default %(default)s)",
    )
    export.repeatable(
        "--allow-float-op", "OP", "an op that may stay float in int8, such as NEG"
    )
    export.repeatable(
        "--override",
        "LAYER=TYPE",
        "a layer, or a pattern such as 'head/*', that stays in float32 or float16",
    )
    export.add_argument(
        "--engine",
        choices=["tflite", "aeq"],
        help="what quantizes: TensorFlow's converter or ai-edge-quantizer (default: "
        "the converter where it can)",
    )
    export.number("--batch-size", 1, "samples that each run of the file takes")
    export.switch("--dynamic-shape", "leave lengths open that the model leaves open")
    export.switch(
        "--allow-select-tf-ops",
        "allow operations for which an app needs the Select TF ops library",
    )
    export.ranged()
    for flag in ("--mean", "--std"):
        export.add_argument(
            flag,
            type=float,
            nargs="+",
            metavar="X",
            help="the model was trained on (pixels - mean) / std, and the file is to "
            "take the pixels: one number, or one a channel",
        )
    export.described()
    export.number("--time-limit-s", 600.0, "seconds that the converter may take")
    export.size(
        "--memory-limit-bytes",
        "most memory that the converter may take, such as 4GB (default: all there is)",
    )
    export.overwritable()

    inspect = command(
        "inspect",
        "Show what is inside a .tflite.",
        "kdlite inspect student.tflite",
        "kdlite inspect student.tflite --html student.html",
        "kdlite inspect student.tflite --json > student.json",
    )
    inspect.add_argument("file", type=Path, help="any .tflite")
    inspect.path("--html", "FILE", "also write a page with the graph")
    inspect.overwritable()

    verify = command(
        "verify",
        "Check a .tflite against its Keras model.",
        "kdlite verify student.tflite student.keras --data test.npz",
        "kdlite verify student.tflite student.keras --data images --top1-agreement "
        "0.995",
    )
    verify.add_argument("file", type=Path, help="the .tflite")
    verify.add_argument("model", type=Path, help="the .keras file it came from")
    verify.path("--data", "DATA", f"what both are run on: {_SAMPLES}", required=True)
    verify.labels("those in the file")
    verify.add_argument(
        "--top1-agreement",
        type=float,
        metavar="X",
        help="least share of equal predictions, 0 to 1 (default 0.99 where outputs are "
        "scores)",
    )

    doctor = command(
        "doctor",
        "Look for every known failure before training: no finding, exit code 0.",
        "kdlite doctor teacher.keras --student student.keras --data train.npz",
        "kdlite doctor teacher.keras --student student.keras --data train.npz --allow "
        "student-larger --samples 1024",
    )
    doctor.add_argument("teacher", type=Path, help="the trained model, a .keras file")
    doctor.path("--student", "FILE", "the model to train, a .keras file", required=True)
    doctor.path("--data", "DATA", f"to train on: {_LABELLED}", required=True)
    doctor.labels(_NAMES_OF_FOLDER)
    doctor.number("--batch-size", 128, "samples a step of the training to come")
    doctor.number("--temperature", 4.0, "of its soft loss, above 0")
    doctor.choice(
        "--quantization",
        ["float32", "int8"],
        "int8",
        "what the student will be exported as",
    )
    doctor.number("--samples", 256, "how many samples to run both models on")
    doctor.repeatable(
        "--allow", "CODE", "a finding to leave out, such as student-larger"
    )

    benchmark = command(
        "benchmark",
        "Time .tflite files in LiteRT on this computer, interleaved.",
        "kdlite benchmark teacher.tflite student.tflite",
        "kdlite benchmark teacher.tflite student.tflite --threads 4 --runs 1000",
    )
    benchmark.add_argument("files", type=Path, nargs="+", help=".tflite files")
    benchmark.number("--threads", 1, "processor threads of a run")
    benchmark.number("--runs", 200, "timed runs of each file")
    benchmark.number("--warmup", 20, "runs of each file before, which do not count")

    android = command(
        "android",
        "Put a .tflite into the Android app, and build it.",
        "kdlite android out/student_int8.tflite --build-apk demo.apk",
        "kdlite android out/student_int8.tflite --app android_demo --images photos",
    )
    android.add_argument("model", type=Path, help="a .tflite that kdlite exported")
    android.path(
        "--app",
        "FOLDER",
        "the Android project (default %(default)s)",
        default=Path("android_demo"),
    )
    android.path("--images", "FOLDER", "images to try it on, which the app shows")
    android.path("--build-apk", "FILE", "also build the app, and put its APK here")
    android.overwritable()

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


def _wrapped(example: str) -> str:
    """A call in lines that fit a terminal, each but the first from an option on."""
    joined = re.sub(r" (?!-)", "\0", example)
    lines = textwrap.wrap(joined, 76, break_long_words=False, break_on_hyphens=False)
    return " \\\n      ".join(lines).replace("\0", " ")


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
