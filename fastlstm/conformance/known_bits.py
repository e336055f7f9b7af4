"""Small models whose results are known bit by bit, on every processor: ``fastlstm doctor --report`` runs them.

Weights and inputs are integers times a power of two, made without a random generator, so nothing but fastlstm
decides the results. ``python -m fastlstm.conformance.known_bits`` writes this machine's to ``known_bits.json``, for
releases that change them; ``FASTLSTM_TARGET=x86-64-v2`` chooses the processors without fused multiply-adds, whose bits
are others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastlstm.graph import Graph, Node, RecurrentInputs, TensorSpec, default_activations
from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.model import Model
from fastlstm.target.machine import detect
from fastlstm.typing import Array

__all__ = ["Known", "expected", "fingerprint", "models"]

PLACE = Path(__file__).with_suffix(".json")


class Known(NamedTuple):
    """A model at work: each call computes the same."""

    name: str
    steps: int
    call: Callable[[], Array]


def expected() -> Mapping[str, str]:
    """Return what `fingerprint` should say of each model's results, by the models' names."""
    found: dict[str, dict[str, str]] = json.loads(PLACE.read_text(encoding="utf-8"))
    return found[_kind()]


def fingerprint(results: Array) -> str:
    """Return a hash of all bits of an array."""
    return hashlib.sha256(np.ascontiguousarray(results).tobytes()).hexdigest()[:16]


def models() -> Iterator[Known]:
    """Yield models of every kind of layer and weight: whole, ragged, by steps, and as one of a pool's streams."""
    small, x = Model(_forecaster(1, 20)), _numbers(50, 1, 1)
    stream, pool = small.stream(), small.streams(4)
    yield Known("LSTM 1 -> 20, Dense", 50, lambda: small(x))
    yield Known("the same by steps", 50, lambda: _by_steps(stream.reset, stream.step, x[:, 0]))
    yield Known("the same in a pool", 50, lambda: _in_pool(pool, x[:, 0]))
    layers = {
        "LSTM 64 -> 128": LSTM(*_weights(4, 64, 128)),
        "LSTM 64 -> 128, int16": LSTM(*_weights(4, 64, 128), precision="int16"),
        "LSTM 64 -> 128, int8": LSTM(*_weights(4, 64, 128), precision="int8"),
        "GRU 64 -> 128": GRU(*_weights(3, 64, 128)),
        "RNN 64 -> 128": RNN(*_weights(1, 64, 128)),
    }
    batch = _numbers(20, 3, 64)
    for name, layer in layers.items():
        yield Known(name, 20, lambda layer=layer: layer(batch)[0])  # type: ignore[misc]
    both = LSTM(*(np.stack([w, w[::-1]]) for w in _weights(4, 64, 128)))
    lengths = np.array([20, 0, 7])
    yield Known("bidirectional LSTM, ragged", 20, lambda: both(batch, lengths=lengths)[0])


def _kind() -> str:
    return "fused multiply-add" if detect().fma else "no fused multiply-add"


def _numbers(*shape: int) -> Array:
    """Return numbers between -0.25 and 0.25 that look random."""
    mixed = np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    whole = (mixed >> np.uint64(52)).astype(np.float32)
    return ((whole - 2048) / 8192).astype(np.float32).reshape(shape)


def _weights(gates: int, inputs: int, units: int) -> tuple[Array, Array, Array]:
    return _numbers(gates * units, inputs), _numbers(gates * units, units), _numbers((gates + (gates == 3)) * units)


def _forecaster(inputs: int, units: int) -> Graph:
    """Return the graph of an LSTM and a Dense layer behind it."""
    w_ih, w_hh, bias = (array[None] for array in _weights(4, inputs, units))
    attrs = {
        "hidden_size": units, "directions": ["forward"], "activations": default_activations("LSTM", 1), "clip": None,
        "input_forget": 0,
    }  # fmt: skip
    nodes = (
        Node("LSTM", RecurrentInputs("x", "w_ih", "w_hh", bias="bias").given(), ("y",), attrs),
        Node("Dense", ("y", "w", "b"), ("z",), {}),
    )
    constants = {"w_ih": w_ih, "w_hh": w_hh, "bias": bias, "w": _numbers(units, 1), "b": _numbers(1)}
    return Graph(
        (TensorSpec("x", ("T", "B", inputs)),), (TensorSpec("z", ("T", "B", 1)),), nodes, constants, "forecaster"
    )


def _by_steps(reset: Callable[[], None], step: Callable[[Array], Array], frames: Array) -> Array:
    reset()
    return np.stack([np.array(step(frame)) for frame in frames]).reshape(len(frames), 1, 1)


def _in_pool(pool: Any, frames: Array) -> Array:
    """Return what one of three streams gives that advance together."""
    ids = [pool.open() for _ in range(3)]
    try:
        rows = [np.array(pool.step(ids, np.stack([frame, -frame, frame / 2]))) for frame in frames]
    finally:
        for one in ids:
            pool.close(one)
    return np.stack(rows)[:, :1].reshape(len(frames), 1, 1)


def main() -> None:
    """Write what this machine computes."""
    found = json.loads(PLACE.read_text(encoding="utf-8")) if PLACE.exists() else {}
    found[_kind()] = {model.name: fingerprint(model.call()) for model in models()}
    PLACE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
