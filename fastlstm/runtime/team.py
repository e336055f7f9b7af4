"""Teams of worker threads: started when first needed, shared by all models of one thread count.

The threads run compiled code for their whole life and never hold the interpreter lock. A forked child starts its own;
at exit they end before compiled code is unloaded.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading

import numpy as np

from fastlstm.forking import undisturbed
from fastlstm.kernels.addresses import address
from fastlstm.kernels.kernel import Kernel
from fastlstm.program import layout
from fastlstm.target import machine

__all__ = ["Team", "available", "team_of"]

FAREWELL_SECONDS = 2.0

_teams: dict[int, Team] = {}
WORTH_A_TEAM = 200_000  # multiply-adds of a call, a few microseconds: awake workers join within one microsecond
WORTH_WAKING = 1_000_000  # sleeping workers take some 20 microseconds to wake, and cost the caller a few


def available() -> bool:
    """Whether this system can have teams: they need POSIX threads."""
    return os.name == "posix"


class Team:
    """Workers beside the calling thread.

    Parameters
    ----------
    workers : int
        Number of workers, including the caller.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        # With room to begin at a cache line.
        self._memory = np.zeros(layout.JOB_WORKERS + layout.WORKER_WORDS * workers + 8, np.int64)
        start = int(self._memory.ctypes.data)
        self.job = start + -start % 64
        self._words = self._memory[(self.job - start) // 8 :]
        self._threads: list[threading.Thread] = []

    @property
    def alive(self) -> int:
        """Address of the word that is 1 while the workers run."""
        return self.job + 8 * layout.JOB_ALIVE

    def start(self) -> None:
        """Start the threads unless they are running."""
        if self._words[layout.JOB_ALIVE]:
            return
        with undisturbed:
            if self._words[layout.JOB_ALIVE]:
                return
            self._words[:] = 0
            system = ctypes.CDLL(None)
            system.pthread_mutex_init(ctypes.c_void_p(self.job + 8 * layout.JOB_MUTEX), None)
            for condition in (layout.JOB_CONDITION, layout.JOB_CONDITION_2):
                system.pthread_cond_init(ctypes.c_void_p(self.job + 8 * condition), None)
            for number, name in enumerate(layout.SYSTEM_FUNCTIONS):
                found = ctypes.cast(getattr(system, name, 0), ctypes.c_void_p).value
                self._words[layout.JOB_SYSTEM + number] = found or 0
            prototype = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
            follow = prototype(address(Kernel("team.follow"), machine.detect()))
            self._dismiss = prototype(address(Kernel("team.dismiss"), machine.detect()))
            self._words[layout.JOB_ALIVE] = 1
            self._threads = [
                threading.Thread(target=follow, args=(self.job, worker, 0), name=f"fastlstm-{worker}", daemon=True)
                for worker in range(1, self.workers)
            ]
            for worker, thread in enumerate(self._threads, 1):
                thread.start()
                words = self._words[layout.JOB_WORKERS + layout.WORKER_WORDS * worker :]
                words[layout.WORKER_THREAD] = thread.native_id or 0

    def dismiss(self) -> None:
        """Make the threads end, and wait for them."""
        if self._words[layout.JOB_ALIVE]:
            self._dismiss(self.job, 0, 0)
            for thread in self._threads:
                thread.join(FAREWELL_SECONDS)

    def forget(self) -> None:
        """Record, in a forked child, that there are no threads."""
        self._words[:] = 0
        self._threads = []


def team_of(workers: int) -> Team:
    """Return the team of that many workers, including the caller."""
    return _teams.setdefault(workers, Team(workers)) if workers not in _teams else _teams[workers]


def _dismiss_all() -> None:
    for team in _teams.values():
        team.dismiss()


def _forget_all() -> None:
    for team in _teams.values():
        team.forget()


atexit.register(_dismiss_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
