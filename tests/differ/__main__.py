"""Draw random models, and compare fastlstm with the float64 reference, onnxruntime and PyTorch.

A failure is printed with its seed, and with the smallest case that still fails. ``lies`` are models that lie about a
shape; they run in check mode, see `fastlstm.program.protected`. A process that crashes is started again behind
the seed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from typing import Any

import lying_shapes
import onnx_differ
import torch_differ

from fastlstm.errors import UnsupportedError

BEGINS = "# seed "
KINDS = {"onnx": onnx_differ, "torch": torch_differ, "lies": lying_shapes}


def outcome(kind: Any, case: Any) -> str:
    """Return what is wrong with a case, "" if nothing is, "refused" if the model is not understood."""
    try:
        return str(kind.difference(case))
    except UnsupportedError as error:
        return "refused" if kind is torch_differ else f"UnsupportedError: {error}"
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to this seed
        return f"{type(error).__name__}: {error}"


def smallest(kind: Any, case: Any, patience: int = 200) -> Any:
    """Return a case that fails too, and fails no more when anything is taken away."""
    found = True
    while found:
        found = False
        for simpler in case.simpler():
            patience -= 1
            if patience < 0:
                return case
            if outcome(kind, simpler) not in ("", "refused"):
                case, found = simpler, True
                break
    return case


def draw(name: str, first: int, count: int) -> None:
    """Try cases one after the other; a line for each that begins, then what came of it."""
    kind = KINDS[name]
    for seed in range(first, first + count):
        print(f"{BEGINS}{seed}", flush=True)
        case = kind.draw(seed)
        wrong = outcome(kind, case)
        if wrong not in ("", "refused"):
            wrong = f"{wrong}\n{smallest(kind, case)}"
        print(wrong or "right", flush=True)


def watch(name: str, first: int, count: int) -> int:
    """Let a process of its own draw the cases, and go on behind one that ends it; return how many failed."""
    start, end, failed, refused, at = time.perf_counter(), first + count, 0, 0, first - 1
    environment = {**os.environ, **({"FASTLSTM_CHECK": "1"} if name == "lies" else {})}
    while at + 1 < end:
        command = [sys.executable, __file__, "--here", "--kind", name, f"--seed={at + 1}", f"--count={end - at - 1}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            begun, said = at, "right"
            for line in process.stdout or ():
                if line.startswith(BEGINS):
                    begun, said = int(line.removeprefix(BEGINS)), ""
                elif said:
                    print(line, end="", flush=True)
                else:
                    said = line.strip()
                    refused += said == "refused"
                    if said not in ("right", "refused"):
                        failed += 1
                        print(f"{name}, seed {begun}: {said}", flush=True)
        if process.returncode:
            failed += not said
            print(f"{name}, seed {begun}: the process ended with {process.returncode}", flush=True)
            if begun == at:
                return 1  # it did not even begin
        at = begun
    print(f"{name}: {count} cases, {failed} failed, {refused} refused, {time.perf_counter() - start:.0f} s", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="make differ", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="what to draw; everything if it is not said")
    parser.add_argument("--count", type=int, default=200, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case")
    parser.add_argument("--here", action="store_true", help="in this process, as a debugger needs it")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    if options.here:
        for name in kinds:
            draw(name, options.seed, options.count)
        return 0
    return min(1, sum(watch(name, options.seed, options.count) for name in kinds))


if __name__ == "__main__":
    sys.exit(main())
