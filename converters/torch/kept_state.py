"""What a model keeps for its next call: a graph has no place for it, so such models are refused.

A scripted or exported program says what it writes to. A module does not: ``torch.export`` follows one call and leaves
out what the module stores in its attributes, so that its second call would silently differ. `check_module` therefore
calls the module itself, and looks whether what one call leaves behind changes the next.
"""

from __future__ import annotations

import contextlib
import re
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastlstm.errors import InputError, UnsupportedError

__all__ = ["check_module", "kept", "restored"]

_OPAQUE = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)
_FOREIGN = {"torch", "numpy", *sys.stdlib_module_names}  # packages whose objects, modules apart, are not looked into
_PLAIN = (int, float, complex, str, bytes)
_PARTS = re.compile(r"\._(?:buffers|modules|parameters)\['([^']*)'\]")


def kept(where: str, name: str) -> UnsupportedError:
    """Return the error for a model that keeps `name` for its next call."""
    return UnsupportedError(
        f"{where}: the model keeps '{name}' for the next call. Give the state as an input and return it as an output: "
        "a stream carries it from call to call."
    )


def check_module(torch: Any, module: Any, examples: tuple[Any, ...]) -> tuple[str, ...]:
    """Refuse a module whose results depend on what earlier calls left in its attributes or buffers.

    A module that only stores something, such as attention weights to be looked at or tables to be used again, gives
    the same results in every call.

    Parameters
    ----------
    torch : Python module
    module : torch.nn.Module
        Called in the mode that it is in; left as it was.
    examples : tuple
        What it is called with.

    Returns
    -------
    tuple of str
        Notes: what it stores without reading it.

    Raises
    ------
    InputError
        If the module cannot be called with the examples.
    UnsupportedError
        If the same inputs give other results after another call.
    """
    with restored(torch, module) as saved, torch.no_grad():
        try:
            first = _results(torch, module, examples)
        except Exception as error:  # a module raises what it likes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"The module cannot be called with the inputs given: {reason[:300]}") from error
        changed = saved.changed()
        saved.restore()
        # Zeros could leave zeros behind, so other numbers are tried too, if it takes any but those given.
        runs = [(examples, first)]
        with contextlib.suppress(Exception):
            varied = _varied(torch, examples)
            runs.append((varied, _results(torch, module, varied)))
        changed = list(dict.fromkeys([*changed, *saved.changed()]))
        if not changed:
            return ()
        same = [_agree(torch, before, _results(torch, module, inputs)) for inputs, before in runs]
    if not all(same):
        raise kept(type(module).__name__, "', '".join(changed[:3]))
    return tuple(f"The module stores '{name}' in every call; its results do not depend on it." for name in changed)


@contextlib.contextmanager
def restored(torch: Any, module: Any) -> Iterator[_Attributes]:
    """Restore a module's attributes and buffers when the context ends."""
    saved = _Attributes(torch, module)
    try:
        yield saved
    finally:
        saved.restore()


def _results(torch: Any, module: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """Return copies of the tensors that a call returns; its inputs are not changed."""
    tree = torch.utils._pytree
    copies = tree.tree_map_only(torch.Tensor, lambda tensor: tensor.clone(), inputs)
    return [leaf.clone() for leaf in tree.tree_leaves(module(*copies)) if isinstance(leaf, torch.Tensor)]


def _agree(torch: Any, before: list[Any], now: list[Any]) -> bool:
    """Whether two calls gave the same numbers; NaN is NaN."""
    return len(before) == len(now) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(before, now, strict=True)
    )


def _varied(torch: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return other floats of the same shapes, near enough to be as valid: what is positive stays so."""
    generator = torch.Generator().manual_seed(0)

    def other(tensor: Any) -> Any:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
        return tensor * (1 + noise / 2) + noise / 10

    varied: tuple[Any, ...] = torch.utils._pytree.tree_map_only(torch.Tensor, other, inputs)
    return varied


class _Attributes:
    """What the attributes of a module hold at any depth: lists, dicts, sets, objects, and tensors' values."""

    def __init__(self, torch: Any, module: Any) -> None:
        self._torch = torch
        self._containers: list[tuple[str, Any, Any]] = []
        self._objects = set[int]()  # ids of containers that are an object's attributes
        self._tensors: list[tuple[str, Any, Any]] = []
        seen = set[int]()
        waiting: list[tuple[str, Any]] = [("", module)]
        while waiting:
            path, value = waiting.pop()
            if id(value) in seen or isinstance(value, torch.nn.Parameter):
                continue
            seen.add(id(value))
            if isinstance(value, (torch.Tensor, np.ndarray)):
                copy = value.copy() if isinstance(value, np.ndarray) else value.detach().clone()
                self._tensors.append((path, value, copy))
            elif isinstance(value, tuple):
                waiting += [(f"{path}[{i}]", item) for i, item in enumerate(value)]
            elif (container := self._container(value)) is not None:
                if container is not value:
                    self._objects.add(id(container))
                self._containers.append((path, container, container.copy()))
                waiting += self._named(container, container, path).items()

    def _container(self, value: Any) -> Any:
        """Return the mutable container of a value's parts; None if it has none."""
        if isinstance(value, (list, dict, set, deque)):
            return value
        if isinstance(value, _OPAQUE) or not hasattr(value, "__dict__"):
            return None
        foreign = type(value).__module__.partition(".")[0] in _FOREIGN
        return None if foreign and not isinstance(value, self._torch.nn.Module) else vars(value)

    def _named(self, container: Any, contents: Any, path: str) -> dict[str, Any]:
        """Return the parts of `container`, or of an earlier copy of it, by their paths."""
        if id(container) in self._objects:
            return {f"{path}.{key}": item for key, item in contents.items() if key != "training"}
        return {f"{path}[{key!r}]": item for key, item in _pairs(contents)}

    def changed(self) -> list[str]:
        """Return the names of what has changed, such as ``encoder.hidden``."""
        found: list[str] = []
        for path, container, before in self._containers:
            old, new = self._named(container, before, path), self._named(container, container, path)
            found += [name for name in {**old, **new} if not _same(old.get(name, self), new.get(name, self))]
        found += [path for path, tensor, before in self._tensors if not self._equal(tensor, before)]
        return list(dict.fromkeys(_PARTS.sub(r".\1", name).removeprefix(".") for name in found))

    def _equal(self, tensor: Any, before: Any) -> bool:
        if isinstance(before, np.ndarray):
            return np.array_equal(tensor, before)
        return tensor.shape == before.shape and bool(self._torch.equal(tensor, before))

    def restore(self) -> None:
        """Put back what changed."""
        for _, container, before in self._containers:
            old, new = _pairs(before), _pairs(container)
            if len(old) == len(new) and all(a is c and b is d for (a, b), (c, d) in zip(old, new, strict=True)):
                continue
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(before)
            else:
                container.update(before)
        with self._torch.no_grad():
            for _, tensor, before in self._tensors:
                if not self._equal(tensor, before):
                    tensor[...] = before


def _pairs(container: Any) -> list[tuple[Any, Any]]:
    """Return the parts of a container with their keys; the members of a set are their own keys."""
    if isinstance(container, dict):
        return list(container.items())
    return [(item, item) for item in container] if isinstance(container, set) else list(enumerate(container))


def _same(before: Any, now: Any) -> bool:
    return before is now or (type(before) is type(now) and isinstance(now, _PLAIN) and bool(before == now))
