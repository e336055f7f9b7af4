"""PyTorch's pickles read as data: no class is looked up, no function is called.

The opcodes are decoded by `pickletools.genops`, which only parses, and interpreted here by a table of the
few that describe plain containers. The only globals understood are those that a saved state dict needs:
``OrderedDict``, ``torch.Size``, the storage classes and the functions that put a tensor together. Any other
global is refused by name; this includes ``os.system`` and every class of the user's own.

Format: ``torch/serialization.py`` (zip archive: ``NAME/data.pkl``, one member ``NAME/data/KEY`` a storage).
"""

from __future__ import annotations

import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import numpy as np

from fastlstm.errors import FileFormatError, UnsupportedError
from fastlstm.typing import Array

__all__ = ["MOST_OPCODES", "Foreign", "StoredTensor", "parse", "storage_array", "widen_bfloat16"]

MOST_OPCODES = 4_000_000
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}
"""torch's storage classes and NumPy's names of their dtypes (bfloat16 has none: it is widened)."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that the pickle describes: a view of the storage `key`. Nothing is read yet."""

    key: str
    dtype: str
    numel: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def checked(cls, key: str, dtype: str, numel: int, offset: Any, shape: Any, strides: Any) -> StoredTensor:
        """Return the tensor if it lies within its storage of `numel` numbers, else raise ValueError."""
        sizes, steps = tuple(map(_count, shape)), tuple(map(_count, strides))
        if len(sizes) != len(steps) or len(sizes) > 32:
            raise ValueError("a tensor's shape and strides do not fit each other")
        last = _count(offset) + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
        elements = math.prod(sizes)
        if elements > numel or (elements and last >= numel):
            raise ValueError(f"a tensor of shape {list(sizes)} does not fit into {numel} stored numbers")
        return cls(key, dtype, numel, int(offset), sizes, steps)

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes by itself."""
        return math.prod(self.shape) * self.itemsize

    def view(self, data: bytes) -> Array:
        """Return the tensor as an array (row-major) cut out of its storage's bytes."""
        flat = storage_array(data, self.dtype)
        strides = tuple(s * flat.itemsize for s in self.strides)
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
        ).reshape(self.shape)


@dataclass(eq=False)
class Foreign:
    """An object of a class that the caller of `parse` allowed by name: its class and its attributes."""

    name: str
    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    numel: int


_MARK = object()


def storage_array(data: bytes, dtype: str) -> Array:
    """Return the bytes of a storage as a flat array; bfloat16 comes out as float32, exactly."""
    if dtype == "bfloat16":
        return widen_bfloat16(data)
    return np.frombuffer(data, np.dtype(dtype))


def widen_bfloat16(data: bytes) -> Array:
    """Return little-endian bfloat16 numbers as float32, which holds each of them exactly."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def parse(data: bytes, where: str, allow: Callable[[str], bool] | None = None, folder: str = "data/") -> Any:
    """Return the object that the pickle describes, with `StoredTensor` for every tensor.

    Parameters
    ----------
    data : bytes
    where : str
        Named in errors.
    allow : callable
        Told a global's name, says whether objects of that class are to be returned as `Foreign` data.
    folder : str
        Where in the archive the storages are; their keys begin with it.

    Raises
    ------
    UnsupportedError
        If the pickle names a global that is not known to be harmless; the message names it.
    FileFormatError
        If it is damaged.
    """
    try:
        return _Machine(where, allow, folder).run(data)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise FileFormatError(f"'{where}' holds a damaged pickle: {error}.") from None


class _Machine:
    """The stack, marks and memo of one pickle being read."""

    def __init__(self, where: str, allow: Callable[[str], bool] | None, folder: str) -> None:
        self.where = where
        self.allow = allow
        self.folder = folder
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST_OPCODES:
                raise FileFormatError(f"'{self.where}' holds a pickle of more than {MOST_OPCODES} operations.")
            name = opcode.name
            if name == "STOP":
                (result,) = self.stack
                return result
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _PUSH_VALUE:
                self.stack.append(_PUSH_VALUE[name]())
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in {"PROTO", "FRAME"}:
                raise UnsupportedError(
                    f"'{self.where}' holds a pickle with the operation {name}, which a state dict does not "
                    "need; save model.state_dict() with torch.save."
                )
        raise FileFormatError(f"'{self.where}' holds a pickle without an end.")

    def pop_to_mark(self) -> list[Any]:
        position = len(self.stack) - 1
        while self.stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise ValueError("a mark is missing")
        items = self.stack[position + 1 :]
        del self.stack[position:]
        return items

    def push_global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        known = full in _BUILDERS or full in _INERT or (module == "torch" and name in _DTYPES)
        if full in _PACKED:
            raise UnsupportedError(
                f"'{self.where}' holds weights that PyTorch's quantisation packed ('{full}'), which only PyTorch can "
                "unpack. Save the state dict of the model as it was before quantize_dynamic, or give the quantised "
                "model itself to fastlstm.from_torch and save that."
            )
        if not known and not (self.allow and self.allow(full)):
            raise UnsupportedError(
                f"'{self.where}' holds a pickle that asks for '{full}'. Only plain state dicts are read, and "
                "nothing is ever executed: save model.state_dict() with torch.save, or give the model "
                "itself to fastlstm.from_torch."
            )
        self.stack.append(_Global(full))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global's name is not a string")
        self.push_global(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("something is called that is no function")
        if function.name not in _BUILDERS:
            raise UnsupportedError(f"'{self.where}' holds a pickle that calls '{function.name}'.")
        self.stack.append(_BUILDERS[function.name](*arguments))

    def new_object(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, _Global) or arguments != ():
            raise ValueError("an object is made in an unknown way")
        if cls.name in _BUILDERS:
            self.stack.append(_BUILDERS[cls.name]())
        else:
            self.stack.append(Foreign(cls.name))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Foreign) and isinstance(state, dict):
            target.attributes.update(state)
        elif not (isinstance(target, OrderedDict) and isinstance(state, dict) and set(state) <= {"_metadata"}):
            raise UnsupportedError(
                f"'{self.where}' sets the state of a {type(target).__name__}, which a state dict does not do."
            )

    def persistent(self) -> None:
        kind, cls, key, _location, numel, *view = self.stack.pop()
        if view not in ([], [None]):  # PyTorch before 0.4 shared storages so
            raise UnsupportedError(f"'{self.where}' stores a part of another storage; save it with a newer PyTorch.")
        if kind != "storage" or not isinstance(cls, _Global) or not isinstance(key, str):
            raise ValueError("an unknown kind of stored object")
        dtype = _DTYPES.get(cls.name.removeprefix("torch."))
        if dtype is None:
            raise UnsupportedError(f"'{self.where}' stores a {cls.name}; supported: {', '.join(_DTYPES)} of torch.")
        self.stack.append(_Storage(self.folder + key, dtype, _count(numel)))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def set_items(self, pairs: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(pairs) % 2:
            raise ValueError("items are set on something that is no dict")
        if not all(isinstance(key, (str, int, float, NoneType)) for key in pairs[::2]):
            raise ValueError("a key is no string and no number")
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items are added to something that is no list")
        self.stack[-1].extend(items)

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise ValueError("a tuple's items are missing")
        del self.stack[-count:]
        self.stack.append(items)


_PUSH_ARGUMENT = frozenset({
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "STRING", "BINSTRING", "SHORT_BINSTRING",
})  # fmt: skip
_PUSH_VALUE: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
    "MARK": lambda: _MARK,
}
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": lambda m, argument: m.push_global(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.new_object(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.persistent(),
    "BINPUT": lambda m, index: m.put(index),
    "LONG_BINPUT": lambda m, index: m.put(index),
    "PUT": lambda m, index: m.put(int(index)),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "GET": lambda m, index: m.stack.append(m.memo[int(index)]),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "SETITEM": lambda m, _: m.set_items([*reversed((m.stack.pop(), m.stack.pop()))]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.pop_to_mark()),
    "POP": lambda m, _: m.stack.pop(),
}


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_gradient_hooks_and_metadata: Any
) -> StoredTensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    return StoredTensor.checked(storage.key, storage.dtype, storage.numel, offset, shape, strides)


def _rebuild_parameter(data: Any, *_gradient_and_hooks: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _list(items: Any = ()) -> list[Any]:
    return list(items)


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: OrderedDict(),
    "torch.Size": lambda sizes: tuple(map(_count, sizes)),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.jit._pickle.build_intlist": _list,
    "torch.jit._pickle.build_tensorlist": _list,
    "torch.jit._pickle.build_doublelist": _list,
    "torch.jit._pickle.build_boollist": _list,
    "torch.jit._pickle.restore_type_tag": lambda value, _tag: value,
}
"""The only functions whose calls a pickle may describe; each returns plain data."""

_PACKED = frozenset({"torch.ScriptObject", "torch._utils._rebuild_qtensor"})
"""What a quantised model's state dict asks for."""

_INERT = frozenset(
    f"torch.{name}"
    for name in [
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
)
"""Globals that may be named as values."""


def _count(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number < 1 << 48:
        raise ValueError(f"the size {str(number)[:40]} is not a sensible number")
    return int(number)
