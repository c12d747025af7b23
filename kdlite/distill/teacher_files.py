"""Files as teachers: ONNX and SavedModel.

`kdlite.teachers` has the one for `.tflite`, of which this package knows nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdlite.distill.foreign_teachers import (
    ForeignTeacher,
    NumpyTeacher,
    checked_kind,
    sums_to_one,
)
from kdlite.distill.heads import Outputs

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any  # an array or tensor, or a dict, tuple or list of such

_PROBES = 4
_PROBED_LENGTH = 16  # of axes whose length is free


@keras.saving.register_keras_serializable(package="kdlite")
class ONNX(NumpyTeacher):
    """An ONNX file as a teacher, run by onnxruntime on the CPU.

    Files of other frameworks often take `(batch, channels, height, width)`: let
    `kdlite.teachers.Transformed` turn the student's images into that.

    Args:
        path: The file, all in one: its bytes are what runs and what is fingerprinted.
        outputs: What it returns: `"logits"`, `"probabilities"`, `"sigmoid"`,
            `"values"`, or `None` to find out by running it on a few random samples
            whether it is one of the first two.
        output: The name of the output that teaches, if it has several.
        threads: Threads that it may use; `None`: as many as onnxruntime likes.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        file_inputs: The names of its inputs.

    Raises:
        ImportError: If onnxruntime is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file that onnxruntime can run, has several outputs and
            none is named, or it cannot be known what it returns.

    Example:
        ``kdlite.Distiller(student, kdlite.teachers.ONNX("teacher.onnx"))``
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        outputs: Outputs | None = None,
        output: str | None = None,
        threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError(
                "A teacher in an ONNX file is run by onnxruntime. Received: no such "
                "package. Fix: pip install 'kdlite[onnx]'."
            ) from None
        checked_kind(outputs, or_none=True)
        blob = read_bytes(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors, which are raised, and no warnings
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(
                blob, options, providers=["CPUExecutionProvider"]
            )
        except Exception as err:  # onnxruntime's own types, of no common base
            raise ValueError(
                f"An ONNX file must be one that onnxruntime can run. Received: {path}, "
                f"of which it says: {str(err).rstrip('.')}. Fix: export it anew, all "
                f"in one file."
            ) from err
        taught = chosen_output(
            path, {node.name: node for node in session.get_outputs()}, output
        )
        specs = {
            node.name: ([_length(axis) for axis in node.shape], _dtype(node.type))
            for node in session.get_inputs()
        }

        def run(arrays: Mapping[str, Array]) -> Array:
            feeds = {name: arrays[name].astype(specs[name][1]) for name in specs}
            return session.run([taught.name], feeds)[0]

        found = outputs or found_kind(path, run, specs)
        shape = [_length(axis) for axis in taught.shape]
        known_by = {"sha256": hashlib.sha256(blob).hexdigest()}
        super().__init__(shape[1:], found, known_by, **kwargs)
        self.file_inputs = tuple(specs)
        self._run = run
        self._batch = next(iter(specs.values()))[0][0]

    def predict_numpy(self, x: Structure) -> Array:
        """Runs the file, in batches of its own size if that is fixed."""
        arrays = by_name(self.name, x, self.file_inputs)
        if self._batch is None:
            return self._run(arrays)
        count = len(next(iter(arrays.values())))
        parts = []
        for start in range(0, count, self._batch):
            rows = np.minimum(np.arange(start, start + self._batch), count - 1)
            parts.append(self._run({name: a[rows] for name, a in arrays.items()}))
        return np.concatenate(parts)[:count]


@keras.saving.register_keras_serializable(package="kdlite")
class SavedModel(ForeignTeacher):
    """A TensorFlow SavedModel as a teacher, such as `model.export()` writes.

    It runs in the graph of the step, and in XLA where its operations do.

    Args:
        path: The folder.
        outputs: What it returns: `"logits"`, `"probabilities"`, `"sigmoid"`,
            `"values"`, or `None` to find out by running it on a few random samples
            whether it is one of the first two.
        output: The name of the output that teaches, if it has several.
        signature: The signature that is called.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        file_inputs: The names of its inputs.

    Raises:
        FileNotFoundError: If there is no SavedModel.
        ValueError: If there is no such signature or output, its batch is of one size
            only, or it cannot be known what it returns.

    Example:
        ``kdlite.Distiller(student, kdlite.teachers.SavedModel("exported/"))``
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        outputs: Outputs | None = None,
        output: str | None = None,
        signature: str = "serving_default",
        **kwargs: Any,
    ) -> None:
        checked_kind(outputs, or_none=True)
        folder = Path(path)
        if not (folder / "saved_model.pb").is_file():
            raise FileNotFoundError(
                f"A SavedModel is a folder with a saved_model.pb. Received: {folder}, "
                f"which has none. Fix: model.export(path); a .keras file is a teacher "
                f"when it is loaded, keras.models.load_model(path)."
            )
        known_by = {"sha256": _folder_sha256(folder)}
        loaded = tf.saved_model.load(str(folder))
        if signature not in loaded.signatures:
            names = ", ".join(map(repr, loaded.signatures)) or "none"
            raise ValueError(
                f"`signature` must be one of {names}. Received: signature="
                f"{signature!r} for {folder}. Fix: choose one, or model.export(path)."
            )
        function = loaded.signatures[signature]
        taken = function.structured_input_signature[1]
        given = function.structured_outputs
        shape = chosen_output(folder, given, output).shape
        output = output or next(iter(given))
        for what, spec in (
            *taken.items(),
            (output, function.structured_outputs[output]),
        ):
            if spec.shape.rank is None or spec.shape[0] is not None:
                raise ValueError(
                    f"A teacher takes batches of any size. Received: {folder}, where "
                    f"{what!r} is {spec.shape}. Fix: export it with a batch of None."
                )
        specs = {
            name: (spec.shape.as_list(), spec.dtype.as_numpy_dtype)
            for name, spec in taken.items()
        }

        def run(arrays: Mapping[str, Array]) -> Array:
            return function(**{n: tf.constant(a) for n, a in arrays.items()})[
                output
            ].numpy()

        found = outputs or found_kind(folder, run, specs)
        super().__init__(found, known_by, **kwargs)
        self.file_inputs = tuple(sorted(taken))
        # Held past Keras's tracking: it is a file's content, and nothing to be saved.
        object.__setattr__(self, "_signature", (loaded, function, taken, output, shape))

    def call(self, inputs: Structure) -> Tensor:
        """Returns what it says of a batch.

        Args:
            inputs: The student's inputs.

        Returns:
            float32 of shape `(batch, ..., classes)`.
        """
        _, function, taken, output, shape = self._signature
        tensors = by_name(self.name, inputs, self.file_inputs)
        feeds = {
            name: tf.cast(tensors[name], spec.dtype) for name, spec in taken.items()
        }
        outputs = tf.cast(function(**feeds)[output], tf.float32)
        batch = next(iter(feeds.values())).shape[0]
        outputs.set_shape([batch, *shape[1:]])
        return outputs


# --- what files have in common


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a teacher's file.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
    """
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(
            f"A teacher's file must be there. Received: {path}, which is no file. Fix: "
            f"give the path of one."
        ) from None


def chosen_output(path: Any, named: Mapping[str, Any], name: str | None) -> Any:
    """Returns the output that teaches.

    Args:
        path: The file.
        named: Its outputs by name.
        name: The one asked for, or `None` for the only one.

    Raises:
        ValueError: If there is no such one, or several and none is asked for.
    """
    if name is not None and name in named:
        return named[name]
    if name is None and len(named) == 1:
        return next(iter(named.values()))
    raise ValueError(
        f"`output` must be one of {', '.join(map(repr, named))}. Received: output="
        f"{name!r} for {path}. Fix: name the output with the classes."
    )


def by_name(teacher: str, x: Structure, names: Sequence[str]) -> dict[str, Any]:
    """Returns the student's inputs by the names of a file's inputs.

    Args:
        teacher: The teacher's name.
        x: One array, for a file with one input, or a dict of them by name: files keep
            no order that a list could go by.
        names: The file's names.

    Raises:
        ValueError: If they do not fit.
    """
    if isinstance(x, Mapping) and set(names) <= set(x):
        return {name: x[name] for name in names}
    leaves = keras.tree.flatten(x)
    if len(leaves) == len(names) == 1:
        return {names[0]: leaves[0]}
    given = (
        ", ".join(map(repr, x)) if isinstance(x, Mapping) else f"{len(leaves)} unnamed"
    )
    raise ValueError(
        f"Teacher '{teacher}' takes {', '.join(map(repr, names))}. Received: {given}. "
        f"Fix: name the student's inputs so, or let kdlite.teachers.Transformed select."
    )


def found_kind(
    path: Any,
    run: Callable[[Mapping[str, Array]], Array],
    specs: Mapping[str, tuple[list[int | None], Any]],
) -> Outputs:
    """Finds out what a file returns, by running it on a few random samples.

    Rows that are never below 0 and sum to 1 are probabilities; values beyond [0, 1]
    are logits; anything between must be declared.

    Args:
        path: The file.
        run: Runs it.
        specs: The shape, with batch, and dtype of each input.

    Raises:
        ValueError: If it cannot be known.
    """
    rng = np.random.default_rng(0)
    samples = {}
    for name, (shape, dtype) in specs.items():
        batch, *lengths = shape
        filled = (batch or _PROBES, *(n or _PROBED_LENGTH for n in lengths))
        if np.dtype(dtype).kind == "f":
            samples[name] = rng.normal(0.0, 10.0, filled).astype(dtype)
        else:
            samples[name] = rng.integers(0, 2, filled).astype(dtype)
    try:
        outputs = np.asarray(run(samples), "float64")
    except Exception as err:
        reason = f"which cannot be run on random samples ({type(err).__name__}: {err})"
    else:
        if sums_to_one(outputs):
            return "probabilities"
        if outputs.min() < 0.0 or outputs.max() > 1.0:
            return "logits"
        reason = "which returns values from 0 to 1 that do not sum to 1"
    raise ValueError(
        f"It must be known whether a teacher returns logits or probabilities. "
        f"Received: {path}, {reason}. Fix: outputs='logits' or 'probabilities'."
    )


def _length(axis: Any) -> int | None:
    return axis if isinstance(axis, int) else None  # ONNX names free lengths


def _dtype(onnx_type: str) -> Any:
    """The numpy type of "tensor(float)" and the like."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()
