"""Cases out of onnxruntime's own unit tests, computed there by other programs than ours.

The figures are those of microsoft/onnxruntime, onnxruntime/test/providers/cpu/rnn: deep_cpu_lstm_op_test.cc,
deep_cpu_gru_op_test.cc and rnn_op_test.cc (MIT licence), where each case has the name it has here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper

from fastlstm import onnx_backend

Array = npt.NDArray[Any]

W = [-0.494659, 0.0453352, -0.487793, 0.417264, -0.0175329, 0.489074, -0.446013, 0.414029]
W += [-0.0091708, -0.255364, -0.106952, -0.266717, -0.0888852, -0.428709, -0.283349, 0.208792]
R = [0.146626, -0.0620289, -0.0815302, 0.100482, -0.219535, -0.306635, -0.28515, -0.314112]
R += [-0.228172, 0.405972, 0.31576, 0.281487, -0.394864, 0.42111, -0.386624, -0.390225]
LSTM = {
    "W": np.reshape(W, (1, 8, 2)),
    "R": np.reshape(R, (1, 8, 2)),
    "B": np.array([[0.381619, 0.0323954, -0.14449, 0.420804, -0.258721, 0.45056, -0.250755, 0.0967895, *[0.0] * 8]]),
    "P": np.array([[0.2345, 0.5235, 0.4378, 0.3475, 0.8927, 0.3456]]),
}
GRU = {
    "W": LSTM["W"][:, [0, 1, 4, 5, 6, 7]],
    "R": LSTM["R"][:, [0, 1, 4, 5, 6, 7]],
    "B": np.array([[0.381619, 0.0323954, -0.258721, 0.45056, -0.250755, 0.0967895, *[0.0] * 6]]),
}
INPUTS = {
    "LSTM": ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"],
    "GRU": ["X", "W", "R", "B", "sequence_lens", "initial_h"],
    "RNN": ["X", "W", "R", "B", "sequence_lens", "initial_h"],
}
X = [-0.455351, -0.276391, -0.185934, -0.269585]
TANH_FIRST = {"activations": ["tanh", "sigmoid", "tanh"]}
BOTH_TANH_FIRST = {"direction": "bidirectional", "activations": ["tanh", "sigmoid", "tanh"] * 2}
BOTH = {"direction": "bidirectional"}
THREE = [-0.455351, -0.776391, 0.0, 0.0, 0.348763, 0.678345, -0.185934, -0.169585, 0.0, 0.0, 0.078053, 0.163457]


def run(op: str, arrays: dict[str, Array], attrs: dict[str, Any]) -> dict[str, Array]:
    """Run one layer whose weights, like everything else, are inputs of the model."""
    outputs = ["Y", "Y_h", *(["Y_c"] if op == "LSTM" else [])]
    names = [name if name in arrays else "" for name in INPUTS[op]]
    node = helper.make_node(op, names, outputs, hidden_size=arrays["R"].shape[2], **attrs)
    feeds = {name: a.astype("int32" if name == "sequence_lens" else "float32") for name, a in arrays.items()}
    found = onnx_backend.run_node(node, feeds, opset_version=14)
    return {name: found[name] for name in outputs}


def doubled(weights: dict[str, Array], attrs: dict[str, Any]) -> dict[str, Array]:
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    return {name: np.concatenate([a] * directions) for name, a in weights.items()}


def check(found: dict[str, Array], expected: dict[str, list[float]]) -> None:
    for name, values in expected.items():
        # The figures are printed with six to eight digits.
        np.testing.assert_allclose(found[name].ravel(), values, rtol=1e-4, atol=1e-5, err_msg=name)


# name, batch, X, options (attributes; "no": inputs that are absent; others: inputs), expected outputs
LSTM_CASES: list[tuple[str, int, list[float], dict[str, Any], dict[str, list[float]]]] = [
    ("ForwardPeepHole", 1, X, {}, {
        "Y": [-0.0251062475, 0.0561261699, -0.03277518, 0.05935364], "Y_c": [-0.0780206, 0.098829]}),
    ("BidirectionalBasic", 1, X, BOTH, {
        "Y": [-0.0251062, 0.0561262, -0.0318928, 0.0762679, -0.0327752, 0.0593536, -0.0306872, 0.028035],
        "Y_h": [-0.0327752, 0.0593536, -0.0318928, 0.0762679], "Y_c": [-0.0780206, 0.098829, -0.0753684, 0.120794]}),
    ("ForwardNoBiasUsePeepholes", 1, X, {"no": "B"}, {
        "Y": [0.04154162, 0.01969122, 0.05298181, 0.0030589], "Y_c": [0.11169686, 0.00625722]}),
    ("ForwardInputForget", 1, X, {"input_forget": 1}, {
        "Y": [-0.02510626, 0.05612619, -0.0314321, 0.05087372], "Y_c": [-0.07474898, 0.08480116]}),
    ("ForwardClip", 1, X, {"clip": 0.1}, {
        "Y": [-0.02280854, 0.02744377, -0.03516197, 0.03875681], "Y_c": [-0.07415761, 0.07395997]}),
    ("Backward", 1, X, {"direction": "reverse"}, {
        "Y": [-0.03189282, 0.07626793, -0.03068724, 0.02803503], "Y_c": [-0.07536839, 0.12079399]}),
    ("Backward_gpu", 1, X, {"direction": "reverse", "no": "P"}, {
        "Y": [-0.033075746, 0.074455738, -0.031248707, 0.027853041], "Y_c": [-0.076699793, 0.11975205]}),
    ("ForwardHiddenState", 1, X, {"no": "P", "initial_h": [0.34, 0.72]}, {
        "Y": [0.01797521, -0.07104912, -0.03174796, -0.0152949], "Y_c": [-0.07285583, -0.02545788]}),
    ("ForwardCellState", 1, X, {"no": "P", "initial_h": [0.34, 0.72], "initial_c": [0.63, 0.21]}, {
        "Y": [0.12797015, 0.0097284, 0.02716939, 0.01842997], "Y_c": [0.06408449, 0.03139432]}),
    ("Activation", 1, X, {"no": "P", **TANH_FIRST}, {
        "Y": [-0.0660155, 0.0351227, -0.04236888, 0.0177365], "Y_c": [0.1624992, 0.04672481]}),
    ("OutputWrite", 1, X, {"no": "P", **BOTH_TANH_FIRST}, {
        "Y": [-0.06601551, 0.03512269, -0.05520744, 0.03879774, -0.04236888, 0.01773649, -0.05332068, 0.00207076],
        "Y_c": [0.1624992, 0.04672481, 0.22009919, 0.08087098]}),
    ("SequenceLengthAllZeros", 2, [-0.455351, -0.776391, -0.355351, -0.576391, -0.185934, -0.169585, -0.285934,
        -0.469585], {"no": "P", "sequence_lens": [0, 0], **BOTH_TANH_FIRST}, {
        "Y": [0.0] * 16, "Y_h": [0.0] * 8, "Y_c": [0.0] * 8}),
    ("SequenceLengthPartialZeros", 2, [-0.455351, -0.776391, 0.0, 0.0, -0.185934, -0.169585, 0.0, 0.0],
        {"no": "P", "sequence_lens": [2, 0], **BOTH_TANH_FIRST}, {
        "Y": [-0.1269719, -0.01049645, 0, 0, -0.12206709, -0.0051103, 0, 0,
              -0.02778835, 0.00775075, 0, 0, -0.04350187, 0.01127771, 0, 0],
        "Y_c": [0.14675268, 0.01759163, 0, 0, 0.26577898, -0.01694398, 0, 0]}),
    ("SequenceLengthShorterThanInputSequenceLength", 1, X, {
        "sequence_lens": [1], "initial_h": [0, 0, -0.0306872, 0.028035],
        "initial_c": [0, 0, -0.07243599, 0.0467052], **BOTH}, {
        "Y": [-0.0251062, 0.0561262, -0.0318928, 0.0762679, 0, 0, 0, 0],
        "Y_h": [-0.0251062, 0.0561262, -0.0318928, 0.0762679]}),
    ("ShorterSeqInMiddle", 3, THREE, {"no": "P", "sequence_lens": [2, 1, 2], **BOTH}, {
        "Y_h": [-0.0291254, 0.04120104, -0.06724346, 0.02957184, -0.12768818, 0.07457943,
                0.01841230, 0.04093486, -0.06724346, 0.02957184, -0.17994503, 0.07397783],
        "Y_c": [-0.06609819, 0.06838701, -0.14596788, 0.04902556, -0.26768601, 0.12119407,
                0.04934450, 0.07126625, -0.14596788, 0.04902556, -0.34139895, 0.11673255]}),
    ("ZeroSeqInMiddle", 4, [*THREE[:6], 0.877836, 0.543859, *THREE[6:], 0.846098, 0.987531],
        {"no": "P", "sequence_lens": [2, 0, 1, 2], **BOTH}, {
        "Y_h": [-0.02912546, 0.04120104, 0, 0, -0.15355367, 0.04701351, -0.22162350, 0.03132058,
                0.01841230, 0.04093486, 0, 0, -0.15355367, 0.04701351, -0.17956293, 0.01607513],
        "Y_c": [-0.06609819, 0.06838701, 0, 0, -0.2894889, 0.07438067, -0.39655977, 0.05050645,
                0.04934450, 0.07126625, 0, 0, -0.28948891, 0.07438067, -0.34931409, 0.02799958]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "x", "options", "expected"), [c[1:] for c in LSTM_CASES], ids=[c[0] for c in LSTM_CASES]
)
def test_lstm(batch: int, x: list[float], options: dict[str, Any], expected: dict[str, list[float]]) -> None:
    attrs = {k: v for k, v in options.items() if k not in ("no", "sequence_lens", "initial_h", "initial_c")}
    arrays = doubled(LSTM, attrs)
    directions = len(arrays["W"])
    arrays["X"] = np.reshape(x, (-1, batch, 2))
    for name in ("initial_h", "initial_c"):
        if name in options:
            arrays[name] = np.reshape(options[name], (directions, batch, 2))
    if "sequence_lens" in options:
        arrays["sequence_lens"] = np.array(options["sequence_lens"])
    arrays.pop(options.get("no", ""), None)
    check(run("LSTM", arrays, attrs), expected)


GRU_CASES: list[tuple[str, list[float], list[int], list[float], dict[str, Any], list[float]]] = [
    ("ForwardBasic", X, [2], [0, 0], {}, [-0.03255286, 0.0774838, -0.05556786, 0.0785508]),
    ("ForwardActivation", X, [2], [0, 0], {"activations": ["tanh", "sigmoid"]},
        [0.222789, 0.4669829, 0.3810334, 0.4944591]),
    ("ForwardInitialHiddenState", X, [2], [0.5, -0.5], {}, [0.2366661, -0.1500429, 0.07378622, -0.02782359]),
    ("ForwardBatchLinearBeforeReset", [*X[:2], *X[:2], *X[2:], *X[2:]], [2, 2], [0.5, -0.5, 0, 0],
        {"linear_before_reset": 1},
        [0.2539424, -0.174207777, -0.0325528607, 0.0774837881,
         0.0874997079, -0.0485242009, -0.0577347837, 0.0796165839]),
    ("SequenceLengthWithPartialZero", [-0.455351, -0.276391, 0.455351, 0.276391, -0.185934, -0.269585, 0.185934,
        0.269585], [2, 0], [0] * 8, BOTH,
        [-0.03255286, 0.0774838, 0, 0, -0.05469977, 0.1004222, 0, 0,
         -0.05556786, 0.0785508, 0, 0, -0.04566499, 0.04621252, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "lengths", "initial", "attrs", "expected"), [c[1:] for c in GRU_CASES], ids=[c[0] for c in GRU_CASES]
)
def test_gru(
    x: list[float], lengths: list[int], initial: list[float], attrs: dict[str, Any], expected: list[float]
) -> None:
    arrays, batch = doubled(GRU, attrs), len(lengths)
    arrays |= {"X": np.reshape(x, (-1, batch, 2)), "sequence_lens": np.array(lengths)}
    arrays["initial_h"] = np.reshape(initial, (len(arrays["W"]), batch, 2))
    check(run("GRU", arrays, attrs), {"Y": expected})


def large_gru(directions: int) -> dict[str, Array]:
    """Return the weights of the 32 units that the larger cases share."""
    gates = np.repeat([0.1, 0.2, 0.3], 32)
    unit = np.arange(32)
    R = np.concatenate([np.diag(0.1 + 0.1 * (unit % period)) for period in (2, 3, 5)])
    bias = np.concatenate([gates, np.zeros(96)])
    return {"W": np.tile(gates[:, None], (directions, 1, 2)), "R": np.tile(R, (directions, 1, 1)),
            "B": np.tile(bias, (directions, 1))}  # fmt: skip


def test_gru_positive_activation_clipping() -> None:
    x = np.array([1000, 2000, -1e20, -1e10]).reshape(1, 2, 2)
    found = run("GRU", {**large_gru(1), "X": x, "initial_h": np.full((1, 2, 32), 0.25)}, {"clip": 9999999999.0})
    check(found, {"Y": [0.25] * 32 + [-1.0] * 32})


def test_gru_positive_activation_alpha_beta() -> None:
    attrs = {"direction": "bidirectional", "activations": ["LeakyRelu", "Tanh", "Sigmoid", "ScaledTanh"]}
    attrs |= {"activation_alpha": [0.5, 2.0], "activation_beta": [2.0]}
    arrays = {**large_gru(2), "X": np.array([1.0, 2.0]).reshape(1, 1, 2), "initial_h": np.full((2, 1, 32), 0.25)}
    y = run("GRU", arrays, attrs)["Y"]
    forward = [0.589157104133446, 0.57789190635582, 0.596499289838044, 0.583932266186645, 0.602660999282266]
    reverse = [0.92976461079108, 0.920318863429123, 0.931350963541001, 0.921736050322775, 0.932696544850119]
    check({"forward": y[0, 0, 0, :5], "reverse": y[0, 1, 0, :5]}, {"forward": forward, "reverse": reverse})


def test_rnn_bidirectional_with_sequence_lens() -> None:
    arrays = {
        "X": np.reshape([1, 2, 3, 4, 5, 6, 3, 1, 4, 4, 6, 3], (2, 3, 2)),
        "W": np.reshape([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.5, 0.6, 0.7, 0.3, 0.8, 0.4, 0.9, 0.5, 0.1, 0.6], (2, 4, 2)),
        "R": np.stack([np.full((4, 4), 0.1), np.full((4, 4), 0.2)]),
        "B": np.full((2, 8), 0.1),
        "sequence_lens": np.array([1, 2, 2]),
    }
    found = run("RNN", arrays, {"direction": "bidirectional", "activations": ["Relu", "Tanh"]})
    forward = [0.7, 1.3, 1.9, 1.9, 2.62, 4.22, 5.82, 5.82, 3.26, 5.06, 6.86, 6.86]
    reverse = [0.90514827, 0.94680595, 0.97045195, 0.90514827, 0.99963105, 0.99990892, 0.99997759, 0.99877548]
    reverse += [0.99999332, 0.99999928, 1.0, 0.99992537]
    check(found, {"Y_h": forward + reverse})


def test_rnn_reverse_direction_zigged_batch() -> None:
    rows = [[0.54881352, 0.71518934, 0.60276335, 0.54488319, 0.42365479, 0.64589411, 0.4375872, 0.89177299,
             0.96366274, 0.38344151],
            [0.41702199, 0.720324516, 0.0001143748, 0.30233258, 0.146755889, 0.0923385918, 0, 0, 0, 0]]  # fmt: skip
    arrays = {
        "X": np.reshape(rows, (2, 5, 2)).transpose(1, 0, 2),
        "W": np.reshape([0.60482931, 0.67304987, 0.13166776, -0.33417314, 0.66345924, -0.49411628], (1, 3, 2)),
        "R": np.reshape([0.50877059, 0.78382635, 0.665046, 0.89860243, -0.71745688, 0.80142093,
                         -0.76517141, -0.88981366, -0.48568386], (1, 3, 3)),
        "sequence_lens": np.array([5, 3]),
    }  # fmt: skip
    found = run("RNN", arrays, {"direction": "reverse"})
    check(found, {"Y_h": [0.87014002, 0.09402763, -0.54269236, 0.64809889, -0.19472955, -0.24271242]})
    last = found["Y"][:, 0, 1].ravel()
    check({"row": last}, {"row": [0.64809889, -0.19472955, -0.24271242, 0.29596764, 0.08308408, -0.27175695,
                                  0.14977546, -0.01153355, 0.05169443, *[0.0] * 6]})  # fmt: skip
