"""The process that makes object code: what it says, and that all of it arrives."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest

from fastlstm.errors import InputError
from fastlstm.export import worker
from fastlstm.target import TARGETS


@pytest.mark.parametrize("other", [{"cpu": "pdp-11"}, {"features": ("+neon", "+pdp-11")}])
def test_a_processor_that_llvm_does_not_know_is_refused(other: dict) -> None:
    target = replace(TARGETS["aarch64"], **other)
    with pytest.raises(InputError, match=r"knows no .* 'pdp-11'"):
        worker.make(worker.Work(target, ["define void @f() { ret void }"], ["f"]))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how full a pipe is")
def test_nothing_is_lost_when_it_is_stopped_and_goes_on() -> None:
    size = 1_000_000
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", f"from fastlstm.export.worker import put; put(bytes({size}))"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    waiting = array.array("i", [0])
    while waiting[0] < 1 << 16:  # it has filled the pipe, and is in the middle of writing
        time.sleep(0.01)
        fcntl.ioctl(process.stdout, termios.FIONREAD, waiting)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate()
    assert (len(out), process.returncode) == (size, 0)
