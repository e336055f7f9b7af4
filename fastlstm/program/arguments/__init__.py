"""The arguments of kernels by name: what an instruction gives and a kernel reads.

A class is made twice: with the values, as an instruction's arguments; and by `positions`, whose fields are the
words' numbers, for the kernel: ``arg(args, A.k)``. "Slot" fields are numbers of slots, "bytes" are distances in bytes;
arrays stand for their addresses (see `fastlstm.program.program`). A field that is such a class itself stands for its
words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from fastlstm.program.arguments import arrays, rows

__all__ = ["ARGUMENTS", "positions", "size_of"]

T = TypeVar("T", bound=tuple[Any, ...])

ARGUMENTS: Mapping[str, Any] = {
    "linear.linear": rows.Linear,
    "recurrent.lstm": rows.LSTM,
    "projected.lstm": rows.Projected,
    "normalised.lstm": rows.Normalised,
    "gru.gru": rows.GRU,
    "gru.reset_before": rows.ResetBefore,
    "rnn.rnn": rows.RNN,
    "small.lstm": rows.SmallLSTM,
    "small_gru.gru": rows.SmallGRU,
    "small_gru.rnn": rows.SmallGRU,
    "elementwise.unary": rows.Unary,
    "elementwise.binary": rows.Binary,
    "elementwise.softmax": rows.Softmax,
    "elementwise.layer_norm": rows.LayerNorm,
    "movement.move": rows.Move,
    "movement.last": rows.Last,
    "movement.embed": rows.Embed,
    "split.split": rows.Split,
    "gather.gather": rows.Pooled,
    "gather.scatter": rows.Pooled,
    "arrays.copy": arrays.Copy,
    "arrays.pad": arrays.Pad,
    "arrays.fill": arrays.Fill,
    "arrays.unary": arrays.Unary,
    "arrays.logarithm": arrays.Unary,
    "arrays.binary": arrays.Binary,
    "lines.softmax": arrays.Lines,
    "lines.layer_norm": arrays.LayerNorm,
    "lines.reduce": arrays.Lines,
    "contraction.pack": arrays.Pack,
    "contraction.matmul": arrays.MatMul,
    "convolution.by_position": arrays.Convolution,
    "convolution.pairs": arrays.Pairs,
    "convolution.by_channel": arrays.Convolution,
    "pooling.pool": arrays.Pool,
    "integers.elementwise": arrays.Elementwise,
    "integers.where": arrays.Where,
    "integers.gather": arrays.Gather,
    "integers.argmax": arrays.Lines,
    "integers.running": arrays.Running,
    "integers.mask_codes": arrays.MaskCodes,
    "rounds.advance": arrays.Advance,
    "rounds.verify": arrays.Verify,
    "rounds.move": arrays.MoveSlice,
    "profile.mark": arrays.Mark,
    "rounds.repeat": arrays.Run,
    "nested.nested": arrays.Run,
}
"""Kernel -> the class of its arguments, for every kernel that instructions call."""


def positions(kind: type[T]) -> T:
    """Return the number of each field's word, by name."""
    made: T = _numbered(kind, 0)
    return made


def size_of(kind: type[Any]) -> int:
    """Return how many words a class of arguments has."""
    return sum(size_of(field) if hasattr(field, "_fields") else 1 for field in get_type_hints(kind).values())


def _numbered(kind: Any, first: int) -> Any:
    numbers = []
    for field in get_type_hints(kind).values():
        inside = hasattr(field, "_fields")
        numbers.append(_numbered(field, first) if inside else first)
        first += size_of(field) if inside else 1
    return kind(*numbers)
