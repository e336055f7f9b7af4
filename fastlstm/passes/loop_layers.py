"""A loop whose body is a recurrent cell becomes a recurrent layer.

`layer_of_loop` takes a Loop or Scan that `fastlstm.passes.loops` has analysed and finds which states are those of cells
(`fastlstm.passes.cells`), whether a mask freezes them (``m * new + (1 - m) * old``), and what the collected values are.
The layers replace the loop only if every part of it has a meaning as recurrent layers, and it provably runs once for
every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastlstm.graph import Graph, Node
from fastlstm.operators.movement import FAR
from fastlstm.operators.values import UNKNOWN, ValueInfo
from fastlstm.passes.cells import Cell, Weights, match, weights
from fastlstm.passes.formulas import Formulas
from fastlstm.passes.loops import Collected, Frame, Rounds, State, read_loop, read_scan
from fastlstm.passes.surgery import ROWS, STEPS, Additions, agree, replaced
from fastlstm.passes.vectors import Atom, Leaf, Monomial, Vector, add
from fastlstm.typing import Array

__all__ = ["layer_of_loop"]

Fresh = Callable[[str], str]


@dataclass(eq=False)
class Layer:
    """A cell among the states of a loop."""

    cell: Cell
    weights: Weights
    hidden: State
    memory: State | None
    mask: Leaf | None
    new: Vector
    y: str = ""
    h_n: str = ""
    c_n: str = ""


def layer_of_loop(
    graph: Graph, node: Node, infos: Mapping[str, ValueInfo], constants: Mapping[str, Array], fresh: Fresh
) -> Graph | None:
    """Return the graph with recurrent layers in place of the Loop or Scan `node`; None if it is something else.

    Parameters
    ----------
    graph : Graph
    node : Node
    infos : mapping of str to ValueInfo
        Of all values of the graph and around it.
    constants : mapping of str to array
        Of the graph and around it.
    fresh : callable
        Makes new names.
    """
    rounds = read_loop(graph, node, infos) if node.op == "Loop" else read_scan(node, infos)
    if rounds is None:
        return None
    return _Translation(graph, node, rounds, infos, constants, fresh).result()


class _Translation:
    """Writes the layers of one loop."""

    def __init__(
        self,
        graph: Graph,
        node: Node,
        rounds: Rounds,
        infos: Mapping[str, ValueInfo],
        constants: Mapping[str, Array],
        fresh: Fresh,
    ) -> None:
        self.graph, self.node, self.rounds, self.infos = graph, node, rounds, infos
        self.formulas = Formulas(rounds.body, rounds.infos, constants)
        self.new = Additions(fresh)
        self.given: list[str] = []
        self.layers: list[Layer] = []
        self.sequences: dict[tuple[str, bool], str] = {}
        # Values collected or read backwards are reversed: all frames have to run in the same direction.
        turns = {frame.backwards for frame in rounds.frames.values()}
        self.backwards = turns == {True}
        self.uniform = len(turns) == 1

    def result(self) -> Graph | None:
        """Return the graph with the layers; None if anything in the loop is something else."""
        rounds = self.rounds
        if not rounds.frames or not self.uniform or any(state.final for state in rounds.counters):
            return None
        if not self._find_layers() or not all(self._write(layer) for layer in self._in_order()):
            return None
        held = {state.before for layer in self.layers for state in (layer.hidden, layer.memory) if state is not None}
        repeated = [state for state in rounds.states if state.before not in held]
        for state in repeated:
            layer = self._repeats(state) if state.final else None
            if layer is not None:
                self._last_step(layer, state.final)
            elif state.final:
                return None
        if not all(self._collect(output, {state.before: state for state in repeated}) for output in rounds.collected):
            return None
        self._finish()
        after = replaced(self.graph, self.new)
        wanted = [name for name in self.node.outputs if name]
        if after is None or not agree(self.graph, after, self.infos, self.given, wanted, self._sizes()):
            return None
        return after

    def _sizes(self) -> dict[str, int]:
        """Return sizes for the dimensions of what the layers read: time, and one batch."""
        named = {d for name in self.given for d in self.infos[name].shape or () if isinstance(d, str)}
        return {d: STEPS if d == self.rounds.trips else ROWS for d in named}

    # Reading the body

    def formula(self, name: str) -> Vector | None:
        """Return the formula of a value of the body, also of one that was taken as a leaf."""
        return self.formulas.meanings.get(name) or self.formulas.single(name)

    def _find_layers(self) -> bool:
        """Find the cells whose hidden states are among the loop's states."""
        for state in self.rounds.states:
            after = self.formula(state.after)
            if after is None:
                continue
            mask, new = self._unmasked(after, state)
            cell = match(self.formulas, new)
            layer = None if cell is None else self._layer(cell, new, state, mask)
            if layer is not None:
                self.layers.append(layer)
        return bool(self.layers)

    def _layer(self, cell: Cell, new: Vector, state: State, mask: Leaf | None) -> Layer | None:
        hidden, memory = self._leaf(state.before), None
        if hidden is None or cell.hidden not in (None, hidden) or cell.initial:
            return None
        if cell.op == "LSTM":
            memory = next((s for s in self.rounds.states if self._leaf(s.before) == cell.cell), None)
            if memory is None or not self._hands_on(memory, cell, mask):
                return None
        found = weights(cell, hidden)
        return None if found is None or not found.w_hh.any() else Layer(cell, found, state, memory, mask, new)

    def _hands_on(self, memory: State, cell: Cell, mask: Leaf | None) -> bool:
        """Whether a state's next value is the cell's new cell state, under the same mask."""
        after = self.formula(memory.after)
        if after is None or cell.new_cell is None:
            return False
        own, new = self._unmasked(after, memory)
        found = self.formulas.meaning(Vector.of_atom(cell.new_cell))
        return own == mask and self.formulas.meaning(new).key == found.key

    def _leaf(self, name: str) -> Leaf | None:
        shape = self.rounds.infos.get(name, UNKNOWN).shape
        width = shape[-1] if shape else None
        return Leaf(width, name, width) if isinstance(width, int) else None

    def _unmasked(self, after: Vector, state: State) -> tuple[Leaf | None, Vector]:
        """Return m and ``new`` of ``m * new + (1 - m) * before``; None and the vector itself if it has another form."""
        before = self._leaf(state.before)
        rest = None if before is None else add(after, Vector.of_atom(before), -1.0)
        mask = None if rest is None or rest.bias.any() else self._common_mask(rest)
        if mask is None or rest is None or before is None:
            return None, after
        changed = add(_without(rest, mask), Vector.of_atom(before))
        return (None, after) if changed is None else (mask, self.formulas.meaning(changed))

    def _common_mask(self, vector: Vector) -> Leaf | None:
        """Return the boolean frame that is a factor of every term."""
        for atom in next(iter(vector.terms), ()):
            if not isinstance(atom, Leaf) or atom.width != 1 or atom.size != 1:
                continue
            boolean = self.rounds.infos.get(atom.value, UNKNOWN).dtype == "bool" and atom.value in self.rounds.frames
            if boolean and all(atom in monomial for monomial in vector.terms):
                return atom
        return None

    def _repeats(self, state: State) -> Layer | None:
        """Return the layer whose output a state repeats while the mask holds, zero before the first one."""
        after = self.formula(state.after)
        if after is None or self.infos.get(state.initial, UNKNOWN).fill != 0:
            return None
        mask, new = self._unmasked(after, state)
        return next((y for y in self.layers if mask is not None and y.mask == mask and y.new.key == new.key), None)

    def _in_order(self) -> list[Layer]:
        """Return the layers, each after those whose output it reads."""
        order: list[Layer] = []
        waiting = list(self.layers)
        while waiting:
            ready = [y for y in waiting if not any(self._below(a) in waiting for a in y.weights.inputs)]
            if not ready:
                return waiting
            order += ready
            waiting = [layer for layer in waiting if layer not in ready]
        return order

    def _below(self, atom: Atom) -> Layer | None:
        """Return the layer whose new hidden state the atom is."""
        key = self.formulas.meaning(Vector.of_atom(atom)).key
        return next((layer for layer in self.layers if layer.new.key == key), None)

    # Writing the layers

    def _write(self, layer: Layer) -> bool:
        parts = []
        for atom in layer.weights.inputs:
            below = self._below(atom)
            if below is not None:
                if not below.y or below.mask != layer.mask:
                    return False
                parts.append(below.y)
                continue
            frame = self.rounds.frames.get(atom.value) if isinstance(atom, Leaf) else None
            if frame is None:
                return False
            parts.append(self._sequence(frame))
        states = [self._initial(state) for state in (layer.hidden, layer.memory) if state is not None]
        if any(state is None for state in states) or any(self._rank(part) != 3 for part in parts):
            return False
        x = parts[0] if len(parts) == 1 else self.new.node("Concat", parts, self.name, {"axis": -1})
        mask = ""
        if layer.mask is not None:
            rows = self._sequence(self.rounds.frames[layer.mask.value])
            mask = self.new.node("Squeeze", (rows, self.new.constant(f"{rows}.axes", [-1])), rows)
        number = self.layers.index(layer)
        layer.y, layer.h_n, layer.c_n = self.new.layer(
            self.name if len(self.layers) == 1 else f"{self.name}.{number}",
            layer.cell,
            layer.weights,
            x,
            [*(state or "" for state in states), ""],
            mask=mask,
            direction="reverse" if self.backwards else "forward",
        )
        return True

    @property
    def name(self) -> str:
        """The name of the layers."""
        return self.node.name or next(name for name in self.node.outputs if name)

    def _rank(self, name: str) -> int | None:
        known = self.infos.get(name, UNKNOWN).rank
        return 3 if known is None else known

    def _sequence(self, frame: Frame) -> str:
        """Return the sequence of a frame, time first."""
        if frame.source not in self.given:
            self.given.append(frame.source)
        if frame.axis == 0:
            return frame.source
        rank = self.infos[frame.source].rank or 0
        perm = [frame.axis, *(i for i in range(rank) if i != frame.axis)]
        return self.new.node("Transpose", (frame.source,), frame.source, {"perm": perm})

    def _initial(self, state: State) -> str | None:
        """Return a state before the loop as [1, B, H]."""
        info = self.infos.get(state.initial, UNKNOWN)
        if info.rank != 2:
            return None
        # Zeros may be read elsewhere in the loop: a check computes them.
        if state.initial not in self.given and info.fill is None:
            self.given.append(state.initial)
        return self.new.unsqueezed(state.initial)

    def _collect(self, output: Collected, repeated: Mapping[str, State]) -> bool:
        """Define what the loop collects: a layer's output, with or without its masked steps."""
        vector = self.formula(output.value)
        if vector is None:
            return False
        source = self._output(vector, repeated)
        if source is None:
            return False
        if output.backwards != self.backwards:
            bounds = ([-1], [-FAR - 2], [0], [-1])
            source = self.new.node("Slice", (source, *(self.new.constant("cut", b) for b in bounds)), source)
        if output.axis == 0:
            self.new.named("Identity", (source,), output.into)
        else:
            perm = [1, 2]
            perm.insert(output.axis, 0)
            self.new.named("Transpose", (source,), output.into, {"perm": perm})
        return True

    def _output(self, vector: Vector, repeated: Mapping[str, State]) -> str | None:
        """Return the sequence [T, B, H] of a value of the body."""
        for layer in self.layers:
            if layer.mask is None:
                if layer.new.key == vector.key:
                    return layer.y
                continue
            if vector.key == _times(layer.new, layer.mask).key or vector.product == _with(layer, self.formulas):
                zero = self.new.constant(f"{layer.y}.zero", np.zeros((), np.float32))
                rows = self._sequence(self.rounds.frames[layer.mask.value])
                return self.new.node("Where", (rows, layer.y, zero), layer.y)
            states = [*repeated.values()]
            if self.infos.get(layer.hidden.initial, UNKNOWN).fill == 0:
                states.append(layer.hidden)
            for state in states:
                if vector.key == getattr(self.formula(state.after), "key", None) and (
                    state is layer.hidden or self._repeats(state) is layer
                ):
                    return layer.y
        return None

    def _last_step(self, layer: Layer, name: str) -> None:
        index = self.new.constant(f"{name}.index", 0 if self.backwards else -1)
        self.new.named("Gather", (layer.y, index), name, {"axis": 0})

    def _finish(self) -> None:
        """Define the states after the loop."""
        for layer in self.layers:
            for state, value in ((layer.hidden, layer.h_n), (layer.memory, layer.c_n)):
                if state is not None and state.final:
                    axes = self.new.constant(f"{state.final}.axes", [0])
                    self.new.named("Squeeze", (value, axes), state.final)


def _without(vector: Vector, factor: Atom) -> Vector:
    """Return the vector with one factor removed from every term."""
    return Vector(vector.width, vector.bias, {tuple(a for a in m if a != factor): c for m, c in vector.terms.items()})


def _times(vector: Vector, factor: Atom) -> Vector:
    """Return the vector with one factor added to every term."""
    return Vector(vector.width, vector.bias, {_sorted((*m, factor)): c for m, c in vector.terms.items()})


def _with(layer: Layer, formulas: Formulas) -> Monomial:
    """Return the product of the mask and the value that is the layer's new state, where that is a leaf."""
    names = [name for name, meaning in formulas.meanings.items() if meaning.key == layer.new.key]
    size = layer.cell.size
    return _sorted((layer.mask, Leaf(size, names[0], size))) if names and layer.mask is not None else ()


def _sorted(atoms: Sequence[Atom]) -> Monomial:
    return tuple(sorted(atoms, key=lambda atom: atom.key))
