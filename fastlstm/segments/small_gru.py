"""GRUs and plain RNNs of few hidden units, one batch row: what runs instead, and its weights.

See `small.py` for why. Their input projections are those of the general kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.graph import RECURRENT_OPS, Node
from fastlstm.pack import gate_panels
from fastlstm.segments.program import Instruction
from fastlstm.segments.small import MOST_UNITS
from fastlstm.target import Target

__all__ = ["alone", "fits", "passes_of"]

Array = npt.NDArray[Any]


def fits(node: Node, units: int, bits: int, target: Target) -> bool:
    """Whether a layer is a GRU or an RNN that the kernels know, and small enough for them.

    Weights out of the L2 cache are better read panel by panel: 64 units of a GRU took 1.2 times as long here.
    """
    known = node.op == "RNN" or (node.op == "GRU" and bool(node.attrs["reset_after"]))
    small = units <= MOST_UNITS and RECURRENT_OPS[node.op] * 4 * units**2 <= target.l1_bytes * 2 // 3
    return known and small and bits == 32 and node.attrs.get("clip") is None


def passes_of(panels: int, gates: int, target: Target) -> tuple[int, int, int]:
    """Return how many passes go before the last, and the panels of each and of the last."""
    most = target.max_sums // gates
    passes = -(-panels // most)
    each = -(-panels // passes)
    full = -(-panels // each) - 1
    return full, each if full else 0, panels - full * each


def alone(
    node: Node, w_hh: Array, general: Instruction, activations: Sequence[Any], target: Target
) -> tuple[Instruction, str]:
    """Return the recurrence for one row out of that for any number of rows, and what the plan says.

    Parameters
    ----------
    node : Node
    w_hh : array, [gates * H, H]
    general : Instruction
        Of `fastlstm.kernels.gru` or `fastlstm.kernels.rnn`.
    activations : sequence
    target : Target
    """
    z, y, offset, hidden, _, _, last_width, h, _, backwards, mask, start, *_ = general.args
    gates, lanes = RECURRENT_OPS[node.op], target.lanes
    panels = gate_panels(np.asarray(w_hh, np.float32), gates, lanes)
    full, each, last = passes_of(len(panels), gates, target)
    cuts = [i * each for i in range(full + 1)] + [len(panels)]
    weights = np.concatenate([panels[a:b].swapaxes(0, 1).reshape(-1) for a, b in pairwise(cuts)])
    args = (z, y, offset, hidden, weights, full, last_width, h, backwards, mask, start)
    kernel = f"small_gru.{node.op.lower()}"
    note = f"one row: {gates * len(panels)} vectors of sums in {full + 1} pass{'es' * (full > 0)}"
    return Instruction(kernel, (lanes, each, last, tuple(activations), mask >= 0), args), note
