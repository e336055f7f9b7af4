"""GRUs and plain RNNs of few hidden units, one batch row: their kernels and weights.

See `small.py` for the reasons. Input projections use the general kernels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fastlstm.graph import Recurrent
from fastlstm.lowering.pack import gate_panels
from fastlstm.lowering.segments.direction import Direction
from fastlstm.lowering.segments.small import MOST_UNITS
from fastlstm.program.arguments.rows import SmallGRU
from fastlstm.program.program import Instruction
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["alone", "fits", "passes_of"]


def fits(layer: Recurrent, bits: int, target: Target) -> bool:
    """Whether the kernels support a layer, a GRU or an RNN that is small enough.

    Weights in the L2 cache are better read panel by panel: a GRU of 64 units took 1.2 times as long here.
    """
    known, units = layer.op == "RNN" or (layer.op == "GRU" and layer.reset_after), layer.hidden_size
    small = units <= MOST_UNITS and layer.gates * 4 * units**2 <= target.l1_bytes * 2 // 3
    return known and small and bits == 32 and layer.clip is None


def passes_of(panels: int, gates: int, target: Target) -> tuple[int, int, int]:
    """Return the number of passes before the last one, and the panels of each and of the last."""
    most = target.max_sums // gates
    passes = -(-panels // most)
    each = -(-panels // passes)
    full = -(-panels // each) - 1
    return full, each if full else 0, panels - full * each


def alone(one: Direction, start: Array, target: Target) -> tuple[Instruction, str]:
    """Return the recurrence for one row, and its note in the plan; its sums start from `start`."""
    gates, lanes = one.gates, target.lanes
    panels = gate_panels(np.asarray(one.w_hh, np.float32), gates, lanes)
    full, each, last = passes_of(len(panels), gates, target)
    cuts = [i * each for i in range(full + 1)] + [len(panels)]
    weights = np.concatenate([panels[a:b].swapaxes(0, 1).reshape(-1) for a, b in pairwise(cuts)])
    args = SmallGRU(
        one.z, one.y, one.y_bytes, one.hidden, weights, full, one.last_width, one.h, one.reverse, one.mask, start
    )
    note = f"one row: {gates * len(panels)} vectors of sums in {full + 1} pass{'es' * (full > 0)}"
    kernel = f"small_gru.{one.layer.op.lower()}"
    return Instruction(kernel, (lanes, each, last, one.activations, one.mask >= 0), args), note
