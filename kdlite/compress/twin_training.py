"""A twin's training in the other process: what it is shown, and how it is told."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils import io_utils

from kdlite.compress._tfmot_process import TfmotProcess
from kdlite.compress.twin import Twin
from kdlite.counts import checked_count

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

# What float32 leaves of an equal computation in another order.
_EQUAL = 1e-5
_PROBE = 32
# Batches on which ranges are measured that tfmot does not give.
_MEASURED = 8


class Training(TypedDict, total=False):
    """How the twin is trained: what all functions here take beside their own.

    Attributes:
        epochs: Passes over the data; 1.
        learning_rate: Of Adam: a number, or a Keras `LearningRateSchedule` over the
            steps; 1e-3.
        temperature: Of the soft targets, as in `kdlite.losses.SoftTargets`; 4.0.
        hard_loss_weight: Weight of the cross-entropy with the labels; 0.1, and 1.0
            where the data have no soft labels.
        soft_loss_weight: Weight of `T^2 KL(teacher || student)`; 0.9.
        batch_size: Of arrays; 32. A `tf.data.Dataset` has its own.
        seed: Of the order of arrays, and of the twin's dropout; 0.
        verbose: 1 or "auto" shows a progress bar for each epoch, 2 a line, 0 nothing.
        time_limit_s: Seconds that all of it may take; None for no limit.
    """

    epochs: int
    learning_rate: Any
    temperature: float
    hard_loss_weight: float
    soft_loss_weight: float
    batch_size: int
    seed: int
    verbose: str | int
    time_limit_s: float | None


def checked_training(given: Mapping[str, Any]) -> Training:
    """Returns what is given, with the defaults of the rest.

    Args:
        given: Some of `Training`.

    Raises:
        TypeError: If there is no argument of a name.
        ValueError: If one is out of range.
    """
    options = Training(
        epochs=1,
        learning_rate=1e-3,
        temperature=4.0,
        hard_loss_weight=0.1,
        soft_loss_weight=0.9,
        batch_size=32,
        seed=0,
        verbose="auto",
        time_limit_s=None,
    )
    for name in given:
        if name not in options:
            near = difflib.get_close_matches(name, options, 1)
            raise TypeError(
                f"There is no argument of this name. Received: {name!r}. Fix: "
                f"{near[0] if near else 'one of ' + ', '.join(options)}."
            )
    options.update(given)  # type: ignore[typeddict-item]
    for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
        value: Any = options[name]  # type: ignore[literal-required]
        options[name] = checked_count(name, value, least)  # type: ignore[literal-required]
    checked_number("temperature", options["temperature"], 0.0, math.inf, above=True)
    for name in ("hard_loss_weight", "soft_loss_weight"):
        value = options[name]  # type: ignore[literal-required]
        checked_number(name, value, 0.0, math.inf)
    if not options["hard_loss_weight"] and not options["soft_loss_weight"]:
        raise ValueError(
            "One of the losses must count. Received: hard_loss_weight=0, "
            "soft_loss_weight=0. Fix: leave both out."
        )
    rate = options["learning_rate"]
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        checked_number("learning_rate", rate, 0.0, math.inf, above=True)
    if options["verbose"] not in ("auto", 0, 1, 2):
        raise ValueError(
            "`verbose` must be 'auto', 0, 1 or 2. Received: "
            f"verbose={options['verbose']!r}. Fix: 1 for a progress bar, 0 for none."
        )
    if options["time_limit_s"] is not None:
        limit = options["time_limit_s"]
        checked_number("time_limit_s", limit, 0.0, math.inf, above=True)
    return options


def checked_number(
    name: str,
    value: Any,
    least: float,
    most: float,
    above: bool = False,
    below: bool = False,
) -> float:
    """Returns a finite number that lies between two, or raises ValueError.

    Args:
        name: What it is called.
        value: The number.
        least: The lower end.
        most: The upper end.
        above: Whether it must be above the lower end.
        below: Whether it must be below the upper end.
    """
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    fits = least < number if above else least <= number
    fits = (
        fits and math.isfinite(number) and (number < most if below else number <= most)
    )
    if not fits:
        words = f"above {least:g}" if above else f"at least {least:g}"
        if math.isfinite(most):
            words += f" and {'below' if below else 'at most'} {most:g}"
        raise ValueError(
            f"`{name}` must be a number {words}. Received: {name}={value!r}. Fix: a "
            "number in this range."
        )
    return number


# What is trained


class Batches:
    """The data as batches for the other process, epoch by epoch.

    Args:
        data: What `kdlite.tfmot.prune` takes.
        twin: Of the student that learns from them.
        options: How they are taken.

    Attributes:
        steps: Batches of an epoch.
        soft: Whether they have soft labels.
        probe: A few samples, by input.
        measured: The inputs of the first batches that were given out.

    Raises:
        TypeError: If they have another form.
        ValueError: If they do not fit the student, have no labels, or no end.
    """

    def __init__(self, data: Any, twin: Twin, options: Training) -> None:
        self._data = _as_dataset(data, options)
        steps = int(self._data.cardinality())
        if steps <= 0:
            raise ValueError(
                "`data` must say how many batches it has, and have some. Received: a "
                f"dataset of {'no' if steps == 0 else 'unknown or endless'} batches. "
                "Fix: data.take(n), or tf.data.experimental.assert_cardinality(n)."
            )
        self.steps = steps
        self._twin = twin
        self.measured: list[Any] = []
        first = next(iter(self._data))
        batch = self._batch(first)
        self.soft = batch["soft"] is not None
        if not self.soft and batch["y"] is None:
            raise ValueError(
                "`data` must have labels, soft labels or both. Received: batches of "
                "inputs alone. Fix: soft_labels.attach((x, y)), or (x, y)."
            )
        self.probe = [x[:_PROBE] for x in batch["x"]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One epoch."""
        taken = 0
        for element in self._data:
            batch = self._batch(element, taken)
            taken += len(batch["x"][0])
            if len(self.measured) < _MEASURED:
                self.measured.append(batch["x"])
            yield batch

    def structured(self, flat: list[Array]) -> Any:
        """Returns inputs as the student takes them."""
        structure = self._twin.functional._inputs_struct
        return keras.tree.pack_sequence_as(structure, flat)

    def _batch(self, element: Any, before: int = 0) -> dict[str, Any]:
        parts = element if isinstance(element, tuple) else (element,)
        x, *rest = parts
        soft = None
        if isinstance(x, Mapping) and set(x) == {"inputs", "soft_labels"}:
            x, soft = x["inputs"], np.asarray(x["soft_labels"], "float32")
        y, weight = [*rest, None, None][:2]
        _check_numbers((x, y, weight, soft), before)
        flat = self._inputs(x)
        shape = self._twin.functional.outputs[0].shape
        logits = (len(flat[0]), *shape[1:])
        if soft is not None:
            _check_logits("Soft labels", soft.shape, logits)
        return {
            "kind": "batch",
            "x": flat,
            "y": None if y is None else _targets(np.asarray(y), logits),
            "soft": soft,
            "weight": None if weight is None else np.asarray(weight, "float32"),
        }

    def _inputs(self, x: Any) -> list[Array]:
        inputs = self._twin.functional.inputs
        if isinstance(x, Mapping):
            names = [tensor.name for tensor in inputs]
            if missing := [name for name in names if name not in x]:
                raise ValueError(
                    f"`data` must have each input of the student. Received: "
                    f"{', '.join(map(repr, x))}, without {missing[0]!r}. Fix: name "
                    "arrays as the inputs."
                )
            flat = [x[name] for name in names]
        else:
            flat = keras.tree.flatten(x)
        if len(flat) != len(inputs):
            raise ValueError(
                f"`data` must have the student's {len(inputs)} inputs. Received: "
                f"{len(flat)} in a batch. Fix: a mapping by input name."
            )
        arrays = [
            np.asarray(values).astype(tensor.dtype)
            for values, tensor in zip(flat, inputs, strict=True)
        ]
        for array, tensor in zip(arrays, inputs, strict=True):
            wanted = tensor.shape[1:]
            fits = len(array.shape) == len(wanted) + 1 and all(
                n in (None, m) for n, m in zip(wanted, array.shape[1:], strict=True)
            )
            if not fits:
                raise ValueError(
                    f"`data` must fit the student's input {tensor.name!r} of shape "
                    f"(batch, {', '.join(map(str, wanted))}). Received: {array.shape}. "
                    "Fix: batches of such, or another student."
                )
        return arrays


def _as_dataset(data: Any, options: Training) -> tf.data.Dataset:
    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, tuple) and 1 < len(data) < 4:
        if any(hasattr(part, "attach") for part in data):
            raise TypeError(
                "Soft labels are attached to their data. Received: data=(x, "
                "SoftLabels). Fix: soft_labels.attach((x, y))."
            )
        lengths = {len(part) for part in keras.tree.flatten(data) if part is not None}
        if len(lengths) > 1:
            raise ValueError(
                "Inputs and labels must be as many. Received: lengths "
                f"{', '.join(map(str, sorted(lengths)))}. Fix: a label for each sample."
            )
        (count,) = lengths
        _check_numbers(data)  # here their order is known yet
        dataset = tf.data.Dataset.from_tensor_slices(data)
        dataset = dataset.shuffle(max(1, count), options["seed"])
        return dataset.batch(options["batch_size"]).prefetch(tf.data.AUTOTUNE)
    raise TypeError(
        "`data` must be soft_labels.attach((x, y)), (x, y) or a tf.data.Dataset. "
        f"Received: data of type {type(data).__name__}. Fix: one of these."
    )


def _check_numbers(parts: Sequence[Any], before: int = 0) -> None:
    """Raises ValueError for NaN and infinity, which a twin would be blamed for."""
    names = ("inputs", "labels", "sample weights", "soft labels")
    for name, part in zip(names, parts, strict=False):
        for array in map(np.asarray, keras.tree.flatten(part)):
            if array.dtype.kind != "f" or np.isfinite(array).all():
                continue
            bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            raise ValueError(
                f"`data` must be finite numbers. Received: {name} with NaN or infinity "
                f"in {int(bad.sum())} of {len(array):,} samples, the first of index "
                f"{before + int(np.argmax(bad))}. Fix: clean or drop these samples."
            )


def _targets(y: Array, logits: tuple[int, ...]) -> Array:
    if y.shape == logits:
        return y.astype("float32")
    places = logits[:-1]
    if y.size == math.prod(places) and not np.issubdtype(y.dtype, np.floating):
        y = y.reshape(places).astype("int32")
        if y.size and not 0 <= y.min() <= y.max() < logits[-1]:
            raise ValueError(
                f"Labels must be classes of the student, 0 to {logits[-1] - 1}. "
                f"Received: {y.min()} to {y.max()}. Fix: a student with as many "
                "classes, or leave such samples out."
            )
        return y
    raise ValueError(
        f"Labels must be class numbers of shape {places}, or shares of shape {logits}. "
        f"Received: {y.dtype} of shape {y.shape}. Fix: cast class numbers to int32."
    )


def _check_logits(what: str, shape: tuple[int, ...], logits: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(logits):
        raise ValueError(
            f"{what} must have the student's shape {logits}. Received: {shape}. Fix: a "
            "teacher and a student of the same classes."
        )


# How it is run


def train_twin(
    twin: Twin, batches: Batches, options: Training, stage: str, arguments: Any
) -> dict[str, Any]:
    """Trains the twin in the other process.

    Args:
        twin: The twin.
        batches: What it learns from.
        options: How.
        stage: What tfmot does with it: "prune", "cluster" or "quantize".
        arguments: Of that.

    Returns:
        Its `weights`, layer by layer; where it was quantized also the `ranges` of the
        layers' outputs, and the `outputs` for `batches.probe`.

    Raises:
        ValueError: If the twin is not equal to the student, tfmot refuses a layer, or
            the loss is not finite.
        CompressionError: If the process fails, or takes too long.
    """
    hard, soft = options["hard_loss_weight"], options["soft_loss_weight"]
    if not batches.soft:
        hard, soft = 1.0, 0.0
    training = {"temperature": options["temperature"], "hard": hard, "soft": soft}
    rate = _rates(options["learning_rate"])
    with TfmotProcess(options["time_limit_s"]) as process:
        process.send(
            {
                "seed": options["seed"],
                "plan": twin.plan(),
                "weights": twin.weights(),
                "probe": batches.probe,
            }
        )
        answer = _accepted(process, twin)
        _check_equal(twin, batches, answer["outputs"])
        training["learning_rate"] = rate(0)
        process.send({"stage": stage, "options": arguments, "training": training})
        _accepted(process, twin)
        step = 0
        for epoch in range(options["epochs"]):
            progress = _Progress(epoch, options, batches.steps)
            waiting = 0
            for batch in batches:
                process.send({**batch, "learning_rate": rate(step)})
                step, waiting = step + 1, waiting + 1
                # One batch ahead, so that neither process waits for the other.
                if waiting > 1:
                    progress.add(process.receive())
                    waiting -= 1
            for _ in range(waiting):
                progress.add(process.receive())
            progress.close()
        process.send({"kind": "end"})
        return process.receive()


def _accepted(process: TfmotProcess, twin: Twin) -> dict[str, Any]:
    answer = process.receive()
    if "refused" not in answer:
        return answer

    def named(found: re.Match[str]) -> str:
        layer = twin.layers[int(found[1])]
        return f"layer {layer.path!r}"

    why = re.sub(r"\b(?:\w*_)?layer_(\d+)\b", named, answer["refused"])
    raise ValueError(
        "Each layer must be one that tensorflow-model-optimization takes. Received: "
        f"model={twin.student.name!r}, of which {why}. Fix: leave that layer out by "
        "name where layers can be chosen, replace it, or use kdlite.quantize_aware."
    )


def _check_equal(twin: Twin, batches: Batches, found: Array) -> None:
    x = batches.structured(batches.probe)
    expected = np.asarray(twin.student(x, training=False))
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(expected - found).max())
    if not difference <= _EQUAL * scale:  # not a number is no equality
        raise ValueError(
            f"The student's twin in tf_keras must be equal within {_EQUAL:g} of the "
            f"largest output. Received: {twin.student.name!r}, whose twin is "
            f"{difference:.2g} off where the largest is {scale:.2g}. Fix: outputs must "
            "be finite; else replace layers, to find the one that computes otherwise."
        )
    logger.info("the twin of %s is %.2g off", twin.student.name, difference)


class _Progress:
    """One epoch as `fit` shows it."""

    def __init__(self, epoch: int, options: Training, steps: int) -> None:
        verbose = 1 if options["verbose"] == "auto" else options["verbose"]
        self._bar = None
        if verbose:
            io_utils.print_msg(f"Epoch {epoch + 1}/{options['epochs']}")
            self._bar = keras.utils.Progbar(steps, verbose=int(verbose))
        self._done = 0
        self._sums: dict[str, float] = {}
        self._text = f"epoch {epoch + 1}/{options['epochs']}"

    def add(self, figures: dict[str, float]) -> None:
        if not math.isfinite(figures["loss"]):
            raise ValueError(
                "The loss must be finite. Received: "
                f"loss={figures['loss']} in {self._text}, step {self._done + 1}. Fix: "
                "a smaller learning_rate, and data without NaN."
            )
        self._done += 1
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self._bar is not None:
            self._bar.update(self._done, list(figures.items()), finalize=False)

    def close(self) -> None:
        means = {name: value / self._done for name, value in self._sums.items()}
        logger.info("%s: %s", self._text, means)
        if self._bar is not None:
            self._bar.update(self._done, finalize=True)


def _rates(rate: Any) -> Callable[[int], float]:
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return lambda step: float(rate(step))
    return lambda step: float(rate)
