"""Runs a `.tflite` in LiteRT, and times it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kdlite.counts import checked_count
from kdlite.lite.tflite_file import TensorInfo, TFLiteFile
from kdlite.lite.tflite_reader import inspect_bytes
from kdlite.progress import Progress

Array = np.ndarray[Any, Any]
File = str | os.PathLike[str] | bytes

# Which kernels compute: LiteRT's default, XNNPACK where it has some; LiteRT's own
# fast ones; and its plain ones, which say what each operation means.
_RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "built-in": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}

# Files are timed in turns of a few runs: each turn finds its own kernels in the cache,
# as in an app, and a slow moment of the computer meets all files alike.
_TURN = 10
#: A process that has less of a processor while it runs files shares it with others.
BUSY = 0.8


class TFLiteModel:
    """A `.tflite` to call from Python.

    Values go in and come out as the Keras model has them: integer inputs and outputs
    are quantized and dequantized here, ``q = round(x / scale) + zero_point``, clipped.

    Args:
        file: The path of the file, or its bytes.
        threads: Threads that one run may use.
        kernels: Which kernels compute: `"xnnpack"`, LiteRT's default for speed,
            `"built-in"`, its own, or `"reference"`, its plain and slow ones.
        keep_tensors: Whether all tensors keep their values after a run, for `tensors`.
        signature: Which of the file's signatures runs; None for its first graph.

    Attributes:
        content: What is inside the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no `.tflite`, LiteRT cannot run it, its inputs and outputs
            are no numbers, or an argument is none of those above.

    Example:
        ``TFLiteModel("student.tflite").predict(x_test).argmax(-1)``
    """

    def __init__(
        self,
        file: File,
        threads: int = 1,
        kernels: str = "xnnpack",
        keep_tensors: bool = False,
        signature: str | None = None,
    ) -> None:
        threads = checked_count("threads", threads, fix="use 1 to compare files")
        if kernels not in _RESOLVERS:
            raise ValueError(
                f"`kernels` must be one of {', '.join(map(repr, _RESOLVERS))}. "
                f"Received: kernels={kernels!r}. Use 'xnnpack', as apps do."
            )
        if keep_tensors and signature is not None:
            raise ValueError(
                "Tensors are kept of a file's first graph only. Received: "
                f"keep_tensors=True with signature={signature!r}. Leave one out."
            )
        # LiteRT trusts more than it should in a file that a network brought: the bytes
        # that were checked are those that run.
        self.content: TFLiteFile
        self.content, blob = inspect_bytes(file, signature)
        self._name = self.content.name or f"{len(blob)} bytes"
        self._check_edges()
        try:
            self._interpreter = Interpreter(
                model_content=blob,
                num_threads=threads,
                experimental_op_resolver_type=_RESOLVERS[kernels],
                experimental_preserve_all_tensors=keep_tensors,
            )
            self._runner = None
            if signature is not None:
                self._runner = self._interpreter.get_signature_runner(signature)
            # Where lengths are open, what fits is known with the first samples.
            elif not any(-1 in tensor.shape for tensor in self.inputs):
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as err:
            raise self._cannot_run(err) from err

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs, by the names of the file's signature."""
        return self.content.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs, likewise."""
        return self.content.outputs

    def predict(self, x: Any, verbose: str | int = 0) -> Array | dict[str, Array]:
        """Runs samples through the file, one batch of the file's size after another.

        Args:
            x: `(samples, ...)`, or such by input name.
            verbose: 1 shows a progress bar, 2 logs a line each half minute, 0 neither;
                `"auto"` is a bar on a terminal, else lines.

        Returns:
            The output as float32 `(samples, ...)` (integers that stand for no quantity
            stay as they are); by name if there are several.

        Raises:
            ValueError: If an input is missing, has another shape, or values that an
                operation does not take.
        """
        arrays = self._arrays(x)
        quantized = {
            tensor.name: quantize(arrays[tensor.name], tensor) for tensor in self.inputs
        }
        outputs = {
            tensor.name: dequantize(array, tensor)
            for tensor, array in zip(
                self.outputs, self._run(quantized, verbose), strict=True
            )
        }
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def predict_raw(self, x: Any) -> Array | dict[str, Array]:
        """Runs samples that are in the file's own types, and returns them like that.

        Args:
            x: `(samples, ...)` of the input's dtype, or such by input name.

        Returns:
            The output in its dtype; by name if there are several.

        Raises:
            ValueError: If an input is missing, or has another shape or dtype.
        """
        arrays = self._arrays(x)
        for tensor in self.inputs:
            if arrays[tensor.name].dtype != np.dtype(tensor.dtype):
                raise ValueError(
                    f"Raw values must be of the file's dtype. Received: "
                    f"{arrays[tensor.name].dtype} for input {tensor.name!r}, which "
                    f"takes {tensor.dtype}. Use predict() for real values."
                )
        outputs = {
            tensor.name: array
            for tensor, array in zip(self.outputs, self._run(arrays), strict=True)
        }
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def tensors(self, x: Any) -> dict[int, Array]:
        """Runs samples and returns what every tensor is, not the outputs alone.

        Args:
            x: `(samples, ...)`, or such by input name; of a file made to keep tensors.

        Returns:
            By a tensor's place in the file the real values `(samples, ...)` as float32;
            constants are left out.

        Raises:
            ValueError: If an input is missing, or has another shape.
        """
        arrays = self._arrays(x)
        quantized = {
            tensor.name: quantize(arrays[tensor.name], tensor) for tensor in self.inputs
        }
        kept: dict[int, list[Array]] = {
            tensor.index: [] for tensor in self.content.tensors if not tensor.constant
        }
        for _ in self._runs(quantized):
            for index, runs in list(kept.items()):
                try:
                    runs.append(self._interpreter.get_tensor(index))
                except ValueError:  # no op makes it, or it has no values of its own
                    del kept[index]
        return {
            index: dequantize(np.stack(runs), self.content.tensors[index])
            for index, runs in kept.items()
            if len({run.shape for run in runs}) == 1
        }

    def _check_edges(self) -> None:
        for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            odd = [f"{t.dtype} for {t.name!r}" for t in tensors if not _is_numpys(t)]
            if odd or not tensors:
                raise ValueError(
                    "A .tflite must have inputs and outputs that are numbers. "
                    f"Received: {self._name}, with {odd[0] if odd else 'no ' + side}. "
                    "Convert the model without what makes or takes these."
                )

    def _arrays(self, x: Any) -> dict[str, Array]:
        names = [tensor.name for tensor in self.inputs]
        if not isinstance(x, Mapping):
            if len(names) != 1:
                raise ValueError(
                    "A file with several inputs takes a mapping from name to array. "
                    f"Received: {type(x).__name__} for inputs "
                    f"{', '.join(map(repr, names))}. Name each."
                )
            x = {names[0]: x}
        if set(x) != set(names):
            raise ValueError(
                f"Inputs must be {', '.join(map(repr, names))}. Received: "
                f"{', '.join(repr(name) for name in x) or 'none'}. Name each input."
            )
        arrays = {name: np.asarray(x[name]) for name in names}
        for tensor in self.inputs:
            array = arrays[tensor.name]
            # A number without axes, as an input may be, has no place for samples.
            fits = array.ndim == max(1, len(tensor.shape)) and all(
                length in (-1, given)
                for length, given in zip(tensor.shape[1:], array.shape[1:], strict=True)
            )
            if not fits or not len(array):
                wanted = ", ".join(["samples", *map(str, tensor.shape[1:])])
                raise ValueError(
                    f"Samples must have the shape of the input. Received: "
                    f"{array.shape} for {tensor.name!r}, which takes ({wanted}). Add "
                    "the batch axis to a single sample: x[None]."
                )
        if len({len(array) for array in arrays.values()}) > 1:
            raise ValueError(
                "Every input must have as many samples. Received: "
                + ", ".join(f"{len(a)} of {name!r}" for name, a in arrays.items())
                + ". Give each sample all of its inputs."
            )
        self._resize(arrays)
        return arrays

    def _resize(self, arrays: Mapping[str, Array]) -> None:
        """Gives lengths that may change those of the samples; the batch stays 1."""
        if self._runner:
            return  # which does that itself
        resized = False
        for tensor in self.inputs:
            if -1 in tensor.shape:
                shape = [max(1, length) for length in tensor.shape]
                if tensor.name in arrays:
                    shape[1:] = arrays[tensor.name].shape[1:]
                self._interpreter.resize_tensor_input(tensor.index, shape)
                resized = True
        if resized:
            try:
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as err:
                raise self._cannot_run(err) from err

    def _cannot_run(self, err: Exception) -> ValueError:
        return ValueError(
            "A .tflite must be one that LiteRT can run. Received: "
            f"{self._name}, of which LiteRT says: {_first_line(err)} "
            + (
                "Look at kdlite.inspect(file).custom_ops."
                if self.content.custom_ops
                else "Convert its model again, with other data or in float32, to find "
                "the operation."
            )
        )

    def _run(self, arrays: Mapping[str, Array], verbose: str | int = 0) -> list[Array]:
        count = len(next(iter(arrays.values())))
        parts: list[list[Array]] = [[] for _ in self.outputs]
        progress = Progress(f"running {self._name}", count, "sample", verbose)
        for done, _ in enumerate(self._runs(arrays), 1):
            progress.update(min(count, done * self._batch))
            for part, tensor in zip(parts, self.outputs, strict=True):
                part.append(self._value(tensor))
        progress.close()
        return [
            self._by_sample(part, tensor)[:count]
            for part, tensor in zip(parts, self.outputs, strict=True)
        ]

    def _runs(self, arrays: Mapping[str, Array]) -> Iterator[None]:
        """Runs one batch after another; yields after each."""
        count = len(next(iter(arrays.values())))
        batch = self._batch
        for start in range(0, count, batch):
            values = {}
            for tensor in self.inputs:
                value = arrays[tensor.name][start : start + batch]
                if len(value) < batch:
                    # The last batch is filled up with copies that are cut off again.
                    copies = np.repeat(value[-1:], batch - len(value), axis=0)
                    value = np.concatenate([value, copies])
                values[tensor.name] = value if tensor.shape else value.reshape(())
            try:
                if self._runner:
                    self._told = self._runner(**values)
                else:
                    for tensor in self.inputs:
                        self._interpreter.set_tensor(tensor.index, values[tensor.name])
                    self._interpreter.invoke()
            except ValueError as err:  # as of an input that has no place
                raise self._cannot_run(err) from err
            except RuntimeError as err:
                raise ValueError(
                    "Samples must be such that the operations can compute them. "
                    f"Received: samples for {self._name}, of which LiteRT says: "
                    f"{_first_line(err)} Give values that it takes, such as ids that "
                    "an Embedding has."
                ) from err
            yield

    def _value(self, tensor: TensorInfo) -> Array:
        """Returns what an output was in the last run."""
        if self._runner:
            return np.asarray(self._told[tensor.name])
        try:
            return np.asarray(self._interpreter.get_tensor(tensor.index))
        except ValueError as err:  # as of an output that no operation makes
            raise self._cannot_run(err) from err

    @property
    def _batch(self) -> int:
        """How many samples a run takes."""
        return max([1, *self.inputs[0].shape[:1]])

    def _by_sample(self, runs: Sequence[Array], tensor: TensorInfo) -> Array:
        """Joins what an output was in each run to `(samples, ...)`."""
        shapes = {run.shape for run in runs}
        if len(shapes) == 1:
            if runs[0].shape[:1] == (self._batch,):
                return np.concatenate(runs)
            if self._batch == 1:
                return np.stack(runs)
        raise ValueError(
            "An output must have as many values for every sample. Received: shape "
            f"{' and '.join(map(str, sorted(shapes)[:2]))} for {tensor.name!r}, of "
            f"{self._batch} samples a run. Give one sample after another, or convert "
            "the model with batch 1."
        )

    def _prepare_timing(self) -> None:
        generator = np.random.default_rng(0)
        self._resize({})
        for tensor in self.inputs:
            shape = [max(1, length) for length in tensor.shape]
            values = generator.uniform(0, 1, shape)
            if tensor.scale is None and np.dtype(tensor.dtype).kind != "f":
                values = np.zeros(shape)  # fits any vocabulary
            self._interpreter.set_tensor(tensor.index, quantize(values, tensor))

    def _turn(self, runs: int) -> Iterator[float]:
        for _ in range(runs):
            start = time.perf_counter_ns()
            self._interpreter.invoke()
            yield (time.perf_counter_ns() - start) / 1e6


@dataclass(frozen=True)
class Latency:
    """How long one run of a file takes, in milliseconds, without its loading.

    Attributes:
        p50_ms: The median.
        p90_ms: Nine of ten runs are faster.
        min_ms: The fastest run, which other programs of the computer met least: what
            files are compared by.
        runs: Runs that were timed.
        threads: Threads that a run may use.
        processor: Which share of a processor this process had meanwhile; about 1 per
            thread on a computer that does nothing else.
    """

    p50_ms: float
    p90_ms: float
    min_ms: float
    runs: int
    threads: int
    processor: float

    @property
    def busy(self) -> bool:
        """Whether other programs held the runs up, so that times say little."""
        return self.processor < BUSY

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.p50_ms:.3f} ms median, {self.p90_ms:.3f} ms 90th percentile, "
            f"{self.min_ms:.3f} ms least, {self.runs} runs, {self.threads} thread"
            + ("s" if self.threads > 1 else "")
            + (f" ({busy_words(self.processor)})" if self.busy else "")
        )


def busy_words(processor: float) -> str:
    """Says that a computer had other things to do while it timed.

    Args:
        processor: As `Latency` has it.

    Example:
        >>> busy_words(0.43)
        'the computer was busy: these runs had 43 % of a processor'
    """
    return (
        f"the computer was busy: these runs had {100 * processor:.0f} % of a processor"
    )


def measure_latency(
    files: Sequence[File],
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
) -> tuple[Latency, ...]:
    """Times files side by side, in turns, so that their ratios hold.

    Args:
        files: Paths of `.tflite` files, or their bytes.
        threads: Threads that one run may use.
        runs: Runs of each file that are timed.
        warmup: Runs of each before that.

    Returns:
        One `Latency` a file, in order. On another computer or a phone all are
        different; ratios change less.

    Raises:
        TypeError: If `files` is one file.
        ValueError: If `runs` or `warmup` is out of range, or a file cannot be run.

    Example:
        ``teacher, student = measure_latency(["teacher.tflite", "student.tflite"])``
    """
    check_timing(files, runs, warmup)
    timed = times_ms([TFLiteModel(file, threads) for file in files], runs, warmup)
    return tuple(
        latency_of(of_file, threads, timed.processor) for of_file in timed.turns
    )


def check_timing(files: Any, runs: Any, warmup: Any) -> None:
    """Raises for what cannot be timed, as `measure_latency` says."""
    if isinstance(files, (str, bytes, os.PathLike)):
        raise TypeError(
            "`files` must be a list of files. Received: "
            f"files={type(files).__name__}. Write [file]."
        )
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0)):
        checked_count(name, value, least, "200 runs after 20 are a good measure")


class Times(NamedTuple):
    """What `times_ms` measured.

    Attributes:
        turns: By model a list of turns, each the milliseconds of a few runs.
        processor: Which share of a processor this process had in these turns.
    """

    turns: list[list[list[float]]]
    processor: float


def times_ms(models: Sequence[TFLiteModel], runs: int, warmup: int) -> Times:
    """Runs models in turns.

    Args:
        models: The models.
        runs: Runs of each that are timed.
        warmup: Runs of each before that.

    Returns:
        How long each run took.
    """
    turns: list[list[list[float]]] = [[] for _ in models]
    for model in models:
        model._prepare_timing()
        for _ in model._turn(warmup):
            pass
    progress = Progress("timing", runs, "run")
    passed = worked = 0
    for start in range(0, runs, _TURN):
        for model, taken in zip(models, turns, strict=True):
            began, had = time.perf_counter_ns(), time.process_time_ns()
            taken.append(list(model._turn(min(_TURN, runs - start))))
            passed += time.perf_counter_ns() - began
            worked += time.process_time_ns() - had
        progress.update(min(runs, start + _TURN))
    progress.close()
    return Times(turns, worked / passed if passed else 1.0)


def latency_of(
    turns: Sequence[Sequence[float]], threads: int, processor: float
) -> Latency:
    """Sums up the runs of one model.

    Args:
        turns: Milliseconds of each run, by turn.
        threads: Threads that a run could use.
        processor: Which share of a processor the process had.

    Returns:
        Median, 90th percentile and least.
    """
    taken = [run for turn in turns for run in turn]
    return Latency(
        p50_ms=float(np.percentile(taken, 50)),
        p90_ms=float(np.percentile(taken, 90)),
        min_ms=min(taken),
        runs=len(taken),
        threads=threads,
        processor=processor,
    )


def quantize(x: Array, tensor: TensorInfo) -> Array:
    """Returns real values as a tensor stores them.

    Args:
        x: Values of any shape.
        tensor: The tensor; one that is not quantized gets its dtype only.

    Returns:
        ``clip(round(x / scale) + zero_point)``.

    Raises:
        ValueError: If the tensor takes integers and `x` has NaN; or, where it is not
            quantized, values that are none of its integers.
    """
    dtype = np.dtype(tensor.dtype)
    if tensor.scale is None or tensor.zero_point is None:
        with np.errstate(invalid="ignore", over="ignore"):
            cast = x.astype(dtype)
        if dtype.kind in "iub" and (cast != x).any():
            raise ValueError(
                f"Values must be {dtype.name}, as the file takes them. Received: "
                f"{x[cast != x].flat[0]} for {tensor.name!r}. Round or scale them "
                "first."
            )
        return cast
    info = np.iinfo(dtype)
    levels = np.round(np.asarray(x, np.float64) / tensor.scale) + tensor.zero_point
    if np.isnan(levels).any():
        raise ValueError(
            f"Integers cannot say NaN. Received: NaN for {tensor.name!r}, which takes "
            f"{tensor.dtype}. Drop such samples."
        )
    return np.clip(levels, info.min, info.max).astype(dtype)


def dequantize(q: Array, tensor: TensorInfo) -> Array:
    """Returns the real values of what a tensor stores.

    Args:
        q: Levels of any shape.
        tensor: The tensor; of one that is not quantized `q` is returned.

    Returns:
        ``(q - zero_point) * scale``, in float32.
    """
    if tensor.scale is None or tensor.zero_point is None:
        return q
    # As LiteRT's own DEQUANTIZE: an exact difference, one product in float32.
    levels = q.astype(np.int64) - tensor.zero_point
    return levels.astype(np.float32) * np.float32(tensor.scale)


def _is_numpys(tensor: TensorInfo) -> bool:
    """Whether NumPy has the dtype, as numbers."""
    try:
        return np.dtype(tensor.dtype).kind in "fiubc"
    except TypeError:
        return False


def _first_line(err: Exception) -> str:
    line = str(err).strip().partition("\n")[0] or type(err).__name__
    return line if line.endswith(".") else f"{line}."
