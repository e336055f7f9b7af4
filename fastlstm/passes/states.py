"""Initial states and lengths of recurrent layers that say nothing become absent."""

from __future__ import annotations

from fastlstm.graph import Node
from fastlstm.passes.rewrite import Scope

__all__ = ["absent_states", "broadcast_states"]


def absent_states(scope: Scope, node: Node) -> list[Node] | None:
    """``LSTM(x, …, h_0=zeros, lengths=[T, T])``  →  ``LSTM(x, …)``.

    Zeros are found however they are written (see `ValueInfo.fill`) and whatever batch was baked into them.
    Lengths count as absent if each of them is the time dimension of x; a mask, if it is True everywhere.
    """
    inputs = list(node.inputs)
    x = scope.shape(node.input(0))
    for position in (6, 7):
        if node.input(position) and scope.info(node.input(position)).fill == 0:
            inputs[position] = ""
    lengths = scope.info(node.input(4))
    if node.input(4) and x is not None and len(x) == 3 and lengths.fill is not None and lengths.fill == x[0]:
        inputs[4] = ""
    if node.input(5) and scope.info(node.input(5)).fill == 1:
        inputs[5] = ""
    bias = scope.const(node.input(3))
    if bias is not None and not bias.any():
        inputs[3] = ""
    while inputs and not inputs[-1]:
        inputs.pop()
    if tuple(inputs) == node.inputs:
        return None
    return [Node(node.op, tuple(inputs), node.outputs, node.attrs, node.name)]


def broadcast_states(scope: Scope, node: Node) -> list[Node] | None:
    """``LSTM(x, …, h_0=Expand(constant [D, 1, H]))``  →  ``LSTM(x, …, h_0=constant)``."""
    inputs = list(node.inputs)
    for position in (6, 7):
        expand = scope.maker(node.input(position), "Expand", "Tile")
        learned = scope.const(expand.input(0)) if expand is not None else None
        if expand is None or learned is None or learned.ndim != 3 or learned.shape[1] != 1:
            continue
        shape = scope.shape(node.input(position))
        if shape is not None and len(shape) == 3 and (shape[0], shape[2]) == (learned.shape[0], learned.shape[2]):
            inputs[position] = expand.input(0)
    if tuple(inputs) == node.inputs:
        return None
    return [Node(node.op, tuple(inputs), node.outputs, node.attrs, node.name)]
