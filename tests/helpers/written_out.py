"""Recurrent cells written out by hand, as exporters write them: one step, in loops, unrolled over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.operators.validation import validated

Array = npt.NDArray[Any]
FEATURES, H = 3, 4


class Writer:
    """Collects nodes and constants; every operator returns the name of its output."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix, self.nodes, self.constants = prefix, [], {}

    def name(self, hint: str) -> str:
        return f"{self.prefix}{hint}{len(self.nodes) + len(self.constants)}"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = self.name("k")
        self.constants[name] = np.asarray(value, dtype)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attrs: Any) -> Any:
        read = tuple(v if isinstance(v, str) else self.constant(v) for v in inputs)
        names = tuple(self.name(op.lower()) + "abcdef"[i] for i in range(outputs))
        self.nodes.append(Node(op, read, names, attrs))
        return names[0] if outputs == 1 else list(names)


class Cell:
    """A cell: its weights, and a function that writes one step of it."""

    def __init__(
        self,
        op: str,
        step: Callable[..., list[str]],
        parts: int,
        states: int,
        recurrent: int | None = None,
        **attrs: Any,
    ) -> None:
        self.op, self.step, self.states, self.attrs = op, step, states, attrs
        random = np.random.default_rng(parts * 7 + states)
        self.w = random.standard_normal((FEATURES, parts * H)).astype(np.float32)
        self.r = random.standard_normal((H, (recurrent or parts) * H)).astype(np.float32)
        self.b = random.standard_normal(parts * H).astype(np.float32)
        self.b2 = random.standard_normal((recurrent or parts) * H).astype(np.float32)

    def __call__(self, at: Writer, x: str, *states: str) -> list[str]:
        return self.step(self, at, x, *states)


def dense(at: Writer, x: str, w: Array, b: Array | None = None) -> str:
    product = at("MatMul", x, w)
    return product if b is None else at("Add", product, b)


def gates(at: Writer, value: str, count: int) -> list[str]:
    return at("Split", value, outputs=count, axis=-1, num_outputs=count)


def lstm(cell: Cell, at: Writer, x: str, h: str, c: str, *, gate: str = "Sigmoid", order: str = "ifgo") -> list[str]:
    sums = at("Add", dense(at, x, cell.w, cell.b), dense(at, h, cell.r))
    by_name = dict(zip(order, gates(at, sums, 4), strict=True))
    i, f, o = (at(gate, by_name[name]) for name in "ifo")
    kept = at("Mul", f, c)
    new = at("Add", at("Mul", i, at("Tanh", by_name["g"])), kept)
    return [at("Mul", o, at("Tanh", new)), new]


def lstm_joined(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    """[x, h] @ W, the gates activated before they are cut apart, forget bias of 1."""
    both = at("Concat", x, h, axis=-1)
    sums = dense(at, both, np.concatenate([cell.w, cell.r]), cell.b)
    three = at("Sigmoid", at("Slice", sums, at.ints(0), at.ints(3 * H), at.ints(1)))
    g = at("Tanh", at("Slice", sums, at.ints(3 * H), at.ints(4 * H), at.ints(-1)))
    i, f, o = gates(at, three, 3)
    new = at("Add", at("Mul", f, c), at("Mul", i, g))
    return [at("Mul", at("Tanh", new), o), new]


def lstm_peephole(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    a_i, a_f, a_g, a_o = gates(at, at("Add", dense(at, x, cell.w, cell.b), dense(at, h, cell.r)), 4)
    i = at("Sigmoid", at("Add", a_i, at("Mul", c, cell.b2[:H])))
    f = at("Sigmoid", at("Add", at("Mul", cell.b2[H : 2 * H], c), a_f))
    new = at("Add", at("Mul", f, c), at("Mul", i, at("Tanh", a_g)))
    o = at("Sigmoid", at("Add", a_o, at("Mul", new, cell.b2[2 * H : 3 * H])))
    return [at("Mul", o, at("Tanh", new)), new]


def lstm_coupled(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    a_i, a_g, a_o = gates(at, at("Add", dense(at, x, cell.w, cell.b), dense(at, h, cell.r)), 3)
    i = at("Sigmoid", a_i)
    new = at("Add", at("Mul", at("Sub", 1.0, i), c), at("Mul", i, at("Tanh", a_g)))
    return [at("Mul", at("Sigmoid", a_o), at("Tanh", new)), new]


def hard_sigmoid(at: Writer, value: str) -> str:
    """Keras 3's, as tf2onnx writes it: relu6(x + 3) * (1/6)."""
    return at("Mul", at("Clip", at("Add", value, 3.0), at.constant(0.0), at.constant(6.0)), 1 / 6)


def gru(cell: Cell, at: Writer, x: str, h: str) -> list[str]:
    """Reset after the product, gates z, r, n as in Keras; z * h + (1 - z) * n."""
    z, r, n = gates(at, dense(at, x, cell.w, cell.b), 3)
    hz, hr, hn = gates(at, dense(at, h, cell.r, cell.b2), 3)
    z, r = at("Sigmoid", at("Add", z, hz)), at("Sigmoid", at("Add", hr, r))
    n = at("Tanh", at("Add", n, at("Mul", r, hn)))
    return [at("Add", at("Mul", z, h), at("Mul", at("Sub", 1.0, z), n))]


def gru_torch(cell: Cell, at: Writer, x: str, h: str) -> list[str]:
    """n + z * (h - n)."""
    r, z, n = gates(at, dense(at, x, cell.w, cell.b), 3)
    hr, hz, hn = gates(at, dense(at, h, cell.r, cell.b2), 3)
    r, z = at("Sigmoid", at("Add", r, hr)), at("Sigmoid", at("Add", z, hz))
    n = at("Tanh", at("Add", n, at("Mul", r, hn)))
    return [at("Add", n, at("Mul", at("Sub", h, n), z))]


def gru_before(
    cell: Cell, at: Writer, x: str, h: str, *, gate: Callable[[Writer, str], str] | None = None
) -> list[str]:
    """Reset before the product; z says how much is new."""
    squash = gate or (lambda at, value: at("Sigmoid", value))
    r, z, n = gates(at, dense(at, x, cell.w, cell.b), 3)
    hr, hz = gates(at, dense(at, h, cell.r[:, : 2 * H]), 2)
    r, z = squash(at, at("Add", r, hr)), squash(at, at("Add", z, hz))
    n = at("Tanh", at("Add", n, dense(at, at("Mul", r, h), cell.r[:, 2 * H :])))
    return [at("Add", at("Mul", at("Sub", 1.0, z), h), at("Mul", n, z))]


def rnn(cell: Cell, at: Writer, x: str, h: str, *, function: str = "Tanh") -> list[str]:
    return [at(function, at("Add", dense(at, h, cell.r, cell.b2), dense(at, x, cell.w, cell.b)))]


CELLS: dict[str, Cell] = {
    "lstm": Cell("LSTM", lstm, 4, 2),
    "lstm in another order": Cell("LSTM", lambda *a: lstm(*a, order="ofig"), 4, 2),
    "lstm of hard sigmoids": Cell("LSTM", lambda *a: lstm(*a, gate="HardSigmoid"), 4, 2),
    "lstm with one product": Cell("LSTM", lstm_joined, 4, 2),
    "lstm with peepholes": Cell("LSTM", lstm_peephole, 4, 2),
    "lstm with coupled gates": Cell("LSTM", lstm_coupled, 3, 2, input_forget=1),
    "gru": Cell("GRU", gru, 3, 1, reset_after=1),
    "gru as torch writes it": Cell("GRU", gru_torch, 3, 1, reset_after=1),
    "gru with reset before": Cell("GRU", gru_before, 3, 1, reset_after=0),
    "gru of hard sigmoids": Cell("GRU", lambda *a: gru_before(*a, gate=hard_sigmoid), 3, 1, reset_after=0),
    "rnn": Cell("RNN", rnn, 1, 1),
    "rnn of relu": Cell("RNN", lambda *a: rnn(*a, function="Relu"), 1, 1),
}


def one_step(cell: Cell) -> Graph:
    """A model that takes a frame and the states and gives something of the new state, and the new states."""
    at = Writer()
    states = ["h", "c"][: cell.states]
    new = cell(at, "x", *states)
    head = at("MatMul", new[0], np.eye(H, 2))
    specs = [TensorSpec("x", ("batch", FEATURES)), *(TensorSpec(s, ("batch", H)) for s in states)]
    outputs = [TensorSpec(name, ("batch", "?")) for name in (head, *new)]
    return validated(Graph(tuple(specs), tuple(outputs), tuple(at.nodes), at.constants))


def unrolled(cells: Sequence[Cell], steps: int = 4, *, folded: bool = True, backwards: bool = False) -> Graph:
    """Layers of cells in a Python loop over time, from zeros; x is [batch, time, features].

    With `folded` the batch is fixed and the first states are constants, as where it is traced.
    """
    at, batch = Writer(), 2 if folded else "batch"
    rows = at("Slice", at("Shape", "x"), at.ints(0), at.ints(1))
    shape = at("Concat", rows, at.ints(H), axis=0)
    zeros = at.constant(np.zeros((2, H))) if folded else at("ConstantOfShape", shape, value=0.0, dtype="float32")
    states = [[zeros] * cell.states for cell in cells]
    outputs = []
    for t in reversed(range(steps)) if backwards else range(steps):
        frame = at("Squeeze", at("Slice", "x", at.ints(t), at.ints(t + 1), at.ints(1)), at.ints(1))
        for layer, cell in enumerate(cells):
            states[layer] = cell(at, frame, *states[layer])
            frame = states[layer][0]
        outputs.append(at("Unsqueeze", frame, at.ints(1)))
    y = at("Concat", *(reversed(outputs) if backwards else outputs), axis=1)
    specs = (TensorSpec("x", (batch, steps, FEATURES)),)
    last = [TensorSpec(name, ("?",)) for name in states[-1]]
    return validated(Graph(specs, (TensorSpec(y, ("?",)), *last), tuple(at.nodes), at.constants))


def looped(
    cells: Sequence[Cell],
    *,
    mask: str = "",
    backwards: bool = False,
    trips: int = 0,
    step: Callable[..., list[str]] | None = None,
) -> Graph:
    """A Loop as tf2onnx writes it over x [time, batch, features]: a counter, a condition, states, what is collected.

    `mask` is "repeat" or "zero" for a third input m [time, batch, 1] and what stands for a masked step. The
    loop runs `trips` rounds more than there are frames.
    """
    at, inner = Writer(), Writer("b.")
    count = at("Gather", at("Shape", "x"), at.constant(0, np.int64), axis=0)
    if trips:
        count = at("Add", count, at.constant(trips, np.int64))
    going = at("Less", at.constant(0, np.int64), count)
    shape = at("Concat", at("Slice", at("Shape", "x"), at.ints(1), at.ints(2)), at.ints(H), axis=0)
    zeros = at("ConstantOfShape", shape, value=0.0, dtype="float32")
    names = [f"b.s{i}" for i in range(sum(cell.states for cell in cells))]
    position = "b.t"
    if backwards:
        last = inner("Sub", count, inner.constant(1, np.int64))
        position = inner("Sub", last, "b.t")
    frame = inner("Gather", "x", position, axis=0)
    held = inner("Gather", "m", position, axis=0) if mask else ""
    inner.nodes.append(Node("Identity", ("b.w",), ("b.w_after",)))
    states, after = list(names), []
    for cell in cells:
        mine = [states.pop(0) for _ in range(cell.states)]
        new = (step or cell)(*([cell] if step else []), inner, frame, *mine)
        frame = new[0]
        after += [inner("Where", held, a, b) for a, b in zip(new, mine, strict=True)] if mask else new
    y = frame
    if mask == "repeat":
        on, off = (_float(inner, value) for value in (held, inner("Not", held)))
        y = inner("Add", inner("Mul", frame, on), inner("Mul", "b.y", off))
    if mask == "zero":
        y = inner("Where", held, frame, zeros)
    counted = inner("Add", "b.t", inner.constant(1, np.int64))
    cond = inner("And", inner("Less", counted, count), inner("Less", "b.i", count))
    repeated = [y] if mask == "repeat" else []
    carried = ["b.t", *(["b.y"] if mask == "repeat" else []), *names, "b.w"]
    collected = inner("Identity", y)
    body = Graph(
        (
            TensorSpec("b.i", (), "int64"),
            TensorSpec("b.cond", (), "bool"),
            TensorSpec("b.t", (), "int64"),
            *(TensorSpec(n, ("?", H)) for n in carried[1:-1]),
            TensorSpec("b.w", ("?", "?")),
        ),
        tuple(TensorSpec(n, ("...",)) for n in (cond, counted, *repeated, *after, "b.w_after", collected)),
        tuple(inner.nodes),
        inner.constants,
    )
    start = at.constant(0, np.int64)
    finals = [f"final{i}" for i in range(len(names))]
    outputs = ("", *([""] if mask == "repeat" else []), *finals, "", "y")
    initial = [zeros] * (len(carried) - 2)
    node = Node("Loop", (count, going, start, *initial, at.constant(np.eye(2))), outputs, {"body": body}, "while")
    inputs = [TensorSpec("x", ("time", "batch", FEATURES))]
    if mask:
        inputs.append(TensorSpec("m", ("time", "batch", 1), "bool"))
    results = tuple(TensorSpec(name, ("...",)) for name in ("y", *finals))
    return validated(Graph(tuple(inputs), results, (*at.nodes, node), at.constants))


def _float(at: Writer, value: str) -> str:
    name = at.name("cast")
    at.nodes.append(Node("Cast", (value,), (name,), {"to": "float32"}))
    return name


def scanned(cell: Cell, *, backwards: bool = False) -> Graph:
    """A Scan over x [batch, time, features] along its time axis, with the initial states as inputs."""
    inner = Writer("b.")
    names = ["b.h", "b.c"][: cell.states]
    new = cell(inner, "b.x", *names)
    body = Graph(
        (*(TensorSpec(n, ("?", H)) for n in names), TensorSpec("b.x", ("?", FEATURES))),
        tuple(TensorSpec(n, ("...",)) for n in (*new, inner("Identity", new[0]))),
        tuple(inner.nodes),
        inner.constants,
    )
    states = ["h", "c"][: cell.states]
    turn = int(backwards)
    attrs = {
        "body": body,
        "num_scan_inputs": 1,
        "scan_input_axes": [1],
        "scan_output_axes": [1],
        "scan_input_directions": [turn],
        "scan_output_directions": [turn],
    }
    finals = [f"final{i}" for i in range(cell.states)]
    node = Node("Scan", (*states, "x"), (*finals, "y"), attrs, "scan")
    inputs = (TensorSpec("x", ("batch", "time", FEATURES)), *(TensorSpec(s, ("batch", H)) for s in states))
    results = tuple(TensorSpec(name, ("...",)) for name in ("y", *finals))
    return validated(Graph(inputs, results, (node,), {}))
