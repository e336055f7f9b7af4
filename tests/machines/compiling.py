"""Kernels compiled by this machine for processes under emulation, which ask for them through a socket."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastlstm.kernels.compiler import kernel_image
from fastlstm.kernels.helpers import received, send
from fastlstm.machine import cores

__all__ = ["compiler"]


@contextmanager
def compiler(path: Path) -> Iterator[None]:
    """Answer at the socket `path`: a kernel and a target come, its image goes."""
    with ProcessPoolExecutor(cores()) as pool:

        class Answer(socketserver.StreamRequestHandler):
            wbufsize = 0

            def handle(self) -> None:
                asked: Any = received(self.rfile)
                send(self.wfile, pool.submit(kernel_image, *asked).result())

        with socketserver.ThreadingUnixStreamServer(str(path), Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()
