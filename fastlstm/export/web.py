"""The files around a WebAssembly model: an ES module with its types, a test with golden samples, a demo page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.export.golden import Golden
from fastlstm.typing import Array

__all__ = ["files", "modules"]

PAGE = Path(__file__).parent / "page"


def files(manifest: Mapping[str, Any], wasm: Mapping[str, bytes], golden: Golden) -> dict[str, bytes]:
    """Return the files of an export for JavaScript, by name.

    Parameters
    ----------
    manifest : mapping
        As made by `fastlstm.export.manifest`.
    wasm : mapping
        The linked module of each target.
    golden : Golden
        The samples that N_test.c replays.
    """
    name, named = manifest["name"], modules(manifest["name"], wasm)
    model = _json(_model(manifest, named))
    encoded = {parameter: base64.b64encode(data).decode("ascii") for parameter, data in _samples(golden).items()}
    package = {"name": name.lower(), "type": "module", "main": f"{name}.js", "types": f"{name}.d.ts", "private": True}
    texts = {
        f"{name}.js": _read("model.js", name).replace("MODEL = null", f"MODEL = {model}"),
        f"{name}.d.ts": _types(manifest),
        f"{name}_test.mjs": _read("test.mjs", name).replace("SAMPLES = null", f"SAMPLES = {_json(encoded)}"),
        "index.html": _read("index.html", name),
        "package.json": _json(package) + "\n",
    }
    found = {named[target]: data for target, data in wasm.items()}
    return {**found, **{file: text.encode("utf-8") for file, text in texts.items()}}


def modules(name: str, targets: Mapping[str, object]) -> dict[str, str]:
    """Return the file name of each target's module: NAME.wasm, and NAME-simd.wasm if there are both."""
    return {t: f"{name}-simd.wasm" if t.endswith("simd") and len(targets) > 1 else f"{name}.wasm" for t in targets}


def _samples(golden: Golden) -> dict[str, bytes]:
    """Return the samples in little-endian order, by parameter: "x0", ... and "y0", ... including finish()'s frames."""
    arrays = {**golden.inputs, **golden.outputs}
    tail = golden.tails.get(golden.steps, {})
    whole = {name: [array, *([tail[name]] if name in tail else [])] for name, array in arrays.items()}
    return {name: b"".join(_bytes(part) for part in parts) for name, parts in whole.items()}


def _bytes(array: Array) -> bytes:
    kind = "<f4" if array.dtype.kind == "f" else "<i4"
    return np.ascontiguousarray(array, kind).tobytes()


def _json(data: object) -> str:
    return json.dumps(data, indent=2)


def _read(file: str, name: str) -> str:
    return (PAGE / file).read_text(encoding="utf-8").replace("NAME", name)


def _model(manifest: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """Return what the JavaScript needs to know of the model."""
    rows = []
    for target, file in named.items():
        apart = {"weights": f"{manifest['name']}-{target}.bin"} if manifest["weights_apart"] else {}
        rows.append({"target": target, "file": file, **apart})
    port_keys = ("name", "parameter", "type", "shape", "elements", "frames")
    return {
        "name": manifest["name"],
        "hash": manifest["model_hash"],
        "streams": manifest["streams"],
        "hop": manifest.get("hop", 1),
        "delay": manifest.get("delay", 0),
        "tail": manifest.get("tail", 0),
        "stateBytes": manifest["state_bytes"],
        "stateAlign": manifest["state_align"],
        "stateSize": sum(prod(row["shape"]) for row in manifest.get("state", ())),
        "tolerance": manifest["tolerance"],
        "inputs": [{**{key: port[key] for key in port_keys}, "moves": port["moves"]} for port in manifest["inputs"]],
        "outputs": [{key: port[key] for key in port_keys} for port in manifest["outputs"]],
        "modules": rows,
    }


def _types(manifest: Mapping[str, Any]) -> str:
    """Return the TypeScript declarations of NAME.js."""
    given = ", ".join(f"{port['parameter']}: {_numbers(port, given=True)}" for port in manifest["inputs"])
    taken = [_numbers(port) for port in manifest["outputs"]]
    result = taken[0] if len(taken) == 1 else f"[{', '.join(taken)}]"
    ports = [
        f" * {port['parameter']}: {port['name']}, {port['elements']} numbers of the shape {list(port['shape'])}"
        for port in (*manifest["inputs"], *manifest["outputs"])
    ]
    stream = f"""
/** One signal and its state. */
export interface Stream {{
  /** One step: {manifest.get("hop", 1)} frames of each input. */
  step({given}): {result};
  /** As many steps as the inputs hold. */
  run({given}): {result};
  /** What look-ahead still holds when the signal ends. */
  finish(): {result};
  /** Back to the model's own initial state. */
  reset(): void;
  /** Give the memory back to the model. */
  close(): void;
  /** As Python's stream.state. */
  state: Float32Array;
}}
"""
    use = "stream(): Stream" if manifest["streams"] else f"call({given}): {result}"
    return f"""/**
 * {manifest["name"]} as WebAssembly. Arrays of a step, in the model's order:
{chr(10).join(ports)}
 */
export type Source = URL | string | Response | ArrayBuffer | ArrayBufferView | WebAssembly.Module;

export interface Model {{
  readonly hash: string;
  readonly sameBits: boolean;
  {use};
}}
{stream if manifest["streams"] else ""}
export interface Module {{
  readonly target: string;
  readonly file: string;
}}

/** The modules beside this file, by target. */
export function modules(): Record<string, Module>;

/** Load the model: from the file beside this one, or from what is given. */
export function load(source?: Source | Module, weights?: Source): Promise<Model>;
"""


def _numbers(port: Mapping[str, Any], given: bool = False) -> str:
    kind = "Int32Array" if port["type"] == "int32_t" else "Float32Array"
    if not given:
        return kind
    return f"{kind} | number[]" + (" | number" if port["elements"] == 1 else "")
