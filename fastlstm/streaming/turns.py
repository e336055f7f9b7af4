"""Calls of several threads on one pool: they take turns, and waiting steps run together.

A usual step runs in compiled code from one of the pool's seats (`fastlstm.streaming.pool_entry`), whose flag it takes;
steps from different seats run at the same time. Any other call needs the whole pool: it takes the pool's flag and
checks that all seats are free. A thread that cannot have what it needs puts a `Turn` into a list and sleeps. When a
call ends, its thread does the waiting work, steps as one batch, and wakes the threads that asked for it: each wakes
once, with its result, and threads seldom contend for the interpreter lock. A turn enters the list before its thread
checks the flags again, and flags are released before the list is read, so no turn is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from fastlstm.runtime.busy import Busy, in_use, is_free

__all__ = ["Turn", "Turns", "in_turn"]

P = ParamSpec("P")
R = TypeVar("R")

LOOK_AGAIN_SECONDS = 0.1
"""Seconds after which waiting threads check for themselves: a signal may end a call before it has woken them."""


class Turn:
    """A call waiting for its turn.

    Parameters
    ----------
    work : callable
        Does the call's work.
    step : object, optional
        What `Turns` needs to run it together with others, if that is possible.
    """

    def __init__(self, work: Callable[[], Any], step: Any = None) -> None:
        self.work, self.step = work, step
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self._woken = threading.Lock()
        self._woken.acquire()

    def do(self) -> None:
        """Do the work now, alone."""
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001 (the thread that asked raises it)
            self.fail(error)
        else:
            self.end(result)

    def end(self, result: Any) -> None:
        """Set the result."""
        self.result, self.done = result, True

    def fail(self, error: Exception) -> None:
        """Set the error to raise."""
        self.error, self.done = error, True

    def sleep(self) -> None:
        """Sleep until woken, or for a while."""
        self._woken.acquire(timeout=LOOK_AGAIN_SECONDS)

    def wake(self) -> None:
        """Wake the thread that waits for it."""
        try:
            self._woken.release()
        except RuntimeError:  # it has been woken already
            return

    def outcome(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


Together = Callable[[Sequence[Turn]], None]


class Turns:
    """Decides which thread may use a pool.

    Parameters
    ----------
    busy : Busy
        The pool's flag.
    seats : sequence of Busy
        Those of its seats, which compiled code takes while the pool's is free.
    """

    def __init__(self, busy: Busy, seats: Sequence[Busy] = ()) -> None:
        self._busy, self._seats = busy, seats
        self.waiting: list[Turn] = []
        """Always the same list, so that a step can check it at almost no cost."""
        self._owner = 0  # the thread that holds the flag, if it took it here

    def run(self, turn: Turn, together: Together) -> Any:
        """Wait for a turn, and return the result of its call.

        Parameters
        ----------
        turn : Turn
        together : callable
            Takes several turns that have a `step`, and completes those that it can run as one.

        Raises
        ------
        InputError
            If this thread is already in a call of the pool: it would wait for itself.
        """
        if self._take():
            try:
                self.waiting.append(turn)
                self._do_all(together)
            finally:
                self._give()
            self.help(together)
        else:
            # If there is no other thread, the flag was taken by one that a fork left behind.
            if self._owner == threading.get_ident() or threading.active_count() == 1:
                raise in_use("pool")
            self._wait(turn, together)
        return turn.outcome()

    def help(self, together: Together) -> None:
        """Do what is waiting now; a thread that arrives meanwhile takes over afterwards."""
        if self.waiting and self._take():
            try:
                self._do_all(together)
            finally:
                self._give()

    def _take(self) -> bool:
        """Take the whole pool, if nobody uses any of it; return whether that was possible."""
        while all(map(is_free, self._seats)):
            try:
                del self._busy.free
            except AttributeError:
                return False
            try:
                if all(map(is_free, self._seats)):  # and they stay free while the pool's flag is taken
                    self._owner = threading.get_ident()
                    return True
            except BaseException:
                self._busy.free = None
                raise
            # A step has begun. If it ends before the next line, its thread leaves the list to this one: look again.
            self._busy.free = None
        return False

    def _give(self) -> None:
        self._owner = 0
        self._busy.free = None
        for turn in self.waiting[:1]:
            turn.wake()

    def _wait(self, turn: Turn, together: Together) -> None:
        """Return when a turn is done, by this thread or another."""
        self.waiting.append(turn)
        try:
            while not turn.done:
                if self._take():
                    try:
                        self._do_all(together)
                    finally:
                        self._give()
                else:
                    turn.sleep()
        except BaseException:
            self._withdraw(turn)
            raise

    def _withdraw(self, turn: Turn) -> None:
        """Withdraw a turn; if another thread is running it, and so reading the caller's arrays, wait for it to end."""
        try:
            self.waiting.remove(turn)
        except ValueError:
            while not (turn.done or turn in self.waiting):
                turn.sleep()
            if not turn.done:
                self._withdraw(turn)

    def _do_all(self, together: Together) -> None:
        """Run all turns that are waiting now."""
        turns = list(self.waiting)
        del self.waiting[: len(turns)]
        try:
            steps = [turn for turn in turns if turn.step is not None]
            if len(steps) > 1:
                together(steps)
            for turn in turns:
                if not turn.done:
                    turn.do()
        finally:  # an interrupt leaves the rest to others
            self.waiting[:0] = [turn for turn in turns if not turn.done]
            for turn in turns:
                turn.wake()


class _Pool(Protocol):
    _turns: Turns

    def _step_together(self, turns: Sequence[Turn]) -> None: ...


S = TypeVar("S", bound=_Pool)


def in_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method of a pool wait for its turn."""

    @wraps(method)
    def waiting(self: S, /, *args: P.args, **options: P.kwargs) -> R:
        result: R = self._turns.run(Turn(lambda: method(self, *args, **options)), self._step_together)
        return result

    return waiting
