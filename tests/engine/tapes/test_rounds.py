"""Loops that are no known cell: recorded once, round by round natively, right whatever decides about the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import InputError
from fastlstm.lowering.tapes.steps import Recorded
from fastlstm.model import Model
from fastlstm.operators import reference

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(11)
Feeds = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def value(name: str, shape: Sequence[int | str] | None = None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> Any:
    """Return a node; names are parted by spaces, "-" is an absent one."""
    return helper.make_node(
        op, [n.strip("-") for n in inputs.split()], [n.strip("-") for n in outputs.split()], **attrs
    )


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Feeds | None = None) -> Any:
    constants = [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def body(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Any:
    return helper.make_graph(nodes, "body", inputs, outputs)


COUNTED = [value("i", [], INT64), value("going", [], BOOL)]


def agree(proto: Any, feeds: Feeds, ours: Model | None = None) -> Model:
    """Hold a model against onnxruntime and the reference, twice: what was recorded must not stay in the results."""
    graph = from_onnx(proto)
    ours = ours or Model(graph)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    truth = reference.run(graph, feeds)
    for _ in range(2):
        for name, found in ours.run(feeds).items():
            assert found.dtype == theirs[name].dtype
            assert found.shape == theirs[name].shape
            np.testing.assert_allclose(found, theirs[name], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found, truth[name], rtol=1e-4, atol=1e-5)
        ours.run({name: a + a.dtype.type(0.5) if a.dtype == np.float32 else a for name, a in feeds.items()})
    return ours


def python_steps(ours: Model) -> int:
    """Return how many steps of the tape used last are no native call."""
    (tape,) = next(reversed(ours._executor.tapes._kept.values()))
    return sum(not isinstance(step, Recorded) for step in tape.steps)


def conv_lstm() -> Any:
    """A convolutional LSTM as exporters write it: frames picked by a counter, a condition that never ends it early."""
    step = [
        node("Gather", "frames at", "x_t", axis=0),
        node("Conv", "x_t W b", "from_x", pads=[1, 1, 1, 1]),
        node("Conv", "h U", "from_h", pads=[1, 1, 1, 1]),
        node("Add", "from_x from_h", "sum"),
        node("Split", "sum", "zi zf zg zo", axis=1),
        *(node("Sigmoid", f"z{gate}", gate) for gate in "ifo"),
        node("Tanh", "zg", "g"),
        node("Mul", "f c", "kept"),
        node("Mul", "i g", "new"),
        node("Add", "kept new", "c_next"),
        node("Tanh", "c_next", "bounded"),
        node("Mul", "o bounded", "h_next"),
        node("Add", "at one", "at_next"),
        node("Cast", "at_next", "at_float", to=FLOAT),
        node("Less", "at_float steps_float", "more"),
        node("And", "more going", "go_on"),
        node("Identity", "h_next", "y_t"),
    ]
    inside = body(
        step,
        [value("n", [], INT64), value("going", [], BOOL), value("at", [], TensorProto.INT32), value("h"), value("c")],
        [
            value("go_on", [], BOOL),
            value("at_next", [], TensorProto.INT32),
            value("h_next"),
            value("c_next"),
            value("y_t"),
        ],
    )
    nodes = [
        node("Transpose", "x", "frames", perm=[1, 0, 2, 3, 4]),
        node("Shape", "frames", "shape"),
        node("Gather", "shape zero", "steps"),
        node("Cast", "steps", "steps_float", to=FLOAT),
        node("Loop", "steps yes first h0 h0", "at_n h_n c_n ys", body=inside),
        node("Transpose", "ys", "y", perm=[1, 0, 2, 3, 4]),
    ]
    weights = {
        "W": normal(12, 2, 3, 3) / 3, "b": normal(12), "U": normal(12, 3, 3, 3) / 4, "one": np.int32(1),
        "zero": np.array(0), "yes": np.array(True), "first": np.int32(0),
    }  # fmt: skip
    inputs = [value("x", ["batch", "time", 2, 5, 6]), value("h0", ["batch", 3, 5, 6])]
    return model(nodes, inputs, [value("y"), value("h_n"), value("c_n")], weights)


def frames(batch: int, steps: int) -> Feeds:
    return {"x": normal(batch, steps, 2, 5, 6), "h0": normal(batch, 3, 5, 6)}


def test_a_convolutional_lstm_is_one_native_call() -> None:
    ours = agree(conv_lstm(), frames(2, 7))
    assert python_steps(ours) == 0
    agree(conv_lstm(), frames(1, 1))


def test_rounds_give_the_same_bits_on_threads_and_in_any_batch() -> None:
    proto, feeds = conv_lstm(), frames(3, 6)
    whole = fastlstm.from_onnx(proto).run(feeds)
    for other in (Model(from_onnx(proto), threads=2), Model(from_onnx(proto), threads=3)):
        assert all(np.array_equal(a, whole[name]) for name, a in other.run(feeds).items())
    alone = fastlstm.from_onnx(proto).run({name: a[1:2] for name, a in feeds.items()})
    assert all(np.array_equal(alone[name], whole[name][1:2]) for name in whole)


def decoder(stops: bool = True) -> Any:
    """Greedy decoding with attention: ids picked by ArgMax, ended by the id 0 or after so many steps."""
    step = [
        node("Gather", "table token", "embedded", axis=0),
        node("MatMul", "h Q", "query"),
        node("Unsqueeze", "query axis", "query_row"),
        node("Transpose", "memory", "keys", perm=[0, 2, 1]),
        node("MatMul", "query_row keys", "scores"),
        node("Where", "mask scores far", "masked"),
        node("Softmax", "masked", "weights", axis=-1),
        node("MatMul", "weights memory", "context_row"),
        node("Squeeze", "context_row axis", "context"),
        node("Concat", "embedded context h", "all", axis=1),
        node("MatMul", "all V", "mixed"),
        node("Tanh", "mixed", "h_next"),
        node("MatMul", "h_next O", "wanted"),
        node("Cast", "i", "time", to=FLOAT),
        node("Mul", "time tired", "weary"),
        node("Add", "wanted weary", "logits"),
        node("ArgMax", "logits", "token_next", axis=-1, keepdims=0),
        node("Equal", "token_next end", "is_end"),
        node("Cast", "is_end", "ended", to=INT64),
        node("Squeeze", "ended", "ended_now"),
        node("Equal", "ended_now nothing", "go_on"),
        node("Identity", "token_next", "id") if stops else node("Identity", "logits", "id"),
    ]
    inside = body(
        step,
        [*COUNTED, value("token", None, INT64), value("h")],
        [value("go_on" if stops else "going", [], BOOL), value("token_next", None, INT64), value("h_next"),
         value("id", None, INT64 if stops else FLOAT)],
    )  # fmt: skip
    nodes = [node("Loop", "most - start h0", "last h_n ids", body=inside)]
    weights = {
        "table": normal(9, 5), "Q": normal(6, 4) / 2, "V": normal(15, 6) / 3, "O": 2 * normal(6, 9),
        "axis": np.array([1]), "tired": np.float32([0.7] + [0.0] * 8), "far": np.float32(-1e9),
        "end": np.array(0), "nothing": np.array(0), "most": np.array(12),
    }  # fmt: skip
    inputs = [value("memory", ["batch", "length", 4]), value("mask", ["batch", 1, "length"], BOOL),
              value("start", ["batch"], INT64), value("h0", ["batch", 6])]  # fmt: skip
    return model(nodes, inputs, [value("ids", None, INT64 if stops else FLOAT), value("h_n")], weights)


def sentence(seed: int, batch: int = 1) -> Feeds:
    rng = np.random.default_rng(seed)
    return {
        "memory": rng.normal(size=(batch, 7, 4)).astype(np.float32),
        "mask": np.arange(7) < np.array([7, 4, 5])[:batch, None, None],
        "start": rng.integers(1, 9, batch),
        "h0": 2 * rng.normal(size=(batch, 6)).astype(np.float32),
    }


def test_an_attention_decoder_is_one_native_call() -> None:
    ours = agree(decoder(stops=False), sentence(0, batch=3))
    assert python_steps(ours) == 0


def test_a_decoder_that_ends_by_itself_ends_where_onnxruntime_does() -> None:
    proto, lengths = decoder(), set()
    ours = Model(from_onnx(proto))
    for seed in range(12):
        agree(proto, sentence(seed), ours)
        lengths.add(len(ours.run(sentence(seed))["ids"]))
    assert len(lengths) > 2


def test_an_id_that_no_row_belongs_to_is_an_error_and_the_next_call_is_right() -> None:
    proto = decoder(stops=False)
    ours = agree(proto, sentence(0))
    with pytest.raises(InputError, match="outside its embedding table"):
        ours.run({**sentence(0), "start": np.array([9])})
    agree(proto, sentence(1), ours)


def scan() -> Any:
    """A Scan over two values along different axes, one of them backwards; states change places."""
    step = [
        node("Add", "a x_t", "sum"),
        node("Mul", "sum y_t", "product"),
        node("Tanh", "product", "b_next"),
        node("Identity", "b", "a_next"),
        node("Identity", "a", "old"),
        node("Add", "n k_t", "n_next"),
        node("Identity", "n_next", "count"),
    ]
    inside = body(
        step,
        [value("a"), value("b"), value("n", None, INT64), value("x_t"), value("y_t"), value("k_t", None, INT64)],
        [value("a_next"), value("b_next"), value("n_next", None, INT64), value("old"), value("count", None, INT64)],
    )
    scanned = node(
        "Scan", "a0 b0 n0 x y k", "a_n b_n n_n olds counts", body=inside, num_scan_inputs=3,
        scan_input_axes=[1, 0, 0], scan_input_directions=[0, 1, 0], scan_output_axes=[1, 0],
        scan_output_directions=[1, 0],
    )  # fmt: skip
    inputs = [value("x", ["batch", "time", 5]), value("y", ["time", "batch", 5]), value("k", ["time"], INT64),
              value("a0", ["batch", 5]), value("b0", ["batch", 5])]  # fmt: skip
    outputs = [value(n) for n in ("a_n", "b_n", "olds")] + [value(n, None, INT64) for n in ("n_n", "counts")]
    return model([scanned], inputs, outputs, {"n0": np.array(3)})


def test_a_scan_over_axes_and_directions_is_one_native_call() -> None:
    feeds = {"x": normal(2, 6, 5), "y": normal(6, 2, 5), "k": np.arange(6), "a0": normal(2, 5), "b0": normal(2, 5)}
    assert python_steps(agree(scan(), feeds)) == 0


def test_a_scan_over_nothing_leaves_its_states() -> None:
    feeds = {"x": normal(2, 0, 5), "y": normal(0, 2, 5), "k": np.arange(0), "a0": normal(2, 5), "b0": normal(2, 5)}
    found = Model(from_onnx(scan())).run(feeds)
    assert np.array_equal(found["a_n"], feeds["a0"])
    assert np.array_equal(found["b_n"], feeds["b0"])
    assert len(found["counts"]) == 0


def nested() -> Any:
    """A loop in a loop, with a branch inside that each round decides about."""
    yes = body([node("Mul", "s half", "smaller")], [], [value("smaller")])
    no = body([node("Add", "s w", "larger")], [], [value("larger")])
    inner = body(
        [
            node("ReduceMax", "s", "top", keepdims=0),
            node("Greater", "top limit", "too_large"),
            node("If", "too_large", "s_next", then_branch=yes, else_branch=no),
        ],
        [value("j", [], INT64), value("on", [], BOOL), value("s")],
        [value("on", [], BOOL), value("s_next")],
    )
    outer = body(
        [node("Loop", "three - v", "v_next", body=inner), node("ReduceSum", "v_next", "total", keepdims=0)],
        [*COUNTED, value("v")],
        [value("going", [], BOOL), value("v_next"), value("total", [])],
    )
    weights = {"half": np.float32(0.5), "three": np.array(3), "limit": np.float32(2.5), "w": normal(4)}
    nodes = [node("Loop", "rounds - v0", "v_n totals", body=outer)]
    inputs = [value("v0", [4]), value("rounds", [], INT64)]
    return model(nodes, inputs, [value("v_n"), value("totals")], weights)


def test_loops_and_branches_inside_loops() -> None:
    proto = nested()
    ours = Model(from_onnx(proto))
    for rounds in (5, 5, 2, 7, 0, 5):
        agree(proto, {"v0": normal(4), "rounds": np.array(rounds)}, ours)


def test_a_state_that_grows_is_run_as_it_comes() -> None:
    step = [node("Concat", "s x", "s_next", axis=0), node("ReduceSum", "s_next", "total", keepdims=0)]
    inside = body(step, [*COUNTED, value("s")], [value("going", [], BOOL), value("s_next"), value("total")])
    proto = model([node("Loop", "three - x", "s_n totals", body=inside)], [value("x", ["n"])],
                  [value("s_n"), value("totals")], {"three": np.array(3)})  # fmt: skip
    agree(proto, {"x": normal(5)})


def test_truth_values_as_states_are_run_as_they_come() -> None:
    step = [node("Not", "s", "s_next"), node("Where", "s x y", "picked")]
    inside = body(step, [*COUNTED, value("s", [2], BOOL)],
                  [value("going", [], BOOL), value("s_next", [2], BOOL), value("picked")])  # fmt: skip
    proto = model([node("Loop", "three - s0", "s_n picks", body=inside)],
                  [value("x", [2]), value("y", [2]), value("s0", [2], BOOL)],
                  [value("s_n", None, BOOL), value("picks")], {"three": np.array(3)})  # fmt: skip
    agree(proto, {"x": normal(2), "y": normal(2), "s0": np.array([True, False])})


def test_a_condition_that_is_false_at_first_runs_no_round() -> None:
    inside = body([node("Add", "s s", "s_next")], [*COUNTED, value("s")], [value("going", [], BOOL), value("s_next")])
    inputs = [value("x", [3]), value("first", [], BOOL)]
    proto = model([node("Loop", "three first x", "s_n", body=inside)], inputs, [value("s_n")], {"three": np.array(3)})
    ours = Model(from_onnx(proto))
    for first in (True, False, True):
        agree(proto, {"x": normal(3), "first": np.array(first)}, ours)


WHOLE = [
    ("Add", INT64), ("Sub", INT64), ("Mul", TensorProto.INT32), ("Add", TensorProto.INT8), ("Less", INT64),
    ("LessOrEqual", FLOAT), ("Greater", TensorProto.INT32), ("GreaterOrEqual", FLOAT), ("Equal", INT64),
    ("Equal", FLOAT), ("Min", INT64), ("Max", TensorProto.UINT8),
]  # fmt: skip


@pytest.mark.parametrize(("op", "kind"), WHOLE)
def test_whole_numbers_are_computed_as_numpy_does(op: str, kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    a, b = (RNG.integers(-120, 120, 40).astype(dtype) for _ in range(2))
    b[::5] = a[::5]
    if kind == FLOAT:
        a[3] = np.nan
    more = [node("Tanh", "x", "y")]
    proto = model([node(op, "a b", "c"), *more], [value("a", [40], kind), value("b", [40], kind), value("x", [3])],
                  [value("c"), value("y")])  # fmt: skip
    graph = from_onnx(proto)
    feeds = {"a": a, "b": b, "x": normal(3)}
    ours = Model(graph)
    for _ in range(2):
        found = ours.run(feeds)["c"]
        wanted = reference.run(graph, feeds)["c"]
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_truth_values_are_joined(op: str) -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    nodes = [node(op, "a b", "c"), node("Not", "c", "d"), node("Where", "d x far", "y"), node("Tanh", "y", "z")]
    proto = model(nodes, [value("x", [2, 4]), value("a", [4], BOOL), value("b", [4], BOOL)],
                  [value("c", None, BOOL), value("z")], {"far": np.float32(-3)})  # fmt: skip
    assert python_steps(agree(proto, {"x": normal(2, 4), "a": a, "b": b})) == 0


@pytest.mark.parametrize("source", [BOOL, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, INT64, FLOAT])
@pytest.mark.parametrize("target", [BOOL, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, INT64, FLOAT])
def test_casts_are_numpys(source: int, target: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(source)
    a = RNG.integers(0, 100, 33).astype(dtype) if source == FLOAT else RNG.integers(-200, 2**33, 33).astype(dtype)
    a[4] = 0
    proto = model([node("Cast", "a", "c", to=target), node("Tanh", "x", "y")], [value("a", [33], source),
                  value("x", [3])], [value("c"), value("y")])  # fmt: skip
    ours = Model(from_onnx(proto))
    for _ in range(2):
        found = ours.run({"a": a, "x": normal(3)})["c"]
        assert np.array_equal(found, a.astype(helper.tensor_dtype_to_np_dtype(target)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rows_picked_by_ids_that_only_the_call_knows(axis: int) -> None:
    proto = model([node("Gather", "x ids", "y", axis=axis), node("Tanh", "y", "z")],
                  [value("x", [4, 5, 6]), value("ids", ["n", 2], INT64)], [value("z")])  # fmt: skip
    feeds = {"x": normal(4, 5, 6), "ids": np.array([[0, -1], [3, 2], [-4, 1]])}
    ours = agree(proto, feeds)
    assert python_steps(ours) == 0
    with pytest.raises(InputError):
        ours.run({**feeds, "ids": np.array([[0, 7], [0, 0], [0, 0]])})


@pytest.mark.parametrize("axes", [[-1], [1, 2], None])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("op", "kind"), [("ReduceMax", INT64), ("ReduceMax", BOOL), ("ReduceSum", TensorProto.INT32)])
def test_whole_numbers_are_reduced_as_numpy_does(op: str, kind: int, keepdims: int, axes: list[int] | None) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    as_input = {} if axes is None or op == "ReduceMax" else {"axes": np.array(axes)}
    attrs = {"axes": axes} if axes is not None and op == "ReduceMax" else {}  # as opset 17 has them
    nodes = [
        node(op, " ".join(["x", *as_input]), "y", keepdims=keepdims, **attrs),
        node("Tanh", "other", "z"),
    ]
    proto = model(
        nodes, [value("x", [3, 4, 5], kind), value("other", [3])], [value("y", None, kind), value("z")], as_input
    )
    x = RNG.integers(-(2**30), 2**30, (3, 4, 5)).astype(dtype)  # sums wrap
    x[0] = 0
    function = {"ReduceMax": np.max, "ReduceSum": np.sum}[op]
    expected = function(x, None if axes is None else tuple(axes), keepdims=bool(keepdims)).astype(dtype)
    ours = Model(from_onnx(proto))
    for _ in range(2):
        assert np.array_equal(ours.run({"x": x, "other": normal(3)})["y"], expected)
    assert python_steps(ours) == 0


@pytest.mark.parametrize("axis", [0, -1])
def test_running_sums_of_whole_numbers_are_numpys(axis: int) -> None:
    nodes = [node("CumSum", "x axis", "y"), node("Tanh", "other", "z")]
    proto = model(nodes, [value("x", [4, 3, 5], INT64), value("other", [3])], [value("y", None, INT64), value("z")],
                  {"axis": np.array(axis)})  # fmt: skip
    x = RNG.integers(-9, 9, (4, 3, 5))
    assert python_steps(agree(proto, {"x": x, "other": normal(3)})) == 0


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_place_of_the_largest_element(axis: int, keepdims: int) -> None:
    proto = model([node("Tanh", "x", "t"), node("ArgMax", "t", "y", axis=axis, keepdims=keepdims)],
                  [value("x", [3, 4, 5])], [value("y", None, INT64)])  # fmt: skip
    x = np.round(normal(3, 4, 5), 1)
    x[1, 2, 3] = np.nan
    x[0] = 0.25
    ours = Model(from_onnx(proto))
    for _ in range(2):
        assert np.array_equal(
            ours.run({"x": x})["y"], np.expand_dims(np.argmax(x, axis), axis) if keepdims else np.argmax(x, axis)
        )
    assert python_steps(ours) == 0
