"""What tapes need from the executor whose graph they record, and loops from the recording they are part of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fastlstm.graph import Graph, Node
from fastlstm.lowering.tapes.recorder import Recorder
from fastlstm.lowering.tapes.steps import Tape, Value
from fastlstm.program.program import Instruction, Program
from fastlstm.runtime.clock import Clock
from fastlstm.runtime.program import BoundProgram
from fastlstm.runtime.segment import Segment
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["Planned", "Recordings", "Runner"]


class Planned(Protocol):
    """A plan (`fastlstm.lowering.plan.Plan`)."""

    @property
    def parts(self) -> Sequence[Segment | Node]:
        """The parts to run, in order."""

    @property
    def target(self) -> Target:
        """The target it is made for."""


class Runner(Protocol):
    """A planned graph (`fastlstm.executor.Executor`)."""

    graph: Graph
    threads: int
    clock: Clock | None
    last_use: dict[int, list[str]]
    reads: Counter[str]

    @property
    def plan(self) -> Planned:
        """The plan of the graph."""

    def run(self, inputs: Mapping[str, Any], outer: Mapping[str, Any] | None = None) -> list[Any]:
        """Return the graph's outputs."""

    def body(self, body: Graph) -> Runner:
        """Return the runner of a control-flow node's body."""

    def repacked(self, node: Node, values: Mapping[str, Any]) -> dict[str, Array]:
        """Run a recurrent layer whose weights are computed or given."""


class Recordings(Protocol):
    """A recording of a graph (`fastlstm.lowering.tapes.tape.Recording`), including those of bodies inside it."""

    tape: Tape
    rec: Recorder
    history: list[Instruction]

    def inner(self, runner: Runner) -> Recordings:
        """Return a recording for the body of a loop, with memory of its own."""

    def graph(self, runner: Runner, values: dict[str, Value]) -> list[Value]:
        """Record a graph's parts, and return the values of its outputs."""

    def hold(self, operands: Sequence[Value]) -> None:
        """Keep the memory of values for the tape's lifetime."""

    def needs_python(self, what: str) -> None:
        """Refuse what runs in Python if there is no Python at run time."""

    def flush(self) -> None:
        """Run the pending instructions and make them a step."""

    def program(self, instructions: Sequence[Instruction]) -> Program:
        """Return the program of instructions that run once each."""

    def workers(self, macs: int) -> int:
        """Return how many threads may run `macs` multiply-adds."""

    def bound(self, instructions: Sequence[Instruction]) -> BoundProgram:
        """Return instructions bound to the memory they were recorded with."""
