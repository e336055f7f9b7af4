"""Options that several verbs share, and what their words may be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from fastlstm.errors import InputError
from fastlstm.graph.quantise import PRECISIONS
from fastlstm.verification.comparison import ATOL, RTOL

__all__ = [
    "above_zero",
    "add_comparing_options",
    "add_precision_option",
    "add_state_dict_options",
    "add_state_option",
    "add_value_option",
    "from_one",
    "parse_sizes",
    "parse_states",
    "parse_values",
    "state_dict_options",
]


def add_state_dict_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a state dict does not."""
    group = parser.add_argument_group("PyTorch state dicts and TorchScript archives")
    group.add_argument("--layers", help='the layers in order, such as "lstm | last | relu | linear"')
    group.add_argument(
        "--batch-first",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether inputs are [batch, time, features] or [time, batch, features]",
    )
    group.add_argument("--prefix", help='use only the tensors whose names begin with it, such as "model."')
    group.add_argument(
        "--shapes", help='shapes of a TorchScript archive\'s inputs, such as "x: float32[batch, time, 40]"'
    )


def state_dict_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_state_dict_options` that were given."""
    names = ("layers", "batch_first", "prefix", "shapes")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def add_comparing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that compares outputs."""
    parser.add_argument("--input", action="append", default=[], metavar="[NAME=]FILE", help="compare on this data")
    parser.add_argument("--size", action="append", default=[], metavar="DIM=N", help="size of an open dimension")
    parser.add_argument("--atol", type=_tolerance, default=ATOL, help="absolute tolerance (%(default)s)")
    parser.add_argument("--rtol", type=_tolerance, default=RTOL, help="relative tolerance (%(default)s)")
    add_trusted_option(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def add_trusted_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets a framework run code from a model file."""
    parser.add_argument(
        "--trusted", action="store_true", help="let PyTorch itself load the source, which can run code from it"
    )


def add_precision_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option that chooses the precision of the weights."""
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="precision of the weights (%(default)s)"
    )


def parse_sizes(arguments: Sequence[str]) -> dict[str, int]:
    """Return the sizes of open dimensions from ``DIM=N`` arguments."""
    sizes = {}
    for argument in arguments:
        name, _, size = argument.rpartition("=")
        if not (name and size.isascii() and size.isdigit() and int(size) > 0):
            raise InputError(f"--size takes a dimension and a positive integer, as in batch=4; got '{argument}'.")
        sizes[name] = int(size)
    return sizes


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that pairs state inputs with outputs by hand."""
    parser.add_argument(
        "--state", action="append", default=[], metavar="IN=OUT", help="a state's input and the output that returns it"
    )


def parse_states(arguments: Sequence[str]) -> dict[str, str] | None:
    """Return the pairs of ``IN=OUT`` arguments, None if there are none."""
    pairs = {}
    for pair in arguments:
        name, separator, shown = pair.rpartition("=")
        if not (name and separator and shown):
            raise InputError(f"--state takes an input and an output, as in h_in=h_out; got '{pair}'.")
        pairs[name] = shown
    return pairs or None


def add_value_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that fixes inputs."""
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE",
        help="value of an input that is the same in every call, such as a sample rate",
    )  # fmt: skip


def parse_values(arguments: Sequence[str]) -> dict[str, float]:
    """Return the values of inputs from ``NAME=VALUE`` arguments."""
    values: dict[str, float] = {}
    for pair in arguments:
        name, _, text = pair.rpartition("=")
        try:
            values[name] = int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--input takes an input and a number, as in sr=16000; got '{pair}'.")
    return values


def from_one(text: str) -> int:
    """Read an argument that is a positive integer."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a positive integer; got '{text}'")
    return int(text)


def above_zero(text: str) -> float:
    """Read an argument that is a number above zero."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0; got '{text}'")
    return number


def _tolerance(text: str) -> float:
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number that is not negative; got '{text}'")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
