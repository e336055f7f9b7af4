"""The cases as ONNX models, with every dimension exact: what onnxruntime, OpenVINO and fastlstm load."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.cases import Case

Array = npt.NDArray[Any]

OPSET = 21
IR_VERSION = 10  # the one that opset 21 came with: older runtimes read it too

# ONNX's gate order, as positions in PyTorch's
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def recurrent_model(case: Case, weights_of: Case | None = None) -> onnx.ModelProto:
    """Return the case as a chain of recurrent nodes from ``x`` [T, B, I] to ``y`` [T, B, D*H].

    A stateful case (one layer, one direction) also has the inputs ``h_0`` and ``c_0`` and the outputs
    ``h_n`` and ``c_n``. A case with a projection has no ONNX form. With `weights_of` the weights are those of
    another case.
    """
    if case.projection:
        raise ValueError(f"ONNX's LSTM has no projection: '{case.name}' cannot be written.")
    builder = _Builder()
    value = "x"
    for layer, directions in enumerate((weights_of or case).weights()):
        last = layer == case.layers - 1
        value = builder.layer(case, layer, value, "y" if last else f"y_{layer}", directions)
    return builder.model(case, [case.T, case.B, case.directions * case.H])


def recurrent_dense_model(case: Case, dense: Array, weights_of: Case | None = None) -> onnx.ModelProto:
    """Return the case followed by a dense layer with weight `dense` [H, O] and no bias, ``y`` [T, B, O].

    With `weights_of` the weights are those of another case, so that two lengths make one network.
    """
    builder = _Builder()
    builder.layer(case, 0, "x", "h", (weights_of or case).weights()[0])
    builder.nodes.append(helper.make_node("MatMul", ["h", builder.tensor("dense", dense)], ["y"]))
    return builder.model(case, [case.T, case.B, dense.shape[1]])


def onnx_order(array: Array, op: str) -> Array:
    """Return `array` [gates*H, ...] with its gates moved from PyTorch's order to ONNX's."""
    gates = np.split(array, len(_GATES[op]))
    return np.concatenate([gates[position] for position in _GATES[op]])


class _Builder:
    """Collects the nodes and initialisers of one model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def tensor(self, name: str, array: Array) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def layer(self, case: Case, layer: int, x: str, y: str, directions: list[dict[str, Array]]) -> str:
        """Add one layer, and what turns its Y [T, D, B, H] into `y` [T, B, D*H]; return `y`."""
        op, suffix = case.op, f"_{layer}"
        ordered = [{name: onnx_order(array, op) for name, array in d.items()} for d in directions]
        biases = [np.concatenate([d["bias_ih"], d["bias_hh"]]) for d in ordered]
        inputs = [
            x,
            self.tensor("W" + suffix, np.stack([d["weight_ih"] for d in ordered])),
            self.tensor("R" + suffix, np.stack([d["weight_hh"] for d in ordered])),
            self.tensor("B" + suffix, np.stack(biases)),
            self._lengths(case, layer),
            *_states(case, "h_0", "c_0"),
        ]
        outputs = ["Y" + suffix, *_states(case, "h_n", "c_n")]
        attributes: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
        if case.directions == 2:
            attributes["direction"] = "bidirectional"
        self.nodes.append(helper.make_node(op, inputs, outputs, hidden_size=case.H, **attributes))
        self._merge(case, suffix, y)
        return y

    def _lengths(self, case: Case, layer: int) -> str:
        if not case.lengths:
            return ""
        return "lengths" if layer else self.tensor("lengths", np.array(case.lengths, np.int32))

    def _merge(self, case: Case, suffix: str, y: str) -> None:
        if case.directions == 1:
            axes = self.tensor("axes" + suffix, np.array([1], np.int64))
            self.nodes.append(helper.make_node("Squeeze", ["Y" + suffix, axes], [y]))
            return
        shape = self.tensor("shape" + suffix, np.array([0, 0, -1], np.int64))
        self.nodes += [
            helper.make_node("Transpose", ["Y" + suffix], ["Yt" + suffix], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["Yt" + suffix, shape], [y]),
        ]

    def model(self, case: Case, y_shape: list[int]) -> onnx.ModelProto:
        def info(name: str, shape: list[int]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        state = [1, case.B, case.H]
        inputs = [info("x", [case.T, case.B, case.I]), *(info(n, state) for n in _states(case, "h_0", "c_0"))]
        outputs = [info("y", y_shape), *(info(n, state) for n in _states(case, "h_n", "c_n"))]
        graph = helper.make_graph(self.nodes, "case", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def _states(case: Case, h: str, c: str) -> list[str]:
    if not case.stateful:
        return []
    return [h, c] if case.op == "LSTM" else [h]
