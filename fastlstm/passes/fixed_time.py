"""Recurrences that are unrolled over a fixed number of time steps, though the axis is declared open.

PyTorch's dynamo exporter unrolls ``nn.RNN`` to as many steps as the example had. A longer sequence is silently cut off,
in any engine; a shorter one is an error. `note` says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fastlstm.graph import Graph, Node, outer_values
from fastlstm.operators.movement import slice_bounds
from fastlstm.operators.values import UNKNOWN, ValueInfo, normal_axis
from fastlstm.passes import shapes

__all__ = ["with_notes"]

FEWEST_STEPS = 2


def with_notes(graph: Graph, infos: Mapping[str, ValueInfo]) -> Graph:
    """Return the graph with a note for each open axis over which it is unrolled to a fixed number of steps.

    Parameters
    ----------
    graph : Graph
        Optimised, its cells still written out.
    infos : mapping of str to ValueInfo
        What is known of every value (`fastlstm.passes.shapes.infer`).
    """
    picks: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for node in graph.nodes:
        found = _pick(node, infos)
        if found is not None:
            source, axis, position = found
            picks[source, axis][node.outputs[0]] = position
    readers = graph.consumers()
    notes = list(graph.notes)
    for (source, axis), places in picks.items():
        steps = len(set(places.values()))
        whole = all(n.outputs[0] in places for n in readers.get(source, ())) and source not in _outputs(graph)
        if steps < FEWEST_STEPS or set(places.values()) != set(range(steps)) or not whole:
            continue
        if not _is_recurrence(graph, places, steps):
            continue
        open_size = (infos[source].shape or ())[axis]
        name = next((spec.name for spec in graph.inputs if open_size in spec.shape), source)
        note = (
            f"The file has {steps} time steps of '{name}' written out one by one, though it leaves the length of that "
            f"axis open ('{open_size}'): of a longer sequence only the first {steps} steps are read, as the file says; "
            "a shorter one is an error. For a model of any length export with dynamo=False, or load the PyTorch module "
            "itself (a .pt2 file, or fastlstm.from_torch)."
        )
        if note not in notes:
            notes.append(note)
    return graph.replace(notes=tuple(notes))


def _outputs(graph: Graph) -> set[str]:
    return {spec.name for spec in graph.outputs}


def _pick(node: Node, infos: Mapping[str, ValueInfo]) -> tuple[str, int, int] | None:
    """Return the source, axis and position of a node that takes one fixed position of an open axis."""
    info = infos.get(node.input(0), UNKNOWN)
    if node.op not in ("Gather", "Slice") or not info.shape:
        return None
    if node.op == "Gather":
        index = infos.get(node.input(1), UNKNOWN).numbers
        if index is None or len(index) != 1:
            return None
        axis, position = normal_axis(int(node.attrs.get("axis", 0)), len(info.shape)), index[0]
    else:
        bounds = slice_bounds(shapes.operands(node, infos))
        if bounds is None or len(bounds) != 1:
            return None
        ((axis, first, last, step),) = bounds
        if step != 1 or not isinstance(first, int) or not isinstance(last, int) or last - first != 1:
            return None
        position = first
    if position < 0 or isinstance(info.shape[axis], int):
        return None
    return node.inputs[0], axis, position


def _is_recurrence(graph: Graph, places: Mapping[str, int], steps: int) -> bool:
    """Whether there is, for every step, a value made from it and all before it (or all after it) and no other."""
    seen: dict[str, int] = {}
    for node in graph.nodes:
        reads = [*node.inputs, *outer_values(node)]
        mask = 0
        for name in reads:
            mask |= seen.get(name, 0)
        for name in node.outputs:
            seen[name] = 1 << places[name] if name in places else mask
    masks = set(seen.values())
    whole = (1 << steps) - 1
    onwards = all((1 << k + 1) - 1 in masks for k in range(steps))
    return onwards or all(whole & ~((1 << k) - 1) in masks for k in range(steps))
