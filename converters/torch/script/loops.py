"""Loops that run once for every frame of an input: their bodies are written down once, as the body of a loop.

What the body changes among the tensors around it is handed on from round to round; what it appends to a list is put
side by side. Everything else that changes with the rounds is refused by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastlstm.converters.torch.program import Call, LoopBody, Tensor
from fastlstm.converters.torch.script.calls import Recorder
from fastlstm.converters.torch.script.run import Run
from fastlstm.converters.torch.script.sizes import MismatchError
from fastlstm.converters.torch.sizes import Size
from fastlstm.errors import UnsupportedError

__all__ = ["Collected", "collected", "follow_loop"]


@dataclass(frozen=True)
class Collected:
    """All items of a list, one a round: a tensor with the rounds on its first axis."""

    tensor: Tensor


def follow_loop(run: Run, statement: ast.For, trips: Size, names: dict[str, Any], body: Any) -> None:
    """Write a loop down and leave in `names` what its variables are after it.

    Parameters
    ----------
    run : Run
    statement : ast.For
        Over ``range(trips)``.
    trips : Size
    names : dict
        The variables around the loop.
    body : callable
        Follows the body once.
    """
    recorder = run.recorder
    if not isinstance(statement.target, ast.Name):
        raise UnsupportedError(f"{run.where}: this loop is not supported.")
    number = recorder.argument(trips)
    written = [name for name in dict.fromkeys(_written(statement.body)) if name in names]
    before = {name: names[name] for name in written}
    carried = [name for name in written if _tensors(before[name])]
    initial = [tensor for name in carried for tensor in _tensors(before[name])]
    lists = [value for value in names.values() if isinstance(value, list)]
    lengths = [len(items) for items in lists]
    with recorder.inside() as calls:
        index = recorder.round_number()
        own = [recorder.like(tensor, "carried") for tensor in initial]
        replacements = iter(own)
        for name in carried:
            names[name] = _with(before[name], replacements)
        names[statement.target.id] = recorder.round_size(index)
        body()
        results = [tensor for name in carried for tensor in _same_form(run, name, before[name], names[name])]
        collected = [
            _one_item(run, items, length) for items, length in _grown(run, lists, lengths, before, carried, names)
        ]
    for tensor, result in zip(own, results, strict=True):
        _check_alike(run, recorder, tensor, result)
    finals = [recorder.like(tensor, "final") for tensor in own]
    stacked = [recorder.like(tensor, "stacked", first=trips) for tensor, _ in collected]
    loop = LoopBody(index, _names(own), tuple(calls), _names(results), _names([tensor for tensor, _ in collected]))
    arguments = {"trips": number, "initial": initial, "body": loop}
    recorder.add(Call("script.loop", arguments, (*_names(finals), *_names(stacked))))
    replacements = iter(finals)
    for name in carried:
        names[name] = _with(before[name], replacements)
    for (_, items), tensor in zip(collected, stacked, strict=True):
        items[:] = [Collected(tensor)]


def _names(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors)


def _written(body: Sequence[ast.stmt]) -> Iterator[str]:
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a value that a loop may hand on: a tensor, or tuples of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _with(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the value with other tensors in the places of its own."""
    if isinstance(value, Tensor):
        return next(tensors)
    return tuple(_with(item, tensors) for item in value) if isinstance(value, tuple) else value


def _same_form(run: Run, name: str, before: Any, after: Any) -> list[Tensor]:
    tensors = _tensors(after)
    if _form(before) != _form(after):
        raise UnsupportedError(f"{run.where}: the loop makes something else of '{name}' than it was before.")
    return tensors


def _form(value: Any) -> Any:
    """Return the value with None in the places of its tensors."""
    if isinstance(value, tuple):
        return tuple(_form(item) for item in value)
    return None if isinstance(value, Tensor) else (value,)


def _grown(
    run: Run,
    lists: Sequence[list[Any]],
    lengths: Sequence[int],
    before: dict[str, Any],
    carried: Sequence[str],
    names: dict[str, Any],
) -> Iterator[tuple[list[Any], int]]:
    """Yield the lists that got longer; refuse other variables that changed."""
    for name, value in before.items():
        if name not in carried and names[name] is not value and names[name] != value:
            raise UnsupportedError(f"{run.where}: '{name}' changes in every round of the loop: not supported.")
    seen: list[int] = []
    for items, length in zip(lists, lengths, strict=True):
        if len(items) != length and id(items) not in seen:
            seen.append(id(items))
            yield items, length


def _one_item(run: Run, items: list[Any], length: int) -> tuple[Tensor, list[Any]]:
    if length or len(items) != 1 or not isinstance(items[0], Tensor):
        raise UnsupportedError(f"{run.where}: a list should be empty before the loop and get one tensor a round.")
    return items[0], items


def _check_alike(run: Run, recorder: Recorder, tensor: Tensor, result: Tensor) -> None:
    have, want = recorder.shapes[result.name], recorder.shapes[tensor.name]
    if len(have) != len(want) or recorder.dtypes[result.name] != recorder.dtypes[tensor.name]:
        reason = f"{run.where}: a state of the loop changes its rank or dtype"
        raise MismatchError(reason, recorder.sources[result.name] | recorder.sources[tensor.name])
    for a, b in zip(have, want, strict=True):
        recorder.z.same(a, b)


def collected(run: Run, name: str, items: Any, *arguments: Any) -> Any:
    """Return what an operation makes of a list that a loop has filled."""
    recorder, alone = run.recorder, isinstance(items, list) and len(items) == 1
    if alone and isinstance(items[0], Collected):
        tensor = items[0].tensor
        rank = recorder.rank(tensor)
        axis = arguments[0] if arguments else 0
        if name == "stack" and isinstance(axis, int):
            return recorder.call("movedim", [tensor, 0, axis % rank], {}) if axis % rank else tensor
        if name in ("cat", "concat") and isinstance(axis, int) and rank > 1:
            axis %= rank - 1
            moved = recorder.call("movedim", [tensor, 0, axis], {}) if axis else tensor
            return recorder.call("flatten", [moved, axis, axis + 1], {})
        if name == "__getitem__":
            return recorder.call("select", [tensor, 0, *arguments], {})
        if name == "len":
            return recorder.size(tensor, 0)
    raise UnsupportedError(f"{run.where}: '{name}' of a list that a loop has filled is not supported.")
