"""Running a graph by its plan: native segments, everything else node by node through NumPy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastlstm import operators
from fastlstm.errors import InputError, UnsupportedError, counted
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs, TensorSpec, outer_values
from fastlstm.kernels.compiler import Kernel, ahead
from fastlstm.lowering.plan import Plan, make_plan
from fastlstm.operators.validation import check_weights
from fastlstm.program.protected import CHECKING
from fastlstm.runtime import native
from fastlstm.runtime.clock import Clock, marked
from fastlstm.runtime.connections import Port
from fastlstm.runtime.entry import sequence_wiring
from fastlstm.runtime.program import BoundProgram
from fastlstm.runtime.segment import Segment
from fastlstm.target import Target, machine
from fastlstm.typing import Array

if TYPE_CHECKING:
    from fastlstm.lowering.tapes.by_shape import Tapes

__all__ = ["Executor"]


MOST_ENTRIES = 256  # numbers of batch rows for which there are entries
MOST_WITH_MEMORY = 32  # of them whose entries hold memory of their own


class _Entry(NamedTuple):
    """A program's entry for a number of batch rows."""

    call: native.Call
    room: int  # time steps it has memory for
    program: BoundProgram
    rows: int

    def run(self, given: Any, out: Any) -> Any:
        """Run the inputs; None if the entry does not take them, or the program is in use."""
        program = self.program
        if program.batch == self.rows:
            return self.call(given, out)
        busy = program.busy
        try:
            del busy.free
        except AttributeError:
            return None
        try:
            if program.used != self.rows:
                program.use(self.rows)
            return self.call(given, out, busy)
        finally:
            busy.free = None


class Executor:
    """A planned graph, ready to run; bodies of control flow get executors of their own when first run."""

    def __init__(
        self,
        graph: Graph,
        threads: int = 1,
        is_body: bool = False,
        target: Target | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.graph = graph
        self.threads = threads
        self.clock = clock
        self.plan: Plan = make_plan(graph, target or machine.detect(), threads)
        if clock is not None:
            self.plan = replace(self.plan, parts=tuple(_timed(part, clock) for part in self.plan.parts))
        self.quick: native.Call = native.never
        """Runs inputs of the sizes met last; None says that it did not, and `run` has to."""
        self.met: Callable[[Segment, BoundProgram, native.Wiring, int], None] | None = None
        """Called once, with what the first entry for whole sequences was made of and the time steps it has room for."""
        self._entries: dict[int, list[_Entry]] = {}  # by batch rows: one for each program that runs so many
        self._bodies: dict[int, Executor] = {}
        self.last_use = _last_uses(graph, self.plan)
        self._reads = outer_values(Node("", (), (), {"body": graph})) if is_body else []
        self.reads = Counter(spec.name for spec in graph.outputs)  # of each value
        for node in graph.nodes:
            self.reads.update([*node.inputs, *outer_values(node)])
        self.tapes = None if all(isinstance(part, Segment) for part in self.plan.parts) else _tapes(self, not is_body)
        self._likely_entry = native.likely_entry(len(graph.inputs), len(graph.outputs))
        # What is planned for a target of its own is exported: it does not run here.
        missing = [] if is_body or target is not None else ahead(self._first_kernels(), self.plan.target)
        # A first result does not wait seconds for an entry: it goes through Python, and the second call has one.
        self._put_off = self._likely_entry in missing

    def _first_kernels(self) -> Iterator[Kernel]:
        """Yield the kernels that the first call will ask for, if it has one batch row as most have."""
        for part in self.plan.parts:
            if isinstance(part, Segment):
                yield from (Kernel(*one) for one in part.program.kernels(1))
                yield Kernel("nested.nested") if self.tapes else self._likely_entry

    def __repr__(self) -> str:
        return f"<Executor of {self.plan!r}, {counted(self.threads, 'thread')} at most>"

    def enter(self, given: Any, out: Any = None) -> Any:
        """Run inputs of sizes that were met before by their entry, and make that the one to try first.

        Parameters
        ----------
        given : dict, tuple, or an only array
        out : alike, or None
            The arrays to write to.

        Returns
        -------
        The outputs in the form that the inputs have, or None if `run` has to do it.
        """
        arrays = self._in_order(given)
        if arrays is None:
            return None
        if self.tapes is None:
            return self._enter_segment(arrays, given, out)
        call = self.tapes.entry(arrays)
        if call is native.never or call is self.quick:
            return None
        self.quick = call
        return call(given) if out is None else call(given, out)

    def _enter_segment(self, arrays: Sequence[Any], given: Any, out: Any) -> Any:
        """Run inputs by an entry of their number of batch rows; None if all refuse them."""
        segment = self.plan.parts[0] if len(self.plan.parts) == 1 else None
        batch = _batch(segment, self.graph, arrays) if isinstance(segment, Segment) else -1
        for entry in self._entries.get(batch, ()):
            if entry.call is self.quick:
                continue
            known = entry.run(given, out)
            if known is not None:
                if entry.program.batch == batch:  # else others set how many rows it runs
                    self.quick = entry.call
                return known
        return None

    def _in_order(self, given: Any) -> list[Any] | None:
        """Return the inputs in the graph's order, None if they are not all there."""
        specs = self.graph.inputs
        if type(given) is dict:
            return [given.get(spec.name) for spec in specs] if len(given) == len(specs) else None
        arrays = list(given) if type(given) is tuple else [given]
        return arrays if len(arrays) == len(specs) else None

    def _remember(self, inputs: Mapping[str, Any]) -> None:
        """Make an entry for inputs of so many batch rows, if the plan is one segment."""
        segment = self.plan.parts[0] if len(self.plan.parts) == 1 else None
        if CHECKING or not isinstance(segment, Segment) or segment.flat:  # an entry takes arrays as they lie in memory
            return
        if any(name not in inputs for name in segment.inputs):
            return
        steps, batch = segment.sizes({name: np.asarray(inputs[name]) for name in segment.inputs})
        if self._put_off:
            self._put_off = False
            return
        known = self._entries.get(batch, [])
        if not steps or not batch or (not known and len(self._entries) >= MOST_ENTRIES):
            return
        for number, program in enumerate(segment.programs(batch)):  # none if others may still share it
            if number == len(known) or steps > known[number].room:
                entry = self._made(segment, program, steps, batch)
                if entry is not None:
                    self._entries[batch] = [*known[:number], entry, *known[number + 1 :]]
                return

    def _made(self, segment: Segment, program: BoundProgram, steps: int, batch: int) -> _Entry | None:
        """Return a new entry for a program; None if it is in use, or may have none."""
        graph, shared = self.graph, program.batch != batch
        given, made = ([Port(s.name, s.shape, s.dtype) for s in specs] for specs in (graph.inputs, graph.outputs))
        try:
            del program.busy.free
        except AttributeError:
            return None
        try:
            if shared:
                program.use(batch)
            wiring = sequence_wiring(segment.connections(), program, given, made, graph.constants, 2 * steps)
            if wiring is None or (wiring.owns_memory and (shared or self._with_memory() >= MOST_WITH_MEMORY)):
                return _Entry(native.never, native.UNLIMITED, program, batch)
            entry = _Entry(native.entry(program, wiring), wiring.room, program, batch)
        finally:
            program.busy.free = None
        if not shared:
            self.quick = entry.call
            if self.met is not None:
                met, self.met = self.met, None
                met(segment, program, wiring, 2 * steps)
        return entry

    def _with_memory(self) -> int:
        return sum(entry.room < native.UNLIMITED for entries in self._entries.values() for entry in entries)

    def run(self, inputs: Mapping[str, Any], outer: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the graph's outputs for the given values of its inputs (and of names from around it)."""
        if not outer:
            known = self.quick(inputs)
            if known is None:
                known = self.enter(inputs)
            if known is not None:
                return list(known.values())
        if self.tapes is not None:
            around = {} if outer is None else {name: outer[name] for name in self._reads if name in outer}
            results = self.tapes.run({**around, **inputs})
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
                made = operators.evaluate(part, given, lambda body, bound: self.body(body).run(bound, outer=values))
                values.update((name, v) for name, v in zip(part.outputs, made, strict=False) if name)
            if self.clock is not None and isinstance(part, Node):
                self.clock.note(part.name or part.first_output, part.op)
            for name in self.last_use.get(number, ()):
                values.pop(name, None)
        if not outer:
            self._remember(inputs)
        return [values[spec.name] for spec in self.graph.outputs]

    def body(self, body: Graph) -> Executor:
        """Return the executor of a control-flow node's body."""
        executor = self._bodies.get(id(body))
        if executor is None:
            reads = outer_values(Node("", (), (), {"body": body}))
            around = {name: self.graph.constants[name] for name in reads if name in self.graph.constants}
            known = body.replace(constants={**around, **body.constants})
            executor = self._bodies[id(body)] = Executor(known, self.threads, True, self.plan.target, self.clock)
        return executor

    def repacked(self, node: Node, values: Mapping[str, Any]) -> dict[str, Array]:
        """Run a recurrent layer whose weights are computed or given: they are packed for this call."""
        read = RecurrentInputs.of(node)
        given = {name: getattr(read, name) for name in ("w_ih", "w_hh", "bias", "peephole", "w_hr", "norm")}
        # Under names of their own: a value may be a weight and something else too.
        names = {name: f"weight {name}" for name, value in given.items() if value}
        weights = {names[name]: np.asarray(values[given[name]]) for name in names}
        layer = replace(node, inputs=read._replace(**names).given())
        outputs = tuple(TensorSpec(name, ()) for name in node.outputs if name)
        try:
            check_weights(layer, weights)
        except UnsupportedError as error:
            raise InputError(f"{error} These weights are given or computed at run time; make them fit.") from error
        (part,) = make_plan(Graph((), outputs, (layer,), weights), self.plan.target, self.threads).parts
        return part.run(values)  # type: ignore[union-attr]  # a layer of constant weights is a segment


def _batch(segment: Segment, graph: Graph, arrays: Sequence[Any]) -> int:
    """Return the batch rows that a segment's inputs have, -1 if they are not arrays of the rank it takes."""
    for spec, array in zip(graph.inputs, arrays, strict=True):
        if spec.name in segment.inputs:
            _, axes, _ = segment.inputs[spec.name]
            return array.shape[axes.index("B")] if isinstance(array, np.ndarray) and array.ndim == len(axes) else -1
    return -1


def _timed(part: Segment | Node, clock: Clock) -> Segment | Node:
    """Return a part whose program tells the clock what each instruction takes."""
    return replace(part, program=marked(part.program, clock)) if isinstance(part, Segment) else part


def _tapes(executor: Executor, steers: bool) -> Tapes | None:
    """Return what runs an executor's graph by tapes, None if they would not pay."""
    from fastlstm.lowering.tapes.by_shape import (
        Tapes,  # a third of what loading a model of recurrent layers alone would import
    )

    tapes = Tapes(executor, partial(Executor, clock=executor.clock), steers)
    return tapes if tapes.useful else None


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
