"""``fastlstm doctor``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastlstm import __version__, machine
from fastlstm.cli.printing import print_json
from fastlstm.kernels.cache import cache_folder

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


def run(arguments: argparse.Namespace) -> int:
    """Print the machine and the installation."""
    target = machine.detect()
    folder = cache_folder()
    kept = [] if folder is None else [path.stat().st_size for path in folder.glob("*/*.kernel")]
    data: dict[str, Any] = {
        "fastlstm": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "instruction set": target.isa,
        **{k: v for k, v in dataclasses.asdict(target).items() if k != "features"},
        "features": " ".join(target.features),
        "kernel cache": str(folder or "none: this user has no home folder"),
        "kernels kept": f"{len(kept)} ({sum(kept):,} bytes)",
        "cache is writable": folder is not None and os.access(folder if folder.exists() else folder.parent, os.W_OK),
        **{name: _version(name) for name in PACKAGES},
    }
    if arguments.json:
        print_json(data)
    else:
        for key, value in data.items():
            print(f"{key:<18} {value}")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Return the processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
