"""Operators of the domain com.microsoft that onnxruntime's tools leave in recurrent models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fastlstm.converters.onnx.recurrent import ATTRIBUTES, recurrent
from fastlstm.converters.onnx.scope import OnnxNode, Scope
from fastlstm.graph import Node, RecurrentInputs
from fastlstm.graph.quantise import SMALL
from fastlstm.typing import Array

__all__ = ["DOMAIN", "OPERATORS", "convert"]

DOMAIN = "com.microsoft"

OPERATORS: Mapping[str, tuple[str, ...]] = {
    "DynamicQuantizeLSTM": ATTRIBUTES["LSTM"],
    "FastGelu": (),
    "Gelu": (),
    "QuickGelu": ("alpha",),
}
"""The operators that are read, and their attributes."""

# Inputs of DynamicQuantizeLSTM past those it shares with LSTM.
_SCALES = {1: (8, 9), 2: (10, 11)}


def convert(node: OnnxNode, scope: Scope) -> None:
    """Write a node of com.microsoft into `scope` with operators of ai.onnx.

    Raises
    ------
    UnsupportedError
        If the operator or an attribute is not in `OPERATORS`, or quantised weights are not constant.
    """
    if node.op not in OPERATORS:
        raise node.unsupported(f"the operator of {DOMAIN} is not supported; supported: {', '.join(OPERATORS)}.")
    for name in node.attrs:
        if name not in OPERATORS[node.op]:
            supported = ", ".join(OPERATORS[node.op]) or "none"
            raise node.unsupported(f"the attribute '{name}' is not supported; supported: {supported}.")
    if node.op == "DynamicQuantizeLSTM":
        _quantized_lstm(node, scope)
    elif node.op == "QuickGelu":
        alpha = scope.constant(f"{node.name}.alpha", np.float32(node.attrs.get("alpha", 1.702)))
        scaled = scope.node("Mul", node.input(0), alpha, name=f"{node.name}.scaled")
        gate = scope.node("Sigmoid", scaled, name=f"{node.name}.gate")
        scope.define("Mul", [node.input(0), gate], node.outputs, node.name)
    else:
        x = node.input(0)
        if node.input(1):
            x = scope.node("Add", x, node.input(1), name=f"{node.name}.sum")
        approximate = "tanh" if node.op == "FastGelu" else "none"
        scope.define("Gelu", [x], node.outputs, node.name, approximate=approximate)


def _quantized_lstm(node: OnnxNode, scope: Scope) -> None:
    """Read it as an LSTM with its 8-bit weights, which lie [D, I, 4H], multiplied out; then take them as integers."""
    inputs, scales = [node.input(i) for i in range(8)], dict[str, Array]()
    for position, name, canonical in ((1, "W", "w_ih"), (2, "R", "w_hh")):
        weight, scale, zero = (_constant(node, scope, i) for i in (position, *_SCALES[position]))
        if weight.ndim != 3 or not {scale.ndim, zero.ndim} <= {1, 2}:
            raise node.unsupported(
                f"{name} should be [D, input, 4H] with scales [D] or [D, 4H]; "
                f"got {list(weight.shape)} with {list(scale.shape)}."
            )
        # One scale a direction, or one a column.
        scale, zero = (a.reshape(a.shape[0], 1, -1) for a in (scale, zero))
        try:
            plain = (weight.astype(np.float32) - zero.astype(np.float32)) * scale
        except ValueError:
            raise node.unsupported(
                f"the scales {list(scale.shape)} of {name} do not fit its shape {list(weight.shape)}."
            ) from None
        inputs[position], scales[canonical] = scope.constant(f"{node.name}.{name}", plain.transpose(0, 2, 1)), scale
    recurrent(node.replace(op="LSTM", inputs=tuple(inputs)), scope)
    at = next(i for i, made in enumerate(scope.nodes) if made.op == "LSTM" and made.name == node.name)
    scope.nodes[at] = _narrow(scope.nodes[at], scales, scope)
    if RecurrentInputs.of(scope.nodes[at]).w_ih_scale:
        scope.note(
            f"DynamicQuantizeLSTM '{node.name}': its 8-bit weights meet inputs that are rounded to 14 bits and outputs "
            "of its own that are rounded to 8, each row by itself; onnxruntime rounds both to 8."
        )
    else:
        scope.note(f"DynamicQuantizeLSTM '{node.name}': its 8-bit weights were turned into float32.")


def _narrow(lstm: Node, scales: Mapping[str, Array], scope: Scope) -> Node:
    """Return an LSTM with its weights as 8-bit integers again, where they fit and the layer is not a small one."""
    hidden = int(lstm.attrs["hidden_size"])
    read = RecurrentInputs.of(lstm)
    narrow, rows = dict[str, Array](), dict[str, Array]()
    for name, scale in scales.items():
        plain = scope.known(getattr(read, name))
        if plain is None or hidden <= SMALL["LSTM"]:
            return lstm
        # A scale a gate row, and the gates as `recurrent` has put them: i, o, f, c became i, f, c, o.
        each = np.broadcast_to(scale[:, 0, :], (len(scale), 4 * hidden)).reshape(-1, 4, hidden)[:, [0, 2, 3, 1]]
        rows[name] = np.ascontiguousarray(each.reshape(len(scale), 4 * hidden), np.float32)
        if not (np.isfinite(rows[name]).all() and (rows[name] > 0).all()):
            return lstm
        whole = np.rint(plain.astype(np.float64) / rows[name][..., None])
        if np.abs(whole).max(initial=0) > 128 or whole.max(initial=0) > 127:
            return lstm
        narrow[name] = whole.astype(np.int8)
    made: dict[str, str] = {}
    for name, weight in narrow.items():
        made[name] = scope.constant(f"{lstm.name}.int8", weight)
        made[f"{name}_scale"] = scope.constant(f"{lstm.name}.scale", rows[name])
    return replace(lstm, inputs=read._replace(**made).given())


def _constant(node: OnnxNode, scope: Scope, position: int) -> Array:
    value = scope.known(node.input(position)) if node.input(position) else None
    if value is None:
        raise node.unsupported(f"its input {position} (weights, scale or zero point) should be constant.")
    return value
