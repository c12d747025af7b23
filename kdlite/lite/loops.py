"""How often the loops of a `.tflite` turn, and so how much they compute.

A WHILE has two graphs: one that says whether it goes on, and its body. Recurrent layers
become loops that count: `n < 10 and time < 10`, both begun with 0 and moved on by 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kdlite.lite.tflite_file import Op, TensorInfo

# More is no file that anyone has, and no number that anything goes on with.
_MOST = 2**63 - 1
_DEEPEST = 16


@dataclass(frozen=True)
class Graph:
    """One graph of a file.

    Attributes:
        tensors: Its tensors.
        inputs: Indices of its inputs.
        outputs: Indices of its outputs.
        loops: By the place of a WHILE among its operations the graphs of condition and
            body.
    """

    tensors: Sequence[TensorInfo]
    inputs: Sequence[int]
    outputs: Sequence[int]
    loops: Mapping[int, tuple[int, int]]


def with_loops(
    ops: Sequence[Sequence[Op]],
    graphs: Sequence[Graph],
    value: Callable[[TensorInfo], int | None],
) -> list[Op]:
    """Gives each loop the multiply-accumulates of all its turns.

    Args:
        ops: By graph its operations.
        graphs: All graphs, in the same order.
        value: Returns what a constant holds, if that is one integer.

    Returns:
        The operations of all graphs, one graph after the other. Where nothing says how
        often a loop turns, it has those of one turn, and `macs_at_least`.
    """
    loops = _Loops(ops, graphs, value)
    return [op for place in range(len(ops)) for op in loops.counted(place)]


class _Loops:
    def __init__(
        self,
        ops: Sequence[Sequence[Op]],
        graphs: Sequence[Graph],
        value: Callable[[TensorInfo], int | None],
    ) -> None:
        self._ops, self._graphs, self._value = ops, graphs, value
        self._done: dict[int, list[Op]] = {}

    def counted(self, place: int, depth: int = 0) -> list[Op]:
        if place not in self._done:
            # A loop whose body is what it is in, as no converter makes one, has none.
            self._done[place] = list(self._ops[place])
            self._done[place] = [
                self._with_turns(
                    op, place, self._graphs[place].loops.get(number), depth
                )
                for number, op in enumerate(self._ops[place])
            ]
        return self._done[place]

    def _with_turns(
        self, op: Op, place: int, loop: tuple[int, int] | None, depth: int
    ) -> Op:
        if loop is None or not all(0 <= n < len(self._graphs) for n in loop):
            return op
        if depth > _DEEPEST:
            return replace(op, macs_at_least=True)
        condition, body = loop
        inside = [
            each
            for graph in dict.fromkeys((condition, body))
            for each in self.counted(graph, depth + 1)
        ]
        macs = sum(each.macs for each in inside)
        if not macs and not any(each.macs_at_least for each in inside):
            return op
        turns = self._turns(op, place, condition, body)
        return replace(
            op,
            macs=min(_MOST, macs * (1 if turns is None else turns)),
            macs_at_least=turns is None or any(each.macs_at_least for each in inside),
        )

    def _turns(self, op: Op, place: int, condition: int, body: int) -> int | None:
        """Returns how often a loop turns; None if that is not in the file."""
        asks, moves = self._graphs[condition], self._graphs[body]
        if len(asks.outputs) != 1 or not (
            len(op.inputs)
            == len(asks.inputs)
            == len(moves.inputs)
            == len(moves.outputs)
        ):
            return None
        made_by = {o.outputs[0]: o for o in self._ops[condition] if o.outputs}
        moved_by = {o.outputs[0]: o for o in self._ops[body] if o.outputs}

        def begun(index: int) -> int | None:
            """What a loop's variable, an input of the condition, begins with."""
            outer = op.inputs[asks.inputs.index(index)]
            return self._constant(place, outer)

        def moved(index: int) -> int | None:
            """By how much a turn moves it."""
            number = asks.inputs.index(index)
            mine, new = moves.inputs[number], moves.outputs[number]
            if mine == new:
                return 0
            by = moved_by.get(new)
            if by is None or by.name != "ADD" or mine not in by.inputs[:2]:
                return None
            others = [i for i in by.inputs[:2] if i != mine]
            return self._constant(body, others[0]) if len(others) == 1 else None

        def limit(index: int) -> int | None:
            """What it is compared with: a constant, or what no turn moves."""
            if index in asks.inputs:
                return begun(index) if moved(index) == 0 else None
            return self._constant(condition, index)

        found: list[int] = []
        waiting, looked = [asks.outputs[0]], 0
        while waiting and looked <= len(made_by):
            looked += 1
            by = made_by.get(waiting.pop())
            if by is None or len(by.inputs) != 2:
                return None
            if by.name == "LOGICAL_AND":
                waiting += by.inputs
                continue
            left, right = by.inputs
            if by.name == "GREATER":
                left, right = right, left
            if by.name not in ("LESS", "GREATER") or left not in asks.inputs:
                return None
            first, step, end = begun(left), moved(left), limit(right)
            if first is None or end is None or not step or step < 0:
                return None
            found.append(max(0, math.ceil((end - first) / step)))
        return min(found) if found and not waiting else None

    def _constant(self, graph: int, index: int) -> int | None:
        tensors = self._graphs[graph].tensors
        if not 0 <= index < len(tensors):
            return None
        return self._value(tensors[index])
