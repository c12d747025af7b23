"""The command line: `kdlite COMMAND`, each a thin dress over one public function.

Results go to stdout (`--json` for machines), everything else to stderr. Exit codes:
0 done, 1 a gate or a check failed, 2 wrong use, 130 Ctrl-C.
"""

from __future__ import annotations

# TensorFlow takes seconds to load: each command imports what it needs when it runs, so
# that `--help` answers at once.
import argparse
import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdlite.arguments import parser
from kdlite.in_place import lack_of_room
from kdlite.interrupts import lasting_interrupts
from kdlite.terminal import Uncoloured, coloured, has_colours, plain, with_verdicts


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments, `sys.argv[1:]` by default.

    Returns:
        The exit code: 0 done, 1 a gate or check failed, 2 wrong use, 130 stopped.
    """
    root = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks, at a tab
        import argcomplete

        argcomplete.autocomplete(root)
    try:
        args = root.parse_args(argv)
    except OSError as err:  # of --version: nowhere to print it
        _leave_stdout()
        if isinstance(err, BrokenPipeError):
            return 0
        print(f"kdlite: {_in_its_words(err)}", file=sys.stderr)
        return 2
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
    name = f"kdlite {args.command}:"
    written, warnings.formatwarning = warnings.formatwarning, _in_a_line(name)
    try:
        if args.command not in _WITHOUT_TENSORFLOW:
            _load_tensorflow()
        # Keras's progress bars go to stdout: there only the result belongs.
        with lasting_interrupts(), contextlib.redirect_stdout(_stderr()):
            result = _RUN[args.command](args)
        _print(
            json.dumps(_as_json(result.to_dict()), indent=2, allow_nan=False)
            if args.json
            else with_verdicts(str(result), sys.stdout)
        )
    except KeyboardInterrupt:
        name = coloured(name, "yellow", sys.stderr)
        print(f"\n{name} stopped. {_after_a_stop(args)}", file=sys.stderr)
        return 130
    except _TOLD as err:
        if args.verbose > 1:
            raise
        name = coloured(name, "red", sys.stderr)
        print(f"{name} {plain(_in_its_words(err))}", file=sys.stderr)
        return 1 if _is_failed_check(err) else 2
    finally:
        warnings.formatwarning = written
    return 0 if getattr(result, "passed", True) else 1


# The least share of equal predictions where none is asked for.
_LEAST_AGREEMENT = 0.99
# What is told in a sentence; all else is a mistake of ours, and shows where.
_TOLD = (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError)


def _in_a_line(name: str) -> Any:
    """How warnings are written: without the place in kdlite that they come from."""
    written = warnings.formatwarning

    def in_a_line(message: Any, category: type[Warning], *place: Any) -> str:
        if not issubclass(category, UserWarning):  # of a library, to its maintainers
            return written(message, category, *place)
        return f"{coloured(f'{name} warning:', 'yellow', sys.stderr)} {message}\n"

    return in_a_line


def _stderr() -> Any:
    return sys.stderr if has_colours(sys.stderr) else Uncoloured(sys.stderr)


def _as_json(told: Any) -> Any:
    """What was told with null for NaN and infinities, for which JSON has no words."""
    if isinstance(told, dict):
        return {key: _as_json(value) for key, value in told.items()}
    if isinstance(told, (list, tuple)):
        return [_as_json(value) for value in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as err:
        _leave_stdout()
        if not isinstance(err, BrokenPipeError):
            raise
        # Else whoever reads has seen enough, as `head` has.


def _leave_stdout() -> None:
    """Python prints what is left again at its end, and must not fail then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _after_a_stop(args: argparse.Namespace) -> str:
    """What is there after Ctrl-C, and what to do next."""
    kept = []
    if args.command in ("demo", "distill"):
        kept = [Path(f"{args.out}.{part}") for part in ("partial", "teacher")]
    elif args.command == "label":
        kept = [args.out]
    for path in kept:
        if path.exists():
            again = "the same command again"
            if args.command == "label" and args.overwrite:  # which begins anew
                again += " without --overwrite"
            return f"What is done is kept in {path}: give {again}, and it goes on."
    return "Nothing was left half-done: give the same command again to begin anew."


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
    # A model without a graph does not say what it returns, and no flag does.
    text = text.replace("Fix: say it, with", "Fix: in Python, say it, with")
    text = text.replace(
        "or allow depth=0.5 or separable=True.",
        "or give a --student of your own (in Python, kdlite.shrink takes depth=0.5 and "
        "separable=True).",
    )
    if full := lack_of_room(err):
        return (
            f"There must be room for the files. Received: {full}. Free some, raise the "
            "limit or choose another folder, and give the same command again: what was "
            "done of a longer one is kept."
        )
    if isinstance(err, MemoryError):
        what = text[:1].lower() + text[1:] or "too little"
        return (
            f"There must be memory for the data. Received: {what.rstrip('.')}. Fix: "
            "give less data, or use a computer with more."
        )
    if isinstance(err, OSError) and err.errno is not None:  # in the system's words
        where = err.filename2 or err.filename or "a file"
        return (
            "Files must be there to be read, and folders writable. Received: "
            f"{where}: {(err.strerror or str(err)).lower()}. Fix: name another path, "
            "or change what stands in its way."
        )
    return text


def _is_failed_check(err: Exception) -> bool:
    # Not imported here: what is missing may be what that needs.
    known = sys.modules.get("kdlite.lite.verification")
    return known is not None and isinstance(err, known.VerificationError)


def _demo(args: argparse.Namespace) -> Any:
    from kdlite.demo.run import run_demo

    return run_demo(
        args.out,
        quick=args.quick,
        seeds=args.seeds,
        retrain_teacher=args.train_teacher,
        country=args.country,
        overwrite=args.overwrite,
    )


def _distill(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.doctor import check_split
    from kdlite.lite.labels import class_count
    from kdlite.model_files import load_model, sample_shape
    from kdlite.pipeline import distill_to_tflite

    if args.seeds > 1 and args.student:
        raise ValueError(
            "`--seeds` above 1 needs a student for each, with its own start. Received: "
            f"--seeds {args.seeds} and --student {args.student}, which has one. Fix: "
            "leave --student out, for students made from the teacher; in Python, "
            "kdlite.distill_to_tflite takes a function that builds yours."
        )
    teacher = load_model(args.teacher)
    student = load_model(args.student) if args.student else None
    shape, classes = sample_shape(teacher), class_count(teacher)
    labels = _read_labels(args.labels)
    train = datasets.load(args.data, shape, labels, classes=classes)
    # The other parts may lack a class: which is which, the first says.
    names = labels or train.class_names

    def load(path: Path | None) -> datasets.Samples | None:
        return datasets.load(path, shape, names, classes=classes) if path else None

    validation, test = map(load, (args.validation_data, args.test_data))
    # The best of several seeds is never chosen on the test data.
    if validation is None and (test is None or args.seeds > 1):
        # Of a part of them, an error would count samples that the file has elsewhere.
        if train.y is not None:
            check_split("train", (train.x, train.y), classes)
        train, validation = train.split(0.1)
        logging.getLogger(__name__).info(
            "no --validation-data: a tenth of the samples of --data is held back for it"
        )
    return distill_to_tflite(
        teacher,
        (train.x, train.y),
        student,
        ratio=args.ratio,
        max_bytes=args.max_bytes,
        validation=(validation.x, validation.y) if validation else None,
        test=(test.x, test.y) if test else None,
        labels=names,
        epochs=args.epochs,
        qat_epochs=args.qat_epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        temperature=args.temperature,
        hard_loss_weight=args.hard_loss_weight,
        soft_loss_weight=args.soft_loss_weight,
        quantization=args.quantization,
        seeds=args.seeds,
        baseline=args.baseline,
        input_range=args.input_range,
        description=args.description,
        author=args.author,
        license=args.license,
        intended_use=args.intended_use,
        country=args.country,
        out=args.out,
        overwrite=args.overwrite,
    )


def _label(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.distill.soft_labels import SoftLabels
    from kdlite.model_files import load_model, sample_shape

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
    teacher = load_model(args.teacher)
    samples = datasets.load(
        args.data, sample_shape(teacher), _read_labels(args.labels), needs_y=False
    )
    return SoftLabels.build(
        teacher,
        samples.x,
        args.out,
        overwrite=args.overwrite,
        dtype=args.dtype,
        top_k=args.top_k,
        shard=args.shard,
        features=args.feature,
        max_feature_bytes=args.max_feature_bytes,
    )


def _export(args: argparse.Namespace) -> Any:
    from kdlite.lite.convert import export
    from kdlite.lite.labels import class_count
    from kdlite.model_files import load_model

    model = load_model(args.model)
    labels = _read_labels(args.labels)
    verify_data = calibration = None
    if args.verify_data:
        verify_data = _samples(args.verify_data, model, labels, class_count(model))
    if args.calibration_data:
        calibration = _samples(args.calibration_data, model, labels)
    return export(
        model,
        args.out,
        args.quantization,
        calibration_data=calibration,
        labels=labels,
        input_range=args.input_range,
        mean=args.mean,
        std=args.std,
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
        intended_use=args.intended_use,
        time_limit_s=args.time_limit_s,
        memory_limit_bytes=args.memory_limit_bytes,
        overwrite=args.overwrite,
    )


def _samples(
    path: Path, model: Any, labels: Sequence[str] | None, classes: int | None = None
) -> Any:
    """Samples for `export` and `verify`: `x`, or `(x, y)` where there are targets."""
    from kdlite import datasets
    from kdlite.model_files import sample_shape, takes_several

    if takes_several(model) and path.is_file():
        return path  # whose arrays have the inputs' names
    samples = datasets.load(path, sample_shape(model), labels, False, classes)
    return samples.x if samples.y is None else (samples.x, samples.y)


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
    from kdlite.in_place import check_target, put_in_place
    from kdlite.lite.file_report import describe

    if args.html is not None:
        check_target(args.html, args.overwrite)
    report = describe(args.file)
    if args.html is not None:
        put_in_place(args.html, report.to_html().encode(), args.overwrite)
    return report


def _verify(args: argparse.Namespace) -> Any:
    from kdlite.lite.labels import class_count
    from kdlite.lite.metadata import read_metadata
    from kdlite.lite.verification import VerificationError
    from kdlite.lite.verify import verify
    from kdlite.model_files import load_model

    model = load_model(args.model)
    labels = _read_labels(args.labels) or read_metadata(args.file).labels or None
    data = _samples(args.data, model, labels, class_count(model))
    report = verify(args.file, model, data)
    least = args.top1_agreement
    if least is None and any(o.top1_agreement is not None for o in report.outputs):
        least = _LEAST_AGREEMENT
    try:
        report.require(top1_agreement=least)
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
        told = self.report.to_dict()
        return {**told, "passed": False, "problems": list(self.err.problems)}

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


def _completion(args: argparse.Namespace) -> Any:
    from argcomplete.shell_integration import shellcode

    return _Completion(args.shell, shellcode(["kdlite"], shell=args.shell))


@dataclass(frozen=True)
class _Completion:
    """What a shell evaluates to complete kdlite's commands."""

    shell: str
    script: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return self.script


def _doctor(args: argparse.Namespace) -> Any:
    from kdlite import datasets
    from kdlite.distill.losses import SoftTargets
    from kdlite.doctor import check
    from kdlite.lite.labels import class_count
    from kdlite.model_files import load_model, sample_shape

    student, teacher = load_model(args.student), load_model(args.teacher)
    samples = datasets.load(
        *(args.data, sample_shape(teacher), _read_labels(args.labels)),
        needs_y=False,
        classes=class_count(teacher),
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
    """The class names in a file, or None; checked, as folders are read by them."""
    from kdlite.lite.labels import check_texts

    if path is None:
        return None
    rule = "`--labels` must be a text file with the class names, one a line."
    fix = "Fix: name such a file, in UTF-8, in the order of the model's output."
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        raise ValueError(f"{rule} Received: {path}, which is {what}. {fix}")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        raise ValueError(f"{rule} Received: {path}, which is no text. {fix}") from err
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{rule} Received: {path}, which is empty. {fix}")
    check_texts(names)
    return names


_RUN: dict[str, Callable[[argparse.Namespace], Any]] = {
    "demo": _demo,
    "distill": _distill,
    "label": _label,
    "export": _export,
    "inspect": _inspect,
    "verify": _verify,
    "doctor": _doctor,
    "benchmark": _benchmark,
    "android": _android,
    "completion": _completion,
}
_WITHOUT_TENSORFLOW = ("completion",)
