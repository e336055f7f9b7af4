"""The output folder: parts of fixed ranges of input rows, each there whole or not at all, and what they came from.

``_manifest.json``
    The input, the model and the settings that decide what the parts hold. A run with others is refused.
``part-00000000.parquet``
    The scored rows of the first range, in their order.
``_rejected/part-00000000.parquet``
    The rows of that range that could not be scored, with their numbers and the reasons; only if there are any.
``_aside/``
    Files that are being written. What a killed run left there is removed by the next.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from fastlstm.errors import FileFormatError, InputError
from fastlstm.files.graph_json import tensors, to_json
from fastlstm.graph import Graph
from fastlstm.scoring.sources import filesystem

__all__ = ["REJECTED", "OutputFolder", "model_hash"]

FORMAT = 1
REJECTED = "_rejected"
_MANIFEST, _ASIDE = "_manifest.json", "_aside"


def model_hash(graph: Graph) -> str:
    """Return the SHA-256 of what a model computes: its graph and constants, narrow weights as they are."""
    digest = hashlib.sha256(to_json(graph.replace(name="", notes=())).encode())
    for name, array in sorted(tensors(graph), key=lambda pair: pair[0]):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class OutputFolder:
    """The folder that a run writes to; it pickles, so that workers elsewhere can write parts.

    Parameters
    ----------
    path : str or path
        A folder on this machine, or an fsspec URL.
    manifest : dict
        Plain data; all of it has to be the same when a run goes on.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
        self.path = os.fspath(path)
        if "://" not in self.path:
            self.path = os.path.abspath(self.path)  # workers elsewhere have another working folder
        self.manifest = json.loads(json.dumps({"format": FORMAT, **manifest}))
        self._fs, self._root = filesystem(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return OutputFolder, (self.path, self.manifest)

    def begin(self, resume: bool | None) -> set[int]:
        """Make the folder or go on in it; return the parts that are there.

        Parameters
        ----------
        resume : bool or None
            True: there has to be a run to go on with; False: there may be none; None: either.

        Raises
        ------
        InputError
            If the folder holds something else, or a run with another input, model or setting.
        """
        found = self._read_manifest()
        if found is None:
            if resume:
                raise InputError(f"There is no run in '{self.path}' to go on with.")
            if self._fs.exists(self._root) and (not self._fs.isdir(self._root) or self._fs.ls(self._root)):
                raise InputError(f"'{self.path}' holds something else already; name a new or an empty folder.")
            self._replace(_MANIFEST, json.dumps(self.manifest, indent=1).encode())
            return set()
        if resume is False:
            raise InputError(f"'{self.path}' holds a run already: go on with it (resume), or name another folder.")
        for key in [*self.manifest, *found]:
            then, now = found.get(key), self.manifest.get(key)
            if then != now:
                if isinstance(then, list) and isinstance(now, list):  # of files, say, of which there may be thousands
                    pairs = zip_longest(then, now, fillvalue="none")
                    then, now = next(pair for pair in pairs if pair[0] != pair[1])
                raise InputError(
                    f"'{self.path}' was begun with another {key}: {_short(then)} then, {_short(now)} now. "
                    "Score into another folder, or as before."
                )
        if self._fs.exists(self._inside(_ASIDE)):
            self._fs.rm(self._inside(_ASIDE), recursive=True)
        return set(self.numbers())

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            data = json.loads(self._fs.cat_file(self._inside(_MANIFEST)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise FileFormatError(f"The manifest of '{self.path}' cannot be read: {error}.") from error
        if not isinstance(data, dict):
            raise FileFormatError(f"The manifest of '{self.path}' is not one that fastlstm wrote.")
        return data

    def numbers(self, folder: str = "") -> Iterator[int]:
        """Yield the numbers of the parts that are there."""
        self._fs.invalidate_cache()
        inside = self._inside(folder)
        if not self._fs.exists(inside):
            return
        for name in sorted(self._fs.ls(inside, detail=False)):
            stem, ending = posixpath.splitext(posixpath.basename(str(name)))
            if ending == ".parquet" and stem.startswith("part-") and stem[5:].isdigit():
                yield int(stem[5:])

    def rows(self, number: int, folder: str = "") -> int:
        """Return the number of rows in a part."""
        with self._fs.open(self._inside(folder, _name(number)), "rb") as file:
            return int(pq.read_metadata(file).num_rows)

    def write(self, number: int, table: Any, rejected: Any | None) -> None:
        """Write a part, the rows that it lacks first: the part's own file says that both are there.

        Raises
        ------
        OSError
            If it cannot be written, because the disk is full, say; the folder is as it was.
        """
        if rejected is not None:
            self._write_table(posixpath.join(REJECTED, _name(number)), rejected)
        self._write_table(_name(number), table)

    @contextmanager
    def writing(self, number: int, schema: Any) -> Iterator[pq.ParquetWriter]:
        """Give a Parquet writer for a part that comes piece by piece; it is there when all went well."""
        aside = self._new_aside()
        try:
            with _disk_errors(aside), self._fs.open(aside, "wb") as file:
                with pq.ParquetWriter(
                    file, self._labelled(schema), use_dictionary=self._with_dictionary(schema)
                ) as writer:
                    yield writer
                self._to_disk(file)
            self._moved(aside, _name(number))
        finally:
            self._dropped(aside)

    def _write_table(self, name: str, table: Any) -> None:
        buffer = io.BytesIO()
        labelled = table.replace_schema_metadata(self._labelled(table.schema).metadata)
        try:
            pq.write_table(labelled, buffer, use_dictionary=self._with_dictionary(table.schema))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise InputError(f"Parquet cannot hold these columns: {error}. Leave them out (keep=[...]).") from error
        self._replace(name, buffer.getvalue(), table.num_rows)

    def _with_dictionary(self, schema: Any) -> list[str]:
        """Return the columns that are written as dictionaries of their values: all but the model's outputs.

        Scores hardly repeat: to look for it took two thirds of the time of writing four of them beside an id, and the
        file was a third larger.
        """
        outputs = set(self.manifest.get("outputs", {}).values())
        return [path for field in schema if field.name not in outputs for path in _leaves(field.name, field.type)]

    def _labelled(self, schema: Any) -> Any:
        label = {"fastlstm": json.dumps({key: v for key, v in self.manifest.items() if key != "input"})}
        return schema.with_metadata(label)

    def _replace(self, name: str, data: bytes, rows: int | None = None) -> None:
        """Write a file aside, read it back, and rename it."""
        aside = self._new_aside()
        try:
            with _disk_errors(aside), self._fs.open(aside, "wb") as file:
                file.write(data)
                self._to_disk(file)
            self._moved(aside, name, rows)
        finally:
            self._dropped(aside)

    def _moved(self, aside: str, name: str, rows: int | None = None) -> None:
        if name.endswith(".parquet"):
            with self._fs.open(aside, "rb") as file:
                found = pq.read_metadata(file).num_rows
            if rows not in (None, found):
                raise OSError(errno.EIO, f"{rows} rows were written and {found} read back", aside)
        target = self._inside(name)
        folder = posixpath.dirname(target)
        self._fs.makedirs(folder, exist_ok=True)
        if self._is_local:
            os.replace(aside, target)
            _sync_folder(folder)
        else:
            self._fs.mv(aside, target)

    def _new_aside(self) -> str:
        self._fs.makedirs(self._inside(_ASIDE), exist_ok=True)
        return self._inside(_ASIDE, uuid.uuid4().hex)

    def _dropped(self, aside: str) -> None:
        if self._fs.exists(aside):
            self._fs.rm(aside)

    def end(self) -> None:
        """Remove the folder for files aside."""
        if self._fs.exists(self._inside(_ASIDE)):
            self._fs.rm(self._inside(_ASIDE), recursive=True)

    @property
    def _is_local(self) -> bool:
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def _to_disk(self, file: Any) -> None:
        """See that a file outlives a power cut before it gets its name."""
        if self._is_local:
            file.flush()
            os.fsync(file.fileno())

    def _inside(self, *names: str) -> str:
        return posixpath.join(self._root, *[name for name in names if name])


def _leaves(path: str, kind: Any) -> Iterator[str]:
    """Yield the paths of a column's values in a Parquet file."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if kinds.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    elif kinds.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", kind.key_type)
        yield from _leaves(f"{path}.key_value.value", kind.item_type)
    elif kinds.is_nested(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path


def _name(number: int) -> str:
    return f"part-{number:08d}.parquet"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(path: str) -> Iterator[None]:
    """Give an error of the operating system the name of the file; pyarrow's leave it out."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), path) from error
        raise
