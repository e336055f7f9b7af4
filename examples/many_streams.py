"""Serve many streams from one process: frames that arrive together are advanced together.

Every client sends a frame (ten features, say of a sensor) and awaits the answer. The server collects what has
arrived since the last round and steps all of it in one call of a stream pool, as one batch, while clients come
and go. Each answer has the bits that a stream of the client's own would have given.
"""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np
import numpy.typing as npt

import fastlstm

FEATURES, HIDDEN, CLIENTS, FRAMES = 10, 128, 64, 50

Frame = npt.NDArray[np.float32]


class Server:
    """Batches the frames of many clients over one pool of streams."""

    def __init__(self, model: fastlstm.Model, capacity: int) -> None:
        self.pool = model.streams(capacity=capacity)
        self.waiting: dict[int, tuple[Frame, asyncio.Future[Frame]]] = {}
        self.arrived = asyncio.Event()

    async def step(self, stream: int, frame: Frame) -> Frame:
        """Hand in the next frame of a stream and wait for its output."""
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self.waiting[stream] = frame, answer
        self.arrived.set()
        return await answer

    async def serve(self) -> None:
        """Advance whatever waits, again and again, until cancelled."""
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            waiting, self.waiting = self.waiting, {}
            frames = np.stack([frame for frame, _ in waiting.values()])
            outputs = self.pool.step(list(waiting), frames)
            for output, (_, answer) in zip(outputs, waiting.values(), strict=True):
                answer.set_result(output)


async def run_client(server: Server, frames: Frame) -> Frame:
    """Open a stream, send `frames`, [time, features], one by one, and return all the answers."""
    stream = server.pool.open()
    answers = [await server.step(stream, frame) for frame in frames]
    server.pool.close(stream)
    return np.stack(answers)


async def run_clients(model: fastlstm.Model, recordings: list[Frame]) -> list[Frame]:
    """Run one client a recording against one server."""
    server = Server(model, capacity=len(recordings))
    serving = asyncio.create_task(server.serve())
    answers = await asyncio.gather(*(run_client(server, frames) for frames in recordings))
    serving.cancel()
    return list(answers)


def make_model() -> fastlstm.Model:
    """Return LSTM(10 -> 128) and Linear(128 -> 1) with random weights: only the time counts here."""
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
    """Serve from a pool, then one by one; return whether the bits are the same."""
    model = make_model()
    rng = np.random.default_rng(1)
    lengths = rng.integers(FRAMES // 2, FRAMES, CLIENTS)
    recordings = [rng.normal(size=(length, FEATURES)).astype(np.float32) for length in lengths]
    asyncio.run(run_clients(model, recordings[:2]))  # compiles what is not compiled yet

    begin = time.perf_counter()
    pooled = asyncio.run(run_clients(model, recordings))
    pool_seconds = time.perf_counter() - begin

    begin = time.perf_counter()
    alone = []
    for frames in recordings:
        stream = model.stream()
        alone.append(np.stack([stream.step(frame) for frame in frames]))
    alone_seconds = time.perf_counter() - begin

    total = sum(lengths)
    same = all(np.array_equal(a, b) for a, b in zip(pooled, alone, strict=True))
    print(
        f"{CLIENTS} clients of an asyncio server, {total} frames, {total / pool_seconds:,.0f} frames a second"
    )
    print(
        f"the same frames in a plain loop, a stream at a time: {total / alone_seconds:,.0f} frames a second"
    )
    print(f"{'the same bits' if same else 'NOT the same bits'} either way")
    return same


if __name__ == "__main__":
    sys.exit(not main())
