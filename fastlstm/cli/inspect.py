"""``fastlstm inspect MODEL``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fastlstm.cli.files import check_output
from fastlstm.cli.options import (
    above_zero,
    add_precision_option,
    add_state_dict_options,
    add_state_option,
    add_value_option,
    from_one,
    parse_sizes,
    parse_states,
    parse_values,
    state_dict_options,
)
from fastlstm.cli.printing import print_json, show
from fastlstm.commands.subject import read_model
from fastlstm.errors import InputError, UnsupportedError, counted
from fastlstm.files.fileformat import StoredModel
from fastlstm.graph import Graph
from fastlstm.lowering import explain
from fastlstm.lowering.plan import REFERENCE_KERNEL, Plan
from fastlstm.lowering.summary import bytes_of, parameters_of, summarise
from fastlstm.model import Model
from fastlstm.reporting.tables import table
from fastlstm.runtime.segment import Segment
from fastlstm.streaming.pairs import state_pairs
from fastlstm.streaming.ports import frames_text
from fastlstm.verification.fixing import values_of
from fastlstm.verification.samples import sample_inputs


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a model file of any supported format")
    parser.add_argument("--plan", action="store_true", help="show each step, its kernel and its share of the work")
    parser.add_argument("--batch", type=from_one, default=1, help="batch size to show the plan for (%(default)s)")
    parser.add_argument("--threads", type=from_one, default=1, help="threads that the plan may use (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="measure how long each layer takes, on one thread")
    parser.add_argument("--steps", type=from_one, default=100, help="with --profile: time steps (%(default)s)")
    parser.add_argument(
        "--size", action="append", default=[], metavar="DIM=N", help="with --profile: size of an open dimension"
    )
    add_value_option(parser)
    add_state_option(parser)
    add_precision_option(parser)
    parser.add_argument(
        "--seconds", type=above_zero, default=1.0, help="with --profile: how long to measure (%(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE", help="with --profile: draw the profile (.svg)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print inputs, outputs and layers, or the plan."""
    if arguments.plot:
        if not arguments.profile:
            raise InputError("--plot draws what --profile measures.")
        check_output(arguments.plot, [arguments.model])
    stored = read_model(arguments.model, state_dict_options(arguments))
    model = Model(stored.graph, arguments.threads, arguments.precision)
    if arguments.profile:
        return _profile(model, arguments)
    plan, stream = model.plan, _stream(model, parse_states(arguments.state))
    layers = [layer.as_data() for layer in summarise(plan)]
    overview = _overview(stored, model)
    if arguments.json:
        rows = plan.as_data(arguments.batch)
        print_json(
            {
                **overview,
                "loops": _loops(plan),
                "stream": stream,
                "layers": layers,
                **({"plan": rows} if arguments.plan else {}),
            }
        )
        return 0
    for key, value in {"stream": _stream_lines(stream), **overview}.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{key:<10}  {line:,}" if isinstance(line, int) else f"{key:<10}  {line}")
    print()
    if arguments.plan:
        rows = plan.as_data(arguments.batch)
        print(
            table(
                [{**row, "layer": row["name"]} for row in rows],
                ["layer", "step", "kernel", "macs", "bytes", "share", "bound", "tile", "note"],
            )
        )
        print(f"\n{plan.target.isa}, vectors of {plan.target.lanes}; {counted(arguments.batch, 'row')} of a batch:")
        for part in plan.parts:
            if isinstance(part, Segment):
                print(f"  {', '.join(part.names)}: {explain.division(part, arguments.batch)}")
    else:
        rows = layers
        print(table(rows, ["layer", "op", "shape", "parameters", "bytes", "macs", "kernel"]))
    if slow := sum(row["kernel"] == "NumPy" for row in rows):
        print(f"\n{slow} of {len(rows)} run through NumPy: correct, but not at a kernel's speed.")
    if referred := sorted({row["op"] for row in layers if row["kernel"] == REFERENCE_KERNEL}):
        print(f"Runs through ONNX's reference implementation (slow; needs the package onnx): {', '.join(referred)}.")
    for loop in _loops(plan):
        print(
            f"The loop '{loop}' is none of the recurrent cells that are recognised: its body is compiled and runs "
            "round by round, as it is written, which is slower than a recurrent layer."
        )
    return 0


def _profile(model: Model, arguments: argparse.Namespace) -> int:
    """Measure what each layer takes, print it, and draw it if that is asked for."""
    sizes = parse_sizes(arguments.size)
    inputs = sample_inputs(model.graph, sizes, batch=arguments.batch, time=arguments.steps)
    inputs |= values_of(model.graph, sizes, parse_values(arguments.input))
    found = model.profile(inputs, arguments.seconds)
    show(found, arguments)
    return 0


def _stream(model: Model, states: Mapping[str, str] | None) -> dict[str, Any]:
    """Return how a stream of the model goes on, or why there is none."""
    try:
        engine = model.streaming_engine(states)
    except UnsupportedError as error:
        return {"refused": str(error)}
    pairs = {given: shown for given, shown in state_pairs(model.plan.graph, states).items() if shown}
    return {
        "hop": engine.hop, "delay": engine.delay, "rows": engine.rows, "reasons": list(engine.reasons),
        "frame": frames_text(engine.inputs, 1), "output": frames_text(engine.outputs, 1), "states": pairs,
    }  # fmt: skip


def _stream_lines(stream: Mapping[str, Any]) -> list[str]:
    """Return what to print of a stream: its frames, hop and delay, where these come from, and the states."""
    if "refused" in stream:
        return [stream["refused"]]
    lines = [f"{stream['frame']} -> {stream['output']}"]
    if (stream["hop"], stream["delay"], set(stream["rows"].values())) == (1, 0, {1}):
        lines = [f"yes, one frame a step, no delay: {lines[0]}"]
    else:
        rows = ", ".join(f"{count} of '{name}'" for name, count in stream["rows"].items())
        lines = [
            f"yes, a frame is {lines[0]}",
            f"hop of {counted(stream['hop'], 'frame')}, giving {rows}; delay of {stream['delay']}",
            *stream["reasons"],
        ]
    return [*lines, *(f"the state '{given}' goes on as '{after}'" for given, after in stream["states"].items())]


def _loops(plan: Plan) -> list[str]:
    """Return the names of the loops that run as they are written, those in bodies too."""

    def inside(graph: Graph) -> list[str]:
        found = []
        for node in graph.nodes:
            if node.op in ("Loop", "Scan"):
                found.append(node.name or next(filter(None, node.outputs), ""))
            found += [name for value in node.attrs.values() if isinstance(value, Graph) for name in inside(value)]
        return found

    return inside(plan.graph)


def _overview(stored: StoredModel, model: Model) -> dict[str, str | int | list[str]]:
    overview: dict[str, str | int | list[str]] = {
        "input": [str(spec) for spec in stored.graph.inputs],
        "output": [str(spec) for spec in stored.graph.outputs],
        "assumed": list(model.notes),
        "parameters": parameters_of(model.graph),
        "bytes": bytes_of(model.graph),
    }
    if stored.source is not None:
        overview["source"] = f"{stored.source.name}, SHA-256 {stored.source.sha256}"
    if stored.golden:
        overview["golden"] = f"{len(stored.golden)} samples, outputs of {stored.golden[0].origin or 'unknown origin'}"
    return overview
