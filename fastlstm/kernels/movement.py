"""Moving features: copies between buffers and the caller's arrays, embedding, the last time step."""

from __future__ import annotations

from fastlstm.kernels.elementwise import row_address
from fastlstm.kernels.frame import arg, bound, complain, first_share, next_share, origin, row_stride, time_stride, word
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.memory import copy
from fastlstm.kernels.simd import load_f32, load_i64, store_f32
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.rows import Embed, Last, Move
from fastlstm.program.layout import ROWS, START, STEPS, TOTAL

__all__ = ["embed", "last", "move"]

MOVE, LAST, EMBED = positions(Move), positions(Last), positions(Embed)


def move() -> Compiled:
    """Out = x. Arguments: `Move`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        rows = word(frame, STEPS) * word(frame, ROWS)
        count = arg(args, MOVE.floats)
        share = first_share(frame)
        while share >= 0:
            first, last = bound(frame, rows, share), bound(frame, rows, share + 1)
            if count == 1 and word(frame, ROWS) == 1:
                # One number per row, as in audio effects: finding the rows would take longer than the copy.
                x_time, out_time = time_stride(frame, arg(args, MOVE.x)), time_stride(frame, arg(args, MOVE.out))
                x = origin(frame, arg(args, MOVE.x)) + first * x_time + arg(args, MOVE.x_bytes)
                out = origin(frame, arg(args, MOVE.out)) + first * out_time + arg(args, MOVE.out_bytes)
                for row in range(last - first):
                    store_f32(out + row * out_time, load_f32(x + row * x_time))
                first = last
            for row in range(first, last):
                x = row_address(frame, arg(args, MOVE.x), row) + arg(args, MOVE.x_bytes)
                copy(row_address(frame, arg(args, MOVE.out), row) + arg(args, MOVE.out_bytes), x, count)
            share = next_share(frame, share)
        return 0

    return kernel


def last() -> Compiled:
    """Out = x at the last time step, once its block is reached. Arguments: `Last`."""

    def kernel(args: int, frame: int, unused: int) -> int:
        steps = word(frame, STEPS)
        if word(frame, START) + steps == word(frame, TOTAL):
            x = origin(frame, arg(args, LAST.x)) + (steps - 1) * time_stride(frame, arg(args, LAST.x))
            out = origin(frame, arg(args, LAST.out))
            share = first_share(frame)
            while share >= 0:
                for b in range(bound(frame, word(frame, ROWS), share), bound(frame, word(frame, ROWS), share + 1)):
                    copy(
                        out + b * row_stride(frame, arg(args, LAST.out)),
                        x + b * row_stride(frame, arg(args, LAST.x)),
                        arg(args, LAST.floats),
                    )
                share = next_share(frame, share)
        return 0

    return kernel


def embed() -> Compiled:
    """Out = table[ids], the ids int64. Arguments: `Embed`.

    An id outside the table sets the frame's status to 1 and reads nothing; negative ids count from the end.
    """

    def kernel(args: int, frame: int, unused: int) -> int:
        rows = word(frame, STEPS) * word(frame, ROWS)
        table, size, count = arg(args, EMBED.table), arg(args, EMBED.rows), arg(args, EMBED.floats)
        share = first_share(frame)
        while share >= 0:
            for row in range(bound(frame, rows, share), bound(frame, rows, share + 1)):
                index = load_i64(row_address(frame, arg(args, EMBED.ids), row))
                if index < 0:
                    index += size
                if index < 0 or index >= size:
                    complain(frame)
                else:
                    copy(row_address(frame, arg(args, EMBED.out), row), table + 4 * count * index, count)
            share = next_share(frame, share)
        return 0

    return kernel
