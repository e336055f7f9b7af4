"""How long a model's calls take, beside the framework that its file comes from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.commands.subject import Precision, Subject
from fastlstm.errors import DependencyError, UnsupportedError, VerificationError, counted
from fastlstm.reporting.benchmark import Contest, compare, settings
from fastlstm.reporting.tables import table, table_html, time_text
from fastlstm.typing import Array
from fastlstm.verification.comparison import Comparison, as_named
from fastlstm.verification.comparison import compare as compare_outputs
from fastlstm.verification.fixing import values_of
from fastlstm.verification.runners import Runner, RunnerError, object_runner, own_framework
from fastlstm.verification.samples import sample_inputs, time_steps

__all__ = ["Bench", "bench"]

OURS = "fastlstm"


@dataclass(frozen=True)
class Bench:
    """What `bench` measured.

    Attributes
    ----------
    contest : Contest
        Every engine's timings, in seconds.
    inputs : str
        Names and shapes of what was run.
    steps : int
        Time steps per call.
    threads : int
    alone : str
        Why no other engine was timed; "" if one was.
    agreement : Comparison or None
        Our outputs compared with the other engine's.
    notes : tuple of str
        What was assumed of the model.
    """

    contest: Contest
    inputs: str
    steps: int
    threads: int
    alone: str = ""
    agreement: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def median(self) -> float:
        """Median seconds of one of our calls."""
        return self.contest.timings[OURS].median

    def rows(self) -> list[dict[str, Any]]:
        """Return a row an engine: microseconds a call and a step, and how many times ours."""
        return [
            {
                "engine": name,
                "median µs": 1e6 * row["median"],
                "p99 µs": 1e6 * row["p99"],
                "max µs": 1e6 * row["max"],
                "µs a step": 1e6 * row["per_step"],
                "steps/s": round(row["steps_per_second"]),
                "× fastlstm": row["ratio"],
            }
            for name, row in self.contest.as_data(OURS).items()
        ]

    def as_data(self) -> dict[str, Any]:
        """Return the figures and what they depend on as plain data, times in seconds."""
        conditions = {**settings(), "threads": self.threads, "inputs": self.inputs}
        return {"settings": conditions, "results": self.contest.as_data(OURS)}

    @property
    def title(self) -> str:
        """What was measured."""
        steps, threads = counted(self.steps, "step"), counted(self.threads, "thread")
        return f"{self.inputs}: {steps} per call, {threads}, timed in turns"

    def __str__(self) -> str:
        rows = self.rows()
        return f"{self.title}\n{table(rows, list(rows[0]))}"

    def __repr__(self) -> str:
        return f"<Bench: {time_text(self.median)} a call of {self.inputs}>"

    def _repr_html_(self) -> str:
        rows = self.rows()
        return table_html(rows, list(rows[0]), self.title)


def bench(
    model: Any,
    inputs: Mapping[str, Array] | None = None,
    *,
    batch: int = 1,
    steps: int = 100,
    sizes: Mapping[str, int] | None = None,
    values: Mapping[str, Any] | None = None,
    against: Any = None,
    threads: int = 1,
    precision: Precision = "float32",
    rounds: int = 9,
    trusted: bool = False,
    **options: Any,
) -> Bench:
    """Time whole calls of a model, next to its own framework if there is one.

    Parameters
    ----------
    model : path or Model
        The framework of a file's format takes part, with as many threads, if it is installed.
    inputs : mapping of str to array, optional
        Inputs, in the model's own layout; random data by default.
    batch, steps : int
        Rows and time steps of random data.
    sizes : mapping of str to int, optional
        Sizes of open dimensions by name, for random data.
    values : mapping of str to number or array, optional
        Values of inputs such as a sample rate.
    against : path, torch.nn.Module, Keras model or callable, optional
        What to compare with; if names differ, the order counts.
    threads : int
        For every engine that has such a setting.
    precision : str or mapping of str to str
        As in `fastlstm.load`.
    rounds : int
        In each round, every engine takes a turn.
    trusted : bool
        Let PyTorch itself load the file, which can run code from it.
    **options
        Options of the format's reader, such as ``layers=`` for a PyTorch state dict.

    Returns
    -------
    Bench
        Times in seconds. Prints as a table.

    Raises
    ------
    VerificationError
        If the two engines' float32 outputs differ, which would make the times meaningless.
    InputError
        If inputs, sizes or values do not fit the model.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> layer = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> model = fastlstm.from_state_dict(layer, layers="lstm", batch_first=True)
    >>> fastlstm.bench(model, steps=10, rounds=3).median < 0.1
    True
    """
    subject = Subject.of(model, options)
    made = subject.model(threads, precision)
    run = dict(inputs) if inputs else sample_inputs(subject.graph, sizes, batch=batch, time=steps)
    run |= values_of(subject.graph, sizes or {}, values or {})
    runnables: dict[str, Callable[[], Any]] = {OURS: lambda: made.run(run)}
    peer, alone = _peer(subject, against, threads, trusted)
    agreement = None
    if peer is not None:
        agreement = compare_outputs(peer.run(run), made.run(run))
        if precision == "float32" and not agreement.holds:
            raise VerificationError("The outputs do not agree, so times mean nothing.", agreement)
        runnables[peer.name] = lambda: peer.run(run)
    count = time_steps(subject.graph, run)
    contest = compare(runnables, steps=count, rounds=rounds)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in run.items())
    return Bench(contest, shapes, count, threads, alone, agreement, made.notes)


def _peer(subject: Subject, against: Any, threads: int, trusted: bool) -> tuple[Runner | None, str]:
    """Return what the times are compared with, or None and why there is nothing."""
    if against is not None and not isinstance(against, str | os.PathLike):
        return object_runner(against, subject.graph), ""
    path = subject.path if against is None else os.fspath(against)
    if not path or path.endswith(".fastlstm"):
        return None, ""
    try:
        own = subject if against is None else Subject.read(path)
        peer = own_framework(path, own.graph, threads, trusted=trusted)
        return Runner(peer.name, as_named(subject.graph, own.graph, peer.run)), ""
    except (DependencyError, UnsupportedError, RunnerError) as error:
        return None, str(error)
