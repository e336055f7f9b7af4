"""``fastlstm verify A [B]``, and ``fastlstm verify FOLDER`` for an export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastlstm.cli.files import read_inputs
from fastlstm.cli.options import add_comparing_options, add_state_dict_options, parse_sizes, state_dict_options
from fastlstm.cli.printing import Progress, print_json
from fastlstm.commands.subject import Subject
from fastlstm.commands.verify import verify
from fastlstm.errors import InputError
from fastlstm.export.replay import Replay, replay_export
from fastlstm.verification.comparison import renamed


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "model",
        help="a model file, compared with its golden samples or its own framework; or the folder of an export",
    )
    parser.add_argument("other", nargs="?", help="a second model file, run by fastlstm and compared with the first")
    parser.add_argument("--by-layer", action="store_true", help="name the first layer that differs from float64")
    add_comparing_options(parser)
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and report."""
    if Path(arguments.model).is_dir():
        return _replay(arguments)
    first = Subject.read(arguments.model, state_dict_options(arguments))
    second = Subject.read(arguments.other) if arguments.other else first
    given = read_inputs(arguments.input, first.graph) if arguments.input else None
    with Progress("comparing"):
        found = verify(
            second,
            first if arguments.other else None,
            inputs=given and renamed(given, second.graph),
            sizes=parse_sizes(arguments.size),
            atol=arguments.atol,
            rtol=arguments.rtol,
            by_layer=arguments.by_layer,
            trusted=arguments.trusted,
        )
    if found.reason:
        print(f"not compared with the file's own framework: {found.reason}", file=sys.stderr)
    if arguments.json:
        print_json(found.as_data())
    else:
        print(found.report)
    return 0 if found.holds else 1


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
