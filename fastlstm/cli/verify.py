"""``fastlstm verify A [B]``."""

from __future__ import annotations

import argparse
import sys

from fastlstm.cli.common import add_layers_option, print_json, read_inputs, read_model
from fastlstm.errors import InputError
from fastlstm.model import Model
from fastlstm.runners import Runner
from fastlstm.verify import ATOL, RTOL, Comparison, compare_layers, expected_runner, replay, verify


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a .fastlstm file, or any model file")
    parser.add_argument("other", nargs="?", help="what to compare with; absent: golden samples, or its own framework")
    parser.add_argument("--input", action="append", default=[], metavar="[NAME=]FILE", help="compare on this data")
    parser.add_argument("--by-layer", action="store_true", help="name the first layer that differs from float64")
    parser.add_argument("--atol", type=float, default=ATOL, help="absolute tolerance (%(default)s)")
    parser.add_argument("--rtol", type=float, default=RTOL, help="relative tolerance (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_layers_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and report."""
    stored = read_model(arguments.model, arguments.layers)
    model = Model(stored.graph)
    tolerance = {"atol": arguments.atol, "rtol": arguments.rtol}
    given = [read_inputs(arguments.input, stored.graph)] if arguments.input else []
    if arguments.other is None and stored.golden and not given:
        what = f"{len(stored.golden)} golden samples of {stored.golden[0].origin}"
        samples = stored.golden
        worst = Comparison.worst(replay(model.run, samples, **tolerance))
    else:
        if arguments.other is None and arguments.model.endswith(".fastlstm"):
            raise InputError(f"'{arguments.model}' holds no golden samples: name a second model to compare with.")
        path = arguments.other or arguments.model
        if path.endswith(".fastlstm"):
            runner, reason = Runner(path, Model(read_model(path).graph).run), ""
        else:
            runner, reason = expected_runner(path, read_model(path, arguments.layers).graph)
        found = verify(stored.graph, runner, model.run, given=given, reason=reason, **tolerance)
        what, worst, samples = found.expected_from, found.worst, found.samples
        if reason:
            print(f"not compared with the file's own framework: {reason}", file=sys.stderr)
    layer = ""
    if arguments.by_layer:
        layers = compare_layers(stored.graph, lambda g, x: Model(g).run(x), samples[0].inputs, **tolerance)
        first = next((str(part) for part in layers if not part.holds), "")
        layer = f"first layer that differs: {first}" if first else f"all {len(layers)} layers agree with float64"
    if arguments.json:
        print_json({**worst.as_data(), "compared_with": what, "by_layer": layer or None})
    else:
        print(f"compared with {what}\n{worst}" + (f"\n{layer}" if layer else ""))
    return 0 if worst.holds else 1
