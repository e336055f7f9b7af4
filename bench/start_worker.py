"""A process from the start of Python to the first result: ``python -m bench.start_worker ENGINE MODEL INPUTS SINCE``.

INPUTS is an .npz file, an array by the name of each. It loads a model, runs it once, and prints what that took since
the moment at which it was started, and its memory. It imports nothing else of the benchmark, which would be in the way.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def main(engine: str, model: str, inputs: str, since: float) -> None:
    """Load and run a model, and print the seconds and megabytes."""
    imported = time.time()
    if engine == "fastlstm":
        import fastlstm

        loaded = fastlstm.load(model)
        ready = time.time()
        feeds = dict(np.load(inputs))
        loaded(*feeds.values()) if len(feeds) == 1 else loaded.run(feeds)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        ready = time.time()
        session.run(None, dict(np.load(inputs)))
    done = time.time()
    print(json.dumps({"total": done - since, "load": ready - imported, "from_load": done - imported, **memory()}))


def memory() -> dict[str, float]:
    """Return the megabytes that this process holds, and the most that it held."""
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(words[name].split()[0]) / 1024 for key, name in (("resident", "VmRSS"), ("peak", "VmHWM"))}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
