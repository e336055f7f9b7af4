"""Is it still the same model? `verify` compares it with its own framework, its samples, or another model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastlstm.commands.subject import Subject
from fastlstm.errors import InputError
from fastlstm.model import Model
from fastlstm.typing import Array
from fastlstm.verification.comparison import (
    ATOL,
    RTOL,
    Run,
    Verification,
    as_named,
    compare_layers,
    compare_runs,
    compare_with_source,
    renamed,
    replay,
)
from fastlstm.verification.runners import Runner, object_runner

__all__ = ["verify"]


def verify(
    model: Any,
    against: Any = None,
    *,
    inputs: Mapping[str, Array] | None = None,
    sizes: Mapping[str, int] | None = None,
    atol: float = ATOL,
    rtol: float = RTOL,
    by_layer: bool = False,
    trusted: bool = False,
    **options: Any,
) -> Verification:
    """Compare a model's outputs with the expected ones.

    Parameters
    ----------
    model : path or Model
        What is run by fastlstm. Alone, a ``.fastlstm`` file is compared with the samples in it, any other file with
        its own framework, or with the float64 reference if that is not installed.
    against : path, Model, torch.nn.Module, Keras model or callable, optional
        The source of the expected outputs; a callable takes inputs by name and returns outputs by name. If names
        differ, the order counts.
    inputs : mapping of str to array, optional
        Inputs for both, in the model's own layout; random data of several sizes by default.
    sizes : mapping of str to int, optional
        Sizes of open dimensions for random data.
    atol, rtol : float
        An output holds where ``|got - expected| <= atol + rtol * |expected|``.
    by_layer : bool
        Also compare the outputs of each layer with the float64 reference, on the first inputs.
    trusted : bool
        Let PyTorch itself load the file, which can run code from it.
    **options
        Options of the format's reader, such as ``layers=`` for a PyTorch state dict.

    Returns
    -------
    Verification
        ``holds`` says whether they agree. Prints as a report.

    Raises
    ------
    InputError
        If there is nothing to compare with, or inputs or sizes do not fit.
    FileFormatError, UnsupportedError, OSError
        If a file cannot be read.

    Examples
    --------
    >>> import fastlstm, numpy as np
    >>> layer = {"lstm.weight_ih_l0": np.ones((8, 3)), "lstm.weight_hh_l0": np.ones((8, 2))}
    >>> model = fastlstm.from_state_dict(layer, layers="lstm", batch_first=True)
    >>> fastlstm.verify(model, against=lambda inputs: model.run(inputs)).holds
    True
    """
    subject = Subject.of(model, options)
    found = _compared(subject, against, inputs, sizes, (atol, rtol), trusted)
    if not by_layer:
        return found
    first = renamed(found.samples[0].inputs, subject.graph)
    layers = compare_layers(subject.graph, lambda g, x: Model(g).run(x), first, atol, rtol)
    return replace(found, layers=layers)


def _compared(
    subject: Subject,
    against: Any,
    inputs: Mapping[str, Array] | None,
    sizes: Mapping[str, int] | None,
    tolerance: tuple[float, float],
    trusted: bool,
) -> Verification:
    """Compare a subject with what is expected of it; the tolerance is an absolute and a relative one."""
    run: Run = subject.model().run
    atol, rtol = tolerance
    if against is None and subject.is_stored:
        if inputs or sizes:
            raise InputError("To compare on other inputs than the golden samples, name a second model.")
        if not subject.stored.golden:
            raise InputError(f"'{subject.path}' holds no golden samples: name a second model to compare with.")
        origin = f"the golden samples of {subject.stored.golden[0].origin}"
        return Verification(origin, "", replay(run, subject.stored.golden, atol=atol, rtol=rtol), subject.stored.golden)
    if against is None and not subject.path:
        raise InputError("A model alone can be compared with nothing: say with what, as in verify(model, against).")
    if against is not None and not isinstance(against, str | os.PathLike | Model | Subject):
        given = [dict(inputs)] if inputs else []
        return compare_runs(
            subject.graph, object_runner(against, subject.graph), run, sizes=sizes, given=given, atol=atol, rtol=rtol
        )
    expected = subject if against is None else Subject.of(against)
    run = as_named(expected.graph, subject.graph, run)
    given = [renamed(inputs, expected.graph)] if inputs else []
    if expected.path and not expected.is_stored:
        return compare_with_source(
            expected.path, expected.graph, run, sizes=sizes, given=given, trusted=trusted, atol=atol, rtol=rtol
        )
    runner = Runner(f"{expected.name} in fastlstm", expected.model().run)
    return compare_runs(expected.graph, runner, run, sizes=sizes, given=given, atol=atol, rtol=rtol)
