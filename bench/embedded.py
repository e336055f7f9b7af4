"""Exported models beside what else runs LSTM and Dense in C and C++, and the instructions of a Cortex-M4.

``python -m bench.embedded --rtneural CHECKOUT --onnx2c PROGRAM`` prints the tables of bench/README.md. RTNeural and
onnx2c are built by who wants them (a checkout with Eigen, or Eigen and xsimd installed); emx-onnx-cgen is a package;
what is not named or installed has no row. Ours is the level that a library takes on this processor, unless
``FASTLSTM_TARGET`` names another, for which all are compiled then. Every contestant runs in a process of its own, in
turns, on the same weights and inputs, and has to give the results of the engine before it is timed. All are linked with
-ffast-math, so that denormals count as zero for all of them. ``--folder`` keeps the programs: once with ``--only
builds``, then on a quiet machine with ``--only times``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlstm
from fastlstm.export.instructions import Counter
from fastlstm.export.library import LIBRARY_LEVELS, NARROW_LEVELS
from fastlstm.export.routes import Found, find
from fastlstm.program import layout
from fastlstm.target.machine import detect

Array = npt.NDArray[Any]

PEERS = Path(__file__).parent / "peers" / "embedded"
SIZES = ((1, 20), (32, 64), (40, 128))
BLOCK, FRAMES = 64, 64
FAST = ("-O3", f"-march={os.environ.get('FASTLSTM_TARGET', 'native').removesuffix('-vnni')}", "-ffast-math")
TOLERANCE = 1e-4  # of float32 peers; narrow weights are other weights
SAMPLE, SAMPLES = 0.01, 7  # seconds, samples of a process


@dataclass(frozen=True)
class Network:
    """LSTM(width -> units) and Dense(1) with random weights, gates i f g o."""

    width: int
    units: int

    def arrays(self) -> dict[str, Array]:
        """Return the weights, as PyTorch has them."""
        rng = np.random.default_rng(self.units)
        shapes = {
            "lstm.weight_ih_l0": (4 * self.units, self.width),
            "lstm.weight_hh_l0": (4 * self.units, self.units),
            "lstm.bias_ih_l0": (4 * self.units,),
            "head.weight": (1, self.units),
            "head.bias": (1,),
        }
        found = {n: rng.uniform(-1, 1, s).astype(np.float32) / np.float32(np.sqrt(s[-1])) for n, s in shapes.items()}
        return {**found, "lstm.bias_hh_l0": np.zeros(4 * self.units, np.float32)}

    def model(self) -> fastlstm.Model:
        """Return the network in the engine."""
        return fastlstm.from_state_dict(self.arrays(), layers="lstm | linear", batch_first=True)

    def inputs(self) -> Array:
        """Return the frames that everybody gets, [FRAMES, width]."""
        return np.random.default_rng(1).normal(size=(FRAMES, self.width)).astype(np.float32)

    def header(self) -> str:
        """Return weights.h for the contestants."""
        w = self.arrays()
        tables = {
            "weight_x": w["lstm.weight_ih_l0"], "weight_x_t": w["lstm.weight_ih_l0"].T,
            "weight_h": w["lstm.weight_hh_l0"], "weight_h_t": w["lstm.weight_hh_l0"].T,
            "bias": w["lstm.bias_ih_l0"], "dense": w["head.weight"], "dense_bias": w["head.bias"],
            "inputs": self.inputs(),
        }  # fmt: skip
        lines = [f"enum {{ I = {self.width}, H = {self.units}, O = 1 }};"]
        for name, array in tables.items():
            values = ", ".join(f"{value:.9e}f" for value in array.reshape(-1).tolist())
            lines.append(f"static const float {name}[] __attribute__((unused)) = {{{values}}};")
        return "\n".join(["#ifndef WEIGHTS_H", "#define WEIGHTS_H", *lines, "#endif", ""])

    def onnx(self, path: Path) -> None:
        """Write one step as ONNX: x, h0, c0 in; y, h1, c1 out."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        from bench.onnx_models import onnx_order

        w, units = self.arrays(), self.units
        bias = np.concatenate([onnx_order(w[f"lstm.bias_{part}_l0"], "LSTM") for part in ("ih", "hh")])
        tensors = {
            "W": onnx_order(w["lstm.weight_ih_l0"], "LSTM")[None],
            "R": onnx_order(w["lstm.weight_hh_l0"], "LSTM")[None],
            "B": bias[None], "D": w["head.weight"].T, "b": w["head.bias"], "rows": np.array([1, units]),
        }  # fmt: skip
        nodes = [
            helper.make_node("LSTM", ["x", "W", "R", "B", "", "h0", "c0"], ["Y", "h1", "c1"], hidden_size=units),
            helper.make_node("Reshape", ["Y", "rows"], ["h"]),
            helper.make_node("MatMul", ["h", "D"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["y"]),
        ]

        def values(names: str, *shape: int) -> list[Any]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names.split()]

        ins, outs = (
            values("x", 1, 1, self.width) + values("h0 c0", 1, 1, units),
            values("y", 1, 1) + values("h1 c1", 1, 1, units),
        )
        stored = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
        graph = helper.make_graph(nodes, "step", ins, outs, stored)
        opset = helper.make_opsetid("", 14)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))


@dataclass
class Contestant:
    """One implementation: what is compiled, and how.

    Attributes
    ----------
    name : str
    header : str
        Its C header, which peer.h includes.
    sources : sequence of Path
    flags : sequence of str
        Of the compiler, beside -I.
    exact : bool
        Whether it has the float32 weights, so that its results are compared.
    block : int
        Steps a call.
    bare : bool
        Whether it is counted on the Cortex-M4.
    times : list of float
        Nanoseconds a step, a median a round.
    """

    name: str
    header: str
    sources: Sequence[Path]
    flags: Sequence[str] = ()
    exact: bool = True
    block: int = 1
    bare: bool = False
    times: list[float] = field(default_factory=list)


def contestants(network: Network, folder: Path, options: argparse.Namespace) -> Iterator[Contestant]:
    """Yield everybody who is here."""
    (folder / "weights.h").write_text(network.header())
    for precision in ("float32", "int16", "int8"):
        place, levels = folder / precision, LIBRARY_LEVELS if precision == "float32" else NARROW_LEVELS
        level = detect().name if detect().name in levels else detect().name.removesuffix("-vnni")
        if not place.exists():
            fastlstm.export(network.model(), place, targets=(level,), name="peer", precision=precision)
        ours = {
            "header": str(place / "peer.h"),
            "sources": [place / f"peer-{level}.o"],
            "exact": precision == "float32",
        }
        yield Contestant(f"fastlstm {precision}, N_step", **ours)
        yield Contestant(f"fastlstm {precision}, N_run of {BLOCK}", **ours, block=BLOCK)
    plain = {"header": str(PEERS / "plain.h"), "sources": [PEERS / "plain.c"], "bare": True}
    yield Contestant("plain C", **plain, flags=FAST)
    yield Contestant("plain C, transposed", **plain, flags=(*FAST, "-DTRANSPOSED"))
    generated = {"header": str(PEERS / "generated.h"), "bare": True}
    network.onnx(folder / "step.onnx")
    for name, call, source in (
        ("onnx2c", "entry", _onnx2c(folder, options.onnx2c)),
        ("emx-onnx-cgen", "model", _emx(folder)),
    ):
        if source is not None:
            flags = (*FAST, f"-DCALL={call}")
            yield Contestant(name, **generated, sources=[PEERS / "generated.c", source], flags=flags)
    if options.rtneural:
        for backend in ("EIGEN", "XSIMD", "STL"):
            yield _rtneural(backend, Path(options.rtneural))


def _onnx2c(folder: Path, program: str | None) -> Path | None:
    if not program:
        return None
    source = folder / "onnx2c.c"
    with source.open("w") as out:
        subprocess.run([program, "step.onnx"], cwd=folder, stdout=out, check=True)
    return source


def _emx(folder: Path) -> Path | None:
    if find_spec("emx_onnx_cgen") is None:
        return None
    command = [sys.executable, "-m", "emx_onnx_cgen", "compile", "--large-weight-threshold", "0", "step.onnx", "emx.c"]
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return folder / "emx.c"


def _rtneural(backend: str, checkout: Path) -> Contestant:
    flags = [*FAST, "-std=c++17", f"-DRTNEURAL_USE_{backend}=1", "-DRTNEURAL_DEFAULT_ALIGNMENT=32", f"-I{checkout}"]
    flags.append("-DEIGEN_STACK_ALLOCATION_LIMIT=0")  # else it refuses 128 units
    flags += [f"-I{place}" for place in (checkout / "modules" / "Eigen", "/usr/include/eigen3")]
    flags += [f"-I{checkout}/modules/xsimd/include"]
    return Contestant(f"RTNeural, {backend}", str(PEERS / "rtneural.h"), [PEERS / "rtneural.cpp"], flags)


def _built(contestant: Contestant, folder: Path) -> Path:
    """Return the contestant's program."""
    place = folder / re.sub(r"\W+", "-", contestant.name)
    if (place / "program").exists():
        return place / "program"
    place.mkdir()
    (place / "peer.h").write_text(f'#include "{contestant.header}"\n')
    include = [f"-I{place}", f"-I{folder}", f"-I{PEERS}"]
    objects = []
    for source in [PEERS / "harness.c", *contestant.sources]:
        if source.suffix == ".o":
            objects.append(source)
            continue
        objects.append(place / f"{source.stem}.o")
        flags = [*(contestant.flags if source.name != "harness.c" else ["-O2"]), f"-DBLOCK={contestant.block}", "-w"]
        compiler = "c++" if source.suffix == ".cpp" else "cc"
        subprocess.run([compiler, *flags, *include, "-c", source, "-o", objects[-1]], check=True)
    subprocess.run(["c++", "-ffast-math", *objects, "-lm", "-o", place / "program"], check=True)
    return place / "program"


def built(network: Network, options: argparse.Namespace, folder: Path) -> list[tuple[Contestant, Path]]:
    """Return everybody who compiles here, with their programs; each gives the engine's results."""
    wanted, found = network.model().stream().push(network.inputs()).reshape(-1), []
    for contestant in contestants(network, folder, options):
        try:
            program = _built(contestant, folder)
        except subprocess.CalledProcessError:
            print(f"{contestant.name}: does not compile here", file=sys.stderr)
            continue
        _check(contestant, program, wanted)
        found.append((contestant, program))
    return found


def compete(network: Network, options: argparse.Namespace, folder: Path) -> list[Contestant]:
    """Return everybody with their times, and the engine in this process."""
    found = built(network, options, folder)
    engine = [Contestant("engine, its step", "", ()), Contestant(f"engine, push of {BLOCK}", "", (), block=BLOCK)]
    if options.only == "builds":
        return []
    step, push = _engine_step(network, folder), _engine_push(network)
    for turn in range(options.rounds):
        for at in range(len(found)):
            contestant, program = found[(at + turn) % len(found)]
            contestant.times.append(_time([program], network))
        for contestant, timed in zip(engine, (step, push), strict=True):
            contestant.times.append(float(np.median([timed() for _ in range(SAMPLES)])))
    return [*(contestant for contestant, _ in found), *engine]


def _check(contestant: Contestant, program: Path, wanted: Array) -> None:
    """SystemExit if a contestant computes something else."""
    first = subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]
    off = np.abs(np.array(first.split(), np.float64) - wanted).max()
    if contestant.exact and not off <= TOLERANCE:
        raise SystemExit(f"{contestant.name} is off by {off:.1e}")


def _steps(network: Network) -> int:
    """Return the steps of a sample."""
    macs = 4 * network.units * (network.width + network.units)
    return max(BLOCK, int(SAMPLE * 1e9 / (40 + 0.06 * macs)) // BLOCK * BLOCK)


def _time(command: Sequence[str | Path], network: Network) -> float:
    """Return nanoseconds a step: the median of a process's samples."""
    words = [*command, str(SAMPLES), str(_steps(network))]
    out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(np.median([float(line) for line in out.splitlines()[1:]]))


def _engine_step(network: Network, folder: Path) -> Callable[[], float]:
    """Return what measures nanoseconds of the engine's compiled step, called from C as a stream calls it."""
    library = folder / "repeat.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", PEERS / "repeat.c", "-o", library], check=True)
    repeat: Any = ctypes.CDLL(str(library)).repeat
    repeat.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    stream, frame, out, steps = network.model().stream(), network.inputs()[0], np.zeros(1, np.float32), _steps(network)
    stream.step(frame, out=out)
    program = stream._run.program  # its ports are the two arrays now

    def timed() -> float:
        program.frame[layout.TOTAL] = 1
        begin = time.perf_counter()
        repeat(*program.call(1), steps)
        return 1e9 * (time.perf_counter() - begin) / steps

    return timed


def _engine_push(network: Network) -> Callable[[], float]:
    """Return what measures nanoseconds a step of the engine's `push`, called from Python."""
    stream, frames, calls = network.model().stream(), network.inputs(), _steps(network) // FRAMES
    out = stream.push(frames)

    def timed() -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            stream.push(frames, out=out)
        return 1e9 * (time.perf_counter() - begin) / (calls * FRAMES)

    return timed


# ---------------------------------------------------------------- Cortex-M4


def count(network: Network, options: argparse.Namespace) -> dict[str, float]:
    """Return the instructions of a step on a Cortex-M4, by contestant."""
    found = find("cortex-m4")
    if not isinstance(found, Found):
        print(f"Cortex-M4: {found}", file=sys.stderr)
        return {}
    counts: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counter = Counter(folder)
        for precision in ("float32", "int16", "int8"):
            place = folder / f"m4-{precision}"
            manifest = fastlstm.export(network.model(), place, ("cortex-m4",), "peer", precision=precision)
            objects = [place / "peer-cortex-m4.o"]
            counts[f"fastlstm {precision}"] = counter.per_step(found, place, manifest, objects, [])
        for contestant in contestants(network, folder, options):
            if contestant.bare:
                (folder / "peer.h").write_text(f'#include "{contestant.header}"\n')
                flags = [f"-I{folder}", f"-I{PEERS}", "-O3", "-ffast-math", "-w"]
                flags += [flag for flag in contestant.flags if flag.startswith("-D")]
                sources = contestant.sources
                counts[contestant.name] = counter.per_step(found, folder, _manifest(network), sources, flags, ["m"])
    return {name: value for name, value in counts.items() if value is not None}


def _manifest(network: Network) -> Mapping[str, Any]:
    """Return what the counter needs to know of a contestant that is no export."""
    ports = [
        {"parameter": name, "type": "float", "elements": size} for name, size in (("x0", network.width), ("y0", 1))
    ]
    return {"name": "peer", "streams": True, "weights_apart": False, "inputs": ports[:1], "outputs": ports[1:]}


# ---------------------------------------------------------------- tables


def tables(times: Mapping[Network, list[Contestant]], counts: Mapping[Network, Mapping[str, float]]) -> str:
    """Return both tables as Markdown."""
    lines = []
    medians = {n: {c.name: float(np.median(c.times)) for c in found} for n, found in times.items()}
    ratios = {n: dict(_ratios(found)) for n, found in times.items()}
    for title, columns in (
        ("nanoseconds a step, median", medians),
        ("time over that of N_step, median of the rounds", ratios),
        ("instructions a step, Cortex-M4", counts),
    ):
        names = dict.fromkeys(name for column in columns.values() for name in column)
        if not names:
            continue
        lines += [
            f"| {title} | " + " | ".join(f"{n.width}→{n.units}" for n in columns) + " |",
            "|---" * (1 + len(columns)) + "|",
        ]
        for name in names:
            cells = (_cell(column[name]) if name in column else "" for column in columns.values())
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _ratios(found: Sequence[Contestant]) -> Iterator[tuple[str, float]]:
    """Yield everybody's time over that of the float32 step; of blocks, over that of blocks."""
    own = {each.block: np.array(each.times) for each in found if each.name.startswith("fastlstm float32")}
    for each in found:
        yield each.name, float(np.median(np.array(each.times) / own[each.block]))


def _cell(value: float) -> str:
    return f"{value:,.0f}" if value >= 50 else f"{value:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtneural", metavar="CHECKOUT", help="a checkout of RTNeural")
    parser.add_argument("--onnx2c", metavar="PROGRAM", help="onnx2c, built")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="*", help="hidden sizes, of 20, 64 and 128 (all)")
    parser.add_argument("--only", choices=("builds", "times", "counts"))
    parser.add_argument("--folder", type=Path, help="where programs are kept; those that are there are not built anew")
    options = parser.parse_args()
    if options.onnx2c:
        options.onnx2c = shutil.which(options.onnx2c) or parser.error(f"there is no program {options.onnx2c}")
    networks = [Network(*size) for size in SIZES if not options.sizes or size[1] in options.sizes]
    times, counts = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for n in networks:
            folder = (options.folder or Path(name)).resolve() / f"{n.width}-{n.units}"
            folder.mkdir(parents=True, exist_ok=True)
            if options.only != "counts":
                times[n] = compete(n, options, folder)
            if options.only in (None, "counts"):
                counts[n] = count(n, options)
    if options.only != "builds":
        print(tables(times, counts))


if __name__ == "__main__":
    main()
