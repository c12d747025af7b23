"""Does the file do what the Keras model does? Compared output by output, in steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kdlite.batches import samples_at_once
from kdlite.lite.calibration import (
    InputSpec,
    load_samples,
    read_folder,
    with_shapes,
)
from kdlite.lite.isolated_runs import Outputs, Run, isolated_runs
from kdlite.lite.labels import class_count
from kdlite.lite.metadata import changed_since_written, read_metadata
from kdlite.lite.names import by_name
from kdlite.lite.outliers import outliers
from kdlite.lite.output_report import OutputReport, check_target, compare
from kdlite.lite.serving import ServingModel, serve
from kdlite.lite.signatures import of_signature
from kdlite.lite.targets import read_once, read_targets
from kdlite.lite.tflite_file import TensorInfo
from kdlite.lite.tflite_reader import inspect, inspect_bytes
from kdlite.lite.tolerance import FIXED_STEPS, Tolerance, recipe_of
from kdlite.lite.verification import KernelRun, Ordinary, VerificationReport

Array = np.ndarray[Any, Any]

_BATCH = 256
# Kernels and threads that a file is run with as well, on so many samples.
_OTHERS = (("xnnpack", 4), ("built-in", 1), ("built-in", 4), ("reference", 1))
_FEW = 16


def verify(
    file: str | os.PathLike[str] | bytes,
    model: keras.Model | Mapping[str, keras.Model],
    data: Any,
) -> VerificationReport:
    """Runs a `.tflite` and its Keras model on the same samples and compares them.

    The file runs in a process of its own, which may crash. What `export` holds a file
    of its recipe to is what `passed` and `problems` of the report say: by the word of
    the file where `export` made it, else by the types in it. A file that `export` made
    must also be that file still: it keeps the SHA-256 of its model, so that one bit of
    a weight or one step that was changed is a problem, however little it does.

    Args:
        file: The path of the `.tflite`, or its bytes.
        model: The Keras model that it came from. Preprocessing that `export` put into
            the file, mean and standard deviation, is put before the model as well. Of a
            file with several signatures, a model by signature name.
        data: Samples in the units of the file's input: an array `(samples, ...)`, a
            mapping from input name to array, `(x, y)` with targets, a
            `tf.data.Dataset` or another iterable of batches of these, read once, or the
            path of an `.npz`, where targets are called `y`, or of a folder of images.
            Targets are class indices for an output of scores, or values of an output's
            shape; by output name if there are several. Of several signatures, for all,
            or a mapping from signature name to such.

    Returns:
        By output the differences in quantization steps, the agreement and the task's
        metric; prints as a few lines, the last of which say what is held and by which
        rule. `require` turns that and wishes into errors. Outputs of several signatures
        are called "signature/output".

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is not a Keras model.
        ValueError: If the file is not a `.tflite`, LiteRT cannot run it or crashes, the
            two have other inputs or outputs, `data` does not fit them, the model gives
            NaN on them, or the file has several signatures and `model` is not by name.

    Example:
        ``verify("student.tflite", student, (x_test, y_test)).require(max_steps=1)``
    """
    if isinstance(model, Mapping):
        return _verify_each(file, model, data)
    names = [signature.name for signature in inspect(file).signatures]
    if len(names) > 1:
        raise ValueError(
            "A file with several signatures is compared with a model for each. "
            f"Received: {type(model).__name__} for the signatures "
            f"{', '.join(map(repr, names))}. Give {{{names[0]!r}: model, ...}}."
        )
    return _verify_one(file, model, data, None)


def _verify_each(
    file: str | os.PathLike[str] | bytes, models: Mapping[str, keras.Model], data: Any
) -> VerificationReport:
    """Compares each signature with its model; outputs are "signature/output"."""
    data = read_once(data)
    reports = {
        name: _verify_one(file, model, of_signature(data, name, models), name)
        for name, model in models.items()
    }
    if not reports:
        raise ValueError(
            "`model` must have a model for a signature. Received: an empty mapping. "
            "Give {'classify': model, ...}."
        )

    def renamed(name: str, outputs: Iterable[OutputReport]) -> Iterator[OutputReport]:
        return (replace(o, name=f"{name}/{o.name}") for o in outputs)

    first = next(iter(reports.values()))
    # The last, which some operations have no kernels for, is left out for all.
    fewest = min((report.kernels for report in reports.values()), key=len)
    runs = [(run.kernels, run.threads) for run in fewest]
    return replace(
        first,
        samples=min(report.samples for report in reports.values()),
        outputs=tuple(
            output
            for name, report in reports.items()
            for output in renamed(name, report.outputs)
        ),
        float_ops=tuple(
            dict.fromkeys(op for r in reports.values() for op in r.float_ops)
        ),
        quantization=" and ".join(
            dict.fromkeys(report.quantization for report in reports.values())
        ),
        kernels=tuple(
            KernelRun(
                kernels,
                threads,
                min(report.kernels[index].samples for report in reports.values()),
                tuple(
                    output
                    for name, report in reports.items()
                    for output in renamed(name, report.kernels[index].outputs)
                ),
            )
            for index, (kernels, threads) in enumerate(runs)
        ),
        tolerances=tuple(
            replace(tolerance, signature=name)
            for name, report in reports.items()
            for tolerance in report.tolerances
        ),
        ordinary=tuple(
            replace(part, outputs=tuple(renamed(name, part.outputs)))
            for name, report in reports.items()
            for part in report.ordinary
        ),
    )


def _verify_one(
    file: str | os.PathLike[str] | bytes,
    model: keras.Model,
    data: Any,
    signature: str | None,
) -> VerificationReport:
    # What is looked at is what runs.
    content, blob = inspect_bytes(file, signature)
    if isinstance(model, ServingModel):
        serving = model
    else:
        serving = serve(model, **_normalisation(blob, signature))
    inputs = _matched("inputs", [s.name for s in serving.input_specs], content.inputs)
    specs = [_spec_of(spec, inputs, content.inputs) for spec in serving.input_specs]
    about = read_metadata(blob)
    recipe = recipe_of(content, (about.provenance or {}).get("quantization"))
    # Of several signatures, only each model knows its classes.
    labels = None if signature else about.labels or None
    classes = class_count(serving.model)
    data = read_folder(read_once(data), specs, "data", labels, classes)
    samples = load_samples(data, specs, role="data")
    if any(None in spec.shape for spec in specs):
        specs = list(with_shapes(specs, samples))
    by_keras = _predict(serving, samples)
    names = _matched("outputs", list(by_keras), content.outputs)
    targets = read_targets(data, list(inputs), list(by_keras))
    count = len(next(iter(samples.values())))
    for name, target in targets.items():
        check_target(name, target, by_keras[name], count)

    def compared(
        by_file: Outputs | ValueError,
        rows: slice | Array,
        targets: Mapping[str, Array],
    ) -> tuple[OutputReport, ...]:
        if isinstance(by_file, ValueError):
            raise by_file
        return tuple(
            compare(
                name,
                by_file[names[name]][rows],
                values[rows],
                step=content.step(names[name]),
                target=targets.get(name),
                fixed_step=content.maker(names[name]) in FIXED_STEPS,
            )
            for name, values in by_keras.items()
        )

    few = min(count, _FEW)
    by_file, *by_others = isolated_runs(
        content,
        blob,
        {inputs[name]: array for name, array in samples.items()},
        [Run("xnnpack", 1, count), *(Run(*other, few) for other in _OTHERS)],
        signature,
    )
    every, first = slice(None), slice(few)
    steps = {name: content.input_step(inputs[name]) for name in samples}
    found = outliers(samples, steps)
    if isinstance(by_file, ValueError):
        raise by_file
    return VerificationReport(
        file=content.name,
        size_bytes=content.size_bytes,
        samples=count,
        outputs=compared(by_file, every, targets),
        float_ops=tuple(str(op) for op in content.float_ops),
        quantization=content.quantization,
        kernels=tuple(
            KernelRun(kernels, threads, few, compared(told, first, {}))
            for (kernels, threads), told in zip(_OTHERS, by_others, strict=True)
            # Of some operations, such as ELU, there is no plain kernel.
            if kernels != "reference" or not isinstance(told, ValueError)
        ),
        tolerances=(Tolerance(recipe, recipe.integer and serving.quantize_aware),),
        changed=changed_since_written(blob),
        ordinary=(
            (Ordinary(found, compared(by_file, found.others, {})),) if found else ()
        ),
    )


def _normalisation(file: bytes, signature: str | None) -> dict[str, Any]:
    """Returns what `export` put into the file before the model, as `serve` takes it."""
    origin: Any = read_metadata(file).provenance or {}
    signatures = origin.get("signatures")
    if isinstance(signatures, Mapping):
        origin = signatures.get(signature)
    inside = origin.get("normalisation_inside") if isinstance(origin, Mapping) else None
    if not isinstance(inside, Mapping):
        return {}
    return {name: inside.get(name) for name in ("mean", "std")}


def _matched(side: str, names: Sequence[str], tensors: Sequence[Any]) -> dict[str, str]:
    """Returns the file's name for each of the model's inputs or outputs.

    By name; where each has just one, that one, as files made elsewhere name it. There
    must be as many in both: one input of a file cannot stand for two of the model.
    """
    of_file = [tensor.name for tensor in tensors]
    found = by_name(names, of_file)
    if len(found) == len(set(of_file)) == len(of_file) == len(names):
        return found
    if len(of_file) == len(names) == 1:
        return {names[0]: of_file[0]}
    raise ValueError(
        f"File and model must have the same {side}. Received: "
        f"{', '.join(map(repr, of_file))} in the file and "
        f"{', '.join(map(repr, names))} in the model. Compare a file with its own "
        "model."
    )


def _spec_of(
    spec: InputSpec, inputs: Mapping[str, str], tensors: Sequence[TensorInfo]
) -> InputSpec:
    """Checks an input against the file's; returns it with the file's lengths."""
    tensor = next(t for t in tensors if t.name == inputs[spec.name])
    shape = tuple(None if length < 0 else length for length in tensor.shape[1:])
    fits = len(shape) == len(spec.shape) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            "File and model must have inputs of one shape. Received: "
            f"{tensor.shape[1:]} in the file and {spec.shape} in the model for "
            f"{spec.name!r}. Compare a file with its own model."
        )
    known = tuple(
        a if a is not None else b for a, b in zip(shape, spec.shape, strict=True)
    )
    return replace(spec, shape=known, low_high=None)


def _predict(serving: ServingModel, samples: Mapping[str, Array]) -> dict[str, Array]:
    """Runs the Keras model, traced where that takes less time than it saves."""
    count = len(next(iter(samples.values())))
    size = samples_at_once(samples, _BATCH)
    # A last batch of another length would be traced once more.
    traced = count - count % size if count > 2 * size else 0
    parts = []
    if traced:
        first = {name: x[:traced] for name, x in samples.items()}
        parts.append(serving.predict(first, batch_size=size, verbose=0))
    for start in range(traced, count, size):
        some = {name: x[start : start + size] for name, x in samples.items()}
        parts.append(serving(some, training=False))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
