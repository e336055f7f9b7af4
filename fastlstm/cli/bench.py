"""``fastlstm bench MODEL``."""

from __future__ import annotations

import argparse
import sys

from fastlstm.cli.files import check_output
from fastlstm.cli.options import (
    above_zero,
    add_precision_option,
    add_state_dict_options,
    add_state_option,
    add_trusted_option,
    add_value_option,
    from_one,
    parse_sizes,
    parse_states,
    parse_values,
    state_dict_options,
)
from fastlstm.cli.printing import Progress, show
from fastlstm.commands.bench import bench
from fastlstm.commands.latency import latency
from fastlstm.commands.subject import Subject
from fastlstm.errors import InputError, VerificationError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a model file of any supported format")
    parser.add_argument("--batch", type=from_one, default=1, help="batch rows (%(default)s)")
    parser.add_argument("--steps", type=from_one, default=100, help="time steps (%(default)s)")
    parser.add_argument("--size", action="append", default=[], metavar="DIM=N", help="size of an open dimension")
    add_precision_option(parser)
    parser.add_argument("--against", metavar="FILE", help="compare with this file, run by its own framework")
    parser.add_argument("--threads", type=from_one, default=1, help="threads of every engine (%(default)s)")
    parser.add_argument(
        "--rounds", type=from_one, default=9, help="rounds, in each of which every engine is timed (%(default)s)"
    )
    parser.add_argument(
        "--latency", action="store_true", help="measure how the time of a stream's steps is distributed"
    )
    parser.add_argument(
        "--seconds", type=above_zero, default=3.0, help="with --latency: how long to measure (%(default)s)"
    )
    add_state_option(parser)
    add_value_option(parser)
    add_trusted_option(parser)
    parser.add_argument("--pool", type=from_one, metavar="N", help="with --latency: step N streams together")
    parser.add_argument(
        "--sample-rate",
        type=above_zero,
        help="frames per second (chunks, if a frame is a chunk), which gives the deadline of a block",
    )
    parser.add_argument("--block", type=from_one, default=1, help="with --latency: frames per call (%(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="with --latency: draw the histogram (.svg)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if not arguments.latency and (arguments.plot or arguments.pool or arguments.state):
        what = "--plot draws the histogram" if arguments.plot else "--pool and --state are for the streams"
        raise InputError(f"{what} of --latency.")
    if arguments.plot:
        check_output(arguments.plot, [arguments.model])
    subject = Subject.read(arguments.model, state_dict_options(arguments))
    return (_latency if arguments.latency else _calls)(subject, arguments)


def _calls(subject: Subject, arguments: argparse.Namespace) -> int:
    """Time whole calls."""
    try:
        with Progress("measuring"):
            found = bench(
                subject,
                batch=arguments.batch,
                steps=arguments.steps,
                sizes=parse_sizes(arguments.size),
                values=parse_values(arguments.input),
                against=arguments.against,
                threads=arguments.threads,
                precision=arguments.precision,
                rounds=arguments.rounds,
                trusted=arguments.trusted,
            )
    except VerificationError as error:
        print(f"the outputs do not agree, so times mean nothing:\n{error.found}", file=sys.stderr)
        return 1
    _note(found.notes)
    if found.alone:
        print(f"no peer to compare with: {found.alone}", file=sys.stderr)
    if found.agreement is not None and arguments.precision != "float32":
        print(f"compared with float32:\n{found.agreement}", file=sys.stderr)
    show(found, arguments)
    return 0


def _latency(subject: Subject, arguments: argparse.Namespace) -> int:
    """Time single steps of a stream or of a pool, or blocks of frames."""
    with Progress("measuring"):
        found = latency(
            subject,
            batch=arguments.batch,
            block=arguments.block,
            pool=arguments.pool,
            state=parse_states(arguments.state),
            sizes=parse_sizes(arguments.size),
            values=parse_values(arguments.input),
            sample_rate=arguments.sample_rate,
            seconds=arguments.seconds,
            threads=arguments.threads,
            precision=arguments.precision,
        )
    _note(found.notes)
    show(found, arguments)
    return 0


def _note(notes: tuple[str, ...]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
