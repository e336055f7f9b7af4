"""``fastlstm score MODEL DATA -o FOLDER``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
from typing import Any

import fastlstm
from fastlstm.cli.options import add_state_dict_options, add_state_option, from_one, parse_states, state_dict_options
from fastlstm.cli.printing import print_json
from fastlstm.commands.subject import read_model
from fastlstm.errors import InputError, counted
from fastlstm.model import Model

TERMINAL_SECONDS, LOG_SECONDS = 1.0, 60.0
"""How often a run says how far it is."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("model", help="a model file of any supported format")
    parser.add_argument(
        "data", nargs="+", help=".parquet or .csv files or folders of them, a .npz file, - for an Arrow stream on stdin"
    )
    parser.add_argument(
        "-o", "--out", required=True, metavar="FOLDER", help="a folder or URL that parts are written to"
    )
    parser.add_argument(
        "--column", action="append", default=[], metavar="INPUT=COLUMN[,...]", help="the column of an input"
    )
    parser.add_argument(
        "--constant", action="append", default=[], metavar="INPUT=VALUE", help="one value for all rows (JSON)"
    )
    parser.add_argument("--output", action="append", metavar="NAME[=COLUMN]", help="an output to compute (all)")
    parser.add_argument(
        "--keep", action="append", metavar="COLUMN[,...]", help="other columns to keep (all); '' for none"
    )
    parser.add_argument("--max-length", type=from_one, metavar="STEPS", help="longer sequences are not scored")
    parser.add_argument(
        "--on-error",
        choices=["aside", "stop"],
        default="aside",
        help="rows that cannot be scored go to FOLDER/_rejected with the reason, or stop the run (%(default)s)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="insist that there is a run to resume, or that there is none (default: resume if there is)",
    )
    parser.add_argument("--part-rows", type=from_one, help="input rows per part")
    parser.add_argument("--precision", default="float32", help="float32, int16 or int8 (%(default)s)")
    parser.add_argument("--workers", type=from_one, help="threads, or actors on Ray (one per core)")
    parser.add_argument(
        "--memory", type=_bytes, metavar="BYTES", help="memory to use besides the model, such as 512M (1G)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help='score on a Ray cluster: "auto", "local", "ray://..."')
    parser.add_argument("--stream", action="store_true", help="data are .wav or .npy recordings, fed in pieces")
    parser.add_argument("--streams", type=from_one, help="with --stream: recordings that a worker advances together")
    parser.add_argument(
        "--frame",
        type=from_one,
        metavar="SAMPLES",
        help="with --stream: samples per frame, if the model leaves it open",
    )
    parser.add_argument(
        "--overlap",
        type=from_one,
        metavar="SAMPLES",
        help="with --stream: how many samples a frame shares with the one before",
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    add_state_option(parser)
    add_state_dict_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score; the status is 1 if rows had to be left out."""
    columns = {name: value.split(",") for name, value in map(_pair, arguments.column)}
    options: dict[str, Any] = {
        "constants": {name: _value(name, text) for name, text in map(_pair, arguments.constant)},
        "on_error": arguments.on_error,
        "resume": arguments.resume,
        "workers": arguments.workers,
    }
    if arguments.stream:
        _check_stream(arguments, columns)
        options |= {"stream": True, "column": next(iter(columns), None)}
        options |= {"state": parse_states(arguments.state)}
        given = {name: getattr(arguments, name) for name in ("streams", "frame", "overlap")}
        options |= {name: value for name, value in given.items() if value}
    else:
        for flag in ("streams", "frame", "overlap", "state"):
            if getattr(arguments, flag):
                raise InputError(f"--{flag} is for recordings; it goes with --stream.")
        options |= _row_options(arguments, columns)
    model = Model(read_model(arguments.model, state_dict_options(arguments)).graph, 1, arguments.precision)
    data = arguments.data[0] if len(arguments.data) == 1 else arguments.data
    with Reporter() as reporter:
        summary = fastlstm.score(model, data, arguments.out, watch=reporter.watch, **options)
    what = "frames" if arguments.stream else "rows"
    if arguments.json:
        print_json(summary.as_data())
    else:
        print(
            f"{summary.out}: {summary.rows:,} {what}, {summary.scored_now:,} of them now, in {summary.seconds:.1f} s "
            f"({summary.rows_per_second:,.0f} {what}/s)",
            file=sys.stderr,
        )
    if summary.rejected:
        rejected = counted(summary.rejected, "recording" if arguments.stream else "row")
        print(f"{rejected} could not be scored: see {summary.out}/_rejected", file=sys.stderr)
    return int(summary.rejected > 0)


def _check_stream(arguments: argparse.Namespace, columns: dict[str, list[str]]) -> None:
    given = {
        "--output": arguments.output,
        "--keep": arguments.keep,
        "--max-length": arguments.max_length,
        "--part-rows": arguments.part_rows,
        "--memory": arguments.memory,
        "--ray": arguments.ray,
    }
    if useless := [flag for flag, value in given.items() if value is not None]:
        raise InputError(f"{useless[0]} has no meaning with --stream, which feeds recordings in pieces.")
    if len(columns) > 1:
        raise InputError("--stream feeds one input; give the others one value each with --constant.")


def _row_options(arguments: argparse.Namespace, columns: dict[str, list[str]]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "columns": columns,
        "max_length": arguments.max_length,
        "part_rows": arguments.part_rows,
        "ray": arguments.ray,
    }
    if arguments.keep is not None:
        options["keep"] = [name for words in arguments.keep for name in words.split(",") if name]
    if arguments.output is not None:
        pairs = [text.partition("=") for text in arguments.output]
        options["outputs"] = {name: column or name for name, _, column in pairs}
    if arguments.memory is not None:
        options["memory"] = arguments.memory
    return options


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise InputError(f"Expected INPUT=VALUE; got '{text}'.")
    return name, value


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"--constant {name} takes a number or a JSON list of numbers; got '{text}'.") from None


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?", text, re.IGNORECASE | re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected bytes such as 512M or 2GiB; got '{text}'")
    return size


class Reporter:
    """Says how far the run is, in one line of a terminal or in lines of a log."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._finished = threading.Event()
        self._terminal = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def watch(self, progress: Any) -> None:
        """Follow a run."""
        self._progress = progress

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._thread.join()

    def _show(self) -> None:
        shown = 0
        while not self._finished.wait(TERMINAL_SECONDS if self._terminal else LOG_SECONDS):
            if self._progress is None:
                continue
            text = str(self._progress)
            if self._terminal:
                print(f"\r{text.ljust(shown)}", end="", file=sys.stderr, flush=True)
                shown = max(shown, len(text))
            else:
                print(text, file=sys.stderr, flush=True)
        if shown:
            print(file=sys.stderr)
