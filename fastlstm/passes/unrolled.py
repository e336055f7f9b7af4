"""Cells written out in a graph, once or once per time step, become recurrent layers.

A cell whose states the caller keeps (one step, states in and out) becomes a layer over one time step; steps with the
same weights that pass their states on to one another become one layer over all of them::

    h1 = cell(x0, h0)                          y, h_n = GRU(stack(x0, x1, x2), …, h0)
    h2 = cell(x1, h1)                    →     h1, h2, h3 = y[0], y[1], y[2]
    h3 = cell(x2, h2)

Values keep their names, so whatever reads them reads the layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastlstm.graph import Graph
from fastlstm.operators.values import UNKNOWN, ValueInfo
from fastlstm.passes.cells import Cell, Weights, match, weights
from fastlstm.passes.formulas import RESHAPES, Formulas, alike, rows
from fastlstm.passes.surgery import ROWS, Additions, agree, depends_on, replaced
from fastlstm.passes.vectors import Atom, Leaf, Vector, digests_kept
from fastlstm.typing import Array

__all__ = ["recognise_steps"]

Fresh = Callable[[str], str]

CHECKED_STEPS = 6
"""Steps of a chain that are computed both ways as a check; all steps have equal weights."""


@dataclass(eq=False)
class Step:
    """A cell, the values that are its new hidden state, its place in a chain, and what is known of its states."""

    names: list[str]
    key: bytes
    cell: Cell
    hidden: Atom | None = None
    weights: Weights | None = None
    previous: Step | None = None
    next: Step | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The first of its values."""
        return self.names[0]


def recognise_steps(
    graph: Graph,
    fresh: Fresh,
    infos: Mapping[str, ValueInfo],
    constants: Mapping[str, Array] | None = None,
) -> Graph:
    """Return the graph with the cells in it as recurrent layers; the same graph if there is none.

    Parameters
    ----------
    graph : Graph
        Optimised, so that products with weights are Dense.
    fresh : callable
        Makes new names.
    infos : mapping of str to ValueInfo
        What is known of every value, and in a body of those around it.
    constants : mapping of str to array, optional
        For a body: the constants around it.
    """
    with digests_kept():
        formulas = Formulas(graph, infos, constants)
        found = _Finder(formulas, graph)
        for chain in found.chains():
            graph = _rebuilt(graph, chain, formulas, fresh) or graph
    return graph


class _Finder:
    """Finds cells and links those that follow one another."""

    def __init__(self, formulas: Formulas, graph: Graph) -> None:
        self.formulas, self.graph = formulas, graph
        self.steps: dict[bytes, Step] = {}
        self.known: dict[bytes, Weights] = {}
        for name in (v for node in graph.nodes if node.op not in RESHAPES for v in node.outputs if v in formulas.rows):
            vector = formulas.meanings.get(name) or formulas.single(name)
            if vector is None:
                continue
            if self.steps and vector.key in self.steps:  # no digests of large weights if there is no cell
                self.steps[vector.key].names.append(name)
                continue
            cell = match(formulas, vector)
            if cell is not None:
                self.steps[vector.key] = Step([name], vector.key, cell)
        for step in self.steps.values():
            self._link(step)

    def key_of(self, atom: Atom) -> bytes:
        """Return the digest of the formula that an atom stands for."""
        return self.formulas.meaning(Vector.of_atom(atom)).key

    def _link(self, step: Step) -> None:
        """Find the step before this one, if it is one of the same layer."""
        for atom in self._hidden_candidates(step):
            before = self.steps.get(self.key_of(atom))
            if before is None or before.next is not None or not self._hands_on(before, step):
                continue
            mine = weights(step.cell, atom, self.known)
            if mine is None or not mine.w_hh.any():
                continue
            if before.weights is None:
                self._settle(before, mine)
            if before.weights is not None and _follows(before, mine):
                step.hidden, step.weights, step.previous, before.next = atom, mine, before, step
                return

    def _hidden_candidates(self, step: Step) -> list[Atom]:
        if step.cell.hidden is not None:
            return [step.cell.hidden]
        # The initial zeros may be one value for both states: only the hidden state is multiplied by a matrix.
        terms = [term for sums in step.cell.sums for term in sums.terms.items()]
        atoms = dict.fromkeys(m[0] for m, c in terms if len(m) == 1 and (c.ndim == 2 or step.cell.op == "RNN"))
        return [atom for atom in atoms if atom.width == step.cell.size]

    def _hands_on(self, before: Step, step: Step) -> bool:
        a, b = before.cell, step.cell
        if (a.op, a.size, a.functions, b.initial) != (b.op, b.size, b.functions, False):
            return False
        if not a.initial and a.coupled != b.coupled:
            return False
        if b.cell is None or a.new_cell is None:
            return b.cell is None and a.new_cell is None
        return self.key_of(b.cell) == self.key_of(a.new_cell)

    def _settle(self, step: Step, following: Weights) -> None:
        """Give the first step of a chain the hidden state with which it has the weights of the next one."""
        if step.cell.initial:
            _settle_initial(step, following)
            return
        for atom in self._hidden_candidates(step):
            mine = weights(step.cell, atom, self.known)
            if mine is not None and mine.same(following):
                step.hidden, step.weights = atom, mine
                return
        if step.cell.op == "RNN":
            _settle_initial(step, following)

    def chains(self) -> Iterator[list[Step]]:
        """Yield the steps of each layer."""
        for step in self.steps.values():
            if step.previous is not None:
                continue
            chain = [step]
            while chain[-1].next is not None:
                chain.append(chain[-1].next)
            if len(chain) > 1 or self._alone(step):
                yield chain

    def _alone(self, step: Step) -> bool:
        """Decide on a cell that stands alone; False if nothing shows that it is one."""
        cell = step.cell
        if cell.initial:
            return False
        candidates = self._hidden_candidates(step)
        if cell.op == "RNN":
            # tanh(a W + b R) is a step of a layer only if the state is an input and an output of the model.
            candidates = [atom for atom in candidates if self._is_handed_in(atom)]
            if len(candidates) != 1 or not self._is_handed_out(step):
                return False
        for atom in sorted(candidates, key=lambda atom: self._distance(atom, cell.cell)):
            step.weights = weights(cell, atom, self.known)
            if step.weights is not None:
                step.hidden = atom
                return True
        return False

    def _distance(self, atom: Atom, cell: Atom | None) -> tuple[int, int]:
        """Tell how far from the cell state's place a value is among the inputs, or in the tensor of all states."""
        if not isinstance(atom, Leaf) or not isinstance(cell, Leaf):
            return (2, 0)
        if atom.value == cell.value:
            here, there = (a.cut[1] if a.cut is not None else a.start for a in (atom, cell))
            return (0, abs(here - there))
        names = [spec.name for spec in self.graph.inputs]
        if atom.value in names and cell.value in names:
            distance = names.index(cell.value) - names.index(atom.value)
            return (1, distance if distance > 0 else len(names) - distance)
        producers = self.graph.producers()
        a, b = producers.get(atom.value), producers.get(cell.value)
        return (1, 0) if a is not None and a is b else (2, 1)

    def _is_handed_in(self, atom: Atom) -> bool:
        return isinstance(atom, Leaf) and atom.value in {spec.name for spec in self.graph.inputs}

    def _is_handed_out(self, step: Step) -> bool:
        """Whether the new state is an output of the model and something else is computed from it."""
        keys = {self.key_of(v.atom) for spec in self.graph.outputs if (v := self._vector(spec.name)) and v.atom}
        read = {v for node in self.graph.nodes for v in node.inputs}
        return step.key in keys and not read.isdisjoint(step.names)

    def _vector(self, name: str) -> Vector | None:
        return self.formulas.single(name)


def _follows(before: Step, mine: Weights) -> bool:
    known = before.weights
    return known is not None and known.same(mine)


def _settle_initial(step: Step, following: Weights) -> None:
    """Accept a step from zero states if it is what the layer with these weights computes from them."""
    mine = weights(step.cell, None)
    if mine is None or [a.width for a in mine.inputs] != [a.width for a in following.inputs]:
        return
    H, cell = step.cell.size, step.cell
    # What would multiply a zero state is missing and cannot be compared: the forget gate, a reset gate
    # without a bias to reset, all peepholes but the output gate's.
    compared = [i for i, gate in enumerate(cell.gates) if gate is not None]
    kept = np.concatenate([np.arange(i * H, (i + 1) * H) for i in compared])
    same = np.array_equal(mine.w_ih[kept], following.w_ih[kept])
    biases = [kept]
    if cell.op == "GRU":
        biases.append(np.arange(3 * H, 4 * H))
        if not following.reset_after:
            biases.pop()
    rows_ = np.concatenate(biases)
    same = same and np.allclose(mine.bias[rows_], following.bias[rows_], rtol=1e-6, atol=1e-7)
    if cell.op == "LSTM":
        peepholes = [np.zeros(3 * H) if w.peephole is None else w.peephole for w in (mine, following)]
        same = same and np.array_equal(peepholes[0][2 * H :], peepholes[1][2 * H :])
    if same:
        step.weights = replace(following, inputs=mine.inputs)


def _rebuilt(graph: Graph, chain: Sequence[Step], formulas: Formulas, fresh: Fresh) -> Graph | None:
    """Return the graph with a layer in place of the chain, or a layer for each of its steps, or None."""
    read = [atom for step in chain if step.weights is not None for atom in step.weights.inputs]
    sources = [_source(atom, formulas) for atom in read]
    made = {name for step in chain for name in step.names} | {
        s.cell.new_cell.value for s in chain if s.cell.new_cell is not None
    }
    names = [name for name in sources if name is not None]
    if len(names) < len(sources):
        return None
    if len(chain) > 1 and depends_on(graph, names, made):
        # A step's input is computed from an earlier step's result, as in an autoregressive decoder.
        for step in chain:
            graph = _Builder(graph, [step], formulas, fresh).result() or graph
        return graph
    return _Builder(graph, chain, formulas, fresh).result()


def _source(atom: Atom | None, formulas: Formulas) -> str | None:
    """Return the name of the graph's value that an atom is (a part of)."""
    return atom.value if isinstance(atom, Leaf) else formulas.names.get((atom,)) if atom is not None else None


class _Builder:
    """Writes the layer of one chain."""

    def __init__(self, graph: Graph, chain: Sequence[Step], formulas: Formulas, fresh: Fresh) -> None:
        self.graph, self.chain, self.formulas = graph, chain, formulas
        self.infos = formulas.infos
        self.new = Additions(fresh)
        self.given: list[str] = []
        self.sizes: dict[str, int] = {}
        first, last = chain[0].name, chain[-1].name
        self.name = first if len(chain) == 1 else f"{first}…{last}"

    def result(self) -> Graph | None:
        """Return the graph with the layer in it; None if something does not fit or does not agree."""
        last = self.chain[-1]
        if any(step.weights is None for step in self.chain):
            return None
        if not self._write():
            return None
        after = replaced(self.graph, self.new)
        if after is None or not self._agrees():
            return None
        if len(self.chain) == 1:
            return after
        said = (
            f"The {last.cell.op} layer '{self.name}' is written out over {len(self.chain)} time steps in the file: "
            "it runs over that many, no more and no fewer."
        )
        return after.replace(notes=(*after.notes, said))

    def _write(self) -> bool:
        """Add the layer and what reads and defines values around it; False if something does not fit."""
        first, last = self.chain[0], self.chain[-1]
        x, states = self._stacked(), [self._state(first.hidden), self._state(first.cell.cell)]
        if x is None or any(state is None for state in states) or last.weights is None:
            return False
        y, h_n, c_n = self.new.layer(self.name, last.cell, last.weights, x, [state or "" for state in states])
        for t, step in enumerate(self.chain):
            # A single step passes its state on, which streams recognise as the final state.
            for value in step.names:
                self._define(value, y if len(self.chain) > 1 else h_n, t)
        if last.cell.new_cell is not None:
            self._define(last.cell.new_cell.value, c_n, 0)
        return True

    def _agrees(self) -> bool:
        """Tell whether the layer of the first steps computes what they do."""
        few = self
        if len(self.chain) > CHECKED_STEPS:
            few = _Builder(self.graph, self.chain[:CHECKED_STEPS], self.formulas, self.new.fresh)
            if not few._write():
                return False
        layer = Graph((), (), tuple(few.new.nodes), few.new.constants)
        return agree(few.graph, layer, few.infos, few.given, [step.name for step in few.chain], few.sizes)

    def _define(self, name: str, source: str, position: int) -> None:
        """Define `name` as one position of the layer's result, in the rank that it has."""
        rank = len(self.infos[name].shape or ())
        index = self.new.constant(f"{name}.index", position)
        if rank == 2:
            self.new.named("Gather", (source, index), name, {"axis": 0})
            return
        row = self.new.node("Gather", (source, index), name, {"axis": 0})
        axes = self.new.constant(f"{name}.axes", list(range(rank - 2)))
        self.new.named("Unsqueeze", (row, axes), name)

    def _stacked(self) -> str | None:
        """Return x [T, B, I]: each step's inputs concatenated, and the steps stacked."""
        frames = []
        for step in self.chain:
            parts = [self._row(atom) for atom in step.weights.inputs] if step.weights is not None else [None]
            if any(part is None for part in parts):
                return None
            found = [part for part in parts if part is not None]
            row = found[0] if len(found) == 1 else self.new.node("Concat", found, step.name, {"axis": -1})
            frames.append(self.new.unsqueezed(row))
        if len(frames) == 1:
            return frames[0]
        return self.new.node("Concat", frames, self.chain[0].name, {"axis": 0})

    def _state(self, atom: Atom | None) -> str | None:
        """Return an initial state [1, B, H], "" where it is zero."""
        if atom is None:
            return ""
        row = self._row(atom)
        return None if row is None else self.new.unsqueezed(row)

    def _row(self, atom: Atom) -> str | None:
        """Return the value [B, width] that an atom is."""
        name = _source(atom, self.formulas)
        shape = self.infos.get(name or "", UNKNOWN).shape
        if name is None or shape is None:
            return None
        if name not in self.given:
            self.given.append(name)
        columns = atom if isinstance(atom, Leaf) else None
        for dim in (d for d in shape if isinstance(d, str)):
            self.sizes.setdefault(dim, ROWS)
        if columns is not None and columns.cut is not None:
            axis, position = columns.cut
            size = shape[axis]
            if isinstance(size, str):
                self.sizes[size] = max(self.sizes[size], position + 1)
            index = self.new.constant(f"{name}.index", position)
            shape = (*shape[:axis], *shape[axis + 1 :])
            name = self.new.node("Gather", (name, index), name, {"axis": axis})
        if not self._fits(rows(shape)) or len(shape) < 2:
            return None
        if len(shape) > 2:
            if any(d != 1 for d in shape[:-2]):
                return None
            axes = self.new.constant(f"{name}.axes", list(range(len(shape) - 2)))
            name = self.new.node("Squeeze", (name, axes), name)
        if columns is not None and columns.width != columns.size:
            bounds = [[columns.start], [columns.start + columns.width], [-1]]
            name = self.new.node("Slice", (name, *(self.new.constant(f"{name}.cut", b) for b in bounds)), name)
        return name

    def _fits(self, found: tuple[Any, ...]) -> bool:
        """Whether rows are those of the cell's result: one batch dimension."""
        return alike(found, rows(self.infos[self.chain[-1].name].shape or ())) and len(found) <= 1
