"""What a command works on: a model, the file that it was read from, and the samples stored beside it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastlstm.errors import AssumptionWarning, InputError
from fastlstm.files.fileformat import StoredModel, read
from fastlstm.graph import Graph
from fastlstm.model import Model

__all__ = ["Subject", "read_model"]

Precision = str | Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """A model that was read or given.

    Attributes
    ----------
    path : str
        Of its file; "" if it came as an object.
    stored : StoredModel
    given : Model or None
        The object.
    """

    path: str
    stored: StoredModel
    given: Model | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str], options: Mapping[str, Any] = MappingProxyType({})) -> Subject:
        """Read a model file; the options are those of `read_model`."""
        return cls(os.fspath(path), read_model(os.fspath(path), options))

    @classmethod
    def of(cls, model: Any, options: Mapping[str, Any] = MappingProxyType({}), level: int = 2) -> Subject:
        """Return what a caller gave: a path, which is read, a Model, or a subject.

        What reading assumed is warned of at the line that is `level` calls above.
        """
        if isinstance(model, Subject):
            return model
        if isinstance(model, Model):
            if options:
                raise InputError(
                    f"Expected no further options for a model that is read already; got {', '.join(options)}. "
                    "What a function does not name itself goes to the reader of a file."
                )
            return cls("", StoredModel(model.graph), model)
        if not isinstance(model, str | os.PathLike):
            raise InputError(f"A model is a path or a fastlstm.Model; got {type(model).__name__}.")
        subject = cls.read(model, options)
        if not subject.is_stored:  # a .fastlstm file was warned of when it was made
            for note in Model(subject.graph).notes:
                warnings.warn(note, AssumptionWarning, stacklevel=level + 1)
        return subject

    @property
    def graph(self) -> Graph:
        """The model's graph."""
        return self.stored.graph

    @property
    def is_stored(self) -> bool:
        """Whether it comes from a ``.fastlstm`` file."""
        return self.path.endswith(".fastlstm")

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path or "the model given"

    def model(self, threads: int | None = 1, precision: Precision = "float32", graph: Graph | None = None) -> Model:
        """Return the model to run; a `graph` takes the place of its own."""
        if self.given is not None and graph is None and (self.given.threads, precision) == (threads, "float32"):
            return self.given
        return Model(self.graph if graph is None else graph, threads, precision)


def read_model(path: str, options: Mapping[str, Any] = MappingProxyType({})) -> StoredModel:
    """Read a model file of any supported format; `options` are those of its reader."""
    if path.endswith(".fastlstm"):
        for name in options:
            raise InputError(
                f"{name.replace('_', '-')} is for files of other formats; a .fastlstm file says its layers and shapes "
                "itself."
            )
        return read(path)
    from fastlstm.converters import load_graph

    return StoredModel(load_graph(path, **options))
