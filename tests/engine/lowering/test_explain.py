"""The plan says what bounds a step, and how threads divide it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import fastlstm
from fastlstm.graph import Graph, Node, RecurrentInputs, TensorSpec, default_activations
from fastlstm.lowering import explain
from fastlstm.lowering.summary import summarise
from fastlstm.model import Model
from fastlstm.target.machine import detect


def layer(hidden: int, threads: int = 1) -> fastlstm.LSTM:
    return fastlstm.LSTM(np.zeros((4 * hidden, 8)), np.zeros((4 * hidden, hidden)), threads=threads)


def test_one_row_is_bound_by_the_cache_that_holds_the_weights_and_a_batch_by_arithmetic() -> None:
    machine = replace(detect(), l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20)
    (segment,) = layer(256)._model(False, False).plan.parts
    step = next(i for stage in segment.program.stages for i in stage.instructions if i.panels)
    assert explain.bound(step, 1, 1, machine) == "weights from L2, 1,024 KiB a step"
    assert explain.bound(step, 1, 1, replace(machine, l2_bytes=256 << 10)).startswith("weights from L3")
    assert explain.bound(step, 64, 1, machine) == "arithmetic"
    assert explain.bound(replace(step, macs=0), 1, 1, machine) == ""


def test_the_division_among_threads_is_said() -> None:
    def told(hidden: int, threads: int, batch: int) -> str:
        (segment,) = layer(hidden, threads)._model(False, False).plan.parts
        return explain.division(segment, batch)

    assert told(16, 1, 1) == "one thread"
    assert told(16, 2, 1) == "one thread: a time step is too short to share"
    assert told(256, 2, 1) == "2 threads share the hidden units of every step"
    odd = 7 * detect().lanes
    assert told(odd, 2, 64).startswith("2 threads, each with its rows of the batch")


def test_each_layer_is_shown_with_the_kernel_that_runs_it() -> None:
    def layer(x: str, y: str, width: int, projection: int = 0) -> tuple[Node, dict[str, np.ndarray]]:
        arrays = {
            f"{y}.w_ih": np.zeros((1, 4 * 24, width), np.float32),
            f"{y}.w_hh": np.zeros((1, 4 * 24, projection or 24), np.float32),
        }
        read = RecurrentInputs(x, *arrays)
        if projection:
            arrays[f"{y}.w_hr"] = np.zeros((1, projection, 24), np.float32)
            read = read._replace(w_hr=f"{y}.w_hr")
        attrs = {
            "hidden_size": 24, "directions": ["forward"], "activations": default_activations("LSTM"), "clip": None,
            "input_forget": 0,
        }  # fmt: skip
        return Node("LSTM", read.given(), (y,), attrs), arrays

    (first, a), (second, b) = layer("x", "h", 8, projection=6), layer("h", "y", 6)
    graph = Graph(
        (TensorSpec("x", ("time", "batch", 8)),), (TensorSpec("y", ("time", "batch", 24)),), (first, second), {**a, **b}
    )
    kernels = [row.kernel for row in summarise(Model(graph).plan)]
    assert kernels == ["projected.lstm", "recurrent.lstm"]
