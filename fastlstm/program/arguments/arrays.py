"""Arguments of the kernels that tapes call for arrays of any shape, and of those that run programs inside others.

Arrays stand for where their first element lies; "steps" are strides in bytes, other sizes count elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
    "Advance",
    "Binary",
    "Bound",
    "Convolution",
    "Copy",
    "Elementwise",
    "Fill",
    "Gather",
    "LayerNorm",
    "Lines",
    "Loops",
    "MaskCodes",
    "MatMul",
    "MoveSlice",
    "Pack",
    "Pad",
    "Pool",
    "Run",
    "Unary",
    "Verify",
    "Where",
    "Window",
]  # fmt: skip


class Loops(NamedTuple):
    """A number for each of five nested loops (`fastlstm.program.layout.AXES`), named as kernels name it."""

    i: int  # outermost: workers share it
    j: int
    k: int
    m: int
    e: int


class Copy(NamedTuple):
    """``out = x``, each with its own strides."""

    x: Any
    out: Any
    sizes: Loops
    x_steps: Loops
    out_steps: Loops


class MoveSlice(NamedTuple):
    """``out = x``, either of which may lie elsewhere in every round of a loop."""

    number: Any  # of the round
    x: Any
    x_round: int  # bytes that it moves on in a round
    out: Any
    out_round: int
    sizes: Loops
    x_steps: Loops
    out_steps: Loops


class Pad(NamedTuple):
    """Planes [outer, inner, lines, pitch] without gaps, with x [outer, inner, height, width] inside."""

    x: Any
    out: Any
    outer: int
    inner: int
    height: int
    width: int
    top: int  # lines before x
    left: int  # elements of a line before x
    lines: int
    pitch: int
    x_outer: int  # steps of x
    x_inner: int
    x_line: int
    x_step: int
    out_outer: int  # steps of out
    out_inner: int
    number: Any  # what stands around x


class Fill(NamedTuple):
    """One number everywhere."""

    out: Any
    elements: int
    number: Any


class Mark(NamedTuple):
    """The ticks since the mark before are added to a word; the table's first one holds when that was."""

    table: Any
    word: int


class Unary(NamedTuple):
    """A function of every element, one behind the other."""

    x: Any
    out: Any
    elements: int


class Binary(NamedTuple):
    """A function of two elements, and others of its results; out's lie one behind the other."""

    a: Any
    b: Any
    out: Any
    sizes: Loops
    a_steps: Loops  # the innermost is 4, or 0 where there is a single element
    b_steps: Loops
    numbers: Any  # table: where the other operands of functions behind the first one lie, one element each; or 0


class Lines(NamedTuple):
    """A function of each line of an array without gaps."""

    x: Any
    out: Any
    lines: int
    length: int  # of each


class Running(NamedTuple):
    """What an operation makes of each line of integers, one after the other; strides are in bytes."""

    operation: int
    kind: int
    x: Any
    out: Any
    lines: int
    length: int  # of each, not 0
    x_line: int
    x_step: int
    out_line: int
    out_step: int  # 0 where only the last result counts


class LayerNorm(NamedTuple):
    """Normalisation of each line of an array without gaps."""

    x: Any
    out: Any
    lines: int
    length: int
    scale: Any
    bias: Any


class Pack(NamedTuple):
    """Matrices [batch, k, n] as panels."""

    x: Any
    out: Any
    batch: int
    k: int
    n: int
    x_batch: int  # steps of x
    x_row: int
    x_column: int


class MatMul(NamedTuple):
    """``out = bias + a @ panels`` for a [batch, rows, k]; out is [batch, rows, n] without gaps."""

    a: Any
    a_batch: int  # steps of a
    a_row: int
    batch: int
    rows: int
    k: int
    panels: Any
    panels_batch: int  # step
    bias: Any  # a row of whole panels
    out: Any
    n: int
    memory: Any  # of the workers: `fastlstm.program.layout.TOGETHER` addresses, and as many rows of whole panels
    memory_bytes: int  # of it for each


class Convolution(NamedTuple):
    """Convolutions of images that lie in rows of positions; see `fastlstm.lowering.tapes.planes`."""

    x: Any
    weights: Any
    bias: Any
    out: Any
    memory: Any  # of the workers
    memory_bytes: int  # of it for each
    offsets: Any  # of each term, in bytes
    terms: int
    piece: int  # terms that are one chain
    groups: int
    outputs: int  # channels of a group
    x_group: int  # step
    batch: int  # images
    lines: int  # from one image to the next
    pitch: int  # elements from one line to the next
    height: int  # of the output
    width: int
    out_image: int  # steps of the output
    out_channel: int
    out_line: int
    out_step: int
    finish: Any  # table: where two bounds lie, and a slope a channel for what is negative
    chunk: int  # channels that share a block of positions


class Pairs(NamedTuple):
    """Whole numbers [images, channels, elements] as pairs of channels, 16 bits each."""

    x: Any
    out: Any
    images: int
    channels: int
    elements: int


class Window(NamedTuple):
    """Windows along an axis of images."""

    size: int
    outputs: int
    taps: int
    stride: int
    before: int  # padding
    dilation: int


class Pool(NamedTuple):
    """The largest or the mean of each window of images [planes, H, W]."""

    x: Any
    out: Any
    planes: int
    down: Window
    across: Window
    memory: Any  # of the workers
    memory_bytes: int  # of it for each
    room: int  # floats of a line of it
    counts_down: Any  # how many elements count, a float for each line of the output ...
    counts_across: Any  # ... and for each column: a mean divides by their product
    out_plane: int  # step


class Elementwise(NamedTuple):
    """An operation on integers or booleans; a step of 0 stands for a single number."""

    operation: int  # one of `fastlstm.program.layout.OPERATIONS`
    elements: int
    a: Any
    a_kind: int  # one of `fastlstm.program.layout.KINDS`
    a_step: int
    b: Any
    b_kind: int
    b_step: int
    out: Any
    out_kind: int


class Where(NamedTuple):
    """``out = a`` where the condition holds, else b; out's elements lie one behind the other."""

    condition: Any
    a: Any
    b: Any
    out: Any
    sizes: Loops
    condition_steps: Loops
    a_steps: Loops
    b_steps: Loops


class Gather(NamedTuple):
    """The slices of x along an axis that indices name."""

    x: Any
    out: Any
    indices: Any
    kind: int
    picked: int  # indices
    size: int  # of the axis
    x_slice: int  # bytes from one slice to the next
    out_slice: int
    sizes: Loops  # of a slice
    x_steps: Loops
    out_steps: Loops


class MaskCodes(NamedTuple):
    """The codes that recurrent kernels read, for a mask [T, B]."""

    mask: Any
    out: Any
    steps: int
    rows: int
    mask_time: int  # steps of the mask
    mask_row: int
    reverse: int  # 1: time runs backwards


class Advance(NamedTuple):
    """The number of a loop's round."""

    number: Any
    further: int  # 1: one more than the last; 0: before the first


class Verify(NamedTuple):
    """Whether a loop's body decides about another round as it did when the tape was recorded."""

    decision: Any
    number: Any  # of the round
    rounds: int
    last: int  # 1: there may be no more of them, whatever it decides
    flag: Any  # where to write a 1


class Run(NamedTuple):
    """A program inside this one, over its time steps or round by round."""

    body: Any  # `fastlstm.program.program.Body`; what kernels read in its place is `Bound`


class Bound(NamedTuple):
    """The words of a program that is bound to memory; the frames of its workers follow."""

    drive: int  # addresses of the driver and the program
    program: int
    times: int  # time steps, or rounds
    workers: int
    alone: int  # frame for one worker alone
