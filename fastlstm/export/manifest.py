"""The manifest of an exported model, ``N.json``: what the folder contains, and its properties."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastlstm.export.golden import Golden
from fastlstm.export.interface import VERSION, Interface, Port
from fastlstm.export.module import Module
from fastlstm.export.objects import read_object
from fastlstm.kernels.compiler import made_with
from fastlstm.target import Target
from fastlstm.version import __version__

__all__ = ["manifest", "sha256", "target_entry", "text"]

FORMAT = "fastlstm export"


def sha256(content: bytes) -> str:
    """Return the hash of a file's contents."""
    return hashlib.sha256(content).hexdigest()


def manifest(
    interface: Interface,
    targets: Mapping[str, Any],
    golden: Golden,
    sizes: tuple[int, int],
    macs: int,
    precision: str | Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the manifest without its list of files; `sizes` are the state struct's size and alignment."""
    streams: dict[str, Any] = {"streams": interface.streams}
    if interface.streams:
        streams |= {"hop": interface.hop, "delay": interface.delay, "tail": interface.tail}
    return {
        "format": FORMAT,
        "version": 1,
        "interface": VERSION,
        "name": interface.name,
        "model_hash": interface.model_hash,
        "made_with": {"fastlstm": __version__, **made_with()},
        **streams,
        "batch": interface.batch,
        "precision": precision,
        "weights_apart": interface.apart,
        "state_bytes": sizes[0],
        "state_align": sizes[1],
        "state": [{"name": name, "shape": list(shape)} for name, shape in interface.states],
        "inputs": [_port(port) for port in interface.inputs],
        "outputs": [_port(port) for port in interface.outputs],
        "tolerance": golden.tolerance,
        "golden": {"steps": golden.steps, "values": sum(int(a.size) for a in golden.outputs.values())},
        "macs_per_step": macs,
        "targets": dict(targets),
        "notes": list(notes),
    }


def _port(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "parameter": port.parameter,
        "type": port.c_type,
        "shape": list(port.shape),
        "elements": port.elements,
        "frames": port.frames,
        "moves": port.moves,
    }


def target_entry(module: Module, file: str) -> dict[str, Any]:
    """Return the manifest's entry for one target."""
    found, target = read_object(module.code), module.target
    return {
        "file": file,
        "format": found.kind,
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "abi": target.abi,
        "bits": "same" if target.fma else "tolerance",
        "sha256": sha256(module.code),
        "bytes": {
            "object": len(module.code),
            "code": found.code,
            "weights": module.weight_bytes,
            "constants": found.data,
            "state": module.state_bytes,
            "stack": module.stack_bytes,
        },
        "undefined": list(found.undefined),
        "denormals": "zero" if flushes(target) else "kept",
        "replayed": None,
    }


def flushes(target: Target) -> bool:
    """Whether denormals are flushed to zero, as in the engine."""
    from fastlstm.kernels.primitives import flushes_denormals

    return flushes_denormals(target.architecture)


def text(content: Mapping[str, Any]) -> bytes:
    """Return the manifest as a file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
