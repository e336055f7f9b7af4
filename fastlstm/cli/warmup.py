"""``fastlstm warmup [MODEL ...]``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

import numpy as np

from fastlstm.cli.files import read_model
from fastlstm.cli.options import add_state_dict_options, state_dict_options
from fastlstm.errors import UnsupportedError
from fastlstm.kernels import compiler
from fastlstm.kernels.cache import cache_folder
from fastlstm.layers import GRU, LSTM, RNN
from fastlstm.model import Model
from fastlstm.samples import sample_inputs


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("models", nargs="*", help="compile what these need; none: the standard layers")
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compile, so that no later first call has to."""
    started = time.monotonic()
    for path in arguments.models:
        graph = read_model(path, state_dict_options(arguments)).graph
        model = Model(graph)
        model.run(sample_inputs(graph))
        with contextlib.suppress(UnsupportedError):  # a model that cannot stream has no step to make ready
            model.stream().warmup()
        print(f"{path}: ready", file=sys.stderr)
    if not arguments.models:
        for layer, gates in ((LSTM, 4), (GRU, 3), (RNN, 1)):
            one = layer(np.zeros((8 * gates, 4)), np.zeros((8 * gates, 8)))
            for rows in (1, 2):  # one row of a small layer has kernels of its own
                one(np.zeros((1, rows, 4)))
            print(f"{layer.__name__}: ready", file=sys.stderr)
    print(f"{len(compiler.loaded())} kernels ready in {time.monotonic() - started:.1f} s: {cache_folder()}")
    return 0
