"""Kernels compiled side by side: Numba compiles one at a time in a process, so each idle core gets a process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

from fastlstm.kernels.compiler import Kernel, is_kept, keep_image, kernel_image
from fastlstm.kernels.image import Image
from fastlstm.target import Target

__all__ = ["compiled", "fill"]


def compiled(jobs: Mapping[Kernel, Sequence[Target]], workers: int) -> Iterator[tuple[Kernel, Mapping[Target, Image]]]:
    """Compile kernels, each once for all its targets; yield them in the order of `jobs`.

    Parameters
    ----------
    jobs : mapping of Kernel to sequence of Target
    workers : int
        Processes at most.

    Raises
    ------
    FastLSTMError
        If one cannot be compiled, as `fastlstm.kernels.compiler.compile_kernel` says it.
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
    """Compile what the cache does not hold yet, and keep it; return how many kernels that were.

    Parameters
    ----------
    kernels : collection of Kernel
    target : Target
        Any, not only this machine's.
    workers : int
    say : function of str
        Told of every kernel that is ready, and how many are left.

    Raises
    ------
    OSError
        If the cache cannot be written.
    """
    missing = [kernel for kernel in sorted(kernels, key=repr) if not is_kept(kernel, target)]
    for number, (kernel, images) in enumerate(compiled(dict.fromkeys(missing, (target,)), workers), 1):
        keep_image(kernel, target, images[target])
        say(f"compiled {kernel.name} for {target.name}, {len(missing) - number} left")
    return len(missing)
