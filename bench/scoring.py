"""``python -m bench.scoring``: a data set scored, beside ready batches and the best loop over other engines.

Rows of 5 to 200 steps of 8 features in a Parquet file (300,000 of them are 1 GB) go through a classifier: LSTM(64) or
GRU(128), its last step, a dense layer. Three figures a model:

- the share of the engine's own throughput on batches that are ready in memory, of rows of one length, called from as
  many threads, in the better of two batch sizes; by time, and by processor time, which other programs disturb less;
  and the share that there would be if nothing but pyarrow's decoding of the file were added to these calls;
- the ratio to the best loop that one would write over onnxruntime or PyTorch on the same rows, which lie in memory
  sorted by length: each batch is padded and run, with lengths, in the best of several batch sizes; the loop neither
  reads nor writes files; of the whole run, and of the engine alone on ready batches; by time and by processor time;
- resident memory beyond what the model and one call hold, for a third of the rows and for all.

Every measurement has a process of its own, and all take turns (``--rounds``).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm

Array = npt.NDArray[Any]

FEATURES, CLASSES, SHORTEST, LONGEST = 8, 4, 5, 200
MODELS = {"LSTM(64)": ("lstm", 4, 64), "GRU(128)": ("gru", 3, 128)}
READY_ROWS = (64, 128)
PEER_ROWS = (32, 64, 128, 256)
SAMPLE = 40_000
"""Rows that peers and ready batches are timed on, if nothing else is said: they have no start-up cost to spread."""


def state_dict(name: str) -> dict[str, Array]:
    """Return the classifier's weights, the same each time."""
    op, gates, units = MODELS[name]
    rng = np.random.default_rng(7)

    def uniform(*shape: int) -> Array:
        return rng.uniform(-(units**-0.5), units**-0.5, shape).astype(np.float32)

    return {
        f"{op}.weight_ih_l0": uniform(gates * units, FEATURES),
        f"{op}.weight_hh_l0": uniform(gates * units, units),
        f"{op}.bias_ih_l0": uniform(gates * units),
        f"{op}.bias_hh_l0": uniform(gates * units),
        "head.weight": uniform(CLASSES, units),
        "head.bias": uniform(CLASSES),
    }


def our_model(name: str, threads: int = 1) -> fastlstm.Model:
    """Return the classifier."""
    return fastlstm.from_state_dict(
        state_dict(name), layers=f"{MODELS[name][0]} | last | linear", batch_first=True, threads=threads
    )


def make_data(path: Path, rows: int) -> None:
    """Write the data set, in row groups of 20,000."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    writer = None
    for first in range(0, rows, 20_000):
        count = min(20_000, rows - first)
        offsets = np.zeros(count + 1, np.int32)
        np.cumsum(rng.integers(SHORTEST, LONGEST + 1, count), out=offsets[1:])
        values = pa.array(rng.standard_normal(offsets[-1] * FEATURES, np.float32))
        lists = pa.ListArray.from_arrays(pa.array(offsets), pa.FixedSizeListArray.from_arrays(values, FEATURES))
        table = pa.table({"id": np.arange(first, first + count), "readings": lists})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=["id"])
        writer.write_table(table)
    if writer is not None:
        writer.close()


def sequences(path: Path, rows: int) -> list[Array]:
    """Return the first rows of the data set as arrays, sorted by length."""
    import pyarrow.parquet as pq

    batch = next(pq.ParquetFile(path).iter_batches(rows, columns=["readings"]))
    column = batch.column(0)
    values = column.flatten().flatten().to_numpy().reshape(-1, FEATURES)
    offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
    return sorted((values[a:b] for a, b in pairwise(offsets)), key=len)


# --- what is measured, each in a process of its own ----------------------------------------------------------


def scored(name: str, path: Path, threads: int, _: int) -> dict[str, Any]:
    """Score the whole file with `fastlstm.score`."""
    model = our_model(name)
    model.run({"input": np.zeros((64, LONGEST, FEATURES), np.float32)})
    before, begin = peak(), time.process_time()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        summary = fastlstm.score(model, path, Path(folder) / "out", {"input": "readings"}, workers=threads)
    cpu = time.process_time() - begin
    return {"rate": summary.rows_per_second, "cpu": summary.rows / cpu, "bytes": peak() - before, "rows": summary.rows}


def ready(name: str, path: Path, threads: int, sample: int) -> dict[str, Any]:
    """Call the engine on batches of one length that lie ready in memory, in the best of several batch sizes."""
    model = our_model(name)
    by_length: dict[int, list[Array]] = {}
    for row in sequences(path, sample):
        by_length.setdefault(len(row), []).append(row)
    found = []
    for size in READY_ROWS:
        batches = [np.stack(rows[i : i + size]) for rows in by_length.values() for i in range(0, len(rows), size)]
        found.append({**rates(model, batches, sum(map(len, batches)), threads), "batch": size})
    return best(found)


def decoded(_: str, path: Path, __: int, ___: int) -> dict[str, Any]:
    """Read the file as `fastlstm.score` does, and do nothing with it."""
    from fastlstm.scoring.sources import open_source

    source = open_source(path)
    begin, cpu = time.perf_counter(), time.process_time()
    rows = sum(batch.num_rows for batch in source.read(0, None, ["id", "readings"], 64 << 20))
    return {"rate": rows / (time.perf_counter() - begin), "cpu": rows / (time.process_time() - cpu)}


def best(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best of several ways by time, and the best by processor time: other programs may tell them apart."""
    return {**max(found, key=lambda way: float(way["rate"])), "cpu": max(float(way["cpu"]) for way in found)}


def rates(call: Any, batches: list[Any], rows: int, threads: int) -> dict[str, Any]:
    """Return the rows a second, and a second of processor time, of the calls, made from several threads."""
    order = np.random.default_rng(1).permutation(len(batches))
    for batch in (batches[0], batches[-1]):
        call(batch)
    begin, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: call(batches[i]), order))
    return {"rate": rows / (time.perf_counter() - begin), "cpu": rows / (time.process_time() - cpu)}


def padded(rows: list[Array]) -> tuple[Array, Array]:
    """Return rows of similar length as one batch, padded, with their lengths."""
    lengths = np.array([len(row) for row in rows])
    batch = np.zeros((len(rows), lengths.max(), FEATURES), np.float32)
    for place, row in enumerate(rows):
        batch[place, : len(row)] = row
    return batch, lengths


def onnxruntime(name: str, path: Path, threads: int, sample: int) -> dict[str, Any]:
    """Return the best rate of onnxruntime: threads within a call, or a call a thread; several batch sizes."""
    import onnxruntime as ort

    model = onnx_model(name)

    def session(inside: int) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = inside
        made = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def call(batch: tuple[Array, Array]) -> Any:
            x = np.ascontiguousarray(batch[0].swapaxes(0, 1))
            return made.run(None, {"x": x, "lengths": batch[1].astype(np.int32)})

        return call

    return best_of(path, sample, {1: session(threads), threads: session(1)})


def torch(name: str, path: Path, threads: int, sample: int) -> dict[str, Any]:
    """Return the best rate of PyTorch with packed sequences."""
    import torch

    op, _, units = MODELS[name]
    layer = getattr(torch.nn, op.upper())(FEATURES, units, batch_first=True)
    head = torch.nn.Linear(units, CLASSES)
    weights = {k: torch.from_numpy(v) for k, v in state_dict(name).items()}
    layer.load_state_dict({k.split(".")[1]: v for k, v in weights.items() if k.startswith(op)})
    head.load_state_dict({k.split(".")[1]: v for k, v in weights.items() if k.startswith("head")})

    def call(batch: tuple[Array, Array]) -> Any:
        with torch.inference_mode():
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                torch.from_numpy(batch[0]), torch.from_numpy(batch[1]), batch_first=True, enforce_sorted=False
            )
            last = layer(packed)[1]
            return head((last[0] if op == "lstm" else last)[-1]).numpy()

    torch.set_num_threads(threads)
    within = best_of(path, sample, {1: call})
    torch.set_num_threads(1)
    beside = best_of(path, sample, {threads: call})
    return best([within, beside])


def best_of(path: Path, sample: int, calls: dict[int, Any]) -> dict[str, Any]:
    """Return the best rates over batch sizes, of each call made from so many threads."""
    rows = sequences(path, sample)
    found = []
    for size in PEER_ROWS:
        batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        for threads, call in calls.items():
            rate = rates(lambda some, call=call: call(padded(some)), batches, len(rows), threads)
            found.append({**rate, "batch": size, "threads": threads})
    return best(found)


def onnx_model(name: str) -> bytes:
    """Return the classifier as ONNX, with the lengths of rows."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    op, gates, units = MODELS[name]
    weights = state_dict(name)
    order = {4: [0, 3, 1, 2], 3: [1, 0, 2]}[gates]  # from PyTorch's gates to ONNX's

    def reordered(array: Array) -> Array:
        return np.concatenate([np.split(array, gates)[i] for i in order])

    bias = np.concatenate([reordered(weights[f"{op}.bias_{k}_l0"]) for k in ("ih", "hh")])
    tensors = {
        "W": reordered(weights[f"{op}.weight_ih_l0"])[None],
        "R": reordered(weights[f"{op}.weight_hh_l0"])[None],
        "B": bias[None],
        "head": np.ascontiguousarray(weights["head.weight"].T),
        "head_bias": weights["head.bias"],
        "axis": np.array([0]),
    }
    attributes = {"hidden_size": units, **({"linear_before_reset": 1} if op == "gru" else {})}
    nodes = [
        helper.make_node(op.upper(), ["x", "W", "R", "B", "lengths"], ["", "h"], **attributes),
        helper.make_node("Squeeze", ["h", "axis"], ["last"]),
        helper.make_node("Gemm", ["last", "head", "head_bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", FEATURES]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, key) for key, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def ray(name: str, path: Path, threads: int, _: int) -> dict[str, Any]:
    """Score the whole file on Ray, on this machine; Ray's own start and end are not in the rate."""
    import ray as cluster

    cluster.init(num_cpus=threads, include_dashboard=False, log_to_driver=False, logging_level="error")
    model = our_model(name)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        summary = fastlstm.score(model, path, Path(folder) / "out", {"input": "readings"}, workers=threads, ray="local")
    cluster.shutdown()
    return {"rate": summary.rows_per_second}


def peak() -> int:
    """Return the most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


MEASURED = {"score": scored, "ready": ready, "decode": decoded, "onnxruntime": onnxruntime, "torch": torch, "ray": ray}


def measure(what: str, name: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "bench.scoring", "--only", what, name, str(path)]
    command += ["--threads", str(options.threads), "--sample", str(options.sample)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser("python -m bench.scoring", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="rows for peers and ready batches (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ray", action="store_true", help="score on Ray as well")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--folder", type=Path, help="where the data set is kept; a temporary folder if not given")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        what, name, path = options.only
        print(json.dumps(MEASURED[what](name, Path(path), options.threads, options.sample)))
        return 0
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        for rows in (options.rows // 3, options.rows):
            if not (folder / f"{rows}.parquet").exists():
                make_data(folder / f"{rows}.parquet", rows)
        for name in options.models:
            report(name, folder, options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    return 0


def report(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Measure one model and print its lines."""
    whole, third = folder / f"{options.rows}.parquet", folder / f"{options.rows // 3}.parquet"
    what = ["score", "ready", "decode", "onnxruntime", "torch", *(["ray"] if options.ray else [])]
    rounds = [{w: measure(w, name, whole, options) for w in what} for _ in range(options.rounds)]
    for each in what:
        print(f"{name:10} {each:14} {np.median([found[each]['rate'] for found in rounds]):10,.0f} rows/s")
    for key, by in (("rate", ""), ("cpu", ", by processor time")):
        share = np.median([f["score"][key] / f["ready"][key] for f in rounds])
        print(f"{name:10} of ready batches{by} {share:.0%}")
        if key == "cpu":
            limit = np.median([f["decode"][key] / (f["decode"][key] + f["ready"][key]) for f in rounds])
            print(f"{name:10} of ready batches, with nothing but decoding beside them{by} {limit:.0%}")
        peers = [max(f["onnxruntime"][key], f["torch"][key]) for f in rounds]
        for ours, said in (("score", "times the best loop over others"), ("ready", "ready batches, of that loop")):
            ratio = np.median([f[ours][key] / peer for f, peer in zip(rounds, peers, strict=True)])
            print(f"{name:10} {said}{by} {ratio:.2f}")
    if options.ray:
        print(f"{name:10} on Ray, of without {np.median([f['ray']['rate'] / f['score']['rate'] for f in rounds]):.0%}")
    small, large = measure("score", name, third, options)["bytes"], rounds[-1]["score"]["bytes"]
    print(f"{name:10} memory beside the model: {options.rows // 3:,} rows {small >> 20} MiB, "
          f"{options.rows:,} rows {large >> 20} MiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
