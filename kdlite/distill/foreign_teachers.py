"""Teachers that are no Keras models: numpy functions, ONNX files, SavedModels.

Each is wrapped into a Keras model, and goes wherever one goes:

>>> import numpy as np
>>> def vote(x):
...     return np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1)
>>> teacher = Function(vote, output_shape=(2,), outputs="logits", version="1")
>>> teacher(np.ones((3, 4), "float32")).numpy().tolist()
[[4.0, -4.0], [4.0, -4.0], [4.0, -4.0]]
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kdlite.distill.heads import Outputs
from kdlite.distill.teachers import Teacher, called, unversioned

Tensor = Any
Array = np.ndarray[Any, Any]
Structure = Any  # an array or tensor, or a dict, tuple or list of such

# How far from 1 the sum of a softmax in float32, or in half precision, may be.
_SUM_TOLERANCE = 5e-3
_PROBES = 4
_PROBED_LENGTH = 16  # of axes whose length is free


class ForeignTeacher(Teacher):
    """A teacher whose word comes from elsewhere than a Keras model.

    Args:
        outputs: What it returns, see `LogitsModel`.
        known_by: What stored soft labels know it by, in plain JSON.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Attributes:
        known_by: As given.
    """

    def __init__(
        self, outputs: Outputs, known_by: dict[str, str], **kwargs: Any
    ) -> None:
        super().__init__(outputs, **kwargs)
        self.known_by = known_by

    def get_config(self) -> dict[str, Any]:
        """Returns what it is known by."""
        config = super().get_config()
        return {**config, **self.known_by, "outputs": self.returns}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ForeignTeacher:
        """Refuses: a Keras file does not hold what is not Keras."""
        raise ValueError(
            f"A teacher that is no Keras model is not loaded with Keras. Received: "
            f"'{config['name']}', a {cls.__name__}. Fix: make it anew, and what it was "
            f"a part of."
        )


class NumpyTeacher(ForeignTeacher):
    """A teacher that runs outside TensorFlow, on a batch of numpy arrays.

    It cannot be a part of a step compiled by XLA: with it Keras trains with
    `jit_compile=False`, and says so where XLA was asked for.

    Args:
        output_shape: The shape of what it returns for one sample, classes last; `None`
            for a free length.
        outputs: See `ForeignTeacher`.
        known_by: See `ForeignTeacher`.
        smallest: The least probability that it can tell from none, and from 1.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Raises:
        ValueError: If `outputs` is none of these, or `output_shape` not a shape.
    """

    def __init__(
        self,
        output_shape: Sequence[int | None],
        outputs: Outputs,
        known_by: dict[str, str],
        smallest: float = 0.0,
        **kwargs: Any,
    ) -> None:
        checked_kind(outputs)
        shape = tuple(output_shape)
        if not shape or not all(n is None or n > 0 for n in shape):
            raise ValueError(
                f"`output_shape` is the shape of what one sample gives, classes last. "
                f"Received: output_shape={output_shape!r}. Fix: (10,) for ten classes, "
                f"(None, 10) for ten at each position."
            )
        super().__init__(outputs, known_by, **kwargs)
        self.supports_jit = False
        self._sample_shape = shape
        self._smallest = smallest

    def predict_numpy(self, x: Structure) -> Array:
        """Runs a batch.

        Args:
            x: Arrays `(batch, ...)` in the structure of the student's inputs.

        Returns:
            `(batch, ..., classes)`.
        """
        raise NotImplementedError

    def call(self, inputs: Structure) -> Tensor:
        """Returns what it says of a batch.

        Args:
            inputs: The student's inputs.

        Returns:
            float32 of shape `(batch, ..., classes)`.
        """
        leaves = [ops.convert_to_tensor(leaf) for leaf in keras.tree.flatten(inputs)]

        def run(*arrays: Array) -> Array:
            x = keras.tree.pack_sequence_as(inputs, list(arrays))
            return self._checked(self.predict_numpy(x), len(arrays[0]))

        outputs = tf.numpy_function(run, leaves, tf.float32)
        outputs.set_shape([leaves[0].shape[0], *self._sample_shape])
        return outputs

    def _checked(self, outputs: Any, count: int) -> Array:
        array = np.asarray(outputs)
        wanted = (count, *self._sample_shape)
        if array.ndim != len(wanted) or any(
            length not in (None, given)
            for length, given in zip(wanted, array.shape, strict=True)
        ):
            raise ValueError(
                f"Teacher '{self.name}' must return {wanted} for {count} samples. "
                f"Received: {array.shape}. Fix: output_shape= the shape of one sample."
            )
        array = array.astype(np.float32)
        squashed = self.returns in ("probabilities", "sigmoid")
        tolerance = _SUM_TOLERANCE + array.shape[-1] * self._smallest
        if (squashed and (array.min() < 0.0 or array.max() > 1.0)) or (
            self.returns == "probabilities" and not _sums_to_one(array, tolerance)
        ):
            rule = "sum to 1" if self.returns == "probabilities" else "be at most 1"
            raise ValueError(
                f"Probabilities must be at least 0 and {rule}. Received: from "
                f"teacher '{self.name}' values from {array.min():g} to "
                f"{array.max():g} with sums from {array.sum(-1).min():g} to "
                f"{array.sum(-1).max():g}. Fix: outputs='logits', if it returns these."
            )
        if squashed and self._smallest:
            array = np.clip(array, self._smallest, 1.0 - self._smallest)
        return array


@keras.saving.register_keras_serializable(package="kdlite")
class Function(NumpyTeacher):
    """Any Python function on numpy batches, as a teacher.

    It runs on the host in each step, or once for all in `SoftLabels.build`: a model of
    another framework, a remote service, a tree ensemble.

    Args:
        function: Takes the student's inputs as numpy arrays `(batch, ...)`, in their
            structure, and returns an array `(batch, ..., classes)`.
        output_shape: The shape of what it returns for one sample, classes last, such as
            `(10,)`; `None` for a free length.
        outputs: What it returns: `"logits"`, `"probabilities"` of classes, `"sigmoid"`
            for independent ones, or `"values"`.
        version: What it is known by in stored soft labels. They are refused where it is
            another, so it must change with what the function computes.
        **kwargs: `name` and `trainable`, as for every `keras.Model`.

    Raises:
        TypeError: If `function` is not callable.
        ValueError: If `outputs` is none of these, or `output_shape` not a shape.

    Example:
        >>> import numpy as np
        >>> forest = Function(
        ...     lambda x: np.full((len(x), 3), 1 / 3), (3,), "probabilities"
        ... )
        >>> forest(np.zeros((2, 5), "float32")).shape.as_list()
        [2, 3]
    """

    def __init__(
        self,
        function: Callable[[Structure], Any],
        output_shape: Sequence[int | None],
        outputs: Outputs,
        version: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not callable(function):
            raise TypeError(
                f"`function` must be a function of a batch. Received: function="
                f"{function!r}. Fix: def function(x), of numpy arrays (batch, ...)."
            )
        known_by = {"function": called(function)}
        super().__init__(output_shape, outputs, known_by, **kwargs)
        self.function = function
        self.version = version

    def predict_numpy(self, x: Structure) -> Array:
        """Runs the function, see `NumpyTeacher`."""
        return self.function(x)

    def get_config(self) -> dict[str, Any]:
        """Returns what it is known by."""
        if self.version is None:
            raise ValueError(unversioned("function", self.function))
        return {**super().get_config(), "version": self.version}


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
                f"of which it says: {err} Fix: export it anew, all in one file."
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
        self.file_inputs = tuple(taken)
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


def checked_kind(outputs: Any, or_none: bool = False) -> None:
    """Checks what a teacher is said to return.

    Args:
        outputs: What was given.
        or_none: Whether `None` finds out.

    Raises:
        ValueError: If it is none of these.
    """
    if outputs not in get_args(Outputs) and not (or_none and outputs is None):
        kinds = ", ".join(map(repr, get_args(Outputs)))
        raise ValueError(
            f"`outputs` must be {kinds}{' or None' if or_none else ''}. Received: "
            f"outputs={outputs!r}. Fix: 'probabilities' for what comes out of a "
            f"softmax."
        )


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
        x: One array, a dict of them by name, or a list in the file's order.
        names: The file's names.

    Raises:
        ValueError: If they do not fit.
    """
    leaves = keras.tree.flatten(x)
    if isinstance(x, Mapping) and len(names) > 1:
        if set(names) <= set(x):
            return {name: x[name] for name in names}
        given = ", ".join(map(repr, x))
    elif len(leaves) == len(names):
        return dict(zip(names, leaves, strict=True))
    else:
        given = f"{len(leaves)} inputs"
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
        if _sums_to_one(outputs, _SUM_TOLERANCE):
            return "probabilities"
        if outputs.min() < 0.0 or outputs.max() > 1.0:
            return "logits"
        reason = "which returns values from 0 to 1 that do not sum to 1"
    raise ValueError(
        f"It must be known whether a teacher returns logits or probabilities. "
        f"Received: {path}, {reason}. Fix: outputs='logits' or 'probabilities'."
    )


def _sums_to_one(rows: Array, tolerance: float) -> bool:
    return bool(
        (rows >= 0.0).all() and (np.abs(rows.sum(axis=-1) - 1.0) <= tolerance).all()
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
