"""Products of contiguous matrices: dense layers and attention outside segments.

Constant weights are packed when a tape is recorded, others by `pack` in every run. The product itself is
`fastlstm.kernels.product`'s: each element is one chain in ascending k, starting from its bias.
"""

from __future__ import annotations

from fastlstm.kernels.frame import arg, bound, first_share, next_share, own_memory
from fastlstm.kernels.kernel import Compiled
from fastlstm.kernels.memory import clear, copy
from fastlstm.kernels.product import product
from fastlstm.kernels.simd import load_f32, store_f32, store_i64
from fastlstm.program.arguments import positions
from fastlstm.program.arguments.arrays import MatMul, Pack
from fastlstm.program.layout import TOGETHER

__all__ = ["matmul", "pack"]

PACK, MATMUL = positions(Pack), positions(MatMul)


def pack(lanes: int, vectors: int) -> Compiled:
    """Pack matrices [batch, k, n] as panels. Arguments: `Pack`."""
    width = lanes * vectors

    def kernel(args: int, frame: int, unused: int) -> int:
        k, n = arg(args, PACK.k), arg(args, PACK.n)
        panels = (n + width - 1) // width
        tasks = arg(args, PACK.batch) * panels
        part = first_share(frame)
        while part >= 0:
            for task in range(bound(frame, tasks, part), bound(frame, tasks, part + 1)):
                first = task % panels * width
                count = min(width, n - first)
                x = arg(args, PACK.x) + task // panels * arg(args, PACK.x_batch) + first * arg(args, PACK.x_column)
                out = arg(args, PACK.out) + 4 * task * k * width
                for i in range(k):
                    row, target = x + i * arg(args, PACK.x_row), out + 4 * i * width
                    for j in range(count):
                        store_f32(target + 4 * j, load_f32(row + j * arg(args, PACK.x_column)))
                    clear(target + 4 * count, width - count)
            part = next_share(frame, part)
        return 0

    return kernel


def matmul(lanes: int, vectors: int, max_sums: int) -> Compiled:
    """Out = bias + a @ weights. Arguments: `MatMul`."""
    group, run = product(lanes, vectors, max_sums)
    width = lanes * vectors

    def kernel(args: int, frame: int, unused: int) -> int:
        rows, k, n = arg(args, MATMUL.rows), arg(args, MATMUL.k), arg(args, MATMUL.n)
        panels = (n + width - 1) // width
        blocks = (rows + TOGETHER - 1) // TOGETHER
        memory = own_memory(frame, arg(args, MATMUL.memory), arg(args, MATMUL.memory_bytes))
        sums, stride = memory + 8 * TOGETHER, 4 * panels * width
        tasks = arg(args, MATMUL.batch) * blocks
        part = first_share(frame)
        while part >= 0:
            for task in range(bound(frame, tasks, part), bound(frame, tasks, part + 1)):
                batch, first = task // blocks, task % blocks * TOGETHER
                count = min(TOGETHER, rows - first)
                a = arg(args, MATMUL.a) + batch * arg(args, MATMUL.a_batch) + first * arg(args, MATMUL.a_row)
                weights = arg(args, MATMUL.panels) + batch * arg(args, MATMUL.panels_batch)
                for r in range(count):
                    store_i64(memory + 8 * r, a + r * arg(args, MATMUL.a_row))
                panel = 0
                while panel < panels:
                    together = group(count, panels - panel)
                    run(
                        frame, k, count, memory, together, weights + 4 * panel * k * width, 4 * k * width,
                        arg(args, MATMUL.bias) + 4 * panel * width, 0, sums + 4 * panel * width, stride,
                    )  # fmt: skip
                    panel += together
                out = arg(args, MATMUL.out) + 4 * n * (batch * rows + first)
                for r in range(count):
                    copy(out + 4 * n * r, sums + stride * r, n)
            part = next_share(frame, part)
        return 0

    return kernel
