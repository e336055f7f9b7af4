"""Rules that several operators share: what they make of shapes, and what they expect of their inputs."""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm.operators import dims
from fastlstm.operators.definition import Expectation
from fastlstm.operators.dims import Dim, Shape
from fastlstm.operators.values import CONTENT_LIMIT, Operands, ValueInfo, normal_axis

__all__ = [
    "along", "axes_fit", "broadcast_shapes", "differ", "repeated", "same", "sizes_fit", "window_sizes", "windows_fit",
    "within",
]  # fmt: skip


# --- shapes ----------------------------------------------------------------------------------------------


def same(at: Operands) -> ValueInfo:
    """Give the output the first input's shape and dtype."""
    return ValueInfo(at[0].shape, at[0].dtype)


def broadcast_shapes(shapes: Sequence[Shape | None]) -> Shape | None:
    """Return the shape that all `shapes` broadcast to, None if one is not known or they do not fit."""
    if any(shape is None for shape in shapes):
        return None
    known = [shape for shape in shapes if shape is not None]
    rank = max((len(shape) for shape in known), default=0)
    result: list[Dim] = [1] * rank
    for shape in known:
        for i, dim in enumerate(shape, start=rank - len(shape)):
            merged = dims.broadcast(result[i], dim)
            if merged is None:
                return None
            result[i] = merged
    return tuple(result)


def repeated(at: Operands, shape: Shape | None, data: ValueInfo | None = None) -> ValueInfo:
    """Return a value of `shape` made of copies of the data; short vectors keep their content."""
    data = at[0] if data is None else data
    if shape is not None and len(shape) <= 1 and data.const is not None:
        size = shape[0] if shape else 1
        if isinstance(size, int) and 0 <= size <= CONTENT_LIMIT and len(data.const) > 0:
            content = tuple(data.const[i % len(data.const)] for i in range(size))
            return ValueInfo.of_content(content, shape, data.dtype)
    return ValueInfo(shape, data.dtype, None, data.fill)


def window_sizes(at: Operands, sizes: Shape, kernel: Sequence[Dim]) -> list[Dim]:
    """Return the sizes after sliding a window: floor((size + pads - dilated kernel) / stride) + 1."""
    n = len(sizes)
    strides, dilations = at.attr("strides", [1] * n), at.attr("dilations", [1] * n)
    pads, auto = at.attr("pads", [0] * 2 * n), at.attr("auto_pad", "NOTSET")
    result: list[Dim] = []
    for i, size in enumerate(sizes):
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            result.append(dims.ceil_divide(size, strides[i]))
            continue
        around = 0 if auto == "VALID" else pads[i] + pads[i + n]
        reach = dims.add(1, dims.multiply(dilations[i], dims.subtract(kernel[i], 1)))
        if at.attr("ceil_mode", 0):  # a last window that would start in the padding is left out
            result.append(at.fresh(i + 2))
            continue
        room = dims.subtract(dims.add(size, around), reach)
        result.append(dims.add(dims.floor_divide(room, strides[i]), 1))
    return result


# --- expectations ----------------------------------------------------------------------------------------


def differ(a: Dim, b: Dim) -> bool:
    """Tell whether two dimensions are known not to be equal."""
    return isinstance(a, int) and isinstance(b, int) and a != b


def within(axes: Sequence[int], rank: int, least: int = 0) -> str:
    """Expect different axes of a value of `rank` axes, counted from either end."""
    if not all(-rank <= axis < rank for axis in axes) or len({normal_axis(a, rank) for a in axes}) != len(axes):
        return f"each axis once and between {-rank} and {rank - 1}, not {list(axes)}"
    return f"at least {least} axes" if rank < least else ""


def along(default: int, more: int = 0, position: int = 0) -> Expectation:
    """Expect the attribute ``axis`` to be one of the axes of an input, or of a result with `more` of them."""

    def rule(at: Operands) -> str:
        rank = at[position].rank
        return "" if rank is None else within([int(at.attr("axis", default))], rank + more)

    return rule


def axes_fit(position: int, at: Operands, rank: int | None) -> str:
    """Expect the input at `position`, if it is known, to hold axes of a value of `rank` axes."""
    info = at[position]
    if not at.given(position):
        return ""
    if info.rank is not None and info.rank > 1:
        return "axes in one row"
    numbers = info.numbers
    return "" if numbers is None or rank is None else within(numbers, rank)


def sizes_fit(position: int) -> Expectation:
    """Expect an input to hold sizes in one row."""

    def rule(at: Operands) -> str:
        if at[position].rank not in (None, 0, 1):
            return "its sizes in one row"
        numbers = at[position].const or ()
        wrong = [d for d in numbers if isinstance(d, int) and d < 0]
        return f"sizes of 0 or more, not {wrong[0]}" if wrong else ""

    return rule


def windows_fit(at: Operands, x: Shape | None, kernel: Sequence[Dim] | None) -> str:
    """Expect the attributes of a sliding window to have an entry, or two, for each axis that it slides along."""
    if x is not None and len(x) < 3:
        return "a batch, channels and at least one more axis"
    n = len(x) - 2 if x is not None else None if kernel is None else len(kernel)
    for name, times, least in (
        ("kernel_shape", 1, 1), ("strides", 1, 1), ("dilations", 1, 1), ("pads", 2, 0), ("output_padding", 1, 0),
    ):  # fmt: skip
        values = at.attr(name)
        if values is not None and ((n is not None and len(values) != times * n) or min(values, default=least) < least):
            return f"{name} to have {times} entries of {least} or more for each axis, not {list(values)}"
    return ""
