"""Is it still the same model? Its outputs against another runner's, and the first layer that differs.

An output holds where ``|got - expected| <= atol + rtol * |expected|`` for every element. NaN equals NaN,
an infinity equals itself. Models that round their data to bytes as they run have no such result: a sum that differs in
its last bit rounds to another byte, and engines round in different places. They are held to `NOISE` as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.errors import DependencyError, InputError, UnsupportedError
from fastlstm.files.fileformat import GoldenSample, StoredModel
from fastlstm.graph import Graph, Node, TensorSpec
from fastlstm.graph.quantise import rounds_as_it_runs
from fastlstm.operators import reference
from fastlstm.typing import Array
from fastlstm.verification.runners import Runner, RunnerError, own_framework, reference_runner
from fastlstm.verification.samples import sample_inputs

__all__ = [
    "ATOL",
    "RTOL",
    "Comparison",
    "Difference",
    "LayerDifference",
    "Verification",
    "check_stored",
    "compare",
    "compare_layers",
    "compare_runs",
    "compare_with_source",
    "expected_runner",
    "replay",
]

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

ATOL, RTOL = 1e-5, 1e-4
"""What float32 engines that sum in different orders stay within, for outputs of order one."""

NOISE = 1 / 32
"""What the root mean square of an output's differences may be, as a share of its standard deviation, where a model
rounds its data to bytes: 30 decibels. Two models with three and one bidirectional layers of 8-bit weights differ from
onnxruntime by 1/130 and 1/150; with two gates in each other's place a small one differs by a fifth."""

SIZES = ((2, 12), (1, 7), (3, 20), (1, 1), (1, 64), (2, 400), (1, 576), (2, 1600))
"""Batch and time sizes that `compare_runs` tries in this order; some models take only long inputs, or one row."""


@dataclass(frozen=True)
class Difference:
    """How far one output is from what was expected.

    Attributes
    ----------
    name : str
    problem : str
        Why the two cannot be compared (absent, or of another shape); empty where they can.
    max_abs, mean_abs : float
        Largest and mean absolute difference over the elements where both are finite.
    where : tuple of int
        Position of the worst element, measured by the tolerance.
    expected, got : float
        The two values there.
    ratio : float
        Largest difference as a share of what the tolerance allows there, or the root mean square of all as a share
        of what `noise` allows: up to 1 holds.
    nan_mismatches : int
        Elements that are NaN on one side only.
    """

    name: str
    problem: str = ""
    max_abs: float = 0.0
    mean_abs: float = 0.0
    where: tuple[int, ...] = ()
    expected: float = 0.0
    got: float = 0.0
    ratio: float = 0.0
    nan_mismatches: int = 0

    @property
    def holds(self) -> bool:
        """Whether the output is within the tolerance everywhere."""
        return not self.problem and not self.nan_mismatches and self.ratio <= 1

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: {self.problem}"
        text = f"{self.name}: largest difference {self.max_abs:.2e}, {self.ratio:.2g} of the tolerance"
        if not self.holds:
            text += f"; at {list(self.where)} expected {self.expected:.9g}, got {self.got:.9g}"
        if self.nan_mismatches:
            text += f"; {self.nan_mismatches} elements are NaN on one side only"
        return text

    def as_data(self) -> dict[str, Any]:
        """Return the figures as plain data; values that JSON has no number for are None."""
        data = {key: value for key, value in vars(self).items() if key != "problem"}
        data = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in data.items()}
        return {**data, "where": list(self.where), "problem": self.problem or None, "holds": self.holds}


@dataclass(frozen=True)
class Comparison:
    """All outputs of one run, compared."""

    outputs: tuple[Difference, ...]
    atol: float
    rtol: float
    noise: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.holds for output in self.outputs)

    def __str__(self) -> str:
        return "\n".join(str(output) for output in self.outputs)

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "holds": self.holds,
            "atol": self.atol,
            "rtol": self.rtol,
            "noise": self.noise,
            "outputs": [output.as_data() for output in self.outputs],
        }

    @classmethod
    def worst(cls, comparisons: Sequence[Comparison]) -> Comparison:
        """Return, output by output, the worst of several comparisons of the same outputs."""

        def badness(difference: Difference) -> tuple[bool, int, float, float]:
            return (bool(difference.problem), difference.nan_mismatches, difference.ratio, difference.max_abs)

        columns = zip(*(comparison.outputs for comparison in comparisons), strict=True)
        first = comparisons[0]
        return cls(tuple(max(column, key=badness) for column in columns), first.atol, first.rtol, first.noise)


def compare(
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    atol: float = ATOL,
    rtol: float = RTOL,
    noise: float = 0.0,
) -> Comparison:
    """Compare outputs by name.

    Parameters
    ----------
    expected, got : mapping of str to array
        Any dtypes; compared as float64. An output that only one side has is a difference.
    atol, rtol : float
        Absolute tolerance, and the one in proportion to the expected value.
    noise : float
        Where it is not 0, an output holds as a whole: its differences have a root mean square of at most
        ``atol + noise * s``, s being the standard deviation of what was expected.
    """
    names = list(dict.fromkeys([*expected, *got]))
    if not (atol >= 0 and rtol >= 0):
        raise InputError(f"Tolerances should be numbers that are not negative; got atol={atol} and rtol={rtol}.")
    found = tuple(_difference(name, expected, got, atol, rtol, noise) for name in names)
    return Comparison(found, atol, rtol, noise)


def _difference(
    name: str, expected: Mapping[str, Array], got: Mapping[str, Array], atol: float, rtol: float, noise: float
) -> Difference:
    if name not in got:
        return Difference(name, "expected, but not among the outputs")
    if name not in expected:
        return Difference(name, "not expected among the outputs")
    if isinstance(expected[name], list) or isinstance(got[name], list):
        return _sequence_difference(name, expected[name], got[name], atol, rtol, noise)
    a, b = np.asarray(expected[name], np.float64), np.asarray(got[name], np.float64)
    if a.shape != b.shape:
        return Difference(name, f"expected the shape {list(a.shape)}, got {list(b.shape)}")
    if not a.size:
        return Difference(name)
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.where(finite, np.abs(a - b), np.inf))
    allowed = atol + rtol * np.abs(np.where(finite, a, 0.0))
    with np.errstate(divide="ignore"):
        ratios = np.divide(gap, allowed, out=np.zeros_like(gap), where=gap > 0)
    where = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    between = gap[finite]
    ratio = float(ratios.max())
    if noise and np.isfinite(gap).all():
        where = np.unravel_index(int(np.argmax(gap)), gap.shape)
        ratio = float(np.sqrt(np.mean(np.square(gap)))) / (atol + noise * float(a[finite].std()) or np.inf)
    return Difference(
        name,
        max_abs=float(between.max(initial=0.0)),
        mean_abs=float(between.mean()) if between.size else 0.0,
        where=tuple(int(i) for i in where),
        expected=float(a[where]),
        got=float(b[where]),
        ratio=ratio,
        nan_mismatches=int(np.count_nonzero(np.isnan(a) != np.isnan(b))),
    )


def _sequence_difference(name: str, expected: Any, got: Any, atol: float, rtol: float, noise: float) -> Difference:
    """Compare two sequences of arrays by place; the worst stands for all."""
    if not (isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got)):
        words = [f"{len(v)} arrays" if isinstance(v, list) else "one array" for v in (expected, got)]
        return Difference(name, f"expected {words[0]}, got {words[1]}")
    pairs = [compare({name: a}, {name: b}, atol, rtol, noise) for a, b in zip(expected, got, strict=True)]
    return Comparison.worst(pairs).outputs[0] if pairs else Difference(name)


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    Attributes
    ----------
    expected_from : str
        What computed the expected outputs.
    reason : str
        Why it was not the source's own framework; empty if it was.
    comparisons : tuple of Comparison
        One for each sample.
    samples : tuple of GoldenSample
        The inputs that were tried, with the expected outputs.
    layers : tuple of LayerDifference
        Each layer compared with the float64 reference, if that was asked for.
    """

    expected_from: str
    reason: str
    comparisons: tuple[Comparison, ...]
    samples: tuple[GoldenSample, ...]
    layers: tuple[LayerDifference, ...] = ()

    @property
    def worst(self) -> Comparison:
        """For each output the worst of all samples."""
        return Comparison.worst(self.comparisons)

    @property
    def holds(self) -> bool:
        """Whether every output of every sample is within the tolerance, and every layer's that was compared."""
        return all(part.holds for part in self.comparisons) and all(part.holds for part in self.layers)

    @property
    def noisy(self) -> bool:
        """Whether outputs were held to `NOISE`, as wholes."""
        return any(part.noise for part in self.comparisons)

    @property
    def what(self) -> str:
        """What was compared with, and on how many inputs."""
        return f"{self.expected_from} on {len(self.samples)} inputs"

    @property
    def by_layer(self) -> str:
        """The first layer that differs from the reference, in a sentence; "" if layers were not compared."""
        if not self.layers:
            return ""
        differs = next((part for part in self.layers if not part.holds), None)
        if differs is None:
            return f"all {len(self.layers)} layers agree with float64"
        return f"first layer that differs: {differs}"

    @property
    def report(self) -> str:
        """What was compared with, each output's difference, and what layers say."""
        how = "held as a whole: the model rounds its data to bytes as it runs" if self.noisy else ""
        return "\n".join(filter(None, (f"compared with {self.what}", str(self.worst), how, self.by_layer)))

    def __str__(self) -> str:
        return self.report + (f"\nnot compared with its own framework: {self.reason}" if self.reason else "")

    def __repr__(self) -> str:
        return f"<Verification: {'holds' if self.holds else 'DIFFERS'}, compared with {self.what}>"

    def as_data(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        report = {**self.worst.as_data(), "compared_with": self.what, "reason": self.reason or None}
        return {**report, "by_layer": self.by_layer or None}


def expected_runner(path: str | os.PathLike[str], graph: Graph, *, trusted: bool = False) -> tuple[Runner, str]:
    """Return the source's own framework, or else the float64 reference and the reason why.

    `trusted` as in `fastlstm.verification.runners.own_framework`.
    """
    try:
        return own_framework(path, graph, trusted=trusted), ""
    except (DependencyError, UnsupportedError, RunnerError) as error:
        return reference_runner(graph), str(error)


def compare_runs(
    graph: Graph,
    expected: Runner,
    run: Run,
    *,
    sizes: Mapping[str, int] | None = None,
    given: Sequence[Mapping[str, Array]] = (),
    count: int = 3,
    seed: int = 0,
    atol: float = ATOL,
    rtol: float = RTOL,
    reason: str = "",
) -> Verification:
    """Run the same inputs through `expected` and `run`, and compare.

    Parameters
    ----------
    graph : Graph
        Names, shapes and dtypes of the inputs; and whether it rounds its data as it runs, which makes the outputs
        held as wholes (`NOISE`).
    expected : Runner
    run : callable
        Inputs by name -> outputs by name.
    sizes : mapping of str to int, optional
        Sizes of open dimensions; others are varied from sample to sample.
    given : sequence of mappings, optional
        Inputs to use instead of made-up ones.
    count : int
        Number of made-up samples.
    seed : int
    atol, rtol : float
    reason : str
        Passed on to the result.

    Raises
    ------
    RunnerError
        If `expected` takes none of the inputs.
    """
    refusal: RunnerError | InputError | None = None
    noise = NOISE if rounds_as_it_runs(graph) else 0.0
    comparisons: list[Comparison] = []
    samples: list[GoldenSample] = []
    for inputs in given or _made_up(graph, sizes, seed):
        try:
            wanted = expected.run(inputs)
        except (RunnerError, InputError) as error:  # this size is not for this model; another may be
            refusal = refusal or error
            continue
        comparisons.append(compare(wanted, run(inputs), atol, rtol, noise))
        samples.append(GoldenSample(inputs, wanted, expected.name))
        if not given and len(samples) == count:
            break
    if not samples:
        raise RunnerError(
            f"No sample inputs of {len(SIZES)} different sizes could be run. {refusal} "
            "Give sizes for the open dimensions, or inputs of your own."
        )
    return Verification(expected.name, reason, tuple(comparisons), tuple(samples))


def compare_with_source(
    path: str | os.PathLike[str],
    graph: Graph,
    run: Run,
    *,
    sizes: Mapping[str, int] | None = None,
    given: Sequence[Mapping[str, Array]] = (),
    atol: float = ATOL,
    rtol: float = RTOL,
    trusted: bool = False,
) -> Verification:
    """Compare `run` with the source file's own framework, or with the float64 reference if that does not run it.

    Parameters are those of `compare_runs` and `expected_runner`. A framework may take a file and refuse it only when
    it runs; then, too, the reference takes its place, and the result has the framework's words as the reason.
    """
    expected, reason = expected_runner(path, graph, trusted=trusted)
    try:
        return compare_runs(graph, expected, run, sizes=sizes, given=given, atol=atol, rtol=rtol, reason=reason)
    except RunnerError as error:
        if reason:
            raise
        expected = reference_runner(graph)
        return compare_runs(graph, expected, run, sizes=sizes, given=given, atol=atol, rtol=rtol, reason=str(error))


def _made_up(graph: Graph, sizes: Mapping[str, int] | None, seed: int) -> Iterator[dict[str, Array]]:
    for position, (batch, time) in enumerate(SIZES):
        yield sample_inputs(graph, sizes, batch=batch, time=time, seed=seed + position)


def as_named(names: Graph, graph: Graph, run: Run) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Return a function that runs a model of `graph` under the names of inputs and outputs that `names` has.

    Formats name inputs and outputs differently; where the names differ, the order counts.

    Raises
    ------
    InputError
        If there are more of them in one than in the other.
    """
    if (len(names.inputs), len(names.outputs)) != (len(graph.inputs), len(graph.outputs)):
        raise InputError(
            f"The models cannot be compared: {len(names.inputs)} inputs and {len(names.outputs)} outputs here, "
            f"{len(graph.inputs)} and {len(graph.outputs)} there."
        )
    same = {s.name for s in names.outputs} == {s.name for s in graph.outputs}

    def under(inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = run(renamed(inputs, graph))
        if same:
            return dict(outputs)
        return {spec.name: outputs[own.name] for spec, own in zip(names.outputs, graph.outputs, strict=True)}

    return under


def renamed(inputs: Mapping[str, Array], graph: Graph) -> dict[str, Array]:
    """Return inputs under the names that a graph has for them, in its order where the names differ."""
    wanted = [spec.name for spec in graph.inputs]
    if set(wanted) == set(inputs):
        return dict(inputs)
    return dict(zip(wanted, map(np.asarray, inputs.values()), strict=True))


def replay(run: Run, samples: Sequence[GoldenSample], atol: float = ATOL, rtol: float = RTOL) -> tuple[Comparison, ...]:
    """Run the inputs of stored samples again and compare with the outputs stored beside them."""
    return tuple(compare(sample.outputs, run(sample.inputs), atol, rtol) for sample in samples)


def check_stored(stored: StoredModel, run: Run, atol: float = ATOL, rtol: float = RTOL) -> None:
    """Replay the golden samples of what was read back from a file; `run` is a model's that was made of it.

    Raises
    ------
    FastLSTMError
        If an output is further off than the tolerances allow.
    """
    for comparison in replay(run, stored.golden, atol, rtol):
        if differs := [output for output in comparison.outputs if not output.holds]:
            raise InputError(f"of its golden samples, one gives another result: {differs[0]}.")


@dataclass(frozen=True)
class LayerDifference:
    """How far the outputs of one node are from the reference's."""

    node: Node
    comparison: Comparison

    @property
    def holds(self) -> bool:
        """Whether all of the node's outputs are within the tolerance."""
        return self.comparison.holds

    def __str__(self) -> str:
        worst = max(self.comparison.outputs, key=lambda output: (not output.holds, output.ratio))
        return f"{self.node.op} '{self.node.name or self.node.output(0)}' – {worst}"


def compare_layers(
    graph: Graph,
    run_graph: Callable[[Graph, Mapping[str, Array]], Mapping[str, Array]],
    inputs: Mapping[str, Array],
    atol: float = ATOL,
    rtol: float = RTOL,
) -> tuple[LayerDifference, ...]:
    """Compare every node's outputs with the float64 reference's, in the order the nodes run.

    Parameters
    ----------
    graph : Graph
    run_graph : callable
        Runs the graph it is given, which is `graph` with every inner value among its outputs.
    inputs : mapping of str to array
    """
    exposed = _exposed(graph)
    wanted, got = reference.run(exposed, inputs), run_graph(exposed, inputs)
    values = {spec.name for spec in exposed.outputs}
    found = []
    for node in graph.nodes:
        names = [name for name in node.outputs if name in values]
        if names:
            pair = ({name: wanted[name] for name in names}, {name: got[name] for name in names})
            found.append(LayerDifference(node, compare(*pair, atol, rtol)))
    return tuple(found)


def _exposed(graph: Graph) -> Graph:
    """Return `graph` with all values that are arrays among its outputs (sequences cannot be)."""
    from fastlstm.passes import shapes

    infos = shapes.infer(graph)
    names = {spec.name for spec in graph.outputs}
    extra = [
        TensorSpec(name, info.shape if info.shape is not None else (), info.dtype)
        for node in graph.nodes
        for name in node.outputs
        if name not in names and (info := infos.get(name)) and info.dtype is not None
    ]
    return graph.replace(outputs=(*graph.outputs, *extra))
