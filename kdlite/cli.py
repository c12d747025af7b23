"""The command line: `kdlite COMMAND`, each a thin dress over one public function.

Results go to stdout (`--json` for machines), everything else to stderr. Exit codes:
0 done, 1 a gate or a check failed, 2 wrong use.
"""

from __future__ import annotations

# TensorFlow takes seconds to load: each command imports what it needs when it runs, so
# that `--help` answers at once.
import argparse
import contextlib
import errno
import json
import logging
import os
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_Command = Callable[[argparse.Namespace], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments, `sys.argv[1:]` by default.

    Returns:
        The exit code: 0 done, 1 a gate or check failed, 2 wrong use.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("kdlite").setLevel(
        logging.DEBUG if args.verbose > 1 else logging.INFO
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not args.verbose:
        # It warns of retracing where several models take turns.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        _load_tensorflow()
        # Keras's progress bars go to stdout: there only the result belongs.
        with contextlib.redirect_stdout(sys.stderr):
            result = args.run(args)
    except KeyboardInterrupt:
        print(
            "kdlite: stopped. Nothing half-done was left in place; the same command "
            "goes on where it was.",
            file=sys.stderr,
        )
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as err:
        if args.verbose > 1:
            raise
        print(f"kdlite {args.command}: {_in_its_words(err)}", file=sys.stderr)
        return 1 if _is_failed_check(err) else 2
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print(result)
    return 0 if getattr(result, "passed", True) else 1


def _load_tensorflow() -> None:
    """Imports TensorFlow without its start-up lines, which no setting turns off."""
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _in_its_words(err: Exception) -> str:
    """What an error says, in the command line's terms."""
    text = str(err).replace("pass overwrite=True", "give --overwrite")
    text = text.replace("overwrite=True", "--overwrite")
    # h5py has the system's number in its text alone.
    if getattr(err, "errno", None) == errno.ENOSPC or f"errno = {errno.ENOSPC}" in text:
        return (
            "There must be room for the files. Received: a full disk. Free some, and "
            "give the same command again: it goes on where it was."
        )
    return text


def _is_failed_check(err: Exception) -> bool:
    from kdlite.lite.verify import VerificationError

    return isinstance(err, VerificationError)


def _demo(args: argparse.Namespace) -> Any:
    from kdlite.demo.run import run_demo

    return run_demo(
        args.out,
        quick=args.quick,
        seeds=args.seeds,
        retrain_teacher=args.train_teacher,
        overwrite=args.overwrite,
    )


def _distill(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.pipeline import distill_to_tflite

    teacher = _load_model(args.teacher)
    student = _load_model(args.student) if args.student else None
    labels = _read_labels(args.labels)

    def load(path: Path | None) -> datasets.Samples | None:
        return datasets.load(path, teacher.input_shape[1:], labels) if path else None

    train, validation, test = map(
        load, (args.data, args.validation_data, args.test_data)
    )
    if train is None:
        raise ValueError(
            "`--data` is needed. Received: none. Name an .npz or a folder."
        )
    if validation is None and test is None:
        train, validation = train.split(0.1)
        logging.getLogger(__name__).info(
            "no --validation-data: every tenth sample of --data is held back for it"
        )
    return distill_to_tflite(
        teacher,
        (train.x, train.y),
        student,
        ratio=args.ratio,
        max_bytes=args.max_bytes,
        validation=(validation.x, validation.y) if validation else None,
        test=(test.x, test.y) if test else None,
        labels=labels or train.class_names,
        epochs=args.epochs,
        qat_epochs=args.qat_epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        temperature=args.temperature,
        hard_loss_weight=args.hard_loss_weight,
        soft_loss_weight=args.soft_loss_weight,
        quantization=args.quantization,
        baseline=args.baseline,
        out=args.out,
        overwrite=args.overwrite,
    )


def _label(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.distill.soft_labels import SoftLabels

    if args.merge:
        if args.teacher or args.data or args.shard:
            raise ValueError(
                "`--merge` takes shards that are there. Received: a teacher, data or a "
                "shard beside it. Give: kdlite label --merge -o FOLDER."
            )
        return SoftLabels.merge(args.out, overwrite=args.overwrite)
    if args.teacher is None or args.data is None:
        raise ValueError(
            "A teacher and `--data` are needed. Received: one of them is missing. "
            "Give: kdlite label teacher.keras --data train.npz -o FOLDER."
        )
    teacher = _load_model(args.teacher)
    samples = datasets.load(
        args.data, teacher.input_shape[1:], _read_labels(args.labels), needs_y=False
    )
    return SoftLabels.build(
        teacher,
        samples.x,
        args.out,
        overwrite=args.overwrite,
        dtype=args.dtype,
        top_k=args.top_k,
        shard=args.shard,
    )


def _shard(text: str) -> tuple[int, int]:
    """Reads `i/n`; what is out of range, `SoftLabels.build` says."""
    index, _, count = text.partition("/")
    return int(index), int(count)


def _export(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.lite.convert import export

    model = _load_model(args.model)
    labels = _read_labels(args.labels)
    verify_data = calibration = None
    if args.verify_data:
        samples = datasets.load(
            args.verify_data, model.input_shape[1:], labels, needs_y=False
        )
        verify_data = samples.x if samples.y is None else (samples.x, samples.y)
    if args.calibration_data:
        calibration = datasets.load(
            args.calibration_data, model.input_shape[1:], labels, needs_y=False
        ).x
    return export(
        model,
        args.out,
        args.quantization,
        calibration_data=calibration,
        labels=labels,
        io=args.io,
        verify_data=verify_data,
        min_runtime=args.min_runtime,
        allow_float_ops=tuple(args.allow_float_op),
        overrides=_overrides(args.override),
        engine=args.engine,
        batch_size=args.batch_size,
        dynamic_shape=args.dynamic_shape,
        allow_select_tf_ops=args.allow_select_tf_ops,
        description=args.description,
        author=args.author,
        license=args.license,
        time_limit_s=args.time_limit_s,
        memory_limit_bytes=args.memory_limit_bytes,
        overwrite=args.overwrite,
    )


def _overrides(texts: Sequence[str]) -> dict[str, str]:
    """Returns `["head/*=float32"]` as a mapping."""
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ValueError(
            "`--override` must be LAYER=TYPE. Received: "
            f"{wrong[0]!r}. Give for example --override 'head/*=float32'."
        )
    return {layer: kind for layer, _, kind in (text.rpartition("=") for text in texts)}


def _inspect(args: argparse.Namespace) -> Any:
    from kdlite.lite.file_report import describe
    from kdlite.lite.in_place import check_target, put_in_place

    if args.html is not None:
        check_target(args.html, args.overwrite)
    report = describe(args.file)
    if args.html is not None:
        put_in_place(args.html, report.to_html().encode(), args.overwrite)
    return report


def _verify(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.lite.verify import VerificationError, verify

    model = _load_model(args.model)
    samples = datasets.load(args.data, model.input_shape[1:], needs_y=False)
    data = samples.x if samples.y is None else (samples.x, samples.y)
    report = verify(args.file, model, data)
    try:
        report.require(top1_agreement=args.top1_agreement)
    except VerificationError as err:
        return _Failed(report, err)
    return report


class _Failed:
    """A comparison that was made, and does not hold."""

    passed = False

    def __init__(self, report: Any, err: Any) -> None:
        self.report = report
        self.err = err

    def to_dict(self) -> dict[str, Any]:
        return {**self.report.to_dict(), "problems": list(self.err.problems)}

    def __str__(self) -> str:
        return str(self.err)


def _android(args: argparse.Namespace) -> Any:
    from kdlite.android import to_android

    return to_android(
        args.model,
        args.app,
        images=args.images,
        build_apk=args.build_apk,
        overwrite=args.overwrite,
    )


def _benchmark(args: argparse.Namespace) -> Any:
    from kdlite.lite.benchmark import benchmark

    return benchmark(
        args.files, threads=args.threads, runs=args.runs, warmup=args.warmup
    )


def _load_model(path: Path) -> Any:
    import keras

    # Registers kdlite's own layers, which a quantization-aware model is made of.
    import kdlite.compress.qat  # noqa: F401

    if not path.exists():
        raise FileNotFoundError(
            f"A model file must exist. Received: {path}, which is not there. Name a "
            ".keras file."
        )
    old_format = path.suffix in (".h5", ".hdf5")
    if not path.is_file() or not (old_format or zipfile.is_zipfile(path)):
        raise ValueError(
            f"A model must be a .keras file. Received: {path}, which is "
            f"{'a folder' if path.is_dir() else 'another file'}. Save the model with "
            "model.save('name.keras')."
        )
    try:
        return keras.models.load_model(path)
    except Exception as err:  # whatever a broken file makes Keras raise
        raise ValueError(
            f"A model must be a file that Keras can load. Received: {path}, and Keras "
            f"says: {err} Save it with model.save('name.keras')."
        ) from err


def _doctor(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.distill.losses import SoftTargets
    from kdlite.doctor import check

    student, teacher = _load_model(args.student), _load_model(args.teacher)
    samples = datasets.load(
        args.data, teacher.input_shape[1:], _read_labels(args.labels), needs_y=False
    )
    return check(
        student,
        teacher,
        samples.x if samples.y is None else (samples.x, samples.y),
        soft_loss=SoftTargets(args.temperature),
        batch_size=args.batch_size,
        quantization=args.quantization,
        allow=tuple(args.allow),
        samples=args.samples,
    )


def _read_labels(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdlite",
        description="Distil a Keras teacher into a small student and a proven .tflite.",
        epilog="Exit codes: 0 done, 1 a gate or check failed, 2 wrong use.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: _Command, words: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=words,
            description=words,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.add_argument(
            "-v", "--verbose", action="count", default=0, help="say more, twice: all"
        )
        return sub

    def overwritable(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--overwrite", action="store_true", help="replace what is there"
        )

    demo = command(
        "demo",
        _demo,
        "Distil Fashion-MNIST to an int8 .tflite, with a report.",
        "kdlite demo --quick --out out",
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
    overwritable(demo)

    distill = command(
        "distill",
        _distill,
        "Distil your own teacher to an int8 .tflite, with a report.",
        "kdlite distill teacher.keras --student student.keras --data train.npz "
        "--test-data test.npz -o out",
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
    distill.add_argument(
        "-o", "--out", type=Path, required=True, help="folder to write"
    )
    overwritable(distill)

    label = command(
        "label",
        _label,
        "Store a teacher's outputs on a data set.",
        "kdlite label teacher.keras --data train.npz -o labels",
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
        _export,
        "Convert a Keras model to a .tflite that was checked against it.",
        "kdlite export student.keras -o student.tflite --quantization int8 "
        "--calibration-data calib.npz --labels labels.txt",
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
    for name, words in (
        ("description", "what the model does"),
        ("author", "who made it"),
        ("license", "under which terms"),
    ):
        export.add_argument(f"--{name}", default="", help=f"{words}, in the metadata")
    export.add_argument(
        "--time-limit-s", type=float, default=600.0, help="(%(default)s)"
    )
    export.add_argument("--memory-limit-bytes", type=float, help="(none)")
    overwritable(export)

    inspect = command(
        "inspect",
        _inspect,
        "Show what is inside a .tflite.",
        "kdlite inspect student.tflite --json",
    )
    inspect.add_argument("file", type=Path, help="any .tflite")
    inspect.add_argument("--html", type=Path, help="also write a page with the graph")
    overwritable(inspect)

    verify = command(
        "verify",
        _verify,
        "Check a .tflite against its Keras model.",
        "kdlite verify student.tflite student.keras --data test.npz",
    )
    verify.add_argument("file", type=Path, help="the .tflite")
    verify.add_argument("model", type=Path, help="the .keras file it came from")
    verify.add_argument("--data", type=Path, required=True, help=".npz or image folder")
    verify.add_argument(
        "--top1-agreement",
        type=float,
        default=0.99,
        help="least share of equal predictions (%(default)s)",
    )

    doctor = command(
        "doctor",
        _doctor,
        "Look for every known failure before training: no finding, exit code 0.",
        "kdlite doctor teacher.keras --student student.keras --data train.npz",
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
        _benchmark,
        "Time .tflite files in LiteRT on this computer, interleaved.",
        "kdlite benchmark teacher.tflite student.tflite --threads 1",
    )
    benchmark.add_argument("files", type=Path, nargs="+", help=".tflite files")
    benchmark.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    benchmark.add_argument("--runs", type=int, default=200, help="(%(default)s)")
    benchmark.add_argument(
        "--warmup", type=int, default=20, help="runs that do not count (%(default)s)"
    )

    android = command(
        "android",
        _android,
        "Put a .tflite into the Android app, and build it.",
        "kdlite android out/student_int8.tflite --build-apk demo.apk",
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
    return parser


def _size(text: str) -> int:
    """Reads a size in bytes; a KB is 1000 of them, and a KiB 1024."""
    match = re.fullmatch(r"([\d.]+)\s*(?:([kM])(i?)B)?", text.replace("K", "k"))
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if not match or not number:
        raise argparse.ArgumentTypeError(
            f"A size must be like 500KB, 1.5MB, 64KiB or 500000. Received: {text!r}."
        )
    power = {None: 0, "k": 1, "M": 2}[match[2]]
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
