"""What narrow weights cost and gain: errors against float32, speed on this machine, and the choice by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm import passes
from fastlstm.errors import InputError
from fastlstm.graph import QUANTISED_INPUTS, Graph
from fastlstm.graph.quantise import PRECISIONS, layer_name, precisions
from fastlstm.model import Model
from fastlstm.reporting import benchmark
from fastlstm.typing import Array

__all__ = ["Cost", "Metric", "by_metric", "cost", "fastest_within"]

Metric = Callable[[Mapping[str, Array], Mapping[str, Array]], float]
"""Outputs and inputs by name -> a number, such as an accuracy."""

WORTH_IT = 1.01  # times as fast, for the whole model, before a layer takes narrower weights: less is noise


@dataclass(frozen=True)
class Cost:
    """A narrow model beside its float32 one.

    Attributes
    ----------
    outputs : mapping of str to mapping of str to float
        By output: `max_abs` and `mean_abs`, the errors against float32, and `snr_db`, the ratio of the signal's
        power to the error's in decibels (infinite where there is no error).
    speed : float
        How many times as fast it is on this machine.
    """

    outputs: Mapping[str, Mapping[str, float]]
    speed: float

    @property
    def max_abs(self) -> float:
        """The largest error of any output."""
        return max((output["max_abs"] for output in self.outputs.values()), default=0.0)

    def as_data(self) -> dict[str, Any]:
        """Return the figures as plain data; an infinite ratio is None."""
        outputs = {
            name: {key: value if np.isfinite(value) else None for key, value in figures.items()}
            for name, figures in self.outputs.items()
        }
        return {"outputs": outputs, "speed": self.speed}

    def __str__(self) -> str:
        lines = [
            f"{name}: largest error against float32 {f['max_abs']:.2e}, mean {f['mean_abs']:.2e}, "
            f"signal to noise {f['snr_db']:.1f} dB"
            for name, f in self.outputs.items()
        ]
        return "\n".join([*lines, f"{self.speed:.2f} times as fast as float32 on this machine"])


def cost(wide: Model, narrow: Model, samples: Sequence[Mapping[str, Array]]) -> Cost:
    """Return the errors of `narrow` on all samples, and its speed on the largest one."""
    _check(samples)
    outputs, largest = _errors(wide, narrow, samples), _largest(samples)
    contest = benchmark.compare({"wide": lambda: wide.run(largest), "narrow": lambda: narrow.run(largest)})
    return Cost(outputs, contest.ratio("wide", "narrow"))


def by_metric(graph: Graph, samples: Sequence[Mapping[str, Array]], metric: Metric) -> dict[str, float]:
    """Return a metric, averaged over the samples, of the model in each precision.

    Raises
    ------
    InputError
        If there are no samples, or the metric gives no number.
    """
    _check(samples)
    found = {}
    for precision in PRECISIONS:
        model = Model(graph, precision=precision)
        values = [_of(metric, model.run(sample), sample) for sample in samples]
        try:
            found[precision] = float(np.mean([float(value) for value in values]))
        except (TypeError, ValueError) as error:
            raise InputError(f"The metric should give a number for each sample; it gave {values[0]!r}.") from error
    return found


def _of(metric: Metric, outputs: Mapping[str, Array], sample: Mapping[str, Array]) -> float:
    try:
        return metric(outputs, sample)
    except Exception as error:  # the user's own code may raise anything
        raise InputError(
            f"The metric raised {type(error).__name__}: {error}. It is called with the outputs "
            f"({', '.join(outputs)}) and the inputs ({', '.join(sample)}), a dict each."
        ) from error


def fastest_within(graph: Graph, samples: Sequence[Mapping[str, Array]], most: float) -> dict[str, str]:
    """Return the precision of every layer with weights, so that no output is off by more than `most` on the samples.

    Layers are tried from the largest to the smallest, so that what the error allows is spent where the most time is.
    Each takes the precision with which the whole model is the fastest on this machine, of those with which it still
    holds; the wider one of two that are as fast.
    """
    _check(samples)
    optimised = passes.optimise(graph)
    wide, sample = Model(graph), _largest(samples)
    sizes = {
        layer_name(node): sum(optimised.constants[node.input(w)].size for w, _ in weights if node.input(w))
        for node in optimised.nodes
        if (weights := QUANTISED_INPUTS.get(node.op))
        and all(node.input(w) in optimised.constants for w, _ in weights if node.input(w))
    }
    chosen: dict[str, str] = {}
    for layer in sorted(sizes, key=lambda name: -sizes[name]):
        fitting: dict[str, Model] = {}
        for precision in ("int16", "int8"):
            narrow = Model(graph, precision={**chosen, layer: precision})
            if precisions(narrow.graph).get(layer) != precision:
                break  # it stays as wide as it was, whatever is asked
            if all(figures["max_abs"] <= most for figures in _errors(wide, narrow, samples).values()):
                fitting[precision] = narrow
        chosen[layer] = _fastest({"float32": Model(graph, precision=chosen), **fitting}, sample)
    return chosen


def _fastest(models: Mapping[str, Model], sample: Mapping[str, Array]) -> str:
    """Return the name of the model that takes the least time; they go from the widest to the narrowest."""
    best, *others = models
    if others:
        calls = {name: lambda model=model: model.run(sample) for name, model in models.items()}
        contest = benchmark.compare(calls, rounds=7, round_seconds=0.03)
        for name in others:
            if contest.ratio(best, name) > WORTH_IT:
                best = name
    return best


def _largest(samples: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    return max(samples, key=lambda sample: sum(array.size for array in sample.values()))


def _check(samples: Sequence[Mapping[str, Array]]) -> None:
    if not samples:
        raise InputError("Errors are measured on data, and there is none; give some with --data.")


def _errors(wide: Model, narrow: Model, samples: Sequence[Mapping[str, Array]]) -> dict[str, dict[str, float]]:
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for sample in samples:
        expected, got = wide.run(sample), narrow.run(sample)
        for name, array in expected.items():
            pairs.setdefault(name, []).append((array.astype(np.float64).reshape(-1), got[name].reshape(-1)))
    found = {}
    for name, parts in pairs.items():
        wanted, given = (np.concatenate(side) for side in zip(*parts, strict=True))
        finite = np.isfinite(wanted)
        error, signal = (given - wanted)[finite], wanted[finite]
        noise = float(np.square(error).sum())
        found[name] = {
            "max_abs": float(np.abs(error).max(initial=0.0)),
            "mean_abs": float(np.abs(error).mean()) if error.size else 0.0,
            "snr_db": float(10 * np.log10(np.square(signal).sum() / noise)) if noise else float("inf"),
        }
    return found
