"""Gates and cell states that are normalised, as in an LSTM with layer normalisation.

`of_gates` splits the sums of an LSTM's four gates if each is ``N(a) + N(b) + bias``, with two layer normalisations over
all gates whose outputs are leaves of the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastlstm.graph import Node
from fastlstm.passes.formulas import Formulas
from fastlstm.passes.vectors import Atom, Leaf, Vector
from fastlstm.typing import Array

__all__ = ["Normalised", "Part", "of_gates", "states_before"]


@dataclass(frozen=True, eq=False)
class Part:
    """The arguments of one normalisation, gate by gate, and its scales [4 * H]."""

    gates: tuple[Vector, ...]
    scale: Array


@dataclass(frozen=True, eq=False)
class Normalised:
    """The normalisations of a cell.

    Attributes
    ----------
    parts : two of Part
        Input and recurrent sums, in either order.
    bias : array, [4 * H]
        Of the gates.
    cells : array, [2 * H]
        Scale and bias of the cell states.
    epsilon : float
    """

    parts: tuple[Part, Part]
    bias: Array
    cells: Array
    epsilon: float


def states_before(formulas: Formulas, leaf: Leaf) -> Vector | None:
    """Return the formula of what a leaf normalises; None if it is not a normalisation."""
    node = formulas.normalised.get(leaf.value)
    found = None if node is None else formulas.single(node.inputs[0])
    return None if found is None else formulas.meaning(found)


def of_gates(formulas: Formulas, gates: Sequence[Vector | None], cells: Leaf) -> Normalised | None:
    """Return the normalisations of gates i, f, g, o and of the new cell states `cells`; None if there are others."""
    size, node = cells.size, formulas.normalised[cells.value]
    state, epsilon = _scale_and_bias(formulas, node, size), _epsilon(node)
    found = [None if gate is None else _summands(gate) for gate in gates]
    names = sorted({leaf.value for leaves in found for leaf in leaves or ()})
    if state is None or len(names) != 2:
        return None
    bias = np.concatenate([gate.bias for gate in gates if gate is not None])
    parts = []
    for name in names:
        of_each = [next((leaf for leaf in leaves or () if leaf.value == name), None) for leaves in found]
        mine = formulas.normalised.get(name)
        if mine is None or _epsilon(mine) != epsilon:
            return None
        starts = [-1 if leaf is None or leaf.size != 4 * size else leaf.start for leaf in of_each]
        whole, sums = _scale_and_bias(formulas, mine, 4 * size), formulas.single(mine.inputs[0])
        if sorted(starts) != [0, size, 2 * size, 3 * size] or whole is None or sums is None or sums.bias.any():
            return None
        columns = np.concatenate([np.arange(start, start + size) for start in starts])
        bias = bias + whole[1][columns]
        parts.append(Part(tuple(sums.columns(start, start + size) for start in starts), whole[0][columns]))
    return Normalised((parts[0], parts[1]), bias, np.concatenate(state), epsilon)


def _summands(gate: Vector) -> list[Leaf] | None:
    """Return the two leaves whose sum, with its bias, is a gate."""
    leaves = [m[0] for m, c in gate.terms.items() if len(m) == 1 and c.ndim == 1 and bool(np.all(c == 1))]
    whole = [leaf for leaf in leaves if _is_plain(leaf, gate.width)]
    return [leaf for leaf in whole if isinstance(leaf, Leaf)] if len(whole) == len(gate.terms) == 2 else None


def _is_plain(atom: Atom, width: int) -> bool:
    return isinstance(atom, Leaf) and atom.width == width and atom.cut is None


def _epsilon(node: Node) -> float:
    return float(node.attrs.get("epsilon", 1e-5))


def _scale_and_bias(formulas: Formulas, node: Node, size: int) -> tuple[Array, Array] | None:
    """Return the scale and the bias of a normalisation of the last axis, which has `size` elements."""
    shape = formulas.infos[node.inputs[0]].shape
    scale, bias = formulas.constants.get(node.input(1)), formulas.constants.get(node.input(2), np.zeros(1))
    axis = int(node.attrs.get("axis", -1))
    if shape is None or axis not in (-1, len(shape) - 1) or shape[-1] != size or scale is None:
        return None
    if (node.input(2) and node.input(2) not in formulas.constants) or scale.ndim > 1 or bias.ndim > 1:
        return None
    return np.broadcast_to(scale, (size,)), np.broadcast_to(bias, (size,))
