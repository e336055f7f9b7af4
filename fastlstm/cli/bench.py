"""``fastlstm bench MODEL``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm.benchmark import compare, histogram, plot_histogram, settings, time_calls
from fastlstm.cli.files import check_output, read_model
from fastlstm.cli.options import (
    above_zero,
    add_state_dict_options,
    add_state_option,
    add_value_option,
    from_one,
    parse_sizes,
    parse_states,
    parse_values,
    state_dict_options,
)
from fastlstm.cli.printing import print_json, table
from fastlstm.errors import DependencyError, InputError, UnsupportedError
from fastlstm.fixing import fixed, values_of
from fastlstm.graph import Graph
from fastlstm.model import Model
from fastlstm.quantise import PRECISIONS
from fastlstm.runners import Runner, RunnerError, own_framework
from fastlstm.samples import sample_frames, sample_inputs, time_steps
from fastlstm.verify import as_named
from fastlstm.verify import compare as compare_outputs


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a model file of any supported format")
    parser.add_argument("--batch", type=from_one, default=1, help="batch rows (%(default)s)")
    parser.add_argument("--steps", type=from_one, default=100, help="time steps (%(default)s)")
    parser.add_argument("--size", action="append", default=[], metavar="DIM=N", help="size of an open dimension")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the weights (%(default)s)")
    parser.add_argument("--against", metavar="FILE", help="the file that this model was converted from, as a peer")
    parser.add_argument("--threads", type=from_one, default=1, help="threads of every engine (%(default)s)")
    parser.add_argument("--rounds", type=from_one, default=9, help="rounds of measuring in turns (%(default)s)")
    parser.add_argument("--latency", action="store_true", help="the distribution of single steps of a stream")
    parser.add_argument("--seconds", type=above_zero, default=3.0, help="with --latency: how long (%(default)s)")
    add_state_option(parser)
    add_value_option(parser)
    parser.add_argument("--pool", type=from_one, metavar="N", help="with --latency: N streams that step together")
    parser.add_argument(
        "--sample-rate",
        type=above_zero,
        help="frames a second, for the deadline of a block: chunks a second where a frame is a chunk",
    )
    parser.add_argument("--block", type=from_one, default=1, help="with --latency: frames a call (%(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="with --latency: draw the histogram (.svg)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if not arguments.latency and (arguments.plot or arguments.pool or arguments.state):
        what = "--plot draws the histogram" if arguments.plot else "--pool and --state are for the streams"
        raise InputError(f"{what} of --latency.")
    if arguments.pool and (arguments.block, arguments.batch) != (1, 1):
        raise InputError("--pool times steps of streams of one row: it goes with neither --block nor --batch.")
    if arguments.plot:
        check_output(arguments.plot, [arguments.model])
    graph = read_model(arguments.model, state_dict_options(arguments)).graph
    sizes, values = parse_sizes(arguments.size), parse_values(arguments.input)
    made = fixed(graph, sizes, values) if arguments.latency else graph
    model = Model(made, arguments.threads, arguments.precision)
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.latency:
        return _latency(model, arguments)
    inputs = sample_inputs(graph, sizes, batch=arguments.batch, time=arguments.steps)
    inputs |= values_of(graph, sizes, values)
    runnables: dict[str, Callable[[], Any]] = {"fastlstm": lambda: model.run(inputs)}
    peer = _peer(arguments, graph)
    if peer is not None:
        agreement = compare_outputs(peer.run(inputs), model.run(inputs))
        if arguments.precision != "float32":
            print(f"beside {peer.name} in float32:\n{agreement}", file=sys.stderr)
        elif not agreement.holds:
            print(f"the outputs do not agree, so times mean nothing:\n{agreement}", file=sys.stderr)
            return 1
        runnables[peer.name] = lambda: peer.run(inputs)
    steps = time_steps(graph, inputs)
    contest = compare(runnables, steps=steps, rounds=arguments.rounds)
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
    _print(contest.as_data("fastlstm"), shapes, steps, arguments)
    return 0


def _peer(arguments: argparse.Namespace, graph: Graph) -> Runner | None:
    """Return the framework that the times are compared with, None if there is none."""
    path = arguments.against or arguments.model
    if path.endswith(".fastlstm"):
        return None
    try:
        own = read_model(path).graph if arguments.against else graph
        peer = own_framework(path, own, arguments.threads)
        return Runner(peer.name, as_named(graph, own, peer.run))
    except (DependencyError, UnsupportedError, RunnerError) as error:
        print(f"no peer to compare with: {error}", file=sys.stderr)
        return None


def _print(results: dict[str, Any], shapes: str, steps: int, arguments: argparse.Namespace) -> None:
    if arguments.json:
        conditions = {**settings(), "threads": arguments.threads, "inputs": shapes}
        print_json({"settings": conditions, "results": results})
        return
    rows = [
        {
            "engine": name,
            "median µs": 1e6 * row["median"],
            "p99 µs": 1e6 * row["p99"],
            "max µs": 1e6 * row["max"],
            "µs a step": 1e6 * row["per_step"],
            "steps/s": round(row["steps_per_second"]),
            "× fastlstm": row["ratio"],
        }
        for name, row in results.items()
    ]
    print(f"{shapes}: {steps} step(s) a call, {arguments.threads} thread(s), measured in turns")
    print(table(rows, list(rows[0])))


def _latency(model: Model, arguments: argparse.Namespace) -> int:
    """Time single steps of a stream or of a pool, or blocks of frames."""
    call, what, block = _step(model, arguments)
    timing = time_calls(call, name="step", seconds=arguments.seconds, warmup=1000, steps=block)
    data, marks = timing.as_data(), {}
    if arguments.sample_rate:
        deadline = block / arguments.sample_rate
        missed = int((timing.seconds > deadline).sum())
        data |= {"real_time_factor": timing.per_step * arguments.sample_rate, "deadline": deadline, "missed": missed}
        marks["deadline"] = deadline
    if arguments.plot:
        plot_histogram(timing, arguments.plot, f"Time of {what}", marks)
    if arguments.json:
        print_json(data)
        return 0
    print(
        f"{data['calls']:,} times {what}: p50 {1e6 * timing.median:.2f} µs, p99 {1e6 * timing.p99:.2f}, "
        f"p99.9 {1e6 * timing.p999:.2f}, max {1e6 * timing.max:.2f}"
    )
    if arguments.sample_rate:
        print(
            f"at {arguments.sample_rate:g} frames a second: real-time factor {data['real_time_factor']:.4f}; "
            f"{missed:,} of {data['calls']:,} missed the deadline of {1e6 * deadline:,.0f} µs"
        )
    print(histogram(timing))
    return 0


def _step(model: Model, arguments: argparse.Namespace) -> tuple[Callable[[], Any], str, int]:
    """Return what is timed, what to call it, and how many frames of a stream it covers."""
    states = parse_states(arguments.state)
    stream, inputs = model.stream(arguments.batch, states), model.streaming_engine(states).inputs
    block = -(-arguments.block // stream.hop) * stream.hop
    if arguments.pool:
        pool = model.streams(arguments.pool, states)
        numbers = np.array([pool.open() for _ in range(arguments.pool)])
        frames = sample_frames(model.graph, inputs, pool.blank_frames(arguments.pool))
        return lambda: pool.step(numbers, frames), f"a step of {arguments.pool} streams", block
    if block == stream.hop:
        frame = sample_frames(model.graph, inputs, stream.blank_frame())
        return lambda: stream.step(frame), "a step", block
    chunk = sample_frames(model.graph, inputs, stream.blank_chunk(block))
    return lambda: stream.push(chunk), f"a block of {block} frames", block
