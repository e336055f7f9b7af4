"""Helpers compile what will be asked for, and are never in the way: dead ones, forks, an end in the middle."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fastlstm.kernels import helpers
from fastlstm.kernels.compiler import Kernel
from fastlstm.kernels.progress import CLEAR, Progress

BEGIN = """
    import os, sys, time
    from fastlstm.target import machine
    from fastlstm.kernels import compiler, helpers
    from fastlstm.kernels.compiler import Kernel

    HERE = machine.detect()
    LAST, ADVANCE = Kernel("movement.last"), Kernel("rounds.advance")

    def in_hand(kernel):
        "Wait until a helper has begun a kernel."
        while not helpers.begun(kernel, HERE):
            time.sleep(0.01)

    def refuse(*_):
        raise AssertionError("compiled in this process")

    compiled_here = compiler.kernel_image
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"FASTLSTM_CACHE_DIR": str(folder), "FASTLSTM_HELPERS": "1", **environment}
    command = [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **given})


def test_what_was_asked_for_is_compiled_elsewhere_and_kept(tmp_path: Path) -> None:
    done = run(
        """
        compiler.kernel_image = refuse
        compiler.ahead([LAST, ADVANCE], HERE)
        in_hand(ADVANCE)  # so the other one is ready
        assert compiler.load(ADVANCE, HERE) and compiler.load(LAST, HERE)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name.partition("-")[0] for path in tmp_path.glob("*/*")} == {"movement.last", "rounds.advance"}
    again = run(
        "compiler.kernel_image = helpers._helpers.ask = refuse; compiler.prepare([LAST, ADVANCE], HERE)", tmp_path
    )
    assert again.returncode == 0, again.stderr


def test_what_no_helper_can_keep_is_handed_over_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(
        """
        compiler.kernel_image = refuse
        compiler.ahead([LAST], HERE)
        in_hand(LAST)
        assert compiler.load(LAST, HERE)
        """,
        tmp_path / "file",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("every process will compile them anew") == 1


def test_a_helper_that_dies_costs_nothing_but_its_time(tmp_path: Path) -> None:
    done = run(
        """
        compiler.ahead([LAST, ADVANCE], HERE)
        in_hand(LAST)
        while not helpers._helpers.processes:
            time.sleep(0.01)
        helpers._helpers.processes[0].kill()
        assert compiler.load(LAST, HERE) and compiler.load(ADVANCE, HERE)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_helpers_end_with_their_process_and_are_not_a_childs(tmp_path: Path) -> None:
    done = run(
        """
        compiler.ahead([LAST, ADVANCE], HERE)
        in_hand(LAST)
        while not helpers._helpers.processes:
            time.sleep(0.01)
        print(helpers._helpers.processes[0].pid, flush=True)
        child = os.fork()
        if child == 0:
            assert not helpers._helpers.processes and not helpers.begun(LAST, HERE)
            os._exit(0 if compiler.load(ADVANCE, HERE) else 3)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_there_are_as_many_as_the_user_says_and_none_in_programs_that_hold_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTLSTM_HELPERS", "3")
    assert helpers.most() == 3
    monkeypatch.setattr(sys, "executable", "/usr/bin/blender")
    assert helpers.most() == 0
    monkeypatch.undo()
    monkeypatch.setenv("FASTLSTM_HELPERS", "0")
    assert helpers.most() == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_waited_for_and_how_many_are_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = [Kernel("linear.linear"), Kernel("movement.move"), Kernel("movement.last")]
    monkeypatch.delenv("FASTLSTM_QUIET", raising=False)
    caplog.set_level(logging.INFO, "fastlstm")
    for shown, expected in ((Terminal(), 2), (io.StringIO(), 0)):
        monkeypatch.setattr(sys, "stderr", shown)
        progress = Progress()
        with progress.of(kernels):
            for kernel in kernels:
                with progress.at(kernel):
                    pass
                progress._waited += 2.0  # as if it had taken so long
        lines = [line for line in shown.getvalue().split(CLEAR) if line]
        assert len(lines) == expected
        if lines:
            assert lines[0].endswith("; movement.move, 1 left")
            assert lines[1].endswith("; movement.last, 0 left")
            assert shown.getvalue().endswith(CLEAR)
            assert not caplog.messages
    assert [message.rpartition("; ")[2] for message in caplog.messages] == [
        "movement.move, 1 left",
        "movement.last, 0 left",
    ]
    monkeypatch.setenv("FASTLSTM_QUIET", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.at(kernels[0]):
        assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
