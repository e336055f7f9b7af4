"""How many clients one machine serves in real time: `examples/many_streams.py` under load, beside onnxruntime.

Every client sends a chunk of 512 samples each 32 ms, as a microphone does, and the answer's time counts from when the
chunk was due, so a generator that is late itself makes the figures worse, never better. Server and generator share the
machine. The server is the same for all engines:

``fastlstm``     a pool of streams
``onnxruntime``  the same chunks as one batch, states gathered and scattered by NumPy
``one by one``   onnxruntime called for each chunk

``python -m bench.serving --clients 300,400,500 --seconds 60`` needs `picows` and `silero-vad`. With ``--trouble``
others vanish, send rubbish and flood the server meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[Any]

EXAMPLE = Path(__file__).parents[1] / "examples" / "many_streams.py"
PERIOD = 512 / 16_000
LATE = 0.020
TICK = 0.001
ANSWER = 6  # bytes of a message with a float32
HELLO = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
WARM_UP = 3.0  # seconds that are not counted


def example() -> Any:
    """Return the server as a module: examples are scripts, not a package."""
    spec = spec_from_file_location("many_streams", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class OnnxRuntime:
    """Silero in onnxruntime, its states in one array; in one call for all chunks, or one for each."""

    samples, before = 512, 64

    def __init__(self, weights: Path, capacity: int, together: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
        self.together = together
        self.state = np.zeros((2, capacity, 128), np.float32)
        self.free = list(range(capacity))
        self.rate = np.array(16_000)
        self.close = self.free.append

    def open(self) -> int:
        """Return the number of a new stream."""
        stream = self.free.pop()
        self.state[:, stream] = 0
        return stream

    def step(self, streams: Array, chunks: Array) -> Array:
        """Advance some streams by a chunk each."""
        parts = [slice(None)] if self.together else [slice(i, i + 1) for i in range(len(streams))]
        return np.concatenate([self.batch(streams[part], chunks[part]) for part in parts])

    def batch(self, streams: Array, chunks: Array) -> Array:
        """Advance streams in one call."""
        given = {"input": chunks, "state": self.state[:, streams], "sr": self.rate}
        likely, self.state[:, streams] = self.session.run(["output", "stateN"], given)
        return np.asarray(likely[:, 0])


def serve(name: str, capacity: int, processes: int) -> None:
    """Be the server."""
    server = example()
    engines: dict[str, Callable[[], Any]] = {
        "fastlstm": lambda: server.Speech(capacity),
        "onnxruntime": lambda: OnnxRuntime(server.weights(), capacity, together=True),
        "one by one": lambda: OnnxRuntime(server.weights(), capacity, together=False),
    }
    server.run(lambda: warm(engines[name](), capacity), capacity, 0, processes)


def warm(engine: Any, capacity: int) -> Any:
    """Return an engine that has met all sizes of batches: what they take at first is not what is measured."""
    for count in range(1, 65):
        streams = [engine.open() for _ in range(min(count, capacity))]
        for _ in range(3):
            engine.step(np.array(streams), np.zeros((len(streams), engine.before + engine.samples), np.float32))
        for stream in streams:
            engine.close(stream)
    return engine


class Clients:
    """Sends chunks when they are due and notes how late the answers are."""

    def __init__(self, port: int, count: int) -> None:
        rng = np.random.default_rng(0)
        samples = rng.normal(scale=0.05, size=(32, 512)).astype(np.float32)
        # Under a mask of zeros, which leaves the samples as they are.
        self.messages = [b"\x82\xfe\x08\x00\0\0\0\0" + chunk.tobytes() for chunk in samples]
        self.sockets = [connected(port) for _ in range(count)]
        self.due: list[deque[float]] = [deque() for _ in range(count)]
        self.rest = [0] * count  # bytes of an answer that has not come whole
        self.poll = select.epoll()
        self.numbers = {}
        for number, client in enumerate(self.sockets):
            client.setblocking(False)
            self.poll.register(client.fileno(), select.EPOLLIN)
            self.numbers[client.fileno()] = number

    def run(self, seconds: float, now_and_then: Iterator[None]) -> Array:
        """Return how late the answers of so many seconds were, after a warm-up.

        What is due is sent, and what has come is read, a tick at a time: both are the later for it, and the processor
        has less to do than if each answer woke this thread.
        """
        begin = time.perf_counter() + 0.1
        end, count, sent = begin + WARM_UP + seconds, len(self.sockets), 0
        late: list[float] = []
        trouble = begin
        while (now := time.perf_counter()) < end + 0.5:
            while (due := begin + sent * PERIOD / count) <= now and due < end:
                number = sent % count
                message = self.messages[(number + sent // count) % len(self.messages)]
                if self.sockets[number].send(message) != len(message):
                    raise RuntimeError(f"The server reads nothing from client {number} any more.")
                self.due[number].append(due)
                sent += 1
            for file, _ in self.poll.poll(0):
                self.read(self.numbers[file], begin + WARM_UP, late)
            if now > trouble:
                trouble = now + 0.5
                next(now_and_then)
            time.sleep(TICK)
        left = sum(map(len, self.due))
        return np.array(late + [np.inf] * left)

    def read(self, number: int, count_from: float, late: list[float]) -> None:
        """Note the answers that have come for a client."""
        data = self.sockets[number].recv(4096)
        if not data:
            raise RuntimeError(f"The server has dropped client {number}.")
        now = time.perf_counter()
        size = self.rest[number] + len(data)
        self.rest[number] = size % ANSWER
        if data[:2] == b"\x89\x00":  # a ping: answered, so that the server knows that somebody is there
            self.sockets[number].send(b"\x8a\x80\0\0\0\0")
            self.rest[number] = size = 0
        for _ in range(size // ANSWER):
            due = self.due[number].popleft()
            if due >= count_from:
                late.append(now - due)


def connected(port: int) -> socket.socket:
    """Return a connection that speaks WebSocket."""
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(HELLO)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(4096)
    if b" 101 " not in answer.splitlines()[0]:
        raise RuntimeError(answer.decode())
    return client


def troublemakers(port: int) -> Iterator[None]:
    """Vanish, send rubbish and flood, again and again."""
    floods: deque[socket.socket] = deque()
    chunk = b"\x82\xfe\x08\x00\0\0\0\0" + bytes(2048)
    while True:
        gone = connected(port)
        gone.send(chunk)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no farewell
        gone.close()
        yield
        rubbish = connected(port)
        rubbish.send(os.urandom(300))
        floods.append(rubbish)
        yield
        flood = connected(port)
        flood.setblocking(False)
        try:
            for _ in range(200):
                flood.send(chunk)
        except BlockingIOError:
            pass
        floods.append(flood)
        while len(floods) > 4:
            floods.popleft().close()
        yield


def nothing() -> Iterator[None]:
    """Make no trouble."""
    while True:
        yield


def measured(engine: str, count: int, seconds: float, trouble: bool, processes: int) -> dict[str, Any]:
    """Return what one server and so many clients have shown."""
    command = [sys.executable, "-m", "bench.serving", "--serve", engine, "--capacity", str(count + 16)]
    command += ["--processes", str(processes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split()[-1])
            clients = Clients(port, count)
            clients.run(0.5, nothing())
            workers = children(server.pid)
            before, used, own = memory(workers), processor(workers), time.process_time()
            late = clients.run(seconds, troublemakers(port) if trouble else nothing())
            used, own = processor(workers) - used, time.process_time() - own
            after = memory(workers)
        finally:
            server.terminate()
    p50, p99, p999 = (1e3 * float(v) for v in np.quantile(late, [0.5, 0.99, 0.999], method="higher"))
    return {
        "engine": engine,
        "clients": count,
        "chunks": len(late),
        "p50_ms": p50,
        "p99_ms": p99,
        "p999_ms": p999,
        "most_ms": 1e3 * float(late.max()),
        "server": used / (seconds + WARM_UP),
        "generator": own / (seconds + WARM_UP),
        "MiB": [before, after],
    }


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def memory(processes: Sequence[int]) -> float:
    """Return the MiB that processes hold, those twice that two of them share."""
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in processes)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor(processes: Sequence[int]) -> float:
    """Return the seconds of processor time that processes have used."""
    used = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


def row(found: dict[str, Any]) -> str:
    """Return a line of the table."""
    cores = f"{found['server']:7.2f}{found['generator']:10.2f}"
    real_time = "yes" if found["p999_ms"] <= 1e3 * LATE else "no"
    return (
        f"{found['engine']:12}{found['clients']:8}{found['chunks']:10,}{found['p50_ms']:8.1f}{found['p99_ms']:8.1f}"
        f"{found['p999_ms']:8.1f}{found['most_ms']:8.1f}  {real_time:10}{cores}"
        f"  {found['MiB'][0]:.0f} -> {found['MiB'][1]:.0f} MiB"
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="500", help="how many, separated by commas")
    parser.add_argument("--engines", default="fastlstm,onnxruntime,one by one")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of the server")
    parser.add_argument("--trouble", action="store_true", help="let others vanish, send rubbish and flood")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--capacity", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.capacity, given.processes)
        return
    print("engine       clients    chunks     p50     p99   p99.9    most  real time  server generator  (ms; cores)")
    found = []
    for engine in given.engines.split(","):
        for count in map(int, given.clients.split(",")):
            found.append(measured(engine, count, given.seconds, given.trouble, given.processes))
            print(row(found[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
