"""The server of many streams: right answers for everybody, whatever some clients do."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import fastlstm

SAMPLES, UNITS, CAPACITY = 16, 8, 12
HELLO = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def load_server() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "many_streams.py"
    spec = importlib.util.spec_from_file_location("many_streams", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SERVER = load_server()


def make_model() -> fastlstm.Model:
    rng = np.random.default_rng(3)
    sizes = {
        "lstm.weight_ih_l0": (4 * UNITS, SAMPLES),
        "lstm.weight_hh_l0": (4 * UNITS, UNITS),
        "lstm.bias_ih_l0": (4 * UNITS,),
        "lstm.bias_hh_l0": (4 * UNITS,),
        "head.weight": (1, UNITS),
        "head.bias": (1,),
    }
    weights = {name: rng.uniform(-0.5, 0.5, size).astype(np.float32) for name, size in sizes.items()}
    return fastlstm.from_state_dict(weights, layers="lstm | linear", batch_first=True)


MODEL = make_model()


class Small:
    """An engine without a package's weights."""

    samples, before = SAMPLES, 0

    def __init__(self) -> None:
        self.pool = MODEL.streams(CAPACITY)
        self.open, self.close = self.pool.open, self.pool.close

    def step(self, streams: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        return self.pool.step(streams, chunks)[:, 0]


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Any, int]]:
    """A running server and its port."""
    server = SERVER.Server(Small(), CAPACITY)
    async with await server.listen(0) as listening:
        yield server, listening.sockets[0].getsockname()[1]


def run(test: Callable[[Any, int], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with serving() as (server, port):
            await asyncio.wait_for(test(server, port), 60)

    asyncio.run(whole())


def client(port: int) -> connect:
    return connect(f"ws://127.0.0.1:{port}", compression=None, ping_interval=None)


def recording(seed: int, chunks: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(chunks, SAMPLES)).astype(np.float32)


async def answers(socket: ClientConnection, chunks: np.ndarray) -> np.ndarray:
    """Send chunks one by one, each after the answer to the last."""
    found = []
    for chunk in chunks:
        await socket.send(chunk.tobytes())
        found.append(np.frombuffer(await socket.recv(), np.float32))
    return np.concatenate(found)


def expected(chunks: np.ndarray) -> np.ndarray:
    return MODEL.stream().push(chunks)[:, 0]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_clients_that_come_and_go_get_the_bits_of_single_streams() -> None:
    async def test(server: Any, port: int) -> None:
        async def one(seed: int) -> None:
            for part in range(2):
                chunks = recording(10 * seed + part, 3 + seed)
                async with client(port) as socket:
                    np.testing.assert_array_equal(await answers(socket, chunks), expected(chunks))

        await asyncio.gather(*map(one, range(CAPACITY // 2)))
        await until(lambda: not server.clients)

    run(test)


def test_a_flood_is_answered_in_order_and_stops_nobody() -> None:
    async def test(server: Any, port: int) -> None:
        flood, calm = recording(1, 300), recording(2, 5)
        async with client(port) as flooding, client(port) as other:
            for chunk in flood:
                await flooding.send(chunk.tobytes())
            np.testing.assert_array_equal(await answers(other, calm), expected(calm))
            most = max(len(each.chunks) for each in server.clients)
            assert most <= SERVER.MOST_WAITING + 65536 // (4 * SAMPLES)  # and one read from the socket
            got = np.concatenate([np.frombuffer(await flooding.recv(), np.float32) for _ in flood])
            np.testing.assert_array_equal(got, expected(flood))

    run(test)


@pytest.mark.parametrize("message", ["text", b"", bytes(4 * SAMPLES - 4), bytes(4 * SAMPLES + 4)])
def test_anything_but_a_chunk_ends_that_connection_alone(message: str | bytes) -> None:
    async def test(server: Any, port: int) -> None:
        chunks = recording(3, 6)
        async with client(port) as good, client(port) as bad:
            first = await answers(good, chunks[:3])
            await answers(bad, chunks[:1])
            await bad.send(message)
            with pytest.raises(ConnectionClosed) as closed:
                await bad.recv()
            assert closed.value.rcvd.code in (1003, 1009)
            rest = await answers(good, chunks[3:])
            np.testing.assert_array_equal(np.concatenate([first, rest]), expected(chunks))
        await until(lambda: not server.clients)

    run(test)


def test_streams_of_clients_that_vanish_are_given_to_others() -> None:
    async def test(server: Any, port: int) -> None:
        for seed in range(3 * CAPACITY):
            async with client(port) as socket:
                await socket.send(recording(seed, 1).tobytes())
                socket.transport.abort()  # while its chunk is in a batch, or before
            await until(lambda: not server.clients)
        chunks = recording(5, 4)
        async with client(port) as socket:
            np.testing.assert_array_equal(await answers(socket, chunks), expected(chunks))
        await until(lambda: not server.clients)
        assert not len(server.engine.pool)

    run(test)


def test_more_clients_than_streams_are_refused() -> None:
    async def test(server: Any, port: int) -> None:
        async with contextlib.AsyncExitStack() as all_of_them:
            for _ in range(CAPACITY):
                await all_of_them.enter_async_context(client(port))
            with pytest.raises(InvalidStatus) as refused:
                await client(port)
            assert refused.value.response.status_code == 503
        await until(lambda: not server.clients)
        async with client(port) as socket:
            assert len(await answers(socket, recording(1, 1))) == 1

    run(test)


def test_who_says_nothing_is_dropped_and_who_answers_a_ping_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SERVER, "SILENT", 0.2)

    async def test(server: Any, port: int) -> None:
        async with client(port) as there:  # its library answers pings
            without_hello, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await without_hello.read() == b""
            writer.close()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HELLO)
            await until(lambda: len(server.clients) == 2)
            await until(lambda: len(server.clients) == 1)
            writer.close()
            await asyncio.sleep(0.5)
            assert len(await answers(there, recording(1, 1))) == 1

    run(test)


def test_a_message_in_pieces_ends_that_connection() -> None:
    async def test(server: Any, port: int) -> None:
        async with client(port) as bad:
            await bad.send([bytes(2 * SAMPLES), bytes(2 * SAMPLES)])
            with pytest.raises(ConnectionClosed) as closed:
                await bad.recv()
            assert closed.value.rcvd.code == 1003
        await until(lambda: not server.clients)

    run(test)


def test_a_client_that_reads_no_answers_is_dropped() -> None:
    async def test(server: Any, port: int) -> None:
        async with client(port) as socket:
            await answers(socket, recording(1, 1))
            (it,) = server.clients
            it.pause_writing()  # what the event loop calls when too much waits to be sent
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        await until(lambda: not server.clients)
        assert not len(server.engine.pool)

    run(test)


@pytest.mark.parametrize(
    ("missing", "sentences"),
    [
        ("picows", [r".*pip install picows uvloop"]),
        ("silero_vad", [r".*pip install --no-deps silero-vad", r"A process ended before it listened\."]),
    ],
)
def test_a_package_that_is_missing_is_said_in_a_sentence(missing: str, sentences: list[str]) -> None:
    script = f"import sys, runpy; sys.modules['{missing}'] = None; runpy.run_path(sys.argv.pop(), run_name='__main__')"
    command = [sys.executable, "-c", script, "--port", "0", SERVER.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert len(said) == len(sentences)
    assert all(map(re.fullmatch, sentences, said))


@pytest.mark.parametrize("ends", ["is asked to", "loses a process"])
def test_processes_share_a_port_and_end_together(ends: str) -> None:
    script = "import sys; sys.path.insert(0, sys.argv[1])\nfrom test_serving import SERVER, Small, CAPACITY\n"
    script += "SERVER.run(Small, CAPACITY, 0, 2)"
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[-1])

        async def test() -> None:
            chunks = recording(4, 3)
            for _ in range(8):
                async with client(port) as socket:
                    np.testing.assert_array_equal(await answers(socket, chunks), expected(chunks))

        asyncio.run(test())
        workers = [child.pid for child in psutil.Process(server.pid).children()]
        assert len(workers) == 2
        os.kill(server.pid if ends == "is asked to" else workers[0], signal.SIGTERM)
        _, error = server.communicate(timeout=60)
    assert (server.returncode, error) == ((0, "") if ends == "is asked to" else (1, "A process has ended by itself.\n"))
    assert not any(map(psutil.pid_exists, workers))
