"""Narrow weights: int16 and int8 with one scale a row, bounded so that no 32-bit sum overflows.

A weight constant w becomes integers q and a float32 scale s a row of gates (a column of a dense layer) with
w = s * q to within s / 2. At run time the other operand's rows become integers v of at most a limit V in magnitude,
so for any input

    |sum over a block of k of q * v|  <=  V * sum |q|  <=  V * (2**31 - 1) / V  <  2**31

because s is at least the block's sum of abs(w) over (2**31 - 1) / V, less what rounding can add.

"int16" stores every weight in 16 bits; V is 2**13 and a block 256 values of k. "int8" stores in 8 bits the recurrent
weights, which are read anew at every time step, and they meet outputs of 8 bits: V is 127, and a block is all of k.
Outputs of 14 bits would double the work: with one row, where the weights' bytes are the limit, that cost 3 to 13 % of a
layer's time, with 32 rows a third. Random weights gain a digit by half (6e-4 against 1.2e-3), trained ones, where the
weights' 8 bits make most of the error, little (1.6e-2 against 2.0e-2, 1.3e-2 against 1.4e-2).
The other weights keep 16 bits: those are read once for a whole block of steps, and at 8 bits they
made two thirds of the error (random weights, H=256: 4.0e-3 against 0.8e-3).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np

from fastlstm.errors import InputError
from fastlstm.graph import QUANTISED_INPUTS, RECURRENT_OPS, Graph, Node, outer_values
from fastlstm.target.limits import SUM_LIMIT, largest_sums, value_limit
from fastlstm.typing import Array

__all__ = ["PRECISIONS", "layer_name", "pays_as_dense", "precisions", "quantise", "quantised_rows", "rounds_as_it_runs"]

PRECISIONS = ("float32", "int16", "int8")

ROUNDING_OPS = ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QuantizeLinear")
"""Operators that round data to bytes."""

SMALL = {"LSTM": 47, "GRU": 47, "RNN": 79, "Dense": 40}
"""Layers of up to so many units stay float32: quantising the rows costs there what narrow weights gain. Measured
with one row and with 32, whole and step by step; a plain RNN has one gate to gain by, where an LSTM has four."""


def quantised_rows(weight: Array, bits: int, recurrent: bool = False) -> tuple[Array, Array]:
    """Return integers of `bits` bits and float32 scales with weight = scale[..., None] * integers.

    Parameters
    ----------
    weight : array [..., K]
        Finite; a scale for each row of K values.
    bits : int
        16 or 8.
    recurrent : bool
        Whether they are recurrent weights, which meet other values than the rest.

    Returns
    -------
    integers : int16 or int8 array [..., K]
    scale : float32 array [...]
    """
    wide = np.abs(np.asarray(weight, np.float64))
    limit, block = value_limit(bits, recurrent)
    # Rounding adds at most a half to each weight of a block.
    room = SUM_LIMIT // limit - (block or wide.shape[-1]) / 2
    least = np.maximum(wide.max(-1) / (2 ** (bits - 1) - 1), largest_sums(wide, block) / room)
    least = np.maximum(least, np.finfo(np.float32).tiny)
    scale = least.astype(np.float32)
    scale = np.where(scale < least, np.nextafter(scale, np.float32(np.inf)), scale)
    integers = np.rint(np.asarray(weight, np.float64) / scale[..., None])
    return integers.astype(np.int16 if bits == 16 else np.int8), scale


def quantise(graph: Graph, precision: str | Mapping[str, str]) -> Graph:
    """Return an optimised graph with the weights of its layers at `precision`.

    Parameters
    ----------
    graph : Graph
    precision : str or mapping of str to str
        "float32", "int16" or "int8", for all layers or by layer name (others stay as they are). The name of a stack or
        module stands for all its layers: "encoder" for "encoder.l0.y" and "encoder.l1.y".

    Returns
    -------
    Graph
        Its notes say which layers stayed float32, and why.

    Raises
    ------
    InputError
        If a precision or a layer is not known.
    """
    layers = [node for node in graph.nodes if node.op in QUANTISED_INPUTS]
    names = {layer_name(node) for node in layers}
    wanted = _by_layer(precision, names) if isinstance(precision, Mapping) else dict.fromkeys(names, precision)
    for value in [precision] if isinstance(precision, str) else precision.values():
        if value not in PRECISIONS:
            raise InputError(f"precision should be one of {', '.join(PRECISIONS)}; got {value!r}.")
    constants, notes = dict(graph.constants), list(graph.notes)
    nodes = []
    for node in graph.nodes:
        chosen = wanted.get(layer_name(node), "float32") if node.op in QUANTISED_INPUTS else "float32"
        reason = "" if chosen == "float32" else _objection(node, constants)
        if reason:
            notes.append(f"{node.op} '{layer_name(node)}' kept its weights: {reason}.")
        nodes.append(node if chosen == "float32" or reason else _narrowed(node, constants, chosen))
    used = {name for node in nodes for name in node.inputs} | {spec.name for spec in graph.outputs}
    used |= {name for node in nodes for name in outer_values(node)}
    kept = {name: array for name, array in constants.items() if name in used}
    return graph.replace(nodes=tuple(nodes), constants=kept, notes=tuple(notes))


def _by_layer(precision: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Return the precision of each layer; a longer name goes before one that stands for more layers."""
    found: dict[str, str] = {}
    for key in sorted(precision, key=len):
        spelled = re.escape(key).replace(r"\.", "[._]")  # torch.export writes a part of a module as outer_inner
        meant = [name for name in names if re.fullmatch(rf"{spelled}(\..*)?", name, re.DOTALL)]
        if not meant:
            raise InputError(f"There is no layer '{key}'; those with weights are: {', '.join(sorted(names))}.")
        found.update(dict.fromkeys(meant, precision[key]))
    return found


def layer_name(node: Node) -> str:
    """Return the name that a layer goes by: its own, or its first output's."""
    return node.name or next(filter(None, node.outputs), "")


def precisions(graph: Graph) -> dict[str, str]:
    """Return the precision of every layer that has narrow weights: that of the narrowest."""
    found = {}
    for node in graph.nodes:
        narrow = [node.input(w) for w, scale in QUANTISED_INPUTS.get(node.op, ()) if node.input(scale)]
        if narrow:
            found[layer_name(node)] = f"int{8 * min(graph.constants[name].dtype.itemsize for name in narrow)}"
    return found


def rounds_as_it_runs(graph: Graph) -> bool:
    """Return whether a model rounds its data to a few bits at run time: in layers with narrow weights, or by nodes."""
    return bool(precisions(graph)) or any(node.op in ROUNDING_OPS for node in graph.nodes)


def _objection(node: Node, constants: Mapping[str, Array]) -> str:
    """Return why a layer stays as it is, empty if it can be narrowed."""
    weights = [constants.get(node.input(w)) for w, _ in QUANTISED_INPUTS[node.op] if node.input(w)]
    if any(w is None for w in weights):
        return "they are not constants"
    if any(w.dtype.kind != "f" for w in weights if w is not None):
        return "they are narrow already"
    if not all(np.isfinite(w).all() for w in weights if w is not None):
        return "not all of them are finite"
    size = int(node.attrs["hidden_size"]) if node.op in RECURRENT_OPS else min(weights[0].shape)  # type: ignore[union-attr]
    return f"float32 is as fast for sizes up to {SMALL[node.op]}, and this is {size}" if size <= SMALL[node.op] else ""


def pays_as_dense(shape: tuple[int, ...]) -> bool:
    """Return whether a dense layer's weight [inputs, outputs] gains by being narrow."""
    return min(shape) > SMALL["Dense"]


def _narrowed(node: Node, constants: dict[str, Array], precision: str) -> Node:
    """Return the node with its weights as integers, which are put among the constants with their scales."""
    inputs = list(node.inputs)
    for weight, scale in QUANTISED_INPUTS[node.op]:
        name = node.input(weight)
        if not name:
            continue
        recurrent = node.op in RECURRENT_OPS and weight == 2
        bits = 8 if precision == "int8" and recurrent else 16
        array = constants[name]
        if node.op == "Dense":
            integers, scales = quantised_rows(array.T, bits)
            integers = np.ascontiguousarray(integers.T)
        else:
            integers, scales = quantised_rows(array, bits, recurrent)
        inputs += [""] * (scale + 1 - len(inputs))
        for position, suffix, value in ((weight, f"int{bits}", integers), (scale, f"int{bits} scale", scales)):
            inputs[position] = f"{name} ({suffix})"
            constants[inputs[position]] = value
    return Node(node.op, tuple(inputs), node.outputs, node.attrs, node.name)
