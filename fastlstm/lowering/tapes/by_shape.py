"""The tapes of a model: looked up by the inputs' shapes, and recorded when a shape is first seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fastlstm import passes
from fastlstm.graph import Graph, Node, outer_values
from fastlstm.lowering.tapes import HEAVY
from fastlstm.lowering.tapes.entry import steered_entry, tape_entry
from fastlstm.lowering.tapes.runner import Runner
from fastlstm.lowering.tapes.steps import SizesChangedError, Tape
from fastlstm.lowering.tapes.tape import record
from fastlstm.runtime.native import Call, ahead_of_entries, likely_entry, never

__all__ = ["Tapes", "give", "steering"]

MOST_TAPES = 32
MOST_BYTES = 256 << 20  # of memory for all tapes of a model
MOST_CHOICES = 8  # most values of steering inputs for which models are kept

_CONTROL = ("If", "Loop", "Scan")
_PASSING = frozenset(
    [
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"),
        *("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"),
    ]
)


def steering(graph: Graph) -> tuple[str, ...]:
    """Return the inputs that only choose branches, such as a sample rate: single integers or flags."""
    choosing = []
    for spec in graph.inputs:
        small = all(size == 1 for size in spec.shape) and spec.dtype[:3] in ("int", "uin", "boo")
        if small and _only_chooses(graph, spec.name):
            choosing.append(spec.name)
    return tuple(choosing)


def _only_chooses(graph: Graph, name: str, depth: int = 0) -> bool:
    """Whether a value is used only in conditions of If nodes."""
    readers = [n for n in graph.nodes if name in n.inputs or name in outer_values(n)]
    if depth > 20 or any(spec.name == name for spec in graph.outputs):
        return False
    for node in readers:
        for body in (v for v in node.attrs.values() if isinstance(v, Graph)):
            own = name in {s.name for s in body.inputs} | set(body.constants) | set(body.producers())
            if not own and not _only_chooses(body, name, depth + 1):
                return False
        if name not in node.inputs or (node.op == "If" and node.input(0) == name):
            continue
        if node.op not in _PASSING or not all(_only_chooses(graph, o, depth + 1) for o in node.outputs if o):
            return False
    return bool(readers) or depth > 0


class Taped(Runner, Protocol):
    """A runner with its own tapes."""

    @property
    def tapes(self) -> Tapes | None:
        """Its tapes, None if it runs without."""


class Tapes:
    """Runs a runner's graph with tapes; several threads may use it at a time.

    Parameters
    ----------
    runner : Runner
    make : callable
        Makes the runner of another graph, for a number of threads.
    steers : bool
        Whether inputs that only select branches become constants.
    """

    def __init__(self, runner: Runner, make: Callable[[Graph, int], Taped], steers: bool) -> None:
        self._runner, self._make = runner, make
        self._packed: dict[Hashable, Any] = {}
        self._kept: dict[Hashable, list[Tape]] = {}
        self._steering = steering(runner.graph) if steers else ()
        self._chosen: OrderedDict[Hashable, Taped] = OrderedDict()
        whole = all(spec.dtype != "sequence" for spec in runner.graph.inputs)
        self.useful = whole and (bool(self._steering) or _has_kernels(runner))

    def run(self, inputs: Mapping[str, Any]) -> list[Any] | None:
        """Return the outputs, or None for inputs that tapes do not take, because they are empty or not arrays."""
        arrays = list(inputs.values())
        if not all(isinstance(a, np.ndarray) and a.size for a in arrays):
            return None
        if self._steering:
            executor, left = self._chosen_by(inputs)
            return executor.run(left)
        key = _key(arrays)
        tape = self.take(key)
        if tape is not None:
            try:
                return tape.run(arrays)
            except SizesChangedError as changed:
                self.forget(key, tape, changed)
            finally:
                give(tape)
        tape, results = self._record(inputs)
        if tape.reusable:
            tape.given = tuple(inputs)
            self._keep(key, tape)
            graph = self._runner.graph
            ahead_of_entries(likely_entry(len(graph.inputs), len(graph.outputs)), self._runner.plan.target)
        return results

    def entry(self, arrays: Sequence[Any]) -> Call:
        """Return the built-in that runs a tape for inputs like these, `native.never` if there is none."""
        if not all(isinstance(a, np.ndarray) for a in arrays):
            return never
        if not self._steering:
            return next((self._entry_of(tape) for tape in self._kept.get(_key(arrays), ())), never)
        given = dict(zip((spec.name for spec in self._runner.graph.inputs), arrays, strict=True))
        fixed = {name: given[name] for name in self._steering}
        chosen = self._chosen.get(_bytes(fixed))
        if chosen is None or chosen.tapes is None:
            return never
        left = [array for name, array in given.items() if name not in fixed]
        for tape in chosen.tapes._kept.get(_key(left), ()):
            if tape.steered is None:
                chosen.tapes._entry_of(tape)
                tape.steered = steered_entry(tape, self._runner.graph.inputs, fixed)
            return tape.steered
        return never

    def _entry_of(self, tape: Tape) -> Call:
        """Return the built-in that runs a tape, made when first asked for: a first call does without it."""
        if tape.entry is None:
            tape.entry = tape_entry(tape, tape.given, self._runner.graph.outputs)
        return tape.entry

    def find(self, inputs: Mapping[str, Any]) -> tuple[Tapes, Hashable, tuple[str, ...]] | None:
        """Return the `Tapes` for inputs like these, the key for `take`, and the names of the inputs it is given.

        None if they run without a tape.
        """
        if self._steering:
            executor, left = self._chosen_by(inputs)
            return None if executor.tapes is None else executor.tapes.find(left)
        return self, _key(list(inputs.values())), tuple(inputs)

    def take(self, key: Hashable) -> Tape | None:
        """Return a tape for exclusive use until `give`; None if none is free."""
        return next((tape for tape in self._kept.get(key, ()) if lend(tape)), None)

    def _record(self, inputs: Mapping[str, Any]) -> tuple[Tape, list[Any]]:
        try:
            return record(self._runner, inputs, self._packed)
        except SizesChangedError as changed:  # a loop changed its number of rounds during recording: recorded once
            if changed.loop in self._packed or not changed.loop:
                raise
            self._note(changed)
        return self._record(inputs)

    def _note(self, changed: SizesChangedError) -> None:
        """Stop recording a loop whose number of rounds changes from call to call."""
        if changed.loop:
            self._packed[changed.loop] = True

    def _chosen_by(self, inputs: Mapping[str, Any]) -> tuple[Taped, dict[str, Any]]:
        """Return the model with its steering inputs as constants, and the remaining inputs."""
        fixed = {name: inputs[name] for name in self._steering}
        key = _bytes(fixed)
        executor = self._chosen.get(key)
        if executor is None:
            executor = self._chosen[key] = self._make(specialised(self._runner.graph, fixed), self._runner.threads)
            while len(self._chosen) > MOST_CHOICES:
                self._chosen.popitem(last=False)
        return executor, {name: a for name, a in inputs.items() if name not in fixed}

    def forget(self, key: Hashable, tape: Tape, changed: SizesChangedError) -> None:
        """Drop a tape that a new recording would differ from."""
        kept = dict(self._kept)
        kept[key] = [other for other in kept.get(key, ()) if other is not tape]
        self._kept = kept
        self._note(changed)

    def _keep(self, key: Hashable, tape: Tape) -> None:
        kept = dict(self._kept)  # another thread may store its own tape meanwhile: neither modifies what the other sees
        kept[key] = [*kept.pop(key, ()), tape]  # the latest
        while len(kept) > 1 and (
            len(kept) > MOST_TAPES or sum(t.nbytes for some in kept.values() for t in some) > MOST_BYTES
        ):
            del kept[next(iter(kept))]
        self._kept = kept


def lend(tape: Tape) -> bool:
    """Reserve a tape until `give`; return whether that was possible."""
    try:
        del tape.busy.free
    except AttributeError:  # another thread has it
        return False
    return True


def give(tape: Tape) -> None:
    """Return a tape that was lent."""
    tape.busy.free = None


def _key(arrays: Sequence[Any]) -> Hashable:
    return tuple([(a.shape, a.dtype.char) for a in arrays])


def _bytes(fixed: Mapping[str, Any]) -> Hashable:
    return tuple([(a.dtype.char, a.tobytes()) for a in fixed.values()])


def specialised(graph: Graph, fixed: Mapping[str, Any]) -> Graph:
    """Return the graph with some inputs replaced by constants."""
    left = tuple(spec for spec in graph.inputs if spec.name not in fixed)
    constants = {**graph.constants, **{name: np.array(value) for name, value in fixed.items()}}
    return passes.optimise(graph.replace(inputs=left, constants=constants))


def _has_kernels(runner: Runner) -> bool:
    return any(isinstance(part, Node) and (part.op in HEAVY or part.op in _CONTROL) for part in runner.plan.parts)
