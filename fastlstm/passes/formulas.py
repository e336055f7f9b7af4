"""The formula of every value of a graph, as far as it is made of rows of features.

`Formulas` walks a graph once and writes each value that the operators below compute as concatenated `Vector`s (see
`fastlstm.passes.vectors`); any other value is a `Leaf`. So is a value that has to stay whole: one that is multiplied by
a second matrix, or a sum of products that is a function's argument. `Formulas.meaning` tells what such a leaf stands
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from fastlstm.graph import Graph, Node
from fastlstm.operators import OPERATORS
from fastlstm.operators.activations import ACTIVATIONS
from fastlstm.operators.dims import Shape
from fastlstm.operators.movement import slice_bounds
from fastlstm.operators.values import UNKNOWN, ValueInfo, normal_axis
from fastlstm.passes.shapes import operands
from fastlstm.passes.vectors import Leaf, Monomial, Vector, activated, add, multiply
from fastlstm.typing import Array

__all__ = ["RESHAPES", "Formulas", "Row", "alike", "rows"]

Row = tuple[Vector, ...]
"""Concatenated vectors."""

_ACTIVATIONS = [
    name for name, one in ACTIVATIONS.items() if name in OPERATORS and OPERATORS[name].lowering is one.function
]
"""Operators that are activations of recurrent layers: a gate is one of these."""

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Operators that keep rows of features, if they move nothing but axes of size 1."""


def rows(shape: Shape) -> Shape:
    """Return the dimensions in front of the features, without those of size 1 at the very front."""
    front = list(shape[:-1])
    while front and front[0] == 1:
        del front[0]
    return tuple(front)


def alike(a: Shape, b: Shape) -> bool:
    """Tell whether rows fit one another: the same dimensions, or names that must turn out to be the same."""
    return len(a) == len(b) and all(
        x == y or (isinstance(x, str) and isinstance(y, str)) for x, y in zip(a, b, strict=True)
    )


MOST_ABREAST = 64
"""Most vectors concatenated in one value: no formula of a cell has more."""

_BUDGET, _BUDGET_A_NODE, _COPIES = 1 << 22, 1 << 14, 64
"""Numbers that the formulas of a graph may hold: in proportion to its nodes and to the numbers in its constants, not to
the sizes that it names. A step of an LSTM of 512 units takes some 90,000 for its 15 nodes."""


class Formulas:
    """The formulas of a graph's values.

    Parameters
    ----------
    graph : Graph
    infos : mapping of str to ValueInfo
        What is known of every value (`fastlstm.passes.shapes.infer`).
    constants : mapping of str to array, optional
        Constants of the graphs around it.
    """

    def __init__(
        self, graph: Graph, infos: Mapping[str, ValueInfo], constants: Mapping[str, Array] | None = None
    ) -> None:
        self.infos = infos
        self.constants = graph.constants if constants is None else {**constants, **graph.constants}
        self.rows: dict[str, Row] = {}
        self.meanings: dict[str, Vector] = {}
        self.names: dict[Monomial, str] = {}
        self.states: dict[bytes, str] = {}
        self.sums: dict[int, str] = {}  # by id: a digest of every weight would take longer than the rest
        self.normalised = {n.outputs[0]: n for n in graph.nodes if n.op == "LayerNormalization"}
        given = sum(array.size for array in self.constants.values())
        self.budget = _BUDGET + _BUDGET_A_NODE * len(graph.nodes) + _COPIES * given
        for node in graph.nodes:
            self._visit(node)

    def of(self, name: str) -> Row | None:
        """Return the formula of a value; None if it is not made of rows of features of a known width."""
        if name not in self.rows:
            row = self._given(name)
            if row is None:
                return None
            self.rows[name] = row
        return self.rows[name]

    def single(self, name: str) -> Vector | None:
        """Return the formula of a value if it is one vector."""
        row = self.of(name)
        return row[0] if row is not None and len(row) == 1 else None

    def meaning(self, vector: Vector) -> Vector:
        """Return what a vector that is one leaf stands for."""
        atom = vector.atom
        known = self.meanings.get(atom.value) if isinstance(atom, Leaf) and atom == atom.whole else None
        return vector if known is None else known

    def _given(self, name: str) -> Row | None:
        array, width = self.constants.get(name), self._width(name)
        if array is not None and array.dtype.kind == "f":
            flat = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
            if array.size and (flat[0] == flat).all():
                return (Vector.constant(flat[0], flat.shape[1]),)
        if width is None or not self._take(2 * width):
            return None
        if self.infos[name].fill == 0:  # as constant as any, whatever its number of rows
            return (Vector.constant(np.zeros(1), width),)
        return (Vector.of_atom(Leaf(width, name, width)),)

    def _width(self, name: str) -> int | None:
        info = self.infos.get(name, UNKNOWN)
        if info.dtype not in ("float32", "float64", "bool") or not info.shape:
            return None
        return info.shape[-1] if isinstance(info.shape[-1], int) and info.shape[-1] > 0 else None

    def _take(self, elements: int) -> bool:
        """Spend part of the budget, if enough is left; when it is spent, values are no longer written out."""
        enough = elements <= self.budget
        self.budget -= elements if enough else 0
        return enough

    def leaf(self, name: str) -> Vector | None:
        """Treat a value as a leaf from here on, and remember its meaning."""
        vector, width = self.single(name), self._width(name)
        if vector is None or width is None:
            return None
        leaf = Leaf(width, name, width)
        if vector.atom == leaf:
            return vector
        self.meanings[name] = vector
        self.rows[name] = (Vector.of_atom(leaf),)
        return self.rows[name][0]

    def source(self, vector: Vector) -> str:
        """Return the name of a value that is one of several concatenated ones, "" if there is none."""
        return self.sums.get(id(vector), "") if vector.has_matrices else self.states.get(vector.key, "")

    def _visit(self, node: Node) -> None:
        rule = _RULES.get(node.op)
        if rule is None or not self._fits(node):
            return
        if node.op == "Split":
            self._split(node)
            return
        row = rule(self, node)
        if row is None or len(row) > MOST_ABREAST or not self._take(sum(vector.elements for vector in row)):
            return
        self.rows[node.outputs[0]] = row
        monomial = row[0].product if len(row) == 1 else None
        if monomial is not None:
            self.names.setdefault(monomial, node.outputs[0])
        if len(row) == 1 and row[0].has_matrices:
            self.sums.setdefault(id(row[0]), node.outputs[0])
        elif len(row) == 1:
            self.states.setdefault(row[0].key, node.outputs[0])

    def _fits(self, node: Node) -> bool:
        """Tell whether the node works on rows: nothing but the features and axes of size 1 changes."""
        shapes = [self.infos.get(v, UNKNOWN).shape for v in node.outputs if v]
        if any(not s for s in shapes) or self._width(node.outputs[0]) is None:
            return False
        if node.op == "Gather":
            return True
        out = rows(shapes[0] or ())
        for name in node.inputs:
            shape = self.infos.get(name, UNKNOWN).shape
            if name in self.constants or not name:
                continue
            if not shape or not alike(rows(shape), out):
                return False
        return True

    def _split(self, node: Node) -> None:
        row, shape = self.of(node.inputs[0]), self.infos[node.inputs[0]].shape
        if row is None or shape is None or normal_axis(node.attrs.get("axis", 0), len(shape)) != len(shape) - 1:
            return
        start = 0
        for name in node.outputs:
            width = self._width(name) if name else None
            if width is None:
                return
            self.rows[name] = _columns(row, start, start + width)
            start += width


def _columns(row: Row, start: int, stop: int) -> Row:
    """Return columns of vectors that stand side by side."""
    found, at = [], 0
    for vector in row:
        first, last = max(start - at, 0), min(stop - at, vector.width)
        if first < last:
            found.append(vector.columns(first, last))
        at += vector.width
    return tuple(found)


def _pairwise(a: Row, b: Row, function: Callable[[Vector, Vector], Vector | None]) -> Row | None:
    """Apply a function to vectors of the same columns; a vector of width 1 is broadcast."""
    spread = [len(row) == 1 and row[0].width == 1 for row in (a, b)]
    kept = [row for row, single in zip((a, b), spread, strict=True) if not single] or [a]
    ends = sorted({int(end) for row in kept for end in np.cumsum([v.width for v in row])})
    results, start = [], 0
    for end in ends:
        parts = [row if single else _columns(row, start, end) for row, single in zip((a, b), spread, strict=True)]
        if any(len(part) != 1 for part in parts):
            return None
        result = function(parts[0][0], parts[1][0])
        if result is None:
            return None
        results.append(result)
        start = end
    return tuple(results)


Rule = Callable[[Formulas, Node], Row | None]


def _binary(function: Callable[[Vector, Vector], Vector | None]) -> Rule:
    def rule(at: Formulas, node: Node) -> Row | None:
        a, b = at.of(node.inputs[0]), at.of(node.inputs[1])
        return None if a is None or b is None else _pairwise(a, b, function)

    return rule


def _multiply(at: Formulas, node: Node) -> Row | None:
    """Multiply; a state that is only scaled (for a peephole) is taken as a leaf."""
    a, b = (at.of(name) for name in node.inputs)
    if a is None or b is None:
        return None
    if not any(vector.terms for vector in a):
        b = _whole_sums(at, node.inputs[1])
    elif not any(vector.terms for vector in b):
        a = _whole_sums(at, node.inputs[0])
    return None if a is None or b is None else _pairwise(a, b, multiply)


def _divide(a: Vector, b: Vector) -> Vector | None:
    return None if b.terms or not b.bias.all() else multiply(a, Vector.constant(1 / b.bias, b.width))


def _all(vectors: Iterable[Vector | None]) -> Row | None:
    """Return the vectors concatenated, None if there are none or one is missing."""
    results = list(vectors)
    found = tuple(v for v in results if v is not None)
    return found if found and len(found) == len(results) else None


def _each(function: Callable[[Vector], Vector | None]) -> Rule:
    def rule(at: Formulas, node: Node) -> Row | None:
        row = at.of(node.inputs[0])
        return _all(function(vector) for vector in row or ())

    return rule


def _activation(at: Formulas, node: Node) -> Row | None:
    alpha, beta = (None if p is None else float(p) for p in ACTIVATIONS[node.op].function.given(node.attrs))
    row = _whole_sums(at, node.inputs[0])
    return _all(activated(node.op, alpha, beta, v) for v in row or ())


def _whole_sums(at: Formulas, name: str) -> Row | None:
    """Return the argument of a function; a state (products without a matrix) is taken as a leaf."""
    row = at.of(name)
    vector = row[0] if row is not None and len(row) == 1 else None
    if vector is not None and not vector.has_matrices and any(len(m) > 1 for m in vector.terms):
        leaf = at.leaf(name)
        return None if leaf is None else (leaf,)
    return row


def _clip(at: Formulas, node: Node) -> Row | None:
    """``Clip(v, 0, b)`` is ``b * HardSigmoid(v / b)``."""
    low, high = (at.constants.get(node.input(i)) for i in (1, 2))
    row = at.of(node.inputs[0])
    if low is None or high is None or row is None or low.size != 1 or high.size != 1:
        return None
    bound = float(high.reshape(()))
    if float(low.reshape(())) != 0 or not 0 < bound < np.inf:
        return None
    clipped = _all(activated("HardSigmoid", 1 / bound, 0.0, v) for v in row)
    return None if clipped is None else tuple(v.scaled(bound) for v in clipped)


def _dense(at: Formulas, node: Node) -> Row | None:
    weight, bias = at.constants.get(node.input(1)), at.constants.get(node.input(2))
    if weight is None or weight.ndim != 2 or node.input(3) or (node.input(2) and bias is None):
        return None
    row, total, start = _factors(at, node.inputs[0]), None, 0
    for vector in row or ():
        part = vector.times_matrix(weight[start : start + vector.width])
        total = part if total is None or part is None else add(total, part)
        if part is None or total is None:
            return None
        start += vector.width
    if total is None or start != len(weight):
        return None
    if bias is not None:
        total = Vector(total.width, total.bias + bias.reshape(-1), total.terms)
    return (total,)


def _factors(at: Formulas, name: str) -> Row | None:
    """Return what a matrix multiplies: leaves, single functions and products with a state; else a leaf."""
    row = at.of(name)
    if row is None:
        return None
    parts = []
    for vector in row:
        part = vector if _is_factor(vector) else at.leaf(name if len(row) == 1 else at.source(vector))
        if part is None:
            return None
        parts.append(part)
    return tuple(parts)


def _is_factor(vector: Vector) -> bool:
    if not vector.terms:
        return True
    monomial = vector.product
    return monomial is not None and (len(monomial) == 1 or any(isinstance(a, Leaf) for a in monomial))


def _concat(at: Formulas, node: Node) -> Row | None:
    shape = at.infos[node.outputs[0]].shape or ()
    found = [at.of(name) for name in node.inputs]
    if normal_axis(int(node.attrs["axis"]), len(shape)) != len(shape) - 1 or any(row is None for row in found):
        return None
    return tuple(vector for row in found for vector in row or ())


def _slice(at: Formulas, node: Node) -> Row | None:
    known = operands(node, at.infos)
    bounds, row, shape = slice_bounds(known), at.of(node.inputs[0]), known[0].shape
    if bounds is None or len(bounds) != 1 or row is None or shape is None:
        return None
    axis, start, stop, step = bounds[0]
    if axis != len(shape) - 1 or step != 1 or not isinstance(stop, int):
        return None
    kept = range(sum(v.width for v in row))[start:stop]
    return _columns(row, kept.start, kept.stop)


def _gather(at: Formulas, node: Node) -> Row | None:
    """Take one position of an axis: of x @ W, that is the position of x."""
    info, index = at.infos.get(node.inputs[0], UNKNOWN), at.infos.get(node.inputs[1], UNKNOWN)
    numbers = index.numbers
    if info.shape is None or index.shape != () or numbers is None:
        return None
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(info.shape))
    vector = at.single(node.inputs[0])
    if axis == len(info.shape) - 1 or vector is None:
        return None
    size, position = info.shape[axis], numbers[0]
    position = position + size if position < 0 and isinstance(size, int) else position

    def change(leaf: Leaf) -> Leaf | None:
        shape = at.infos.get(leaf.value, UNKNOWN).shape
        if leaf.cut is not None or shape is None or shape[:-1] != (info.shape or ())[:-1]:
            return None
        return Leaf(leaf.width, leaf.value, leaf.size, leaf.start, (axis, position))

    changed = vector.replaced(change)
    return None if changed is None else (changed,)


def _reshape(at: Formulas, node: Node) -> Row | None:
    before, after = (at.infos.get(v, UNKNOWN).shape for v in (node.inputs[0], node.outputs[0]))
    if not before or not after or before[-1] != after[-1]:
        return None
    front = [s[: len(s) - 1] for s in (before, after)]
    stripped = [rows(s) for s in (before, after)]
    if stripped[0] != stripped[1] or len(front[0]) - len(stripped[0]) < 0:
        return None
    return at.of(node.inputs[0])


def _cast(at: Formulas, node: Node) -> Row | None:
    dtypes = [at.infos.get(v, UNKNOWN).dtype for v in (node.inputs[0], node.outputs[0])]
    return at.of(node.inputs[0]) if dtypes[0] == "bool" or dtypes[0] == dtypes[1] else None


def _not(at: Formulas, node: Node) -> Row | None:
    row = at.of(node.inputs[0])
    one = Vector.constant(np.ones(1), 1)
    return None if row is None else _pairwise((one,), row, lambda a, b: add(a, b, -1.0))


def _where(at: Formulas, node: Node) -> Row | None:
    """``Where(m, a, b)`` is ``b + m * (a - b)``: m is 0 or 1."""
    m, a, b = (at.of(name) for name in node.inputs)
    if m is None or a is None or b is None:
        return None
    difference = _pairwise(a, b, lambda p, q: add(p, q, -1.0))
    chosen = None if difference is None else _pairwise(m, difference, multiply)
    return None if chosen is None else _pairwise(chosen, b, add)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(RESHAPES, _reshape),
    "Add": _binary(add),
    "Sub": _binary(lambda a, b: add(a, b, -1.0)),
    "Mul": _multiply,
    "Div": _binary(_divide),
    "Neg": _each(lambda v: v.scaled(-1.0)),
    "Clip": _clip,
    "Dense": _dense,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _slice,  # see Formulas._split
    "Gather": _gather,
    "Cast": _cast,
    "Not": _not,
    "Where": _where,
}
