"""Whether something is in use, so that a call which meets another is refused: not a lock, nobody ever waits.

The flag is a slot of a Python object: filled while the thing is free, empty while a call uses it. Deleting a slot is
one step of the interpreter, so of two threads only one succeeds; and no signal is handled between it and the next
step, so an interrupt never leaves a thing in use for good. Compiled code reads and writes the very same slot while it
holds the interpreter lock (`fastlstm.kernels.entry`, and `gather.call` for pools), so a step that goes through an entry
pays one load and two stores for it, 5 to 25 ns in all. From Python, for calls of 20 microseconds and more, it takes
some 40 ns::

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
    """A flag: the attribute `free` is there while nobody uses what the flag belongs to."""

    __slots__ = ("free",)

    def __init__(self) -> None:
        self.free: Any = None


class _Shared(Protocol):
    _busy: Busy


S = TypeVar("S", bound=_Shared)


def is_free(busy: Busy) -> bool:
    """Return whether nobody uses what a flag belongs to."""
    return hasattr(busy, "free")


def in_use(what: str) -> InputError:
    """Return the error of a call that meets another."""
    return InputError(
        f"This {what} is in use by another call; nothing has changed. A {what} does one call at a time: "
        "give every thread its own, or let the calls follow one another."
    )


def exclusive(what: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Return a decorator for methods that use all of an object whose flag is `_busy`: a `what`, in the error."""

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
