"""Which engine a model's streams run on: one segment if the whole model fits into it, else the graph of a step.

Time axes and states are found from the model's shapes and values; what cannot stream is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from fastlstm import passes
from fastlstm.errors import UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, Recurrent, RecurrentInputs, TensorSpec
from fastlstm.lowering.plan import make_plan, row_labels
from fastlstm.runtime.segment import Segment
from fastlstm.streaming.engines import Engine, GraphEngine, SegmentEngine, Streamed
from fastlstm.streaming.flow import FRAMES, ROWS, TRACED, Carried, Part, Unrolled, WrongAxesError, refusal
from fastlstm.streaming.pairs import final_states, initial_states, likely_pairs, state_pairs
from fastlstm.streaming.timeline_rules import unroll
from fastlstm.target import Target, machine
from fastlstm.typing import Array

__all__ = ["engine_for"]

MOST_TRIALS = 400
MOST_OPEN = 2  # axes of a chunk: its rows and its size
OTHER_ROWS = "other rows"


def engine_for(model: Streamed, hand: Mapping[str, str] | None, target: Target | None = None) -> Engine:
    """Return the engine that streams of the model run on.

    Parameters
    ----------
    model : Streamed
    hand : mapping of str to str, optional
        State inputs and the outputs that return them, if the graph alone does not show it.
    target : Target, optional
        The processor to plan for; this machine if not given.

    Raises
    ------
    UnsupportedError
        If the model cannot stream; the message names the layer and the reason.
    """
    graph = passes.optimise(model.graph)
    threads = machine.cores() if model.threads is None else model.threads
    pairs = state_pairs(graph, hand)
    native = _one_segment(graph, pairs, threads, target or machine.detect())
    if native is not None:
        return native
    shown = {given: after for given, after in pairs.items() if after}
    graph = _without(graph, {given for given, after in pairs.items() if not after})
    try:
        found = _unrolled(graph, shown)
    except UnsupportedError as error:
        called = _call_by_call(graph, shown, bool(hand))
        likely = {**shown, **likely_pairs(graph, shown)}
        if called is None and likely and not hand:
            raise UnsupportedError(
                f"{error} If one call is one frame of it, say which states are passed on: state={likely}."
            ) from None
        if called is None:
            raise error from None
        return GraphEngine(called, threads, target)
    if found.delay or found.hop > 1:  # a model that takes chunks and returns its states is called as it is
        found = _call_by_call(graph, shown, bool(hand)) or found
    return GraphEngine(found, threads, target)


def _one_segment(graph: Graph, pairs: Mapping[str, str], threads: int, target: Target) -> SegmentEngine | None:
    """Return the engine of a model that is one native call, None if the model is not."""
    only_recurrent = all(
        initial_states(graph, given) and (not shown or initial_states(graph, given) == final_states(graph, shown))
        for given, shown in pairs.items()
    )
    recurrent = [node for node in graph.nodes if node.op in RECURRENT_OPS]
    read = [RecurrentInputs.of(node) for node in recurrent]
    refused = any("reverse" in n.attrs["directions"] for n in recurrent) or any(r.lengths or r.mask for r in read)
    if not only_recurrent or refused:
        return None
    states = set(pairs)
    initial: dict[str, Array] = {}
    labels = row_labels(graph, passes.shapes.infer(graph))
    nodes = []
    for node in graph.nodes:
        new = _streaming(node, graph, labels, initial)
        if new is None:
            return None
        nodes.append(new)
    if _joins_ranks(graph.nodes, nodes):
        return None
    from_state = {o for n in recurrent for o in n.outputs[1:] if o}
    for node in nodes:
        rows = [v for v in node.inputs if v and v not in graph.constants]
        if rows and all(v in from_state for v in rows):
            from_state.update(o for o in node.outputs if o)
    shown = set(pairs.values())
    outputs = tuple(s for s in graph.outputs if s.name not in shown and not final_states(graph, s.name))
    inputs = tuple(spec for spec in graph.inputs if spec.name not in states)
    if not outputs or not inputs or any(spec.name in from_state for spec in outputs):
        return None
    wanted = {spec.name for spec in outputs}
    stream = graph.replace(inputs=inputs, outputs=outputs, nodes=_needed(nodes, wanted))
    if not recurrent or any(n.op in RECURRENT_OPS and n not in stream.nodes for n in nodes):
        return None
    plan = make_plan(stream, target, threads)
    segment = plan.parts[0] if len(plan.parts) == 1 else None
    if not isinstance(segment, Segment) or segment.flat or set(segment.inputs) != {spec.name for spec in inputs}:
        return None
    if set(segment.outputs) != wanted or any("T" not in axes for _, axes, _ in segment.inputs.values()):
        return None
    return SegmentEngine(segment, initial, tuple(spec.name for spec in outputs))


def _streaming(node: Node, graph: Graph, labels: Mapping[str, str], initial: dict[str, Array]) -> Node | None:
    """Return the node as a segment's stream runs it, None if it cannot; record the initial states."""
    if node.op in RECURRENT_OPS:
        layer = Recurrent.of(node)
        for kind, state in (("h", layer.inputs.h_0), ("c", layer.inputs.c_0)):
            given = graph.constants.get(state)
            if given is not None and np.any(given):
                if given.shape[1] != 1:
                    return None
                initial[f"{layer.label}.{kind}"] = given[0, 0]
            elif state and given is None and not _is_state(graph, state):
                return None
        return replace(node, inputs=layer.inputs._replace(h_0="", c_0="").given())
    index = graph.constants.get(node.input(1)) if node.op == "Gather" else None
    at = labels.get(node.input(0), "").find("T")
    is_last = index is not None and index.ndim == 0 and index == -1 and int(node.attrs.get("axis", 0)) % 3 == at
    if is_last and len(labels[node.input(0)]) == 3:  # in a stream, the last time step is the current one
        return Node("Identity", (node.input(0),), node.outputs, {}, node.name)
    return node


def _joins_ranks(before: Sequence[Node], after: Sequence[Node]) -> bool:
    """Whether a node combines what was the last time step, and now has a time axis, with values that have none."""
    timed: set[str] = set()
    for old, new in zip(before, after, strict=True):
        found = [name in timed for name in new.inputs if name]
        if new.op == "Concat" and any(found) and not all(found):
            return True
        if any(found) or (old.op == "Gather" and new.op == "Identity"):
            timed.update(name for name in new.outputs if name)
    return False


def _is_state(graph: Graph, value: str) -> bool:
    """Whether a value is a state input of the graph, or part of one."""
    made = graph.producers()
    while value in made:
        value = made[value].input(0)
    return bool(initial_states(graph, value))


def _needed(nodes: list[Node], wanted: set[str]) -> tuple[Node, ...]:
    """Return the nodes that the outputs depend on, in order."""
    wanted, kept = set(wanted), []
    for node in reversed(nodes):
        if any(o in wanted for o in node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return tuple(reversed(kept))


def _without(graph: Graph, states: set[str]) -> Graph:
    """Return the graph without these inputs as initial states of its recurrent layers: the stream keeps the states."""
    readers = graph.consumers()
    values = set(states)
    waiting = list(states)
    while waiting:
        for node in readers.get(waiting.pop(), []):
            if node.op not in RECURRENT_OPS:
                values.update(node.outputs)
                waiting += node.outputs
    nodes = tuple(
        replace(n, inputs=tuple("" if v in values else v for v in n.inputs)) if n.op in RECURRENT_OPS else n
        for n in graph.nodes
        if n.op in RECURRENT_OPS or not values.intersection(n.outputs)
    )
    return graph.replace(nodes=nodes, inputs=tuple(spec for spec in graph.inputs if spec.name not in states))


def _unrolled(graph: Graph, pairs: Mapping[str, str]) -> Unrolled:
    """Find the time and batch axes of every input; return the stream's graph.

    Exporters do not say which axis is which. Each choice is followed through the graph, and only the right one gets
    through, because a recurrent layer takes time first and a product sums over features.
    """
    frames = [spec for spec in graph.inputs if spec.name not in pairs]
    best: tuple[int, UnsupportedError] | None = None
    late: Unrolled | None = None  # the first choice with a delay: another may have none
    rows = {given: axis for given in pairs if (axis := _row_axis(graph, given)) is not None}
    for trial, choice in enumerate(product(*map(_choices, frames))):
        if trial == MOST_TRIALS:
            break
        if all(t is None for t, _ in choice):
            continue
        axes = dict(zip([spec.name for spec in frames], choice, strict=True))
        named = _with_axes(graph, axes, pairs, rows)
        moving = {name: t for name, (t, _) in axes.items() if t is not None}
        placed: list[Node] = []
        try:
            found = unroll(named, moving, pairs, placed)
        except UnsupportedError as error:
            # A layer that finds no frames shows that these axes are wrong, not what is wrong with the model.
            far = -1 if isinstance(error, WrongAxesError) else len(placed)
            if best is None or far > best[0]:
                best = far, error
            continue
        if not found.carried:
            best = (
                len(graph.nodes),
                UnsupportedError(
                    "This model keeps nothing from one time step to the next, so there is nothing to stream. "
                    f"Call it. {TRACED}"
                ),
            )
            continue
        if found.hop == 1 and not found.delay:
            return found
        late = late or found
    if late is not None:
        return late
    raise best[1] if best else UnsupportedError("This model has no input with a time axis, so it cannot stream.")


def _choices(spec: TensorSpec) -> list[tuple[int | None, int | None]]:
    """Return the time and batch axes that an input may have, the likeliest first."""
    rank = 0 if "..." in spec.shape else len(spec.shape)
    open_axes = [i for i, size in enumerate(spec.shape) if isinstance(size, str)] if rank else []
    times = [i for i in open_axes if i > 0] + [i for i in open_axes if i == 0] or list(range(rank))
    if len(open_axes) < 2:
        times = [i for i in range(rank) if i in (0, 1) or i == rank - 1] if not open_axes else times
        times += [i for i in range(rank) if i not in times]
    if rank == 2 and spec.shape[0] == 1:  # a batch of one frame, as a cell takes it
        times = [t for t in times if t != 0]
    found: list[tuple[int | None, int | None]] = []
    for t in times:
        found += [(t, b) for b in (0, 1) if b != t and b < rank]
    found += [(t, None) for t in times]
    found += [(None, 0), (None, None)] if rank else [(None, None)]
    return found


def _row_axis(graph: Graph, given: str) -> int | None:
    """Return which axis of a state input holds the batch rows of the recurrent layers that start from it.

    Layers take [directions, rows, units]; a model may take another shape and move its axes. The axis is the one whose
    name arrives there; None if none does, or if no recurrent layer starts from this input.
    """
    places = {
        getattr(RecurrentInputs.of(graph.producers()[first]), f"{kind}_0")
        for first, kind in initial_states(graph, given)
    }
    return _axis_of_rows(graph, next(s for s in graph.inputs if s.name == given), places)


def _axis_of_rows(graph: Graph, spec: TensorSpec, places: set[str]) -> int | None:
    """Return which axis of an input is the second axis of these values, a layer's batch rows; None if none is."""
    for axis in range(len(spec.shape) if places and "..." not in spec.shape else 0):
        named = replace(spec, shape=(*spec.shape[:axis], ROWS, *spec.shape[axis + 1 :]))
        infos = passes.shapes.infer(graph.replace(inputs=tuple(named if s is spec else s for s in graph.inputs)))
        shapes = [infos[place].shape for place in places]
        if all(shape is not None and len(shape) == 3 and shape[1] == ROWS for shape in shapes):
            return axis
    return None


def _with_axes(
    graph: Graph,
    axes: Mapping[str, tuple[int | None, int | None]],
    pairs: Mapping[str, str],
    rows: Mapping[str, int],
) -> Graph:
    """Return the graph with its inputs' axes named, optimised again if sizes were numbers.

    `rows` tells which axis of a recurrent layer's state holds the batch rows.
    """
    batches = {
        size
        for spec in graph.inputs
        if spec.name in axes and axes[spec.name][1] is not None
        for size in [spec.shape[axes[spec.name][1] or 0]]
    }
    fixed = False
    inputs = []
    for spec in graph.inputs:
        shape = list(spec.shape)
        if spec.name in pairs:
            for i, size in enumerate(shape):
                if (isinstance(size, str) and (size in batches or len(batches) == 0)) or rows.get(spec.name) == i:
                    fixed |= isinstance(size, int)
                    shape[i] = ROWS
        else:
            for axis, name in zip(axes[spec.name], (FRAMES, ROWS), strict=True):
                if axis is not None:
                    fixed |= isinstance(shape[axis], int)
                    shape[axis] = name
        inputs.append(replace(spec, shape=tuple(shape)))
    named = graph.replace(inputs=tuple(inputs))
    return passes.optimise(named) if fixed else named


def _call_by_call(graph: Graph, pairs: Mapping[str, str], by_hand: bool) -> Unrolled | None:
    """Return the graph of a model that takes and returns its own states in each call, None for any other model.

    A frame is then what one call takes, such as a chunk of audio, which may contain many time steps.
    """
    graph = _with_rows(graph, pairs)
    frames = [spec for spec in graph.inputs if spec.name not in pairs]
    outputs = [spec for spec in graph.outputs if spec.name not in pairs.values()]
    is_open = any(isinstance(size, str) for spec in frames for size in spec.shape[1:])
    recurrent = [node for node in graph.nodes if node.op in RECURRENT_OPS]
    for node in recurrent:
        read = RecurrentInputs.of(node)
        states = [read.h_0, read.c_0][: 2 if node.op == "LSTM" else 1]
        starts = [v for v in states if v and v not in graph.constants]
        if starts and "reverse" in node.attrs["directions"]:
            raise refusal(node, "runs backwards in time, and its first output needs the last frame")
        if len(starts) < len(states) and pairs and "reverse" not in node.attrs["directions"]:
            return None  # its state would be lost after every call
    if not pairs or not frames or not outputs or (is_open and not by_hand):
        return None
    infos = passes.shapes.infer(graph)
    for node in recurrent:
        known = infos[RecurrentInputs.of(node).x].shape
        if not by_hand and (known is None or isinstance(known[0], str)):
            return None  # it has a time axis, along which it cannot stream
    carried = []
    for given, shown in pairs.items():
        spec = next(s for s in graph.inputs if s.name == given)
        free = {size for size in spec.shape if isinstance(size, str)}
        if len(free) > 1:
            raise UnsupportedError(f"The shape of the state {spec} is not known, so this model cannot stream.")
        shape = tuple(ROWS if isinstance(size, str) else size for size in spec.shape)
        carried.append(Carried(given, given, shown, shape, spec.dtype or "float32", own=True))
    own = [TensorSpec(c.given, c.shape, c.dtype) for c in carried]
    after = [TensorSpec(c.shown, c.shape, c.dtype) for c in carried]
    inputs = (*frames, *own)
    infos = passes.shapes.infer(graph.replace(inputs=inputs))
    outputs = [_with_rank(spec, infos[spec.name].shape) for spec in outputs]
    called = graph.replace(inputs=inputs, outputs=(*outputs, *after))
    names = tuple(spec.name for spec in outputs)
    return Unrolled(
        Part(called, names, tuple(c.given for c in carried)),
        tuple(carried),
        called.inputs[: len(frames)],
        called.outputs[: len(outputs)],
        _row_letters(called, len(frames), len(outputs), graph),
        at_once=False,
    )


def _with_rows(graph: Graph, pairs: Mapping[str, str]) -> Graph:
    """Return a chunk model's graph with its number of batch rows fixed throughout, if its frames or states fix it."""
    layers = {node.input(0) for node in graph.nodes if node.op in RECURRENT_OPS}
    at = {
        spec.name: _row_axis(graph, spec.name) if spec.name in pairs else _axis_of_rows(graph, spec, layers)
        for spec in graph.inputs
    }
    counts = {spec.shape[axis] for spec in graph.inputs if (axis := at[spec.name]) is not None}
    fixed = {size for size in counts if isinstance(size, int)}
    if len(fixed) != 1:
        return graph
    inputs = (
        spec
        if (axis := at[spec.name]) is None
        else replace(spec, shape=(*spec.shape[:axis], *fixed, *spec.shape[axis + 1 :]))
        for spec in graph.inputs
    )
    return graph.replace(inputs=tuple(inputs))


def _with_rank(spec: TensorSpec, shape: tuple[int | str, ...] | None) -> TensorSpec:
    """Return an output of a chunk model with its axes, even if the model does not say how many there are."""
    if "..." not in spec.shape:
        return spec
    if shape is None:
        raise UnsupportedError(f"The shape of the output '{spec.name}' is not known, so this model cannot stream.")
    return replace(spec, shape=shape)


def _row_letters(called: Graph, frames: int, outputs: int, graph: Graph) -> dict[str, str]:
    """Return B for the axis of batch rows and a dot for every other, for the frames and outputs of a chunk model.

    The axis has the same name as the states' rows. Some exporters name every axis differently: then it is the frames'
    first axis if its size is open and the returned states get their rows from it.
    """
    given, own = called.inputs[:frames], called.inputs[frames:]
    shown, after = called.outputs[:outputs], called.outputs[outputs:]
    states = {spec.name for spec in own}
    names = {size for spec in graph.inputs if spec.name in states for size in spec.shape if isinstance(size, str)}
    shapes = {spec.name: spec.shape for spec in (*given, *shown)}
    # Where the size of a chunk is open too, its first axis may be time: rows of the states must not be taken for it.
    apart = [replace(s, shape=tuple(OTHER_ROWS if d == ROWS else d for d in s.shape)) for s in own]
    for most, held in ((1, own), (MOST_OPEN, apart)) if names else ():
        inputs = [_with_rows_first(spec, names, most) for spec in given]
        infos = passes.infer_possible(called.replace(inputs=(*inputs, *held)))
        if all(infos[spec.name].shape == spec.shape for spec in after):
            shapes |= {spec.name: spec.shape for spec in inputs}
            found = {spec.name: infos[spec.name].shape for spec in shown}
            shapes |= {name: shape for name, shape in found.items() if shape is not None and ROWS in shape}
            break
    return {name: "".join("B" if size in {ROWS, *names} else "." for size in shape) for name, shape in shapes.items()}


def _with_rows_first(spec: TensorSpec, names: set[str], most: int) -> TensorSpec:
    """Return frames whose axes of these names hold the rows, and the first if it is one of at most `most` open ones."""
    first = spec.shape[0] if spec.shape else 1
    opens = [size for size in spec.shape if isinstance(size, str)]
    rows = {*names, first} if isinstance(first, str) and len(opens) <= most else names
    return replace(spec, shape=tuple(ROWS if size in rows else size for size in spec.shape))
