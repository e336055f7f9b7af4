"""``fastlstm export MODEL -o FOLDER``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastlstm
from fastlstm.cli.options import (
    add_state_dict_options,
    add_state_option,
    add_value_option,
    from_one,
    parse_sizes,
    parse_states,
    parse_values,
    state_dict_options,
)
from fastlstm.cli.printing import print_json
from fastlstm.commands.subject import read_model
from fastlstm.errors import InputError
from fastlstm.export.folder import export, target_named
from fastlstm.export.names import name_of
from fastlstm.export.routes import TESTED
from fastlstm.graph.quantise import PRECISIONS
from fastlstm.reporting.tables import table
from fastlstm.target import TARGETS, Target


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", nargs="?", help="a model file of any supported format")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="the folder to create")
    parser.add_argument("--target", action="append", default=[], metavar="T", help="a target's name (x86-64-v3)")
    parser.add_argument("--list-targets", action="store_true", help="list the named targets")
    parser.add_argument("--name", help="prefix of C names and files")
    parser.add_argument("--batch", type=from_one, default=1, metavar="B", help="rows per call (1)")
    parser.add_argument("--precision", choices=PRECISIONS, help="precision of the weights (the model's own)")
    parser.add_argument(
        "--size", action="append", default=[], metavar="DIM=N",
        help="size of an open dimension: the model takes whole sequences, or with --state chunks, of this size",
    )  # fmt: skip
    add_value_option(parser)
    parser.add_argument("--whole", action="store_true", help="take whole sequences, even if the model could stream")
    add_state_option(parser)
    parser.add_argument(
        "--weights", choices=("inside", "apart"), default="inside", help="apart: put weights into separate files"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    group = parser.add_argument_group("targets without a name")
    group.add_argument("--triple", help="LLVM's name of architecture and system, such as riscv64-unknown-linux-gnu")
    group.add_argument("--cpu", help="LLVM's name of the processor")
    group.add_argument("--features", help="LLVM's feature names with their signs, such as +m,+a,+f")
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was made."""
    if arguments.list_targets:
        _list(arguments.json)
        return 0
    if not arguments.model or not arguments.output:
        raise InputError("export takes a model and a folder: fastlstm export MODEL -o FOLDER.")
    stored = read_model(arguments.model, state_dict_options(arguments))
    for note in stored.graph.notes:
        print(f"assumed: {note}", file=sys.stderr)
    content = export(
        fastlstm.Model(stored.graph),
        arguments.output,
        _targets(arguments),
        arguments.name or name_of(Path(arguments.model).stem),
        batch=arguments.batch,
        precision=arguments.precision,
        sizes=parse_sizes(arguments.size),
        inputs=parse_values(arguments.input),
        state=parse_states(arguments.state),
        whole=arguments.whole,
        weights=arguments.weights,
    )
    if arguments.json:
        print_json(content)
    else:
        print(table(list(_rows(content)), ("target", "file", "code", "weights", "state", "stack", "bits", "lacks")))
        for note in content["notes"]:
            print(note, file=sys.stderr)
    print(f"{arguments.output}: written; fastlstm verify {arguments.output} replays its samples", file=sys.stderr)
    return 0


def _targets(arguments: argparse.Namespace) -> list[Target]:
    """Return the targets that were asked for; one without a name has the plainest plan of all."""
    found = [target_named(name) for name in arguments.target]
    if arguments.triple:
        features = tuple(part for part in (arguments.features or "").split(",") if part)
        found.append(_plain(arguments.triple, arguments.cpu or "generic", features))
    elif arguments.cpu or arguments.features:
        raise InputError("--cpu and --features go with --triple; --target names a whole target.")
    return found or [TARGETS["x86-64-v3"]]


def _plain(triple: str, cpu: str, features: tuple[str, ...]) -> Target:
    """Return a target of which only LLVM's names are known: no vectors, no fused multiply-add."""
    like = next((t for t in TARGETS.values() if t.triple == triple), None)
    abi = like.abi if like else ""
    plain = Target(triple, triple, cpu, features, lanes=1, registers=16, fma=False, max_sums=4, abi=abi)
    return replace(plain, name=f"{triple.split('-')[0]}-{cpu}")


def _rows(content: dict[str, Any]) -> Any:
    for name, entry in content["targets"].items():
        sizes = {what: entry["bytes"][what] for what in ("code", "weights", "state", "stack")}
        lacks = ", ".join(entry["undefined"]) or "nothing"
        yield {"target": name, "file": entry["file"], **sizes, "bits": entry["bits"], "lacks": lacks}


def _list(as_json: bool) -> None:
    rows = [
        {
            "name": name,
            "triple": target.triple,
            "bits": "same" if target.fma else "tolerance",
            "tested": TESTED.get(name, "emitted, not run"),
        }
        for name, target in TARGETS.items()
    ]
    if as_json:
        print_json(rows)
    else:
        print(table(rows, ("name", "triple", "bits", "tested")))
