"""The stream: one frame at a time, with the state kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from fastlstm import machine, passes
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node
from fastlstm.native import Call, never
from fastlstm.plan import Plan, make_plan
from fastlstm.segment import Segment

if TYPE_CHECKING:
    from fastlstm.model import Model

__all__ = ["Stream"]

Array = npt.NDArray[Any]
LONGEST_ENTRY = 4096  # time steps of a chunk for whose length memory is kept


class Stream:
    """A running sequence (or `batch` of them) with its own state.

    A model whose output is that of the last time step gives one output a frame here. Use a stream from one
    thread at a time; any number of streams of one model may run at once.
    """

    def __init__(self, model: Model, batch: int = 1, state: Mapping[str, str] | None = None) -> None:
        if not isinstance(batch, int) or batch < 1:
            raise InputError(f"batch should be a whole number from 1 on; got {batch!r}.")
        self._segment = model.streaming_segment(state)
        self.batch = batch
        self._program = self._segment.program(batch)
        (self._input, (_, self._in_axes, self._features)) = next(iter(self._segment.inputs.items()))
        (self._output, (_, self._out_axes, self._width)) = next(iter(self._segment.outputs.items()))
        self._takes_ids = not self._features
        self._dtype = np.dtype(np.int64 if self._takes_ids else np.float32)
        self._frame_shape = (batch,) if self._takes_ids else (batch, self._features)
        self._row_shape = self._frame_shape[1:] if batch == 1 else ()
        self._usual_shape = self._row_shape if batch == 1 else self._frame_shape
        # Entries for the frame and for the chunk met last.
        self._one: Call = never
        self._chunk: Call = never
        if self._features:
            self._one = self._segment.entry(self._program, 1, keep=True, time_axis=False, batch_axis=batch > 1)

    def step(self, frame: Any, out: Array | None = None) -> Array:
        """Advance by one time step.

        Parameters
        ----------
        frame : array [features], or [batch, features]
            (ids: a number, or [batch])
        out : float32 array of the result's shape, optional
            Written and returned instead of a new array.

        Returns
        -------
        array [width] for a frame without a batch axis, else [batch, width]
        """
        y = self._one(frame) if out is None else self._one(frame, out)
        if y is not None:
            return cast(Array, y)
        array = self._checked_frame(frame)
        shape = (self._width,) if array.shape == self._row_shape else (self.batch, self._width)
        if out is not None and (not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != np.float32):
            raise InputError(f"out should be a float32 array of shape {list(shape)}.")
        result = self._advance(array.reshape(self._shape(self._in_axes, 1, self._features)), 1).reshape(shape)
        if out is None:
            return result
        out[...] = result
        return out

    def _checked_frame(self, frame: Any) -> Array:
        """Return a frame that is not of the usual kind as an array that is, or say what does not fit."""
        array = np.asarray(frame)
        shapes = [self._frame_shape, *([self._frame_shape[1:]] if self.batch == 1 else [])]
        if array.shape not in shapes:
            raise InputError(
                f"A frame should have the shape {' or '.join(str(list(s)) for s in shapes)}; got {list(array.shape)}."
            )
        self._check_kind(array)
        return array.astype(self._dtype, copy=False)

    def push(self, chunk: Any) -> Array:
        """Advance by n time steps: [n, features], or with a batch axis the model's own layout."""
        known = self._chunk(chunk)
        if known is not None:
            return cast(Array, known)
        array = np.asarray(chunk)
        axes = self._in_axes
        single = array.ndim == len(axes) - 1 and self.batch == 1
        if single:
            array = np.expand_dims(array, axes.index("B"))
        if (
            array.ndim != len(axes)
            or array.shape[axes.index("B")] != self.batch
            or (self._features and array.shape[-1] != self._features)
        ):
            raise InputError(
                f"A chunk should have the shape {list(self._shape(axes, 'n', self._features))}"
                + (f" or [n, {self._features}]" if self.batch == 1 and self._features else "")
                + f"; got {list(np.shape(chunk))}."
            )
        steps = array.shape[axes.index("T")]
        y = self._advance(array, steps)
        if self._features and 0 < steps <= LONGEST_ENTRY and (single or self.batch > 1):
            self._chunk = self._segment.entry(self._program, steps, keep=True, batch_axis=not single)
        return y.reshape(-1, self._width) if single else y

    def blank_frame(self) -> Array:
        """Return a frame of zeros, of the shape and dtype that `step` takes."""
        return np.zeros(self._usual_shape, self._dtype)

    def reset(self) -> None:
        """Go back to the initial state: zero, or what the model says."""
        for state in self._segment.states:
            self._program.rows(state.slot)[:] = 0

    @property
    def state(self) -> dict[str, Array]:
        """A copy of the state: plain arrays [batch, size] by name; assigning one of its kind restores it."""
        return {s.name: self._program.rows(s.slot)[:, : s.width].copy() for s in self._segment.states}

    @state.setter
    def state(self, value: Mapping[str, Any]) -> None:
        expected = {s.name: (self.batch, s.width) for s in self._segment.states}
        given = {name: np.asarray(array, np.float32) for name, array in value.items()}
        if {name: array.shape for name, array in given.items()} != expected:
            raise InputError(
                f"This stream's state has the arrays {expected}; "
                f"got { {name: array.shape for name, array in given.items()} }."
            )
        for s in self._segment.states:
            self._program.rows(s.slot)[:, : s.width] = given[s.name]

    def _shape(self, axes: str, steps: Any, features: int) -> tuple[Any, ...]:
        return tuple({"T": steps, "B": self.batch, "F": features}[axis] for axis in axes)

    def _check_kind(self, array: Array) -> None:
        if array.dtype.kind not in ("iu" if self._takes_ids else "fiu"):
            wanted = "whole numbers" if self._takes_ids else "numbers"
            raise InputError(f"Frames should be {wanted}; got {array.dtype}.")

    def _advance(self, array: Array, steps: int) -> Array:
        self._check_kind(array)
        x = np.ascontiguousarray(array, self._dtype)
        return self._segment.advance(self._program, {self._input: x}, steps, self.batch)[self._output]


def streaming_segment(model: Model, state: Mapping[str, str] | None) -> Segment:
    """Return the segment that a stream of the model runs; UnsupportedError if it cannot stream."""
    graph = streaming_graph(passes.optimise(model.graph), state)
    return _one_segment(make_plan(graph, machine.detect(), machine.cores() if model.threads is None else model.threads))


def streaming_graph(graph: Graph, pairs: Mapping[str, str] | None) -> Graph:
    """Return the graph of a stream: states kept inside, the last time step taken at every step.

    Raises
    ------
    UnsupportedError
        If the model cannot stream; the message names the layer and the reason.
    """
    for node in graph.nodes:
        if node.op in RECURRENT_OPS:
            if "reverse" in node.attrs["directions"]:
                raise UnsupportedError(
                    f"The layer '{node.name or node.output(0)}' runs backwards in time, so this model "
                    "cannot stream: its first output needs the last frame. Run it on whole sequences."
                )
            if node.input(4) or node.input(5):
                raise UnsupportedError(
                    f"The layer '{node.name or node.output(0)}' takes lengths or a mask, so this model cannot stream."
                )
    states = _state_inputs(graph, pairs)
    nodes = [_streaming(node, graph) for node in graph.nodes]
    shown = {o for n in graph.nodes if n.op in RECURRENT_OPS for o in n.outputs[1:] if o}
    from_state = set(shown)
    for node in nodes:
        rows = [v for v in node.inputs if v and v not in graph.constants]
        if rows and all(v in from_state for v in rows):
            from_state.update(o for o in node.outputs if o)
    outputs = tuple(spec for spec in graph.outputs if spec.name not in from_state)
    inputs = tuple(spec for spec in graph.inputs if spec.name not in states)
    if len(outputs) != 1 or len(inputs) != 1:
        raise UnsupportedError(
            "A stream takes one input and gives one output besides the states; this model has "
            f"{len(inputs)} input(s) and {len(outputs)} output(s)."
        )
    return graph.replace(inputs=inputs, outputs=outputs, nodes=_needed(nodes, outputs[0].name))


def _state_inputs(graph: Graph, pairs: Mapping[str, str] | None) -> set[str]:
    """Return the inputs that only set initial states."""
    names = {spec.name for spec in graph.inputs}
    for name in pairs or ():
        if name not in names:
            raise InputError(f"There is no state input '{name}'; the inputs are {', '.join(sorted(names))}.")
    readers = graph.consumers()

    def only_sets_state(value: str) -> bool:
        return bool(readers.get(value)) and all(
            (node.op in RECURRENT_OPS and value in (node.input(6), node.input(7)) and value != node.input(0))
            or (
                node.op in ("Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Transpose")
                and value == node.input(0)
                and all(only_sets_state(o) for o in node.outputs if o)
            )
            for node in readers[value]
        )

    return {spec.name for spec in graph.inputs if only_sets_state(spec.name)} | set(pairs or ())


def _streaming(node: Node, graph: Graph) -> Node:
    """Return the node as a stream runs it."""
    if node.op in RECURRENT_OPS:
        for position in (6, 7):
            given = graph.constants.get(node.input(position))
            if given is not None and np.any(given):
                raise UnsupportedError(
                    f"The layer '{node.name or node.output(0)}' starts from a constant that is not zero; "
                    "set it with stream.state instead."
                )
        inputs = tuple("" if i in (6, 7) else v for i, v in enumerate(node.inputs))
        return Node(node.op, inputs, node.outputs, node.attrs, node.name)
    index = graph.constants.get(node.input(1)) if node.op == "Gather" else None
    if index is not None and index.ndim == 0 and int(index) == -1 and node.input(0) not in graph.constants:
        return Node("Identity", (node.input(0),), node.outputs, {}, node.name)
    return node


def _needed(nodes: list[Node], output: str) -> tuple[Node, ...]:
    """Return the nodes that `output` depends on, in order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if any(o in wanted for o in node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return tuple(reversed(kept))


def _one_segment(plan: Plan) -> Segment:
    """Return the plan's only part, or say which node does not work on one time step at a time."""
    for part in plan.parts:
        if not isinstance(part, Segment):
            raise UnsupportedError(
                f"The {part.op} node '{part.name or part.output(0)}' does not work on one time step "
                "at a time (or has no kernel that does), so this model cannot stream. Run it on whole sequences."
            )
    if len(plan.parts) != 1:
        raise UnsupportedError("This model has no recurrent layer, or several unconnected ones: it cannot stream.")
    segment = plan.parts[0]
    assert isinstance(segment, Segment)
    return segment
