"""Cells written out become recurrent layers with the same meaning; nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from written_out import (
    CELLS,
    FEATURES,
    Cell,
    H,
    Writer,
    dense,
    gates,
    gru,
    looped,
    lstm,
    lstm_joined,
    one_step,
    scanned,
    unrolled,
)

import fastlstm
from fastlstm import passes
from fastlstm.graph import RECURRENT_OPS, Graph, Node, TensorSpec
from fastlstm.operators import reference
from fastlstm.operators.validation import validated
from fastlstm.passes import cells as cells_found
from fastlstm.passes import fuse, rewrite, shapes, vectors
from fastlstm.passes.formulas import Formulas
from fastlstm.passes.vectors import Act, Block, Leaf, Vector, add, multiply

Array = npt.NDArray[Any]
SIZES = ({"batch": 2, "time": 5}, {"batch": 1, "time": 1}, {"batch": 3, "time": 2})


def feeds(graph: Graph, sizes: dict[str, int], seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    found = {}
    for spec in graph.inputs:
        array = random.standard_normal([sizes[d] if isinstance(d, str) else d for d in spec.shape])
        found[spec.name] = array > 0 if spec.dtype == "bool" else array.astype(spec.dtype)
    return found


def optimised(graph: Graph, tolerance: float = 1e-6) -> Graph:
    """Return the optimised graph after checking that it means the same.

    Both sides are computed in float64. Biases that a graph adds at run time are one float32 in the layer, and a
    sixth is one, too: hence 1e-6.
    """
    plain = validated(passes.optimise(graph))
    for sizes in SIZES:
        given = feeds(graph, sizes)
        before, after = reference.run(graph, given), reference.run(plain, given)
        assert list(before) == list(after)
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    return plain


def layers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op in RECURRENT_OPS]


def ops(graph: Graph) -> set[str]:
    return {node.op for node in graph.nodes}


def agree_with_kernels(graph: Graph, sizes: dict[str, int]) -> None:
    """The compiled model against the float64 oracle of the graph as it was written."""
    given = feeds(graph, sizes, 1)
    expected, found = reference.run(graph, given), fastlstm.Model(graph).run(given)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


cells = pytest.mark.parametrize("cell", CELLS.values(), ids=list(CELLS))


def expect(layer: Node, cell: Cell) -> None:
    assert layer.op == cell.op
    for name, value in cell.attrs.items():
        assert layer.attrs[name] == value


@cells
def test_a_single_step_is_a_layer_over_one_step(cell: Cell) -> None:
    graph = one_step(cell)
    plain = optimised(graph)
    (layer,) = layers(plain)
    expect(layer, cell)
    assert ops(plain) <= {cell.op, "Dense", "Squeeze", "Unsqueeze"}
    agree_with_kernels(graph, {"batch": 3})


@cells
def test_a_loop_over_frames_is_a_layer(cell: Cell) -> None:
    graph = looped([cell])
    plain = optimised(graph)
    (layer,) = layers(plain)
    expect(layer, cell)
    assert ops(plain) <= {cell.op, "Squeeze"}
    agree_with_kernels(graph, {"batch": 2, "time": 9})


@cells
@pytest.mark.parametrize("backwards", [False, True], ids=["forward", "backwards"])
def test_a_scan_is_a_layer(cell: Cell, backwards: bool) -> None:
    plain = optimised(scanned(cell, backwards=backwards))
    (layer,) = layers(plain)
    expect(layer, cell)
    assert layer.attrs["directions"] == ["reverse" if backwards else "forward"]
    assert ops(plain) <= {cell.op, "Transpose", "Squeeze", "Unsqueeze"}


@cells
@pytest.mark.parametrize("folded", [False, True], ids=["any batch", "zeros folded"])
def test_steps_unrolled_over_time_are_one_layer(cell: Cell, folded: bool) -> None:
    graph = unrolled([cell], folded=folded)
    plain = optimised(graph)
    (layer,) = layers(plain)
    expect(layer, cell)
    assert ops(plain) <= {cell.op, "Transpose", "Gather", "Squeeze"}
    assert "over 4 time steps" in plain.notes[0]
    agree_with_kernels(graph, {"batch": 2})


def test_unrolled_layers_on_one_another_and_backwards() -> None:
    wide = Cell("GRU", gru, 3, 1)
    wide.w = wide.w[np.arange(H) % FEATURES]
    for backwards in (False, True):
        plain = optimised(unrolled([CELLS["lstm"], wide], backwards=backwards))
        assert [layer.op for layer in layers(plain)] == ["LSTM", "GRU"]
        assert {layer.attrs["directions"][0] for layer in layers(plain)} == {"reverse" if backwards else "forward"}
        assert ops(plain) <= {"LSTM", "GRU", "Transpose", "Gather", "Squeeze"}


def test_the_weights_are_the_cells() -> None:
    cell = CELLS["lstm in another order"]
    (layer,) = layers(plain := passes.optimise(looped([cell])))
    picked = np.concatenate([np.arange(H) + "ofig".index(gate) * H for gate in "ifgo"])
    found = [plain.constants[layer.input(i)][0] for i in (1, 2, 3)]
    for array, expected in zip(found, (cell.w.T, cell.r.T, cell.b), strict=True):
        np.testing.assert_array_equal(array, expected[picked])
    assert layer.attrs["activations"] == [[["Sigmoid", None, None], ["Tanh", None, None], ["Tanh", None, None]]]
    assert layer.name == "while"


@cells
@pytest.mark.parametrize("mask", ["repeat", "zero"])
def test_masked_loops_are_layers_with_a_mask(cell: Cell, mask: str) -> None:
    graph = looped([cell], mask=mask)
    plain = optimised(graph)
    (layer,) = layers(plain)
    assert layer.input(5)
    assert "Loop" not in ops(plain)
    assert ("Where" in ops(plain)) == (mask == "zero")
    agree_with_kernels(graph, {"batch": 3, "time": 7})


def test_a_loop_that_reads_its_frames_from_the_end_runs_in_reverse() -> None:
    for mask in ("", "repeat"):
        plain = optimised(looped([CELLS["gru"]], backwards=True, mask=mask))
        (layer,) = layers(plain)
        assert layer.attrs["directions"] == ["reverse"]
        assert "Loop" not in ops(plain)


def test_several_cells_in_one_loop_are_layers_on_one_another() -> None:
    wide = Cell("GRU", gru, 3, 1)
    wide.w = wide.w[np.arange(H) % FEATURES]
    plain = optimised(looped([CELLS["lstm"], wide]))
    assert [layer.op for layer in layers(plain)] == ["LSTM", "GRU"]
    assert ops(plain) <= {"LSTM", "GRU", "Squeeze"}


def test_recognised_layers_stream() -> None:
    graph = looped([CELLS["gru"]])
    graph = graph.replace(outputs=graph.outputs[:1])
    x = feeds(graph, {"batch": 1, "time": 12})["x"]
    stream = fastlstm.Model(graph).stream()
    whole = fastlstm.Model(graph).run({"x": x})["y"]
    np.testing.assert_array_equal(np.stack([stream.step(frame) for frame in x[:, 0]]), whole[:, 0])


def test_long_chains_are_no_burden() -> None:
    """200 steps of an LSTM, and 400 residual layers in which there is no cell at all."""
    graph = unrolled([CELLS["lstm"]], steps=200, folded=False)
    assert [layer.op for layer in layers(passes.optimise(graph))] == ["LSTM"]
    at = Writer()
    value = "x"
    for _ in range(400):
        value = at("Add", value, at("Tanh", at("MatMul", value, np.eye(FEATURES))))
    specs = (TensorSpec("x", ("batch", FEATURES)),)
    deep = validated(Graph(specs, (TensorSpec(value, ("batch", FEATURES)),), tuple(at.nodes), at.constants))
    assert not layers(passes.optimise(deep))


def lstm_of_gemms(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    """As PyTorch's exporter writes ``nn.Linear``: all steps read the same weights."""
    at.constants.update(W=cell.w.T, b=cell.b, R=cell.r.T, b2=cell.b2)
    products = at("Gemm", x, "W", "b", transB=1), at("Gemm", h, "R", "b2", transB=1)
    i, f, g, o = gates(at, at("Add", *products), 4)
    new = at("Add", at("Mul", at("Sigmoid", f), c), at("Mul", at("Sigmoid", i), at("Tanh", g)))
    return [at("Mul", at("Sigmoid", o), at("Tanh", new)), new]


def test_more_steps_take_no_more_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are transposed, made comparable and put together once: 30 steps of 256 units took 7 s to load."""
    counts: dict[str, int] = {}

    def counted(owner: Any, name: str, size: Callable[..., int]) -> None:
        inner = getattr(owner, name)

        def call(*given: Any) -> Any:
            counts[name] = counts.get(name, 0) + size(*given)
            return inner(*given)

        monkeypatch.setattr(owner, name, call)

    counted(vectors, "_digest_of_numbers", lambda array: array.size if array.ndim == 2 else 0)
    counted(fuse, "_matrix", lambda weight, *_: weight.size)
    counted(cells_found._Sorter, "_matrices", lambda *_: 1)
    found = []
    for steps in (8, 16):
        counts.clear()
        assert len(layers(passes.optimise(unrolled([Cell("LSTM", lstm_of_gemms, 4, 2)], steps)))) == 1
        found.append(dict(counts))
    assert found[0] == found[1]


def lstm_of_transposed(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    """``x @ w.t()``, as PyTorch writes it: a Transpose of the same weights at every step."""
    at.constants.update(W=cell.w.T, b=cell.b, R=cell.r.T)
    products = (at("MatMul", v, at("Transpose", w, perm=[1, 0])) for v, w in ((x, "W"), (h, "R")))
    i, f, g, o = gates(at, at("Add", at("Add", *products), "b"), 4)
    new = at("Add", at("Mul", at("Sigmoid", f), c), at("Mul", at("Sigmoid", i), at("Tanh", g)))
    return [at("Mul", at("Sigmoid", o), at("Tanh", new)), new]


def test_weights_that_every_step_transposes_are_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies for 28 steps of 256 units took all that may be folded, and the steps behind stayed as written."""
    monkeypatch.setattr(rewrite, "_BUDGET", 4 * 4 * H * (FEATURES + H) * 3)  # bytes of three copies
    monkeypatch.setattr(rewrite, "_COPIES", 0)
    plain = passes.optimise(unrolled([Cell("LSTM", lstm_of_transposed, 4, 2)], 8))
    assert ops(plain) == {"LSTM", "Transpose", "Gather", "Squeeze"}


def test_a_projection_between_two_layers_that_join_input_and_state() -> None:
    """What is joined with the state is a sum of products, which has a name of its own."""
    at, first, second = Writer(), CELLS["lstm with one product"], Cell("LSTM", lstm_joined, 4, 2)
    down = np.random.default_rng(6).standard_normal((H, FEATURES)).astype(np.float32)
    zeros = at.constant(np.zeros((2, H)))
    states, shown = [[zeros, zeros], [zeros, zeros]], []
    for t in range(4):
        frame = at("Squeeze", at("Slice", "x", at.ints(t), at.ints(t + 1), at.ints(1)), at.ints(1))
        states[0] = first(at, frame, *states[0])
        states[1] = second(at, at("MatMul", states[0][0], down), *states[1])
        shown.append(at("Unsqueeze", states[1][0], at.ints(1)))
    y = at("Concat", *shown, axis=1)
    specs, outputs = (TensorSpec("x", (2, 4, FEATURES)),), (TensorSpec(y, ("?",)),)
    graph = validated(Graph(specs, outputs, tuple(at.nodes), at.constants))
    assert [layer.op for layer in layers(optimised(graph))] == ["LSTM", "LSTM"]
    agree_with_kernels(graph, {})


# What looks like a cell and is none stays as it is written


def changed(cell: Cell, change: Callable[[Writer, str, list[str], list[str]], list[str]]) -> Callable[..., list[str]]:
    """Return a step that does something more with what the cell's step gives."""

    def step(_: Cell, at: Writer, x: str, *states: str) -> list[str]:
        return change(at, x, list(states), cell(at, x, *states))

    return step


def two_gates_swapped(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    """The candidate meets the old cell state, the forget gate nothing of it."""
    i, f, g, o = gates(at, at("Add", dense(at, x, cell.w, cell.b), dense(at, h, cell.r)), 4)
    i, f, g, o = at("Sigmoid", i), at("Sigmoid", f), at("Tanh", g), at("Sigmoid", o)
    new = at("Add", at("Mul", g, c), at("Mul", i, f))
    return [at("Mul", o, at("Tanh", new)), new]


def one_gate_of_another_kind(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    i, f, g, o = gates(at, at("Add", dense(at, x, cell.w, cell.b), dense(at, h, cell.r)), 4)
    new = at("Add", at("Mul", at("HardSigmoid", f), c), at("Mul", at("Sigmoid", i), at("Tanh", g)))
    return [at("Mul", at("Sigmoid", o), at("Tanh", new)), new]


def an_unknown_function(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    i, f, g, o = gates(at, at("Add", dense(at, x, cell.w, cell.b), dense(at, h, cell.r)), 4)
    new = at("Add", at("Mul", at("Sigmoid", f), c), at("Mul", at("Sigmoid", i), at("Sin", g)))
    return [at("Mul", at("Sigmoid", o), at("Tanh", new)), new]


def the_output_gate_sees_the_old_cell_state(cell: Cell, at: Writer, x: str, h: str, c: str) -> list[str]:
    i, f, g, o = gates(at, at("Add", dense(at, x, cell.w, cell.b), dense(at, h, cell.r)), 4)
    new = at("Add", at("Mul", at("Sigmoid", f), c), at("Mul", at("Sigmoid", i), at("Tanh", g)))
    return [at("Mul", at("Sigmoid", at("Add", o, at("Mul", c, cell.b2[:H]))), at("Tanh", new)), new]


def the_reset_gate_meets_the_input_too(cell: Cell, at: Writer, x: str, h: str) -> list[str]:
    r, z, n = gates(at, dense(at, x, cell.w, cell.b), 3)
    hr, hz, hn = gates(at, dense(at, h, cell.r, cell.b2), 3)
    r, z = at("Sigmoid", at("Add", r, hr)), at("Sigmoid", at("Add", z, hz))
    n = at("Tanh", at("Mul", r, at("Add", n, hn)))
    return [at("Add", n, at("Mul", at("Sub", h, n), z))]


def the_gates_of_a_gru_differ(cell: Cell, at: Writer, x: str, h: str) -> list[str]:
    r, z, n = gates(at, dense(at, x, cell.w, cell.b), 3)
    hr, hz, hn = gates(at, dense(at, h, cell.r, cell.b2), 3)
    r, z = at("HardSigmoid", at("Add", r, hr)), at("Sigmoid", at("Add", z, hz))
    n = at("Tanh", at("Add", n, at("Mul", r, hn)))
    return [at("Add", n, at("Mul", at("Sub", h, n), z))]


NEAR: dict[str, tuple[Cell, Callable[..., list[str]]]] = {
    "two gates swapped": (CELLS["lstm"], two_gates_swapped),
    "one gate of another kind": (CELLS["lstm"], one_gate_of_another_kind),
    "an unknown function": (CELLS["lstm"], an_unknown_function),
    "a peephole from the wrong state": (CELLS["lstm"], the_output_gate_sees_the_old_cell_state),
    "reset of the input": (CELLS["gru"], the_reset_gate_meets_the_input_too),
    "different gates": (CELLS["gru"], the_gates_of_a_gru_differ),
    "an extra term": (CELLS["gru"], changed(CELLS["gru"], lambda at, x, old, new: [at("Add", new[0], old[0])])),
    "a factor": (CELLS["gru"], changed(CELLS["gru"], lambda at, x, old, new: [at("Mul", new[0], 0.9)])),
    "a square": (CELLS["rnn"], changed(CELLS["rnn"], lambda at, x, old, new: [at("Mul", new[0], new[0])])),
    "states exchanged": (CELLS["lstm"], changed(CELLS["lstm"], lambda at, x, old, new: new[::-1])),
    "the old cell state kept": (CELLS["lstm"], changed(CELLS["lstm"], lambda at, x, old, new: [new[0], old[1]])),
    "no memory": (CELLS["rnn"], lambda cell, at, x, h: [at("Tanh", dense(at, x, cell.w, cell.b))]),
}


@pytest.mark.parametrize(("cell", "step"), NEAR.values(), ids=list(NEAR))
def test_near_misses_in_loops_stay_loops(cell: Cell, step: Callable[..., list[str]]) -> None:
    graph = looped([cell], step=step)
    plain = optimised(graph)
    assert not layers(plain)
    assert "Loop" in ops(plain)
    agree_with_kernels(graph, {"batch": 2, "time": 4})


@pytest.mark.parametrize(
    ("cell", "step"), [v for k, v in NEAR.items() if k not in ("states exchanged", "the old cell state kept")]
)
def test_near_misses_unrolled_are_no_layer_over_time(cell: Cell, step: Callable[..., list[str]]) -> None:
    near = Cell(cell.op, step, 4 if cell.op == "LSTM" else 3 if cell.op == "GRU" else 1, cell.states)
    graph = unrolled([near])
    plain = optimised(graph)
    assert not any("over 4 time steps" in note for note in plain.notes)
    agree_with_kernels(graph, {})


def test_a_loop_that_runs_on_or_stops_early_stays_a_loop() -> None:
    assert "Loop" in ops(optimised(looped([CELLS["gru"]], trips=-1)))
    graph = looped([CELLS["gru"]])
    (loop,) = (node for node in graph.nodes if node.op == "Loop")
    body: Graph = loop.attrs["body"]
    extra = (
        Node("ReduceMax", (body.outputs[2].name,), ("b.most",), {"keepdims": 0}),
        Node("Less", ("b.most", "b.bound"), ("b.small",)),
        Node("And", (body.outputs[0].name, "b.small"), ("b.both",)),
    )
    early = body.replace(
        nodes=(*body.nodes, *extra),
        outputs=(TensorSpec("b.both", (), "bool"), *body.outputs[1:]),
        constants={**body.constants, "b.bound": np.float32(0.3)},
    )
    nodes = tuple(Node(n.op, n.inputs, n.outputs, {"body": early}, n.name) if n is loop else n for n in graph.nodes)
    assert "Loop" in ops(optimised(graph.replace(nodes=nodes)))


def test_a_state_that_is_used_elsewhere_is_still_there() -> None:
    """Every step's cell state is an output: the layer gives only the last one, the rest is computed as written."""
    at = Writer()
    states, shown = [at.constant(np.zeros((2, H)))] * 2, []
    for t in range(3):
        frame = at("Gather", "x", at.constant(t, np.int64), axis=1)
        states = CELLS["lstm"](at, frame, *states)
        shown += states
    outputs = tuple(TensorSpec(name, (2, H)) for name in shown)
    graph = validated(Graph((TensorSpec("x", (2, 3, FEATURES)),), outputs, tuple(at.nodes), at.constants))
    optimised(graph)
    agree_with_kernels(graph, {})


def test_steps_with_weights_of_their_own_are_layers_of_their_own() -> None:
    other = Cell("LSTM", lstm, 4, 2)
    other.r = other.r + np.float32(0.5)
    at = Writer()
    states = ["h", "c"]
    for cell in (CELLS["lstm"], CELLS["lstm"], other, other):
        states = cell(at, "x", *states)
    specs = (TensorSpec("x", ("batch", FEATURES)), *(TensorSpec(s, ("batch", H)) for s in "hc"))
    outputs = tuple(TensorSpec(name, ("batch", H)) for name in states)
    plain = optimised(validated(Graph(specs, outputs, tuple(at.nodes), at.constants)))
    assert len(layers(plain)) == 2


def test_a_decoder_that_feeds_itself_is_a_layer_a_step() -> None:
    at = Writer()
    back = np.random.default_rng(5).standard_normal((H, FEATURES)).astype(np.float32)
    frame, states, shown = "x", ["h", "c"], []
    for _ in range(3):
        states = CELLS["lstm"](at, frame, *states)
        frame = at("MatMul", states[0], back)
        shown.append(frame)
    specs = (TensorSpec("x", ("batch", FEATURES)), *(TensorSpec(s, ("batch", H)) for s in "hc"))
    outputs = tuple(TensorSpec(name, ("batch", FEATURES)) for name in shown)
    graph = validated(Graph(specs, outputs, tuple(at.nodes), at.constants))
    assert len(layers(optimised(graph))) == 3
    agree_with_kernels(graph, {"batch": 2})


def test_dense_layers_of_two_inputs_are_no_recurrent_layer() -> None:
    """tanh(a W + b R) is a step of a plain layer only if the state goes in and comes out."""
    at = Writer()
    hidden = CELLS["rnn"](at, "x", "h")[0]
    y = at("MatMul", hidden, np.eye(H, 2))
    specs = (TensorSpec("x", ("batch", FEATURES)), TensorSpec("h", ("batch", H)))
    for outputs in ((y,), (hidden,)):
        specs_out = tuple(TensorSpec(name, ("batch", "?")) for name in outputs)
        assert not layers(optimised(validated(Graph(specs, specs_out, tuple(at.nodes), at.constants))))


def test_cells_in_the_body_of_another_loop_run_as_kernels() -> None:
    """The loop adds something to the state that no layer does; its cell is a layer over one step all the same."""
    step = changed(CELLS["lstm"], lambda at, x, old, new: [at("Add", new[0], at("ReduceMax", x, at.ints(1))), new[1]])
    plain = optimised(looped([CELLS["lstm"]], step=step))
    (loop,) = (node for node in plain.nodes if node.op == "Loop")
    assert [layer.op for layer in layers(loop.attrs["body"])] == ["LSTM"]


def test_time_length_that_is_not_known_is_not_assumed() -> None:
    """Three steps are read of however many there are; a fourth changes nothing, a missing third is an error."""
    graph = unrolled([CELLS["gru"]], steps=3)
    graph = graph.replace(inputs=(TensorSpec("x", (2, "time", FEATURES)),))
    (layer,) = layers(passes.optimise(graph))
    assert layer.op == "GRU"
    agree_with_kernels(graph, {"time": 5})
    with pytest.raises(fastlstm.FastLSTMError):
        fastlstm.Model(graph).run({"x": np.zeros((2, 2, FEATURES), np.float32)})


# The algebra


def value_of(vector: Vector, values: dict[str, Array]) -> Array:
    """Compute a formula, by the definitions in `fastlstm.passes.vectors`."""

    def atom(a: Any) -> Array:
        if isinstance(a, Leaf):
            return values[a.value][..., a.start : a.start + a.width]
        inner = value_of(a.of, values)
        return inner if isinstance(a, Block) else reference.activation(*a.function)(inner)

    total = np.zeros((values["x"].shape[0], vector.width)) + vector.bias
    for monomial, coefficient in vector.terms.items():
        product: Any = 1.0
        for a in monomial:
            product = product * atom(a)
        total = total + (product @ coefficient if coefficient.ndim == 2 else product * coefficient)
    return total


def random_formula(random: np.random.Generator) -> Graph:
    """Ten to twenty random operators over x, h (wide) and m (a boolean a row)."""
    at = Writer()
    wide = ["x", "h"]
    for _ in range(int(random.integers(10, 20))):
        a, b = (wide[int(i)] for i in random.integers(0, len(wide), 2))
        row = random.standard_normal(H).astype(np.float32)
        kind = random.integers(0, 11)
        if kind < 3:
            new = at(("Add", "Sub", "Mul")[kind], a, b)
        elif kind == 3:
            new = at(str(random.choice(["Sigmoid", "Tanh", "Relu", "HardSigmoid", "Softsign"])), a)
        elif kind == 4:
            new = at("Add", at("MatMul", a, random.standard_normal((H, H))), row)
        elif kind == 5:
            new = at("Mul", a, row)
        elif kind == 6:
            new = at("Sub", row, a)
        elif kind == 7:
            first, second = gates(at, a, 2)
            new = at("Concat", second, first, axis=-1)
        elif kind == 8:
            new = at("Clip", a, at.constant(0.0), at.constant(2.0))
        elif kind == 9:
            new = at("Where", "m", a, b)
        else:
            both = at("Concat", a, b, axis=1)
            new = at(
                "Slice",
                at("MatMul", both, random.standard_normal((2 * H, 2 * H))),
                at.ints(H),
                at.ints(2 * H),
                at.ints(1),
            )
        wide.append(new)
    specs = (TensorSpec("x", ("batch", H)), TensorSpec("h", ("batch", H)), TensorSpec("m", ("batch", 1), "bool"))
    return Graph(specs, tuple(TensorSpec(n, ("batch", H)) for n in wide[2:]), tuple(at.nodes), at.constants)


@pytest.mark.parametrize("seed", range(40))
def test_formulas_mean_what_the_graph_computes(seed: int) -> None:
    """Every formula, computed by the definition of its terms, is the value that the graph computes: the same real
    number, with sums in another order, hence 1e-9 of the largest value."""
    graph = random_formula(np.random.default_rng(seed))
    plain = graph.replace(nodes=tuple(_dense_for_matmul(node, graph) for node in graph.nodes))
    formulas = Formulas(plain, shapes.infer(plain))
    given = {
        name: a if a.dtype == bool else a.astype(np.float64) for name, a in feeds(graph, {"batch": 3}, seed).items()
    }
    shown = [v for node in plain.nodes for v in node.outputs]
    every = plain.replace(outputs=tuple(TensorSpec(name, ("...",)) for name in shown))
    values = {**given, **reference.run(every, given)}
    found = 0
    for name in shown:
        row = formulas.of(name)
        parts = [value_of(vector, values) for vector in row or ()]
        for part in [np.concatenate(parts, axis=-1)] if parts else []:
            scale = 1 + np.max(abs(values[name]))
            np.testing.assert_allclose(part / scale, values[name] / scale, rtol=0, atol=1e-9)
            found += 1
        if name in formulas.meanings:
            meaning = value_of(formulas.meanings[name], values)
            scale = 1 + np.max(abs(values[name]))
            np.testing.assert_allclose(meaning / scale, values[name] / scale, rtol=0, atol=1e-9)
    assert found >= len(plain.nodes) // 2


def _dense_for_matmul(node: Node, graph: Graph) -> Node:
    is_product = node.op == "MatMul" and node.inputs[1] in graph.constants
    return Node("Dense", node.inputs, node.outputs) if is_product else node


def test_equal_formulas_in_different_spellings_have_equal_digests() -> None:
    x, h = (Vector.of_atom(Leaf(H, name, H)) for name in "xh")
    z = Vector.of_atom(Act(H, "Sigmoid", None, None, x))
    one = Vector.constant(np.ones(1), H)
    left = add(multiply(add(one, z, -1.0), h), multiply(z, x))
    right = add(h, multiply(z, add(x, h, -1.0)))
    assert left is not None
    assert right is not None
    assert left.key == right.key
    assert left.columns(0, 2).key == right.columns(0, 2).key != left.columns(1, 3).key
