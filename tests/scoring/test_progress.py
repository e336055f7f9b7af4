"""What a run says while it goes on: a line that is written over on a terminal, lines one after the other in a log."""

from __future__ import annotations

import io
import sys

import pytest
from data_sets import classifier, sequences, table

import fastlstm
from fastlstm.cli import score as command
from fastlstm.scoring import progress as module
from fastlstm.scoring.progress import Progress


def test_rows_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = Progress(total=10_000, before=2000, started=now[0])
    assert str(progress) == "2,000 of 10,000 rows, 0/s, 0:00"
    now[0] += 5
    progress.add(450)
    progress.add(40, 10)
    assert str(progress) == "2,500 of 10,000 rows, 100/s, 1:15 left, 10 rejected"
    progress.add(1500)
    assert progress.seconds_left == pytest.approx(6000 / 400)
    now[0] += 4000
    assert str(Progress(what="frames", started=now[0] - 3725)) == "0 frames, 0/s, 1:02:05"


class Screen(io.StringIO):
    """A terminal, or a log."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_one_line_and_a_log_many(terminal, monkeypatch):
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(command, "TERMINAL_SECONDS", 0.001)
    monkeypatch.setattr(command, "LOG_SECONDS", 0.001)
    progress = Progress(total=10_000)
    with command.Reporter() as reporter:
        reporter.watch(progress)
        progress.add(9000)
        while "9,000" not in screen.getvalue():
            pass
        progress.total = 9000  # the line becomes shorter, and hides what the longer one left
        while "of 9,000" not in screen.getvalue():
            pass
    text = screen.getvalue()
    assert text.endswith("\n")
    if terminal:
        assert text.count("\n") == 1
        assert text.startswith("\r")
        lines = text[1:-1].split("\r")
        assert len(lines[-1]) >= max(map(len, lines[:-1])) - 1
    else:
        assert "\r" not in text
        assert all(" rows, " in line for line in text.splitlines())


def test_a_watched_run_counts_every_row(tmp_path):
    seen = []
    summary = fastlstm.score(classifier(), table(sequences(40)), tmp_path / "out", watch=seen.append, part_rows=16)
    (progress,) = seen
    assert (progress.scored, progress.rejected, progress.total) == (40, 0, 40)
    assert progress.seconds_left == 0
    assert summary.as_data().keys() == {"out", "rows", "rejected", "scored_now", "seconds", "rows_per_second"}
