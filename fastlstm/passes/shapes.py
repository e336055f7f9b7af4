"""Symbolic shape and dtype inference over a whole graph, bodies of control flow included.

`infer` runs forward once; each operator's rule stands beside its meaning (`fastlstm.operators`), and an operator
without a rule, or one that its inputs do not fit, yields values of which nothing is known.
Shape arithmetic (Shape, Gather, Mul, Concat and the like) is followed element by element, so a Reshape to a
computed target has a known shape.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import cast

from fastlstm import operators
from fastlstm.graph import Graph, Node
from fastlstm.operators.dims import Dim, opaque
from fastlstm.operators.values import UNKNOWN, Operands, ValueInfo

__all__ = [
    "ValueInfo", "body_inputs", "common", "condition_of", "first_misfit", "infer", "infer_node", "misfits", "operands",
]  # fmt: skip

Infos = Mapping[str, ValueInfo]

DEEPEST_FOLLOWED = 3
"""Depth of nested loops whose states are followed; see `_fixpoint`."""


def infer(graph: Graph, outer: Infos | None = None, inputs: Sequence[ValueInfo] | None = None) -> dict[str, ValueInfo]:
    """Return what is known of every value of `graph` (not of the values inside bodies).

    Parameters
    ----------
    graph : Graph
    outer : mapping of str to ValueInfo, optional
        For a body: what is known of the values around it.
    inputs : sequence of ValueInfo, optional
        What is known of the inputs, instead of what their descriptions say.
    """
    known: dict[str, ValueInfo] = {name: ValueInfo.of_array(array) for name, array in graph.constants.items()}
    given = [ValueInfo.of_spec(spec) for spec in graph.inputs] if inputs is None else inputs
    known.update((spec.name, info) for spec, info in zip(graph.inputs, given, strict=True))
    scope = _inside(known, outer)
    for node in graph.nodes:
        known.update(zip(node.outputs, infer_node(node, scope), strict=True))
    known.pop("", None)
    return known


def _inside(known: dict[str, ValueInfo], outer: Infos | None) -> Infos:
    """Return what is visible in a body: its own values, then those around it, without copying."""
    if outer is None:
        return known
    return (
        outer.new_child(known) if isinstance(outer, ChainMap) else ChainMap(known, cast("dict[str, ValueInfo]", outer))
    )


def infer_node(node: Node, known: Infos, fits: bool | None = None) -> tuple[ValueInfo, ...]:
    """Return what is known of each output of `node`, given what is known of the values it reads.

    `fits` tells whether the node can run on them, if the caller knows it already.
    """
    count = len(node.outputs)
    infos: Sequence[ValueInfo] = ()
    at = operands(node, known)
    if not (fits if fits is not None else not operators.misfit(at)):
        pass
    elif node.op in _CONTROL:
        infos = _CONTROL[node.op](node, known)
    else:
        infos = operators.infer(at)
    return (*infos[:count], *[UNKNOWN] * (count - len(infos)))


def misfits(graph: Graph, outer: Infos | None = None, inputs: Sequence[ValueInfo] | None = None) -> str:
    """Return why a node of the graph cannot run on its inputs (see `operators.misfit`), empty if all may.

    The parameters are those of `infer`.
    """
    return first_misfit(graph, _inside(infer(graph, outer, inputs), outer))


def first_misfit(graph: Graph, infos: Infos) -> str:
    """Return the same, given what is known of every value."""
    return next((problem for node in graph.nodes if (problem := operators.misfit(operands(node, infos)))), "")


def operands(node: Node, known: Infos) -> Operands:
    """Return a node with what is known of its inputs."""
    return Operands(node, tuple(known.get(name, UNKNOWN) if name else UNKNOWN for name in node.inputs))


def body_inputs(node: Node, known: Infos) -> list[ValueInfo]:
    """Return what holds of the inputs of a Loop's or Scan's body in every round.

    A carried state keeps of its initial info what the body's output confirms.
    """
    if node.op == "Loop":
        before = [ValueInfo((), "int64"), ValueInfo((), "bool")]
        states = [known.get(name, UNKNOWN) for name in node.inputs[2:]]
        return _fixpoint(node.attrs["body"], before, states, [], 1, known)
    carried, slices, _ = _scan_inputs(node, known)
    return _fixpoint(node.attrs["body"], [], carried, slices, 0, known)


def condition_of(body: Graph) -> str:
    """Return the value that decides whether a Loop with this body runs another round."""
    sources = {node.outputs[0]: node.inputs[0] for node in body.nodes if node.op == "Identity"}
    condition = body.outputs[0].name
    return sources.get(condition, condition)


def _fixpoint(
    body: Graph,
    before: list[ValueInfo],
    states: list[ValueInfo],
    after: list[ValueInfo],
    skip: int,
    known: Infos,
) -> list[ValueInfo]:
    """Weaken the infos of the states until one round of the body does not change them.

    Nothing is inferred of a body in which loops are nested `DEEPEST_FOLLOWED` deep: each level would be inferred
    several times for each time of the one around it.
    """
    if _loops_inside(body, DEEPEST_FOLLOWED):
        return [*before, *[UNKNOWN] * len(states), *after]
    states = [info.but(const=None, fill=None) for info in states]
    names = [spec.name for spec in body.inputs[len(before) :]]
    for _ in range(3):
        results = _results(body, [*before, *states, *after], known)[skip : skip + len(states)]
        weaker = [common(a, b, name) for a, b, name in zip(states, results, names, strict=False)]
        if weaker == states:
            return [*before, *states, *after]
        states = weaker
    return [*before, *[UNKNOWN] * len(states), *after]


def _loops_inside(body: Graph, depth: int) -> bool:
    """Tell whether loops lie at least `depth` deep in a body."""
    inner = [value for n in body.nodes if n.op in ("Loop", "Scan") for value in n.attrs.values()]
    return any(depth == 1 or _loops_inside(value, depth - 1) for value in inner if isinstance(value, Graph))


def _results(body: Graph, inputs: list[ValueInfo], known: Infos) -> list[ValueInfo]:
    inside = infer(body, known, inputs)
    return [inside[s.name] if s.name in inside else known.get(s.name, UNKNOWN) for s in body.outputs]


def common(a: ValueInfo, b: ValueInfo, name: str = "") -> ValueInfo:
    """Return what two possible values have in common; with a name, an axis that varies becomes one of its own."""
    same = a.shape == b.shape
    shape = a.shape if same else None
    if name and a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
        pairs = enumerate(zip(a.shape, b.shape, strict=True))
        shape = tuple(p if p == q else opaque(name, axis) for axis, (p, q) in pairs)
    return ValueInfo(
        shape,
        a.dtype if a.dtype == b.dtype else None,
        a.const if same and a.const == b.const else None,
        a.fill if a.fill == b.fill else None,
    )


def _infer_if(node: Node, known: Infos) -> list[ValueInfo]:
    yes, no = (_results(node.attrs[branch], [], known) for branch in ("then_branch", "else_branch"))
    return [common(a, b) for a, b in zip(yes, no, strict=False)]


def _infer_loop(node: Node, known: Infos) -> list[ValueInfo]:
    body: Graph = node.attrs["body"]
    inputs = body_inputs(node, known)
    condition, *results = _results(body, inputs, known)
    carried = len(node.inputs) - 2
    found = [common(a, b).but(const=None, fill=None) for a, b in zip(inputs[2:], results, strict=False)]
    trips = known.get(node.input(0), UNKNOWN).const
    begins = not node.input(1) or known.get(node.input(1), UNKNOWN).const == (1,)
    through = begins and (condition_of(body) == body.inputs[1].name or condition.const == (1,))
    for i, info in enumerate(results[carried:], start=carried):
        count: Dim | None = trips[0] if trips and through else None
        found.append(_stacked(info, opaque(node.output(i) or node.output(0), 0) if count is None else count))
    return found


def _infer_scan(node: Node, known: Infos) -> list[ValueInfo]:
    carried, _, count = _scan_inputs(node, known)
    inputs = body_inputs(node, known)
    results = _results(node.attrs["body"], inputs, known)
    n = len(carried)
    found = [common(a, b).but(const=None, fill=None) for a, b in zip(inputs[:n], results[:n], strict=True)]
    axes = node.attrs.get("scan_output_axes") or [0] * (len(results) - n)
    for i, (info, axis) in enumerate(zip(results[n:], axes, strict=False), start=n):
        found.append(_stacked(info, opaque(node.output(i), 0) if count is None else count, axis))
    return found


def _scan_inputs(node: Node, known: Infos) -> tuple[list[ValueInfo], list[ValueInfo], Dim | None]:
    """Return a Scan's states, one slice of each scanned input, and the number of rounds."""
    scanned = int(node.attrs["num_scan_inputs"])
    infos = [known.get(name, UNKNOWN) for name in node.inputs]
    first = len(infos) - scanned
    slices, count = [], None
    for info, axis in zip(infos[first:], node.attrs.get("scan_input_axes") or [0] * scanned, strict=True):
        if info.shape:
            front = axis % len(info.shape)
            count = info.shape[front]
            shape = (*info.shape[:front], *info.shape[front + 1 :])
            slices.append(ValueInfo(shape, info.dtype))
        else:
            slices.append(ValueInfo(None, info.dtype))
    return infos[:first], slices, count


def _stacked(info: ValueInfo, count: Dim, axis: int = 0) -> ValueInfo:
    """Return the info of `count` values stacked along a new axis."""
    if info.shape is None:
        return ValueInfo(None, info.dtype)
    axis = axis % (len(info.shape) + 1)
    return ValueInfo((*info.shape[:axis], count, *info.shape[axis:]), info.dtype)


_CONTROL = {"If": _infer_if, "Loop": _infer_loop, "Scan": _infer_scan}
