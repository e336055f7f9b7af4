"""Packed sequences: ``pack_padded_sequence`` and what comes of it, as lengths beside padded tensors.

PyTorch sorts the rows by length, joins their valid steps in one tensor, and sorts everything back afterwards.
None of that is done here: a sorted tensor is the tensor itself with a mark, and a packed one the padded one with its
lengths, which recurrent layers take. Nor is it where a model sorts its rows itself, whatever is computed row by row in
between. What is not sorted back is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastlstm.converters.torch.program import Tensor
from fastlstm.converters.torch.script.run import Run
from fastlstm.converters.torch.script.sizes import MismatchError
from fastlstm.converters.torch.sizes import Size
from fastlstm.errors import UnsupportedError

__all__ = ["HANDLES", "PACKING"]


@dataclass(frozen=True)
class _Order:
    """The order of rows by length, or the way back."""

    lengths: Tensor
    inverse: bool = False


@dataclass(frozen=True)
class _Sorted:
    """A tensor whose rows along an axis are in an order, written down as it was before."""

    tensor: Tensor
    axis: int
    order: _Order


@dataclass(frozen=True)
class _Packed:
    """The valid steps of a padded tensor, time and batch on its first two axes."""

    tensor: Tensor
    lengths: Tensor
    batch_first: bool
    order: _Order | None


@dataclass(frozen=True)
class _BatchSizes:
    """How many rows are valid at each step."""

    packed: _Packed


@dataclass(frozen=True)
class _Longest:
    """The largest of the lengths."""

    lengths: Tensor


HANDLES = (_Order, _Sorted, _Packed, _BatchSizes, _Longest)
"""What stands for packed and sorted tensors in the program."""


def _sort(run: Run, value: Any, axis: int = -1, descending: bool = False) -> Any:
    if isinstance(value, _Order):
        return None, _sorted_order(run, value, axis, descending)
    order = _sorted_order(run, value, axis, descending)
    return _Sorted(value, 0, order), order


def _sorted_order(run: Run, value: Any, axis: int = -1, descending: bool = False) -> _Order:
    """Return the order of lengths that fall, or that in which the rows of an order rise again: the way back."""
    if isinstance(value, _Order) and not value.inverse and axis in (0, -1) and not descending:
        return replace(value, inverse=True)
    if not isinstance(value, Tensor) or axis not in (0, -1) or descending is not True:
        raise UnsupportedError(f"{run.where}: sorting is supported where sequences are packed, by length.")
    _check_lengths(run, value)
    run.recorder.rank(value)
    return _Order(value)


def _check_lengths(run: Run, lengths: Tensor) -> None:
    recorder = run.recorder
    if recorder.rank(lengths) != 1 or "int" not in recorder.dtypes[lengths.name]:
        raise MismatchError("lengths should be integers [batch]", recorder.sources[lengths.name])


def _index_select(run: Run, tensor: Any, axis: int, index: Any) -> Any:
    if isinstance(index, _Order):
        axis %= _dim(run, tensor)
        if isinstance(tensor, Tensor) and not index.inverse:
            return _Sorted(tensor, axis, index)
        if isinstance(tensor, _Sorted) and index.inverse and tensor.axis == axis:
            return tensor.tensor
    raise UnsupportedError(f"{run.where}: this use of sorted rows is not supported.")


def _index(run: Run, tensor: Any, indices: Sequence[Any]) -> Any:
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    return _index_select(run, tensor, *given[0] if len(given) == 1 else (0, None))


def _pack(run: Run, tensor: Any, lengths: Any, batch_first: bool) -> Any:
    order = tensor.order if isinstance(tensor, _Sorted) else None
    if order is not None:
        if not isinstance(lengths, _Sorted) or lengths.order != order or tensor.axis != (0 if batch_first else 1):
            raise UnsupportedError(f"{run.where}: rows are packed in another order than that of their lengths.")
        tensor, lengths = tensor.tensor, lengths.tensor
    _check_lengths(run, lengths)
    if run.recorder.rank(tensor) < 2:
        raise MismatchError("sequences should have an axis of time", run.recorder.sources[tensor.name])
    run.recorder.z.same(run.recorder.shapes[lengths.name][0], run.recorder.shapes[tensor.name][0 if batch_first else 1])
    packed = _Packed(tensor, lengths, batch_first, order)
    return packed, _BatchSizes(packed)


def _select(run: Run, sizes: Any, axis: int, index: int) -> Any:
    """The number of rows at the first step is that of all rows."""
    if isinstance(sizes, _Sorted):
        return _row_by_row("select", drops=True)(run, sizes, axis, index)
    if not isinstance(sizes, _BatchSizes) or (axis, index) != (0, 0):
        raise UnsupportedError(f"{run.where}: this use of packed sequences is not supported.")
    return run.recorder.size(sizes.packed.tensor, 0 if sizes.packed.batch_first else 1)


def _size(run: Run, value: Any, axis: int | None = None) -> Any:
    if isinstance(value, _BatchSizes) and axis == 0:
        return _Longest(value.packed.lengths)
    if isinstance(value, _Packed) and axis in (-1, 1):
        return run.recorder.size(value.tensor, -1)
    raise UnsupportedError(f"{run.where}: the size of a packed or sorted tensor is not supported.")


def _dim(run: Run, value: Any) -> int:
    """What is packed has one axis less: steps, features."""
    if isinstance(value, _Packed):
        return run.recorder.rank(value.tensor) - 1
    if isinstance(value, _Sorted):
        return run.recorder.rank(value.tensor)
    return run.recorder.rank(value) if isinstance(value, Tensor) else 1


def _numel(run: Run, value: Any) -> Any:
    if isinstance(value, _Order):
        return run.recorder.size(value.lengths, 0)
    raise UnsupportedError(f"{run.where}: the size of a packed or sorted tensor is not supported.")


def _pad(run: Run, packed: Any, _sizes: Any, batch_first: bool, value: float, total: Any) -> tuple[Any, Any]:
    if not isinstance(packed, _Packed):
        raise UnsupportedError(f"{run.where}: this use of packed sequences is not supported.")
    recorder, tensor = run.recorder, packed.tensor
    if value != 0:
        raise UnsupportedError(f"{run.where}: padding with {value} is not supported; supported: 0.")
    time = 1 if packed.batch_first else 0
    if isinstance(total, _Longest):
        tensor = recorder.trimmed(tensor, packed.lengths, time)
    elif not _same_size(total, recorder.size(tensor, time)):
        raise UnsupportedError(
            f"{run.where}: a total_length other than the size of the tensor packed is not supported."
        )
    if batch_first != packed.batch_first:
        tensor = recorder.call("transpose", [tensor, 0, 1], {})
    if packed.order is None:
        return tensor, packed.lengths
    return _Sorted(tensor, 0 if batch_first else 1, packed.order), _Sorted(packed.lengths, 0, packed.order)


def _same_size(a: Any, b: Any) -> bool:
    return a.root is b.root if isinstance(a, Size) and isinstance(b, Size) else bool(a == b)


def _less(run: Run, first: Any, second: Any) -> bool:
    """A total length is asked whether it is less than the longest sequence: not if those fit their tensor."""
    if isinstance(first, (int, Size)) and isinstance(second, _Longest):
        return False
    raise UnsupportedError(f"{run.where}: this use of lengths is not supported.")


def _recurrent(name: str) -> Callable[..., Any]:
    def packing(run: Run, packed: Any, _sizes: Any, hx: Any, params: Any, *settings: Any) -> Any:
        if not isinstance(packed, _Packed):
            raise UnsupportedError(f"{run.where}: this use of packed sequences is not supported.")
        plain = [_unsorted(state) for state in hx] if isinstance(hx, list) else _unsorted(hx)
        arguments = [packed.tensor, plain, params, *settings, packed.batch_first]
        output, *states = run.recorder.call(name, arguments, {}, {"lengths": packed.lengths})
        order = packed.order
        finals = states if order is None else [_Sorted(state, 1, order) for state in states]
        return (_Packed(output, packed.lengths, packed.batch_first, order), *finals)

    return packing


def _unsorted(state: Any) -> Any:
    """Return a state in the rows' own order: what is not marked is made of zeros, whatever the order."""
    return state.tensor if isinstance(state, _Sorted) else state


def _inverse(run: Run, order: Any, **_: Any) -> _Order:
    if not isinstance(order, _Order):
        raise UnsupportedError(f"{run.where}: this use of packed sequences is not supported.")
    return _Order(order.lengths, inverse=True)


def _row_by_row(name: str, along: bool = True, drops: bool = False) -> Callable[..., Any]:
    """Return an operation that treats sorted rows one by one.

    It works `along` the axis that its first argument names, which may not be theirs and may be gone behind it.
    """

    def each(run: Run, value: Any, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(value, _Sorted):
            place, rank = value.axis, _dim(run, value)
            axis = arguments[0] % rank if along and arguments and isinstance(arguments[0], int) else None
            if place != axis and (axis is not None or not along):
                result = run.operation(name, [value.tensor, *arguments], keywords)
                return _Sorted(result, place - (drops and axis is not None and axis < place), value.order)
        raise UnsupportedError(f"{run.where}: '{name}' of packed or sorted sequences is not supported.")

    return each


def _linear(run: Run, value: Any, *arguments: Any) -> Any:
    if isinstance(value, _Sorted) and value.axis != _dim(run, value) - 1:
        return _row_by_row("linear", along=False)(run, value, *arguments)
    raise UnsupportedError(f"{run.where}: 'linear' of packed or sorted sequences is not supported.")


def _cat(run: Run, values: Sequence[Any], axis: int = 0) -> Any:
    first = values[0]
    alike = all(isinstance(v, _Sorted) and (v.axis, v.order) == (first.axis, first.order) for v in values)
    if not alike or axis % _dim(run, first) == first.axis:
        raise UnsupportedError(f"{run.where}: 'cat' of packed or sorted sequences is not supported.")
    return _Sorted(run.operation("cat", [[v.tensor for v in values], axis], {}), first.axis, first.order)


def _same(_run: Run, value: Any, *_: Any, **__: Any) -> Any:
    return value


PACKING: Mapping[str, Callable[..., Any]] = {
    "sort": _sort,
    "argsort": _sorted_order,
    "index_select": _index_select,
    "index": _index,
    "_pack_padded_sequence": _pack,
    "_pad_packed_sequence": _pad,
    "select": _select,
    "size": _size,
    "dim": _dim,
    "slice": _row_by_row("slice"),
    "squeeze": _row_by_row("squeeze", drops=True),
    "cat": _cat,
    "linear": _linear,
    **{name: _row_by_row(name, along=False) for name in ("relu", "tanh", "sigmoid", "gelu", "dropout", "contiguous")},
    "lt": _less,
    "numel": _numel,
    "to": _same,
    "cpu": _same,
    "detach": _same,
    "Int": _same,
    "empty_like": _inverse,
    "scatter_": lambda _run, inverse, *_: inverse,
    **{name: _recurrent(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
}
"""Operations on packed sequences, by the name behind ``torch.``."""
