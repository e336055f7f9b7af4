"""int16 and int8 weights: no sum overflows, the same bits however computed, errors within their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlstm
from fastlstm.commands.precision import fastest_within
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.files import fileformat
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.graph.quantise import SMALL, precisions, quantise, quantised_rows
from fastlstm.lowering.summary import parameters_of
from fastlstm.model import Model
from fastlstm.operators import reference
from fastlstm.operators.validation import validated
from fastlstm.reporting import benchmark
from fastlstm.runtime import team
from fastlstm.target.limits import BLOCK, BYTE_LIMIT, SUM_LIMIT, VALUE_LIMIT

Array = npt.NDArray[Any]


def dense(weight: Array, bias: Array | None = None) -> Graph:
    """Return a graph with a dense layer beside a small LSTM: without one it would run through NumPy."""
    k, columns = weight.shape
    rng = np.random.default_rng(5)
    constants = {
        "w_ih": rng.uniform(-0.2, 0.2, (1, 4 * 4, k)).astype(np.float32),
        "w_hh": rng.uniform(-0.2, 0.2, (1, 4 * 4, 4)).astype(np.float32),
        "weight": weight.astype(np.float32),
    }
    attrs = {
        "hidden_size": 4,
        "directions": ["forward"],
        "activations": [[["Sigmoid", None, None], ["Tanh", None, None], ["Tanh", None, None]]],
        "clip": None,
        "input_forget": 0,
    }
    inputs: tuple[str, ...] = ("x", "weight")
    if bias is not None:
        constants["bias"] = bias.astype(np.float32)
        inputs += ("bias",)
    nodes = (Node("LSTM", ("x", "w_ih", "w_hh"), ("y",), attrs, "lstm"), Node("Dense", inputs, ("out",), {}, "dense"))
    outputs = (TensorSpec("y", ("t", "b", 4)), TensorSpec("out", ("t", "b", columns)))
    return Graph((TensorSpec("x", ("t", "b", k)),), outputs, nodes, constants)


def exact_rows(x: Array) -> tuple[Array, Array]:
    """The kernel's quantisation of rows, in NumPy: integers and float32 scales."""
    top = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30)).astype(np.float64)
    by = (VALUE_LIMIT / top).astype(np.float32)
    return np.rint(x * by).astype(np.int64), (top / VALUE_LIMIT).astype(np.float32)


def exact_dense(x: Array, integers: Array, scale: Array) -> Array:
    """The product as it is defined: exact sums in blocks of k, then one fused multiply-add each."""
    values, own = exact_rows(x)
    total = np.zeros((*x.shape[:-1], integers.shape[1]), np.float32)
    for k in range(0, integers.shape[0], BLOCK):
        sums = values[..., k : k + BLOCK] @ integers[k : k + BLOCK].astype(np.int64)
        assert np.abs(sums).max(initial=0) < 1 << 31
        wide = sums.astype(np.float32).astype(np.float64) * (own * scale).astype(np.float64)
        total = (total + wide).astype(np.float32)
    return total


def make(op: str, size: int, width: int, precision: str, **options: Any) -> Any:
    rng = np.random.default_rng(size)
    gates, bound = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], size**-0.5
    out = options.pop("projected", 0)
    if out:
        options["weight_hr"] = rng.uniform(-bound, bound, (out, size))
    weights = [rng.uniform(-bound, bound, (gates * size, k)) for k in (width, out or size)]
    bias = rng.uniform(-bound, bound, (4 if op == "GRU" else gates) * size)
    return getattr(fastlstm, op)(*weights, bias, precision=precision, **options)


LAYERS = [
    ("LSTM", {}),
    ("LSTM", {"projected": 43}),
    ("GRU", {}),
    ("GRU", {"reset_after": 0}),
    ("RNN", {}),
]


@settings(max_examples=60, deadline=None)
@given(st.integers(41, 300), st.integers(41, 70), st.sampled_from([8, 16]), st.integers(0, 2**32 - 1))
def test_a_blocks_sum_never_passes_32_bits(k: int, rows: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, k)) * 10.0 ** rng.uniform(-30, 30, (rows, 1))
    weight[0], weight[1, rng.integers(k)], weight[2] = 0, 1e35, 0.7
    weight = weight.astype(np.float32)
    integers, scale = quantised_rows(weight, bits)
    worst = max(np.abs(integers[:, i : i + BLOCK].astype(np.int64)).sum(1).max() for i in range(0, k, BLOCK))
    assert worst * VALUE_LIMIT <= SUM_LIMIT
    assert np.abs(integers.astype(np.int64)).max() <= 2 ** (bits - 1) - 1
    off = np.abs(integers * scale[:, None].astype(np.float64) - weight)
    assert (off <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [41, BLOCK, 2 * BLOCK + 3])
def test_the_largest_sum_there_can_be_does_not_wrap_round(k: int, sign: int) -> None:
    # Weights all equal: the bound on a block's sum is reached; inputs all at their row's largest magnitude.
    graph = quantise(dense(np.full((k, 64), sign, np.float32)), "int16")
    block = graph.constants[graph.nodes[1].input(1)][:BLOCK].astype(np.int64)
    assert k < BLOCK or abs(block.sum(0)[0]) * VALUE_LIMIT > 0.99 * (1 << 31)
    x = np.full((2, 3, k), 3.0, np.float32)
    np.testing.assert_allclose(Model(graph).run({"x": x})["out"], 3.0 * sign * k, rtol=1e-3)


@pytest.mark.parametrize("k", [133_000, 140_000])
def test_a_sum_of_bytes_over_all_of_k_never_passes_32_bits(k: int) -> None:
    # With 127 * 127 a product, some 133,144 of them fill 32 bits: a longer row gets a larger scale.
    integers, scale = quantised_rows(np.ones((1, k), np.float32), 8, recurrent=True)
    assert BYTE_LIMIT * np.abs(integers.astype(np.int64)).sum() <= SUM_LIMIT
    assert (integers.max() == 127) == (k < 133_144)
    np.testing.assert_allclose(integers * scale, 1.0, atol=0.005)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_outputs_at_their_edge_meet_the_largest_bytes(op: str, sign: int) -> None:
    # An open gate and a full state: h is 1 in every unit, and all recurrent weights are equal.
    size, gates = 300, {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    w_ih = np.zeros((gates * size, 41), np.float32)
    w_hh = np.full((gates * size, size), sign / size, np.float32)
    h = np.ones((1, 2, size), np.float32)
    state = (h, h) if op == "LSTM" else h
    x = np.zeros((3, 2, 41), np.float32)
    y, expected = (getattr(fastlstm, op)(w_ih, w_hh, precision=p)(x, state)[0] for p in ("int8", "float32"))
    np.testing.assert_allclose(y, expected, atol=5e-3)


@pytest.mark.parametrize("size", [83, 300])
def test_the_largest_bytes_that_others_write_are_multiplied_exactly(size: int) -> None:
    # -128 has no counterpart of the other sign, and two of its products with 127 are the largest sum of a pair.
    graph = make("RNN", size, 41, "int8")._model(True, False).plan.graph
    weight, scale = graph.nodes[0].input(2), graph.nodes[0].input(11)
    rng = np.random.default_rng(8)
    rows = np.where(np.arange(size)[:, None] % 3, -128, rng.choice([-128, 127], (size, size)))
    changed = {name: np.zeros_like(array) for name, array in graph.constants.items()}
    changed[weight] = rows[None].astype(np.int8)
    changed[scale] = np.full((1, size), 2.0**-15, np.float32)
    h = np.stack([np.ones(size), -np.ones(size), rng.choice([-1, 1], size)])
    x, state = (spec.name for spec in graph.inputs)
    given = {x: np.zeros((1, 3, 41), np.float32), state: h[None].astype(np.float32)}
    y = Model(graph.replace(constants=changed)).run(given)[graph.outputs[0].name]
    np.testing.assert_allclose(y[0], np.tanh(h @ rows.T * 2.0**-15), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", ["int16", "int8"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_an_initial_state_past_one_is_scaled_by_its_largest_magnitude(op: str, precision: str) -> None:
    rng = np.random.default_rng(4)
    h = rng.uniform(-1, 1, (1, 3, 64)).astype(np.float32)
    h[0, 1] *= 1000
    states = (h, np.zeros_like(h)) if op == "LSTM" else h
    x = np.zeros((2, 3, 45), np.float32)
    y, expected = (make(op, 64, 45, p)(x, states)[0] for p in (precision, "float32"))
    tolerance = 1e-3 if precision == "int16" else 2e-2
    np.testing.assert_allclose(y[:, [0, 2]], expected[:, [0, 2]], atol=tolerance)
    if op != "GRU":  # a GRU keeps a share of its state, and with it of the state's error
        np.testing.assert_allclose(y[0, 1], expected[0, 1], atol=1.0)
        assert np.abs(y[0, 1] - expected[0, 1]).mean() < 0.1


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([41, 64, 255, 256, 257, 300]), st.integers(1, 3), st.integers(1, 7), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_a_product_is_the_exact_integer_sum(k: int, steps: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = quantise(dense(rng.standard_normal((k, 41))), "int16")
    x = (rng.standard_normal((steps, batch, k)) * 10.0 ** rng.integers(-20, 20)).astype(np.float32)
    node = graph.nodes[1]
    expected = exact_dense(x, graph.constants[node.input(1)], graph.constants[node.input(3)])
    # A sum is rounded once a block, either way: a few units in the last place of the largest part.
    found = Model(graph).run({"x": x})["out"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([41, 256, 300]), st.sampled_from(["int16", "int8"]), st.integers(0, 2**32 - 1))
def test_a_product_is_as_near_to_the_float64_one_as_its_scales_say(k: int, precision: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((k, 41)).astype(np.float32)
    graph = quantise(dense(weight), precision)
    x = rng.standard_normal((2, 3, k)).astype(np.float32)
    scale = graph.constants[graph.nodes[1].input(3)].astype(np.float64)
    # Half a unit of each factor times the other, and float32's rounding of the sums.
    value = np.abs(x).max(-1, keepdims=True) / VALUE_LIMIT
    bound = 0.51 * (np.abs(x).sum(-1, keepdims=True) * scale + value * np.abs(weight).sum(0) + k * value * scale) + 1e-4
    error = np.abs(Model(graph).run({"x": x})["out"] - x.astype(np.float64) @ weight)
    assert (error <= bound).all()


@pytest.mark.parametrize(("op", "options"), LAYERS)
@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_the_bits_are_the_same_whole_in_chunks_and_alone(op: str, options: dict[str, Any], precision: str) -> None:
    layer = make(op, 67, 45, precision, **options)
    x = np.random.default_rng(0).standard_normal((12, 5, 45)).astype(np.float32)
    whole, state = layer(x)
    for b in range(5):
        np.testing.assert_array_equal(layer(x[:, b : b + 1])[0], whole[:, b : b + 1])
    for size in (1, 5):
        state, parts = None, []
        for t in range(0, 12, size):
            y, state = layer(x[t : t + size], state)
            parts.append(y)
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.skipif(not team.available(), reason="teams need POSIX threads")
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_threads_and_pools_give_the_same_bits(op: str, precision: str) -> None:
    alone, shared = (make(op, 200, 45, precision, threads=threads) for threads in (1, 2))
    x = np.random.default_rng(7).standard_normal((9, 3, 45)).astype(np.float32)
    whole = alone(x)[0]
    assert shared._model(False, False).plan.parts[0].workers(3) == 2
    np.testing.assert_array_equal(shared(x)[0], whole)
    pool = alone._model(False, False).streams(capacity=3)
    numbers = [pool.open() for _ in range(3)]
    steps = np.stack([pool.step(numbers, frames) for frames in x])
    np.testing.assert_array_equal(steps, whole)


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_errors_stay_small_against_float64(op: str, options: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3, 64)).astype(np.float32)
    exact = make(op, 96, 64, "float32", **options)
    expected = reference.run(exact._model(False, False).graph, {"x": x})["output"]
    # Measured 2e-4 and 4e-3 at most (RNN); a digit lost would be ten times that.
    for precision, most in (("int16", 5e-4), ("int8", 8e-3)):
        assert np.abs(make(op, 96, 64, precision, **options)(x)[0] - expected).max() < most


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_a_nan_stays_in_its_row_and_an_infinity_saturates(precision: str) -> None:
    layer, exact = make("LSTM", 64, 50, precision), make("LSTM", 64, 50, "float32")
    x = np.random.default_rng(1).standard_normal((6, 5, 50)).astype(np.float32)
    clean = layer(x)[0]
    x[2, 1, 7], x[3, 2, 9], x[1, 3] = np.nan, np.inf, 1e30
    y = layer(x)[0]
    assert np.isnan(y[2:, 1]).all()
    assert not np.isnan(y[:2, 1]).any()
    np.testing.assert_array_equal(y[:, [0, 4]], clean[:, [0, 4]])
    for row in (2, 3):  # the gates are fully open or shut, as in float32
        np.testing.assert_allclose(y[:, row], exact(x)[0][:, row], atol=1e-2)


@pytest.mark.parametrize("precision", ["int16", "int8"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_extreme_inputs_stay_in_their_rows_and_in_range(op: str, precision: str) -> None:
    layer, exact = make(op, 80, 50, precision), make(op, 80, 50, "float32")
    x = np.random.default_rng(1).standard_normal((5, 6, 50)).astype(np.float32)
    clean = layer(x)[0]
    x[2, 1, 7], x[1, 2], x[1, 3], x[1, 4, 3] = np.nan, 1e30, 0.0, -np.inf
    y, expected = layer(x)[0], exact(x)[0]
    assert np.isnan(y[2:, 1]).all()
    np.testing.assert_array_equal(y[:, [0, 5]], clean[:, [0, 5]])
    others = [2, 3, 4]
    assert np.isfinite(y[:, others]).all()
    assert np.abs(y).max(where=np.isfinite(y), initial=0.0) <= 1.0
    np.testing.assert_allclose(y[:, 3], expected[:, 3], atol=2e-2)


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_a_huge_weight_and_an_empty_row_do_no_harm(precision: str) -> None:
    rng = np.random.default_rng(3)
    w_ih, w_hh = (rng.uniform(-0.1, 0.1, (4 * 64, k)).astype(np.float32) for k in (50, 64))
    w_hh[5, 6], w_ih[9, 3] = 1e6, -1e30
    w_hh[11], w_ih[12] = 0, 0
    x = rng.standard_normal((10, 4, 50)).astype(np.float32)
    y, expected = (fastlstm.LSTM(w_ih, w_hh, precision=p)(x)[0] for p in (precision, "float32"))
    assert np.isfinite(y).all()
    touched = np.isin(np.arange(64), (5, 9))
    assert np.abs(y - expected)[0, :, ~touched].max() < 5e-3


def test_small_layers_stay_float32_and_the_model_says_so() -> None:
    layer = make("LSTM", SMALL["LSTM"], 64, "int16")
    model = layer._model(False, False)
    assert any("float32 is as fast" in note for note in model.graph.notes)
    x = np.ones((3, 2, 64), np.float32)
    np.testing.assert_array_equal(layer(x)[0], make("LSTM", SMALL["LSTM"], 64, "float32")(x)[0])


@pytest.mark.skipif(not team.available(), reason="teams need POSIX threads")
def test_many_rows_of_narrow_layers_are_divided_among_threads_with_the_same_bits() -> None:
    x = np.random.default_rng(0).standard_normal((5, 40, 30)).astype(np.float32)
    alone, shared = (make("LSTM", 128, 30, "int8", threads=threads) for threads in (1, 2))
    segment = shared._model(False, False).plan.parts[0]
    assert segment.splits(40)
    assert not segment.splits(8)
    np.testing.assert_array_equal(shared(x)[0], alone(x)[0])


def test_layers_can_differ_and_unknown_ones_are_named() -> None:
    graph = dense(np.ones((64, 64)))
    narrow = Model(graph, precision={"dense": "int16"})
    assert [row["note"] for row in narrow.plan.as_data() if row["step"] == "Dense"] == ["int16"]
    with pytest.raises(InputError, match="no layer 'head'"):
        Model(graph, precision={"head": "int16"})
    with pytest.raises(InputError, match="one of float32, int16, int8"):
        Model(graph, precision="int4")


def test_a_module_s_name_stands_for_its_layers_and_a_longer_name_goes_before_it() -> None:
    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.encoder_2 = torch.nn.LSTM(8, 64, 2), torch.nn.LSTM(64, 64)

        def forward(self, x: torch.Tensor) -> Any:
            return self.encoder_2(self.encoder(x)[0])[0]

    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer, self.head = Outer(), torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.outer(x))

    graph = fastlstm.from_torch(Tagger().eval(), [torch.zeros(3, 2, 8)]).graph

    def chosen(**precision: str) -> dict[str, str]:
        return precisions(Model(graph, precision={k.replace("__", "."): v for k, v in precision.items()}).plan.graph)

    first, second, third = "outer_encoder.l0.y", "outer_encoder.l1.y", "outer_encoder_2.l0.y"
    assert chosen(outer__encoder="int8") == {first: "int8", second: "int8"}
    assert chosen(outer__encoder="int8", outer__encoder__l1="int16") == {first: "int8", second: "int16"}
    assert chosen(outer__encoder_2="int8", head="int16") == {third: "int8", "head": "int16"}


def test_a_layer_is_said_to_have_the_precision_of_its_narrowest_weights() -> None:
    assert precisions(quantise(dense(np.ones((64, 64))), "int8")) == {"dense": "int16"}  # only recurrent ones get 8
    graphs = {p: make("LSTM", 64, 50, p)._model(False, False).plan.graph for p in ("float32", "int16", "int8")}
    found = {p: precisions(graph) for p, graph in graphs.items()}
    assert found == {"float32": {}, "int16": {"lstm": "int16"}, "int8": {"lstm": "int8"}}
    weights = {parameters_of(graph) for graph in graphs.values()}
    assert weights == {4 * 64 * (50 + 64) + graphs["int8"].constants[graphs["int8"].nodes[0].input(3)].size}


def test_of_the_precisions_that_hold_the_fastest_one_here_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make("LSTM", 64, 64, "float32")._model(False, False).graph
    samples = [{"x": np.random.default_rng(0).standard_normal((20, 1, 64)).astype(np.float32)}]
    for seconds, most, wanted in (
        ({"float32": 3.0, "int16": 2.0, "int8": 1.0}, 1e-2, "int8"),
        ({"float32": 3.0, "int16": 2.0, "int8": 1.0}, 5e-4, "int16"),
        ({"float32": 3.0, "int16": 2.0, "int8": 2.5}, 1e-2, "int16"),
        ({"float32": 2.0, "int16": 2.1, "int8": 1.0}, 5e-4, "float32"),
        ({"float32": 2.0, "int16": 1.99, "int8": 1.99}, 1e-2, "float32"),  # within the noise
    ):
        rounds = {name: np.full(3, value) for name, value in seconds.items()}
        monkeypatch.setattr(benchmark, "compare", lambda calls, times=rounds, **_: benchmark.Contest({}, times))
        assert fastest_within(graph, samples, most) == {"lstm": wanted}


@pytest.mark.parametrize(("precision", "share"), [("int16", 0.52), ("int8", 0.4)])
def test_a_file_holds_the_narrow_weights_and_gives_the_same_bits(tmp_path: Path, precision: str, share: float) -> None:
    model = make("LSTM", 96, 96, precision)._model(False, False)
    plain = make("LSTM", 96, 96, "float32")._model(False, False)
    model.save(tmp_path / "narrow.fastlstm")
    plain.save(tmp_path / "plain.fastlstm")
    sizes = [(tmp_path / name).stat().st_size for name in ("narrow.fastlstm", "plain.fastlstm")]
    assert sizes[0] < share * sizes[1]
    x = np.random.default_rng(0).standard_normal((7, 2, 96)).astype(np.float32)
    again = fastlstm.load(tmp_path / "narrow.fastlstm")
    np.testing.assert_array_equal(again.run({"x": x})["output"], model.run({"x": x})["output"])
    stream = again.stream()
    steps = np.stack([stream.step(row) for row in x[:, 0]])
    np.testing.assert_array_equal(steps, model.run({"x": x[:, :1]})["output"][:, 0])
    paths = [tmp_path / f"{name}.fastlstm" for name in ("narrow", "plain")]
    headers = [fileformat._read_header(path, path.read_bytes())[0]["__metadata__"] for path in paths]
    versions = [header["fastlstm.format"] for header in headers]
    assert versions == ["2", "1"]


def test_integer_weights_whose_sums_could_pass_32_bits_are_refused() -> None:
    graph = quantise(dense(np.ones((64, 64))), "int16")
    name = graph.nodes[1].input(1)
    worst = SUM_LIMIT // VALUE_LIMIT // 64  # a row of 64 such weights is just within
    for value, fits in ((worst, True), (32767, False)):
        whole = graph.replace(constants={**graph.constants, name: np.full((64, 64), value, np.int16)})
        if fits:
            validated(whole)
        else:
            with pytest.raises(UnsupportedError, match="sums could pass 32 bits"):
                validated(whole)


def test_integer_weights_without_a_fitting_scale_are_refused() -> None:
    graph = quantise(dense(np.ones((64, 64))), "int16")
    node = graph.nodes[1]
    bare = graph.replace(nodes=(graph.nodes[0], Node("Dense", node.inputs[:2], node.outputs, {}, "dense")))
    with pytest.raises(UnsupportedError, match="take a scale"):
        validated(bare)
    short = {**graph.constants, node.input(3): graph.constants[node.input(3)][:-1]}
    with pytest.raises(UnsupportedError, match="float32 scale of the shape"):
        validated(graph.replace(constants=short))
