"""Busy flags: a call that would overlap another one is refused. A flag is no lock: nothing ever waits for it.

The flag is a slot of a Python object: filled while the object it belongs to is free, empty while a call uses it.
Deleting a slot is a single interpreter step, so only one of two threads succeeds; and no signal is handled between it
and the next step, so an interrupt never leaves an object busy for good. Compiled code reads and writes the same slot
while it holds the interpreter lock (`fastlstm.kernels.entry`, and `gather.call` for pools), so for a step through an
entry the flag costs one load and two stores, 5 to 25 ns in all. From Python, for calls of 20 microseconds and more, it
costs some 40 ns::

    try:
        del busy.free
    except AttributeError:
        raise in_use("stream") from None
    try:
        ...
    finally:
        busy.free = None
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from fastlstm.errors import InputError

__all__ = ["Busy", "exclusive", "in_use", "is_free"]

P = ParamSpec("P")
R = TypeVar("R")


class Busy:
    """A flag: the attribute `free` exists while nothing uses the object that the flag belongs to."""

    __slots__ = ("free",)

    def __init__(self) -> None:
        self.free: Any = None


class _Shared(Protocol):
    _busy: Busy


S = TypeVar("S", bound=_Shared)


def is_free(busy: Busy) -> bool:
    """Return whether the object that a flag belongs to is free."""
    return hasattr(busy, "free")


def in_use(what: str) -> InputError:
    """Return the error of a call that would overlap another one."""
    return InputError(
        f"This {what} is in use by another call; nothing has changed. A {what} does one call at a time: "
        "give every thread its own, or let the calls follow one another."
    )


def exclusive(what: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Return a decorator for methods that need an object for themselves: its flag is `_busy`, errors call it `what`."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @wraps(method)
        def alone(self: S, /, *args: P.args, **options: P.kwargs) -> R:
            busy = self._busy
            try:
                del busy.free
            except AttributeError:
                raise in_use(what) from None
            try:
                return method(self, *args, **options)
            finally:
                busy.free = None

        return alone

    return decorate
