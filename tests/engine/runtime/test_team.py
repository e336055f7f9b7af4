"""Threads change the time, never the bits; and they keep out of the way."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import fastlstm
from fastlstm import model as models
from fastlstm.runtime import team
from fastlstm.runtime.split import SplitProgram, worth_splitting
from fastlstm.target import machine

pytestmark = pytest.mark.skipif(not team.available(), reason="teams need POSIX threads")

STEPS, BATCH, FEATURES, HIDDEN = 40, 2, 16, 160


@pytest.fixture(autouse=True)
def enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models ask for teams on a machine of one processor too."""
    monkeypatch.setattr(models, "cores", lambda: 8)


def layer(kind: str, threads: int, directions: int = 1) -> object:
    rng = np.random.default_rng(5)

    def weight(*shape: int) -> np.ndarray:
        return rng.uniform(-0.1, 0.1, (directions, *shape)).astype(np.float32)

    if kind == "projected":
        w = weight(4 * HIDDEN, FEATURES), weight(4 * HIDDEN, 96), weight(4 * HIDDEN)
        return fastlstm.LSTM(*w, weight_hr=weight(96, HIDDEN), threads=threads)
    if kind == "lstm":
        w = weight(4 * HIDDEN, FEATURES), weight(4 * HIDDEN, HIDDEN), weight(4 * HIDDEN)
        return fastlstm.LSTM(*w, threads=threads)
    if kind == "rnn":
        w = weight(2 * HIDDEN, FEATURES), weight(2 * HIDDEN, 2 * HIDDEN), weight(2 * HIDDEN)
        return fastlstm.RNN(*w, threads=threads)
    w = weight(3 * HIDDEN, FEATURES), weight(3 * HIDDEN, HIDDEN), weight(4 * HIDDEN)
    return fastlstm.GRU(*w, reset_after=int(kind == "gru"), threads=threads)


def parts(result: object) -> list[np.ndarray]:
    if isinstance(result, np.ndarray):
        return [result]
    return [array for part in result for array in parts(part)]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kind", ["lstm", "projected", "gru", "gru before", "rnn"])
@pytest.mark.parametrize("directions", [1, 2])
def test_every_thread_count_gives_the_same_bits(kind: str, directions: int, threads: int) -> None:
    x = np.random.default_rng(6).normal(size=(STEPS, BATCH, FEATURES)).astype(np.float32)
    lengths = np.array([STEPS - 13, STEPS])
    alone, shared = layer(kind, 1, directions), layer(kind, threads, directions)
    segment = shared._model(False, False).plan.parts[0]
    assert segment.workers(BATCH) == threads
    for given in (None, lengths):
        for a, b in zip(parts(alone(x, lengths=given)), parts(shared(x, lengths=given)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["lstm", "projected", "gru before"])
def test_bits_stay_the_same_among_busy_neighbours_and_late_workers(kind: str) -> None:
    # More workers than processors, and processes beside them: shares are taken from workers that do not come.
    x = np.random.default_rng(8).normal(size=(STEPS, BATCH, FEATURES)).astype(np.float32)
    want, shared = parts(layer(kind, 1)(x)), layer(kind, 5)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for _ in range(60):
            for a, b in zip(want, parts(shared(x)), strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        for process in busy:
            process.kill()
            process.wait()


DELAYS = """
    import ctypes, random, signal, threading
    import numpy as np
    import fastlstm
    from fastlstm import model
    from fastlstm.runtime import team

    model.cores = lambda: 8

    # A signal whose handler is usleep: what a thread is at, in compiled code too, waits so many microseconds.
    libc = ctypes.CDLL(None)
    numbers = [signal.SIGUSR1, *range(signal.SIGRTMIN + 1, signal.SIGRTMIN + 20)]
    for number in numbers:
        libc.signal(number, libc.usleep)

    rng = np.random.default_rng(0)
    weights = rng.normal(scale=0.1, size=(640, 16)), rng.normal(scale=0.1, size=(640, 160))
    alone, shared = (fastlstm.LSTM(*weights, threads=n) for n in (1, 3))
    x = rng.normal(size=(40, 2, 16)).astype(np.float32)
    want, _ = alone(x)
    shared(x)
    threads = [threading.main_thread().ident, *(thread.ident for thread in team.team_of(3)._threads)]
    assert len(threads) == 3
    ended, sent = threading.Event(), [0]

    def delay():
        draw = random.Random(1)
        while not ended.wait(draw.expovariate(1 / 0.0001)):
            signal.pthread_kill(draw.choice(threads), draw.choice(numbers))
            sent[0] += 1

    pest = threading.Thread(target=delay)
    pest.start()
    for _ in range(400):
        assert np.array_equal(shared(x)[0], want)
    ended.set()
    pest.join()
    assert sent[0] > 100, sent
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the handler takes what Linux gives it")
def test_bits_stay_the_same_whatever_step_is_delayed() -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(DELAYS)], timeout=120, check=True)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("batch", "hidden", "threads"), [(16, 100, 2), (33, 72, 3)])
def test_a_batch_divided_among_workers_gives_the_same_bits(
    batch: int, hidden: int, threads: int, directions: int
) -> None:
    rng = np.random.default_rng(9)

    def weight(*shape: int) -> np.ndarray:
        return rng.uniform(-0.1, 0.1, (directions, *shape)).astype(np.float32)

    weights = weight(4 * hidden, FEATURES), weight(4 * hidden, hidden), weight(4 * hidden)
    alone, shared = (fastlstm.LSTM(*weights, threads=n) for n in (1, threads))
    segment = shared._model(False, False).plan.parts[0]
    panels = next(i.panels for stage in segment.program.stages for i in stage.instructions if i.panels)
    divides = worth_splitting(batch, panels, threads, row=4 * hidden * hidden)
    assert isinstance(segment.bound_for_sequences(batch), SplitProgram) == segment.splits(batch) == divides
    assert divides or machine.detect().lanes != 16  # with 16 lanes these sizes divide badly by panels
    state = (rng.normal(size=(directions, batch, hidden)).astype(np.float32),) * 2
    for steps in (3, STEPS):  # the parts' buffers grow
        x = rng.normal(size=(steps, batch, FEATURES)).astype(np.float32)
        for given in (None, state):
            for a, b in zip(parts(alone(x, given)), parts(shared(x, given)), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("batch", "hidden", "by_rows"), [(8, 128, True), (5, 100, True), (3, 128, False), (17, 200, False), (8, 256, False)]
)
def test_rows_are_divided_where_steps_are_short(batch: int, hidden: int, by_rows: bool) -> None:
    assert worth_splitting(batch, hidden / 8, 2, row=4 * hidden * hidden) == by_rows


def test_a_small_layer_is_left_to_one_thread() -> None:
    small = fastlstm.LSTM(np.zeros((80, 1)), np.zeros((80, 20)), threads=4)
    assert small._model(False, False).plan.parts[0].workers(1) == 1


def test_callers_from_several_threads_share_a_team_or_run_alone() -> None:
    shared, x = layer("lstm", 2), np.random.default_rng(7).normal(size=(4, STEPS, BATCH, FEATURES)).astype(np.float32)
    want = [parts(shared(one)) for one in x]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            got = parts(shared(x[number]))
            wrong.extend(number for a, b in zip(got, want[number], strict=True) if not np.array_equal(a, b))

    callers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_idle_workers_sleep() -> None:
    shared, x = layer("lstm", 2), np.zeros((STEPS, BATCH, FEATURES), np.float32)
    shared(x)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only some systems tell where a thread may run")
def test_woken_workers_may_run_wherever_they_might_before() -> None:
    shared, x = layer("lstm", 3), np.zeros((STEPS, BATCH, FEATURES), np.float32)
    for _ in range(5):
        shared(x)
        time.sleep(0.02)  # they are asleep when the next call comes
    shared(x)
    time.sleep(0.1)
    threads = [thread.native_id for thread in team.team_of(3)._threads]
    assert len(threads) == 2
    for thread in [0, *threads]:
        assert os.sched_getaffinity(thread) == os.sched_getaffinity(os.getpid())


SCRIPT = """
    import os, sys
    import numpy as np
    import fastlstm
    rng = np.random.default_rng(0)
    model = fastlstm.LSTM(rng.normal(size=(640, 8)), rng.normal(size=(640, 160)), threads=2)
    x = rng.normal(size=(30, 1, 8)).astype(np.float32)
    want = model(x)[0]
    if sys.argv[1] == "fork":
        child = os.fork()
        same = np.array_equal(model(x)[0], want)
        if child == 0:
            os._exit(0 if same else 3)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.exit(code if same else 4)
"""


@pytest.mark.parametrize("what", ["exit", "fork"])
def test_a_process_with_workers_ends_and_forks_in_peace(what: str) -> None:
    code = textwrap.dedent(SCRIPT)
    # What is not compiled yet takes minutes on an emulated processor, and is no part of ending and forking.
    model = fastlstm.LSTM(np.ones((640, 8)), np.ones((640, 160)), threads=2)
    for _ in range(2):
        model(np.ones((30, 1, 8), np.float32))
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code, what], timeout=120, env=os.environ, check=False)
        assert done.returncode == 0


ONE_PROCESSOR = """
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import threading
    import numpy as np
    import fastlstm
    rng = np.random.default_rng(0)
    model = fastlstm.LSTM(rng.normal(size=(640, 8)), rng.normal(size=(640, 160)), threads=2)
    model(rng.normal(size=(30, 1, 8)).astype(np.float32))
    assert threading.active_count() == 1, threading.enumerate()
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_one_processor_has_no_team() -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(ONE_PROCESSOR)], timeout=120, check=True)


PINNED_LATER = """
    import os, time
    from pathlib import Path
    import numpy as np
    import fastlstm
    from fastlstm.runtime import team

    def sleeps():
        time.sleep(0.1)
        return [int(Path(f"/proc/self/task/{thread.native_id}/status").read_text().split("nonvoluntary")[0].split()[-1])
                for thread in team.team_of(2)._threads]

    rng = np.random.default_rng(0)
    model = fastlstm.LSTM(rng.normal(size=(640, 8)), rng.normal(size=(640, 160)), threads=2)
    x = rng.normal(size=(30, 1, 8)).astype(np.float32)
    processors = os.sched_getaffinity(0)
    want = model(x)[0]
    for where, woken in (processors, True), ({min(processors)}, False), (processors, True):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), where)
        before = sleeps()
        assert np.array_equal(model(x)[0], want)
        assert (sleeps() != before) == woken, (where, before)
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="this system pins no process"
)
def test_workers_sleep_on_while_only_the_callers_processor_is_theirs() -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(PINNED_LATER)], timeout=120, check=True)
