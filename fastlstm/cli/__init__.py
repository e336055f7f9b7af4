"""The command line: one module a verb, each with `configure(parser)` and `run(arguments) -> status`.

Data goes to stdout, messages to stderr. The exit status is 0 if what was asked holds, 1 if it does not, 2 if the
command or its input was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from fastlstm.errors import FastLSTMError

__all__ = ["main"]

VERBS = {
    "convert": "convert a model file to .fastlstm, verified against its own framework",
    "inspect": "show the layers of a model, and how they will run",
    "verify": "compare two models, or replay a .fastlstm file's golden samples",
    "run": "run a model on arrays from .npy, .npz or .csv files",
    "bench": "time a model: per call and per step, beside onnxruntime where it is installed",
    "doctor": "describe this machine and installation, for bug reports",
    "warmup": "compile kernels ahead of time",
    "demo": "convert, verify, stream and time a real model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from fastlstm import __version__

    parser = argparse.ArgumentParser("fastlstm", description="LSTM, GRU and RNN inference on CPUs.")
    parser.add_argument("--version", action="version", version=f"fastlstm {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = next((word for word in (sys.argv[1:] if argv is None else argv) if word in VERBS), None)
    for verb, purpose in VERBS.items():
        own = verbs.add_parser(verb, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if verb == chosen:  # only that one's module is imported
            importlib.import_module(f"fastlstm.cli.{verb}").configure(own)
    arguments = parser.parse_args(argv)
    return _guarded(arguments)


def _guarded(arguments: argparse.Namespace) -> int:
    """Run the verb; every error becomes a sentence on stderr."""
    try:
        status = importlib.import_module(f"fastlstm.cli.{arguments.verb}").run(arguments)
        sys.stdout.flush()
        return int(status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        message = "stopped"
    except MemoryError:
        message = "there is not enough memory for this"
    except (FastLSTMError, OSError) as error:
        message = str(error)
    except Exception as error:  # noqa: BLE001 (a bug: told as one, without a traceback unless asked for)
        message = (
            f"an error that should not happen: {type(error).__name__}: {error}. "
            "Please report it with the output of 'fastlstm doctor' and of this command run with FASTLSTM_TRACEBACK=1."
        )
    if os.environ.get("FASTLSTM_TRACEBACK"):
        traceback.print_exc()
    print(f"fastlstm {arguments.verb}: {message}", file=sys.stderr)
    return 2
