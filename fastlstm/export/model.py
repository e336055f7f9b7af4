"""From a model to what is exported of it: interface, sources by target, golden samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm import passes
from fastlstm.errors import InputError
from fastlstm.executor import Executor
from fastlstm.export.golden import Golden, sequence
from fastlstm.export.interface import Interface, Port
from fastlstm.export.recorded import stream_source, whole_source
from fastlstm.export.source import Source
from fastlstm.export.streams import segment_source
from fastlstm.graph import Graph, TensorSpec
from fastlstm.graph_json import tensors, to_json
from fastlstm.model import Model
from fastlstm.samples import open_dimensions, sample_array, sample_inputs
from fastlstm.streaming.choosing import engine_for
from fastlstm.streaming.engines import GraphEngine
from fastlstm.streaming.stream import Stream
from fastlstm.target import Target

__all__ = ["Exported", "check_sizes", "model_hash"]

Array = npt.NDArray[Any]

GOLDEN_STEPS = 64
MOST_GOLDEN = 1 << 17  # numbers of golden samples: a line of C each eight
FEWEST_GOLDEN = 8


@dataclass(frozen=True)
class Exported:
    """A model as it is exported: whole, or as a stream.

    Attributes
    ----------
    model : Model
    batch : int
    sizes : mapping of str to int
        Of open dimensions, for a model that does not stream.
    state : mapping of str to str
        State inputs and the outputs that show them.
    """

    model: Model
    batch: int
    sizes: Mapping[str, int]
    state: Mapping[str, str]

    @property
    def streams(self) -> bool:
        """Whether it is exported step by step: sizes say that it is not."""
        return not self.sizes

    def source(self, target: Target) -> Source:
        """Return what is computed for a target."""
        if not self.streams:
            executor = Executor(passes.optimise(self.model.graph), 1, target=target)
            return whole_source(executor, self._whole_inputs(), [spec.name for spec in executor.graph.outputs])
        engine = engine_for(self.model, self.state, target)
        if isinstance(engine, GraphEngine):
            return stream_source(engine, self.batch, self._pace()[0], self._blocks(target))
        return segment_source(engine, self.batch, self._blocks(target), [spec.name for spec in self.model.graph.inputs])

    def _whole_inputs(self) -> dict[str, Array]:
        """Return inputs of the sizes that were given."""
        opened = open_dimensions(self.model.graph)
        missing = [name for name in opened if name not in self.sizes]
        if missing:
            raise InputError(
                f"The sizes of {', '.join(missing)} are not given: a model that is called whole has them fixed. "
                f"Give each one with --size {missing[0]}=N (sizes=)."
            )
        return sample_inputs(self.model.graph, self.sizes)

    @staticmethod
    def _blocks(target: Target) -> bool:
        """Whether a form for several steps at once is made: not where code and memory are scarce."""
        return not target.triple.startswith(("thumb", "riscv32"))

    def interface(self, name: str, source: Source, apart: bool) -> Interface:
        """Return the C interface; it is the same for all targets."""
        states = tuple((field.name, field.shape) for field in source.states)
        hop, delay = self._pace()
        return Interface(
            name, source.inputs, source.outputs, states, model_hash(self.model.graph), self.streams, hop, delay,
            self.batch, apart,
        )  # fmt: skip

    def _pace(self) -> tuple[int, int]:
        """Return the frames that a step takes, and the frames by which outputs are late."""
        return 1, 0

    def golden(self, interface: Interface) -> Golden:
        """Return samples, and what this machine makes of them."""
        if not self.streams:
            return self._golden_call(interface)
        rng = np.random.default_rng(0)
        each = sum(port.elements for port in interface.ports)
        steps = max(FEWEST_GOLDEN, min(GOLDEN_STEPS, MOST_GOLDEN // max(each, 1)))
        given = {port.name: self._values(port, steps, rng) for port in interface.inputs}
        stream = Stream(self.model, self.batch, self.state)
        frames = [
            {port.name: given[port.name][t] if port.moves else given[port.name] for port in interface.inputs}
            for t in range(steps)
        ]
        made = [self._named(interface, stream.step(self._frame(frame))) for frame in frames]
        inputs = {p.parameter: given[p.name].reshape((steps, -1) if p.moves else -1) for p in interface.inputs}
        outputs = {p.parameter: sequence([one[p.name] for one in made]) for p in interface.outputs}
        return Golden(steps, inputs, outputs, {})

    def _golden_call(self, interface: Interface) -> Golden:
        given = self._whole_inputs()
        made = self.model.run(given)
        inputs = {port.parameter: given[port.name].reshape(-1) for port in interface.inputs}
        return Golden(1, inputs, {port.parameter: made[port.name].reshape(-1) for port in interface.outputs}, {})

    @staticmethod
    def _frame(frame: dict[str, Array]) -> Any:
        return frame if len(frame) > 1 else next(iter(frame.values()))

    @staticmethod
    def _named(interface: Interface, result: Any) -> Mapping[str, Array]:
        return result if isinstance(result, Mapping) else {interface.outputs[0].name: result}

    def _values(self, port: Port, steps: int, rng: np.random.Generator) -> Array:
        shape = ((steps,) if port.moves else ()) + port.shape
        spec = next(spec for spec in self.model.graph.inputs if spec.name == port.name)
        return sample_array(self.model.graph, TensorSpec(spec.name, shape, spec.dtype), shape, rng)


def model_hash(graph: Graph) -> str:
    """Return the SHA-256 of a graph: of its nodes and all its tensors."""
    digest = hashlib.sha256(to_json(graph).encode())
    for name, array in tensors(graph):
        digest.update(f"\0{name}\0{array.dtype}{list(array.shape)}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_sizes(graph: Graph, sizes: Mapping[str, int]) -> None:
    """InputError if sizes name a dimension that the graph does not leave open."""
    known = {size for spec in graph.inputs for size in spec.shape if isinstance(size, str)}
    for name in sizes:
        if name not in known:
            raise InputError(
                f"There is no open dimension '{name}'; the model's are: {', '.join(sorted(known)) or 'none'}."
            )
