"""``fastlstm verify A [B]``, and ``fastlstm verify FOLDER`` for an export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastlstm.cli.files import read_inputs, read_model
from fastlstm.cli.options import add_comparing_options, add_state_dict_options, parse_sizes, state_dict_options
from fastlstm.cli.printing import print_json
from fastlstm.errors import InputError
from fastlstm.export.replay import Replay, replay_export
from fastlstm.fileformat import StoredModel
from fastlstm.model import Model
from fastlstm.runners import Runner
from fastlstm.verify import Verification, as_named, compare_layers, renamed, replay, verify, verify_source


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "model",
        help="a model file; alone: against its golden samples, or its own framework; or the folder of an export",
    )
    parser.add_argument("other", nargs="?", help="a second model file, run by fastlstm and compared with the first")
    parser.add_argument("--by-layer", action="store_true", help="name the first layer that differs from float64")
    add_comparing_options(parser)
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and report."""
    if Path(arguments.model).is_dir():
        return _replay(arguments)
    first = read_model(arguments.model, state_dict_options(arguments))
    second = read_model(arguments.other) if arguments.other else first
    found = _compare(arguments, first, second)
    if found.reason:
        print(f"not compared with the file's own framework: {found.reason}", file=sys.stderr)
    worst, layer, layers_hold = found.worst, None, True
    if arguments.by_layer:
        inputs = renamed(found.samples[0].inputs, second.graph)
        layers = compare_layers(
            second.graph, lambda g, x: Model(g).run(x), inputs, atol=arguments.atol, rtol=arguments.rtol
        )
        differs = next((str(part) for part in layers if not part.holds), None)
        layers_hold = differs is None
        layer = f"first layer that differs: {differs}" if differs else f"all {len(layers)} layers agree with float64"
    what = f"{found.expected_from} on {len(found.samples)} inputs"
    if arguments.json:
        print_json({**worst.as_data(), "compared_with": what, "reason": found.reason or None, "by_layer": layer})
    else:
        print(f"compared with {what}\n{worst}" + (f"\n{layer}" if layer else ""))
    return 0 if found.holds and layers_hold else 1


def _replay(arguments: argparse.Namespace) -> int:
    """Build and run the test program of an export for each of its targets."""
    if arguments.other or arguments.by_layer or arguments.input or arguments.size:
        raise InputError(f"'{arguments.model}' is a folder: an export is compared with its own golden samples alone.")

    def report(result: Replay) -> None:
        if not arguments.json:
            print(result, flush=True)

    results = replay_export(Path(arguments.model), report=report)
    holds = any(result.agrees for result in results) and not any(result.agrees is False for result in results)
    if arguments.json:
        print_json({"holds": holds, "targets": [result.as_data() for result in results]})
    elif not any(result.agrees is not None for result in results):
        print("no target was run, so nothing is shown", file=sys.stderr)
    return 0 if holds else 1


def _compare(arguments: argparse.Namespace, first: StoredModel, second: StoredModel) -> Verification:
    """Compare the first model, as its own framework or its golden samples have it, with the second."""
    tolerance = {"atol": arguments.atol, "rtol": arguments.rtol}
    given = [read_inputs(arguments.input, first.graph)] if arguments.input else []
    sizes = parse_sizes(arguments.size)
    run = as_named(first.graph, second.graph, Model(second.graph).run)
    if not arguments.model.endswith(".fastlstm"):
        return verify_source(
            arguments.model, first.graph, run, sizes=sizes, given=given, trusted=arguments.trusted, **tolerance
        )
    if arguments.other:
        runner = Runner(f"{arguments.model} in fastlstm", Model(first.graph).run)
        return verify(first.graph, runner, run, sizes=sizes, given=given, **tolerance)
    if given or sizes:
        raise InputError("To compare on other inputs than the golden samples, name a second model.")
    if not first.golden:
        raise InputError(f"'{arguments.model}' holds no golden samples: name a second model to compare with.")
    origin = f"the golden samples of {first.golden[0].origin}"
    return Verification(origin, "", replay(run, first.golden, **tolerance), first.golden)
