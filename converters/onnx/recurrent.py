"""ONNX's LSTM, GRU and RNN as the canonical nodes of `fastlstm.graph`.

ONNX stacks the gates as i, o, f, c (LSTM) and z, r, h (GRU), has two biases, and puts the directions on an
axis of their own. The weights are put in order by Split, Concat, Add and Cast nodes; where they are
constant, as in every exported model, these are computed at once and only the result is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.onnx.scope import OnnxNode, Scope
from fastlstm.errors import counted
from fastlstm.graph import RECURRENT_OPS, RecurrentInputs, default_activations
from fastlstm.operators.activations import ACTIVATIONS

__all__ = ["ACTIVATION_NAMES", "ATTRIBUTES", "recurrent"]

_COMMON = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout")

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "LSTM": (*_COMMON, "input_forget"),
    "GRU": (*_COMMON, "linear_before_reset"),
    "RNN": _COMMON,
}
"""The attributes of each operator: all that ONNX defines."""

ACTIVATION_NAMES: Mapping[str, str] = {
    name.lower(): name
    for name in (
        *("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu"),
        *("ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"),
    )
}
"""The activations that ONNX lists. Case does not matter: onnxruntime ignores it, and files rely on that."""

# Where ONNX keeps each of the canonical gates.
_GATES: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_PEEPHOLES = (0, 2, 1)

_DIRECTIONS: Mapping[str, list[str]] = {
    "forward": ["forward"],
    "reverse": ["reverse"],
    "bidirectional": ["forward", "reverse"],
}
_NUMBERS = {"float32": 1, "float16": 10, "float64": 11}


def recurrent(node: OnnxNode, scope: Scope) -> None:
    """Write a recurrent node of ONNX into `scope`.

    Raises
    ------
    UnsupportedError
        If an attribute has a value that ONNX does not define, or the weights do not fit one another.
    """
    directions = _choice(node, "direction", "forward", _DIRECTIONS)
    layout = _choice(node, "layout", 0, {0: 0, 1: 1})
    hidden = _hidden_size(node, scope, len(directions))
    attrs: dict[str, Any] = {
        "hidden_size": hidden,
        "directions": directions,
        "activations": _activations(node, len(directions)),
        "clip": _clip(node),
    }
    if node.op == "LSTM":
        attrs["input_forget"] = _choice(node, "input_forget", 0, {0: 0, 1: 1})
    if node.op == "GRU":
        attrs["reset_after"] = _choice(node, "linear_before_reset", 0, {0: 0, 1: 1})
    dtype = _element_type(node, scope)
    h_0, c_0 = (_state(node, scope, node.input(i), dtype, layout) for i in (5, 6))
    x = _cast(scope, node.input(0), dtype, "float32", f"{node.name}.x")
    read = RecurrentInputs(
        scope.node("Transpose", x, name=f"{node.name}.x", perm=[1, 0, 2]) if layout else x,
        _weight(node, scope, 1, "w_ih", dtype, hidden),
        _weight(node, scope, 2, "w_hh", dtype, hidden),
        _bias(node, scope, dtype, hidden),
        scope.as_constant(node.input(4), f"{node.name}.lengths"),
        h_0=h_0,
        c_0=c_0 if node.op == "LSTM" else "",
        peephole=_peepholes(node, scope, dtype, hidden) if node.op == "LSTM" else "",
    )
    weights = (read.w_ih, read.w_hh, read.bias, read.peephole)
    if any(value and scope.known(value) is None for value in weights):
        scope.note(f"The weights of {node.op} '{node.name}' come at run time: they are packed anew for each call.")
    _outputs(node, scope, read.given(), attrs, dtype, layout)


def _outputs(
    node: OnnxNode, scope: Scope, inputs: Sequence[str], attrs: dict[str, Any], dtype: str, layout: int
) -> None:
    """Add the canonical node and give its results ONNX's shapes, element type and names."""
    directions, hidden = len(attrs["directions"]), attrs["hidden_size"]
    names = ["y", "h_n", "c_n"][: 3 if node.op == "LSTM" else 2]
    as_they_are = not layout and dtype == "float32"  # the states, in time-major float32
    outputs = [scope.unique(f"{node.name}.{n}") if node.output(i) else "" for i, n in enumerate(names)]
    if as_they_are:
        outputs[1:] = [node.output(i) for i in range(1, len(names))]
    scope.define(node.op, inputs, outputs, node.name, **attrs)
    if outputs[0]:
        shape = scope.constant(f"{node.name}.shape", np.array([0, 0, directions, hidden], np.int64))
        y = scope.node("Reshape", outputs[0], shape, name=f"{node.name}.split")
        _finish(node, scope, 0, y, dtype, [1, 0, 2, 3] if layout else [0, 2, 1, 3])
    for position, value in enumerate(outputs[1:], start=1):
        if value and not as_they_are:
            _finish(node, scope, position, value, dtype, [1, 0, 2] if layout else [0, 1, 2])


def _choice(node: OnnxNode, attribute: str, default: Any, choices: Mapping[Any, Any]) -> Any:
    value = node.attrs.get(attribute, default)
    if value not in choices:
        supported = ", ".join(str(c) for c in choices)
        raise node.unsupported(f"{attribute}={value!r} is not supported; supported: {supported}.")
    return choices[value]


def _clip(node: OnnxNode) -> float | None:
    clip = node.attrs.get("clip")
    if clip is not None and not clip > 0:
        raise node.unsupported(f"clip={clip} is not supported; supported are positive numbers.")
    return None if clip is None else float(clip)


def _hidden_size(node: OnnxNode, scope: Scope, directions: int) -> int:
    """Return H, from the attribute or from R, with every constant weight's shape checked against it."""
    gates = RECURRENT_OPS[node.op]
    arrays = {i: scope.known(node.input(i)) for i in (1, 2, 3, 7) if node.input(i)}
    hidden = node.attrs.get("hidden_size")
    R = arrays.get(2)
    if hidden is None and R is not None and R.ndim == 3:
        hidden = int(R.shape[2])
    if hidden is None or hidden <= 0:
        raise node.unsupported(
            f"hidden_size={hidden} is not supported; supported is a positive size (or none and a constant R)."
        )
    shapes: Mapping[int, tuple[str, tuple[int | str, ...]]] = {
        1: ("W", (directions, gates * hidden, "input_size")),
        2: ("R", (directions, gates * hidden, hidden)),
        3: ("B", (directions, 2 * gates * hidden)),
        7: ("P", (directions, 3 * hidden)),
    }
    for position, array in arrays.items():
        name, shape = shapes[position]
        if array is None:
            continue
        fits = array.ndim == len(shape) and all(
            isinstance(want, str) or got == want for got, want in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype.name not in _NUMBERS:
            wanted = ", ".join(str(d) for d in shape)
            raise node.unsupported(
                f"{name} should be a float tensor of shape [{wanted}] "
                f"({counted(directions, 'direction')}, hidden_size {hidden}); got {array.dtype}{list(array.shape)}."
            )
    return int(hidden)


def _activations(node: OnnxNode, directions: int) -> list[list[list[Any]]]:
    """Return the attribute `activations` of the canonical node.

    The lists of alpha and beta are consumed in order by the functions that take them; those that find
    nothing left get the function's default.
    """
    names = node.attrs.get("activations")
    standard = default_activations(node.op, directions)
    if names is None:
        names = [name for per_direction in standard for name, *_ in per_direction]
    each = len(standard[0])
    if len(names) == 2 * each * directions and names[:each] == names[each:]:
        names = names[:each]  # RNN's default in the standard is two of them, whatever the direction
    if len(names) != each * directions:
        raise node.unsupported(
            f"activations should be {each} for each of {counted(directions, 'direction')}; got {len(names)}: {names}."
        )
    parameters = [list(node.attrs.get(f"activation_{key}", ())) for key in ("alpha", "beta")]
    functions = [_activation(node, name, parameters) for name in names]
    takers = any(value is not None for function in functions for value in function[1:])
    if takers and any(parameters):
        raise node.unsupported(
            f"activation_alpha and activation_beta hold more values than the activations {names} take."
        )
    return [functions[start : start + each] for start in range(0, len(functions), each)]


def _activation(node: OnnxNode, name: str, parameters: list[list[float]]) -> list[Any]:
    if name.lower() not in ACTIVATION_NAMES:
        supported = ", ".join(ACTIVATION_NAMES.values())
        raise node.unsupported(f"the activation '{name}' is not supported; supported: {supported}.")
    name = ACTIVATION_NAMES[name.lower()]
    values: list[float | None] = []
    for given, default in zip(parameters, ACTIVATIONS[name].defaults, strict=True):
        values.append(default if default is None or not given else float(given.pop(0)))
    if any(value is not None and not math.isfinite(value) for value in values):
        raise node.unsupported(f"the activation {name} has the parameters {values}; they should be finite.")
    return [name, *values]


def _element_type(node: OnnxNode, scope: Scope) -> str:
    """Return the float type that ONNX demands of x, the weights, the states and the outputs alike."""
    for position in (1, 2, 0):
        array = scope.known(node.input(position))
        spec = scope.spec(node.input(position))
        dtype = array.dtype.name if array is not None else spec.dtype if spec is not None else ""
        if dtype:
            break
    else:
        dtype = "float32"
    if dtype not in _NUMBERS:
        raise node.unsupported(f"the element type {dtype} is not supported; supported: {', '.join(_NUMBERS)}.")
    if dtype != "float32":
        scope.note(f"{node.op} '{node.name}' is stored in {dtype}; its weights and sums are float32 here.")
    return dtype


def _cast(scope: Scope, value: str, source: str, target: str, hint: str) -> str:
    if not value or source == target:
        return value
    return scope.node("Cast", value, name=f"{hint}.cast", to=_NUMBERS[target])


def _parts(scope: Scope, value: str, count: int, size: int, hint: str) -> list[str]:
    """Split the rows of a weight (its axis 1) into `count` parts of `size`; weights of other sizes are refused."""
    names = [f"{hint}.{i}" for i in range(count)]
    sizes = scope.constant(f"{hint}.sizes", np.full(count, size, np.int64))
    return scope.nodes_out("Split", [value, sizes], names, axis=1)


def _joined(scope: Scope, parts: Sequence[str], hint: str) -> str:
    return scope.node("Concat", *parts, name=f"{hint}.joined", axis=1)


def _weight(node: OnnxNode, scope: Scope, position: int, name: str, dtype: str, hidden: int) -> str:
    value = _cast(scope, node.input(position), dtype, "float32", f"{node.name}.{name}")
    gates = _GATES[node.op]
    if len(gates) > 1:
        parts = _parts(scope, value, len(gates), hidden, f"{node.name}.{name}.gate")
        value = _joined(scope, [parts[g] for g in gates], f"{node.name}.{name}")
    return scope.as_constant(value, f"{node.name}.{name}")


def _bias(node: OnnxNode, scope: Scope, dtype: str, hidden: int) -> str:
    """Return the sum of the two biases; of a GRU's candidate they stay apart, as [.., b_in, b_hn]."""
    if not node.input(3):
        return ""
    gates, hint = _GATES[node.op], f"{node.name}.bias"
    value = _cast(scope, node.input(3), dtype, "float32", hint)
    parts = _parts(scope, value, 2 * len(gates), hidden, f"{hint}.gate")
    pairs = [(parts[g], parts[len(gates) + g]) for g in gates]
    apart = pairs.pop() if node.op == "GRU" else ()
    sums = [scope.node("Add", *pair, name=f"{hint}.sum") for pair in pairs]
    return scope.as_constant(_joined(scope, [*sums, *apart], hint), hint)


def _peepholes(node: OnnxNode, scope: Scope, dtype: str, hidden: int) -> str:
    if not node.input(7):
        return ""
    hint = f"{node.name}.peephole"
    value = _cast(scope, node.input(7), dtype, "float32", hint)
    parts = _parts(scope, value, 3, hidden, f"{hint}.gate")
    return scope.as_constant(_joined(scope, [parts[p] for p in _PEEPHOLES], hint), hint)


def _state(node: OnnxNode, scope: Scope, value: str, dtype: str, layout: int) -> str:
    """Return an initial state as [D, B, H]; an all-zero one is absent, whatever batch was traced."""
    array = scope.known(value) if value else None
    if not value or (array is not None and not np.any(array)):
        return ""
    value = _cast(scope, value, dtype, "float32", f"{node.name}.state")
    if layout:
        value = scope.node("Transpose", value, name=f"{node.name}.state.transposed", perm=[1, 0, 2])
    return scope.as_constant(value, f"{node.name}.state")


def _finish(node: OnnxNode, scope: Scope, position: int, value: str, dtype: str, perm: Sequence[int]) -> None:
    target = node.output(position)
    if dtype == "float32":
        scope.define("Transpose", [value], [target], node.name, perm=list(perm))
        return
    if list(perm) != sorted(perm):
        value = scope.node("Transpose", value, name=f"{node.name}.transposed", perm=list(perm))
    scope.define("Cast", [value], [target], node.name, to=_NUMBERS[dtype])
