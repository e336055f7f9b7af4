"""From a model to the parts of its export: interface, sources by target, golden samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastlstm import passes
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.executor import Executor
from fastlstm.export.golden import Golden, sequence, tolerance
from fastlstm.export.interface import Interface, Port
from fastlstm.export.lengths import lengths_as_masks
from fastlstm.export.recorded import stream_source, whole_source
from fastlstm.export.source import Source
from fastlstm.export.streams import segment_source
from fastlstm.files.graph_json import tensors, to_json
from fastlstm.graph import Graph, TensorSpec
from fastlstm.lowering.tapes import by_shape as tapes
from fastlstm.model import Model
from fastlstm.streaming.choosing import engine_for
from fastlstm.streaming.engines import Engine, GraphEngine, GraphRun, SegmentRun
from fastlstm.streaming.ports import Port as StreamPort
from fastlstm.target import Target
from fastlstm.typing import Array
from fastlstm.verification.samples import open_dimensions, sample_array, sample_inputs

__all__ = ["LARGEST_STATE", "Exported", "model_hash"]

GOLDEN_STEPS = 64
MOST_GOLDEN = 1 << 17  # numbers of golden samples: eight make a line of C
FEWEST_GOLDEN = 8
MOST_NUMBERS = 1 << 22  # in a call's inputs, or a step's inputs and outputs: as C, a golden sample's number is 16 bytes
LARGEST_STATE = (1 << 31) - 1
"""Most bytes of a state struct."""


@dataclass(frozen=True)
class Exported:
    """A model to be exported, either for whole calls or as a stream.

    Attributes
    ----------
    model : Model
    batch : int
    whole : bool
        Whether to export whole calls even if the model can stream.
    state : mapping of str to str
        State inputs and the outputs that return them.
    """

    model: Model
    batch: int
    whole: bool
    state: Mapping[str, str]

    @cached_property
    def streams(self) -> bool:
        """Whether it is exported as a stream: unless whole calls were asked for, or only they are possible."""
        steering = tapes.steering(self.model.graph)
        if steering:
            raise UnsupportedError(
                f"The input '{steering[0]}' chooses which of several models runs; an exported one is one of them. "
                f"Give its value: --input {steering[0]}=VALUE (inputs=)."
            )
        if self.whole:
            return False
        try:
            self.model.streaming_engine(self.state)
        except UnsupportedError as error:
            opened = open_dimensions(self.model.graph)
            if self.state:
                raise
            if opened:
                sizes = " ".join(f"--size {name}=N" for name in opened)
                raise UnsupportedError(f"{error} To export it for calls of one size: {sizes} (sizes=).") from None
            return False
        return True

    def source(self, target: Target) -> Source:
        """Return what the export computes on a target."""
        if not self.streams:
            executor = Executor(lengths_as_masks(passes.optimise(self.model.graph)), 1, target=target)
            return whole_source(executor, self._whole_inputs(), [spec.name for spec in executor.graph.outputs])
        engine = engine_for(self.model, self.state, target)
        self._check_rows(engine)
        if isinstance(engine, GraphEngine):
            return stream_source(engine, self.batch, self._blocks(target))
        return segment_source(engine, self.batch, self._blocks(target), [spec.name for spec in self.model.graph.inputs])

    def _check_rows(self, engine: Engine) -> None:
        """Raise InputError if there are too many rows to export, before they take any memory."""
        ports = (*engine.inputs.values(), *engine.outputs.values())
        numbers = sum(math.prod(size or 1 for size in port.shape(engine.hop, self.batch)) for port in ports)
        if numbers > MOST_NUMBERS or engine.state_bytes * self.batch > LARGEST_STATE:
            raise InputError(
                f"A step of {self.batch} rows would take and give {numbers:,} numbers (at most {MOST_NUMBERS:,}) and "
                f"keep {engine.state_bytes * self.batch:,} bytes (at most {LARGEST_STATE:,}): export fewer rows "
                "(--batch, batch=)."
            )

    def _whole_inputs(self) -> dict[str, Array]:
        """Return sample inputs of the given sizes."""
        missing = open_dimensions(self.model.graph)
        if missing:
            raise InputError(
                f"The sizes of {', '.join(missing)} are not given: a model that is called whole has them fixed. "
                f"Give each one with --size {missing[0]}=N (sizes=)."
            )
        shapes = [spec.shape for spec in self.model.graph.inputs if "..." not in spec.shape]
        numbers = sum(math.prod(map(int, shape)) for shape in shapes)
        if numbers > MOST_NUMBERS:
            raise InputError(
                f"A call would take {numbers:,} numbers, at most {MOST_NUMBERS:,}: give smaller sizes (--size, sizes=)."
            )
        return sample_inputs(self.model.graph)

    @staticmethod
    def _blocks(target: Target) -> bool:
        """Whether to add code for several steps at once: not where code and memory are scarce."""
        return not target.triple.startswith(("thumb", "riscv32"))

    def interface(self, name: str, source: Source, apart: bool) -> Interface:
        """Return the C interface; it is the same for all targets."""
        states = tuple((field.name, field.shape) for field in source.states)
        return Interface(
            name, source.inputs, source.outputs, states, model_hash(self.model.graph), self.streams, source.hop,
            source.delay, source.tail, self.batch, apart,
        )  # fmt: skip

    def golden(self, interface: Interface, source: Source) -> Golden:
        """Return samples, with this machine's outputs."""
        if not self.streams:
            return self._golden_call(interface)
        rng = np.random.default_rng(0)
        each = sum(port.elements for port in interface.ports)
        late = len(source.endings)
        steps = max(FEWEST_GOLDEN, late + 1, min(GOLDEN_STEPS, MOST_GOLDEN // max(each, 1)))
        given = {port.name: self._values(port, steps, rng) for port in interface.inputs}
        # The engine's run and not a stream, so that the entry from Python need not be compiled.
        engine = self.model.streaming_engine(self.state)
        run = engine.open(self.batch)

        def taken(t: int) -> dict[str, Array]:
            ports = {port.name: given[port.name][t] if port.moves else given[port.name] for port in interface.inputs}
            return {name: _as_engine(engine.inputs[name], array, engine.hop) for name, array in ports.items()}

        made = [run.advance(taken(t), 1) for t in range(steps)]
        tails = {}
        if interface.tail:
            tails[steps] = self._tail(interface, run)
            for count in sorted({0, 1, late // 2, late - 2, late - 1} & set(range(late))):
                run.reset()
                for t in range(count):
                    run.advance(taken(t), 1)
                tails[count] = self._tail(interface, run)
        inputs = {p.parameter: given[p.name].reshape((steps, -1) if p.moves else -1) for p in interface.inputs}
        shown = {p.name: [_by_frames(engine.outputs[p.name], one[p.name]) for one in made] for p in interface.outputs}
        return Golden(
            steps,
            inputs,
            {p.parameter: sequence(shown[p.name]) for p in interface.outputs},
            tails,
            tolerance(self.model.graph),
        )

    def _golden_call(self, interface: Interface) -> Golden:
        given = self._whole_inputs()
        made = self.model.run(given)
        inputs = {port.parameter: given[port.name].reshape(-1) for port in interface.inputs}
        outputs = {port.parameter: made[port.name].reshape(-1) for port in interface.outputs}
        return Golden(1, inputs, outputs, {}, tolerance(self.model.graph))

    @staticmethod
    def _tail(interface: Interface, run: SegmentRun | GraphRun) -> dict[str, Array]:
        """Return what a stream returns at its end, frame by frame."""
        try:
            found = run.finish()
        except InputError:  # the model refuses so short a sequence: C returns no frames
            return {port.parameter: np.zeros(0, np.float32) for port in interface.outputs}
        outputs = run.engine.outputs
        return {
            port.parameter: np.moveaxis(found[port.name], max(0, outputs[port.name].axes.find("T")), 0).reshape(-1)
            for port in interface.outputs
        }

    def _values(self, port: Port, steps: int, rng: np.random.Generator) -> Array:
        shape = ((steps,) if port.moves else ()) + port.shape
        spec = next(spec for spec in self.model.graph.inputs if spec.name == port.name)
        return sample_array(self.model.graph, TensorSpec(spec.name, shape, spec.dtype), shape, rng)


def _as_engine(port: StreamPort, frames: Array, hop: int) -> Array:
    """Return a step's frames, contiguous in C, as an engine takes them; the batch is what remains."""
    axis = port.axes.find("T")
    shape = port.shape(hop, -1)
    if axis < 0:
        return np.ascontiguousarray(frames.reshape(shape), port.dtype)
    rest = (*shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(frames.reshape(hop, *rest), 0, axis), port.dtype)


def _by_frames(port: StreamPort, array: Array) -> Array:
    """Return an engine's output of a step in C's layout."""
    return np.moveaxis(array, max(0, port.axes.find("T")), 0)


def model_hash(graph: Graph) -> str:
    """Return the SHA-256 of a graph, its nodes and all its tensors."""
    digest = hashlib.sha256(to_json(graph).encode())
    for name, array in tensors(graph):
        digest.update(f"\0{name}\0{array.dtype}{list(array.shape)}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
