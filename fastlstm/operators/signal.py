"""Fourier transforms, windows and mel filters: the front ends of audio models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.sizes import checked_shape, integer

__all__ = ["OPS"]

Array = npt.NDArray[Any]


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


OPS: Mapping[str, Callable[..., Any]] = {
    "DFT": dft,
    "STFT": stft,
    "HannWindow": _window((0.5, 0.5)),
    "HammingWindow": _window((25 / 46, 21 / 46)),
    "BlackmanWindow": _window((0.42, 0.5, 0.08)),
    "MelWeightMatrix": mel_weight_matrix,
}
