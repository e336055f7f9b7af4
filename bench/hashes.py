"""Fingerprints of what random models compute: two versions of fastlstm with the same fingerprints have the same bits.

Each model is drawn from the seed and its own number: LSTM, GRU, RNN, with projections and in both directions, their
options, precisions, batches, lengths, states and threads. It runs over whole sequences, as a stream by steps and by
chunks, and as a pool, through the public functions alone.

Python takes the fastlstm of the folder that it is started in, so a wheel unpacked into FOLDER is hashed there:

    cd CHECKOUT && python -m bench.hashes --output before.json
    cd FOLDER && PYTHONPATH=CHECKOUT python -m bench.hashes --against before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from bench.random_models import STATES, Drawn, batch_first, draw, layer_of_arrays, onnx_model, state_dict

__all__ = ["compare", "hashes", "main"]

Array = npt.NDArray[Any]

CAPACITY = 6


def parts(drawn: Drawn) -> dict[str, str]:
    """Return what each way of running the model gives: a hash of all outputs, or the name of the error.

    A model whose batch is fixed to other than one row has no pool. An error that is not fastlstm's own is a finding
    like any other: it is named, and the next model is run.
    """
    if drawn.source == "arrays":
        layer = layer_of_arrays(drawn)
        return {"whole": _fingerprint(partial(_layer_outputs, layer, drawn))}
    options: dict[str, Any] = {"threads": drawn.threads, "precision": drawn.precision}
    try:
        if drawn.source == "onnx":
            model = fastlstm.from_onnx(onnx_model(drawn), **options)
        else:
            model = fastlstm.from_state_dict(state_dict(drawn), batch_first=False, **options)
    except fastlstm.FastLSTMError as error:
        return {"loading": type(error).__name__}
    ways: dict[str, Callable[[Any, Drawn], Iterator[Array]]] = {"whole": _whole_outputs, "stream": _stream_outputs}
    if not drawn.fixed or drawn.batch == 1:
        ways["pool"] = _pool_outputs
    return {name: _fingerprint(partial(way, model, drawn)) for name, way in ways.items()}


def _fingerprint(run: Callable[[], Iterable[Any]]) -> str:
    digest = hashlib.sha256()
    try:
        for array in run():
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    except Exception as error:  # noqa: BLE001 - see `parts`
        return type(error).__name__
    return digest.hexdigest()[:16]


def _arrays(found: Any) -> Iterator[Array]:
    """Yield the arrays in nested results, in their order."""
    if isinstance(found, np.ndarray):
        yield found
        return
    for item in found.values() if isinstance(found, dict) else found:
        yield from _arrays(item)


def _feed(drawn: Drawn, steps: int, rng: np.random.Generator) -> dict[str, Array]:
    shape = (steps, drawn.batch, drawn.features)
    feed = {"x": batch_first(rng.standard_normal(shape).astype(np.float32), bool(drawn.layout))}
    if drawn.lengths == "given" and drawn.source == "onnx":
        feed["lengths"] = drawn.valid_steps(steps)
    for number, layer in enumerate(drawn.layers):
        if layer.states == "given":
            for name in STATES[layer.op]:
                state = rng.uniform(-1, 1, (layer.directions, drawn.batch, layer.units)).astype(np.float32)
                feed[f"{name}_{number}"] = batch_first(state, bool(drawn.layout))
    return feed


def _whole_outputs(model: Any, drawn: Drawn) -> Iterator[Array]:
    """Yield outputs of both lengths, by name and in order; the second call of a shape may take another way."""
    rng = drawn.rng(3)
    for steps in drawn.steps:
        arrays = _feed(drawn, steps, rng).values()
        yield from _arrays(model.run({spec.name: array for spec, array in zip(model.inputs, arrays, strict=True)}))
        for _ in range(2):
            yield from _arrays(model(*arrays))


def _layer_outputs(layer: Callable[..., Any], drawn: Drawn) -> Iterator[Array]:
    rng, made = drawn.rng(3), drawn.layers[0]
    for steps in drawn.steps:
        x = _feed(drawn, steps, rng)["x"]
        lengths = None if drawn.lengths == "full" else drawn.valid_steps(steps)
        yield from _arrays(layer(x, None, lengths))
        sizes = [made.width, made.units][: len(STATES[made.op])]
        states = [rng.uniform(-1, 1, (made.directions, drawn.batch, n)).astype(np.float32) for n in sizes]
        yield from _arrays(layer(x, tuple(states) if len(states) > 1 else states[0], lengths))


def _like(blank: Any, rng: np.random.Generator) -> Any:
    """Return random numbers in the form of `blank`, an array or a dict of them; integers become ones."""
    if isinstance(blank, dict):
        return {name: _like(array, rng) for name, array in blank.items()}
    if blank.dtype.kind != "f":
        return np.ones_like(blank)
    return rng.standard_normal(blank.shape).astype(blank.dtype)


def _stream_outputs(model: Any, drawn: Drawn) -> Iterator[Array]:
    """Yield what steps and chunks give, the state behind them, and the same from the beginning."""
    rng, stream = drawn.rng(4), model.stream(batch=drawn.batch)
    for _ in range(3):
        yield from _arrays(stream.step(_like(stream.blank_frame(), rng)))
    for steps in (5, 2, 5):
        yield from _arrays(stream.push(_like(stream.blank_chunk(steps), rng)))
    yield from _arrays(stream.state)
    stream.reset()
    yield from _arrays(stream.push(_like(stream.blank_chunk(4), rng)))


def _pool_outputs(model: Any, drawn: Drawn) -> Iterator[Array]:
    """Yield what a pool gives whose streams advance in turns, and their states."""
    rng, pool = drawn.rng(5), model.streams(CAPACITY)
    single = model.stream()
    ids = [pool.open() for _ in range(CAPACITY - 1)]
    for some in (ids, ids[1:2], ids[::-2]):
        frames = [_like(single.blank_frame(), rng) for _ in some]
        stacked = {n: np.stack([f[n] for f in frames]) for n in frames[0]} if isinstance(frames[0], dict) else None
        yield from _arrays(pool.step(some, np.stack(frames) if stacked is None else stacked))
    chunks = [_like(single.blank_chunk(steps), rng) for steps in (1, 3, 5)]
    yield from _arrays(pool.push(ids[:3], chunks))
    for stream in ids:
        yield from _arrays(pool.state(stream))


# ---------------------------------------------------------------- the command


def hashes(seed: int, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield each model's number, its description, its parts and one hash over them."""
    for number in numbers:
        drawn = draw(seed, number)
        found = parts(drawn)
        yield {"number": number, "model": str(drawn), "hash": _digest(found.items()), "parts": found}


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for each model that both results have and that differs, with the parts in which it does.

    Raises
    ------
    ValueError
        If the results are of other models, or share none.
    """
    old = {entry["number"]: entry for entry in before["models"]}
    shared = [(old[entry["number"]], entry) for entry in after["models"] if entry["number"] in old]
    if not shared or any(a["model"] != b["model"] for a, b in shared):
        raise ValueError("The two files are of other models: give both the same seed and the same version of this.")
    lines = []
    for a, b in shared:
        names = [name for name in a["parts"] | b["parts"] if a["parts"].get(name) != b["parts"].get(name)]
        said = ", ".join(f"{name} {a['parts'].get(name, '-')} -> {b['parts'].get(name, '-')}" for name in names)
        lines += [f"{b['number']:6}  {said}  ({b['model']})"] if names else []
    return lines


def main(argv: list[str] | None = None) -> int:
    """Print a hash a model and their total; return 1 if `--against` differs."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.hashes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="models (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn from (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first model")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--against", type=Path, metavar="FILE", help="list what differs from a result written before")
    options = parser.parse_args(argv)
    before = json.loads(options.against.read_text()) if options.against else None
    print(f"fastlstm {fastlstm.__version__} in {Path(fastlstm.__file__).parent}", file=sys.stderr)
    start, entries = time.perf_counter(), []
    for entry in hashes(options.seed, range(options.first, options.first + options.count)):
        entries.append(entry)
        print(f"{entry['number']:6}  {entry['hash']}  {entry['model']}", flush=True)
    total = _digest((entry["model"], entry["hash"]) for entry in entries)
    result = {"format": 1, "seed": options.seed, "version": fastlstm.__version__, "total": total, "models": entries}
    print(f" total  {total}  {len(entries)} models in {time.perf_counter() - start:.0f} s")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if before is None:
        return 0
    try:
        lines = compare(before, result)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join([*lines, f"{len(lines)} models differ from {options.against}"]))
    return int(bool(lines))


def _digest(pairs: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256("\n".join(f"{a} {b}" for a, b in pairs).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
