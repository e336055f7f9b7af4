"""``fastlstm doctor``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastlstm import __version__
from fastlstm.cli.printing import print_json
from fastlstm.kernels.cache import cache_folder
from fastlstm.kernels.compiler import packed
from fastlstm.reporting.tables import table
from fastlstm.target import machine

PACKAGES = (
    "numba",
    "llvmlite",
    "numpy",
    "safetensors",
    "onnx",
    "onnxruntime",
    "torch",
    "keras",
    "openvino",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument(
        "--report", type=Path, nargs="?", const=Path("fastlstm-report.json"), metavar="FILE",
        help="also run and time models whose results are known to the last bit, and write a file to send (%(const)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print the machine and the installation; return 1 if a model's bits are not those that they should be."""
    data = {**_machine(), **_cache()}
    if arguments.report is None:
        print_json(data) if arguments.json else _print(data)
        return 0
    from fastlstm.conformance.report import measured

    rows = measured()
    report = {**_machine(), "models": rows}
    arguments.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print_json(report)
    else:
        _print(data)
        print(table(rows, list(rows[0])))
        print(f"{arguments.report} says all that, without names of folders or users.")
    return int(not all(row["the same bits"] for row in rows))


def _print(data: dict[str, Any]) -> None:
    for key, value in data.items():
        print(f"{key:<18} {value}")


def _machine() -> dict[str, Any]:
    target = machine.detect()
    return {
        "fastlstm": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": machine.processor_name() or "not told",
        "cores": machine.cores(),
        "instruction set": target.isa,
        **{k: v for k, v in dataclasses.asdict(target).items() if k != "features"},
        "features": " ".join(target.features),
        "prebuilt kernels": packed(target),
        **{name: _version(name) for name in PACKAGES},
    }


def _cache() -> dict[str, Any]:
    folder = cache_folder()
    kept = [] if folder is None else [path.stat().st_size for path in folder.glob("*/*.kernel")]
    return {
        "kernel cache": str(folder or "none: this user has no home folder"),
        "kernels kept": f"{len(kept)} ({sum(kept):,} bytes)",
        "cache is writable": folder is not None and os.access(folder if folder.exists() else folder.parent, os.W_OK),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
