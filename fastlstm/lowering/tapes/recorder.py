"""The tools for recording a tape: memory with fixed addresses, and instructions on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastlstm.errors import InputError
from fastlstm.graph import Node
from fastlstm.lowering.tapes.steps import NotLoweredError, Value
from fastlstm.operators.sizes import MAX_ELEMENTS
from fastlstm.program.arguments.arrays import Copy, Fill, Loops
from fastlstm.program.layout import AXES
from fastlstm.program.memory import aligned_zeros
from fastlstm.program.program import Argument, Body, Instruction, Place, Table, place
from fastlstm.program.protected import CHECKING
from fastlstm.target import Target
from fastlstm.typing import Array

__all__ = ["Emitter", "Recorder", "Value", "axis_of", "five", "loops"]

PATIENCE = 3  # nodes for which released memory is kept: a convolution, what it absorbs, pooling that emits it again
LEAST_CHAINED = 2048
"""Elements of an array from which on passing over it once less is worth a kernel of its own."""
GRAIN, FINE = 1024, 16
"""Memory is asked for in so many floats: the more, the more often what is free fits what comes next."""


@dataclass
class _Finish:
    """How pending instructions finish the outputs they write: see `fastlstm.kernels.convolution`.

    ``words`` holds the addresses that the kernel reads, ``bounds`` the two numbers at one of them; ``spread`` lays out
    one value per channel. ``again`` emits the instructions, which are those from ``first`` to ``last``, again.
    """

    value: Value
    words: Table
    bounds: Array
    spread: Callable[[Array], Array]
    used: bool = False
    first: int = 0
    last: int = 0
    again: Again | None = None


Again = Callable[[int, int, int, Callable[[slice, int, Array], None]], None]
"""``again(images, lines, most, done)``: emit what computes a value's lines up to `most`, so many lines of so many
images at a time, and call ``done(which images, first line, array)`` after each; the next take the array's place."""


@dataclass
class Recorder:
    """Memory and instructions of a tape during recording.

    Attributes
    ----------
    target : Target
    workers : int
        How many threads may run the tape.
    packed : dict
        Packed constants, for all tapes of a model.
    pending : list of Instruction
        Instructions that have not run yet.
    written : list of array
        Memory that instructions write; everything else they refer to is constant.
    grain : int
        Memory is allocated in multiples of this many floats.
    layer : str
        The name of the node whose instructions are being recorded.
    """

    target: Target
    workers: int
    packed: dict[Hashable, Any]
    pending: list[Instruction] = field(default_factory=list)
    written: list[Array] = field(default_factory=list)
    free: dict[int, list[Array]] = field(default_factory=dict)
    nbytes: int = 0
    grain: int = FINE if CHECKING else GRAIN
    layer: str = ""
    _finishes: dict[int, _Finish] = field(default_factory=dict)
    _chains: dict[int, tuple[Value, Instruction]] = field(default_factory=dict)
    _released: list[list[Array]] = field(default_factory=lambda: [[]])
    _fresh: list[Array] = field(default_factory=list)
    _scratch: list[Array] = field(default_factory=list)

    def memory(self, shape: Sequence[int]) -> Value:
        """Return memory for a float32 array, which nothing else uses as long as the array is needed."""
        count = math.prod(shape)
        if count > MAX_ELEMENTS:
            raise NotLoweredError(
                f"A value of {count:,} elements is to be computed; it may have {MAX_ELEMENTS:,}. Give the model "
                "smaller inputs."
            )
        size = -(-(count + self.target.slack) // self.grain) * self.grain
        spare = self.free.get(size)
        if spare:
            flat = spare.pop()
        else:
            flat = aligned_zeros(size, np.float32)
            self.written.append(flat)
            self.nbytes += flat.nbytes
        self._fresh.append(flat)
        return Value(flat[:count].reshape(shape), fixed=False, padded=True)

    def taken(self) -> list[Array]:
        """Return the memory allocated since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def release(self, flat: Array) -> None:
        """Release memory that no value uses any more, though not at once (see `again`)."""
        self._released[-1].append(flat)

    def node_done(self) -> None:
        """Record the end of a node: memory released some nodes ago becomes free."""
        self._released.append([])
        if len(self._released) > PATIENCE:
            for flat in self._released.pop(0):
                self.free.setdefault(flat.size, []).append(flat)

    def scratch(self, size: int) -> tuple[Place, int]:
        """Return memory for the workers, and how many bytes each has (at least `size`)."""
        floats = -(-(size + 64) // 256) * 64
        if not self._scratch or self._scratch[-1].size < floats * self.workers:
            self._scratch.append(aligned_zeros(floats * self.workers, np.float32))
            self.written.append(self._scratch[-1])
        whole = self._scratch[-1]
        return place(whole), whole.nbytes // self.workers

    def emit(self, kernel: str, constants: tuple[Any, ...], args: tuple[Argument, ...], macs: int = 0) -> None:
        """Add an instruction."""
        self.pending.append(Instruction(kernel, constants, args, kernel, macs, layer=self.layer))

    def flushed(self) -> list[Instruction]:
        """Return the pending instructions, which are about to run."""
        pending, self.pending = self.pending, []
        self._finishes.clear()
        self._chains.clear()
        return pending

    def finish(self, value: Value, channels: int, spread: Callable[[Array], Array]) -> Table:
        """Return the words that say how outputs are finished; at first unchanged, until `absorb` changes them."""
        bounds, slopes = np.array([-np.inf, np.inf], np.float32), spread(np.ones(channels, np.float32))
        words = Table([place(bounds), place(slopes)])
        self._finishes[id(value)] = _Finish(value, words, bounds, spread)
        return words

    def absorb(self, value: Value, low: float = -np.inf, high: float = np.inf, slopes: Array | None = None) -> bool:
        """Make the instructions that write a value clip it, and scale negative elements by a slope per channel.

        Returns
        -------
        bool
            Whether they do: they have not run, and nothing else reads the value.
        """
        found = self._finishes.get(id(value))
        if found is None or not value.sole or found.used:
            return False
        found.used = True
        found.bounds[:] = low, high
        if slopes is not None:
            spread = found.spread(np.broadcast_to(slopes, value.array.shape[1]).astype(np.float32))
            found.words.words[1] = place(spread)
        return True

    def chain(self, value: Value) -> None:
        """Record that the last instruction, an operation on two values, computes this one (see `extend`)."""
        if value.array.size >= LEAST_CHAINED:
            self._chains[id(value)] = value, self.pending[-1]

    def extend(self, value: Value, step: tuple[Any, ...], other: Value | None = None) -> bool:
        """Make the instruction that writes a value apply one more function to it, of which the first is to round.

        That is how arrays become integers: ``clip(round(x / s) + z) - z`` in one pass takes half the time of five. Any
        other functions one behind the other would be a kernel of their own, which the wheel does not hold.

        Parameters
        ----------
        value : Value
        step : tuple
            As in `fastlstm.kernels.arrays`.
        other : Value, optional
            The function's second operand, of one element.

        Returns
        -------
        bool
            Whether it does: it has not run, nothing else reads the value, and the other operand is there before it.
        """
        found = self._chains.get(id(value))
        if found is None or not value.sole or (other is not None and not other.is_float):
            return False
        if step[0] != "Round" and not found[1].constants[2:]:
            return False
        at = next((i for i in reversed(range(len(self.pending))) if self.pending[i] is found[1]), None)
        if at is None:
            return False
        before = self.pending[at]
        args: Any = before.args
        if other is not None:
            number = place(self.padded(other))
            if args.out.memory is number.memory or any(_mentions(i.args, number) for i in self.pending[at + 1 :]):
                return False
            words = args.numbers.words if isinstance(args.numbers, Table) else []
            args = args._replace(numbers=Table([*words, number]))
        self.pending[at] = replace(before, constants=(*before.constants, step), args=args)
        self._chains[id(value)] = value, self.pending[at]
        return True

    def repeatable(self, value: Value, first: int, again: Again) -> None:
        """Record that the instructions from `first` on compute a value, and how to emit them again."""
        found = self._finishes[id(value)]
        found.first, found.last, found.again = first, len(self.pending), again

    def again(self, value: Value) -> Again | None:
        """Return how to emit a value's instructions again, if they are the last and nothing else reads the value."""
        found = self._finishes.get(id(value))
        if found is None or not value.sole or found.last != len(self.pending):
            return None
        return found.again

    def replaced(self, value: Value) -> None:
        """Remove the instructions that compute a value, now that others do."""
        found = self._finishes.pop(id(value))
        del self.pending[found.first : found.last]

    def prepared(self, value: Value, what: Hashable, make: Callable[[Array], Array]) -> Array:
        """Return what `make` makes from a fixed value; for a shared one it is made once for all tapes."""
        if not value.shared:
            return make(value.array)
        key = (id(value.array), what)
        if key not in self.packed:
            self.packed[key] = (make(value.array), value.array)  # the array is kept so that its id stays unique
        made: Array = self.packed[key][0]
        return made

    def padded(self, value: Value) -> Array:
        """Return the value's array in memory from which kernels may read whole vectors."""
        if value.padded:
            return value.array  # type: ignore[no-any-return]

        def with_room(array: Array) -> Array:
            flat = aligned_zeros(array.size + self.target.slack, np.float32)
            flat[: array.size] = array.reshape(-1)
            return flat

        flat = self.prepared(value, "room", with_room)
        array: Array = flat[: value.array.size].reshape(value.array.shape)
        return array

    def contiguous(self, value: Value) -> Array:
        """Return the value's array, copied if it is not contiguous."""
        array = self.padded(value)
        if array.flags.c_contiguous:
            return array
        whole = self.memory(array.shape).array
        self.copy(array, whole)
        return whole  # type: ignore[no-any-return]

    def copy(self, source: Array, target: Array) -> None:
        """Copy between views of the same shape, with broadcasting; up to five axes at a time."""
        source = np.broadcast_to(source, target.shape)
        if not target.size:
            return
        sizes, (x, out) = loops(target.shape, source.strides, target.strides)
        if len(sizes) > AXES:
            for part, room in zip(source, target, strict=True):
                self.copy(part, room)
            return
        if x[-1] != 4 and 4 in x:  # the last axis of one is the other's second to last: the kernel transposes blocks
            at = x.index(4)
            for numbers in (sizes, x, out):
                numbers.insert(-1, numbers.pop(at))
            sizes, x, out = [
                [fill] * (len(sizes) == 2) + each for fill, each in zip((1, 0, 0), (sizes, x, out), strict=True)
            ]
        args = Copy(place(source), place(target), _padded(sizes, 1), _padded(x, 0), _padded(out, 0))
        self.emit("arrays.copy", (self.target.lanes,), args)

    def fill(self, target: Array, value: float) -> None:
        """Fill a contiguous array with one number."""
        number = np.full(1, value, np.float32)
        self.emit("arrays.fill", (self.target.lanes,), Fill(place(target), target.size, place(number)))


def _mentions(words: Iterable[Argument], at: Place) -> bool:
    """Whether there is a place in the same memory among arguments, or a program, which may have one."""
    return any(
        isinstance(word, Body)
        or (isinstance(word, Place) and word.memory is at.memory)
        or (isinstance(word, Table) and _mentions(word.words, at))
        for word in words
    )


def axis_of(axis: Any, rank: int) -> int:
    """Return an axis counted from the front; InputError if it does not exist."""
    if not -rank <= int(axis) < rank:
        raise InputError(f"There is no axis {axis} among {rank}.")
    return int(axis) % rank


def loops(shape: Sequence[int], *strides: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Return the fewest nested loops over arrays of one shape: sizes, and for each array its strides."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        here = [each[axis] for each in strides]
        if sizes and all(s[-1] == size * step for s, step in zip(steps, here, strict=True)):
            sizes[-1] *= size
            for s, step in zip(steps, here, strict=True):
                s[-1] = step
        else:
            sizes.append(size)
            for s, step in zip(steps, here, strict=True):
                s.append(step)
    if not sizes:
        return [1], [[4] for _ in strides]
    return sizes, steps


def _padded(numbers: Sequence[int], by: int) -> Loops:
    """Insert missing axes after the first one, which workers divide."""
    first = 0 if len(numbers) == 1 else 1
    return Loops(*numbers[:first], *[by] * (AXES - len(numbers)), *numbers[first:])


def five(sizes: Sequence[int], *strides: Sequence[int]) -> list[Loops] | None:
    """Return sizes and strides of exactly five loops, None if there are more."""
    if len(sizes) > AXES:
        return None
    return [_padded(sizes, 1), *(_padded(each, 0) for each in strides)]


Emitter = Callable[[Recorder, Node, Sequence[Value | None]], "list[Value] | None"]
"""Makes a node's instructions: see `fastlstm.lowering.tapes`."""
