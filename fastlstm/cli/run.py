"""``fastlstm run MODEL INPUT -o OUTPUT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import numpy as np

from fastlstm.cli.files import check_arrays_path, files_of, read_inputs, write_arrays
from fastlstm.cli.options import add_state_dict_options, state_dict_options
from fastlstm.cli.printing import Progress, print_json
from fastlstm.commands.subject import read_model
from fastlstm.errors import InputError
from fastlstm.graph import Graph
from fastlstm.model import Model
from fastlstm.typing import Array

ROWS = 256  # batch rows run at once: the bits are the same in any batch, and progress shows


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a model file of any supported format")
    parser.add_argument("inputs", nargs="*", metavar="[NAME=]FILE", help="a .npy, .npz or .csv file for each input")
    parser.add_argument("-i", "--input", action="append", default=[], metavar="[NAME=]FILE", help="another input")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the outputs to .npy, .npz or .csv")
    parser.add_argument("--stream", action="store_true", help="feed the sequence through a stream, frame by frame")
    parser.add_argument("--json", action="store_true", help="print what was computed as JSON")
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run, and write or print the outputs."""
    if not arguments.inputs + arguments.input:
        raise InputError("A model needs inputs: name a .npy, .npz or .csv file for each.")
    if arguments.output:
        check_arrays_path(arguments.output, [arguments.model, *files_of(arguments.inputs + arguments.input)])
    graph = read_model(arguments.model, state_dict_options(arguments)).graph
    model = Model(graph)
    inputs = read_inputs(arguments.inputs + arguments.input, graph)
    outputs = _stream(model, inputs) if arguments.stream else _whole(model, inputs)
    if arguments.output:
        write_arrays(arguments.output, outputs)
        print(f"{arguments.output}: written", file=sys.stderr)
    if arguments.json:
        described = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in outputs.items()}
        if not arguments.output:
            described = {n: {**d, "values": outputs[n].tolist()} for n, d in described.items()}
        print_json(described)
    elif not arguments.output:
        for name, array in outputs.items():
            print(f"{name}: {array.dtype}{list(array.shape)}\n{array}")
    return 0


def _stream(model: Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the output of every frame, [frames, features]."""
    if len(inputs) != 1:
        raise InputError(f"--stream takes one input, the sequence; the model has {', '.join(inputs)}.")
    ((spec, sequence),) = zip(model.inputs, inputs.values(), strict=True)
    if sequence.ndim < 2 or 1 not in sequence.shape[:2]:
        raise InputError(f"--stream takes one sequence; {spec} was given as {list(sequence.shape)}.")
    frames = sequence.reshape(-1, *sequence.shape[2:])
    stream = model.stream()
    if len(frames) % stream.hop:
        raise InputError(f"A step of this model takes {stream.hop} frames; {len(frames)} are no multiple of them.")
    with Progress("frames", len(frames)) as progress:
        parts = []
        for at in range(0, len(frames), stream.hop):
            parts.append(stream.step(frames[at] if stream.hop == 1 else frames[at : at + stream.hop]))
            progress.at(at + stream.hop)
    tail = stream.finish()
    joined = [tail[:0], *(part if part.ndim == tail.ndim else part[None] for part in parts)]
    found = np.concatenate(joined)[stream.delay :]
    return {model.outputs[0].name: np.concatenate([found, tail])}


def _whole(model: Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs, computed some batch rows at a time where all arrays have the batch first."""
    rows = len(next(iter(inputs.values()), ()))
    step = ROWS if _batch_first(model.graph) else max(rows, 1)
    with Progress("rows", rows) as progress:
        parts = []
        for start in range(0, max(rows, 1), step):
            parts.append(model.run({name: array[start : start + step] for name, array in inputs.items()}))
            progress.at(start + step)
    return parts[0] if len(parts) == 1 else {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def _batch_first(graph: Graph) -> bool:
    """Whether every input and output has the same open dimension, a batch, as its first."""
    first = {spec.shape[0] if spec.shape else 0 for spec in (*graph.inputs, *graph.outputs)}
    name = first.pop()
    return not first and isinstance(name, str) and "batch" in name
