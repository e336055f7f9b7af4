"""``fastlstm convert SRC -o OUT``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fastlstm import fileformat
from fastlstm.cli.common import (
    add_comparing_options,
    add_state_dict_options,
    parse_sizes,
    print_json,
    read_inputs,
    read_model,
    state_dict_options,
)
from fastlstm.errors import InputError
from fastlstm.fileformat import GoldenSample
from fastlstm.model import Model
from fastlstm.verify import Verification, verify_source

GOLDEN_BYTES = 4 << 20  # larger samples are compared, but not stored


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", help="a model file of any supported format")
    parser.add_argument("-o", "--output", required=True, help="the .fastlstm file to write")
    parser.add_argument("--no-verify", action="store_true", help="write it without comparing outputs")
    add_comparing_options(parser)
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert, verify, write."""
    if Path(arguments.output).suffix != ".fastlstm":
        raise InputError(f"'{arguments.output}': expected an output file ending in .fastlstm.")
    stored = read_model(arguments.source, state_dict_options(arguments))
    for note in stored.graph.notes:
        print(f"assumed: {note}", file=sys.stderr)
    model = Model(stored.graph)
    source = stored.source or fileformat.Source.of(arguments.source)
    report: dict[str, Any] = {"output": arguments.output, "verified": not arguments.no_verify}
    golden, holds = list(stored.golden), True
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
        golden = golden or [sample for sample in found.samples if _bytes(sample) <= GOLDEN_BYTES]
        report |= {**found.worst.as_data(), "expected_from": found.expected_from, "reason": found.reason or None}
        _tell(found, arguments.json)
    if arguments.json:
        print_json({**report, "golden_samples": len(golden) if holds else 0, "notes": list(stored.graph.notes)})
    if not holds:
        print(f"the outputs differ by more than allowed; {arguments.output} was not written", file=sys.stderr)
        return 1
    fileformat.write(arguments.output, stored.graph, golden, source)
    how = "not verified" if arguments.no_verify else "verified"
    print(f"{arguments.output}: written, {how}, with {len(golden)} golden samples", file=sys.stderr)
    return 0


def _tell(found: Verification, as_json: bool) -> None:
    if not as_json:
        print(f"compared with {found.expected_from} on {len(found.samples)} inputs")
        print(found.worst)
    if found.reason:
        print(f"not compared with the source's own framework: {found.reason}", file=sys.stderr)


def _bytes(sample: GoldenSample) -> int:
    return sum(array.nbytes for arrays in (sample.inputs, sample.outputs) for array in arrays.values())
