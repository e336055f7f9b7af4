"""Long sequences go through in blocks, with the bits of one piece and the memory of a block."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
from random_stacks import LAYERS, WIDTH, random_stack

import fastlstm
from fastlstm import model as models
from fastlstm.errors import UnsupportedError
from fastlstm.streaming import whole
from fastlstm.streaming.engines import GraphEngine


@pytest.mark.parametrize("seed", range(24))
def test_blocks_have_the_bits_of_one_piece(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    model = fastlstm.Model(random_stack(seed, draw.choices(list(LAYERS), k=draw.randint(2, 4))))
    try:
        stream = model.stream()
    except UnsupportedError:
        return
    rows, hops = 1 + seed % 2, 31
    x = np.random.default_rng(seed).standard_normal((rows, WIDTH, hops * stream.hop)).astype(np.float32)
    want = model(x)
    blocks: list[Any] = []
    advance = GraphEngine.advance
    monkeypatch.setattr(GraphEngine, "advance", lambda *given: blocks.append(given) or advance(*given))
    monkeypatch.setattr(models, "LONG", 1)
    monkeypatch.setattr(whole, "BLOCK", 5 * rows * WIDTH * stream.hop)
    np.testing.assert_array_equal(fastlstm.Model(model.graph)(x), want)
    assert len(blocks) == -(-hops // 5)


MEMORY = """
    import resource, sys
    import numpy as np
    import fastlstm
    from fastlstm.graph import Graph, Node, TensorSpec, default_activations

    rng = np.random.default_rng(0)
    attrs = {"hidden_size": 8, "directions": ["forward"], "activations": default_activations("LSTM", 1)}
    constants = {
        name: rng.normal(size=size, scale=0.1).astype(np.float32)
        for name, size in {"a": (32, 1, 16), "b": (8, 32, 9), "w": (1, 32, 8), "r": (1, 32, 8)}.items()
    }
    def conv(x, weight, size, out, stride):
        window = {"kernel_shape": [size], "strides": [stride], "pads": [size - stride, 0], "group": 1}
        return Node("Conv", (x, weight), (out,), window)
    nodes = (
        conv("x", "a", 16, "c", 1), Node("Relu", ("c",), ("d",)), conv("d", "b", 9, "e", 8),
        Node("Transpose", ("e",), ("f",), {"perm": [2, 0, 1]}), Node("LSTM", ("f", "w", "r"), ("y",), attrs),
    )
    x, y = TensorSpec("x", ("batch", 1, "time")), TensorSpec("y", ("out", "batch", 8))
    model = fastlstm.Model(Graph((x,), (y,), nodes, constants))
    audio = rng.normal(size=(1, 1, 1 << 21)).astype(np.float32)
    model.stream()  # what is imported and planned for it is not counted
    model(audio[:, :, : 1 << 18])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = model(audio)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert out.shape == (1 << 18, 1, 8)
    # In one piece the first convolution alone has 32 values a sample: 256 MiB.
    assert grown < out.nbytes + (96 << 20), grown
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the size of a process is in other units")
def test_a_long_recording_takes_the_memory_of_a_block() -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(MEMORY)], timeout=300, check=True)
