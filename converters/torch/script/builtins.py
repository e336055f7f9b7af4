"""What TorchScript's operations on numbers, lists and texts give; ``NotImplemented`` where tensors are meant."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastlstm.converters.torch.aten.schemas import DTYPES, Device
from fastlstm.converters.torch.pickles import StoredTensor
from fastlstm.converters.torch.program import Tensor
from fastlstm.converters.torch.script.conditions import COMPARISONS, Undecided, compare
from fastlstm.converters.torch.script.loops import Collected
from fastlstm.converters.torch.script.packed import HANDLES
from fastlstm.converters.torch.script.run import Run
from fastlstm.converters.torch.script.sizes import MismatchError
from fastlstm.converters.torch.sizes import Size
from fastlstm.errors import UnsupportedError

__all__ = ["BUILTINS", "PRIMITIVES"]

_ITEMS = 1_000_000
Function = Callable[..., Any]


def _plain(*values: Any) -> bool:
    return all(isinstance(value, (int, float, Size)) for value in values)


def _refused(run: Run, what: str) -> UnsupportedError:
    return UnsupportedError(f"{run.where}: {what} is not supported.")


def _known(run: Run, value: Any) -> Any:
    """Return a tensor of one number as that number if it is a constant, any other value as it is."""
    if not isinstance(value, Tensor):
        return value
    stored = run.recorder.constants.get(value.name)
    if stored is None or math.prod(stored.shape) != 1:
        return value
    if isinstance(stored, StoredTensor):
        stored = run.read(stored)
    return stored.reshape(()).item()


def _numbers(run: Run, *values: Any) -> list[Any] | None:
    """Return the values if all are numbers, or numbers but for constants of one number; else None."""
    if any(isinstance(value, Tensor) for value in values) and _plain(*(v for v in values if not isinstance(v, Tensor))):
        if all(isinstance(value, Tensor) for value in values):
            return None
        values = tuple(_known(run, value) for value in values)
    return list(values) if _plain(*values) else None


def _unbind(run: Run, tensor: Any, dim: int = 0) -> Any:
    """Cut along an axis of unknown size: a list for loops over all its items."""
    recorder = run.recorder
    if recorder.z.traced or not isinstance(tensor, Tensor) or not isinstance(recorder.size(tensor, dim), Size):
        return NotImplemented
    axis = dim % recorder.rank(tensor)
    return [Collected(recorder.call("movedim", [tensor, axis, 0], {}) if axis else tensor)]


def _fixed(run: Run, value: Any) -> Any:
    """Return a number whose calculation follows no input; a size has to be what it is in the example."""
    if isinstance(value, Size):
        run.recorder.z.fix(value)
        return value.value
    return value


def _add(run: Run, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    for kind in (list, tuple, str):
        if isinstance(a, kind) and isinstance(b, kind):
            _check_length(run, len(a) + len(b))
            return operator.add(a, b)
    numbers = _numbers(run, a, b)
    if numbers is None:
        return NotImplemented if isinstance(a, Tensor) or not isinstance(b, Tensor) else _swapped(run, "add", a, b)
    a, b = numbers
    if alpha != 1:
        raise _refused(run, "alpha between numbers")
    z = run.recorder.z
    if isinstance(a, Size) and isinstance(b, Size):
        return z.sum([a, b])
    if isinstance(a, Size) or isinstance(b, Size):
        size, number = (a, b) if isinstance(a, Size) else (b, a)
        return z.shift(size, number) if isinstance(number, int) else _fixed(run, size) + number
    return _small(run, a + b)


def _small(run: Run, number: float) -> float:
    """Return a number if TorchScript's integers hold it."""
    if isinstance(number, int) and abs(number) >= 1 << 63:
        raise _refused(run, "a number of more than 64 bits")
    return number


def _check_length(run: Run, length: int) -> None:
    if length > _ITEMS:
        raise _refused(run, f"a list of more than {_ITEMS} items")


def _swapped(run: Run, name: str, a: Any, b: Tensor) -> Any:
    return run.recorder.call(name, [b, a], {})


def _sub(run: Run, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    numbers = _numbers(run, a, b)
    if numbers is None:
        return NotImplemented if isinstance(a, Tensor) or not isinstance(b, Tensor) else _swapped(run, "rsub", a, b)
    a, b = numbers
    if isinstance(a, Size) and isinstance(b, Size) and a.root is b.root:
        return 0
    if isinstance(a, Size) and isinstance(b, int) and alpha == 1:
        return run.recorder.z.shift(a, -b)
    if not isinstance(alpha, (int, float)):
        raise _refused(run, "this alpha")
    return _small(run, _fixed(run, a) - _fixed(run, b) * alpha)


def _mul(run: Run, a: Any, b: Any) -> Any:
    if isinstance(a, list) and isinstance(b, int) and len(a) * max(b, 0) < _ITEMS:
        return a * b
    numbers = _numbers(run, a, b)
    if numbers is None:
        return NotImplemented if isinstance(a, Tensor) or not isinstance(b, Tensor) else _swapped(run, "mul", a, b)
    a, b = numbers
    if not isinstance(a, Size) and not isinstance(b, Size):
        return _small(run, a * b)
    if isinstance(a, float) or isinstance(b, float):
        return _fixed(run, a) * _fixed(run, b)
    z = run.recorder.z
    return z.product([v if isinstance(v, Size) else z.fixed(v) for v in (a, b)])


def _floordiv(run: Run, a: Any, b: Any) -> Any:
    numbers = _numbers(run, a, b)
    if numbers is None:
        return NotImplemented
    a, b = numbers
    if isinstance(a, Size) and isinstance(b, int) and not isinstance(b, bool) and b > 0:
        return run.recorder.z.ratio(a, b)
    return _calculate(run, operator.floordiv, a, b)


def _div(run: Run, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    numbers = _numbers(run, a, b)
    if numbers is None:
        return NotImplemented
    if rounding_mode in ("floor", "trunc"):
        return _floordiv(run, *numbers)
    return _calculate(run, operator.truediv, *numbers)


def _calculate(run: Run, function: Function, *values: Any) -> Any:
    """Return what an operation gives for numbers, which may lie outside its domain."""
    numbers = [_fixed(run, value) for value in values]
    try:
        return _small(run, function(*numbers))
    except (ArithmeticError, ValueError) as error:
        raise _refused(run, f"a calculation with {', '.join(map(str, numbers))} ({error})") from None


def _calculated(function: Function, operands: int = 1) -> Function:
    """A calculation with numbers alone."""

    def builtin(run: Run, *values: Any) -> Any:
        if not _plain(*values):
            return NotImplemented
        if len(values) != operands:
            raise _refused(run, f"a calculation with {len(values)} numbers")
        return _calculate(run, function, *values)

    return builtin


def _comparison(name: str) -> Function:
    def builtin(run: Run, a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return NotImplemented
        if isinstance(a, Device) or isinstance(b, Device):
            return (name == "eq") == (isinstance(a, Device) and isinstance(b, Device))
        if name not in ("eq", "ne") and not _plain(a, b) and not (isinstance(a, str) and isinstance(b, str)):
            raise _refused(run, f"'{name}' of a {type(a).__name__} and a {type(b).__name__}")
        if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
            return COMPARISONS[name](a, b)
        return compare(run.recorder.z, name, a, b)

    return builtin


def _not(_run: Run, value: Any) -> Any:
    if isinstance(value, Undecided):
        return value.negated()
    return NotImplemented if isinstance(value, Tensor) else not value


def _contains(run: Run, container: Any, item: Any) -> Any:
    item = _fixed(run, item)
    if isinstance(item, Tensor):
        raise _refused(run, "whether a tensor is in a list")
    words = isinstance(container, str) and isinstance(item, str)
    if not words and not isinstance(container, (list, tuple)) and not _is_key(container, item):
        raise _refused(run, f"whether something is in a {type(container).__name__}")
    return item in container


def _is_key(container: Any, item: Any) -> bool:
    """Whether a dict may be asked for an item."""
    return isinstance(container, dict) and (item is None or isinstance(item, (str, int, float)))


def _len(run: Run, value: Any) -> Any:
    if isinstance(value, Tensor):
        return run.recorder.size(value, 0)
    if not isinstance(value, (list, tuple, dict, str)):
        raise _refused(run, f"the length of a {type(value).__name__}")
    return len(value)


def _range_length(_: Run, start: Any, end: Any, step: Any) -> Any:
    """How often a loop runs over a range that does not begin at 0."""
    if not all(isinstance(number, int) for number in (start, end, step)) or step == 0:
        return NotImplemented
    return max(0, -((start - end) // step))


def _range_item(_: Run, index: Any, start: Any, step: Any) -> Any:
    fits = all(isinstance(number, int) for number in (index, start, step))
    return start + index * step if fits else NotImplemented


def _size(run: Run, value: Any, axis: int | None = None) -> Any:
    return run.recorder.sizes(value) if axis is None else run.recorder.size(value, axis)


def _numel(run: Run, value: Any) -> Any:
    z = run.recorder.z
    sizes = [size if isinstance(size, Size) else z.fixed(size) for size in run.recorder.sizes(value)]
    whole = z.product(sizes) if sizes else z.fixed(1)
    return whole if whole.is_open else whole.value


def _item(run: Run, container: Any, index: Any) -> Any:
    if isinstance(container, Tensor):
        return run.recorder.call("select", [container, 0, index], {})
    if not isinstance(index, int) and not isinstance(container, dict):
        raise UnsupportedError(f"{run.where}: which item is taken depends on an input.")
    if _is_key(container, index):
        there = index in container
    else:
        there = isinstance(container, (list, tuple, str)) and -len(container) <= index < len(container)
    if not there:
        raise MismatchError(f"a {type(container).__name__} has no item {index!r:.40}", run.recorder.blamed())
    return container[index]


def _slice(run: Run, value: Any, *bounds: Any) -> Any:
    if isinstance(value, Tensor):
        return NotImplemented
    start, end, step = (_fixed(run, bound) for bound in (*bounds, None, None, None)[:3])
    integers = all(bound is None or isinstance(bound, int) for bound in (start, end, step))
    if not isinstance(value, (list, tuple, str)) or not integers or step == 0:
        raise _refused(run, f"this slice of a {type(value).__name__}")
    return value[slice(start, end, step)]


def _append(run: Run, items: Any, item: Any) -> Any:
    return _extend(run, items, [item])


def _extend(run: Run, items: Any, more: Any, **_: Any) -> Any:
    """``items += more``."""
    if not isinstance(items, list):
        return NotImplemented
    if not isinstance(more, (list, tuple)):
        raise _refused(run, f"adding a {type(more).__name__} to a list")
    _check_length(run, len(items) + len(more))
    items.extend(more)
    return items


def _list(run: Run, items: Any) -> Any:
    if not isinstance(items, (list, tuple, str, dict)):
        raise _refused(run, f"a list of a {type(items).__name__}")
    return list(items)


def _number_of(kind: type) -> Function:
    """``int(x)``, ``float(x)`` and ``bool(x)`` of a number, or of a tensor whose numbers are known."""

    def builtin(run: Run, value: Any) -> Any:
        value = _known(run, value)
        if (isinstance(value, Undecided) and kind is bool) or isinstance(value, HANDLES):
            return value
        if isinstance(value, Tensor):
            raise UnsupportedError(f"{run.where}: a number of the program depends on the numbers in a tensor.")
        if kind is not bool and not _plain(value):
            raise _refused(run, f"a {type(value).__name__} as a number")
        return value if isinstance(value, Size) else _calculate(run, kind, value)

    return builtin


def _item_of(run: Run, value: Any) -> Any:
    value = _known(run, value)
    if isinstance(value, Tensor):
        raise UnsupportedError(f"{run.where}: a number of the program depends on the numbers in a tensor.")
    return value


def _new_tensor(run: Run, value: Any, dtype: int | None = None, **_: Any) -> Any:
    """``torch.tensor(numbers)``."""
    if isinstance(value, Size):
        return value  # the same in everything that can be done with it here
    try:
        array = np.array(value)
    except ValueError:  # lists of several lengths
        raise _refused(run, "a tensor of such lists") from None
    if array.dtype.kind not in "biuf" or (dtype is not None and (not isinstance(dtype, int) or dtype not in DTYPES)):
        raise _refused(run, "a tensor of something other than numbers")
    kind = DTYPES[dtype] if dtype is not None else "float32" if array.dtype.kind == "f" else array.dtype.name
    run.fresh += 1
    return run.recorder.constant(f"made_{run.fresh}", array.astype("float32" if kind == "bfloat16" else kind))


def _same_number(_run: Run, value: Any, *_: Any, **__: Any) -> Any:
    """Conversions of a number that stands for a tensor."""
    return value if _plain(value) else NotImplemented


def _extreme(function: Function, name: str) -> Function:
    def builtin(run: Run, a: Any, *rest: Any) -> Any:
        if isinstance(a, Tensor):
            if len(rest) == 1 and isinstance(rest[0], Tensor):
                return run.recorder.call(name, [a, *rest], {})
            return NotImplemented
        values = a if isinstance(a, list) else [a, *rest]
        if not values or not _plain(*values):
            raise _refused(run, f"'{name}' of these values")
        return function(_fixed(run, value) for value in values)

    return builtin


def _power(a: float, b: float) -> float:
    if isinstance(a, int) and isinstance(b, int) and b >= 0:
        return int(a**b) if b < 64 and abs(a) < 1 << 32 else math.inf
    return math.pow(a, b)


def _dtype(run: Run, tensor: Any) -> Any:
    name = run.recorder.dtype(getattr(tensor, "tensor", tensor))
    return next(number for number, dtype in DTYPES.items() if dtype == name)


def _raise(run: Run, message: Any = "", *_: Any) -> Any:
    raise MismatchError(f"the program refuses its inputs: {str(message)[:200]}", run.recorder.blamed())


BUILTINS: Mapping[str, Function] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "unbind": _unbind,
    "floordiv": _floordiv,
    "floor_divide": _floordiv,
    "div": _div,
    "true_divide": _div,
    "remainder": _calculated(lambda a, b: a % b, 2),
    "pow": _calculated(_power, 2),
    "neg": _calculated(lambda a: -a),
    "abs": _calculated(abs),
    "sqrt": _calculated(math.sqrt),
    "ceil": _calculated(math.ceil),
    "floor": _calculated(math.floor),
    "round": _calculated(lambda a: float(round(a))),
    "log": _calculated(math.log),
    "exp": _calculated(math.exp),
    **{name: _comparison(name) for name in COMPARISONS},
    "__not__": _not,
    "__is__": lambda _, a, b: a is b if a is None or b is None else a == b,
    "__isnot__": lambda _, a, b: a is not b if a is None or b is None else a != b,
    "__and__": lambda _, a, b: a and b if isinstance(a, bool) and isinstance(b, bool) else NotImplemented,
    "__or__": lambda _, a, b: a or b if isinstance(a, bool) and isinstance(b, bool) else NotImplemented,
    "__contains__": _contains,
    "__getitem__": _item,
    "__range_length": _range_length,
    "__derive_index": _range_item,
    "len": _len,
    "size": _size,
    "numel": _numel,
    "dim": lambda run, value: run.recorder.rank(value),
    "slice": _slice,
    "append": _append,
    "add_": _extend,
    "extend": _extend,
    "list": _list,
    "all": lambda _, items: all(items) if isinstance(items, list) else NotImplemented,
    "any": lambda _, items: any(items) if isinstance(items, list) else NotImplemented,
    "is_autocast_enabled": lambda *_: False,
    "is_grad_enabled": lambda *_: False,
    "cpu": lambda _, tensor: tensor,
    "copy": lambda _, items: items.copy() if isinstance(items, (list, dict)) else NotImplemented,
    "Int": _number_of(int),
    "Float": _number_of(float),
    "Bool": _number_of(bool),
    "Str": lambda _, value: str(value),
    "str": lambda _, value: str(value),
    "item": _item_of,
    "IntImplicit": _item_of,
    "FloatImplicit": _item_of,
    "ScalarImplicit": _item_of,
    "format": lambda _, text, *values: f"{text} ({', '.join(map(str, values))})"[:_ITEMS],
    "warn": lambda *_, **__: None,
    "device": lambda *_: Device(),
    "tensor": _new_tensor,
    "to": _same_number,
    "detach": _same_number,
    "clone": _same_number,
    "is_floating_point": lambda run, tensor: "float" in run.recorder.dtype(tensor),
    "max": _extreme(max, "maximum"),
    "min": _extreme(min, "minimum"),
}
"""By the name behind ``torch.``."""

PRIMITIVES: Mapping[str, Function] = {
    "NumToTensor": lambda _, value: value,
    "RaiseException": _raise,
    "data": lambda _, tensor: tensor,
    "device": lambda *_: Device(),
    "dtype": _dtype,
    "is_cuda": lambda *_: False,
    "is_nested": lambda *_: False,
    "type": lambda *_: "cpu",
    "is_sparse": lambda *_: False,
    "max": _extreme(max, "maximum"),
    "min": _extreme(min, "minimum"),
    "requires_grad": lambda *_: False,
    "unchecked_cast": lambda _, value, *__: value,
    "unchecked_unwrap_optional": lambda _, value: value,
}
"""By the name behind ``ops.prim.``."""
