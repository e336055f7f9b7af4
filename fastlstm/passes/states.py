"""Initial states and lengths of recurrent layers that have no effect become absent."""

from __future__ import annotations

from dataclasses import replace

from fastlstm.graph import Node, RecurrentInputs
from fastlstm.passes.rewrite import Scope

__all__ = ["absent_states", "broadcast_states"]


def absent_states(scope: Scope, node: Node) -> list[Node] | None:
    """``LSTM(x, …, h_0=zeros, lengths=[T, T])``  →  ``LSTM(x, …)``.

    Zeros are found however they are written (see `ValueInfo.fill`), and for whatever batch size.
    Lengths count as absent if each of them is the time dimension of x; a mask, if it is True everywhere.
    """
    read = RecurrentInputs.of(node)
    x, absent = scope.shape(read.x), []
    absent += [name for name in ("h_0", "c_0") if (value := getattr(read, name)) and scope.info(value).fill == 0]
    lengths = scope.info(read.lengths)
    if read.lengths and x is not None and len(x) == 3 and lengths.fill is not None and lengths.fill == x[0]:
        absent.append("lengths")
    if read.mask and scope.info(read.mask).fill == 1:
        absent.append("mask")
    bias = scope.const(read.bias)
    if bias is not None and not bias.any():
        absent.append("bias")
    inputs = read._replace(**dict.fromkeys(absent, "")).given()
    return None if inputs == node.inputs else [replace(node, inputs=inputs)]


def broadcast_states(scope: Scope, node: Node) -> list[Node] | None:
    """``LSTM(x, …, h_0=Expand(constant [D, 1, H]))``  →  ``LSTM(x, …, h_0=constant)``."""
    read = inputs = RecurrentInputs.of(node)
    for name in ("h_0", "c_0"):
        value = getattr(read, name)
        expand = scope.maker(value, "Expand", "Tile")
        learned = scope.const(expand.input(0)) if expand is not None else None
        if expand is None or learned is None or learned.ndim != 3 or learned.shape[1] != 1:
            continue
        shape = scope.shape(value)
        if shape is not None and len(shape) == 3 and (shape[0], shape[2]) == (learned.shape[0], learned.shape[2]):
            inputs = inputs._replace(**{name: expand.input(0)})
    return None if inputs == read else [replace(node, inputs=inputs.given())]
