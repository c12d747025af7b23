"""What is inside a `.tflite`: operations, types, shapes, and what is left in float."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from kdlite.compress.recipes import RECIPES, Recipe
from kdlite.terminal import in_a_line

FLOATS = ("float16", "float32", "float64", "bfloat16")
_BITS = {"int2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16}
# They hand values on and compute nothing; a step found behind them is the output's.
_MOVERS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE")
_KEEPERS = ("DEQUANTIZE", *_MOVERS)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: Its name; of inputs and outputs the one in the signature.
        dtype: The name of its dtype, such as "int8".
        shape: Its shape, the batch included; -1 where it may change.
        scales: The width of a quantization step: one, or one for each channel. Empty
            where the tensor is not quantized.
        zero_points: The level that stands for 0.0, like `scales`.
        axis: The axis that the channels are on.
        constant: Whether its values are in the file.
        index: Its place among the tensors of its graph.
        buffer: Which of the file's buffers has its values; tensors can share one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    constant: bool
    index: int
    buffer: int = 0

    @property
    def scale(self) -> float | None:
        """The step of a tensor quantized as a whole, `value = scale * (q - zero)`."""
        return self.scales[0] if len(self.scales) == 1 else None

    @property
    def zero_point(self) -> int | None:
        """The zero point of a tensor quantized as a whole."""
        return self.zero_points[0] if len(self.scales) == 1 else None

    @property
    def size(self) -> int:
        """The number of values, with 1 for a length that may change."""
        return math.prod(max(1, length) for length in self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        quantized: dict[str, Any] = {}
        if self.scales:
            quantized = {
                "scale": self.scale,
                "zero_point": self.zero_point,
                "channels": len(self.scales),
                "axis": self.axis,
            }
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            **quantized,
        }

    def __str__(self) -> str:
        text = f"{in_a_line(self.name)}: {self.dtype} {list(self.shape)}"
        if self.scale is not None:
            text += f", scale {self.scale:.6g}, zero point {self.zero_point}"
        return text


@dataclass(frozen=True)
class Op:
    """One operation of a file.

    Attributes:
        name: Its name in TFLite, such as "CONV_2D"; of custom ones their own.
        version: The version that the file asks the runtime for.
        tensor: The name of its first output: converters put the Keras layer in it.
        inputs: Indices of its inputs; -1 for one that is left out.
        outputs: Indices of its outputs.
        float_compute: Whether it computes on floats.
        macs: Multiply-accumulates of one run; 0 for operations without a kernel. Of a
            loop (WHILE) those of all its turns, which its body has of one.
        subgraph: The graph that it is in; 0 is the one that is run.
        custom: Whether it is none of TFLite's own.
        macs_at_least: Whether `macs` are those of one turn, of a loop of which the file
            does not tell how often it turns.
    """

    name: str
    version: int
    tensor: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    float_compute: bool
    macs: int
    subgraph: int
    custom: bool
    macs_at_least: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns what a reader wants to know, as JSON takes it."""
        return {
            "name": self.name,
            "version": self.version,
            "tensor": self.tensor,
            "float": self.float_compute,
            "macs": self.macs,
        }

    def __str__(self) -> str:
        text = f"{self.name} ({self.tensor})" if self.tensor else self.name
        return in_a_line(text)


@dataclass(frozen=True)
class Signature:
    """A function of a file, by name.

    Attributes:
        name: Its name; "serving_default" where a file has one and nothing was said.
        inputs: Its inputs, by their names in it.
        outputs: Its outputs, likewise.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class TFLiteFile:
    """What is inside a `.tflite`.

    Attributes:
        name: The file's name, empty where its bytes were given.
        size_bytes: Its size.
        ops: Its operations in the order they run, those of other graphs after them.
        inputs: Its inputs, by the names of the signature that was looked at: the first,
            unless another was asked for.
        outputs: Its outputs, likewise.
        tensors: All tensors of the graph that this signature runs.
        inner_tensors: Those of the graphs after it: of loops, branches and other
            signatures.
        signatures: Its signatures.
        parameters: How many numbers its kernels and biases hold.
        graph_outputs: Its outputs in the graph's own order, in which metadata tells of
            them and a runtime numbers them.
    """

    name: str
    size_bytes: int
    ops: tuple[Op, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    tensors: tuple[TensorInfo, ...]
    inner_tensors: tuple[tuple[TensorInfo, ...], ...]
    signatures: tuple[Signature, ...]
    parameters: int
    graph_outputs: tuple[TensorInfo, ...] = ()

    @property
    def all_inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs of all signatures, "signature/input" where there are several."""
        if len(self.signatures) < 2:
            return self.inputs
        return tuple(
            replace(tensor, name=f"{signature.name}/{tensor.name}")
            for signature in self.signatures
            for tensor in signature.inputs
        )

    @property
    def all_outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs of all signatures, likewise."""
        if len(self.signatures) < 2:
            return self.outputs
        return tuple(
            replace(tensor, name=f"{signature.name}/{tensor.name}")
            for signature in self.signatures
            for tensor in signature.outputs
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run, of convolutions and matrix products.

        Loops (WHILE, of recurrent layers) count with all their turns.
        """
        return sum(op.macs for op in self.ops if op.subgraph == 0)

    @property
    def macs_at_least(self) -> bool:
        """Whether a loop turns the file does not tell how often: `macs` has one."""
        return any(op.macs_at_least for op in self.ops if op.subgraph == 0)

    @property
    def macs_text(self) -> str:
        """`macs` for people, "at least 1,024" where they are so."""
        return f"{'at least ' if self.macs_at_least else ''}{self.macs:,}"

    @property
    def float_ops(self) -> tuple[Op, ...]:
        """Operations that compute on floats.

        QUANTIZE and DEQUANTIZE between floats and integers are not among them: they
        stand at the edges of an integer graph, and around an operation left in float.
        """
        return tuple(op for op in self.ops if op.float_compute)

    @property
    def custom_ops(self) -> tuple[Op, ...]:
        """Operations that an app must bring itself."""
        return tuple(op for op in self.ops if op.custom)

    @property
    def flex_ops(self) -> tuple[Op, ...]:
        """Operations that need the Select TF ops library."""
        return tuple(op for op in self.custom_ops if op.name.startswith("Flex"))

    @property
    def quantization(self) -> str:
        """How it computes: the name of a recipe of `kdlite.export`, or "mixed".

        "mixed" has activations of both kinds, integers and floats.
        """
        mixed = self.recipe.integer and self.float_ops
        return "mixed" if mixed else self.recipe.name

    @property
    def recipe(self) -> Recipe:
        """How it is quantized, where it is: what is left in float is not looked at.

        Its name is that of a recipe of `kdlite.export`; its bits are those of the file,
        for which that may have no recipe.
        """
        active = {t.dtype for t in self.tensors if not t.constant and t.scales}
        activation_bits = 32
        if active & set(_BITS):
            activation_bits = 16 if "int16" in active else 8
        weights = {t.index: _weight_bits(t) for t in self.tensors if _weight_bits(t)}
        # Without weights, as an integer graph of pooling is, those that it could have.
        bits = min(weights.values(), default=8 if activation_bits < 32 else 32)
        used = {
            op.name
            for op in self.ops
            if op.subgraph == 0 and not weights.keys().isdisjoint(op.inputs)
        }
        dequantized = activation_bits == 32 and used == {"DEQUANTIZE"}
        for known in RECIPES.values():
            means = (known.weight_bits, known.activation_bits, known.dequantized)
            if means == (bits, activation_bits, dequantized):
                return known
        # Made elsewhere, of bits that kdlite has no recipe for.
        if activation_bits < 32:
            name = "int16x8" if activation_bits == 16 else "int8"
        else:
            name = "weight_only" if dequantized else "dynamic"
        # The fewest that a recipe can have.
        bits = min(max(bits, 4), activation_bits)
        return Recipe(name, bits, activation_bits, dequantized)

    def tensors_of(self, op: Op) -> tuple[TensorInfo | None, ...]:
        """Returns what an operation reads, then what it writes.

        Args:
            op: One of `ops`.

        Returns:
            Its tensors in order; None for one that is left out.
        """
        graph = (self.tensors, *self.inner_tensors)[op.subgraph]
        return tuple(
            graph[index] if index >= 0 else None for index in (*op.inputs, *op.outputs)
        )

    def step(self, output: str) -> float | None:
        """Returns the quantization step that an output moves in.

        Args:
            output: The name of an output.

        Returns:
            The scale of the output, or of the integers that it is made from; None for
            an output that is computed in float, or is no quantity.

        Raises:
            ValueError: If there is no such output.
        """
        for tensor, _ in self._behind(output, _KEEPERS):
            if tensor.scale is not None:
                return tensor.scale
        return None

    def input_step(self, name: str) -> float | None:
        """Returns the quantization step that an input is rounded to at once.

        Args:
            name: The name of an input.

        Returns:
            Its scale, or that of the integers that it is made into; None where it is
            computed with in float, or is no such input.
        """
        for tensor in self.inputs:
            if tensor.name != name or tensor.scale is not None:
                continue
            for op in self.ops:
                if op.name == "QUANTIZE" and op.inputs[:1] == (tensor.index,):
                    return self.tensors[op.outputs[0]].scale if op.outputs else None
        scales = {tensor.name: tensor.scale for tensor in self.inputs}
        return scales.get(name)

    def maker(self, output: str) -> str:
        """Returns the name of the operation that an output's values are of.

        Args:
            output: The name of an output.

        Returns:
            The last operation but for those that move values and change their type;
            empty where there is none.

        Raises:
            ValueError: If there is no such output.
        """
        *_, (_, op) = self._behind(output, (*_KEEPERS, "QUANTIZE"))
        return op.name if op else ""

    def _behind(
        self, output: str, through: Collection[str]
    ) -> Iterator[tuple[TensorInfo, Op | None]]:
        """Yields the tensors behind an output and what makes each, the last first."""
        by_name = {tensor.name: tensor for tensor in self.outputs}
        if output not in by_name:
            raise ValueError(
                f"`output` must be one of {', '.join(map(repr, by_name))}. Received: "
                f"output={output!r}. Choose one of these."
            )
        index = by_name[output].index
        made_by = {
            op.outputs[0]: op for op in self.ops if op.outputs and not op.subgraph
        }
        # Each operation runs once, so a chain is no longer than there are operations.
        for _ in range(len(self.ops) + 1):
            op = made_by.get(index)
            yield self.tensors[index], op
            if op is None or op.name not in through:
                return
            index = next(iter(op.inputs), -1)
            if index < 0:
                return

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "quantization": self.quantization,
            "parameters": self.parameters,
            "macs": self.macs,
            "macs_at_least": self.macs_at_least,
            "signatures": [
                {
                    "name": signature.name,
                    "inputs": [tensor.to_dict() for tensor in signature.inputs],
                    "outputs": [tensor.to_dict() for tensor in signature.outputs],
                }
                for signature in self.signatures
            ],
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "ops": [op.to_dict() for op in self.ops],
            "float_ops": [str(op) for op in self.float_ops],
            "flex_ops": [str(op) for op in self.flex_ops],
            "custom_ops": [str(op) for op in self.custom_ops],
        }

    def __str__(self) -> str:
        counts = Counter(f"{op.name} v{op.version}" for op in self.ops)
        listed = ", ".join(
            f"{count} x {in_a_line(name)}" for name, count in counts.items()
        )
        lines = [
            f"{in_a_line(self.name) or 'model'}: {self.quantization}, "
            f"{self.size_bytes:,} bytes, "
            f"{self.parameters:,} parameters, {self.macs_text} multiply-accumulates",
            *_edge_lines(self.inputs, self.outputs),
            f"  {len(self.ops)} operations: {listed or 'none'}",
        ]
        if len(self.signatures) > 1:
            lines[1:-1] = [
                line
                for signature in self.signatures
                for line in (
                    f"  signature {in_a_line(signature.name)}",
                    *_edge_lines(signature.inputs, signature.outputs),
                )
            ]
        if any(t.scales and not t.constant for t in self.tensors):
            left = ", ".join(str(op) for op in self.float_ops)
            lines.append(f"  left in float: {left or 'none'}")
        if self.custom_ops:
            lines.append(
                "  not built in: " + ", ".join(str(op) for op in self.custom_ops)
            )
        return "\n".join(lines)


def _edge_lines(
    inputs: Iterable[TensorInfo], outputs: Iterable[TensorInfo]
) -> Iterator[str]:
    yield from (f"  in   {tensor}" for tensor in inputs)
    yield from (f"  out  {tensor}" for tensor in outputs)


def _weight_bits(tensor: TensorInfo) -> int:
    """Bits of numbers that were rounded when the file was made; 0 for all others."""
    if not tensor.constant:
        return 0
    if tensor.dtype == "float16":
        return 16
    return _BITS.get(tensor.dtype, 0) if tensor.scales else 0
