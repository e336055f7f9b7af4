"""First calls cached beside compiled code: with one, a model file that was run before starts without being planned.

When a model from a ``.fastlstm`` file has run for the first time and its plan is a single segment, everything the call
needs is written to the cache: the lowered program with its packed weights, the machine code of its kernels, and how
values connect to slots. A later process that loads a file with the same content runs from it; the graph is read,
optimised and planned only when something else is asked of the model.

The name of a cache file is derived from all that it was made from: the content of the model file, the target with its
cache sizes, the arguments of `load`, the versions of fastlstm and NumPy, and the size and modification time of every
module of fastlstm, by which Python, too, tells whether its compiled modules are up to date. Like compiled code, it is
read only where nobody else can have written it, and it carries a checksum.

    8 bytes   b"prepared"
    32        SHA-256 of all that follows
    8         length of the header in bytes (little-endian)
    header    JSON
    blocks    code at multiples of a page, arrays at cache lines
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from functools import cache as once
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from fastlstm.files.opening import digest_of
from fastlstm.kernels import cache, loader
from fastlstm.kernels.kernel import Kernel, known, listings
from fastlstm.program.layout import LINE
from fastlstm.program.protected import CHECKING
from fastlstm.runtime.bound import Instance, Lowered, SlotMemory
from fastlstm.runtime.connections import Connections, Port, State
from fastlstm.runtime.entry import sequence_wiring
from fastlstm.runtime.native import Call, Wiring, entry, entry_kernel
from fastlstm.target import Target
from fastlstm.typing import Array
from fastlstm.version import __version__

if TYPE_CHECKING:
    from fastlstm.graph import Graph
    from fastlstm.runtime.program import BoundProgram
    from fastlstm.runtime.segment import Segment

__all__ = ["Prepared", "find", "keep", "place_of"]


MAGIC = b"prepared"
HEAD = len(MAGIC) + 32 + 8
PAGE = 4096
LARGEST = 128 << 20  # most bytes of a call
MOST_BYTES = 256 << 20  # of all cached calls together: the oldest go first
DRIVE = Kernel("drive.drive")
OF_TEAMS = tuple(Kernel(f"team.{name}") for name in ("lead", "follow", "dismiss")) + (Kernel("shares.following"),)


class Prepared(NamedTuple):
    """A cached call, and the notes that loading the model warned about."""

    call: Call
    notes: tuple[str, ...]


def place_of(file: BinaryIO, threads: object, workers: int, precision: object, target: Target) -> Path | None:
    """Return where the first call of a model file is cached, None if it cannot be."""
    folder = _folder()
    if folder is None or os.name != "posix" or CHECKING or listings or not isinstance(precision, str):
        return None
    try:
        made_from = (__version__, np.__version__, _modules(), vars(target), threads, workers, precision)
    except OSError:  # modules that are not files
        return None
    name = hashlib.sha256(repr((made_from, digest_of(file))).encode()).hexdigest()[:32]
    return folder / f"{name}.model"


def _folder() -> Path | None:
    folder = cache.cache_folder()
    return None if folder is None else folder / "models"


@once
def _modules() -> str:
    """Return a hash of the names, sizes and modification times of all modules."""
    found = []
    waiting = [Path(__file__).parents[1]]
    while waiting:
        folder = waiting.pop()
        for item in os.scandir(folder):
            if item.is_dir():
                waiting.append(Path(item.path))
            elif item.name.endswith(".py"):
                status = item.stat()
                found.append((item.path, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def find(path: Path, target: Target) -> Prepared | None:
    """Return the call cached in a file; None if there is none, or it is damaged or not to be trusted."""
    try:
        if cache.mistrust(path):  # compiling or loading kernels will report it
            return None
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):  # an empty file
        return None
    if content[: len(MAGIC)] != MAGIC or hashlib.sha256(content[HEAD - 8 :]).digest() != content[len(MAGIC) : HEAD - 8]:
        return None
    size = int.from_bytes(content[HEAD - 8 : HEAD], "little")
    return _restored(json.loads(bytes(content[HEAD : HEAD + size])), content[_up(HEAD + size, PAGE) :], target)


def _restored(head: Mapping[str, Any], blocks: memoryview, target: Target) -> Prepared | None:
    """Bind a cached program to memory and connect it."""
    memory = [np.frombuffer(blocks, np.dtype(d), n, at).reshape(shape) for d, n, shape, at in head["memory"]]
    try:
        start = loader.place(bytes(blocks[: head["code"]]))
    except OSError:
        return None  # compiling will report it
    kernels = []
    for name, constants, at in head["kernels"]:
        kernels.append(Kernel(name, _tuples(constants)))
        known.setdefault((kernels[-1], target.code), start + at)
    lowered = Lowered(
        target,
        head["batch"],
        [SlotMemory(kind, stride, local, None if n is None else memory[n]) for kind, stride, local, n in head["slots"]],
        head["words"],
        [(at, kernels[number]) for at, number in head["kernel words"]],
        [(at, memory[number], offset) for at, number, offset in head["array words"]],
        *head["sizes"],
    )
    inputs, outputs, states, lengths, masks, flat, tables = head["connections"]
    connections = Connections(
        inputs, outputs, tuple(State(*state) for state in states), lengths, tuple(map(tuple, masks)), flat,
        dict(tables),
    )  # fmt: skip
    program = Instance(lowered, head["workers"], head["steps"])
    given, made = ([Port(n, tuple(shape), dtype) for n, shape, dtype in head[k]] for k in ("inputs", "outputs"))
    constants = {name: memory[number] for name, number in head["constants"].items()}
    wiring = sequence_wiring(connections, program, given, made, constants, head["room"])
    return None if wiring is None else Prepared(entry(program, wiring), tuple(head["notes"]))


def keep(
    path: Path, graph: Graph, notes: Sequence[str], segment: Segment, program: BoundProgram, wiring: Wiring, room: int
) -> None:
    """Write the call of a program to the cache; if that fails, later processes start as this one did.

    Parameters
    ----------
    path : path
        See `place_of`.
    graph : Graph
        The graph that was planned.
    notes : sequence of str
        What loading the model warned about.
    segment, program, wiring, room
        What `sequence_wiring` returned, and what it was made from.
    """
    if not program.relocatable:
        return
    lowered, connections = program.lowered, segment.connections()
    kernels = list(dict.fromkeys([*(kernel for _, kernel in lowered.kernels), DRIVE, entry_kernel(wiring), *OF_TEAMS]))
    if program.workers == 1:
        kernels = [kernel for kernel in kernels if kernel not in OF_TEAMS]
    code, places = bytearray(), []
    for kernel in kernels:
        image = _image(kernel, program.target)
        if image is None:
            return
        places.append((kernel.name, kernel.constants, len(code) + image.entry))
        code += image.code + bytes(-len(image.code) % PAGE)
    blocks = _Blocks(code)
    given = {state.given for state in connections.states if state.given in graph.constants}
    head = {
        "code": len(code),
        "kernels": places,
        "batch": lowered.batch,
        "slots": [[*slot[:3], None if slot.value is None else blocks.add(slot.value)] for slot in lowered.slots],
        "words": lowered.words,
        "kernel words": [(at, kernels.index(kernel)) for at, kernel in lowered.kernels],
        "array words": [(at, blocks.add(array), offset) for at, array, offset in lowered.arrays],
        "sizes": [lowered.block, lowered.scratch, lowered.integers, lowered.macs],
        "connections": [*connections[:-1], list(connections.tables.items())],
        "workers": program.workers,
        "steps": program.steps,
        "room": room,
        "inputs": [[spec.name, spec.shape, spec.dtype] for spec in graph.inputs],
        "outputs": [[spec.name, spec.shape, spec.dtype] for spec in graph.outputs],
        "constants": {name: blocks.add(np.ascontiguousarray(graph.constants[name])) for name in given},
        "notes": list(notes),
        "memory": blocks.rows,
    }
    text = json.dumps(head, separators=(",", ":"), default=methodcaller("item")).encode()  # for NumPy scalars
    rest = len(text).to_bytes(8, "little") + text
    rest += bytes(_up(len(MAGIC) + 32 + len(rest), PAGE) - len(MAGIC) - 32 - len(rest)) + blocks.content
    if len(rest) < LARGEST:
        with contextlib.suppress(OSError):
            cache.keep(path, MAGIC + hashlib.sha256(rest).digest() + rest, 0o600)  # it holds weights
            _make_room(path)


class _Blocks:
    """The arrays that follow the code, each written once."""

    def __init__(self, code: bytearray) -> None:
        self.content = code
        self.rows: list[tuple[str, int, tuple[int, ...], int]] = []
        self._numbers: dict[int, int] = {}

    def add(self, array: Array) -> int:
        """Return an array's index."""
        if id(array) not in self._numbers:
            self._numbers[id(array)] = len(self.rows)
            self.rows.append((array.dtype.str, array.size, array.shape, len(self.content)))
            self.content += array.tobytes()
            self.content += bytes(-len(self.content) % LINE)
        return self._numbers[id(array)]


def _image(kernel: Kernel, target: Target) -> Any:
    from fastlstm.kernels.compiler import found_image

    return found_image(kernel, target)


def _make_room(newest: Path) -> None:
    """Remove the oldest files until the others together have at most `MOST_BYTES`."""
    files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in newest.parent.glob("*.model"))
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= MOST_BYTES:
            break
        if file != newest:
            file.unlink(missing_ok=True)
            total -= size


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
