"""Lengths of rows as masks: exported code runs all rows in lockstep, and outputs past a row's end are set to zero.

In Python, rows are sorted by length, so that finished ones cost nothing; only a call knows that order. A masked step
has the same bits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastlstm.errors import UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph, Node, RecurrentInputs
from fastlstm.passes import shapes
from fastlstm.passes.rewrite import Names

__all__ = ["lengths_as_masks"]


def lengths_as_masks(graph: Graph) -> Graph:
    """Return the graph with masks in place of its recurrent layers' lengths; all its sizes are known.

    Raises
    ------
    UnsupportedError
        If the number of time steps of such a layer is not known.
    """
    infos, names = shapes.infer(graph), Names(graph)
    constants, nodes = dict(graph.constants), list[Node]()
    masks: dict[tuple[str, int], str] = {}
    for node in graph.nodes:
        read = RecurrentInputs.of(node) if node.op in RECURRENT_OPS else None
        if read is None or not read.lengths:
            nodes.append(node)
            continue
        shape = infos[read.x].shape
        if shape is None or not isinstance(shape[0], int):
            raise UnsupportedError(
                f"The layer '{node.name or node.first_output}' reads lengths, and its number of time steps is not "
                "known, so it cannot be exported. Give the sizes of all open dimensions (sizes=, --size)."
            )
        key = read.lengths, shape[0]
        if key not in masks:
            masks[key] = _mask(node, *key, names, constants, nodes)
        mask = masks[key]
        if read.mask:
            mask = names.fresh(read.mask)
            nodes.append(Node("And", (masks[key], read.mask), (mask,)))
        nodes += _masked(node, read, masks[key], mask, names, constants)
    return graph.replace(nodes=tuple(nodes), constants=constants)


def _mask(
    node: Node, lengths: str, steps: int, names: Names, constants: dict[str, np.ndarray], nodes: list[Node]
) -> str:
    """Add the nodes that compute which steps [T, B] lie within their rows; return the mask's name."""
    # In float32, whose operators have kernels for all shapes; it holds integers up to 2^24 exactly.
    parts = ("numbers", "row", "times", "axis", "late", "zero", "mask")
    numbers, row, times, axis, late, zero, mask = (names.fresh(f"{lengths}.{part}") for part in parts)
    constants[times] = np.arange(steps, dtype=np.float32)[:, None]
    constants[axis], constants[zero] = np.array([0], np.int64), np.zeros((), np.float32)
    nodes.append(Node("Cast", (lengths,), (numbers,), {"to": "float32"}, node.name))
    nodes.append(Node("Unsqueeze", (numbers, axis), (row,), {}, node.name))
    nodes.append(Node("Sub", (times, row), (late,), {}, node.name))
    nodes.append(Node("Less", (late, zero), (mask,), {}, node.name))
    return mask


def _masked(
    node: Node, read: RecurrentInputs, within: str, mask: str, names: Names, constants: dict[str, np.ndarray]
) -> list[Node]:
    """Return a layer that reads a mask, and the nodes that zero its outputs outside of `within`."""
    layer = replace(node, inputs=read._replace(lengths="", mask=mask).given())
    y = node.output(0)
    if not y:
        return [layer]
    repeated, axis, wide, zero = (names.fresh(f"{y}.{part}") for part in ("held", "axis", "within", "zero"))
    constants[axis], constants[zero] = np.array([2], np.int64), np.zeros((), np.float32)
    return [
        replace(layer, outputs=(repeated, *node.outputs[1:])),
        Node("Unsqueeze", (within, axis), (wide,), {}, node.name),
        Node("Where", (wide, repeated, zero), (y,), {}, node.name),
    ]
