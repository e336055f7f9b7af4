"""A server for many clients: who speaks when, live, over WebSockets.

    pip install fastlstm[onnx] websockets uvloop && pip install --no-deps silero-vad
    python examples/many_streams.py --port 8765 --capacity 1000

A client sends chunks of 512 samples of 16 kHz (float32, so 2,048 bytes, a binary message each) and gets a float32 for
each: how likely somebody speaks in it. Every client is a stream of one pool. What has come within two milliseconds is
one batch, which reads the weights once for all and runs without Python's lock, so that the event loop goes on.

The queue is bounded. A client has one chunk in a batch and may have `MOST_WAITING` behind it; then the server stops
reading from it until it has caught up. Who sends anything else, does not read its answers or is silent for `SILENT`
seconds is dropped. Beyond `capacity` clients the server says 503. None of that touches anybody else's answers.
`python -m bench.serving` puts it under load.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

import fastlstm

Array = npt.NDArray[np.float32]

WEIGHTS = "data/silero_vad_op18_ifless.onnx"  # any number of rows; both sample rates
RATE, NEW, BEFORE = 16_000, 512, 64  # the model takes 64 samples of the chunk before, too
COLLECT = 0.002  # seconds that a chunk waits for others
MOST = 64  # chunks of a batch: more rows would not use a weight more often
MOST_WAITING = 8  # chunks of one client, a quarter of a second
SILENT = 20.0


class Engine(Protocol):
    """What the server asks of a model, one call at a time."""

    samples: int
    """Of a chunk."""

    def open(self) -> int:
        """Return the number of a new stream."""

    def close(self, stream: int) -> None:
        """Give a stream back."""

    def step(self, streams: Array, chunks: Array) -> Array:
        """Advance some streams by a chunk each, [streams, samples]; return a number for each."""


class Speech:
    """Silero's voice-activity detector; the weights come from the package `silero-vad` (MIT licence)."""

    samples = NEW

    def __init__(self, capacity: int) -> None:
        self.pool = fastlstm.load(weights()).streams(capacity, state={"state": "stateN"})
        self.heard = np.zeros((capacity, BEFORE), np.float32)
        self.close = self.pool.close
        self.rate = np.array(RATE)

    def open(self) -> int:
        """Return the number of a new stream."""
        stream = self.pool.open()
        self.heard[stream] = 0
        return stream

    def step(self, streams: Array, chunks: Array) -> Array:
        """Advance some streams by a chunk each."""
        samples = np.concatenate([self.heard[streams], chunks], axis=1)
        self.heard[streams] = chunks[:, -BEFORE:]
        likely: Array = self.pool.step(streams, {"input": samples, "sr": self.rate})
        return likely[:, 0]


def weights() -> Path:
    """Return where the installed package keeps the model."""
    found = find_spec("silero_vad")
    if found is None or found.origin is None:
        raise SystemExit("The weights come from a package: pip install --no-deps silero-vad")
    return Path(found.origin).parent / WEIGHTS


class Server:
    """Steps the chunks of all clients, on a thread of its own.

    Parameters
    ----------
    engine : Engine
    capacity : int
        Most clients at a time.
    """

    def __init__(self, engine: Engine, capacity: int) -> None:
        self.engine, self.capacity = engine, capacity
        self.clients: set[Client] = set()
        self.ready: SimpleQueue[tuple[Client, bytes] | None] = SimpleQueue()  # one chunk a client
        self.left: deque[int] = deque()  # streams of clients that have gone
        self.loop = asyncio.get_running_loop()

    def run(self) -> None:
        """Step whatever waits, batch after batch, until None comes."""
        while (first := self.ready.get()) is not None:
            if self.ready.qsize() < MOST - 1:
                time.sleep(COLLECT)
            batch = [first]
            while len(batch) < MOST and not self.ready.empty():
                if (more := self.ready.get()) is None:
                    return
                batch.append(more)
            answers = self.step([client for client, _ in batch], [chunk for _, chunk in batch])
            self.loop.call_soon_threadsafe(self.answer, batch, answers)

    def answer(self, batch: Sequence[tuple[Client, bytes]], answers: Sequence[bytes]) -> None:
        """Send what a batch has given."""
        for (client, _), answer in zip(batch, answers, strict=True):
            client.answer(answer)

    def step(self, batch: Sequence[Client], chunks: Sequence[bytes]) -> list[bytes]:
        """Advance the streams of some clients; nobody else calls the engine."""
        while self.left:
            self.engine.close(self.left.popleft())
        for client in batch:
            if client.stream is None:
                client.stream = self.engine.open()
        streams = np.array([client.stream for client in batch], np.int64)
        frames = np.frombuffer(b"".join(chunks), np.float32).reshape(len(batch), -1)
        packed = self.engine.step(streams, frames).astype(np.float32).tobytes()
        return [packed[at : at + 4] for at in range(0, len(packed), 4)]

    async def drop_the_silent(self) -> None:
        """Ask those that have been silent whether they are there; drop them if they do not say so."""
        while True:
            await asyncio.sleep(SILENT / 2)
            for client in list(self.clients):
                client.look_after()


class Client(asyncio.Protocol):
    """A connection; `websockets` reads and writes what goes over it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.socket = ServerProtocol(max_size=4 * server.engine.samples)
        self.chunks: deque[bytes] = deque()
        self.stream: int | None = None
        self.stepping = False  # a chunk of it is in a batch, or will be in the next
        self.there = self.paused = self.silent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self.there = True
        self.full = len(self.server.clients) >= self.server.capacity
        self.server.clients.add(self)

    def data_received(self, data: bytes) -> None:
        """Read what has come."""
        self.socket.receive_data(data)
        for event in self.socket.events_received():
            if isinstance(event, Request):
                full = self.socket.reject(503, "All streams are in use; try again later.\n")
                self.socket.send_response(full if self.full else self.socket.accept(event))
            elif isinstance(event, Frame) and event.opcode not in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
                self.take(event)
        if self.socket.state is State.OPEN:
            self.silent = False
        self.flush()

    def take(self, frame: Frame) -> None:
        """Put a chunk into the queue."""
        if frame.opcode is not Opcode.BINARY or not frame.fin or len(frame.data) != 4 * self.server.engine.samples:
            self.socket.fail(CloseCode.UNSUPPORTED_DATA, f"Expected {self.server.engine.samples} float32 a message.")
            return
        self.chunks.append(frame.data)
        self.go_on()
        if len(self.chunks) > MOST_WAITING and not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def go_on(self) -> None:
        """Ask for the next batch if there is a chunk."""
        if self.chunks and not self.stepping:
            self.stepping = True
            self.server.ready.put((self, self.chunks.popleft()))

    def answer(self, answer: bytes) -> None:
        """Send what a chunk has given, and go on with the next one."""
        self.stepping = False
        if not self.there:
            self.leave()
            return
        if self.socket.state is State.OPEN:
            self.socket.send_binary(answer)
            self.flush()
        self.go_on()
        if self.paused and len(self.chunks) <= MOST_WAITING // 2:
            self.paused = False
            self.transport.resume_reading()

    def flush(self) -> None:
        """Send what `websockets` has to say, the end of the connection included."""
        for data in self.socket.data_to_send():
            if data:
                self.transport.write(data)
            else:
                self.transport.close()

    def look_after(self) -> None:
        """Ask a client whether it is there; drop it if it has not said so, opened or closed in time."""
        if self.silent:
            self.transport.abort()
        elif self.socket.state is State.OPEN:
            self.socket.send_ping(b"")
            self.flush()
        self.silent = not self.paused

    def pause_writing(self) -> None:
        """Drop a client that does not read its answers."""
        self.transport.abort()

    def eof_received(self) -> None:
        """Note that a client has closed the connection."""
        self.socket.receive_eof()
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (why it went does not matter)
        """Forget a client that has gone; its stream is given back when no batch has a chunk of it."""
        self.there = False
        self.chunks.clear()
        self.server.clients.discard(self)
        if not self.stepping:
            self.leave()

    def leave(self) -> None:
        """Give the stream back."""
        if self.stream is not None:
            self.server.left.append(self.stream)
            self.stream = None


async def serve(engine: Engine, capacity: int, port: int = 0) -> None:
    """Serve until cancelled; print the port."""
    server = Server(engine, capacity)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Client(server), "127.0.0.1", port, backlog=capacity)
    print(f"listening on port {listening.sockets[0].getsockname()[1]}", flush=True)
    stepping = loop.run_in_executor(None, server.run)
    try:
        async with listening:
            await asyncio.gather(stepping, server.drop_the_silent())
    finally:
        server.ready.put(None)


async def until_told(engine: Engine, capacity: int, port: int) -> None:
    """Serve until the process is asked to end."""
    serving = asyncio.ensure_future(serve(engine, capacity, port))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with suppress(asyncio.CancelledError):
        await serving


def run(server: Coroutine[Any, Any, None]) -> None:
    """Run the server's coroutine, on uvloop's event loop where that is installed: it takes half of the time."""
    # The engine's thread needs Python's lock for some microseconds a batch, and would wait 5 ms for a busy event loop.
    sys.setswitchinterval(0.0005)
    gc.freeze()  # what is loaded now stays: collecting looks at clients alone
    (asyncio if find_spec("uvloop") is None else import_module("uvloop")).run(server)


def main() -> None:
    """Run the server from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--capacity", type=int, default=1000, help="most clients at a time")
    given = parser.parse_args()
    run(until_told(Speech(given.capacity), given.capacity, given.port))


if __name__ == "__main__":
    main()
