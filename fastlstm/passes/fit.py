"""Whether a node can run at all on values of the shapes that are known: axes, orders, sizes that go together.

Inference and rewrites rely on it: of a node that does not fit nothing is known and nothing is made. It is no error
yet, for it may stand in a branch that is never taken; where nodes are planned to be run, it is one.

A rule returns what it expects where that does not hold, else an empty string. What is not known fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastlstm.graph import RecurrentInputs
from fastlstm.operators import dims
from fastlstm.operators.dims import Dim, Shape
from fastlstm.operators.values import Operands, ValueInfo, normal_axis
from fastlstm.passes.infer_compute import REDUCTIONS

__all__ = ["misfit"]

Rule = Callable[[Operands], str]


def misfit(at: Operands) -> str:
    """Return a sentence that says why the node cannot run on its inputs, empty if it may."""
    rule = _RULES.get(at.node.op)
    expected = "" if rule is None else rule(at)
    if not expected:
        return ""
    given = ", ".join(map(_described, at.infos))
    return f"{at.node.op} node '{at.node.name or at.node.output(0)}' expects {expected}; its inputs are {given}."


def _described(info: ValueInfo) -> str:
    shape = "[...]" if info.shape is None else f"[{', '.join(map(str, info.shape))}]"
    return (info.dtype or "") + shape


def _differ(a: Dim, b: Dim) -> bool:
    """Tell whether two dimensions are known not to be equal."""
    return isinstance(a, int) and isinstance(b, int) and a != b


def _within(axes: Sequence[int], rank: int, least: int = 0) -> str:
    """Expect different axes of a value of `rank` axes, counted from either end."""
    if not all(-rank <= axis < rank for axis in axes) or len({normal_axis(a, rank) for a in axes}) != len(axes):
        return f"each axis once and between {-rank} and {rank - 1}, not {list(axes)}"
    return f"at least {least} axes" if rank < least else ""


def _axis(default: int, more: int = 0, position: int = 0) -> Rule:
    """Expect the attribute ``axis`` to be one of the axes of an input, or of a result with `more` of them."""

    def rule(at: Operands) -> str:
        rank = at[position].rank
        return "" if rank is None else _within([int(at.attr("axis", default))], rank + more)

    return rule


def _axes_input(position: int, at: Operands, rank: int | None) -> str:
    """Expect the input at `position`, if it is known, to hold axes of a value of `rank` axes."""
    info = at[position]
    if not at.given(position):
        return ""
    if info.rank is not None and info.rank > 1:
        return "axes in one row"
    numbers = info.numbers
    return "" if numbers is None or rank is None else _within(numbers, rank)


def _reduced(at: Operands) -> str:
    return _axes_input(1, at, at[0].rank)


def _unsqueezed(at: Operands) -> str:
    numbers, rank = at[1].numbers, at[0].rank
    return _axes_input(1, at, None if numbers is None or rank is None else rank + len(numbers))


def _transposed(at: Operands) -> str:
    perm, rank = at.attr("perm"), at[0].rank
    if perm is None or (sorted(perm) == list(range(len(perm))) and rank in (None, len(perm))):
        return ""
    return f"perm to hold each axis of its input once, not {list(perm)}"


def _gathered(at: Operands) -> str:
    wrong = _axis(0)(at)
    if wrong or at[0].shape is None or at[1].numbers is None:
        return wrong
    size = at[0].shape[normal_axis(int(at.attr("axis", 0)), len(at[0].shape))]
    inside = not isinstance(size, int) or all(-size <= index < size for index in at[1].numbers)
    return "" if inside else f"indices below {size}"


def _gathered_nd(at: Operands) -> str:
    data, indices, batch = at[0].shape, at[1].shape, int(at.attr("batch_dims", 0))
    if data is None or indices is None:
        return ""
    depth = indices[-1] if indices else 0
    fits = 0 <= batch < len(indices) and (not isinstance(depth, int) or 1 <= depth <= len(data) - batch)
    return "" if fits else "indices with a last axis of 1 to as many numbers as its data have axes"


def _sliced(at: Operands) -> str:
    lists = [at[i] for i in range(1, 5) if at.given(i)]
    if any(info.rank is not None and info.rank > 1 for info in lists):
        return "starts, ends, axes and steps in one row each"
    lengths = {len(info.const) for info in lists if info.const is not None}
    steps = at[4].numbers if at.given(4) else None
    if len(lengths) > 1 or (steps is not None and 0 in steps):
        return "as many starts as ends, axes and steps, and no step of 0"
    if not at.given(3) and lengths and at[0].rank is not None and next(iter(lengths)) > at[0].rank:
        return f"starts for {at[0].rank} axes at most"
    return _axes_input(3, at, at[0].rank)


def _joined(at: Operands) -> str:
    shapes = [info.shape for info in at.infos if info.shape is not None]
    if not shapes:
        return ""
    ranks = {len(shape) for shape in shapes}
    if len(ranks) != 1:
        return "values of the same number of axes"
    wrong = _within([int(at.attr("axis", 0))], *ranks)
    if wrong:
        return wrong
    axis = normal_axis(int(at.attr("axis", 0)), *ranks)
    known = [{d for d in sizes if isinstance(d, int)} for i, sizes in enumerate(zip(*shapes, strict=True)) if i != axis]
    return "values that differ along one axis only" if any(len(sizes) > 1 for sizes in known) else ""


def _split(at: Operands) -> str:
    wrong, parts = _axis(0)(at), len(at.node.outputs)
    sizes = at[1].numbers if at.given(1) else None
    if not wrong and int(at.attr("num_outputs", parts)) != parts:
        return f"num_outputs to be the number of its outputs, {parts}"
    if wrong or sizes is None:
        return wrong
    size = None if at[0].shape is None else at[0].shape[normal_axis(int(at.attr("axis", 0)), len(at[0].shape))]
    total = isinstance(size, int) and sum(sizes) != size
    fits = len(sizes) == parts and min(sizes, default=0) >= 0 and not total
    return "" if fits else f"{parts} sizes that add up to the axis, not {sizes}"


def _reshaped(at: Operands) -> str:
    target = at[1].const
    if at[1].rank is not None and at[1].rank > 1:
        return "its shape in one row"
    if target is None:
        return ""
    known = [d for d in target if isinstance(d, int)]
    zero = at.attr("allowzero", 0) == 0
    data = at[0].shape
    if min(known, default=0) < -1 or known.count(-1) > 1:
        return f"sizes of 0 or more and at most one -1, not {known}"
    if zero and data is not None and any(d == 0 for d in target[len(data) :]):
        return "a 0 only where its input has an axis"
    if data is None or len(known) != len(target):
        return ""
    wanted: list[Dim] = [data[i] if d == 0 and zero else d for i, d in enumerate(known)]
    before, after = dims.product(data), dims.product(d for d in wanted if d != -1)
    if not (isinstance(before, int) and isinstance(after, int)):
        return ""
    fits = before == after if -1 not in wanted else (after != 0 and before % after == 0) or before == after == 0
    return "" if fits else f"a shape of {before} elements, not {known}"


def _flattened(at: Operands) -> str:
    axis, rank = int(at.attr("axis", 1)), at[0].rank
    return "" if rank is None or -rank <= axis <= rank else f"an axis between {-rank} and {rank}"


def _sizes_at(position: int) -> Rule:
    """Expect an input to hold sizes in one row."""

    def rule(at: Operands) -> str:
        if at[position].rank not in (None, 0, 1):
            return "its sizes in one row"
        numbers = at[position].const or ()
        wrong = [d for d in numbers if isinstance(d, int) and d < 0]
        return f"sizes of 0 or more, not {wrong[0]}" if wrong else ""

    return rule


def _tiled(at: Operands) -> str:
    rank, repeats = at[0].rank, at[1].const
    if rank is not None and repeats is not None and len(repeats) != rank:
        return f"a number of repeats for each of {rank} axes"
    return _sizes_at(1)(at)


def _padded(at: Operands) -> str:
    rank, pads = at[0].rank, at[1].const
    wrong = _axes_input(3, at, rank)
    if wrong or rank is None or pads is None:
        return wrong
    axes = rank if not at.given(3) else None if at[3].const is None else len(at[3].const)
    return "" if axes is None or len(pads) == 2 * axes else f"{2 * axes} pads, two an axis, not {len(pads)}"


def _dense(at: Operands) -> str:
    x, weight, bias = at[0].shape, at[1].shape, at[2].shape if at.given(2) else None
    if weight is None:
        return ""
    if len(weight) != 2 or (x is not None and (not x or _differ(x[-1], weight[0]))):
        return "a weight of [inputs, outputs], where the inputs are the last axis"
    fits = bias is None or (len(bias) == 1 and not _differ(bias[0], weight[1]))
    return "" if fits else "a bias of as many numbers as there are outputs"


def _multiplied(at: Operands, second: int = 1) -> str:
    a, b = at[0].shape, at[second].shape
    if (a is not None and not a) or (b is not None and not b):
        return "two values with axes"
    if a is None or b is None:
        return ""
    return "matrices of which one has as many columns as the other has rows" if _differ(a[-1], b[-2:][0]) else ""


def _gemm(at: Operands) -> str:
    a, b, c = at[0].shape, at[1].shape, at[2].shape if at.given(2) else ()
    if any(shape is not None and len(shape) != 2 for shape in (a, b)) or (c is not None and len(c) > 2):
        return "two matrices, and a third value of two axes at most"
    if a is None or b is None:
        return ""
    inner = _differ(a[0 if at.attr("transA", 0) else 1], b[1 if at.attr("transB", 0) else 0])
    return "matrices of which one has as many columns as the other has rows" if inner else ""


def _windows(at: Operands, x: Shape | None, kernel: Sequence[Dim] | None) -> str:
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


def _convolved(at: Operands, second: int = 1, transposed: bool = False) -> str:
    x, w, group = at[0].shape, at[second].shape, int(at.attr("group", 1))
    wrong = _windows(at, x, w[2:] if w is not None else None)
    if wrong or group < 1:
        return wrong or "1 or more groups"
    if w is None:
        return ""
    if len(w) < 3 or (x is not None and len(w) != len(x)):
        return "weights of as many axes as its input has"
    kernel = at.attr("kernel_shape")
    if kernel is not None and any(_differ(k, size) for k, size in zip(kernel, w[2:], strict=True)):
        return "kernel_shape to be the last axes of the weights"
    if isinstance(w[0], int) and w[0] % group:
        return f"channels that {group} groups share evenly"
    channels = w[0] if transposed else dims.multiply(w[1], group)
    return "weights for as many channels as its input has" if x is not None and _differ(x[1], channels) else ""


def _normalised(at: Operands) -> str:
    x = at[0].shape
    if x is not None and len(x) < 2:
        return "a batch and channels"
    for i in range(1, len(at.infos)):
        shape = at[i].shape
        if shape is not None and (len(shape) != 1 or (x is not None and _differ(shape[0], x[1]))):
            return "one number a channel for each of its parameters"
    return ""


def _pooled(at: Operands) -> str:
    kernel = at.attr("kernel_shape")
    return _windows(at, at[0].shape, kernel)


def _one_hot(at: Operands) -> str:
    if at[1].const is not None and (len(at[1].const) != 1 or (isinstance(at[1].const[0], int) and at[1].const[0] < 0)):
        return "a depth of 0 or more"
    return _axis(-1, more=1)(at)


def _top_k(at: Operands) -> str:
    k = at[1].const
    if k is not None and (len(k) != 1 or (isinstance(k[0], int) and k[0] < 0)):
        return "one k of 0 or more"
    return _axis(-1)(at)


def _reversed(at: Operands) -> str:
    rank = at[0].rank
    axes = [int(at.attr("time_axis", 0)), int(at.attr("batch_axis", 1))]
    return "" if rank is None else _within(axes, rank)


def _scanned(at: Operands) -> str:
    scanned = int(at.attr("num_scan_inputs", 1))
    axes = at.attr("scan_input_axes") or [0] * scanned
    for info, axis in zip(at.infos[len(at.infos) - scanned :], axes, strict=True):
        wrong = "" if info.rank is None else _within([int(axis)], info.rank, least=1)
        if wrong:
            return f"to scan along {wrong}"
    return ""


def _recurrent(at: Operands) -> str:
    """Expect x [T, B, I] and weights, states, lengths and masks that go with it and with one another."""
    G = {"LSTM": 4, "GRU": 3, "RNN": 1}[at.node.op]
    H, D = int(at.attr("hidden_size")), len(at.attr("directions"))
    place = RecurrentInputs.position
    x, w_ih, w_hh = (at[place(name)].shape for name in ("x", "w_ih", "w_hh"))
    T, B, features = x if x is not None and len(x) == 3 else (None, None, None)
    width = w_ih[2] if w_ih is not None and len(w_ih) == 3 else features
    projected = at.given(place("w_hr"))
    P = w_hh[2] if projected and w_hh is not None and len(w_hh) == 3 else None if projected else H
    expected: Sequence[tuple[str, tuple[Dim | None, ...]]] = (
        ("x", (T, B, width)), ("w_ih", (D, G * H, features)), ("w_hh", (D, G * H, P)),
        ("bias", (D, 4 * H if at.node.op == "GRU" else G * H)), ("lengths", (B,)), ("mask", (T, B)),
        ("h_0", (D, B, P)), ("c_0", (D, B, H)), ("peephole", (D, 3 * H)), ("w_hr", (D, P, H)),
    )  # fmt: skip
    for name, sizes in expected:
        shape = at[place(name)].shape
        if not at.given(place(name)) or shape is None:
            continue
        if len(shape) != len(sizes) or any(s is not None and _differ(s, d) for s, d in zip(sizes, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            return f"{name} to be [{wanted}]"
    return ""


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _axis(-1)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _axis(-1)),
    **dict.fromkeys(("ArgMax", "ArgMin", "GatherElements", "ScatterElements", "SplitToSequence"), _axis(0)),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pooled),
    **dict.fromkeys(("Conv", "ConvInteger"), _convolved),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalised),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "ConvTranspose": lambda at: _convolved(at, transposed=True),
    "QLinearConv": lambda at: _convolved(at, 3),
    "MatMul": _multiplied,
    "MatMulInteger": _multiplied,
    "QLinearMatMul": lambda at: _multiplied(at, 3),
    "Gemm": _gemm,
    "Dense": _dense,
    "Concat": _joined,
    "Split": _split,
    "Slice": _sliced,
    "Gather": _gathered,
    "GatherND": _gathered_nd,
    "Squeeze": _reduced,
    "Unsqueeze": _unsqueezed,
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Expand": _sizes_at(1),
    "ConstantOfShape": _sizes_at(0),
    "Tile": _tiled,
    "Pad": _padded,
    "OneHot": _one_hot,
    "TopK": _top_k,
    "ReverseSequence": _reversed,
    "Scan": _scanned,
}
"""Operator -> what it expects."""
