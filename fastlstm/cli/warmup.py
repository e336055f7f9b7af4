"""``fastlstm warmup [MODEL ...]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastlstm import passes
from fastlstm.cli.options import (
    add_precision_option,
    add_state_dict_options,
    add_state_option,
    add_value_option,
    from_one,
    parse_sizes,
    parse_states,
    parse_values,
    state_dict_options,
)
from fastlstm.commands.subject import read_model
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph
from fastlstm.kernels import compiler
from fastlstm.kernels.cache import cache_folder
from fastlstm.kernels.side_by_side import fill
from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.lowering.usual import planned_kernels
from fastlstm.model import Model
from fastlstm.target import LEVELS, machine
from fastlstm.verification.fixing import fixed
from fastlstm.verification.samples import sample_frames, sample_inputs


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("models", nargs="*", help="compile what these need (without any: the standard layers)")
    parser.add_argument(
        "--target", choices=list(LEVELS), metavar="LEVEL",
        help=f"compile for other processors, without running anything: {', '.join(LEVELS)}",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, help="where to put compiled kernels (default: the cache); the folder can be copied"
    )
    parser.add_argument("--size", action="append", default=[], metavar="DIM=N", help="size of an open dimension")
    parser.add_argument("--threads", type=from_one, default=1, help="threads that calls will use (%(default)s)")
    add_precision_option(parser)
    parser.add_argument("--pool", type=from_one, metavar="N", help="also compile for pools of N streams")
    add_state_option(parser)
    add_value_option(parser)
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compile, so that no later first call has to."""
    started = time.monotonic()
    if arguments.folder:
        os.environ["FASTLSTM_CACHE_DIR"] = str(arguments.folder)
    folder = cache_folder()
    if folder is None:
        raise InputError("This user has no home folder to keep compiled kernels in; name one with --folder.")
    graphs = [read_model(path, state_dict_options(arguments)).graph for path in arguments.models]
    if arguments.target:
        target = LEVELS[arguments.target]
        # Planned and recorded for the other machine; what runs meanwhile computes nothing.
        with machine.supposing(target), compiler.listing() as kernels:
            _run(graphs, arguments)
        fill(kernels, target, machine.cores(), _say)
    else:
        target = machine.detect()
        planned = {kernel for graph in graphs for kernel in planned_kernels(passes.optimise(graph), target)}
        fill(planned, target, machine.cores(), _say)
        _run(graphs, arguments)
        kernels = set(compiler.loaded())
    print(f"{len(kernels)} kernels for {target.name} ready in {time.monotonic() - started:.1f} s: {folder}")
    return 0


def _run(graphs: Sequence[Graph], arguments: argparse.Namespace) -> None:
    """Run models on made-up inputs, or the standard layers if there are none."""
    for graph in graphs:
        _run_model(fixed(graph, parse_sizes(arguments.size), parse_values(arguments.input)), arguments)
    if not graphs:
        for layer, gates in ((LSTM, 4), (GRU, 3), (RNN, 1)):
            one = layer(np.zeros((8 * gates, 4)), np.zeros((8 * gates, 8)))
            for rows in (1, 2):
                one(np.zeros((1, rows, 4)))


def _run_model(graph: Graph, arguments: argparse.Namespace) -> None:
    """Run a model whole, step by step if it streams, and as a pool if that is asked for."""
    model = Model(graph, arguments.threads, arguments.precision)
    for batch in (1, 2):  # one row of a small layer has kernels of its own
        for _ in range(2):  # the second call has an entry
            model.run(sample_inputs(graph, batch=batch))
    states = parse_states(arguments.state)
    try:
        stream = model.stream(state=states)
    except UnsupportedError as error:  # a model that cannot stream has no step to make ready
        if states or arguments.pool:
            raise
        _say(f"no stream is made ready: {error}")
        return
    inputs = model.streaming_engine(states).inputs
    stream.warmup(frame=sample_frames(graph, inputs, stream.blank_frame()))
    if arguments.pool:
        pool = model.streams(arguments.pool, states)
        numbers = [pool.open() for _ in range(arguments.pool)]
        for _ in range(2):  # the second call has an entry
            pool.step(numbers, sample_frames(graph, inputs, pool.blank_frames(arguments.pool)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
