"""Serve many streams from one process: frames that arrive together are advanced together.

Clients of an asyncio server send frames (ten features, say of a sensor) and await the answers, and come and
go as they like. One server steps every client's own stream as its frame arrives. The other collects what
arrives in the same round of the event loop and advances it in one call of a stream pool: the weights, a few
megabytes, are then read once for all of them. The answers have the same bits.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

import fastlstm

FEATURES, HIDDEN, CLIENTS, FRAMES = 10, 512, 64, 40

Frame = npt.NDArray[np.float32]


class Server(Protocol):
    """What a client needs."""

    def open(self) -> int:
        """Return the number of a new stream."""

    async def step(self, stream: int, frame: Frame) -> Frame:
        """Hand in the next frame of a stream and wait for its output."""

    def close(self, stream: int) -> None:
        """Give the stream back."""


class OneByOne:
    """Steps each stream by itself, at once."""

    def __init__(self, model: fastlstm.Model) -> None:
        self.model = model
        self.streams: dict[int, fastlstm.Stream] = {}
        self.opened = 0

    def open(self) -> int:
        """Return the number of a new stream."""
        self.opened += 1
        self.streams[self.opened] = self.model.stream()
        return self.opened

    async def step(self, stream: int, frame: Frame) -> Frame:
        """Return the output for the next frame of a stream."""
        return self.streams[stream].step(frame)

    def close(self, stream: int) -> None:
        """Forget the stream."""
        del self.streams[stream]


class Pooled:
    """Steps all frames that arrive in one round of the event loop as one batch."""

    def __init__(self, model: fastlstm.Model, capacity: int) -> None:
        self.pool = model.streams(capacity=capacity)
        self.open, self.close = self.pool.open, self.pool.close
        self.waiting: dict[int, tuple[Frame, asyncio.Future[Frame]]] = {}

    async def step(self, stream: int, frame: Frame) -> Frame:
        """Hand in the next frame of a stream and wait for its output."""
        loop = asyncio.get_running_loop()
        if not self.waiting:  # the first of this round: go when the others have arrived too
            loop.call_soon(self.advance)
        answer: asyncio.Future[Frame] = loop.create_future()
        self.waiting[stream] = frame, answer
        return await answer

    def advance(self) -> None:
        """Step whatever waits and answer everyone."""
        waiting, self.waiting = self.waiting, {}
        outputs = self.pool.step(list(waiting), np.stack([frame for frame, _ in waiting.values()]))
        for output, (_, answer) in zip(outputs, waiting.values(), strict=True):
            answer.set_result(output)


async def run_client(server: Server, frames: Frame) -> Frame:
    """Open a stream, send `frames`, [time, features], one by one, and return all the answers."""
    stream = server.open()
    answers = []
    for frame in frames:
        await asyncio.sleep(0)  # a real client's frame comes from a socket, by way of the event loop
        answers.append(await server.step(stream, frame))
    server.close(stream)
    return np.stack(answers)


async def run_clients(server: Server, recordings: list[Frame]) -> list[Frame]:
    """Run one client for each recording against one server."""
    return await asyncio.gather(*(run_client(server, frames) for frames in recordings))


def make_model() -> fastlstm.Model:
    """Return LSTM(10 -> 512) and Linear(512 -> 1) with random weights: only the time counts here."""
    rng = np.random.default_rng(0)
    shapes = {
        "lstm.weight_ih_l0": (4 * HIDDEN, FEATURES),
        "lstm.weight_hh_l0": (4 * HIDDEN, HIDDEN),
        "lstm.bias_ih_l0": (4 * HIDDEN,),
        "lstm.bias_hh_l0": (4 * HIDDEN,),
        "head.weight": (1, HIDDEN),
        "head.bias": (1,),
    }
    bound = HIDDEN**-0.5
    weights = {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
    return fastlstm.from_state_dict(weights, layers="lstm | linear")


def main() -> bool:
    """Serve one by one and from a pool; return whether the bits are the same."""
    model = make_model()
    rng = np.random.default_rng(1)
    lengths = rng.integers(FRAMES // 2, FRAMES, CLIENTS)
    recordings = [rng.normal(size=(length, FEATURES)).astype(np.float32) for length in lengths]
    total = sum(map(len, recordings))
    answers = []
    for name, server in {"one by one": OneByOne(model), "pooled": Pooled(model, CLIENTS)}.items():
        asyncio.run(run_clients(server, recordings[:2]))  # compiles what is not compiled yet
        begin = time.perf_counter()
        answers.append(asyncio.run(run_clients(server, recordings)))
        seconds = time.perf_counter() - begin
        print(f"{name:10}  {CLIENTS} clients, {total} frames: {total / seconds:8,.0f} frames a second")
    same = all(np.array_equal(one, pooled) for one, pooled in zip(*answers, strict=True))
    print(f"{'the same bits' if same else 'NOT the same bits'} either way")
    return same


if __name__ == "__main__":
    sys.exit(not main())
