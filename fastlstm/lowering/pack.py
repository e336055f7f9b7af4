"""Weights laid out the way the kernels read them: panels ``[panel][k][vector][lane]``, padded with zeros.

The planner asks for a layout by the lanes and vectors of the one kernel that will read it.
"""

from __future__ import annotations

import numpy as np

from fastlstm.program.memory import aligned, aligned_zeros
from fastlstm.typing import Array

__all__ = [
    "gate_panels", "gate_rows", "gate_tail", "integer_panels", "padded", "panels_of", "plain_panels",
    "tail_vectors",
]  # fmt: skip


def panels_of(units: int, lanes: int) -> int:
    """Return the panels that `units` hidden units need."""
    return -(-units // lanes)


def padded(vector: Array, lanes: int) -> Array:
    """Return a float32 copy of a vector, padded with zeros to whole vectors of `lanes`."""
    out = aligned_zeros(panels_of(vector.size, lanes) * lanes, np.float32)
    out[: vector.size] = vector
    return out


def gate_panels(weight: Array, gates: int, lanes: int) -> Array:
    """Return ``[panel][k][gate][lane]`` from a torch-shaped weight [gates * H, K]."""
    units, k = weight.shape[0] // gates, weight.shape[1]
    by_gate, whole = weight.reshape(gates, units, k), units // lanes
    out = aligned_zeros((panels_of(units, lanes), k, gates, lanes), np.float32)
    out[:whole] = by_gate[:, : whole * lanes].reshape(gates, whole, lanes, k).transpose(1, 3, 0, 2)
    out[whole:, :, :, : units - whole * lanes] = by_gate[:, whole * lanes :].transpose(2, 0, 1)
    return out


def tail_vectors(units: int, gates: int, lanes: int) -> int:
    """Return how many vectors hold all gates of the units after the last whole panel, 0 if a panel does as well."""
    rest = units % lanes
    vectors = -(-gates * rest // lanes)
    return vectors if units > lanes and vectors in (1, 2) else 0


def gate_tail(weight: Array, gates: int, lanes: int) -> tuple[Array, Array]:
    """Return a weight [gates * H, K] as whole panels and a tail ``[k][vector * lane]`` (see `tail_vectors`)."""
    units, k = weight.shape[0] // gates, weight.shape[1]
    vectors, whole = tail_vectors(units, gates, lanes), units // lanes * lanes
    by_gate = weight.reshape(gates, units, k)
    panels = gate_panels(by_gate[:, :whole].reshape(-1, k), gates, lanes)
    tail = gate_panels(by_gate[:, whole:].reshape(-1, k), gates, lanes * vectors // gates)
    return panels, aligned(tail.reshape(k, -1))


def gate_rows(bias: Array, gates: int, lanes: int) -> Array:
    """Return ``[panel][gate][lane]`` from a vector of gates * H values."""
    return gate_panels(bias.reshape(-1, 1), gates, lanes)


def integer_panels(panels: Array, scales: Array, bits: int, together: int, offset: int = 0) -> Array:
    """Return panels of integers, each preceded by its scales, as bytes ``[panel][byte]``.

    `panels` are integers ``[panel][k][vector][lane]``, `scales` ``[panel][vector][lane]``; `together` values of k are
    adjacent in the result. If every value of the other factor has an `offset` added, the scales are followed by the
    sums' int32 initial values, -offset * (sum over k).
    """
    count, k, vectors, lanes = panels.shape
    groups = -(-k // together)
    whole = np.zeros((count, groups * together, vectors, lanes), np.int16 if bits == 16 else np.int8)
    whole[:, :k] = panels
    parts = [scales.astype(np.float32)]
    if offset:
        parts.append((-offset * whole.sum(axis=1, dtype=np.int64)).astype(np.int32))
    whole = whole.reshape(count, groups, together, vectors, lanes).transpose(0, 1, 3, 4, 2)
    parts.append(np.ascontiguousarray(whole))
    return aligned(np.concatenate([part.reshape(count, -1).view(np.uint8) for part in parts], axis=1))


def plain_panels(weight: Array, vectors: int, lanes: int) -> Array:
    """Return ``[panel][k][vector][lane]`` from a matrix [K, columns]."""
    k, columns = weight.shape
    width = vectors * lanes
    whole = columns // width
    out = aligned_zeros((-(-columns // width), k, width), np.float32)
    out[:whole] = weight[:, : whole * width].reshape(k, whole, width).transpose(1, 0, 2)
    out[whole:, :, : columns - whole * width] = weight[:, whole * width :]
    return out.reshape(len(out), k, vectors, lanes)
