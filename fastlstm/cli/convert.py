"""``fastlstm convert SRC -o OUT``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm import __version__, fileformat
from fastlstm.cli.files import check_output, read_inputs, read_model
from fastlstm.cli.options import (
    above_zero,
    add_comparing_options,
    add_state_dict_options,
    parse_sizes,
    state_dict_options,
)
from fastlstm.cli.printing import print_json, table
from fastlstm.errors import InputError
from fastlstm.fileformat import GoldenSample
from fastlstm.graph import Graph
from fastlstm.model import Model
from fastlstm.precision import Metric, by_metric, cost, fastest_within
from fastlstm.quantise import PRECISIONS, precisions
from fastlstm.samples import sample_inputs
from fastlstm.verify import Verification, check_stored, verify_source

GOLDEN_BYTES = 4 << 20  # larger samples are compared, but not stored


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", help="a model file of any supported format")
    parser.add_argument("-o", "--output", required=True, help="the .fastlstm file to write")
    parser.add_argument("--no-verify", action="store_true", help="write it without comparing outputs")
    group = parser.add_argument_group("of narrow weights")
    group.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the weights (%(default)s)")
    group.add_argument(
        "--max-error", type=above_zero, metavar="E", help="pick each layer's precision so that no output is further off"
    )
    group.add_argument("--data", action="append", default=[], metavar="[NAME=]FILE", help="measure errors on this data")
    group.add_argument(
        "--metric", metavar="MODULE:FUNCTION", help="function(outputs, inputs) -> number: what it is in each precision"
    )
    add_comparing_options(parser)
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert, verify, write, and load what was written."""
    if Path(arguments.output).suffix != ".fastlstm":
        raise InputError(f"'{arguments.output}': expected an output file ending in .fastlstm.")
    check_output(arguments.output, [arguments.source])
    if arguments.data and arguments.precision == "float32" and arguments.max_error is None and not arguments.metric:
        raise InputError("--data goes with --precision, --max-error or --metric; --input compares on data of your own.")
    if arguments.metric and not arguments.data:
        raise InputError("--metric is measured on data of your own; give some with --data.")
    metric = _metric(arguments.metric) if arguments.metric else None
    stored = read_model(arguments.source, state_dict_options(arguments))
    model = Model(stored.graph)
    for note in model.graph.notes:
        print(f"assumed: {note}", file=sys.stderr)
    source = stored.source or fileformat.Source.of(arguments.source)
    report: dict[str, Any] = {"output": arguments.output, "verified": False}
    golden, holds, how = list(stored.golden), True, "not verified"
    if not arguments.no_verify:
        found = verify_source(
            arguments.source,
            stored.graph,
            model.run,
            sizes=parse_sizes(arguments.size),
            given=[read_inputs(arguments.input, stored.graph)] if arguments.input else [],
            atol=arguments.atol,
            rtol=arguments.rtol,
            trusted=arguments.trusted,
        )
        holds = found.holds
        golden = golden or [sample for sample in found.samples if _can_be_kept(sample)]
        report |= {**found.worst.as_data(), "expected_from": found.expected_from, "reason": found.reason or None}
        report["verified"] = holds and not found.reason
        how = "consistent with our own reference" if found.reason else "verified"
        _tell(found, arguments.json)
    graph = stored.graph
    if holds and (arguments.precision != "float32" or arguments.max_error is not None):
        graph, narrow_report = _narrow(arguments, stored.graph, golden)
        report |= narrow_report
        golden = [_replayed(sample, graph) for sample in golden]
    if holds and metric:
        report["metric"] = _measured(arguments, stored.graph, metric)
    size = 0
    if holds:
        fileformat.write(arguments.output, graph, golden, source, check=partial(_check, arguments))
        size = Path(arguments.output).stat().st_size
    if arguments.json:
        report |= {"golden_samples": len(golden) if holds else 0, "file_bytes": size}
        print_json({**report, "notes": list(stored.graph.notes)})
    if not holds:
        print(f"the outputs differ by more than allowed; {arguments.output} was not written", file=sys.stderr)
        return 1
    print(f"{arguments.output}: written, {how}, with {len(golden)} golden samples, {size:,} bytes", file=sys.stderr)
    return 0


def _tell(found: Verification, as_json: bool) -> None:
    if not as_json:
        print(f"compared with {found.expected_from} on {len(found.samples)} inputs")
        print(found.worst)
    if found.reason:
        print(f"not compared with the source's own framework: {found.reason}", file=sys.stderr)


def _narrow(
    arguments: argparse.Namespace, graph: Graph, golden: Sequence[GoldenSample]
) -> tuple[Graph, dict[str, Any]]:
    """Return the graph with narrow weights, and what they cost and gain."""
    samples = [sample.inputs for sample in golden]
    if arguments.data:
        samples.append(read_inputs(arguments.data, graph))
    samples = samples or [sample_inputs(graph, parse_sizes(arguments.size))]
    precision: str | dict[str, str] = arguments.precision
    if arguments.max_error is not None:
        precision = fastest_within(graph, samples, arguments.max_error)
    model = Model(graph, precision=precision)
    found = cost(Model(graph), model, samples)
    # What was asked of a layer that stays wider is not what it has.
    narrow = precisions(model.graph)
    picked = {layer: narrow.get(layer, "float32") for layer in (precision if isinstance(precision, dict) else narrow)}
    sizes = {"bytes": _weight_bytes(model.graph), "float32_bytes": _weight_bytes(graph)}
    notes = [note for note in model.graph.notes if note not in graph.notes]
    if not arguments.json:
        for layer, chosen in picked.items():
            print(f"{layer}: {chosen}")
        print(found)
        print(f"weights: {sizes['bytes']:,} bytes, {sizes['float32_bytes']:,} in float32")
        for note in notes:
            print(note)
    return model.graph, {"precision": {"layers": picked, **found.as_data(), **sizes, "notes": notes}}


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


def _measured(arguments: argparse.Namespace, graph: Graph, metric: Metric) -> dict[str, float]:
    """Return the metric in each precision, and print it."""
    found = by_metric(graph, [read_inputs(arguments.data, graph)], metric)
    if not arguments.json:
        rows = [
            {"precision": name, arguments.metric: value, "beside float32": value - found["float32"]}
            for name, value in found.items()
        ]
        print(table(rows, list(rows[0])))
    return found


def _weight_bytes(graph: Graph) -> int:
    """Return the bytes of a graph's constants."""
    return sum(array.nbytes for array in graph.constants.values())


def _replayed(sample: GoldenSample, graph: Graph) -> GoldenSample:
    """Return the sample with the narrow model's own outputs: float32's are further off than a replay may be."""
    return GoldenSample(sample.inputs, Model(graph).run(sample.inputs), f"fastlstm {__version__}, narrow weights")


def _can_be_kept(sample: GoldenSample) -> bool:
    """Whether a sample is small enough for the file, and holds arrays only: sequences are compared, not stored."""
    arrays = [*sample.inputs.values(), *sample.outputs.values()]
    return all(isinstance(a, np.ndarray) for a in arrays) and sum(a.nbytes for a in arrays) <= GOLDEN_BYTES


def _check(arguments: argparse.Namespace, stored: fileformat.StoredModel) -> None:
    """Load what was written; replay its samples too, unless outputs are not to be compared."""
    compared = () if arguments.no_verify else stored.golden
    check_stored(replace(stored, golden=compared), Model(stored.graph).run, arguments.atol, arguments.rtol)
