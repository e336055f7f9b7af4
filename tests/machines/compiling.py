"""Kernels compiled by this machine for processes under emulation, which ask for them through a socket."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastlstm.kernels.compiler import Kernel, kernel_image
from fastlstm.kernels.helpers import received, send
from fastlstm.kernels.image import Image
from fastlstm.target import Target, WeightFormat
from fastlstm.target.machine import cores

__all__ = ["compiler"]

Images = dict[tuple[object, ...], Image]


@contextmanager
def compiler(path: Path, targets: Sequence[Target]) -> Iterator[None]:
    """Answer at the socket `path`: a kernel and one of the targets come, its image goes.

    Each kernel is compiled at once for all targets that have it, which takes little longer: they share what Numba makes
    of it.
    """
    begun: dict[Kernel, Future[Images]] = {}
    lock = threading.Lock()
    with ProcessPoolExecutor(cores()) as pool:

        class Answer(socketserver.StreamRequestHandler):
            wbufsize = 0

            def handle(self) -> None:
                asked: Any = received(self.rfile)
                kernel, target = asked
                with lock:
                    if kernel not in begun:
                        begun[kernel] = pool.submit(_compiled, kernel, targets)
                send(self.wfile, begun[kernel].result()[target.code])

        with socketserver.ThreadingUnixStreamServer(str(path), Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()


def _compiled(kernel: Kernel, targets: Sequence[Target]) -> Images:
    return {target.code: kernel_image(kernel, target) for target in targets if _has(target, kernel)}


def _has(target: Target, kernel: Kernel) -> bool:
    """Whether a target reads weights as the kernel does: products of bytes are instructions that not all have."""
    return all(form == target.weights(form.bits) for form in kernel.constants if isinstance(form, WeightFormat))
