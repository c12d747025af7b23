"""Pruning, clustering and quantization by tensorflow-model-optimization, distilled.

tensorflow-model-optimization works on tf_keras models only. Each function here builds a
twin of the student there, in a process of its own, checks that it computes the same,
trains it with what `Distiller.fit` is trained with, and brings the result back as a
Keras 3 model. Nothing changes in this process: `tf.keras` stays what it was.

Each takes a trained student and gives a new one, so that they can follow each other.
With `keep_zeros` and `keep_clusters` a later one keeps what an earlier one made:

| tensorflow-model-optimization calls it | here |
|---|---|
| pruning | `prune(student, data)` |
| weight clustering | `cluster(student, data)` |
| sparsity-preserving clustering | `cluster(pruned, data, keep_zeros=True)` |
| QAT | `quantize_aware(student, data)` |
| PQAT | `quantize_aware(pruned, data, keep_zeros=True)` |
| CQAT | `quantize_aware(clustered, data, keep_clusters=True)` |
| PCQAT | both, of a student that was pruned, then clustered with `keep_zeros` |

It needs `pip install "kdlite[tfmot]"`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Unpack

import keras
import numpy as np

from kdlite.compress._tfmot_process import CompressionError
from kdlite.compress.fake_quant import FakeQuant
from kdlite.compress.folded_layer import FoldedLayer
from kdlite.compress.qat import freeze_batch_norm
from kdlite.compress.qat import quantize_aware as keras_quantize_aware
from kdlite.compress.twin import Twin
from kdlite.compress.twin_training import (
    Batches,
    Training,
    checked_number,
    checked_training,
    train_twin,
)
from kdlite.counts import checked_count

__all__ = ["CompressionError", "Training", "cluster", "prune", "quantize_aware"]

Range = tuple[float, float]

# The layers whose weights tfmot prunes and clusters; depthwise ones have too few.
_WITH_KERNEL = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "Dense", "Embedding")
_PRUNED = (*_WITH_KERNEL, "SeparableConv1D", "LSTM", "GRU", "SimpleRNN")
_CLUSTERED = (*_WITH_KERNEL, "Conv1DTranspose", "SeparableConv1D")
_BEFORE_BATCH_NORM = ("Conv2D", "DepthwiseConv2D", "Dense")


def prune(
    student: keras.Model,
    data: Any,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    pattern: str | tuple[int, int] | None = None,
    schedule: str = "polynomial",
    ramp: float = 0.75,
    **training: Unpack[Training],
) -> keras.Model:
    """Returns a student of whose weights a part is zero: the smallest ones.

    While it trains, more and more weights of each layer are held at zero, by

        s(t) = s_f - s_f (1 - t / t_ramp)^3

    until a layer of n weights has `round(n (1 - s_f))` left. Convolutions, dense
    layers, embeddings and recurrent layers are pruned; depthwise kernels, biases,
    normalization and frozen layers are not. The file has as many bytes as before, and
    compresses better: see `kdlite.size_report`. Zeros stay zero in every recipe of
    `kdlite.export`.

    Args:
        student: A trained Functional or Sequential model in float32 with one output of
            logits or a softmax over classes. It is left as it is.
        data: What `Distiller.fit` takes: `soft_labels.attach(...)`, or without a
            teacher `(x, y)` or a batched `tf.data.Dataset` of such; `y` are class
            numbers or rows of class shares.
        sparsity: The part of a layer's weights that is to be zero, in (0, 1); or such
            by layer name or pattern, `{"block*": 0.9, "head": 0.5}`, which leaves all
            other layers alone. None means 0.75, and 0.5 with "2:4", which has no other.
        pattern: None for any weight; "2:4" for two zeros in each four neighbours along
            the input channels, chosen once at the start, in Dense and Conv2D (where
            channels are left over, fewer of these are zero: a warning says how many);
            or
            `(height, width)` of blocks of a kernel `(inputs, units)` that are zero
            together, in Dense.
        schedule: "polynomial" as above, or "constant": `sparsity` from the start.
        ramp: The part of the training after which `sparsity` is reached, in (0, 1].
        **training: See `Training`.

    Returns:
        A new model of the student's structure, not compiled.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument breaks a rule, a layer has no twin in tf_keras, or
            tensorflow-model-optimization does not take it; before the first step.
        CompressionError: If the process fails, or takes too long.

    Example:
        ``pruned = kdlite.tfmot.prune(student, soft.attach((x, y)), 0.75, epochs=2)``

    Reference:
        Zhu and Gupta, 2017, "To prune, or not to prune", arXiv:1710.01878, eq. 1.
    """
    options = checked_training(training)
    twin = _checked_twin(student)
    block = _checked_pattern(pattern)
    if schedule not in ("polynomial", "constant"):
        raise ValueError(
            "`schedule` must be 'polynomial' or 'constant'. Received: "
            f"schedule={schedule!r}. Fix: leave it out for 'polynomial'."
        )
    ramp = checked_number("ramp", ramp, 0.0, 1.0, above=True)
    if sparsity is None:
        sparsity = 0.5 if pattern == "2:4" else 0.75
    if pattern == "2:4":
        given = sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]
        if any(value != 0.5 for value in given):
            raise ValueError(
                "With pattern='2:4' half of the weights are zero. Received: "
                f"sparsity={sparsity!r}. Fix: sparsity=0.5, or leave it out."
            )
    if pattern == "2:4":
        kinds: tuple[str, ...] = ("Dense", "Conv2D")
    else:
        kinds = ("Dense",) if block else _PRUNED
    wanted = _by_layer(twin, "sparsity", sparsity, kinds)
    for value in wanted.values():
        checked_number("sparsity", value, 0.0, 1.0, above=True, below=True)
    if pattern == "2:4":
        _warn_of_odd_channels(twin, wanted)
    batches = Batches(data, twin, options)
    steps = batches.steps * options["epochs"]
    last = max(1, round(steps * ramp))
    # tfmot looks at every so manieth step whether there is more to prune; at least 20
    # times, and the last time at the end of the ramp.
    every = max(1, min(100, last // 20))
    last -= last % every
    chosen = {}
    for place, value in wanted.items():
        made: dict[str, Any] = {}
        if pattern == "2:4":
            made["sparsity_m_by_n"] = (2, 4)
        elif block:
            made["block_size"] = block
        if schedule == "constant" or pattern == "2:4":
            arguments: dict[str, Any] = {"target_sparsity": value, "begin_step": 0}
            made["schedule"] = ("ConstantSparsity", {**arguments, "frequency": every})
        else:
            arguments = {"initial_sparsity": 0.0, "final_sparsity": value}
            arguments.update(begin_step=0, end_step=last, frequency=every)
            made["schedule"] = ("PolynomialDecay", arguments)
        chosen[place] = made
    answer = train_twin(twin, batches, options, "prune", {"chosen": chosen})
    return twin.with_weights(answer["weights"])


def cluster(
    student: keras.Model,
    data: Any,
    clusters: int | Mapping[str, int] = 16,
    *,
    keep_zeros: bool = False,
    **training: Unpack[Training],
) -> keras.Model:
    """Returns a student each of whose layers has only a few different weights.

    The weights of a layer are sorted to the nearest of `clusters` values, which begin
    with k-means++ and are trained. Convolutions, dense layers and embeddings are
    clustered; depthwise kernels, biases and normalization are not, nor are kernels of
    no more than `clusters` weights. The file has as many bytes as before, and
    compresses better: see `kdlite.size_report`. An int8 file has steps by channel, and
    so up to `clusters` different values in each channel.

    Args:
        student: As in `prune`.
        data: As in `prune`.
        clusters: The number of values, at least 2; or such by layer name or pattern.
        keep_zeros: Whether weights that are zero stay so, as in a pruned student; zero
            is then one of the values, of at least 3.
        **training: See `Training`.

    Returns:
        A new model of the student's structure, not compiled.

    Raises:
        TypeError: As in `prune`.
        ValueError: As in `prune`.
        CompressionError: If the process fails, or takes too long.

    Example:
        ``clustered = kdlite.tfmot.cluster(student, soft.attach((x, y)), 16)``

    Reference:
        Han, Mao and Dally, 2016, "Deep Compression", arXiv:1510.00149, section 3.
    """
    options = checked_training(training)
    twin = _checked_twin(student)
    wanted = _by_layer(twin, "clusters", clusters, _CLUSTERED)
    least, fix = 2, "16 suits most"
    if keep_zeros:
        least, fix = 3, "16 suits most; one of them is 0, by keep_zeros=True"
    wanted = {
        place: checked_count("clusters", value, least, fix)
        for place, value in wanted.items()
    }
    weights = twin.weights()
    chosen = {}
    for place, value in wanted.items():
        kernel = max(weights[place], key=np.size)
        if kernel.size > value:
            # Of a layer without zeros tfmot would make the least value zero.
            chosen[place] = (value, keep_zeros and not kernel.all())
    if not chosen:
        raise ValueError(
            "`clusters` must be fewer than a layer has weights. Received: "
            f"clusters={clusters!r} for {student.name!r}, which has no such layer. "
            "Fix: fewer."
        )
    _check_keeps(twin, keep_zeros, None)
    batches = Batches(data, twin, options)
    answer = train_twin(twin, batches, options, "cluster", {"chosen": chosen})
    return twin.with_weights(answer["weights"])


def quantize_aware(
    student: keras.Model,
    data: Any,
    *,
    keep_zeros: bool = False,
    keep_clusters: bool = False,
    input_range: Range | Mapping[str, Range] | None = None,
    **training: Unpack[Training],
) -> keras.Model:
    """Returns a student trained by tensorflow-model-optimization to round as int8.

    What `kdlite.quantize_aware` and `Distiller` do in Keras 3, done by
    tensorflow-model-optimization: with its rules where activations are rounded, ranges
    that are a mean over 1000 steps (begun with those of the first batch, and not with
    its -6 to 6), and one step for a Dense kernel. The result is a model as
    `kdlite.quantize_aware` makes it, with the weights and ranges that were found, ready
    for `kdlite.export(model, path, "int8")` or more training; a Dense kernel has a step
    for each of its units there, which is finer.

    It takes Conv2D, DepthwiseConv2D, SeparableConv2D and Dense, with a
    BatchNormalization after them, ReLU, LeakyReLU, sums and concatenations, average
    and global pooling, 2D maximum pooling, and what moves values; each once. Anything
    else is an error that names the layer; `kdlite.quantize_aware` takes more.

    Args:
        student: As in `prune`.
        data: As in `prune`.
        keep_zeros: Whether weights that are zero stay so.
        keep_clusters: Whether weights of one value go on having one: in a Conv2D those
            of one channel, as tensorflow-model-optimization then trains each channel's
            values on their own.
        input_range: As in `kdlite.quantize_aware`.
        **training: See `Training`.

    Returns:
        A quantization-aware model, not compiled.

    Raises:
        TypeError: As in `prune`.
        ValueError: As in `prune`.
        CompressionError: If the process fails, or takes too long.

    Example:
        ``qat = kdlite.tfmot.quantize_aware(pruned, soft.attach((x, y)),
        keep_zeros=True)``

    Reference:
        Jacob et al., 2018, arXiv:1712.05877, as tensorflow-model-optimization has it.
    """
    options = checked_training(training)
    twin = _checked_twin(student)
    # Whatever cannot be brought back is refused by name before the training.
    keras_quantize_aware(student, input_range=input_range)
    _check_quantizable(twin)
    _check_keeps(twin, keep_zeros, keep_clusters)
    batches = Batches(data, twin, options)
    stage = {
        # tfmot knows no Rescaling, but takes any layer whose output alone is rounded.
        "outputs_only": [
            place for place, x in enumerate(twin.layers) if x.kind == "Rescaling"
        ],
        "keep_zeros": keep_zeros,
        "keep_clusters": keep_clusters,
        "x": batches.probe,
    }
    answer = train_twin(twin, batches, options, "quantize", stage)
    trained = twin.with_weights(answer["weights"])
    qat = keras_quantize_aware(trained, input_range=input_range)
    _set_ranges(qat, twin, answer["ranges"], batches)
    return qat


def _warn_of_odd_channels(twin: Twin, places: Iterable[int]) -> None:
    """Warns of layers that groups of four do not fill: less of them becomes zero."""
    weights = twin.weights()
    found = []
    for place in places:
        kernel = max(weights[place], key=np.size)
        channels = kernel.shape[-2]
        if left := channels % 4:
            # tfmot fills the last four with zeros, which are among its two.
            share = (2 * (channels // 4) + max(0, left - 2)) / channels
            found.append(
                f"{twin.layers[place].path!r} with {channels} ({share:.0%} zeros)"
            )
    if found:
        warnings.warn(
            "pattern='2:4' needs input channels in fours: of those left over fewer "
            f"become zero than half. Received: {', '.join(found)}. Fix: leave such "
            "layers out, sparsity={'name': 0.5} of the others, or another pattern.",
            stacklevel=3,
        )


def _set_ranges(
    qat: keras.Model, twin: Twin, ranges: Mapping[int, Range], batches: Batches
) -> None:
    """Gives a quantization-aware model tfmot's ranges; measures those it lacks."""
    by_name: dict[str, Range] = {}
    for place, bounds in ranges.items():
        # The last of a layer's parts is the one whose output is the layer's.
        by_name[twin.layers[place].path.rpartition("/")[2]] = bounds
    known = []
    for layer in qat._flatten_layers():
        if not isinstance(layer, FakeQuant) or layer.sites != 1:
            continue
        found = by_name.get(layer.name.removesuffix("_fake_quant"))
        if found is not None and layer.trainable:
            layer.minimum.assign([found[0]])
            layer.maximum.assign([found[1]])
            layer.trainable = False  # while the others are measured
            known.append(layer)
    folded = [x for x in qat._flatten_layers() if isinstance(x, FoldedLayer)]
    frozen = [layer.frozen_statistics for layer in folded]
    freeze_batch_norm(qat)
    for x in batches.measured:
        qat(batches.structured(x), training=True)
    for layer, value in zip(folded, frozen, strict=True):
        layer.frozen_statistics = value
    for layer in known:
        layer.trainable = True


# What is checked


def _checked_twin(student: Any) -> Twin:
    if not isinstance(student, keras.Model):
        raise TypeError(
            "`student` must be a Keras model. Received: "
            f"student={type(student).__name__}. Fix: give the trained `keras.Model`, "
            "the .student of a Distiller."
        )
    inner = getattr(student, "student", None)
    if isinstance(inner, keras.Model):
        raise TypeError(
            "`student` must be the model that is to be smaller. Received: "
            f"{type(student).__name__} {student.name!r}, which trains one. Fix: its "
            ".student."
        )
    missing = [
        name
        for name in ("tensorflow_model_optimization", "tf_keras", "distutils")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ImportError(
            "kdlite.tfmot needs tensorflow-model-optimization and tf_keras. Received: "
            f'no {missing[0]}. Fix: pip install "kdlite[tfmot]".'
        )
    return Twin(student)


def _checked_pattern(pattern: Any) -> tuple[int, int] | None:
    if pattern is None or pattern == "2:4":
        return None
    if (
        isinstance(pattern, (tuple, list))
        and len(pattern) == 2
        and all(type(size) is int and size > 0 for size in pattern)
    ):
        return pattern[0], pattern[1]
    raise ValueError(
        "`pattern` must be None, '2:4' or (height, width) of a block. Received: "
        f"pattern={pattern!r}. Fix: (4, 1), for one."
    )


def _by_layer(twin: Twin, name: str, value: Any, kinds: tuple[str, ...]) -> Any:
    """Returns by place what a number, or numbers by pattern, mean for each layer."""
    able = {place for place, x in enumerate(twin.layers) if x.kind in kinds}
    if not isinstance(value, Mapping):
        if not able:
            raise ValueError(
                f"The student must have a layer that it concerns: {', '.join(kinds)}. "
                f"Received: {twin.student.name!r}, which has none. Fix: another "
                "pattern, or another way to make it smaller."
            )
        frozen = {k for k in able if not twin.layers[k].source.trainable}
        return dict.fromkeys(sorted(able - frozen or able), value)
    chosen: dict[int, Any] = {}
    for pattern, wanted in value.items():
        places = [place for place in twin.matching(pattern) if place in able]
        if not places:
            layer = twin.layers[twin.matching(pattern)[0]]
            raise ValueError(
                f"`{name}` must name layers of the classes {', '.join(kinds)}. "
                f"Received: {pattern!r}, which is layer {layer.path!r} of class "
                f"{layer.kind}. Fix: leave it out."
            )
        chosen.update(dict.fromkeys(places, wanted))
    if not chosen:
        raise ValueError(
            f"`{name}` must name layers. Received: an empty mapping. Fix: a number, or "
            "{'*': number}."
        )
    return chosen


def _check_quantizable(twin: Twin) -> None:
    """Refuses by name what tfmot's patterns do not cover, though it knows the layer."""
    users: dict[int, int] = {}
    made_by = {call.output: call for call in twin.calls}
    calls_of: dict[int, int] = {}
    for call in twin.calls:
        calls_of[call.layer] = calls_of.get(call.layer, 0) + 1
        for x in call.inputs:
            users[x] = users.get(x, 0) + 1
    for call in twin.calls:
        layer = twin.layers[call.layer]
        problem = fix = ""
        if calls_of[call.layer] > 1:
            problem = "which is called twice"
            fix = "two layers of the same weights"
        elif layer.kind == "BatchNormalization":
            before = made_by.get(call.inputs[0])
            kind = twin.layers[before.layer].kind if before else "input"
            if kind not in _BEFORE_BATCH_NORM or users[call.inputs[0]] > 1:
                problem = f"which follows {kind} and cannot be folded into it"
                fix = f"put it right after {', '.join(_BEFORE_BATCH_NORM)}"
            elif call.inference:
                problem = "which is held at its moving statistics"
                fix = "call it without training=False"
        if problem:
            raise ValueError(
                "tensorflow-model-optimization's quantization-aware training must be "
                f"able to take each layer. Received: layer {layer.path!r} of class "
                f"{layer.kind}, {problem}. Fix: {fix}, or use kdlite.quantize_aware."
            )


def _check_keeps(twin: Twin, keep_zeros: bool, keep_clusters: bool | None) -> None:
    kernels = [
        value
        for layer, values in zip(twin.layers, twin.weights(), strict=True)
        for value in values
        if layer.kind in (*_PRUNED, *_CLUSTERED) and value.ndim > 1
    ]
    zeros = max((float((k == 0).mean()) for k in kernels), default=0.0)
    if keep_zeros and not zeros:
        raise ValueError(
            "`keep_zeros` is for a pruned student. Received: "
            f"{twin.student.name!r}, no kernel of which has a zero. Fix: prune it "
            "first, or leave keep_zeros out."
        )
    if keep_clusters and not any(len(np.unique(k)) < k.size / 2 for k in kernels):
        raise ValueError(
            "`keep_clusters` is for a clustered student. Received: "
            f"{twin.student.name!r}, whose kernels share no values. Fix: cluster it "
            "first, or leave keep_clusters out."
        )
