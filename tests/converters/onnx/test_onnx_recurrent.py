"""LSTM, GRU and RNN nodes of ONNX become canonical nodes that compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastlstm
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.graph import RECURRENT_OPS
from fastlstm.operators import reference
from fastlstm.operators.validation import validated

T, B, F, H = 5, 3, 2, 4
Array = npt.NDArray[Any]
OUTPUTS = {"LSTM": ["Y", "Y_h", "Y_c"], "GRU": ["Y", "Y_h"], "RNN": ["Y", "Y_h"]}


def weights(op: str, directions: int = 1, dtype: str = "float32") -> dict[str, Array]:
    random, gates = np.random.default_rng(0), RECURRENT_OPS[op]
    shapes = {
        "W": (directions, gates * H, F),
        "R": (directions, gates * H, H),
        "B": (directions, 2 * gates * H),
        "initial_h": (directions, B, H),
        "initial_c": (directions, B, H),
        "P": (directions, 3 * H),
    }
    return {name: random.uniform(-1, 1, shape).astype(dtype) for name, shape in shapes.items()}


def model(
    op: str,
    names: list[str],
    constants: dict[str, Array],
    opset: int = 14,
    dtype: int = TensorProto.FLOAT,
    outputs: list[str] | None = None,
    **attrs: Any,
) -> Any:
    """One recurrent node; the names that are no constants are inputs of the model."""
    outputs = OUTPUTS[op] if outputs is None else outputs
    node = helper.make_node(op, names, outputs, name="rnn", hidden_size=H, **attrs)
    types = {"sequence_lens": TensorProto.INT32}
    inputs = [
        helper.make_tensor_value_info(n, types.get(n, dtype), [None] * (1 if n in types else 2 if n in "BP" else 3))
        for n in names
        if n and n not in constants
    ]
    results = [helper.make_tensor_value_info(n, dtype, None) for n in outputs if n]
    initial = [numpy_helper.from_array(constants[n], n) for n in names if n in constants]
    graph = helper.make_graph([node], "g", inputs, results, initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def agree(proto: Any, feeds: dict[str, Array]) -> None:
    """Compare the converted graph with onnxruntime: float32 sums differ by rounding only."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    found = reference.run(from_onnx(proto), feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def data() -> Array:
    return np.random.default_rng(1).uniform(-2, 2, (T, B, F)).astype(np.float32)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_the_tree_is_a_canonical_node_and_what_gives_onnx_its_shape(op: str) -> None:
    graph = from_onnx(model(op, ["X", "W", "R", "B"], weights(op)))
    assert [node.op for node in graph.nodes] == [op, "Reshape", "Transpose"]
    layer = graph.nodes[0]
    assert layer.inputs == ("X", "rnn.w_ih" if op != "RNN" else "W", layer.inputs[2], "rnn.bias")
    assert layer.outputs == ("rnn.y", *OUTPUTS[op][1:])
    assert set(graph.constants) == {*layer.inputs[1:], "rnn.shape"}
    assert graph.nodes[1].inputs == ("rnn.y", "rnn.shape")
    assert graph.constants["rnn.shape"].tolist() == [0, 0, 1, H]
    assert graph.nodes[2].attrs == {"perm": [0, 2, 1, 3]}
    assert [spec.name for spec in graph.inputs] == ["X"]
    assert graph.inputs[0].shape == ("dim0", "dim1", "dim2")


def test_lstm_gates_are_put_in_the_order_i_f_g_o_and_biases_added() -> None:
    given = weights("LSTM")
    graph = from_onnx(model("LSTM", ["X", "W", "R", "B"], given))
    i, o, f, c = np.split(given["W"], 4, axis=1)
    np.testing.assert_array_equal(graph.constants["rnn.w_ih"], np.concatenate([i, f, c, o], axis=1))
    both = given["B"][:, : 4 * H] + given["B"][:, 4 * H :]
    i, o, f, c = np.split(both, 4, axis=1)
    np.testing.assert_array_equal(graph.constants["rnn.bias"], np.concatenate([i, f, c, o], axis=1))


def test_gru_keeps_the_two_biases_of_the_candidate_apart() -> None:
    given = weights("GRU")
    graph = from_onnx(model("GRU", ["X", "W", "R", "B"], given, linear_before_reset=1))
    wz, wr, wh, rz, rr, rh = np.split(given["B"], 6, axis=1)
    np.testing.assert_array_equal(graph.constants["rnn.bias"], np.concatenate([wr + rr, wz + rz, wh, rh], axis=1))
    assert graph.nodes[0].attrs["reset_after"] == 1


def test_outputs_that_nothing_reads_are_absent() -> None:
    graph = from_onnx(model("LSTM", ["X", "W", "R"], weights("LSTM"), outputs=["", "Y_h"]))
    assert [node.op for node in graph.nodes] == ["LSTM"]
    assert graph.nodes[0].outputs == ("", "Y_h", "")


def test_an_all_zero_initial_state_is_absent_whatever_its_batch() -> None:
    given = {**weights("LSTM"), "initial_h": np.zeros((1, 1, H), np.float32)}
    names = ["X", "W", "R", "B", "", "initial_h", "initial_c"]
    graph = from_onnx(model("LSTM", names, given))
    assert graph.nodes[0].input(6) == ""
    np.testing.assert_array_equal(graph.constants[graph.nodes[0].input(7)], given["initial_c"])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_lengths_states_and_directions_mean_what_they_mean_in_onnxruntime(op: str, direction: str) -> None:
    given = weights(op, 2 if direction == "bidirectional" else 1)
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    if op == "LSTM":
        names += ["initial_c", "P"]
    lengths = np.array([T, 2, 3], np.int32)
    agree(model(op, names, given, direction=direction), {"X": data(), "sequence_lens": lengths})


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_weights_and_states_may_be_inputs_of_the_model(op: str) -> None:
    names = ["X", "W", "R", "B", "", "initial_h"] + (["initial_c", "P"] if op == "LSTM" else [])
    feeds = {"X": data(), **{n: weights(op)[n] for n in names if n in weights(op)}}
    proto = model(op, names, {})
    agree(proto, feeds)
    assert [spec.name for spec in from_onnx(proto).inputs] == [n for n in names if n]
    assert "packed anew for each call" in from_onnx(proto).notes[0]
    assert "packed at each call" in str(fastlstm.from_onnx(proto).plan)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("LSTM", {"clip": 0.3}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"activations": ["sigmoid", "TANH", "softsign"]}),
        ("LSTM", {"activations": ["HardSigmoid", "LeakyRelu", "ScaledTanh"],
                  "activation_alpha": [0.3, 0.1, 1.5], "activation_beta": [0.4, 0.7]}),
        ("GRU", {"linear_before_reset": 1, "clip": 0.5}),
        ("GRU", {"activations": ["HardSigmoid", "Elu"]}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
        ("RNN", {"activations": ["Relu"], "clip": 1.0}),
    ],
)  # fmt: skip
def test_options_mean_what_they_mean_in_onnxruntime(op: str, attrs: dict[str, Any]) -> None:
    agree(model(op, ["X", "W", "R", "B"], weights(op), **attrs), {"X": data()})


def test_alpha_and_beta_are_consumed_in_order_by_the_functions_that_take_them() -> None:
    proto = model(
        "LSTM", ["X", "W", "R"], weights("LSTM"),
        activations=["Sigmoid", "LeakyRelu", "HardSigmoid"], activation_alpha=[0.25], activation_beta=[0.75],
    )  # fmt: skip
    activations = from_onnx(proto).nodes[0].attrs["activations"]
    assert activations == [[["Sigmoid", None, None], ["LeakyRelu", 0.25, None], ["HardSigmoid", 0.2, 0.75]]]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_are_computed_in_float32_and_the_graph_says_so(dtype: str) -> None:
    number = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}[dtype]
    graph = from_onnx(model("LSTM", ["X", "W", "R", "B"], weights("LSTM", dtype=dtype), dtype=number))
    assert [node.op for node in graph.nodes][:2] == ["Cast", "LSTM"]
    casts = [node.attrs["to"] for node in graph.nodes if node.op == "Cast"]
    assert casts == [TensorProto.FLOAT, number, number, number]
    assert all(a.dtype == np.float32 for name, a in graph.constants.items() if name != "rnn.shape")
    assert dtype in graph.notes[0]


@pytest.mark.parametrize(
    ("op", "attrs", "named"),
    [
        ("LSTM", {"direction": "sideways"}, "direction"),
        ("LSTM", {"clip": -1.0}, "clip"),
        ("LSTM", {"layout": 2}, "layout"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "activations"),
        ("LSTM", {"activations": ["Sigmoid", "Swish", "Tanh"]}, "Swish"),
        (
            "LSTM",
            {"activations": ["Sigmoid", "Elu", "Tanh"], "activation_alpha": [1.0, 2.0]},
            "activation_alpha",
        ),
        ("GRU", {"linear_before_reset": 7}, "linear_before_reset"),
        ("RNN", {"input_forget": 1}, "input_forget"),
    ],
)
def test_what_onnx_does_not_define_is_refused_by_name(op: str, attrs: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        from_onnx(model(op, ["X", "W", "R"], weights(op), **attrs))


@pytest.mark.parametrize("name", ["W", "R", "B", "P"])
def test_a_weight_of_the_wrong_shape_is_named(name: str) -> None:
    given = weights("LSTM")
    given[name] = np.repeat(given[name], 2, axis=1)
    with pytest.raises(UnsupportedError, match=f"{name} should be a float tensor of shape"):
        from_onnx(model("LSTM", ["X", "W", "R", "B", "", "", "", "P"], given))


def test_an_attribute_of_the_wrong_type_is_an_error() -> None:
    proto = model("LSTM", ["X", "W", "R"], weights("LSTM"))
    proto.graph.node[0].attribute.append(helper.make_attribute("layout", 1.0))
    with pytest.raises(FileFormatError, match="layout"):
        from_onnx(proto)


def test_quantised_weights_of_onnxruntime_get_their_scales_back() -> None:
    random = np.random.default_rng(2)
    constants = {
        "W": random.integers(-100, 100, (1, F, 4 * H)).astype(np.int8),
        "R": random.integers(-100, 100, (1, H, 4 * H)).astype(np.int8),
        "W_scale": np.array([0.01], np.float32),
        "W_zero": np.array([3], np.int8),
        "R_scale": random.uniform(0.001, 0.01, (1, 4 * H)).astype(np.float32),
        "R_zero": np.zeros((1, 4 * H), np.int8),
    }
    names = ["X", "W", "R", "", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    node = helper.make_node("DynamicQuantizeLSTM", names, ["Y"], name="q", domain="com.microsoft", hidden_size=H)
    graph_proto = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [T, B, F])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    graph = from_onnx(helper.make_model(graph_proto, opset_imports=opsets))
    plain = (constants["W"].astype(np.float32) - 3) * np.float32(0.01)
    i, o, f, c = np.split(plain.transpose(0, 2, 1), 4, axis=1)
    np.testing.assert_allclose(graph.constants["q.w_ih"], np.concatenate([i, f, c, o], axis=1), rtol=1e-6)
    assert graph.notes


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantised_weights_stay_8_bits_wide_and_exact(per_channel: bool) -> None:
    random, hidden = np.random.default_rng(3), 48
    scale_shape = (1, 4 * hidden) if per_channel else (1,)
    constants = {
        "W": random.integers(-127, 128, (1, F, 4 * hidden)).astype(np.int8),
        "R": random.integers(-127, 128, (1, hidden, 4 * hidden)).astype(np.int8),
        "W_scale": random.uniform(0.001, 0.003, scale_shape).astype(np.float32),
        "W_zero": np.zeros(scale_shape, np.int8),
        "R_scale": random.uniform(0.001, 0.003, scale_shape).astype(np.float32),
        "R_zero": np.zeros(scale_shape, np.int8),
    }
    names = ["X", "W", "R", "", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    node = helper.make_node("DynamicQuantizeLSTM", names, ["Y"], name="q", domain="com.microsoft", hidden_size=hidden)
    graph_proto = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [T, B, F])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    graph = validated(from_onnx(helper.make_model(graph_proto, opset_imports=opsets)))
    (lstm,) = (n for n in graph.nodes if n.op == "LSTM")
    for position, name in ((1, "W"), (2, "R")):
        i, o, f, c = np.split(constants[name].transpose(0, 2, 1), 4, axis=1)
        found = graph.constants[lstm.input(position)]
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, np.concatenate([i, f, c, o], axis=1))
        wide = constants[name].astype(np.float64) * constants[f"{name}_scale"].reshape(1, 1, -1)
        i, o, f, c = np.split(wide.transpose(0, 2, 1), 4, axis=1)
        scaled = found * graph.constants[lstm.input(position + 9)][..., None].astype(np.float64)
        np.testing.assert_allclose(scaled, np.concatenate([i, f, c, o], axis=1), rtol=1e-6)


def test_a_model_that_rounds_to_bytes_is_held_to_its_engine_as_a_whole(tmp_path: Path) -> None:
    # Of 7 bits: onnxruntime's sums of two products overflow with larger ones where it has AVX2 alone.
    random, hidden = np.random.default_rng(4), 48
    constants = {
        "W": random.integers(-63, 64, (1, F, 4 * hidden)).astype(np.int8),
        "R": random.integers(-63, 64, (1, hidden, 4 * hidden)).astype(np.int8),
        "W_scale": np.array([0.01], np.float32),
        "W_zero": np.zeros(1, np.int8),
        "R_scale": np.array([0.004], np.float32),
        "R_zero": np.zeros(1, np.int8),
    }
    names = ["X", "W", "R", "", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    node = helper.make_node("DynamicQuantizeLSTM", names, ["Y"], name="q", domain="com.microsoft", hidden_size=hidden)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["time", "rows", F])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "q.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    done = fastlstm.convert(path, tmp_path / "q.fastlstm")
    assert done.verified
    assert done.verification.noisy
    assert fastlstm.verify(tmp_path / "q.fastlstm").worst.outputs[0].max_abs == 0  # its samples are its own bits
    # Two gates in each other's place are seen all the same.
    kept = {t.name: t for t in graph.initializer}
    for name in ("W", "R"):
        i, o, f, c = np.split(constants[name], 4, axis=2)
        kept[name].CopyFrom(numpy_helper.from_array(np.concatenate([o, i, f, c], axis=2), name))
    wrong = fastlstm.from_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    found = fastlstm.verify(path, against=wrong)
    assert not found.holds
    assert found.worst.outputs[0].ratio > 4


def test_weights_out_of_small_constant_graphs_are_folded() -> None:
    given = weights("LSTM")
    proto = model("LSTM", ["X", "W", "R", "B"], given)
    raw = {
        "raw_w": given["W"][0].T.astype(np.float64),
        "raw_b": np.concatenate([given["B"][0], given["B"][0]]),
        "zero": np.array([0], np.int64),
        "end": np.array([8 * H], np.int64),
    }
    kept = [t for t in proto.graph.initializer if t.name == "R"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, *(numpy_helper.from_array(a, n) for n, a in raw.items())])
    before = [
        helper.make_node("Transpose", ["raw_w"], ["w_t"], perm=[1, 0]),
        helper.make_node("Cast", ["w_t"], ["w_32"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["w_32", "zero"], ["W"]),
        helper.make_node("Slice", ["raw_b", "zero", "end"], ["b_half"]),
        helper.make_node("Unsqueeze", ["b_half", "zero"], ["B"]),
    ]
    nodes = [*before, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    graph = from_onnx(proto)
    assert [node.op for node in graph.nodes] == ["LSTM", "Reshape", "Transpose"]
    agree(proto, {"X": data()})
