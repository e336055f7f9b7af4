"""How long the steps of a stream take: their distribution, and the deadlines that they miss."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.commands.subject import Precision, Subject
from fastlstm.errors import InputError
from fastlstm.model import Model
from fastlstm.reporting.benchmark import Timing, histogram, histogram_picture, plot_histogram, time_calls
from fastlstm.reporting.tables import time_text
from fastlstm.verification.fixing import fixed
from fastlstm.verification.samples import sample_frames

__all__ = ["Latency", "latency"]


@dataclass(frozen=True)
class Latency:
    """What `latency` measured. Prints as a histogram; notebooks draw it.

    Attributes
    ----------
    timing : Timing
        Seconds of each call.
    what : str
        What was timed.
    block : int
        Frames per call.
    sample_rate : float or None
        Frames per second.
    notes : tuple of str
        What was assumed of the model.
    """

    timing: Timing
    what: str
    block: int
    sample_rate: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def deadline(self) -> float | None:
        """Seconds that a block may take; None without a sample rate."""
        return self.block / self.sample_rate if self.sample_rate else None

    @property
    def missed(self) -> int:
        """How many calls took longer than that."""
        return 0 if self.deadline is None else int((self.timing.seconds > self.deadline).sum())

    @property
    def real_time_factor(self) -> float | None:
        """Median time over the time that the frames last: below 1 keeps up; None without a sample rate."""
        return self.timing.per_step * self.sample_rate if self.sample_rate else None

    def as_data(self) -> dict[str, Any]:
        """Return the figures as plain data, times in seconds."""
        data = self.timing.as_data()
        if self.sample_rate:
            data |= {"real_time_factor": self.real_time_factor, "deadline": self.deadline, "missed": self.missed}
        return data

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw the histogram into a file: .svg, or what matplotlib knows."""
        plot_histogram(self.timing, path, f"Time of {self.what}", self._marks())

    def _marks(self) -> dict[str, float]:
        return {} if self.deadline is None else {"deadline": self.deadline}

    def __str__(self) -> str:
        timing, lines = self.timing, []
        lines.append(
            f"{len(timing.seconds):,} times {self.what}: p50 {time_text(timing.median)}, p99 {time_text(timing.p99)}, "
            f"p99.9 {time_text(timing.p999)}, max {time_text(timing.max)}"
        )
        if self.sample_rate and self.deadline:
            lines.append(
                f"at {self.sample_rate:g} frames a second: real-time factor {self.real_time_factor:.4f}; "
                f"{self.missed:,} of {len(timing.seconds):,} missed the deadline of {time_text(self.deadline)}"
            )
        return "\n".join([*lines, histogram(timing)])

    def __repr__(self) -> str:
        return f"<Latency: {self.what}, p50 {time_text(self.timing.median)}, p99 {time_text(self.timing.p99)}>"

    def _repr_html_(self) -> str:
        return histogram_picture(self.timing, f"Time of {self.what}", self._marks())


def latency(
    model: Any,
    *,
    batch: int = 1,
    block: int = 1,
    pool: int | None = None,
    state: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
    values: Mapping[str, Any] | None = None,
    sample_rate: float | None = None,
    seconds: float = 3.0,
    threads: int = 1,
    precision: Precision = "float32",
    **options: Any,
) -> Latency:
    """Time single steps of a stream, blocks of frames, or steps of a pool.

    Parameters
    ----------
    model : path or Model
    batch : int
        Rows of the stream.
    block : int
        Frames per call; rounded up to whole hops.
    pool : int, optional
        Time this many streams that step together, instead of one.
    state : mapping of str to str, optional
        State inputs and the outputs that return them, as for `Model.stream`.
    sizes : mapping of str to int, optional
        Sizes of open dimensions.
    values : mapping of str to number or array, optional
        Values of inputs that are the same in every call, such as a sample rate.
    sample_rate : float, optional
        Frames per second (chunks per second if a frame is a chunk), which gives the deadline of a block.
    seconds : float
        How long to measure.
    threads, precision
        As in `fastlstm.load`.
    **options
        Options of the format's reader, such as ``layers=`` for a PyTorch state dict.

    Returns
    -------
    Latency
        Times in seconds, the deadline and how many calls missed it.

    Raises
    ------
    InputError
        If the arguments do not fit the model or each other.
    UnsupportedError
        If the model cannot stream; the message says why.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> layer = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> model = fastlstm.from_state_dict(layer, layers="lstm", batch_first=True)
    >>> found = fastlstm.latency(model, block=64, sample_rate=100, seconds=0.1)
    >>> found.missed
    0
    """
    if pool and (block, batch) != (1, 1):
        raise InputError("A pool is timed by steps of streams of one row: it goes with neither block nor batch.")
    subject = Subject.of(model, options)
    graph = fixed(subject.graph, sizes or {}, values or {}) if sizes or values else None
    made = subject.model(threads, precision, graph)
    call, what, frames = _step(made, batch, block, pool, state)
    timing = time_calls(call, name="step", seconds=seconds, warmup=1000, steps=frames)
    return Latency(timing, what, frames, sample_rate, made.notes)


def _step(
    model: Model, batch: int, block: int, pool: int | None, state: Mapping[str, str] | None
) -> tuple[Callable[[], Any], str, int]:
    """Return what is timed, what to call it, and how many frames of a stream it covers."""
    stream, inputs = model.stream(batch, state), model.streaming_engine(state).inputs
    block = -(-block // stream.hop) * stream.hop
    if pool:
        streams = model.streams(pool, state)
        numbers = np.array([streams.open() for _ in range(pool)])
        frames = sample_frames(model.graph, inputs, streams.blank_frames(pool))
        return lambda: streams.step(numbers, frames), f"a step of {pool} streams", block
    if block == stream.hop:
        frame = sample_frames(model.graph, inputs, stream.blank_frame())
        return lambda: stream.step(frame), "a step", block
    chunk = sample_frames(model.graph, inputs, stream.blank_chunk(block))
    return lambda: stream.push(chunk), f"a block of {block} frames", block
