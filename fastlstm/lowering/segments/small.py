"""LSTMs of few hidden units, one batch row: how `fastlstm.kernels.small` divides them, and their weights.

With one row no weight can be reused for another row, and in so small a layer most of a step is latency. The kernel
serves programs of one batch row; with more rows, the general kernels use each weight several times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastlstm.graph import Recurrent
from fastlstm.lowering.pack import gate_panels, plain_panels
from fastlstm.lowering.segments.direction import Direction
from fastlstm.program.arguments.rows import Linear, SmallLSTM
from fastlstm.program.memory import aligned_zeros
from fastlstm.program.program import Instruction
from fastlstm.target import FLOAT32, Target
from fastlstm.typing import Array

__all__ = ["Passes", "fits", "packed", "passes_of", "projection", "recurrence"]

MOST_UNITS = 64  # above this, a step is bound by the cache that the weights lie in
MOST_INPUTS = 4  # up to this many features of x are cheaper to multiply here than to store and load their products
WIDE = 16  # lanes of a panel whose weights the L2 cache delivers just as fast as its chains of sums use them
CHAINS = 8  # two FMA units with a latency of four cycles: a pass of fewer sums takes as long


@dataclass(frozen=True)
class Passes:
    """How hidden units are divided: `full` passes of `panels` panels, then one of `last` panels and a tail.

    Attributes
    ----------
    lanes, full, panels, last : int
    tail : int
        Vectors that the last units' gates share: 2 if half a vector holds the units, 1 if a quarter does, 0 if the
        units fill whole panels.
    """

    lanes: int
    full: int
    panels: int
    last: int
    tail: int

    @property
    def vectors(self) -> int:
        """The number of all vectors of sums."""
        return 4 * (self.full * self.panels + self.last) + self.tail

    @property
    def note(self) -> str:
        """The note in the plan."""
        return f"one row: {self.vectors} vectors of sums in {self.full + 1} pass{'es' * (self.full > 0)}"


def fits(layer: Recurrent, bits: int) -> bool:
    """Whether the kernel supports a layer."""
    plain = not (layer.inputs.peephole or layer.inputs.w_hr or layer.inputs.norm or layer.input_forget)
    return layer.op == "LSTM" and layer.hidden_size <= MOST_UNITS and bits == 32 and plain and layer.clip is None


def passes_of(units: int, target: Target) -> Passes:
    """Return the fastest division, which has few, long passes."""
    lanes = target.lanes
    panels, rest = divmod(units, lanes)
    tail = -(-rest * 4 // lanes)
    if tail > 2:
        panels, tail = panels + 1, 0
    most = target.max_sums
    if 4 * lanes * (4 * panels + tail) * units > target.l1_bytes:
        # Weights come from the L2 cache: short passes leave the last weights in the L1 cache for the next step, which
        # runs in the opposite direction, and a pass's cells overlap with the next one's loads (64 units: 0.55 to
        # 0.33 us).
        each = max(1, min(WIDE // lanes, (most - tail) // 4))
        full = max(0, panels - 1) // each
        return Passes(lanes, full, each if full else 0, panels - full * each, tail)
    if 4 * panels + tail <= most:
        return Passes(lanes, 0, 0, panels, tail)
    found = []
    for each in range(1, most // 4 + 1):
        full = -(-(4 * panels + tail - most) // (4 * each))
        last = panels - full * each
        if last > 0:
            time = full * max(4 * each, CHAINS) + max(4 * last + tail, CHAINS)
            found.append((time, full, Passes(lanes, full, each, last, tail)))
    return min(found, key=lambda choice: choice[:2])[2]


def packed(weight: Array, passes: Passes) -> Array:
    """Return ``[pass][k][vector][lane]``, flat, from a torch-shaped weight [4 * H, K]."""
    return np.concatenate([part.reshape(-1) for part in _parts(weight, passes)])


def _parts(weight: Array, passes: Passes) -> list[Array]:
    """Return an array [k, vectors * lanes] for each pass."""
    units, k = weight.shape[0] // 4, weight.shape[1]
    gates = np.asarray(weight, np.float32).reshape(4, units, k)
    starts = [i * passes.panels * passes.lanes for i in range(passes.full + 1)]
    found = []
    for i, start in enumerate(starts):
        panels = passes.last if i == passes.full else passes.panels
        stop = min(units, start + panels * passes.lanes)
        whole = gate_panels(gates[:, start:stop].reshape(-1, k), 4, passes.lanes)
        part = whole.transpose(1, 0, 2, 3).reshape(k, -1)
        if i == passes.full and passes.tail:
            tail = gate_panels(gates[:, stop:].reshape(-1, k), 4, passes.lanes * passes.tail // 4)
            part = np.concatenate([part, tail.reshape(k, -1)], axis=1)
        found.append(part)
    return found


def projection(one: Direction, target: Target) -> tuple[Instruction, ...]:
    """Return the input projection for one row, None if the recurrence computes it."""
    k = one.w_ih.shape[1]
    if k <= MOST_INPUTS:
        return ()
    passes, lanes = passes_of(one.hidden, target), target.lanes
    columns, offset = (np.concatenate(_parts(w, passes), axis=1) for w in (one.w_ih, one.bias.reshape(-1, 1)))
    panels = plain_panels(columns, 4, lanes)
    args = Linear(one.x, one.z, k, panels, plain_panels(offset, 4, lanes), panels.shape[0], 0, 0)
    return (Instruction("linear.linear", (lanes, 4, target.max_sums, FLOAT32), args),)


def recurrence(one: Direction, passes: Passes) -> Instruction:
    """Return the recurrence for one row."""
    k = one.w_ih.shape[1]
    inputs, z, x_weights = 0, one.z, aligned_zeros(0, np.float32)
    if k <= MOST_INPUTS:
        inputs, z, x_weights = k, -1, packed(one.w_ih, passes)
    args = SmallLSTM(
        z, one.y, one.y_bytes, one.hidden, packed(one.w_hh, passes), passes.full, one.last_width, one.h,
        one.reverse, one.mask, one.x, inputs, x_weights,
        packed(one.bias.reshape(-1, 1), passes), one.c,
    )  # fmt: skip
    constants = (passes.lanes, passes.panels, passes.last, passes.tail, one.activations, one.mask >= 0)
    return Instruction("small.lstm", constants, args, weight_bytes=args.weights.nbytes + x_weights.nbytes)
