"""Streams with a delay: what their first steps do, and what they return when a sequence ends.

As in `fastlstm.streaming.delay`, the frames of the first hops wait in the state and are processed in one call. A
sequence that ends before then is run as a whole.
"""

from __future__ import annotations

from dataclasses import replace

from fastlstm.errors import UnsupportedError
from fastlstm.export.elements import Elements
from fastlstm.export.interface import Port
from fastlstm.export.phases import Phase, StreamTapes
from fastlstm.export.source import Beginning, Copy, Ending
from fastlstm.streaming.delay import HOPS

__all__ = ["beginning", "endings", "latest"]


def latest(stream: StreamTapes) -> list[Copy]:
    """Return the copies that keep inputs which do not go on in time, and which the end of a sequence needs."""
    found = []
    for port in stream.inputs:
        if port.name in _labels(stream):
            target = _kept_latest(stream, port)
            source = Elements.of_port(port, port.shape)
            if len(target.shape) > len(source.shape):  # one value for all rows
                source = replace(source, shape=target.shape, strides=(0, *source.strides))
            found.append(source.to(target))
    return found


def beginning(stream: StreamTapes, always: list[Copy]) -> Beginning | None:
    """Return what happens before the first step that computes anything; None if every step does."""
    engine, waiting = stream.engine, stream.engine.delayed
    if waiting is None:
        return None
    counter = next(field for field in stream.fields if field.name == HOPS)
    first, kept = stream.phase("first", waiting.hops), (waiting.hops - 1) * engine.hop
    waits, brought = [], []
    for port in stream.inputs:
        moves = port.name in waiting.labels
        if moves and kept:
            frames = _kept_frames(stream, port)
            place = replace(frames.seat, time=engine.hop * frames.strides[0])
            waits.append(_of_step(stream, port).to(replace(frames.cut(0, engine.hop), seat=place)))
        if port.name in first.inputs:
            target = first.given(port.name)
            if moves and kept:
                brought.append(_kept_frames(stream, port).to(target.cut(0, kept)))
            now = target.cut(kept, kept + engine.hop) if moves else target
            brought.append(Elements.of_port(port, now.shape).to(now))
    return Beginning(waiting.hops, counter, tuple(waits), first.routine(brought, late=True), tuple(always))


def endings(stream: StreamTapes) -> tuple[Ending, ...]:
    """Return what a sequence that ends after 0, 1, ... steps returns at its end."""
    engine, waiting = stream.engine, stream.engine.delayed
    if engine.unrolled.last is None:
        return (Ending(0),)
    last = stream.phase("last", 0)
    full = _ending(stream, last, _bring_latest(stream, last))
    if waiting is None:
        return (full,)
    return (Ending(0), *(_short(stream, hops) for hops in range(1, waiting.hops)), full)


def _short(stream: StreamTapes, hops: int) -> Ending:
    """Return what a sequence of `hops` hops returns if all of them still wait: its whole run."""
    if stream.gives_nothing(hops):
        return Ending(0)
    whole = stream.phase("whole", hops)
    assert stream.engine.delayed is not None
    brought = _bring_latest(stream, whole)
    for port in stream.inputs:
        if port.name in stream.engine.delayed.labels and port.name in whole.inputs:
            frames = hops * stream.engine.hop
            brought.append(_kept_frames(stream, port).cut(0, frames).to(whole.given(port.name)))
    return _ending(stream, whole, brought)


def _ending(stream: StreamTapes, phase: Phase, brought: list[Copy]) -> Ending:
    counts = {port.name: phase.frames(port.name) for port in stream.outputs}
    if len(set(counts.values())) > 1:
        raise UnsupportedError(
            f"When a sequence ends, different numbers of frames of the outputs are left ({counts}), so this model "
            "cannot be exported as a stream. Make a model of each output, or export it for whole sequences (sizes=, "
            "--size)."
        )
    frames = next(iter(counts.values()))
    return Ending(frames, phase.routine(brought)) if frames else Ending(0)


# ---------------------------------------------------------------- what the state keeps of inputs


def _labels(stream: StreamTapes) -> dict[str, str]:
    """Return the states that hold the latest values of inputs, by input."""
    return stream.engine.delayed.latest_labels if stream.engine.delayed else {}


def _bring_latest(stream: StreamTapes, phase: Phase) -> list[Copy]:
    """Return the copies that bring the latest values into a tape."""
    found = []
    for port in stream.inputs:
        if port.name in _labels(stream) and port.name in phase.inputs:
            target, kept = phase.given(port.name), _kept_latest(stream, port)
            if len(kept.shape) > len(target.shape):
                kept = replace(kept, shape=kept.shape[1:], strides=kept.strides[1:])
            found.append(kept.to(target))
    return found


def _kept_latest(stream: StreamTapes, port: Port) -> Elements:
    """Return where the state keeps the latest value of an input."""
    known = stream.engine.inputs[port.name]
    shape = stream.sizes(port.name, 1)
    rows = shape if "B" in known.axes else (stream.batch, *shape)
    return Elements.packed(stream.seats[_labels(stream)[port.name]], known.dtype, rows)


def _kept_frames(stream: StreamTapes, port: Port) -> Elements:
    """Return where the state keeps the waiting frames of an input, with the time axis first."""
    engine = stream.engine
    assert engine.delayed is not None
    shape = stream.sizes(port.name, (engine.delayed.hops - 1) * engine.hop)
    seat = stream.seats[engine.delayed.labels[port.name]]
    return Elements.packed(seat, engine.inputs[port.name].dtype, shape).led_by(stream.axis(port.name))


def _of_step(stream: StreamTapes, port: Port) -> Elements:
    """Return the frames of a step as C passes them."""
    frames = _kept_frames(stream, port)
    return Elements.of_port(port, (stream.engine.hop, *frames.shape[1:]))
