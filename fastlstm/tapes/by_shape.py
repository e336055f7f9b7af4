"""The tapes of a model: found by the shapes of the inputs, recorded when a shape comes for the first time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from fastlstm import passes
from fastlstm.graph import Graph, Node, outer_values
from fastlstm.tapes import HEAVY
from fastlstm.tapes.runner import Runner
from fastlstm.tapes.steps import SizesChangedError, Tape
from fastlstm.tapes.tape import record

__all__ = ["Tapes", "steering"]

MOST_TAPES = 32
MOST_BYTES = 256 << 20  # of memory that all tapes of a model hold
MOST_CHOICES = 8  # values of steering inputs for which a model is kept

_CONTROL = ("If", "Loop", "Scan")
_PASSING = frozenset(
    [
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"),
        *("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape"),
    ]
)


def steering(graph: Graph) -> tuple[str, ...]:
    """Return the inputs that do nothing but choose branches, such as a sample rate: single integers or flags."""
    choosing = []
    for spec in graph.inputs:
        small = all(size == 1 for size in spec.shape) and spec.dtype[:3] in ("int", "uin", "boo")
        if small and _only_chooses(graph, spec.name):
            choosing.append(spec.name)
    return tuple(choosing)


def _only_chooses(graph: Graph, name: str, depth: int = 0) -> bool:
    """Whether a value reaches the conditions of If nodes and nothing else."""
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


class Tapes:
    """Runs a runner's graph by tapes. May be used by several threads at a time.

    Parameters
    ----------
    runner : Runner
    make : callable
        Makes the runner of another graph, for so many threads.
    steers : bool
        Whether inputs may steer.
    """

    def __init__(self, runner: Runner, make: Callable[[Graph, int], Runner], steers: bool) -> None:
        self._runner, self._make = runner, make
        self._packed: dict[Hashable, Any] = {}
        self._kept: dict[Hashable, list[Tape]] = {}
        self._steering = steering(runner.graph) if steers else ()
        self._chosen: OrderedDict[Hashable, Runner] = OrderedDict()
        whole = all(spec.dtype != "sequence" for spec in runner.graph.inputs)
        self.useful = whole and (bool(self._steering) or _has_kernels(runner))

    def run(self, inputs: Mapping[str, Any]) -> list[Any] | None:
        """Return the outputs, or None if the inputs are not for tapes: they hold nothing, or are no arrays."""
        arrays = list(inputs.values())
        if not all(isinstance(a, np.ndarray) and a.size for a in arrays):
            return None
        if self._steering:
            return self._choose(inputs)
        key = tuple((a.shape, a.dtype.char) for a in arrays)
        waiting = self._kept.get(key)
        if waiting:
            try:
                tape = waiting.pop()  # another thread may have taken the last one since we looked
            except IndexError:
                pass
            else:
                try:
                    results = tape.run(arrays)
                except SizesChangedError as changed:
                    self._note(changed)
                else:
                    waiting.append(tape)
                    return results
        tape, results = self._record(inputs)
        if tape.reusable:
            self._keep(key, tape)
        return results

    def _record(self, inputs: Mapping[str, Any]) -> tuple[Tape, list[Any]]:
        try:
            return record(self._runner, inputs, self._packed)
        except SizesChangedError as changed:  # a loop decided otherwise while it was being recorded: it is noted once
            if changed.loop in self._packed or not changed.loop:
                raise
            self._note(changed)
        return self._record(inputs)

    def _note(self, changed: SizesChangedError) -> None:
        """Note a loop whose rounds differ from call to call: it is run as it comes from now on."""
        if changed.loop:
            self._packed[changed.loop] = True

    def _choose(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Run the model that is left when the steering inputs are constants."""
        fixed = {name: inputs[name] for name in self._steering}
        key = tuple(a.tobytes() for a in fixed.values())
        runner = self._chosen.get(key)
        if runner is None:
            graph = specialised(self._runner.graph, fixed)
            runner = self._chosen[key] = self._make(graph, self._runner.threads)
            while len(self._chosen) > MOST_CHOICES:
                self._chosen.popitem(last=False)
        return runner.run({name: a for name, a in inputs.items() if name not in fixed})

    def _keep(self, key: Hashable, tape: Tape) -> None:
        kept = dict(self._kept)  # another thread may keep one of its own meanwhile: neither changes what both look at
        kept.setdefault(key, []).append(tape)
        kept[key] = kept.pop(key)  # the latest
        while len(kept) > 1 and (
            len(kept) > MOST_TAPES or sum(t.nbytes for some in kept.values() for t in some) > MOST_BYTES
        ):
            del kept[next(iter(kept))]
        self._kept = kept


def specialised(graph: Graph, fixed: Mapping[str, Any]) -> Graph:
    """Return the graph with some inputs made constants."""
    left = tuple(spec for spec in graph.inputs if spec.name not in fixed)
    constants = {**graph.constants, **{name: np.array(value) for name, value in fixed.items()}}
    return passes.optimise(graph.replace(inputs=left, constants=constants))


def _has_kernels(runner: Runner) -> bool:
    return any(isinstance(part, Node) and (part.op in HEAVY or part.op in _CONTROL) for part in runner.plan.parts)
