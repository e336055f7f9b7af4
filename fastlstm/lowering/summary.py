"""A model's layers as a table: operator, shape, weights, cost, and the kernel that runs each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastlstm.graph import QUANTISED_INPUTS, RECURRENT_OPS, Graph, Node, RecurrentInputs
from fastlstm.lowering.plan import REFERENCE_KERNEL, Plan, operator
from fastlstm.lowering.tapes import EMITTERS
from fastlstm.operators.onnx_reference import REFERENCE
from fastlstm.passes import shapes
from fastlstm.runtime.segment import Segment
from fastlstm.typing import Array

__all__ = ["Layer", "bytes_of", "parameters_of", "summarise"]


@dataclass(frozen=True)
class Layer:
    """One node of the optimised graph.

    Attributes
    ----------
    layer, op : str
        The node's name (or that of its first output) and operator.
    shape : str
        Shape of the first output.
    parameters, bytes : int
        Number and size of its weights; the size includes the scales of narrow weights.
    macs : int
        Multiply-adds for one time step of one batch row.
    kernel : str
        What runs it: "layout" for nodes that only change the layout of values, "tape" for those whose kernels depend on
        the sizes of each call (`fastlstm.lowering.tapes.tape`), "NumPy" for those without a kernel, `REFERENCE_KERNEL`
        for those that fastlstm does not compute itself.
    """

    layer: str
    op: str
    shape: str
    parameters: int
    bytes: int
    macs: int
    kernel: str

    def as_data(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def summarise(plan: Plan) -> tuple[Layer, ...]:
    """Return the layers of a planned model, in the order they run."""
    infos = shapes.infer(plan.graph)
    in_numpy = {id(part) for part in plan.parts if isinstance(part, Node)}
    kernels = {name: k for part in plan.parts if isinstance(part, Segment) for name, k in part.kernels.items()}
    layers = []
    for node in plan.graph.nodes:
        parameters, scales = _weights(node, plan.graph.constants)
        info = infos.get(node.first_output)
        layers.append(
            Layer(
                node.name or node.first_output,
                operator(node),
                "?" if info is None or info.shape is None else f"[{', '.join(map(str, info.shape))}]",
                sum(a.size for a in parameters.values()),
                sum(a.nbytes for a in [*parameters.values(), *scales.values()]),
                _macs(node, plan.graph, infos),
                _outside(node) if id(node) in in_numpy else kernels.get(node.first_output, "layout"),
            )
        )
    return tuple(layers)


def parameters_of(graph: Graph) -> int:
    """Return how many weights a graph has, including those in bodies of control flow."""
    found: dict[str, Array] = {name: array for name, array in graph.constants.items() if array.dtype.kind == "f"}
    for node in graph.nodes:
        parameters, scales = _weights(node, graph.constants)
        found = {name: array for name, array in {**found, **parameters}.items() if name not in scales}
    return sum(array.size for array in found.values()) + sum(map(parameters_of, graph.subgraphs()))


def bytes_of(graph: Graph) -> int:
    """Return the bytes of a graph's constants, including those in bodies of control flow."""
    return sum(array.nbytes for array in graph.constants.values()) + sum(map(bytes_of, graph.subgraphs()))


def _weights(node: Node, constants: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return a node's constant weights, and the scales of narrow ones, by name."""
    places = QUANTISED_INPUTS.get(node.op, ())
    scales = {node.input(scale) for _, scale in places}
    narrow = {node.input(weight) for weight, scale in places if node.input(scale)}
    found = {name: constants[name] for name in node.inputs if name in constants}
    weights = {n: a for n, a in found.items() if n in narrow or (a.dtype.kind == "f" and n not in scales)}
    return weights, {n: a for n, a in found.items() if n in scales}


def _outside(node: Node) -> str:
    """Return what runs a node outside segments."""
    if node.op == REFERENCE:
        return REFERENCE_KERNEL
    return "tape" if node.op in (*EMITTERS, "Loop", "Scan") else "NumPy"


def _macs(node: Node, graph: Graph, infos: Mapping[str, shapes.ValueInfo]) -> int:
    def size(name: str) -> int:
        array = graph.constants.get(name)
        return 0 if array is None else int(array.size)

    if node.op in RECURRENT_OPS:  # each weight is used once per step
        read = RecurrentInputs.of(node)
        return sum(map(size, (read.w_ih, read.w_hh, read.peephole, read.w_hr)))
    if node.op == "Dense":
        return size(node.input(1))
    if node.op in ("MatMul", "Gemm"):
        return max(size(node.input(0)), size(node.input(1)))
    if node.op in ("Conv", "ConvTranspose"):
        info = infos.get(node.output(0))
        known = [d for d in (info.shape or ())[2:] if isinstance(d, int)] if info is not None else []
        return size(node.input(1)) * math.prod(known)
    return 0
