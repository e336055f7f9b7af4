"""A server for many clients: who speaks when, live, over WebSockets.

    pip install 'fastlstm[onnx]' picows uvloop && pip install --no-deps silero-vad
    python examples/many_streams.py --port 8765 --capacity 1000 --processes 2

A client sends chunks of 512 samples of 16 kHz (float32, so 2,048 bytes, a binary message each) and gets a float32 for
each: how likely somebody speaks in it. Every client is a stream of a pool. What has come within two milliseconds is one
batch, which reads the weights once for all. A batch of 64 takes some 3 ms, meanwhile the sockets hold what comes. (On
a thread of its own the engine would wait 1 ms a batch for Python's lock, which the event loop has. For a model whose
batches take longer than clients may wait, it is the better choice all the same.) Clients are divided among
processes, each with its pool and its event loop; the kernel does that, on Linux.

The queue is bounded. A client has one chunk in a batch and may have `MOST_WAITING` behind it; then the server stops
reading from it until it has caught up. Who sends anything else, does not read its answers or is silent for `SILENT`
seconds is dropped. Beyond `capacity` clients a process says 503. None of that touches anybody else's answers.
`python -m bench.serving` puts it under load.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import fastlstm

try:
    from picows import (
        WSCloseCode,
        WSFrame,
        WSListener,
        WSMsgType,
        WSTransport,
        WSUpgradeRequest,
        WSUpgradeResponse,
        WSUpgradeResponseWithListener,
        ws_create_server,
    )
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    raise SystemExit(f"{error}. The server speaks WebSockets by a package: pip install picows uvloop") from None

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

HOST = "127.0.0.1"
WEIGHTS = "data/silero_vad_op18_ifless.onnx"  # any number of rows; both sample rates
RATE, NEW, BEFORE = 16_000, 512, 64  # the model takes 64 samples of the chunk before, too
COLLECT = 0.002  # seconds that a chunk waits for others
MOST = 64  # chunks of a batch: more rows would not use a weight more often
WHOLE = 8  # a pool advances so many streams, or a multiple, 1.2 times as fast as one more
MOST_WAITING = 8  # chunks of one client, a quarter of a second
SILENT = 20.0


class Engine(Protocol):
    """What the server asks of a model, one call at a time."""

    samples: int
    """Of a chunk."""
    before: int
    """Samples of the chunk before that the model takes, too."""

    def open(self) -> int:
        """Return the number of a new stream."""

    def close(self, stream: int) -> None:
        """Give a stream back."""

    def step(self, streams: Ids, chunks: Array) -> Array:
        """Advance some streams by a chunk each, [streams, before + samples]; return a number for each."""


class Speech:
    """Silero's voice-activity detector; the weights come from the package `silero-vad` (MIT licence)."""

    samples, before = NEW, BEFORE

    def __init__(self, capacity: int) -> None:
        self.pool = fastlstm.load(weights(), threads=1).streams(capacity, state={"state": "stateN"})
        self.open, self.close = self.pool.open, self.pool.close
        self.rate = np.array(RATE)

    def step(self, streams: Ids, chunks: Array) -> Array:
        """Advance some streams by a chunk each."""
        likely: Array = self.pool.step(streams, {"input": chunks, "sr": self.rate})
        return likely[:, 0]


def weights() -> Path:
    """Return where the installed package keeps the model."""
    found = find_spec("silero_vad")
    if found is None or found.origin is None:
        raise SystemExit("The weights come from a package: pip install --no-deps silero-vad")
    return Path(found.origin).parent / WEIGHTS


class Server:
    """Steps the chunks of all clients.

    Parameters
    ----------
    engine : Engine
    capacity : int
        Most clients at a time.
    """

    def __init__(self, engine: Engine, capacity: int) -> None:
        self.engine, self.capacity = engine, capacity
        self.clients: set[Client] = set()
        self.ready: deque[Client] = deque()  # those with a chunk, in the order in which it came
        self.loop = asyncio.get_running_loop()
        self.next: asyncio.Handle | None = None  # batch

    async def listen(self, port: int, **options: Any) -> asyncio.Server:
        """Take clients from now on."""
        return await ws_create_server(
            self.client,
            HOST,
            port,
            backlog=self.capacity,
            max_frame_size=4 * self.engine.samples,
            websocket_handshake_timeout=SILENT,
            enable_auto_ping=True,  # asks those that have been silent whether they are there
            auto_ping_idle_timeout=SILENT / 2,
            auto_ping_reply_timeout=SILENT / 2,
            **options,
        )

    def client(self, request: WSUpgradeRequest) -> Client | WSUpgradeResponseWithListener:  # noqa: ARG002
        """Take a new client, or say that there are too many."""
        if len(self.clients) < self.capacity:
            return Client(self)
        text = b"All streams are in use; try again later.\n"
        refused = WSUpgradeResponse.create_error_response(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return WSUpgradeResponseWithListener(refused, None)

    def take(self, client: Client) -> None:
        """Note that a client has a chunk."""
        self.ready.append(client)
        if self.next is None:
            self.next = self.loop.call_later(COLLECT, self.step)
        elif len(self.ready) == MOST:
            self.next.cancel()
            self.next = self.loop.call_soon(self.step)

    def step(self) -> None:
        """Advance the streams of those that wait longest, and answer."""
        count = min(MOST, len(self.ready))
        if count > WHOLE:
            count -= count % WHOLE
        batch = [self.ready.popleft() for _ in range(count)]
        batch = [client for client in batch if client.stream is not None]  # the others have gone
        if batch:
            samples = []
            for client in batch:
                samples += client.heard()
            frames = np.frombuffer(b"".join(samples), np.float32).reshape(len(batch), -1)
            streams = np.array([client.stream for client in batch])
            answers = self.engine.step(streams, frames).astype(np.float32).tobytes()
            for row, client in enumerate(batch):
                client.answer(answers[4 * row : 4 * row + 4])
        self.next = None
        if len(self.ready) >= MOST:
            self.next = self.loop.call_soon(self.step)
        elif self.ready:
            self.next = self.loop.call_later(COLLECT, self.step)


class Client(WSListener):
    """A connection; `picows` reads and writes what goes over it."""

    def __init__(self, server: Server) -> None:
        self.server, self.size = server, 4 * server.engine.samples
        self.before = bytes(4 * server.engine.before)
        self.chunks: deque[bytes] = deque()
        self.stream: int | None = None
        self.paused = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Take a new connection."""
        self.transport = transport
        self.stream = self.server.engine.open()
        self.server.clients.add(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Put a chunk into the queue; end the connection if something else has come."""
        kind = frame.msg_type
        if kind == WSMsgType.BINARY and frame.fin and frame.payload_size == self.size and self.stream is not None:
            self.chunks.append(frame.get_payload_as_bytes())
            if len(self.chunks) == 1:
                self.server.take(self)
            elif len(self.chunks) > MOST_WAITING and not self.paused:
                self.paused = True
                transport.underlying_transport.pause_reading()
        elif kind == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif kind != WSMsgType.PONG:
            transport.send_close(WSCloseCode.UNSUPPORTED_DATA, b"Expected %d float32 a message." % (self.size // 4))
            transport.disconnect()

    def heard(self) -> tuple[bytes, bytes]:
        """Return the oldest chunk that waits, and what the model takes of the one before it."""
        before, chunk = self.before, self.chunks.popleft()
        self.before = chunk[len(chunk) - len(before) :]
        return before, chunk

    def answer(self, answer: bytes) -> None:
        """Send what a chunk has given, and go on with the next one."""
        self.transport.send(WSMsgType.BINARY, answer)
        if self.chunks:
            self.server.take(self)
        if self.paused and len(self.chunks) <= MOST_WAITING // 2:
            self.paused = False
            self.transport.underlying_transport.resume_reading()

    def pause_writing(self) -> None:
        """Drop a client that does not read its answers."""
        self.transport.disconnect(graceful=False)

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002
        """Forget a client that has gone, and give its stream back."""
        self.server.clients.discard(self)
        self.chunks.clear()
        self.paused = False
        if self.stream is not None:
            self.server.engine.close(self.stream)
            self.stream = None


async def serve(engine: Engine, capacity: int, port: int, listening: Connection) -> None:
    """Serve until the process is asked to end."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await Server(engine, capacity).listen(port, reuse_port=True):
        listening.send(True)
        await stop.wait()


def work(make: Callable[[], Engine], capacity: int, port: int, listening: Connection) -> None:
    """Be one of the processes, on uvloop's event loop where that is installed."""
    try:
        engine = make()
    except fastlstm.FastLSTMError as error:  # no package onnx, say
        raise SystemExit(str(error)) from None
    gc.freeze()  # what is loaded now stays: collecting looks at clients alone
    (asyncio if find_spec("uvloop") is None else import_module("uvloop")).run(serve(engine, capacity, port, listening))


def run(make: Callable[[], Engine], capacity: int, port: int, processes: int) -> None:
    """Serve until asked to end, or until a process has died; print the port once all of them listen."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    forking = multiprocessing.get_context("fork")
    with socket.socket() as reserved, suppress(KeyboardInterrupt):  # bound, so that the port stays theirs
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((HOST, port))
        port = reserved.getsockname()[1]
        workers, ends = [], []
        try:
            for _ in range(processes):
                end, listening = forking.Pipe(duplex=False)
                workers.append(forking.Process(target=work, args=(make, capacity, port, listening)))
                workers[-1].start()
                listening.close()
                ends.append(end)
            try:
                for end in ends:
                    end.recv()
            except EOFError:
                raise SystemExit("A process ended before it listened.") from None
            print(f"listening on port {port}", flush=True)
            wait([worker.sentinel for worker in workers])
            raise SystemExit("A process has ended by itself.")
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()


def main() -> None:
    """Run the server from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--capacity", type=int, default=1000, help="most clients of a process at a time")
    parser.add_argument("--processes", type=int, default=1, help="one for each core at most")
    given = parser.parse_args()
    run(lambda: Speech(given.capacity), given.capacity, given.port, given.processes)


if __name__ == "__main__":
    main()
