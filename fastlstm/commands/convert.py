"""From a model file to a ``.fastlstm`` file, compared before it is written, with narrow weights if asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.commands.precision import Cost, Metric, by_metric, cost, fastest_within
from fastlstm.commands.subject import Precision, Subject
from fastlstm.errors import InputError, VerificationError
from fastlstm.files import fileformat
from fastlstm.files.fileformat import GoldenSample, StoredModel
from fastlstm.graph import Graph
from fastlstm.graph.quantise import precisions
from fastlstm.model import Model
from fastlstm.reporting.tables import table
from fastlstm.typing import Array
from fastlstm.verification.comparison import ATOL, RTOL, Verification, check_stored, compare_with_source
from fastlstm.verification.samples import sample_inputs
from fastlstm.version import __version__

__all__ = ["Conversion", "Narrowing", "convert"]

Data = Mapping[str, Array] | Sequence[Mapping[str, Array]]

GOLDEN_BYTES = 4 << 20  # larger samples are compared, but not stored


@dataclass(frozen=True)
class Narrowing:
    """What narrow weights cost and what they gain.

    Attributes
    ----------
    layers : mapping of str to str
        The precision of each layer.
    cost : Cost
        Errors against float32, and speed on this machine.
    bytes, float32_bytes : int
        Size of the weights, narrow and in float32.
    notes : tuple of str
        Which layers stayed as they were, and why.
    """

    layers: Mapping[str, str]
    cost: Cost
    bytes: int
    float32_bytes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{layer}: {chosen}" for layer, chosen in self.layers.items()]
        lines += [str(self.cost), f"weights: {self.bytes:,} bytes, {self.float32_bytes:,} in float32", *self.notes]
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        sizes = {"bytes": self.bytes, "float32_bytes": self.float32_bytes}
        return {"layers": dict(self.layers), **self.cost.as_data(), **sizes, "notes": list(self.notes)}


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote.

    Attributes
    ----------
    output : str
        The file.
    verification : Verification or None
        The comparison with the source's own framework; None if that was not asked for.
    golden_samples, file_bytes : int
    narrowing : Narrowing or None
    metric : mapping of str to float
        The caller's metric for each precision.
    notes : tuple of str
        What was assumed.
    """

    output: str
    verification: Verification | None
    golden_samples: int
    file_bytes: int
    narrowing: Narrowing | None = None
    metric: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether another engine confirmed the outputs."""
        return self.verification is not None and not self.verification.reason

    @property
    def how(self) -> str:
        """How sure the outputs are, in words."""
        if self.verification is None:
            return "not verified"
        return "verified" if self.verified else "consistent with our own reference"

    def __str__(self) -> str:
        parts = [self.verification, self.narrowing, self.metric and metric_table(self.metric)]
        written = f"{self.output}: written, {self.how}, with {self.golden_samples} golden samples"
        return "\n".join([*(str(part) for part in parts if part), f"{written}, {self.file_bytes:,} bytes"])

    def __repr__(self) -> str:
        return f"<Conversion: {self.output}, {self.how}, {self.file_bytes:,} bytes>"

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        report: dict[str, Any] = {"output": self.output, "verified": self.verified}
        if self.verification is not None:
            found = self.verification
            report |= {**found.worst.as_data(), "expected_from": found.expected_from, "reason": found.reason or None}
        if self.narrowing is not None:
            report["precision"] = self.narrowing.as_data()
        if self.metric:
            report["metric"] = dict(self.metric)
        return report | {
            "golden_samples": self.golden_samples, "file_bytes": self.file_bytes, "notes": list(self.notes),
        }  # fmt: skip


def convert(
    source: str | os.PathLike[str] | Subject,
    output: str | os.PathLike[str],
    *,
    precision: Precision = "float32",
    max_error: float | None = None,
    data: Data | None = None,
    metric: Metric | None = None,
    inputs: Mapping[str, Array] | None = None,
    sizes: Mapping[str, int] | None = None,
    compare: bool = True,
    atol: float = ATOL,
    rtol: float = RTOL,
    trusted: bool = False,
    **options: Any,
) -> Conversion:
    """Convert a model file to a ``.fastlstm`` file, which includes samples to verify it with.

    Parameters
    ----------
    source : path
        A model file of any supported format.
    output : path
        Ends in ``.fastlstm``; written to a temporary file, loaded again, then renamed.
    precision : str or mapping of str to str
        "float32", "int16" or "int8", for all layers or by layer name.
    max_error : float, optional
        Give each layer the fastest precision with which no output is off by more than this on `data`.
    data : mapping of str to array, or sequence of them, optional
        Inputs on which errors and the metric are measured, in the model's own layout.
    metric : callable, optional
        ``metric(outputs, inputs) -> number``, both dicts by name: measured in float32, int16 and int8.
    inputs : mapping of str to array, optional
        Inputs for the comparison; random data of several sizes by default.
    sizes : mapping of str to int, optional
        Sizes of open dimensions for random data.
    compare : bool
        Compare the outputs with the source's own framework, or with the float64 reference if that is not installed.
    atol, rtol : float
        An output holds where ``|got - expected| <= atol + rtol * |expected|``.
    trusted : bool
        Let PyTorch itself load the source, which can run code from it.
    **options
        Options of the format's reader, such as ``layers=`` for a PyTorch state dict.

    Returns
    -------
    Conversion
        What was found and written. Prints as a report.

    Raises
    ------
    VerificationError
        If an output differs by more than the tolerance; nothing is written.
    InputError
        If the arguments are incompatible, or the data do not fit the model.
    FileFormatError, UnsupportedError, OSError
        If the source cannot be read or the output cannot be written.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> layer = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> fastlstm.from_state_dict(layer, layers="lstm", batch_first=True).save("m.fastlstm")
    >>> fastlstm.convert("m.fastlstm", "copy.fastlstm", compare=False).how
    'not verified'
    """
    path, samples = os.fspath(output), _samples(data)
    _check(path, precision, max_error, samples, metric)
    subject = Subject.of(source, options)
    if not subject.path:
        raise InputError("convert reads a model file; a model that is read already has save(path).")
    graph, notes = subject.graph, subject.model().notes
    golden, found = list(subject.stored.golden), None
    if compare:
        found = compare_with_source(
            subject.path, graph, subject.model().run, sizes=sizes, given=[inputs] if inputs else [],
            atol=atol, rtol=rtol, trusted=trusted,
        )  # fmt: skip
        if not found.holds:
            raise VerificationError(f"The outputs differ by more than allowed; {path} was not written.", found)
        golden = golden or [sample for sample in found.samples if _can_be_kept(sample)]
        if found.noisy:  # a replay is held to the bits of rounding here, not in the other engine
            golden = [_replayed(sample, graph) for sample in golden]
    narrowing = None
    if precision != "float32" or max_error is not None:
        measured = [sample.inputs for sample in golden] + samples
        graph, narrowing = _narrowed(graph, precision, max_error, measured or [sample_inputs(graph, sizes)])
        golden = [_replayed(sample, graph) for sample in golden]
    values = by_metric(subject.graph, samples, metric) if metric else {}
    origin = subject.stored.source or fileformat.Source.of(subject.path)

    def check(stored: StoredModel) -> None:
        """Load what was written; replay its samples too, unless outputs are not to be compared."""
        kept = stored.golden if compare else ()
        check_stored(replace(stored, golden=kept), Model(stored.graph).run, atol, rtol)

    fileformat.write(path, graph, golden, origin, check=check)
    return Conversion(path, found, len(golden), Path(path).stat().st_size, narrowing, values, notes)


def _samples(data: Data | None) -> list[Mapping[str, Array]]:
    if data is None:
        return []
    return [data] if isinstance(data, Mapping) else list(data)


def _check(
    output: str, precision: Precision, max_error: float | None, samples: Sequence[object], metric: Metric | None
) -> None:
    """Say before anything is read what does not go together."""
    if Path(output).suffix != ".fastlstm":
        raise InputError(f"'{output}': expected an output file ending in .fastlstm.")
    if samples and precision == "float32" and max_error is None and not metric:
        raise InputError("data goes with precision, max_error or metric; inputs are what outputs are compared on.")
    if metric and not samples:
        raise InputError("A metric is measured on data of your own; give some as data.")
    if max_error is not None and not max_error > 0:
        raise InputError(f"max_error should be above zero; got {max_error!r}.")


def _narrowed(
    graph: Graph, precision: Precision, max_error: float | None, samples: Sequence[Mapping[str, Array]]
) -> tuple[Graph, Narrowing]:
    """Return the graph with narrow weights, and what they cost and gain."""
    if max_error is not None:
        precision = fastest_within(graph, samples, max_error)
    model = Model(graph, precision=precision)
    found = cost(Model(graph), model, samples)
    # What was asked of a layer that stays wider is not what it has.
    narrow = precisions(model.graph)
    asked = precision if isinstance(precision, Mapping) else narrow
    picked = {layer: narrow.get(layer, "float32") for layer in asked}
    notes = tuple(note for note in model.notes if note not in graph.notes)
    return model.graph, Narrowing(picked, found, _weight_bytes(model.graph), _weight_bytes(graph), notes)


def metric_table(values: Mapping[str, float], name: str = "metric") -> str:
    """Return a metric by precision as a table."""
    rows = [{"precision": p, name: v, "against float32": v - values["float32"]} for p, v in values.items()]
    return table(rows, list(rows[0]))


def _weight_bytes(graph: Graph) -> int:
    """Return the bytes of a graph's constants."""
    return sum(array.nbytes for array in graph.constants.values())


def _replayed(sample: GoldenSample, graph: Graph) -> GoldenSample:
    """Return the sample with the narrow model's own outputs: those of others are further off than a replay may be."""
    return GoldenSample(sample.inputs, Model(graph).run(sample.inputs), f"fastlstm {__version__}, narrow weights")


def _can_be_kept(sample: GoldenSample) -> bool:
    """Whether a sample is small enough for the file, and holds arrays only: sequences are compared, not stored."""
    arrays = [*sample.inputs.values(), *sample.outputs.values()]
    return all(isinstance(a, np.ndarray) for a in arrays) and sum(a.nbytes for a in arrays) <= GOLDEN_BYTES
