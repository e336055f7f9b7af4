"""What is known of a graph's values when branches that cannot run are left out of account.

Exporters guard a Squeeze by an If: one branch for the rank that a file was made for, and one whose result the nodes
behind it refuse. Plain inference finds two shapes there and knows nothing from then on. Here both are followed, and the
one that ends in a node that cannot run on its inputs is dropped: no call that returns has taken it.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence

from fastlstm import operators
from fastlstm.graph import Graph, Node
from fastlstm.operators.values import UNKNOWN, ValueInfo
from fastlstm.passes import shapes

__all__ = ["infer_possible"]

Infos = dict[str, ValueInfo]

MOST_FORKS = 64
"""Branches that are followed to the end of their graph; each may fork again."""


def infer_possible(graph: Graph) -> Infos:
    """Return what holds of every value of `graph` in any call that returns; see `shapes.infer`.

    What plain inference says where no call can return, or where there are more than `MOST_FORKS` forks to follow.
    """
    found = _Forks().graph(graph, None)
    return shapes.infer(graph) if found is None else found


class _Forks:
    """Inference that follows both branches of an If, as long as there are forks left."""

    def __init__(self) -> None:
        self._left = MOST_FORKS

    def graph(self, graph: Graph, outer: ChainMap[str, ValueInfo] | None) -> Infos | None:
        """Return what is known of the values of a graph, or of a branch inside `outer`; None if it cannot run."""
        known = {name: ValueInfo.of_array(array) for name, array in graph.constants.items()}
        known.update((spec.name, ValueInfo.of_spec(spec)) for spec in graph.inputs)
        return self._nodes(graph.nodes, known, outer)

    def _nodes(self, nodes: Sequence[Node], known: Infos, outer: ChainMap[str, ValueInfo] | None) -> Infos | None:
        for at, node in enumerate(nodes):
            scope = ChainMap(known) if outer is None else outer.new_child(known)
            if operators.misfit(shapes.operands(node, scope)):
                return None
            found = self._branches(node, scope) if node.op == "If" else [shapes.infer_node(node, scope)]
            if not found:
                return None
            if len(found) == 1 or self._left <= 0:
                known.update(_named(node, _common(found)))
                continue
            self._left -= 1
            ends = [self._nodes(nodes[at + 1 :], {**known, **_named(node, infos)}, outer) for infos in found]
            possible = [end for end in ends if end is not None]
            return {name: _alike([end[name] for end in possible]) for name in possible[0]} if possible else None
        return known

    def _branches(self, node: Node, scope: ChainMap[str, ValueInfo]) -> list[tuple[ValueInfo, ...]]:
        """Return what is known of an If's outputs, for each of its branches that may run if they differ."""
        condition = scope.get(node.input(0), UNKNOWN).numbers
        taken = (bool(condition[0]),) if condition else (True, False)
        found: list[tuple[ValueInfo, ...]] = []
        for yes in taken:
            body: Graph = node.attrs["then_branch" if yes else "else_branch"]
            inside = self.graph(body, scope)
            if inside is None:
                continue
            infos = tuple(inside.get(s.name, scope.get(s.name, UNKNOWN)) for s in body.outputs)
            if infos not in found:
                found.append(infos)
        shapes_found = {tuple(info.shape for info in infos) for infos in found}
        return found if len(shapes_found) > 1 else [_common(found)] if found else []


def _named(node: Node, infos: Sequence[ValueInfo]) -> Infos:
    return {name: info for name, info in zip(node.outputs, infos, strict=True) if name}


def _common(found: Sequence[tuple[ValueInfo, ...]]) -> tuple[ValueInfo, ...]:
    return tuple(_alike(infos) for infos in zip(*found, strict=True))


def _alike(infos: Sequence[ValueInfo]) -> ValueInfo:
    """Return what all of these possible values have in common."""
    first, *rest = infos
    for info in rest:
        first = shapes.common(first, info)
    return first
