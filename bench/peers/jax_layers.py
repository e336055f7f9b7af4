"""The recurrent layers in JAX, as its users write them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bench.cases import Case

State = tuple[Any, Any]


def initial_state(case: Case) -> State:
    """Return zero h [B, P] and c [B, H]."""
    return jnp.zeros((case.B, case.output_size)), jnp.zeros((case.B, case.H))


def network(case: Case, weights: Any, x: Any, state: State) -> tuple[Any, State]:
    """Return y [T, B, D*P] and the last layer's state."""
    lengths = jnp.asarray(case.lengths)[:, None] if case.lengths else None
    for directions in weights:
        ys = []
        for reverse, arrays in enumerate(directions):
            y, after = _layer(case.op, arrays, x, state, bool(reverse), lengths)
            ys.append(y)
        x = jnp.concatenate(ys, -1) if len(ys) > 1 else ys[0]
    return x, after


def _layer(op: str, w: Any, x: Any, state: State, reverse: bool, lengths: Any) -> tuple[Any, State]:
    projected = x @ w["weight_ih"].T + w["bias_ih"]
    cell = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[op]

    def step(state: State, inputs: Any) -> tuple[State, Any]:
        t, gates = inputs
        after = cell(w, gates, state)
        if lengths is None:
            return after, after[0]
        valid = t < lengths
        kept = tuple(jnp.where(valid, new, old) for new, old in zip(after, state, strict=True))
        return kept, jnp.where(valid, after[0], 0)

    after, y = jax.lax.scan(step, state, (jnp.arange(x.shape[0]), projected), reverse=reverse)
    return y, after


def _lstm(w: Any, gates: Any, state: State) -> State:
    h, c = state
    i, f, g, o = jnp.split(gates + h @ w["weight_hh"].T + w["bias_hh"], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h @ w["weight_hr"].T if "weight_hr" in w else h), c


def _gru(w: Any, gates: Any, state: State) -> State:
    h, unused = state
    r_x, z_x, n_x = jnp.split(gates, 3, -1)
    r_h, z_h, n_h = jnp.split(h @ w["weight_hh"].T + w["bias_hh"], 3, -1)
    z = jax.nn.sigmoid(z_x + z_h)
    n = jnp.tanh(n_x + jax.nn.sigmoid(r_x + r_h) * n_h)
    return (1 - z) * n + z * h, unused


def _rnn(w: Any, gates: Any, state: State) -> State:
    h, unused = state
    return jnp.tanh(gates + h @ w["weight_hh"].T + w["bias_hh"]), unused
