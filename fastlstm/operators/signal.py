"""Fourier transforms, windows and mel filters: the front ends of audio models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastlstm.operators import dims
from fastlstm.operators.definition import Operator, Stream, table
from fastlstm.operators.dims import Dim
from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.sizes import checked_shape, integer
from fastlstm.operators.values import Operands, ValueInfo, normal_axis
from fastlstm.typing import Array

__all__ = ["OPERATORS"]


def dft(
    x: Array, length: Array | None = None, axis: Array | None = None, *, inverse: int = 0, onesided: int = 0
) -> Array:
    """Return the discrete Fourier transform of x [..., 1 (real) or 2 (real, imaginary)] along `axis`.

    With `onesided` the forward transform returns the first half of the spectrum, and the inverse one takes
    that half and returns a real signal.
    """
    along = (-2 if axis is None else integer(axis)) % x.ndim
    signal = x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
    if length is not None:
        count = integer(length)
    else:
        count = 2 * (x.shape[along] - 1) if inverse and onesided else x.shape[along]
    checked_shape([count])
    if inverse and onesided:
        return np.fft.irfft(signal, n=count, axis=along)[..., None].astype(x.dtype)
    spectrum = np.fft.ifft(signal, n=count, axis=along) if inverse else np.fft.fft(signal, n=count, axis=along)
    if onesided:
        spectrum = np.take(spectrum, np.arange(count // 2 + 1), axis=along)
    return np.stack([spectrum.real, spectrum.imag], axis=-1).astype(x.dtype)


def stft(
    x: Array, step: Array, window: Array | None = None, length: Array | None = None, *, onesided: int = 1
) -> Array:
    """Return the Fourier transforms of windows of x, `step` samples apart.

    x is [B, samples, 1 (real) or 2 (real, imaginary)], the result [B, frames, bins, 2].
    """
    if length is not None:
        size = integer(length)
    else:
        size = x.shape[1] if window is None else window.shape[0]
    frames = np.lib.stride_tricks.sliding_window_view(x, size, axis=1)[:, :: integer(step)]
    frames = np.moveaxis(frames, -1, -2)
    if window is not None:
        before = (size - window.shape[0]) // 2
        frames = frames * np.pad(window, (before, size - window.shape[0] - before))[:, None]
    return dft(frames.astype(x.dtype), onesided=onesided)


def _window(coefficients: tuple[float, ...]) -> Callable[..., Array]:
    """Return the operator for a window that is a sum of cosines with the given coefficients."""

    def operator(size: Array, *, output_datatype: int | str = 1, periodic: int = 1) -> Array:
        (count,) = checked_shape([integer(size)])
        angle = 2 * np.pi * np.arange(count) / max(count if periodic else count - 1, 1)
        terms = [(-1) ** i * c * np.cos(i * angle) for i, c in enumerate(coefficients)]
        return np.asarray(np.sum(terms, axis=0), dtype=dtype_of(output_datatype))

    return operator


def mel_weight_matrix(
    bins: Array, length: Array, rate: Array, low: Array, high: Array, *, output_datatype: int | str = 1
) -> Array:
    """Return the matrix [length / 2 + 1, bins] of triangular filters that are equally wide in mel."""
    count, points = integer(bins), integer(length)
    rows, _ = checked_shape([points // 2 + 1, count])
    bottom, top = (2595 * np.log10(1 + float(hertz) / 700) for hertz in (low, high))
    mel = bottom + np.arange(count + 2) * (top - bottom) / (count + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    edges = np.floor((points + 1) * hertz / integer(rate)).astype(np.int64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(rows)[:, None]
    rising = np.where(left == centre, at == centre, (at - left) / np.maximum(centre - left, 1))
    falling = (right - at) / np.maximum(right - centre, 1)
    matrix = np.where((at >= left) & (at <= centre), rising, 0.0)
    return np.where((at >= centre) & (at < right), falling, matrix).astype(dtype_of(output_datatype))


def _only(info: ValueInfo) -> Dim | None:
    """Return the one integer that a value holds, None if it is not known."""
    return info.const[0] if info.const is not None and len(info.const) == 1 else None


def _datatype(at: Operands) -> str | None:
    try:
        return dtype_of(at.attr("output_datatype", 1)).name
    except ValueError:  # said when the operator runs
        return None


def _window_info(at: Operands) -> ValueInfo:
    size = _only(at[0])
    return ValueInfo((at.fresh(0) if size is None else size,), _datatype(at))


def _mel_info(at: Operands) -> ValueInfo:
    bins, length = _only(at[0]), _only(at[1])
    rows = at.fresh(0) if length is None else _half(length)
    return ValueInfo((rows, at.fresh(1) if bins is None else bins), _datatype(at))


def _half(length: Dim) -> Dim:
    """Return the number of frequencies of a real signal of `length` samples."""
    return dims.add(dims.floor_divide(length, 2), 1)


def _dft_info(at: Operands) -> ValueInfo:
    shape = at[0].shape
    axis = _only(at[2]) if at.given(2) else -2
    if not shape or not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        return at.unknown_shape(at[0].rank, at[0].dtype)
    axis = normal_axis(axis, len(shape))
    inverse, onesided = bool(at.attr("inverse", 0)), bool(at.attr("onesided", 0))
    length: Dim | None = shape[axis]
    if at.given(1):
        length = _only(at[1])
    elif inverse and onesided:
        length = dims.multiply(2, dims.subtract(shape[axis], 1))
    if length is None:
        length = at.fresh(axis)
    elif onesided and not inverse:
        length = _half(length)
    sizes = [*shape[:-1], 1 if inverse and onesided else 2]
    sizes[axis] = length
    return ValueInfo(tuple(sizes), at[0].dtype)


def _stft_info(at: Operands) -> ValueInfo:
    x, window, step = at[0].shape, at[2].shape, _only(at[1])
    if x is None or len(x) != 3:
        return ValueInfo(None, at[0].dtype)
    size: Dim | None = x[1]
    if at.given(3):
        size = _only(at[3])
    elif at.given(2):
        size = window[0] if window else None
    frames: Dim = at.fresh(1)
    if size is not None and step is not None:
        frames = dims.add(dims.floor_divide(dims.subtract(x[1], size), step), 1)
    if size is None:
        bins: Dim = at.fresh(2)
    else:
        bins = _half(size) if at.attr("onesided", 1) else size
    return ValueInfo((x[0], frames, bins, 2), at[0].dtype)


# Why there is no kernel, no shape, no stream.
_FFT = "NumPy's FFT"
_CONSTANT = "a constant of its size"
_FRAMES = "gives what depends on how many frames there are"

OPERATORS = table(
    Operator("DFT", dft, _dft_info, _FFT, "transforms along axes of which time may be one"),
    Operator("STFT", stft, _stft_info, _FFT, Stream.FOURIER),
    Operator("HannWindow", _window((0.5, 0.5)), _window_info, _CONSTANT, _FRAMES),
    Operator("HammingWindow", _window((25 / 46, 21 / 46)), _window_info, _CONSTANT, _FRAMES),
    Operator("BlackmanWindow", _window((0.42, 0.5, 0.08)), _window_info, _CONSTANT, _FRAMES),
    Operator("MelWeightMatrix", mel_weight_matrix, _mel_info, "a constant of its sizes", _FRAMES),
)
