"""One step of a recurrent layer, found in formulas: LSTM, GRU and plain cells and their weights.

`match` looks at the formula of one value (see `fastlstm.passes.formulas`) and tells whether it is the new
hidden state of a cell, by the equations of `fastlstm.operators.reference`. `weights` sorts the terms of its gates by
what they multiply. Everything that is not exactly such a cell is None.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastlstm.passes.formulas import Formulas
from fastlstm.passes.normalised import Normalised, of_gates, states_before
from fastlstm.passes.vectors import Act, Atom, Block, Leaf, Vector, as_matrix, digest
from fastlstm.typing import Array

__all__ = ["Cell", "Weights", "match", "weights"]

Function = tuple[str, float | None, float | None]


@dataclass(frozen=True, eq=False)
class Cell:
    """One step of a cell.

    Attributes
    ----------
    op : str
        "LSTM", "GRU" or "RNN".
    gates : tuple of Vector
        The sums in front of the activations: i, f, g, o (LSTM; f absent where `coupled` or `initial`), r, z, n
        (GRU; r absent in an `initial` step that does not need it), one (RNN).
    functions : tuple of (name, alpha, beta)
        As in the attribute ``activations`` of `fastlstm.graph`.
    hidden : Atom or None
        The hidden state before the step, where the formula tells it (GRU).
    cell : Atom or None
        The LSTM's cell state before the step.
    new_cell : Leaf or None
        The LSTM's cell state after the step.
    recurrent : Vector or None
        The GRU's ``h @ R_n + b_hn`` (reset after the product).
    coupled : bool
        f = 1 - i.
    initial : bool
        The states before the step are zero and left out of the formula.
    normalised : Normalised or None
        Layer normalisation of the gates' sums and of the cell states.
    """

    op: str
    gates: tuple[Vector | None, ...]
    functions: tuple[Function, ...]
    hidden: Atom | None = None
    cell: Atom | None = None
    new_cell: Leaf | None = None
    recurrent: Vector | None = None
    coupled: bool = False
    initial: bool = False
    normalised: Normalised | None = None

    @property
    def size(self) -> int:
        """The number of hidden units."""
        return next(gate.width for gate in self.gates if gate is not None)

    @property
    def sums(self) -> list[Vector]:
        """The gates' sums of products with weights, before any normalisation."""
        if self.normalised is not None:
            return [vector for part in self.normalised.parts for vector in part.gates]
        return [gate for gate in self.gates if gate is not None]


@dataclass(frozen=True, eq=False)
class Weights:
    """A cell's weights in the canonical form of `fastlstm.graph`, for one direction, as float32.

    `inputs` are what w_ih multiplies, in this order: whole leaves or functions.
    """

    w_ih: Array
    w_hh: Array
    bias: Array
    peephole: Array | None
    reset_after: int
    inputs: tuple[Atom, ...]
    norm: Array | None = None
    epsilon: float | None = None

    def same(self, other: Weights) -> bool:
        """Tell whether two steps belong to one layer."""
        widths = [[atom.width for atom in w.inputs] for w in (self, other)]
        arrays = [(getattr(self, what), getattr(other, what)) for what in ("w_ih", "w_hh", "bias", "peephole", "norm")]
        return (
            widths[0] == widths[1]
            and self.reset_after == other.reset_after
            and self.epsilon == other.epsilon
            and all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in arrays)
        )


def match(formulas: Formulas, vector: Vector) -> Cell | None:
    """Return the cell whose new hidden state the vector is."""
    return _lstm(formulas, vector) or _gru(formulas, vector) or _rnn(vector)


def _lstm(formulas: Formulas, vector: Vector) -> Cell | None:
    """``h' = o * k(c')``, ``c' = f * c + i * g`` (or ``c' = (1 - i) * c + i * g``, or c' = i * g as c is 0)."""
    product = vector.product
    if product is None or len(product) != 2:
        return None
    for o, k in (product, product[::-1]):
        if not isinstance(o, Act) or not isinstance(k, Act) or not isinstance(k.of.atom, Leaf):
            continue
        normalised = None if k.of.atom.value in formulas.meanings else states_before(formulas, k.of.atom)
        state = formulas.meanings.get(k.of.atom.value) or normalised
        if state is None or k.of.atom != k.of.atom.whole:
            continue
        found = _cell_state(state, o.function, k.function)
        if found is None:
            continue
        i, f, g, cell = found
        one = Cell(
            "LSTM",
            (i.of, None if f is None else f.of, g.of, o.of),
            (o.function, g.function, k.function),
            cell=cell,
            new_cell=k.of.atom,
            coupled=f is None and cell is not None,
            initial=cell is None,
        )
        if normalised is None:
            return one
        norms = of_gates(formulas, one.gates, k.of.atom)
        return None if norms is None else replace(one, normalised=norms)
    return None


def _cell_state(vector: Vector, gate: Function, output: Function) -> tuple[Act, Act | None, Act, Atom | None] | None:
    """Return i, f, g and c of a new cell state; every gate has the function `gate`."""
    if vector.bias.any() or any(c.ndim != 1 for c in vector.terms.values()):
        return None
    ones = [m for m, c in vector.terms.items() if np.all(c == 1)]
    negative = [m for m, c in vector.terms.items() if np.all(c == -1)]
    if len(ones) + len(negative) != len(vector.terms):
        return None
    candidates = [m for m in ones if len(m) == 2 and all(isinstance(a, Act) for a in m)]
    if len(candidates) != 1:
        return None
    pairs = [(i, g) for i, g in (candidates[0], candidates[0][::-1]) if isinstance(i, Act) and i.function == gate]
    # If both have the gates' function, the candidate is the one with the output's function.
    pairs.sort(key=lambda pair: isinstance(pair[1], Act) and pair[1].function != output)
    others = [m for m in ones if m != candidates[0]]
    for i, g in pairs:
        if not isinstance(i, Act) or not isinstance(g, Act):
            continue
        if not others and not negative:
            return i, None, g, None
        if len(others) != 1:
            return None
        if not negative and len(others[0]) == 2:
            for f, c in (others[0], others[0][::-1]):
                if isinstance(f, Act) and f.function == gate and isinstance(c, Leaf):
                    return i, f, g, c
        if len(others[0]) == 1 and len(negative) == 1 and isinstance(others[0][0], Leaf):
            c = others[0][0]
            if set(negative[0]) == {i, c} and len(negative[0]) == 2:
                return i, None, g, c
    return None


def _gru(formulas: Formulas, vector: Vector) -> Cell | None:
    """``h' = (1 - z) * s + z * t``: s is n and t is h, or the other way round with 1 - z as the gate."""
    if vector.bias.any() or not vector.terms or any(c.ndim != 1 for c in vector.terms.values()):
        return None
    plus = [m for m, c in vector.terms.items() if np.all(c == 1)]
    minus = [m for m, c in vector.terms.items() if np.all(c == -1)]
    if len(plus) + len(minus) != len(vector.terms):
        return None
    if len(minus) == 1 and len(minus[0]) == 2:
        singles = [m[0] for m in plus if len(m) == 1]
        pairs = [m for m in plus if len(m) == 2]
        if len(singles) != 1 or len(pairs) > 1 or len(plus) != 1 + len(pairs) or singles[0] not in minus[0]:
            return None
        s = singles[0]
        z = next((atom for atom in minus[0] if atom != s), None)
        t = next((atom for atom in pairs[0] if atom != z), None) if pairs else None
        if not isinstance(z, Act) or (pairs and (z not in pairs[0] or t is None)):
            return None
        if isinstance(s, Act) and (t is None or isinstance(t, Leaf)):
            return _gru_of(formulas, z, z.of, s, t)
        if isinstance(s, Leaf) and isinstance(t, Act):
            opposite = _opposite(z)
            return None if opposite is None else _gru_of(formulas, z, opposite, t, s)
        return None
    if not minus and len(plus) == 1 and len(plus[0]) == 2:  # z * n, as h is 0
        for z, n in (plus[0], plus[0][::-1]):
            if isinstance(z, Act) and isinstance(n, Act) and z.function != n.function:
                opposite = _opposite(z)
                found = None if opposite is None else _gru_of(formulas, z, opposite, n, None)
                if found is not None:
                    return found
    return None


def _opposite(gate: Act) -> Vector | None:
    """Return the sum whose gate is 1 minus this one."""
    if gate.name == "Sigmoid":
        return gate.of.scaled(-1.0)
    if gate.name == "HardSigmoid" and gate.alpha and gate.beta is not None:
        shift = (1 - 2 * gate.beta) / gate.alpha
        turned = gate.of.scaled(-1.0)
        return Vector(turned.width, turned.bias + shift, turned.terms)
    return None


def _gru_of(formulas: Formulas, gate: Act, z: Vector, n: Act, hidden: Leaf | None) -> Cell | None:
    """Return the cell of an update gate and a candidate if the candidate is one."""
    total = formulas.meaning(n.of)
    products = [m for m in total.terms if len(m) > 1]
    functions = (gate.function, n.function)
    if not products and hidden is None:
        return _initial_gru(total, z, functions)
    if len(products) != 1 or len(products[0]) != 2:
        return None
    rest = Vector(total.width, total.bias, {m: c for m, c in total.terms.items() if m != products[0]})
    coefficient = total.terms[products[0]]
    for r, other in (products[0], products[0][::-1]):
        if not isinstance(r, Act) or r.function != gate.function:
            continue
        after = isinstance(other, Block) and coefficient.ndim == 1 and bool(np.all(coefficient == 1))
        if hidden is not None and after and isinstance(other, Block):
            return Cell("GRU", (r.of, z, rest), functions, hidden, recurrent=other.of)
        if hidden is not None and other == hidden and coefficient.ndim == 2:
            gates = (r.of, z, Vector(total.width, rest.bias, {**rest.terms, products[0]: coefficient}))
            return Cell("GRU", gates, functions, hidden)
    return None


def _initial_gru(total: Vector, z: Vector, functions: tuple[Function, ...]) -> Cell | None:
    """A GRU's step from zero: ``r * b_hn`` is all that is left of the recurrent part, if that."""
    scaled = [(m[0], c) for m, c in total.terms.items() if isinstance(m[0], Act) and c.ndim == 1]
    rest = Vector(
        total.width, total.bias, {m: c for m, c in total.terms.items() if c.ndim == 2 or m[0] not in dict(scaled)}
    )
    if len(scaled) > 1:
        return None
    if not scaled:
        return Cell("GRU", (None, z, rest), functions, initial=True)
    r, c = scaled[0]
    if not isinstance(r, Act) or r.function != functions[0]:
        return None
    recurrent = Vector(total.width, np.asarray(c, np.float64))
    return Cell("GRU", (r.of, z, rest), functions, recurrent=recurrent, initial=True)


def _rnn(vector: Vector) -> Cell | None:
    """``h' = f(W x + R h + b)``."""
    atom = vector.atom
    if not isinstance(atom, Act) or not atom.of.terms or any(len(m) > 1 for m in atom.of.terms):
        return None
    return Cell("RNN", (atom.of,), (atom.function,))


def weights(cell: Cell, hidden: Atom | None, known: dict[bytes, Weights] | None = None) -> Weights | None:
    """Return the weights of a cell whose hidden state before the step is the atom `hidden`.

    None if a gate depends on anything but inputs, that state and (through peepholes) the cell state. `known` are the
    weights of earlier steps, by a digest of what they were made of, and these join them: steps of one layer share their
    arrays.
    """
    sorter = _Sorter(cell.size, hidden, {} if known is None else known)
    if cell.normalised is not None:
        return _normalised_weights(cell, cell.normalised, sorter)
    zero = Vector.constant(np.zeros(1), cell.size)
    if cell.op == "LSTM":
        peephole = np.zeros((3, cell.size))
        gates = [zero if gate is None else gate for gate in cell.gates]
        seen = (cell.cell, cell.cell, None, cell.new_cell)
        for position, (sum_, state) in enumerate(zip(gates, seen, strict=True)):
            if not sorter.take(position, sum_, state, peephole[(0, 1, 0, 2)[position]]):
                return None
        bias = np.concatenate([gate.bias for gate in gates])
        return sorter.weights(4, bias, peephole if peephole.any() else None)
    if cell.op == "RNN":
        (gate,) = cell.gates
        if gate is None or not sorter.take(0, gate):
            return None
        return sorter.weights(1, gate.bias)
    return _gru_weights(cell, sorter)


def _normalised_weights(cell: Cell, norms: Normalised, sorter: _Sorter) -> Weights | None:
    for inputs, recurrent in (norms.parts, norms.parts[::-1]):
        sorter = _Sorter(cell.size, sorter.hidden, sorter.known)
        if all(sorter.take(gate, vector, allow="inputs") for gate, vector in enumerate(inputs.gates)) and all(
            sorter.take(gate, vector, allow="hidden") for gate, vector in enumerate(recurrent.gates)
        ):
            found = sorter.weights(4, norms.bias)
            norm = np.concatenate([inputs.scale, recurrent.scale, norms.cells]).astype(np.float32)
            return None if found is None else replace(found, norm=norm, epsilon=norms.epsilon)
    return None


def _gru_weights(cell: Cell, sorter: _Sorter) -> Weights | None:
    zero = Vector.constant(np.zeros(1), cell.size)
    r, z, n = (zero if gate is None else gate for gate in cell.gates)
    if not sorter.take(0, r) or not sorter.take(1, z):
        return None
    after = int(cell.recurrent is not None or cell.initial)
    if after:
        recurrent = zero if cell.recurrent is None else cell.recurrent
        # The product with r may contain nothing but the state, the rest nothing but inputs.
        if not sorter.take(2, n, allow="inputs") or not sorter.take(2, recurrent, allow="hidden"):
            return None
        return sorter.weights(3, np.concatenate([r.bias, z.bias, n.bias, recurrent.bias]), None, after)
    reset = next(m for m in n.terms if len(m) > 1)
    sorter.recurrent.append((2, n.terms[reset]))
    rest = Vector(n.width, n.bias, {m: c for m, c in n.terms.items() if m != reset})
    if not sorter.take(2, rest, allow="inputs"):
        return None
    return sorter.weights(3, np.concatenate([r.bias, z.bias, n.bias, np.zeros(cell.size)]), None, after)


class _Sorter:
    """Collects the terms of the gates by what they multiply."""

    def __init__(self, size: int, hidden: Atom | None, known: dict[bytes, Weights]) -> None:
        self.size, self.hidden, self.known = size, hidden, known
        self.inputs: dict[Atom, list[tuple[int, int, Array]]] = {}  # gate, first column, coefficient
        self.recurrent: list[tuple[int, Array]] = []

    def take(
        self, gate: int, vector: Vector, state: Atom | None = None, peephole: Array | None = None, allow: str = "all"
    ) -> bool:
        """Sort one gate's terms; False if one of them has no place."""
        for monomial, c in vector.terms.items():
            if len(monomial) != 1:
                return False
            (atom,) = monomial
            if atom == self.hidden and (c.ndim == 2 or atom != state):
                if allow == "inputs":
                    return False
                self.recurrent.append((gate, c))
            elif state is not None and atom == state and c.ndim == 1:
                if peephole is None:
                    return False
                peephole += c
            elif allow == "hidden" or not self._input(gate, atom, c):
                return False
        return True

    def _input(self, gate: int, atom: Atom, c: Array) -> bool:
        if isinstance(atom, Block) or (c.ndim == 1 and atom.width != self.size):
            return False
        whole, start = (atom.whole, atom.start) if isinstance(atom, Leaf) else (atom, 0)
        self.inputs.setdefault(whole, []).append((gate, start, c))
        return True

    def weights(self, gates: int, bias: Array, peephole: Array | None = None, reset_after: int = 1) -> Weights | None:
        """Return what was collected as weights; None if there is no input."""
        if not self.inputs:
            return None
        pieces = [(slot, *piece) for slot, found in enumerate(self.inputs.values()) for piece in found]
        arrays = [part for piece in (*pieces, *self.recurrent) for part in piece]
        widths = [atom.width for atom in self.inputs]
        key = digest(gates, reset_after, self.size, widths, len(pieces), *arrays, bias, peephole)
        if key not in self.known:
            w_ih, w_hh = self._matrices(gates)
            one_row = None if peephole is None else peephole.reshape(-1).astype(np.float32)
            self.known[key] = Weights(w_ih, w_hh, bias.astype(np.float32), one_row, reset_after, ())
        return replace(self.known[key], inputs=tuple(self.inputs))

    def _matrices(self, gates: int) -> tuple[Array, Array]:
        """Return the weights [gates * H, I] and [gates * H, H]."""
        H = self.size
        w_ih = [np.zeros((gates * H, atom.width)) for atom in self.inputs]
        for block, pieces in zip(w_ih, self.inputs.values(), strict=True):
            for gate, start, c in pieces:
                matrix = as_matrix(c)
                block[gate * H : (gate + 1) * H, start : start + len(matrix)] += matrix.T
        w_hh = np.zeros((gates * H, H))
        for gate, c in self.recurrent:
            w_hh[gate * H : (gate + 1) * H] += as_matrix(c).T
        return np.concatenate(w_ih, axis=1).astype(np.float32), w_hh.astype(np.float32)
