"""``fastlstm convert SRC -o OUT``."""

from __future__ import annotations

import argparse
import sys

from fastlstm import fileformat
from fastlstm.cli.common import add_layers_option, print_json, read_inputs, read_model
from fastlstm.model import Model
from fastlstm.verify import ATOL, RTOL, expected_runner, verify


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", help="a .onnx, .pt, .pth, .safetensors, .keras, .h5 or .fastlstm file")
    parser.add_argument("-o", "--output", required=True, help="the .fastlstm file to write")
    parser.add_argument("--no-verify", action="store_true", help="write it without comparing outputs")
    parser.add_argument("--input", action="append", default=[], metavar="[NAME=]FILE", help="verify on this data")
    parser.add_argument("--atol", type=float, default=ATOL, help="absolute tolerance (%(default)s)")
    parser.add_argument("--rtol", type=float, default=RTOL, help="relative tolerance (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_layers_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert, verify, write."""
    stored = read_model(arguments.source, arguments.layers)
    for note in stored.graph.notes:
        print(f"assumed: {note}", file=sys.stderr)
    model = Model(stored.graph)
    source = fileformat.Source.of(arguments.source)
    if arguments.no_verify:
        fileformat.write(arguments.output, stored.graph, stored.golden, source)
        print(f"{arguments.output}: written, not verified", file=sys.stderr)
        return 0
    expected, reason = expected_runner(arguments.source, stored.graph)
    given = [read_inputs(arguments.input, stored.graph)] if arguments.input else []
    found = verify(
        stored.graph,
        expected,
        model.run,
        given=given,
        atol=arguments.atol,
        rtol=arguments.rtol,
        reason=reason,
    )
    if arguments.json:
        worst = found.worst.as_data()
        print_json({**worst, "expected_from": found.expected_from, "reason": reason, "holds": found.holds})
    else:
        print(f"compared with {found.expected_from} on {len(found.samples)} inputs")
        print(found.worst)
    if reason:
        print(f"not compared with the source's own framework: {reason}", file=sys.stderr)
    if not found.holds:
        print(f"the outputs differ by more than allowed; {arguments.output} was not written", file=sys.stderr)
        return 1
    fileformat.write(arguments.output, stored.graph, found.samples, source)
    print(f"{arguments.output}: written, with {len(found.samples)} golden samples", file=sys.stderr)
    return 0
