"""``fastlstm convert SRC -o OUT``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from fastlstm.cli.files import check_output, read_inputs
from fastlstm.cli.options import (
    above_zero,
    add_comparing_options,
    add_precision_option,
    add_state_dict_options,
    parse_sizes,
    state_dict_options,
)
from fastlstm.cli.printing import Progress, print_json
from fastlstm.commands.convert import convert, metric_table
from fastlstm.commands.precision import Metric
from fastlstm.commands.subject import Subject
from fastlstm.errors import InputError, VerificationError
from fastlstm.verification.comparison import Verification


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", help="a model file of any supported format")
    parser.add_argument("-o", "--output", required=True, help="the .fastlstm file to write")
    parser.add_argument("--no-verify", action="store_true", help="write it without comparing outputs")
    group = parser.add_argument_group("narrow weights")
    add_precision_option(group)
    group.add_argument(
        "--max-error", type=above_zero, metavar="E", help="pick each layer's fastest precision with no error above E"
    )
    group.add_argument("--data", action="append", default=[], metavar="[NAME=]FILE", help="measure errors on this data")
    group.add_argument(
        "--metric", metavar="MODULE:FUNCTION", help="a function(outputs, inputs) -> number to report in each precision"
    )
    add_comparing_options(parser)
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert, verify, write, and load what was written."""
    check_output(arguments.output, [arguments.source])
    if arguments.data and arguments.precision == "float32" and arguments.max_error is None and not arguments.metric:
        raise InputError("--data goes with --precision, --max-error or --metric; --input compares on data of your own.")
    if arguments.metric and not arguments.data:
        raise InputError("--metric is measured on data of your own; give some with --data.")
    metric = _metric(arguments.metric) if arguments.metric else None
    subject = Subject.read(arguments.source, state_dict_options(arguments))
    for note in subject.model().notes:
        print(f"assumed: {note}", file=sys.stderr)
    try:
        with Progress("comparing and writing"):
            found = convert(
                subject,
                arguments.output,
                precision=arguments.precision,
                max_error=arguments.max_error,
                data=read_inputs(arguments.data, subject.graph) if arguments.data else None,
                metric=metric,
                inputs=read_inputs(arguments.input, subject.graph) if arguments.input else None,
                sizes=parse_sizes(arguments.size),
                compare=not arguments.no_verify,
                atol=arguments.atol,
                rtol=arguments.rtol,
                trusted=arguments.trusted,
            )
    except VerificationError as error:
        _tell(error.found, arguments.json)
        if arguments.json:
            report = {"output": arguments.output, "verified": False, **error.found.as_data()}
            print_json({**report, "golden_samples": 0, "file_bytes": 0})
        print(f"the outputs differ by more than allowed; {arguments.output} was not written", file=sys.stderr)
        return 1
    if found.verification is not None:
        _tell(found.verification, arguments.json)
    if arguments.json:
        print_json(found.as_data())
    else:
        for part in (found.narrowing, found.metric and metric_table(found.metric, arguments.metric)):
            if part:
                print(part)
    samples = f"with {found.golden_samples} golden samples"
    print(f"{found.output}: written, {found.how}, {samples}, {found.file_bytes:,} bytes", file=sys.stderr)
    return 0


def _tell(found: Verification, as_json: bool) -> None:
    if not as_json:
        print(found.report)
    if found.reason:
        print(f"not compared with the source's own framework: {found.reason}", file=sys.stderr)


def _metric(name: str) -> Metric:
    """Return the function that ``module:function`` names; modules of the working folder are found too."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"--metric takes a module and a function of it, as in scores:accuracy; got '{name}'.")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the user's own code may raise anything
        raise InputError(
            f"--metric: the module '{module}' cannot be imported: {type(error).__name__}: {error}."
        ) from error
    finally:
        sys.path.remove(folder)
    if not callable(found):
        raise InputError(f"--metric: the module '{module}' has no function '{function}'.")
    metric: Metric = found
    return metric
