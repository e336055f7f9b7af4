"""What convolution and pooling share: where the windows of a kernel lie along the spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.operators.sizes import checked_shape
from fastlstm.typing import Array

__all__ = ["Windows", "padded", "windows"]


@dataclass(frozen=True)
class Windows:
    """The windows of a kernel over spatial axes; one entry an axis in each field.

    Attributes
    ----------
    kernel, strides, dilations : tuple of int
    before, after : tuple of int
        Padding on either side.
    outputs : tuple of int
        Number of windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    outputs: tuple[int, ...]

    def tap(self, offsets: Sequence[int]) -> tuple[Any, ...]:
        """Return the index of the windows' elements at `offsets` within the kernel in the padded input."""
        starts = [offset * dilation for offset, dilation in zip(offsets, self.dilations, strict=True)]
        return (
            ...,
            *(
                slice(start, start + stride * (count - 1) + 1, stride) if count else slice(0, 0)
                for start, stride, count in zip(starts, self.strides, self.outputs, strict=True)
            ),
        )


def windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int = 0,
) -> Windows:
    """Return the windows over spatial axes of the given sizes.

    Parameters
    ----------
    pads : sequence of int
        All the numbers before, then all the numbers after; used when auto_pad is "NOTSET".
    auto_pad : "NOTSET", "VALID", "SAME_UPPER" or "SAME_LOWER"
        SAME pads to ceil(size / stride) windows, an odd one at the upper or lower end.
    ceil_mode : int
        1 lets a last window hang over the end, if it begins before the end of the padding in front.
    """
    rank = len(sizes)
    kernel, strides, dilations = tuple(kernel), tuple(strides or [1] * rank), tuple(dilations or [1] * rank)
    given = tuple(pads or [0] * (2 * rank))
    if not (len(kernel) == len(strides) == len(dilations) == rank and len(given) == 2 * rank):
        raise ValueError(
            f"there are {rank} spatial axes, but kernel_shape {list(kernel)}, strides {list(strides)}, "
            f"dilations {list(dilations)} and pads {list(given)} do not have as many entries"
        )
    if min(strides + dilations + kernel) < 1:
        raise ValueError(f"kernel {kernel}, strides {strides} and dilations {dilations} must be at least 1")
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, after, outputs = [], [], []
    for axis, (size, extent, stride) in enumerate(zip(sizes, extents, strides, strict=True)):
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            count = -(-size // stride)
            total = max((count - 1) * stride + extent - size, 0)
            first = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            last = total - first
        elif auto_pad in ("NOTSET", "VALID"):
            first, last = (given[axis], given[axis + rank]) if auto_pad == "NOTSET" else (0, 0)
            room = size + first + last - extent
            count = (-(-room // stride) if ceil_mode else room // stride) + 1
            if ceil_mode and (count - 1) * stride >= size + first:
                count -= 1
        else:
            raise ValueError(f"auto_pad is '{auto_pad}'; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
        if count < 0 or (size > 0 and count == 0):
            raise ValueError(f"the kernel covers {extent} elements, more than the padded input has")
        before.append(first)
        after.append(last)
        outputs.append(count)
    checked_shape(size + first + last for size, first, last in zip(sizes, before, after, strict=True))
    return Windows(kernel, strides, dilations, tuple(before), tuple(after), tuple(outputs))


def padded(x: Array, before: Sequence[int], after: Sequence[int], fill: Any = 0) -> Array:
    """Return x [N, C, ...] with so many elements on either side of each spatial axis; ValueError if it is too much."""
    checked_shape([*x.shape[:2], *(n + a + b for n, a, b in zip(x.shape[2:], before, after, strict=True))])
    return np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=fill)
