"""Products of matrices that lie as they are, one behind the other: dense layers and attention outside segments.

Weights that are constant are packed when a tape is recorded, others by `pack` in every run. The product itself is
that of `fastlstm.kernels.product`: each element is one chain in ascending k, starting at its bias.
"""

from __future__ import annotations

from collections.abc import Callable

from fastlstm.kernels.frame import arg, bound, first_share, next_share, own_memory
from fastlstm.kernels.memory import clear, copy
from fastlstm.kernels.product import product
from fastlstm.layout import TOGETHER
from fastlstm.simd import load_f32, store_f32, store_i64

__all__ = ["matmul", "pack"]

Compiled = Callable[[int, int, int], int]


def pack(lanes: int, vectors: int) -> Compiled:
    """Lay matrices [batch, k, n] out as panels. Arguments: x, out, batch, k, n, strides of the three in bytes."""
    width = lanes * vectors

    def kernel(args: int, frame: int, unused: int) -> int:
        k, n = arg(args, 3), arg(args, 4)
        panels = (n + width - 1) // width
        tasks = arg(args, 2) * panels
        part = first_share(frame)
        while part >= 0:
            for task in range(bound(frame, tasks, part), bound(frame, tasks, part + 1)):
                first = task % panels * width
                count = min(width, n - first)
                x = arg(args, 0) + task // panels * arg(args, 5) + first * arg(args, 7)
                out = arg(args, 1) + 4 * task * k * width
                for i in range(k):
                    row, target = x + i * arg(args, 6), out + 4 * i * width
                    for j in range(count):
                        store_f32(target + 4 * j, load_f32(row + j * arg(args, 7)))
                    clear(target + 4 * count, width - count)
            part = next_share(frame, part)
        return 0

    return kernel


def matmul(lanes: int, vectors: int, max_sums: int) -> Compiled:
    """Out = bias + a @ weights for [batch, rows, k] and panels; out is [batch, rows, n] without gaps.

    Arguments: a, its strides by batch and row, batch, rows, k, panels, bytes of panels from one batch to the next,
    bias (a padded row), out, n, memory of the workers, bytes of it for each: `TOGETHER` addresses, and as many rows of
    whole panels.
    """
    group, run = product(lanes, vectors, max_sums)
    width = lanes * vectors

    def kernel(args: int, frame: int, unused: int) -> int:
        rows, k, n = arg(args, 4), arg(args, 5), arg(args, 10)
        panels = (n + width - 1) // width
        blocks = (rows + TOGETHER - 1) // TOGETHER
        memory = own_memory(frame, arg(args, 11), arg(args, 12))
        sums, stride = memory + 8 * TOGETHER, 4 * panels * width
        tasks = arg(args, 3) * blocks
        part = first_share(frame)
        while part >= 0:
            for task in range(bound(frame, tasks, part), bound(frame, tasks, part + 1)):
                batch, first = task // blocks, task % blocks * TOGETHER
                count = min(TOGETHER, rows - first)
                a = arg(args, 0) + batch * arg(args, 1) + first * arg(args, 2)
                weights = arg(args, 6) + batch * arg(args, 7)
                for r in range(count):
                    store_i64(memory + 8 * r, a + r * arg(args, 2))
                panel = 0
                while panel < panels:
                    together = group(count, panels - panel)
                    run(
                        frame, k, count, memory, together, weights + 4 * panel * k * width, 4 * k * width,
                        arg(args, 8) + 4 * panel * width, 0, sums + 4 * panel * width, stride,
                    )  # fmt: skip
                    panel += together
                out = arg(args, 9) + 4 * n * (batch * rows + first)
                for r in range(count):
                    copy(out + 4 * n * r, sums + stride * r, n)
            part = next_share(frame, part)
        return 0

    return kernel
