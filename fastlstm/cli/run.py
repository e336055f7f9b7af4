"""``fastlstm run MODEL -i INPUT -o OUTPUT``."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from fastlstm.cli.common import add_layers_option, print_json, read_inputs, read_model, write_arrays
from fastlstm.errors import InputError
from fastlstm.model import Model

CHUNK = 4096


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a model file of any supported format")
    parser.add_argument("-i", "--input", action="append", required=True, metavar="[NAME=]FILE", help=".npy .npz .csv")
    parser.add_argument("-o", "--output", help="write outputs here (.npy, .npz, .csv) instead of describing them")
    parser.add_argument("--stream", action="store_true", help="feed the (one) sequence in chunks through a stream")
    parser.add_argument("--json", action="store_true", help="describe the outputs as JSON")
    add_layers_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run and write."""
    graph = read_model(arguments.model, arguments.layers).graph
    model = Model(graph)
    inputs = read_inputs(arguments.input, graph)
    if arguments.stream:
        if len(inputs) != 1:
            raise InputError("--stream takes one input: the sequence.")
        (sequence,) = inputs.values()
        frames = (
            sequence.reshape(-1, sequence.shape[-1]) if sequence.ndim == 3 and 1 in sequence.shape[:2] else sequence
        )
        stream, parts = model.stream(), []
        for start in range(0, len(frames), CHUNK):
            parts.append(stream.push(frames[start : start + CHUNK]))
            if sys.stderr.isatty():
                done = min(start + CHUNK, len(frames))
                print(f"\r{done:,} of {len(frames):,} frames", end="", file=sys.stderr)
        if sys.stderr.isatty():
            print(file=sys.stderr)
        outputs = {graph.outputs[0].name: np.concatenate(parts) if parts else stream.push(frames)}
    else:
        outputs = model.run(inputs)
    if arguments.output:
        write_arrays(arguments.output, outputs)
        print(f"{arguments.output}: written", file=sys.stderr)
    if arguments.json:
        print_json({name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in outputs.items()})
    elif not arguments.output:
        for name, array in outputs.items():
            print(f"{name}: {array.dtype}{list(array.shape)}\n{array}")
    return 0
