"""Running a graph by its plan: native segments, everything else node by node through NumPy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastlstm import machine, native, ops
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec, outer_values
from fastlstm.plan import Plan, make_plan
from fastlstm.protected import CHECKING
from fastlstm.segments.segment import Segment
from fastlstm.tapes.by_shape import Tapes
from fastlstm.target import Target
from fastlstm.validation import check_weights

__all__ = ["Executor"]

Array = npt.NDArray[Any]

SMALL = 1 << 17  # elements of an input for whose shape memory is kept
MOST_ENTRIES = 32  # shapes for which it is kept


class Executor:
    """A planned graph, ready to run; bodies of control flow get executors of their own when first run."""

    def __init__(self, graph: Graph, threads: int = 1, is_body: bool = False, target: Target | None = None) -> None:
        self.graph = graph
        self.threads = threads
        self.plan: Plan = make_plan(graph, target or machine.detect(), threads)
        self.quick: native.Call = native.never
        """Runs one array of the shape met last; None says that it did not, and `run` has to."""
        self._entries: dict[tuple[int, ...], native.Call] = {}
        self._bodies: dict[int, Executor] = {}
        self.last_use = _last_uses(graph, self.plan)
        self._reads = outer_values(Node("", (), (), {"body": graph})) if is_body else []
        self.reads = Counter(spec.name for spec in graph.outputs)  # of each value
        for node in graph.nodes:
            self.reads.update([*node.inputs, *outer_values(node)])
        self._tapes = Tapes(self, steers=not is_body)

    def _enter(self, array: Any) -> Array | None:
        """Run a shape that was run before through its entry, and make that the one to try first."""
        if type(array) is not np.ndarray or array.shape not in self._entries:
            return None
        self.quick = self._entries[array.shape]
        return cast("Array | None", self.quick(array))

    def _remember(self, array: Any) -> None:
        """Keep an entry for arrays of this shape, if the plan is one plain segment and the memory it holds small."""
        if CHECKING:  # an entry takes the caller's arrays as they lie in memory
            return
        segment = self.plan.parts[0] if len(self.plan.parts) == 1 else None
        if not isinstance(segment, Segment) or not segment.is_plain or not 0 < array.size <= SMALL:
            return
        if segment.outputs.keys() != {spec.name for spec in self.graph.outputs}:
            return
        (_, axes, features) = next(iter(segment.inputs.values()))
        if not features or array.shape in self._entries or len(self._entries) >= MOST_ENTRIES:
            return
        program = segment.bound_for_sequences(array.shape[axes.index("B")])
        self.quick = self._entries[array.shape] = segment.entry(program, array.shape[axes.index("T")])

    def run(self, inputs: Mapping[str, Any], outer: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the graph's outputs for the given values of its inputs (and of names from around it)."""
        if len(inputs) == 1 and not outer:
            known = self._enter(next(iter(inputs.values())))
            if known is not None:
                return [known]
        if self._tapes.useful:
            around = {} if outer is None else {name: outer[name] for name in self._reads if name in outer}
            results = self._tapes.run({**around, **inputs})
            if results is not None:
                return results
        values: dict[str, Any] = dict(outer or {})
        values.update(self.graph.constants)
        values.update(inputs)
        for number, part in enumerate(self.plan.parts):
            if isinstance(part, Segment):
                values.update(part.run(values))
            elif part.op in RECURRENT_OPS:
                values.update(self.repacked(part, values))
            else:
                given = [values[name] if name else None for name in part.inputs]
                made = ops.evaluate(part, given, lambda body, bound: self.body(body).run(bound, outer=values))
                values.update((name, v) for name, v in zip(part.outputs, made, strict=False) if name)
            for name in self.last_use.get(number, ()):
                values.pop(name, None)
        if len(inputs) == 1 and not outer:
            self._remember(next(iter(inputs.values())))
        return [values[spec.name] for spec in self.graph.outputs]

    def body(self, body: Graph) -> Executor:
        """Return the executor of a control-flow node's body."""
        executor = self._bodies.get(id(body))
        if executor is None:
            reads = outer_values(Node("", (), (), {"body": body}))
            around = {name: self.graph.constants[name] for name in reads if name in self.graph.constants}
            known = body.replace(constants={**around, **body.constants})
            executor = self._bodies[id(body)] = Executor(known, self.threads, True, self.plan.target)
        return executor

    def repacked(self, node: Node, values: Mapping[str, Any]) -> dict[str, Array]:
        """Run a recurrent layer whose weights are computed or given: they are packed for this call."""
        names, weights = list(node.inputs), {}
        for position in (1, 2, 3, 8, 9):
            if node.input(position):  # under names of their own: a value may be a weight and something else too
                names[position] = f"weight {position}"
                weights[names[position]] = np.asarray(values[node.input(position)])
        layer = replace(node, inputs=tuple(names))
        outputs = tuple(TensorSpec(name, ()) for name in node.outputs if name)
        try:
            check_weights(layer, weights)
        except UnsupportedError as error:
            raise InputError(f"{error} These weights are given or computed at run time; make them fit.") from error
        (part,) = make_plan(Graph((), outputs, (layer,), weights), self.plan.target, self.threads).parts
        return part.run(values)  # type: ignore[union-attr]  # a layer of constant weights is a segment


def _last_uses(graph: Graph, plan: Plan) -> dict[int, list[str]]:
    """Return, for each part of the plan, the values that nothing reads after it."""
    last: dict[str, int] = {}
    for number, part in enumerate(plan.parts):
        names = (
            [*part.inputs, *(s.given for s in part.states), part.lengths, *(m[1] for m in part.masks)]
            if isinstance(part, Segment)
            else [*part.inputs, *outer_values(part)]
        )
        for name in names:
            last[name] = number
    keep = {spec.name for spec in graph.outputs} | set(graph.constants) | {""}
    dead: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in keep:
            dead.setdefault(number, []).append(name)
    return dead
