"""What every layer means, in float64 NumPy, written to be read. The kernels are tested against this.

The recurrent layers, with x_t the input and h, c the state before step t; W, R, b the slices of ``w_ih``,
``w_hh`` and ``bias`` that belong to a gate; f, g, k the activations in the order the node lists them; `*`
element by element; and clip() the bound that a node's ``clip`` sets on the sums of the gates (as in
onnxruntime, not on c' before its activation):

LSTM (Hochreiter and Schmidhuber 1997; peepholes p: Gers and others 2002; projection: Sak and others 2014)::

    i  = f(clip(W_i x_t + R_i h + b_i + p_i * c))
    f  = f(clip(W_f x_t + R_f h + b_f + p_f * c))          or 1 - i with input_forget
    g  = g(clip(W_g x_t + R_g h + b_g))
    c' = f * c + i * g
    o  = f(clip(W_o x_t + R_o h + b_o + p_o * c'))
    h' = w_hr (o * k(c'))                                  without w_hr: o * k(c')

with layer normalisation (Ba and others 2016), N(v) = (v - mean(v)) / sqrt(var(v) + epsilon) over all gates, s its
scales::

    i, f, g, o  from  s_x N(W x_t) + s_h N(R h) + b        in place of W x_t + R h + b
    c' = s_c N(f * c + i * g) + b_c

GRU (Cho and others 2014)::

    r  = f(clip(W_r x_t + R_r h + b_r))
    z  = f(clip(W_z x_t + R_z h + b_z))
    n  = g(clip(W_n x_t + b_in + r * (R_n h + b_hn)))      reset_after = 1
    n  = g(clip(W_n x_t + b_in + R_n (r * h) + b_hn))      reset_after = 0
    h' = (1 - z) * n + z * h

RNN::

    h' = f(clip(W x_t + R h + b))

Shapes and the meaning of lengths, mask and directions are those of `fastlstm.graph`. Everything that is not
recurrent is defined in `fastlstm.operators`, which works in the precision of what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm import operators
from fastlstm.errors import InputError, counted
from fastlstm.graph import QUANTISED_INPUTS, RECURRENT_OPS, Graph, Node, RecurrentInputs, default_activations
from fastlstm.operators.activations import activation
from fastlstm.typing import Array

__all__ = ["dense", "gru", "lstm", "rnn", "run"]

Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]


def lstm(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    bias: Array | None = None,
    lengths: Array | None = None,
    mask: Array | None = None,
    h_0: Array | None = None,
    c_0: Array | None = None,
    peephole: Array | None = None,
    w_hr: Array | None = None,
    norm: Array | None = None,
    *,
    directions: Sequence[str] = ("forward",),
    activations: Sequence[Sequence[Sequence[Any]]] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
    norm_epsilon: float | None = None,
) -> tuple[Array, Array, Array]:
    """Run an LSTM layer over x.

    Parameters
    ----------
    x : array, [T, B, I]
    w_ih, w_hh, bias : arrays, [D, 4*H, I], [D, 4*H, P], [D, 4*H]
        Gates in the order i, f, g, o.
    lengths : array of int, [B], optional
    mask : array of bool, [T, B], optional
    h_0, c_0 : arrays, [D, B, P], [D, B, H], optional
    peephole : array, [D, 3*H], optional
        In the order i, f, o.
    w_hr : array, [D, P, H], optional
    norm : array, [D, 10*H], optional
        Scales of the input's sums, of the recurrent sums and of the cell states; these states' bias.
    directions, activations, clip, input_forget, norm_epsilon
        As the attributes in `fastlstm.graph`.

    Returns
    -------
    y, h_n, c_n : float64 arrays, [T, B, D*P], [D, B, P], [D, B, H]
    """
    x, w_ih, w_hh = _float64(x), _float64(w_ih), _float64(w_hh)
    H = w_ih.shape[1] // 4
    bound = _bound(clip)

    def cell(d: int) -> Step:
        gate, candidate, output = _activations("LSTM", activations, d)
        W, R, b = w_ih[d].T, w_hh[d].T, _row(bias, d)

        def peek(position: int, c: Array) -> Array | float:
            return 0.0 if peephole is None else _float64(peephole)[d, position * H : (position + 1) * H] * c

        s_x, s_h, s_c, b_c = (None,) * 4 if norm is None else np.split(_float64(norm)[d], (4 * H, 8 * H, 9 * H))

        def normal(v: Array, scale: Array | None) -> Array:
            if scale is None:
                return v
            away = v - v.mean(axis=-1, keepdims=True)
            deviation = np.sqrt((away * away).mean(axis=-1, keepdims=True) + norm_epsilon)
            scaled: Array = scale * away / deviation
            return scaled

        def step(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            h, c = state
            a_i, a_f, a_g, a_o = np.split(normal(x_t @ W, s_x) + normal(h @ R, s_h) + b, 4, axis=-1)
            i = gate(bound(a_i + peek(0, c)))
            f = 1 - i if input_forget else gate(bound(a_f + peek(1, c)))
            g = candidate(bound(a_g))
            c = normal(f * c + i * g, s_c) + (0.0 if b_c is None else b_c)
            o = gate(bound(a_o + peek(2, c)))
            h = o * output(c)
            return (h if w_hr is None else h @ _float64(w_hr)[d].T), c

        return step

    widths = (w_hh.shape[2], H)
    y, (h_n, c_n) = _layer(cell, x, (h_0, c_0), widths, directions, lengths, mask)
    return y, h_n, c_n


def gru(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    bias: Array | None = None,
    lengths: Array | None = None,
    mask: Array | None = None,
    h_0: Array | None = None,
    *,
    directions: Sequence[str] = ("forward",),
    activations: Sequence[Sequence[Sequence[Any]]] | None = None,
    clip: float | None = None,
    reset_after: int = 1,
) -> tuple[Array, Array]:
    """Run a GRU layer over x.

    Parameters
    ----------
    x : array, [T, B, I]
    w_ih, w_hh : arrays, [D, 3*H, I], [D, 3*H, H]
        Gates in the order r, z, n.
    bias : array, [D, 4*H], optional
        b_r, b_z, b_in, b_hn.
    lengths, mask, h_0
        As for `lstm`.
    directions, activations, clip, reset_after
        As the attributes in `fastlstm.graph`.

    Returns
    -------
    y, h_n : float64 arrays, [T, B, D*H], [D, B, H]
    """
    x, w_ih, w_hh = _float64(x), _float64(w_ih), _float64(w_hh)
    H = w_hh.shape[2]
    bound = _bound(clip)

    def cell(d: int) -> Step:
        gate, candidate = _activations("GRU", activations, d)
        W_r, W_z, W_n = (w.T for w in np.split(w_ih[d], 3))
        R_r, R_z, R_n = (w.T for w in np.split(w_hh[d], 3))
        b_r, b_z, b_in, b_hn = np.split(np.zeros(4 * H) if bias is None else _float64(bias)[d], 4)

        def step(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            (h,) = state
            r = gate(bound(x_t @ W_r + h @ R_r + b_r))
            z = gate(bound(x_t @ W_z + h @ R_z + b_z))
            recurrent = r * (h @ R_n + b_hn) if reset_after else (r * h) @ R_n + b_hn
            n = candidate(bound(x_t @ W_n + b_in + recurrent))
            return ((1 - z) * n + z * h,)

        return step

    y, (h_n,) = _layer(cell, x, (h_0,), (H,), directions, lengths, mask)
    return y, h_n


def rnn(
    x: Array,
    w_ih: Array,
    w_hh: Array,
    bias: Array | None = None,
    lengths: Array | None = None,
    mask: Array | None = None,
    h_0: Array | None = None,
    *,
    directions: Sequence[str] = ("forward",),
    activations: Sequence[Sequence[Sequence[Any]]] | None = None,
    clip: float | None = None,
) -> tuple[Array, Array]:
    """Run a plain recurrent layer over x.

    Parameters
    ----------
    x : array, [T, B, I]
    w_ih, w_hh, bias : arrays, [D, H, I], [D, H, H], [D, H]
    lengths, mask, h_0
        As for `lstm`.
    directions, activations, clip
        As the attributes in `fastlstm.graph`.

    Returns
    -------
    y, h_n : float64 arrays, [T, B, D*H], [D, B, H]
    """
    x, w_ih, w_hh = _float64(x), _float64(w_ih), _float64(w_hh)
    bound = _bound(clip)

    def cell(d: int) -> Step:
        (function,) = _activations("RNN", activations, d)
        W, R, b = w_ih[d].T, w_hh[d].T, _row(bias, d)
        return lambda x_t, state: (function(bound(x_t @ W + state[0] @ R + b)),)

    y, (h_n,) = _layer(cell, x, (h_0,), (w_hh.shape[2],), directions, lengths, mask)
    return y, h_n


def dense(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return x @ weight + bias in float64, for x [..., I], weight [I, O], bias [O]."""
    y = _float64(x) @ _float64(weight)
    return y if bias is None else y + _float64(bias)


def run(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Run a whole graph, node by node.

    Parameters
    ----------
    graph : Graph
    inputs : mapping of str to array
        One array (a list of arrays for a sequence) for each of the graph's inputs. Floats become float64, all
        else keeps its dtype.

    Returns
    -------
    dict of str to array
        The graph's outputs; floats are float64, whatever the model declares.

    Raises
    ------
    InputError
        If an input is missing or unknown, or a node's inputs do not fit it; the message names the node.
    UnsupportedError
        If a node's operator or attribute is not known.
    """
    expected = [spec.name for spec in graph.inputs]
    if set(expected) != set(inputs):
        raise InputError(f"The model's inputs are {expected}; got {list(inputs)}. Give each of them once.")
    with np.errstate(all="ignore"):
        given = {name: list(map(np.asarray, v)) if isinstance(v, list) else np.asarray(v) for name, v in inputs.items()}
        values = _run(graph, given, {})
    return {spec.name: value for spec, value in zip(graph.outputs, values, strict=True)}


def _run(graph: Graph, inputs: Mapping[str, Any], outer: Mapping[str, Any]) -> list[Any]:
    """Return the outputs of `graph`, whose nodes may read the values of the graphs around it in `outer`."""
    values = {**outer, **_widened(graph.constants), **_widened(inputs)}
    for node in graph.nodes:
        found = [values[name] if name else None for name in node.inputs]
        if node.op in RECURRENT_OPS:
            results = _recurrent(node, _scaled(node, found))
        else:
            results = operators.evaluate(
                _in_float64(node), found, run_graph=lambda body, given: _run(body, given, values)
            )
        values.update(_widened({name: r for name, r in zip(node.outputs, results, strict=False) if name}))
    return [values[spec.name] for spec in graph.outputs]


def _scaled(node: Node, inputs: list[Any]) -> list[Any]:
    """Return a recurrent node's inputs with integer weights as the values that they stand for."""
    scales = [at for _, at in QUANTISED_INPUTS[node.op]]
    scaled = inputs[: min(scales)]
    for weight, at in QUANTISED_INPUTS[node.op]:
        if at < len(inputs) and inputs[at] is not None:
            scaled[weight] = inputs[weight] * inputs[at][..., None]
    norm = RecurrentInputs.position("norm")
    return [*scaled, inputs[norm]] if node.op in RECURRENT_OPS and norm < len(inputs) else scaled


def _recurrent(node: Node, inputs: list[Array | None]) -> tuple[Array, ...]:
    """Return the outputs of an LSTM, GRU or RNN node."""
    layers: Mapping[str, Callable[..., tuple[Array, ...]]] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
    attrs = {name: value for name, value in node.attrs.items() if name != "hidden_size"}
    try:
        return layers[node.op](*inputs, **attrs)
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{node.op} node '{node.name or node.output(0)}': {error}") from error


def _in_float64(node: Node) -> Node:
    """Return the node with a cast to a narrower float turned into one to float64."""
    if node.op == "Cast" and operators.dtype_of(node.attrs["to"]).kind == "f":
        return replace(node, attrs={**node.attrs, "to": "float64"})
    return node


def _widened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with every float array as float64; sequences are lists of arrays."""

    def widen(value: Any) -> Any:
        if isinstance(value, list):
            return [widen(item) for item in value]
        return value.astype(np.float64) if value is not None and value.dtype.kind == "f" else value

    return {name: widen(value) for name, value in values.items()}


def _layer(
    cell: Callable[[int], Step],
    x: Array,
    initial: tuple[Array | None, ...],
    widths: tuple[int, ...],
    directions: Sequence[str],
    lengths: Array | None,
    mask: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    """Return y and the final states of a layer from the step of each direction's cell."""
    T, B, _ = x.shape
    within = np.ones((T, B), dtype=bool) if lengths is None else np.arange(T)[:, None] < _checked(lengths, T, B)
    live = within if mask is None else within & np.asarray(mask, dtype=bool)
    outputs, finals = [], []
    for d, direction in enumerate(directions):
        states = tuple(
            np.zeros((B, width)) if array is None else np.broadcast_to(_float64(array)[d], (B, width))
            for array, width in zip(initial, widths, strict=True)
        )
        y, final = _sequence(cell(d), x, states, within, live, reverse=direction == "reverse")
        outputs.append(y)
        finals.append(final)
    return np.concatenate(outputs, axis=-1), tuple(np.stack(state) for state in zip(*finals, strict=True))


def _sequence(
    step: Step, x: Array, states: tuple[Array, ...], within: Array, live: Array, *, reverse: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Run one direction over time.

    A row takes part in a step where `live` [T, B] says so; elsewhere its state stays as it is. That alone
    makes the reverse direction start at each row's own end. y repeats the last output on steps that are
    within the row's length but not live (masked), and is 0 where `within` [T, B] is False.
    """
    T, B, _ = x.shape
    last = np.zeros_like(states[0])
    y = np.zeros((T, B, last.shape[-1]))
    for t in reversed(range(T)) if reverse else range(T):
        row = live[t][:, None]
        new = step(x[t], states)
        states = tuple(np.where(row, after, before) for after, before in zip(new, states, strict=True))
        last = np.where(row, new[0], last)
        y[t] = np.where(within[t][:, None], last, 0.0)
    return y, states


def _checked(lengths: Array, T: int, B: int) -> Array:
    lengths = np.asarray(lengths)
    if lengths.shape != (B,) or lengths.dtype.kind not in "iu" or ((lengths < 0) | (lengths > T)).any():
        raise InputError(f"Expected {counted(B, 'integer length')} between 0 and {T}; got {lengths.tolist()}.")
    return lengths


def _activations(
    op: str, given: Sequence[Sequence[Sequence[Any]]] | None, direction: int
) -> list[Callable[[Array], Array]]:
    listed = default_activations(op)[0] if given is None else given[direction]
    return [activation(*one) for one in listed]


def _bound(clip: float | None) -> Callable[[Array], Array]:
    """Return the function that holds its argument within [-clip, clip] (NaN stays NaN)."""
    return (lambda a: a) if clip is None else (lambda a: np.clip(a, -clip, clip))


def _row(bias: Array | None, d: int) -> Array:
    return np.zeros(()) if bias is None else _float64(bias)[d]


def _float64(array: Array) -> Array:
    return np.asarray(array, dtype=np.float64)
