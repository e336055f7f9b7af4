"""``fastlstm warmup [MODEL ...]``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastlstm import machine, passes
from fastlstm.cli.files import read_model
from fastlstm.cli.options import add_state_dict_options, state_dict_options
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph
from fastlstm.kernels import compiler
from fastlstm.kernels.cache import cache_folder
from fastlstm.kernels.side_by_side import fill
from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.model import Model
from fastlstm.samples import sample_inputs
from fastlstm.target import LEVELS
from fastlstm.usual import planned_kernels


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("models", nargs="*", help="compile what these need; none: the standard layers")
    parser.add_argument(
        "--target", choices=list(LEVELS), metavar="LEVEL",
        help=f"compile for other processors, without running: {', '.join(LEVELS)}",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, help="where compiled kernels are kept (default: the cache); it can be copied"
    )
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
            _run(graphs)
        fill(kernels, target, machine.cores(), _say)
    else:
        target = machine.detect()
        planned = {kernel for graph in graphs for kernel in planned_kernels(passes.optimise(graph), target)}
        fill(planned, target, machine.cores(), _say)
        _run(graphs)
        kernels = set(compiler.loaded())
    print(f"{len(kernels)} kernels for {target.name} ready in {time.monotonic() - started:.1f} s: {folder}")
    return 0


def _run(graphs: Sequence[Graph]) -> None:
    """Run models on made-up inputs, or the standard layers if there are none."""
    for graph in graphs:
        model = Model(graph)
        for batch in (1, 2):  # one row of a small layer has kernels of its own
            for _ in range(2):  # the second call has an entry
                model.run(sample_inputs(graph, batch=batch))
        with contextlib.suppress(UnsupportedError):  # a model that cannot stream has no step to make ready
            model.stream().warmup()
    if not graphs:
        for layer, gates in ((LSTM, 4), (GRU, 3), (RNN, 1)):
            one = layer(np.zeros((8 * gates, 4)), np.zeros((8 * gates, 8)))
            for rows in (1, 2):
                one(np.zeros((1, rows, 4)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
