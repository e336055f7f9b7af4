"""Helpers: processes that compile kernels on otherwise idle cores while this process goes on.

Numba compiles one kernel at a time in a process. Kernels that a program will need are requested (`ask`); helpers are
started for them, one for each core beside this process's own, and end after some seconds without requests. Whoever
needs a kernel now takes it (`take`), waiting if a helper has begun it and compiling it otherwise. Helpers never outlive
the process or delay its end, and are not shared with a forked child, which has its own. Whatever happens to a helper,
its kernel is compiled where it is needed.
"""

from __future__ import annotations

import atexit
import os
import pickle
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fastlstm.kernels.image import Image
from fastlstm.target import Target
from fastlstm.target.machine import cores

if TYPE_CHECKING:
    import subprocess

__all__ = ["ask", "begun", "most", "ready", "received", "send", "take"]

IDLE_SECONDS = 5.0
MOST = 7  # a model has some ten kernels, of which two or three take most of the time
LENGTH = struct.Struct("<Q")
COMMAND = "import sys; sys.path[:] = {path!r}; from fastlstm.kernels.side_by_side import serve; serve()"


def most() -> int:
    """Return how many helpers there may be; ``FASTLSTM_HELPERS`` bounds it, 0 means none."""
    beside = min(cores() - 1, MOST)
    chosen = os.environ.get("FASTLSTM_HELPERS", "")
    if chosen.isdigit():
        beside = min(int(chosen), MOST)
    # If Python is embedded in another program, that program's file does not start an interpreter.
    runs = Path(sys.executable or "").stem.lower().startswith(("python", "pypy")) and not getattr(sys, "frozen", False)
    return beside if runs else 0


class _Job:
    def __init__(self, kernel: Any, target: Target, keep: Callable[[Any, Target, Image], None]) -> None:
        self.kernel, self.target, self.keep = kernel, target, keep
        self.image: Image | None = None
        self.done = threading.Event()


class _Helpers:
    """The requests to this process's helpers."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # guards everything below
        self.waiting: dict[Any, _Job] = {}  # in the order in which helpers take them
        self.running: dict[Any, _Job] = {}
        self.ready: dict[Any, Image] = {}  # until they are asked for
        self.processes: list[subprocess.Popen[bytes]] = []
        self.threads = 0

    def ask(self, jobs: Iterable[_Job]) -> None:
        with self.changed:
            for job in jobs:
                key = (job.kernel, job.target.code)
                if key not in self.running and key not in self.ready:
                    self.waiting.setdefault(key, job)
            for _ in range(min(len(self.waiting), most() - self.threads)):
                self.threads += 1
                threading.Thread(target=self._feed, name="fastlstm compiles", daemon=True).start()
            self.changed.notify_all()

    def _next(self) -> _Job | None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.waiting, IDLE_SECONDS):
                self.threads -= 1
                return None
            key = next(iter(self.waiting))
            job = self.running[key] = self.waiting.pop(key)
            return job

    def _feed(self) -> None:
        """Pass jobs to one helper until there are none."""
        process: subprocess.Popen[bytes] | None = None
        while (job := self._next()) is not None:
            try:
                if process is None:
                    process = self._started()
                assert process.stdin is not None
                assert process.stdout is not None
                send(process.stdin, (job.kernel, job.target))
                job.image = received(process.stdout)
                if job.image is not None:
                    job.keep(job.kernel, job.target, job.image)
            except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                with self.changed:  # the helper is gone, or could not be started: the rest do without it
                    self.waiting.clear()
                    self.threads -= 1
                return
            finally:
                self._finish(job)
        if process is not None:
            self._end(process)

    def _finish(self, job: _Job) -> None:
        key = (job.kernel, job.target.code)
        with self.changed:
            del self.running[key]
            if job.image is not None:
                self.ready[key] = job.image
        job.done.set()

    def _started(self) -> subprocess.Popen[bytes]:
        import subprocess  # takes milliseconds, and is not needed if everything is compiled

        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # no buffer that a forked child would inherit
            start_new_session=True,  # Ctrl-C is meant for the main process
        )
        self.processes.append(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for end in (process.stdin, process.stdout):
            if end is not None:
                end.close()
        process.kill()
        process.wait()
        self.processes.remove(process)

    def end(self) -> None:
        for process in list(self.processes):
            process.kill()
            process.wait()

    def leave(self) -> None:
        """Drop the helpers in a forked child, which does not own them."""
        for process in self.processes:
            process.returncode = 0
            for end in (process.stdin, process.stdout):
                if end is not None:
                    end.close()


_helpers = _Helpers()


def ask(kernels: Iterable[Any], target: Target, keep: Callable[[Any, Target, Image], None]) -> None:
    """Let helpers compile kernels, if any are allowed, in the given order.

    Parameters
    ----------
    kernels : iterable of Kernel
    target : Target
    keep : callable
        ``keep(kernel, target, image)``, called from another thread for each kernel when it is ready.
    """
    if most() > 0:
        _helpers.ask(_Job(kernel, target, keep) for kernel in kernels)


def begun(kernel: Any, target: Target) -> bool:
    """Whether a helper is compiling this kernel now."""
    with _helpers.changed:
        return (kernel, target.code) in _helpers.running


def ready(kernel: Any, target: Target) -> Image | None:
    """Return a kernel that a helper has compiled, and forget it."""
    with _helpers.changed:
        return _helpers.ready.pop((kernel, target.code), None)


def take(kernel: Any, target: Target) -> Image | None:
    """Wait for a kernel that a helper has begun, and return it; None if the caller has to compile it."""
    key = (kernel, target.code)
    with _helpers.changed:
        _helpers.waiting.pop(key, None)
        job = _helpers.running.get(key)
    if job is None:
        return None
    job.done.wait()
    with _helpers.changed:
        return _helpers.ready.pop(key, job.image)


def send(pipe: IO[bytes], what: Any) -> None:
    """Send a message to the other side."""
    content = pickle.dumps(what)
    rest = memoryview(LENGTH.pack(len(content)) + content)
    while rest:
        rest = rest[pipe.write(rest) :]


def received(pipe: IO[bytes]) -> Any:
    """Receive a message from the other side; EOFError if it is gone."""
    return pickle.loads(_read(pipe, LENGTH.unpack(_read(pipe, LENGTH.size))[0]))  # noqa: S301 (from our own process)


def _read(pipe: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        part = pipe.read(size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _in_child() -> None:
    global _helpers
    _helpers.leave()
    _helpers = _Helpers()


atexit.register(lambda: _helpers.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
