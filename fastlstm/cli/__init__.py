"""The command line: one module a verb, each with `configure(parser)` and `run(arguments) -> status`.

Data goes to stdout, messages to stderr. The exit status is 0 if what was asked holds, 1 if it does not, 2 if the
command or its input was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

from fastlstm.errors import FastLSTMError

__all__ = ["main"]

VERBS = {
    "convert": "convert a model file to .fastlstm and verify it against its own framework",
    "inspect": "show whether a model streams, its layers and how they run",
    "verify": "compare two models, or replay a .fastlstm file's golden samples",
    "run": "run a model on arrays from .npy, .npz or .csv files",
    "export": "turn a model into object files, a C header and tests, for any processor",
    "score": "score a data set (Parquet, CSV, .npz, an Arrow stream or recordings) into Parquet, each row once",
    "bench": "time a model per call and per step, next to its own framework if that is installed",
    "doctor": "describe this machine and installation, for bug reports",
    "warmup": "compile kernels ahead of time",
    "demo": "convert, verify, stream and time a real model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status. Every error becomes a sentence on stderr."""
    words = sys.argv[1:] if argv is None else list(argv)
    verb = next((word for word in words if word in VERBS), "")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "µ" gets "?" and not an error
    try:
        parser = _parser(verb)
        if not words:
            parser.print_help(sys.stderr)
            parser.exit(2)
        arguments = parser.parse_args(words)
        status = int(importlib.import_module(f"fastlstm.cli.{verb}").run(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (whatever it is, it is told in a sentence)
        if os.environ.get("FASTLSTM_TRACEBACK"):
            traceback.print_exc()
        print(f"fastlstm {verb}: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: BaseException) -> str:
    """Return what to tell the user about an error."""
    if isinstance(error, FastLSTMError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror}: '{error.filename}'" if error.filename else str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for this"
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return (
        f"an error that should not happen: {type(error).__name__}: {error}. Please report it with the output of "
        "'fastlstm doctor' and of this command run with FASTLSTM_TRACEBACK=1."
    )


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser of all verbs, with the arguments of the chosen one: only its module is imported."""
    from fastlstm import __version__

    parser = argparse.ArgumentParser(
        "fastlstm",
        description="LSTM, GRU and RNN inference on CPUs.",
        epilog="Exit status: 0 if what was asked holds, 1 if it does not, 2 if the command or its input is wrong.",
    )
    parser.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, purpose in VERBS.items():
        own = verbs.add_parser(verb, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if verb == chosen:
            importlib.import_module(f"fastlstm.cli.{verb}").configure(own)
    return parser
