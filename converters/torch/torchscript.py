"""TorchScript archives (``torch.jit.save`` of scripted and traced modules) as graphs, without torch.

The archive's code is followed as data (`script.interpreter`) into the same list of aten calls that an
exported program holds, and read from there. What the archive does not say is the shapes of its inputs: traced
archives store what they were traced with; for others ranks, dtypes and sizes are worked out from what the
operations ask for, and the graph's notes say so. ``shapes="x: float32[batch, time, 40]"`` says them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.converters.common.archive import Archive
from fastlstm.converters.torch.pickles import Foreign, StoredTensor, parse
from fastlstm.converters.torch.program import Call, LoopBody, Program, Tensor
from fastlstm.converters.torch.script.calls import Budget, Recorder
from fastlstm.converters.torch.script.interpreter import Interpreter
from fastlstm.converters.torch.script.packed import HANDLES
from fastlstm.converters.torch.script.sizes import MismatchError, NeedsSizeError, Pinned, TrackedSizes, United
from fastlstm.converters.torch.script.source import Sources
from fastlstm.converters.torch.sizes import Size
from fastlstm.converters.torch.weights import read_tensors
from fastlstm.errors import FileFormatError, InputError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["SUPPORTED", "is_torchscript", "read_torchscript"]

SUPPORTED: Sequence[tuple[str, str, str]] = (
    ("operations", "those of PyTorch programs; attention and transformer layers as tracing fuses them", "all others"),
    ("inputs", "tensors, tuples of them, optional ones", "lists and dicts, packed sequences"),
    ("outputs", "tensors in tuples, lists and dicts", "numbers, packed sequences"),
    (
        "packed sequences",
        "pack_padded_sequence sorted or not, pad_packed_sequence, states",
        "a total_length other than the tensor's own, padding with other numbers than 0",
    ),
    (
        "control flow",
        "what depends on the model alone; loops over all frames of an input with states that stay of one shape",
        "what depends on the numbers in a tensor or on sizes that are not known",
    ),
    ("modules", "methods, constants, ModuleList and ModuleDict, frozen modules", "attributes kept for the next call"),
)
"""What is read and what is refused, for the feature table."""

_PICKLE_BYTES = 64 << 20
_ATTEMPTS = 400
_TRUE_DIVISION = 4
"""The version of the format (``caffe2/serialize/versions.h``) in which div became what it is."""
_VISITS = 20_000
_KINDS: Sequence[tuple[str, int]] = [
    ("float32", 3), ("int64", 2), ("float32", 2), ("float32", 4), ("int64", 1), ("bool", 2), ("float32", 1),
    ("float32", 5), ("int64", 3), ("bool", 3), ("float32", 0), ("int64", 0),
]  # fmt: skip
"""Dtypes and ranks that inputs of unknown shape are tried with, the likeliest first."""
_LENGTHS = sorted(_KINDS, key=lambda kind: kind != ("int64", 1))
_MASKS = sorted(_KINDS, key=lambda kind: kind[0] != "bool")
"""The same for inputs that are called lengths, or masks."""
_GIVEN = re.compile(r"\s*(\w+)\s*:\s*(\w+)?\s*\[([^\[\]]*)\]\s*(?:,|;|$)")


@dataclass(frozen=True)
class _Given:
    """What is known of an input: dtype and sizes, a name where any size may come."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass
class _Guesses:
    """How the program is to be followed next."""

    kinds: dict[str, int] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)
    united: dict[str, str] = field(default_factory=dict)


def is_torchscript(archive: Archive) -> bool:
    """Say whether the archive was written by ``torch.jit.save``."""
    return f"{archive.root}constants.pkl" in archive


def read_torchscript(archive: Archive, shapes: str | None = None) -> Program:
    """Return the program of a TorchScript archive.

    Parameters
    ----------
    archive : Archive
    shapes : str, optional
        Names, dtypes and shapes of inputs: ``"x: float32[batch, time, 40], lengths: int64[batch]"``.

    Raises
    ------
    FileFormatError
        If the archive is damaged.
    UnsupportedError
        If its code does what is not supported, or the shapes of its inputs cannot be worked out.
    InputError
        If `shapes` is not of that form or names no input.
    """
    try:
        return _Reader(archive, shapes).read()
    except RecursionError:  # names, lists and calls in one another: how deep they are is known when they are followed
        raise FileFormatError(f"'{archive.path}' nests its program more deeply than any model.") from None


class _Reader:
    def __init__(self, archive: Archive, shapes: str | None) -> None:
        self.archive = archive
        self.sources = Sources(archive)
        root = self._pickle("data", _is_scripted)
        if not isinstance(root, Foreign):
            raise UnsupportedError(f"'{archive.path}' is a TorchScript archive without a module.")
        self.module = root
        constants = self._pickle("constants", _is_scripted)
        self.constants: Sequence[Any] = constants if isinstance(constants, (list, tuple)) else ()
        self.names = dict(_names(root, "", 0))
        text = archive.read(f"{archive.root}version", 16) if f"{archive.root}version" in archive else b"1"
        self.version = int(text) if text.strip().isdigit() else 1
        self.budget = Budget()
        self.ruled_out: list[dict[str, int]] = []
        self.reason = ""
        self.notes: list[str] = []
        self.structure: list[Any] = []
        self.inputs: list[str] = []
        self.given: dict[str, _Given] = _parsed(shapes)
        self.examples: dict[str, int] = {}
        """Axes of a traced model's inputs and the sizes that they had."""
        self._read_signature()

    def read(self) -> Program:
        guesses: _Guesses | None = _Guesses(dict.fromkeys((n for n in self.inputs if n not in self.given), 0))
        attempts = 0
        while guesses is not None and attempts < _ATTEMPTS:
            found = self._attempt(guesses)
            if isinstance(found, Program):
                return found
            guesses, attempts = found, attempts + 1
        raise UnsupportedError(
            f"'{self.archive.path}': no shapes of its inputs were found that fit the program: {self.reason}. "
            f"Say them: {self._how()}."
        )

    def _attempt(self, guesses: _Guesses) -> Program | _Guesses | None:
        """Follow the program; return it, or what to try next, or None if nothing is left to try."""
        try:
            return self._follow(guesses)
        except Pinned as demand:
            guesses.pinned[demand.leaf] = self.examples.get(demand.leaf, demand.value)
            return guesses
        except United as demand:
            self._unite(guesses, demand.leaf, demand.other)
            return guesses
        except NeedsSizeError as demand:
            if demand.names and set(demand.names) <= set(self.examples):
                guesses.pinned.update((leaf, self.examples[leaf]) for leaf in demand.names)
                return guesses
            reason = f"it depends on the size of {', '.join(sorted(set(demand.names)))}"
            blamed = {name for name in self.inputs if any(leaf.startswith(f"{name}_") for leaf in demand.names)}
        except MismatchError as demand:
            reason, blamed = str(demand), set(demand.inputs)
        self.reason = self.reason or f"{reason} ({self.run.where})"
        self.ruled_out.append({name: kind for name, kind in guesses.kinds.items() if name in blamed})
        kinds = next(_assignments(list(guesses.kinds), self.ruled_out), None) if self.ruled_out[-1] else None
        return None if kinds is None else _Guesses(kinds)

    def _unite(self, guesses: _Guesses, leaf: str, other: str) -> None:
        """Treat two axes as one; in a traced model only if they had the same size when it was traced."""
        sizes = {self.examples[name] for name in (leaf, other) if name in self.examples}
        if len(sizes) == 2:
            guesses.pinned.update((name, self.examples[name]) for name in (leaf, other))
        elif leaf in self.examples:
            guesses.united[other] = leaf
        else:
            guesses.united[leaf] = other

    def _how(self) -> str:
        shapes = ", ".join(f"{name}: float32[batch, time, 40]" for name in self.inputs[:1])
        return f'shapes="{shapes}" (its inputs are {", ".join(self.inputs)})'

    # -- the archive -------------------------------------------------------------------------------------------------

    def _pickle(self, name: str, allow: Any) -> Any:
        data = self.archive.read(f"{self.archive.root}{name}.pkl", _PICKLE_BYTES)
        return parse(data, str(self.archive.path), allow=allow, folder=f"{name}/")

    def _read_tensor(self, stored: StoredTensor) -> Array:
        return read_tensors(self.archive, {"": stored})[""]

    def _read_signature(self) -> None:
        """Find out what the module's inputs are and what is known of each."""
        functions = self.sources.class_of(self.module.name).functions
        self.forward = "forward" if "forward" in functions else "forward__0"  # the first of several, as nn.LSTM has
        forward = functions.get(self.forward)
        if forward is None:
            raise UnsupportedError(f"'{self.archive.path}': the module {self.module.name} has no method 'forward'.")
        arguments = forward.args.args[1:]
        examples: list[Any] = [None] * len(arguments)
        if f"{self.archive.root}traced_inputs.pkl" in self.archive:
            traced = self._pickle("traced_inputs", None)
            stored = traced.get("forward") if isinstance(traced, dict) else None
            if isinstance(stored, (list, tuple)) and len(stored) == len(arguments):
                examples = list(stored)
        plain = len(arguments) - len(forward.args.defaults)
        for position, (argument, example) in enumerate(zip(arguments, examples, strict=True)):
            if argument.annotation is None:
                raise FileFormatError(f"'{self.archive.path}': the input '{argument.arg}' has no type.")
            default = forward.args.defaults[position - plain] if position >= plain else None
            self.structure.append(self._input(argument.arg, argument.annotation, default, example))
        unknown = set(self.given) - set(self.inputs)
        if unknown:
            raise InputError(
                f"shapes: there is no {', '.join(sorted(unknown))}; the inputs are {', '.join(self.inputs)}."
            )

    def _input(self, name: str, annotation: ast.expr, default: ast.expr | None, example: Any) -> Any:
        kind, inner = _type(annotation)
        named = any(given == name or given.startswith(f"{name}_") for given in self.given)
        if kind == "Tensor":
            self.inputs.append(name)
            if isinstance(example, StoredTensor) and name not in self.given:
                dtype = "bfloat16" if example.dtype == "bfloat16" else np.dtype(example.dtype).name
                self.given[name] = _Given(dtype, tuple(f"{name}_{axis}" for axis in range(len(example.shape))))
                self.examples.update((f"{name}_{axis}", size) for axis, size in enumerate(example.shape))
            return Tensor(name)
        if kind == "Tuple":
            parts = example if isinstance(example, tuple) and len(example) == len(inner) else [None] * len(inner)
            return tuple(
                self._input(f"{name}_{i}", t, None, e) for i, (t, e) in enumerate(zip(inner, parts, strict=True))
            )
        if kind == "List" and inner and isinstance(example, (list, tuple)):
            return [self._input(f"{name}_{i}", inner[0], None, e) for i, e in enumerate(example)]
        if kind == "Optional" and inner:
            if default is None or named or isinstance(example, (StoredTensor, tuple)):
                return self._input(name, inner[0], None, example)
            self.notes.append(f"The optional input '{name}' was left out; shapes=\"...\" that names it asks for it.")
            return None
        if isinstance(default, ast.Constant):
            self.notes.append(f"The input '{name}' was given its default, {default.value!r}.")
            return default.value
        raise UnsupportedError(
            f"'{self.archive.path}': the input '{name}' is a {ast.unparse(annotation)[:100]}; supported: tensors and "
            "tuples of them."
        )

    # -- following the code ------------------------------------------------------------------------------------------

    def _follow(self, guesses: _Guesses) -> Program:
        z = TrackedSizes(traced=bool(self.examples))
        recorder = Recorder(z, self.budget)
        recorder.divides_integers = self.version < _TRUE_DIVISION
        leaves: dict[str, Size] = {}
        for name in self.inputs:
            dtype, shape = self._shape(z, leaves, name, guesses)
            recorder.tensor(name, dtype, shape, frozenset({name}))
        run = Interpreter(self.sources, recorder, self.constants, self.names, self._read_tensor)
        self.run = run
        result = run.method(self.module, self.forward, self.structure, {})
        run.check_lists()
        outputs = [tensor.name for tensor in _flat(result, run.where)]
        if not outputs:
            raise UnsupportedError(f"'{self.archive.path}': its forward gives no tensor.")
        return recorder.program(self.inputs, outputs, self._arrays(recorder, outputs), self._notes(recorder))

    def _shape(self, z: TrackedSizes, leaves: dict[str, Size], name: str, guesses: _Guesses) -> tuple[str, list[Size]]:
        given = self.given.get(name)
        if given is not None:
            sizes = [z.fixed(s) if isinstance(s, int) else self._leaf(z, leaves, s, guesses) for s in given.shape]
            return given.dtype, sizes
        kinds = _LENGTHS if "len" in name.lower() else _MASKS if "mask" in name.lower() else _KINDS
        dtype, rank = kinds[guesses.kinds[name]]
        return dtype, [self._leaf(z, leaves, f"{name}_{axis}", guesses) for axis in range(rank)]

    def _leaf(self, z: TrackedSizes, leaves: dict[str, Size], name: str, guesses: _Guesses) -> Size:
        for _ in range(len(guesses.united)):
            name = guesses.united.get(name, name)
        if name in guesses.pinned:
            return z.fixed(guesses.pinned[name])
        if name not in leaves:
            leaves[name] = z.made_up(name)
        return leaves[name]

    def _arrays(self, recorder: Recorder, outputs: Sequence[str]) -> dict[str, Array]:
        used = {
            item.name
            for call in _all_calls(recorder.calls)
            for argument in call.arguments.values()
            for item in (argument if isinstance(argument, list) else [argument])
            if isinstance(item, Tensor)
        } | set(outputs)
        values = {name: value for name, value in recorder.constants.items() if name in used}
        stored = {name: value for name, value in values.items() if isinstance(value, StoredTensor)}
        made = {name: value for name, value in values.items() if not isinstance(value, StoredTensor)}
        return {**read_tensors(self.archive, stored), **made}

    def _notes(self, recorder: Recorder) -> list[str]:
        worked_out = [name for name in self.inputs if name not in self.given]
        if self.examples:
            traced: dict[str, list[int]] = {}
            for leaf, size in self.examples.items():
                traced.setdefault(leaf.rpartition("_")[0], []).append(size)
            sizes = ", ".join(f"{name} {shape}" for name, shape in traced.items())
            note = f"The model was traced with {sizes}; axes whose size nothing in it depends on are left open."
            return [*self.notes, note]
        if not worked_out:
            return self.notes
        shapes = ", ".join(f"{name}: {recorder.dtypes[name]}[{_sizes(recorder.shapes[name])}]" for name in worked_out)
        note = f"The archive does not say the shapes of its inputs; its operations imply {shapes}."
        return [*self.notes, note]


def _all_calls(calls: Sequence[Call]) -> Iterator[Call]:
    """Yield calls and those in the bodies of loops."""
    for call in calls:
        yield call
        body = call.arguments.get("body")
        if isinstance(body, LoopBody):
            yield from _all_calls(body.calls)


def _sizes(shape: Sequence[Size]) -> str:
    return ", ".join("any" if size.is_open else str(size.value) for size in shape)


def _is_scripted(name: str) -> bool:
    return name.startswith("__torch__.")


def _names(module: Foreign, prefix: str, depth: int) -> Iterator[tuple[StoredTensor, str]]:
    """Yield the tensors of a module and its parts with names such as ``lstm_weight_ih_l0``."""
    if depth > 100:
        raise FileFormatError("The archive nests its modules in a way that no model does.")
    for name, value in module.attributes.items():
        if isinstance(value, Foreign):
            yield from _names(value, f"{prefix}{name}_", depth + 1)
        elif isinstance(value, StoredTensor):
            yield value, f"p_{prefix}{name}"


def _parsed(shapes: str | None) -> dict[str, _Given]:
    found: dict[str, _Given] = {}
    position, text = 0, (shapes or "").strip()
    while position < len(text):
        match = _GIVEN.match(text, position)
        if match is None:
            raise InputError(
                f"shapes: '{text[position:][:60]}' is not of the form \"x: float32[batch, time, 40], n: int64[batch]\"."
            )
        dtype = match[2] or "float32"
        sizes = [part.strip() for part in match[3].split(",") if part.strip()]
        if dtype not in {kind for kind, _ in _KINDS} | {"int32", "float64", "float16"}:
            raise InputError(f"shapes: the dtype '{dtype}' of '{match[1]}' is not supported.")
        if not all(size.isdecimal() or size.isidentifier() for size in sizes):
            raise InputError(f"shapes: the sizes of '{match[1]}' should be numbers or names; got [{match[3]}].")
        found[match[1]] = _Given(dtype, tuple(int(size) if size.isdecimal() else size for size in sizes))
        position = match.end()
    return found


def _type(annotation: ast.expr) -> tuple[str, list[ast.expr]]:
    """Return a type's name and the types inside its brackets."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        inner = annotation.slice
        return annotation.value.id, inner.elts if isinstance(inner, ast.Tuple) else [inner]
    return (annotation.id if isinstance(annotation, ast.Name) else ""), []


def _flat(value: Any, where: str) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flat(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item, where)
    elif value is not None:
        if isinstance(value, HANDLES):
            raise UnsupportedError(
                "An output of the program is packed, or its rows are sorted by length; supported: padded tensors in "
                "the input's order. Pad it and sort it back in forward."
            )
        raise UnsupportedError(f"An output of the program is a {type(value).__name__}; supported: tensors.")


def _assignments(names: Sequence[str], ruled_out: Sequence[Mapping[str, int]]) -> Iterator[dict[str, int]]:
    """Yield the ways to choose a kind for each input that nothing rules out, the likeliest first."""
    visits = 0

    def extend(chosen: dict[str, int]) -> Iterator[dict[str, int]]:
        nonlocal visits
        visits += 1
        if visits > _VISITS or any(r.items() <= chosen.items() for r in ruled_out):
            return
        if len(chosen) == len(names):
            yield dict(chosen)
            return
        for kind in range(len(_KINDS)):
            yield from extend({**chosen, names[len(chosen)]: kind})

    return extend({})
