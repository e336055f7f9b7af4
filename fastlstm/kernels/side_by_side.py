"""Compiling kernels in parallel: in one process Numba compiles one at a time, so each idle core gets a process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

from fastlstm.errors import FastLSTMError
from fastlstm.kernels.compiler import Kernel, keep_image, kept_image, kernel_image
from fastlstm.kernels.helpers import received, send
from fastlstm.kernels.image import Image
from fastlstm.target import Target

__all__ = ["compiled", "fill", "serve"]


def compiled(jobs: Mapping[Kernel, Sequence[Target]], workers: int) -> Iterator[tuple[Kernel, Mapping[Target, Image]]]:
    """Compile kernels, each once for all its targets; yield them in the order of `jobs`.

    Parameters
    ----------
    jobs : mapping of Kernel to sequence of Target
    workers : int
        Maximum number of processes.

    Raises
    ------
    FastLSTMError
        If a kernel cannot be compiled, as from `fastlstm.kernels.compiler.compile_kernel`.
    """
    if min(workers, len(jobs)) <= 1:
        yield from map(_compile, jobs.items())
        return
    with ProcessPoolExecutor(min(workers, len(jobs))) as pool:
        yield from pool.map(_compile, jobs.items())


def _compile(job: tuple[Kernel, Sequence[Target]]) -> tuple[Kernel, Mapping[Target, Image]]:
    kernel, targets = job
    return kernel, {target: kernel_image(kernel, target) for target in targets}


def fill(kernels: Collection[Kernel], target: Target, workers: int, say: Callable[[str], None]) -> int:
    """Compile and store the kernels that are not in the cache yet; return how many these were.

    Parameters
    ----------
    kernels : collection of Kernel
    target : Target
        Any target, not only this machine's.
    workers : int
    say : function of str
        Called after each kernel with a line that says how many are left.

    Raises
    ------
    OSError
        If the cache cannot be written.
    """
    missing = [kernel for kernel in sorted(kernels, key=repr) if kept_image(kernel, target) is None]
    for number, (kernel, images) in enumerate(compiled(dict.fromkeys(missing, (target,)), workers), 1):
        keep_image(kernel, target, images[target])
        say(f"compiled {kernel.name} for {target.name}, {len(missing) - number} left")
    return len(missing)


def serve() -> None:
    """Run as one of `fastlstm.kernels.helpers`: compile what stdin asks for, to stdout, until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # so that nothing a library prints gets between
    from fastlstm.kernels import pipeline  # noqa: F401 (loads Numba before the first job arrives)

    while True:
        try:
            kernel, target = received(sys.stdin.buffer)
        except EOFError:
            return
        try:
            image = kernel_image(kernel, target)
        except FastLSTMError:
            image = None  # the process that needs the kernel will compile it itself and report the error
        send(answers, image)
