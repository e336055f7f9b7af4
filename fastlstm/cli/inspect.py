"""``fastlstm inspect MODEL``."""

from __future__ import annotations

import argparse

from fastlstm.cli.common import add_layers_option, print_json, read_model, table
from fastlstm.model import Model


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a model file of any supported format")
    parser.add_argument("--plan", action="store_true", help="show each step, its kernel and its share of the work")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_layers_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print inputs, outputs and layers."""
    stored = read_model(arguments.model, arguments.layers)
    model = Model(stored.graph)
    rows = [row for row in model.plan.as_data() if row["kernel"] != "movement.move" or arguments.plan]
    graph = stored.graph
    parameters = sum(a.size for a in graph.constants.values() if a.dtype.kind == "f")
    if arguments.json:
        print_json(
            {
                "inputs": [str(spec) for spec in graph.inputs],
                "outputs": [str(spec) for spec in graph.outputs],
                "parameters": parameters,
                "notes": list(graph.notes),
                "plan": rows,
            }
        )
        return 0
    for spec in graph.inputs:
        print(f"input   {spec}")
    for spec in graph.outputs:
        print(f"output  {spec}")
    print(f"{parameters:,} parameters, {sum(a.nbytes for a in graph.constants.values()):,} bytes")
    for note in graph.notes:
        print(f"assumed: {note}")
    columns = ["step", "kernel", "macs", "bytes", "share"]
    print(table(rows, [*columns, "tile", "note"] if arguments.plan else columns))
    slow = sum(row["kernel"] == "NumPy" for row in rows)
    if slow:
        print(f"{slow} step(s) run through NumPy: correct, but not at a kernel's speed")
    return 0
